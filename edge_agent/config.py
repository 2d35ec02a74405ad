"""The agent's configuration: one TOML file, typed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from device_drivers.kit.registry import DriverPackage, load
from exchange.configuration import read_toml
from exchange.dictionary import dictionary
from exchange.errors import ConfigError
from exchange.readings import PackFormat
from exchange.states import Label, Location
from exchange.topics import COUNTY, LEVEL

Positive = Annotated[float, msgspec.Meta(gt=0)]
Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]
Level = Annotated[str, msgspec.Meta(pattern=f"^{LEVEL.pattern}$")]


class _Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the file: no key that nobody reads."""


class Gateway(_Table, frozen=True, kw_only=True):
    """The gateway itself. `state_dir` holds the outbox."""

    id: Level
    county: Annotated[str, msgspec.Meta(pattern=f"^{COUNTY.pattern}$")]
    site: Level
    state_dir: str
    interval_s: Positive = 60.0
    label: Label = Label()
    location: Location | None = None
    township: str = ""


class Broker(_Table, frozen=True, kw_only=True):
    """The uplink. The password comes from a file or an environment variable, never from here."""

    host: str
    port: Port = 1883
    username: str = ""
    password_file: str = ""
    password_env: str = ""
    keepalive_s: Annotated[int, msgspec.Meta(ge=5, le=3600)] = 30
    timeout_s: Positive = 10.0

    def password(self, file: str) -> str | None:
        """Return the secret. Raises: ConfigError when the file or the variable is not there."""
        if self.password_file:
            try:
                return Path(self.password_file).read_text(encoding="utf-8").rstrip("\n")
            except OSError as error:
                raise ConfigError(
                    file,
                    "broker.password_file",
                    self.password_file,
                    f"must be readable: {error.strerror}",
                ) from error
        if self.password_env:
            try:
                return os.environ[self.password_env]
            except KeyError as error:
                raise ConfigError(
                    file, "broker.password_env", self.password_env, "must be set in the environment"
                ) from error
        return None


class Delivery(_Table, frozen=True, kw_only=True):
    """How samples go out."""

    window: Annotated[int, msgspec.Meta(ge=10, le=100_000)] = 5000
    pack_samples: Annotated[int, msgspec.Meta(ge=1, le=500)] = 100
    format: PackFormat = "json"
    drain_s: Annotated[float, msgspec.Meta(ge=0, le=600)] = 10.0


class SerialBus(_Table, frozen=True, kw_only=True, tag_field="kind", tag="serial"):
    """A serial line with one device. What is left out is taken from the device's profile."""

    id: Level
    port: str
    baudrate: Annotated[int, msgspec.Meta(ge=300, le=4_000_000)] | None = None


class ModbusRtuBus(_Table, frozen=True, kw_only=True, tag_field="kind", tag="modbus-rtu"):
    """A Modbus RTU line."""

    id: Level
    port: str
    baudrate: Annotated[int, msgspec.Meta(ge=300, le=4_000_000)] = 9600
    parity: Literal["N", "E", "O"] = "N"
    stopbits: Literal[1, 2] = 1
    timeout_s: Positive = 1.0


class ModbusTcpBus(_Table, frozen=True, kw_only=True, tag_field="kind", tag="modbus-tcp"):
    """A Modbus TCP server."""

    id: Level
    host: str
    port: Port = 502
    timeout_s: Positive = 1.0


class BleBus(_Table, frozen=True, kw_only=True, tag_field="kind", tag="ble"):
    """A Bluetooth adapter that listens."""

    id: Level
    adapter: Annotated[str, msgspec.Meta(pattern=r"^hci\d+$")] = "hci0"


Bus = SerialBus | ModbusRtuBus | ModbusTcpBus | BleBus
BUS_KINDS = {"serial": ("serial",), "modbus": ("modbus-rtu", "modbus-tcp"), "ble": ("ble",)}
"""What a profile's transport can be reached over."""


class Device(_Table, frozen=True, kw_only=True):
    """One device. `settings` are its driver's; `metrics` that its domain lacks become `x-{vendor}-…`."""

    id: Level
    domain: str
    driver: str
    bus: str
    interval_s: Positive
    settings: dict[str, str | int | float | bool] = {}
    label: Label = Label()
    location: Location | None = None
    asset_id: str = ""
    cabinet: str = ""
    circuit: str = ""
    township: str = ""
    serial: str = ""
    installed: str = ""

    @property
    def package(self) -> DriverPackage:
        """The driver's folder."""
        return load(self.driver)


class Config(_Table, frozen=True, kw_only=True):
    """The whole file."""

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
    config = read_toml(path, Config)
    file = str(path)
    buses = {bus.id: bus for bus in config.bus}
    _check_unique(file, "bus", [bus.id for bus in config.bus])
    _check_unique(file, "device", [device.id for device in config.device])
    for index, device in enumerate(config.device):
        _check_device(file, f"device[{index}]", device, buses, config)
    return config


def _check_unique(file: str, table: str, ids: list[str]) -> None:
    for index, name in enumerate(ids):
        if name in ids[:index]:
            raise ConfigError(file, f"{table}[{index}].id", name, "must be unique")


def _check_device(
    file: str, key: str, device: Device, buses: dict[str, Bus], config: Config
) -> None:
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
    kinds = BUS_KINDS[package.profile.transport.kind]
    bus = buses[device.bus]
    if bus.__struct_config__.tag not in kinds:
        raise ConfigError(
            file,
            f"{key}.bus",
            device.bus,
            f"{device.driver} needs a bus of kind {' or '.join(kinds)}",
        )
    if isinstance(bus, SerialBus) and sum(other.bus == bus.id for other in config.device) > 1:
        raise ConfigError(file, f"{key}.bus", device.bus, "a serial line has one device")
    package.settings(device.settings, file, f"{key}.settings")
