"""The outbox after kills, power cuts and damage, on a disk that keeps only what was synced."""

from __future__ import annotations

import asyncio
import errno
import random
import shutil
import sqlite3
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from edge_agent.outbox import Outbox, OutboxBlocked, OutboxSettings, Taken, Waiting
from edge_agent.outbox import outbox as outbox_module
from edge_agent.outbox.book import NAME, write_book
from edge_agent.outbox.disk import Disk
from edge_agent.outbox.records import Book, Counter
from edge_agent.outbox.segments import SET_ASIDE
from edge_agent.outbox.stage import Stage, volatile_folder
from exchange.delivery import Key
from tests.outboxes import Killed, Machine, key, keys, taken
from tests.stepped_time import T0_MS, SteppedTime

GOLDEN = Path(__file__).parents[1] / "golden" / "outbox"
LOST_MS = 2000  # what a power cut may cost


async def everything(outbox: Outbox) -> list[Waiting]:
    return await outbox.after(0, 1_000_000)


# ------------------------------------------------------------------------------------------------- a model

GAMES = 80
STEPS = 50
WEIGHTS = {
    "take": 8,
    "forget": 4,
    "let_pass": 3,
    "set_clock": 0.4,
    "fill": 0.6,
    "strike": 2,
    "kill": 0.6,
    "cut": 0.4,
    "close": 0.3,
}


def how(step: str, chance: random.Random) -> object:
    """Return with what a step is done; None when there is nothing to say."""
    match step:
        case "take":
            return tuple(chance.choices("abc", k=chance.randint(1, 6)))
        case "forget":
            return chance.randint(1, 8)
        case "let_pass":
            return chance.choice([0.1, 0.5, 1.6, 4.0])
        case "set_clock":
            return chance.choice([-5000, -50, 0, 700, 90_000])
        case "fill":
            return chance.random() < 0.5
        case "strike":
            return chance.randint(0, 15), chance.choice(["kill", "kill", "cut"])
        case _:
            return None


class Model:
    """What must be in the outbox, and what may be.

    Everything is small, so that stages are written anew and segments begun all the time; a process may die in any of
    its calls to the operating system, half done, and the disk may be full at any time.
    """

    def __init__(self, folder: Path, stage: str) -> None:
        self.time = SteppedTime()
        self.is_synced = stage == "disk"
        chosen = OutboxSettings(stage="disk" if stage == "disk" else "memory", max_mb=4)
        self.machine = Machine(folder, self.time.clock(), settings=chosen)
        self.machine.segment_bytes = 150
        self.here: dict[Key, Waiting] = {}
        self.came_ms: dict[Key, int] = {}
        self.ever: dict[Key, Waiting] = {}
        self.numbers: dict[float, Key] = {}
        """Which name each reading has."""
        self.readings = 0
        self.in_hand: list[Taken] = []
        """What was handed in and not taken when the process died."""
        self.leaving: set[Key] = set()
        """What may have left: a receipt was under way."""
        self.may_return = False
        """Whether what has left may not be noted: the disk was full, or the process died."""
        self.held_ms: int | None = None
        """Since when the disk may have taken nothing."""
        self.before: dict[Key, Waiting] = {}
        """What should have been there at the last start."""
        self.boots = 1
        self.death = "kill"

    async def play(self, step: str, how: object) -> None:
        """Do a step; if the process dies on it, begin anew."""
        try:
            await getattr(self, step)(*([] if how is None else [how]))
        except Killed:
            self.may_return = True
            await getattr(self, self.death)()
        await self.check()

    async def strike(self, when: tuple[int, str]) -> None:
        self.machine.system.left, self.death = when

    async def fill(self, is_full: bool) -> None:
        if is_full and self.held_ms is None:
            self.held_ms = self.time.boot_ms()
        self.may_return |= is_full
        self.machine.system.is_full = is_full

    async def set_clock(self, wrong_ms: int) -> None:
        self.time.wrong_ms = wrong_ms

    def note(self, one: Waiting) -> None:
        """Note a name that somebody hears of."""
        number = one.sample.metrics["pm2_5"]
        before = self.ever.setdefault(key(one), one)
        assert before == one, "a name is given once"
        assert self.numbers.setdefault(number, key(one)) == key(one), "a reading has one name"

    async def take(self, devices: tuple[str, ...]) -> None:
        batch = []
        for device in devices:
            self.time.step(0.01)
            self.readings += 1
            reading = taken(device, None, self.time.boot_ms(), pm2_5=float(self.readings))
            batch.append(reading)
        self.in_hand = batch
        try:
            waiting = await self.machine.outbox.take(batch)
        except OutboxBlocked:
            assert self.is_synced
            assert self.machine.system.is_full
            self.in_hand = []
            return
        self.in_hand = []
        assert [one.sample.metrics["pm2_5"] for one in waiting] == [
            one.metrics["pm2_5"] for one in batch
        ]
        for one in waiting:
            assert key(one) not in self.ever, "a name is given once"
            self.note(one)
            self.here[key(one)] = one
            self.came_ms[key(one)] = self.time.boot_ms()

    async def forget(self, count: int) -> None:
        gone = random.Random(count).sample(list(self.here), min(count, len(self.here)))
        self.leaving = set(gone)
        self.machine.outbox.forget([*gone, Key("nobody", 1, 1)])
        assert await self.machine.outbox.find(gone) == []
        self.leaving = set()
        for name in gone:
            del self.here[name]

    async def let_pass(self, seconds: float) -> None:
        for _ in range(round(seconds * 10)):
            self.time.step(0.1)
            await self.machine.outbox.tend()
        if seconds > 1.5 and not self.machine.system.is_full:
            self.held_ms = None  # it was asked again, and took everything

    async def check(self) -> None:
        there = await everything(self.machine.outbox)
        assert there == sorted(self.here.values(), key=lambda one: one.id)
        assert self.machine.outbox.depth == len(there)

    async def found(self) -> set[Key]:
        """Begin anew; return the names of what is not there any more."""
        await self.machine.start(tends=False)
        there = {key(one): one for one in await everything(self.machine.outbox)}
        in_hand = {one.metrics["pm2_5"] for one in self.in_hand}
        for name, one in there.items():
            if name not in self.ever:
                assert one.sample.metrics["pm2_5"] in in_hand, "nothing but what was taken"
                self.came_ms[name] = self.time.boot_ms()
            self.note(one)
        lost = self.here.keys() - there.keys() - self.leaving
        self.in_hand, self.leaving = [], set()
        self.before, self.here = self.here, there
        return lost

    async def kill(self) -> None:
        await self.machine.kill()
        assert not await self.found()
        assert self.may_return or not self.here.keys() - self.before.keys(), "it stays forgotten"

    async def close(self) -> None:
        await self.machine.outbox.close()
        if self.machine.system.is_dead:
            raise Killed
        assert not await self.found()

    async def cut(self) -> None:
        cut_ms = self.time.boot_ms()
        held_ms = cut_ms if self.held_ms is None else self.held_ms
        self.boots += 1
        self.time = self.time.rebooted(f"boot-{self.boots}")
        await self.machine.cut(self.time.clock())
        for name in await self.found():
            assert not self.is_synced
            assert self.came_ms[name] >= held_ms - LOST_MS
        self.came_ms = dict.fromkeys(self.here, 0)
        self.held_ms = self.time.boot_ms() if self.machine.system.is_full else None


@pytest.mark.parametrize("stage", ["memory", "disk"])
def test_whatever_happens_names_are_unique_and_losses_within_the_promise(
    stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Games of chance, each told by its seed: a fault that needs five steps in their order is not found by few."""
    monkeypatch.setattr(outbox_module, "STAGE_BYTES", 300)
    monkeypatch.setattr(outbox_module, "SPILL_SAMPLES", 3)

    async def play(folder: Path, chance: random.Random) -> None:
        with pytest.MonkeyPatch.context() as patch:
            model = Model(folder, stage)
            await model.machine.start(tends=False)
            model.machine.fragile(patch)
            for step in chance.choices(list(WEIGHTS), list(WEIGHTS.values()), k=STEPS):
                await model.play(step, how(step, chance))
            model.machine.system.left = None
            await model.fill(False)
            await model.let_pass(4.0)
            await model.check()
            await model.machine.outbox.close()
        series: dict[tuple[str, int], list[Waiting]] = {}
        for one in model.ever.values():
            series.setdefault((one.device, one.sample.epoch), []).append(one)
        for samples in series.values():
            samples.sort(key=lambda one: one.sample.seq)
            times = [one.sample.time_ms for one in samples]
            assert times == sorted(set(times))

    for _ in range(GAMES):
        seed = random.randrange(2**32)
        with tempfile.TemporaryDirectory() as folder:
            try:
                asyncio.run(play(Path(folder), random.Random(seed)))
            except BaseException as error:
                error.add_note(f"{seed=}")
                raise


# ----------------------------------------------------------------------------------------- kills and power cuts


@pytest.fixture
def time() -> SteppedTime:
    return SteppedTime()


@pytest.fixture
def machine(tmp_path: Path, time: SteppedTime) -> Machine:
    return Machine(tmp_path, time.clock())


async def test_what_has_its_receipt_in_time_never_touches_flash(
    machine: Machine, time: SteppedTime
) -> None:
    outbox = await machine.start()
    await outbox.take([taken("a", None, time.boot_ms())])  # begins its epoch
    before = outbox.bytes_written
    for _ in range(500):
        time.step(1.0)
        waiting = await outbox.take([taken("a", None, time.boot_ms())] * 10)
        outbox.forget(keys(waiting))
        await outbox.tend()
    assert outbox.bytes_written - before <= 4096, "but for the first one"
    assert outbox.depth == 1
    (stage,) = machine.stages.iterdir()
    assert stage.stat().st_size < 2 << 20
    await outbox.close()
    assert list(machine.stages.iterdir()) == []


@pytest.mark.parametrize("per_s", [20, 100, 1000])
async def test_flash_gets_little_more_than_the_payload_when_receipts_are_slow(
    machine: Machine, time: SteppedTime, per_s: int
) -> None:
    outbox = await machine.start()
    waiting: list[Waiting] = []
    metrics = {"pm1": 3.5, "pm2_5": 7.25, "pm10": 12.5, "temperature": 21.5, "humidity": 60.25}
    begun = outbox.bytes_written
    for second in range(20):
        batch = [
            Taken("air", f"air-{n % 20}", None, metrics, "", time.boot_ms() + n)
            for n in range(per_s)
        ]
        waiting += await outbox.take(batch)
        for _ in range(10):
            time.step(0.1)
            await outbox.tend()
        if second >= 3:  # every receipt takes three seconds
            outbox.forget(keys(waiting[:per_s]))
            del waiting[:per_s]
    records = '{"n":"pm2_5","u":"ug/m3","v":7.25},'  # of each metric, as it travels in a pack
    payload = 20 * per_s * (len(metrics) * len(records) + 40)
    assert outbox.bytes_written - begun <= 1.5 * payload
    await outbox.close()


async def test_a_stage_that_nobody_names_is_not_believed(machine: Machine, tmp_path: Path) -> None:
    outbox = await machine.start()
    await outbox.take([taken("a", T0_MS)])
    (stage,) = machine.stages.iterdir()
    old = stage.read_bytes()
    await outbox.close()
    outbox = await machine.start()
    second = await outbox.take([taken("a", T0_MS + 1000), taken("a", T0_MS + 2000)])
    await machine.kill()
    stage.write_bytes(old)  # as if the folder in memory had been another one meanwhile
    outbox = await machine.start()
    (third,) = await outbox.take([taken("a", T0_MS + 3000)])
    assert third.sample.epoch > second[0].sample.epoch
    assert third.sample.seq == 0
    await outbox.close()


async def test_a_container_that_begins_anew_without_its_memory_begins_new_epochs(
    machine: Machine,
) -> None:
    outbox = await machine.start()
    (one,) = await outbox.take([taken("a", T0_MS)])
    await machine.kill()
    for stage in machine.stages.iterdir():
        stage.unlink()  # the same boot, another /dev/shm
    outbox = await machine.start()
    assert await everything(outbox) == []
    assert await outbox.epoch_of("a", T0_MS) == one.sample.epoch + 1
    await outbox.close()


async def test_counters_never_go_back_when_the_stage_is_written_anew(
    machine: Machine, time: SteppedTime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge_agent.outbox.outbox.STAGE_BYTES", 2000)
    outbox = await machine.start()
    first, second = await outbox.take([taken("a", T0_MS), taken("a", T0_MS + 200)])
    outbox.forget([key(second)])  # the later one's receipt comes first
    (stage,) = machine.stages.iterdir()
    size, number = 0, 0
    while stage.stat().st_size > size:  # until it is written anew
        size, number = stage.stat().st_size, number + 1
        others = await outbox.take([taken("b", T0_MS + number, pm10=1.0)] * 5)
        outbox.forget(keys(others))
        await outbox.tend()
    await machine.kill()
    outbox = await machine.start()
    assert await everything(outbox) == [first]
    (third,) = await outbox.take([taken("a", T0_MS + 400)])
    assert key(third) == Key("a", T0_MS, 2)
    await outbox.close()


@pytest.mark.parametrize("left", [b"", b"\xf5\x5a half a head"])
async def test_a_segment_that_was_only_just_created_hides_no_counters(
    tmp_path: Path, time: SteppedTime, left: bytes
) -> None:
    machine = Machine(tmp_path, time.clock(), settings=OutboxSettings(stage="disk"))
    outbox = await machine.start()
    first = await outbox.take([taken("a", T0_MS)])
    for number in range(9):
        first += await outbox.take([taken("a", T0_MS + 200 * (number + 1))])
    outbox.forget(keys(first))
    await machine.kill()  # between the creation of the next segment and its first sample
    (machine.path / f"{outbox.last_id + 1:020d}.seg").write_bytes(left)
    outbox = await machine.start()
    second = await outbox.take([taken("a", T0_MS + 200 * n) for n in range(20)])
    assert not set(keys(first)) & set(keys(second))
    await outbox.close()


async def test_where_no_memory_is_the_disk_is_used_and_it_is_said(
    tmp_path: Path, time: SteppedTime, caplog: pytest.LogCaptureFixture
) -> None:
    machine = Machine(tmp_path, time.clock())
    machine.stages = tmp_path / "gone"
    outbox = await machine.start()
    waiting = await outbox.take([taken("a", T0_MS), taken("b", T0_MS)])
    assert caplog.text.count("every batch is synced to the disk") == 1
    machine.stages = tmp_path / "run"
    await machine.cut(time.rebooted("boot-2").clock())
    outbox = await machine.start()
    assert await everything(outbox) == waiting
    (more,) = await outbox.take([taken("a", T0_MS + 1000)])
    assert key(more) == Key("a", T0_MS, 1), "it can be proved that nothing was lost"
    await outbox.close()


async def test_a_stage_that_fails_on_the_way_gives_way_to_the_disk(
    machine: Machine, time: SteppedTime, caplog: pytest.LogCaptureFixture
) -> None:
    outbox = await machine.start()
    first = await outbox.take([taken("a", T0_MS)])
    (stage,) = machine.stages.iterdir()
    stage.unlink()
    stage.mkdir()  # nothing can be appended to that
    second = await outbox.take([taken("a", T0_MS + 1000)])
    assert "the stage in memory takes nothing" in caplog.text
    stage.rmdir()
    await machine.cut(time.rebooted("boot-2").clock())
    outbox = await machine.start()
    assert await everything(outbox) == first + second
    await outbox.close()


async def test_who_configures_the_disk_after_a_kill_loses_nothing(machine: Machine) -> None:
    outbox = await machine.start()
    first = await outbox.take([taken("a", T0_MS), taken("b", T0_MS)])
    await machine.kill()
    machine.settings = OutboxSettings(stage="disk")
    outbox = await machine.start()
    second = await outbox.take([taken("a", T0_MS + 1000)])
    assert key(second[0]) == Key("a", T0_MS, 1)
    assert list(machine.stages.iterdir()) == []
    await machine.cut(SteppedTime("boot-2").clock())
    outbox = await machine.start()
    assert await everything(outbox) == first + second
    await outbox.close()


async def test_a_doubt_lasts_until_the_epoch_is_begun(tmp_path: Path, time: SteppedTime) -> None:
    machine = Machine(tmp_path, time.clock())
    outbox = await machine.start()
    before = await outbox.take([taken("a", T0_MS), taken("b", T0_MS)])
    await machine.cut(time.rebooted("boot-2").clock())
    outbox = await machine.start()
    await outbox.take([taken("a", T0_MS + 1000)])
    for _ in range(2):  # b has still said nothing
        await machine.kill()
        outbox = await machine.start()
    (b,) = await outbox.take([taken("b", T0_MS + 2000)])
    assert b.sample.epoch == T0_MS + 2000 != before[1].sample.epoch
    await outbox.close()


# ----------------------------------------------------------------------------------------------------- damage


async def filled(machine: Machine, count: int = 400) -> list[Waiting]:
    """Fill an outbox and close it in order."""
    outbox = await machine.start()
    waiting = []
    for start in range(0, count, 100):
        names = "ab"
        batch = [taken(names[n % 2], T0_MS + n, pm2_5=float(n)) for n in range(start, start + 100)]
        waiting += await outbox.take(batch)
    await outbox.close()
    return waiting


def segment_of(machine: Machine) -> Path:
    return max(machine.path.glob("*.seg"))


@pytest.mark.parametrize("seed", range(8))
async def test_a_flipped_bit_costs_the_sample_it_hits(
    machine: Machine, seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    waiting = await filled(machine)
    chance, segment = random.Random(seed), segment_of(machine)
    data = bytearray(segment.read_bytes())
    for _ in range(3):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    segment.write_bytes(data)
    outbox = await machine.start()
    there = await everything(outbox)
    assert len(waiting) - 3 <= len(there) <= len(waiting)
    assert {key(one): one for one in there}.items() <= {key(o): o for o in waiting}.items()
    assert "damaged" in caplog.text or len(there) == len(waiting)
    if len(there) < len(waiting) or outbox.dropped:
        (new,) = await outbox.take([taken("a", T0_MS + 9000)])
        assert new.sample.epoch > waiting[0].sample.epoch, "nobody can prove what was lost"
    await outbox.close()
    caplog.clear()
    outbox = await machine.start()
    assert "damaged" not in caplog.text, "said once, mended"
    assert set(keys(there)) <= set(keys(await everything(outbox)))
    await outbox.close()


async def test_wherever_a_file_is_cut_off_what_is_before_that_is_there(machine: Machine) -> None:
    waiting = await filled(machine, 200)
    segment = segment_of(machine)
    whole, book = segment.read_bytes(), (machine.path / NAME).read_bytes()
    sizes = [*sorted(random.Random(7).sample(range(len(whole)), 25)), 0, 1, len(whole) - 1]
    most = 0
    for size in sizes:
        segment.write_bytes(whole[:size])
        (machine.path / NAME).write_bytes(book)
        outbox = await machine.start()
        there = await everything(outbox)
        assert there == waiting[: len(there)]
        most = max(most, len(there))
        (new,) = await outbox.take([taken("a", T0_MS + 9000)])
        assert key(new) not in keys(waiting)
        await outbox.close()
        for path in machine.path.iterdir():
            if path.is_file():
                path.unlink()
    assert most > 190


async def test_a_file_of_which_a_power_cut_left_the_name_alone_is_used(
    machine: Machine, time: SteppedTime
) -> None:
    machine.settings = OutboxSettings(stage="disk")
    outbox = await machine.start()
    await outbox.take([taken("a", T0_MS)])
    await outbox.close()
    segment_of(machine).write_bytes(b"")
    outbox = await machine.start()
    first = await outbox.take([taken("a", T0_MS + 1000), taken("b", T0_MS)])
    assert await everything(outbox) == first
    assert outbox.depth == 2
    outbox.forget(keys(first))
    second = await outbox.take([taken("a", T0_MS + 2000), taken("b", T0_MS + 1000)])
    await machine.cut(time.rebooted("boot-2").clock())
    outbox = await machine.start()
    assert {key(one) for one in second} <= {key(one) for one in await everything(outbox)}
    await outbox.close()


async def test_damage_that_is_met_on_the_way_stops_nothing(
    machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    await filled(machine, 30_000)
    outbox = await machine.start()
    first = min(machine.path.glob("*.seg"))
    assert first != segment_of(machine), "closed long ago"
    data = bytearray(first.read_bytes())
    data[len(data) // 2] ^= 0x10
    first.write_bytes(data)  # under the running agent: it has read its seal only
    there = await everything(outbox)
    assert len(there) == 29_999
    assert outbox.depth == 29_999
    assert outbox.dropped["damaged"] == 1
    assert caplog.text.count("a part of the outbox is damaged") == 1
    (aside,) = (machine.path / "unsound").iterdir()
    assert aside.read_bytes() == data, "for whoever wants to look"
    outbox.forget(keys(there))
    assert outbox.depth == 0
    await outbox.close()


async def test_a_segment_that_is_taken_away_stops_nothing(machine: Machine) -> None:
    await filled(machine, 30_000)
    outbox = await machine.start()
    min(machine.path.glob("*.seg")).unlink()
    there = await everything(outbox)
    assert 0 < len(there) == outbox.depth < 30_000
    assert outbox.dropped["damaged"] == 30_000 - len(there)
    await outbox.take([taken("a", T0_MS + 99_000)])
    await outbox.close()


@pytest.mark.parametrize("spoilt", [-1, -8, -30])
async def test_a_seal_that_is_damaged_is_not_believed(machine: Machine, spoilt: int) -> None:
    waiting = await filled(machine, 30_000)
    first = min(machine.path.glob("*.seg"))
    data = bytearray(first.read_bytes())
    data[spoilt] ^= 0xFF
    first.write_bytes(data)
    outbox = await machine.start()
    assert await everything(outbox) == waiting
    await outbox.close()


def garbage(path: Path) -> None:
    path.write_bytes(b"this is no book " * 500)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def lost(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("spoil", [garbage, empty, lost])
async def test_without_its_book_the_samples_stay_and_epochs_begin_anew(
    machine: Machine, spoil: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    waiting = await filled(machine)
    spoil(machine.path / NAME)
    outbox = await machine.start()
    assert await everything(outbox) == waiting
    new = await outbox.take([taken("a", T0_MS + 9000), taken("b", T0_MS - 9000)])
    assert all(one.sample.epoch > T0_MS + 1 for one in new)
    assert "every device begins a new epoch" in caplog.text
    await outbox.close()


async def test_what_a_later_version_wrote_is_set_aside_whole(
    machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        waiting = await filled(machine, 100)
        book = Book(99, True, "disk", "", {"a": Counter(T0_MS, 5, T0_MS)}, 101, [])
        write_book(machine.path, book, Disk())
        outbox = await machine.start()
        assert await everything(outbox) == []
        assert "version 99" in caplog.text or "unsound and set aside" in caplog.text
        await outbox.close()
        aside = machine.path.with_name("outbox.unsound")
        assert len(list(aside.glob("*.seg"))) == 1, "and only the last of them"
        assert len(waiting) == 100


async def test_a_device_may_change_its_domain_within_its_epoch(machine: Machine) -> None:
    machine.segment_bytes = 400
    machine.settings = OutboxSettings(stage="disk")
    outbox = await machine.start()
    domains = ["parking", "parking", "air", "air", "air", "parking"]
    waiting = []
    for number, domain in enumerate(domains * 3):
        reading = Taken(domain, "a", T0_MS + number, {"temperature": 1.0})
        waiting += await outbox.take([reading])
    for _ in range(2):
        assert [one.domain for one in await everything(outbox)] == domains * 3
        assert await outbox.count(excluding_domain="air") == 9
        await outbox.close()
        outbox = await machine.start()
    outbox.forget(keys(waiting[:2]))
    assert await outbox.count(excluding_domain="air") == 7
    outbox.forget(keys(waiting[2:]))
    assert await outbox.count(excluding_domain="air") == 0
    assert await outbox.count(excluding_domain="parking") == 0
    await outbox.close()


async def test_files_of_others_in_the_folder_stop_nothing(machine: Machine) -> None:
    await filled(machine, 100)
    strangers = [segment_of(machine).with_stem("00000000000000000001 copy")]
    strangers += [machine.path / "notes.gone", machine.path / "unsound" / "readme.txt"]
    (machine.path / "unsound").mkdir()
    for stranger in strangers:
        stranger.write_bytes(b"somebody's")
    garbage(machine.path / NAME)
    outbox = await machine.start()
    assert outbox.depth == 100
    await outbox.close()
    assert [stranger.read_bytes() for stranger in strangers] == [b"somebody's"] * 3


async def test_only_a_few_damaged_files_are_kept(machine: Machine) -> None:
    for _ in range(SET_ASIDE + 4):
        await filled(machine, 100)
        garbage(machine.path / NAME)
    outbox = await machine.start()
    asides = sorted(
        int(path.name.partition("-")[0]) for path in (machine.path / "unsound").iterdir()
    )
    assert asides == list(range(5, SET_ASIDE + 5)), "the newest"
    await outbox.close()


# ---------------------------------------------------------------------------------------------------- version 2


async def test_an_outbox_of_version_2_is_read_as_it_was_written(tmp_path: Path) -> None:
    """The folder was written when the format was frozen, and is never written again."""
    time = SteppedTime()
    time.step(20)
    machine = Machine(tmp_path, time.clock())
    shutil.copytree(GOLDEN / "v2", machine.path)
    outbox = await machine.start()
    there = await everything(outbox)
    aq, bay = [[one for one in there if one.device == device] for device in ("aq-1", "bay-7")]
    assert keys(aq) == [Key("aq-1", T0_MS, seq) for seq in (0, 2, 3, 4, 5, 6, 7)]
    assert keys(bay) == [Key("bay-7", T0_MS, seq) for seq in (1, 2, 3, 4, 5, 6)]
    assert [one.sample.metrics for one in aq[:2]] == [
        {"pm2_5": 0.5, "pm10": 0},
        {"pm2_5": 1.5, "pm10": 1},
    ]
    assert {(one.domain, one.sample.quality) for one in bay} == {("parking", "uncertain:warmup")}
    assert [one.sample.metrics["occupied"] for one in bay] == [
        True,
        False,
        False,
        True,
        True,
        False,
    ]
    assert aq[1].sample.time_ms == T0_MS + 2000
    assert outbox.undated == 2
    dated = await outbox.take([taken("aq-1", None, time.boot_ms(), pm2_5=5.0)])
    assert keys(dated) == [Key("aq-1", T0_MS, seq) for seq in (8, 9, 10)], "the counters go on"
    assert [one.sample.metrics["pm2_5"] for one in dated] == [90.5, 91.5, 5.0]
    assert [one.sample.time_ms - T0_MS for one in dated] == [8000, 9000, 20_000]
    assert await outbox.stating([]) == ["city/v1/tw-tpe/street/gw-1/air/aq-1/state"]
    await outbox.close()


# ---------------------------------------------------------------------------------------------------- version 1


def put_version_1(machine: Machine) -> Path:
    file = machine.path.with_suffix(".sqlite")
    file.parent.mkdir(parents=True)
    file.write_bytes((GOLDEN / "v1.sqlite").read_bytes())
    return file


async def test_an_outbox_of_version_1_is_taken_over(machine: Machine) -> None:
    file = put_version_1(machine)
    outbox = await machine.start()
    there = await everything(outbox)
    assert [key(one) for one in there] == [
        *(Key("aq-1", T0_MS, seq) for seq in [*range(10, 20), *range(23, 40)]),
        Key("bay-7", T0_MS + 500, 0),
        Key("gw-1", T0_MS + 700, 0),
        Key("aq-1", T0_MS + 1, 0),
    ]
    assert there[3].sample.metrics == {"pm2_5": 19.5, "pm10": 13}
    assert there[-3].sample.metrics == {"occupied": True, "distance": 1.25}
    assert [(one.domain, one.sample.quality) for one in there[-3:-1]] == [
        ("parking", "uncertain:warmup"),
        ("gateway", ""),
    ]
    new = await outbox.take([taken("aq-1", T0_MS), Taken("parking", "bay-7", T0_MS + 900, {})])
    assert keys(new) == [Key("aq-1", T0_MS + 1, 1), Key("bay-7", T0_MS + 500, 1)], "they go on"
    topics = [
        f"city/v1/tw-tpe/street/gw-1/{device}/state" for device in ("air/aq-1", "parking/bay-7")
    ]
    assert await outbox.stating([]) == topics
    assert not file.exists()
    await outbox.close()
    outbox = await machine.start()
    assert await everything(outbox) == there + new
    await outbox.close()


async def test_a_take_over_that_is_interrupted_begins_again(machine: Machine) -> None:
    put_version_1(machine)
    half = machine.path.with_name("outbox.new")
    half.mkdir()
    (half / "00000000000000000011.seg").write_bytes(b"half a segment")
    outbox = await machine.start()
    assert outbox.depth == 30
    await outbox.close()
    file = machine.path.with_suffix(".sqlite")
    file.write_bytes((GOLDEN / "v1.sqlite").read_bytes())  # it was not removed yet
    outbox = await machine.start()
    assert outbox.depth == 30, "not twice"
    assert not file.exists()
    await outbox.close()


def newer(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version=99")


def torn(path: Path) -> None:
    """Overwrite everything behind the first page, as a dying flash card might."""
    data = path.read_bytes()
    path.write_bytes(data[:4096] + b"\xa5" * (len(data) - 4096))


def foreign(path: Path) -> None:
    path.unlink()
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE recipe (name TEXT)")
        db.commit()


@pytest.mark.parametrize("spoil", [garbage, torn, newer, foreign])
async def test_an_unsound_file_of_version_1_is_set_aside_and_said_aloud(
    machine: Machine, caplog: pytest.LogCaptureFixture, spoil: Callable[[Path], None]
) -> None:
    file = put_version_1(machine)
    spoil(file)
    before = file.read_bytes()
    outbox = await machine.start()
    assert outbox.depth == 0
    (one,) = await outbox.take([taken("aq-1", T0_MS + 100_000)])
    assert key(one) == ("aq-1", T0_MS + 100_000, 0), "a new epoch"
    (record,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert record.message == "the outbox was unsound and set aside"
    (aside,) = (machine.path / "unsound").iterdir()
    assert getattr(record, "aside") == str(aside)  # noqa: B009 - logging puts it there
    assert aside.read_bytes()[8192:] == before[8192:], "nothing of it is thrown away"
    assert not file.exists()
    await outbox.close()


async def test_a_file_of_version_1_that_is_in_use_is_waited_for(machine: Machine) -> None:
    file = put_version_1(machine)
    with closing(sqlite3.connect(file, isolation_level=None)) as db:
        db.execute("PRAGMA locking_mode=EXCLUSIVE")
        db.execute("BEGIN EXCLUSIVE")
        with pytest.raises(OutboxBlocked, match="locked"):
            await machine.start()
    outbox = await machine.start()
    assert outbox.depth == 30
    await outbox.close()


# ------------------------------------------------------------------------------------------------------- limits


async def test_what_is_too_much_goes_the_oldest_first_and_is_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    time = SteppedTime()
    machine = Machine(tmp_path, time.clock(), settings=OutboxSettings(max_mb=4))
    outbox = await machine.start()
    waiting: list[Waiting] = []
    for _ in range(100):
        time.step(1)
        waiting += await outbox.take([taken("a", None, time.boot_ms() + n) for n in range(1000)])
    there = await everything(outbox)
    assert there == waiting[-len(there) :], "the newest are left"
    assert 0 < outbox.dropped["size"] == 100_000 - len(there) < 100_000
    assert outbox.size_bytes <= 4_000_000
    on_disk = sum(path.stat().st_size for path in machine.path.glob("*.seg"))
    assert on_disk == outbox.size_bytes
    assert caplog.text.count("the oldest samples are dropped") == 1
    caplog.set_level("INFO")
    outbox.forget(keys(there))
    await outbox.tend()
    assert caplog.text.count("the outbox has room again") == 1
    await outbox.close()


async def test_what_is_too_old_goes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    time = SteppedTime()
    machine = Machine(tmp_path, time.clock(), settings=OutboxSettings(max_age_days=2))
    outbox = await machine.start()
    waiting: list[Waiting] = []
    for _ in range(24 * 4):
        time.step(3600)
        waiting += await outbox.take([taken("a", None, time.boot_ms())])
        await outbox.tend()
    there = await everything(outbox)
    oldest_h = (waiting[-1].sample.time_ms - there[0].sample.time_ms) / 3_600_000
    assert 46 <= oldest_h <= 50
    assert outbox.dropped == {"age": len(waiting) - len(there)}
    assert caplog.text.count("the oldest samples are dropped") == 1
    await outbox.close()


async def test_a_disk_that_became_read_only_keeps_what_is_too_old_and_taking_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    time = SteppedTime()
    machine = Machine(tmp_path, time.clock(), settings=OutboxSettings(max_age_days=2))
    outbox = await machine.start()
    for _ in range(3):
        await outbox.take([taken("a", None, time.boot_ms())])
        time.step(3601)
        await outbox.tend()

    def refused(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    for name in ("append", "note", "replace", "overwrite", "remove"):
        monkeypatch.setattr(outbox._disk, name, refused)
    time.step(3 * 86_400)
    for number in range(3):
        named = await outbox.take([taken("a", None, time.boot_ms())])
        assert [one.sample.seq for one in named] == [3 + number]
        time.step(10)
        await outbox.tend()
    assert (outbox.depth, outbox.dropped) == (6, {})
    assert caplog.text.count("what is over the limit cannot be removed") == 1
    monkeypatch.undo()
    await outbox.tend()
    assert outbox.dropped == {"age": 2}, "the newest segment is never dropped"
    assert outbox.depth == 4
    await outbox.close()


@pytest.mark.parametrize("wrong_s", [365 * 86_400, -365 * 86_400])
async def test_one_wrong_moment_of_the_clock_ages_nothing(
    tmp_path: Path, time: SteppedTime, wrong_s: int
) -> None:
    machine = Machine(tmp_path, time.clock(), settings=OutboxSettings(max_age_days=30))
    outbox = await machine.start()

    async def wrong_moment() -> None:
        time.wrong_ms = wrong_s * 1000
        await outbox.tend()
        time.wrong_ms = 0
        await outbox.tend()

    for _ in range(5):
        await outbox.take([taken("a", None, time.boot_ms())])
        time.step(3601)
        await outbox.tend()
    await wrong_moment()
    assert outbox.depth == 5
    await outbox.close()
    outbox = await machine.start()
    await outbox.take([taken("a", None, time.boot_ms())])
    time.step(100_000)
    await outbox.tend()
    await wrong_moment()
    assert (outbox.depth, outbox.dropped) == (6, {}), "what an earlier run left, too"
    time.step(40 * 86_400)
    await outbox.tend()
    assert (outbox.depth, outbox.dropped) == (1, {"age": 5}), "but what is old is old"
    await outbox.close()


async def test_it_says_for_how_many_hours_there_is_room(
    machine: Machine, time: SteppedTime
) -> None:
    outbox = await machine.start()
    assert outbox.hours_left() is None
    for _ in range(1800):
        time.step(1)
        waiting = await outbox.take([taken("a", None, time.boot_ms())] * 10)
        outbox.forget(keys(waiting))
    size = 1800 * 10 * 60 / 1800  # bytes a second, about
    expected = machine.settings.max_mb * 1e6 / size / 3600
    hours = outbox.hours_left()
    assert hours is not None
    assert expected / 1.5 < hours < expected * 1.5
    time.step(3600)
    later = outbox.hours_left()
    assert later is None or later > hours, "nothing comes in any more"
    await outbox.close()


# ----------------------------------------------------------------------------------------------- a disk that is full


async def test_a_full_disk_is_bridged_in_memory_and_then_the_buses_wait(
    machine: Machine,
    time: SteppedTime,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("edge_agent.outbox.outbox.STAGE_MOST_BYTES", 20_000)
    outbox = await machine.start()
    waiting = await outbox.take([taken("a", None, time.boot_ms())])
    with pytest.MonkeyPatch.context() as patch:

        def full(*_: object, **__: object) -> None:
            raise OSError(28, "No space left on device")

        patch.setattr(machine._disk, "append", full)
        with pytest.raises(OutboxBlocked, match="No space left"):
            for _ in range(1000):
                time.step(1)
                waiting += await outbox.take([taken("a", None, time.boot_ms())])
        assert 200 < len(waiting) < 500
        assert caplog.text.count("the disk takes nothing") == 1
        assert await everything(outbox) == waiting
        outbox.forget(keys(waiting[:100]))
        more = await outbox.take([taken("a", None, time.boot_ms())])  # a receipt makes room
        await machine.kill()
        outbox = await machine.start()
        assert await everything(outbox) == waiting[100:] + more, "a kill loses none of it"
    machine.outbox._retry_ms = 0
    time.step(5)
    await outbox.tend()
    await machine.cut(time.rebooted("boot-2").clock())
    outbox = await machine.start()
    assert await everything(outbox) == waiting[100:] + more
    await outbox.close()


def test_a_stage_whose_outbox_nobody_sees_here_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its agent may have a file system that we do not, or its own may not be mounted yet."""
    monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)
    folder = volatile_folder()
    assert folder is not None, "this machine has no shared memory"
    stage = Stage(folder, tmp_path / "outbox")
    stage.begin("token", "boot", [])
    try:
        assert not (tmp_path / "outbox").exists()
        assert volatile_folder() == folder
        assert stage.recover("token", "boot") == []
    finally:
        stage.remove()


async def test_a_full_stage_keeps_no_device_from_its_epoch(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gateway that takes nothing connects, too: its states need epochs."""

    def full(_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    outbox = await machine.start()
    await outbox.take([taken("a", T0_MS)])
    if outbox._stage is not None:
        monkeypatch.setattr(outbox._stage, "append", full)
    epochs = await outbox.epochs_of(["a", "b"], T0_MS)
    await machine.kill()
    outbox = await machine.start()
    assert await outbox.epochs_of(["a", "b"], T0_MS) == epochs
    assert outbox.depth == 1
    await outbox.close()
