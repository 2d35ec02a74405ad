"""Liveness: how long a device may be silent before that says something, by its own interval and its own past.

Two intervals are allowed (EX-S-008); a few seconds more, and a device is `down`: unless it is one of those of which
samples get lost on the way to the gateway. Who misses one of ten, misses two in a row 14 times a day at one a
minute. So each device is given the patience that its own losses ask for: as many intervals as make a false alarm
rarer than once in FALSE_DOWNS_A_DAY. Until then it is `late`.
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
"""Transports by which samples get lost on the way to the gateway: patience is lost here, not gained."""
PROVEN_AFTER = 100
"""Intervals after which the losses of a device that broadcasts are believed to be known."""
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


class Losses(msgspec.Struct, gc=False):
    """Intervals of a device in which something came, and in which nothing did while it lived."""

    heard: int = 0
    missed: int = 0

    def note(self, silence_s: float, interval_s: float) -> None:
        """Take the silence between two samples; one that is longer than any patience was no loss."""
        intervals = round(silence_s / interval_s)
        if not 1 <= intervals <= MOST_PATIENCE:
            return
        self.heard += 1
        self.missed += intervals - 1
        if self.heard + self.missed > _MEMORY:
            self.heard, self.missed = self.heard // 2, self.missed // 2

    def patience(self, interval_s: float, transport: str) -> int:
        """Return how many intervals of silence are no news."""
        total = self.heard + self.missed
        if transport in BROADCAST and total < PROVEN_AFTER:
            return MOST_PATIENCE
        if not self.missed:
            return LEAST_PATIENCE
        allowed = FALSE_DOWNS_A_DAY * min(interval_s / _DAY_S, 1.0)
        intervals = math.ceil(math.log(allowed) / math.log(self.missed / (total + 1)))
        return min(max(intervals, LEAST_PATIENCE), MOST_PATIENCE)


def late_s(interval_s: float) -> float:
    """Return after how much silence a device is late."""
    return LEAST_PATIENCE * interval_s + LATE_GRACE_S


def down_s(interval_s: float, patience: int) -> float:
    """Return after how much silence a device is down."""
    return patience * interval_s + DOWN_GRACE_S
