"""What tests do to outboxes: kill them, cut their power, and look at what is left."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path
from typing import Any

import pytest

from edge_agent.clock import Clock
from edge_agent.outbox import Outbox, OutboxSettings, Taken, Waiting
from edge_agent.outbox import disk as disk_module
from edge_agent.outbox import outbox as outbox_module
from edge_agent.outbox.disk import Disk
from exchange.delivery import Key


def taken(device: str, at_ms: int | None, boot_ms: int = 0, **metrics: float) -> Taken:
    return Taken("air", device, at_ms, dict(metrics) or {"pm2_5": 1.5}, "", boot_ms)


def key(waiting: Waiting) -> Key:
    return Key(waiting.device, waiting.sample.epoch, waiting.sample.seq)


def keys(waiting: list[Waiting]) -> list[Key]:
    return [key(one) for one in waiting]


def fill(disk: Path) -> Path:
    """Take all the room that is left."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return ballast


class CutDisk(Disk):
    """Remembers what a power cut would leave: what was synced, and of a folder what was synced with it."""

    def __init__(self) -> None:
        super().__init__()
        self.durable: dict[Path, bytes] = {}
        self.renamed: dict[Path, bytes] = {}
        """What was synced under another name: its own is durable with the folder."""

    def append(self, path: Path, data: bytes, at: int, *, is_new: bool) -> None:
        super().append(path, data, at, is_new=is_new)
        if is_new or path in self.durable:
            self.durable[path] = path.read_bytes()

    def replace(self, path: Path, data: bytes) -> None:
        self.renamed[path] = data
        super().replace(path, data)

    def overwrite(self, path: Path, data: bytes, at: int) -> None:
        super().overwrite(path, data, at)
        self.durable[path] = path.read_bytes()

    def settle(self, path: Path, size: int) -> None:
        super().settle(path, size)
        self.durable[path] = path.read_bytes()

    def sync_folder(self, folder: Path) -> None:
        super().sync_folder(folder)
        for path in [path for path in self.durable if path.parent == folder]:
            if not path.exists():
                del self.durable[path]
        for path in [path for path in self.renamed if path.parent == folder]:
            data = self.renamed.pop(path)
            if path.exists() and path.read_bytes() == data:
                self.durable[path] = data


class Killed(BaseException):
    """The process is dead: nothing that it would still do happens. No Exception, so that nothing handles it."""


class FragileSystem:
    """The operating system as the outbox's files meet it: any call may be the process's last, or meet a full disk.

    Shape: `left` calls are made until the process dies in one, half done; None when it does not.
    """

    BLOCK = 256

    def __init__(self, disk: Path) -> None:
        self.left: int | None = None
        self.is_full = False
        self.is_dead = False
        self._disk = disk
        self._on_disk: dict[int, bool] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def _last(self) -> bool:
        if self.is_dead:
            raise Killed
        if self.left is not None:
            self.left -= 1
            self.is_dead = self.left < 0
        return self.is_dead

    def open(self, path: Path, flags: int, mode: int = 0o777) -> int:
        is_last = self._last()
        if is_last and not flags & os.O_CREAT:
            raise Killed
        file = os.open(path, flags, mode)
        self._on_disk[file] = path.is_relative_to(self._disk)
        if is_last:
            os.close(file)
            raise Killed
        return file

    def pwrite(self, file: int, data: memoryview, at: int) -> int:
        if self._last():
            os.pwrite(file, data[: len(data) // 2], at)
            raise Killed
        if self.is_full and self._on_disk[file]:
            room = -(-os.fstat(file).st_size // self.BLOCK) * self.BLOCK - at
            if room <= 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            data = data[:room]
        return os.pwrite(file, data, at)

    def ftruncate(self, file: int, size: int) -> None:
        if self._last():
            raise Killed
        os.ftruncate(file, size)

    def fsync(self, _: int) -> None:
        if self._last():
            raise Killed

    fdatasync = fsync


class Machine:
    """A gateway whose agent can be killed and whose power can be cut. One outbox at a time."""

    def __init__(
        self,
        folder: Path,
        clock: Clock,
        *,
        settings: OutboxSettings | None = None,
    ) -> None:
        self.path = folder / "state" / "outbox"
        self.stages = folder / "run"
        self.stages.mkdir()
        self.clock = clock
        self.settings = settings or OutboxSettings()
        self.segment_bytes: int | None = None
        self.system = FragileSystem(self.path.parent)
        self._durable: dict[Path, bytes] = {}
        self._renamed: dict[Path, bytes] = {}

    async def start(self, *, tends: bool = True) -> Outbox:
        """Open it; `tends` says whether it tends itself, which may be at any moment."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(outbox_module, "Disk", CutDisk)
            self.outbox = Outbox(self.path, self.settings, self.clock, stage_folder=self.stages)
        self._disk.durable, self._disk.renamed = self._durable, self._renamed
        if self.segment_bytes is not None:
            self.outbox._segments._segment_bytes = self.segment_bytes
        await self.outbox.open()
        if not tends and (tending := self.outbox._tending) is not None:
            tending.cancel()  # before its first turn
            self.outbox._tending = None
        return self.outbox

    @property
    def _disk(self) -> CutDisk:
        assert isinstance(self.outbox._disk, CutDisk)
        return self.outbox._disk

    def fragile(self, patch: pytest.MonkeyPatch) -> None:
        """Let calls of the operating system fail, as `system` says."""
        patch.setattr(disk_module, "os", self.system)

    async def kill(self) -> None:
        """End the agent as kill -9 does: nothing is closed."""
        if self.outbox._tending is not None:
            self.outbox._tending.cancel()
            await asyncio.wait([self.outbox._tending])
        self.outbox._thread.shutdown()
        if self.outbox._lock is not None:
            os.close(self.outbox._lock)
            self.outbox._lock = None
        self.system.left, self.system.is_dead = None, False

    async def cut(self, clock: Clock) -> None:
        """Cut the power and boot again: what was not synced is gone, the stage is."""
        await self.kill()
        self._renamed.clear()
        for stage in self.stages.iterdir():
            stage.unlink()
        for path in self.path.parent.rglob("*"):
            if path.is_file():
                path.unlink()
        for path, data in self._durable.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        self.clock = clock
