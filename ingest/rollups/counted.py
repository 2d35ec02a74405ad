"""Raw rows counted by device and hour around a day, and what rows of the day therefore should say of themselves."""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeAlias

from ingest.rollups.days import HOUR_NS, Day

Counts: TypeAlias = "dict[str, array[int]]"
"""By device, one number for each hour of a day."""

_NIGHT_REACH_NS = 24 * HOUR_NS


class Closed(NamedTuple):
    """What can be made: what ended by `until_ns`, and looks at no raw row before `since_ns`."""

    since_ns: int
    until_ns: int


class Made(NamedTuple):
    """What a row was made from: `rows` of its own span, and how many stand in what else it looked at."""

    rows: int
    basis: int

    def is_short_of(self, expected: Made) -> bool:
        """Whether there is more now. Fewer raw rows were deleted since, which changes nothing."""
        return (self.rows, self.basis) < (expected.rows, expected.basis)


class Counted:
    """The counts of a day and of the days beside it.

    Shape: `reach_ns` is how far back an hour's row looks; `night_end_ns` how far ahead the day's row does, if it does.
    """

    def __init__(
        self,
        day: Day,
        days: Sequence[tuple[Day, Counts]],
        closed: Closed,
        *,
        reach_ns: int,
        night_end_ns: int | None,
    ) -> None:
        self.day, self._closed, self._reach_ns = day, closed, reach_ns
        self._night_end_ns = night_end_ns
        self._starts = [start_ns for each, _ in days for start_ns in each.hours]
        self._first = self._starts.index(day.start_ns)
        self._last = self._first + len(day.hours)
        nothing = [array("q", bytes(8 * len(each.hours))) for each, _ in days]
        self._rows: Counts = {}
        for device in sorted({device for _, counts in days for device in counts}):
            row = self._rows[device] = array("q")
            for (_, counts), zeros in zip(days, nothing, strict=True):
                row += counts.get(device, zeros)

    @property
    def is_empty(self) -> bool:
        """Whether the day has no raw rows."""
        return not any(any(rows[self._first : self._last]) for rows in self._rows.values())

    # An hour

    def can_make(self, start_ns: int) -> bool:
        """Whether an hour of the day is over and all that it looks at is there."""
        whole = start_ns - self._reach_ns >= self._closed.since_ns
        return whole and self.day.hour_end_ns(start_ns) <= self._closed.until_ns

    def reached_ns(self, start_ns: int) -> int:
        """Return when the first hour begins that an hour's row looks at."""
        return self._starts[self._reached(start_ns)]

    def before(self, device: str, start_ns: int) -> int:
        """Return how many rows a device has in the hours before one that this looks at."""
        return sum(self._rows[device][self._reached(start_ns) : self._place(start_ns)])

    def expected(self, start_ns: int) -> dict[str, Made]:
        """Return what an hour's row of each device with raw rows should say."""
        place, reached = self._place(start_ns), self._reached(start_ns)
        return {
            device: Made(rows[place], sum(rows[reached:place]))
            for device, rows in self._rows.items()
            if rows[place]
        }

    # The day

    @property
    def can_make_day(self) -> bool:
        """Whether the day is over and all that its row looks at is there."""
        since_ns = self._starts[self._day_from] - self._reach_ns
        return since_ns >= self._closed.since_ns and self.day.end_ns <= self._closed.until_ns

    @property
    def day_looks_ns(self) -> tuple[int, int]:
        """From when to when the day's row looks at hours."""
        if self._night_end_ns is None:
            return self.day.start_ns, self.day.end_ns
        return self._starts[self._day_from], min(self._night_end_ns, self._closed.until_ns)

    @property
    def expected_day(self) -> dict[str, Made]:
        """Return what the day's row of each device with raw rows should say."""
        own = range(self._first, self._last)
        reached = [self._reached(self._starts[place]) for place in own]
        start, end = self._day_from, self._day_to
        found: dict[str, Made] = {}
        for device, rows in self._rows.items():
            number = sum(rows[self._first : self._last])
            if not number:
                continue
            basis = sum(
                sum(rows[reached[place - self._first] : place]) for place in own if rows[place]
            )
            if self._night_end_ns is not None:
                basis += sum(rows[start:end])
            found[device] = Made(number, basis)
        return found

    def is_day_stale(self, made: Made | None, expected: Made) -> bool:
        """Whether the day's row of a device or site is to be made, or made anew.

        Shape: while the night lasts what the row looks at beyond the day may grow: it is made anew after that.
        """
        growing = self._night_end_ns is not None and self._closed.until_ns < self._night_end_ns
        if made is not None and growing:
            return made.rows < expected.rows
        return made is None or made.is_short_of(expected)

    @property
    def _day_from(self) -> int:
        if self._night_end_ns is None:
            return self._first
        return bisect_left(self._starts, self.day.start_ns - _NIGHT_REACH_NS)

    @property
    def _day_to(self) -> int:
        return bisect_left(self._starts, self.day_looks_ns[1])

    def _place(self, start_ns: int) -> int:
        return bisect_left(self._starts, start_ns)

    def _reached(self, start_ns: int) -> int:
        return max(0, bisect_right(self._starts, start_ns - self._reach_ns) - 1)


def total(made: Iterable[Made]) -> Made:
    """Return what a row of all these should say."""
    both = list(made)
    return Made(sum(each.rows for each in both), sum(each.basis for each in both))
