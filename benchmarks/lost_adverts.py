"""Lost adverts: how often the watch takes a device for dead that lives, by the judgement of the service itself.

Time is not waited for: what is drawn is how many adverts in a row arrive, and how many in a row are lost.
"""

from __future__ import annotations

import math
from collections import Counter
from random import Random

import msgspec

from ingest.watch.liveness import MEMORY, Losses, down_s

_DAY_S = 86_400


class FalseDowns(msgspec.Struct, frozen=True, kw_only=True):
    """What became of devices that live and lose adverts."""

    adverts: int
    """In an interval."""
    loss: float
    device_days: float
    downs: int
    patience: int
    """Intervals: of most devices in the end."""
    most_patience: int

    @property
    def in_100_000_days(self) -> float:
        """How many false alarms 100,000 device-days had."""
        return 100_000 * self.downs / self.device_days


def false_downs(
    *,
    device_days: int,
    adverts: int,
    loss: float,
    random: Random,
    interval_s: float = 60.0,
    days_each: int = 100,
) -> FalseDowns:
    """Let devices live `days_each` and lose adverts, `adverts` an interval; count how often one is called down."""
    apart_s = interval_s / adverts
    least_s = down_s(interval_s, None)
    downs, devices = 0, max(device_days // days_each, 1)
    ends: Counter[int] = Counter()
    for _ in range(devices):
        losses, left = Losses(), days_each * _DAY_S * adverts / interval_s
        while left > 0:
            left -= (arrived := in_a_row(1.0 - loss, random))
            note_all(losses, apart_s, interval_s, arrived)
            left -= (lost := 1 + in_a_row(loss, random)) + 1
            silence_s = (lost + 1) * apart_s
            if silence_s > least_s:
                downs += silence_s > down_s(interval_s, losses)
            losses.note(silence_s, interval_s)
        ends[losses.patience(interval_s)] += 1
    return FalseDowns(
        adverts=adverts,
        loss=loss,
        device_days=devices * days_each,
        downs=downs,
        patience=ends.most_common(1)[0][0],
        most_patience=max(ends),
    )


def in_a_row(chance: float, random: Random) -> int:
    """Draw how often something of that chance happens before it does not."""
    return int(math.log(1.0 - random.random()) / math.log(chance))


def note_all(losses: Losses, silence_s: float, interval_s: float, times: int) -> None:
    """Do as so many calls of `losses.note`, for a silence that is no longer than usual."""
    each = silence_s / interval_s
    while times > 0:
        fit = min(times, int((MEMORY - losses.lived) / each))
        losses.lived += fit * each
        losses.heard += fit
        times -= fit
        if times:
            losses.note(silence_s, interval_s)
            times -= 1
