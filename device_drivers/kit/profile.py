"""A driver's profile: what a device is, how it is reached and where each value is, as data."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Sequence
from functools import cache
from importlib.resources import files
from typing import Annotated, Any, Literal

import msgspec
from msgspec.structs import replace

from device_drivers.kit.scaling import linear
from exchange.configuration import converted
from exchange.dictionary import VENDOR_METRIC, dictionary
from exchange.errors import ConfigError

Positive = Annotated[float, msgspec.Meta(gt=0)]
BusKind = Literal["serial", "modbus", "ble"]
ReadFunction = Literal[3, 4]
PointType = Literal[
    # numbers
    "bit",
    "bool",
    "uint8",
    "int8",
    "uint16",
    "int16",
    "uint24",
    "uint32",
    "int32",
    "uint64",
    "int64",
    "float32",
    "float64",
    # halves of a 16-bit word
    "high_byte",
    "low_byte",
    # not numbers: understood, never a metric
    "text",
    "raw",
    "event",
    "command",
    "version",
]


_REGISTER_BYTES = {"bit": 2, "uint16": 2, "int16": 2, "uint32": 4, "int32": 4, "float32": 4}
_REGISTER_BYTES |= {"uint64": 8, "int64": 8, "float64": 8}
_OBJECTS = {"bool", "uint8", "int8", "uint16", "int16", "uint24", "uint32", "int32"}
_OBJECTS |= {"text", "raw", "event", "command", "version"}
TYPES: dict[BusKind, set[str]] = {
    "serial": {"uint16", "int16", "high_byte", "low_byte"},
    "modbus": {*_REGISTER_BYTES, "text"},
    "ble": _OBJECTS,
}
"""What a value can be on each kind of bus."""


class _Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the file: no key that nobody reads."""


class Identity(_Table, frozen=True, kw_only=True):
    """Who makes it. `brand_origin` is the ISO 3166-1 code of the brand's country."""

    maker: str
    models: list[str]
    brand_origin: Annotated[str, msgspec.Meta(pattern="^[A-Z]{2}$")]
    description: str


class Transport(_Table, frozen=True, kw_only=True):
    """How it is reached: what the configuration of its bus leaves out is taken from here."""

    kind: BusKind
    baudrate: Annotated[int, msgspec.Meta(ge=300, le=4_000_000)] = 9600
    bytesize: Literal[7, 8] = 8
    parity: Literal["N", "E", "O"] = "N"
    stopbits: Literal[1, 2] = 1
    timeout_s: Positive = 1.0
    """The longest that an answer, or the next frame of a device that speaks by itself, may take to begin."""
    services: list[str] = []
    """Of adverts that the driver understands: the UUIDs of their service data, 128 bits in lower case."""
    companies: list[Annotated[int, msgspec.Meta(ge=0, le=0xFFFF)]] = []
    """Likewise: whose manufacturer data they hold, by the Bluetooth SIG's numbers."""


_LINE_KEYS = ("baudrate", "bytesize", "parity", "stopbits")


def shared_transport(transports: Sequence[Transport], **given: float | str | None) -> Transport:
    """Return how a shared bus is set up: as given, else as the profiles of all its devices say.

    Shape: `given` holds keys of Transport; None is as good as left out. The slowest device sets the time-out.
    Raises: ConfigError with the key, when it is not given and the profiles differ.
    """
    settings: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    for key in _LINE_KEYS:
        said = sorted({getattr(transport, key) for transport in transports})
        if key not in settings and len(said) > 1:
            raise ConfigError(
                "",
                key,
                said,
                "must be given: the devices of this bus differ 設備的設定不同 必須指定",
            )
        settings.setdefault(key, said[0])
    settings.setdefault("timeout_s", max(transport.timeout_s for transport in transports))
    return replace(transports[0], **settings)


class Timing(_Table, frozen=True, kw_only=True):
    """When its values mean something, and how often there are new ones."""

    cadence_s: Positive
    warm_up_s: Annotated[float, msgspec.Meta(ge=0)] = 0.0


class Variant(_Table, frozen=True, kw_only=True):
    """One of several layouts under one protocol. `length` is the frame's own length field."""

    models: list[str]
    length: int


class Point(_Table, frozen=True, kw_only=True):
    """One value: where it is in the frame, what it is there, and which metric it is.

    Shape: `at` is the 16-bit word (serial), the register counted from the device's first (Modbus) or
    the object id (BTHome). `order` names the value's bytes, A the most significant, as they come on
    the wire. The frame's own field is raw * `scale` + `add`; the metric is the field * `factor`.
    A point without a metric is understood and not reported.
    """

    field: str
    at: Annotated[int, msgspec.Meta(ge=0, le=0xFFFF)]
    type: PointType
    metric: str = ""
    unit: str = ""
    scale: float = 1
    add: float = 0
    factor: float = 1
    order: Annotated[str, msgspec.Meta(pattern="^[A-H]*$")] = ""
    bit: Annotated[int, msgspec.Meta(ge=0, le=15)] = 0
    length: int = 0
    function: ReadFunction | None = None
    """The Modbus function that reads it, where the profile's points differ in that."""
    sentinel: int | None = None
    """The raw value that means "no value"."""
    variants: list[str] = []
    """The variants that have it; empty for all."""

    @property
    def register_bytes(self) -> int:
        """How many bytes of registers it takes: text has two characters in each."""
        return 2 * ((self.length + 1) // 2) if self.type == "text" else _REGISTER_BYTES[self.type]

    @property
    def registers(self) -> range:
        """The registers it takes, counted from the device's first."""
        return range(self.at, self.at + self.register_bytes // 2)

    def metric_of_field(self, value: float) -> float:
        """Return the metric of the frame's own field."""
        if isinstance(value, bool):
            return int(value) if self.metric.startswith("x-") else value
        return linear(self.factor)(value)

    def metric_value(self, raw: float) -> float:
        """Return the metric. A vendor's own metric is a number even where the device sends a bit."""
        return self.metric_of_field(raw) if isinstance(raw, bool) else self.conversion(raw)

    @property
    def conversion(self) -> Callable[[float], float]:
        """Return what makes the metric out of a raw number."""
        if self.factor == 1:
            return linear(self.scale, self.add)
        return linear(*_product(self.scale, self.add, self.factor))


@cache
def _product(scale: float, add: float, factor: float) -> tuple[float, float]:
    by = linear(factor)
    return by(scale), by(add)


class Read(_Table, frozen=True, kw_only=True):
    """How a Modbus device likes to be read: what its requests are computed from."""

    function: ReadFunction = 3
    """Of points that name none: 3 for holding registers, 4 for input registers."""
    max_gap: Annotated[int, msgspec.Meta(ge=0, le=124)] = 0
    """So many registers that nobody wants may be read along, to save a request."""
    max_registers: Annotated[int, msgspec.Meta(ge=1, le=125)] = 125
    """The device answers no more in one request."""
    breaks: list[Annotated[int, msgspec.Meta(ge=0, le=0xFFFF)]] = []
    """No request may cross into these registers: a new range of the device's memory begins there."""
    pause_s: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0
    """The device needs so long between an answer and the next request."""


class Block(_Table, frozen=True, kw_only=True):
    """Registers that one request reads; `at` is counted from the device's first register."""

    function: ReadFunction
    at: int
    count: Annotated[int, msgspec.Meta(ge=1, le=125)]

    def holds(self, point: Point) -> bool:
        """Say whether the point is in it, whole."""
        return (
            point.function in (None, self.function)
            and self.at <= point.at
            and point.registers.stop <= self.at + self.count
        )


class Fingerprint(_Table, frozen=True, kw_only=True):
    """A register that tells the device from others: to read it does no harm. `at` is the wire's address."""

    function: ReadFunction
    at: Annotated[int, msgspec.Meta(ge=0, le=0xFFFF)]
    values: Annotated[
        list[Annotated[int, msgspec.Meta(ge=0, le=0xFFFF)]], msgspec.Meta(min_length=1)
    ]
    """Any of them is the device's."""


class Write(_Table, frozen=True, kw_only=True):
    """A register to write before a read, so that the values behind it are fresh."""

    at: int
    value: int


class Argument(_Table, frozen=True, kw_only=True):
    """What a command's argument may be, both ends included."""

    min: float
    max: float
    unit: str = ""


class Command(_Table, frozen=True, kw_only=True):
    """A command the device takes: its argument is written to `at` and read back from `readback`."""

    en: str
    zh_tw: str = msgspec.field(name="zh-TW")
    args: dict[str, Argument]
    at: int
    readback: int


class Profile(_Table, frozen=True, kw_only=True):
    """Everything about a device that is data.

    `completes` says which exchange completes a reading: a frame that the device sends, an answered
    request, an answered set of requests, or a distinct advertisement.
    """

    identity: Identity
    transport: Transport
    timing: Timing
    completes: Literal["frame", "answer", "poll", "advert"]
    points: list[Point]
    sources: list[str]
    variants: dict[str, Variant] = {}
    fresh: list[Write] = []
    read: Read = Read()
    blocks: list[Block] = []
    """The requests of one reading; without it they are computed from the points."""
    commands: dict[str, Command] = {}
    fingerprint: list[Fingerprint] = []
    """A unit of a bus is this device when all of them agree; without any a scan cannot name it."""

    def points_of(self, variant: str) -> list[Point]:
        return [point for point in self.points if not point.variants or variant in point.variants]

    def units(self) -> dict[str, str]:
        """Return the unit of every metric it can report."""
        return {point.metric: point.unit for point in self.points if point.metric}


def load_profile(package: str) -> Profile:
    """Read a driver package's profile.toml.

    Raises: ConfigError naming the key, what was found and what is allowed.
    """
    name = f"{package.rpartition('.')[2]}/profile.toml"
    try:
        text = (files(package) / "profile.toml").read_text(encoding="utf-8")
        profile = converted(tomllib.loads(text), Profile, name)
    except FileNotFoundError as error:
        raise ConfigError(name, "file", None, "must be in the driver's folder") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(name, "file", str(error), "must be TOML") from error
    for index, point in enumerate(profile.points):
        _check_point(name, f"points[{index}]", point, profile)
        if profile.transport.kind == "modbus" and point.metric:
            _check_reach(name, f"points[{index}]", point, profile)
    return profile


def _check_reach(file: str, key: str, point: Point, profile: Profile) -> None:
    """Check that a request can bring the point, and that one does."""
    limit, count = profile.read.max_registers, len(point.registers)
    if count > limit:
        raise ConfigError(file, f"{key}.type", point.type, f"at most read.max_registers = {limit}")
    if profile.blocks and not any(block.holds(point) for block in profile.blocks):
        allowed = "registers of one of the blocks; without blocks they are computed"
        raise ConfigError(file, f"{key}.at", point.at, allowed)


def _check_point(file: str, key: str, point: Point, profile: Profile) -> None:
    kind = profile.transport.kind
    if point.type not in TYPES[kind]:
        raise ConfigError(
            file, f"{key}.type", point.type, f"one of {sorted(TYPES[kind])} on {kind}"
        )
    size = _REGISTER_BYTES.get(point.type, 0)
    if point.order and sorted(point.order) != list("ABCDEFGH"[:size]):
        allowed = f"the {size} letters {'ABCDEFGH'[:size]} in their order on the wire"
        raise ConfigError(file, f"{key}.order", point.order, allowed)
    for variant in point.variants:
        if variant not in profile.variants:
            raise ConfigError(
                file, f"{key}.variants", variant, f"one of {sorted(profile.variants)}"
            )
    if not point.metric or VENDOR_METRIC.fullmatch(point.metric):
        return
    units = {
        domain.metrics[point.metric].unit
        for domain in dictionary().values()
        if point.metric in domain.metrics
    }
    if not units:
        allowed = "a metric of the exchange's dictionary or x-{vendor}-{name}"
        raise ConfigError(file, f"{key}.metric", point.metric, allowed)
    if point.unit not in units:
        raise ConfigError(file, f"{key}.unit", point.unit, f"{sorted(units)} for {point.metric}")
