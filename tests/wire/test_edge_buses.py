"""Buses in trouble: whatever one device does, its neighbours keep their schedule, and it is read again soon."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
from dbus_fast import BusType, Message, MessageType, Variant
from dbus_fast.aio import MessageBus
from serial.tools.list_ports_common import ListPortInfo

from device_drivers.errors import CommandRejected, DeviceRefused, DeviceSilent, LinkLost
from device_drivers.kit.driver import GattDevice, Reading, Value
from device_drivers.kit.profile import Profile
from device_drivers.kit.register_table import TableDriver
from device_drivers.kit.registry import load
from device_drivers.kit.twin import ModbusException
from device_drivers.links import ble
from device_drivers.links import modbus as modbus_link
from device_drivers.links import serial as serial_link
from device_drivers.links.ble import open_scanner, power_cycle
from device_drivers.links.modbus import open_modbus_rtu
from device_drivers.links.modbus_tcp import open_modbus_tcp
from edge_agent import buses as buses_module
from edge_agent import schedule as schedule_module
from edge_agent.config import BleBus, Device, ModbusRtuBus, ModbusTcpBus, SerialBus
from edge_agent.schedule import Pacing
from simulators.modbus_line import ModbusTcpLine
from simulators.peripheral import Characteristic, Peripheral
from simulators.pytest_plugin import BluezBench
from simulators.serial_line import SerialLine
from tests import troubled_lines as troubles
from tests.agents import DEADLINE_S, until
from tests.hanging_folder import hanging_folder
from tests.troubled_lines import Served, Trouble, TroubledLine, lamp_device, lamp_twin, served

# A time-out that no stall of a loaded machine reaches; probes that do not wait for gaps of that length.
TIMEOUT_S = 0.8
QUICK = Pacing(failures=2, probe_first_s=0.3, probe_last_s=1.0, probe_share=0.5)
Logged = Callable[[str], list[logging.LogRecord]]


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Logged:
    """Return `logged(message)`: the agent's log lines that say so."""
    caplog.set_level("INFO", "edge_agent")
    return lambda message: [record for record in caplog.records if record.message == message]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule_module, "PATIENCE_S", 0.2)


def rtu(port: Path | str) -> ModbusRtuBus:
    return ModbusRtuBus(id="line", port=str(port), timeout_s=TIMEOUT_S)


@asynccontextmanager
async def street(
    tmp_path: Path, units: int = 3, *, interval_s: float = 0.2, pacing: Pacing = QUICK
) -> AsyncIterator[tuple[TroubledLine, Served]]:
    """Run lamps on a line whose devices can be given trouble."""
    twins = [lamp_twin(unit) for unit in range(1, units + 1)]
    devices = [lamp_device(unit, interval_s) for unit in range(1, units + 1)]
    async with (
        TroubledLine(twins, tmp_path / "ttyS") as line,
        served(rtu(line.port), devices, pacing=pacing) as bus,
    ):
        await until(lambda: all(bus.count(device.id) >= 2 for device in devices))
        yield line, bus


async def recovers(bus: Served, device: str) -> None:
    """Wait until it is read again, and is well."""
    before, health = bus.count(device), bus.health[device]
    await until(lambda: bus.count(device) >= before + 3)
    assert (health.failing, health.breaker, health.next_probe_s) == (None, "closed", None)


def pms_device() -> Device:
    about = {"id": "air-1", "domain": "air", "driver": "plantower_pms", "bus": "line"}
    return msgspec.convert(about | {"interval_s": 1.0}, Device)


# ------------------------------------------------------------------------------------------------ one of several


@pytest.mark.parametrize(
    ("trouble", "kind"),
    [
        (troubles.silent, "DeviceSilent"),
        (troubles.late, "DeviceSilent"),
        (troubles.damaged, "FrameError"),
        (troubles.cut_off, "FrameError"),
        (troubles.of_another_unit, "FrameError"),
        (troubles.busy, "DeviceRefused"),
        (troubles.booting, "FrameError"),
    ],
)
async def test_one_in_trouble_costs_its_neighbours_nothing(
    tmp_path: Path, logged: Logged, trouble: Trouble, kind: str
) -> None:
    async with street(tmp_path) as (line, bus):
        ill, well = bus.health["lamp-2"], [bus.health["lamp-1"], bus.health["lamp-3"]]
        line.trouble[2] = trouble
        await until(lambda: ill.breaker == "open" and ill.next_probe_s is not None)
        before = [health.readings for health in well]
        asked = len(line.asked)
        await until(lambda: all(h.readings >= b + 6 for h, b in zip(well, before, strict=True)))
        stamps_s = [at_s for at_s, one in line.asked_s[asked:] if one.unit == 2]
        pauses_s = [later - earlier for earlier, later in pairwise(stamps_s)]
        assert all(pause_s >= 0.75 * QUICK.probe_first_s for pause_s in pauses_s), "a probe is rare"
        del line.trouble[2]
        await recovers(bus, "lamp-2")
        assert [health.errors for health in well] == [0, 0]
        assert ill.outages == 1
        told = [vars(record) for record in logged("device does not answer as it should")]
        assert {record["device"] for record in told} == {"lamp-2"}
        kinds = [record["kind"] for record in told]
        # a machine that stands still for a second makes of any trouble a silence; each is told once
        assert sorted(kinds) in ([kind], sorted({kind, "DeviceSilent"}))
        assert len(logged("device is back")) == 1
        assert bus.task.lost == 0


async def test_a_stray_answer_before_the_right_one_costs_nothing(tmp_path: Path) -> None:
    async with street(tmp_path) as (line, bus):
        line.trouble = dict.fromkeys((1, 2, 3), troubles.with_a_stray)
        before = {device: bus.count(device) for device in bus.health}
        await until(lambda: all(bus.count(device) >= before[device] + 5 for device in before))
        assert [health.errors for health in bus.health.values()] == [0, 0, 0]
        assert bus.readings["lamp-3"][-1].metrics["level"] == 3


async def test_half_of_a_line_may_be_dead(tmp_path: Path) -> None:
    """The living are read at their pace, and the dead are found when they revive."""
    async with street(tmp_path, 6) as (line, bus):
        dead = [2, 4, 6]
        line.trouble = dict.fromkeys(dead, troubles.silent)
        await until(lambda: all(bus.health[f"lamp-{unit}"].breaker == "open" for unit in dead))
        before = {unit: bus.count(f"lamp-{unit}") for unit in (1, 3, 5)}
        await until(lambda: all(bus.count(f"lamp-{u}") >= n + 4 for u, n in before.items()))
        line.trouble.clear()
        for unit in dead:
            await recovers(bus, f"lamp-{unit}")
        assert all(bus.health[f"lamp-{unit}"].errors == 0 for unit in before)
        assert all(bus.health[f"lamp-{unit}"].outages == 1 for unit in dead)


async def test_noise_on_the_line_now_and_then_is_no_outage(tmp_path: Path) -> None:
    async with street(tmp_path) as (line, bus):
        turns = 0

        def sometimes(answer: bytes) -> troubles.Sent:
            nonlocal turns
            turns += 1
            return troubles.damaged(answer) if turns % 6 == 0 else [(0.0, answer)]

        line.trouble[2] = sometimes
        await until(lambda: bus.health["lamp-2"].errors >= 3)
        assert bus.health["lamp-2"].breaker == "closed"
        del line.trouble[2]
        await recovers(bus, "lamp-2")
        assert bus.health["lamp-1"].errors == bus.health["lamp-3"].errors == 0


# ---------------------------------------------------------------------------------------------------- commands


async def test_a_command_goes_before_polls_and_nothing_goes_between(tmp_path: Path) -> None:
    async with street(tmp_path, 4, interval_s=0.01) as (
        line,
        bus,
    ):  # there is always a poll that waits
        before = {device: bus.count(device) for device in bus.health}
        orders = [
            bus.task.command("lamp-2", "set_level", {"level": level}, deadline_s=DEADLINE_S)
            for level in (10, 20, 30)
        ]
        assert await asyncio.gather(*orders) == [{"level": level} for level in (10, 20, 30)]
        starts = [at for at, one in enumerate(line.asked) if one == (2, 6, 15)]
        for start in starts:
            units = line.asked[start : start + 4]
            assert units == [(2, 6, 15), (2, 6, 4), (2, 3, 15), (2, 3, 6)], "one exchange"
        assert len(starts) == 3
        assert starts[2] - starts[0] == 8, "no poll came between the commands that waited"
        for at, one in enumerate(line.asked[: starts[0]]):
            if one.function == 6:
                assert line.asked[at + 1][:2] == (one.unit, 3), "a poll was not torn apart"
        await until(lambda: all(bus.count(device) > before[device] for device in before))


async def test_a_command_that_does_not_get_its_turn_is_told_so(tmp_path: Path) -> None:
    async with street(tmp_path, 2) as (line, bus):
        line.trouble[1] = troubles.silent
        hanging = asyncio.Event()
        lamp = bus.task._lines[0].driver
        assert isinstance(lamp, TableDriver)

        async def hang(*_: object) -> dict[str, Value]:
            hanging.set()
            await asyncio.sleep(1.0)
            return {}

        lamp.command = hang  # type: ignore[method-assign,assignment]  # it takes its time
        slow = asyncio.create_task(bus.task.command("lamp-1", "x", {}, deadline_s=DEADLINE_S))
        await hanging.wait()
        with pytest.raises(TimeoutError, match="not free"):
            await bus.task.command("lamp-2", "set_level", {"level": 1}, deadline_s=0.05)
        assert await slow == {}


async def test_what_cannot_be_commanded(tmp_path: Path) -> None:
    async with street(tmp_path, 2) as (line, bus):
        command = bus.task.command
        with pytest.raises(CommandRejected, match="lamp-9"):
            await command("lamp-9", "set_level", {"level": 1}, deadline_s=1.0)
        with pytest.raises(CommandRejected, match="whole number from 0 to 100"):
            await command("lamp-1", "set_level", {"level": 101}, deadline_s=1.0)
        line.trouble[1] = troubles.busy
        with pytest.raises(DeviceRefused, match="busy"):
            await command("lamp-1", "set_level", {"level": 1}, deadline_s=DEADLINE_S)
        line.trouble[1] = troubles.silent
        with pytest.raises(DeviceSilent):
            await command("lamp-1", "set_level", {"level": 1}, deadline_s=DEADLINE_S)
    with pytest.raises(LinkLost):
        await command("lamp-2", "set_level", {"level": 1}, deadline_s=1.0)


async def test_a_lamp_that_obeys_is_not_taken_for_dead(tmp_path: Path) -> None:
    """With a breaker that is open for an hour, a command that is carried out closes it."""
    hours = Pacing(failures=1, probe_first_s=3600.0, probe_last_s=3600.0)
    async with street(tmp_path, 2, pacing=hours) as (line, bus):
        line.trouble[2] = troubles.silent
        await until(lambda: bus.health["lamp-2"].breaker == "open")
        line.trouble.clear()
        answer = await bus.task.command("lamp-2", "set_level", {"level": 5}, deadline_s=DEADLINE_S)
        assert answer == {"level": 5}
        await recovers(bus, "lamp-2")


async def test_a_bus_that_is_not_open_takes_no_commands(tmp_path: Path) -> None:
    async with served(rtu(tmp_path / "ttyNONE"), [lamp_device(1)]) as bus:
        await asyncio.wait_for(bus.task.tried.wait(), DEADLINE_S)
        with pytest.raises(LinkLost, match="no such port"):
            await bus.task.command("lamp-1", "set_level", {"level": 1}, deadline_s=DEADLINE_S)
        assert (bus.task.is_open, bus.task.opened) == (False, 0)
        assert "no such port" in bus.task.reason


# -------------------------------------------------------------------------------------- adapters that come and go


async def test_an_adapter_that_returns_under_another_name_is_found_by_its_link(
    tmp_path: Path, logged: Logged, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buses_module, "REOPEN_LAST_S", 0.3)
    by_id = tmp_path / "by-id" / "usb-FTDI_A50285BI-if00-port0"
    by_id.parent.mkdir()
    by_id.symlink_to(tmp_path / "ttyUSB0")
    twins = [lamp_twin(1)]
    async with served(rtu(by_id), [lamp_device(1)]) as bus:
        async with TroubledLine(twins, tmp_path / "ttyUSB0"):
            await until(lambda: bus.count("lamp-1") >= 2)
        await until(lambda: bus.health["lamp-1"].failing == "LinkLost")
        by_id.unlink()
        by_id.symlink_to(tmp_path / "ttyUSB1")
        async with TroubledLine(twins, tmp_path / "ttyUSB1"):
            await recovers(bus, "lamp-1")
            assert bus.task.opened == 2
            assert len(logged("bus open")) == 2
            assert len(logged("device is back")) == 1
            (down,) = logged("device does not answer as it should")
            assert vars(down)["kind"] == "LinkLost"


@pytest.mark.parametrize("name", ["usb:0403:6001:A50285BI", "usb-path:1-1.2"])
async def test_an_adapter_that_returns_under_another_name_is_found_by_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(buses_module, "REOPEN_LAST_S", 0.3)
    plugged: list[ListPortInfo] = []
    monkeypatch.setattr(serial_link, "comports", lambda: plugged[:])

    def plug(path: Path, serial: str, place: str) -> None:
        info = ListPortInfo(str(path), skip_link_detection=True)
        info.vid, info.pid, info.serial_number, info.location = 0x0403, 0x6001, serial, place
        plugged.append(info)

    first, second = tmp_path / "ttyUSB0", tmp_path / "ttyUSB1"
    box: Any = load("plantower_pms").twin({}, lambda: {"pm2_5": 9.0, "pm10": 12.0}, lambda _: None)
    air = pms_device()
    async with served(SerialBus(id="line", port=name), [air]) as bus:
        await until(lambda: "no such adapter" in bus.task.reason)
        async with SerialLine(box, first):
            plug(first, "A50285BI", "1-1.2")
            await until(lambda: bus.count("air-1") >= 1)
        plugged.clear()
        await until(lambda: bus.health["air-1"].failing == "LinkLost")
        plug(tmp_path / "ttyUSB0", "OTHER", "1-1.4")  # somebody else has taken its name meanwhile
        async with SerialLine(box, second):
            plug(second, "A50285BI", "1-1.2")
            await recovers(bus, "air-1")


async def test_a_command_finds_out_that_the_line_is_gone(
    tmp_path: Path, logged: Logged, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next poll is an hour away; the bus is opened again all the same."""
    monkeypatch.setattr(buses_module, "REOPEN_LAST_S", 0.3)
    level: Mapping[str, Value] = {"level": 7}
    cable = AsyncExitStack()
    line = await cable.enter_async_context(TroubledLine([lamp_twin(1)], tmp_path / "ttyS"))
    async with served(rtu(line.port), [lamp_device(1, 3600.0)]) as bus:
        await until(lambda: bus.count("lamp-1") == 1)
        await cable.aclose()
        with pytest.raises(LinkLost):
            await bus.task.command("lamp-1", "set_level", level, deadline_s=DEADLINE_S)
        await until(lambda: logged("bus lost"))
        async with TroubledLine([lamp_twin(1)], tmp_path / "ttyS"):
            await until(lambda: bus.task.is_open)
            answer = await bus.task.command("lamp-1", "set_level", level, deadline_s=DEADLINE_S)
            assert answer == level


# ---------------------------------------------------------------------------------------------------- the watchdog


@pytest.mark.parametrize("trouble", [troubles.silent, troubles.damaged])
async def test_a_port_on_which_nothing_is_understood_is_opened_again(
    trouble: Trouble, tmp_path: Path, logged: Logged, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An adapter that hangs, or garbles, until it is opened anew: all of its devices are in trouble."""
    monkeypatch.setattr(buses_module, "QUIET_S", 0.5)
    async with street(tmp_path, 2) as (line, bus):
        opened_s = line.attended_since_s

        def hangs(answer: bytes) -> troubles.Sent:
            return trouble(answer) if line.attended_since_s == opened_s else [(0.0, answer)]

        line.trouble = {1: hangs, 2: hangs}
        await until(lambda: bus.task.opened == 2)
        await recovers(bus, "lamp-1")
        await recovers(bus, "lamp-2")
        (lost,) = logged("bus lost")
        assert vars(lost)["reason"] == "no device is heard any more"


async def test_a_line_without_power_is_opened_ever_more_rarely_and_told_once(
    tmp_path: Path, logged: Logged, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buses_module, "QUIET_S", 0.3)
    async with street(tmp_path, 2) as (line, bus):
        line.trouble = {1: troubles.silent, 2: troubles.silent}
        await until(lambda: bus.task.opened >= 4)
        assert len(logged("bus lost")) == 1
        assert len(logged("bus open")) == 2, "at the start, and after it was said to be lost"
        assert bus.task._in_vain == 3
        line.trouble.clear()
        await recovers(bus, "lamp-1")
        assert bus.task._in_vain == 0
        assert bus.health["lamp-1"].outages == 1


async def test_a_port_that_hangs_costs_other_buses_nothing_and_delays_no_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel never answers to the opening; the agent stops without waiting for it."""
    monkeypatch.setattr(serial_link, "OPEN_S", 3600.0)
    with hanging_folder(tmp_path / "dev") as folder:
        async with street(tmp_path, 2) as (_, well):
            hanging = served(rtu(folder / "ttyUSB0"), [lamp_device(1)])
            meter = served(SerialBus(id="serial", port=str(folder / "ttyUSB1")), [pms_device()])
            async with hanging as one, meter as other:
                before = well.count("lamp-1")
                await until(lambda: well.count("lamp-1") >= before + 5)
                assert not (one.task.is_open or other.task.is_open)
                with pytest.raises(LinkLost):
                    await one.task.command("lamp-1", "set_level", {"level": 1}, deadline_s=1.0)
            assert well.health["lamp-1"].errors == 0


async def test_one_that_answers_keeps_the_port_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buses_module, "QUIET_S", 0.3)
    async with street(tmp_path, 3) as (line, bus):
        line.trouble = {1: troubles.silent, 2: troubles.busy, 3: troubles.silent}
        await until(lambda: min(bus.health[f"lamp-{unit}"].errors for unit in (1, 3)) >= 5)
        assert bus.task.opened == 1


async def test_a_sensor_that_falls_silent_has_its_port_opened_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buses_module, "QUIET_S", 0.5)
    package = load("plantower_pms")
    box: Any = package.twin(
        {"mode": "passive"}, lambda: {"pm2_5": 9.0, "pm10": 12.0}, lambda _: None
    )
    air = msgspec.convert(
        {
            "id": "air-1",
            "domain": "air",
            "driver": "plantower_pms",
            "bus": "line",
            "interval_s": 0.2,
            "settings": {"mode": "passive"},
        },
        Device,
    )
    hasty = msgspec.structs.replace(
        package.profile, transport=msgspec.structs.replace(package.profile.transport, timeout_s=0.2)
    )
    driver = package._module.Driver(hasty, package.settings({"mode": "passive"}))
    async with (
        SerialLine(box, tmp_path / "ttyS") as line,
        served(
            SerialBus(id="line", port=line.port), [air], drivers={"air-1": driver}, pacing=QUICK
        ) as bus,
    ):
        await until(lambda: bus.count("air-1") >= 2)
        hear = box.hear
        box.hear = lambda _: b""
        await until(lambda: bus.task.opened >= 3)
        box.hear = hear
        await recovers(bus, "air-1")


# -------------------------------------------------------------------------------------------------------- requests


class Meter:
    """A meter with holes in its register map; it answers no request that touches one."""

    unit = 1
    addresses = range(1000)
    known = frozenset((*range(20), *range(30, 40), 100, 101))

    def __init__(self) -> None:
        self.requests: list[tuple[int, int]] = []

    def read(self, function: int, address: int, count: int) -> list[int]:
        assert function == 3
        self.requests.append((address, count))
        if not set(range(address, address + count)) <= self.known:
            raise ModbusException(2)
        return list(range(address, address + count))

    def write(self, *_: object) -> None:
        raise ModbusException(1)


def meter_profile(max_gap: int) -> Profile:
    points = [
        {"field": f"f{at}", "metric": f"x-acme-{at}", "at": at, "type": "uint16"}
        for at in sorted(Meter.known)
    ]
    return msgspec.convert(
        {
            "identity": {"maker": "A", "models": ["M"], "brand_origin": "TW", "description": "m"},
            "transport": {"kind": "modbus"},
            "timing": {"cadence_s": 1.0},
            "completes": "poll",
            "sources": ["manual"],
            "points": points,
            "read": {"max_gap": max_gap},
        },
        Profile,
    )


@pytest.mark.parametrize(("max_gap", "first", "then"), [(0, 3, 3), (20, 4, 3), (100, 5, 3)])
async def test_points_share_requests_and_a_refused_block_is_split_once(
    max_gap: int, first: int, then: int
) -> None:
    meter = Meter()
    driver = TableDriver(meter_profile(max_gap), 1)
    async with ModbusTcpLine([meter]) as line, open_modbus_tcp(line.host, port=line.port) as bus:
        reading = await driver.read(bus)
        assert reading.metrics == {f"x-acme-{at}": at for at in Meter.known}
        assert bus.transactions == len(meter.requests) == first
        for cycle in range(1, 4):
            assert await driver.read(bus) == reading
            assert bus.transactions == first + cycle * then


async def test_the_requests_of_a_bus_are_counted_over_all_of_its_openings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buses_module, "QUIET_S", 0.2)
    async with street(tmp_path, 2) as (line, bus):
        line.trouble = {1: troubles.silent, 2: troubles.silent}
        await until(lambda: bus.task.opened >= 2)
        line.trouble.clear()
        await recovers(bus, "lamp-1")
        before = bus.count("lamp-1") + bus.count("lamp-2"), bus.task.transactions
        assert before[1] >= 2 * before[0], "a reading is two requests"
        assert bus.task.transactions <= len(line.asked)
        assert bus.task.busy_s > 0.4


# ----------------------------------------------------------------------------------------------- late answers


async def test_another_unit_need_not_wait_for_a_late_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(modbus_link, "_LATE_S", 3600.0)
    twins = [lamp_twin(1), lamp_twin(2)]
    async with TroubledLine(twins, tmp_path / "ttyS") as line:
        link = open_modbus_rtu(line.port, timeout_s=TIMEOUT_S)
        async with asyncio.timeout(DEADLINE_S), link as bus:
            assert isinstance(bus, modbus_link._Bus)
            bus._opened_s -= 3600.0  # it was opened long ago
            line.trouble[1] = troubles.silent
            with pytest.raises(DeviceSilent):
                await bus.read_holding(1, 5, 1)
            assert await bus.read_holding(2, 5, 2) == [4, 2], "at once"
            asked = asyncio.create_task(bus.read_holding(1, 5, 1))
            done, _ = await asyncio.wait([asked], timeout=0.5)
            assert not done, "the same unit has to wait"
            asked.cancel()


async def test_a_long_answer_may_take_longer_than_the_time_out(tmp_path: Path) -> None:
    """The time-out is for the first byte: 120 registers take a second at 2400 baud."""

    class Long(Meter):
        known = frozenset(range(1000))

    async with TroubledLine([Long()], tmp_path / "ttyS", baud=2400) as line:
        link = open_modbus_rtu(line.port, baudrate=2400, timeout_s=TIMEOUT_S)
        async with asyncio.timeout(DEADLINE_S), link as bus:
            assert await bus.read_holding(1, 0, 120) == list(range(120))


# -------------------------------------------------------------------------------------------------------------- TCP


async def test_a_server_that_accepts_and_says_nothing_is_connected_to_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(buses_module, "QUIET_S", 0.4)
    connections = 0

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        while await reader.read(100):
            pass
        writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        bus = ModbusTcpBus(id="line", host="127.0.0.1", port=port, timeout_s=0.1)
        async with served(bus, [lamp_device(1)], pacing=QUICK) as one:
            await until(lambda: connections >= 3)
            assert one.health["lamp-1"].outages == 1


# -------------------------------------------------------------------------------------------------------------- BLE

BAY, RADON = "C0:FF:EE:00:00:01", "C8:28:32:12:34:56"
VALUE = "b42e2a68-ade7-11e4-89d3-123b93f75cba"


def ble_device(name: str, address: str, interval_s: float = 0.2) -> Device:
    return msgspec.convert(
        {
            "id": name,
            "domain": "parking",
            "driver": "bthome",
            "bus": "radio",
            "interval_s": interval_s,
            "settings": {"address": address},
        },
        Device,
    )


def bay_twin(address: str = BAY) -> Any:
    world: dict[str, Value] = {"occupied": True, "distance": 0.31, "battery_voltage": 3.05}
    return load("bthome").twin({"address": address}, lambda: world, lambda _: None)


async def ask_bluez(address: str, member: str, *body: object) -> Any:
    """Read or set a property of the adapter, as an operator's tool does."""
    bus = MessageBus(bus_address=address, bus_type=BusType.SYSTEM)
    await bus.connect()
    try:
        reply = await bus.call(
            Message(
                destination="org.bluez",
                path="/org/bluez/hci0",
                interface="org.freedesktop.DBus.Properties",
                member=member,
                signature="ssv" if len(body) == 2 else "ss",
                body=["org.bluez.Adapter1", *body],
            )
        )
        assert reply is not None
        assert reply.message_type is not MessageType.ERROR, reply.body
        return reply.body[0].value if reply.body else None
    finally:
        bus.disconnect()
        await bus.wait_for_disconnect()  # type: ignore[no-untyped-call]  # its omission


async def test_a_radio_that_is_switched_off_is_switched_on_again(
    bluez: BluezBench, logged: Logged, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buses_module, "SILENT_S", 0.5)
    monkeypatch.setattr(buses_module, "QUIET_S", 0.5)
    monkeypatch.setattr(buses_module, "REOPEN_LAST_S", 0.5)
    bluez.add(bay_twin())
    async with served(BleBus(id="radio"), [ble_device("bay-1", BAY)]) as bus:
        await until(lambda: bus.count("bay-1") >= 1)
        await ask_bluez(bluez.address, "Set", "Powered", Variant("b", False))
        await until(lambda: bus.health["bay-1"].failing is not None)
        await recovers(bus, "bay-1")
        assert await ask_bluez(bluez.address, "Get", "Powered") is True
        assert bus.task.opened >= 2
        assert logged("bus lost")


async def test_a_radio_that_is_off_at_the_start_is_switched_on(
    bluez: BluezBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buses_module, "REOPEN_LAST_S", 0.5)
    await ask_bluez(bluez.address, "Set", "Powered", Variant("b", False))
    bluez.add(bay_twin())
    async with served(BleBus(id="radio"), [ble_device("bay-1", BAY)]) as bus:
        await until(lambda: bus.count("bay-1") >= 1)
        assert await ask_bluez(bluez.address, "Get", "Powered") is True


async def test_a_radio_that_hears_nobody_is_switched_off_and_on(
    bluez: BluezBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that hangs says that it scans, and hears nothing: not even a stranger."""
    monkeypatch.setattr(buses_module, "SILENT_S", 0.3)
    monkeypatch.setattr(buses_module, "QUIET_S", 0.3)
    monkeypatch.setattr(buses_module, "REOPEN_LAST_S", 0.5)
    cycled: list[str] = []

    async def cycle(adapter: str) -> None:
        await power_cycle(adapter)
        cycled.append(adapter)

    monkeypatch.setattr(ble, "power_cycle", cycle)
    async with served(BleBus(id="radio"), [ble_device("bay-1", BAY, 0.1)]) as bus:
        await until(lambda: cycled == ["hci0"])
        bluez.add(bay_twin())
        await recovers(bus, "bay-1")
        assert await ask_bluez(bluez.address, "Get", "Powered") is True


async def test_a_radio_that_hears_strangers_is_left_alone(
    bluez: BluezBench, logged: Logged, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buses_module, "SILENT_S", 0.3)
    monkeypatch.setattr(buses_module, "QUIET_S", 0.3)
    bluez.add(bay_twin("66:55:44:33:22:11"))
    async with served(BleBus(id="radio"), [ble_device("bay-1", BAY, 0.1)]) as bus:
        await until(lambda: bus.health["bay-1"].errors >= 4)
        assert bus.health["bay-1"].outages == 1
        assert bus.task.opened == 1
        bluez.add(bay_twin())
        await recovers(bus, "bay-1")
        (down,) = logged("device does not answer as it should")
        assert "66:55" not in str(vars(down))


async def test_a_radio_that_is_not_there_cannot_be_switched_on(
    bluez: BluezBench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(LinkLost, match="hci7"):
        await power_cycle("hci7")
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", f"unix:path={tmp_path}/nowhere")
    with pytest.raises(LinkLost, match="hci0"):
        await power_cycle("hci0")


async def test_a_scan_counts_whom_it_does_not_know(bluez: BluezBench) -> None:
    bluez.add(bay_twin("66:55:44:33:22:11"))
    async with open_scanner([BAY]) as scanner:
        await until(lambda: scanner.heard >= 2)
        with pytest.raises(DeviceSilent):
            await scanner.next_advert(0.05)


class RadonDriver:
    """Reads one characteristic of a device that has to be connected to."""

    address = RADON

    async def read(self, device: GattDevice) -> Reading:
        first, second = await device.read_characteristic(VALUE)
        return Reading({"x-acme-a": first, "x-acme-b": second})


async def test_a_device_that_is_connected_to_shares_the_radio(
    bluez: BluezBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bluez.add(bay_twin())
    service = [Characteristic(VALUE, b"\x01\x5a")]
    devices = [ble_device("bay-1", BAY), ble_device("radon-1", RADON, 0.5)]
    drivers = {"radon-1": RadonDriver()}
    async with served(BleBus(id="radio"), devices, drivers=drivers, pacing=QUICK) as bus:
        bluez.add(Peripheral(RADON, "Wave", {"b42e1c08-ade7-11e4-89d3-123b93f75cba": service}))
        await until(lambda: bus.count("radon-1") >= 2)
        assert bus.readings["radon-1"][0].metrics == {"x-acme-a": 1, "x-acme-b": 0x5A}
        await until(lambda: bus.count("bay-1") >= 1)


async def test_a_connection_that_drops_while_it_is_read_costs_that_reading(
    bluez: BluezBench,
) -> None:
    """GATT: the device is out of reach in the middle of a reading, and comes back."""
    peripheral = Peripheral(
        RADON,
        "Wave",
        {"b42e1c08-ade7-11e4-89d3-123b93f75cba": [Characteristic(VALUE, b"\x01\x5a")]},
    )
    bluez.add(peripheral)
    dropping = True

    class Dropping(RadonDriver):
        async def read(self, device: GattDevice) -> Reading:
            if dropping:
                path = "/org/bluez/hci0/dev_" + RADON.replace(":", "_")
                await bluez_calls(bluez.address, path, "Disconnect")
            return await super().read(device)

    devices = [ble_device("bay-1", BAY), ble_device("radon-1", RADON, 0.5)]
    bluez.add(bay_twin())
    drivers = {"radon-1": Dropping()}
    async with served(BleBus(id="radio"), devices, drivers=drivers, pacing=QUICK) as bus:
        await until(lambda: bus.health["radon-1"].errors >= 2)
        before = bus.count("bay-1")
        await until(lambda: bus.count("bay-1") > before)
        dropping = False
        await recovers(bus, "radon-1")
        assert bus.task.lost == 0
        assert bus.health["bay-1"].errors == 0


async def bluez_calls(address: str, path: str, member: str) -> None:
    bus = MessageBus(bus_address=address, bus_type=BusType.SYSTEM)
    await bus.connect()
    try:
        message = Message(
            destination="org.bluez", path=path, interface="org.bluez.Device1", member=member
        )
        await bus.call(message)
    finally:
        bus.disconnect()
        await bus.wait_for_disconnect()  # type: ignore[no-untyped-call]  # its omission
