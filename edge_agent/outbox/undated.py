"""Samples that were taken before the clock was known, on disk: one small file, gone once all of them have a name."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from edge_agent.outbox.disk import Disk
from edge_agent.outbox.records import Undated, framed, frames

_NUMBER = 0


class UndatedFile:
    """The file. Whatever writes may raise OSError; then nothing has changed."""

    def __init__(self, folder: Path, disk: Disk) -> None:
        """Nothing is read yet."""
        self.path = folder / "undated"
        self.torn = False
        self.last_id = 0
        """Of the newest sample in it; 0 when it is not there."""
        self._disk = disk
        self._size = 0

    def read(self) -> list[Undated]:
        """Return what is in it, at the start."""
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return []
        found = []
        for frame in frames(data, _NUMBER):
            self.torn |= frame.start != self._size
            self._size = frame.end
            if isinstance(frame.record, Undated):
                found.append(frame.record)
                self.last_id = frame.record.id
        self.torn |= self._size != len(data)
        return found

    def settle(self) -> None:
        """Make what was found at the start durable: a killed process may have been about to."""
        if self._size:
            self._disk.settle(self.path, self._size)

    def append(self, samples: Iterable[Undated]) -> None:
        """Make samples durable."""
        new = list(samples)
        data = b"".join(framed(sample, _NUMBER) for sample in new)
        self._disk.append(self.path, data, self._size, is_new=not self._size)
        self._size += len(data)
        self.last_id = new[-1].id

    def replace(self, samples: Iterable[Undated]) -> None:
        """Leave only these in it, the file itself away when there are none."""
        left = list(samples)
        if left:
            data = b"".join(framed(sample, _NUMBER) for sample in left)
            self._disk.replace(self.path, data)
            self._size, self.last_id = len(data), left[-1].id
        elif self._size:
            self._disk.remove(self.path)
            self._disk.sync_folder(self.path.parent)
            self._size, self.last_id = 0, 0
