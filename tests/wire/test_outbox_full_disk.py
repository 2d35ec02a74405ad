"""A disk that is really full: a small file system of its own. Only root may mount one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from edge_agent.outbox import Outbox, OutboxBlocked, OutboxSettings, Waiting
from tests.outboxes import keys, taken
from tests.stepped_time import SteppedTime

SIZE = "256k"


async def _done(*command: str) -> None:
    process = await asyncio.create_subprocess_exec(*command)
    assert await process.wait() == 0, command


@pytest.fixture
async def disk(tmp_path: Path) -> AsyncIterator[Path]:
    folder = tmp_path / "disk"
    await asyncio.to_thread(folder.mkdir)
    await _done("mount", "-t", "tmpfs", "-o", f"size={SIZE}", "outbox_test", str(folder))
    try:
        yield folder
    finally:
        await _done("umount", "-l", str(folder))


def fill(disk: Path) -> Path:
    """Take all the room that is left."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return ballast


@pytest.mark.parametrize("stage", ["memory", "disk"])
async def test_nothing_that_was_taken_is_lost_and_it_goes_on_when_there_is_room(
    disk: Path, tmp_path: Path, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge_agent.outbox.outbox.STAGE_MOST_BYTES", 20_000)
    time = SteppedTime()
    settings = OutboxSettings(stage="disk" if stage == "disk" else "memory")
    outbox = Outbox(disk / "outbox", settings, time.clock(), stage_folder=tmp_path)
    await outbox.open()
    waiting: list[Waiting] = await outbox.take([taken("a", None, time.boot_ms())] * 20)
    ballast = await asyncio.to_thread(fill, disk)

    async def take_until_blocked() -> None:
        for _ in range(5000):
            time.step(1)
            waiting.extend(await outbox.take([taken("a", None, time.boot_ms())] * 20))

    with pytest.raises(OutboxBlocked, match="No space left"):
        await take_until_blocked()
    assert await outbox.after(0, 100_000) == waiting
    assert outbox.depth == len(waiting)
    await asyncio.to_thread(ballast.unlink)
    time.step(5)
    waiting += await outbox.take([taken("a", None, time.boot_ms())])
    assert await outbox.after(0, 100_000) == waiting
    assert [one.sample.seq for one in waiting] == list(range(len(waiting))), "no name was used up"
    await outbox.close()
    outbox = Outbox(disk / "outbox", settings, time.clock(), stage_folder=tmp_path)
    await outbox.open()
    assert await outbox.after(0, 100_000) == waiting
    await asyncio.to_thread(fill, disk)
    await outbox.forget(keys(waiting))
    assert outbox.depth == 0, "what is full can be emptied"
    await outbox.close()


async def test_an_outbox_on_a_full_disk_opens_and_can_be_emptied(
    disk: Path, tmp_path: Path
) -> None:
    time = SteppedTime()
    settings = OutboxSettings(stage="disk")
    outbox = Outbox(disk / "outbox", settings, time.clock())
    await outbox.open()
    waiting = await outbox.take([taken("a", None, time.boot_ms())] * 20)
    await outbox.close()
    ballast = await asyncio.to_thread(fill, disk)
    outbox = Outbox(disk / "outbox", settings, time.clock())
    await outbox.open()
    assert await outbox.after(0, 100) == waiting
    with pytest.raises(OutboxBlocked, match="No space left"):
        await outbox.take([taken("a", None, time.boot_ms())])
    await outbox.forget(keys(waiting))
    await asyncio.to_thread(ballast.unlink)
    (one,) = await outbox.take([taken("a", None, time.boot_ms())])
    assert one.sample.seq == 20
    await outbox.close()
