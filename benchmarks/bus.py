"""A bus with dead devices on it: how late the living ones are polled, and how soon a revived one is read.

32 meters on one pair of RS-485 wires at 9600 baud (`paced_line`), each to be read every 10 s with a
time-out of 200 ms. Everything is seen from the meters: a poll is when the request's last bit is there.

A run: everybody answers for three intervals, which gives each meter the grid of its polls (the earliest
phase that it saw); then some fall silent, and the others' polls are held against their grids; then those
come back. One program at a time, with a line and a process for each number of dead meters.
"""

from __future__ import annotations

import asyncio
import math
import sys
import tempfile
import time
from collections.abc import Coroutine, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from statistics import median
from typing import NamedTuple

import msgspec

from benchmarks import meters
from benchmarks.paced_line import PacedLine, Slave
from benchmarks.pollers import Meters, Onestreet, Poller, Telegraf, ThingsBoard
from benchmarks.probes import percentile
from benchmarks.processes import BenchmarkFailed, Meter, Process, resident_mb
from benchmarks.receiver import Receiver
from benchmarks.stage import shipped_bounds
from tests.brokers import Mosquitto

DEAD = (0, 1, 5, 16)
TAGS = 5
_WARM_INTERVALS = 3
_EARLY = 0.15  # of an interval: a poll so much before its time still belongs to it
_FIRST_S = 120.0  # until every meter was polled once
_REVIVED_S = 150.0


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """The line, and for how long some of its meters are dead."""

    slaves: int = 32
    baud: int = 9600
    interval_s: float = 10.0
    timeout_s: float = 0.2
    seconds: float = 180.0
    dead: Sequence[int] = DEAD

    @property
    def units(self) -> range:
        """The meters' addresses."""
        return range(1, self.slaves + 1)

    def dead_units(self, count: int) -> set[int]:
        """Return those that die: spread over the addresses."""
        return {1 + number * self.slaves // count for number in range(count)}


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One program, so many dead meters. Units: lateness of the living meters' polls in ms."""

    poller: str
    dead: int
    polls: int
    missed: int
    """Times of the grid at which there was none."""
    p50_ms: float
    p99_ms: float
    max_ms: float
    revived_s: list[float]
    """From coming back to being asked; infinite when it did not happen."""
    lost: int
    """Requests that came while somebody spoke, or without the silence before them."""
    busy_percent: float
    """For how much of the time somebody spoke."""
    cpu_percent: float
    """Of one core."""
    resident_mb: float


class Held(NamedTuple):
    """A meter's polls against its grid."""

    late_s: list[float]
    missed: int


def grid_s(asked_s: Sequence[float], interval_s: float) -> float:
    """Return a time of the grid: the earliest phase of these polls."""
    first_s = asked_s[0]
    return first_s + min(
        (each_s - first_s + interval_s / 2) % interval_s - interval_s / 2 for each_s in asked_s
    )


def held(
    asked_s: Sequence[float], anchor_s: float, interval_s: float, from_s: float, to_s: float
) -> Held:
    """Hold polls against the times of a grid that lie, whole intervals, between two moments."""
    first = math.ceil((from_s - anchor_s) / interval_s + _EARLY)
    last = math.floor((to_s - anchor_s) / interval_s + _EARLY) - 1
    late_s: dict[int, float] = {}
    for each_s in asked_s:
        number = math.floor((each_s - anchor_s) / interval_s + _EARLY)
        if first <= number <= last:
            late_s.setdefault(number, max(0.0, each_s - anchor_s - number * interval_s))
    return Held(list(late_s.values()), max(0, last - first + 1) - len(late_s))


def everybody() -> list[Poller]:
    """Return those that are compared."""
    return [Onestreet(), Telegraf(), ThingsBoard()]


async def measure(plan: Plan, pollers: Sequence[Poller] | None = None) -> list[Run]:
    """Let everybody poll such a line, one after the other. Raises: BenchmarkFailed."""
    runs: list[Run] = []
    with tempfile.TemporaryDirectory(prefix="onestreet-bench-") as name:
        folder = Path(name)
        with Mosquitto(folder, shipped_bounds()) as broker:
            async with Receiver(broker.port) as receiver:
                for number, poller in enumerate(everybody() if pollers is None else pollers):
                    places = {dead: folder / f"run-{number}-dead-{dead}" for dead in plan.dead}
                    for place in places.values():
                        place.mkdir()
                    runs += await _at_once(
                        [
                            _run(poller, plan, dead, place, broker.port)
                            for dead, place in places.items()
                        ]
                    )
                    for run in runs[-len(places) :]:
                        print(_line(run), file=sys.stderr, flush=True)
                    receiver.check()
    return runs


async def _at_once(runs: Sequence[Coroutine[object, object, Run]]) -> list[Run]:
    """Return what all of them give; one that fails ends the others. Raises: BenchmarkFailed."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(run) for run in runs]
    except* BenchmarkFailed as failed:
        raise BenchmarkFailed("; ".join(map(str, failed.exceptions))) from None
    return [task.result() for task in tasks]


async def _run(poller: Poller, plan: Plan, dead: int, folder: Path, broker: int) -> Run:
    slaves = [Slave(unit, meters.registers(unit, TAGS)) for unit in plan.units]
    polled = Meters(
        tags=dict.fromkeys(plan.units, TAGS),
        interval_s=plan.interval_s,
        timeout_s=plan.timeout_s,
    )
    launch = poller.serial(folder, folder / "tty", plan.baud, polled, broker)
    async with AsyncExitStack() as stack:
        line = await stack.enter_async_context(PacedLine(folder / "tty", slaves, baud=plan.baud))
        process = await stack.enter_async_context(
            Process(
                launch.argv,
                folder / "log",
                environment=launch.environment,
                folder=launch.folder,
            )
        )
        await process.until(
            lambda: all(slave.asked_s for slave in slaves),
            f"{poller.name} polls every meter",
            deadline_s=_FIRST_S + plan.interval_s,
        )
        begun_s = time.monotonic()
        await process.lives_for(_WARM_INTERVALS * plan.interval_s)
        anchors_s = {
            slave.unit: grid_s(
                [each for each in slave.asked_s if each >= begun_s] or slave.asked_s,
                plan.interval_s,
            )
            for slave in slaves
        }
        dying = plan.dead_units(dead) if dead else set()
        for slave in slaves:
            slave.alive = slave.unit not in dying
        from_s, busy_s, meter = time.monotonic(), line.busy_s, Meter({poller.name: process.pid})
        await process.lives_for(plan.seconds)
        to_s = time.monotonic()
        spent_s = meter.lap()[poller.name]
        busy_s = line.busy_s - busy_s
        living = [
            held(slave.asked_s, anchors_s[slave.unit], plan.interval_s, from_s, to_s)
            for slave in slaves
            if slave.alive
        ]
        memory_mb = resident_mb(process.pid)
        revived_s = await _revived(process, [slave for slave in slaves if not slave.alive])
    late_s = sorted(each for meter_held in living for each in meter_held.late_s)
    return Run(
        poller=poller.name,
        dead=dead,
        polls=len(late_s),
        missed=sum(each.missed for each in living),
        p50_ms=1000 * percentile(late_s, 0.5),
        p99_ms=1000 * percentile(late_s, 0.99),
        max_ms=1000 * percentile(late_s, 1),
        revived_s=revived_s,
        lost=line.lost + line.broken,
        busy_percent=100 * busy_s / (to_s - from_s),
        cpu_percent=100 * spent_s / (to_s - from_s),
        resident_mb=memory_mb,
    )


async def _revived(process: Process, dead: Sequence[Slave]) -> list[float]:
    """Bring meters back; return how long each was not asked from then on."""
    back_s = time.monotonic()
    for slave in dead:
        slave.alive = True
    while time.monotonic() - back_s < _REVIVED_S and process.ended is None:
        if all(slave.asked_s[-1] > back_s for slave in dead):
            break
        await asyncio.sleep(0.1)
    return [
        next((each for each in slave.asked_s if each > back_s), math.inf) - back_s for slave in dead
    ]


def table(runs: Sequence[Run]) -> str:
    """Return the comparison for people."""
    lines = [
        (
            f"{'':22}{'dead':>5}{'p50 ms':>9}{'p99 ms':>9}{'max ms':>9}{'polls':>8}{'missed':>8}"
            f"{'back s, median–max':>20}{'lost':>6}{'line %':>8}{'CPU %':>7}{'MB':>6}"
        )
    ]
    for run in runs:
        back = f"{median(run.revived_s):.1f}–{max(run.revived_s):.1f}" if run.revived_s else ""
        lines.append(
            f"{run.poller:22}{run.dead:>5}{run.p50_ms:>9.0f}{run.p99_ms:>9.0f}{run.max_ms:>9.0f}"
            f"{run.polls:>8}{run.missed:>8}{back:>20}{run.lost:>6}{run.busy_percent:>8.1f}"
            f"{run.cpu_percent:>7.1f}{run.resident_mb:>6.0f}"
        )
    return "\n".join(lines)


def _line(run: Run) -> str:
    return (
        f"{run.poller}, {run.dead} dead: p99 {run.p99_ms:.0f} ms late, {run.missed} missed,"
        f" back after {max(run.revived_s, default=0):.1f} s"
    )
