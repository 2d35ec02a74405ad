"""A scan's parts without a wire: steady names of ports, what bytes are whose, and which arguments are none."""

from __future__ import annotations

import pytest
from bleak.backends.device import BLEDevice
from bleak.backends.scanner import AdvertisementData
from serial.tools.list_ports_common import ListPortInfo

from device_drivers.kit.registry import load
from device_drivers.links import serial as serial_link
from device_drivers.links.ble import Scanner
from device_drivers.links.serial import found_ports, port_path
from edge_agent.scan import Found, Looked, Unit, _domain, _recognised, proposal, serial_ports
from onestreet.cli import main


def port(device: str, vid: int, pid: int, serial: str | None, location: str) -> ListPortInfo:
    info = ListPortInfo(device)
    info.vid, info.pid, info.serial_number, info.location = vid, pid, serial, location
    info.description = "USB serial"
    return info


def test_a_port_is_listed_under_the_name_that_it_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    ports = [
        port("/dev/ttyUSB0", 0x0403, 0x6001, "A50285BI", "1-1.2"),
        port("/dev/ttyUSB1", 0x1A86, 0x7523, None, "1-1.3"),
        port("/dev/ttyUSB2", 0x0403, 0x6011, "FT4", "1-1.4:1.0"),
        port("/dev/ttyUSB3", 0x0403, 0x6011, "FT4", "1-1.4:1.1"),
        ListPortInfo("/dev/ttyAMA0"),
    ]
    monkeypatch.setattr(serial_link, "comports", lambda: ports)
    found = found_ports()
    assert {one.path: one.name for one in found} == {
        "/dev/ttyUSB0": "usb:0403:6001:A50285BI",
        "/dev/ttyUSB1": "usb-path:1-1.3",
        "/dev/ttyUSB2": "usb-path:1-1.4:1.0",
        "/dev/ttyUSB3": "usb-path:1-1.4:1.1",
        "/dev/ttyAMA0": "/dev/ttyAMA0",
    }
    assert all(port_path(one.name) == one.path for one in found)
    assert serial_ports()["usb-path:1-1.3"] == "/dev/ttyUSB1, USB serial"


def test_one_frame_is_chance_and_two_are_a_sensor() -> None:
    package = load("plantower_pms")
    twin = package.twin({}, lambda: {"pm2_5": 12}, lambda _: None)
    frame = twin.speak()  # type: ignore[union-attr]  # a serial twin
    assert _recognised(package, frame) is None
    assert _recognised(package, b"noise" + frame + frame[:-1]) is None
    found = _recognised(package, frame[7:] + frame + frame[:-1] + frame)
    assert found is not None
    assert (found.domain, found.settings) == ("air", {"model": "pms5003"})


@pytest.mark.parametrize(
    ("metrics", "domain"),
    [
        ({"pm2_5", "temperature", "humidity"}, "air"),
        ({"temperature", "humidity", "battery_voltage"}, "weather"),
        ({"occupied", "distance"}, "parking"),
        ({"lit", "level", "lamp_fault"}, "streetlight"),
        ({"x-bthome-battery"}, ""),
        (set(), ""),
    ],
)
def test_metrics_tell_the_domain(metrics: set[str], domain: str) -> None:
    assert _domain(dict.fromkeys(metrics, 1)) == domain


def test_an_advert_that_nobody_asked_for_is_only_a_number() -> None:
    bay, phone, tag = "A4:C1:38:8D:18:B2", "66:55:44:33:22:11", "C8:28:32:AB:CD:EF"
    service = "0000fcd2-0000-1000-8000-00805f9b34fb"
    scanner = Scanner([tag.lower()], [service], [0x0499])

    def hear(address: str, company: int, uuid: str) -> None:
        data = AdvertisementData(None, {company: b"\1"}, {uuid: b"\2"}, [], None, -60, ())
        scanner.hear(BLEDevice(address, None, {}), data)

    hear(bay, 1, service)
    hear(phone, 2, "0000fd6f-0000-1000-8000-00805f9b34fb")
    hear(tag, 3, "0000fd6f-0000-1000-8000-00805f9b34fb")
    hear(phone.replace("66", "67"), 0x0499, "0000fd6f-0000-1000-8000-00805f9b34fb")
    assert (scanner.heard, scanner.passed_over) == (4, 1)
    assert phone not in str(vars(scanner))
    assert bay in str(vars(scanner))


def test_a_proposal_leaves_names_to_be_filled_in() -> None:
    meter = Found(driver="meter", domain="", interval_s=10.0, settings={"unit": 2}, notes=["so"])
    looked = Looked(
        kind="modbus-rtu",
        keys={"port": "/dev/ttyUSB0", "baudrate": 9600},
        outcome="found",
        devices=[meter],
        units=[Unit(unit=2, answer="answers"), Unit(unit=3, answer="answers")],
    )
    tables = proposal([looked, Looked(kind="serial", keys={"port": "/dev/ttyUSB1"})])
    assert 'id = "ttyusb0"\nkind = "modbus-rtu"\nport = "/dev/ttyUSB0"\nbaudrate = 9600' in tables
    assert '# so\n[[device]]\nid = ""\ndomain = ""\ndriver = "meter"\nbus = "ttyusb0"' in tables
    assert "# unit 站號 3: answers" in tables
    assert "站號 2:" not in tables
    assert "ttyUSB1" not in tables


@pytest.mark.parametrize(
    "words",
    [
        ["--units", "0-5"],
        ["--units", "9-3"],
        ["--units", "1-248"],
        ["--units", "x"],
        ["--timeout", "0"],
        ["--listen", "-1"],
        ["--parity", "X"],
        ["--tcp", "host:99999"],
        ["--tcp", "host:port"],
    ],
)
def test_wrong_arguments_are_refused(words: list[str]) -> None:
    try:
        status = main(["edge", "scan", *words])
    except SystemExit as ended:
        assert ended.code == 2
    else:
        assert status == 2
