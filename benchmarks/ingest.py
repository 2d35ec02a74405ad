"""Ingest against Telegraf: CPU per message and samples per second from a backlog into InfluxDB.

The same broker and the same database, in turns. A run: an offline session is made, the broker is
filled, the consumer starts, and the clock runs from its connection to the last row in the database.
CPU is the process's own, user and system, until it rests again, less that of a start with nothing to
take in.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from statistics import median

import msgspec

from benchmarks.backlog import Load, fill, forget_session, keep_session
from benchmarks.consumers import Consumer, Onestreet, Telegraf
from benchmarks.processes import BenchmarkFailed, Process, cpu_s, peak_resident_mb
from tests.brokers import Mosquitto
from tests.influx import Bucket, Influx

# The broker keeps whatever comes, and sends as much as a consumer lets it.
_BROKER = [
    "max_queued_messages 0",
    "max_queued_bytes 0",
    "max_inflight_messages 0",
    "memory_limit 0",
]
_CONNECT_DEADLINE_S = 30.0
_PATIENCE_S = 10.0  # no new row for so long: the rest is lost
_POLL_S = 0.01
_COUNT_EVERY_S = 1.0  # counting costs the database, asking for one row does not
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


class Comparison(msgspec.Struct, frozen=True):
    """Every run, in order, and the load of each."""

    load: Load
    same_fields: bool
    runs: list[Run]
    cpu_ratio: float
    """Ours by Telegraf's, CPU per message, medians."""


class Stage:
    """A broker and a database; consumers come and go."""

    def __init__(self, folder: Path, broker: Mosquitto, influx: Influx) -> None:
        self._folder, self.broker, self._influx = folder, broker, influx
        self._numbers = count(1)

    async def idle_cpu_s(self, consumer: Consumer) -> float:
        """CPU of a start with nothing to take in."""
        client_id, bucket, folder = self._new(consumer)
        await keep_session(self.broker.port, client_id, consumer.topic_filter)
        command = consumer.command(folder, self.broker.port, client_id, bucket)
        before = self._connections(client_id)
        async with Process(command, folder / "log") as process:
            await self._connected(process, client_id, before)
            used_s = await process.until_at_rest()
        await forget_session(self.broker.port, client_id)
        return used_s

    async def run(
        self, consumer: Consumer, start_cpu_s: float, *, profile: Path | None = None
    ) -> Run:
        """Let a consumer take in its whole load."""
        load = consumer.load
        client_id, bucket, folder = self._new(consumer)
        port = self.broker.port
        await keep_session(port, client_id, consumer.topic_filter)
        await fill(port, consumer.payloads())
        command = consumer.command(folder, port, client_id, bucket)
        if profile is not None:
            command[1:2] = ["-m", "benchmarks.sampler", profile]
        before = self._connections(client_id)
        others = self.broker.pid, self._influx.pid
        others_s = [cpu_s(pid) for pid in others]
        async with Process(command, folder / "log") as process:
            await self._connected(process, client_id, before)
            began_s = time.monotonic()
            ended_s, rows = await _until_stored(process, bucket, load)
            used_s = await process.until_at_rest()
            broker_s, database_s = (
                cpu_s(pid) - was_s for pid, was_s in zip(others, others_s, strict=True)
            )
            peak_mb = peak_resident_mb(process.pid)
            status = await process.stop()
            if status:
                raise BenchmarkFailed(f"{consumer.name} ended with {status}\n{process.tail}")
        await forget_session(port, client_id)
        return Run(
            consumer=consumer.name,
            messages=load.messages,
            samples=load.samples,
            rows_missing=load.rows - rows,
            wall_s=ended_s - began_s,
            cpu_s=used_s - start_cpu_s,
            start_cpu_s=start_cpu_s,
            peak_resident_mb=peak_mb,
            broker_cpu_s=broker_s,
            database_cpu_s=database_s,
        )

    def _new(self, consumer: Consumer) -> tuple[str, Bucket, Path]:
        client_id = f"{consumer.name}-{next(self._numbers)}"
        folder = self._folder / client_id
        folder.mkdir()
        return client_id, self._influx.bucket(), folder

    def _connections(self, client_id: str) -> int:
        return self.broker.log.count(f" as {client_id} (")

    async def _connected(self, process: Process, client_id: str, before: int) -> None:
        await process.until(
            lambda: self._connections(client_id) > before,
            f"{client_id} connects",
            deadline_s=_CONNECT_DEADLINE_S,
        )


async def _until_stored(process: Process, bucket: Bucket, load: Load) -> tuple[float, int]:
    """Return when the last row came, and how many there are: all, or those of a consumer that lost some."""
    device, last_ms = load.last
    last = f"SELECT pm2_5 FROM air WHERE device = '{device}' AND time >= {last_ms}ms"  # noqa: S608 - our own words
    rows, changed_s, counted_s = 0, time.monotonic(), time.monotonic()
    while True:
        now_s = time.monotonic()
        if bucket.query(last) or now_s - counted_s > _COUNT_EVERY_S * (1 + bool(rows)):
            found = _rows(bucket)
            counted_s = time.monotonic()
            if found != rows:
                rows, changed_s = found, now_s
            if rows >= load.rows or now_s - changed_s > _PATIENCE_S:
                return changed_s, rows
        if process.ended is not None:
            raise BenchmarkFailed(f"ended with {process.ended}\n{process.tail}")
        await asyncio.sleep(_POLL_S)


def _rows(bucket: Bucket) -> int:
    series = bucket.query("SELECT count(pm2_5) FROM air")
    return int(series[0]["values"][0][1]) if series else 0


@contextmanager
def _stage() -> Iterator[Stage]:
    influxd = os.environ.get("ONESTREET_INFLUXD", "")
    if not os.access(influxd, os.X_OK):
        raise BenchmarkFailed("ONESTREET_INFLUXD must name influxd: `make bench` sees to it")
    with tempfile.TemporaryDirectory(prefix="onestreet-bench-") as name:
        folder = Path(name)
        (folder / "influxd").mkdir()
        influx = Influx(influxd, folder / "influxd")
        try:
            influx.start()
            with Mosquitto(folder, _BROKER) as broker:
                yield Stage(folder, broker, influx)
        finally:
            influx.kill()


async def compare(load: Load, *, rounds: int, same_fields: bool) -> Comparison:
    """Let ours and Telegraf take in the same load in turns. Raises: BenchmarkFailed when ours loses a row."""
    ours, telegraf = Onestreet(load), Telegraf(load, same_fields=same_fields)
    runs: list[Run] = []
    with _stage() as stage:
        for consumer in (ours, telegraf):
            await stage.idle_cpu_s(consumer)  # the first start compiles, and reads from the disk
        for _ in range(rounds):
            for consumer in (ours, telegraf):
                idle_s = await stage.idle_cpu_s(consumer)
                run = await stage.run(consumer, idle_s)
                runs.append(run)
                print(_line(run), file=sys.stderr, flush=True)
                if consumer is ours and run.rows_missing:
                    raise BenchmarkFailed(f"{run.rows_missing} of {load.rows} rows are missing")
    ratio = _median(runs, ours.name, "cpu_us_per_message") / _median(
        runs, telegraf.name, "cpu_us_per_message"
    )
    return Comparison(load, same_fields, runs, ratio)


async def profile(load: Load) -> None:
    """Print in which functions ingest spends its CPU time, its start included."""
    with _stage() as stage, tempfile.NamedTemporaryFile(suffix=".json") as file:
        await stage.idle_cpu_s(Onestreet(load))  # the first start compiles
        run = await stage.run(Onestreet(load), 0.0, profile=Path(file.name))
        seen: dict[str, int] = json.load(file)
    print(f"its start included: {_line(run)}")
    total = sum(seen.values())
    for place, times in sorted(seen.items(), key=lambda item: -item[1])[:_PROFILE_LINES]:
        share = times / total
        print(f"{share:7.1%} {1e6 * share * run.cpu_s / run.messages:7.2f} µs a message  {place}")


_COLUMNS = {
    "CPU µs/message": "cpu_us_per_message",
    "CPU s": "cpu_s",
    "start CPU s": "start_cpu_s",
    "wall s": "wall_s",
    "peak MB": "peak_resident_mb",
    "broker CPU s": "broker_cpu_s",
    "database CPU s": "database_cpu_s",
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
    rates = {name: load.rows / _median(runs, name, "wall_s") for name in names}
    lines.append(f"{'samples/s':26}" + "".join(f"{rates[name]:>28,.0f}" for name in names))
    lines += ["", f"CPU per message, ours : Telegraf = {comparison.cpu_ratio:.2f}"]
    return "\n".join(lines)


def _median(runs: Sequence[Run], name: str, attribute: str) -> float:
    return median(float(getattr(run, attribute)) for run in runs if run.consumer == name)


def _span(runs: Sequence[Run], name: str, attribute: str) -> str:
    values = [float(getattr(run, attribute)) for run in runs if run.consumer == name]
    return f"{median(values):.2f} ({min(values):.2f} – {max(values):.2f})"


def _line(run: Run) -> str:
    rate = run.messages * run.samples / run.wall_s
    return (
        f"{run.consumer}: {run.cpu_us_per_message:.1f} µs a message, {run.wall_s:.2f} s,"
        f" {rate:,.0f} samples/s, {run.peak_resident_mb:.0f} MB, {run.rows_missing} rows missing"
    )
