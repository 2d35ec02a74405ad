"""A disk that is really full: a small file system of its own. Only root may mount one."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from edge_agent.outbox import Outbox, OutboxBlocked, OutboxSettings, Waiting
from exchange.delivery import Key
from tests.agents import until, write_config
from tests.brokers import Mosquitto
from tests.outboxes import Machine, fill, key, keys, taken
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
    outbox.forget(keys(waiting))
    assert outbox.depth == 0, "what is full can be emptied"
    await outbox.close()


@pytest.mark.parametrize("stage", ["memory", "disk"])
async def test_what_fills_the_disk_itself_is_freed_by_receipts(
    disk: Path, tmp_path: Path, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    time = SteppedTime()
    settings = OutboxSettings(stage="disk" if stage == "disk" else "memory")
    outbox = Outbox(disk / "outbox", settings, time.clock(), stage_folder=tmp_path)
    monkeypatch.setattr(outbox._segments, "_segment_bytes", 30_000)
    await outbox.open()
    waiting: list[Waiting] = []
    with pytest.MonkeyPatch.context() as patch, pytest.raises(OutboxBlocked, match="No space left"):
        patch.setattr("edge_agent.outbox.outbox.STAGE_MOST_BYTES", 20_000)
        for _ in range(5000):
            time.step(2)
            waiting += await outbox.take([taken("a", None, time.boot_ms())] * 20)
    for start in range(0, len(waiting), 100):
        outbox.forget(keys(waiting[start : start + 100]))
        await outbox.tend()
    assert outbox.size_bytes <= 32_000, "the newest is left"
    time.step(2)
    more = await outbox.take([taken("a", None, time.boot_ms())])
    time.step(2)
    await outbox.tend()
    await outbox.close()
    outbox = Outbox(disk / "outbox", settings, time.clock(), stage_folder=tmp_path)
    await outbox.open()
    assert await outbox.after(0, 100_000) == more, "what has its receipt does not come back"
    await outbox.close()


async def test_one_sample_without_a_receipt_makes_no_stage_grow_for_ever(
    disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge_agent.outbox.outbox.STAGE_BYTES", 50_000)
    time = SteppedTime()
    outbox = Outbox(disk / "outbox", clock=time.clock(), stage_folder=tmp_path)
    await outbox.open()
    stuck = await outbox.take([taken("a", None, time.boot_ms()), taken("b", None, time.boot_ms())])
    outbox.forget(keys(stuck[1:]))
    await asyncio.to_thread(fill, disk)
    (stage,) = await asyncio.to_thread(lambda: list(tmp_path.glob("*.stage")))
    sizes = []
    for _ in range(100):
        time.step(1)
        waiting = await outbox.take([taken("b", None, time.boot_ms())] * 100)
        outbox.forget(keys(waiting))
        await outbox.tend()
        sizes.append(stage.stat().st_size)
    assert 40_000 < max(sizes) < 70_000
    assert await outbox.after(0, 10) == stuck[:1]
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
        await outbox.take([taken("a", None, time.boot_ms())] * 200)
    outbox.forget(keys(waiting))
    await asyncio.to_thread(ballast.unlink)
    (one,) = await outbox.take([taken("a", None, time.boot_ms())])
    assert one.sample.seq == 20
    await outbox.close()


@pytest.mark.parametrize("clock", ["right", "set back", "unknown"])
async def test_after_a_power_cut_a_full_disk_stops_nothing_and_names_nobody_twice(
    disk: Path, tmp_path: Path, clock: str
) -> None:
    time = SteppedTime()
    machine = Machine(tmp_path, time.clock())
    machine.path = disk / "state" / "outbox"
    outbox = await machine.start()
    named: dict[Key, float] = {}
    number = 0.0

    async def take(*devices: str) -> list[Waiting]:
        nonlocal number
        taken_now = []
        for device in devices:
            number += 1
            time.step(0.01)
            taken_now.append(taken(device, None, time.boot_ms(), pm2_5=number))
        waiting = await outbox.take(taken_now)
        for one in waiting:
            assert key(one) not in named, "a name is given once"
            named[key(one)] = one.sample.metrics["pm2_5"]
        return waiting

    kept = await take("a", "b", "gw")
    time.step(2)
    await outbox.tend()
    for boot in range(2, 5):
        await machine.cut(time.clock())
        ballast = await asyncio.to_thread(fill, disk)
        time = time.rebooted(f"boot-{boot}")
        if clock == "set back":
            time.wrong_ms = -86_400_000 * boot
        if clock == "unknown":
            time.wrong_ms, time.synchronised = -400 * 86_400_000, False
        machine.clock = time.clock(by_kernel=clock == "unknown", wait_s=0)
        outbox = await machine.start()
        there = await outbox.after(0, 100)
        assert there[: len(kept)] == kept, "what is on disk can be sent"
        assert all(named[key(one)] == one.sample.metrics["pm2_5"] for one in there)
        kept = there  # some of what was held may have found room in the last block
        epochs = await outbox.epochs_of(["a", "b", "gw", f"new-{boot}"], time.wall_ms())
        held = await take("a", "b", "gw", f"new-{boot}")
        assert {one.device: one.sample.epoch for one in held} == epochs
        assert await outbox.stating([f"topic-{boot}"]) == []
        await outbox.retired([f"topic-{boot}"])
        await machine.kill()
        outbox = await machine.start()
        held += await take("b", f"newer-{boot}")
        assert await outbox.after(0, 100) == kept + held, "a kill loses nothing of it"
        if boot == 3:  # twice running it stays full until the next cut
            await asyncio.to_thread(ballast.unlink)
            time.step(2)
            await outbox.tend()
            kept += held
        await asyncio.to_thread(ballast.unlink, missing_ok=True)
    await outbox.close()


async def test_the_newest_segment_leaves_a_disk_that_others_filled(
    disk: Path, tmp_path: Path
) -> None:
    time = SteppedTime()
    outbox = Outbox(disk / "outbox", clock=time.clock(), stage_folder=tmp_path)
    await outbox.open()
    waiting = await outbox.take([taken("a", None, time.boot_ms())] * 1000)
    time.step(2)
    await outbox.tend()
    assert outbox.size_bytes > 10_000
    ballast = await asyncio.to_thread(fill, disk)
    outbox.forget(keys(waiting))
    await outbox.tend()
    assert outbox.size_bytes == 0
    await outbox.close()
    outbox = Outbox(disk / "outbox", clock=time.clock(), stage_folder=tmp_path)
    await outbox.open()
    assert outbox.depth == 0
    (more,) = await outbox.take([taken("a", None, time.boot_ms())])
    assert key(more) not in keys(waiting)
    assert more.id > waiting[-1].id
    await asyncio.to_thread(ballast.unlink)
    await outbox.close()


async def test_an_agent_starts_on_a_full_disk_after_a_power_cut_and_connects(
    disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as memory, Mosquitto(tmp_path) as broker:
        monkeypatch.setenv("RUNTIME_DIRECTORY", memory)
        file = write_config(tmp_path, broker, [], [], delivery={"drain_s": 1.0})
        text = await asyncio.to_thread(file.read_text, "utf-8")
        text = text.replace(str(tmp_path / "state"), str(disk / "state"))
        await asyncio.to_thread(file.write_text, text, "utf-8")
        async with agent_process(file, tmp_path / "first") as said:
            await until(lambda: '"connected"' in said())
        for stage in await asyncio.to_thread(lambda: list(Path(memory).glob("*.stage"))):
            await asyncio.to_thread(stage.unlink)
        await asyncio.to_thread(fill, disk)
        async with agent_process(file, tmp_path / "second") as said:
            await until(lambda: '"connected"' in said())
            assert "every device begins a new epoch" in said()
            assert said().count("the disk takes nothing") == 1


@asynccontextmanager
async def agent_process(file: Path, log: Path) -> AsyncIterator[Callable[[], str]]:
    """Run an agent, and kill it; gives what it says."""
    with log.open("wb") as stream:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "edge_agent", str(file)), stderr=stream
        )
    try:
        yield lambda: log.read_text("utf-8")
        assert process.returncode is None, "it has ended"
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
