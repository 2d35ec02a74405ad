"""The audit trail as a document: what this gateway was ordered, by whom, and what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Literal

import msgspec

from edge_agent.ledger import Entry, Kind
from exchange.moments import Moment, rfc3339
from exchange.readings import Value

LAST_MAX = 1000
"""As many orders are in a document at most; the ledger holds more."""


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """One order. Shape: `status` is that of the newest result, empty while there is none."""

    taken: Moment
    kind: Kind
    by: str
    """For people: who says that they issued it; of the gateway's own, which programme or command it goes by."""
    device: str
    name: str
    args: dict[str, Value | str] = {}
    id: str = ""
    expires_at: str = ""
    status: str
    at: Moment | None = None
    reason: str = ""
    readback: dict[str, Value] = {}


class Trail(msgspec.Struct, frozen=True, kw_only=True):
    """The newest orders, newest first; `problem` says why there are none to be had."""

    v: Literal[1] = 1
    orders: list[Order] = []
    problem: str = ""


encode_trail = msgspec.json.Encoder().encode
decode_trail = msgspec.json.Decoder(Trail).decode


def trail_of(entries: Sequence[Entry]) -> Trail:
    """Return the document of what a ledger holds."""
    return Trail(orders=[_order(entry) for entry in entries])


def _order(entry: Entry) -> Order:
    detail, came = entry.detail, entry.result
    taken = datetime.fromtimestamp(entry.taken_ms / 1000, UTC)
    return Order(
        taken=taken,
        kind=entry.kind,
        by=detail.by or detail.issued_by,
        device=entry.device,
        name=entry.name,
        args=detail.args,
        id=str(detail.id or ""),
        expires_at=rfc3339(detail.expires_at) if detail.expires_at else "",
        status=entry.status,
        at=came.at or (taken if entry.status else None),
        reason=came.reason,
        readback=came.readback,
    )
