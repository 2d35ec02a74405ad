"""Disk: bytes per sample in InfluxDB, compacted, and in our SQLite store.

A day of air boxes, a sample a minute, taken in by our ingest in the order of time. InfluxDB is then
started again with settings that make it write its cache out and compact at once, not after hours;
what is counted are the files once they stand still and none is a write-ahead log.
"""

from __future__ import annotations

import os
import random
import sqlite3
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path

import msgspec

from benchmarks.backlog import COUNTY, EPOCH, SITE, fill, forget_session, keep_session
from benchmarks.consumers import Onestreet
from benchmarks.processes import BenchmarkFailed, until
from benchmarks.queries import Reader
from benchmarks.stage import UNBOUNDED, Stage, stage
from exchange.readings import Sample
from exchange.topics import Topic

_FIRST_MS = (
    1_760_313_600_000  # a Monday, 00:00 UTC: all rows are in one of InfluxDB's weekly shards
)
_GATEWAYS = 50
_STILL_S = 5.0
_DEADLINE_S = 900.0
# As environment: what influxd reads beside its options.
_EAGER = {
    "INFLUXD_STORAGE_CACHE_SNAPSHOT_WRITE_COLD_DURATION": "1s",
    "INFLUXD_STORAGE_COMPACT_FULL_WRITE_COLD_DURATION": "1s",
}


class Disk(msgspec.Struct, frozen=True, kw_only=True):
    """What a load takes. Units: bytes."""

    devices: int
    minutes: int
    tsm_bytes: int
    """InfluxDB's rows."""
    index_bytes: int
    """InfluxDB's index and series file, which grow with the devices and not with the samples."""
    sqlite_bytes: int

    @property
    def samples(self) -> int:
        """How many there are."""
        return self.devices * self.minutes


def day(devices: int, minutes: int) -> Iterator[tuple[Topic, list[Sample]]]:
    """Yield what the air boxes say: every value walks by steps of its sensor's resolution.

    Source: a Plantower PMS5003 gives whole µg/m³; an SHT3x's last digit is noise below 0.1 °C and 0.1 %.
    """
    chance = random.Random(1)
    topics = [
        Topic(COUNTY, SITE, f"gw-{n % _GATEWAYS:03d}", "air", f"air-{n:05d}", "readings")
        for n in range(devices)
    ]
    walks = [
        [
            chance.randint(5, 40),
            chance.randint(10, 60),
            chance.randint(180, 300),
            chance.randint(450, 900),
        ]
        for _ in topics
    ]
    for minute in range(minutes):
        for place, (topic, walk) in enumerate(zip(topics, walks, strict=True)):
            for n, (low, high) in enumerate(((1, 150), (1, 300), (50, 400), (200, 999))):
                walk[n] = min(high, max(low, walk[n] + chance.randint(-2, 2)))
            pm2_5, pm10, temperature, humidity = walk
            values: dict[str, float] = {
                "pm2_5": pm2_5,
                "pm10": max(pm10, pm2_5),
                "temperature": temperature / 10,
                "humidity": humidity / 10,
            }
            time_ms = _FIRST_MS + 60_000 * minute + 60_000 * place // devices
            yield topic, [Sample(time_ms, EPOCH + place, minute, values)]


async def measure(*, devices: int, minutes: int) -> Disk:
    """Store a load in both and weigh it. Raises: BenchmarkFailed, also when a sample is missing."""
    with stage(UNBOUNDED) as here:
        tsm, index = await _in_influxdb(here, devices, minutes)
        print(f"InfluxDB: {tsm} bytes of rows", file=sys.stderr, flush=True)
        return Disk(
            devices=devices,
            minutes=minutes,
            tsm_bytes=tsm,
            index_bytes=index,
            sqlite_bytes=await _in_sqlite(here, devices, minutes),
        )


async def _in_influxdb(here: Stage, devices: int, minutes: int) -> tuple[int, int]:
    consumer = Onestreet()
    seat, port, influx = here.seat("influxdb"), here.broker.port, here.influx
    await keep_session(port, seat.client_id, consumer.topic_filter)
    await fill(port, (consumer.message(*each) for each in day(devices, minutes)))
    async with here.running(consumer, seat), Reader(seat.bucket) as reader:
        rows = await reader.count_until(devices * minutes)
    if rows != devices * minutes:
        raise BenchmarkFailed(f"{rows} of {devices * minutes} rows are in InfluxDB")
    await forget_session(port, seat.client_id)
    influx.kill()  # what it has acknowledged is in its log, and comes back
    with _environment(_EAGER):
        influx.start()
    engine = here.folder / "influxd" / "engine"
    await _compacted(engine, seat.bucket.id)
    sizes = _sizes(engine / "data" / seat.bucket.id)
    tsm = sum(size for file, size in sizes.items() if file.suffix == ".tsm")
    return tsm, sum(sizes.values()) - tsm


async def _compacted(engine: Path, bucket: str) -> None:
    """Return when each shard is one file, nothing is left in the log, and all of it stands still."""
    marks: list[tuple[float, dict[Path, int]]] = [(time.monotonic(), {})]

    def stands_still() -> bool:
        now_s, sizes = time.monotonic(), _sizes(engine / "data" / bucket)
        if sizes != marks[0][1]:
            marks[0] = now_s, sizes
        shards = {file.parent for file in sizes if file.suffix == ".tsm"}
        files = sum(file.suffix == ".tsm" for file in sizes)
        in_log = sum(_sizes(engine / "wal" / bucket).values())
        whole = bool(shards) and files == len(shards) and not in_log
        return whole and now_s - marks[0][0] > _STILL_S

    await until(stands_still, "InfluxDB compacts", deadline_s=_DEADLINE_S, every_s=0.2)


async def _in_sqlite(here: Stage, devices: int, minutes: int) -> int:
    seat, port = here.seat("sqlite"), here.broker.port
    file = seat.folder / "town.sqlite"
    consumer = Onestreet(store=f"sqlite:///{file}")
    await keep_session(port, seat.client_id, consumer.topic_filter)
    await fill(port, (consumer.message(*each) for each in day(devices, minutes)))
    async with here.running(consumer, seat) as process:
        await process.until(
            lambda: _rows(file) >= devices * minutes,
            "SQLite holds every row",
            deadline_s=_DEADLINE_S,
            every_s=1.0,
        )
    await forget_session(port, seat.client_id)
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return sum(size for each, size in _sizes(seat.folder).items() if "town.sqlite" in each.name)


def _rows(file: Path) -> int:
    if not file.exists():
        return 0
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as connection:
        found: int = connection.execute("SELECT count(*) FROM points").fetchone()[0]
        return found


def _sizes(folder: Path) -> dict[Path, int]:
    """Return what every file takes of the disk; one that goes meanwhile is not there."""
    found = {}
    for file in folder.rglob("*"):
        try:
            if file.is_file():
                found[file] = 512 * file.stat().st_blocks
        except FileNotFoundError:
            continue
    return found


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set variables for the processes that start meanwhile."""
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in variables:
            del os.environ[name]


def table(found: Disk) -> str:
    """Return it for people."""
    per_sample = {
        "InfluxDB, rows (TSM, compacted)": found.tsm_bytes,
        "InfluxDB, index and series": found.index_bytes,
        "SQLite": found.sqlite_bytes,
    }
    lines = [
        f"{found.samples:,} samples: {found.devices} air boxes, {found.minutes} minutes, a sample a minute",
        "",
        f"{'':34}{'MB':>10}{'bytes/sample':>14}",
    ]
    for name, size in per_sample.items():
        lines.append(f"{name:34}{size / 1e6:>10.2f}{size / found.samples:>14.2f}")
    return "\n".join(lines)
