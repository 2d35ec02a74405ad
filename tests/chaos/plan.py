"""The plan of a run: which faults, when and for how long, from the seed and the minutes alone."""

from __future__ import annotations

import random
from typing import NamedTuple

import msgspec

LEAST_MINUTES = 2.0
QUIET_S = 5.0
"""At the beginning and at the end nothing is broken."""
CYCLE_S = 110.0
"""In so much time every fault comes once."""
OUTAGE_S = 60.0


class Kind(NamedTuple):
    """A kind of fault: how long it lasts, and how long its track is left alone afterwards."""

    name: str
    least_s: float
    most_s: float
    rest_s: float = 1.0


TRACKS: dict[str, tuple[Kind, ...]] = {
    "store": (
        Kind("store-outage", OUTAGE_S, OUTAGE_S),
        Kind("store-kill", 0.5, 2),
        Kind("store-hang", 2, 3),
        Kind("store-cut", 3, 4),
        Kind("store-answers-cut", 3, 4),
        Kind("store-disk", 2, 3),
        Kind("blackout", 3, 4),
        Kind("store-429", 1, 2),
        Kind("store-503", 1, 2),
        Kind("store-500", 1, 2),
        Kind("store-500-late", 1, 2),
        Kind("store-closes", 1, 2),
        Kind("store-slow", 1, 2),
    ),
    "broker": (
        Kind("broker-kill", 0.2, 3),
        Kind("broker-wipe", 0.2, 3),
        Kind("broker-disk", 4, 8),
        Kind("broker-hang", 2, 9),
        Kind("gateways-cut", 6, 14),
        Kind("gateways-answers-cut", 6, 14),
    ),
    "ingest": (
        Kind("ingest-kill", 0.2, 3),
        Kind("ingest-worker-kill", 0.2, 1),
        Kind("ingest-hang", 2, 6),
        Kind("ingest-restart", 0.2, 1),
    ),
    "quarantine": (Kind("quarantine-disk", 4, 8), Kind("poison", 0, 0), Kind("poison", 0, 0)),
    "watch": (Kind("watch-kill", 0.2, 5),),
    # what an agent read while its disk was full is in its memory until it tries again, after 10 s at the latest
    "agent": (
        Kind("agent-kill", 0.2, 3),
        Kind("agent-disk", 4, 8, rest_s=12),
        Kind("agent-clock-back", 6, 10),
        Kind("agent-clock-ahead", 6, 10),
    ),
    "load": (
        Kind("load-clock-back", 5, 15),
        Kind("load-clock-ahead", 5, 15),
        Kind("load-restart", 0, 0),
    ),
}
"""Faults of one track come one after another; the tracks know nothing of each other."""


class Fault(msgspec.Struct, frozen=True):
    """One fault. Units: seconds from the beginning; `choice` decides what the kind leaves open."""

    at_s: float
    track: str
    kind: str
    for_s: float
    rest_s: float
    choice: int


def planned(seed: int, minutes: float) -> list[Fault]:
    """Return the faults by time. Raises: ValueError when the time is too short for every kind."""
    if minutes < LEAST_MINUTES:
        raise ValueError(f"{minutes:g} minutes: every kind of fault needs {LEAST_MINUTES:g}")
    faults = [
        fault
        for track, kinds in TRACKS.items()
        for fault in _track(random.Random(f"{seed} {track}"), track, kinds, minutes * 60)
    ]
    return sorted(faults, key=lambda fault: (fault.at_s, fault.track))


def _track(
    chance: random.Random, track: str, kinds: tuple[Kind, ...], length_s: float
) -> list[Fault]:
    """Return one track: every kind once a cycle, in an order of its own, with what time is left between them."""
    cycles = int((length_s - 2 * QUIET_S) // CYCLE_S)
    order = [kind for _ in range(cycles) for kind in chance.sample(kinds, len(kinds))]
    lasting = [round(chance.uniform(kind.least_s, kind.most_s), 1) for kind in order]
    spent_s = sum(lasting) + sum(kind.rest_s for kind in order)
    idle_s = length_s - 2 * QUIET_S - spent_s
    assert idle_s >= 0, f"{track} is over-full by {-idle_s:.1f} s"
    idles = sorted(chance.uniform(0, idle_s) for _ in order)
    faults, begun_s = [], QUIET_S
    for kind, for_s, idle in zip(order, lasting, idles, strict=True):
        at_s = round(begun_s + idle, 1)
        faults.append(Fault(at_s, track, kind.name, for_s, kind.rest_s, chance.getrandbits(32)))
        begun_s += for_s + kind.rest_s
    return faults
