"""The serial line: pyserial under asyncio, its errors in ours."""

from __future__ import annotations

import asyncio
import os
import termios
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager
from errno import EAGAIN, EBUSY
from pathlib import Path
from threading import Thread
from typing import Any, Final, Literal, NamedTuple, Protocol

import serial
from serial.tools.list_ports import comports
from serial.tools.list_ports_common import ListPortInfo

from device_drivers.errors import DeviceSilent, LinkLost, PortInUse
from device_drivers.kit.driver import SerialPort
from device_drivers.kit.port_names import UsbPort, port_problem, usb_port

UNREAD_MAX: Final = 4096
"""Bytes kept for a driver that does not read; beyond that the oldest go: old frames help nobody."""
UNSENT_MAX: Final = 1024
"""Bytes kept for a port that takes none; then it is lost."""
OPEN_S: Final = 10.0
"""What the kernel's driver of an adapter that hangs takes longer for is not waited for."""
_CLOSE_S: Final = 2.0
_TAKEN: Final = (EAGAIN, EBUSY)
"""What whoever comes second gets: the lock, or the port, is somebody else's."""


class FoundPort(NamedTuple):
    """A serial port of this machine; `name` stays when it is plugged in anew, as far as its adapter allows."""

    path: str
    name: str
    description: str


def found_ports() -> list[FoundPort]:
    """Return every serial port there is now."""
    ports = sorted(comports())
    return [
        FoundPort(str(port.device), _steady_name(port, ports), str(port.description))
        for port in ports
    ]


def _steady_name(port: ListPortInfo, ports: Sequence[ListPortInfo]) -> str:
    """Return the first name that means this port and no other: by its serial number, else by its socket."""
    names = [f"usb-path:{port.location}"]
    if port.vid is not None and port.pid is not None and port.serial_number:
        names.insert(0, f"usb:{port.vid:04X}:{port.pid:04X}:{port.serial_number}")
    for name in names:
        wanted = usb_port(name)
        if wanted and [other for other in ports if _is_meant(other, wanted)] == [port]:
            return name
    return str(port.device)


def port_path(name: str) -> str:
    """Return where the port is now: an adapter that was plugged in anew may be under another path.

    Raises: LinkLost when no adapter is meant, or more than one.
    """
    if problem := port_problem(name):
        raise LinkLost(f"{name}: must be {problem}")
    wanted = usb_port(name)
    if wanted is None:
        return name
    found = [port for port in comports() if _is_meant(port, wanted)]
    if len(found) == 1:
        return str(found[0].device)
    if not found:
        raise LinkLost(f"{name}: there is no such adapter")
    places = ", ".join(f"{port.device} is usb-path:{port.location}" for port in sorted(found))
    raise LinkLost(f"{name}: {len(found)} ports are meant: {places}")


def _is_meant(port: ListPortInfo, wanted: UsbPort) -> bool:
    if wanted.path is not None:
        location = port.location or ""  # with an interface where the adapter has several ports
        return wanted.path in (location, location.partition(":")[0])
    is_kind = (port.vid, port.pid) == (wanted.vid, wanted.pid)
    return is_kind and wanted.serial in (None, port.serial_number)


# --------------------------------------------------------------------------------------------------------- opening

_work: dict[str, Future[Any]] = {}
"""What is done to each port, or was done last, by its path."""


def _begin(path: str, work: Callable[[], object]) -> Future[Any]:
    """Do what may never end in a thread that nobody waits for, the process at its end included.

    Shape: an error is a result, too.
    """
    future: Future[Any] = Future()
    future.set_running_or_notify_cancel()

    def run() -> None:
        try:
            future.set_result(work())
        except Exception as error:  # noqa: BLE001 - it goes to whoever waits
            future.set_result(error)

    _work[path] = future
    Thread(target=run, name=f"port {path}", daemon=True).start()
    return future


async def _has_ended(future: Future[Any], deadline_s: float) -> bool:
    waiting = asyncio.wrap_future(future)
    try:
        done, _ = await asyncio.wait({waiting}, timeout=deadline_s)
        return bool(done)
    finally:
        waiting.cancel()


def _opened(path: str, settings: dict[str, Any]) -> serial.Serial:
    if not Path(path).exists():
        raise LinkLost("there is no such port")
    if not Path(path).is_char_device():
        raise LinkLost("this is no serial port")
    port = serial.Serial(exclusive=True, timeout=0, **settings)
    port.port = path
    port.open()
    return port


async def _open(name: str, settings: dict[str, Any]) -> serial.Serial:
    """Open a port. What the kernel's driver does with it for longer than `OPEN_S` is not waited for."""
    path = port_path(name)
    hangs = LinkLost(f"{name}: the port hangs, there is no answer in {OPEN_S:g} s")
    # an opening that was given up is followed by its closing
    while (before := _work.get(path)) is not None and not before.done():
        if not await _has_ended(before, OPEN_S):
            raise hangs
    opening = _begin(path, lambda: _opened(path, settings))
    port: serial.Serial | Exception | None = None
    try:
        if await _has_ended(opening, OPEN_S):
            port = opening.result()
    finally:
        if port is None:
            opening.add_done_callback(_close_unwanted)
    if port is None:
        raise hangs
    if isinstance(port, OSError) and port.errno in _TAKEN:
        raise PortInUse(f"{name}: in use") from port
    if isinstance(port, Exception):
        raise LinkLost(f"{name}: {port}") from port
    return port


def _close_unwanted(opening: Future[Any]) -> None:
    if isinstance(port := opening.result(), serial.Serial):
        _begin(port.portstr, port.close)


class Receiver(Protocol):
    """What asyncio.Protocol and the libraries' own have in common."""

    def connection_made(self, transport: asyncio.BaseTransport, /) -> None: ...
    def data_received(self, data: bytes, /) -> None: ...
    def connection_lost(self, error: Exception | None, /) -> None: ...


class PortTransport(asyncio.Transport):
    """An open port as asyncio knows transports. Nothing in it waits: a port may take no bytes, for ever."""

    def __init__(self, port: serial.Serial, protocol: Receiver) -> None:
        super().__init__()
        self._loop = asyncio.get_running_loop()
        self._port, self._protocol = port, protocol
        self._unsent = bytearray()
        self._is_closing = False
        self._loop.add_reader(port.fd, self._receive)
        self._loop.call_soon(protocol.connection_made, self)

    def _receive(self) -> None:
        try:
            # it tells a port that is gone from one that has nothing
            data = self._port.read(UNREAD_MAX)
        except (serial.SerialException, OSError) as error:
            self._end(error)
        else:
            if data:
                self._protocol.data_received(data)

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        """Send, now or when the port takes it. One that takes nothing is lost."""
        if self._is_closing:
            return
        self._unsent += data
        self._send()
        if len(self._unsent) > UNSENT_MAX:
            self._end(OSError("takes no more bytes"))

    def _send(self) -> None:
        try:
            # not the library's: it would try for ever
            del self._unsent[: os.write(self._port.fd, self._unsent)]
        except BlockingIOError:
            pass
        except OSError as error:
            self._end(error)
            return
        if self._unsent:
            self._loop.add_writer(self._port.fd, self._send)
        else:
            self._loop.remove_writer(self._port.fd)

    def is_closing(self) -> bool:
        return self._is_closing

    def close(self) -> None:
        """Close at once: a request that was not sent by now is of no use."""
        self._end(None)

    abort = close

    def discard_input(self) -> None:
        """Throw away what the kernel has. Raises: LinkLost."""
        if not self._is_closing:
            try:
                self._port.reset_input_buffer()
            except (serial.SerialException, OSError, termios.error) as error:
                raise LinkLost(f"{self._port.portstr}: {error}") from error

    def _end(self, error: Exception | None) -> None:
        if self._is_closing:
            return
        self._is_closing = True
        self._loop.remove_reader(self._port.fd)
        self._loop.remove_writer(self._port.fd)
        # Bytes that nobody takes may keep the kernel for half a minute, a driver that hangs for ever.
        _begin(self._port.portstr, self._port.close)
        self._loop.call_soon(self._protocol.connection_lost, error)


@asynccontextmanager
async def attached(
    name: str,
    protocol: Receiver,
    *,
    baudrate: int,
    bytesize: Literal[7, 8],
    parity: Literal["N", "E", "O"],
    stopbits: Literal[1, 2],
) -> AsyncIterator[PortTransport]:
    """Open a port that nobody else has open for a protocol; `name` is a path or names an adapter (kit.port_names).

    Raises: PortInUse; LinkLost when there is no such port, it may not be opened, or it hangs.
    """
    settings = {
        "baudrate": baudrate,
        "bytesize": bytesize,
        "parity": parity,
        "stopbits": stopbits,
    }
    port = await _open(name, settings)
    transport = PortTransport(port, protocol)
    try:
        yield transport
    finally:
        transport.close()
        await _has_ended(_work[port.portstr], _CLOSE_S)


# ------------------------------------------------------------------------------------------------------------ line


class _Line(asyncio.Protocol):
    """An open port, and what came in and is not read yet."""

    def __init__(self, name: str) -> None:
        self.transport: PortTransport  # asyncio says "made" only in the loop's next round
        self._name = name
        self._unread = bytearray()
        self._stirred = asyncio.Event()
        self._lost = ""

    def data_received(self, data: bytes) -> None:
        self._unread += data
        del self._unread[:-UNREAD_MAX]
        self._stirred.set()

    def connection_lost(self, error: Exception | None) -> None:
        self._lost = f"{self._name}: {error or 'closed'}"
        self._stirred.set()

    async def read_some(self, timeout_s: float) -> bytes:
        try:
            async with asyncio.timeout(timeout_s):
                while not self._unread:
                    self._still_there()
                    self._stirred.clear()
                    await self._stirred.wait()
        except TimeoutError:
            raise DeviceSilent(f"{self._name}: nothing came in {timeout_s:.3g} s") from None
        data = bytes(self._unread)
        self._unread.clear()
        return data

    async def write(self, data: bytes) -> None:
        self._still_there()
        self.transport.write(data)

    def discard_input(self) -> None:
        self._unread.clear()
        self.transport.discard_input()

    def _still_there(self) -> None:
        if self._lost or self.transport.is_closing():
            raise LinkLost(self._lost or f"{self._name}: closed")


@asynccontextmanager
async def open_serial(
    port: str,
    *,
    baudrate: int = 9600,
    bytesize: Literal[7, 8] = 8,
    parity: Literal["N", "E", "O"] = "N",
    stopbits: Literal[1, 2] = 1,
) -> AsyncIterator[SerialPort]:
    """Open a port that nobody else has open, its input discarded.

    Shape: `port` is a path or names an adapter (kit.port_names).
    Raises: PortInUse; LinkLost when there is no such port, it may not be opened, or it hangs.
    """
    line = _Line(port)
    async with attached(
        port, line, baudrate=baudrate, bytesize=bytesize, parity=parity, stopbits=stopbits
    ) as line.transport:
        line.discard_input()
        yield line
