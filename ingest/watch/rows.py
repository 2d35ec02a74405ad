"""The rows that the watch writes, as docs/exchange/store.md names them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from exchange.moments import rfc3339
from exchange.topics import Topic
from ingest.days import Day
from ingest.registry import Registered
from ingest.stores import FieldValue, Place, Point, Series
from ingest.watch.figures import Figures
from ingest.watch.liveness import Losses, Status

DEVICE_DAY, SITE_DAY_STATE, SITE_HOUR_STATE = "device_day", "site_day_state", "site_hour_state"
_IN_AN_HOUR = (Status.DOWN, Status.LATE, Status.UNKNOWN)


class Shown(NamedTuple):
    """What a device's row says beside its state. Units: `since_ms` since 1970."""

    status: Status
    since_ms: int
    age_s: float | None
    incident: str
    flapping: bool
    gateway_up: bool


def device_row(known: Registered, shown: Shown, now_ms: int) -> Point:
    """Return the row of a device."""
    fields: dict[str, FieldValue] = {
        "label": known.label,
        "asset_id": known.asset_id,
        "gateway": known.gateway,
        "interval_s": float(known.interval_s),
        "up": int(shown.status in (Status.UP, Status.LATE)),
        "status": shown.status.word,
        "state": int(shown.status),
        "since": _rfc3339(shown.since_ms),
        "incident": shown.incident,
        "flapping": int(shown.flapping),
        "gateway_up": int(shown.gateway_up),
    }
    if shown.age_s is not None:
        fields["age_s"] = round(max(shown.age_s, 0.0), 3)
    if known.lat is not None and known.lon is not None:
        fields |= {"lat": float(known.lat), "lon": float(known.lon)}
    return Point(series_of(known), now_ms * 1_000_000 + known.epoch % 1_000_000, fields)


def retired_row(topic: Topic, now_ms: int) -> Point:
    """Return the last row of a device."""
    fields: dict[str, FieldValue] = {
        "up": 0,
        "status": Status.RETIRED.word,
        "state": int(Status.RETIRED),
        "since": _rfc3339(now_ms),
        "incident": "",
    }
    series = Series("device", topic.county, topic.site, topic.device, topic.domain)
    return Point(series, now_ms * 1_000_000, fields)


def series_of(known: Registered, measurement: str = "device") -> Series:
    """Return whose rows they are."""
    return Series(measurement, known.name.county, known.site, known.name.device, known.domain)


def site_row(
    place: Place,
    counts: list[int],
    figures: Figures,
    middle: tuple[float, float] | None,
    now_ms: int,
    incidents: int | None = None,
) -> Point:
    """Return how a site's devices of one domain are now, and where their middle is."""
    fields = _how_many(counts, incidents) | _shares(figures)
    if middle is not None:
        fields |= {"lat": round(middle[0], 6), "lon": round(middle[1], 6)}
    return Point(_series("site_now", place), now_ms * 1_000_000, fields)


def county_row(
    county: str, domain: str, counts: Sequence[int], now_ms: int, incidents: int | None = None
) -> Point:
    """Return how a county's devices of one domain are now."""
    series = _series("county_now", Place(county, "", domain))
    return Point(series, now_ms * 1_000_000, _how_many(counts, incidents))


def device_day_row(known: Registered, day: Day, figures: Figures, losses: Losses | None) -> Point:
    """Return a device's day."""
    fields = _day_fields(figures)
    if losses is not None:
        fields |= {"lived": losses.lived, "heard": losses.heard, "missed": losses.missed}
    return Point(series_of(known, DEVICE_DAY), day.start_ns, fields)


def site_day_row(place: Place, day: Day, figures: Figures) -> Point:
    """Return the sum of a site's days."""
    return Point(_series(SITE_DAY_STATE, place), day.start_ns, _day_fields(figures))


def site_hour_row(place: Place, start_ms: int, most: Sequence[int], devices: int) -> Point:
    """Return the most devices of a site that were down, late or unknown at once, in an hour."""
    fields: dict[str, FieldValue] = {status.word: most[status] for status in _IN_AN_HOUR}
    return Point(
        _series(SITE_HOUR_STATE, place), start_ms * 1_000_000, fields | {"devices": devices}
    )


def most_of(point: Point) -> tuple[list[int], int]:
    """Return what an hour's row holds: the most in each status, and in all."""
    return [_whole(point, status.word) for status in Status], _whole(point, "devices")


def figures_of(point: Point) -> Figures:
    """Return the figures that a day's row holds."""
    times = (_whole(point, name, 1000) for name in ("up_s", "down_s", "unknown_s", "maintenance_s"))
    return Figures(_whole(point, "received"), _whole(point, "missing"), *times)


def losses_of(point: Point) -> Losses:
    """Return what a day's row knows of a device's losses."""
    lived = point.fields.get("lived", 0.0)
    if isinstance(lived, str):
        return Losses()
    return Losses(float(lived), _whole(point, "heard"), _whole(point, "missed"))


def _whole(point: Point, name: str, factor: int = 1) -> int:
    value = point.fields.get(name, 0)
    return 0 if isinstance(value, str) else round(value * factor)


def _day_fields(figures: Figures) -> dict[str, FieldValue]:
    return {
        "expected": figures.received + figures.missing,
        "received": figures.received,
        "missing": figures.missing,
        "up_s": figures.up_ms / 1000,
        "down_s": figures.down_ms / 1000,
        "unknown_s": figures.unknown_ms / 1000,
        "maintenance_s": figures.maintenance_ms / 1000,
        **_shares(figures),
    }


def _how_many(counts: Sequence[int], incidents: int | None) -> dict[str, FieldValue]:
    """How many devices there are and are how, and how many incidents are open where that is known."""
    shown = (Status.UP, Status.LATE, Status.DOWN, Status.UNKNOWN, Status.MAINTENANCE)
    known = {} if incidents is None else {"incidents": incidents}
    return {"devices": sum(counts), **{status.word: counts[status] for status in shown}, **known}


def _shares(figures: Figures) -> dict[str, FieldValue]:
    """Completeness and availability, each left out where there is nothing that it could be a share of."""
    shares = {"completeness": figures.completeness, "availability": figures.availability}
    return {name: share for name, share in shares.items() if share is not None}


def _series(measurement: str, place: Place) -> Series:
    return Series(measurement, place.county, place.site, "", place.domain)


def _rfc3339(time_ms: int) -> str:
    return rfc3339(datetime.fromtimestamp(time_ms / 1000, UTC))
