"""A backlog with live samples beside it: how fast it drains, and what the live ones notice.

First as in the field: gateways hold the backlog and send it in packs of 20 with a window of W samples
without a receipt each, live first. Then, for comparison, the whole backlog waits in the broker's queue
when the consumer starts: ours and Telegraf, which has no receipts and no other way.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, suppress

import msgspec

from benchmarks.backlog import COUNTY, EPOCH, METRICS, SITE, fill, keep_session
from benchmarks.consumers import Consumer, Onestreet, Telegraf
from benchmarks.gateways import Gateway, Senders, parcel, running
from benchmarks.pace import Pace, late_words
from benchmarks.probes import Probes, Waits
from benchmarks.processes import BenchmarkFailed, Meter, Process
from benchmarks.queries import Reader
from benchmarks.stage import Stage, shipped_bounds, stage
from exchange.readings import Sample
from exchange.topics import Topic

PACK = 20
_DEVICES = 50
"""Behind each gateway, with a backlog; the live samples are other devices'."""
_PUMP_EVERY_S = 0.005
_CHECK_EVERY_S = 1.0
_DEADLINE_S = 1800.0
_WITHOUT_END = 1 << 40

Sending = Callable[[Topic, Sequence[Sample]], bool]


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What drains, and what goes on beside it."""

    samples: int
    gateways: int
    window: int
    live_per_s: int
    seconds: float
    """How long the live samples are watched alone."""

    @property
    def names(self) -> list[str]:
        """The gateways."""
        return [f"gw-{n:03d}" for n in range(self.gateways)]

    @property
    def packs_of_a_device(self) -> int:
        """So many that the backlog is at least as large as asked for."""
        return -(-self.samples // (self.gateways * _DEVICES * PACK))

    @property
    def backlog(self) -> int:
        """Samples that drain."""
        return self.packs_of_a_device * self.gateways * _DEVICES * PACK

    def packs(self, gateway: str) -> Iterator[tuple[Topic, list[Sample]]]:
        """Yield a gateway's backlog, oldest first: a sample a second of each device, up to now."""
        number, length = self.names.index(gateway), self.packs_of_a_device * PACK
        first_ms = time.time_ns() // 1_000_000 - 1000 * length
        topics = [
            Topic(COUNTY, SITE, gateway, "air", f"air-{_DEVICES * number + n:05d}", "readings")
            for n in range(_DEVICES)
        ]
        for start in range(0, length, PACK):
            for topic in topics:
                yield (
                    topic,
                    [
                        Sample(first_ms + 1000 * seq, EPOCH, seq, _VALUES[seq % len(_VALUES)])
                        for seq in range(start, start + PACK)
                    ],
                )


_VALUES = [
    {name: round(5 + (7 * n + 13 * place) % 600 / 10, 1) for place, name in enumerate(METRICS)}
    for n in range(100)
]


class Windowed(msgspec.Struct, frozen=True, kw_only=True):
    """Drained from the gateways."""

    alone: Waits
    during: Waits
    drain_s: float
    samples_per_s: float
    consumer_us: float
    """CPU per sample, those that are live included."""
    broker_us: float
    database_us: float
    generator_us: float
    """All gateways and the probes: in the field that is other machines."""
    late_ms: float
    """How late the generator of live samples was at worst."""


class Queued(msgspec.Struct, frozen=True, kw_only=True):
    """Drained from the broker's queue."""

    consumer: str
    waits: Waits
    drain_s: float
    samples_per_s: float
    lost: int
    late_ms: float


class Drained(msgspec.Struct, frozen=True):
    """Both ways."""

    plan: Plan
    windowed: Windowed
    queued: list[Queued]


def everybody() -> list[Consumer]:
    """Return those that drain the broker's queue: ours, and Telegraf in both of its forms."""
    return [
        Onestreet(),
        Telegraf(samples=PACK, flush_ms=20),
        Telegraf("line", samples=PACK, flush_ms=20),
    ]


async def measure(plan: Plan, consumers: Sequence[Consumer] | None = None) -> Drained:
    """Drain a backlog both ways. Raises: BenchmarkFailed, also when ours loses a sample."""
    with stage(shipped_bounds()) as here:
        windowed = await _windowed(here, plan)
        print(f"window of {plan.window}: {windowed.during}", file=sys.stderr, flush=True)
        found: list[Queued] = []
        for consumer in everybody() if consumers is None else consumers:
            run = await _queued(here, plan, consumer)
            print(f"queued, {run.consumer}: {run.waits}", file=sys.stderr, flush=True)
            if isinstance(consumer, Onestreet) and run.lost:
                raise BenchmarkFailed(f"{run.lost} samples are missing")
            found.append(run)
    return Drained(plan, windowed, found)


async def _windowed(here: Stage, plan: Plan) -> Windowed:
    consumer = Onestreet()
    seat, port = here.seat(consumer.name), here.broker.port
    await keep_session(port, seat.client_id, consumer.topic_filter)
    gateways = {name: Gateway(port, name, window=plan.window) for name in plan.names}
    backlog = {
        name: [parcel(topic, pack, consumer.message) for topic, pack in plan.packs(name)]
        for name in plan.names
    }  # packed before the clock runs: on the gateways this costs other processors

    def send(topic: Topic, samples: Sequence[Sample]) -> bool:
        gateways[topic.gateway].send_live(parcel(topic, samples, consumer.message))
        return True

    async with (
        here.running(consumer, seat) as process,
        Reader(seat.bucket) as reader,
        running(list(gateways.values())),
    ):
        probes = Probes(reader, send, plan.names)
        live = _Live(plan, send)
        async with _beside(live.pace.run(_WITHOUT_END)):
            alone = await probes.measure(asyncio.sleep(plan.seconds))
            meter = Meter(
                {
                    "consumer": process.pid,
                    "broker": here.broker.pid,
                    "database": here.influx.pid,
                    "generator": os.getpid(),
                }
            )
            sent, began_s = live.pace.sent + probes.sent, time.monotonic()
            for name, gateway in gateways.items():
                gateway.hold(backlog.pop(name))
            draining = asyncio.create_task(_drained(list(gateways.values()), plan, process))
            during = await probes.measure(draining)
            drain_s = draining.result() - began_s
            spent_s = meter.lap()
            samples = plan.backlog + live.pace.sent + probes.sent - sent
        async with _beside(_pumped(list(gateways.values()))):
            await process.until(
                lambda: not any(gateway.unsettled for gateway in gateways.values()),
                "the last receipts come",
            )
        expected = plan.backlog + live.pace.sent + probes.sent
        rows = await reader.count_until(expected)
        receipted = sum(gateway.stored for gateway in gateways.values())
        if (rows, receipted) != (expected, expected):
            raise BenchmarkFailed(f"{expected} sent, {receipted} receipted, {rows} rows")
    us = {name: 1e6 * cpu_s / samples for name, cpu_s in spent_s.items()}
    return Windowed(
        alone=alone,
        during=during,
        drain_s=drain_s,
        samples_per_s=plan.backlog / drain_s,
        consumer_us=us["consumer"],
        broker_us=us["broker"],
        database_us=us["database"],
        generator_us=us["generator"],
        late_ms=1000 * live.pace.late_s,
    )


async def _drained(gateways: Sequence[Gateway], plan: Plan, process: Process) -> float:
    """Return when the last sample of the backlog was receipted. Raises: BenchmarkFailed."""
    checked_s = began_s = time.monotonic()
    async with _beside(_pumped(gateways)):
        while sum(gateway.drained for gateway in gateways) < plan.backlog:
            now_s = time.monotonic()
            if process.ended is not None or now_s - began_s > _DEADLINE_S:
                raise BenchmarkFailed(f"it does not drain\n{process.tail}")
            if now_s - checked_s > _CHECK_EVERY_S:
                checked_s = now_s
                for gateway in gateways:
                    gateway.check()
            await asyncio.sleep(_PUMP_EVERY_S)
    return time.monotonic()


async def _pumped(gateways: Sequence[Gateway]) -> None:
    """Let the gateways go on when only the broker's window had held them up."""
    while True:
        for gateway in gateways:
            gateway.pump()
        await asyncio.sleep(_PUMP_EVERY_S)


async def _queued(here: Stage, plan: Plan, consumer: Consumer) -> Queued:
    seat, port = here.seat(consumer.name), here.broker.port
    ours = isinstance(consumer, Onestreet)
    await keep_session(port, seat.client_id, consumer.topic_filter)
    packs = (consumer.message(*pack) for name in plan.names for pack in plan.packs(name))
    await fill(port, packs)
    senders = Senders(port, plan.names, consumer.message, receipts=ours)
    live = _Live(plan, senders.send)
    async with here.running(consumer, seat) as process, Reader(seat.bucket) as reader, senders:
        probes = Probes(reader, senders.send, plan.names)
        async with _beside(live.pace.run(_WITHOUT_END)):
            emptying = asyncio.create_task(_emptied(reader, process, plan, time.monotonic()))
            waits = await probes.measure(emptying)
            drain_s, stored = emptying.result()
        expected = plan.backlog + live.pace.sent + probes.sent
        rows = await reader.count_until(expected)
    return Queued(
        consumer=consumer.name,
        waits=waits,
        drain_s=drain_s,
        samples_per_s=stored / drain_s,
        lost=expected - rows,
        late_ms=1000 * live.pace.late_s,
    )


async def _emptied(
    reader: Reader, process: Process, plan: Plan, began_s: float
) -> tuple[float, int]:
    """Return the seconds until the backlog was stored, as far as it ever was, and its rows."""
    rows, changed_s = 0, began_s
    while rows < plan.backlog:
        if process.ended is not None:
            raise BenchmarkFailed(f"ended with {process.ended}\n{process.tail}")
        await asyncio.sleep(_CHECK_EVERY_S)
        found = await reader.count(where=f"site = '{SITE}' AND device =~ /^air-/")
        now_s = time.monotonic()
        if found > rows:
            rows, changed_s = found, now_s
        elif now_s - changed_s > 10 * _CHECK_EVERY_S:
            break  # the rest is lost
    return changed_s - began_s, rows


class _Live:
    """So many devices as samples a second: each takes one a second."""

    def __init__(self, plan: Plan, send: Sending) -> None:
        self._send = send
        self._rate_per_s = plan.live_per_s
        self._first_ms = time.time_ns() // 1_000_000
        names = plan.names
        self._topics = [
            Topic(COUNTY, SITE, names[n % len(names)], "air", f"live-{n:05d}", "readings")
            for n in range(plan.live_per_s)
        ]
        self.pace = Pace(plan.live_per_s, self._sample)

    def _sample(self, number: int) -> bool:
        seq, place = divmod(number, self._rate_per_s)
        time_ms = self._first_ms + 1000 * number // self._rate_per_s
        sample = Sample(time_ms, EPOCH, seq, _VALUES[(seq + place) % len(_VALUES)])
        return self._send(self._topics[place], [sample])


@asynccontextmanager
async def _beside(work: Coroutine[object, object, None]) -> AsyncIterator[None]:
    """Do something else meanwhile; what it raises is raised at the end."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def table(found: Drained) -> str:
    """Return it for people."""
    plan, ours = found.plan, found.windowed
    lines = [
        (
            f"{plan.backlog:,} samples in packs of {PACK} from {plan.gateways} gateways, window"
            f" {plan.window}; {plan.live_per_s} live messages/s beside them"
        ),
        "",
        f"from the gateways: {ours.samples_per_s:,.0f} samples/s, {ours.drain_s:.1f} s",
        f"  live before:     {ours.alone}",
        f"  live during:     {ours.during}",
        (
            f"  CPU per sample:  ingest {ours.consumer_us:.1f}, broker {ours.broker_us:.1f},"
            f" database {ours.database_us:.1f}, generator {ours.generator_us:.1f} µs;"
            f" {late_words(ours.late_ms / 1000)}"
        ),
    ]
    for each in found.queued:
        lines += [
            (
                f"from the broker's queue, {each.consumer}: {each.samples_per_s:,.0f} samples/s,"
                f" {each.drain_s:.1f} s, {each.lost} lost"
            ),
            f"  live during:     {each.waits}",
        ]
    return "\n".join(lines)
