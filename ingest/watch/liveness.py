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
"""Samples after which the losses of such a device are believed to be known; until then it has all patience."""
_UNUSUAL = 1.5
"""A silence of so many times the usual one: something was lost."""
_TOO_SHORT = 1e-6
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
    """What is lost of a device on a radio: how often it was heard in how many intervals, and how often not."""

    lived: float = 0.0
    heard: int = 0
    missed: int = 0

    def note(self, silence_s: float, interval_s: float) -> None:
        """Take the silence between two samples; one that is longer than any patience was no loss."""
        intervals = silence_s / interval_s
        if not 0.0 <= intervals <= MOST_PATIENCE + 0.5:
            return
        if intervals * self.heard > _UNUSUAL * self.lived and self.heard:
            self.missed += 1
        self.lived += intervals
        self.heard += 1
        if self.lived > MEMORY:
            self.lived, self.heard, self.missed = self.lived / 2, self.heard // 2, self.missed // 2

    def patience(self, interval_s: float) -> int:
        """Return how many intervals of silence are no news.

        Shape: it speaks every `step` intervals, and each time is lost with a `chance` of its own.
        """
        if self.heard < PROVEN_AFTER or self.lived < _TOO_SHORT:
            return MOST_PATIENCE
        chance = self.missed / self.heard
        if not 0.0 < chance < 1.0:
            return LEAST_PATIENCE if not chance else MOST_PATIENCE
        step = self.lived / self.heard * (1.0 - chance)
        heard_a_day = self.heard / self.lived * max(_DAY_S / interval_s, 1.0)
        losses = math.log(min(FALSE_DOWNS_A_DAY / heard_a_day, 1.0)) / math.log(chance)
        return min(max(math.ceil(step * losses), LEAST_PATIENCE), MOST_PATIENCE)


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
