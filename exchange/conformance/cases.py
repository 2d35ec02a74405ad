"""Cases: what the kit sends in a gateway's name, and what the receipt must say of it.

Packs are made of plain records here, not by our own encoder: what it never writes is the contract all the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import cbor2
import msgspec

from exchange.readings import PackFormat

Record: TypeAlias = dict[str, Any]
Key: TypeAlias = tuple[str, int, int]
"""device, epoch, seq"""

STORED = ""
"""What becomes of a sample in order; of another the requirement that it breaks."""
SPACING_S = 1

_CBOR_LABELS = {
    "bt": -3, "bn": -2, "bver": -1, "n": 0, "u": 1, "v": 2, "vs": 3, "vb": 4, "t": 6,
}  # fmt: skip  # RFC 8428 table 4


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """One publish.

    Shape: `keys` what must become of each sample. With `unreadable`, the requirement that the payload as a whole
        breaks, it is to be named by its digest, or else every one of `keys`. `proves` are the requirements that a
        right answer speaks for.
    """

    what: str
    topic: str
    payload: bytes
    keys: Mapping[Key, str] = {}
    unreadable: str = ""
    result: tuple[str, str] | None = None
    proves: tuple[str, ...] = ()


class Played(msgspec.Struct, frozen=True, kw_only=True):
    """A device that the kit plays, within one epoch.

    Units: `epoch` in milliseconds, `begun_s` in whole seconds since 1970, the time of seq 0; seq n is n seconds later.
    """

    county: str
    site: str
    gateway: str
    domain: str
    device: str
    epoch: int
    begun_s: int

    def topic(self, channel: str = "readings") -> str:
        """Return the topic of one of its channels."""
        return f"city/v1/{self.county}/{self.site}/{self.gateway}/{self.domain}/{self.device}/{channel}"

    def key(self, seq: int) -> Key:
        """Return the name of a sample."""
        return self.device, self.epoch, seq

    def head(self, **labels: Any) -> Record:
        """Return a pack's first record; a label of None is left out."""
        named = {
            "bn": f"{self.county}:{self.device}:",
            "bt": self.begun_s,
            "bver": 26,
            "n": "epoch",
            "v": self.epoch,
        } | labels
        return {label: value for label, value in named.items() if value is not None}

    def sample(self, seq: int, *metrics: Record) -> list[Record]:
        """Return a sample's records; without metrics it has one, in order and its own."""
        given = metrics or ({"n": "temperature", "u": "Cel", "v": 20 + seq % 100 / 10},)
        return [{**record, "t": seq * SPACING_S} for record in ({"n": "seq", "v": seq}, *given)]

    def pack(self, seqs: Iterable[int], form: PackFormat = "json") -> bytes:
        """Return a pack of samples in order."""
        return packed([self.head(), *(one for seq in seqs for one in self.sample(seq))], form)

    def case(self, what: str, seqs: Iterable[int], *proves: str, form: PackFormat = "json") -> Case:
        """Return a pack that must be stored."""
        seqs = list(seqs)
        return Case(
            what=what,
            topic=self.topic(),
            payload=self.pack(seqs, form),
            keys={self.key(seq): STORED for seq in seqs},
            proves=proves,
        )


def packed(records: Iterable[Record], form: PackFormat = "json") -> bytes:
    """Return the payload of these records, right or wrong."""
    if form == "json":
        return json.dumps(list(records)).encode()
    labelled = [{_CBOR_LABELS[label]: value for label, value in one.items()} for one in records]
    return cbor2.dumps(labelled)
