"""The demo: seconds from the command to the first stored sample, seen from outside in its SQLite file."""

from __future__ import annotations

import sqlite3
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from statistics import median

import msgspec

from benchmarks.processes import BenchmarkFailed, Process

SECONDS = 5
DOMAINS = frozenset({"air", "parking", "streetlight"})
DEADLINE_S = 120.0
_END_DEADLINE_S = 240.0  # the drain has a deadline of its own, this is above it


class FirstSample(msgspec.Struct, frozen=True):
    """Seconds from the command, run by run; `all_buses_s` until each of the three buses had a row."""

    first_s: list[float]
    all_buses_s: list[float]


async def measure(runs: int) -> FirstSample:
    """Run the demo several times. Raises: BenchmarkFailed when one of them is not clean."""
    command = Path(sys.executable).with_name("onestreet")
    found = FirstSample([], [])
    for _ in range(runs):
        with tempfile.TemporaryDirectory(prefix="onestreet-bench-") as name:
            folder = Path(name)
            store = folder / "run" / "town.sqlite"
            report = folder / "report.json"
            options = ["--seconds", str(SECONDS), "--report", report, "--folder", store.parent]
            began_s = time.monotonic()
            async with Process([command, "demo", *map(str, options)], folder / "log") as demo:
                await demo.until(lambda: domains(store), "a sample", deadline_s=DEADLINE_S)  # noqa: B023 - awaited
                found.first_s.append(time.monotonic() - began_s)
                await demo.until(lambda: domains(store) >= DOMAINS, "all buses")  # noqa: B023 - awaited
                found.all_buses_s.append(time.monotonic() - began_s)
                await ended_well(demo)
        print(f"first-sample: {found.first_s[-1]:.2f} s", file=sys.stderr, flush=True)
    return found


def domains(store: Path) -> frozenset[str]:
    """Return the domains of which a store has samples; none as long as there is no store."""
    if not store.exists():
        return frozenset()
    query = "SELECT DISTINCT measurement FROM points"
    try:
        with closing(sqlite3.connect(f"file:{store}?mode=ro", uri=True)) as reader:
            return DOMAINS & {row[0] for row in reader.execute(query)}
    except sqlite3.OperationalError:  # its tables are being made
        return frozenset()


def has_row(store: Path, device: str) -> bool:
    """Whether a store has a sample of a device."""
    if not store.exists():
        return False
    query = "SELECT 1 FROM points WHERE device = ? LIMIT 1"
    try:
        with closing(sqlite3.connect(f"file:{store}?mode=ro", uri=True)) as reader:
            return reader.execute(query, (device,)).fetchone() is not None
    except sqlite3.OperationalError:  # its tables are being made
        return False


async def ended_well(demo: Process) -> None:
    """Wait for the audit. Raises: BenchmarkFailed unless nothing was lost and nothing came twice."""
    await demo.until(lambda: demo.ended is not None, "the audit", deadline_s=_END_DEADLINE_S)
    if demo.ended:
        raise BenchmarkFailed(f"the demo ended with {demo.ended}\n{demo.tail}")


def table(found: FirstSample) -> str:
    """Return the figures for people."""
    lines = [f"{len(found.first_s)} runs, seconds from the command, median (lowest – highest)"]
    for title, values in (
        ("first stored sample", found.first_s),
        ("a sample of every bus", found.all_buses_s),
    ):
        lines.append(f"{title:26}{median(values):.2f} ({min(values):.2f} – {max(values):.2f})")
    return "\n".join(lines)
