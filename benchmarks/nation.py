"""A third of a nation on one machine, held for an hour: each device once a minute, each sample accounted for.

Broker (bounds as shipped), one ingest for each store with its counties, InfluxDB and the generator
share this machine; each one's CPU and memory is noted every minute. The generator sends by an
absolute schedule over one connection a county, takes the receipts, and sends again what has none
after a minute. At the end: sent = receipted as stored = rows in the database, county by county.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from statistics import median

import msgspec

from benchmarks.backlog import connected, settings
from benchmarks.consumers import Onestreet
from benchmarks.country import DOMAINS, Country, shards
from benchmarks.pace import TICK_S, Pace, late_words
from benchmarks.processes import BenchmarkFailed, Meter, Process, resident_mb
from benchmarks.queries import Reader
from benchmarks.stage import Seat, Stage, shipped_bounds, stage
from exchange.mqtt import Client, Message, Subscription
from exchange.receipts import decode_receipt
from exchange.topics import PREFIX

INFLUX_SETTINGS = {
    "storage-cache-snapshot-memory-size": "256m",
    "storage-cache-max-memory-size": "2g",
}
"""For hundreds of thousands of series: the default of 25 MB holds a few seconds of them, and each snapshot of the cache
writes, sorts and later compacts an index of all. With 1 GB for each of four the heap outgrew 20 GB within the hour."""
NATION = 2_000_000
"""Devices, one sample a minute each: what the figures are projected to."""
_LOST_AFTER_S = 60.0
_SILENCE_S = 10.0
_LAST_RECEIPTS_S = 600.0
_HOPELESS_S = 120.0
_RESENT_AT_ONCE = 500
_BUCKETS = 60_000
"""Of a millisecond each; what takes longer than a minute counts as one."""
_HOUR_MS = 3_600_000


class Period(msgspec.Struct, frozen=True, kw_only=True):
    """What happened in one period. `cpu_s` and `resident_mb` are by process."""

    period: int
    held: bool
    """All devices had joined before it began."""
    seconds: float
    sent: int
    again: int
    """Sent again for want of a receipt."""
    receipted: int
    doubled: int
    """Receipts for what had one: of samples that were sent again."""
    waiting: int
    """Sent and not receipted at its end."""
    late_ms: float
    """How late the generator was at worst."""
    p50_ms: float
    p99_ms: float
    max_ms: float
    """From the moment at which a sample was due to its receipt."""
    cpu_s: dict[str, float]
    resident_mb: dict[str, float]


class Nation(msgspec.Struct, frozen=True, kw_only=True):
    """The run. `cpu_us` is per sample, over the periods that were held."""

    devices: int
    period_s: float
    max_age_ms: int
    """Of a batch in ingest, as configured."""
    stores: list[list[str]]
    periods: list[Period]
    sent: int
    receipted: int
    rows: int
    again: int
    samples_per_s: float
    cpu_us: dict[str, float]
    resident_mb: dict[str, float]
    database_disk_mb: float


class Ledger:
    """What was sent and receipted: a bit a sample.

    Shape: bounded by the number of periods, not by what is out.
    """

    def __init__(self, country: Country, periods: int) -> None:
        """No sample is receipted yet."""
        self._country = country
        self._bits = [bytearray(-(-country.devices // 8)) for _ in range(periods)]
        self._missing = [country.samples_in(period) for period in range(periods)]
        self.receipted = 0
        self.doubled = 0
        self._waits = [0] * (_BUCKETS + 1)

    def __len__(self) -> int:
        """How many periods there are."""
        return len(self._bits)

    def settle(self, device: int, period: int, wait_ms: float) -> None:
        """Note a receipt that says stored."""
        bits, place, bit = self._bits[period], device >> 3, 1 << (device & 7)
        if bits[place] & bit:
            self.doubled += 1
            return
        bits[place] |= bit
        self._missing[period] -= 1
        self.receipted += 1
        self._waits[min(_BUCKETS, max(0, int(wait_ms)))] += 1

    def missing(self, periods: int) -> Iterator[tuple[int, int]]:
        """Yield (device, period) of what has no receipt, of the first so many periods."""
        for period in range(min(periods, len(self._bits))):
            if not self._missing[period]:
                continue
            for place, byte in enumerate(self._bits[period]):
                if byte == 0xFF:
                    continue
                for device in range(8 * place, min(8 * place + 8, self._country.devices)):
                    joins = self._country.joins(self._country.slot_of(device))
                    if joins <= period and not byte >> (device & 7) & 1:
                        yield device, period

    def waits_ms(self) -> tuple[float, float, float]:
        """Return p50, p99 and the longest wait since the last call."""
        waits, self._waits = self._waits, [0] * (_BUCKETS + 1)
        total, seen = sum(waits), 0
        found: list[float] = []
        for wait_ms, times in enumerate(waits):
            seen += times
            while times and len(found) < 3 and seen >= (0.5, 0.99, 1.0)[len(found)] * total:
                found.append(wait_ms + 1.0)
        return (found[0], found[1], found[2]) if total else (0.0, 0.0, 0.0)


class Generator:
    """Every gateway of a country, over one connection a county. Raises: BenchmarkFailed on a refusal."""

    def __init__(self, country: Country, port: int, periods: int) -> None:
        """Nothing is connected or sent yet."""
        self.country = country
        self.ledger = Ledger(country, periods)
        self.sent = 0
        self.again = 0
        self.pace = Pace(1000 * country.devices / country.period_ms, self._send)
        self.failure: BenchmarkFailed | None = None
        self._heard_s = 0.0
        self._periods = periods
        self.clients = {
            county: self._client(port, county)
            for county in dict.fromkeys(gateway.county for gateway in country.gateways)
        }

    async def run(self) -> None:
        """Send everything that is due in all periods."""
        await self.pace.run(self._periods * self.country.devices)

    async def send_again(self, periods: int) -> None:
        """Send again what has no receipt of the first so many periods, unless ingest is silent."""
        country, sent = self.country, self.pace.sent
        for device, period in self.ledger.missing(periods):
            slot = country.slot_of(device)
            if period * country.devices + slot >= sent:
                continue  # it has not been sent yet
            while time.monotonic() - self._heard_s < _SILENCE_S:
                if self._publish(device, slot, period):
                    self.again += 1
                    break
                await asyncio.sleep(TICK_S)
            if not self.again % _RESENT_AT_ONCE:
                await asyncio.sleep(TICK_S)

    def _send(self, number: int) -> bool:
        country = self.country
        period, slot = divmod(number, country.devices)
        if country.joins(slot) > period:
            return True
        if not self._publish(country.device_at(slot), slot, period):
            return False
        self.sent += 1
        return True

    def _publish(self, device: int, slot: int, period: int) -> bool:
        county, topic, payload = self.country.message(device, slot, period)
        return self.clients[county].publish_soon(topic, payload)

    def _client(self, port: int, county: str) -> Client:
        def take(messages: list[Message], generation: int) -> None:
            for message in messages:
                self._receipt(message.payload)
            client.acknowledge([message.packet_id for message in messages], generation)

        filters = [Subscription(f"{PREFIX}/{county}/+/+/receipts")]
        client = Client(settings(port, f"gateways-{county}", clean_start=True), filters, take)
        return client

    def _receipt(self, payload: bytes) -> None:
        receipt = decode_receipt(payload)
        if receipt.refused or receipt.unreadable:
            self.failure = BenchmarkFailed(f"ingest refused samples: {receipt}")
        country, settle, due_s = self.country, self.ledger.settle, self.pace.due_s
        self._heard_s = now_s = time.monotonic()
        for name, ranges in receipt.stored.items():
            device = country.device_of(name)
            slot = country.slot_of(device)
            joins = country.joins(slot)
            for _, first, last in ranges:
                for period in range(first + joins, last + joins + 1):
                    wait_s = now_s - due_s(period * country.devices + slot)
                    settle(device, period, 1000 * wait_s)


async def measure(
    *,
    devices: int,
    minutes: int,
    stores: int,
    ramp: int = 5,
    period_s: float = 60.0,
    max_age_ms: int = 0,
    report: Path | None = None,
) -> Nation:
    """Hold the pace, a line a minute into `report`. Raises: BenchmarkFailed, also when a sample is missing."""
    report = report or Path(tempfile.gettempdir()) / "onestreet-nation.jsonl"
    report.write_bytes(b"")
    print(f"a line for each minute goes into {report}", file=sys.stderr, flush=True)
    with stage(shipped_bounds(), INFLUX_SETTINGS) as here:
        country = Country(
            devices,
            period_ms=round(1000 * period_s),
            ramp=ramp,
            first_ms=time.time_ns() // 1_000_000,
        )
        generator = Generator(country, here.broker.port, ramp + minutes)
        towns = shards(stores)
        seats = [here.seat("ingest") for _ in towns]
        async with AsyncExitStack() as running:
            ingests = {
                seat.client_id: await running.enter_async_context(
                    here.running(Onestreet(counties=counties, max_age_ms=max_age_ms), seat)
                )
                for seat, counties in zip(seats, towns, strict=True)
            }
            for client in generator.clients.values():
                await running.enter_async_context(connected(client))
            periods = await _held(here, generator, ingests, ramp, report)
        rows = await _counted(country, ramp + minutes, list(zip(seats, towns, strict=True)))
        expected = country.expected(ramp + minutes)
        if wrong := {
            name: (rows[name], expected[name]) for name in rows if rows[name] != expected[name]
        }:
            raise BenchmarkFailed(f"rows and samples sent, where they differ: {wrong}")
        engine = here.folder / "influxd" / "engine"
        disk_mb = sum(512 * each.stat().st_blocks for each in engine.rglob("*")) / 1e6
    held = [each for each in periods if each.held] or periods
    samples = max(1, sum(each.receipted for each in held))
    return Nation(
        devices=devices,
        period_s=period_s,
        max_age_ms=max_age_ms,
        stores=towns,
        periods=periods,
        sent=generator.sent,
        receipted=generator.ledger.receipted,
        rows=sum(rows.values()),
        again=generator.again,
        samples_per_s=samples / sum(each.seconds for each in held),
        cpu_us={
            name: 1e6 * sum(each.cpu_s[name] for each in held) / samples for name in held[0].cpu_s
        },
        resident_mb=held[-1].resident_mb,
        database_disk_mb=disk_mb,
    )


async def _held(
    here: Stage,
    generator: Generator,
    ingests: Mapping[str, Process],
    ramp: int,
    report: Path,
) -> list[Period]:
    """Let everything run to the last receipt; return what each period was like."""
    meter = Meter(
        {
            "broker": here.broker.pid,
            "database": here.influx.pid,
            **{name: process.pid for name, process in ingests.items()},
            "generator": os.getpid(),
        }
    )
    country, ledger, periods = generator.country, generator.ledger, len(generator.ledger)
    found: list[Period] = []
    period_s = country.period_ms / 1000
    sending = asyncio.create_task(generator.run())
    resending = asyncio.create_task(generator.send_again(0))
    began_s = ended_s = time.monotonic()
    try:
        while not (sending.done() and ledger.receipted == generator.sent):
            seen = generator.sent, generator.again, ledger.receipted, ledger.doubled
            wanted_s = began_s + (len(found) + 1) * period_s - time.monotonic()
            await asyncio.wait([sending], timeout=max(TICK_S, wanted_s))
            if sending.done():
                await _receipted(generator, ingests, until_s=began_s + (len(found) + 1) * period_s)
            now_s = time.monotonic()
            p50_ms, p99_ms, max_ms = ledger.waits_ms()
            line = Period(
                period=len(found),
                held=ramp <= len(found) < periods,
                seconds=now_s - ended_s,
                sent=generator.sent - seen[0],
                again=generator.again - seen[1],
                receipted=ledger.receipted - seen[2],
                doubled=ledger.doubled - seen[3],
                waiting=generator.sent - ledger.receipted,
                late_ms=1000 * generator.pace.late_s,
                p50_ms=p50_ms,
                p99_ms=p99_ms,
                max_ms=max_ms,
                cpu_s=meter.lap(),
                resident_mb={name: resident_mb(pid) for name, pid in meter.pids.items()},
            )
            ended_s, generator.pace.late_s = now_s, 0.0
            found.append(line)
            with report.open("ab") as file:
                file.write(msgspec.json.encode(line) + b"\n")
            print(_line(line), file=sys.stderr, flush=True)
            _check(generator, ingests)
            if len(found) > periods + _LAST_RECEIPTS_S / period_s:
                waiting = generator.sent - ledger.receipted
                raise BenchmarkFailed(f"{waiting} samples were never receipted")
            if resending.done():
                await resending
                old = int((now_s - began_s - _LOST_AFTER_S) / period_s)
                resending = asyncio.create_task(generator.send_again(max(0, old)))
        await sending
    finally:
        for task in (sending, resending):
            task.cancel()
    return found


async def _receipted(
    generator: Generator, ingests: Mapping[str, Process], *, until_s: float
) -> None:
    """Return when every sample has its receipt, or at that time."""
    while generator.ledger.receipted < generator.sent and time.monotonic() < until_s:
        _check(generator, ingests)
        await asyncio.sleep(0.05)


def _check(generator: Generator, ingests: Mapping[str, Process]) -> None:
    """Fail when there is nothing to be measured any more. Raises: BenchmarkFailed."""
    if generator.failure is not None:
        raise generator.failure
    for name, process in ingests.items():
        if process.ended is not None:
            raise BenchmarkFailed(f"{name} ended with {process.ended}\n{process.tail}")
    pace = generator.pace
    behind_s = time.monotonic() - pace.due_s(pace.sent)
    if pace.sent < pace.count and behind_s > _HOPELESS_S:
        raise BenchmarkFailed(
            f"the generator is {behind_s:.0f} s behind: too much for this machine"
        )


async def _counted(
    country: Country, periods: int, held: Sequence[tuple[Seat, Sequence[str]]]
) -> dict[str, int]:
    """Return the rows of each county, counted site by site and hour by hour: no question is large."""
    sites: dict[str, set[str]] = {}
    for gateway in country.gateways:
        sites.setdefault(gateway.county, set()).add(gateway.site)
    first_ms, last_ms = country.first_ms, country.first_ms + periods * country.period_ms
    rows = {}
    for seat, counties in held:
        async with Reader(seat.bucket) as reader:
            for county in counties:
                rows[county] = 0
                for site in sorted(sites.get(county, ())):
                    for start_ms in range(first_ms, last_ms, _HOUR_MS):
                        where = (
                            f"county = '{county}' AND site = '{site}' AND time >= {start_ms}ms"
                            f" AND time < {min(start_ms + _HOUR_MS, last_ms)}ms"
                        )
                        for domain in sorted(set(DOMAINS)):
                            rows[county] += await reader.count(domain, "seq", where=where)
    return rows


def _line(one: Period) -> str:
    cores = {name: cpu_s / one.seconds for name, cpu_s in one.cpu_s.items()}
    shown = ", ".join(
        f"{name} {share:.2f} ({one.resident_mb[name]:.0f} MB)" for name, share in cores.items()
    )
    return (
        f"period {one.period}{'' if one.held else ' (not held)'}: {one.receipted / one.seconds:,.0f}"
        f" samples/s, p50 {one.p50_ms:.0f}, p99 {one.p99_ms:.0f} ms, {one.waiting} waiting,"
        f" {one.again} sent again, {one.late_ms:.0f} ms late; cores: {shown}"
    )


def table(found: Nation) -> str:
    """Return it for people."""
    held = [each for each in found.periods if each.held] or found.periods
    parts: dict[str, list[str]] = {}
    for name in found.cpu_us:
        parts.setdefault("ingest" if name.startswith("ingest") else name, []).append(name)
    wanted_per_s = NATION / 60
    late_s = max(each.late_ms for each in held) / 1000
    lines = [
        (
            f"{found.devices:,} devices, each every {found.period_s:g} s, {len(found.stores)} stores:"
            f" held for {sum(each.seconds for each in held) / 60:.1f} minutes at"
            f" {found.samples_per_s:,.0f} samples/s"
        ),
        (
            f"{found.sent:,} sent = {found.receipted:,} receipted = {found.rows:,} rows;"
            f" {found.again:,} sent again"
        ),
        (
            f"due to receipted: p50 {median(each.p50_ms for each in held):.0f} ms (median of the minutes),"
            f" p99 {median(each.p99_ms for each in held):.0f} ms, worst minute's p99"
            f" {max(each.p99_ms for each in held):.0f} ms; {late_words(late_s)}"
        ),
        f"database on disk, logs included: {found.database_disk_mb:,.0f} MB",
        "",
        (
            f"{'':12}{'CPU µs/sample':>15}{'cores':>8}{'MB':>9}{'KB/device':>11}"
            f"{'cores for 2,000,000':>22}{'GB for 2,000,000':>19}"
        ),
    ]
    for part, names in parts.items():
        cost_us = sum(found.cpu_us[name] for name in names)
        memory_mb = sum(found.resident_mb[name] for name in names)
        per_device_kb = 1024 * memory_mb / found.devices
        lines.append(
            f"{part:12}{cost_us:>15.1f}{cost_us * found.samples_per_s / 1e6:>8.2f}{memory_mb:>9,.0f}"
            f"{per_device_kb:>11.2f}{cost_us * wanted_per_s / 1e6:>22.2f}"
            f"{per_device_kb * NATION / 1024**2:>19.1f}"
        )
    return "\n".join(lines)
