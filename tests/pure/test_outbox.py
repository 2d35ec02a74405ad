"""The outbox: what was taken is there, under its own name, whatever happens."""

from __future__ import annotations

import asyncio
import errno
import logging
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device_drivers.kit.driver import Reading
from edge_agent import intake as intake_module
from edge_agent.config import Device
from edge_agent.intake import Intake
from edge_agent.outbox import SLEW_MS, Outbox, OutboxBlocked, OutboxSettings, Taken, Waiting
from edge_agent.outbox.segments import Segments
from edge_agent.quality import fitted
from exchange.delivery import Key
from tests.stepped_time import T0_MS, SteppedTime

DEADLINE_S = 20.0


@asynccontextmanager
async def opened(path: Path, stage: str = "memory") -> AsyncIterator[Outbox]:
    settings = OutboxSettings(stage="disk" if stage == "disk" else "memory")
    outbox = Outbox(path, settings, stage_folder=path.parent)
    await outbox.open()
    try:
        yield outbox
    finally:
        await outbox.close()


@pytest.fixture(params=["memory", "disk"])
async def outbox(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Outbox]:
    async with opened(tmp_path / "outbox", request.param) as one:
        yield one


def taken(device: str, at_ms: int, **metrics: float) -> Taken:
    return Taken("air", device, at_ms, dict(metrics) or {"pm2_5": 1.5})


def key(waiting: Waiting) -> Key:
    return Key(waiting.device, waiting.sample.epoch, waiting.sample.seq)


def keys(waiting: list[Waiting]) -> list[Key]:
    return [key(one) for one in waiting]


# -------------------------------------------------------------------------------------------------------- naming


async def test_samples_are_named_by_epoch_and_seq(outbox: Outbox) -> None:
    first = await outbox.take([taken("a", T0_MS), taken("b", T0_MS + 5), taken("a", T0_MS + 1000)])
    assert keys(first) == [("a", T0_MS, 0), ("b", T0_MS + 5, 0), ("a", T0_MS, 1)]
    (more,) = await outbox.take([taken("b", T0_MS + 2000, pm10=7.25)])
    assert key(more) == ("b", T0_MS + 5, 1)
    assert more.sample.time_ms == T0_MS + 2000
    assert outbox.depth == 4
    assert await outbox.after(0, 10) == [*first, more]


async def test_everything_of_a_sample_comes_back_as_it_was(outbox: Outbox) -> None:
    metrics = {"occupied": True, "level": 55, "pm2_5": 0.1, "x-maker-count": 2.0}
    (one,) = await outbox.take([Taken("parking", "a", T0_MS, metrics, "bad:fault")])
    (back,) = await outbox.after(0, 1)
    assert back == one
    assert (back.domain, back.sample.quality) == ("parking", "bad:fault")
    assert back.sample.metrics == metrics
    assert [type(value) for value in back.sample.metrics.values()] == [bool, int, float, float]


async def test_readings_of_one_burst_keep_their_epoch_and_order(outbox: Outbox) -> None:
    waiting = await outbox.take([taken("a", T0_MS) for _ in range(5)])
    assert keys(waiting) == [("a", T0_MS, seq) for seq in range(5)]
    assert [one.sample.time_ms for one in waiting] == [T0_MS + n for n in range(5)]
    (after,) = await outbox.take([taken("a", T0_MS + 4 - SLEW_MS)])
    assert key(after) == ("a", T0_MS, 5)
    assert after.sample.time_ms == T0_MS + 5


async def test_a_clock_that_is_set_back_begins_a_new_epoch(outbox: Outbox) -> None:
    await outbox.take([taken("a", T0_MS), taken("a", T0_MS + 1000), taken("b", T0_MS)])
    back_ms = T0_MS + 500
    first, second, other = await outbox.take(
        [taken("a", back_ms), taken("a", back_ms + 1000), taken("b", back_ms)]
    )
    assert (first.sample.epoch, first.sample.seq) == (back_ms, 0)
    assert (second.sample.epoch, second.sample.seq) == (back_ms, 1)
    assert first.sample.time_ms == back_ms
    assert (other.sample.epoch, other.sample.seq) == (T0_MS, 1), "b's clock never ran back"


async def test_an_epoch_is_never_drawn_twice(outbox: Outbox) -> None:
    drawn = []
    for at_ms in (T0_MS, T0_MS - 3_600_000, T0_MS - 7_200_000, T0_MS, T0_MS - 7_200_000):
        (one,) = await outbox.take([taken("a", at_ms)])
        drawn.append(one.sample.epoch)
    # the third has a clock that says less than an epoch before, the fourth goes on in its own
    assert drawn == [T0_MS, T0_MS + 1, T0_MS + 2, T0_MS + 2, T0_MS + 3]


async def test_the_epoch_of_a_state_is_that_of_the_next_sample(outbox: Outbox) -> None:
    assert await outbox.epoch_of("a", T0_MS) == T0_MS
    assert await outbox.epoch_of("a", T0_MS + 9) == T0_MS
    measured_before_ms = T0_MS - 3
    (one,) = await outbox.take([taken("a", measured_before_ms)])
    assert key(one) == ("a", T0_MS, 0)


# --------------------------------------------------------------------------------------------------- persistence


async def test_a_reopened_outbox_goes_on_where_it_was(tmp_path: Path) -> None:
    path = tmp_path / "state" / "outbox"
    async with opened(path) as outbox:
        before = await outbox.take([taken("a", T0_MS + n * 1000) for n in range(4)])
        outbox.forget(keys(before[:1] + before[3:]))
    async with opened(path) as outbox:
        assert outbox.depth == 2
        assert await outbox.after(0, 10) == before[1:3]
        (more,) = await outbox.take([taken("a", T0_MS + 9000)])
        assert key(more) == ("a", T0_MS, 4), "the name of a forgotten sample is not used again"
        assert more.id > before[3].id
        (back,) = await outbox.take([taken("a", T0_MS)])
        assert key(back) == ("a", T0_MS + 1, 0)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["take", "forget", "reopen"]),
            st.lists(
                st.tuples(st.sampled_from("abc"), st.integers(-5000, 5000)), min_size=1, max_size=8
            ),
        ),
        max_size=25,
    )
)
def test_whatever_is_done_names_are_unique_and_times_rise(
    steps: list[tuple[str, list[tuple[str, int]]]],
) -> None:
    async def play(path: Path) -> None:
        now_ms, seen, here = T0_MS, list[Waiting](), dict[Key, Waiting]()
        outbox = Outbox(path)
        await outbox.open()
        for step, readings in steps:
            if step == "reopen":
                await outbox.close()
                outbox = Outbox(path)
                await outbox.open()
            elif step == "forget":
                gone = list(here)[: len(readings)]
                outbox.forget([*gone, Key("nobody", 1, 1)])
                assert await outbox.find(gone) == []
                for name in gone:
                    del here[name]
            else:
                batch = []
                for device, by_ms in readings:
                    now_ms += by_ms
                    batch.append(taken(device, now_ms))
                waiting = await outbox.take(batch)
                assert [one.device for one in waiting] == [device for device, _ in readings]
                seen += waiting
                here |= {key(one): one for one in waiting}
            assert outbox.depth == len(here)
            assert await outbox.after(0, 1000) == list(here.values())
        await outbox.close()
        assert len({key(one) for one in seen}) == len(seen)
        assert [one.id for one in seen] == sorted(one.id for one in seen)
        series: dict[tuple[str, int], list[Waiting]] = {}
        for one in seen:
            series.setdefault((one.device, one.sample.epoch), []).append(one)
        for samples in series.values():
            assert [one.sample.seq for one in samples] == list(range(len(samples)))
            times = [one.sample.time_ms for one in samples]
            assert times == sorted(set(times))

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(play(Path(folder) / "outbox.sqlite"))


# ------------------------------------------------------------------------------------------------------- finding


async def test_after_and_find_return_what_is_here_in_order(outbox: Outbox) -> None:
    waiting = await outbox.take([taken("ab"[n % 2], T0_MS + n) for n in range(10)])
    assert await outbox.after(0, 3) == waiting[:3]
    assert await outbox.after(waiting[2].id, 3) == waiting[3:6]
    assert await outbox.after(waiting[9].id, 3) == []
    outbox.forget([key(waiting[4])])
    asked = [key(waiting[n]) for n in (8, 4, 2)]
    assert await outbox.find([*asked, Key("a", 1, 1)]) == [waiting[2], waiting[8]]


async def test_a_part_of_the_order_can_be_read(outbox: Outbox) -> None:
    assert outbox.last_id == 0
    waiting = await outbox.take([taken("ab"[n % 2], T0_MS + n) for n in range(10)])
    assert outbox.last_id == waiting[-1].id
    ids = [one.id for one in waiting]
    assert await outbox.between(ids[1], ids[5], 100) == waiting[2:6]
    assert await outbox.between(ids[1], ids[5], 3) == waiting[2:5]
    outbox.forget(keys(waiting[2:4]))
    assert await outbox.between(0, ids[5], 100) == [*waiting[:2], *waiting[4:6]]
    assert await outbox.between(ids[5], ids[1], 100) == []


async def test_forgetting_takes_only_what_is_named(outbox: Outbox) -> None:
    waiting = await outbox.take([taken("a", T0_MS + n) for n in range(3)])
    outbox.forget([])
    outbox.forget([Key("a", T0_MS, 7), Key("b", T0_MS, 0), Key("a", T0_MS + 1, 0)])
    assert await outbox.find([]) == [], "it is forgotten before what is asked next"
    assert outbox.depth == 3
    outbox.forget([key(waiting[1])])
    assert outbox.depth == 2, "it counts no more, already now"
    outbox.forget([key(waiting[1]), key(waiting[1])])
    assert await outbox.find([]) == []
    assert outbox.depth == 2
    assert await outbox.after(0, 9) == [waiting[0], waiting[2]]


async def test_what_is_not_a_devices_is_counted_apart(outbox: Outbox) -> None:
    await outbox.take([taken("a", T0_MS), Taken("gateway", "gw", T0_MS, {"cpu": 1.0})])
    assert await outbox.count(excluding_domain="gateway") == 1
    assert await outbox.count(excluding_domain="air") == 1


# ----------------------------------------------------------------------------------------------- where it can be


async def test_where_nothing_can_be_kept_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutboxBlocked, match=r"file/outbox: .*(Not a directory|File exists)"):
        async with opened(tmp_path / "file" / "outbox"):
            pytest.fail("opened")


async def test_two_agents_cannot_have_one_outbox(tmp_path: Path) -> None:
    path = tmp_path / "outbox"
    async with opened(path) as outbox:
        await outbox.take([taken("a", T0_MS)])
        with pytest.raises(OutboxBlocked, match="locked"):
            async with opened(path):
                pytest.fail("opened")
        assert outbox.depth == 1


# ---------------------------------------------------------------------------------------------------- a full disk


@asynccontextmanager
async def full_disk(outbox: Outbox) -> AsyncIterator[None]:
    """Let every write to the disk meet ENOSPC; a disk that is really full is in test_outbox_full_disk.py."""

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        for name in ("append", "note", "replace"):
            patch.setattr(outbox._disk, name, full)
        yield


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.005)


async def test_a_full_disk_takes_all_or_nothing(tmp_path: Path) -> None:
    async with opened(tmp_path / "outbox", "disk") as outbox:
        (first,) = await outbox.take([taken("a", T0_MS)])
        many = [taken("a", T0_MS + 1 + n) for n in range(2000)]
        async with full_disk(outbox):
            with pytest.raises(OutboxBlocked, match="No space left"):
                await outbox.take(many)
            assert outbox.depth == 1
            assert await outbox.after(0, 10) == [first]
        waiting = await outbox.take(many)
    assert keys(waiting) == [("a", T0_MS, seq) for seq in range(1, 2001)], "no name was used up"


async def test_what_is_forgotten_last_is_not_counted_after_the_end(tmp_path: Path) -> None:
    async with opened(tmp_path / "outbox", "disk") as outbox:
        waiting = await outbox.take([taken("a", T0_MS + n) for n in range(3)])
        outbox.forget(keys(waiting[:1]))
        assert outbox.depth == 2
    assert outbox.depth == 2
    async with opened(tmp_path / "outbox", "disk") as outbox:
        outbox.forget(keys(waiting[1:]))  # in a run in which nothing is taken
    assert outbox.depth == 0
    async with opened(tmp_path / "outbox", "disk") as outbox:
        assert await outbox.after(0, 9) == []


async def test_what_cannot_be_forgotten_now_is_forgotten_once_it_can_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with opened(tmp_path / "outbox", "disk") as outbox:
        waiting = await outbox.take([taken("a", T0_MS + n) for n in range(3)])

        def exhausted(*_: object) -> None:
            raise OSError(errno.EMFILE, "Too many open files")

        with monkeypatch.context() as patch:
            patch.setattr(Segments, "_index", exhausted)
            outbox.forget(keys(waiting[:2]))
            for _ in range(3):
                await outbox.tend()
            assert await outbox.count(excluding_domain="gateway") == 3
        assert caplog.text.count("receipted samples stay on disk for now") == 1
        assert "leave the disk again" not in caplog.text
        assert await outbox.after(0, 9) == waiting[2:]
        assert caplog.text.count("receipted samples leave the disk again") == 1
        assert outbox.depth == 1


async def test_a_mistake_in_forgetting_stops_nobody_who_asks_next(
    outbox: Outbox, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    waiting = await outbox.take([taken("a", T0_MS)])
    with monkeypatch.context() as patch:
        patch.setattr(Outbox, "_forget", lambda *_: 1 / 0)
        for _ in range(2):
            outbox.forget(keys(waiting))
            assert len(await outbox.take([taken("b", T0_MS)])) == 1
    assert caplog.text.count("ZeroDivisionError") == 1


async def test_what_has_left_is_away_although_the_disk_takes_no_note(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "outbox"
    async with opened(path, "disk") as outbox:
        waiting = await outbox.take([taken("a", T0_MS + n) for n in range(3)])
        async with full_disk(outbox):
            outbox.forget([key(waiting[0])])
            outbox.forget([key(waiting[1])])
            assert outbox.depth == 1
            assert await outbox.after(0, 10) == [waiting[2]]
            assert await outbox.find(keys(waiting)) == [waiting[2]]
        assert caplog.text.count("receipted samples stay on disk for now") == 1, "said once"
        await outbox.tend()
    async with opened(path, "disk") as outbox:
        assert await outbox.after(0, 10) == [waiting[2]], "noted once it could be"


@asynccontextmanager
async def running(work: Awaitable[None]) -> AsyncIterator[asyncio.Future[None]]:
    task = asyncio.ensure_future(work)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_the_intake_waits_for_the_disk_and_the_buses_wait_for_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake_module, "RETRY_FIRST_S", 0.01)
    monkeypatch.setattr(intake_module, "RETRY_LAST_S", 0.05)
    monkeypatch.setattr(intake_module, "QUEUED", 10)
    monkeypatch.setattr(intake_module, "BATCH", 5)
    time = SteppedTime()
    heard: list[Waiting] = []
    async with opened(tmp_path / "outbox", "disk") as outbox:
        intake = Intake(outbox, heard.extend, time.clock())
        async with running(intake.run()) as task:
            await intake.put("air", "a", {"pm2_5": 0.0})
            await intake.drained()
            handed = 1

            async def bus() -> None:
                nonlocal handed
                while handed < 500:
                    await intake.put("air", "a", {"pm2_5": float(handed)})
                    time.step(0.001)
                    handed += 1

            async with full_disk(outbox):
                busy = asyncio.ensure_future(bus())
                await until(lambda: "samples cannot be kept; the buses wait" in caplog.text)
                await until(lambda: intake.waiting == 15)
                stuck_at = handed
                for _ in range(5):  # several retries
                    await outbox.tend()
                assert (handed, outbox.depth) == (stuck_at, 1), "nothing moves, nothing is lost"
                assert not task.done()
            await asyncio.wait_for(busy, DEADLINE_S)
            await intake.drained()
        assert [key(one)[::2] for one in heard] == [("a", seq) for seq in range(500)]
        assert [one.sample.metrics["pm2_5"] for one in heard] == [float(n) for n in range(500)]
        assert keys(await outbox.after(0, 1000)) == keys(heard)
    assert caplog.text.count("samples cannot be kept") == 1, "said once, not at every retry"


async def test_what_was_handed_in_is_kept_although_the_agent_ends(
    outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    take, in_hand = outbox.take, asyncio.Event()

    async def taking(readings: Sequence[Taken]) -> list[Waiting]:
        in_hand.set()  # the disk has nothing of it yet
        return await take(readings)

    monkeypatch.setattr(outbox, "take", taking)
    intake = Intake(outbox, lambda _: None)
    await intake.put("air", "a", {"pm2_5": 1.0})
    async with running(intake.run()):
        await in_hand.wait()
    async with asyncio.timeout(DEADLINE_S):
        while not await outbox.after(0, 1):  # noqa: ASYNC110 - the outbox tells when asked
            await asyncio.sleep(0.005)


# ------------------------------------------------------------------------------------- what a driver may hand in

LAMP = Device(id="lamp-1", domain="streetlight", driver="maker_model", bus="b", interval_s=1.0)


def test_metrics_that_the_domain_lacks_are_the_vendors_own() -> None:
    reading = Reading({"level": 40, "lit": True, "glow": True, "x-other-n": 3, "pm2_5": 7})
    assert fitted(reading, LAMP) == Reading(
        {"level": 40, "lit": True, "x-maker-glow": 1.0, "x-other-n": 3, "x-maker-pm2_5": 7.0}
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 2**53, -(2**60), 1e300])
def test_a_value_that_is_no_number_of_the_exchange_is_left_out_and_marked(value: float) -> None:
    found = fitted(Reading({"level": value, "power": 3.5}, "uncertain:warmup"), LAMP)
    assert found == Reading({"power": 3.5}, "uncertain:warmup;bad:fault(level)")


@pytest.mark.parametrize(
    "broken",
    [
        Reading({"level": "40"}),  # type: ignore[dict-item]  # what a careless driver may return
        Reading({"level": None}),  # type: ignore[dict-item]  # the same
        Reading([("level", 1)]),  # type: ignore[arg-type]  # the same
        Reading({"level": 1}, None),  # type: ignore[arg-type]  # the same
        {"level": 1},
    ],
)
async def test_what_is_no_reading_never_reaches_the_outbox(outbox: Outbox, broken: Reading) -> None:
    intake = Intake(outbox, lambda _: None)
    with pytest.raises(ValueError, match=r"Expected|missing"):
        await intake.reading(LAMP, broken)
    assert intake.waiting == 0


async def test_it_knows_whose_states_the_broker_keeps(tmp_path: Path) -> None:
    path = tmp_path / "outbox"
    async with opened(path) as outbox:
        assert await outbox.stating(["a", "b"]) == []
    async with opened(path) as outbox:
        assert await outbox.stating(["b", "c"]) == ["a"]
        assert await outbox.stating(["b", "c"]) == ["a"], "until it is retired"
        await outbox.retired(["a"])
        assert await outbox.stating(["b", "c"]) == []
