"""The Modbus bus, RTU and TCP: pymodbus with one request in flight, its errors in ours."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final, Literal

from pymodbus.client import AsyncModbusSerialClient, AsyncModbusTcpClient
from pymodbus.exceptions import ConnectionException, ModbusException
from pymodbus.pdu import ModbusPDU

from device_drivers.errors import DeviceRefused, DeviceSilent, FrameError, LinkLost
from device_drivers.kit.driver import ModbusBus
from device_drivers.kit.register_table import exception_words, parse_response

_QUIET_S: Final = 0.25
"""A line without bytes for so long has no late answer on its way any more."""
_DRAIN_MAX_S: Final = 2.0


class _Bus:
    """A connected client. An answer that comes too late is drained, never taken for the next one."""

    def __init__(self, name: str, timeout_s: float, *, is_serial: bool) -> None:
        self._name, self._timeout_s, self._is_serial = name, timeout_s, is_serial
        self._one_at_a_time = asyncio.Lock()
        self._in_doubt = is_serial
        self._heard = b""
        self._stirred_at_s = time.monotonic()
        self.client: AsyncModbusSerialClient | AsyncModbusTcpClient

    def overhear(self, sending: bool, data: bytes) -> bytes:
        """Keep what came in since the request, to say what was wrong with it."""
        self._stirred_at_s = time.monotonic()
        self._heard = b"" if sending else bytes(data)
        return data

    async def read_holding(self, unit: int, address: int, count: int) -> list[int]:
        ask = partial(self.client.read_holding_registers, address, count=count, device_id=unit)
        return self._registers(await self._ask(unit, 3, count, ask), count)

    async def read_input(self, unit: int, address: int, count: int) -> list[int]:
        ask = partial(self.client.read_input_registers, address, count=count, device_id=unit)
        return self._registers(await self._ask(unit, 4, count, ask), count)

    async def read_coils(self, unit: int, address: int, count: int) -> list[bool]:
        ask = partial(self.client.read_coils, address, count=count, device_id=unit)
        return self._bits(await self._ask(unit, 1, count, ask), count)

    async def read_discrete(self, unit: int, address: int, count: int) -> list[bool]:
        ask = partial(self.client.read_discrete_inputs, address, count=count, device_id=unit)
        return self._bits(await self._ask(unit, 2, count, ask), count)

    async def write_register(self, unit: int, address: int, value: int) -> None:
        ask = partial(self.client.write_register, address, value, device_id=unit)
        answer = await self._ask(unit, 6, None, ask)
        self._echoes((address, value), (answer.address, *answer.registers))

    async def write_registers(self, unit: int, address: int, values: Sequence[int]) -> None:
        ask = partial(self.client.write_registers, address, list(values), device_id=unit)
        answer = await self._ask(unit, 16, None, ask)
        self._echoes((address, len(values)), (answer.address, answer.count))

    async def _ask(
        self,
        unit: int,
        function: int,
        quantity: int | None,
        ask: Callable[[], Awaitable[ModbusPDU]],
    ) -> ModbusPDU:
        async with self._one_at_a_time:
            self._still_there()
            await self._drain()
            self._in_doubt, self._heard = self._is_serial, b""
            try:
                answer = await ask()
                self._in_doubt = self._is_serial and answer.function_code & 0x7F != function
            except ConnectionException as error:
                raise LinkLost(f"{self._name}: {error}") from error
            except ModbusException as error:
                task = asyncio.current_task()
                if task is not None and task.cancelling():
                    raise asyncio.CancelledError from error  # pymodbus makes an error of it
                self._still_there()
                raise self._what_was_wrong(unit, function, quantity) from error
            finally:
                self._stirred_at_s = time.monotonic()
        if answer.function_code & 0x7F != function:
            message = f"function {answer.function_code} answered {function}"
            raise FrameError("wrong_function", message, offset=1)
        if answer.isError():
            code = answer.exception_code
            raise DeviceRefused(f"{self._name} unit {unit}: {exception_words(code)}", code)
        return answer

    def _still_there(self) -> None:
        if not self.client.connected:
            raise LinkLost(f"{self._name}: the connection is gone")

    async def _drain(self) -> None:
        """Let a late answer go by before the next request."""
        give_up_s = time.monotonic() + _DRAIN_MAX_S
        while self._in_doubt:
            wait_s = min(self._stirred_at_s + _QUIET_S, give_up_s) - time.monotonic()
            if wait_s <= 0:
                break
            await asyncio.sleep(wait_s)

    def _what_was_wrong(
        self, unit: int, function: int, quantity: int | None
    ) -> DeviceSilent | FrameError:
        """Tell a device that says nothing from one whose bytes are damaged."""
        if self._heard and self._is_serial:
            try:
                parse_response(self._heard, slave=unit, function=function, quantity=quantity)
            except FrameError as error:
                return error
        return DeviceSilent(f"{self._name} unit {unit}: no answer in {self._timeout_s:g} s")

    @staticmethod
    def _registers(answer: ModbusPDU, count: int) -> list[int]:
        if len(answer.registers) != count:
            message = f"{len(answer.registers)} registers, asked for {count}"
            raise FrameError("bad_byte_count", message, offset=2)
        return list(answer.registers)

    @staticmethod
    def _bits(answer: ModbusPDU, count: int) -> list[bool]:
        if len(answer.bits) != (count + 7) // 8 * 8:
            raise FrameError(
                "bad_byte_count", f"{len(answer.bits)} bits, asked for {count}", offset=2
            )
        return list(answer.bits[:count])

    @staticmethod
    def _echoes(sent: tuple[int, ...], echoed: tuple[int, ...]) -> None:
        if echoed != sent:
            raise FrameError("bad_value", f"the write {sent} was echoed as {echoed}", offset=2)


@asynccontextmanager
async def _connected(bus: _Bus, missing: str) -> AsyncIterator[ModbusBus]:
    # It logs every silent device every time; the agent logs once when one goes and once when it is back.
    logging.getLogger("pymodbus").setLevel(logging.CRITICAL)
    try:
        if not await bus.client.connect():
            raise LinkLost(missing)
        yield bus
    finally:
        bus.client.close()
        await asyncio.sleep(0)  # the transport closes in the loop's next round


def _why_not(port: str) -> str:
    """Say why a port cannot be opened: pymodbus keeps the reason to itself."""
    return "in use, or may not be opened" if Path(port).exists() else "there is no such port"


@asynccontextmanager
async def open_modbus_rtu(
    port: str,
    *,
    baudrate: int = 9600,
    bytesize: Literal[7, 8] = 8,
    parity: Literal["N", "E", "O"] = "N",
    stopbits: Literal[1, 2] = 1,
    timeout_s: float = 1.0,
) -> AsyncIterator[ModbusBus]:
    """Open a serial bus. Requests are not repeated: the schedule asks again.

    Raises: LinkLost when there is no such port, it is in use, or it may not be opened.
    """
    bus = _Bus(port, timeout_s, is_serial=True)
    bus.client = AsyncModbusSerialClient(
        port,
        baudrate=baudrate,
        bytesize=bytesize,
        parity=parity,
        stopbits=stopbits,
        timeout=timeout_s,
        retries=0,
        reconnect_delay=0,
        trace_packet=bus.overhear,
    )
    async with _connected(bus, f"{port}: {_why_not(port)}") as opened:
        yield opened


@asynccontextmanager
async def open_modbus_tcp(
    host: str, *, port: int = 502, timeout_s: float = 1.0
) -> AsyncIterator[ModbusBus]:
    """Connect to a Modbus TCP device or gateway. Requests are not repeated: the schedule asks again.

    Raises: LinkLost when it cannot be reached.
    """
    name = f"{host}:{port}"
    bus = _Bus(name, timeout_s, is_serial=False)
    bus.client = AsyncModbusTcpClient(
        host,
        port=port,
        timeout=timeout_s,
        retries=0,
        reconnect_delay=0,
        trace_packet=bus.overhear,
    )
    async with _connected(bus, f"{name}: no connection in {timeout_s:g} s") as opened:
        yield opened
