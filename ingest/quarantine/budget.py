"""The budget: how much of a flood is written down. What exceeds it is counted.

Without one a gateway gone mad would have the disk write all it sends, and evict everybody's evidence.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterable

import msgspec

from exchange.trouble import Trouble
from ingest.quarantine.evidence import Entry, Refused

log = logging.getLogger(__name__)

WINDOW_S = 1.0
BODY_BYTES = 2 * 1024 * 1024
REFUSALS = 2000
SHARES = 4
"""One gateway gets at most this part of a window's budget, so that its flood hides nobody else's refusals."""


class _Spent(msgspec.Struct):
    body_bytes: int = 0
    refusals: int = 0


class Admitted(msgspec.Struct):
    """What may be written, and how much of what came may not."""

    entries: list[Entry]
    bodies_dropped: int = 0
    only_counted: int = 0


class Budget:
    """So much a second for one process, and a quarter of it for one gateway."""

    def __init__(self, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._clock_s = clock_s
        self._ends_s = float("-inf")
        self._all = _Spent()
        self._of: defaultdict[str, _Spent] = defaultdict(_Spent)
        self._exceeded = False
        self._trouble = Trouble(
            log,
            "a flood of refused messages",
            "the flood of refused messages is over",
            clock_s=clock_s,
        )

    def admit(self, refused: Iterable[Refused]) -> Admitted:
        """Return what may be written of these."""
        self._turn_window()
        admitted = Admitted([])
        entries: dict[tuple[str, str], Entry] = {}
        for each in refused:
            if self._all.refusals >= REFUSALS:
                admitted.only_counted += 1
                continue
            spent = self._of[each.receipts]
            if spent.refusals >= REFUSALS // SHARES:
                admitted.only_counted += 1
                continue
            self._all.refusals += 1
            spent.refusals += 1
            key = each.evidence.sha256, each.evidence.topic
            entry = entries.get(key)
            if entry is None:
                entry = entries[key] = self._entry(each, spent)
                admitted.bodies_dropped += entry.body is None
            entry.refused.append(each)
        admitted.entries = list(entries.values())
        if admitted.only_counted or admitted.bodies_dropped:
            self._exceeded = True
            self._trouble.report(
                "what exceeds the budget is only counted, or kept without its body"
            )
        return admitted

    def _entry(self, first: Refused, spent: _Spent) -> Entry:
        body = first.evidence.body
        if (
            self._all.body_bytes + len(body) > BODY_BYTES
            or spent.body_bytes + len(body) > BODY_BYTES // SHARES
        ):
            return Entry(first.evidence, None, [])
        self._all.body_bytes += len(body)
        spent.body_bytes += len(body)
        return Entry(first.evidence, body, [])

    def _turn_window(self) -> None:
        now_s = self._clock_s()
        if now_s < self._ends_s:
            return
        if not self._exceeded:
            self._trouble.over()
        self._ends_s = now_s + WINDOW_S
        self._all = _Spent()
        self._of.clear()
        self._exceeded = False
