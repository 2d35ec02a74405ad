"""Remarks: what the watch says in the log, of changes that may come in thousands."""

from __future__ import annotations

import logging

log = logging.getLogger(__name__)

MAX_LINES, LINES_WINDOW_S = 30, 60.0
MAX_TOLD = 100_000


class Remarks:
    """The log, kept readable."""

    def __init__(self) -> None:
        self._lines, self._unsaid = 0, 0
        self._since_s = float("-inf")
        self._told: set[tuple[str, str]] = set()

    def change(self, level: int, words: str, *about: object, now_s: float) -> None:
        """Log a change; of many in a minute, the first ones."""
        if now_s - self._since_s >= LINES_WINDOW_S:
            self._since_s, self._lines = now_s, 0
        self._lines += 1
        if self._lines <= MAX_LINES:
            log.log(level, words, *about)
        else:
            self._unsaid += 1

    def say_how_many(self, now_s: float) -> None:
        """Log how many changes were not logged, once their minute is over."""
        if self._unsaid and now_s - self._since_s >= LINES_WINDOW_S:
            log.warning("and %d further changes of devices", self._unsaid)
            self._unsaid = 0

    def once(
        self, what: str, whom: str, detail: str = "", *, mistake: Exception | None = None
    ) -> None:
        """Log what may come again and again; with its traceback, when it is a mistake of ours."""
        if (what, whom) not in self._told:
            if len(self._told) >= MAX_TOLD:
                self._told.clear()
            self._told.add((what, whom))
            level = logging.WARNING if mistake is None else logging.ERROR
            log.log(level, "%s: %s", what, whom, extra={"detail": detail}, exc_info=mistake)
