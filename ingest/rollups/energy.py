"""Energy from counters or power, and what was saved against a baseline, never without its interval.

Between two readings of a counter that are near each other the difference is measured. Across a gap it is known, too,
but not when in the gap it was used: it is spread evenly, and counted apart as `energy_gap_wh`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import date
from itertools import pairwise
from math import fsum, sqrt
from statistics import stdev
from typing import NamedTuple

from ingest.rollups.samples import (
    Fields,
    Row,
    inside,
    number,
    numbers,
    samples,
    start_ms,
    total,
)
from ingest.rollups.settings import SiteSettings
from ingest.rollups.spans import Bounds, Sample, Span

READS = ("energy_wh", "energy_gap_wh")
"""What a site's rows need of its devices'."""
WRITES = (
    *READS,
    *("energy_gap_s", "energy_known_s"),
    *("energy_first", "energy_first_ms", "energy_last", "energy_last_ms"),
)
"""What an hour of a device may have."""
COVERAGE_FACTOR = 2.0
"""An interval of twice the standard uncertainty holds the truth in about 95 of 100 cases (GUM, JCGM 100)."""
LEAST_SHARE = 0.1
"""Of less than this part of the lamps' time nothing is said of the rest."""
_ROUNDING = 0.001
"""No counter begins again so near to where it was."""
_WH_PER_W_MS = 1 / 3_600_000


class Lamp(NamedTuple):
    """What a lamp took and would have taken while it was heard, and for which share of the time it was."""

    energy_wh: float
    baseline_wh: float
    share: float


def hour(span: Span, site: SiteSettings) -> Fields:
    """Return what a meter measured in an hour."""
    return measured(span, "energy_import", "power", site.hold_s, site.most_meter_w)


def measured(span: Span, counter: str, power: str, hold_s: float, most_w: float) -> Fields:
    """Return what readings of an hour say: by the counter, else by power.

    Shape: `energy_wh` of `energy_known_s`; a difference belongs to the hour of its later reading, so that hours add up.
        `energy_gap_wh` is the part of it in `energy_gap_s` of gaps within the hour. The counter's first and last
        reading are for gaps that reach over its ends.
    """
    hold_ms = 1000 * hold_s
    inner = span.tracks.get(counter, ())
    if not inner:
        return _integrated(samples(span, power), hold_ms)
    energies, known_ms, gaps, gap_ms = [], 0, [], 0
    pairs = list(pairwise(samples(span, counter)))
    for earlier, later in pairs:
        passed_ms = later[0] - earlier[0]
        used_wh = _difference(earlier, later, most_w)
        if used_wh is None:
            continue
        if passed_ms <= hold_ms:
            energies.append(used_wh)
            known_ms += passed_ms
        elif earlier[0] >= span.start_ms:
            gaps.append(used_wh)
            gap_ms += passed_ms
    fields: Fields = {
        "energy_first": inner[0][1],
        "energy_first_ms": inner[0][0],
        "energy_last": inner[-1][1],
        "energy_last_ms": inner[-1][0],
    }
    if pairs:
        # What is not known is 0: late readings close gaps, or show that a counter was replaced; and a field that was
        # written stays.
        fields |= {
            "energy_wh": fsum((*energies, *gaps)),
            "energy_known_s": known_ms / 1000,
            "energy_gap_wh": fsum(gaps),
            "energy_gap_s": gap_ms / 1000,
        }
    return fields


def over(hours: Sequence[Row], bounds: Bounds, hold_s: float, most_w: float) -> Fields:
    """Return the energy of a day or a night from the hours in and around it.

    Shape: `energy_wh` with, and `energy_gap_wh` as the part of it that was spread over `energy_gap_s` of gaps.
    """
    own = inside(hours, bounds)
    energies, gaps = list(numbers(own, "energy_wh")), list(numbers(own, "energy_gap_wh"))
    gap_s = list(numbers(own, "energy_gap_s"))
    counted = [row for row in hours if number(row, "energy_last") is not None]
    for before, after in pairwise(counted):
        earlier, later = _reading(before, "last"), _reading(after, "first")
        gap_ms = later[0] - earlier[0]
        inside_ms = min(later[0], bounds.end_ms) - max(earlier[0], bounds.start_ms)
        if gap_ms <= 1000 * hold_s or inside_ms <= 0:
            continue
        used_wh = _difference(earlier, later, most_w)
        if used_wh is not None:
            energies.append(used_wh * inside_ms / gap_ms)
            gaps.append(energies[-1])
            gap_s.append(inside_ms / 1000)
    if not energies:
        return {}
    return {
        "energy_wh": fsum(energies),
        "energy_known_s": fsum(numbers(own, "energy_known_s")),
        "energy_gap_wh": fsum(gaps),
        "energy_gap_s": fsum(gap_s),
    }


def day(hours: Sequence[Row], on: date, day: Bounds, night: Bounds, site: SiteSettings) -> Fields:
    """Return a meter's civil day, and the night that begins on it as `night_…`."""
    del on
    fields = over(hours, day, site.hold_s, site.most_meter_w)
    of_night = over(hours, night, site.hold_s, site.most_meter_w)
    return fields | {f"night_{name}": value for name, value in of_night.items()}


def site_hour(devices: Sequence[Row], site: SiteSettings) -> Fields:
    """Return the sums of a site's meters."""
    del site
    sums = ((name, total(devices, name)) for name in READS)
    return {name: value for name, value in sums if value is not None}


site_day = site_hour


def savings(lamps: Iterable[Lamp], site: SiteSettings) -> Fields:
    """Return what a site's lamps saved, with the interval that holds it in about 95 of 100 cases; nothing without one.

    Shape: `baseline_wh`, `saved_wh`, `saved_low_wh`, `saved_high_wh`, and `saved_share`, the share of the lamps' time
        that was measured; for the rest lamps are taken to be like those that were heard.
    Source: GUM (JCGM 100): limits of error as rectangular distributions; a ratio estimator with finite population
        correction (Cochran, Sampling Techniques, 3rd edition, section 6.4) for what was not heard.
    """
    heard = [lamp for lamp in lamps if lamp.share > 0]
    count = len(heard)
    share = fsum(min(lamp.share, 1.0) for lamp in heard) / count if count else 0.0
    if share < LEAST_SHARE:
        return {}
    baseline_wh = fsum(lamp.baseline_wh for lamp in heard) / share
    energy_wh = fsum(lamp.energy_wh for lamp in heard) / share
    saved_wh = baseline_wh - energy_wh
    each_wh = saved_wh / count
    # How far lamps are from each other; of one alone nobody knows: as far as all that it saves.
    off = [lamp.baseline_wh - lamp.energy_wh - each_wh * min(lamp.share, 1.0) for lamp in heard]
    spread_wh = sqrt(fsum(one**2 for one in off) / (count - 1)) if count > 1 else abs(each_wh)
    parts_wh = (
        site.meter_class_percent / 100 / sqrt(3) * energy_wh,
        site.lamp_w_uncertainty_percent / 100 / sqrt(3) * baseline_wh,
        count * sqrt((1 - share) / count) * spread_wh / share,
    )
    wide_wh = COVERAGE_FACTOR * sqrt(fsum(part**2 for part in parts_wh))
    return {
        "baseline_wh": baseline_wh,
        "saved_wh": saved_wh,
        "saved_low_wh": saved_wh - wide_wh,
        "saved_high_wh": saved_wh + wide_wh,
        "saved_share": share,
    }


class MeasuredWatts:
    """What a site's lamps took while they burned in some nights: what later nights are compared with."""

    def __init__(self) -> None:
        self._lamps: dict[str, _Burned] = {}
        self._nights: dict[int, _Burned] = {}

    def add(self, day: Row) -> None:
        """Take the row of a lamp's day: the night that begins on it."""
        energy_wh, burning_s = number(day, "night_energy_wh"), number(day, "night_burning_s")
        if energy_wh is None or not burning_s or not number(day, "night_energy_known_s"):
            return
        # What a gap's counter counted has no burning time to be divided by.
        energy_wh -= number(day, "night_energy_gap_wh") or 0.0
        for burned in (
            self._lamps.setdefault(str(day["device"]), _Burned([], [])),
            self._nights.setdefault(start_ms(day), _Burned([], [])),
        ):
            burned.energies_wh.append(energy_wh)
            burned.burning_s.append(burning_s)

    @property
    def lamps(self) -> dict[str, float]:
        """The watts of each lamp."""
        return {lamp: burned.watts for lamp, burned in self._lamps.items()}

    @property
    def nights(self) -> int:
        return len(self._nights)

    @property
    def lamp_nights(self) -> int:
        return sum(len(burned.energies_wh) for burned in self._lamps.values())

    @property
    def watts(self) -> float:
        """The watts of a lamp, all lamps and nights together."""
        every = self._nights.values()
        energy_wh = fsum(wh for one in every for wh in one.energies_wh)
        return 3600 * energy_wh / fsum(seconds for one in every for seconds in one.burning_s)

    def uncertainty_percent(self, meter_class_percent: float) -> float | None:
        """Return the limit of error of `watts`; None from one night, which says nothing of how nights differ.

        Source: GUM (JCGM 100): the standard error of the nights' mean, and the meter's class as a rectangular
            distribution; a limit is its standard uncertainty times the square root of 3, as `savings` takes it.
        """
        if self.nights < 2:
            return None
        every = [burned.watts for burned in self._nights.values()]
        of_nights = stdev(every) / sqrt(len(every)) / self.watts
        return 100 * sqrt(3 * of_nights**2 + (meter_class_percent / 100) ** 2)


class _Burned(NamedTuple):
    energies_wh: list[float]
    burning_s: list[float]

    @property
    def watts(self) -> float:
        return 3600 * fsum(self.energies_wh) / fsum(self.burning_s)


def _integrated(known: list[Sample], hold_ms: float) -> Fields:
    near = [pair for pair in pairwise(known) if pair[1][0] - pair[0][0] <= hold_ms]
    if not near:
        return {}
    return {
        "energy_wh": fsum((b[1] + a[1]) / 2 * (b[0] - a[0]) * _WH_PER_W_MS for a, b in near),
        "energy_known_s": sum(b[0] - a[0] for a, b in near) / 1000,
    }


def _difference(earlier: Sample, later: Sample, most_w: float) -> float | None:
    """Return what a counter counted; None when it cannot have: it was replaced.

    One that fell began again at 0, unless it fell by next to nothing: that is rounding.
    """
    used_wh = later[1] - earlier[1]
    if used_wh < 0:
        used_wh = 0.0 if -used_wh <= _ROUNDING * earlier[1] else later[1]
    return used_wh if used_wh <= most_w * (later[0] - earlier[0]) * _WH_PER_W_MS else None


def _reading(row: Row, which: str) -> Sample:
    return int(row[f"energy_{which}_ms"]), float(row[f"energy_{which}"])
