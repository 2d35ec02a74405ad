"""Civil days of a time zone: 23, 24 or 25 hours long."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import NamedTuple
from zoneinfo import ZoneInfo


class Day(NamedTuple):
    """A civil day. Units: milliseconds since 1970 UTC, `end_ms` is the next day's start."""

    start_ms: int
    end_ms: int


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
        local = datetime.fromtimestamp(time_ms / 1000, self._zone).date()
        day = Day(self._start_ms(local), self._start_ms(local + timedelta(days=1)))
        self._known = [day, *self._known[:3]]
        return day

    def _start_ms(self, local: date) -> int:
        midnight = datetime(local.year, local.month, local.day, tzinfo=self._zone)
        # A clock that is set forward at midnight has none: the day begins when the clock says so first.
        return round(midnight.astimezone(UTC).timestamp() * 1000)
