"""A BLE device that is connected to: from a configuration file to a reading."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_agent.buses import read_once
from edge_agent.config_reading import load_config
from simulators.peripheral import Characteristic, Peripheral
from simulators.pytest_plugin import BluezBench
from tests.agents import DEADLINE_S, until
from tests.driver_packages import RADON, installed
from tests.troubled_lines import served

ADDRESS = "C8:28:32:12:34:56"
SERVICE, VALUE = "b42e1c08-ade7-11e4-89d3-123b93f75cba", "b42e2a68-ade7-11e4-89d3-123b93f75cba"
CONFIG = f"""\
[gateway]
id = "gw-1"
county = "tw-tpe"
site = "street"
state_dir = "state"

[broker]
host = "localhost"

[[bus]]
id = "radio"
kind = "ble"

[[device]]
id = "radon-1"
domain = "air"
driver = "acme_radon"
bus = "radio"
interval_s = 0.5
settings = {{ address = "{ADDRESS}" }}
"""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    path = tmp_path / "edge.toml"
    path.write_text(CONFIG, encoding="utf-8")
    with installed("acme_radon", RADON, tmp_path, monkeypatch):
        yield path


async def test_a_device_that_is_connected_to_needs_its_table_alone(
    bluez: BluezBench, config: Path
) -> None:
    bluez.add(Peripheral(ADDRESS, "Wave", {SERVICE: [Characteristic(VALUE, b"\x01\x5a")]}))
    loaded, problems = load_config(config)
    assert problems == []
    (bus,), (radon,) = loaded.bus, loaded.device
    async with served(bus, [radon]) as one:
        await until(lambda: one.count("radon-1") >= 2)
        assert one.readings["radon-1"][0].metrics == {"x-acme-a": 1, "x-acme-b": 0x5A}
    once = await read_once(bus, radon, DEADLINE_S)
    assert once.metrics == {"x-acme-a": 1, "x-acme-b": 0x5A}
