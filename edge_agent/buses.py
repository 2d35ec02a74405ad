"""The buses: one task each, reading its devices, carrying out commands and handing the readings on.

A bus that is lost is opened again with back-off; so is one on which nothing at all is heard for long. Told to stop, a
bus finishes the exchange it is in: an answer that a device gave is never thrown away.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypeVar, assert_never, cast

import msgspec

from device_drivers.errors import CommandRejected, DeviceSilent, FrameError, LinkLost
from device_drivers.kit.driver import (
    Advert,
    AdvertDriver,
    GattDriver,
    ModbusBus,
    ModbusDriver,
    Reading,
    SerialDriver,
    SerialPort,
    Value,
)
from device_drivers.links.modbus import open_modbus_rtu
from device_drivers.links.modbus_tcp import open_modbus_tcp
from device_drivers.links.serial import open_serial
from edge_agent.arbiter import Arbiter, Urgency
from edge_agent.config import BleBus, Bus, Device, ModbusRtuBus, ModbusTcpBus, SerialBus
from edge_agent.config_checks import transport_of
from edge_agent.health import DeviceHealth
from edge_agent.schedule import Pacing, Schedule, Slot
from exchange.errors import DeviceError

if TYPE_CHECKING:
    from device_drivers.links.ble import Scanner

T = TypeVar("T")
log = logging.getLogger(__name__)

REOPEN_FIRST_S = 0.2
REOPEN_LAST_S = 30.0
STEADY_S = 5.0  # a bus that was open for so long is opened again without delay when it is lost
QUIET_S = 60.0  # a bus on which nothing is heard for so long is opened again, ...
QUIET_LAST_S = 1800.0  # ... each time in vain twice as long: a cabinet may be without power all day
SILENT_S = 30.0  # without an advert for so long, and for ...
UNHEARD = 3  # ... so many intervals, an advertiser is silent
FAILED_S = 0.1  # before listening again: what fails at once must not eat the processor
TCP_GRAIN_S = (
    1.0  # there is no line whose time had to be shared out evenly; waking up costs more than asking
)
CONNECT_S = 10.0  # a BLE device that sleeps answers a connection when it wakes
HUNG_S = 60.0  # a driver's own deadlines are shorter; one that has none must not hold up its bus
CLOSE_S = 5.0  # a command that is under way when its bus is closed gets this long
TOLD_MAX = 16


class Line(NamedTuple):
    """A device with its driver and its record."""

    device: Device
    driver: object
    health: DeviceHealth


class DriverFailed(DeviceError):
    """A driver, or the library under it, raised what it should not: a bug that concerns its own device."""


Sink: TypeAlias = Callable[[Line, Reading], Awaitable[None]]
"""Where readings go; it may make the bus wait."""
Exchange: TypeAlias = Callable[[Line], Awaitable[Reading]]


class BusTask:
    """One bus with its devices.

    Shape: `tried` is set once the link is open, or could not be opened; `reason` is why it is not open.
    Units: `busy_s` is how long exchanges have held the bus since the start.
    """

    def __init__(
        self,
        bus: Bus,
        lines: Sequence[Line],
        sink: Sink,
        stop: asyncio.Event,
        pacing: Pacing | None = None,
    ) -> None:
        """Everything ends soon after `stop` is set."""
        self.bus = bus
        self.tried = asyncio.Event()
        self.is_open = False
        self.reason = ""
        self.opened = 0
        self.lost = 0
        self.busy_s = 0.0
        self._lines = list(lines)
        self._sink = sink
        self._stop = stop
        self._pacing = pacing or Pacing()
        self._arbiter = Arbiter()
        self._schedule: Schedule | None = None
        self._polled: list[Line] = []
        self._modbus: ModbusBus | None = None
        self._past_transactions = 0
        self._broken: LinkLost | None = None
        self._woken = asyncio.Event()
        self._opened_s = float("inf")
        self._heard_s = 0.0
        self._silences = 0
        self._in_vain = 0
        self._told: set[str] = set()
        self._is_told_open = False
        self._reset_radio = False

    @property
    def transactions(self) -> int:
        """Modbus requests since the start."""
        now = 0 if self._modbus is None else self._modbus.transactions
        return self._past_transactions + now

    async def run(self) -> None:
        """Serve the bus until told to stop. Whatever its devices, drivers and libraries do, it stays inside."""
        waking = asyncio.create_task(self._wake_to_stop())
        wait_s = REOPEN_FIRST_S
        try:
            while not self._stop.is_set():
                self._opened_s = float("inf")
                try:
                    await self._serve()
                except Exception as error:  # noqa: BLE001 - logged; a bug in a link must not end the agent
                    if time.monotonic() - self._opened_s >= STEADY_S:
                        wait_s = REOPEN_FIRST_S
                    self._note_lost(error)
                finally:
                    self.is_open = False
                self.tried.set()
                await self._sleep(wait_s * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
                wait_s = min(2 * wait_s, REOPEN_LAST_S)
        finally:
            await _cancel(waking)

    async def command(
        self, device_id: str, name: str, args: Mapping[str, Value], *, deadline_s: float
    ) -> dict[str, Value]:
        """Carry out a command, before any poll that waits, and return what the device reads back.

        Raises: LinkLost at once when the bus is not open, TimeoutError when its turn did not come within
        `deadline_s`, CommandRejected, and what the device raises.
        """
        line = next((line for line in self._lines if line.device.id == device_id), None)
        if line is None or not isinstance(self.bus, ModbusRtuBus | ModbusTcpBus):
            raise CommandRejected(f"{device_id} on {self.bus.id} takes no commands")
        self._link()
        async with self._arbiter.turn(Urgency.COMMAND, deadline_s):
            bus, began_s = self._link(), time.monotonic()
            try:
                async with asyncio.timeout(HUNG_S):
                    answer = await cast("ModbusDriver", line.driver).command(bus, name, args)
            except LinkLost as error:
                self._broken = error  # the polls need not find out for themselves
                self._woken.set()
                raise
            except TimeoutError as error:
                raise DeviceSilent(f"no answer in {HUNG_S:g} s") from error
            except DeviceError:
                raise
            except Exception as error:
                raise DriverFailed(f"{type(error).__name__}: {error}") from error
            finally:
                self.busy_s += time.monotonic() - began_s
        self._note_heard()
        if self._schedule is not None and line in self._polled:
            self._schedule.alive(self._polled.index(line), time.monotonic())
            self._woken.set()
        return answer

    def _link(self) -> ModbusBus:
        if self._modbus is None:
            raise LinkLost(self.reason or f"{self.bus.id} is not open")
        return self._modbus

    # ------------------------------------------------------------------------------------------------ the link

    async def _serve(self) -> None:
        match self.bus:
            case SerialBus() as bus:
                await self._serve_serial(bus, self._lines[0])
            case ModbusRtuBus() as bus:
                line = transport_of(bus, [line.device for line in self._lines])
                assert line is not None, "a bus of the kind has a line"
                link = open_modbus_rtu(
                    bus.port,
                    baudrate=line.baudrate,
                    bytesize=line.bytesize,
                    parity=line.parity,
                    stopbits=line.stopbits,
                    timeout_s=line.timeout_s,
                )
                await self._serve_modbus(link)
            case ModbusTcpBus() as bus:
                profiles = [line.device.package.profile for line in self._lines]
                timeout_s = max(profile.transport.timeout_s for profile in profiles)
                await self._serve_modbus(
                    open_modbus_tcp(bus.host, port=bus.port, timeout_s=bus.timeout_s or timeout_s)
                )
            case BleBus() as bus:
                await self._serve_ble(bus)
            case _:
                assert_never(self.bus)

    @asynccontextmanager
    async def _opened(self, link: AbstractAsyncContextManager[T]) -> AsyncIterator[T | None]:
        """Open a link; None once told to stop: a port that hangs takes its time."""
        async with AsyncExitStack() as stack:
            yield await self._unless_stopped(stack.enter_async_context(link))

    def _note_open(self) -> None:
        self._opened_s = self._heard_s = time.monotonic()
        self._silences, self._broken = 0, None
        self.is_open, self.reason = True, ""
        self.opened += 1
        self.tried.set()
        if not self._is_told_open:
            self._is_told_open = True
            log.info("bus open", extra={"bus": self.bus.id})

    def _note_lost(self, error: Exception) -> None:
        bug = None if isinstance(error, LinkLost) else error
        self.reason = f"{type(error).__name__}: {error}" if bug else str(error)
        if self.is_open or not self.tried.is_set():
            for line in self._lines:
                line.health.failed(LinkLost(self.reason))
        self.lost += self.is_open
        self._reset_radio = self._heard_s <= self._opened_s
        if self.reason not in self._told and len(self._told) < TOLD_MAX:
            self._told.add(self.reason)
            self._is_told_open = False
            log.warning("bus lost", extra={"bus": self.bus.id, "reason": self.reason}, exc_info=bug)

    def _note_heard(self) -> None:
        self._heard_s = time.monotonic()
        self._silences = self._in_vain = 0
        self._told.clear()
        self._reset_radio = False

    def _note_silence(self, exchanges: int = 1) -> None:
        """Raises: LinkLost when nobody was understood for long: it may be the port that hangs, or the radio."""
        self._silences += exchanges
        quiet_s = min(QUIET_S * 2**self._in_vain, QUIET_LAST_S)
        asked_enough = self._silences >= self._pacing.failures * len(self._lines)
        if asked_enough and time.monotonic() - self._heard_s >= quiet_s:
            self._in_vain = min(self._in_vain + 1, 16)
            raise LinkLost("no device is heard any more")

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
        async with self._opened(link) as port:
            if port is None:
                return
            await self._attempt(line, driver.start(port), is_heard=False)
            self._note_open()
            if driver.streaming:
                await self._listen(line, port)
            else:
                await self._poll([line], lambda _: driver.read(port))

    async def _listen(self, line: Line, port: SerialPort) -> None:
        driver = cast("SerialDriver", line.driver)
        while not self._stop.is_set():
            reading = await self._unless_stopped(self._attempt(line, driver.read(port)))
            if reading is None:
                await self._sleep(FAILED_S)
            else:
                await self._hand_in(line, reading)

    # ------------------------------------------------------------------------------------------------- Modbus

    async def _serve_modbus(self, link: AbstractAsyncContextManager[ModbusBus]) -> None:
        async with self._opened(link) as bus:
            if bus is None:
                return
            self._modbus = bus
            self._note_open()
            try:
                await self._poll(
                    self._lines, lambda line: cast("ModbusDriver", line.driver).read(bus)
                )
            finally:
                self._past_transactions += bus.transactions
                self._modbus = None
                with suppress(TimeoutError):
                    async with self._arbiter.turn(Urgency.COMMAND, CLOSE_S):
                        pass  # a command that was under way has ended

    # ---------------------------------------------------------------------------------------------------- BLE

    async def _serve_ble(self, bus: BleBus) -> None:
        from device_drivers.links import ble  # three megabytes that a gateway without a radio saves

        if self._reset_radio:
            await ble.power_cycle(bus.adapter)
        listening = [line for line in self._lines if hasattr(line.driver, "hear")]
        visited = [line for line in self._lines if line not in listening]
        addresses = [cast("AdvertDriver | GattDriver", line.driver).address for line in self._lines]
        async with ble.open_scanner(addresses, adapter=bus.adapter) as scanner:

            async def visit(line: Line) -> Reading:
                driver = cast("GattDriver", line.driver)
                timeout_s = max(line.device.package.profile.transport.timeout_s, CONNECT_S)
                link = ble.open_gatt(
                    driver.address, adapter=bus.adapter, timeout_s=timeout_s, scanner=scanner
                )
                try:
                    async with link as device:
                        return await driver.read(device)
                except LinkLost as error:  # its own; the loss of the radio is noticed by silence
                    raise DeviceSilent(str(error)) from error

            self._note_open()
            works = [self._overhear(scanner, listening)]
            works += [self._poll(visited, visit)] if visited else []
            await _together(works)

    async def _overhear(self, scanner: Scanner, lines: Sequence[Line]) -> None:
        """Take adverts, those of devices that are connected to only as a sign of the radio's life."""
        listening = {cast("AdvertDriver", line.driver).address: line for line in lines}
        now_s = time.monotonic()
        silent_s = {address: now_s + _patience_s(line) for address, line in listening.items()}
        heard = scanner.heard
        while not self._stop.is_set():
            first = min(silent_s, key=lambda address: silent_s[address], default=None)
            wait_s = SILENT_S if first is None else silent_s[first] - time.monotonic()
            try:
                advert = await self._unless_stopped(scanner.next_advert(wait_s))
            except DeviceSilent:
                if first is not None:
                    patience_s = _patience_s(listening[first])
                    silent_s[first] = time.monotonic() + patience_s
                    silent = DeviceSilent(f"no advert in {patience_s:g} s")
                    listening[first].health.failed(silent)
                if scanner.heard == heard:
                    self._note_silence(self._pacing.failures)  # of several intervals already
                else:
                    heard = scanner.heard  # strangers: the radio is well
                    self._note_heard()
                continue
            if advert is None:
                return
            line = listening.get(advert.address)
            if line is None:
                continue
            silent_s[advert.address] = time.monotonic() + _patience_s(line)
            reading = await self._attempt(line, _understood(line, advert))
            if reading is not None:
                await self._hand_in(line, reading)

    # ------------------------------------------------------------------------------------------------- polling

    async def _poll(self, lines: Sequence[Line], exchange: Exchange) -> None:
        """Ask each device when its time has come, until told to stop. Raises: LinkLost."""
        schedule = self._resumed(lines)
        while not self._stop.is_set():
            if self._broken is not None:
                raise self._broken
            try:
                async with self._arbiter.turn(Urgency.POLL, HUNG_S):
                    slot, again_s = schedule.choice(time.monotonic())
                    reading = None
                    if slot is not None:
                        reading = await self._asked(schedule, slot, lines[slot.index], exchange)
            except TimeoutError:
                await self._sleep(FAILED_S)  # commands have the bus; what is due counts as missed
                continue
            if slot is None:
                await self._sleep(again_s - time.monotonic())
            elif reading is not None:
                await self._hand_in(lines[slot.index], reading)

    def _resumed(self, lines: Sequence[Line]) -> Schedule:
        now_s = time.monotonic()
        if self._schedule is None:
            intervals_s = [line.device.interval_s for line in lines]
            grain_s = TCP_GRAIN_S if isinstance(self.bus, ModbusTcpBus) else 0.0
            self._schedule = Schedule(intervals_s, now_s, self._pacing, grain_s)
            self._polled = list(lines)
        else:
            self._schedule.resume(now_s)
        return self._schedule

    async def _asked(
        self, schedule: Schedule, slot: Slot, line: Line, exchange: Exchange
    ) -> Reading | None:
        began_s = time.monotonic()
        health = line.health
        if slot.opened:
            health.breaker = "probing"
        if not slot.failures:
            health.lateness_s = began_s - slot.due_s
        try:
            reading = await self._attempt(line, exchange(line))
            now_s = time.monotonic()
            if reading is None:
                schedule.failed(slot, began_s, now_s)
            else:
                schedule.answered(slot, now_s)
        finally:
            self.busy_s += time.monotonic() - began_s
            health.missed += slot.missed
            slot.missed = 0
            health.breaker = "open" if slot.opened else "closed"
            health.next_probe_s = slot.due_s if slot.opened else None
        return reading

    # ------------------------------------------------------------------------------------------------- waiting

    async def _attempt(
        self, line: Line, exchange: Awaitable[T], *, is_heard: bool = True
    ) -> T | None:
        """Return what the device gave, None when it did not. Raises: LinkLost.

        Shape: `is_heard` says whether it is the device that makes the exchange succeed.
        """
        try:
            with _Patience():
                given = await exchange
        except LinkLost:
            raise
        except (DeviceSilent, TimeoutError) as error:
            reason = str(error) or f"no answer in {HUNG_S:g} s"
            line.health.failed(DeviceSilent(reason))
            self._note_silence()
        except FrameError as error:
            line.health.failed(error)
            if isinstance(self.bus, BleBus):
                self._note_heard()
            else:  # a port that was set up otherwise by somebody, or lost its settings, garbles everything
                self._note_silence()
        except DeviceError as error:
            line.health.failed(error)
            self._note_heard()
        except Exception as error:  # noqa: BLE001 - a driver's bug must not end the other devices
            line.health.failed(DriverFailed(f"{type(error).__name__}: {error}"), error)
        else:
            if is_heard:
                self._note_heard()
            return given
        return None

    async def _hand_in(self, line: Line, reading: Reading) -> None:
        try:
            await self._sink(line, reading)
        except msgspec.ValidationError as error:
            line.health.failed(DriverFailed(f"not a reading: {error}"))
        else:
            line.health.answered()

    async def _sleep(self, seconds: float) -> None:
        """Wait, but not when there is something to do sooner."""
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, seconds)):
                await self._woken.wait()
        if not self._stop.is_set():
            self._woken.clear()

    async def _wake_to_stop(self) -> None:
        await self._stop.wait()
        self._woken.set()

    async def _unless_stopped(self, work: Awaitable[T]) -> T | None:
        """Return the result of waiting for a device to speak, None once told to stop."""
        working = asyncio.ensure_future(work)
        stopping = asyncio.ensure_future(self._stop.wait())
        try:
            await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
            return await working if working.done() else None
        finally:
            await _cancel(working, stopping)


class _Patience:
    """`asyncio.timeout(HUNG_S)` at a fraction of its cost, of which every poll has its share."""

    __slots__ = ("_before", "_handle", "_is_over", "_task")

    def __enter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task, self._before, self._is_over = task, task.cancelling(), False
        self._handle = task.get_loop().call_later(HUNG_S, self._end)

    def _end(self) -> None:
        self._is_over = True
        self._task.cancel()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._handle.cancel()
        if (
            self._is_over
            and self._task.uncancel() <= self._before
            and kind is asyncio.CancelledError
        ):
            raise TimeoutError


def _patience_s(line: Line) -> float:
    return max(SILENT_S, UNHEARD * line.device.interval_s)


async def _understood(line: Line, advert: Advert) -> Reading | None:
    return cast("AdvertDriver", line.driver).hear(advert)


async def _together(works: Sequence[Awaitable[None]]) -> None:
    """Do all of it; what one raises ends the others."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in tasks:
            if task.done():
                task.result()
    finally:
        await _cancel(*tasks)


async def _cancel(*tasks: asyncio.Future[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


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
