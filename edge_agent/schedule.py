"""When each device of a bus is polled: an absolute schedule without drift, phases spread, dead devices less often."""

from __future__ import annotations

SLOWEST_RETRY_S = 60.0
SETTLE_S = 0.1  # adapters and devices get this long after a bus was opened


class Turn:
    """One device's place in the schedule of its bus. Units: every `now_s` is the same monotonic clock."""

    def __init__(self, interval_s: float, first_s: float) -> None:
        """`first_s` is the first time it is due; neighbours get different ones."""
        self.interval_s = interval_s
        self.due_s = first_s
        self.missed = 0
        self.failures = 0

    def answered(self, now_s: float) -> None:
        """Go on to the next due time; those that have passed meanwhile were missed and are counted."""
        self.failures = 0
        self._advance(now_s)

    def failed(self, now_s: float) -> None:
        """Try again at a later due time, each time later, up to a minute: neighbours share the bus."""
        self.failures += 1
        wait_s = min(self.interval_s * 2 ** min(self.failures - 1, 16), SLOWEST_RETRY_S)
        self._advance(now_s + max(wait_s, self.interval_s) - self.interval_s)

    def _advance(self, now_s: float) -> None:
        steps = max(1, int((now_s - self.due_s) // self.interval_s) + 1)
        if not self.failures:
            self.missed += steps - 1
        self.due_s += steps * self.interval_s


def turns(intervals_s: list[float], now_s: float) -> list[Turn]:
    """Return a turn for each device, their first times spread over their intervals."""
    count = max(1, len(intervals_s))
    return [
        Turn(interval_s, now_s + SETTLE_S + interval_s * index / count)
        for index, interval_s in enumerate(intervals_s)
    ]
