"""Civil days and their hours, as instants: a day has 23 to 25 hours where clocks are moved."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from typing import NamedTuple
from zoneinfo import ZoneInfo

S_NS, MS_NS = 10**9, 10**6
HOUR_MS = 3_600_000
HOUR_NS = HOUR_MS * MS_NS
DAY_NS = 24 * HOUR_NS
"""Of days by the clock, not of civil ones."""


class Day(NamedTuple):
    """A civil day. Shape: `end_ns` is the next day's start; the last hour may be shorter than the others."""

    start_ns: int
    end_ns: int

    @property
    def start_ms(self) -> int:
        return self.start_ns // MS_NS

    @property
    def end_ms(self) -> int:
        return self.end_ns // MS_NS

    @property
    def hours(self) -> list[int]:
        """When its hours begin."""
        return list(range(self.start_ns, self.end_ns, HOUR_NS))

    def hour_end_ns(self, start_ns: int) -> int:
        """When the hour ends that begins then."""
        return min(start_ns + HOUR_NS, self.end_ns)


class Days:
    """The days of one zone; the newest asked for are remembered."""

    def __init__(self, zone: ZoneInfo) -> None:
        self._zone = zone
        self._known: list[Day] = []

    def of(self, time_ms: int) -> Day:
        """Return the day that a moment is in."""
        for day in self._known:
            if day.start_ms <= time_ms < day.end_ms:
                return day
        [day] = days(self._zone, time_ms * MS_NS, time_ms * MS_NS + 1)
        self._known = [day, *self._known[:3]]
        return day


def days(zone: ZoneInfo, start_ns: int, end_ns: int) -> Iterator[Day]:
    """Yield the civil days that hold any instant from `start_ns` to before `end_ns`, the latest first."""
    last = datetime.fromtimestamp((end_ns - 1) // S_NS, zone).date()
    while True:
        day = Day(_start_ns(zone, last), _start_ns(zone, last + timedelta(days=1)))
        if day.end_ns <= start_ns:
            return
        if day.start_ns < day.end_ns:  # a zone that crossed the date line has left one out
            yield day
        last -= timedelta(days=1)


def beside(zone: ZoneInfo, day: Day) -> tuple[Day, Day]:
    """Return the civil days before and after one."""
    [before] = days(zone, day.start_ns - 1, day.start_ns)
    [after] = days(zone, day.end_ns, day.end_ns + 1)
    return before, after


def noon_ns(zone: ZoneInfo, day: Day) -> int:
    """Return when a civil day's clocks show 12."""
    noon = datetime.combine(date_of(zone, day), time(12), zone)
    return round(noon.timestamp()) * S_NS


def date_of(zone: ZoneInfo, day: Day) -> date:
    """Return a civil day's date."""
    return datetime.fromtimestamp(day.start_ns // S_NS, zone).date()


def day_of(zone: ZoneInfo, on: date) -> Day:
    """Return the civil day of a date."""
    return Day(_start_ns(zone, on), _start_ns(zone, on + timedelta(days=1)))


@lru_cache(maxsize=4096)
def _start_ns(zone: ZoneInfo, on: date) -> int:
    """Return the first instant of a date, also where its midnight is left out or comes twice."""
    midnight = datetime.combine(on, time(), zone)
    start = midnight.astimezone(UTC)
    if start.astimezone(zone).date() < on:  # left out: the offset before the gap was the wrong one
        start = midnight.replace(fold=1).astimezone(UTC)
    return round(start.timestamp()) * S_NS
