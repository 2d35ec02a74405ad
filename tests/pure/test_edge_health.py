"""What is said of a device: once when it goes, once when it is back, and every kind of trouble once between."""

from __future__ import annotations

import pytest

from device_drivers.errors import DeviceSilent, FrameError, LinkLost
from edge_agent.health import DeviceHealth, Health
from exchange.errors import DeviceError


def test_a_device_goes_and_comes_back(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    health = DeviceHealth("lamp-1")
    for _ in range(3):
        health.answered()
    for _ in range(50):
        health.failed(DeviceSilent("no answer"))
    health.answered()
    assert (health.readings, health.errors, health.outages, health.failing) == (4, 50, 1, None)
    assert [record.message for record in caplog.records] == [
        "device does not answer as it should",
        "device is back",
    ]
    assert vars(caplog.records[1])["errors"] == 50
    health.failed(DeviceSilent("no answer"))
    assert health.outages == 2
    assert len(caplog.records) == 3


def test_one_that_fails_now_so_now_otherwise_says_each_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    health = DeviceHealth("lamp-1")
    errors: list[DeviceError] = [
        DeviceSilent("no answer"),
        FrameError("bad_crc", "CRC differs"),
        LinkLost("gone"),
    ]
    for _ in range(20):
        for error in errors:
            health.failed(error)
            assert health.failing == type(error).__name__
            assert health.last_error is error
    kinds = [vars(record)["kind"] for record in caplog.records]
    assert kinds == ["DeviceSilent", "FrameError", "LinkLost"]
    assert health.outages == 1


def test_a_bug_is_told_with_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    health = DeviceHealth("lamp-1")
    health.failed(DeviceSilent("no answer"))
    health.failed(DeviceError("KeyError: 'x'"), KeyError("x"))
    assert [bool(record.exc_info) for record in caplog.records] == [False, True]


def test_errors_of_all_devices_add_up() -> None:
    health = Health(["a", "b"])
    health.devices["a"].failed(DeviceSilent("no answer"))
    health.devices["b"].failed(DeviceSilent("no answer"))
    health.devices["b"].failed(DeviceSilent("no answer"))
    assert health.bus_errors == 3
