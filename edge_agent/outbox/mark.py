"""The mark: the least that must be on disk before an epoch is used, in a place that was taken up beforehand.

A disk that is full takes no new book. The mark then says in its stead that a run has begun since, what its stage is
called, and which epoch none of its own is later than. It is written over in place, two blocks in turn: whatever a
power cut leaves of one of them, the one before is whole. A book that is written later makes it void.
"""

from __future__ import annotations

from pathlib import Path

from edge_agent.outbox.disk import BLOCK, Disk
from edge_agent.outbox.records import Mark, frame_at, framed

NAME = "mark"
_PLACES = 2
_NUMBER = 0


class MarkFile:
    """The file. Whatever writes may raise OSError."""

    def __init__(self, folder: Path, disk: Disk) -> None:
        """Nothing is read yet."""
        self.path = folder / NAME
        self._disk = disk
        self._place = 0

    def read(self) -> list[Mark]:
        """Return the marks that are whole, the newest last."""
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return []
        found = []
        for place in range(_PLACES):
            frame = frame_at(data, place * BLOCK, _NUMBER)
            if frame is not None and isinstance(frame.record, Mark):
                found.append((frame.record.number, place, frame.record))
        if found:
            self._place = (max(found)[1] + 1) % _PLACES
        return [mark for _, _, mark in sorted(found, key=lambda one: one[:2])]

    def settle(self) -> None:
        """Make what was found at the start durable: a killed process may have been about to."""
        if self.path.exists():
            self._disk.settle(self.path, self.path.stat().st_size)

    def prepare(self) -> None:
        """Take up the room, unless that was done."""
        if not self.path.exists() or self.path.stat().st_size < _PLACES * BLOCK:
            self._disk.append(self.path, bytes(_PLACES * BLOCK), 0, is_new=True)

    def write(self, mark: Mark) -> None:
        """Put a mark over the older one; durable on return."""
        self._disk.overwrite(self.path, framed(mark, _NUMBER), self._place * BLOCK)
        self._place = (self._place + 1) % _PLACES
