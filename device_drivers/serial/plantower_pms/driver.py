"""Plantower PMS: frames out of a byte stream, the validity rules, active and passive reading."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, cast

import msgspec

from device_drivers.errors import DeviceSilent, FrameError
from device_drivers.kit.driver import Context, Reading, SerialPort, Value
from device_drivers.kit.profile import Point, Profile

Model = Literal[
    "pms1003", "pms3003", "pms5003", "pms5003s", "pms5003st", "pms5003t", "pms7003", "pmsa003"
]

COMMANDS = {
    "passive_read": bytes.fromhex("424de200000171"),
    "passive_mode": bytes.fromhex("424de100000170"),
    "active_mode": bytes.fromhex("424de100010171"),
    "sleep": bytes.fromhex("424de400000173"),
    "wake": bytes.fromhex("424de400010174"),
}

_HEADER = b"\x42\x4d"
_ACK_LENGTH = 4
_LENGTHS = frozenset((_ACK_LENGTH, 20, 28, 36))
_SATURATED = 1000
"""From here on the sensor's particle counts overlap and its mass is a guess (data manual)."""


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Keys of `[device.settings]`."""

    model: Model = "pms5003"
    """Which sensor it is: models of one length have different words, so it cannot be sniffed."""
    mode: Literal["active", "passive"] = "active"
    """`active`: the sensor speaks by itself; `passive`: it answers when the schedule asks."""


class Stream:
    """Finds frames in a byte stream. Where the stream is cut does not change what is found.

    A frame is its bytes; what cannot be one is a FrameError in its place.
    """

    def __init__(self) -> None:
        self._bytes = b""
        self._position = 0

    def feed(self, data: bytes) -> Iterator[bytes | FrameError]:
        """Yield what the stream holds up to here; an unfinished frame waits for more."""
        self._bytes += data
        while (start := self._bytes.find(_HEADER)) >= 0:
            self._skip(start)
            length = int.from_bytes(self._bytes[2:4])
            if len(self._bytes) < 4 or (length in _LENGTHS and len(self._bytes) < 4 + length):
                return
            frame = self._bytes[: 4 + length]
            if length not in _LENGTHS:
                yield self._refuse("bad_length", f"length field {length}")
            elif sum(frame[:-2]) != int.from_bytes(frame[-2:]):
                yield self._refuse("bad_checksum", "sum of the bytes differs from the frame's")
            else:
                yield frame
                self._skip(len(frame))
        # Nothing but a header's first half can still become a frame.
        self._skip(len(self._bytes) - self._bytes.endswith(_HEADER[:1]))

    def finish(self) -> Iterator[bytes | FrameError]:
        """Yield what is left when no more bytes will come: frames behind a truncated one included."""
        while self._bytes:
            if self._bytes.startswith(_HEADER):
                yield self._refuse("short", f"{len(self._bytes)} bytes of an unfinished frame")
            else:
                self._skip(len(self._bytes))
            yield from self.feed(b"")

    def _refuse(self, kind: str, message: str) -> FrameError:
        error = FrameError(kind, message, offset=self._position)
        self._skip(len(_HEADER))  # a good frame may begin inside the bad one
        return error

    def _skip(self, count: int) -> None:
        self._bytes = self._bytes[count:]
        self._position += count


def reading(profile: Profile, frame: bytes, model: Model | None = None) -> Reading | None:
    """Return what a frame says, None for the acknowledgement of a command.

    Raises: FrameError when the frame is not this model's, says that the sensor is still warming up,
    or contradicts itself.
    """
    length = int.from_bytes(frame[2:4])
    if length == _ACK_LENGTH:
        return None
    name = next(
        name
        for name, variant in profile.variants.items()
        if (model in variant.models if model else variant.length == length)
    )
    if profile.variants[name].length != length:
        raise FrameError("bad_length", f"length field {length} is not a {model}'s", offset=2)
    body = frame[4:-2]
    if not any(body):
        raise FrameError("device_state", "still warming up: nothing but zeros", offset=4)

    points = profile.points_of(name)
    raw = {point.field: _raw(point, body) for point in points}
    if raw["pm10_ugm3"] > 0 and raw.get("n0_3_per_0_1l", 1) == 0:
        raise FrameError("bad_value", "particulate mass without a single particle", offset=16)
    metrics: dict[str, Value] = {
        point.metric: point.metric_value(raw[point.field]) for point in points if point.metric
    }
    marks = [
        f"uncertain:saturated({point.metric})"
        for point in points
        if point.unit == "ug/m3" and point.field.startswith("pm") and raw[point.field] >= _SATURATED
    ]
    if raw.get("error_code"):
        marks.insert(0, "bad:fault")
    return Reading(metrics, ";".join(marks))


def _raw(point: Point, body: bytes) -> int:
    word = body[2 * point.at : 2 * point.at + 2]
    match point.type:
        case "high_byte":
            return word[0]
        case "low_byte":
            return word[1]
        case _:
            return int.from_bytes(word, signed=point.type == "int16")


def decode(profile: Profile, frames: Sequence[bytes], context: Context) -> list[Reading]:
    """Return the readings of one stream, given whole or in portions.

    Shape: `context["model"]` names the model; without it the length tells the layout.
    Raises: FrameError when the stream holds no good frame: the first thing wrong with it.
    """
    model = _model_of(profile, context)
    stream = Stream()
    found = [*stream.feed(b"".join(frames)), *stream.finish()]
    readings: list[Reading] = []
    errors = [item for item in found if isinstance(item, FrameError)]
    for frame in found:
        if isinstance(frame, bytes):
            try:
                if (one := reading(profile, frame, model)) is not None:
                    readings.append(one)
            except FrameError as error:
                errors.append(error)
    if not found:
        raise FrameError("bad_header", "no frame header 42 4D")
    if errors and not readings:
        raise errors[0]
    return readings


def _model_of(profile: Profile, context: Context) -> Model | None:
    model = context.get("model")
    if model is None:
        return None
    known = sorted(model for variant in profile.variants.values() for model in variant.models)
    if model not in known:
        raise FrameError("bad_context", f"model {model!r} is none of {', '.join(known)}")
    return cast("Model", model)


def encode(request: str) -> bytes:
    """Return the bytes of a host command. Raises: KeyError for an unknown one."""
    return COMMANDS[request]


class Driver:
    """One sensor on a line of its own."""

    def __init__(
        self, profile: Profile, settings: Settings, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.streaming = settings.mode == "active"
        self._profile, self._model, self._clock = profile, settings.model, clock
        self._forget()
        self._settled_at_s = float("-inf")

    def _forget(self) -> None:
        self._stream = Stream()
        self._pending: list[bytes | FrameError] = []

    async def start(self, port: SerialPort) -> None:
        self._forget()
        port.discard_input()
        await port.write(COMMANDS["active_mode" if self.streaming else "passive_mode"])

    async def read(self, port: SerialPort) -> Reading:
        if not self.streaming:
            self._forget()
            port.discard_input()
            await port.write(COMMANDS["passive_read"])
        deadline_s = self._clock() + self._profile.transport.timeout_s
        while True:
            for item in self._taken():
                if isinstance(item, FrameError):
                    raise item
                try:
                    one = reading(self._profile, item, self._model)
                except FrameError as error:
                    if error.kind == "device_state":
                        continue
                    raise
                if one is not None:
                    return self._marked(one)
            try:
                data = await port.read_some(deadline_s - self._clock())
            except DeviceSilent:
                await self._wake(port)
                raise
            self._pending += self._stream.feed(data)

    def _taken(self) -> Iterator[bytes | FrameError]:
        while self._pending:
            yield self._pending.pop(0)

    async def _wake(self, port: SerialPort) -> None:
        """A sensor that says nothing may be asleep, and asleep it hears nothing but wake."""
        await port.write(COMMANDS["wake"])
        await self.start(port)
        self._settled_at_s = self._clock() + self._profile.timing.warm_up_s

    def _marked(self, one: Reading) -> Reading:
        if self._clock() >= self._settled_at_s:
            return one
        marks = "uncertain:warmup" + (f";{one.quality}" if one.quality else "")
        return Reading(one.metrics, marks)
