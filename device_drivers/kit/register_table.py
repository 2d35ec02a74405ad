"""The Modbus device that is all table: RTU frames, fields out of registers, and a driver over them.

Source: MODBUS Application Protocol V1.1b3; MODBUS over Serial Line V1.02.
"""

from __future__ import annotations

import asyncio
import logging
import math
import struct
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import itemgetter
from typing import Annotated, Any, Final

import msgspec

from device_drivers.errors import CommandRejected, DeviceRefused, FrameError
from device_drivers.kit.driver import Context, ModbusBus, Reading, Value
from device_drivers.kit.profile import Block, Point, Profile
from device_drivers.kit.requests import halves, requests, wanted

Unit = Annotated[int, msgspec.Meta(ge=1, le=255)]
log = logging.getLogger(__name__)

_NO_SUCH_REGISTERS: Final = (2, 3)
"""Illegal address; illegal value, which some devices say of a count that is too large."""
_REMEMBER_S: Final = 3600.0
_STARTING_S: Final = 60.0
"""One that refused everything is asked for everything at once, and only so often in parts."""

_EXCEPTIONS: Final = {
    1: "illegal function",
    2: "illegal address",
    3: "illegal value",
    4: "device failure",
    5: "acknowledge",
    6: "busy",
    8: "memory parity",
    10: "gateway path unavailable",
    11: "gateway target silent",
}


def exception_words(code: int) -> str:
    """Return a Modbus exception in words; vendors have codes of their own."""
    return f"exception {code}: {_EXCEPTIONS.get(code, 'not in the standard')}"


def crc16(data: bytes) -> int:
    """Return the CRC of a serial frame (polynomial A001, start FFFF); sent low byte first."""
    crc = 0xFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ 0xA001 if crc & 1 else crc >> 1
    return crc


def sealed(body: bytes) -> bytes:
    """Return a serial frame: slave and PDU with their CRC."""
    return body + crc16(body).to_bytes(2, "little")


def read_request(slave: int, function: int, address: int, count: int) -> bytes:
    """Return the frame that reads `count` registers or bits (functions 1 to 4)."""
    return sealed(struct.pack(">BBHH", slave, function, address, count))


def write_request(
    slave: int, address: int, values: Sequence[int], *, multiple: bool = False
) -> bytes:
    """Return the frame that writes registers: function 6 for one, 16 for several or when asked."""
    if len(values) == 1 and not multiple:
        return sealed(struct.pack(">BBHH", slave, 6, address, values[0]))
    head = struct.pack(">BBHHB", slave, 16, address, len(values), 2 * len(values))
    return sealed(head + struct.pack(f">{len(values)}H", *values))


class Response(msgspec.Struct, frozen=True):
    """An answer that passed its checks. `function` is without the error bit."""

    slave: int
    function: int
    data: bytes = b""
    """Of a read: the bytes of registers or bits. Of a write: the echoed address and value or quantity."""
    exception: int = 0

    @property
    def registers(self) -> list[int]:
        return list(struct.unpack(f">{len(self.data) // 2}H", self.data))

    def bits(self, quantity: int) -> list[bool]:
        whole = int.from_bytes(self.data, "little")
        return [bool(whole >> bit & 1) for bit in range(min(quantity, 8 * len(self.data)))]


def parse_response(
    frame: bytes,
    *,
    slave: int | None = None,
    function: int | None = None,
    quantity: int | None = None,
) -> Response:
    """Check a serial frame against what was asked and return what it says.

    Raises: FrameError: `short`, `bad_crc`, `wrong_slave`, `wrong_function`, `bad_byte_count`,
    `bad_length`.
    """
    if len(frame) < 5:
        raise FrameError(
            "short", f"{len(frame)} bytes, the shortest answer has 5", offset=len(frame)
        )
    answered, body = frame[1] & 0x7F, frame[2:-2]
    is_exception, is_read = bool(frame[1] & 0x80), answered in (1, 2, 3, 4)
    expected = 5 if is_exception else 5 + frame[2] if is_read else 8
    if crc16(frame[:-2]) != int.from_bytes(frame[-2:], "little"):
        if len(frame) < expected:
            raise FrameError("short", f"{len(frame)} of {expected} bytes", offset=len(frame))
        raise FrameError("bad_crc", "CRC differs", offset=len(frame) - 2)
    if slave is not None and frame[0] != slave:
        raise FrameError("wrong_slave", f"slave {frame[0]} answered for {slave}", offset=0)
    if function is not None and answered != function:
        raise FrameError("wrong_function", f"function {answered} answered {function}", offset=1)
    if is_exception:
        if len(frame) != expected:
            raise FrameError("bad_length", f"{len(frame)} bytes, must be {expected}", offset=3)
        return Response(frame[0], answered, exception=frame[2])
    if is_read:
        asked = None
        if quantity is not None:
            asked = (quantity + 7) // 8 if answered in (1, 2) else 2 * quantity
        odd = answered in (3, 4) and frame[2] % 2
        if len(frame) != expected or odd or asked not in (None, frame[2]):
            message = f"byte count {frame[2]} of {len(body) - 1} bytes, asked for {asked}"
            raise FrameError("bad_byte_count", message, offset=2)
        return Response(frame[0], answered, body[1:])
    if answered not in (5, 6, 15, 16):
        raise FrameError("wrong_function", f"function {answered} is none of ours", offset=1)
    if len(frame) != expected:
        raise FrameError("bad_length", f"{len(frame)} bytes, must be {expected}", offset=len(frame))
    return Response(frame[0], answered, body)


class Layout:
    """Where points are in the registers from `start` on, compiled once: decoding is what a busy bus costs.

    Shape: without `function` it does not matter by which one the registers were read; points that `size` bytes do
    not hold whole are left out.
    """

    def __init__(
        self, points: Iterable[Point], start: int, size: int, function: int | None = None
    ) -> None:
        self.points = [
            point
            for point in points
            if (function is None or point.function in (None, function))
            and point.at >= start
            and 2 * (point.at - start) + point.register_bytes <= size
        ]
        picked = [at for point in self.points for at in _wire_bytes(point, start)]
        self._is_in_order = picked == list(range(size))
        self._pick = itemgetter(*picked, 0, 0)  # fewer than two would not be a tuple
        self._table = struct.Struct(">" + "".join(map(_format, self.points)))
        self._raw = [_raw(point) for point in self.points]
        self._metrics = [point for point in self.points if point.metric and point.type != "text"]
        self._names = [point.metric for point in self._metrics]
        self._is_plain = self._metrics == self.points and all(map(_is_plain, self.points))

    def raw_values(self, registers: bytes) -> list[float | str | None]:
        """Return what the registers hold, None for what the device marks as absent."""
        values = self._values(registers)
        return [raw(value) for raw, value in zip(self._raw, values, strict=True)]

    def metrics(self, registers: bytes) -> dict[str, Value]:
        """Return the metrics; absent ones are left out."""
        if self._is_plain:
            values = self._values(registers)
            if math.isfinite(sum(values)):  # nothing absent among them
                return dict(zip(self._names, values, strict=True))
        return {
            point.metric: point.metric_value(raw)
            for point, raw in zip(self.points, self.raw_values(registers), strict=True)
            if point.metric and raw is not None and not isinstance(raw, str)
        }

    def _values(self, registers: bytes) -> tuple[Any, ...]:
        data = registers if self._is_in_order else bytes(self._pick(registers)[:-2])
        return self._table.unpack(data)


_FORMATS: Final = {"bit": "H", "uint16": "H", "int16": "h", "uint32": "I", "int32": "i"}
_FORMATS_LONG: Final = {"uint64": "Q", "int64": "q", "float32": "f", "float64": "d"}


def _format(point: Point) -> str:
    if point.type == "text":
        return f"{point.length}s"
    return (_FORMATS | _FORMATS_LONG)[point.type]


def _wire_bytes(point: Point, start: int) -> list[int]:
    """Return where a point's bytes are, the most significant first."""
    first = 2 * (point.at - start)
    if point.type == "text":
        return list(range(first, first + point.length))
    order = point.order or "ABCDEFGH"[: point.register_bytes]
    return [first + order.index(letter) for letter in sorted(order)]


def _raw(point: Point) -> Callable[[Any], float | str | None]:
    """Return what tells a value from its absence."""
    if point.type == "text":
        return lambda value: value.decode("ascii", "replace").rstrip("\0 ")
    if point.type == "bit":
        return lambda value: bool(value >> point.bit & 1)
    if point.type.startswith("float"):
        return lambda value: value if math.isfinite(value) else None
    return lambda value: None if value == point.sentinel else value


def _is_plain(point: Point) -> bool:
    """Say whether the metric is the very number on the wire."""
    is_float = point.type.startswith("float")
    return (
        point.type not in ("bit", "text")
        and (point.scale, point.add, point.factor) == (1, 0, 1)
        and (is_float or point.sentinel is None)
    )


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Keys of `[device.settings]`."""

    unit: Unit = 1
    """The device's address on the bus."""


class TableDriver:
    """Reads a profile's points and carries out its commands; `first` is the device's first register.

    Where the device refuses a request it is asked in smaller ones, and that is remembered for an hour: some models
    lack registers of their family, and some are only starting up.
    """

    def __init__(
        self,
        profile: Profile,
        unit: int,
        first: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._profile, self._unit, self._first, self._clock = profile, unit, first, clock
        self._points = wanted(profile)
        self._layouts: dict[Block, Layout] = {}
        self._blocks = requests(profile)
        self._forget_s = math.inf
        self._halve_from_s = -math.inf
        self._lacking: list[str] | None = None

    async def read(self, bus: ModbusBus) -> Reading:
        if self._clock() >= self._forget_s:
            self._blocks, self._forget_s = requests(self._profile), math.inf
        for write in self._profile.fresh:
            await bus.write_register(self._unit, self._first + write.at, write.value)
        metrics: dict[str, Value] = {}
        answered: list[Block] = []
        refusal: DeviceRefused | None = None
        may_halve = self._clock() >= self._halve_from_s
        waiting = self._blocks[:]
        while waiting:
            block = waiting.pop(0)
            try:
                metrics |= await self._block(bus, block)
            except DeviceRefused as error:
                if error.code not in _NO_SUCH_REGISTERS:
                    raise
                refusal = refusal or error
                if may_halve:
                    waiting[:0] = halves(block, self._points)
            else:
                answered.append(block)
            if waiting and self._profile.read.pause_s:
                await asyncio.sleep(self._profile.read.pause_s)
        if answered:
            self._halve_from_s = -math.inf
        elif may_halve:  # it is not the request that is wrong, or the device is only starting
            self._halve_from_s = self._clock() + _STARTING_S
        if refusal is not None:
            if not answered:
                raise refusal
            if may_halve:
                self._remember(answered, refusal)
        return Reading(metrics)

    def _remember(self, blocks: list[Block], refusal: DeviceRefused) -> None:
        self._blocks, self._forget_s = blocks, self._clock() + _REMEMBER_S
        lacking = [
            point.metric
            for point in self._points
            if not any(block.holds(point) for block in blocks)
        ]
        if lacking == self._lacking:
            return  # it was said an hour ago
        self._lacking = lacking
        log.warning(
            "a request was refused; it is asked in parts",
            extra={"reason": str(refusal), "requests": len(blocks), "lacking": lacking},
        )

    async def _block(self, bus: ModbusBus, block: Block) -> dict[str, Value]:
        read = bus.read_holding if block.function == 3 else bus.read_input
        registers = await read(self._unit, self._first + block.at, block.count)
        layout = self._layouts.get(block)
        if layout is None:
            layout = Layout(self._points, block.at, 2 * block.count, block.function)
            self._layouts[block] = layout
        return layout.metrics(struct.pack(f">{block.count}H", *registers))

    async def command(
        self, bus: ModbusBus, name: str, args: Mapping[str, Value]
    ) -> dict[str, Value]:
        """Write the argument, ask for fresh values and read back what the device says."""
        command = self._profile.commands.get(name)
        if command is None:
            raise CommandRejected(f"{name!r} is none of {sorted(self._profile.commands)}")
        if set(args) != set(command.args):
            raise CommandRejected(f"{name} takes {sorted(command.args)}, not {sorted(args)}")
        ((key, limits),) = command.args.items()
        value = args[key]
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not limits.min <= value <= limits.max or value % 1:
            raise CommandRejected(
                f"{key} = {value!r}: a whole number from {limits.min:g} to {limits.max:g}"
            )
        await bus.write_register(self._unit, self._first + command.at, int(value))
        for write in self._profile.fresh:
            await bus.write_register(self._unit, self._first + write.at, write.value)
        readback: dict[str, Value] = {}
        for at in (command.at, command.readback):
            (answer,) = await bus.read_holding(self._unit, self._first + at, 1)
            known = Layout(self._profile.points, at, 2, 3).metrics(answer.to_bytes(2))
            readback |= known or {key: answer}
        return readback


class Driver(TableDriver):
    """The driver of a package that has no `driver.py`."""

    def __init__(self, profile: Profile, settings: Settings) -> None:
        super().__init__(profile, settings.unit)


def decode(
    profile: Profile, frames: Sequence[bytes], context: Context, first: int = 0
) -> list[Reading]:
    """Return the readings of answers to reads; the echo of a write gives none.

    Shape: `context` may hold `slave`, `function`, `start_address`, `quantity`; `first` is the device's
    first register. The addresses are the wire's.
    Raises: FrameError, of kind `exception` when the device answered with one.
    """
    wanted = {key: whole_number(context, key) for key in ("slave", "function", "quantity")}
    start = whole_number(context, "start_address")
    readings: list[Reading] = []
    for frame in frames:
        response = parse_response(frame, **wanted)
        if response.exception:
            raise FrameError("exception", exception_words(response.exception), offset=2)
        if response.function in (3, 4):
            at = 0 if start is None else start - first
            layout = Layout(profile.points, at, len(response.data), response.function)
            readings.append(Reading(layout.metrics(response.data)))
    return readings


def whole_number(context: Context, key: str) -> int | None:
    """Return a whole number of the context, None without one. Raises: FrameError `bad_context`."""
    value = context.get(key)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise FrameError("bad_context", f"{key} = {value!r}: must be a whole number")
    return value
