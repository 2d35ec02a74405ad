"""The few ways in which the outbox touches files, each saying when what it did survives a power cut; and its count.

`written` counts what the disk gets, in blocks of 4 KiB where they are forced out, without the file system's own notes.
"""

from __future__ import annotations

import os
from pathlib import Path

BLOCK = 4096


class Disk:
    """One outbox's hand on its files."""

    def __init__(self) -> None:
        """Nothing is written yet."""
        self.written = 0

    def append(self, path: Path, data: bytes, at: int, *, is_new: bool) -> None:
        """Write behind the first `at` bytes of a file; durable on return. Raises: OSError, nothing written."""
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o640)
        try:
            try:
                if os.fstat(file).st_size > at:  # what an attempt left that could not be undone
                    os.ftruncate(file, at)
                _write(file, data, at)
                os.fdatasync(file)
                if is_new:
                    self.sync_folder(path.parent)
            except OSError:
                os.ftruncate(file, at)
                if is_new:
                    path.unlink()
                raise
        finally:
            os.close(file)
        self.written += BLOCK * ((at + len(data) - 1) // BLOCK - at // BLOCK + 1)

    def note(self, path: Path, data: bytes, *, unit: int = 1) -> None:
        """Write at a file's end; it survives the process, and the machine some seconds later. Raises: OSError.

        `unit` is the length of its records: half a one, which a killed process left, is written over.
        """
        file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o640)
        try:
            size = os.fstat(file).st_size // unit * unit
            try:
                _write(file, data, size)
            except OSError:
                os.ftruncate(file, size)
                raise
        finally:
            os.close(file)
        self.written += len(data)

    def replace(self, path: Path, data: bytes) -> None:
        """Put a file in the place of another; it is durable on return. Raises: OSError; then either is."""
        new = path.with_name(f"{path.name}.new")
        file = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o640)
        try:
            _write(file, data, 0)
            os.fsync(file)
        except OSError:
            new.unlink()  # it may hold the last of the room
            raise
        finally:
            os.close(file)
        new.replace(path)
        self.sync_folder(path.parent)
        self.written += BLOCK * -(-len(data) // BLOCK)

    def overwrite(self, path: Path, data: bytes, at: int) -> None:
        """Write over a part of a file, where no new room is needed; durable on return. Raises: OSError."""
        file = os.open(path, os.O_WRONLY)
        try:
            _write(file, data, at)
            os.fdatasync(file)
        finally:
            os.close(file)
        self.written += BLOCK * ((at + len(data) - 1) // BLOCK - at // BLOCK + 1)

    def remove(self, *paths: Path) -> None:
        """Remove files, in this order, that may come back after a power cut. Raises: OSError."""
        for path in paths:
            path.unlink(missing_ok=True)

    def settle(self, path: Path, size: int) -> None:
        """End a file there, durably: what a killed process wrote may not be on disk yet. Raises: OSError."""
        file = os.open(path, os.O_RDWR)
        try:
            os.ftruncate(file, size)
            os.fsync(file)
        finally:
            os.close(file)

    def make_folder(self, folder: Path) -> None:
        """Create a folder with those above it, durably. Raises: OSError."""
        if not folder.is_dir():
            self.make_folder(folder.parent)
            folder.mkdir(exist_ok=True)
            self.sync_folder(folder.parent)

    def sync_folder(self, folder: Path) -> None:
        """Make what was created, renamed and removed in a folder durable. Raises: OSError."""
        file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(file)
        finally:
            os.close(file)


def _write(file: int, data: bytes, at: int) -> None:
    """Write all of it: a disk that becomes full takes a part without a word."""
    view = memoryview(data)
    while view:
        done = os.pwrite(file, view, at)
        view, at = view[done:], at + done
