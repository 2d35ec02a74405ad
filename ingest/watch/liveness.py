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
FALSE_DOWNS_A_DAY = 3e-6
"""A third of what is allowed: losses are never quite known."""
BROADCAST = frozenset({"ble", "bluetooth", "lora", "lorawan", "zigbee"})
"""Transports by which samples get lost on the way to the gateway."""
PROVEN_AFTER = 100
"""Intervals after which the losses of such a device are believed to be known; until then it has all patience."""
_DOUBT = 20
"""So many missed intervals weigh as much as the belief that losses are independent."""
MEMORY = 4096
"""Intervals that are remembered; then what is old counts half."""
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
    """What is lost of a device on a radio: intervals lived through, those without a sample, and in how many gaps."""

    lived: float = 0.0
    missed: int = 0
    gaps: int = 0

    def note(self, silence_s: float, interval_s: float) -> None:
        """Take the silence between two samples; one that is longer than any patience was no loss."""
        intervals = silence_s / interval_s
        if intervals > MOST_PATIENCE + 0.5:
            return
        self.lived += intervals
        if intervals > 1.5:
            self.missed += round(intervals) - 1
            self.gaps += 1
        if self.lived > MEMORY:
            self.lived, self.missed, self.gaps = self.lived / 2, self.missed // 2, self.gaps // 2

    def patience(self, interval_s: float) -> int:
        """Return how many intervals of silence are no news."""
        if self.lived < PROVEN_AFTER:
            return MOST_PATIENCE
        if not self.missed:
            return LEAST_PATIENCE
        # How often a gap begins, and how likely it goes on for another interval: losses may come in bursts.
        gaps_a_day = max(self.gaps, 1) / self.lived * max(_DAY_S / interval_s, 1.0)
        likely = self.missed / (self.lived + 1)
        goes_on = (self.missed - self.gaps + _DOUBT * likely) / (self.missed + _DOUBT)
        if goes_on >= 1.0:
            return MOST_PATIENCE
        allowed = FALSE_DOWNS_A_DAY / gaps_a_day
        intervals = 1 + math.ceil(math.log(min(allowed, 1.0)) / math.log(goes_on))
        return min(max(intervals, LEAST_PATIENCE), MOST_PATIENCE)


def late_s(interval_s: float) -> float:
    """Return after how much silence a device is late."""
    return LEAST_PATIENCE * interval_s + LATE_GRACE_S


def down_s(interval_s: float, losses: Losses | None) -> float:
    """Return after how much silence a device is down; one on a wire has no losses."""
    patience = LEAST_PATIENCE if losses is None else losses.patience(interval_s)
    return patience * interval_s + DOWN_GRACE_S


def losses_by(transport: str) -> Losses | None:
    """Return what is known at first of the losses of a device that is reached by it."""
    return Losses() if transport in BROADCAST else None
