"""The Bluetooth link: unmodified bleak against a simulated BlueZ on a D-Bus of its own."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from device_drivers.errors import DeviceRefused, DeviceSilent, LinkLost
from device_drivers.kit.driver import Value
from device_drivers.kit.registry import load
from device_drivers.links import ble
from device_drivers.links.ble import Scanner, open_gatt, open_scanner
from simulators.peripheral import Characteristic, Peripheral
from simulators.pytest_plugin import BluezBench

BAY, STRANGER, RADON = "A4:C1:38:8D:18:B2", "66:55:44:33:22:11", "C8:28:32:12:34:56"
BINDKEY = "231d39c1d7cc1ab1aee224cd096db932"
VALUE = "b42e2a68-ade7-11e4-89d3-123b93f75cba"
FORBIDDEN = "b42e2a69-ade7-11e4-89d3-123b93f75cba"
Truths = list[Mapping[str, Value]]


def bay(truths: Truths, address: str = BAY, **settings: str) -> Any:
    world: dict[str, Value] = {"occupied": True, "distance": 0.31, "battery_voltage": 3.05}
    return load("bthome").twin({"address": address, **settings}, lambda: world, truths.append)


@pytest.mark.parametrize("key", [{}, {"bindkey": BINDKEY}])
async def test_a_parking_bay_over_the_air(bluez: BluezBench, key: dict[str, str]) -> None:
    truths: Truths = []
    bluez.add(bay(truths, **key))
    driver: Any = load("bthome").driver({"address": BAY.lower(), **key})
    readings: list[Any] = []
    heard = 0
    async with open_scanner([driver.address], adapter="hci0") as scanner:
        while len(readings) < 3:
            advert = await scanner.next_advert(10.0)
            assert advert.rssi_dbm < 0
            heard += 1
            if (reading := driver.hear(advert)) is not None:
                readings.append(reading)
    assert [reading.metrics for reading in readings] == truths[:3]
    assert heard > 3  # repetitions were heard, and told apart


async def test_a_stranger_leaves_no_trace(
    bluez: BluezBench, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    strangers: Truths = []
    bluez.add(bay(strangers, STRANGER))
    bluez.add(bay([], BAY))
    async with open_scanner([BAY]) as scanner:
        heard = {(await scanner.next_advert(10.0)).address for _ in range(20)}
    assert strangers  # it was on the air
    assert heard == {BAY}
    assert STRANGER not in caplog.text
    assert STRANGER.replace(":", "_") not in caplog.text


async def test_silence_has_a_deadline(bluez: BluezBench) -> None:
    async with open_scanner([BAY]) as scanner:
        with pytest.raises(DeviceSilent):
            await scanner.next_advert(0.05)


async def test_a_reader_that_sleeps_costs_the_oldest_adverts_only(
    bluez: BluezBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ble, "UNREAD_MAX", 2)
    truths: Truths = []
    bluez.add(bay(truths))
    async with open_scanner([BAY]) as scanner:
        while scanner.dropped < 3:
            await next_arrival(scanner)
        assert len(scanner._unread) == 2
        payloads = [(await scanner.next_advert(1.0)).service_data for _ in range(2)]
    assert len(payloads) == 2


async def next_arrival(scanner: Scanner) -> None:
    scanner._stirred.clear()
    await scanner._stirred.wait()


async def test_no_bluetooth_is_a_lost_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", f"unix:path={tmp_path}/nowhere")
    with pytest.raises(LinkLost, match="Bluetooth"):
        async with open_scanner([BAY]):
            pytest.fail("opened")
    with pytest.raises(LinkLost):
        async with open_gatt(BAY, timeout_s=2.0):
            pytest.fail("connected")


async def test_an_adapter_that_is_not_there(bluez: BluezBench) -> None:
    with pytest.raises(LinkLost, match="hci7"):
        async with open_scanner([BAY], adapter="hci7"):
            pytest.fail("opened")


@pytest.fixture
def radon(bluez: BluezBench) -> Peripheral:
    """Bring a device into reach that is read by connecting to it."""
    service = [
        Characteristic(VALUE, b"\x01\x5a"),
        Characteristic(FORBIDDEN, att_error=0x0E),
    ]
    peripheral = Peripheral(RADON, "Wave", {"b42e1c08-ade7-11e4-89d3-123b93f75cba": service})
    bluez.add(peripheral)
    return peripheral


async def test_a_characteristic_is_read(radon: Peripheral) -> None:
    async with open_gatt(RADON, timeout_s=10.0) as device:
        assert await device.read_characteristic(VALUE) == b"\x01\x5a"
        with pytest.raises(DeviceRefused) as caught:
            await device.read_characteristic(FORBIDDEN)
        assert caught.value.code == 0x0E
        with pytest.raises(DeviceRefused, match="no such characteristic"):
            await device.read_characteristic("00002a19-0000-1000-8000-00805f9b34fb")


async def test_a_device_out_of_reach(bluez: BluezBench) -> None:
    with pytest.raises(DeviceSilent, match=RADON):
        async with open_gatt(RADON, timeout_s=0.5):
            pytest.fail("connected")
