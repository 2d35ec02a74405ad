"""Parking of a site: how full, how often a bay changes hands, how long cars stay. Never of one bay.

What is kept longer than raw rows must not be a bay's diary: nothing is said of fewer than MIN_BAYS bays, and of dwell
only from MIN_STAYS stays in so many bays on.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from math import fsum
from typing import NamedTuple

from ingest.rollups.samples import Fields, pieces, samples
from ingest.rollups.settings import SiteSettings
from ingest.rollups.spans import Span

MIN_STAYS = 5
MIN_BAYS = 3
CLASSES = ("car", "motorcycle", "accessible", "ev")


class Stay(NamedTuple):
    """A car that was seen to come; it left after so long, or was there for at least that."""

    seconds: float
    left: bool


class Bay(NamedTuple):
    """What a bay adds to its site."""

    known_s: float
    occupied_s: float
    arrivals: int
    stays: list[Stay]


class Lot(NamedTuple):
    """What a class of places of a lot adds to its site, in places times seconds."""

    known_place_s: float
    taken_place_s: float
    full_s: float


class Digest(NamedTuple):
    """What a device adds: a bay, or the places of a lot by class."""

    bay: Bay | None
    lots: dict[str, Lot]


def digest(span: Span, site: SiteSettings) -> Digest:
    """Return what a device adds to its site's hour or day: figures that are never stored."""
    return Digest(
        bay(span, site) if samples(span, "occupied") else None,
        {name: lot(span, name, site) for name in CLASSES if samples(span, f"free_{name}")},
    )


def combine(digests: Sequence[Digest]) -> Fields:
    """Return a site's hour or day.

    Shape: `occupancy` (0 to 1) of bays and of a lot's car places; of other classes `occupancy_{class}`; `bays`, and
        from MIN_BAYS on `arrivals`, `turnover` (arrivals a bay) and `stays` (that ended); `dwell_median_s` and
        `dwell_p90_s` of the cars that came, from MIN_STAYS on; `full_s` of the lot that was full the longest.
    """
    bays = [one.bay for one in digests if one.bay is not None]
    fields: Fields = {"bays": len(bays)}
    if len(bays) >= MIN_BAYS:
        arrivals = sum(one.arrivals for one in bays)
        fields |= {"arrivals": arrivals, "turnover": arrivals / len(bays)}
        fields |= _dwell([one.stays for one in bays])
    else:
        bays = []
    for name in CLASSES:
        lots = [one.lots[name] for one in digests if name in one.lots]
        known_s = [one.known_place_s for one in lots]
        taken_s = [one.taken_place_s for one in lots]
        if name == "car":
            known_s += [one.known_s for one in bays]
            taken_s += [one.occupied_s for one in bays]
            if lots:
                fields["full_s"] = max(one.full_s for one in lots)
        if seconds := fsum(known_s):
            fields["occupancy" if name == "car" else f"occupancy_{name}"] = fsum(taken_s) / seconds
    return fields


def bay(span: Span, site: SiteSettings) -> Bay:
    """Return what one bay adds. A stay that an unknown while interrupts was at least so long."""
    held = pieces(span, "occupied", site.hold_s)
    before = span.before.get("occupied")
    # What was last known, and until when: a bay that was free and is taken has a new car, whenever it came.
    was = None if before is None else before[1] > 0
    until_ms = None if before is None else span.start_ms
    arrivals, stays, came_ms = 0, [], None
    for piece in held:
        taken, known = piece.value > 0, piece.start_ms == until_ms
        if came_ms is not None and until_ms is not None and not (taken and known):
            stays.append(Stay((until_ms - came_ms) / 1000, left=known))
            came_ms = None
        if taken and was is False:
            arrivals += 1
            came_ms = piece.start_ms if known else None
        was, until_ms = taken, piece.end_ms
    if came_ms is not None and until_ms is not None:
        stays.append(Stay((until_ms - came_ms) / 1000, left=False))
    return Bay(
        fsum(piece.seconds for piece in held),
        fsum(piece.seconds for piece in held if piece.value > 0),
        arrivals,
        stays,
    )


def lot(span: Span, name: str, site: SiteSettings) -> Lot:
    """Return what the places of one class of a lot add; a capacity holds until another is said."""
    capacities = samples(span, f"capacity_{name}")
    known, taken, full_s = [], [], 0.0
    for piece in pieces(span, f"free_{name}", site.hold_s):
        place = bisect_right(capacities, piece.start_ms, key=lambda one: one[0]) - 1
        capacity = capacities[max(place, 0)][1] if capacities else 0.0
        if capacity <= 0:
            continue
        used = capacity - min(max(piece.value, 0.0), capacity)
        known.append(capacity * piece.seconds)
        taken.append(used * piece.seconds)
        if 100 * used >= site.full_percent * capacity:
            full_s += piece.seconds
    return Lot(fsum(known), fsum(taken), full_s)


def quantile(stays: Sequence[Stay], share: float) -> float | None:
    """Return how long this share of the cars stayed at most; None when too many were not seen to leave.

    Source: Kaplan and Meier 1958: a stay that did not end in sight counts for as long as it was seen.
    """
    staying = 1.0
    there = len(stays)
    for stay in sorted(stays, key=lambda one: (one.seconds, not one.left)):
        if stay.left:
            staying *= 1 - 1 / there
            if staying <= 1 - share + 1e-12:
                return stay.seconds
        there -= 1
    return None


def _dwell(by_bay: Sequence[Sequence[Stay]]) -> Fields:
    ended = [sum(stay.left for stay in stays) for stays in by_bay]
    fields: Fields = {"stays": sum(ended)}
    if sum(ended) >= MIN_STAYS and sum(count > 0 for count in ended) >= MIN_BAYS:
        stays = [stay for one in by_bay for stay in one]
        for field, share in (("dwell_median_s", 0.5), ("dwell_p90_s", 0.9)):
            if (seconds := quantile(stays, share)) is not None:
                fields[field] = seconds
    return fields
