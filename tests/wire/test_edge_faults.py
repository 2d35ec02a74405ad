"""Whatever goes wrong between a device and the office: afterwards taken = stored + refused.

The agent is a process, its devices are twins on real lines, the broker is Mosquitto.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from dbus_fast import BusType, Message, MessageType, Variant
from dbus_fast.aio import MessageBus

from device_drivers.kit.driver import Value
from device_drivers.kit.registry import load
from edge_agent import uplink as uplink_module
from edge_agent.clock import Clock, System
from tests import troubled_lines as troubles
from tests.accounted_town import LONG_S, town
from tests.agents import lamp, running_agent, until, witness, write_config
from tests.brokers import Mosquitto
from tests.outboxes import fill
from tests.troubled_lines import Sent, Trouble

pytestmark = pytest.mark.timeout(5 * LONG_S)
HOUR_MS = 3_600_000
TAKEN_UP = "the configuration was taken up"


# ----------------------------------------------------------------------------------------------------------- lines


def slow(answer: bytes) -> Sent:
    return [(0.3, answer)]


def in_pieces(frame: bytes) -> Sent:
    return [(0.0, frame[:7]), (0.2, frame[7:])]


def noisy(frame: bytes) -> Sent:
    """Bytes of nobody, half a header among them, before the right ones."""
    return [(0.0, b"\x00\xffB" + frame)]


LINE_TROUBLES: list[tuple[str, Trouble, Trouble]] = [
    ("silence", troubles.silent, troubles.silent),
    ("slow", slow, in_pieces),
    ("CRC error", troubles.damaged, troubles.damaged),
    ("truncation", troubles.cut_off, troubles.cut_off),
    ("stray reply", troubles.with_a_stray, noisy),
    ("wrong unit id", troubles.of_another_unit, noisy),
    ("reboot", troubles.booting, troubles.booting),
    ("stuck", troubles.busy, troubles.silent),
]


async def test_whatever_a_line_does_to_answers(tmp_path: Path) -> None:
    """One lamp of two and the air box have trouble, one after another; the others are not to notice."""
    async with town(tmp_path) as one:
        lamp, box = one.truths["lamp-2"], one.truths["air-1"]
        for name, of_lamp, of_box in LINE_TROUBLES:
            heard = [truth.answers + 2 for truth in (lamp, box)]
            one.lamps.due[2], one.air.trouble = of_lamp, of_box
            await until(lambda n=heard: lamp.answers >= n[0] and box.answers >= n[1], LONG_S)  # type: ignore[misc]
            assert one.agent.pid, name
        assert lamp.spoiled >= 10
        assert box.spoiled >= 4
        one.lamps.due[2], one.air.trouble = None, None
        await one.flows()
        await one.account()
        one.check_names()
        assert one.logged("bus lost") == []


async def test_adapters_that_are_pulled_and_return_under_other_names(tmp_path: Path) -> None:
    async with town(tmp_path) as one:
        for names in (("ttyUSB7", "ttyUSB0"), ("ttyUSB1", "ttyUSB5")):
            lost = len(one.logged("bus lost"))
            await one.unplug()
            await until(lambda n=lost: len(one.logged("bus lost")) >= n + 2, LONG_S)  # type: ignore[misc]
            one.gate.open()
            await one.flows(["bay-1"])
            await one.plug(*names)
            await one.flows()
        await one.account()
        one.check_names()


async def test_a_radio_that_is_switched_off(tmp_path: Path) -> None:
    async with town(
        tmp_path, edge_agent__buses__SILENT_S=2.0, edge_agent__buses__QUIET_S=3.0
    ) as one:
        await one.silence()
        await switch(one.dbus, "Powered", on=False)
        one.gate.open()
        await one.flows()  # the agent has switched it on
        assert len(one.logged("bus lost")) >= 1
        await one.account()
        one.check_names()


async def switch(address: str, name: str, *, on: bool) -> None:
    """Set a property of the adapter, as an operator's tool does."""
    bus = MessageBus(bus_address=address, bus_type=BusType.SYSTEM)
    await bus.connect()
    try:
        reply = await bus.call(
            Message(
                destination="org.bluez",
                path="/org/bluez/hci0",
                interface="org.freedesktop.DBus.Properties",
                member="Set",
                signature="ssv",
                body=["org.bluez.Adapter1", name, Variant("b", on)],
            )
        )
        assert reply is not None
        assert reply.message_type is not MessageType.ERROR, reply.body
    finally:
        bus.disconnect()
        await bus.wait_for_disconnect()  # type: ignore[no-untyped-call]  # its omission


# ---------------------------------------------------------------------------------------------------------- broker


async def test_a_broker_that_is_gone_refuses_and_forgets(tmp_path: Path) -> None:
    """What it had acknowledged and lost is found out, and goes again."""
    async with town(tmp_path) as one:
        one.broker.kill()
        one.broker.wipe()
        await one.say_more()
        one.passwords["gw-1"] = "another"
        one.broker.start()
        await until(lambda: "not authorised" in one.broker.log, LONG_S)
        await one.say_more()
        one.broker.stop()
        one.passwords["gw-1"] = "right"
        one.broker.start()
        await one.flows()
        for _ in range(2):  # in full flow, with what it holds in its memory
            one.broker.kill()
            one.broker.wipe()
            one.broker.start()
            await one.say_more(1)
        await one.flows()
        await one.account()
        one.check_names()


class Later(System):
    """The machine's clocks, further on."""

    passed_ms = 0

    def wall_ms(self) -> int:
        return super().wall_ms() + self.passed_ms

    def boot_ms(self) -> int:
        return super().boot_ms() + self.passed_ms


async def test_a_broker_that_is_gone_for_a_day(
    tmp_path: Path, modbus_line: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything of the day comes, each at its time, and what is new does not wait for it."""
    monkeypatch.setattr(uplink_module, "BACKOFF_LAST_S", 0.3)
    numbers, truth = count(), list[Mapping[str, Value]]()
    twin = load("intesis_dali").twin(
        {"short_address": 1}, lambda: {"level": next(numbers) % 100}, truth.append
    )
    buses = [{"id": "rs485", "kind": "modbus-rtu", "port": modbus_line(twin)["port"]}]
    clock = Later()
    with Mosquitto(tmp_path) as broker:
        path = write_config(tmp_path, broker, buses, [lamp("rs485", 1)])
        async with running_agent(path, clock=Clock(source=clock)) as agent:
            async with witness(broker) as seen:
                await until(lambda: len(seen.of("lamp-1")) >= 3)
            came = len(seen.of("lamp-1"))
            broker.kill()
            await until(lambda: not agent.uplink.connected, LONG_S)
            for _ in range(24):
                clock.passed_ms += HOUR_MS
                depth = agent.outbox.depth
                await until(lambda n=depth: agent.outbox.depth >= n + 4, LONG_S)  # type: ignore[misc]
            broker.start()
            async with witness(broker) as back:
                await until(lambda: agent.uplink.connected, LONG_S)
                await until(lambda: len(back.of("lamp-1")) >= 96, LONG_S)
                await until(lambda: agent.outbox.depth <= 2, LONG_S)
                assert agent.outbox.dropped.total() == 0
                assert agent.clock.jumped == 0, "time has passed, no clock was set"
        samples = {one.seq: one for one in [*seen.of("lamp-1")[:came], *back.of("lamp-1")]}
    ordered = [samples[seq] for seq in sorted(samples)]
    assert sorted(samples) == list(range(len(ordered)))
    assert [one.metrics for one in ordered] == [dict(values) for values in truth[: len(ordered)]]
    assert len({one.epoch for one in ordered}) == 1
    assert ordered[-1].time_ms - ordered[0].time_ms >= 24 * HOUR_MS
    hours = Counter((one.time_ms - ordered[0].time_ms) // HOUR_MS for one in ordered)
    assert all(hours[hour] >= 3 for hour in range(1, 24)), "each has the time of its measurement"


# ------------------------------------------------------------------------------------------- the gateway's own trouble


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own for the state. Only root may mount one."""
    folder = tmp_path / "state"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "edge_faults", str(folder)]
    subprocess.run(mount, check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


async def test_a_full_disk_while_the_broker_is_away(tmp_path: Path, small_disk: Path) -> None:
    async with town(tmp_path) as one:
        one.broker.stop()
        ballast = await asyncio.to_thread(fill, small_disk)
        await until(lambda: one.logged("the disk takes nothing"), LONG_S)
        await one.say_more()
        await one.kill()
        await one.start()
        await one.say_more()
        one.broker.start()
        await one.flows()  # although it is full
        ballast.unlink()
        await one.account()
        one.check_names()


async def test_an_outbox_that_is_damaged(tmp_path: Path) -> None:
    """A bit that has flipped costs the one sample that it was in, and that is said aloud."""
    async with town(tmp_path) as one:
        one.broker.stop()
        await one.say_more(6)
        await one.silence()
        (segment,) = await until_kept(one.state / "outbox")
        await one.kill()
        for truth in one.truths.values():
            truth.excused.clear()  # nothing was in its hands
        damaged = flipped(segment)
        await one.start()
        (said,) = one.logged("a part of the outbox is damaged; what is good of it is kept")
        assert said["file"] == segment.name
        assert content(said["aside"]) == damaged, "it is there to be looked at"
        one.gate.open()
        one.broker.start()
        await one.flows()
        await one.account(damaged=1)


def flipped(file: Path) -> bytes:
    """Change one bit of a file; return what it holds then."""
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(data)
    return bytes(data)


def content(path: str) -> bytes:
    return Path(path).read_bytes()


async def until_kept(outbox: Path) -> list[Path]:
    """Return the files of an outbox once nothing more comes to them."""
    sizes: list[tuple[Path, int]] = []

    def is_settled() -> bool:
        before = sizes[:]
        sizes[:] = [(file, file.stat().st_size) for file in outbox.glob("*.seg")]
        return bool(sizes) and before == sizes

    for _ in range(3):  # what was taken last is brought to the disk within 2 s
        await asyncio.sleep(1.0)
        is_settled()
    await until(is_settled)
    return [file for file, _ in sizes]


async def test_a_clock_that_jumps(tmp_path: Path) -> None:
    """There and back, with and without a broker."""
    async with town(tmp_path) as one:
        for hours in (-5, 0, 7):
            one.offset.write_text(str(hours * HOUR_MS))
            await one.flows()
        one.broker.stop()
        one.offset.write_text(str(-2 * HOUR_MS))
        await one.say_more()
        one.broker.start()
        await one.flows()
        one.offset.write_text("0")
        await one.flows()
        assert len(one.logged("the system's clock jumped")) == 5
        await one.account()
        one.check_names()


async def test_a_configuration_that_is_taken_up_in_full_flow(tmp_path: Path) -> None:
    """SIGHUP: the lamps' bus begins anew each time, and an exchange that is under way is finished before."""
    async with town(tmp_path) as one:
        text = one.config.read_text()
        for number in range(1, 7):
            one.rewrite(text.replace("interval_s = 0.3", f"interval_s = 0.3{number}"))
            os.kill(one.agent.pid, signal.SIGHUP)
            await until(lambda n=number: len(one.logged(TAKEN_UP)) == n, LONG_S)  # type: ignore[misc]
            await one.flows(["lamp-1", "lamp-2"])
        await one.account()
        one.check_names()


async def test_kill_9_at_random_moments(tmp_path: Path) -> None:
    """With the broker there and away; of each device a kill costs at most the reading that was in the agent's hands."""
    seed = random.randrange(2**32)
    print(f"{seed=}")  # noqa: T201 - shown when the test fails
    chance = random.Random(seed)
    async with town(tmp_path) as one:
        for number in range(6):
            if number == 2:
                one.broker.stop()
            if number == 4:
                one.broker.start()
            await asyncio.sleep(chance.uniform(0, 1.5))
            await one.kill()
            await one.start(is_waited_for=chance.random() < 0.7)
        await one.flows()
        await one.account()
        one.check_names()
        assert all(len(one.office.epochs(device)) == 1 for device in one.truths)
