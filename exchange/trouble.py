"""Trouble: something that fails again and again until it works, said in the log once and not each time."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

QUIET_S = 60.0  # between two warnings of one trouble, whatever it does meanwhile


class Trouble:
    """One thing that can fail, and what the log says of it.

    Shape: its first failure is a warning, with `why` and the number of `failures` since the last one said; while it
        lasts, another `why` is too. Its end is said when its beginning was. A trouble that comes and goes is said
        once in QUIET_S; one that stays is never kept back for longer.
    """

    def __init__(
        self,
        log: logging.Logger,
        began: str,
        ended: str,
        *,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._log, self._began, self._ended = log, began, ended
        self._clock_s = clock_s
        self._since_s: float | None = None
        self._said_s = float("-inf")
        self._said = ""  # the last `why`, empty when nothing was said of what lasts now
        self._failures = 0

    def report(self, why: str, **fields: object) -> None:
        """Note a failure; `fields` stand beside it in the log."""
        now_s = self._clock_s()
        if self._since_s is None:
            self._since_s = now_s
        self._failures += 1
        if why != self._said and now_s - self._said_s >= QUIET_S:
            extra = {"why": why, "failures": self._failures, **fields}
            self._log.warning("%s: %s", self._began, why, extra=extra)
            self._said, self._said_s = why, now_s

    def over(self, **fields: object) -> None:
        """Note that it works; costs nothing when it did before."""
        if self._since_s is None:
            return
        if self._said:
            lasted_s = round(self._clock_s() - self._since_s, 1)
            extra = {"lasted_s": lasted_s, "failures": self._failures, **fields}
            self._log.info("%s", self._ended, extra=extra)
            self._failures = 0
        self._since_s, self._said = None, ""
