"""A day of a device as the engine of the rollups makes it, without a store: hours from rows, the day from hours."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta

from ingest.rollups.samples import Fields, Row
from ingest.rollups.settings import SiteSettings
from ingest.rollups.spans import Bounds, Span
from tests.weeks import HOUR_MS, Device, Week

METRICS_NOT = ("epoch", "seq", "quality")


def tracks(
    week: Week, device: Device, known_at_ms: int | None = None
) -> dict[str, list[tuple[int, float]]]:
    """Return all samples of a device by metric, without those marked bad."""
    found: dict[str, list[tuple[int, float]]] = {}
    for row in week.rows(device, known_at_ms):
        marks = str(row.fields.get("quality", ""))
        for name, value in row.fields.items():
            if name not in METRICS_NOT and not (marks.startswith("bad") and f"({name})" in marks):
                found.setdefault(name, []).append((row.time_ms, float(value)))
    return found


def cut(known: dict[str, list[tuple[int, float]]], bounds: Bounds) -> Span:
    """Return what was measured in a while, and just before it."""
    within: dict[str, list[tuple[int, float]]] = {}
    before: dict[str, tuple[int, float]] = {}
    for metric, samples in known.items():
        begin = bisect_left(samples, (bounds.start_ms,))
        if own := samples[begin : bisect_left(samples, (bounds.end_ms,))]:
            within[metric] = own
        if begin and samples[begin - 1][0] >= bounds.start_ms - HOUR_MS:
            before[metric] = samples[begin - 1]
    return Span(bounds.start_ms, bounds.end_ms, tracks=within, before=before)


def hours(
    week: Week,
    device: Device,
    hour: Callable[[Span, SiteSettings], Fields],
    site: SiteSettings,
    days: Iterable[int],
) -> list[Row]:
    """Return the rows of a device's hours in some days of the week; none where it has no rows."""
    known = tracks(week, device)
    found: list[Row] = []
    for day in days:
        bounds = day_bounds(week, day)
        for start_ms in range(bounds.start_ms, bounds.end_ms, HOUR_MS):
            span = cut(known, Bounds(start_ms, start_ms + HOUR_MS))
            if span.tracks:
                found.append({"start_ms": start_ms, "device": device.id, **hour(span, site)})
    return found


def day_bounds(week: Week, day: int) -> Bounds:
    return Bounds(week.moment_ms(day), week.moment_ms(day + 1))


def night_bounds(week: Week, day: int) -> Bounds:
    return Bounds(week.moment_ms(day, 12), week.moment_ms(day + 1, 12))


def of_day(
    week: Week,
    device: Device,
    rows: Sequence[Row],
    day: int,
    make: Callable[..., Fields],
    site: SiteSettings,
) -> Row:
    """Return the row of a device's day from its hours."""
    on = week.start + timedelta(days=day)
    bounds, night = day_bounds(week, day), night_bounds(week, day)
    made = make(rows, on, bounds, night, site)
    return {"start_ms": bounds.start_ms, "device": device.id, **made}
