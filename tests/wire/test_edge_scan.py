"""`onestreet edge scan` on twins: it names what a driver knows, writes nothing, and keeps no stranger's address."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import subprocess
import sys
import tomllib
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from device_drivers.kit import registry
from device_drivers.kit.driver import Value
from device_drivers.kit.registry import load
from device_drivers.kit.twin import ModbusException
from device_drivers.links.modbus import open_modbus_rtu
from device_drivers.links.modbus_tcp import open_modbus_tcp
from device_drivers.links.serial import open_serial
from edge_agent.config_reading import read_config
from onestreet.cli import main
from simulators.peripheral import Peripheral
from simulators.pytest_plugin import Bench, BluezBench
from tests.hanging_folder import hanging_folder

BAY, SEALED, CLIMATE = "A4:C1:38:8D:18:B2", "A4:C1:38:00:00:02", "A4:C1:38:00:00:03"
OLD = "5C:85:7E:12:34:56"  # of the right format, in a version that nobody understands
STRANGERS = ["66:55:44:33:22:11", "C8:28:32:AB:CD:EF", "7A:11:22:33:44:55", OLD]
ROOT = Path(__file__).parents[2]
BINDKEY = "231d39c1d7cc1ab1aee224cd096db932"

HEAD = """\
[gateway]
id = "gw-1"
county = "tw-tpe"
site = "street"
state_dir = "state"

[broker]
host = "localhost"

"""


def scan(capsys: pytest.CaptureFixture[str], *words: str, status: int = 0) -> dict[str, Any]:
    """Carry a scan out and return its JSON."""
    assert main(["edge", "scan", *words, "--json"]) == status
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


def only(document: dict[str, Any]) -> dict[str, Any]:
    (bus,) = document["buses"]
    assert isinstance(bus, dict)
    return bus


def filled_in(document: dict[str, Any], folder: Path) -> Any:
    """Return the configuration that the proposal becomes once its names are filled in."""
    text: str = document["toml"]
    for number in range(text.count('\nid = ""')):
        text = text.replace('\nid = ""', f'\nid = "device-{number}"', 1)
    path = folder / "edge.toml"
    path.write_text(HEAD + text, encoding="utf-8")
    return read_config(path)


class Ear:
    """A serial twin, and what it hears."""

    def __init__(self, twin: Any) -> None:
        self._twin, self.heard = twin, b""

    @property
    def period_s(self) -> float | None:
        period_s: float | None = self._twin.period_s
        return period_s

    def speak(self) -> bytes:
        frame: bytes = self._twin.speak()
        return frame

    def hear(self, data: bytes) -> bytes:
        self.heard += data
        answer: bytes = self._twin.hear(data)
        return answer


class Babbler:
    """Speaks what nobody understands; answers likewise."""

    def __init__(self, speech: bytes = b"", answer: bytes = b"") -> None:
        self.period_s = 0.05 if speech else None
        self._speech, self._answer = speech, answer

    def speak(self) -> bytes:
        return self._speech

    def hear(self, data: bytes) -> bytes:
        return self._answer if data else b""


class Table:
    """A Modbus device that notes what it is asked, and whether anybody writes to it."""

    def __init__(self, unit: int, registers: Mapping[int, int], *, most: int = 100) -> None:
        self.unit, self.addresses = unit, range(most)
        self._registers = registers
        self.asked: list[tuple[int, int, int]] = []
        self.written: list[tuple[int, int, Sequence[int]]] = []

    def read(self, function: int, address: int, count: int) -> Sequence[int]:
        self.asked.append((function, address, count))
        if address not in self._registers:
            raise ModbusException(2)
        return [self._registers[address]]

    def write(self, function: int, address: int, values: Sequence[int]) -> None:
        self.written.append((function, address, values))


# ---------------------------------------------------------------------------------------------------------- serial


@pytest.mark.parametrize(
    ("model", "proposed"),
    [("pms5003", "pms5003"), ("pms3003", "pms3003"), ("pms5003st", "pms5003st")],
)
def test_a_sensor_that_speaks_is_named_by_listening_alone(
    model: str,
    proposed: str,
    serial_line: Callable[..., str],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    twin = load("plantower_pms").twin({"model": model}, lambda: {"pm2_5": 17}, lambda _: None)
    ear = Ear(twin)
    port = serial_line(ear)
    document = scan(capsys, "--serial", port, "--listen", "30")
    bus = only(document)
    assert bus["outcome"] == "found"
    (device,) = bus["devices"]
    assert (device["driver"], device["domain"]) == ("plantower_pms", "air")
    assert device["said"]["pm2_5"] == 17
    assert ear.heard == b"", "to listen is not to speak"
    config = filled_in(document, tmp_path)
    assert config.device[0].settings == {"model": proposed}
    assert config.bus_of(config.device[0]).port == port


def test_models_that_nobody_can_tell_apart_are_named_all(
    serial_line: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    twin = load("plantower_pms").twin({}, lambda: {"pm2_5": 17}, lambda _: None)
    port = serial_line(twin)
    assert main(["edge", "scan", "--serial", port, "--listen", "30"]) == 0
    said = capsys.readouterr().out
    assert f"{port}: found 已辨識" in said
    assert "pms7003" in said
    assert "pm2_5 17" in said


def test_bytes_that_no_driver_knows_are_said_to_be_there(
    serial_line: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    port = serial_line(Babbler(b"$GPGGA,123519,4807.038,N\r\n"))
    document = scan(capsys, "--serial", port, "--listen", "1")
    assert only(document)["outcome"] == "unknown"
    assert document["toml"] == ""


def test_a_line_on_which_nobody_speaks(
    serial_line: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    port = serial_line(Babbler())
    assert only(scan(capsys, "--serial", port, "--listen", "0.3"))["outcome"] == "silent"


def test_a_port_in_use_is_left_alone_and_said(
    serial_line: Callable[..., str],
    modbus_line: Callable[..., Any],
    bench: Bench,
    capsys: pytest.CaptureFixture[str],
) -> None:
    lone, shared = serial_line(Babbler()), modbus_line(Table(1, {0: 1}))["port"]
    bench.enter(lambda: open_serial(lone))
    bench.enter(lambda: open_modbus_rtu(shared))
    assert main(["edge", "scan", "--serial", lone, "--rtu", shared]) == 1
    said = capsys.readouterr().out
    for port in (lone, shared):
        assert f"{port}: in use, left alone; stop the agent to scan it 使用中" in said


def test_a_port_that_is_not_there_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    bus = only(scan(capsys, "--serial", "/dev/ttyNOWHERE", status=1))
    assert bus["outcome"] == "failed"
    assert "/dev/ttyNOWHERE" in bus["detail"]


@pytest.mark.parametrize("way", ["--serial", "--rtu"])
def test_a_pipe_is_no_port_and_nobody_waits_for_it(
    way: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe = tmp_path / "ttyS"
    os.mkfifo(pipe)
    bus = only(scan(capsys, way, str(pipe), status=1))
    assert (bus["outcome"], bus["detail"]) == ("failed", f"{pipe}: this is no serial port")


@pytest.mark.parametrize("way", ["--serial", "--rtu"])
def test_a_port_that_hangs_ends_in_time_and_costs_the_others_nothing(
    way: str,
    tmp_path: Path,
    serial_line: Callable[..., str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The kernel answers never; the other port is looked at all the same."""
    monkeypatch.setattr("device_drivers.links.serial.OPEN_S", 0.3)
    twin = load("plantower_pms").twin({}, lambda: {"pm2_5": 17}, lambda _: None)
    speaking = serial_line(twin)
    with hanging_folder(tmp_path / "dev") as folder:
        hanging = str(folder / "ttyUSB0")
        words = [way, hanging, "--serial", speaking, "--listen", "30"]
        buses = {bus["keys"]["port"]: bus for bus in scan(capsys, *words, status=1)["buses"]}
    assert buses[speaking]["outcome"] == "found"
    assert buses[hanging]["outcome"] == "failed"
    assert "the port hangs" in buses[hanging]["detail"]


# ---------------------------------------------------------------------------------------------------------- Modbus

METER = """
completes = "poll"
sources = ["Acme Meter manual 1.0"]
points = [{ at = 0, type = "uint16", field = "voltage_v", metric = "voltage", unit = "V" }]
blocks = [{ function = 3, at = 0, count = 1 }]
fingerprint = [
    { function = 3, at = 40, values = [7, 8] },
    { function = 4, at = 41, values = [99] },
]
[identity]
maker = "Acme"
models = ["Meter 1"]
brand_origin = "TW"
description = "A meter"
[transport]
kind = "modbus"
[timing]
cadence_s = 10.0
"""


@pytest.fixture
def meter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Install an integrator's driver whose profile has a fingerprint."""
    name = f"scanned_meter_{tmp_path.name.replace('-', '_')}"
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").touch()
    (tmp_path / name / "profile.toml").write_text(METER)
    about = tmp_path / "scanned_meter-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: scanned-meter\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[onestreet.drivers]\nscanned_meter = {name}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    registry._packages.cache_clear()
    registry.load.cache_clear()
    yield "scanned_meter"
    registry._packages.cache_clear()
    registry.load.cache_clear()


@pytest.mark.parametrize("tcp", [False, True])
def test_units_that_answer_are_listed_and_named_by_their_fingerprint(
    tcp: bool,
    meter: str,
    modbus_line: Callable[..., Any],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    tables = [
        Table(2, {0: 230, 40: 8, 41: 99}),
        Table(3, {0: 230, 40: 8, 41: 98}),  # not quite
        Table(5, {40: 7, 41: 99}),  # refuses register 0, and so is there
        Table(9, {0: 1}),  # beyond what is asked
    ]
    endpoint = modbus_line(*tables, tcp=tcp)
    place = f"{endpoint['host']}:{endpoint['port']}" if tcp else endpoint["port"]
    document = scan(capsys, "--tcp" if tcp else "--rtu", place, "--units", "1-6")
    bus = only(document)
    assert bus["outcome"] == "found"
    assert [unit["unit"] for unit in bus["units"]] == [2, 3, 5]
    assert "exception 2" in bus["units"][2]["answer"]
    assert [(one["driver"], one["settings"]) for one in bus["devices"]] == [
        (meter, {"unit": 2}),
        (meter, {"unit": 5}),
    ]
    assert tables[3].asked == []
    assert [table.written for table in tables] == [[], [], [], []]
    asked = [one for table in tables for one in table.asked]
    assert all(function in (3, 4) and count == 1 for function, _, count in asked)
    assert len(asked) <= 3 * 3, "bounded: one read, and one for each fingerprint"
    text = document["toml"].replace('domain = ""', 'domain = "power"')
    config = filled_in({"toml": text}, tmp_path)
    assert [device.settings["unit"] for device in config.device] == [2, 5]
    tables_read = tomllib.loads(text)
    assert tables_read["bus"][0]["kind"] == ("modbus-tcp" if tcp else "modbus-rtu")
    assert "# unit 站號 3:" in text


def test_a_gateways_lamps_answer_and_are_not_written_to(
    modbus_line: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    truths: list[Mapping[str, Value]] = []
    lamps = [
        load("intesis_dali").twin({"unit": 4, "short_address": n}, dict, truths.append)
        for n in range(3)
    ]
    port = modbus_line(*lamps)["port"]
    assert main(["edge", "scan", "--rtu", port, "--units", "3-5"]) == 0
    said = capsys.readouterr().out
    assert "unit 站號 4: answers 有回應: exception 2" in said
    assert "unit 站號 3" not in said
    assert truths == []
    assert "intesis_dali" in said.partition("# unit 站號 4")[2]


def test_answers_that_cannot_be_read_are_no_device(
    serial_line: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    port = serial_line(Babbler(answer=b"\x01\x03\x02\x00\x05\xff\xff"))
    bus = only(scan(capsys, "--rtu", port, "--units", "1-2", "--timeout", "0.2", "--limit", "60"))
    assert bus["outcome"] == "unknown"
    assert "garbled" in bus["detail"]
    assert bus["units"] == []


def test_a_sweep_ends_in_time_and_says_what_it_left_out(
    modbus_line: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    port = modbus_line(Table(200, {0: 1}))["port"]
    document = scan(
        capsys,
        "--rtu",
        port,
        "--units",
        "1-247",
        "--timeout",
        "0.2",
        "--limit",
        "1",
        "--parity",
        "N",
    )
    assert only(document)["outcome"] == "silent"
    assert "time is up" in only(document)["detail"]


def test_a_device_that_answers_for_every_unit_is_one(
    bench: Bench, meter: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while request := await reader.read(12):
                value = {40: 7, 41: 99}.get(request[9], 0)
                writer.write(request[:4] + b"\0\5" + request[6:8] + bytes((2, 0, value)))
        finally:
            writer.close()

    @asynccontextmanager
    async def serving() -> AsyncIterator[int]:
        async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
            yield server.sockets[0].getsockname()[1]

    port = bench.enter(serving)
    bus = only(scan(capsys, "--tcp", f"127.0.0.1:{port}", "--units", "5-20"))
    assert [unit["unit"] for unit in bus["units"]] == [5]
    assert "every unit" in bus["units"][0]["answer"]
    assert [device["settings"] for device in bus["devices"]] == [{"unit": 5}]


def test_a_server_that_this_machine_is_connected_to_is_left_alone(
    modbus_line: Callable[..., Any], bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    table = Table(1, {0: 1})
    endpoint = modbus_line(table, tcp=True)
    host, port = endpoint["host"], endpoint["port"]
    bench.enter(lambda: open_modbus_tcp(host, port=port))
    bus = only(scan(capsys, "--tcp", f"{host}:{port}", status=1))
    assert bus["outcome"] == "in use"
    assert table.asked == []


def test_a_server_that_is_not_there_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, and listens to nobody
        port = taken.getsockname()[1]
        bus = only(scan(capsys, "--tcp", f"127.0.0.1:{port}", status=1))
    assert bus["outcome"] == "failed"


# ------------------------------------------------------------------------------------------------------------- BLE


def sensor(address: str, world: Mapping[str, Value], **settings: str) -> Any:
    return load("bthome").twin({"address": address, **settings}, lambda: world, lambda _: None)


def old_sensor() -> Peripheral:
    data = {"0000fcd2-0000-1000-8000-00805f9b34fb": b"\x20\x02\xca\x09"}
    return Peripheral(OLD, "Old", {}, service_data=data, period_s=0.2)


@pytest.fixture
def street(bluez: BluezBench) -> BluezBench:
    """Bring three sensors and four strangers into reach."""
    bluez.add(sensor(BAY, {"occupied": True, "distance": 0.31, "battery_voltage": 3.05}))
    bluez.add(sensor(SEALED, {"occupied": False}, bindkey=BINDKEY))
    bluez.add(sensor(CLIMATE, {"temperature": 27.4, "humidity": 78}))
    bluez.add(old_sensor())
    for index, address in enumerate(STRANGERS[:-1]):
        advert: dict[str, Any] = (
            {"manufacturer_data": {0x004C: bytes((0x10, 5, index))}}
            if index % 2
            else {"service_data": {"0000fd6f-0000-1000-8000-00805f9b34fb": bytes((index,) * 8)}}
        )
        bluez.add(Peripheral(address, f"Phone {index}", {}, period_s=0.2, **advert))
    return bluez


def test_sensors_on_the_air_are_named_and_strangers_counted(
    street: BluezBench, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    document = scan(capsys, "--ble", "--listen", "6")
    bus = only(document)
    assert bus["outcome"] == "found"
    by_address = {one["settings"]["address"]: one for one in bus["devices"]}
    assert by_address.keys() == {BAY, SEALED, CLIMATE}
    assert by_address[BAY]["domain"] == "parking"
    assert by_address[BAY]["said"]["distance"] == 0.31
    assert by_address[CLIMATE]["domain"] == "weather"
    assert by_address[SEALED]["settings"]["bindkey_file"]
    assert bus["strangers"] >= len(STRANGERS)
    strengths = [one["rssi_dbm"] for one in bus["devices"]]
    assert strengths == sorted(strengths, reverse=True), "the nearest first"
    text = document["toml"].replace('domain = ""', 'domain = "parking"')
    key = tmp_path / "bindkey"
    key.write_text(BINDKEY)
    key.chmod(0o600)
    text = text.replace(by_address[SEALED]["settings"]["bindkey_file"], str(key))
    assert len(filled_in({"toml": text}, tmp_path).device) == 3


def test_a_sensor_that_its_driver_does_not_understand_is_a_stranger(
    bluez: BluezBench, capsys: pytest.CaptureFixture[str]
) -> None:
    bluez.add(old_sensor())
    assert main(["edge", "scan", "--ble", "--listen", "3", "--json"]) == 0
    said = capsys.readouterr().out
    bus = only(json.loads(said))
    assert (bus["outcome"], bus["devices"]) == ("unknown", [])
    assert bus["strangers"] > 0
    assert_untold(said)


def test_no_strangers_address_is_kept_or_told(
    street: BluezBench, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    environment = os.environ | {"HOME": str(home), "TMPDIR": str(home), "PYTHONPATH": str(ROOT)}
    program = "import logging, sys; logging.basicConfig(level=logging.DEBUG);"
    program += "from onestreet.cli import main; sys.exit(main())"
    scans = [
        subprocess.Popen(
            [sys.executable, "-c", program, "edge", "scan", "--ble", "--listen", "6", *form],
            cwd=home,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for form in ([], ["--json"])
    ]
    for one in scans:
        out, err = one.communicate(timeout=100)
        assert one.returncode == 0, err
        assert BAY in out
        assert_untold(out + err)
    kept = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path for path in kept if path.is_relative_to(home)] == [], "a scan writes no file"
    for path in kept:
        assert_untold(path.read_text(errors="replace"))


def assert_untold(text: str) -> None:
    for address in STRANGERS:
        for form in (address, address.replace(":", "_"), address.replace(":", "")):
            assert form.lower() not in text.lower()


def test_a_scan_in_this_process_logs_no_address(
    street: BluezBench, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    assert main(["edge", "scan", "--ble", "--listen", "3"]) == 0
    assert_untold(caplog.text)
    assert BAY not in caplog.text
    said = capsys.readouterr().out
    assert_untold(said)
    assert "other adverts, counted and forgotten 其他廣播僅計數" in said


def test_no_radio_is_said(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", f"unix:path={tmp_path}/nowhere")
    bus = only(scan(capsys, "--ble", "--listen", "1", status=1))
    assert bus["outcome"] == "failed"
    # nobody named it: then it is no failure that there is none
    monkeypatch.setattr("edge_agent.scan.found_ports", list)
    assert only(scan(capsys, "--listen", "1"))["kind"] == "ble"
