"""Lines on which devices misbehave: the simulators' lines with something between the twins and the cable."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import msgspec

from device_drivers.kit.driver import Reading, Value
from device_drivers.kit.register_table import sealed
from device_drivers.kit.registry import load
from device_drivers.kit.twin import ModbusTwin
from edge_agent.buses import BusTask, Line
from edge_agent.config import Bus, Device
from edge_agent.health import DeviceHealth
from edge_agent.schedule import Pacing
from simulators.modbus_line import ModbusRtuLine

Sent: TypeAlias = Sequence[tuple[float, bytes]]
"""What reaches the cable instead of an answer, each after so many seconds."""
Trouble: TypeAlias = Callable[[bytes], Sent]

STRANGER = 99


def silent(_answer: bytes) -> Sent:
    return []


def late(answer: bytes) -> Sent:
    """After the client's time-out of 0.8 s, but before it would ask the same unit again."""
    return [(0.9, answer)]


def damaged(answer: bytes) -> Sent:
    return [(0.0, answer[:-1] + bytes([answer[-1] ^ 0x10]))]


def cut_off(answer: bytes) -> Sent:
    return [(0.0, answer[:-3])]


def of_another_unit(answer: bytes) -> Sent:
    return [(0.0, sealed(bytes([STRANGER]) + answer[1:-2]))]


def busy(answer: bytes) -> Sent:
    """Stuck: it answers that it cannot, for ever."""
    return [(0.0, sealed(bytes([answer[0], answer[1] | 0x80, 6])))]


def booting(_answer: bytes) -> Sent:
    """A device that starts anew: what its port does meanwhile, and no answer."""
    return [(0.0, b"\x00\xff\x00"), (0.02, b"U-Boot 2020.04\r\n")]


def with_a_stray(answer: bytes) -> Sent:
    """Somebody else's answer first: the late one of a device that has been given up."""
    stray = sealed(bytes([STRANGER, 3, 2, 0x12, 0x34]))
    return [(0.0, stray + answer)]


class Asked(NamedTuple):
    """A request as it came over the cable."""

    unit: int
    function: int
    address: int


class TroubledLine(ModbusRtuLine):
    """An RTU line.

    Shape: `trouble` says what becomes of each unit's answers, `asked` what was asked, in order, `asked_s` when, too.
    """

    def __init__(self, twins: Iterable[ModbusTwin], path: Path, *, baud: int | None = None) -> None:
        super().__init__(twins, path, baud=baud)
        self.trouble: dict[int, Trouble] = {}
        self.asked: list[Asked] = []
        self.asked_s: list[tuple[float, Asked]] = []
        self._write = self._terminal.write
        self._terminal.write = self._send  # type: ignore[method-assign]  # the cable of this one line

    @property
    def attended_since_s(self) -> float | None:
        """When the client has opened the port, None when it has not."""
        return self._terminal.attended_since_s

    def _hear(self, data: bytes) -> None:
        if len(data) >= 4:
            one = Asked(data[0], data[1], int.from_bytes(data[2:4]))
            self.asked.append(one)
            self.asked_s.append((time.monotonic(), one))
        super()._hear(data)

    def _send(self, data: bytes) -> None:
        trouble = self.trouble.get(data[0])
        if trouble is None:
            self._write(data)
            return
        for after_s, sent in trouble(data):
            asyncio.get_running_loop().call_later(after_s, self._write, sent)


def lamp_twin(unit: int, world: dict[str, Value] | None = None) -> Any:
    settings = {"unit": unit, "short_address": 0}
    return load("intesis_dali").twin(settings, lambda: world or {"level": unit}, lambda _: None)


def lamp_device(unit: int, interval_s: float = 0.2) -> Device:
    """Return the configuration of the lamp behind a unit."""
    return msgspec.convert(
        {
            "id": f"lamp-{unit}",
            "domain": "streetlight",
            "driver": "intesis_dali",
            "bus": "line",
            "interval_s": interval_s,
            "settings": {"unit": unit, "short_address": 0},
        },
        Device,
    )


class Served:
    """A bus task that runs, with everything that it handed in."""

    def __init__(self, task: BusTask, lines: Sequence[Line]) -> None:
        self.task = task
        self.health = {line.device.id: line.health for line in lines}
        self.readings: dict[str, list[Reading]] = {line.device.id: [] for line in lines}

    def count(self, device: str) -> int:
        return len(self.readings[device])


@asynccontextmanager
async def served(
    bus: Bus,
    devices: Sequence[Device],
    *,
    drivers: Mapping[str, object] | None = None,
    pacing: Pacing | None = None,
) -> AsyncIterator[Served]:
    """Run a bus; leaving stops it."""
    lines = [
        Line(
            device,
            (drivers or {}).get(device.id) or device.package.driver(device.settings),
            DeviceHealth(device.id),
        )
        for device in devices
    ]

    async def sink(line: Line, reading: Reading) -> None:
        one.readings[line.device.id].append(reading)

    stop = asyncio.Event()
    task = BusTask(bus, lines, sink, stop, pacing)
    one = Served(task, lines)
    running = asyncio.create_task(task.run())
    try:
        yield one
    finally:
        stop.set()
        async with asyncio.timeout(20):
            await running
