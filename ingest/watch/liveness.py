"""Liveness: how long a device may be silent before that says something, by its own interval and its own past.

Two intervals are allowed (EX-S-008); a few seconds more, and a device is `down`. Only of those on a radio, samples get
lost on the way to the gateway: who says one thing an interval and loses a tenth, misses two in a row 13 times a day at
one a minute. So such a device is given the patience that its own losses ask for: as many intervals as make a false
alarm rarer than FALSE_DOWNS_A_DAY. Until then it is `late`. Who is heard five times an interval needs no more than two.
"""

from __future__ import annotations

import math
from enum import IntEnum

import msgspec

LATE_GRACE_S = 2.0
DOWN_GRACE_S = 4.0
"""Below five seconds: looking and writing take the rest."""
LEAST_PATIENCE, MOST_PATIENCE = 2, 10
"""Intervals of silence."""
FALSE_DOWNS_A_DAY = 1e-5
BROADCAST = frozenset({"ble", "bluetooth", "lora", "lorawan", "zigbee"})
"""Transports by which samples get lost on the way to the gateway."""
PROVEN_AFTER = 100
"""Intervals after which the losses of such a device are believed to be known; until then it has all patience."""
_MEMORY = 4096
_DAY_S = 86_400


class Status(IntEnum):
    """How a device is. The numbers are those of the field `state`."""

    UP = 0
    LATE = 1
    DOWN = 2
    UNKNOWN = 3
    """Its gateway is down, or nothing is known yet."""
    MAINTENANCE = 4
    RETIRED = 5

    @property
    def word(self) -> str:
        """As the field `status` has it."""
        return self.name.lower()


ALIVE = (Status.UP, Status.LATE)


class Losses(msgspec.Struct, gc=False):
    """The intervals that a device has lived through, and those of them in which nothing came though it lived."""

    lived: float = 0.0
    missed: int = 0

    def note(self, silence_s: float, interval_s: float) -> None:
        """Take the silence between two samples; one that is longer than any patience was no loss."""
        intervals = silence_s / interval_s
        if intervals > MOST_PATIENCE + 0.5:
            return
        self.lived += intervals
        if intervals > 1.5:
            self.missed += round(intervals) - 1
        if self.lived > _MEMORY:
            self.lived, self.missed = self.lived / 2, self.missed // 2

    def patience(self, interval_s: float, transport: str) -> int:
        """Return how many intervals of silence are no news."""
        if transport not in BROADCAST:
            return LEAST_PATIENCE
        if self.lived < PROVEN_AFTER:
            return MOST_PATIENCE
        if not self.missed:
            return LEAST_PATIENCE
        allowed = FALSE_DOWNS_A_DAY * min(interval_s / _DAY_S, 1.0)
        intervals = math.ceil(math.log(allowed) / math.log(self.missed / (self.lived + 1)))
        return min(max(intervals, LEAST_PATIENCE), MOST_PATIENCE)


def late_s(interval_s: float) -> float:
    """Return after how much silence a device is late."""
    return LEAST_PATIENCE * interval_s + LATE_GRACE_S


def down_s(interval_s: float, patience: int) -> float:
    """Return after how much silence a device is down."""
    return patience * interval_s + DOWN_GRACE_S
