"""Where the sun is: enough to tell day from night for lamps.

Source: The Astronomical Almanac's low-precision formulas (good to 0.01 degrees from 1950 to 2050, and to a few minutes
    of the clock for centuries); refraction and the sun's radius stand in the horizon of -0.833 degrees.
"""

from __future__ import annotations

from math import asin, atan2, cos, degrees, radians, sin

from ingest.rollups.spans import Bounds

HORIZON_DEG = -0.833
_J2000_MS = 946_728_000_000
_STEP_MS = 10 * 60_000
"""Shorter than any day or night between the polar circles' edges that a lamp could tell from none."""
_EXACT_MS = 1000


def elevation_deg(lat: float, lon: float, time_ms: int) -> float:
    """Return how high the sun's centre is, without refraction."""
    days = (time_ms - _J2000_MS) / 86_400_000
    anomaly = radians(357.528 + 0.9856003 * days)
    longitude = radians(
        280.460 + 0.9856474 * days + 1.915 * sin(anomaly) + 0.020 * sin(2 * anomaly)
    )
    obliquity = radians(23.439 - 0.0000004 * days)
    right_ascension = atan2(cos(obliquity) * sin(longitude), cos(longitude))
    declination = asin(sin(obliquity) * sin(longitude))
    sidereal = radians((280.46062 + 360.98564737 * days + lon) % 360)
    hour_angle = sidereal - right_ascension
    place = radians(lat)
    return degrees(
        asin(sin(place) * sin(declination) + cos(place) * cos(declination) * cos(hour_angle))
    )


def daylight(lat: float, lon: float, span: Bounds, tolerance_s: float = 0.0) -> list[Bounds]:
    """Return when the sun is up within a span, shortened at sunrise and at sunset by a tolerance.

    Where it is up or down all day long there is one span or none.
    """

    def is_up(time_ms: int) -> bool:
        return elevation_deg(lat, lon, time_ms) > HORIZON_DEG

    margin_ms = round(1000 * tolerance_s)
    begin_ms, end_ms = span.start_ms - margin_ms, span.end_ms + margin_ms
    found: list[Bounds] = []
    rose_ms = begin_ms if is_up(begin_ms) else None
    earlier_ms = begin_ms
    for time_ms in [*range(begin_ms + _STEP_MS, end_ms, _STEP_MS), end_ms]:
        up = is_up(time_ms)
        if up != (rose_ms is not None):
            low, high = earlier_ms, time_ms
            while high - low > _EXACT_MS:
                middle = (low + high) // 2
                low, high = (low, middle) if is_up(middle) == up else (middle, high)
            if up:
                rose_ms = high
            else:
                assert rose_ms is not None
                found.append(Bounds(rose_ms, high))
                rose_ms = None
        earlier_ms = time_ms
    if rose_ms is not None:
        found.append(Bounds(rose_ms, end_ms))
    cut = [
        Bounds(
            max(one.start_ms + margin_ms * (one.start_ms > begin_ms), span.start_ms),
            min(one.end_ms - margin_ms * (one.end_ms < end_ms), span.end_ms),
        )
        for one in found
    ]
    return [one for one in cut if one.start_ms < one.end_ms]
