"""The serial line: pyserial under asyncio, its errors in ours."""

from __future__ import annotations

import asyncio
import termios
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final, Literal, NamedTuple

import serial
from serial.tools.list_ports import comports
from serial.tools.list_ports_common import ListPortInfo
from serial_asyncio_fast import SerialTransport, create_serial_connection

from device_drivers.errors import DeviceSilent, LinkLost
from device_drivers.kit.driver import SerialPort
from device_drivers.kit.port_names import UsbPort, port_problem, usb_port

UNREAD_MAX: Final = 4096
"""Bytes kept for a driver that does not read; beyond that the oldest go: old frames help nobody."""
UNSENT_MAX: Final = 1024
_CLOSE_S: Final = 2.0


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


class _Line(asyncio.Protocol):
    """An open port, and what came in and is not read yet."""

    def __init__(self, name: str) -> None:
        self.transport: SerialTransport  # the library says "made" only in the loop's next round
        self._name = name
        self._unread = bytearray()
        self._stirred = asyncio.Event()
        self._lost = ""
        self._closed = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        self._unread += data
        del self._unread[:-UNREAD_MAX]
        self._stirred.set()

    def connection_lost(self, error: Exception | None) -> None:
        self._lost = f"{self._name}: {error or 'closed'}"
        self._stirred.set()
        self._closed.set()

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
        if self.transport.get_write_buffer_size() > UNSENT_MAX:
            raise LinkLost(f"{self._name}: takes no more bytes")
        self.transport.write(data)

    def discard_input(self) -> None:
        self._unread.clear()
        port = None if self._lost else self.transport.serial
        if port is not None:
            try:
                port.reset_input_buffer()
            except (serial.SerialException, OSError) as error:
                raise LinkLost(f"{self._name}: {error}") from error

    def _still_there(self) -> None:
        if self._lost or self.transport.is_closing():
            raise LinkLost(self._lost or f"{self._name}: closed")

    async def close(self) -> None:
        """Close without waiting for bytes that nobody takes."""
        if not self.transport.is_closing():
            self.transport.abort()
        async with asyncio.timeout(_CLOSE_S):
            await self._closed.wait()


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
    Raises: LinkLost when there is no such port, it is in use, or it may not be opened.
    """
    path = port_path(port)
    try:
        transport, line = await create_serial_connection(
            asyncio.get_running_loop(),
            lambda: _Line(port),
            path,
            baudrate=baudrate,
            bytesize=bytesize,
            parity=parity,
            stopbits=stopbits,
            exclusive=True,
        )
    except (serial.SerialException, OSError, ValueError, termios.error) as error:
        raise LinkLost(f"{port}: {error}") from error
    assert isinstance(line, _Line)
    line.transport = transport
    try:
        line.discard_input()
        yield line
    finally:
        await line.close()
