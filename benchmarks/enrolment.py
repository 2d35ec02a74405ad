"""A new gateway: seconds from `gateway add` to its first stored sample, every step a command as people type it.

The office's broker, ingest and enrolment service are running. A run: the gateway is added, gets its
code, enrols with it, its one air box is configured, the agent starts, and the clock stops when the
air box's first row can be read from the store. What people need to type and to climb is not in it.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import cast

import msgspec

from benchmarks.first_sample import has_row
from benchmarks.processes import BenchmarkFailed, Process
from device_drivers.kit.driver import Value
from device_drivers.kit.registry import load
from device_drivers.kit.twin import SerialTwin
from simulators.serial_line import SerialLine
from tests.enrolments import COUNTY, ONESTREET, Bureau, command

_AIR: dict[str, Value] = {"pm1": 7.0, "pm2_5": 11.0, "pm10": 18.0}
_BY_THE_KERNEL = 'synchronised = "kernel"'  # which on a machine without NTP means to wait


class Enrolment(msgspec.Struct, frozen=True):
    """Seconds from `gateway add`, run by run, until each step was done."""

    added_s: list[float]
    coded_s: list[float]
    enrolled_s: list[float]
    stored_s: list[float]


async def measure(runs: int) -> Enrolment:
    """Add as many gateways, one after the other. Raises: BenchmarkFailed."""
    found = Enrolment([], [], [], [])
    with tempfile.TemporaryDirectory(prefix="onestreet-bench-") as name:
        folder = Path(name)
        bureau = Bureau(folder)
        async with bureau.running(), bureau.serving():
            for number in range(1, runs + 1):
                await _one(bureau, folder / f"box-{number}", f"new-{number}", found)
                print(f"enrolment: {found.stored_s[-1]:.2f} s", file=sys.stderr, flush=True)
    return found


async def _one(bureau: Bureau, box: Path, gateway: str, found: Enrolment) -> None:
    """Bring one gateway from nothing to its first sample."""
    name, office = f"{COUNTY}/{gateway}", ["--into", str(bureau.folder)]
    # The registry knows what kind of twin a driver has only when it has loaded it.
    twin = cast("SerialTwin", load("plantower_pms").twin({}, lambda: _AIR, lambda _: None))
    async with SerialLine(twin, Path(f"{box}.tty")) as line:
        began_s = time.monotonic()
        await _done("town", "gateway", "add", name, "--site", "street", "--enrol", *office)
        found.added_s.append(time.monotonic() - began_s)
        address = ["--address", bureau.address]
        said = await _done("town", "gateway", "code", name, *address, *office)
        found.coded_s.append(time.monotonic() - began_s)
        code = next(row for row in said.splitlines() if row.startswith(bureau.address.upper()))
        state = ["--state-dir", str(box / "state")]
        await _done("edge", "enrol", "--into", str(box), *state, typed=code)
        found.enrolled_s.append(time.monotonic() - began_s)
        _configure(box / "edge.toml", gateway, line.port)
        argv = [*ONESTREET, "edge", "run", str(box / "edge.toml")]
        async with Process(argv, Path(f"{box}.log")) as agent:
            await agent.until(lambda: has_row(bureau.store, f"air-{gateway}"), "a sample")
            found.stored_s.append(time.monotonic() - began_s)


async def _done(*words: str, typed: str = "") -> str:
    said = await command(*words, typed=typed)
    if said.status:
        raise BenchmarkFailed(f"onestreet {' '.join(words)} ended with {said.status}\n{said.err}")
    return said.out


def _configure(config: Path, gateway: str, port: str) -> None:
    """Put the air box in, as an installer does."""
    text = config.read_text(encoding="utf-8")
    if _BY_THE_KERNEL not in text:
        raise BenchmarkFailed(f"{config} is not as `edge enrol` writes it")
    tables = f"""
[[bus]]
id = "air"
kind = "serial"
port = "{port}"

[[device]]
id = "air-{gateway}"
domain = "air"
driver = "plantower_pms"
bus = "air"
interval_s = 1.0
"""
    config.write_text(
        text.replace(_BY_THE_KERNEL, 'synchronised = "assumed"') + tables, encoding="utf-8"
    )


def table(found: Enrolment) -> str:
    """Return the figures for people."""
    lines = [f"{len(found.stored_s)} runs, seconds from `gateway add`, median (lowest – highest)"]
    for title, values in (
        ("gateway added", found.added_s),
        ("code made", found.coded_s),
        ("enrolled", found.enrolled_s),
        ("first stored sample", found.stored_s),
    ):
        lines.append(f"{title:26}{median(values):.2f} ({min(values):.2f} – {max(values):.2f})")
    return "\n".join(lines)
