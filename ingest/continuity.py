"""Continuity: what the sequence of a device's samples tells across packs.

Ingest judges a pack from itself alone; gaps, new epochs and clashing rows show only to whom has
seen what came before. Live samples may overtake a backlog, so a gap is a gap until it is filled.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from exchange.readings import Sample

MAX_MISSING = 10_000  # remembered by name, per device; a larger gap is counted only
MAX_ROWS = 256  # remembered row times, per device


class Findings(msgspec.Struct):
    """What was found, over a device's life or a town's."""

    epochs: int = 0
    """Changes of epoch: each a loss of unknown size until the gateway says otherwise."""
    clashes: int = 0
    """Rows that two samples claim."""

    def __iadd__(self, other: Findings) -> Findings:
        self.epochs += other.epochs
        self.clashes += other.clashes
        return self


class Continuity:
    """What is remembered of one device's samples."""

    __slots__ = ("_highest", "_lost", "_missing", "_rows", "epoch")

    def __init__(self) -> None:
        self.epoch = -1
        self._highest = -1
        self._missing: set[int] = set()
        self._lost = 0
        self._rows: dict[int, tuple[int, int]] = {}

    @property
    def missing(self) -> int:
        """Samples between the first seen and the last that have not come."""
        return len(self._missing) + self._lost

    def take(self, samples: Iterable[Sample]) -> Findings:
        """Follow samples as they come; return what is new."""
        found = Findings()
        for sample in samples:
            epoch, seq = sample.epoch, sample.seq
            if epoch > self.epoch:
                found.epochs += self.epoch >= 0
                self.epoch = epoch
                self._highest = seq
            elif epoch == self.epoch:
                self._follow(seq)
            claimed = self._rows.setdefault(sample.row_time_ns, (epoch, seq))
            found.clashes += claimed != (epoch, seq)
        while len(self._rows) > MAX_ROWS:
            del self._rows[next(iter(self._rows))]
        return found

    def interrupt(self) -> None:
        """Nobody knows what passed unseen: the next sample is a new beginning."""
        self._highest = -1

    def _follow(self, seq: int) -> None:
        if seq <= self._highest:
            self._missing.discard(seq)
            return
        if self._highest >= 0:
            gap = seq - self._highest - 1
            named = min(gap, MAX_MISSING - len(self._missing))
            self._missing.update(range(seq - named, seq))
            self._lost += gap - named
        self._highest = seq
