"""Files that are there whole or not at all, and secrets that are their owner's alone from the first byte."""

from __future__ import annotations

import os
from pathlib import Path


def write_private(path: Path, data: bytes | str) -> None:
    """Write a file that its owner alone may read."""
    _write(path, data, 0o600)


def write_public(path: Path, data: bytes | str) -> None:
    """Write a file that holds no secret; the folder above says who gets to it."""
    _write(path, data, 0o644)


def make_folder(path: Path) -> Path:
    """Make a folder, and those above, for their owner alone; return it."""
    for folder in (*reversed(path.parents), path):
        if not folder.exists():
            folder.mkdir(mode=0o700, exist_ok=True)
    return path


def _write(path: Path, data: bytes | str, mode: int) -> None:
    data = data.encode() if isinstance(data, str) else data
    make_folder(path.parent)
    half = path.with_name(f".{path.name}.half")
    half.unlink(missing_ok=True)  # of a command that was killed
    with os.fdopen(os.open(half, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        os.fchmod(file.fileno(), mode)  # whatever the umask
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    half.replace(path)
