"""The Modbus bus on a serial line: pymodbus with one request in flight, its errors in ours."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Final, Literal

from pymodbus.client import AsyncModbusSerialClient
from pymodbus.exceptions import ConnectionException, ModbusException
from pymodbus.pdu import ModbusPDU
from pymodbus.transport import ModbusProtocol

from device_drivers.errors import DeviceRefused, DeviceSilent, FrameError, LinkLost
from device_drivers.kit.driver import ModbusBus
from device_drivers.kit.register_table import crc16, exception_words, parse_response
from device_drivers.links.serial import PortTransport, attached

_LATE_S: Final = 0.25
"""A unit that gave no answer is not asked again for so long: its answer may be late, and nothing in an RTU answer
says which question it answers. Other units need not wait: an answer names its unit."""
_CHUNK_S: Final = 0.02
"""Adapters hand bytes on in portions: a frame may go on after so long a pause (FTDI: 16 ms)."""
_UNEVEN: Final = 2
"""Some devices pause between bytes: an answer may take so many times as long as its bytes do."""
_BABBLE_S: Final = 1.0
"""A line that is not quiet by then is asked all the same."""
_REQUEST_BYTES: Final = 8
_BITS_PER_BYTE: Final = 11
_NEVER_S: Final = 3600.0
"""Deadlines are ours: after a few of its own the library hangs up, and one silent unit would end a whole bus."""


class _Wire:
    """How long things take on a serial line. Source: MODBUS over Serial Line V1.02, 2.5.1.1."""

    def __init__(self, baudrate: int) -> None:
        self._byte_s = _BITS_PER_BYTE / baudrate
        self.gap_s = max(3.5 * self._byte_s, 0.00175)
        self.pause_s = max(3.5 * self._byte_s, _CHUNK_S)

    def takes_s(self, byte_count: int) -> float:
        return byte_count * self._byte_s


class _Bus:
    """A connected client. An answer that comes too late is let go by, never taken for the next one."""

    def __init__(self, name: str, timeout_s: float, wire: _Wire) -> None:
        self.transactions = 0
        self.client: AsyncModbusSerialClient
        self.timeout_s = timeout_s
        self.name, self._wire = name, wire
        self._one_at_a_time = asyncio.Lock()
        self._heard = b""
        self._stirred_s = self._opened_s = time.monotonic()
        self._unanswered_s: dict[int, float] = {}
        self._in_doubt = True
        self._deadline: asyncio.Timeout | None = None
        self._answer_bytes = 0
        self._unit = 0

    def overhear(self, sending: bool, data: bytes) -> bytes:
        """Keep what came in since the request, to say what was wrong with it. What has begun may end."""
        self._stirred_s = time.monotonic()
        deadline, wire = self._deadline, self._wire
        if not sending and not self._heard and deadline and not deadline.expired():
            takes_s = _UNEVEN * wire.takes_s(self._answer_bytes) + wire.pause_s
            ends_s = asyncio.get_running_loop().time() + takes_s
            deadline.reschedule(max(deadline.when() or 0.0, ends_s))
        self._heard = b"" if sending else bytes(data)
        return data if sending else _without_strays(data, self._unit)

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
            await self._quiet(unit)
            self._heard, self._in_doubt, self._unit = b"", True, unit
            self._answer_bytes = _answer_bytes(function, quantity)
            self.transactions += 1
            sent_s = self._wire.takes_s(_REQUEST_BYTES)
            try:
                async with asyncio.timeout(self.timeout_s + sent_s) as self._deadline:
                    answer = await ask()
                self._in_doubt = answer.function_code & 0x7F != function
            except ConnectionException as error:
                raise LinkLost(f"{self.name}: {error}") from error
            except (ModbusException, TimeoutError) as error:
                self._still_there()
                raise self._what_was_wrong(unit, function, quantity) from error
            finally:
                self._deadline = None
                if self._in_doubt:
                    self._unanswered_s[unit] = time.monotonic()
                else:
                    self._unanswered_s.pop(unit, None)
        if answer.function_code & 0x7F != function:
            message = f"function {answer.function_code} answered {function}"
            raise FrameError("wrong_function", message, offset=1)
        if answer.isError():
            code = answer.exception_code
            raise DeviceRefused(f"{self.name} unit {unit}: {exception_words(code)}", code)
        return answer

    def _still_there(self) -> None:
        if not self.client.connected:
            raise LinkLost(f"{self.name}: the connection is gone")

    async def _quiet(self, unit: int) -> None:
        """Wait until the last frame has ended, and with it the time in which this unit may answer late."""
        wire = self._wire
        late_s = self._unanswered_s.get(unit, self._opened_s) + _LATE_S
        give_up_s = max(time.monotonic(), late_s) + _BABBLE_S
        while True:
            gap_s = wire.pause_s if self._in_doubt else wire.gap_s
            wait_s = min(max(late_s, self._stirred_s + gap_s), give_up_s) - time.monotonic()
            if wait_s <= 0:
                return
            await asyncio.sleep(wait_s)

    def _what_was_wrong(
        self, unit: int, function: int, quantity: int | None
    ) -> DeviceSilent | FrameError:
        """Tell a device that says nothing from one whose bytes are damaged."""
        if self._heard:
            try:
                parse_response(self._heard, slave=unit, function=function, quantity=quantity)
            except FrameError as error:
                return error
        return DeviceSilent(f"{self.name} unit {unit}: no answer in {self.timeout_s:g} s")

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


def _without_strays(data: bytes, unit: int) -> bytes:
    """Return the bytes behind whole answers of other units: the library throws away all that it got with them."""
    while len(data) >= 5 and data[0] != unit:
        is_short, is_read = data[1] & 0x80, data[1] in (1, 2, 3, 4)
        length = 5 if is_short else 5 + data[2] if is_read else 8
        if len(data) < length or crc16(data[:length]) != 0:
            break
        data = data[length:]
    return data


def _answer_bytes(function: int, quantity: int | None) -> int:
    """Return how long a serial line's answer is, with its unit and CRC."""
    if quantity is None:
        return 8
    return 5 + (2 * quantity if function in (3, 4) else (quantity + 7) // 8)


@asynccontextmanager
async def _connected(bus: _Bus, missing: str) -> AsyncIterator[ModbusBus]:
    # It logs every silent device every time; the agent logs once when one goes and once when it is back.
    logging.getLogger("pymodbus").setLevel(logging.CRITICAL)
    try:
        if not await bus.client.connect():  # at once: the port is open already
            raise LinkLost(missing)
        yield bus
    finally:
        bus.client.close()
        await asyncio.sleep(0)  # the transport closes in the loop's next round


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

    Shape: `port` is a path or names an adapter (kit.port_names).
    Units: `timeout_s` from the end of a request to the begin of its answer.
    Raises: PortInUse; LinkLost when there is no such port, it may not be opened, or it hangs.
    """
    bus = _Bus(port, timeout_s, _Wire(baudrate))
    bus.client = AsyncModbusSerialClient(
        port, timeout=_NEVER_S, retries=0, reconnect_delay=0, trace_packet=bus.overhear
    )
    protocol = bus.client.ctx
    async with attached(
        port, protocol, baudrate=baudrate, bytesize=bytesize, parity=parity, stopbits=stopbits
    ) as transport:

        async def given() -> tuple[PortTransport, ModbusProtocol]:
            return transport, protocol

        # the library's own would wait for the kernel when it opens and closes
        protocol.call_create = given
        async with _connected(bus, f"{port}: not attached") as opened:
            yield opened
