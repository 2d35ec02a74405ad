"""Taiwan's air quality index from hourly means, by the table in force on the day.

The index of an hour follows the ministry's real-time rule, so it reaches hours back. What sensors say that are not of
reference grade is labelled indicative; no value is corrected, unless beside the raw one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from decimal import ROUND_HALF_UP, Decimal
from math import fsum

from exchange.air_quality_index import BEYOND, Scale, Table, table_on
from ingest.days import HOUR_MS
from ingest.rollups.samples import Fields, Row, inside, mean, number, numbers, pieces, start_ms
from ingest.rollups.settings import SiteSettings
from ingest.rollups.spans import Bounds, Span

VALID_PART = 0.75
"""An hour's mean counts when so much of the hour is known."""
POLLUTANTS = ("pm2_5", "pm10", "o3", "co", "so2", "no2")
WRITES = (
    *("aqi", "indicative", "pm2_5_corrected_hour"),
    *(f"{metric}_hour" for metric in POLLUTANTS),
    *(f"aqi_{metric}" for metric in POLLUTANTS),
)
"""What an hour of a device may have."""
READS = ("aqi", "aqi_max", "indicative")
"""What a site's rows need of its devices'."""
HOURS_BACK = 24
"""No mean reaches further, the hour itself included."""


def hour(span: Span, site: SiteSettings) -> Fields:
    """Return the hour's means weighted by time, `{metric}_hour`, of what is known well enough."""
    fields: Fields = {}
    wanted_s = VALID_PART * (span.end_ms - span.start_ms) / 1000
    for metric in POLLUTANTS:
        found = mean(pieces(span, metric, site.hold_s))
        if found is not None and found[1] >= wanted_s:
            fields[f"{metric}_hour"] = found[0]
    if site.cf1_metric:
        cf1 = mean(pieces(span, site.cf1_metric, site.hold_s))
        humidity = mean(pieces(span, "humidity", site.hold_s))
        if cf1 is not None and humidity is not None and min(cf1[1], humidity[1]) >= wanted_s:
            fields["pm2_5_corrected_hour"] = corrected_pm2_5(cf1[0], humidity[0])
    return fields


def chain(hours: Sequence[Row], on: date, site: SiteSettings) -> Fields:
    """Return the index of the last of these hours: `aqi`, of each pollutant `aqi_{metric}`, and `indicative`."""
    if not hours:
        return {}
    label: Fields = {"indicative": int(hours[-1]["device"] not in site.reference_stations)}
    table = table_on(on)
    if table is None:
        return label
    last_ms = start_ms(hours[-1])
    back = {(last_ms - start_ms(row)) // HOUR_MS: row for row in hours}
    means = {
        metric: [number(back.get(age, {}), f"{metric}_hour") for age in range(HOURS_BACK)]
        for metric in POLLUTANTS
    }
    return label | index(means, table)


def index(means: Mapping[str, Sequence[float | None]], table: Table) -> Fields:
    """Return the index and its sub-indices from hourly means, the newest first."""
    found: Fields = {}
    for scale in table.scales:
        concentration = _moving_mean(means.get(scale.metric, ()), scale)
        sub = None if concentration is None else sub_index(concentration, scale)
        if sub is not None:
            name = f"aqi_{scale.metric}"
            found[name] = max(found.get(name, 0), sub)
    if found:
        found["aqi"] = max(found.values())
    return found


def sub_index(concentration: float, scale: Scale) -> int | None:
    """Return where a mean is on a scale; None below its first step. Units: the dictionary's."""
    # From the shortest decimals that mean the same double: 12.45 is half, whatever its binary form.
    exact = Decimal(repr(concentration)) / Decimal(repr(scale.divisor))
    value = exact.quantize(Decimal(1).scaleb(-scale.decimals), ROUND_HALF_UP)
    if value < Decimal(repr(scale.steps[0][2])):
        return None if scale.steps[0][0] else 0
    for index_low, index_high, value_low, value_high in scale.steps:
        if value <= Decimal(repr(value_high)):
            low, high = Decimal(repr(value_low)), Decimal(repr(value_high))
            position = (value - low) / (high - low)
            exact_index = index_low + position * (index_high - index_low)
            return int(exact_index.quantize(Decimal(1), ROUND_HALF_UP))
    return BEYOND if scale.above == "beyond" else scale.steps[-1][1]


def day(hours: Sequence[Row], on: date, day: Bounds, night: Bounds, site: SiteSettings) -> Fields:
    """Return a day's index and sub-indices, its highest hour `aqi_max`, and how many hours have an index."""
    del night, site
    own = inside(hours, day)
    known = list(numbers(own, "aqi"))
    fields: Fields = {"aqi_hours": len(known)}
    if known:
        fields["aqi_max"] = int(max(known))
    if labels := list(numbers(own, "indicative")):
        fields["indicative"] = int(max(labels))
    table = table_on(on)
    if table is not None:
        subs = _daily(own, table, round((day.end_ms - day.start_ms) / HOUR_MS))
        fields |= subs
        if subs:
            fields["aqi"] = max(subs.values())
    return fields


def _daily(own: Sequence[Row], table: Table, day_hours: int) -> Fields:
    """Return the sub-indices of a day: of its mean, or the highest of its hours."""
    found: Fields = {}
    for scale in table.scales:
        name = f"aqi_{scale.metric}"
        if scale.daily == "mean":
            means = list(numbers(own, f"{scale.metric}_hour"))
            if len(means) >= VALID_PART * day_hours:
                sub = sub_index(_tidy(fsum(means) / len(means)), scale)
                if sub is not None:
                    found[name] = sub
        elif highest := list(numbers(own, name)):
            found[name] = int(max(highest))
    return found


def site_hour(devices: Sequence[Row], site: SiteSettings) -> Fields:
    """Return the highest index of a site's stations and their mean, indicative unless all are of reference grade."""
    del site
    judged = [row for row in devices if number(row, "aqi") is not None]
    known = list(numbers(judged, "aqi"))
    fields: Fields = {"aqi_stations": len(known)}
    if known:
        fields |= {"aqi": int(max(known)), "aqi_mean": fsum(known) / len(known)}
        fields["indicative"] = int(max(numbers(judged, "indicative"), default=1))
    return fields


def site_day(devices: Sequence[Row], site: SiteSettings) -> Fields:
    """Return the same of a day: of the stations' means, and the highest hour of any."""
    fields = site_hour(devices, site)
    if highest := list(numbers(devices, "aqi_max")):
        fields["aqi_max"] = int(max(highest))
    return fields


def corrected_pm2_5(cf1: float, humidity: float) -> float:
    """Return PM2.5 from the CF=1 mass of a PMS5003, as fitted to reference stations in the USA.

    Units: micrograms per cubic metre; percent.
    Source: Barkjohn et al. 2021, AMT 14:4617, with the extension for smoke of the AirNow Fire and Smoke Map, 2022.
    """
    damp = 5.75 - 0.0862 * humidity
    smoke = 0.69 * cf1 + 8.84e-4 * cf1**2 + 2.966
    if cf1 < 30:
        value = 0.524 * cf1 + damp
    elif cf1 < 50:
        part = cf1 / 20 - 1.5
        value = (0.786 * part + 0.524 * (1 - part)) * cf1 + damp
    elif cf1 < 210:
        value = 0.786 * cf1 + damp
    elif cf1 < 260:
        part = cf1 / 50 - 4.2
        value = (0.69 * part + 0.786 * (1 - part)) * cf1 + damp * (1 - part)
        value += part * (2.966 + 8.84e-4 * cf1**2)
    else:
        value = smoke
    return max(value, 0.0)


def _moving_mean(newest_first: Sequence[float | None], scale: Scale) -> float | None:
    parts = []
    for wanted in scale.mean:
        known = [one for one in newest_first[: wanted.hours] if one is not None]
        if len(known) < wanted.least:
            return None
        parts.append(wanted.weight * fsum(known) / len(known))
    return _tidy(fsum(parts))


def _tidy(value: float) -> float:
    """Return a mean without what binary sums leave behind: twelve digits are more than any sensor has."""
    return float(f"{value:.12g}")
