"""What of a configuration no type can say. Errors of a device or a bus name their own key alone, and no file."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from device_drivers.kit.port_names import port_problem
from device_drivers.kit.profile import Transport, shared_transport
from device_drivers.kit.registry import load
from edge_agent.config import BleBus, Bus, Device, ModbusRtuBus, SerialBus
from edge_agent.quality import check_limits
from edge_agent.report_by_exception import check_report
from exchange.configuration import mistakes
from exchange.dictionary import dictionary
from exchange.errors import ConfigError

BUS_KINDS = {"serial": ("serial",), "modbus": ("modbus-rtu", "modbus-tcp"), "ble": ("ble",)}
"""What a profile's transport can be reached over."""


def collected(*checks: Callable[[], object]) -> list[ConfigError]:
    """Return what is wrong by any of the checks."""
    found: list[ConfigError] = []
    for check in checks:
        try:
            check()
        except ConfigError as error:
            found.append(error)
    return found


# ---------------------------------------------------------------------------------------------------------- a bus


def check_port(bus: Bus) -> None:
    """Check that a serial port's name is one that lasts. Raises: ConfigError."""
    if isinstance(bus, SerialBus | ModbusRtuBus) and (allowed := port_problem(bus.port)):
        raise ConfigError("", "port", bus.port, allowed)


def claims(bus: Bus) -> list[tuple[str, str]]:
    """Return what a bus must have for itself alone."""
    claims = [("id", bus.id)]
    if isinstance(bus, SerialBus | ModbusRtuBus):
        claims.append(("port", bus.port))
    elif isinstance(bus, BleBus):
        claims.append(("adapter", bus.adapter))
    return claims


def transport_of(bus: Bus, devices: Sequence[Device]) -> Transport | None:
    """Return how an RTU line is set up for its devices, None for what is no such line or has none.

    Raises: ConfigError.
    """
    if not isinstance(bus, ModbusRtuBus) or not devices:
        return None
    return shared_transport(
        [device.package.profile.transport for device in devices],
        baudrate=bus.baudrate,
        parity=bus.parity,
        stopbits=bus.stopbits,
        timeout_s=bus.timeout_s,
    )


# -------------------------------------------------------------------------------------------------------- a device


def device_mistakes(device: Device, bus: Bus | None) -> list[ConfigError]:
    """Return all that is wrong with a device for itself; without its bus, what goes without."""
    domains = [domain for domain in dictionary() if domain != "gateway"]
    found: list[ConfigError] = []
    if device.domain not in domains:
        allowed = f"one of {', '.join(domains)} 沒有這個領域"
        found.append(ConfigError("", "domain", device.domain, allowed))
    else:
        found += collected(lambda: check_limits(device), lambda: check_report(device))
    try:
        kinds = BUS_KINDS[device.package.profile.transport.kind]
    except ConfigError as error:
        allowed = f"{error.allowed} 驅動程式不明"
        return [*found, ConfigError("", "driver", device.driver, allowed)]
    if bus is not None and bus.__struct_config__.tag not in kinds:
        allowed = f"{device.driver} needs a bus of kind {' or '.join(kinds)} 匯流排種類不符"
        found.append(ConfigError("", "bus", device.bus, allowed))
    try:
        place_of(device)
    except ConfigError as error:
        found += settings_mistakes(device.driver, device.settings) or [error]
    return found


def place_of(device: Device) -> str:
    """Return where on its bus a device is: its address, or all of its settings. Raises: ConfigError."""
    try:
        settings = device.package.settings(device.settings, "", "settings")
        driver = device.package.driver(settings)
    except ConfigError as error:  # a driver knows its own key, not the file's
        key = error.key if error.key.startswith("settings") else f"settings.{error.key}"
        raise error.elsewhere("", key) from error
    except Exception as error:  # a bug of a driver must not keep the other devices from starting
        allowed = f"its driver failed 驅動程式錯誤: {type(error).__name__}: {error}"
        raise ConfigError("", "driver", device.driver, allowed) from error
    return str(getattr(driver, "address", msgspec.to_builtins(settings)))


def settings_mistakes(driver: object, settings: object) -> list[ConfigError]:
    """Return all that the types of a driver's settings say is wrong; nothing where there is no such driver."""
    try:
        return mistakes(settings, load(str(driver)).settings_type, "", "settings")
    except Exception:  # noqa: BLE001 - none, or it fails: that is said of the driver
        return []
