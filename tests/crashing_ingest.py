"""Ingest with a decoder that dies, as a fault in a C library would have it, of every pack that holds a certain text."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import ingest.batch
from exchange.readings import PackReader, Refusal, Row
from ingest import command

DEADLY = b"x-deadly-nightshade"


class Deadly(PackReader):
    """Dies of it."""

    def rows(self, payload: bytes) -> tuple[list[Row], Sequence[Refusal]]:
        if DEADLY in payload:
            os.abort()
        return super().rows(payload)


if __name__ == "__main__":
    setattr(ingest.batch, "PackReader", Deadly)  # noqa: B010 - that is the point
    sys.exit(command.run(["run", sys.argv[1]]))
