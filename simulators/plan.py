"""The plan of a simulated town: its buses and the devices on them."""

from __future__ import annotations

from collections import Counter
from datetime import datetime
from hashlib import blake2b
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeAlias

import msgspec

from device_drivers.kit.registry import load
from exchange.configuration import converted
from exchange.errors import ConfigError
from simulators.town import Place

Name: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,47}$")]
BusKind: TypeAlias = Literal["serial", "modbus-rtu", "modbus-tcp", "ble"]

TRANSPORTS: Final[dict[BusKind, str]] = {
    "serial": "serial",
    "modbus-rtu": "modbus",
    "modbus-tcp": "modbus",
    "ble": "ble",
}


class BusPlan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One line. With `baud`, what twins send on it takes as long as on a real one."""

    id: Name
    kind: BusKind
    baud: Annotated[int, msgspec.Meta(ge=1)] | None = None


class DevicePlan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One device; `settings` are the driver's own, as in the agent's configuration."""

    id: Name
    domain: str
    driver: str
    bus: Name
    settings: dict[str, Any] = {}


class TownPlan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A town.

    Units: town time begins at `start` and runs `speed` times as fast as the wall.
    """

    county: Name = "tw-tpe"
    site: Name = "demo-street"
    seed: int
    start: Annotated[datetime, msgspec.Meta(tz=True)]
    speed: Annotated[float, msgspec.Meta(gt=0)] = 1.0
    place: Place = Place()
    buses: list[BusPlan]
    devices: list[DevicePlan]


def load_plan(path: Path) -> TownPlan:
    """Return the plan in a JSON file. Raises: ConfigError."""
    try:
        data = msgspec.json.decode(path.read_bytes())
    except OSError as error:
        raise ConfigError(str(path), "file", error.strerror, "a readable file") from error
    except msgspec.DecodeError as error:
        raise ConfigError(str(path), "file", str(error), "JSON") from error
    plan = converted(data, TownPlan, str(path))
    check_plan(plan, str(path))
    return plan


def check_plan(plan: TownPlan, file: str) -> None:
    """Check what types cannot say. Raises: ConfigError."""
    for key, names in (
        ("buses", Counter(bus.id for bus in plan.buses)),
        ("devices", Counter(device.id for device in plan.devices)),
    ):
        for name, times in names.items():
            if times > 1:
                raise ConfigError(file, key, name, "an id that is used once")
    kinds: dict[str, BusKind] = {bus.id: bus.kind for bus in plan.buses}
    users = Counter(device.bus for device in plan.devices)
    for index, bus in enumerate(plan.buses):
        if bus.kind == "serial" and users[bus.id] != 1:
            raise ConfigError(file, f"buses[{index}]", bus.id, "a serial bus has one device")
    for index, device in enumerate(plan.devices):
        key = f"devices[{index}]"
        if device.bus not in kinds:
            raise ConfigError(file, f"{key}.bus", device.bus, f"one of {', '.join(kinds)}")
        kind = kinds[device.bus]
        transport = load(device.driver).profile.transport.kind
        if TRANSPORTS[kind] != transport:
            raise ConfigError(file, f"{key}.driver", device.driver, f"a driver for a {kind} bus")


def street_plan(
    seed: int,
    *,
    lamps: int = 12,
    bays: int = 8,
    air: int = 3,
    start: datetime | None = None,
    speed: float = 60.0,
) -> TownPlan:
    """Return a street: lamps behind one DALI gateway, bays by radio, air boxes on serial lines.

    Every second bay is encrypted, every third air box is asked instead of speaking by itself.
    `start` is a spring afternoon shortly before dusk unless given.
    """
    devices = [
        DevicePlan(
            id=f"lamp-{number + 1:03}",
            domain="streetlight",
            driver="intesis_dali",
            bus="ttyRS485",
            settings={
                "unit": 1,
                "channel": number // LAMPS_A_CHANNEL,
                "short_address": number % LAMPS_A_CHANNEL,
            },
        )
        for number in range(lamps)
    ]
    for number in range(1, bays + 1):
        secret = blake2b(f"{seed} bay {number}".encode(), digest_size=22).digest()
        settings = {"address": _static_address(secret[16:])}
        if number % 2 == 0:
            settings["bindkey"] = secret[:16].hex()
        devices.append(
            DevicePlan(
                id=f"bay-{number:03}",
                domain="parking",
                driver="bthome",
                bus="hci0",
                settings=settings,
            )
        )
    devices += [
        DevicePlan(
            id=f"air-{number:03}",
            domain="air",
            driver="plantower_pms",
            bus=f"ttyAIR{number - 1}",
            settings={"mode": "passive" if number % 3 == 0 else "active"},
        )
        for number in range(1, air + 1)
    ]
    buses = [BusPlan(id=f"ttyAIR{number}", kind="serial") for number in range(air)]
    if lamps:
        buses.append(BusPlan(id="ttyRS485", kind="modbus-rtu"))
    if bays:
        buses.append(BusPlan(id="hci0", kind="ble"))
    plan = TownPlan(
        seed=seed,
        start=start or datetime.fromisoformat("2026-03-20T17:45:00+08:00"),
        speed=speed,
        buses=buses,
        devices=devices,
    )
    check_plan(plan, "street")
    return plan


LAMPS_A_CHANNEL: Final = 64
"""Short addresses of one DALI line."""


def _static_address(six: bytes) -> str:
    """Return a static random Bluetooth address: its two highest bits are set."""
    return ":".join(f"{byte:02X}" for byte in (six[0] | 0xC0, *six[1:]))
