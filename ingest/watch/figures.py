"""Figures of a civil day: what came of what was sent, and for how long a device was up."""

from __future__ import annotations

import msgspec

from ingest.watch.days import Day
from ingest.watch.liveness import Status

_UP = (Status.UP, Status.LATE)


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
        if status in _UP:
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
    """The figures of today and, for what comes late, of the day before."""

    day: Day
    today: Figures = msgspec.field(default_factory=Figures)
    day_before: Day | None = None
    before: Figures | None = None

    def turn(self, day: Day) -> None:
        """Begin another day. A clock that was set back begins none."""
        if day.start_ms <= self.day.start_ms:
            return
        self.day_before, self.before = self.day, self.today
        self.day, self.today = day, Figures()

    def at(self, time_ms: int) -> Figures | None:
        """Return the figures of a moment's day, None when they are closed."""
        if self.day.start_ms <= time_ms < self.day.end_ms:
            return self.today
        before = self.day_before
        if before is not None and before.start_ms <= time_ms < before.end_ms:
            return self.before
        return None
