"""A reload disturbs what changed and nothing else, loses no sample, and takes no mistake for an order."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from device_drivers.kit.driver import Value
from device_drivers.kit.registry import load
from edge_agent.agent import Agent
from exchange.processes import Child
from tests.agents import DEADLINE_S, Witness, air, running_agent, until, witness, write_config
from tests.brokers import Mosquitto

AIR: dict[str, Value] = {"pm1": 7.0, "pm2_5": 11.0, "pm10": 18.0}
LAMP: dict[str, Value] = {"level": 40, "lit": True}
LAMPS = """
[template.lamp]
domain = "streetlight"
driver = "intesis_dali"
bus = "rs485"
interval_s = 0.2

[[inventory]]
file = "lamps.csv"
template = "lamp"
"""

Hosts = Callable[..., Any]


class Street:
    """An agent's file with an air box, and lamps from an inventory."""

    def __init__(self, folder: Path, broker: Mosquitto, air_port: str, lamp_port: str) -> None:
        self._folder = folder
        self._broker = broker
        self._buses = [
            {"id": "tty0", "kind": "serial", "port": air_port},
            {"id": "rs485", "kind": "modbus-rtu", "port": lamp_port},
        ]

    def write(self, *lamps: int, edit: tuple[str, str] = ("", ""), **of_air: Any) -> Path:
        """Write the file as it shall be from the next reload on."""
        rows = "".join(f"lamp-{number},{number}\n" for number in lamps)
        (self._folder / "lamps.csv").write_text(f"id,settings.short_address\n{rows}")
        path = write_config(self._folder, self._broker, self._buses, [air("tty0", **of_air)])
        text = path.read_text("utf-8") + LAMPS
        assert edit[0] in text
        path.write_text(text.replace(*edit), encoding="utf-8")
        return path


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    with Mosquitto(tmp_path) as one:
        yield one


@pytest.fixture
def street(tmp_path: Path, broker: Mosquitto, serial_line: Hosts, modbus_line: Hosts) -> Street:
    def truth(_: object) -> None:
        """Nobody compares here."""

    box = load("plantower_pms").twin({"mode": "active"}, lambda: AIR, truth)
    lamps = [
        load("intesis_dali").twin({"short_address": number}, lambda: LAMP, truth)
        for number in (1, 2, 3)
    ]
    return Street(tmp_path, broker, serial_line(box), modbus_line(*lamps)["port"])


def devices(agent: Agent) -> set[str]:
    return set(agent.devices)


def check_whole(heard: Witness) -> None:
    """Check that of every device each sample came: its numbers have no gap."""
    for device in {key.device for key in heard.keys}:
        assert len({key.epoch for key in heard.keys if key.device == device}) == 1, device
        seqs = sorted({key.seq for key in heard.keys if key.device == device})
        assert seqs == list(range(len(seqs))), device


async def test_what_did_not_change_goes_on(
    broker: Mosquitto, street: Street, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "edge_agent")
    asked = asyncio.Event()
    path = street.write(1)
    async with witness(broker) as heard, running_agent(path, reload=asked) as agent:
        await until(lambda: heard.of("air-1") and heard.of("lamp-1"))
        (air_bus,) = (bus for bus in agent.buses if bus.bus.id == "tty0")
        (lamp_bus,) = (bus for bus in agent.buses if bus.bus.id == "rs485")
        street.write(1, 2, label={"en": "On the school"})
        asked.set()
        await until(lambda: heard.of("lamp-2"))
        await until(lambda: heard.states["air-1"].descriptor.label.en == "On the school")
        before = len(heard.of("lamp-1"))
        await until(lambda: len(heard.of("lamp-1")) > before)
        assert air_bus in agent.buses, "a description is no reason to close a port"
        assert air_bus.opened == 1
        assert lamp_bus not in agent.buses
        street.write(2, label={"en": "On the school"})
        asked.set()
        await until(lambda: "lamp-1" in heard.retired)
        assert devices(agent) == {"air-1", "lamp-2"}
    check_whole(heard)
    assert [one.message for one in caplog.records].count("the configuration was taken up") == 2


@pytest.mark.parametrize(
    "edit",
    [
        ('driver = "intesis_dali"', 'driver = "intesis_dalli"'),
        ("interval_s = 0.2", "intervall_s = 0.2"),
        ('"lamps.csv"', '"lamp.csv"'),
        ('template = "lamp"', 'template = "lump"'),
        ('host = "127.0.0.1"', "host = 7"),
        ("[gateway]", "[gateway"),
        ('id = "gw-1"', 'id = "gw-2"'),
    ],
)
async def test_a_slip_of_the_pen_stops_no_device(
    broker: Mosquitto, street: Street, caplog: pytest.LogCaptureFixture, edit: tuple[str, str]
) -> None:
    caplog.set_level(logging.ERROR, "edge_agent")
    asked = asyncio.Event()
    path = street.write(1, 2)
    async with witness(broker) as heard, running_agent(path, reload=asked) as agent:
        await until(lambda: heard.of("lamp-1") and heard.of("lamp-2"))
        buses = agent.buses
        street.write(1, 2, edit=edit)
        asked.set()
        await until(lambda: any("stays as it was" in one.message for one in caplog.records))
        assert agent.buses == buses
        before = len(heard.of("lamp-2"))
        await until(lambda: len(heard.of("lamp-2")) > before)
        street.write(1, 2, 3)
        asked.set()
        await until(lambda: heard.of("lamp-3"))
        assert heard.retired == set()
    check_whole(heard)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (b"", "left out of service"),
        (b"id,settings.short_address\n", "left out of service"),
        (b"id,settings.short_address\nlamp-1,1\n", "an inventory lacks more than half"),
    ],
)
async def test_an_inventory_that_is_still_being_copied_retires_nobody(
    broker: Mosquitto,
    street: Street,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    rows: bytes,
    said: str,
) -> None:
    caplog.set_level(logging.ERROR, "edge_agent")
    asked = asyncio.Event()
    path = street.write(1, 2, 3, 4, 5)
    async with witness(broker) as heard, running_agent(path, reload=asked) as agent:
        await until(lambda: heard.of("lamp-1") and heard.of("lamp-2"))
        buses = agent.buses
        (tmp_path / "lamps.csv").write_bytes(rows)
        asked.set()
        await until(lambda: any("stays as it was" in one.message for one in caplog.records))
        assert any(one.message.startswith(said) for one in caplog.records)
        assert agent.buses == buses
        street.write(1, 2, 3, 4)  # the copy is complete
        asked.set()
        await until(lambda: "lamp-5" in heard.retired)
        assert heard.retired == {"lamp-5"}


async def test_a_wrong_row_beside_new_ones_is_left_out(
    broker: Mosquitto, street: Street, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR, "edge_agent")
    asked = asyncio.Event()
    path = street.write(1)
    async with witness(broker) as heard, running_agent(path, reload=asked) as agent:
        await until(lambda: heard.of("lamp-1"))
        street.write(1, 64, 2)
        asked.set()
        await until(lambda: heard.of("lamp-2"))
        assert devices(agent) == {"air-1", "lamp-1", "lamp-2"}
    reasons = [str(vars(one).get("reason")) for one in caplog.records]
    assert any("lamps.csv:3: column 欄 B: settings.short_address = 64" in one for one in reasons)


async def test_sighup_reloads_the_program_and_ends_it_not(
    broker: Mosquitto, street: Street, tmp_path: Path
) -> None:
    path = street.write(1)
    argv = [sys.executable, "-m", "edge_agent", str(path)]
    child = Child("agent", argv, tmp_path)
    async with witness(broker) as heard:
        await child.start()
        try:
            await until(lambda: heard.of("lamp-1"))
            street.write(1, 2, 3)
            for _ in range(3):
                os.kill(child.pid, signal.SIGHUP)
            await until(lambda: heard.of("lamp-2") and heard.of("lamp-3"))
        finally:
            assert await child.stop(DEADLINE_S)
    check_whole(heard)
