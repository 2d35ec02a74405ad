"""Publish-to-queryable: how long a sample takes until a query returns it, at a steady pace.

Ours beside Telegraf at each of several flush intervals, in turns, on one broker (bounds as shipped)
and one database. Both get flat out the same: a sample a message in JSON, QoS 1, one a second of each
device. Ours sends receipts, and the gateways take them; Telegraf has none.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Sequence

import msgspec

from benchmarks.backlog import COUNTY, EPOCH, METRICS, SITE, keep_session
from benchmarks.consumers import Consumer, Onestreet, Telegraf
from benchmarks.gateways import Senders
from benchmarks.pace import Pace, late_words
from benchmarks.probes import Probes, Waits
from benchmarks.processes import Meter
from benchmarks.queries import Reader
from benchmarks.stage import Stage, shipped_bounds, stage
from exchange.readings import Sample
from exchange.topics import Topic

FLUSHES_MS = (10, 20, 50, 100)
_GATEWAYS = [f"gw-{n:03d}" for n in range(10)]
WARM_S = 5.0


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One consumer at the pace."""

    consumer: str
    flush_ms: int
    """0 is ours: it writes whenever it may."""
    rate_per_s: int
    waits: Waits
    lost: int
    """Samples that were sent and are in no row, probes included."""
    late_ms: float
    """How late the generator was at worst."""
    consumer_us: float
    """CPU per message."""
    broker_us: float
    database_us: float
    """With the probes' questions."""
    generator_us: float
    """With the probes."""

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.consumer}, flush {self.flush_ms} ms" if self.flush_ms else self.consumer


class Latency(msgspec.Struct, frozen=True):
    """Every run, in order, and Telegraf's best flush interval by p99 (0: none was run)."""

    runs: list[Run]
    best_flush_ms: int


async def measure(
    *,
    rate_per_s: int,
    seconds: float,
    rounds: int,
    flushes_ms: Sequence[int] = FLUSHES_MS,
    warm_s: float = WARM_S,
) -> Latency:
    """Let everybody take the same pace in turns. Raises: BenchmarkFailed."""
    runs: list[Run] = []
    consumers: list[tuple[int, Consumer]] = [(0, Onestreet())]
    consumers += [(each, Telegraf(flush_ms=each)) for each in flushes_ms]
    with stage(shipped_bounds()) as here:
        for _ in range(rounds):
            for flush_ms, consumer in consumers:
                run = await _run(here, consumer, flush_ms, rate_per_s, warm_s, seconds)
                runs.append(run)
                print(f"{run.name}: {run.waits}, {run.lost} lost", file=sys.stderr, flush=True)
    best = min(
        (run for run in runs if run.flush_ms), key=lambda run: run.waits.p99_ms, default=None
    )
    return Latency(runs, best.flush_ms if best else 0)


async def _run(
    here: Stage,
    consumer: Consumer,
    flush_ms: int,
    rate_per_s: int,
    warm_s: float,
    seconds: float,
) -> Run:
    seat, port = here.seat(consumer.name), here.broker.port
    await keep_session(port, seat.client_id, consumer.topic_filter)
    senders = Senders(port, _GATEWAYS, consumer.message, receipts=isinstance(consumer, Onestreet))
    load = _Load(rate_per_s, senders)
    async with (
        here.running(consumer, seat) as process,
        Reader(seat.bucket) as reader,
        senders,
    ):
        meter = Meter(
            {
                "consumer": process.pid,
                "broker": here.broker.pid,
                "database": here.influx.pid,
                "generator": os.getpid(),
            }
        )
        pace = Pace(rate_per_s, load.send)
        loading = asyncio.create_task(pace.run(int(rate_per_s * (warm_s + seconds))))
        probes = Probes(reader, senders.send, _GATEWAYS)
        # New series and the first connections are behind us when the probes begin.
        await asyncio.wait([loading], timeout=warm_s)
        meter.lap()
        warm, pace.late_s = pace.sent, 0.0
        waits = await probes.measure(loading)
        spent_us = {
            name: 1e6 * cpu_s / (pace.sent - warm + probes.sent)
            for name, cpu_s in meter.lap().items()
        }
        rows = await reader.count_until(pace.sent + probes.sent)
    return Run(
        consumer=consumer.name,
        flush_ms=flush_ms,
        rate_per_s=rate_per_s,
        waits=waits,
        lost=pace.sent + probes.sent - rows,
        late_ms=1000 * pace.late_s,
        consumer_us=spent_us["consumer"],
        broker_us=spent_us["broker"],
        database_us=spent_us["database"],
        generator_us=spent_us["generator"],
    )


class _Load:
    """As many air boxes as samples a second: each takes one a second."""

    def __init__(self, rate_per_s: int, senders: Senders) -> None:
        self._senders = senders
        self._rate_per_s = rate_per_s
        self._first_ms = time.time_ns() // 1_000_000
        self._topics = [
            Topic(COUNTY, SITE, _GATEWAYS[n % len(_GATEWAYS)], "air", f"air-{n:05d}", "readings")
            for n in range(rate_per_s)
        ]
        self._values = [
            {
                name: round(5 + (7 * n + 13 * place) % 60 / 10, 1)
                for place, name in enumerate(METRICS)
            }
            for n in range(100)
        ]

    def send(self, number: int) -> bool:
        """Send message n of the pace."""
        seq, place = divmod(number, self._rate_per_s)
        time_ms = self._first_ms + 1000 * number // self._rate_per_s
        sample = Sample(time_ms, EPOCH, seq, self._values[(place + seq) % 100])
        return self._senders.send(self._topics[place], [sample])


def table(found: Latency) -> str:
    """Return the comparison for people."""
    names = list(dict.fromkeys(run.name for run in found.runs))
    first = found.runs[0]
    lines = [
        (
            f"{first.rate_per_s} messages/s, one sample each, {first.waits.probes} probes a run;"
            f" {len(found.runs) // len(names)} rounds; p99 is each round's"
        ),
        "",
        (
            f"{'':30}{'p50 ms':>8}{'p99 ms':>20}{'max ms':>9}{'asked every ms':>16}{'lost':>6}"
            f"{'late ms':>9}{'CPU µs/message':>16}{'broker':>8}{'database':>10}{'generator':>11}"
        ),
    ]
    for name in names:
        runs = [run for run in found.runs if run.name == name]
        count = len(runs)
        p99 = " ".join(f"{run.waits.p99_ms:.1f}" for run in runs)
        lines.append(
            f"{name:30}{sum(r.waits.p50_ms for r in runs) / count:>8.1f}{p99:>20}"
            f"{max(r.waits.max_ms for r in runs):>9.1f}"
            f"{sum(r.waits.poll_ms for r in runs) / count:>16.1f}"
            f"{sum(r.lost for r in runs):>6}{max(r.late_ms for r in runs):>9.0f}"
            f"{sum(r.consumer_us for r in runs) / count:>16.1f}"
            f"{sum(r.broker_us for r in runs) / count:>8.1f}"
            f"{sum(r.database_us for r in runs) / count:>10.1f}"
            f"{sum(r.generator_us for r in runs) / count:>11.1f}"
        )
    lines += ["", late_words(max(run.late_ms for run in found.runs) / 1000)]
    if found.best_flush_ms:
        lines += [f"Telegraf's best p99: with a flush interval of {found.best_flush_ms} ms"]
    return "\n".join(lines)
