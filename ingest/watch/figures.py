"""Figures of a civil day: what came of what was sent, and for how long a device was up."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from ingest.days import Day, Days
from ingest.watch.liveness import ALIVE, Status


class Figures(msgspec.Struct, gc=False):
    """A device's day, or the sum of a site's. Units: samples, milliseconds."""

    received: int = 0
    missing: int = 0
    up_ms: int = 0
    down_ms: int = 0
    unknown_ms: int = 0
    maintenance_ms: int = 0

    @property
    def completeness(self) -> float | None:
        """Received of expected, 0 … 1; None when nothing was expected."""
        expected = self.received + self.missing
        return self.received / expected if expected else None

    @property
    def availability(self) -> float | None:
        """Up of up and down, 0 … 1; None when it was never either."""
        judged_ms = self.up_ms + self.down_ms
        return self.up_ms / judged_ms if judged_ms else None

    def add_time(self, status: Status, for_ms: int) -> None:
        """Count time in a status; a retired device has none."""
        if status in ALIVE:
            self.up_ms += for_ms
        elif status is Status.DOWN:
            self.down_ms += for_ms
        elif status is Status.UNKNOWN:
            self.unknown_ms += for_ms
        elif status is Status.MAINTENANCE:
            self.maintenance_ms += for_ms

    @property
    def judged_ms(self) -> int:
        """The time that is accounted for."""
        return self.up_ms + self.down_ms + self.unknown_ms + self.maintenance_ms

    def __iadd__(self, other: Figures) -> Figures:
        for name in self.__struct_fields__:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        return self


class Calendar(msgspec.Struct, gc=False):
    """The figures of today and, for what comes late, of the day before. Time is counted until `counted_ms`."""

    day: Day
    counted_ms: int
    today: Figures = msgspec.field(default_factory=Figures)
    day_before: Day | None = None
    before: Figures | None = None
    before_is_due: bool = False
    """Whether the row of the day before has to be written, or written again."""

    def spend(self, now_ms: int, days: Days) -> Iterator[tuple[Figures, int]]:
        """Yield the time since it was counted last, day by day, each with the figures that it belongs to."""
        while True:
            end_ms = min(now_ms, self.day.end_ms)
            if end_ms > self.counted_ms:
                yield self.today, end_ms - self.counted_ms
                self.counted_ms = end_ms
            if now_ms < self.day.end_ms:
                return
            self._turn(days.of(max(self.counted_ms, self.day.end_ms)))

    def skip(self, now_ms: int) -> None:
        """Count none of the time until now."""
        self.counted_ms = max(self.counted_ms, now_ms)

    def count(self, time_ms: int, received: int, missing: int) -> bool:
        """Count samples on a moment's day; False when its figures are closed."""
        if self.day.start_ms <= time_ms < self.day.end_ms:
            figures = self.today
        else:
            day = self.day_before
            if day is None or not day.start_ms <= time_ms < day.end_ms or self.before is None:
                return False
            figures, self.before_is_due = self.before, True
        figures.received += received
        figures.missing += missing
        return True

    def restore(self, day: Day, figures: Figures) -> None:
        """Add what an earlier run counted of today or of the day before."""
        if day == self.day:
            self.today += figures
        elif day.end_ms == self.day.start_ms:
            before = self.before or Figures()
            before += figures
            self.day_before, self.before = day, before

    def take_due(self) -> tuple[Day, Figures] | None:
        """Return the day before when its row is due, once."""
        if not self.before_is_due or self.day_before is None or self.before is None:
            return None
        self.before_is_due = False
        return self.day_before, self.before

    def _turn(self, day: Day) -> None:
        """Begin another day. A clock that was set back begins none."""
        if day.start_ms > self.day.start_ms:
            self.day_before, self.before = self.day, self.today
            self.day, self.today = day, Figures()
        self.before_is_due = True
