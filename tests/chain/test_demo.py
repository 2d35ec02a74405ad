"""The whole path: town, agent, broker, ingest, store; what the store holds is what the twins know they sent."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from onestreet.demo.audit import Audit
from onestreet.demo.run import Demo, Kill
from simulators.plan import street_plan
from tests.influx import Influx

AGENT = (sys.executable, "-m", "edge_agent")
MUTANT = str(Path(__file__).with_name("mutant_agent.py"))
ONESTREET = (sys.executable, "-m", "onestreet.cli", "demo")


async def run_demo(folder: Path, seconds: float, **changes: Any) -> Audit:
    """Run a small town: two lamps, two bays (one encrypted), an air box."""
    plan = street_plan(7, lamps=2, bays=2, air=1, speed=60)
    return await Demo(plan, folder, **changes).run(asyncio.Event(), seconds)


def test_the_command_writes_a_report_and_loses_nothing(tmp_path: Path) -> None:
    report = tmp_path / "audit.json"
    ended = subprocess.run(
        [*ONESTREET, "--seconds", "6", "--report", report, "--folder", tmp_path / "demo"],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    audit = json.loads(report.read_bytes())
    assert {"taken", "stored", "refused", "lost", "duplicate", "devices"} <= audit.keys()
    assert audit["taken"] == audit["stored"] > 0
    assert audit["refused"] == audit["lost"] == audit["duplicate"] == audit["in_hand"] == 0
    assert len(audit["devices"]) == 23
    assert all(device["stored"] > 0 for device in audit["devices"].values())
    assert "lost 0, duplicate 0" in ended.stdout


@pytest.mark.timeout(240)
async def test_killing_every_process_loses_nothing(tmp_path: Path) -> None:
    kills = [Kill("agent", 3), Kill("ingest", 7), Kill("broker", 10)]
    demo = Demo(street_plan(3, lamps=4, bays=4, air=2), tmp_path, kills=kills)
    audit = await demo.run(asyncio.Event(), 14)
    assert {name: child.restarts for name, child in demo.children.items()} == {
        "broker": 1,
        "ingest": 1,
        "agent": 1,
    }
    assert (audit.lost, audit.duplicate, audit.refused) == (0, 0, 0)
    assert audit.taken == audit.stored + audit.in_hand
    assert audit.in_hand <= len(audit.devices)
    assert audit.passed


@pytest.mark.parametrize(
    ("mutation", "lost", "duplicate"), [("skip", 1, 0), ("double", 0, 1), ("retime", 1, 1)]
)
async def test_an_agent_that_errs_in_one_sample_is_found_out(
    tmp_path: Path, mutation: str, lost: int, duplicate: int
) -> None:
    audit = await run_demo(tmp_path, 6, agent_argv=(sys.executable, MUTANT, mutation))
    assert (audit.lost, audit.duplicate) == (lost, duplicate)
    assert (audit.devices["air-001"].lost, audit.devices["air-001"].duplicate) == (lost, duplicate)
    assert not audit.passed


async def test_a_device_that_is_never_stored_fails_the_audit(tmp_path: Path) -> None:
    audit = await run_demo(tmp_path, 4, agent_argv=(sys.executable, MUTANT, "silence"))
    silent = audit.devices["air-001"]
    assert silent.stored == 0
    assert silent.lost == silent.taken > 0
    assert audit.duplicate == 0
    assert not audit.passed


async def test_a_real_influxdb_holds_the_same(
    tmp_path: Path, influx: Influx, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = influx.bucket()
    monkeypatch.setenv("INFLUX_TOKEN", bucket.token)
    audit = await run_demo(tmp_path, 5, store_url=bucket.url)
    assert audit.passed
    assert audit.taken == audit.stored > 0


def test_ctrl_c_drains_and_prints_the_audit(tmp_path: Path) -> None:
    with subprocess.Popen(
        [*ONESTREET, "--folder", tmp_path / "demo", "--lamps", "2", "--bays", "2", "--air", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as demo:
        deadline = 60
        truth = tmp_path / "demo" / "town" / "truth.jsonl"
        subprocess.run(
            ["sh", "-c", f"until [ -s {truth} ]; do sleep 0.1; done"], timeout=deadline, check=True
        )
        os.kill(demo.pid, signal.SIGINT)
        output, _ = demo.communicate(timeout=deadline)
    assert demo.returncode in (0, 1), output  # 1: a device had not spoken yet
    assert "lost 0, duplicate 0" in output
