"""The edge's benchmarks measure what they say, in small: real agent, real broker, lines that take their time."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import pytest

from benchmarks import bus, edge_drain, flash, footprint, meters, tags, transactions
from benchmarks.cabinet import Street
from benchmarks.paced_line import (
    BITS_PER_CHARACTER,
    GAP_CHARACTERS,
    REQUEST_BYTES,
    TURNAROUND_S,
    PacedLine,
    Slave,
)
from benchmarks.pollers import Onestreet
from benchmarks.processes import until
from benchmarks.register_maps import register_maps
from device_drivers.errors import DeviceSilent
from device_drivers.kit.register_table import read_request
from device_drivers.links.modbus import open_modbus_rtu

BAUD = 9600


async def test_a_line_takes_its_time_and_a_dead_slave_says_nothing(tmp_path: Path) -> None:
    slave = Slave(3, meters.registers(3, 5))
    async with (
        PacedLine(tmp_path / "tty", [slave], baud=BAUD) as line,
        open_modbus_rtu(str(line.port), baudrate=BAUD, timeout_s=2.0) as link,
    ):
        began_s = time.monotonic()
        found = await link.read_holding(3, 0, 10)
        characters = REQUEST_BYTES + GAP_CHARACTERS + 3 + 2 * 10 + 2
        least_s = characters * BITS_PER_CHARACTER / BAUD + TURNAROUND_S
        assert time.monotonic() - began_s >= least_s
        assert b"".join(each.to_bytes(2) for each in found) == slave.registers
        assert len(slave.asked_s) == 1
        slave.alive = False
        with pytest.raises(DeviceSilent):
            await link.read_holding(3, 0, 10)
        assert len(slave.asked_s) == 2
        assert (line.requests, line.broken) == (2, 0)


async def test_a_request_without_silence_before_it_is_lost_on_everybody(tmp_path: Path) -> None:
    slave = Slave(3, meters.registers(3, 5))
    async with PacedLine(tmp_path / "tty", [slave], baud=300) as line:
        port = os.open(line.port, os.O_RDWR | os.O_NOCTTY)
        try:
            os.write(port, read_request(3, meters.FUNCTION, 0, 10))
            await until(lambda: line.busy_s, "the first is on the line")
            os.write(port, read_request(3, meters.FUNCTION, 0, 10))
            await until(lambda: line.lost, "the second met it")
            await until(lambda: line.requests, "the first is at the slaves")
            assert (line.requests, line.lost, line.broken) == (1, 1, 0)
        finally:
            os.close(port)


async def test_a_bus_with_dead_devices_is_held_against_its_grid_and_they_come_back() -> None:
    plan = bus.Plan(slaves=4, baud=57_600, interval_s=1.0, timeout_s=0.2, seconds=4.0, dead=(0, 2))
    runs = await bus.measure(plan, [Onestreet()])
    assert [(run.dead, len(run.revived_s)) for run in runs] == [(0, 0), (2, 2)]
    for run in runs:
        assert run.polls + run.missed >= (plan.slaves - run.dead) * 2
        assert run.polls
        assert 0 <= run.p50_ms <= run.p99_ms <= run.max_ms
    assert max(runs[1].revived_s) < 120
    assert "dead" in bus.table(runs)


async def test_values_are_polled_and_published_and_the_polling_alone_is_measured_too() -> None:
    plan = tags.Plan(tags=100, block=60, seconds=2.0, warm_s=1.0, kept=1.0)
    found = await tags.measure(plan, rounds=1, pollers=[Onestreet(), Onestreet(discarding=True)])
    assert [run.poller for run in found.runs] == ["onestreet", "onestreet, discarding"]
    assert all(run.requests_per_s > 0 for run in found.runs)
    assert "CPU µs/value" in tags.table(found)


async def test_joined_requests_are_counted_on_the_line() -> None:
    maps = register_maps()
    device = "DFRobot URM14"
    found = await transactions.measure({device: maps[device]})
    assert [(count.way, count.transactions) for count in found] == [
        ("value by value", 4),
        ("neighbours", 2),
        ("over gaps", 1),
    ]
    assert {count.values for count in found} == {4}
    assert device in transactions.table(found)


async def test_a_cabinets_memory_start_and_imports_are_measured() -> None:
    street = Street(lamps=2, bays=1, air=1, interval_s=1.0)
    found = await footprint.measure(0.5, starts=1, streets={"all three buses": street})
    assert [one.module for one in found.imports] == ["python", *footprint.MODULES]
    (memory,) = found.memory
    assert memory.devices == 4
    assert 5 < memory.first_mb <= memory.peak_mb
    assert found.first_sample_s["all three buses"][0] > 0
    assert "resident MB" in footprint.table(found)


async def test_what_is_written_is_counted_while_connected_and_in_an_outage(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(flash, "_STEADY_S", 1.0)  # a part of the outage is enough here
    street = Street(lamps=2, bays=0, air=1, interval_s=0.5)
    found = await flash.measure(2.0, stages=["disk"], street=street)
    assert [run.connected for run in found] == [True, False]
    assert all(run.samples > 0 and run.payload_bytes > 0 for run in found)
    assert "written : payload" in flash.table(found)


async def test_a_process_that_writes_is_seen_to(tmp_path: Path) -> None:
    before = flash.written_bytes(os.getpid())
    await asyncio.to_thread(_write_durably, tmp_path / "file", 1 << 20)
    assert flash.written_bytes(os.getpid()) - before >= 1 << 20


def _write_durably(file: Path, size: int) -> None:
    with file.open("wb") as output:
        output.write(bytes(size))
        output.flush()
        os.fsync(output.fileno())


@pytest.mark.parametrize("into", edge_drain.INTO)
async def test_an_outage_drains_beside_live_samples(
    into: edge_drain.Into,
) -> None:
    plan = edge_drain.Plan(samples=3000, devices=10, live=2, seconds=2.0)
    (found,) = await edge_drain.measure(plan, [into])
    assert (found.into, found.backlog) == (into, 3000)
    assert found.samples_per_s > 0
    assert 0 < found.alone.p50_ms <= found.alone.p99_ms <= found.alone.max_ms
    assert "live during" in edge_drain.table([found])
