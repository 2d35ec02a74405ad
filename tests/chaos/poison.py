"""Poison: payloads that are wrong in one way each, with what must become of every sample in them."""

from __future__ import annotations

import json
import random
import time
from hashlib import sha256
from typing import NamedTuple

from exchange.delivery import Key
from exchange.readings import Value
from tests.chaos.truth import Taken

DAY_MS = 86_400_000
TOO_LARGE_BYTES = 300 * 1024
CONFLICT_METRIC = "co"
"""A field that the harness has written as text before: InfluxDB rejects a number in it."""
RETENTION_DAYS = 30


class Poison(NamedTuple):
    """One payload and the truth of it. Its device is its own, so that it is never packed with another."""

    kind: str
    device: str
    domain: str
    payload: bytes
    samples: list[Taken]


def poisons(county: str, site: str, chance: random.Random) -> list[Poison]:
    """Return one payload of each kind."""
    return [
        make(f"poison-{chance.getrandbits(48):x}", county, site, chance)
        for make in (
            _unreadable,
            _other_county,
            _too_large,
            _one_bad_of_three,
            _of_tomorrow,
            _bad_metric,
            _conflict,
            _too_old,
        )
    ]


def elsewhere(county: str, site: str, chance: random.Random) -> tuple[str, bytes]:
    """Return a message on the topic of a county that ingest does not serve: nothing may come of it."""
    device, now_ms = f"poison-{chance.getrandbits(48):x}", time.time_ns() // 1_000_000
    other = _sample(county, site, device, 0, now_ms, now_ms, {"pm2_5": 1.0})
    return f"city/v1/{county}/{site}/stray/air/{device}/readings", _pack(county, device, [other])


def _unreadable(device: str, county: str, site: str, chance: random.Random) -> Poison:
    payload = b"\xff" + chance.randbytes(40)
    return _whole("unreadable", "EX-R-001", device, county, site, payload)


def _other_county(device: str, county: str, site: str, chance: random.Random) -> Poison:
    now_ms = time.time_ns() // 1_000_000
    sample = _sample(county, site, device, 0, now_ms, now_ms, {"pm2_5": chance.random()})
    return _whole(
        "other county", "EX-R-003", device, county, site, _pack("tw-tao", device, [sample])
    )


def _too_large(device: str, county: str, site: str, chance: random.Random) -> Poison:
    payload = chance.randbytes(16).hex().encode() + b" " * TOO_LARGE_BYTES
    return _whole("too large", "EX-R-002", device, county, site, payload)


def _one_bad_of_three(device: str, county: str, site: str, chance: random.Random) -> Poison:
    """The second of three is older than the first."""
    now_ms = time.time_ns() // 1_000_000
    samples = [
        _sample(county, site, device, seq, now_ms + shift_ms, now_ms, {"pm10": chance.random()})
        for seq, shift_ms in enumerate((0, -5000, 1000))
    ]
    samples[1].refused_with = "EX-R-008"
    return Poison("one bad of three", device, "air", _pack(county, device, samples), samples)


def _of_tomorrow(device: str, county: str, site: str, chance: random.Random) -> Poison:
    now_ms = time.time_ns() // 1_000_000
    sample = _sample(county, site, device, 0, now_ms + 2 * DAY_MS, now_ms, {"pm1": chance.random()})
    sample.refused_with = "EX-R-023"
    return Poison("ahead of time", device, "air", _pack(county, device, [sample]), [sample])


def _bad_metric(device: str, county: str, site: str, chance: random.Random) -> Poison:
    """A metric that its domain does not have is left out of a sample that is stored."""
    now_ms = time.time_ns() // 1_000_000
    sample = _sample(county, site, device, 0, now_ms, now_ms, {"pm1": chance.random()})
    sent = _sample(county, site, device, 0, now_ms, now_ms, {**sample.metrics, "sorrow": 1.0})
    return Poison("bad metric", device, "air", _pack(county, device, [sent]), [sample])


def _conflict(device: str, county: str, site: str, chance: random.Random) -> Poison:
    """InfluxDB has this field as text; a sample beside it in the pack is in order."""
    now_ms = time.time_ns() // 1_000_000
    good = _sample(county, site, device, 0, now_ms, now_ms, {"pm1": chance.random()})
    bad = _sample(county, site, device, 1, now_ms + 1, now_ms, {CONFLICT_METRIC: chance.random()})
    bad.refused_with = "EX-D-003"
    return Poison("conflict", device, "air", _pack(county, device, [good, bad]), [good, bad])


def _too_old(device: str, county: str, site: str, chance: random.Random) -> Poison:
    """InfluxDB keeps the bucket for less long."""
    then_ms = time.time_ns() // 1_000_000 - 2 * RETENTION_DAYS * DAY_MS
    sample = _sample(county, site, device, 0, then_ms, then_ms, {"pm1": chance.random()})
    sample.refused_with = "EX-D-003"
    return Poison("beyond retention", device, "air", _pack(county, device, [sample]), [sample])


def _whole(
    kind: str, requirement: str, device: str, county: str, site: str, payload: bytes
) -> Poison:
    """Return a payload in which no sample can be named."""
    now_ms = time.time_ns() // 1_000_000
    sample = _sample(county, site, device, 0, now_ms, now_ms, {})
    sample.refused_with, sample.digest = requirement, sha256(payload).hexdigest()
    return Poison(kind, device, "air", payload, [sample])


def _sample(
    county: str,
    site: str,
    device: str,
    seq: int,
    time_ms: int,
    epoch: int,
    metrics: dict[str, Value],
) -> Taken:
    return Taken(Key(device, epoch, seq), "air", county, site, time_ms, metrics)


def _pack(county: str, device: str, samples: list[Taken]) -> bytes:
    """Return a pack as it travels, right or wrong, past our own encoder."""
    epoch, first_s = samples[0].key.epoch, samples[0].time_ms / 1000
    head = {"bn": f"{county}:{device}:", "bt": first_s, "bver": 26}
    records: list[dict[str, object]] = [{**head, "n": "epoch", "v": epoch}]
    for sample in samples:
        records.append({"bt": sample.time_ms / 1000, "n": "seq", "v": sample.key.seq})
        records += [{"n": name, "v": value} for name, value in sample.metrics.items()]
    return json.dumps(records).encode()
