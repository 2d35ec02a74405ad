"""The agent judges, withholds and is left alone by a scan: on simulated buses and a real Mosquitto."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from device_drivers.kit.driver import Value
from device_drivers.kit.registry import load
from edge_agent.report_by_exception import WITHHELD_FILE
from onestreet.cli import main
from tests.agents import air, lamp, running_agent, until, witness, write_config
from tests.brokers import Mosquitto

LEVELS = [50, 51, 50, 50, 56, 57, 56, 62, 62, 62]
Hosts = Callable[..., Any]


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    with Mosquitto(tmp_path) as one:
        yield one


async def test_what_is_taken_is_reported_or_withheld(
    broker: Mosquitto, modbus_line: Hosts, tmp_path: Path
) -> None:
    levels = itertools.cycle(LEVELS)
    truths: list[Mapping[str, Value]] = []
    twin = load("intesis_dali").twin(
        {"short_address": 1}, lambda: {"level": next(levels)}, truths.append
    )
    bus = {"id": "rs485", "kind": "modbus-rtu", "port": modbus_line(twin)["port"]}
    report = {"*": {"deadband": 3, "heartbeat_s": 120}}
    path = write_config(tmp_path, broker, [bus], [lamp("rs485", 1, report=report)])
    path.write_text(path.read_text(encoding="utf-8") + "\n[report]\naudit = true\n", "utf-8")

    async with witness(broker) as one, running_agent(path) as agent:
        reporter = agent.devices["lamp-1"].reporter
        await until(lambda: reporter.withheld >= 20)
        await until(lambda: len(one.of("lamp-1")) >= 4)
        await until(lambda: "lamp-1" in one.states)
        state = one.states["lamp-1"]
    assert state.interval_s == 120, "the watch must not miss what is withheld"
    assert set(state.descriptor.metrics.values()) == {120}

    lines = (tmp_path / "state" / WITHHELD_FILE).read_text(encoding="utf-8").splitlines()
    withheld = [json.loads(line) for line in lines]
    samples = one.of("lamp-1")
    assert reporter.taken == len(samples) + len(withheld)
    assert (reporter.reported, reporter.withheld) == (len(samples), len(withheld))
    assert {line["reason"] for line in withheld} == {"unchanged", "deadband"}
    told = [(line["time_ms"], line["metrics"]) for line in withheld]
    told += [(sample.time_ms, sample.metrics) for sample in samples]
    said = [metrics for _, metrics in sorted(told, key=lambda pair: pair[0])]
    assert said == truths[: len(said)]
    assert len(truths) - len(said) <= 1, "but for an answer that came when all was over"
    assert [sample.metrics["level"] for sample in samples][:4] == [50, 56, 62, 50]


async def test_what_is_doubtful_is_marked_and_stored(
    broker: Mosquitto, serial_line: Hosts, tmp_path: Path
) -> None:
    twin = load("plantower_pms").twin({}, lambda: {"pm2_5": 1400, "pm10": 1500}, lambda _: None)
    bus = {"id": "tty", "kind": "serial", "port": serial_line(twin)}
    limits = {"pm10": {"max": 1200}}
    path = write_config(tmp_path, broker, [bus], [air("tty", 1, limits=limits)])
    async with witness(broker) as one, running_agent(path):
        await until(lambda: one.of("air-1"))
    sample = one.of("air-1")[0]
    assert sample.metrics["pm2_5"] == 1400
    marks = set(sample.quality.split(";"))
    assert {"uncertain:warmup", "bad:range(pm2_5)", "uncertain:range(pm10)"} <= marks
    assert "uncertain:saturated(pm2_5)" in marks, "what the driver says stays"
    assert len(marks) == sample.quality.count(";") + 1


async def test_a_running_agents_buses_are_left_alone_by_a_scan(
    broker: Mosquitto,
    serial_line: Hosts,
    modbus_line: Hosts,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    dust = load("plantower_pms").twin({}, lambda: {"pm2_5": 12}, lambda _: None)
    lamps = [
        load("intesis_dali").twin({"short_address": n}, lambda: {"level": 40}, lambda _: None)
        for n in (1, 2)
    ]
    tty, rtu = serial_line(dust), modbus_line(lamps[0])["port"]
    server = modbus_line(lamps[1], tcp=True)
    buses = [
        {"id": "tty", "kind": "serial", "port": tty},
        {"id": "rtu", "kind": "modbus-rtu", "port": rtu},
        {"id": "tcp", "kind": "modbus-tcp", "host": server["host"], "port": server["port"]},
    ]
    devices = [air("tty", 1), lamp("rtu", 1), lamp("tcp", 2)]
    path = write_config(tmp_path, broker, buses, devices)
    place = f"{server['host']}:{server['port']}"
    words = ["edge", "scan", "--serial", tty, "--rtu", rtu, "--tcp", place, "--json"]
    async with witness(broker) as one, running_agent(path) as agent:
        await until(lambda: all(one.of(name) for name in ("air-1", "lamp-1", "lamp-2")))
        status = await asyncio.to_thread(main, words)
        before = {name: len(one.of(name)) for name in ("air-1", "lamp-1", "lamp-2")}
        await until(lambda: all(len(one.of(name)) > count for name, count in before.items()))
        assert [attended.health.failing for attended in agent.devices.values()] == [None] * 3
    looked = json.loads(capsys.readouterr().out)["buses"]
    assert status == 1
    assert [bus["outcome"] for bus in looked] == ["in use"] * 3
