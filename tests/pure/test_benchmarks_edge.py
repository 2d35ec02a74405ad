"""The edge's benchmarks: a poll is held against the right time of its grid, and meters are drivers like others."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from benchmarks import edge_drain, meters, transactions
from benchmarks.bus import Plan, grid_s, held
from benchmarks.register_maps import register_maps
from benchmarks.tags import Plan as TagsPlan
from device_drivers.kit.requests import requests, wanted

SCRIPT = Path(__file__).parents[2] / "scripts" / "install_thingsboard_gateway.sh"


@pytest.mark.parametrize("asked_s", [[100.0, 110.3, 120.1], [110.3, 100.0, 120.1], [109.9, 110.1]])
def test_a_grid_has_the_earliest_phase_that_was_seen(asked_s: list[float]) -> None:
    anchor_s = grid_s(asked_s, 10.0)
    phases = [(each - anchor_s + 1e-9) % 10 for each in asked_s]
    assert min(phases) < 1e-6
    assert max(phases) < 1.0


def test_polls_are_late_by_their_own_time_of_the_grid() -> None:
    found = held([105.2, 115.0, 124.9, 137.0], 5.0, 10.0, from_s=100.0, to_s=145.0)
    assert [round(each, 3) for each in found.late_s] == [0.2, 0.0, 0.0, 2.0]
    assert found.missed == 0 == held([], 5.0, 10.0, 100.0, 110.0).missed


def test_what_was_not_polled_in_its_interval_was_missed() -> None:
    found = held([105.0, 105.1, 133.0], 5.0, 10.0, from_s=100.0, to_s=145.0)
    assert found.missed == 2
    assert [round(each, 3) for each in found.late_s] == [0.0, 8.0]
    assert held([], 5.0, 10.0, from_s=100.0, to_s=145.0).missed == 4


def test_the_dead_are_spread_over_the_addresses() -> None:
    plan = Plan()
    assert [len(plan.dead_units(count)) for count in (1, 5, 16, 32)] == [1, 5, 16, 32]
    assert plan.dead_units(32) == set(plan.units)
    assert sorted(plan.dead_units(16)) == list(range(1, 33, 2))


def test_values_of_all_meters_are_as_many_as_asked_for() -> None:
    plan = TagsPlan(tags=5000, block=60)
    assert sum(plan.meters.values()) == 5000
    assert set(plan.meters.values()) == {60, 20}
    assert set(TagsPlan(tags=120, block=60).meters.values()) == {60}


def test_meters_are_found_and_decoded_as_any_driver(tmp_path: Path) -> None:
    environment = meters.install(tmp_path / "drivers", [3, 60, 3])
    frame = struct.pack(">BBB", 7, meters.FUNCTION, 12) + meters.registers(7, 3)
    code = (
        "import json, sys\n"
        "from device_drivers.kit.register_table import crc16\n"
        "from device_drivers.kit.registry import load\n"
        "frame = bytes.fromhex(sys.argv[2])\n"
        "frame += crc16(frame).to_bytes(2, 'little')\n"
        "(reading,) = load(sys.argv[1]).decode([frame], {})\n"
        "print(json.dumps(reading.metrics))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, meters.driver_id(3), frame.hex()],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    values = struct.unpack(">3f", meters.registers(7, 3))
    assert json.loads(done.stdout) == {meters.tag(n): value for n, value in enumerate(values)}


@pytest.mark.parametrize("device", sorted(register_maps()))
def test_a_map_is_read_whole_in_every_way_and_joining_saves_requests(device: str) -> None:
    profile = register_maps()[device]
    counts = []
    for each in transactions.ways(profile).values():
        blocks = requests(each)
        assert all(any(block.holds(point) for block in blocks) for point in wanted(profile))
        counts.append(len(blocks))
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] < counts[0]


def test_an_outage_is_a_day_of_every_device_in_order() -> None:
    plan = edge_drain.Plan(samples=950, devices=10)
    taken = list(plan.readings(now_ms=1_790_000_000_000))
    assert len(taken) == plan.backlog == 950
    for name in plan.names:
        times = [one.time_ms or 0 for one in taken if one.device == name]
        assert len(times) == 95
        assert all(after > before for before, after in pairwise(times))
        assert times[-1] < 1_790_000_000_000
        assert times[0] >= 1_790_000_000_000 - 86_400_000


def test_what_is_not_thingsboards_gateway_is_named(tmp_path: Path) -> None:
    done = subprocess.run(
        ["sh", str(SCRIPT)],
        env={"THINGSBOARD_GATEWAY": str(tmp_path), "HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "is no virtual environment with thingsboard-gateway" in done.stderr
