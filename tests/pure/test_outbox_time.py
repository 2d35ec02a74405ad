"""Samples that were taken before the clock was known: they wait, are named once, and their time never changes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from edge_agent.clock import KNOWN_FROM_MS
from edge_agent.intake import Intake
from edge_agent.outbox import Outbox, OutboxSettings, Taken, Waiting
from edge_agent.outbox.outbox import SPILL_AFTER_MS
from tests.outboxes import Machine, key, taken
from tests.stepped_time import T0_MS, SteppedTime

DEADLINE_S = 20.0
AWAY_MS = -400 * 86_400_000  # what a clock without a battery says


@pytest.fixture
def time() -> SteppedTime:
    """A machine that has just booted and does not know the time."""
    time = SteppedTime()
    time.synchronised, time.wrong_ms = False, AWAY_MS
    return time


@pytest.fixture(params=["memory", "disk"])
def machine(tmp_path: Path, time: SteppedTime, request: pytest.FixtureRequest) -> Machine:
    settings = OutboxSettings(stage=request.param)
    return Machine(tmp_path, time.clock(by_kernel=True), settings=settings)


def learn(time: SteppedTime) -> None:
    """Let the time be known."""
    time.synchronised, time.wrong_ms = True, 0


async def wait_for_the_clock(outbox: Outbox, time: SteppedTime, count: int = 5) -> None:
    for number in range(count):
        reading = taken("a", None, time.boot_ms(), pm2_5=float(number))
        assert await outbox.take([reading]) == []
        time.step(1)
        await outbox.tend()
    assert (outbox.depth, outbox.undated) == (count, count)
    assert await outbox.after(0, 10) == []
    assert await outbox.count(excluding_domain="gateway") == 0


def check_dated(waiting: list[Waiting], count: int = 5) -> None:
    assert [one.sample.time_ms for one in waiting] == [T0_MS + 1000 * n for n in range(count)]
    assert [one.sample.metrics["pm2_5"] for one in waiting] == list(range(count))
    assert [one.sample.seq for one in waiting] == list(range(count))
    assert {one.sample.epoch for one in waiting} == {T0_MS}
    assert {one.sample.quality for one in waiting} == {""}
    assert [one.id for one in waiting] == sorted(one.id for one in waiting)


async def test_they_get_their_true_time_once_it_is_known(
    machine: Machine, time: SteppedTime
) -> None:
    outbox = await machine.start()
    await wait_for_the_clock(outbox, time)
    learn(time)
    waiting = await outbox.take([taken("a", None, time.boot_ms(), pm2_5=5.0)])
    check_dated(waiting, 6)
    assert (outbox.undated, outbox.depth) == (0, 6)
    assert await outbox.after(0, 10) == waiting
    assert not (machine.path / "undated").exists()
    await outbox.close()


async def test_an_agent_that_is_killed_meanwhile_dates_them_after_its_return(
    machine: Machine, time: SteppedTime
) -> None:
    outbox = await machine.start()
    await wait_for_the_clock(outbox, time)
    await machine.kill()
    time.step(100)
    outbox = await machine.start()
    assert outbox.undated == 5
    learn(time)
    waiting = await outbox.take([])
    check_dated(waiting)
    await machine.kill()
    outbox = await machine.start()
    assert await outbox.after(0, 10) == waiting, "named and dated once"
    assert outbox.undated == 0
    await outbox.close()


async def test_an_agent_that_is_stopped_meanwhile_dates_them_after_its_return(
    machine: Machine, time: SteppedTime
) -> None:
    outbox = await machine.start()
    await wait_for_the_clock(outbox, time)
    await outbox.close()
    learn(time)
    machine.clock = time.clock(by_kernel=True)
    outbox = await machine.start()
    check_dated(await outbox.take([]))
    await outbox.close()


async def test_those_of_an_earlier_boot_go_out_marked(machine: Machine, time: SteppedTime) -> None:
    outbox = await machine.start()
    await outbox.take([Taken("air", "a", None, {"pm2_5": 1.0}, "bad:fault(pm10)", time.boot_ms())])
    await wait_for_the_clock_more(outbox, time)
    after = time.rebooted("boot-2")
    await machine.cut(after.clock(by_kernel=True))
    outbox = await machine.start()
    waiting = await outbox.take([])
    assert [one.sample.quality for one in waiting] == [
        "bad:fault(pm10);uncertain:clock",
        "uncertain:clock",
    ]
    times = [one.sample.time_ms for one in waiting]
    assert times == sorted(set(times))
    assert times[0] >= KNOWN_FROM_MS
    (now,) = await outbox.take([taken("a", None, after.boot_ms())])
    assert (now.sample.quality, now.sample.time_ms) == ("", after.true_ms)
    await outbox.close()


async def test_it_says_when_something_is_due_again(tmp_path: Path, time: SteppedTime) -> None:
    learn(time)
    outbox = await Machine(tmp_path, time.clock(by_kernel=True)).start(tends=False)
    rest_s = await outbox.tend()
    assert rest_s == SPILL_AFTER_MS / 1000
    time.step(1)
    [one] = await outbox.take([taken("a", None, time.boot_ms())])
    time.step(0.5)
    assert await outbox.tend() == rest_s - 0.5
    await outbox.take([taken("a", None, time.boot_ms())])
    assert await outbox.tend() == rest_s - 0.5, "the oldest counts"
    outbox.forget([key(one)])
    assert await outbox.tend() == rest_s
    time.step(rest_s)
    assert await outbox.tend() == rest_s, "it is on the disk"
    await outbox.close()


async def wait_for_the_clock_more(outbox: Outbox, time: SteppedTime) -> None:
    time.step(1)
    await outbox.take([taken("a", None, time.boot_ms())])
    time.step(3)
    await outbox.tend()  # to the disk: a power cut takes nothing of it


async def test_patience_ends_and_a_dead_clock_delays_nothing_further(
    machine: Machine, time: SteppedTime
) -> None:
    outbox = await machine.start()
    await wait_for_the_clock(outbox, time)
    time.step(300)
    waiting = await outbox.take([taken("a", None, time.boot_ms())])
    assert len(waiting) == 6
    assert {one.sample.quality for one in waiting} == {"uncertain:clock"}
    assert waiting[0].sample.time_ms >= KNOWN_FROM_MS
    time.step(1)
    (more,) = await outbox.take([taken("a", None, time.boot_ms())])
    assert more.sample.quality == "uncertain:clock", "at once"
    assert more.sample.time_ms > waiting[-1].sample.time_ms
    learn(time)
    (right,) = await outbox.take([taken("a", None, time.boot_ms())])
    assert (right.sample.quality, right.sample.time_ms) == ("", time.true_ms)
    assert [one.sample for one in await outbox.after(0, 10)] == [
        one.sample for one in [*waiting, more, right]
    ], "a time that was given stays, also a wrong one"
    await outbox.close()


async def test_what_is_guessed_is_not_before_what_was_known(
    machine: Machine, time: SteppedTime
) -> None:
    learn(time)
    outbox = await machine.start()
    (known,) = await outbox.take([taken("a", None, time.boot_ms())])
    later = time.rebooted("boot-2")
    later.synchronised, later.wrong_ms = False, AWAY_MS
    await machine.cut(later.clock(by_kernel=True))
    outbox = await machine.start()
    await outbox.take([taken("a", None, later.boot_ms())])
    later.step(301)
    guessed, _ = await outbox.take([taken("a", None, later.boot_ms())])
    assert guessed.sample.time_ms > known.sample.time_ms
    assert guessed.sample.time_ms >= KNOWN_FROM_MS
    assert guessed.sample.epoch >= known.sample.epoch
    await outbox.close()


async def test_a_clock_that_is_set_back_begins_a_new_epoch_and_changes_nothing_that_was(
    machine: Machine, time: SteppedTime
) -> None:
    learn(time)
    outbox = await machine.start()
    before = await outbox.take([taken("a", None, time.boot_ms())])
    time.step(60)
    time.wrong_ms = -3_600_000  # the time server was wrong by an hour, and so was everything so far
    (after,) = await outbox.take([taken("a", None, time.boot_ms())])
    assert after.sample.time_ms == time.wall_ms() < before[0].sample.time_ms
    assert (after.sample.epoch, after.sample.seq) == (before[0].sample.epoch + 1, 0)
    assert await outbox.after(0, 10) == [*before, after]
    assert machine.clock.jumped == 2, "when it was learnt, and now"
    await outbox.close()


async def test_a_disk_that_cannot_remove_their_file_names_nobody_twice(
    machine: Machine, time: SteppedTime
) -> None:
    outbox = await machine.start()
    await wait_for_the_clock(outbox, time)
    with pytest.MonkeyPatch.context() as patch:

        def broken(*_: object) -> None:
            raise OSError(5, "Input/output error")

        patch.setattr(machine._disk, "remove", broken)
        learn(time)
        waiting = await outbox.take([])
        outbox.forget([key(one) for one in waiting[:3]])
        assert await outbox.find([]) == []
        await machine.kill()
    assert (machine.path / "undated").exists()
    outbox = await machine.start()
    assert await outbox.after(0, 10) == waiting[3:]
    assert outbox.undated == 0
    await outbox.close()


# ------------------------------------------------------------------------------------------------------- intake


@asynccontextmanager
async def running(intake: Intake) -> AsyncIterator[None]:
    task = asyncio.ensure_future(intake.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_the_intake_hands_on_what_has_waited_without_a_further_reading(
    machine: Machine, time: SteppedTime
) -> None:
    outbox = await machine.start()
    heard: list[Waiting] = []
    intake = Intake(outbox, heard.extend, machine.clock)
    async with running(intake):
        for number in range(5):
            await intake.put("air", "a", {"pm2_5": float(number)})
            time.step(1)
        await intake.drained()
        assert heard == []
        learn(time)
        async with asyncio.timeout(DEADLINE_S):
            while len(heard) < 5:  # noqa: ASYNC110 - what is waited for has no event
                await asyncio.sleep(0.01)
    check_dated(heard)
    await outbox.close()
