"""Poison: cases that break the contract on purpose, each with the id that its receipt must name.

What harms a decoder more than it breaks a rule is here too: nesting and numbers without end, bytes that promise more
than follows.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from itertools import count

from exchange.conformance.cases import STORED, Case, Key, Played, Record, packed

OVER_A_PACK_BYTES = 257 * 1024
LARGEST_BYTES = 1_900_000  # with its topic and header below the 2 MiB that an ingest must take
DAY_S = 86_400
_GOOD: Record = {"n": "temperature", "u": "Cel", "v": 21.5}

METRICS: dict[str, tuple[list[Record], str]] = {
    "a metric that no dictionary has": ([{"n": "happiness", "v": 7}], "EX-R-009"),
    "a text where a number belongs": ([{"n": "pm2_5", "vs": "much"}], "EX-R-010"),
    "a boolean where a number belongs": ([{"n": "pm2_5", "vb": True}], "EX-R-010"),
    "a value out of range without a mark": (
        [{"n": "humidity", "u": "%RH", "v": 140}],
        "EX-R-011",
    ),
    "a unit that does not convert": ([{"n": "pm2_5", "u": "m", "v": 3}], "EX-R-012"),
    "a quality that is none": ([{"n": "quality", "vs": "so-so"}], "EX-R-015"),
    "a number above 2^53": ([{"n": "x-conform-large", "v": 1e300}], "EX-R-016"),
    "a metric given twice": (
        [{"n": "pm2_5", "u": "ug/m3", "v": 3}, {"n": "pm2_5", "u": "ug/m3", "v": 4}],
        "EX-R-017",
    ),
}
"""Beside a good metric: what is refused is this metric alone, and the sample is stored."""


def metrics(device: Played, seqs: count[int]) -> Iterator[Case]:
    """Yield samples of which one metric is bad: they are stored all the same."""
    for what, (bad, requirement) in METRICS.items():
        yield _one_bad_metric(device, next(seqs), f"{what} ({requirement})", bad, 26)
    needs_bver: list[Record] = [{"n": "pm2_5", "u": "ug/m3", "v": 3}]
    words = "a secondary unit without bver (EX-R-013)"
    yield _one_bad_metric(device, next(seqs), words, needs_bver, None)


def _one_bad_metric(
    device: Played, seq: int, what: str, bad: list[Record], bver: int | None
) -> Case:
    records = [device.head(bver=bver), *device.sample(seq, _GOOD, *bad)]
    return Case(
        what=what,
        topic=device.topic(),
        payload=packed(records),
        keys={device.key(seq): STORED},
        proves=("EX-D-025",),
    )


def backwards(device: Played, seqs: count[int]) -> Case:
    """Return a pack of three samples of which the middle one goes back in time."""
    first, middle, last = (next(seqs) for _ in range(3))
    back = [record | {"t": record["t"] - 5} for record in device.sample(middle)]
    records = [device.head(), *device.sample(first), *back, *device.sample(last)]
    wanted = {first: STORED, middle: "EX-R-008", last: STORED}
    return Case(
        what="time that goes back within a pack",
        topic=device.topic(),
        payload=packed(records),
        keys={device.key(seq): becomes for seq, becomes in wanted.items()},
        proves=("EX-D-026",),
    )


def ahead(device: Played, seqs: count[int]) -> Case:
    """Return a pack of two samples of which the later one is of the day after tomorrow."""
    now, later = next(seqs), next(seqs)
    future = [record | {"t": record["t"] + 2 * DAY_S} for record in device.sample(later)]
    return Case(
        what="a sample of the day after tomorrow",
        topic=device.topic(),
        payload=packed([device.head(), *device.sample(now), *future]),
        keys={device.key(now): STORED, device.key(later): "EX-R-023"},
        proves=("EX-D-026",),
    )


def payloads(device: Played, seqs: count[int]) -> Iterator[Case]:
    """Yield payloads that cannot be taken as a whole. A digest names each, so all hold something of their own."""
    mark = secrets.token_hex(8)

    def whole(what: str, requirement: str, payload: bytes, *named: Key) -> Case:
        return Case(
            what=what,
            topic=device.topic(),
            payload=payload,
            keys=dict.fromkeys(named, requirement),
            unreadable=requirement,
        )

    def records(what: str, requirement: str, at: int, **labels: object) -> Case:
        """Change labels of the record `at` of a pack in order."""
        seq = next(seqs)
        made = [device.head(), *device.sample(seq)]
        made[at] |= labels
        return whole(what, requirement, packed(made), device.key(seq))

    def nameless(what: str, requirement: str, head: Record, *others: Record) -> Case:
        return whole(what, requirement, packed([head, *others]))

    yield whole("an empty payload", "EX-R-001", b"")
    yield whole("words", "EX-R-001", f"conformance {mark}".encode())
    yield whole("an object, not an array", "EX-R-001", json.dumps({"mark": mark}).encode())
    yield whole("half a pack", "EX-R-001", device.pack([next(seqs)])[:-7])
    yield whole("bytes that are no UTF-8", "EX-R-001", b'[{"n":"\xff' + mark.encode() + b'"}]')
    yield whole("CBOR that promises more", "EX-R-001", b"\x9b\x7f\xff\xff\xff" + mark.encode())
    yield whole("nesting without end", "EX-R-001", b"[" * 100_000 + mark.encode())
    yield whole("nesting without end in CBOR", "EX-R-001", b"\x81" * 100_000 + mark.encode())
    yield nameless("a record without a value", "EX-R-001", device.head(), {"n": f"seq-{mark}"})
    yield nameless("another device than the topic's", "EX-R-003", device.head(bn=f"x:{mark}:"))
    yield records("bn twice", "EX-R-003", 1, bn="x")
    yield records("a label that is not used", "EX-R-004", -1, bu="Cel")
    yield records("a time that is relative", "EX-R-005", 0, bt=0)
    yield nameless("a fraction for an epoch", "EX-R-006", device.head(v=1.5), {"n": "seq", "v": 0})
    yield nameless("no epoch", "EX-R-006", device.head(n="seq", v=next(seqs)))
    yield nameless("no seq", "EX-R-007", device.head(), {"n": "pm2_5", "v": 3.25})
    yield nameless("a seq below zero", "EX-R-007", device.head(), {"n": "seq", "v": -1})
    yield _too_large(device, next(seqs), "a number without end", b"9" * 400)
    yield _too_large(device, next(seqs), "a bignum in CBOR", b"")
    yield records("a bver of the future", "EX-R-018", 0, bver=99)


def _too_large(device: Played, seq: int, what: str, digits: bytes) -> Case:
    """Return a pack with a number that some decoders take and others do not: only its metric is bad."""
    value = 123456789 if digits else 2**80
    records = [device.head(), *device.sample(seq, _GOOD | {"n": "x-conform-large", "v": value})]
    payload = packed(records, "json" if digits else "cbor")
    return Case(
        what=what,
        topic=device.topic(),
        payload=payload.replace(b"123456789", digits) if digits else payload,
        keys={device.key(seq): STORED},
        unreadable="EX-R-016",
    )


def topics(device: Played) -> Iterator[Case]:
    """Yield packs on topics that are none, as far as they pass a broker that keeps a gateway to its branch."""
    branch = f"city/v1/{device.county}/{device.site}/{device.gateway}"
    for what, requirement, below in (
        ("a level in capitals", "EX-T-002", f"{device.domain}/AQ_1"),
        ("a domain without a dictionary", "EX-T-004", "jazz/conform-1"),
        ("a gateway's readings under another id", "EX-T-006", "gateway/conform-other"),
    ):
        payload = json.dumps([device.head(), {"n": what, "v": 1}]).encode()
        yield Case(
            what=what, topic=f"{branch}/{below}/readings", payload=payload, unreadable=requirement
        )


def oversized(device: Played, seqs: count[int]) -> Iterator[Case]:
    """Yield packs in order but for their size."""
    for size_bytes in (OVER_A_PACK_BYTES, LARGEST_BYTES):
        seq = next(seqs)
        payload = device.pack([seq])
        yield Case(
            what=f"a pack of {size_bytes // 1024} KiB",
            topic=device.topic(),
            payload=payload + b" " * (size_bytes - len(payload)),
            keys={device.key(seq): "EX-R-002"},
            unreadable="EX-R-002",
            proves=("EX-D-030",),
        )


def result(device: Played) -> Case:
    """Return a result that is none."""
    payload = json.dumps({"v": 1, "id": secrets.token_hex(4), "status": "perhaps"}).encode()
    return Case(
        what="a result that is none",
        topic=device.topic("results"),
        payload=payload,
        unreadable="EX-C-003",
    )


def flood(device: Played, number: int) -> Iterator[Case]:
    """Yield so many unreadable payloads."""
    for index in range(number):
        payload = secrets.token_bytes(8) + bytes([index % 256]) * (index % 200)
        yield Case(
            what="one of a flood",
            topic=device.topic(),
            payload=b"\xff" + payload,
            unreadable="EX-R-001",
        )
