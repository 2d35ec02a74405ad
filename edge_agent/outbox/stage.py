"""The volatile stage: a checksummed log in memory-backed files, so that kill -9 loses nothing and flash is spared.

A power cut takes it away whole. It is believed only in the boot in which it was begun, and only when the outbox's book
names it: one that an earlier run left behind is nobody's.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from edge_agent.outbox.disk import Disk
from edge_agent.outbox.records import Record, StageHead, frame_at, framed, framed_body, frames

SUFFIX = ".stage"
_NUMBER = 0


class Stage:
    """One outbox's stage. Every method may raise OSError."""

    def __init__(self, folder: Path, outbox: Path) -> None:
        """`folder` is on a volatile file system; `outbox` is whose stage it is."""
        name = hashlib.sha256(os.fsencode(outbox.absolute())).hexdigest()[:16]
        self.path = folder / f"{name}{SUFFIX}"
        self.size = 0
        self._begun_size = 0
        self._outbox = str(outbox.absolute())
        self._files = Disk()  # its count is not flash

    @property
    def grown(self) -> int:
        """Bytes that were added since it was begun."""
        return self.size - self._begun_size

    def recover(self, token: str, boot_id: str) -> list[Record] | None:
        """Return what the stage of this name and this boot holds, None when there is no such stage."""
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return None
        first = frame_at(data, 0, _NUMBER)
        if first is None or first.record != StageHead(self._outbox, token, boot_id):
            return None
        records, end = [], first.end
        for frame in frames(data[first.end :], _NUMBER):
            if first.end + frame.start != end:
                return None  # a hole: what is behind it cannot be relied on
            records.append(frame.record)
            end = first.end + frame.end
        os.truncate(self.path, end)  # what was being written when the process died
        self.size = end
        return records

    def begin(self, token: str, boot_id: str, records: Iterable[Record]) -> None:
        """Put a stage with these records into the place of the old one, at once."""
        data = framed(StageHead(self._outbox, token, boot_id), _NUMBER)
        data += b"".join(framed(record, _NUMBER) for record in records)
        new = self.path.with_suffix(".new")
        new.unlink(missing_ok=True)
        self._files.note(new, data)
        new.replace(self.path)
        self.size = self._begun_size = len(data)

    def append(self, bodies: Iterable[bytes]) -> None:
        """Add encoded records: all of them, or none."""
        data = b"".join(framed_body(body, _NUMBER) for body in bodies)
        self._files.note(self.path, data)
        self.size += len(data)

    def remove(self) -> None:
        """Nothing is in it any more."""
        self.path.unlink(missing_ok=True)


def volatile_folder() -> Path | None:
    """Return where stages can be: what the service manager gives us to run in, or the shared memory; None: nowhere.

    What others left behind there stays: it may be of an outbox that lives and that we do not see.
    """
    given = os.environ.get("RUNTIME_DIRECTORY", "").split(":")[0]
    if given and _is_volatile(Path(given)):
        return Path(given)
    shared = Path("/dev/shm")  # noqa: S108 - looked at before it is used: see _is_ours
    if not _is_volatile(shared):
        return None
    folder = shared / f"onestreet-{os.getuid()}"
    with suppress(OSError):
        folder.mkdir(mode=0o700, exist_ok=True)
        if _is_ours(folder):
            return folder
    return None


def _is_volatile(path: Path) -> bool:
    """Say whether a folder is there and on a file system in memory."""
    try:
        there = path.resolve(strict=True)
        mounts = Path("/proc/self/mounts").read_text("utf-8").splitlines()
    except OSError:
        return False
    kinds = {
        Path(line.split()[1].encode().decode("unicode_escape")): line.split()[2] for line in mounts
    }
    mount = next(one for one in (there, *there.parents) if one in kinds or one == one.parent)
    return kinds.get(mount) in {"tmpfs", "ramfs"} and os.access(there, os.W_OK | os.X_OK)


def _is_ours(folder: Path) -> bool:
    """Anybody may write to shared memory: a folder or a link that somebody else put there is not used."""
    found = folder.lstat()
    is_private = not found.st_mode & (stat.S_IRWXG | stat.S_IRWXO)
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and is_private
