"""The buses: one task each, reading its devices and handing the readings to the intake.

A bus that is lost is opened again with back-off. Told to stop, a bus finishes the exchange it is in: an answer that a
device gave is never thrown away.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, NamedTuple, TypeAlias, TypeVar, assert_never, cast

import msgspec

from device_drivers.errors import DeviceSilent, LinkLost
from device_drivers.kit.driver import (
    Advert,
    AdvertDriver,
    ModbusBus,
    ModbusDriver,
    Reading,
    SerialDriver,
)
from device_drivers.links.ble import open_scanner
from device_drivers.links.modbus import open_modbus_rtu, open_modbus_tcp
from device_drivers.links.serial import open_serial
from edge_agent.config import BleBus, Bus, Device, ModbusRtuBus, ModbusTcpBus, SerialBus
from edge_agent.health import DeviceHealth
from edge_agent.schedule import Turn, turns
from exchange.errors import DeviceError

T = TypeVar("T")
log = logging.getLogger(__name__)

REOPEN_FIRST_S = 0.2
REOPEN_LAST_S = 30.0
STEADY_S = 5.0  # a bus that was open for so long is opened again without delay when it is lost
QUIET_S = 30.0  # a radio that hears nothing for so long is opened again
FAILED_S = 0.1  # before listening again: what fails at once must not eat the processor
HUNG_S = 60.0  # a driver's own deadlines are shorter; one that has none must not hold up its bus


class Line(NamedTuple):
    """A device with its driver and its record."""

    device: Device
    driver: object
    health: DeviceHealth


class DriverFailed(DeviceError):
    """A driver, or the library under it, raised what it should not: a bug that concerns its own device."""


Sink: TypeAlias = Callable[[Line, Reading], Awaitable[None]]
"""Where readings go; it may make the bus wait."""


class BusTask:
    """One bus with its devices. `tried` is set once the link is open, or could not be opened."""

    def __init__(self, bus: Bus, lines: Sequence[Line], sink: Sink, stop: asyncio.Event) -> None:
        """Everything ends soon after `stop` is set."""
        self.bus = bus
        self.tried = asyncio.Event()
        self._lines = lines
        self._sink = sink
        self._stop = stop
        self._opened_s = float("inf")

    async def run(self) -> None:
        """Serve the bus until told to stop. Whatever its devices, drivers and libraries do, it stays inside."""
        wait_s = REOPEN_FIRST_S
        lost = ""
        while not self._stop.is_set():
            self._opened_s = float("inf")
            try:
                await self._serve()
            except Exception as error:
                if time.monotonic() - self._opened_s >= STEADY_S:
                    wait_s, lost = REOPEN_FIRST_S, ""
                bug = None if isinstance(error, LinkLost) else error
                reason = f"{type(error).__name__}: {error}" if bug else str(error)
                if reason != lost:
                    log.warning(
                        "bus lost", extra={"bus": self.bus.id, "reason": reason}, exc_info=bug
                    )
                    lost = reason
                for line in self._lines:
                    line.health.failed(LinkLost(reason))
            self.tried.set()
            await self._sleep(wait_s * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
            wait_s = min(2 * wait_s, REOPEN_LAST_S)

    async def _serve(self) -> None:
        match self.bus:
            case SerialBus() as bus:
                await self._serve_serial(bus, self._lines[0])
            case ModbusRtuBus() as bus:
                link = open_modbus_rtu(
                    bus.port,
                    baudrate=bus.baudrate,
                    parity=bus.parity,
                    stopbits=bus.stopbits,
                    timeout_s=bus.timeout_s,
                )
                await self._serve_modbus(link)
            case ModbusTcpBus() as bus:
                await self._serve_modbus(
                    open_modbus_tcp(bus.host, port=bus.port, timeout_s=bus.timeout_s)
                )
            case BleBus() as bus:
                await self._serve_ble(bus)
            case _:
                assert_never(self.bus)

    def _is_open(self) -> None:
        self._opened_s = time.monotonic()
        self.tried.set()
        log.info("bus open", extra={"bus": self.bus.id})

    # ------------------------------------------------------------------------------------------------- serial

    async def _serve_serial(self, bus: SerialBus, line: Line) -> None:
        driver = cast("SerialDriver", line.driver)
        transport = line.device.package.profile.transport
        link = open_serial(
            bus.port,
            baudrate=bus.baudrate or transport.baudrate,
            bytesize=transport.bytesize,
            parity=transport.parity,
            stopbits=transport.stopbits,
        )
        async with link as port:
            await self._attempt(line, driver.start(port))
            self._is_open()
            (turn,) = turns([line.device.interval_s], time.monotonic())
            while not self._stop.is_set():
                if driver.streaming:
                    reading = await self._unless_stopped(self._attempt(line, driver.read(port)))
                    if reading is None:
                        await self._sleep(FAILED_S)
                else:
                    if not await self._sleep(turn.due_s - time.monotonic()):
                        break
                    reading = await self._attempt(line, driver.read(port))
                    _close(turn, reading)
                if reading is not None:
                    await self._hand_in(line, reading)

    # ------------------------------------------------------------------------------------------------- Modbus

    async def _serve_modbus(self, link: AbstractAsyncContextManager[ModbusBus]) -> None:
        async with link as bus:
            self._is_open()
            schedule = turns([line.device.interval_s for line in self._lines], time.monotonic())
            while not self._stop.is_set():
                index = min(range(len(schedule)), key=lambda index: schedule[index].due_s)
                line, turn = self._lines[index], schedule[index]
                if not await self._sleep(turn.due_s - time.monotonic()):
                    break
                reading = await self._attempt(line, cast("ModbusDriver", line.driver).read(bus))
                _close(turn, reading)
                if reading is not None:
                    await self._hand_in(line, reading)

    # ---------------------------------------------------------------------------------------------------- BLE

    async def _serve_ble(self, bus: BleBus) -> None:
        drivers = {cast("AdvertDriver", line.driver).address: line for line in self._lines}
        quiet_s = max(QUIET_S, 3 * max(line.device.interval_s for line in self._lines))
        async with open_scanner(drivers, adapter=bus.adapter) as scanner:
            self._is_open()
            while not self._stop.is_set():
                try:
                    advert = await self._unless_stopped(scanner.next_advert(quiet_s))
                except DeviceSilent as error:
                    # BlueZ forgets a scan when its daemon restarts: begin a new one
                    raise LinkLost(str(error)) from error
                if advert is None:
                    break
                line = drivers[advert.address]
                reading = await self._attempt(line, self._heard(line, advert))
                if reading is not None:
                    await self._hand_in(line, reading)

    @staticmethod
    async def _heard(line: Line, advert: Advert) -> Reading | None:
        return cast("AdvertDriver", line.driver).hear(advert)

    # -------------------------------------------------------------------------------------------------- waiting

    async def _attempt(self, line: Line, exchange: Awaitable[T]) -> T | None:
        """Return what the device gave, None when it did not. Raises: LinkLost."""
        try:
            async with asyncio.timeout(HUNG_S):
                return await exchange
        except LinkLost:
            raise
        except DeviceError as error:
            line.health.failed(error)
        except TimeoutError as error:
            line.health.failed(DeviceSilent(str(error) or f"no answer in {HUNG_S:g} s"))
        except Exception as error:  # noqa: BLE001 - a driver's bug must not end the other devices
            line.health.failed(DriverFailed(f"{type(error).__name__}: {error}"), error)
        return None

    async def _hand_in(self, line: Line, reading: Reading) -> None:
        try:
            await self._sink(line, reading)
        except msgspec.ValidationError as error:
            line.health.failed(DriverFailed(f"not a reading: {error}"))
        else:
            line.health.answered()

    async def _sleep(self, seconds: float) -> bool:
        """Wait, and say whether to go on."""
        if seconds > 0:
            try:
                async with asyncio.timeout(seconds):
                    await self._stop.wait()
            except TimeoutError:
                pass
        return not self._stop.is_set()

    async def _unless_stopped(self, work: Awaitable[T]) -> T | None:
        """Return the result of waiting for a device to speak, None once told to stop."""
        working = asyncio.ensure_future(work)
        stopping = asyncio.ensure_future(self._stop.wait())
        try:
            await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
            return await working if working.done() else None
        finally:
            await _cancel(working, stopping)


async def _cancel(*tasks: asyncio.Future[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _close(turn: Turn, reading: Reading | None) -> None:
    now_s = time.monotonic()
    if reading is None:
        turn.failed(now_s)
    else:
        turn.answered(now_s)


async def read_once(bus: Bus, device: Device, deadline_s: float) -> Reading:
    """Return one reading of one device, for `onestreet edge read`. Raises: DeviceError."""
    readings: asyncio.Queue[Reading] = asyncio.Queue()

    async def sink(line: Line, reading: Reading) -> None:
        del line
        await readings.put(reading)

    stop = asyncio.Event()
    line = Line(device, device.package.driver(device.settings), DeviceHealth(device.id))
    task = asyncio.ensure_future(BusTask(bus, [line], sink, stop).run())
    try:
        async with asyncio.timeout(deadline_s):
            return await readings.get()
    except TimeoutError:
        raise line.health.last_error or DeviceSilent(f"nothing in {deadline_s:g} s") from None
    finally:
        stop.set()
        await _cancel(task)
