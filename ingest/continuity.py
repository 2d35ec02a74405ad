"""Continuity: what the sequence of a device's samples tells across packs.

Ingest judges a pack from itself alone; gaps, new epochs and clashing rows show only to whom has
seen what came before. Live samples may overtake a backlog, so a gap is a gap until it is filled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeAlias

import msgspec

from exchange.readings import Sample

MAX_GAPS = 64
"""Ranges of missing samples remembered by name, per device and epoch; what is missing beyond is counted only."""

Count: TypeAlias = Callable[[int, int, int], None]
"""Takes a time in milliseconds, and by how many the received and the missing of its day change."""


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


class _Gap(msgspec.Struct, gc=False):
    """Samples that have not come, and the time of the one that showed it."""

    first: int
    last: int
    shown_ms: int


class _Run(msgspec.Struct, gc=False):
    """What is known of one epoch, -1 before the first."""

    epoch: int = -1
    highest: int = -1
    lost: int = 0
    gaps: list[_Gap] | None = None

    @property
    def own_missing(self) -> int:
        return self.lost + sum(gap.last - gap.first + 1 for gap in self.gaps or ())


def _count_nothing(_time_ms: int, _received: int, _missing: int) -> None:
    return


class Continuity(_Run, gc=False):
    """What is remembered of one device's samples: of its epoch, and of the one before, which may come late."""

    _before: _Run | None = None
    _newest_row: int = -1
    _newest_epoch: int = -1
    _newest_seq: int = -1

    @property
    def missing(self) -> int:
        """Samples between the first seen and the last that have not come."""
        return self.own_missing + (self._before.own_missing if self._before else 0)

    def goes_on(self, sample: Sample) -> bool:
        """Take a sample that is the next in every way, as nearly all are; False, and nothing done, if it is not."""
        row = sample.row_time_ns
        if (
            sample.epoch != self.epoch
            or sample.seq != self.highest + 1
            or row <= self._newest_row
            or self.highest < 0
        ):
            return False
        self.highest = self._newest_seq = sample.seq
        # The number that is there already: of 200,000 devices each costs memory.
        self._newest_row, self._newest_epoch = row, self.epoch
        return True

    def take(self, samples: Iterable[Sample], count: Count = _count_nothing) -> Findings:
        """Follow samples as they come and return what was found.

        Shape: `count` gets each that is new, and what it shows to be missing or not to be missing any more.
        """
        found = Findings()
        for sample in samples:
            epoch = sample.epoch
            run: _Run | None = self
            if epoch > self.epoch:
                if self.epoch >= 0:
                    found.epochs += 1
                    self._before = _Run(self.epoch, self.highest, self.lost, self.gaps)
                self.epoch, self.highest, self.lost, self.gaps = epoch, -1, 0, None
            elif epoch < self.epoch:
                run = self._before
            if run is not None and run.epoch == epoch:
                _follow(run, sample, count)
            found.clashes += self._clashes(sample)
        return found

    def interrupt(self) -> None:
        """Nobody knows what passed unseen: the next sample is a new beginning."""
        self.highest = -1
        if self._before is not None:
            self._before.highest = -1

    def _clashes(self, sample: Sample) -> bool:
        """Whether another sample has its row. Only the newest row is remembered: times rise with seq."""
        row = sample.row_time_ns
        if row > self._newest_row:
            self._newest_row = row
            self._newest_epoch = self.epoch if sample.epoch == self.epoch else sample.epoch
            self._newest_seq = sample.seq
        named = (self._newest_epoch, self._newest_seq)
        return row == self._newest_row and named != (sample.epoch, sample.seq)


def _follow(run: _Run, sample: Sample, count: Count) -> None:
    seq, time_ms = sample.seq, sample.time_ms
    if seq <= run.highest:
        gap = next((one for one in run.gaps or () if one.first <= seq <= one.last), None)
        if gap is not None:
            _fill(run, gap, seq)
            count(gap.shown_ms, 0, -1)
            count(time_ms, 1, 0)
        return
    skipped = seq - run.highest - 1 if run.highest >= 0 else 0
    if skipped:
        gaps = run.gaps = run.gaps if run.gaps is not None else []
        gaps.append(_Gap(run.highest + 1, seq - 1, time_ms))
        if len(gaps) > MAX_GAPS:
            oldest = gaps.pop(0)
            run.lost += oldest.last - oldest.first + 1
    run.highest = seq
    count(time_ms, 1, skipped)


def _fill(run: _Run, gap: _Gap, seq: int) -> None:
    gaps = run.gaps
    assert gaps is not None
    if gap.first == gap.last:
        gaps.remove(gap)
        if not gaps:
            run.gaps = None
    elif seq == gap.first:
        gap.first += 1
    elif seq == gap.last:
        gap.last -= 1
    elif len(gaps) < MAX_GAPS:
        gaps.insert(gaps.index(gap) + 1, _Gap(seq + 1, gap.last, gap.shown_ms))
        gap.last = seq - 1
    else:  # no room for two: what lies before is counted only
        run.lost += seq - gap.first
        gap.first = seq + 1
