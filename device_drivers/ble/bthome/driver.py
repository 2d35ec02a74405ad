"""BTHome v2: objects out of an advertisement, decryption, and which adverts are new."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESCCM

from device_drivers.errors import FrameError
from device_drivers.kit.driver import Advert, Context, Reading, Value
from device_drivers.kit.profile import Point, Profile
from exchange.errors import ConfigError

SERVICE_UUID = "0000fcd2-0000-1000-8000-00805f9b34fb"

_UUID16 = b"\xd2\xfc"
_ENCRYPTED, _HAS_MAC = 0x01, 0x02
_VERSION = 2
_TAG_BYTES = _COUNTER_BYTES = 4
_FORWARD = range(1, 64)
"""How far a packet id may be ahead of the last one and still be new."""
_GAP_S = 4.0
"""After this long without an advert any packet id is new: the sensor may have started again."""
_SIZES = {"bool": 1, "uint8": 1, "int8": 1, "uint16": 2, "int16": 2, "uint24": 3, "uint32": 4}
_SIZES |= {"int32": 4}

Hex16 = Annotated[str, msgspec.Meta(pattern="^[0-9a-fA-F]{32}$")]
Address = Annotated[str, msgspec.Meta(pattern="^([0-9a-fA-F]{2}:){5}[0-9a-fA-F]{2}$")]


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Keys of `[device.settings]`."""

    address: Address
    """The sensor's Bluetooth address."""
    bindkey: Hex16 | None = None
    """The encryption key, 32 hex digits; better kept in a file. With a key plain adverts are refused."""
    bindkey_file: str | None = None
    """A file that holds the encryption key, 32 hex digits."""
    voltage: Literal["battery_voltage", "voltage"] = "battery_voltage"
    """Which metric its voltage is: its own battery's, or one that it measures."""

    def __repr__(self) -> str:
        return f"Settings(address={self.address!r})"  # a key must not reach a log


def bindkey_of(settings: Settings) -> bytes | None:
    """Return the encryption key, None without one. Raises: ConfigError."""
    if settings.bindkey_file is None:
        return bytes.fromhex(settings.bindkey) if settings.bindkey else None
    allowed = "a readable file of 32 hex digits, without `bindkey` beside it"
    try:
        key = bytes.fromhex(Path(settings.bindkey_file).read_text(encoding="ascii").strip())
        if len(key) == 16 and settings.bindkey is None:
            return key
    except (OSError, ValueError) as error:
        raise ConfigError("settings", "bindkey_file", settings.bindkey_file, allowed) from error
    raise ConfigError("settings", "bindkey_file", settings.bindkey_file, allowed)


class Driver:
    """Hears one sensor."""

    def __init__(self, profile: Profile, settings: Settings) -> None:
        self.address = settings.address.upper()
        self._mac = bytes.fromhex(self.address.replace(":", ""))
        self._voltage = settings.voltage
        key = bindkey_of(settings)
        self._cipher = AESCCM(key, tag_length=_TAG_BYTES) if key else None
        self._points = {point.at: point for point in profile.points}
        self._counter: int | None = None
        self._packet_id: int | None = None
        self._objects = b""
        self._heard_at_s = float("-inf")

    def hear(self, advert: Advert) -> Reading | None:
        payload = advert.service_data.get(SERVICE_UUID)
        reading = None if payload is None else self.take(payload, advert.at_s)
        return reading if reading and reading.metrics else None

    def take(self, payload: bytes, at_s: float) -> Reading | None:
        """Return what a new payload says, None for a repetition.

        Shape: unlike `hear`, a payload without any metric is a reading without metrics.
        Raises: FrameError.
        """
        objects = self._open(payload)
        if objects is None:
            return None
        found = list(self._parsed(objects))
        packet_id = next((raw for point, raw in found if point.field == "packet_id"), None)
        if not self._is_new(objects, packet_id, at_s):
            return None
        return Reading(self._metrics(found))

    def _open(self, payload: bytes) -> bytes | None:
        """Return the objects in plain, None when this encrypted advert was taken before."""
        if not payload:
            raise FrameError("short", "no bytes at all")
        info, position = payload[0], 1
        if info >> 5 != _VERSION:
            raise FrameError("unsupported_version", f"BTHome version {info >> 5}")
        if info & _HAS_MAC:
            position += len(self._mac)
            if len(payload) < position:
                raise FrameError("short", "ends within the address", offset=len(payload))
            if payload[1:position][::-1] != self._mac:
                raise FrameError("mac_mismatch", "the address in it is another device's", offset=1)
        if info & _ENCRYPTED:
            return self._decrypt(info, payload, position)
        if self._cipher:
            raise FrameError("downgrade_rejected", "plain advert of a device that has a key")
        return payload[position:]

    def _decrypt(self, info: int, payload: bytes, position: int) -> bytes | None:
        if self._cipher is None:
            raise FrameError("key_required", "encrypted advert of a device without a key")
        if len(payload) < position + _COUNTER_BYTES + _TAG_BYTES:
            raise FrameError("short", "no room for counter and tag", offset=len(payload))
        sealed, counter_bytes = payload[position:-8], payload[-8:-4]
        nonce = self._mac + _UUID16 + bytes((info,)) + counter_bytes
        try:
            objects = self._cipher.decrypt(nonce, sealed + payload[-4:], None)
        except InvalidTag as error:
            message = "wrong key, or not this device's advert"
            raise FrameError("decrypt_failed", message, offset=position) from error
        counter = int.from_bytes(counter_bytes, "little")
        if counter == self._counter:
            return None
        if self._counter is not None and counter < self._counter and not self._wrapped(counter):
            message = f"counter {counter} after {self._counter}"
            raise FrameError("replayed", message, offset=len(payload) - 8)
        self._counter = counter
        return objects

    def _wrapped(self, counter: int) -> bool:
        return counter < 100 and self._counter is not None and self._counter > 0xFFFFFFFF - 100

    def _parsed(self, objects: bytes) -> Iterator[tuple[Point, int]]:
        """Yield each object that is known and whole; the rest of a payload behind another is lost."""
        position = 0
        while position < len(objects):
            point = self._points.get(objects[position])
            position += 1
            if point is None:
                return  # its length is unknown, and so is where the next one begins
            size = _SIZES.get(point.type, point.length)
            if point.type in ("text", "raw", "command"):
                if position == len(objects):
                    return
                size = objects[position] + 1
                if point.type == "command":
                    size = (objects[position] & 0x1F) + 2  # length byte, opcode, arguments
            value = objects[position : position + size]
            if len(value) < size:
                return
            position += size
            signed = point.type.startswith("int")
            yield point, int.from_bytes(value, "little", signed=signed)

    def _is_new(self, objects: bytes, packet_id: int | None, at_s: float) -> bool:
        """Tell a new advert from a repetition on the air."""
        after_gap = at_s - self._heard_at_s > _GAP_S
        self._heard_at_s = at_s
        if packet_id is None:
            is_new = after_gap or objects != self._objects
        else:
            ahead = 1 if self._packet_id is None else (packet_id - self._packet_id) % 256
            is_new = after_gap or ahead in _FORWARD
        if is_new:
            self._packet_id, self._objects = packet_id, objects
        return is_new

    def _metrics(self, found: list[tuple[Point, int]]) -> dict[str, Value]:
        metrics: dict[str, Value] = {}
        channels: dict[str, int] = {}
        for point, raw in found:
            if not point.metric:
                continue
            name = self._voltage if point.metric == "battery_voltage" else point.metric
            channels[name] = channel = channels.get(name, 0) + 1
            if channel > 1:
                name = f"x-bthome-{name.removeprefix('x-bthome-')}_{channel}"
            value = point.metric_value(bool(raw) if point.type == "bool" else raw)
            metrics[name] = (
                int(value) if name.startswith("x-") and isinstance(value, bool) else value
            )
        return metrics


def decode(profile: Profile, frames: Sequence[bytes], context: Context) -> list[Reading]:
    """Return the readings of one device's adverts, in order; a repetition gives none.

    Shape: a frame is the service data after the UUID. `context` may hold `mac`, `bindkey`, `voltage`,
    `uuid16`, and `t`, the seconds at which the frames were heard (all at once without it).
    Raises: FrameError when there is no reading: the first thing wrong.
    """
    if str(context.get("uuid16", "FCD2")).upper() != "FCD2":
        raise FrameError("unknown_format", f"service {context['uuid16']} is not BTHome v2's FCD2")
    mac = str(context.get("mac", "00" * 6)).replace(":", "")
    wanted = {key: context[key] for key in ("bindkey", "bindkey_file", "voltage") if key in context}
    try:
        address = ":".join(mac[at : at + 2] for at in range(0, len(mac), 2))
        settings = msgspec.convert({"address": address, **wanted}, Settings)
        times_s = msgspec.convert(context.get("t", [0.0] * len(frames)), list[float])
        driver = Driver(profile, settings)
        pairs = list(zip(frames, times_s, strict=True))
    except (msgspec.ValidationError, ConfigError, ValueError) as error:
        raise FrameError("bad_context", str(error)) from error

    readings: list[Reading] = []
    errors: list[FrameError] = []
    for frame, at_s in pairs:
        try:
            if (reading := driver.take(frame, at_s)) is not None:
                readings.append(reading)
        except FrameError as error:
            errors.append(error)
    if errors and not readings:
        raise errors[0]
    return readings
