"""A town's twins on their lines."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self, cast

from device_drivers.kit.registry import load
from device_drivers.kit.twin import AdvertTwin, ModbusTwin, SerialTwin
from simulators.bluez import Bluez
from simulators.errors import SimulatorError
from simulators.gate import Gate
from simulators.line import Endpoint, Line
from simulators.modbus_line import ModbusRtuLine, ModbusTcpLine
from simulators.plan import BusPlan, TownPlan
from simulators.private_bus import PrivateBus
from simulators.serial_line import SerialLine
from simulators.town import Town, TownClock
from simulators.truth import TruthLog

if TYPE_CHECKING:
    from device_drivers.kit.registry import Twin

QUIET_S: Final = 2.0
"""Deadline for what is in flight when the town is muted."""


class Fleet:
    """Hosts every device of a plan; begins muted. Truth goes to `truth.jsonl` in `run_dir`."""

    def __init__(self, plan: TownPlan, run_dir: Path) -> None:
        self._plan, self._run_dir = plan, run_dir
        self._gate = Gate(is_open=False)
        self._lines: list[Line] = []
        self._closing = AsyncExitStack()
        self.endpoints: dict[str, Endpoint] = {}

    async def __aenter__(self) -> Self:
        self._run_dir.mkdir(parents=True, exist_ok=True)
        async with AsyncExitStack() as closing:
            truth = closing.enter_context(TruthLog(self._run_dir / "truth.jsonl"))
            town = Town(
                self._plan.seed, TownClock(self._plan.start, self._plan.speed), self._plan.place
            )
            for bus in self._plan.buses:
                await self._open(bus, list(self._twins(bus, town, truth)), closing)
            self._closing = closing.pop_all()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._closing.__aexit__(kind, error, trace)

    def speak(self) -> None:
        """Let readings be completed from now on."""
        self._gate.open()

    async def mute(self) -> None:
        """Complete no more readings; return when none is on its way to a client any more.

        Raises: SimulatorError when a client does not take what was sent to it.
        """
        self._gate.close()
        try:
            async with asyncio.timeout(QUIET_S):
                for line in self._lines:
                    await line.quiet()
        except TimeoutError:
            raise SimulatorError(f"a client did not read its line for {QUIET_S} s") from None

    def _twins(self, bus: BusPlan, town: Town, truth: TruthLog) -> Iterator[Twin]:
        for device in self._plan.devices:
            if device.bus == bus.id:
                yield load(device.driver).twin(
                    device.settings,
                    town.physics(device.id, device.domain),
                    self._gate.truth(truth.of(device.id, device.domain)),
                )

    async def _open(self, bus: BusPlan, twins: list[Twin], closing: AsyncExitStack) -> None:
        """Host the twins of one bus; the plan was checked, so they are of its kind."""
        gate, path = self._gate, self._run_dir / bus.id
        line: Line
        if bus.kind == "serial":
            line = SerialLine(cast("SerialTwin", twins[0]), path, gate=gate, baud=bus.baud)
        elif bus.kind == "modbus-rtu":
            line = ModbusRtuLine(cast("list[ModbusTwin]", twins), path, gate=gate, baud=bus.baud)
        elif bus.kind == "modbus-tcp":
            line = ModbusTcpLine(cast("list[ModbusTwin]", twins), gate=gate)
        else:
            daemon = PrivateBus(self._run_dir / f"{bus.id}.dbus.log")
            await closing.enter_async_context(daemon)
            line = Bluez(daemon.address, cast("list[AdvertTwin]", twins), gate=gate)
        await closing.enter_async_context(line)
        self.endpoints[bus.id] = line.endpoint
        self._lines.append(line)
