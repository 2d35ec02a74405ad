"""Two minutes of chaos with a fixed seed: everything real, every kind of fault once, nothing lost and nothing twice."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import psutil
import pytest

from exchange.runtime import end_with_parent
from tests.agents import until
from tests.chaos.plan import TRACKS
from tests.influx import influxd

SEED, MINUTES, WORKERS = 3, 2.0, 2
LIMIT_S = 900
UP_S, GONE_S = 60.0, 10.0


def harness(folder: Path, *options: str) -> subprocess.Popen[str]:
    """Start the harness in a process of its own, as `make chaos` does."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.chaos", "--folder", str(folder), *options],
        env={**os.environ, "ONESTREET_INFLUXD": influxd()},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=end_with_parent,
    )


@pytest.mark.timeout(LIMIT_S + 30)
def test_two_minutes_of_faults_lose_and_double_nothing(tmp_path: Path) -> None:
    options = [f"--seed={SEED}", f"--minutes={MINUTES}", f"--workers={WORKERS}"]
    with harness(tmp_path, *options) as run:
        try:
            said, _ = run.communicate(timeout=LIMIT_S)
        finally:
            run.kill()
    assert run.returncode == 0, f"seed {SEED}:\n{said}"
    report = msgspec.json.decode((tmp_path / "report.json").read_bytes())
    assert report["wrong"] == []
    assert report["load"]["taken"] > 10_000
    assert report["load"]["refused"] > 10
    assert report["street"]["rows"] > 500
    assert report["memory"]["outages"], "the memory of ingest was in no outage looked at"
    kinds = {kind.name for track in TRACKS.values() for kind in track}
    assert {done["fault"]["kind"] for done in report["faults"]} == kinds


async def test_a_harness_that_is_killed_leaves_nothing_behind(tmp_path: Path) -> None:
    """The kernel ends every process of the run, and with them its links and disks."""
    before = _links_and_mounts(tmp_path)
    with harness(tmp_path) as run:
        try:
            await until((tmp_path / "agent.log").exists, UP_S)
            started = psutil.Process(run.pid).children(recursive=True)
        finally:
            run.kill()
    assert len(started) > 5
    await until(lambda: not any(one.is_running() for one in started), GONE_S)
    assert _links_and_mounts(tmp_path) == before


def _links_and_mounts(folder: Path) -> tuple[set[str], list[str]]:
    """Return those of the machine, but for what a test beside this one has mounted in a folder of its own."""
    links = {link.name for link in Path("/sys/class/net").iterdir()}
    tests = folder.parents[1]
    mounts = [
        line
        for line in Path("/proc/self/mounts").read_text().splitlines()
        if (place := Path(line.split()[1])).is_relative_to(folder)
        or not place.is_relative_to(tests)
    ]
    return links, mounts
