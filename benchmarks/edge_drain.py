"""A day's outage comes in: the real agent's outbox drained through Mosquitto, with live samples beside it.

The outbox is filled before the clock runs, by its own code: the samples of 100 devices, spread over the
day before. Then the agent starts as it is shipped and polls meters over Modbus TCP every second; what
these give is live. The rate runs from the first receipt of the backlog to the last. A live sample's delay
is from its own time to its receipt, on the same clock: first with an empty outbox, then beside the backlog.

Twice: into what stands in for ingest (`receiver`), and into `python -m ingest` on SQLite. Agent, broker,
ingest and all that measures share the machine.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from itertools import islice
from pathlib import Path
from typing import Literal

import msgspec

from benchmarks.backlog import COUNTY, METRICS
from benchmarks.listener import Listener
from benchmarks.machine import ROOT
from benchmarks.meters import MeterServer
from benchmarks.pollers import DOMAIN, Launch, Meters, Onestreet
from benchmarks.probes import percentile
from benchmarks.processes import BenchmarkFailed, Meter, Process, cpu_s, resident_mb
from benchmarks.receiver import Receiver
from benchmarks.stage import shipped_bounds
from edge_agent.outbox import Outbox, Taken
from exchange.readings import Value
from tests.brokers import Mosquitto

Into = Literal["stand-in", "ingest"]
INTO: tuple[Into, ...] = ("stand-in", "ingest")
_DAY_MS = 86_400_000
_BATCH = 1000
_LIVE_TAGS = 5
_LIVE_INTERVAL_S = 1.0
_FIRST_S = 60.0
_DEADLINE_S = 1800.0
_LOOK_EVERY_S = 0.1
_PATIENCE_S = 120.0  # no receipt of the backlog for so long: it does not drain
_VALUES: list[dict[str, Value]] = [
    {name: round(5 + (7 * n + 13 * place) % 600 / 10, 1) for place, name in enumerate(METRICS)}
    for n in range(100)
]


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What waits in the outbox, and what goes on beside it."""

    samples: int = 1_000_000
    devices: int = 100
    live: int = 20
    """Devices that give a sample a second."""
    seconds: float = 30.0
    """How long the live samples are watched alone."""

    @property
    def each(self) -> int:
        """Samples of each device: at least as many as asked for in all."""
        return -(-self.samples // self.devices)

    @property
    def backlog(self) -> int:
        """Samples that drain."""
        return self.each * self.devices

    @property
    def names(self) -> list[str]:
        """The devices whose samples wait."""
        return [f"air-{number:03d}" for number in range(self.devices)]

    def readings(self, now_ms: int) -> Iterator[Taken]:
        """Yield a day's readings in the order in which they were taken."""
        for number in range(self.each):
            time_ms = now_ms - _DAY_MS + number * _DAY_MS // self.each
            for place, name in enumerate(self.names):
                values = _VALUES[(number + place) % len(_VALUES)]
                yield Taken("air", name, time_ms + place, values)


class Waits(msgspec.Struct, frozen=True, kw_only=True):
    """Live samples, from their time to their receipt. Units: milliseconds."""

    samples: int
    p50_ms: float
    p99_ms: float
    max_ms: float

    def __str__(self) -> str:
        """Return it for people."""
        return (
            f"p50 {self.p50_ms:.0f}, p99 {self.p99_ms:.0f}, max {self.max_ms:.0f} ms"
            f" ({self.samples} samples)"
        )


class Drained(msgspec.Struct, frozen=True, kw_only=True):
    """One drain."""

    into: str
    backlog: int
    alone: Waits
    during: Waits | None
    """None when the drain was over before a live sample came."""
    fill_s: float
    start_s: float
    """From exec to the first receipt of the backlog."""
    drain_s: float
    samples_per_s: float
    agent_us: float
    """CPU per sample of the backlog, the start included."""
    broker_us: float
    sink_us: float
    """Ingest's, or what stands in for it with all that measures."""
    peak_mb: float
    """The agent's."""


async def measure(plan: Plan, into: Sequence[Into] = INTO) -> list[Drained]:
    """Drain such an outbox into each. Raises: BenchmarkFailed, also when a sample is refused or missing."""
    found = []
    for each in into:
        found.append(await _drain(plan, each))
        print(f"into the {each}: {found[-1].samples_per_s:,.0f} samples/s", file=sys.stderr)
    return found


async def _drain(plan: Plan, into: Into) -> Drained:
    with tempfile.TemporaryDirectory(prefix="onestreet-bench-") as name:
        folder, box = Path(name), Path(name) / "outage"
        box.mkdir()
        tags = dict.fromkeys(range(1, plan.live + 1), _LIVE_TAGS)
        polled = Meters(tags=tags, interval_s=_LIVE_INTERVAL_S, timeout_s=1.0)
        with Mosquitto(folder, shipped_bounds()) as broker:
            async with (
                MeterServer(tags) as server,
                Listener(broker.port, box.name, DOMAIN) as listener,
                _sink(into, folder, broker) as sink,
            ):
                launch = Onestreet().network(box, server.port, polled, broker.port)
                async with _agent(launch, box) as agent:
                    await agent.until(
                        lambda: len(listener.stored) >= plan.live,
                        "live samples",
                        deadline_s=_FIRST_S,
                    )
                    listener.live_ms.clear()
                    await agent.lives_for(plan.seconds)
                    alone = _waits(listener)
                began_s = time.monotonic()
                await _fill(plan, box / "state")
                fill_s = time.monotonic() - began_s
                meter, began_s = Meter({"broker": broker.pid, "sink": sink}), time.monotonic()
                async with _agent(launch, box) as agent:
                    first_s = await _until_first(plan, agent, listener)
                    await _until_last(plan, agent, listener)
                    drain_s = listener.last_s - first_s
                    spent_s = {**meter.lap(), "agent": cpu_s(agent.pid)}
                    peak_mb = resident_mb(agent.pid, peak=True)
                    during = _waits(listener) if listener.live_ms else None
    return Drained(
        into=into,
        backlog=plan.backlog,
        alone=alone,
        during=during,
        fill_s=fill_s,
        start_s=first_s - began_s,
        drain_s=drain_s,
        samples_per_s=plan.backlog / drain_s,
        agent_us=1e6 * spent_s["agent"] / plan.backlog,
        broker_us=1e6 * spent_s["broker"] / plan.backlog,
        sink_us=1e6 * spent_s["sink"] / plan.backlog,
        peak_mb=peak_mb,
    )


def _agent(launch: Launch, box: Path) -> Process:
    return Process(launch.argv, box / "log", environment=launch.environment, folder=launch.folder)


async def _fill(plan: Plan, state: Path) -> None:
    """Take a day's readings as the agent does, and close."""
    outbox = Outbox(state / "outbox")
    await outbox.open()
    readings = plan.readings(time.time_ns() // 1_000_000)
    while batch := list(islice(readings, _BATCH)):
        await outbox.take(batch)
    await outbox.close()


async def _until_first(plan: Plan, agent: Process, listener: Listener) -> float:
    """Return when the first receipt of the backlog came; live samples count from then on."""
    await agent.until(lambda: _stored(plan, listener), "the backlog begins", deadline_s=_FIRST_S)
    listener.live_ms.clear()
    return listener.last_s


async def _until_last(plan: Plan, agent: Process, listener: Listener) -> None:
    """Return once all of the backlog has its receipt. Raises: BenchmarkFailed when none comes for long."""
    stored, changed_s = 0, time.monotonic()

    def ended() -> bool:
        nonlocal stored, changed_s
        now_s, found = time.monotonic(), _stored(plan, listener)
        if found != stored:
            stored, changed_s = found, now_s
        if now_s - changed_s > _PATIENCE_S:
            raise BenchmarkFailed(f"{stored} of {plan.backlog} samples drained\n{agent.tail}")
        return stored >= plan.backlog

    await agent.until(ended, "it drains", deadline_s=_DEADLINE_S, every_s=_LOOK_EVERY_S)


def _stored(plan: Plan, listener: Listener) -> int:
    return sum(listener.stored[name] for name in plan.names)


def _waits(listener: Listener) -> Waits:
    waits = sorted(listener.live_ms)
    if not waits:
        raise BenchmarkFailed("no live sample got its receipt")
    return Waits(
        samples=len(waits),
        p50_ms=percentile(waits, 0.5),
        p99_ms=percentile(waits, 0.99),
        max_ms=waits[-1],
    )


@asynccontextmanager
async def _sink(into: Into, folder: Path, broker: Mosquitto) -> AsyncIterator[int]:
    """Run who takes the samples; return its process."""
    if into == "stand-in":
        async with Receiver(broker.port):
            yield os.getpid()
        return
    place = folder / "ingest"
    place.mkdir()
    config = place / "ingest.toml"
    config.write_text(
        f"""
counties = ["{COUNTY}"]
store = "sqlite:///town.sqlite"
[broker]
host = "127.0.0.1"
port = {broker.port}
client_id = "ingest"
""",
        encoding="utf-8",
    )
    argv: list[str | Path] = [sys.executable, "-m", "ingest", config]
    async with Process(argv, place / "log", folder=ROOT) as process:
        await process.until(lambda: " as ingest (" in broker.log, "ingest connects")
        yield process.pid


def table(found: Sequence[Drained]) -> str:
    """Return it for people."""
    lines = []
    for each in found:
        lines += [
            (
                f"into the {each.into}: {each.samples_per_s:,.0f} samples/s, {each.backlog:,} in"
                f" {each.drain_s:.1f} s, the first {each.start_s:.1f} s after exec"
                f" (filled in {each.fill_s:.0f} s)"
            ),
            f"  live before:     {each.alone}",
            f"  live during:     {each.during or 'none came'}",
            (
                f"  CPU per sample:  agent {each.agent_us:.1f}, broker {each.broker_us:.1f},"
                f" {each.into} {each.sink_us:.1f} µs; agent's peak {each.peak_mb:.0f} MB"
            ),
        ]
    return "\n".join(lines)
