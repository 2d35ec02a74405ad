"""Commands and lamp programmes on a real broker and a simulated line of lamps, through the whole agent."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tomllib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

import aiomqtt
import pytest

from device_drivers.kit.driver import Value
from device_drivers.kit.registry import load
from edge_agent import agent as agent_module
from edge_agent import lighting as lighting_module
from edge_agent.ledger import Ledger
from edge_agent.trail import decode_trail
from exchange.commands import Command, Result, decode_result, encode_command
from exchange.configuration import toml_table
from exchange.health import asked
from exchange.processes import Child
from exchange.receipts import Receipt, encode_receipt
from exchange.states import decode_state
from tests.agents import GATEWAY, ROOT, lamp, running_agent, until, write_config
from tests.brokers import Mosquitto
from tests.troubled_lines import TroubledLine, lamp_twin, silent

TAIPEI = ZoneInfo("Asia/Taipei")
LAMP: dict[str, Value] = {"level": 5, "lit": True}


class Lamps:
    """Lamps on one line; every level that one of them was given is noted."""

    def __init__(self, count: int) -> None:
        self.given: list[tuple[int, int]] = []
        self.twins = [self._twin(number) for number in range(1, count + 1)]

    def _twin(self, number: int) -> Any:
        twin: Any = load("intesis_dali").twin(
            {"short_address": number}, lambda: LAMP, lambda _values: None
        )
        real = twin.write

        def write(function: int, address: int, values: Any) -> None:
            real(function, address, values)
            if address - twin.addresses.start == 15:
                self.given.append((number, values[0]))

        twin.write = write
        return twin

    @property
    def levels(self) -> dict[int, int | None]:
        """What each lamp was told last."""
        return {number: twin.commanded for number, twin in enumerate(self.twins, 1)}


class Issuer:
    """Gives commands and plays the part of ingest that answers results."""

    def __init__(self, client: aiomqtt.Client) -> None:
        self.results: dict[UUID, list[Result]] = {}
        self.payloads: Counter[bytes] = Counter()
        self.announced: dict[str, list[str]] = {}
        self.answers = True
        self._client = client

    async def listen(self) -> None:
        async for message in self._client.messages:
            assert isinstance(message.payload, bytes)
            topic = str(message.topic)
            if topic.endswith("/state"):
                state = decode_state(message.payload)
                assert state is not None
                self.announced[topic.split("/")[-2]] = state.descriptor.commands
            elif topic.endswith("/readings"):
                continue
            else:
                result = decode_result(message.payload)
                self.results.setdefault(result.id, []).append(result)
                self.payloads[message.payload] += 1
                if self.answers:
                    await self.receipt(result)

    async def receipt(self, result: Result) -> None:
        receipt = Receipt(v=1, results=[(str(result.id), result.status)])
        await self._client.publish(f"{ROOT}/receipts", encode_receipt(receipt), qos=1)

    async def give(self, order: Command, device: str = "lamp-1") -> None:
        topic = f"{ROOT}/streetlight/{device}/commands"
        await self._client.publish(topic, encode_command(order), qos=1)

    async def answered(self, order: Command, status: str) -> Result:
        def last() -> Result | None:
            results = self.results.get(order.id)
            return results[-1] if results else None

        await until(lambda: (one := last()) is not None and one.status == status)
        found = last()
        assert found is not None
        return found


@asynccontextmanager
async def issuer(broker: Mosquitto) -> AsyncIterator[Issuer]:
    async with aiomqtt.Client(broker.host, broker.port, timeout=20.0) as client:
        one = Issuer(client)
        for channel in ("state", "results"):
            await client.subscribe(f"{ROOT}/+/+/{channel}", qos=1)
        listening = asyncio.create_task(one.listen())
        try:
            yield one
        finally:
            while not listening.done():
                listening.cancel()
                await asyncio.wait([listening], timeout=0.2)
            (ended,) = await asyncio.gather(listening, return_exceptions=True)
            if isinstance(ended, Exception):
                raise ended


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    with Mosquitto(tmp_path, persistent=True) as one:
        yield one


Street = Callable[..., tuple[Lamps, Path]]


@pytest.fixture
def street(tmp_path: Path, broker: Mosquitto, modbus_line: Callable[..., Any]) -> Street:
    """Return `street(count, programme tables…)`: lamps on a line and an agent's file."""

    def make(count: int, *tables: str) -> tuple[Lamps, Path]:
        lamps = Lamps(count)
        port = modbus_line(*lamps.twins)["port"]
        # patient: a line that is late because the machine is busy has lost nobody
        bus = {"id": "rs485", "kind": "modbus-rtu", "port": port, "timeout_s": 10.0}
        devices = [
            lamp("rs485", number, interval_s=2.0, circuit="L2") for number in range(1, count + 1)
        ]
        path = write_config(tmp_path, broker, [bus], devices, delivery={"drain_s": 1.0})
        path.write_text("\n".join([path.read_text(), *tables]))
        tomllib.loads(path.read_text())
        return lamps, path

    return make


def command(level: object, *, name: str = "set_level", life_s: float = 60.0) -> Command:
    now = datetime.now(UTC)
    return Command(
        id=uuid4(),
        name=name,
        args={"level": level},  # type: ignore[dict-item]  # some are wrong on purpose
        issued_at=now,
        expires_at=now + timedelta(seconds=life_s),
        issued_by="the test",
    )


# -------------------------------------------------------------------------------------------------------- commands


async def test_a_command_switches_a_lamp_once_and_is_answered_for_ever(
    broker: Mosquitto, street: Street
) -> None:
    lamps, path = street(2)
    order, wrong, late = command(40), command(140), command(30, life_s=0.001)
    async with issuer(broker) as one:
        async with running_agent(path) as agent:
            await until(lambda: one.announced.get("lamp-2"))
            assert one.announced == {GATEWAY: [], "lamp-1": ["set_level"], "lamp-2": ["set_level"]}
            await until(lambda: agent.health.devices["lamp-1"].readings)
            await one.give(order)
            result = await one.answered(order, "done")
            assert result.readback == {"level": 40}
            assert lamps.levels == {1: 40, 2: None}
            await one.give(wrong, "lamp-2")
            await one.give(late, "lamp-2")
            assert "140" in (await one.answered(wrong, "rejected")).reason
            await one.answered(late, "expired")
            await one.give(order)
            await until(lambda: len(one.results[order.id]) == 2)
        async with running_agent(path):
            await one.give(order)
            await until(lambda: len(one.results[order.id]) == 3)
            assert one.results[order.id] == [result] * 3
            trail = decode_trail(await asked(path.parent / "state" / "status.sock", "commands"))
            assert [(order.by, order.status) for order in trail.orders] == [
                ("the test", "expired"),
                ("the test", "rejected"),
                ("the test", "done"),
            ]
    assert lamps.given == [(1, 40)]


async def test_a_command_that_came_while_the_gateway_was_away_is_carried_out_while_it_is_valid(
    broker: Mosquitto, street: Street
) -> None:
    lamps, path = street(1)
    async with running_agent(path) as agent:
        await until(lambda: agent.uplink.connected)
    valid, late = command(60), command(70, life_s=0.2)
    async with issuer(broker) as one:
        await one.give(late)
        await one.give(valid)
        await until(lambda: datetime.now(UTC) > late.expires_at)
        async with running_agent(path):
            await one.answered(late, "expired")
            await one.answered(valid, "done")
    assert lamps.given == [(1, 60)]


async def test_a_command_that_was_not_recorded_is_given_again(
    broker: Mosquitto, street: Street, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_module, "EXCHANGE_S", 0.2)
    lamps, path = street(1)
    order, recording = command(60), asyncio.Event()

    async def enter(*_: object, **__: object) -> str:
        recording.set()
        return await asyncio.Future()  # the process ends before the disk has it

    async with issuer(broker) as one:
        async with running_agent(path) as agent:
            await until(lambda: agent.health.devices["lamp-1"].readings)
            monkeypatch.setattr(agent.commands._ledger, "enter", enter)
            await one.give(order)
            async with asyncio.timeout(20):
                await recording.wait()
        async with running_agent(path):
            await one.answered(order, "done")
    assert lamps.given == [(1, 60)]


async def test_a_command_that_comes_with_the_farewell_is_given_again(
    broker: Mosquitto, street: Street, monkeypatch: pytest.MonkeyPatch
) -> None:
    lamps, path = street(1)
    order = command(60)
    async with issuer(broker) as one:
        async with running_agent(path) as agent:
            await until(lambda: agent.health.devices["lamp-1"].readings)
            whole = agent.uplink.farewell

            async def farewell() -> None:
                await one.give(order)
                await whole()

            monkeypatch.setattr(agent.uplink, "farewell", farewell)
        async with running_agent(path):
            await one.answered(order, "done")
    assert lamps.given == [(1, 60)]


async def test_results_wait_for_their_receipt_through_a_restart(
    broker: Mosquitto, street: Street
) -> None:
    _, path = street(1)
    order = command(20)
    async with issuer(broker) as one:
        one.answers = False
        async with running_agent(path) as agent:
            await until(lambda: agent.health.devices["lamp-1"].readings)
            await one.give(order)
            result = await one.answered(order, "done")
        one.answers = True
        async with running_agent(path) as agent:
            await until(lambda: one.results[order.id] == [result, result])
            await until(lambda: agent.commands._ledger.unreceipted == 0)
        async with running_agent(path) as agent:
            await until(lambda: agent.uplink.connected)
            assert agent.commands._ledger.unreceipted == 0


@pytest.mark.timeout(400)
async def test_whatever_is_killed_when_no_command_is_carried_out_twice(
    tmp_path: Path, broker: Mosquitto, street: Street
) -> None:
    """Kill -9 in a loop while commands come, each as often as it takes to be answered."""
    lamps, path = street(1)
    random, least = Random(7), 0
    orders = [command(level, life_s=600) for level in range(100)]
    child = Child("agent", [sys.executable, "-m", "edge_agent", str(path)], tmp_path)
    async with issuer(broker) as one:
        await child.start()
        try:
            # before its first session nobody keeps a command for it
            await until(lambda: one.announced.get("lamp-1"))
            for batch in range(0, 100, 10):
                # some are done while others are given
                count = len(lamps.given) + random.randint(1, 5)
                for order in orders[batch : batch + 10]:
                    await one.give(order)
                least += 1
                await until(lambda count=count: len(lamps.given) >= count, 60)  # type: ignore[misc]  # bound now
                await asyncio.sleep(random.uniform(0.0, 0.05))  # a moment at random is the point
                child.kill()
                await until(lambda: child.pid == 0 or not child.ready.is_set())
                await until(child.ready.is_set, 60)

            async def all_answered() -> None:
                while missing := [
                    order
                    for order in orders
                    if not any(r.status != "accepted" for r in one.results.get(order.id, []))
                ]:
                    for order in missing[:10]:
                        await one.give(order)
                    await asyncio.sleep(0.2)

            async with asyncio.timeout(120):
                await all_answered()
        finally:
            await child.stop(20.0)
    executed = Counter(level for _, level in lamps.given)
    assert max(executed.values()) == 1, "at most once"
    final = {
        order.args["level"]: {r.status for r in one.results[order.id]} - {"accepted"}
        for order in orders
    }
    assert all(len(statuses) == 1 for statuses in final.values()), "one result each"
    done = {level for level, statuses in final.items() if statuses == {"done"}}
    assert done <= executed.keys()
    assert {s for statuses in final.values() for s in statuses} <= {"done", "failed", "rejected"}
    assert len(executed) >= least


async def test_sigterm_ends_what_is_under_way_and_answers_it(
    tmp_path: Path, broker: Mosquitto, street: Street
) -> None:
    lamps, path = street(1)
    child = Child("agent", [sys.executable, "-m", "edge_agent", str(path)], tmp_path)
    async with issuer(broker) as one:
        await child.start()
        await until(lambda: one.announced.get("lamp-1"))
        orders = [command(level) for level in range(10)]
        for order in orders:
            await one.give(order)
        await until(lambda: lamps.given)
        os.kill(child.pid, signal.SIGTERM)
        assert await child.stop(30.0)
        await until(lambda: all(order.id in one.results for order in orders[:5]))
    done = {o.args["level"] for o in orders if any(r.status == "done" for r in one.results[o.id])}
    assert done == {level for _, level in lamps.given}


# ------------------------------------------------------------------------------------------------------ programmes


def programme(*steps: tuple[timedelta, int], **more: object) -> str:
    """Return a programme whose steps lie so far from now."""
    now = datetime.now(TAIPEI)
    table = [{"at": f"{now + ahead:%H:%M}", "level": level} for ahead, level in steps]
    return toml_table("[[programme]]", id="p", steps=table, circuits=["L2"], **more)


async def test_a_programme_switches_thirty_lamps_without_a_burst_and_polls_go_on(
    broker: Mosquitto, street: Street
) -> None:
    lamps, path = street(30, programme((timedelta(minutes=-5), 35), stagger_s=0.05))
    broker.stop()  # it needs nobody
    async with running_agent(path) as agent:
        await until(lambda: len(lamps.given) >= 20, 60)
        readings = sum(health.readings for health in agent.health.devices.values())
        assert readings, "polls go on between the lamps"
        await until(lambda: len(lamps.given) >= 30, 60)
        assert sorted(lamps.given) == [(number, 35) for number in range(1, 31)]
        assert set(lamps.levels.values()) == {35}
    broker.start()
    async with running_agent(path):
        # what should hold is said again after a start
        await until(lambda: len(lamps.given) >= 60, 60)
    assert Counter(lamps.given) == {(number, 35): 2 for number in range(1, 31)}


async def test_a_lamp_that_was_away_is_given_its_level_again(
    tmp_path: Path, broker: Mosquitto, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lighting_module, "LOOK_EVERY_S", 0.1)
    twins = [lamp_twin(1), lamp_twin(2)]
    order = command(80)
    async with TroubledLine(twins, tmp_path / "ttyS") as line, issuer(broker) as one:
        bus = {"id": "rs485", "kind": "modbus-rtu", "port": str(line.port)}
        devices = [
            lamp("rs485", unit, settings={"unit": unit, "short_address": 0}, circuit="L2")
            for unit in (1, 2)
        ]
        path = write_config(tmp_path, broker, [bus], devices, delivery={"drain_s": 1.0})
        steps = programme((timedelta(minutes=-5), 35), stagger_s=0.0)
        path.write_text(f"{path.read_text()}\n{steps}")
        async with running_agent(path) as agent:
            await until(lambda: [twin.commanded for twin in twins] == [35, 35])
            await one.give(order, "lamp-2")
            await one.answered(order, "done")
            line.trouble = dict.fromkeys((1, 2), silent)
            health = [agent.health.devices[name] for name in ("lamp-1", "lamp-2")]
            await until(lambda: all(each.was_away for each in health))
            for twin in twins:
                twin.commanded = None  # power returns: a level of its own
            line.trouble.clear()
            await until(lambda: [twin.commanded for twin in twins] == [35, 80])


async def test_somebodys_command_holds_until_the_next_step_and_over_a_restart(
    broker: Mosquitto, street: Street
) -> None:
    lamps, path = street(2, programme((timedelta(minutes=-5), 35), stagger_s=0.0))
    order = command(80)
    async with issuer(broker) as one:
        async with running_agent(path):
            await until(lambda: lamps.levels == {1: 35, 2: 35})
            await one.give(order)
            await one.answered(order, "done")
        lamps.given.clear()
        async with running_agent(path) as agent:
            await until(lambda: len(lamps.given) >= 2)
            async with asyncio.timeout(20):
                while len(await agent.commands._ledger.trail()) < 5:  # noqa: ASYNC110 - a disk has no event
                    await asyncio.sleep(0.01)
            assert lamps.levels == {1: 80, 2: 35}, "they may have begun anew with the gateway"
    ledger = Ledger(path.parent / "state" / "commands.sqlite")
    await ledger.open()
    trail = [(entry.kind, entry.device, entry.status) for entry in await ledger.trail()]
    assert Counter(trail) == {
        ("programme", "lamp-1", "done"): 2,
        ("programme", "lamp-2", "done"): 2,
        ("issued", "lamp-1", "done"): 1,
    }
    by = [one.detail.by for one in await ledger.trail() if one.device == "lamp-1"]
    assert by == [f"command {order.id}", "", "programme p"]
    await ledger.close()
