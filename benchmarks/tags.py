"""CPU of 5,000 float32 values a second over Modbus TCP: our agent beside Telegraf's inputs.modbus.

The same meters behind one port, the same requests (one a meter), every second, over one connection with
one request in flight. Both to a broker at QoS 1, a message a meter; and both throwing the readings away.
Not alike: ours names and judges every value, keeps each reading in a file until ingest has receipted it, and
says it in SenML, which is longer; Telegraf holds what is not sent in memory.
CPU is the process's own, user and system, for as long as it is watched. Whoever does not keep the pace,
seen from the meters, has no figure.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from statistics import median

import msgspec

from benchmarks.meters import MeterServer
from benchmarks.pollers import Meters, NetworkPoller, Onestreet, Telegraf
from benchmarks.processes import BenchmarkFailed, Meter, Process, resident_mb
from benchmarks.receiver import Receiver
from benchmarks.stage import shipped_bounds
from tests.brokers import Mosquitto

_FIRST_S = 60.0

_PROFILE_LINES = 40


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What is polled, and for how long it is watched."""

    tags: int = 5000
    block: int = 60
    """Values of each meter: 120 registers, one request."""
    interval_s: float = 1.0
    seconds: float = 60.0
    warm_s: float = 10.0
    kept: float = 0.02
    """So much more or less than its due number of polls is a pace kept."""

    @property
    def meters(self) -> dict[int, int]:
        """Values by unit id; the last meter may have fewer."""
        whole, rest = divmod(self.tags, self.block)
        sizes = [self.block] * whole + [rest] * bool(rest)
        return dict(enumerate(sizes, 1))


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One program for one while."""

    poller: str
    cpu_percent: float
    """Of one core."""
    us_per_tag: float
    requests_per_s: float
    broker_percent: float
    resident_mb: float


class Tags(msgspec.Struct, frozen=True):
    """Every run, in order."""

    plan: Plan
    runs: list[Run]

    def percent(self, poller: str) -> float | None:
        """Return a program's share of a core, the median."""
        found = [run.cpu_percent for run in self.runs if run.poller == poller]
        return median(found) if found else None


def everybody() -> list[NetworkPoller]:
    """Return those that are compared."""
    return [
        Onestreet(),
        Telegraf("influx"),
        Telegraf("json"),
        Onestreet(discarding=True),
        Telegraf("discard"),
    ]


async def measure(
    plan: Plan, *, rounds: int, pollers: Sequence[NetworkPoller] | None = None
) -> Tags:
    """Let everybody poll in turns. Raises: BenchmarkFailed, also when ours loses a sample."""
    runs: list[Run] = []
    for _, poller in product(range(rounds), everybody() if pollers is None else pollers):
        runs.append(await _run(plan, poller))
        print(f"{poller.name}: {runs[-1].cpu_percent:.2f} % of a core", file=sys.stderr, flush=True)
    return Tags(plan, runs)


async def _run(plan: Plan, poller: NetworkPoller) -> Run:
    with tempfile.TemporaryDirectory(prefix="onestreet-bench-") as name:
        folder = Path(name) / "poller"
        folder.mkdir()
        polled = Meters(tags=plan.meters, interval_s=plan.interval_s, timeout_s=1.0)
        with Mosquitto(Path(name), shipped_bounds()) as broker:
            async with (
                MeterServer(plan.meters) as server,
                Receiver(broker.port) as receiver,
            ):
                launch = poller.network(folder, server.port, polled, broker.port)
                async with Process(
                    launch.argv,
                    folder / "log",
                    environment=launch.environment,
                    folder=launch.folder,
                ) as process:
                    return await _watched(plan, poller, server, receiver, process, broker.pid)


async def _watched(
    plan: Plan,
    poller: NetworkPoller,
    server: MeterServer,
    receiver: Receiver,
    process: Process,
    broker: int,
) -> Run:
    await process.until(
        lambda: len(server.answered) == len(plan.meters),
        f"{poller.name} polls every meter",
        deadline_s=_FIRST_S,
    )
    await process.lives_for(plan.warm_s)
    answered, taken = server.answered.total(), receiver.samples - receiver.of_gateways
    meter, began_s = Meter({"poller": process.pid, "broker": broker}), time.monotonic()
    await process.lives_for(plan.seconds)
    spent_s, wall_s = meter.lap(), time.monotonic() - began_s
    answered = server.answered.total() - answered
    taken = receiver.samples - receiver.of_gateways - taken
    memory_mb = resident_mb(process.pid)
    receiver.check()
    due = len(plan.meters) * wall_s / plan.interval_s
    kept = len(plan.meters) + plan.kept * due  # a round of polls may lie on either side of an end
    if abs(answered - due) > kept:
        raise BenchmarkFailed(f"{poller.name}: {answered} polls in {wall_s:.0f} s, due {due:.0f}")
    if poller.name == "onestreet" and abs(taken - due) > kept:
        raise BenchmarkFailed(f"{taken} samples came of {answered} polls")
    return Run(
        poller=poller.name,
        cpu_percent=100 * spent_s["poller"] / wall_s,
        us_per_tag=1e6 * spent_s["poller"] / (answered * plan.tags / len(plan.meters)),
        requests_per_s=answered / wall_s,
        broker_percent=100 * spent_s["broker"] / wall_s,
        resident_mb=memory_mb,
    )


async def profile(plan: Plan) -> None:
    """Print in which functions the agent spends its CPU time, its start included."""
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        run = await _run(plan, Onestreet(profile=Path(file.name)))
        seen: dict[str, int] = json.load(file)
    print(f"{run.cpu_percent:.2f} % of a core, {run.us_per_tag:.2f} µs a value")
    total = sum(seen.values())
    for where, times in sorted(seen.items(), key=lambda item: -item[1])[:_PROFILE_LINES]:
        print(f"{times / total:7.1%} {times / total * run.us_per_tag:7.3f} µs a value  {where}")


def table(found: Tags) -> str:
    """Return the comparison for people."""
    plan = found.plan
    names = list(dict.fromkeys(run.poller for run in found.runs))
    lines = [
        (
            f"{plan.tags} values of {len(plan.meters)} meters every {plan.interval_s:g} s,"
            f" {len(found.runs) // len(names)} rounds of {plan.seconds:.0f} s"
        ),
        "",
        (
            f"{'median (lowest – highest)':28}{'CPU, % of a core':>24}{'CPU µs/value':>14}"
            f"{'requests/s':>12}{'broker %':>10}{'MB':>6}"
        ),
    ]
    for name in names:
        runs = [run for run in found.runs if run.poller == name]
        shares = [run.cpu_percent for run in runs]
        span = f"{median(shares):.2f} ({min(shares):.2f} – {max(shares):.2f})"
        lines.append(
            f"{name:28}{span:>24}{median(run.us_per_tag for run in runs):>14.2f}"
            f"{median(run.requests_per_s for run in runs):>12.1f}"
            f"{median(run.broker_percent for run in runs):>10.2f}"
            f"{median(run.resident_mb for run in runs):>6.0f}"
        )
    for ours, peers in (
        ("onestreet", ("Telegraf, line protocol", "Telegraf, JSON")),
        ("onestreet, discarding", ("Telegraf, discarding",)),
    ):
        for peer in peers:
            mine, theirs = found.percent(ours), found.percent(peer)
            if mine and theirs:
                lines.append(f"CPU, {ours} : {peer} = {mine / theirs:.2f}")
    return "\n".join(lines)
