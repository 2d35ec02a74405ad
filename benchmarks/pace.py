"""A pace: so many sendings a second by an absolute schedule, and how far behind it one fell."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

TICK_S = 0.002


class Pace:
    """Sending n is due at `began_s + n / rate_per_s`, whatever became of those before it.

    Shape: `send(n)` says False when there is no room; it is asked again with the same n. What is late
        is sent at once, so a pause is followed by a burst and by no slower pace.
    """

    def __init__(self, rate_per_s: float, send: Callable[[int], bool]) -> None:
        self.rate_per_s = rate_per_s
        self.began_s = 0.0
        self.count = 0
        self.sent = 0
        self.late_s = 0.0
        """How late the latest sending was."""
        self._send = send

    def due_s(self, number: int) -> float:
        """When a sending is due, by `time.monotonic`."""
        return self.began_s + number / self.rate_per_s

    async def run(self, count: int) -> None:
        """Send 0 to count - 1. A sending is at most a tick late unless the machine or the broker is."""
        self.began_s, self.count = time.monotonic(), count
        while self.sent < count:
            now_s = time.monotonic()
            due = min(count, int((now_s - self.began_s) * self.rate_per_s) + 1)
            if due > self.sent:
                self.late_s = max(self.late_s, now_s - self.due_s(self.sent))
            while self.sent < due and self._send(self.sent):
                self.sent += 1
            await asyncio.sleep(TICK_S)


def late_words(late_s: float) -> str:
    """Say whether a pace was kept."""
    kept = "kept its pace" if late_s < 1.0 else "FELL BEHIND its pace"
    return f"the generator {kept}, at most {1000 * late_s:.0f} ms late"
