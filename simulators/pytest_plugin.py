"""Pytest fixtures for integrators: PTY lines, Modbus buses and a simulated BlueZ.

The lines live on an event loop in a thread of their own, so that blocking clients (pyserial, the
synchronous pymodbus) and asyncio ones can be tested alike. Nothing is imported until a fixture is used.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

if TYPE_CHECKING:
    from device_drivers.kit.twin import AdvertTwin, ModbusTwin, SerialTwin
    from simulators.bluez import Bluez
    from simulators.line import Endpoint
    from simulators.peripheral import Peripheral

T = TypeVar("T")

DEADLINE_S = 30.0


class Bench:
    """Keeps async contexts in a thread; `close` leaves them in the order opposite to their entering."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="bench", daemon=True)
        self._thread.start()
        self._entered: list[tuple[asyncio.Event, asyncio.Task[None]]] = []

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Carry `work` out in the bench's thread."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(DEADLINE_S)

    def enter(self, make: Callable[[], AbstractAsyncContextManager[T]]) -> T:
        """Make a context in the thread that it lives in, enter it and return what it gives."""
        return self.run(self._enter(make))

    def close(self) -> None:
        try:
            while self._entered:
                self.run(self._end(*self._entered.pop()))
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(DEADLINE_S)
            self._loop.close()

    async def _enter(self, make: Callable[[], AbstractAsyncContextManager[T]]) -> T:
        ready: asyncio.Future[T] = self._loop.create_future()
        end = asyncio.Event()

        async def live() -> None:
            async with make() as entered:
                ready.set_result(entered)
                await end.wait()

        task = asyncio.create_task(live())
        await asyncio.wait((ready, task), return_when=asyncio.FIRST_COMPLETED)
        if not ready.done():
            await task  # it failed: say why
        self._entered.append((end, task))
        return ready.result()

    @staticmethod
    async def _end(end: asyncio.Event, task: asyncio.Task[None]) -> None:
        end.set()
        await task


class BluezBench:
    """A simulated BlueZ that clients in this process find; `address` is its D-Bus."""

    def __init__(self, bench: Bench, bluez: Bluez, address: str) -> None:
        self._bench, self._bluez, self.address = bench, bluez, address

    def add(self, device: AdvertTwin | Peripheral) -> None:
        """Bring a device into reach."""

        async def add() -> None:
            self._bluez.add(device)

        self._bench.run(add())


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    try:
        yield bench
    finally:
        bench.close()


@pytest.fixture
def serial_line(bench: Bench, tmp_path: Path) -> Callable[..., str]:
    """Return `serial_line(twin, baud=None)`: it hosts a `SerialTwin` and returns the port."""
    from simulators.serial_line import SerialLine

    def host(twin: SerialTwin, *, baud: int | None = None) -> str:
        path = _free_port(tmp_path)
        return bench.enter(lambda: SerialLine(twin, path, baud=baud)).port

    return host


@pytest.fixture
def modbus_line(bench: Bench, tmp_path: Path) -> Callable[..., Endpoint]:
    """Return `modbus_line(*twins, tcp=False)`: it hosts `ModbusTwin`s on one bus.

    The endpoint returned has a `port`, and with `tcp` a `host`, too.
    """
    from simulators.modbus_line import ModbusRtuLine, ModbusTcpLine

    def host(*twins: ModbusTwin, tcp: bool = False) -> Endpoint:
        if tcp:
            return bench.enter(lambda: ModbusTcpLine(twins)).endpoint
        path = _free_port(tmp_path)
        return bench.enter(lambda: ModbusRtuLine(twins, path)).endpoint

    return host


@pytest.fixture
def bluez(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BluezBench:
    """Run a simulated BlueZ on a D-Bus of its own; clients find it by DBUS_SYSTEM_BUS_ADDRESS."""
    from simulators.bluez import Bluez
    from simulators.private_bus import PrivateBus

    daemon = bench.enter(lambda: PrivateBus(tmp_path / "dbus-daemon.log"))
    hosted = bench.enter(lambda: Bluez(daemon.address))
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", daemon.address)
    return BluezBench(bench, hosted, daemon.address)


def _free_port(folder: Path) -> Path:
    return folder / f"tty{len(list(folder.glob('tty*')))}"
