"""The Modbus TCP bus: one request in flight, answers told by their transaction and unit.

Source: MODBUS Messaging on TCP/IP Implementation Guide V1.0b; MODBUS Application Protocol V1.1b3.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final, NamedTuple, cast

from device_drivers.errors import DeviceRefused, DeviceSilent, FrameError, LinkLost
from device_drivers.kit.driver import ModbusBus
from device_drivers.kit.register_table import exception_words

_HEADER: Final = struct.Struct(">HHHB")
"""Transaction, protocol, length of what follows (the unit among it), unit."""
_WORDS: Final = struct.Struct(">HH")
_PROTOCOL: Final = 0
_LENGTHS: Final = range(3, 255)
"""Of a unit with a function and at least one byte more, and with the longest PDU."""
_CONNECT_MIN_S: Final = 2.0
"""A connection over a mobile network takes longer than an answer."""
_TICK_S: Final = 0.001
"""Some loops count whole milliseconds: an alarm that goes off before its time would be set again and again."""


class Answer(NamedTuple):
    """A whole frame. Shape: `data` is what follows the function."""

    transaction: int
    unit: int
    function: int
    data: bytes


def request(transaction: int, unit: int, function: int, body: bytes) -> bytes:
    """Return the frame that asks for something."""
    return _HEADER.pack(transaction, _PROTOCOL, 2 + len(body), unit) + bytes((function,)) + body


class AnswerStream:
    """Bytes in, whole answers out, wherever the bytes were cut."""

    def __init__(self) -> None:
        """Nothing has come yet."""
        self._rest = b""

    def feed(self, data: bytes) -> list[Answer]:
        """Take the next bytes; return the answers that they complete.

        Raises: FrameError when this is no Modbus: where the next answer begins cannot be told any more.
        """
        data, start, answers = self._rest + data, 0, []
        while len(data) - start >= _HEADER.size:
            transaction, protocol, length, unit = _HEADER.unpack_from(data, start)
            if protocol != _PROTOCOL or length not in _LENGTHS:
                head = data[start : start + _HEADER.size].hex(" ")
                raise FrameError("bad_header", f"{head} begins no answer", offset=2)
            body, end = start + _HEADER.size, start + _HEADER.size - 1 + length
            if len(data) < end:
                break
            answers.append(Answer(transaction, unit, data[body], data[body + 1 : end]))
            start = end
        self._rest = data[start:]
        return answers


class _TcpBus(asyncio.Protocol):
    """A connection. What nobody waits for any more is passed over."""

    def __init__(self, name: str, timeout_s: float) -> None:
        self.transactions = 0
        self._name, self._timeout_s = name, timeout_s
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._stream = AnswerStream()
        self._one_at_a_time = asyncio.Lock()
        self._last = 0
        self._unit = 0
        self._waiting: asyncio.Future[Answer] | None = None
        self._late_s = 0.0  # when it has waited long enough, by the loop's clock
        self._alarm: asyncio.TimerHandle | None = None
        self._lost: str | None = None

    # ------------------------------------------------------------------------------------- what asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one in all but name

    def data_received(self, data: bytes) -> None:
        try:
            answers = self._stream.feed(data)
        except FrameError as error:
            self._end(str(error))
            return
        for answer in answers:
            is_ours = answer.transaction == self._last and answer.unit == self._unit
            if is_ours and self._waiting is not None and not self._waiting.done():
                self._waiting.set_result(answer)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(str(exc or "closed by the other side"))

    # -------------------------------------------------------------------------------------------- what is asked

    async def read_holding(self, unit: int, address: int, count: int) -> list[int]:
        return await self._read_registers(unit, 3, address, count)

    async def read_input(self, unit: int, address: int, count: int) -> list[int]:
        return await self._read_registers(unit, 4, address, count)

    async def read_coils(self, unit: int, address: int, count: int) -> list[bool]:
        return await self._read_bits(unit, 1, address, count)

    async def read_discrete(self, unit: int, address: int, count: int) -> list[bool]:
        return await self._read_bits(unit, 2, address, count)

    async def write_register(self, unit: int, address: int, value: int) -> None:
        sent = _WORDS.pack(address, value)
        _check_echo(await self._ask(unit, 6, sent), sent)

    async def write_registers(self, unit: int, address: int, values: Sequence[int]) -> None:
        count = len(values)
        sent = _WORDS.pack(address, count)
        body = sent + struct.pack(f">B{count}H", 2 * count, *values)
        _check_echo(await self._ask(unit, 16, body), sent)

    async def _read_registers(
        self, unit: int, function: int, address: int, count: int
    ) -> list[int]:
        answer = await self._ask(unit, function, _WORDS.pack(address, count))
        return list(struct.unpack(f">{count}H", _counted(answer, 2 * count)))

    async def _read_bits(self, unit: int, function: int, address: int, count: int) -> list[bool]:
        answer = await self._ask(unit, function, _WORDS.pack(address, count))
        whole = int.from_bytes(_counted(answer, (count + 7) // 8), "little")
        return [bool(whole >> bit & 1) for bit in range(count)]

    async def _ask(self, unit: int, function: int, body: bytes) -> bytes:
        async with self._one_at_a_time:
            if self._lost is not None or self._transport is None:
                raise LinkLost(f"{self._name}: {self._lost}")
            self.transactions += 1
            self._last, self._unit = self._last % 0xFFFF + 1, unit
            self._waiting = self._loop.create_future()
            self._late_s = self._loop.time() + self._timeout_s
            if self._alarm is None:
                self._alarm = self._loop.call_at(self._late_s + _TICK_S, self._look)
            self._transport.write(request(self._last, unit, function, body))
            try:
                answer = await self._waiting
            except TimeoutError as error:
                words = f"{self._name} unit {unit}: no answer in {self._timeout_s:g} s"
                raise DeviceSilent(words) from error
            finally:
                self._waiting = None
        if answer.function & 0x7F != function:
            message = f"function {answer.function} answered {function}"
            raise FrameError("wrong_function", message, offset=1)
        if answer.function != function:
            code = answer.data[0]
            raise DeviceRefused(f"{self._name} unit {unit}: {exception_words(code)}", code)
        return answer.data

    def _look(self) -> None:
        """One alarm serves many requests, which rarely need it: setting it for each would cost as much as asking."""
        self._alarm = None
        if self._waiting is None:
            return
        if self._loop.time() < self._late_s:
            self._alarm = self._loop.call_at(self._late_s + _TICK_S, self._look)
        else:
            # We may have been held up: what lies in the socket is read before anybody is taken for silent.
            self._loop.call_later(0, _expire, self._waiting)

    # ---------------------------------------------------------------------------------------------- its end

    def _end(self, reason: str) -> None:
        if self._lost is None:
            self._lost = reason
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(LinkLost(f"{self._name}: {self._lost}"))
        if self._alarm is not None:
            self._alarm.cancel()
        if self._transport is not None:
            self._transport.abort()

    def close(self) -> None:
        self._end("closed by this side")


def _expire(waiting: asyncio.Future[Answer]) -> None:
    if not waiting.done():
        waiting.set_exception(TimeoutError())


def _counted(data: bytes, size: int) -> bytes:
    """Return what was read, checked against its own count and the size that was asked for."""
    if data[0] != size or len(data) != 1 + size:
        message = f"byte count {data[0]} of {len(data) - 1} bytes, asked for {size}"
        raise FrameError("bad_byte_count", message, offset=2)
    return data[1:]


def _check_echo(echo: bytes, sent: bytes) -> None:
    if echo != sent:
        message = f"the write {sent.hex(' ')} was echoed as {echo.hex(' ')}"
        raise FrameError("bad_value", message, offset=2)


@asynccontextmanager
async def open_modbus_tcp(
    host: str, *, port: int = 502, timeout_s: float = 1.0
) -> AsyncIterator[ModbusBus]:
    """Connect to a Modbus TCP device or gateway. Requests are not repeated: the schedule asks again.

    Raises: LinkLost when it cannot be reached.
    """
    bus = _TcpBus(f"{host}:{port}", timeout_s)
    try:
        async with asyncio.timeout(max(timeout_s, _CONNECT_MIN_S)):
            await asyncio.get_running_loop().create_connection(lambda: bus, host, port)
    except (OSError, TimeoutError) as error:
        raise LinkLost(f"{host}:{port}: no connection") from error
    try:
        yield bus
    finally:
        bus.close()
        await asyncio.sleep(0)  # the transport closes in the loop's next round
