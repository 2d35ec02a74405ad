"""Finding drivers: every distribution may bring some, by the entry points `onestreet.drivers`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache, cached_property
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec

from device_drivers.kit import register_table
from device_drivers.kit.driver import (
    AdvertDriver,
    Context,
    GattDriver,
    ModbusDriver,
    Reading,
    SerialDriver,
)
from device_drivers.kit.profile import Profile, load_profile
from device_drivers.kit.vectors import Vector, load_vectors
from exchange.configuration import converted
from exchange.errors import ConfigError

if TYPE_CHECKING:
    # A gateway must not load what only stands in for devices.
    from device_drivers.kit.twin import AdvertTwin, ModbusTwin, Physics, SerialTwin, Truth

    Twin: TypeAlias = SerialTwin | ModbusTwin | AdvertTwin

AnyDriver: TypeAlias = SerialDriver | ModbusDriver | AdvertDriver | GattDriver
GROUP = "onestreet.drivers"


class DriverPackage:
    """One driver's folder."""

    def __init__(self, driver_id: str, package: str) -> None:
        self.id, self.package = driver_id, package

    @cached_property
    def profile(self) -> Profile:
        return load_profile(self.package)

    @cached_property
    def _module(self) -> Any:
        name = f"{self.package}.driver"
        return import_module(name) if find_spec(name) else register_table

    @property
    def settings_type(self) -> type[msgspec.Struct]:
        kind: type[msgspec.Struct] = self._module.Settings
        return kind

    def settings(
        self, data: Mapping[str, object] | msgspec.Struct, file: str = "", key: str = "settings"
    ) -> msgspec.Struct:
        """Return a device's settings, typed. Raises: ConfigError naming `file` and the key under `key`."""
        if isinstance(data, msgspec.Struct):
            return data
        return converted(data, self.settings_type, file or self.id, key)

    def driver(self, settings: Mapping[str, object] | msgspec.Struct) -> AnyDriver:
        """Return the driver of one device. Raises: ConfigError."""
        driver: AnyDriver = self._module.Driver(self.profile, self.settings(settings))
        return driver

    def decode(self, frames: Sequence[bytes], context: Context) -> list[Reading]:
        """Return the readings in the frames. Raises: FrameError."""
        readings: list[Reading] = self._module.decode(self.profile, frames, context)
        return readings

    def encode(self, request: str) -> bytes:
        """Return the bytes of a request that the driver can send. Raises: KeyError."""
        frame: bytes = self._module.encode(request)
        return frame

    def twin(
        self, settings: Mapping[str, object] | msgspec.Struct, physics: Physics, truth: Truth
    ) -> Twin:
        """Return the device's twin; only now is its code loaded. Raises: ConfigError."""
        module: Any = import_module(f"{self.package}.twin")
        twin: Twin = module.Twin(self.settings(settings), physics, truth)
        return twin

    def vectors(self) -> list[Vector]:
        return load_vectors(self.package)


@cache
def _packages() -> dict[str, str]:
    return {point.name: point.value for point in entry_points(group=GROUP)}


def driver_ids() -> list[str]:
    """Return the ids of all installed drivers."""
    return sorted(_packages())


@cache
def load(driver_id: str) -> DriverPackage:
    """Return an installed driver. Raises: ConfigError naming those that are."""
    if driver_id not in _packages():
        raise ConfigError("drivers", "driver", driver_id, f"one of {', '.join(driver_ids())}")
    return DriverPackage(driver_id, _packages()[driver_id])
