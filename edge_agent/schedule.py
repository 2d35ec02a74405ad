"""When each device of a bus is asked: an absolute schedule without drift, phases spread, dead devices in the gaps.

A device that answers is polled on its own grid: first time + n * interval, whatever the polls took. One that failed
yields: it is asked again only in a gap that is long enough for it before the next poll is due. After several failures
in a row its breaker opens, and it is asked rarely. Where there are no gaps a failed device may make polls wait all the
same, for one exchange at a time and for a stated share of the bus's time.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from heapq import heapify, heapreplace
from operator import attrgetter
from typing import Annotated, Final, Literal, TypeAlias

import msgspec

Breaker: TypeAlias = Literal["closed", "open", "probing"]

SETTLE_S: Final = 0.1
"""Adapters and devices get this long after a bus was opened."""
SPREAD_S: Final = 30.0
"""First polls are spread over the interval, but not over longer than this: nobody waits an hour for a first value."""
PATIENCE_S: Final = 5.0
"""A failed device waits so long for a gap before it may make a poll wait."""
_SOON_S: Final = 1e-6


class Pacing(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How devices that do not answer are asked. `[polling]` of the configuration.

    With these defaults a device that revives is read within a minute.
    """

    failures: Annotated[int, msgspec.Meta(ge=1, le=100)] = 3
    """So many failures in a row open the breaker."""
    probe_first_s: Annotated[float, msgspec.Meta(ge=0.01, le=3600)] = 5.0
    """The first probe comes so long after, or an interval after where that is longer; each next one twice as long."""
    probe_last_s: Annotated[float, msgspec.Meta(ge=0.01, le=3600)] = 40.0
    """But never longer than this."""
    probe_share: Annotated[float, msgspec.Meta(gt=0, le=0.5)] = 0.1
    """The share of the bus's time that failed devices may take from polls that are due."""


class Slot:
    """One device's place in the schedule of its bus. Units: every time is of one monotonic clock."""

    def __init__(self, index: int, interval_s: float, first_s: float) -> None:
        """`index` is the device's on the bus; `first_s` the first time it is due."""
        self.index = index
        self.interval_s = interval_s
        self.due_s = first_s
        self.missed = 0
        self.failures = 0
        self.cost_s = 0.0
        """How long its last failure held the bus."""
        self.opened = False
        """Its breaker is open: it is asked rarely."""
        self._first_s = first_s

    def grid_s(self, now_s: float) -> float:
        """Return the first time on its grid that is after `now_s`."""
        steps = math.floor((now_s - self._first_s) / self.interval_s + _SOON_S) + 1
        return self._first_s + max(0, steps) * self.interval_s

    def catch_up(self, now_s: float) -> None:
        """Count the polls that could not be made until now, and be due once for all of them."""
        if not self.failures and self.due_s <= now_s:
            passed = int((now_s - self.due_s) / self.interval_s + _SOON_S)
            self.missed += passed
            self.due_s += passed * self.interval_s


class Schedule:
    """All devices of one bus."""

    def __init__(
        self,
        intervals_s: Sequence[float],
        now_s: float,
        pacing: Pacing | None = None,
        grain_s: float = 0.0,
    ) -> None:
        """Spread the first times; those within one `grain_s` follow each other, so that the agent wakes up once."""
        self.pacing = pacing or Pacing()
        count = len(intervals_s)
        self.slots = []
        for index, each_s in enumerate(intervals_s):
            after_s = min(each_s, SPREAD_S) * index / count
            after_s -= after_s % grain_s if grain_s else 0.0
            self.slots.append(Slot(index, each_s, now_s + SETTLE_S + after_s))
        self._may_press_s = now_s
        self._has_failed = False
        self._queue: list[tuple[float, int]] = []  # a heap of all, empty when it is to be made anew

    def resume(self, now_s: float) -> None:
        """Go on after the bus was away: what was missed is counted, and each device is asked once, soon."""
        soon_s = now_s + SETTLE_S
        self._queue.clear()
        for slot in self.slots:
            slot.catch_up(now_s)
            slot.due_s = soon_s if slot.failures else max(slot.due_s, soon_s)

    def choice(self, now_s: float) -> tuple[Slot | None, float]:
        """Return who is to be asked now, or None and when to ask again."""
        failed = [slot for slot in self.slots if slot.failures] if self._has_failed else []
        self._has_failed = bool(failed)
        if failed:
            living = [slot for slot in self.slots if not slot.failures]
            poll = min(living, key=_due, default=None)
        else:
            poll = self._first()
        poll_s = poll.due_s if poll is not None else math.inf
        if failed:
            oldest = min(failed, key=_due)
            # Nobody presses while polls leave gaps; a bus that is late already is pressed no further than its share.
            press_s = max(oldest.due_s + PATIENCE_S, self._may_press_s)
            if press_s <= now_s:
                return oldest, now_s
        if poll is not None and poll_s <= now_s:
            return poll, now_s
        fitting = [slot for slot in failed if max(slot.due_s, now_s) + slot.cost_s <= poll_s]
        if fitting and (first := min(fitting, key=_due)).due_s <= now_s:
            return first, now_s
        later_s = [poll_s, *(slot.due_s for slot in fitting)]
        if failed:
            later_s.append(press_s)
        return None, min(later_s)

    def _first(self) -> Slot | None:
        """Return who is due first, at no cost that grows with their number."""
        if not self._queue:
            self._queue = [(slot.due_s, slot.index) for slot in self.slots]
            heapify(self._queue)
        return self.slots[self._queue[0][1]] if self._queue else None

    def answered(self, slot: Slot, now_s: float) -> None:
        """Go on to the next time on the grid; those that have passed meanwhile were missed and are counted."""
        is_first = not slot.failures and self._queue and self._queue[0][1] == slot.index
        if not slot.failures:
            slot.missed += int(max(0.0, now_s - slot.due_s) / slot.interval_s + _SOON_S)
        elif all(other.failures for other in self.slots):
            # It was the line, or we, that is back: nobody waits for a probe of its own.
            self._may_press_s = now_s
            for other in self.slots:
                other.due_s = min(other.due_s, now_s - PATIENCE_S)
        slot.failures, slot.opened = 0, False
        slot.due_s = slot.grid_s(now_s)
        if is_first:
            heapreplace(self._queue, (slot.due_s, slot.index))
        else:
            self._queue.clear()

    def failed(self, slot: Slot, began_s: float, now_s: float) -> None:
        """Try again later: on the grid until the breaker opens, then ever more rarely."""
        pacing = self.pacing
        slot.failures += 1
        self._has_failed = True
        self._queue.clear()
        slot.cost_s = now_s - began_s
        slot.opened = slot.failures >= pacing.failures
        if began_s >= slot.due_s + PATIENCE_S and slot.failures > 1:
            self._may_press_s = now_s + slot.cost_s * (1 / pacing.probe_share - 1)
        if not slot.opened:
            slot.due_s = min(slot.grid_s(now_s), now_s + pacing.probe_last_s)
            return
        first_s = max(pacing.probe_first_s, slot.interval_s)
        doublings = min(slot.failures - pacing.failures, 16)
        wait_s = min(first_s * 2**doublings, pacing.probe_last_s)
        slot.due_s = now_s + wait_s * random.uniform(0.75, 1.0)  # noqa: S311 - jitter

    def alive(self, index: int, now_s: float) -> None:
        """Ask a failed device at once: it has just been heard otherwise."""
        slot = self.slots[index]
        if slot.failures:
            slot.due_s = now_s


_due = attrgetter("due_s")
