"""Lamps: which are out, burn by day, or go on and off, and what they use and save."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import date
from functools import lru_cache
from itertools import pairwise
from math import fsum
from typing import NamedTuple

from ingest.rollups import energy, sun
from ingest.rollups.samples import Fields, Row, inside, number, numbers, samples, total
from ingest.rollups.settings import SiteSettings
from ingest.rollups.spans import Bounds, Span

METRICS = ("lit", "level", "power", "lamp_fault", "gear_fault")
CLEARLY_ON = 20.0
"""At a lower level a lamp may take little, and is not called dead for it. Units: percent."""
WRITES = (
    *energy.WRITES,
    *("known_s", "burning_s", "share", "switchings", "fault_s", "faulty", "day_burning_s"),
)
"""What an hour of a lamp may have."""
READS = (
    *energy.READS,
    *("burning_s", "share", "faulty", "day_burning_s", "cycling"),
    *("night_energy_wh", "night_energy_gap_wh", "night_burning_s", "night_share"),
)
"""What a site's rows need of its lamps'."""

FAULTY = ("faulty", "day_burner", "cycling")
"""What a lamp's day may be a day of: 0 or 1."""


class Stretch(NamedTuple):
    """A while in which nothing changed; None is not known."""

    start_ms: int
    end_ms: int
    burning: bool | None
    faulty: bool

    @property
    def seconds(self) -> float:
        return (self.end_ms - self.start_ms) / 1000


def hour(span: Span, site: SiteSettings) -> Fields:
    """Return what a lamp did in an hour."""
    fields = energy.measured(span, "energy", "power", site.hold_s, site.most_w)
    found = stretches(span, site)
    known = [one for one in found if one.burning is not None]
    burning = [one for one in known if one.burning]
    if known:
        changes = [one.burning for one in known]
        first = _before(span, site)
        changes = changes if first is None else [first, *changes]
        fields |= {
            "known_s": fsum(one.seconds for one in known),
            "burning_s": fsum(one.seconds for one in burning),
            "switchings": sum(a is not b for a, b in pairwise(changes)),
        }
    if found:
        fault_s = fsum(one.seconds for one in found if one.faulty)
        fields |= {"fault_s": fault_s, "faulty": int(fault_s >= site.fault_s)}
    if known and site.lat is not None and site.lon is not None:
        light = _daylight(site.lat, site.lon, span.start_ms, span.end_ms, site.day_tolerance_s)
        fields["day_burning_s"] = fsum(_overlap_s(one, day) for one in burning for day in light)
    if known:
        seconds = (span.end_ms - span.start_ms) / 1000
        fields["share"] = min(fields["known_s"], fields.get("energy_known_s", 0.0)) / seconds
    return fields


def day(hours: Sequence[Row], on: date, day: Bounds, night: Bounds, site: SiteSettings) -> Fields:
    """Return a lamp's civil day, and of the night that begins on it `night_…`, `faulty` and `cycling`."""
    del on
    fields = _over(hours, day, site)
    by_day_s = total(inside(hours, day), "day_burning_s")
    if by_day_s is not None:
        fields["day_burning_s"] = by_day_s
    fields |= {f"night_{name}": value for name, value in _over(hours, night, site).items()}
    of_night = inside(hours, night)
    if faults := list(numbers(of_night, "faulty")):
        fields["faulty"] = int(max(faults))
    if "night_switchings" in fields:
        fields["cycling"] = int(fields["night_switchings"] > site.switchings_a_night)
    return fields


def faults(day: Row, lamp: str, site: SiteSettings) -> Fields:
    """Return which of FAULTY a lamp's day is, and what shows it."""
    by_day = lamp not in site.burns_by_day
    burns = by_day and (number(day, "day_burning_s") or 0.0) >= site.day_burning_s
    fields: Fields = {"day_burner": int(burns)}
    fields |= {name: int(number(day, name) or 0) for name in ("faulty", "cycling", "switchings")}
    for name in ("burning_s", "day_burning_s"):
        if (value := number(day, name)) is not None:
            fields[name] = value
    return fields


def site_hour(devices: Sequence[Row], site: SiteSettings) -> Fields:
    """Return how many of a site's lamps are out or burn by day, what they use and what they save."""
    fields = _counts(devices, site)
    for name in ("energy_wh", "energy_gap_wh"):
        if (value := total(devices, name)) is not None:
            fields[name] = value
    return fields | energy.savings(_lamps(devices, "", site), site)


def site_day(devices: Sequence[Row], site: SiteSettings) -> Fields:
    """Return the same of a civil day, and of the night that begins on it as `night_…`."""
    fields = site_hour(devices, site)
    for name in ("night_energy_wh", "night_energy_gap_wh"):
        if (value := total(devices, name)) is not None:
            fields[name] = value
    of_night = energy.savings(_lamps(devices, "night_", site), site)
    return fields | {f"night_{name}": value for name, value in of_night.items()}


def stretches(span: Span, site: SiteSettings) -> list[Stretch]:
    """Return what a lamp did, as far as rows say; a value holds until the next row, for `hold_s` at most."""
    hold_ms = round(1000 * site.hold_s)
    found: list[Stretch] = []
    last: Stretch | None = None
    for (time_ms, known), (next_ms, _) in pairwise([*_rows(span, hold_ms), (span.end_ms, {})]):
        begin_ms, end_ms = max(time_ms, span.start_ms), min(next_ms, time_ms + hold_ms)
        if begin_ms >= end_ms:
            continue
        burning, faulty = _judged(known, site)
        if last is not None:
            if last.end_ms == begin_ms and last.burning is burning and last.faulty is faulty:
                last = Stretch(last.start_ms, end_ms, burning, faulty)
                continue
            found.append(last)
        last = Stretch(begin_ms, end_ms, burning, faulty)
    return found if last is None else [*found, last]


def _rows(span: Span, hold_ms: int) -> list[tuple[int, dict[str, float]]]:
    """Return (time, values) of a lamp's rows; a value that one leaves out holds from an earlier one."""
    rows: dict[int, dict[str, float]] = {}
    metrics = [metric for metric in METRICS if metric in span.tracks or metric in span.before]
    for metric in metrics:
        for time_ms, value in samples(span, metric):
            if time_ms in rows:
                rows[time_ms][metric] = value
            else:
                rows[time_ms] = {metric: value}
    if all(len(row) == len(metrics) for row in rows.values()):
        return sorted(rows.items())  # as it is with rows in which nothing is marked bad
    whole: list[tuple[int, dict[str, float]]] = []
    held: dict[str, tuple[int, float]] = {}
    for time_ms, row in sorted(rows.items()):
        held |= {metric: (time_ms + hold_ms, value) for metric, value in row.items()}
        known = {metric: value for metric, (until, value) in held.items() if until > time_ms}
        whole.append((time_ms, known))
    return whole


def _judged(known: dict[str, float], site: SiteSettings) -> tuple[bool | None, bool]:
    """Return whether it burns and whether it is faulty.

    Shape: power says whether it burns, and without it what the lamp says; it is faulty when it says so, or when it
        ought to burn and takes no power.
    """
    value = known.get
    power, lit, level = value("power"), value("lit"), value("level")
    flagged = value("lamp_fault", 0.0) > 0 or value("gear_fault", 0.0) > 0
    if power is not None:
        wanted = (lit or 0.0) > 0 if level is None else level >= CLEARLY_ON
        return power >= site.burning_w, flagged or (wanted and power < site.burning_w)
    says = level if lit is None else lit
    return None if says is None else says > 0 and not flagged, flagged


def _before(span: Span, site: SiteSettings) -> bool | None:
    """Return whether it burned when last heard before the span."""
    return _judged({metric: value for metric, (_, value) in span.before.items()}, site)[0]


def _over(hours: Sequence[Row], bounds: Bounds, site: SiteSettings) -> Fields:
    fields = energy.over(hours, bounds, site.hold_s, site.most_w)
    own = inside(hours, bounds)
    for name in ("known_s", "burning_s", "switchings"):
        if (value := total(own, name)) is not None:
            fields[name] = int(value) if name == "switchings" else value
    if (shares := total(own, "share")) is not None:
        fields["share"] = shares * 3_600_000 / (bounds.end_ms - bounds.start_ms)
    return fields


def _counts(devices: Sequence[Row], site: SiteSettings) -> Fields:
    """Return how many lamps are out, burn by day and cycle: 0 when none does, nothing where nobody can tell."""
    fields: Fields = {"lamps_out": int(fsum(numbers(devices, "faulty")))}
    by_day = [row for row in devices if row["device"] not in site.burns_by_day]
    if any("day_burning_s" in row for row in devices):
        burning = numbers(by_day, "day_burning_s")
        fields["day_burners"] = sum(seconds >= site.day_burning_s for seconds in burning)
    if (cycling := total(devices, "cycling")) is not None:
        fields["cycling"] = int(cycling)
    return fields


def _lamps(devices: Sequence[Row], of: str, site: SiteSettings) -> Iterator[energy.Lamp]:
    for row in devices:
        watts = site.lamp_watts.get(str(row["device"]), site.lamp_w)
        used_wh, burning_s = number(row, f"{of}energy_wh"), number(row, f"{of}burning_s")
        share = number(row, f"{of}share")
        if watts is not None and used_wh is not None and burning_s is not None and share:
            # What a gap's counter counted has no burning time to be compared with.
            gap_wh = number(row, f"{of}energy_gap_wh") or 0.0
            yield energy.Lamp(used_wh - gap_wh, watts * burning_s / 3600, share)


@lru_cache(maxsize=4096)
def _daylight(
    lat: float, lon: float, start_ms: int, end_ms: int, tolerance_s: float
) -> tuple[Bounds, ...]:
    """Return when it is day: asked for by every lamp of a site, and the same for all."""
    return tuple(sun.daylight(lat, lon, Bounds(start_ms, end_ms), tolerance_s))


def _overlap_s(one: Stretch, other: Bounds) -> float:
    return max(0, min(one.end_ms, other.end_ms) - max(one.start_ms, other.start_ms)) / 1000
