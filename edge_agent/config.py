"""The agent's configuration: one TOML file, typed."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec.structs import replace

from device_drivers.kit.registry import DriverPackage, load
from exchange.configuration import read_toml, secret
from exchange.dictionary import dictionary
from exchange.errors import ConfigError
from exchange.readings import PackFormat
from exchange.states import Label, Location, Text
from exchange.tls import Tls, check_plain
from exchange.topics import END, County, Level

Interval = Annotated[float, msgspec.Meta(ge=0.01, le=7 * 86400)]
Timeout = Annotated[float, msgspec.Meta(ge=0.01, le=60)]
Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]
# Names of at most 253 characters in labels of at most 63, or an address: what a resolver takes.
Host = Annotated[
    str,
    msgspec.Meta(
        pattern=rf"^[^\x00-\x20\x7f.]{{1,63}}(\.[^\x00-\x20\x7f.]{{1,63}})*\.?{END}", max_length=253
    ),
]
PRINTABLE = r"[^\x00-\x1f\x7f]"
Given = Annotated[str, msgspec.Meta(min_length=1, max_length=4096, pattern=f"^{PRINTABLE}*{END}")]


class _Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the file: no key that nobody reads."""


class GivenLabel(Label, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A label as it is written here: the wire type takes keys of later versions, a file does not."""


class GivenLocation(Location, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A location as it is written here."""


class Gateway(_Table, frozen=True, kw_only=True):
    """The gateway itself. `state_dir` holds the outbox."""

    id: Level
    county: County
    site: Level
    state_dir: Given
    interval_s: Interval = 60.0
    label: GivenLabel = GivenLabel()
    location: GivenLocation | None = None
    township: Text = ""


class Broker(_Table, frozen=True, kw_only=True):
    """The uplink. The password comes from a file or an environment variable, never from here.

    Only a broker on loopback goes without `tls`. The port is 1883, or 8883 with TLS, unless given.
    """

    host: Host
    port: Port | None = None
    tls: Tls | None = None
    username: Annotated[str, msgspec.Meta(pattern=f"^{PRINTABLE}*{END}", max_length=1024)] = ""
    password_file: str = ""
    password_env: str = ""
    keepalive_s: Annotated[int, msgspec.Meta(ge=5, le=3600)] = 30
    timeout_s: Timeout = 10.0

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        return self.host, self.port or (8883 if self.tls else 1883)

    def password(self, file: str) -> str | None:
        """Return the secret. Raises: ConfigError when the file or the variable is not there."""
        return secret(file, "broker", self.password_file, self.password_env)

    def context(self, file: str) -> ssl.SSLContext | None:
        """Return TLS for one connection. Raises: ConfigError when a file is missing or no secret."""
        return None if self.tls is None else self.tls.context(file, "broker.tls")


class Delivery(_Table, frozen=True, kw_only=True):
    """How samples go out."""

    window: Annotated[int, msgspec.Meta(ge=10, le=100_000)] = 5000
    pack_samples: Annotated[int, msgspec.Meta(ge=1, le=500)] = 100
    format: PackFormat = "json"
    drain_s: Annotated[float, msgspec.Meta(ge=0, le=600)] = 10.0


class SerialBus(_Table, frozen=True, kw_only=True, tag_field="kind", tag="serial"):
    """A serial line with one device. What is left out is taken from the device's profile."""

    id: Level
    port: Given
    baudrate: Annotated[int, msgspec.Meta(ge=300, le=4_000_000)] | None = None


class ModbusRtuBus(_Table, frozen=True, kw_only=True, tag_field="kind", tag="modbus-rtu"):
    """A Modbus RTU line."""

    id: Level
    port: Given
    baudrate: Annotated[int, msgspec.Meta(ge=300, le=4_000_000)] = 9600
    parity: Literal["N", "E", "O"] = "N"
    stopbits: Literal[1, 2] = 1
    timeout_s: Timeout = 1.0


class ModbusTcpBus(_Table, frozen=True, kw_only=True, tag_field="kind", tag="modbus-tcp"):
    """A Modbus TCP server."""

    id: Level
    host: Host
    port: Port = 502
    timeout_s: Timeout = 1.0


class BleBus(_Table, frozen=True, kw_only=True, tag_field="kind", tag="ble"):
    """A Bluetooth adapter that listens."""

    id: Level
    adapter: Annotated[str, msgspec.Meta(pattern=rf"^hci\d+{END}")] = "hci0"


Bus = SerialBus | ModbusRtuBus | ModbusTcpBus | BleBus
BUS_KINDS = {"serial": ("serial",), "modbus": ("modbus-rtu", "modbus-tcp"), "ble": ("ble",)}
"""What a profile's transport can be reached over."""


class Device(_Table, frozen=True, kw_only=True):
    """One device. `settings` are its driver's; `metrics` that its domain lacks become `x-{vendor}-…`."""

    id: Level
    domain: str
    driver: str
    bus: str
    interval_s: Interval
    settings: dict[str, Any] = {}
    label: GivenLabel = GivenLabel()
    location: GivenLocation | None = None
    asset_id: Text = ""
    cabinet: Text = ""
    circuit: Text = ""
    township: Text = ""
    serial: Text = ""
    installed: Text = ""

    @property
    def package(self) -> DriverPackage:
        """The driver's folder."""
        return load(self.driver)

    @property
    def vendor(self) -> str:
        """The word in `x-{vendor}-…` for metrics that the domain lacks."""
        return self.driver.partition("_")[0]


class Config(_Table, frozen=True, kw_only=True):
    """The whole file. Paths are relative to its folder."""

    gateway: Gateway
    broker: Broker
    delivery: Delivery = Delivery()
    bus: list[Bus]
    device: list[Device]

    def bus_of(self, device: Device) -> Bus:
        """Return the bus that a checked device names."""
        return next(bus for bus in self.bus if bus.id == device.bus)


def read_config(path: Path) -> Config:
    """Return the checked configuration. Raises: ConfigError naming file, key, value and what is allowed."""
    config = _anchored(read_toml(path, Config), path.resolve().parent)
    file = str(path)
    _check_broker(file, config.broker)
    _check_unique(file, "bus", "id", [bus.id for bus in config.bus])
    for kinds, key in (((SerialBus, ModbusRtuBus), "port"), ((BleBus,), "adapter")):
        _check_unique(
            file,
            "bus",
            key,
            [getattr(bus, key) if isinstance(bus, kinds) else None for bus in config.bus],
        )
    _check_unique(file, "device", "id", [device.id for device in config.device])
    reached: dict[tuple[str, str], int] = {}
    for index, device in enumerate(config.device):
        place = _checked_place(file, f"device[{index}]", device, config)
        first = reached.setdefault((device.bus, place), index)
        if first != index:  # two entries for one thing in the street would count it twice
            allowed = f"must be unique on its bus: device[{first}] is the same"
            raise ConfigError(file, f"device[{index}].settings", place, allowed)
    return config


def _anchored(config: Config, folder: Path) -> Config:
    """Return the configuration with every path absolute, seen from its file's folder."""
    gateway, broker = config.gateway, config.broker
    gateway = replace(gateway, state_dir=str(folder / gateway.state_dir))
    if broker.password_file:
        broker = replace(broker, password_file=str(folder / broker.password_file))
    if broker.tls is not None:
        broker = replace(broker, tls=broker.tls.anchored(folder))
    return replace(config, gateway=gateway, broker=broker)


def _check_broker(file: str, broker: Broker) -> None:
    check_plain(file, "broker", broker.host, broker.tls)
    if broker.password_file and broker.password_env:
        allowed = "must be left out beside password_file"
        raise ConfigError(file, "broker.password_env", broker.password_env, allowed)
    if (broker.password_file or broker.password_env) and not broker.username:
        raise ConfigError(file, "broker.username", broker.username, "a password needs a username")


def _check_unique(file: str, table: str, key: str, values: list[str | None]) -> None:
    """Check that no two entries of a table share what is given of a key."""
    for index, value in enumerate(values):
        if value is not None and value in values[:index]:
            allowed = f"must be unique: {table}[{values.index(value)}] has it, too"
            raise ConfigError(file, f"{table}[{index}].{key}", value, allowed)


def _checked_place(file: str, key: str, device: Device, config: Config) -> str:
    """Check a device and return where on its bus it is: its address, or all of its settings."""
    buses = {bus.id: bus for bus in config.bus}
    domains = [domain for domain in dictionary() if domain != "gateway"]
    if device.domain not in domains:
        raise ConfigError(file, f"{key}.domain", device.domain, f"one of {', '.join(domains)}")
    if device.id == config.gateway.id:
        raise ConfigError(file, f"{key}.id", device.id, "must differ from gateway.id")
    if device.bus not in buses:
        raise ConfigError(file, f"{key}.bus", device.bus, f"one of {', '.join(buses)}")
    try:
        package = device.package
    except ConfigError as error:
        raise ConfigError(file, f"{key}.driver", device.driver, error.allowed) from error
    if package.profile.transport.kind == "ble" and package.profile.completes != "advert":
        allowed = "a driver that listens to adverts; this agent does not connect to devices yet"
        raise ConfigError(file, f"{key}.driver", device.driver, allowed)
    kinds = BUS_KINDS[package.profile.transport.kind]
    bus = buses[device.bus]
    if bus.__struct_config__.tag not in kinds:
        allowed = f"{device.driver} needs a bus of kind {' or '.join(kinds)}"
        raise ConfigError(file, f"{key}.bus", device.bus, allowed)
    if isinstance(bus, SerialBus) and sum(other.bus == bus.id for other in config.device) > 1:
        raise ConfigError(file, f"{key}.bus", device.bus, "a serial line has one device")
    settings = package.settings(device.settings, file, f"{key}.settings")
    try:
        driver = package.driver(settings)
    except ConfigError as error:  # it knows its own key, not the file's
        place = f"{key}.settings.{error.key}"
        raise ConfigError(file, place, error.value, error.allowed) from error
    return str(getattr(driver, "address", msgspec.to_builtins(settings)))
