"""What tests do to outboxes: kill them, cut their power, and look at what is left."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from edge_agent.clock import Clock
from edge_agent.outbox import Outbox, OutboxSettings, Taken, Waiting
from edge_agent.outbox import outbox as outbox_module
from edge_agent.outbox.disk import Disk
from exchange.delivery import Key


def taken(device: str, at_ms: int | None, boot_ms: int = 0, **metrics: float) -> Taken:
    return Taken("air", device, at_ms, dict(metrics) or {"pm2_5": 1.5}, "", boot_ms)


def key(waiting: Waiting) -> Key:
    return Key(waiting.device, waiting.sample.epoch, waiting.sample.seq)


def keys(waiting: list[Waiting]) -> list[Key]:
    return [key(one) for one in waiting]


class CutDisk(Disk):
    """Remembers what a power cut would leave: what was synced, and of a folder what was synced with it."""

    def __init__(self) -> None:
        super().__init__()
        self.durable: dict[Path, bytes] = {}

    def append(self, path: Path, data: bytes, at: int, *, is_new: bool) -> None:
        super().append(path, data, at, is_new=is_new)
        if is_new or path in self.durable:
            self.durable[path] = path.read_bytes()

    def replace(self, path: Path, data: bytes) -> None:
        super().replace(path, data)
        self.durable[path] = data

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
        self._durable: dict[Path, bytes] = {}

    async def start(self) -> Outbox:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(outbox_module, "Disk", CutDisk)
            self.outbox = Outbox(self.path, self.settings, self.clock, stage_folder=self.stages)
        self._disk.durable = self._durable
        await self.outbox.open()
        return self.outbox

    @property
    def _disk(self) -> CutDisk:
        assert isinstance(self.outbox._disk, CutDisk)
        return self.outbox._disk

    async def kill(self) -> None:
        """End the agent as kill -9 does: between two calls, nothing is closed."""
        assert self.outbox._tending is not None
        self.outbox._tending.cancel()
        await asyncio.wait([self.outbox._tending])
        self.outbox._thread.shutdown()
        assert self.outbox._lock is not None
        os.close(self.outbox._lock)

    async def cut(self, clock: Clock) -> None:
        """Cut the power and boot again: what was not synced is gone, the stage is."""
        await self.kill()
        for stage in self.stages.iterdir():
            stage.unlink()
        for path in self.path.parent.rglob("*"):
            if path.is_file():
                path.unlink()
        for path, data in self._durable.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        self.clock = clock
