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
            _give_to_owner(folder, folder.parent)
    return path


def _write(path: Path, data: bytes | str, mode: int) -> None:
    data = data.encode() if isinstance(data, str) else data
    make_folder(path.parent)
    half = path.with_name(f".{path.name}.half")
    half.unlink(missing_ok=True)  # of a command that was killed
    try:
        with os.fdopen(os.open(half, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            os.fchmod(file.fileno(), mode)  # whatever the umask
            _give_to_owner(file.fileno(), path.parent)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        half.replace(path)
    except OSError as error:
        half.unlink(missing_ok=True)  # it may be a key
        raise OSError(error.errno, error.strerror, str(path)) from error


def _give_to_owner(made: Path | int, folder: Path) -> None:
    """Have what root makes in somebody's private folder belong to them: they could not read it else."""
    about = folder.stat()
    if os.geteuid() == 0 and about.st_uid != 0 and not about.st_mode & 0o077:
        os.chown(made, about.st_uid, about.st_gid)
