"""The outbox on a real SQLite file: what was taken is there, under its own name, whatever happens."""

from __future__ import annotations

import asyncio
import random
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device_drivers.kit.driver import Reading
from edge_agent import intake as intake_module
from edge_agent.config import Device
from edge_agent.intake import Intake, fitted
from edge_agent.outbox import SLEW_MS, Outbox, OutboxBlocked, Taken, Waiting
from exchange.delivery import Key

T0_MS = 1_795_000_000_000
DEADLINE_S = 20.0


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[Outbox]:
    outbox = Outbox(path)
    await outbox.open()
    try:
        yield outbox
    finally:
        await outbox.close()


@pytest.fixture
async def outbox(tmp_path: Path) -> AsyncIterator[Outbox]:
    async with opened(tmp_path / "outbox.sqlite") as one:
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
    path = tmp_path / "state" / "outbox.sqlite"
    async with opened(path) as outbox:
        before = await outbox.take([taken("a", T0_MS + n * 1000) for n in range(4)])
        await outbox.forget(keys(before[:1] + before[3:]))
    async with opened(path) as outbox:
        assert outbox.depth == 2
        assert await outbox.after(0, 10) == before[1:3]
        (more,) = await outbox.take([taken("a", T0_MS + 9000)])
        assert key(more) == ("a", T0_MS, 4), "the name of a forgotten sample is not used again"
        assert more.id > before[3].id
        (back,) = await outbox.take([taken("a", T0_MS)])
        assert key(back) == ("a", T0_MS + 1, 0)


TAKER = """
import asyncio, sys, time
from pathlib import Path
from edge_agent.outbox import Outbox, Taken

async def main():
    outbox = Outbox(Path(sys.argv[1]))
    await outbox.open()
    while True:
        at_ms = time.time_ns() // 1_000_000
        batch = [Taken("air", device, at_ms, {"pm2_5": 1.0}) for device in ("a", "b", "b")]
        for one in await outbox.take(batch):
            print(one.device, one.sample.epoch, one.sample.seq, flush=True)

asyncio.run(main())
"""


async def test_what_was_taken_survives_kill_9(tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    path = tmp_path / "outbox.sqlite"
    reported: list[Key] = []
    for _ in range(6):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", TAKER, str(path)), stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        async with asyncio.timeout(DEADLINE_S):
            lines = [await process.stdout.readline() for _ in range(chance.randrange(1, 60))]
            await asyncio.sleep(chance.random() * 0.004)  # somewhere within the next take
            process.kill()
            lines += (await process.stdout.read()).splitlines()
            await process.wait()
        reported += [
            Key(words[0].decode(), int(words[1]), int(words[2]))
            for line in lines
            if len(words := line.split()) == 3
        ]
        async with opened(path) as outbox:
            there = keys(await outbox.after(0, 1_000_000))
        assert set(reported) <= set(there), f"{seed=}"
        assert len(set(there)) == len(there), f"{seed=}"
    for device in ("a", "b"):
        assert len({one.epoch for one in there if one.device == device}) == 1, f"{seed=}"
        seqs = [one.seq for one in there if one.device == device]
        assert seqs == list(range(len(seqs))), f"{seed=}"
    assert len(reported) > 6


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
                await outbox.forget([*gone, Key("nobody", 1, 1)])
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
    await outbox.forget([key(waiting[4])])
    asked = [key(waiting[n]) for n in (8, 4, 2)]
    assert await outbox.find([*asked, Key("a", 1, 1)]) == [waiting[2], waiting[8]]


async def test_forgetting_takes_only_what_is_named(outbox: Outbox) -> None:
    waiting = await outbox.take([taken("a", T0_MS + n) for n in range(3)])
    await outbox.forget([])
    await outbox.forget([Key("a", T0_MS, 7), Key("b", T0_MS, 0), Key("a", T0_MS + 1, 0)])
    assert outbox.depth == 3
    await outbox.forget([key(waiting[1]), key(waiting[1])])
    assert outbox.depth == 2
    assert await outbox.after(0, 9) == [waiting[0], waiting[2]]


async def test_what_is_not_a_devices_is_counted_apart(outbox: Outbox) -> None:
    await outbox.take([taken("a", T0_MS), Taken("gateway", "gw", T0_MS, {"cpu": 1.0})])
    assert await outbox.count(excluding_domain="gateway") == 1
    assert await outbox.count(excluding_domain="air") == 1


# ------------------------------------------------------------------------------------------------- unsound files


def garbage(path: Path) -> None:
    path.write_bytes(b"this is no database " * 500)


def torn(path: Path) -> None:
    """Overwrite everything behind the first page, as a dying flash card might."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xa5" * (size - 4096))


def newer(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version=99")


def foreign(path: Path) -> None:
    path.unlink()
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE recipe (name TEXT)")
        db.commit()


@pytest.mark.parametrize("spoil", [garbage, torn, newer, foreign])
async def test_an_unsound_file_is_set_aside_and_said_aloud(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, spoil: Callable[[Path], None]
) -> None:
    path = tmp_path / "outbox.sqlite"
    for number in (1, 2):
        async with opened(path) as outbox:
            await outbox.take([taken("a", T0_MS + n, x=float(n)) for n in range(500)])
        spoil(path)
        before = path.read_bytes()
        caplog.clear()
        async with opened(path) as outbox:
            assert outbox.depth == 0
            (one,) = await outbox.take([taken("a", T0_MS + 100_000 * number)])
            assert key(one) == ("a", T0_MS + 100_000 * number, 0), "a new epoch"
        (record,) = [record for record in caplog.records if record.levelname == "ERROR"]
        assert record.message == "the outbox was unsound and set aside"
        aside = tmp_path / f"outbox.sqlite.unsound-{number}"
        assert getattr(record, "aside") == str(aside)  # noqa: B009 - logging puts it there
        assert aside.read_bytes()[8192:] == before[8192:], "nothing of it is thrown away"
        async with opened(path) as outbox:
            assert outbox.depth == 1
        path.unlink()


async def test_where_nothing_can_be_kept_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutboxBlocked, match=r"file/outbox\.sqlite: .*Not a directory|File exists"):
        async with opened(tmp_path / "file" / "outbox.sqlite"):
            pytest.fail("opened")


async def test_two_agents_cannot_have_one_outbox(tmp_path: Path) -> None:
    path = tmp_path / "outbox.sqlite"
    async with opened(path) as outbox:
        await outbox.take([taken("a", T0_MS)])
        with pytest.raises(OutboxBlocked, match="locked"):
            async with opened(path):
                pytest.fail("opened")
        assert outbox.depth == 1


# ---------------------------------------------------------------------------------------------------- a full disk


async def limit_pages(outbox: Outbox, spare: int) -> None:
    """Let SQLite meet SQLITE_FULL once the file has grown by `spare` pages."""

    def limit() -> None:
        db = outbox._open_db
        pages = db.execute("PRAGMA page_count").fetchone()[0]
        db.execute(f"PRAGMA max_page_count={pages + spare}")

    await outbox._run(limit)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.005)


async def test_a_full_disk_takes_all_or_nothing(outbox: Outbox) -> None:
    (first,) = await outbox.take([taken("a", T0_MS)])
    await limit_pages(outbox, 2)
    many = [taken("a", T0_MS + 1 + n) for n in range(2000)]
    with pytest.raises(OutboxBlocked, match="full"):
        await outbox.take(many)
    assert outbox.depth == 1
    assert await outbox.after(0, 10) == [first]
    await limit_pages(outbox, 10_000)
    waiting = await outbox.take(many)
    assert keys(waiting) == [("a", T0_MS, seq) for seq in range(1, 2001)], "no name was used up"


async def test_what_cannot_be_let_go_goes_later(
    outbox: Outbox, caplog: pytest.LogCaptureFixture
) -> None:
    waiting = await outbox.take([taken("a", T0_MS + n) for n in range(3)])
    await outbox._run(lambda: outbox._open_db.execute("PRAGMA query_only=1"))
    await outbox.forget([key(waiting[0])])
    await outbox.forget([key(waiting[1])])
    assert outbox.depth == 3
    assert [record.message for record in caplog.records] == ["receipted samples stay for now"]
    await outbox._run(lambda: outbox._open_db.execute("PRAGMA query_only=0"))
    await outbox.forget([])
    assert await outbox.after(0, 10) == [waiting[2]]
    assert outbox.depth == 1


@asynccontextmanager
async def running(work: Awaitable[None]) -> AsyncIterator[asyncio.Future[None]]:
    task = asyncio.ensure_future(work)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_the_intake_waits_for_the_disk_and_the_buses_wait_for_it(
    outbox: Outbox, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake_module, "RETRY_FIRST_S", 0.01)
    monkeypatch.setattr(intake_module, "RETRY_LAST_S", 0.05)
    monkeypatch.setattr(intake_module, "QUEUED", 10)
    monkeypatch.setattr(intake_module, "BATCH", 5)
    clock = iter(range(T0_MS, T0_MS + 10_000))
    heard: list[Waiting] = []
    intake = Intake(outbox, heard.extend, lambda: next(clock) / 1000)
    async with running(intake.run()) as task:
        await intake.put("air", "a", {"pm2_5": 0.0})
        await intake.drained()
        await limit_pages(outbox, 0)
        handed = 1

        async def bus() -> None:
            nonlocal handed
            while handed < 500:
                await intake.put("air", "a", {"pm2_5": float(handed), **dict.fromkeys(NAMES, 1.5)})
                handed += 1

        async with running(bus()) as busy:
            await until(lambda: "samples cannot be kept; the buses wait" in caplog.text)
            await until(lambda: intake.waiting == 15)
            stuck_at = handed
            retries = outbox.depth
            await asyncio.sleep(0.2)  # several retries
            assert (handed, outbox.depth) == (stuck_at, retries), "nothing moves, nothing is lost"
            assert not task.done()
            await limit_pages(outbox, 10_000)
            await asyncio.wait_for(busy, DEADLINE_S)
            await intake.drained()
    assert keys(heard) == [("a", T0_MS, seq) for seq in range(500)]
    assert [one.sample.metrics["pm2_5"] for one in heard] == [float(n) for n in range(500)]
    assert keys(await outbox.after(0, 1000)) == keys(heard)
    assert caplog.text.count("samples cannot be kept") == 1, "said once, not at every retry"


NAMES = [f"x-maker-{'n' * 20}-{number}" for number in range(30)]


async def test_what_was_handed_in_is_kept_although_the_agent_ends(outbox: Outbox) -> None:
    intake = Intake(outbox, lambda _: None)
    await intake.put("air", "a", {"pm2_5": 1.0})
    async with running(intake.run()):
        await asyncio.sleep(0)  # it has the batch in hand now, the disk has not
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
    path = tmp_path / "outbox.sqlite"
    outbox = Outbox(path)
    await outbox.open()
    assert await outbox.stating(["a", "b"]) == []
    await outbox.close()
    outbox = Outbox(path)
    await outbox.open()
    assert await outbox.stating(["b", "c"]) == ["a"]
    assert await outbox.stating(["b", "c"]) == ["a"], "until it is retired"
    await outbox.retired(["a"])
    assert await outbox.stating(["b", "c"]) == []
    await outbox.close()
