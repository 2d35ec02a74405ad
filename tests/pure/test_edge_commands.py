"""The commands of a gateway: judged, recorded before they are carried out, once for ever, answered until receipted."""

from __future__ import annotations

import asyncio
import logging
import re
import sqlite3
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, closing, suppress
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from uuid import UUID, uuid4

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device_drivers.errors import CommandRejected, DeviceSilent, LinkLost
from device_drivers.kit.driver import Value
from edge_agent import commands as commands_module
from edge_agent import ledger as ledger_module
from edge_agent.arbiter import Arbiter, Urgency
from edge_agent.commands import Commands, CommandSettings, announced
from edge_agent.config import Device, Gateway
from edge_agent.ledger import Issued, Ledger, LedgerBlocked, read_trail
from edge_agent.results import Results
from edge_agent.trail import decode_trail, trail_of
from exchange.commands import Argument, Command, Result, decode_result, encode_command
from exchange.delivery import BACKOFF_FIRST_S, BACKOFF_JITTER, BACKOFF_LAST_S
from exchange.receipts import Receipt
from tests.agents import until

NOW_MS = 1_800_000_000_000
GATEWAY = Gateway(id="gw-1", county="tw-tpe", site="street", state_dir="state")
TOPIC = "city/v1/tw-tpe/street/gw-1/streetlight/{}/commands"


class Clock:
    def __init__(self) -> None:
        self.now = NOW_MS
        self.known = True

    def now_ms(self) -> int:
        return self.now


class Bus:
    """Carries out one at a time what it is told, when it is let."""

    def __init__(self) -> None:
        self._arbiters: defaultdict[bool, Arbiter] = defaultdict(Arbiter)
        self.done: list[tuple[str, Value]] = []
        self.error: Exception | None = None
        self.open = asyncio.Event()
        self.open.set()
        self.under_way = 0

    async def execute(
        self, device_id: str, name: str, args: Mapping[str, Value], *, deadline_s: float
    ) -> dict[str, Value]:
        assert name == "set_level"
        assert deadline_s > 0
        async with self._arbiters[device_id == "lamp-3"].turn(Urgency.COMMAND, deadline_s):
            self.under_way += 1
            try:
                await self.open.wait()
                if self.error is not None:
                    raise self.error
                self.done.append((device_id, args["level"]))
                return {"level": args["level"], "x": float("nan")}
            finally:
                self.under_way -= 1


def lamp(number: int, bus: str = "rs485") -> Device:
    return Device(
        id=f"lamp-{number}",
        domain="streetlight",
        driver="intesis_dali",
        bus=bus,
        interval_s=60,
        settings={"short_address": number},
    )


class Bench:
    """A gateway's commands with a bus behind them, and what goes out."""

    def __init__(self, path: Path, clock: Clock, bus: Bus, settings: CommandSettings) -> None:
        self.clock, self.bus = clock, bus
        self.ledger = Ledger(path)
        lamps = [lamp(1), lamp(2), lamp(3, "other")]
        self.commands = Commands(GATEWAY, lamps, self.ledger, clock, bus.execute, settings)
        self.results = self.commands.results

    def give(self, command: Command | bytes, device: str = "lamp-1") -> asyncio.Event:
        payload = command if isinstance(command, bytes) else encode_command(command)
        return self.commands.put(TOPIC.format(device), payload)

    async def answers(self, command: UUID) -> list[Result]:
        """Return the results of a command that wait for a receipt."""
        try:
            waiting = await self.ledger.results()
        except LedgerBlocked:
            return []
        return [decode_result(one.payload) for one in waiting if one.id == str(command)]

    async def answered(self, command: UUID, *statuses: str) -> Result:
        """Return the last of the results that are expected."""
        async with asyncio.timeout(20):
            while [one.status for one in await self.answers(command)] != list(statuses):  # noqa: ASYNC110 - a disk has no event
                await asyncio.sleep(0.01)
        return (await self.answers(command))[-1]

    async def receipted(self, command: UUID, status: str) -> None:
        await self.results.due(0, silent=False)
        await self.results.receipted(Receipt(v=1, results=[(str(command), status)]))


@asynccontextmanager
async def bench(
    folder: Path, clock: Clock | None = None, bus: Bus | None = None, **settings: float
) -> AsyncIterator[Bench]:
    one = Bench(
        folder / "commands.sqlite",
        clock or Clock(),
        bus or Bus(),
        msgspec.convert({"accept_after_s": 30.0, **settings}, CommandSettings),
    )
    await one.commands.open()
    task = asyncio.create_task(one.commands.run())
    try:
        yield one
    finally:
        await one.commands.drain(5.0)
        task.cancel()
        await asyncio.wait([task])
        await one.commands.close()


def command(
    level: object = 40,
    *,
    name: str = "set_level",
    life_s: float = 60,
    age_s: float = 0,
    **more: object,
) -> Command:
    issued = datetime.fromtimestamp(NOW_MS / 1000, UTC) - timedelta(seconds=age_s)
    return Command(
        id=uuid4(),
        name=name,
        args={"level": level, **more},  # type: ignore[dict-item]  # some are wrong on purpose
        issued_at=issued,
        expires_at=issued + timedelta(seconds=life_s),
    )


# -------------------------------------------------------------------------------------------------------- judging


async def test_a_command_is_carried_out_and_answered_with_what_the_device_reads(
    tmp_path: Path,
) -> None:
    done: list[tuple[str, str, int]] = []
    async with bench(tmp_path) as one:
        one.commands.on_done = lambda *about: done.append(about)
        order = command(40)
        one.give(order)
        result = await one.answered(order.id, "done")
        assert result.readback == {"level": 40}, "what is no number is left out"
        assert result.at == datetime.fromtimestamp(NOW_MS / 1000, UTC)
        assert one.bus.done == [("lamp-1", 40)]
        assert done == [("lamp-1", "set_level", NOW_MS)]
        issued = Issued(str(order.id), NOW_MS, {"level": 40})
        assert await one.ledger.last_issued("lamp-1", "set_level") == issued
        assert await one.ledger.last_issued("lamp-2", "set_level") is None


@pytest.mark.parametrize(
    ("order", "device", "words"),
    [
        (command(140), "lamp-1", "level 140 is not in 0 … 100"),
        (command(-1), "lamp-1", "level -1 is not in 0 … 100"),
        (command(True), "lamp-1", "level True is not in 0 … 100"),
        (command("40"), "lamp-1", "level 40 is not in 0 … 100"),
        (command(40, fade=1), "lamp-1", "set_level takes level, not level, fade"),
        (command(40, name="blink"), "lamp-1", "blink is not a command of this device"),
        (command(40), "lamp-9", "this gateway has no such device"),
    ],
)
async def test_what_is_no_command_of_the_device_is_rejected(
    tmp_path: Path, order: Command, device: str, words: str
) -> None:
    async with bench(tmp_path) as one:
        one.give(order, device)
        assert (await one.answered(order.id, "rejected")).reason.startswith(f"{words} ")
        one.give(after := command(10), "lamp-2")
        await one.answered(after.id, "done")
        assert one.bus.done == [("lamp-2", 10)]


async def test_the_domain_of_the_topic_is_the_devices(tmp_path: Path) -> None:
    async with bench(tmp_path) as one:
        order = command()
        payload = encode_command(order)
        one.commands.put("city/v1/tw-tpe/street/gw-1/parking/lamp-1/commands", payload)
        await one.answered(order.id, "rejected")
        one.commands.put("city/v1/tw-tpe/street/gw-1/nonsense/lamp-1/commands", payload)
        one.give(after := command(10))
        await one.answered(after.id, "done")
        assert one.commands.counts == {"rejected": 1, "unreadable": 1, "done": 1}


async def test_one_that_expired_is_not_carried_out_and_one_that_cannot_be_read_neither(
    tmp_path: Path,
) -> None:
    async with bench(tmp_path) as one:
        late = command(age_s=60, life_s=60)
        backwards = command(life_s=0)
        for payload in (b"", b"{", b"\xff\xfe", b"[" * 5000, b'{"id": 7}'):
            one.give(payload)
        distant = b'"expires_at":"9999-12-31T23:59:59.999-14:00"'
        one.give(re.sub(rb'"expires_at":"[^"]*"', distant, encode_command(command(10))))
        one.give(late)
        one.give(backwards)
        await one.answered(late.id, "expired")
        told = await one.answered(backwards.id, "rejected")
        assert told.reason.startswith("EX-C-002"), "whoever can be named hears why"
        assert one.bus.done == []
        assert one.commands.counts["unreadable"] == 7


async def test_one_that_is_too_long_for_the_ledger_is_rejected(tmp_path: Path) -> None:
    async with bench(tmp_path) as one:
        args: dict[str, Argument] = {f"a{number}": "x" * 200 for number in range(100)}
        order = msgspec.structs.replace(command(), args=args)
        one.give(order)
        assert "longer" in (await one.answered(order.id, "rejected")).reason
        assert await one.ledger.trail() == []


async def test_a_gateway_whose_clock_is_not_known_rejects(tmp_path: Path) -> None:
    async with bench(tmp_path) as one:
        one.clock.known = False
        order = command()
        one.give(order)
        assert "clock" in (await one.answered(order.id, "rejected")).reason
        one.clock.known = True
        one.give(order)
        one.give(after := command(10))
        await one.answered(after.id, "done")
        assert one.bus.done == [("lamp-1", 10)], "what was rejected stays so"


# ----------------------------------------------------------------------------------------------------- its turn


async def test_one_that_waits_long_is_accepted_first(tmp_path: Path) -> None:
    async with bench(tmp_path, accept_after_s=0.1) as one:
        one.bus.open.clear()
        first, second = command(10), command(20)
        one.give(first)
        one.give(second)
        await one.answered(first.id, "accepted")
        await one.answered(second.id, "accepted")
        one.bus.open.set()
        await one.answered(first.id, "accepted", "done")
        await one.answered(second.id, "accepted", "done")
        assert one.bus.done == [("lamp-1", 10), ("lamp-1", 20)], "in the order in which they came"


async def test_one_whose_turn_does_not_come_in_time_expires(tmp_path: Path) -> None:
    async with bench(tmp_path) as one:
        one.bus.open.clear()
        first, second = command(10), command(20, life_s=0.3)
        one.give(first)
        one.give(second)
        await one.answered(second.id, "expired")
        one.give(elsewhere := command(30), "lamp-3")
        await until(lambda: one.bus.under_way == 1)
        one.bus.open.set()
        await one.answered(first.id, "done")
        assert ("lamp-1", 20) not in one.bus.done
        del elsewhere


async def test_a_bus_takes_so_many_and_not_more(tmp_path: Path) -> None:
    async with bench(tmp_path, queued=2) as one:
        one.bus.open.clear()
        orders = [command(level) for level in (10, 20, 30)]
        for order in orders:
            one.give(order)
        refused = await one.answered(orders[2].id, "rejected")
        assert refused.reason.startswith("2 commands wait for this bus already")
        one.bus.open.set()
        await one.answered(orders[1].id, "done")


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (LinkLost("rs485 is gone"), "failed", "LinkLost: rs485 is gone"),
        (DeviceSilent("no answer"), "failed", "DeviceSilent: no answer"),
        (CommandRejected("level = 40.5"), "rejected", "level = 40.5"),
        (TimeoutError("64 wait"), "failed", "64 wait"),
        (KeyError("a driver's bug"), "failed", 'KeyError: "a driver\'s bug"'),
    ],
)
async def test_what_a_bus_meets_is_the_result(
    tmp_path: Path, error: Exception, status: str, words: str
) -> None:
    async with bench(tmp_path) as one:
        one.bus.error = error
        order = command()
        one.give(order)
        assert (await one.answered(order.id, status)).reason == words
        one.bus.error = None
        one.give(after := command(10))
        await one.answered(after.id, "done")


# -------------------------------------------------------------------------------------------------- once for ever


async def test_a_command_that_comes_again_gets_the_same_result_and_is_not_carried_out(
    tmp_path: Path,
) -> None:
    clock, bus = Clock(), Bus()
    order = command(40)
    async with bench(tmp_path, clock, bus) as one:
        one.give(order)
        first = await one.answered(order.id, "done")
        await one.receipted(order.id, "done")
        assert await one.answers(order.id) == []
        clock.now += 5000
        one.give(order)
        one.give(order)
        assert await one.answered(order.id, "done") == first
        await one.receipted(order.id, "done")
    clock.now += 3_600_000
    async with bench(tmp_path, clock, bus) as one:
        one.give(order)
        assert await one.answered(order.id, "done") == first, "after a restart, and long expired"
        one.give(encode_command(order).replace(b'"name"', b'"name_"'))
        one.give(order, "lamp-2")
        await until(lambda: one.commands.counts["rejected"] == 2)
        assert await one.ledger.trail() == [
            entry for entry in await one.ledger.trail() if entry.status == "done"
        ], "what cannot be read, or is another device's, changes no record"
    assert bus.done == [("lamp-1", 40)]


async def test_one_that_was_interrupted_is_answered_and_never_carried_out_again(
    tmp_path: Path,
) -> None:
    clock, bus = Clock(), Bus()
    bus.open.clear()
    path = tmp_path / "commands.sqlite"
    order = command(40)
    ledger = Ledger(path)
    await ledger.open()
    topic = TOPIC.format("lamp-1").replace("commands", "results")
    assert await ledger.enter(order, "lamp-1", topic, NOW_MS) == "new"
    await ledger.close()  # as kill -9 leaves it: recorded, and nothing more
    async with bench(tmp_path, clock, bus) as one:
        result = await one.answered(order.id, "failed")
        assert result.reason.startswith("interrupted")
        one.give(order)
        one.bus.open.set()
        one.give(after := command(10))
        await one.answered(after.id, "done")
        assert [one.status for one in await one.answers(order.id)] == ["failed"]
    assert bus.done == [("lamp-1", 10)]


async def test_stopping_waits_for_what_is_under_way_and_answers_the_rest(tmp_path: Path) -> None:
    async with bench(tmp_path) as one:
        one.bus.open.clear()
        under_way, waiting = command(10), command(20)
        one.give(under_way)
        one.give(waiting)
        await until(lambda: one.bus.under_way == 1)
        draining = asyncio.create_task(one.commands.drain(0.3))
        await until(lambda: one.commands._is_stopping)
        one.give(late := command(30))
        assert "stopping" in (await one.answered(late.id, "rejected")).reason
        await draining
        for order in (under_way, waiting):
            assert (await one.answered(order.id, "failed")).reason.startswith("interrupted")
        one.bus.open.set()
    assert one.bus.done == []


async def test_stopping_lets_what_is_quick_end(tmp_path: Path) -> None:
    async with bench(tmp_path) as one:
        orders = [command(level) for level in range(5)]
        for order in orders:
            one.give(order)
        await one.commands.drain(20.0)
        for order in orders:
            await one.answered(order.id, "done")


# ------------------------------------------------------------------------------------------------------ the ledger


async def test_the_trail_is_bounded_and_lets_go_of_nothing_that_may_come_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_module, "ENTRIES_KEPT", 5)
    clock, bus = Clock(), Bus()
    async with bench(tmp_path, clock, bus) as one:
        short = [command(level, life_s=10) for level in range(3)]
        long = [command(level, life_s=3600) for level in range(6)]
        for order in [*short, *long]:
            one.give(order)
            await one.answered(order.id, "done")
        assert len(await one.ledger.trail()) == 9
        refused = [command(level, life_s=3600) for level in range(2)]
        for order in refused:
            one.give(order)
        await one.answered(refused[1].id, "rejected")
        assert "have not expired" in (await one.answers(refused[1].id))[0].reason
        count = len(bus.done)
        clock.now += 20_000  # the short ones have expired
        fresh = command(50, life_s=3600)
        one.give(fresh)
        await until(lambda: one.commands.counts["rejected"] == 2)
        for order in [*short, *long]:
            one.give(order)
        await until(lambda: one.commands._queue.empty())
    assert len(bus.done) == count
    del fresh


async def test_a_clock_that_is_wrong_for_a_moment_costs_no_trail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    year_ms = 365 * 86_400_000
    clock = Clock()
    async with bench(tmp_path, clock) as one:
        first = command(10, life_s=86_400)
        one.give(first)
        await one.answered(first.id, "done")
        clock.now += 70 * year_ms
        for level in (20, 30):
            one.give(late := command(level))
            await one.answered(late.id, "expired")
        clock.now = NOW_MS
        one.give(after := command(40))
        await one.answered(after.id, "done")
        assert len(await one.ledger.trail()) == 4
        monkeypatch.setattr(ledger_module, "STEADY_S", 0.0)
        clock.now += 2 * year_ms
        one.give(late := command(50))
        await one.answered(late.id, "expired")
        kept = {one.taken_ms for one in await one.ledger.trail()}
        assert min(kept) == clock.now, "in the end what is old goes"


async def test_one_that_was_let_go_is_not_carried_out_when_the_clock_goes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_module, "ENTRIES_KEPT", 1)
    clock, bus = Clock(), Bus()
    async with bench(tmp_path, clock, bus) as one:
        old = command(10, life_s=10)
        one.give(old)
        await one.answered(old.id, "done")
        await one.receipted(old.id, "done")
        clock.now += 60_000
        for level in (20, 30):
            one.give(order := command(level, life_s=3600))
            await one.answered(order.id, "done")
        assert len(await one.ledger.trail()) == 2, "the old one is gone"
        one.give(old)
        await one.answered(old.id, "expired")
        await one.receipted(old.id, "expired")
        clock.now -= 60_000
        one.give(old)
        told = await one.answered(old.id, "rejected")
        assert told.reason.startswith("it may have been carried out before")
    assert [level for _, level in bus.done] == [10, 20, 30]


async def test_a_damaged_ledger_is_set_aside_and_what_was_issued_before_is_not_carried_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "commands.sqlite"
    path.write_bytes(b"no ledger of ours" * 1000)
    before, clock = command(10, age_s=30), Clock()
    clock.now += 1000
    async with bench(tmp_path, clock) as one:
        one.give(before)
        await one.answered(before.id, "rejected")
        one.give(after := command(20, age_s=-2))
        await one.answered(after.id, "done")
    assert (tmp_path / "commands.sqlite.unsound-1").exists()
    assert [record.levelname for record in caplog.records] == ["ERROR"]


async def test_when_a_ledger_was_set_aside_is_told_by_a_clock_that_is_right(
    tmp_path: Path,
) -> None:
    path = tmp_path / "commands.sqlite"
    before, clock, bus = command(10, age_s=30), Clock(), Bus()
    path.write_bytes(b"no ledger of ours" * 1000)
    clock.now, clock.known = 1_577_836_800_000, False  # a board without a clock of its own
    async with bench(tmp_path, clock, bus):
        pass
    async with bench(tmp_path, clock, bus) as one:
        clock.now, clock.known = NOW_MS, True
        one.give(before)
        assert "before" in (await one.answered(before.id, "rejected")).reason
        one.give(after := command(20, age_s=-2))
        await one.answered(after.id, "done")

    path.write_bytes(b"no ledger of ours" * 1000)
    clock.now = NOW_MS + 70 * 365 * 86_400_000
    async with bench(tmp_path, clock, bus) as one:
        one.give(expired := command(30, age_s=-2))
        await one.answered(expired.id, "expired")
        clock.now = NOW_MS
        one.give(before)
        assert "before" in (await one.answered(before.id, "rejected")).reason
        one.give(last := command(40, age_s=-2))
        await one.answered(last.id, "done")
    assert [level for _, level in bus.done] == [20, 40]


async def test_a_ledger_that_was_dated_by_a_clock_in_the_future_is_dated_anew_after_a_restart(
    tmp_path: Path,
) -> None:
    path = tmp_path / "commands.sqlite"
    before, clock, bus = command(10, age_s=30), Clock(), Bus()
    path.write_bytes(b"no ledger of ours" * 1000)
    clock.now = NOW_MS + 70 * 365 * 86_400_000
    async with bench(tmp_path, clock, bus) as one:
        one.give(expired := command(30, age_s=-2))
        await one.answered(expired.id, "expired")
    clock.now = NOW_MS
    async with bench(tmp_path, clock, bus) as one:
        one.give(before)
        assert "before" in (await one.answered(before.id, "rejected")).reason
        one.give(after := command(40, age_s=-2))
        await one.answered(after.id, "done")
    clock.now += 10_000
    async with bench(tmp_path, clock, bus) as one:
        one.give(last := command(50, age_s=-5))
        await one.answered(last.id, "done")
    assert [level for _, level in bus.done] == [40, 50]


# ---------------------------------------------------------------------------------------------------- damaged bytes


class Lived:
    """A ledger as a process leaves it that was killed, and the commands that it knows."""

    def __init__(self, folder: Path) -> None:
        self.orders = [command(level, life_s=3600) for level in (10, 20, 30, 140)]
        self.orders.append(command(50, age_s=7200))
        self.content = asyncio.run(self._lived(folder))

    async def _lived(self, folder: Path) -> bytes:
        async with bench(folder) as one:
            for order in self.orders:
                one.give(order)
            await until(lambda: one.commands.counts.total() == len(self.orders))
            await one.commands.order(
                "lamp-2", "set_level", {"level": 35}, by="programme p", deadline_s=5
            )
            await one.receipted(self.orders[0].id, "done")
        left = command(60, life_s=3600)
        self.orders.append(left)
        ledger = Ledger(folder / "commands.sqlite")
        await ledger.open()
        topic = TOPIC.format("lamp-1").replace("commands", "results")
        await ledger.enter(left, "lamp-1", topic, NOW_MS)
        await ledger.close()
        return (folder / "commands.sqlite").read_bytes()


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> Lived:
    return Lived(tmp_path_factory.mktemp("lived"))


COLUMNS = {
    "entry": list(ledger_module._Row.__struct_fields__),
    "result": ["id", "status", "topic", "payload"],
    "past": ["expired_ms", "issued_ms"],
}
cells = st.sampled_from([(table, name) for table, names in COLUMNS.items() for name in names])
worths = st.one_of(
    st.none(),
    st.binary(max_size=40),
    st.integers(-(2**63), 2**63 - 1),
    st.sampled_from(["", "{}", "[]", "done", "a/#", "\x07", "lamp-1", "set_level", "programme"]),
    st.uuids().map(str),
)


async def goes_on(folder: Path, lived: Lived) -> list[str]:
    """See that an agent does all its work on this ledger; return the statuses of its trail at the start."""
    path, bus = folder / "commands.sqlite", Bus()
    with suppress(LedgerBlocked):
        trail_of(read_trail(path, 1000))
    async with bench(folder, bus=bus) as one:
        assert one.commands._is_open
        trail = decode_trail(await one.commands.trail_document())
        assert trail.problem == ""
        for device in ("lamp-1", "lamp-2"):
            await one.ledger.last_issued(device, "set_level")
        await one.results.due(0, silent=False)
        for going in await one.results.due(1e6, silent=False):
            assert re.fullmatch("[a-z0-9_/-]+", going.waiting.topic)
            decode_result(going.waiting.payload)
        for order in lived.orders:
            one.give(order)
        one.clock.now += 60_000  # what was set aside now knows nothing of what is issued later
        new = command(70, age_s=-60)
        one.give(new)
        await one.answered(new.id, "done")
        assert await one.results.due(2e6, silent=False)
    assert bus.done == [("lamp-1", 70)], "at most once, whatever the ledger has lost"
    return [order.status for order in trail.orders]


def test_a_ledger_of_which_nothing_is_damaged_is_kept(tmp_path: Path, lived: Lived) -> None:
    (tmp_path / "commands.sqlite").write_bytes(lived.content)
    statuses = asyncio.run(goes_on(tmp_path, lived))
    assert statuses == ["failed", "done", "expired", "rejected", "done", "done", "done"]
    assert names(tmp_path) == {"commands.sqlite"}


@settings(deadline=None, max_examples=60)
@given(cell=cells, worth=worths, data=st.data())
def test_whatever_a_row_says_the_agent_goes_on_and_carries_out_nothing_twice(
    lived: Lived, cell: tuple[str, str], worth: object, data: st.DataObject
) -> None:
    table, column = cell
    with TemporaryDirectory() as name:
        path = Path(name) / "commands.sqlite"
        path.write_bytes(lived.content)
        with closing(sqlite3.connect(path, isolation_level=None)) as db:
            # without its own checks, as a disk has none
            db.execute("PRAGMA writable_schema=ON")
            db.execute("UPDATE sqlite_master SET sql = replace(sql, ' NOT NULL', '')")
        with closing(sqlite3.connect(path, isolation_level=None)) as db:
            numbers = [number for (number,) in db.execute(f"SELECT rowid FROM {table}")]  # noqa: S608 - our own names
            is_text = isinstance(worth, bytes) and data.draw(st.booleans())
            what = "CAST(? AS TEXT)" if is_text else "?"
            db.execute(
                f"UPDATE OR IGNORE {table} SET {column} = {what} WHERE rowid = ?",  # noqa: S608 - as above
                (worth, data.draw(st.sampled_from(numbers))),
            )
        asyncio.run(goes_on(Path(name), lived))


@settings(deadline=None, max_examples=80)
@given(data=st.data())
def test_whichever_byte_is_damaged_the_agent_goes_on_and_carries_out_nothing_twice(
    lived: Lived, data: st.DataObject
) -> None:
    content = bytearray(lived.content)
    written = [number for number, byte in enumerate(content) if byte]
    content[data.draw(st.sampled_from(written))] ^= data.draw(st.integers(1, 255))
    with TemporaryDirectory() as name:
        (Path(name) / "commands.sqlite").write_bytes(content)
        asyncio.run(goes_on(Path(name), lived))


async def test_damage_that_comes_while_it_is_open_is_set_aside_as_well(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bus = Bus()
    async with bench(tmp_path, bus=bus) as one:
        one.give(order := command(40, age_s=1))
        await one.answered(order.id, "done")

        def damage() -> None:
            one.ledger._open_db.execute("UPDATE entry SET detail = CAST(x'ff' AS TEXT)")

        await one.ledger._run(damage)
        assert await one.ledger.last_issued("lamp-1", "set_level") is None
        one.give(order)
        assert "before" in (await one.answered(order.id, "rejected")).reason
        one.clock.now += 10_000
        one.give(after := command(50, age_s=-10))
        await one.answered(after.id, "done")
    assert bus.done == [("lamp-1", 40), ("lamp-1", 50)]
    assert (tmp_path / "commands.sqlite.unsound-1").exists()
    said = [record.message for record in caplog.records]
    assert said == ["the ledger of commands was unsound and set aside"]


async def test_a_damaged_result_is_let_go_of_and_holds_up_no_other(
    ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(4):
        await ledger.reply(result(number), f"t/{number}")

    def damage() -> None:
        for number, topic in enumerate(("t/#", "t/\x07", ""), start=1):
            query = "UPDATE result SET topic = ? WHERE number = ?"
            ledger._open_db.execute(query, (topic, number))

    await ledger._run(damage)
    (going,) = await Results(ledger).due(0, silent=False)
    assert going.waiting.topic == "t/3"
    assert ledger.unreceipted == 1
    assert [record.message for record in caplog.records] == ["a damaged result was let go of"] * 3


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


async def test_no_more_than_five_ledgers_are_kept_that_were_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "commands.sqlite"
    (tmp_path / "commands.sqlite.unsound-1 copy").write_bytes(b"somebody's")
    for number in range(8):
        path.write_bytes(b"damage %d" % number * 1000)
        async with bench(tmp_path):
            pass
    kept = {f"{path.name}.unsound-{number}" for number in (4, 5, 6, 7, 8)}
    assert names(tmp_path) == {path.name, f"{path.name}.unsound-1 copy", *kept}
    assert path.with_name(f"{path.name}.unsound-8").read_bytes().startswith(b"damage 7")


async def test_one_that_was_interrupted_is_answered_once_the_disk_takes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(commands_module, "RETRY_LAST_S", 0.02)
    caplog.set_level(logging.INFO, "edge_agent.commands")
    order, topic = command(40), TOPIC.format("lamp-1").replace("commands", "results")
    ledger = Ledger(tmp_path / "commands.sqlite")
    await ledger.open()
    assert await ledger.enter(order, "lamp-1", topic, NOW_MS) == "new"
    await ledger.close()
    with closing(sqlite3.connect(tmp_path / "commands.sqlite")) as db:
        full = "CREATE TRIGGER full BEFORE INSERT ON result BEGIN SELECT raise(ABORT, 'full'); END"
        db.execute(full)  # what a full disk does: it is read, and takes nothing
    async with bench(tmp_path) as one:
        assert await one.answers(order.id) == []
        await one.ledger._run(lambda: one.ledger._open_db.execute("DROP TRIGGER full"))
        assert (await one.answered(order.id, "failed")).reason.startswith("interrupted")
        one.give(after := command(50))
        await one.answered(after.id, "done")
    began, ended = [record.message for record in caplog.records]
    assert began.startswith("commands cannot be recorded, and are not carried out: ")
    assert ended == "commands are recorded again"


async def test_a_disk_that_takes_nothing_carries_out_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with bench(tmp_path) as one:
        await one.ledger.close()
        with closing(sqlite3.connect(tmp_path / "commands.sqlite")) as db:
            db.execute("BEGIN EXCLUSIVE")
            one.ledger = one.commands._ledger = blocked = Ledger(tmp_path / "commands.sqlite")
            one.results._ledger = blocked
            one.commands._is_open = False
            given = [one.give(what) for what in (command(10), b"no command", command(11))]
            await until(lambda: all(judged.is_set() for judged in given))
            db.rollback()
        one.give(after := command(20))
        await one.answered(after.id, "done")
        assert one.bus.done == [("lamp-1", 20)]
    (said,) = [record.message for record in caplog.records]
    assert said.startswith("commands cannot be recorded"), "each trouble once, whatever alternates"


async def test_two_agents_do_not_share_a_ledger(tmp_path: Path) -> None:
    async with bench(tmp_path):
        other = Ledger(tmp_path / "commands.sqlite")
        with pytest.raises(LedgerBlocked):
            await other.open()
        await other.close()


async def test_what_a_programme_does_is_in_the_trail(tmp_path: Path) -> None:
    async with bench(tmp_path) as one:

        async def order(level: int, *, again: bool = False) -> str:
            args: dict[str, Value] = {"level": level}
            outcome = await one.commands.order(
                "lamp-1", "set_level", args, by="programme p", deadline_s=10, again=again
            )
            return outcome.status

        assert await order(10) == "done"
        one.bus.error = LinkLost("gone")
        assert [await order(20), await order(20, again=True)] == ["failed", "failed"]
        trail = await one.ledger.trail()
        assert [(entry.kind, entry.device, entry.status) for entry in trail] == [
            ("programme", "lamp-1", "failed"),
            ("programme", "lamp-1", "done"),
        ]
        assert (trail[1].detail.by, trail[1].detail.args) == ("programme p", {"level": 10})
        assert trail[0].result.reason == "LinkLost: gone"
        assert one.ledger.unreceipted == 0, "nobody asked, nobody is answered"
        assert await one.ledger.last_issued("lamp-1", "set_level") is None


def test_a_state_announces_what_the_device_takes() -> None:
    assert announced(lamp(1), CommandSettings()) == ["set_level"]
    assert announced(lamp(1), CommandSettings(enabled=False)) == []


# ------------------------------------------------------------------------------------------------- until receipted


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[Ledger]:
    one = Ledger(tmp_path / "commands.sqlite")
    await one.open()
    yield one
    await one.close()


def result(number: int) -> Result:
    at = datetime.fromtimestamp(NOW_MS / 1000, UTC)
    return Result(v=1, id=UUID(int=number), status="done", at=at)


async def test_a_result_goes_again_with_back_off_until_its_receipt(ledger: Ledger) -> None:
    results = Results(ledger, random=Random(1))
    await ledger.reply(result(1), "t/1")
    sent_s = [now_s for now_s in range(3600) if await results.due(now_s, silent=False)]
    gaps = [later - before for before, later in pairwise(sent_s)]
    assert sent_s[0] == 0
    for number, gap in enumerate(gaps):
        least = min(BACKOFF_LAST_S, BACKOFF_FIRST_S * 2**number)
        assert least <= gap <= least * (1 + BACKOFF_JITTER) + 1
    await results.receipted(Receipt(v=1, results=[(str(UUID(int=1)), "failed")]))
    assert ledger.unreceipted == 1
    await results.receipted(Receipt(v=1, results=[(str(UUID(int=1)), "done")]))
    assert ledger.unreceipted == 0
    assert await results.due(1e6, silent=False) == []


async def test_with_no_receipt_at_all_only_the_oldest_goes_again(ledger: Ledger) -> None:
    results = Results(ledger)
    for number in range(3):
        await ledger.reply(result(number), f"t/{number}")
    assert len(await results.due(0, silent=True)) == 3, "each once"
    (oldest,) = await results.due(100, silent=True)
    assert oldest.waiting.topic == "t/0"
    assert [one.waiting.topic for one in await results.due(100, silent=False)] == ["t/1", "t/2"]


async def test_a_result_that_the_broker_never_had_goes_again_at_once(ledger: Ledger) -> None:
    results = Results(ledger)
    await ledger.reply(result(1), "t/1")
    (going,) = await results.due(0, silent=False)
    results.failed(going)
    assert await results.due(1, silent=False) == [going]
    assert going.tries == 1


async def test_a_result_that_is_refused_is_let_go(
    ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    results = Results(ledger)
    await ledger.reply(result(1), "t/1")
    (going,) = await results.due(0, silent=False)
    digest = sha256(going.waiting.payload).hexdigest()
    await results.receipted(Receipt(v=1, unreadable=[("0" * 64, "EX-R-001"), (digest, "EX-C-003")]))
    assert ledger.unreceipted == 0
    assert [record.message for record in caplog.records] == ["a result was refused"]


async def test_results_are_bounded_and_what_goes_is_counted(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_module, "RESULTS_KEPT", 3)
    for number in range(5):
        await ledger.reply(result(number), f"t/{number}")
    assert (ledger.unreceipted, ledger.dropped) == (3, 2)
    assert [one.topic for one in await ledger.results()] == ["t/2", "t/3", "t/4"]


async def test_a_burst_of_rejected_commands_takes_no_place_of_what_was_carried_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ledger_module, "RESULTS_KEPT", 20)
    async with bench(tmp_path) as one:
        orders = [command(level) for level in range(5)]
        for order in orders:
            one.give(order)
            await one.answered(order.id, "done")
        for level in range(140, 180):
            one.give(command(level), "lamp-2")
        await until(lambda: one.commands.counts["rejected"] == 40)
        for order in orders:
            await one.answered(order.id, "done")
        assert (one.ledger.unreceipted, one.ledger.dropped) == (20, 25)
        assert one.commands.counts["dropped"] == 25
        one.give(last := command(60))
        await one.answered(last.id, "done")
    said = [record.message for record in caplog.records]
    assert len(said) == 1, "once for all of them"
    assert said[0].startswith("results without a receipt are let go of")
