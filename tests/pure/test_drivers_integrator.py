"""An integrator's own package: found by its entry point, all table, held to the same rules."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from device_drivers.errors import CommandRejected, FrameError
from device_drivers.kit import registry
from device_drivers.kit.register_table import sealed
from device_drivers.kit.registry import driver_ids, load
from device_drivers.kit.vectors import differences
from exchange.errors import ConfigError

PROFILE = """
completes = "poll"
sources = ["Acme Meter manual 1.0, table 4"]
blocks = [
    { function = 4, at = 0, count = 4 },
    { function = 3, at = 10, count = 2 },
]

[[points]]
at = 0
type = "float32"
field = "voltage_v"
metric = "voltage"
unit = "V"

[[points]]
at = 2
type = "uint32"
order = "CDAB"
scale = 0.001
field = "energy_kwh"
factor = 1000
metric = "energy_import"
unit = "Wh"

[[points]]
at = 10
type = "int16"
scale = 0.1
add = -40
sentinel = -1
field = "temperature_c"
metric = "temperature"
unit = "Cel"

[[points]]
at = 11
type = "bit"
bit = 15
field = "door"
metric = "x-acme-door"

[identity]
maker = "Acme"
models = ["Meter 1"]
brand_origin = "TW"
description = "A meter"

[transport]
kind = "modbus"
baudrate = 19200

[timing]
cadence_s = 10.0
"""
VECTORS = [
    {
        "id": "acme-1",
        "direction": "rx",
        "transport": "modbus_rtu",
        "frame_hex": "010404436633341b38",
        "context": {"slave": 1, "function": 4, "start_address": 0, "quantity": 2},
        "expect": {"voltage_v": 230.2},
        "rel_tol": 1e-5,
        "kind": "derived",
        "source": "manual",
    }
]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    """Return what installs a package with this profile and returns the driver's id."""

    def install(profile: str) -> str:
        name = f"acme_meter_{tmp_path.name.replace('-', '_')}"
        package = tmp_path / name
        package.mkdir()
        (package / "__init__.py").touch()
        (package / "profile.toml").write_text(profile)
        (package / "vectors.json").write_text(json.dumps(VECTORS))
        distribution = tmp_path / "acme_meter-1.0.dist-info"
        distribution.mkdir()
        (distribution / "METADATA").write_text(
            "Metadata-Version: 2.1\nName: acme-meter\nVersion: 1.0\n"
        )
        (distribution / "entry_points.txt").write_text(
            f"[onestreet.drivers]\nacme_meter = {name}\n"
        )
        monkeypatch.syspath_prepend(str(tmp_path))
        forget()
        return "acme_meter"

    def forget() -> None:
        registry._packages.cache_clear()
        registry.load.cache_clear()

    yield install
    forget()


class Registers:
    """A bus that knows what its registers hold."""

    def __init__(self) -> None:
        self.input = struct.unpack(">4H", struct.pack(">f", 230.5) + bytes.fromhex("e2400001"))
        self.holding = [653, 0x8000]

    async def read_holding(self, unit: int, address: int, count: int) -> list[int]:
        assert (unit, address, count) == (5, 10, 2)
        return self.holding

    async def read_input(self, unit: int, address: int, count: int) -> list[int]:
        assert (unit, address, count) == (5, 0, 4)
        return list(self.input)

    async def read_coils(self, unit: int, address: int, count: int) -> list[bool]:
        raise AssertionError((unit, address, count))

    read_discrete = read_coils

    async def write_register(self, unit: int, address: int, value: int) -> None:
        raise AssertionError((unit, address, value))

    async def write_registers(self, unit: int, address: int, values: Sequence[int]) -> None:
        raise AssertionError((unit, address, values))


async def test_a_table_alone_is_a_driver(install: Callable[[str], str]) -> None:
    driver_id = install(PROFILE)
    assert driver_ids() == ["acme_meter", "bthome", "intesis_dali", "plantower_pms"]
    package = load(driver_id)
    assert [differences(package, vector) for vector in package.vectors()] == [[]]

    driver: Any = package.driver({"unit": 5})
    bus = Registers()
    reading = await driver.read(bus)
    assert reading.metrics == {
        "voltage": 230.5,
        "energy_import": 123456,
        "temperature": 25.3,
        "x-acme-door": 1,
    }
    bus.holding = [0xFFFF, 0]
    bus.input = (0x7FC0, 0, 0, 0)  # not a number
    reading = await driver.read(bus)
    assert reading.metrics == {"energy_import": 0, "x-acme-door": 0}
    with pytest.raises(CommandRejected):
        await driver.command(bus, "set_level", {"level": 1})
    with pytest.raises(FrameError, match="wrong_slave"):
        package.decode([sealed(bytes.fromhex("0204020001"))], {"slave": 1})


@pytest.mark.parametrize(
    ("old", "new", "key", "allowed"),
    [
        ('completes = "poll"', 'completes = "never"', "completes", "one of advert, answer"),
        ("baudrate = 19200", "baudrate = 3", "transport.baudrate", ">= 300"),
        ("baudrate = 19200", "speed = 19200", "transport.speed", "baudrate"),
        ('brand_origin = "TW"', 'brand_origin = "Taiwan"', "identity.brand_origin", "^[A-Z]{2}$"),
        ("cadence_s = 10.0", "", "timing.cadence_s", "required"),
        ('metric = "voltage"', 'metric = "volts"', "points[0].metric", "x-{vendor}-{name}"),
        ('unit = "Cel"', 'unit = "degC"', "points[2].unit", "Cel"),
        ('type = "float32"', 'type = "uint24"', "points[0].type", "float32"),
        ('type = "float32"', 'type = "decimal"', "points[0].type", "one of bit, bool"),
        ('order = "CDAB"', 'order = "CDABX"', "points[1].order", "^[A-H]*$"),
        ('order = "CDAB"', 'order = "BA"', "points[1].order", "ABCD"),
        ("count = 4", "count = 400", "blocks[0].count", "<= 125"),
        ('field = "door"', 'variants = ["s"]\nfield = "door"', "points[3].variants", "one of"),
        ("[timing]", "[timing", "file", "TOML"),
    ],
)
def test_a_wrong_profile_is_named(
    install: Callable[[str], str], old: str, new: str, key: str, allowed: str
) -> None:
    assert old in PROFILE
    driver_id = install(PROFILE.replace(old, new, 1))
    with pytest.raises(ConfigError) as caught:
        _ = load(driver_id).profile
    assert caught.value.file.endswith("/profile.toml")
    assert caught.value.key == key
    assert allowed in caught.value.allowed
