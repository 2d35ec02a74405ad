"""A serial port by the adapter it belongs to: found wherever the kernel has put it."""

from __future__ import annotations

import pytest
from serial.tools.list_ports_common import ListPortInfo

from device_drivers.errors import LinkLost
from device_drivers.kit.port_names import UsbPort, port_problem, usb_port
from device_drivers.links import serial as serial_link
from device_drivers.links.serial import port_path


def port(
    device: str,
    vid: int | None = None,
    pid: int | None = None,
    serial: str | None = None,
    location: str | None = None,
) -> ListPortInfo:
    """Return what pyserial reads out of sysfs."""
    info = ListPortInfo(device)
    info.vid, info.pid, info.serial_number, info.location = vid, pid, serial, location
    return info


FTDI = port("/dev/ttyUSB0", 0x0403, 0x6001, "A50285BI", "1-1.2")
CH340 = port("/dev/ttyUSB1", 0x1A86, 0x7523, None, "1-1.3")
FOUR = [port(f"/dev/ttyUSB{3 + n}", 0x0403, 0x6011, "FT4", f"1-1.4:1.{n}") for n in range(4)]
BUILT_IN = port("/dev/ttyAMA0")
PORTS = [FTDI, CH340, *FOUR, BUILT_IN]


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("/dev/ttyUSB7", "/dev/ttyUSB7"),
        ("/dev/serial/by-id/usb-FTDI_A50285BI-if00-port0",) * 2,
        ("usb:0403:6001", "/dev/ttyUSB0"),
        ("usb:0403:6001:A50285BI", "/dev/ttyUSB0"),
        ("usb:1a86:7523", "/dev/ttyUSB1"),
        ("usb-path:1-1.3", "/dev/ttyUSB1"),
        ("usb-path:1-1.4:1.2", "/dev/ttyUSB5"),
    ],
)
def test_a_port_is_found(monkeypatch: pytest.MonkeyPatch, name: str, path: str) -> None:
    monkeypatch.setattr(serial_link, "comports", lambda: PORTS)
    assert port_problem(name) == ""
    assert port_path(name) == path


def test_it_is_looked_for_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serial_link, "comports", lambda: PORTS)
    assert port_path("usb:1A86:7523") == "/dev/ttyUSB1"
    moved = port("/dev/ttyUSB2", 0x1A86, 0x7523, None, "1-1.3")
    monkeypatch.setattr(serial_link, "comports", lambda: [FTDI, moved])
    assert port_path("usb:1A86:7523") == "/dev/ttyUSB2"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("usb:0403:6001:OTHER", "no such adapter"),
        ("usb:dead:beef", "no such adapter"),
        ("usb-path:2-1", "no such adapter"),
        ("usb-path:1-1", "no such adapter"),  # a hub is no adapter
        ("usb:0403:6011", r"4 ports are meant: /dev/ttyUSB3 is usb-path:1-1\.4:1\.0, /dev/ttyUSB4"),
        ("usb-path:1-1.4", "4 ports are meant"),
        ("usb:CH340", "must be a path, usb:VID:PID"),
    ],
)
def test_what_is_not_one_port_is_said(
    monkeypatch: pytest.MonkeyPatch, name: str, reason: str
) -> None:
    monkeypatch.setattr(serial_link, "comports", lambda: PORTS)
    with pytest.raises(LinkLost, match=reason):
        port_path(name)


@pytest.mark.parametrize(
    "name",
    ["usb:", "usb:1A86", "usb:1A86:75233", "usb:0403:6001:", "usb-path:ttyUSB0", "usb-path:"],
)
def test_a_name_that_is_none_is_told(name: str) -> None:
    assert port_problem(name).startswith("a path, usb:VID:PID")
    assert usb_port(name) is None


def test_what_a_name_says() -> None:
    assert usb_port("usb:0403:6001:A5:02") == UsbPort(0x0403, 0x6001, "A5:02")
    assert usb_port("usb-path:3-1.4.2") == UsbPort(path="3-1.4.2")
    assert usb_port("usb0") is None
    assert port_problem("usb0") == "", "a path may be called anything else"


def test_the_listing_of_this_machine_is_read() -> None:
    """Without anything injected: whatever is plugged in here, an adapter that cannot exist is not found."""
    with pytest.raises(LinkLost, match="no such adapter"):
        port_path("usb:0000:0000:onestreet")
