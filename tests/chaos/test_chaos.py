"""Two minutes of chaos with a fixed seed: everything real, every kind of fault once, nothing lost and nothing twice."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from exchange.runtime import end_with_parent
from tests.chaos.plan import TRACKS
from tests.influx import influxd

SEED, MINUTES, WORKERS = 3, 2.0, 2
LIMIT_S = 900


@pytest.mark.timeout(LIMIT_S + 30)
def test_two_minutes_of_faults_lose_and_double_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.chaos", "--folder", str(tmp_path)]
    options = {"seed": SEED, "minutes": MINUTES, "workers": WORKERS}
    done = subprocess.run(
        [*command, *(f"--{name}={value}" for name, value in options.items())],
        env={**os.environ, "ONESTREET_INFLUXD": influxd()},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        preexec_fn=end_with_parent,
        check=False,
    )
    print(done.stdout)  # noqa: T201 - shown by pytest when the test fails
    assert done.returncode == 0, f"seed {SEED}:\n{done.stdout}\n{done.stderr}"
    report = msgspec.json.decode((tmp_path / "report.json").read_bytes())
    assert report["wrong"] == []
    assert report["load"]["taken"] > 10_000
    assert report["load"]["refused"] > 10
    assert report["street"]["rows"] > 500
    kinds = {kind.name for track in TRACKS.values() for kind in track}
    assert {done["fault"]["kind"] for done in report["faults"]} == kinds
