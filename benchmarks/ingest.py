"""Ingest against Telegraf: CPU per message and samples per second from a backlog into InfluxDB.

The same broker and the same database, in turns. A run: an offline session is made, the broker is
filled, the consumer starts, and the clock runs from its connection to the last row in the database.
CPU is the process's own, user and system, until it rests again, less that of a start with nothing to
take in.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from statistics import median

import msgspec

from benchmarks.backlog import Load, fill, forget_session, keep_session
from benchmarks.consumers import Consumer, Onestreet, Telegraf
from benchmarks.processes import BenchmarkFailed, Meter, Process, resident_mb
from benchmarks.queries import Reader
from benchmarks.stage import UNBOUNDED, Seat, Stage, stage

FORMS = ("onestreet-json", "onestreet-cbor", "telegraf-json", "telegraf-line")
_PATIENCE_S = 10.0  # no new row for so long: the rest is lost
_COUNT_EVERY_S = 1.0  # counting costs the database, asking for one row does not
_POLL_S = 0.01
_PROFILE_LINES = 30


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One consumer, one backlog."""

    consumer: str
    messages: int
    samples: int
    rows_missing: int
    wall_s: float
    cpu_s: float
    start_cpu_s: float
    """Of a start with nothing to take in; not in `cpu_s`."""
    peak_resident_mb: float
    broker_cpu_s: float
    database_cpu_s: float

    @property
    def cpu_us_per_message(self) -> float:
        """What is compared."""
        return 1e6 * self.cpu_s / self.messages

    @property
    def cpu_us_per_sample(self) -> float:
        """The same by sample."""
        return self.cpu_us_per_message / self.samples

    @property
    def samples_per_s(self) -> float:
        """What the whole pipeline takes: broker, consumer and database on one machine."""
        return (self.messages * self.samples - self.rows_missing) / self.wall_s

    def share(self, whose: str) -> float:
        """Percent of the CPU time of broker, consumer and database."""
        parts = {
            "consumer": self.cpu_s,
            "broker": self.broker_cpu_s,
            "database": self.database_cpu_s,
        }
        return 100 * parts[whose] / max(sum(parts.values()), 1e-9)


class Comparison(msgspec.Struct, frozen=True):
    """Every run, in order, and the load of each."""

    load: Load
    same_fields: bool
    runs: list[Run]
    json_ratio: float | None
    """CPU per message, medians: ours in JSON by Telegraf's in JSON."""
    best_ratio: float | None
    """Ours in JSON by the best of Telegraf's."""


def consumer_of(form: str, load: Load, *, same_fields: bool = True) -> Consumer:
    """Return who takes a load in this form."""
    match form:
        case "onestreet-json" | "onestreet-cbor":
            return Onestreet("cbor" if form.endswith("cbor") else "json")
        case _:
            return Telegraf(
                "line" if form.endswith("line") else "json",
                samples=load.samples,
                same_fields=same_fields,
            )


async def _idle_cpu_s(here: Stage, consumer: Consumer) -> float:
    """CPU of a start with nothing to take in."""
    seat = here.seat(consumer.name)
    await keep_session(here.broker.port, seat.client_id, consumer.topic_filter)
    async with here.running(consumer, seat) as process:
        used_s = await process.until_at_rest()
    await forget_session(here.broker.port, seat.client_id)
    return used_s


async def _run(
    here: Stage,
    consumer: Consumer,
    load: Load,
    start_cpu_s: float,
    *,
    profile: Path | None = None,
) -> Run:
    """Let a consumer take in a whole load."""
    seat, port = here.seat(consumer.name), here.broker.port
    await keep_session(port, seat.client_id, consumer.topic_filter)
    await fill(port, consumer.payloads(load))
    others = Meter({"broker": here.broker.pid, "database": here.influx.pid})
    async with here.running(consumer, seat, profile=profile) as process:
        began_s = time.monotonic()
        ended_s, rows = await _until_stored(process, seat, load)
        used_s = await process.until_at_rest()
        others_s = others.lap()
        peak_mb = resident_mb(process.pid, peak=True)
    await forget_session(port, seat.client_id)
    return Run(
        consumer=consumer.name,
        messages=load.messages,
        samples=load.samples,
        rows_missing=load.rows - rows,
        wall_s=ended_s - began_s,
        cpu_s=max(0.0, used_s - start_cpu_s),  # 0: a load too small to be seen beside a start
        start_cpu_s=start_cpu_s,
        peak_resident_mb=peak_mb,
        broker_cpu_s=others_s["broker"],
        database_cpu_s=others_s["database"],
    )


async def _until_stored(process: Process, seat: Seat, load: Load) -> tuple[float, int]:
    """Return when the last row came, and how many there are: all, or those of a consumer that lost some."""
    device, last_ms = load.last
    last = f"SELECT pm2_5 FROM air WHERE device = '{device}' AND time >= {last_ms}ms"  # noqa: S608 - our own words
    found, changed_s, counted_s = 0, time.monotonic(), time.monotonic()
    async with Reader(seat.bucket) as reader:

        async def stored() -> bool:
            nonlocal found, changed_s, counted_s
            now_s = time.monotonic()
            if await reader.rows(last) or now_s - counted_s > _COUNT_EVERY_S * (1 + bool(found)):
                count = await reader.count()
                counted_s = time.monotonic()
                if count != found:
                    found, changed_s = count, now_s
            return found >= load.rows or now_s - changed_s > _PATIENCE_S

        while not await stored():
            if process.ended is not None:
                raise BenchmarkFailed(f"ended with {process.ended}\n{process.tail}")
            await asyncio.sleep(_POLL_S)
    return changed_s, found


async def compare(
    load: Load, *, rounds: int, same_fields: bool, forms: Sequence[str] = FORMS
) -> Comparison:
    """Let everybody take in the same load in turns. Raises: BenchmarkFailed when ours loses a row."""
    consumers = [consumer_of(form, load, same_fields=same_fields) for form in forms]
    runs: list[Run] = []
    with stage(UNBOUNDED) as here:
        for consumer in consumers:
            await _idle_cpu_s(here, consumer)  # the first start compiles, and reads from the disk
        for _, consumer in product(range(rounds), consumers):
            run = await _run(here, consumer, load, await _idle_cpu_s(here, consumer))
            runs.append(run)
            print(_line(run), file=sys.stderr, flush=True)
            if isinstance(consumer, Onestreet) and run.rows_missing:
                raise BenchmarkFailed(f"{run.rows_missing} of {load.rows} rows are missing")
    costs = {
        name: _median(runs, name, "cpu_us_per_message") for name in {run.consumer for run in runs}
    }
    peers = [cost for name, cost in costs.items() if name.startswith("telegraf")]
    ours, peer = costs.get("onestreet-json"), costs.get("telegraf-json")
    return Comparison(
        load,
        same_fields,
        runs,
        json_ratio=ours / peer if ours and peer else None,
        best_ratio=ours / min(peers) if ours and peers else None,
    )


async def profile(load: Load) -> None:
    """Print in which functions ingest spends its CPU time, its start included."""
    with stage(UNBOUNDED) as here, tempfile.NamedTemporaryFile(suffix=".json") as file:
        await _idle_cpu_s(here, Onestreet())  # the first start compiles
        run = await _run(here, Onestreet(), load, 0.0, profile=Path(file.name))
        seen: dict[str, int] = json.load(file)
    print(f"its start included: {_line(run)}")
    total = sum(seen.values())
    for place, times in sorted(seen.items(), key=lambda item: -item[1])[:_PROFILE_LINES]:
        share = times / total
        print(f"{share:7.1%} {1e6 * share * run.cpu_s / run.messages:7.2f} µs a message  {place}")


_COLUMNS = {
    "CPU µs/message": "cpu_us_per_message",
    "CPU µs/sample": "cpu_us_per_sample",
    "samples/s": "samples_per_s",
    "start CPU s": "start_cpu_s",
    "wall s": "wall_s",
    "peak MB": "peak_resident_mb",
    "rows missing": "rows_missing",
}


def table(comparison: Comparison) -> str:
    """Return the comparison for people."""
    load, runs = comparison.load, comparison.runs
    names = list(dict.fromkeys(run.consumer for run in runs))
    lines = [
        f"{load.messages} messages of {load.samples} sample(s), {load.devices} devices,"
        f" {load.gateways} gateways; {len(runs) // len(names)} rounds"
        + ("" if comparison.same_fields else ", no epoch and seq in Telegraf's messages"),
        "",
        f"{'median (lowest – highest)':26}" + "".join(f"{name:>28}" for name in names),
    ]
    for title, attribute in _COLUMNS.items():
        lines.append(f"{title:26}" + "".join(f"{_span(runs, n, attribute):>28}" for n in names))
    for whose in ("consumer", "broker", "database"):
        shares = [median(r.share(whose) for r in runs if r.consumer == name) for name in names]
        lines.append(f"{f'{whose}, % of CPU':26}" + "".join(f"{each:>28.0f}" for each in shares))
    for whose, ratio in (
        ("in JSON", comparison.json_ratio),
        ("at its best", comparison.best_ratio),
    ):
        if ratio is not None:
            lines.append(f"CPU per message, ours in JSON : Telegraf {whose} = {ratio:.2f}")
    return "\n".join(lines)


def _median(runs: Sequence[Run], name: str, attribute: str) -> float:
    return median(float(getattr(run, attribute)) for run in runs if run.consumer == name)


def _span(runs: Sequence[Run], name: str, attribute: str) -> str:
    values = [float(getattr(run, attribute)) for run in runs if run.consumer == name]
    digits = 0 if median(values) >= 1000 else 2
    low, middle, high = (
        f"{each:,.{digits}f}" for each in (min(values), median(values), max(values))
    )
    return f"{middle} ({low} – {high})"


def _line(run: Run) -> str:
    return (
        f"{run.consumer}: {run.cpu_us_per_message:.1f} µs a message, {run.wall_s:.2f} s,"
        f" {run.samples_per_s:,.0f} samples/s, {run.peak_resident_mb:.0f} MB,"
        f" {run.rows_missing} rows missing"
    )
