"""How long each query of the pages and of the alert rules takes, on a real InfluxDB that holds a nation's week.

Asked as Grafana asks: InfluxQL at the database's version 1 door, by a token, one query after the other.
"""

from __future__ import annotations

import asyncio
import http.client
import os
import tempfile
import time
import urllib.parse
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean, median

import msgspec

from benchmarks.panel_rows import LEFT_OUT, Chunk, Week
from benchmarks.processes import BenchmarkFailed, cpu_s, resident_mb
from dashboards.alerts import rules
from dashboards.judgement import Query
from dashboards.pages import PAGES
from dashboards.panels import Source
from exchange.towns import read_town
from tests.influx import ORG, Bucket, Influx

WRITERS = 2
_DEADLINE_S = 600.0
_REST_S, _REST_FOR_S, _REST_DEADLINE_S = 5.0, 60.0, 1800.0
"""At rest is who does next to nothing for longer than what lies still is waited for."""
_TOWN = Path(__file__).parents[1] / "towns" / "tw-tpe.toml"
_STEPS = {"now-24h": "1m", "now-7d": "10m", "now-30d": "30m"}
"""What Grafana makes of $__interval in a panel of about a thousand points."""
_ALL = ".*"
_WRITING = {
    "storage-cache-max-memory-size": "4294967296",
    "storage-cache-snapshot-write-cold-duration": "5s",
    "storage-compact-full-write-cold-duration": "30s",
}
"""While rows are brought in: what lies still for hours is one file a shard, as it would be."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked, and of how much."""

    lamps: int = 160_000
    days: int = 7
    rounds: int = 3
    folder: Path | None = None
    """Where the database is kept; one that is there is asked as it is."""


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """One panel or rule. Units: seconds, of all its queries one after the other."""

    page: str
    panel: str
    rows: int
    kilobytes: float
    cold_s: float
    """The first time after a start with nothing of the database in memory."""
    warm_s: float
    """Median of the rounds after it."""
    cpu_s: float
    """Of InfluxDB in one of these, by what Linux counts in steps of 10 ms: the mean."""


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked, and of what."""

    devices: int
    sites: int
    lines: int
    """That were brought in; 0 where the database was there."""
    load_s: float
    disk_mb: float
    resident_mb: float
    asked: list[Asked]


class _Panel(msgspec.Struct, frozen=True, kw_only=True):
    page: str
    panel: str
    queries: list[tuple[Source, str]]


async def measure(plan: Plan) -> Found:
    """Bring the rows in, and ask. Raises: BenchmarkFailed."""
    influxd = os.environ.get("ONESTREET_INFLUXD", "")
    if not os.access(influxd, os.X_OK):
        raise BenchmarkFailed("ONESTREET_INFLUXD must name influxd: `make bench` sees to it")
    if plan.folder is not None:
        plan.folder.mkdir(parents=True, exist_ok=True)
        return await _measured(plan, influxd, plan.folder)
    with tempfile.TemporaryDirectory(prefix="onestreet-bench-") as name:
        return await _measured(plan, influxd, Path(name))


class _Kept(msgspec.Struct, kw_only=True):
    """What a kept folder says of its database."""

    lamps: int
    days: int
    now_ms: int
    org_id: str
    buckets: dict[str, tuple[str, str]]
    lines: int = 0
    load_s: float = 0.0


async def _measured(plan: Plan, influxd: str, folder: Path) -> Found:
    said = folder / "panels.json"
    if not said.exists():
        said.write_bytes(msgspec.json.encode(await _loaded(plan, influxd, folder)))
    kept = msgspec.json.decode(said.read_bytes(), type=_Kept)
    if (kept.lamps, kept.days) != (plan.lamps, plan.days):
        raise BenchmarkFailed(f"{folder} holds {kept.lamps} lamps and {kept.days} days")
    week = Week(kept.lamps, days=kept.days, now_ms=kept.now_ms)
    panels = [*_panels(week), *_rules(week)]
    _forget(folder)
    influx = Influx(influxd, folder)
    influx.org_id = kept.org_id
    influx.start(_DEADLINE_S)
    try:
        door = _Door(influx, {Source(name): own for name, own in kept.buckets.items()}, week)
        cold = [door.ask(panel) for panel in panels]
        warm = [[door.ask(panel) for panel in panels] for _ in range(plan.rounds)]
        asked = [
            Asked(
                page=panel.page,
                panel=panel.panel,
                rows=first.rows,
                kilobytes=first.size / 1000,
                cold_s=first.seconds,
                warm_s=median(each[index].seconds for each in warm),
                cpu_s=mean(each[index].cpu_s for each in warm),
            )
            for index, (panel, first) in enumerate(zip(panels, cold, strict=True))
        ]
        return Found(
            devices=week.devices,
            sites=len(week.sites),
            lines=kept.lines,
            load_s=kept.load_s,
            disk_mb=sum(file.stat().st_size for file in _files(folder)) / 1e6,
            resident_mb=resident_mb(influx.pid),
            asked=asked,
        )
    finally:
        influx.kill()


async def _loaded(plan: Plan, influxd: str, folder: Path) -> _Kept:
    """Bring the rows in and let the database come to rest."""
    influx = Influx(influxd, folder, settings=_WRITING)
    influx.start()
    try:
        buckets = {source: influx.bucket() for source in Source}
        now_ms = time.time_ns() // 1_000_000
        began_s, lines = time.monotonic(), 0
        writes: set[asyncio.Task[None]] = set()
        for chunk in Week(plan.lamps, days=plan.days, now_ms=now_ms).chunks():
            if len(writes) == WRITERS:
                done, writes = await asyncio.wait(writes, return_when=asyncio.FIRST_COMPLETED)
                for one in done:
                    one.result()
            write = asyncio.to_thread(_write, buckets[chunk.source], chunk)
            writes.add(asyncio.create_task(write))
            lines += chunk.lines.count("\n") + 1
        await asyncio.gather(*writes)
        load_s = time.monotonic() - began_s
        await _until_at_rest(influx.pid)
        return _Kept(
            lamps=plan.lamps,
            days=plan.days,
            now_ms=now_ms,
            org_id=influx.org_id,
            buckets={source.value: (one.name, one.token) for source, one in buckets.items()},
            lines=lines,
            load_s=load_s,
        )
    finally:
        influx.kill()


def _write(bucket: Bucket, chunk: Chunk) -> None:
    """Write lines, again while the database has no room for more. Raises: BenchmarkFailed."""
    path = f"/api/v2/write?org={ORG}&bucket={bucket.name}&precision=ms"
    headers = {"Authorization": f"Token {bucket.token}"}
    until_s = time.monotonic() + _DEADLINE_S
    while True:
        connection = http.client.HTTPConnection(
            "127.0.0.1", bucket.influx.port, timeout=_DEADLINE_S
        )
        try:
            connection.request("POST", path, chunk.lines.encode(), headers)
            answer = connection.getresponse()
            words = answer.read().decode(errors="replace")
        finally:
            connection.close()
        if answer.status == 204:
            return
        if answer.status not in (429, 500, 503) or time.monotonic() > until_s:
            raise BenchmarkFailed(f"InfluxDB does not take rows: {answer.status} {words}")


async def _until_at_rest(pid: int) -> None:
    """Return when the database has put its files together. Raises: BenchmarkFailed."""
    quiet_s, until_s = 0.0, time.monotonic() + _REST_DEADLINE_S
    while quiet_s < _REST_FOR_S:
        if time.monotonic() > until_s:
            raise BenchmarkFailed("InfluxDB does not come to rest")
        before_s = cpu_s(pid)
        await asyncio.sleep(_REST_S)
        quiet_s = quiet_s + _REST_S if cpu_s(pid) - before_s < 0.05 * _REST_S else 0.0


class _Answer(msgspec.Struct, frozen=True):
    seconds: float
    cpu_s: float
    rows: int
    size: int


class _Door:
    """The version 1 door of a database, over one connection that stays open."""

    def __init__(self, influx: Influx, buckets: dict[Source, tuple[str, str]], week: Week) -> None:
        self._buckets = buckets
        self._pid = influx.pid
        self._connection = http.client.HTTPConnection("127.0.0.1", influx.port, timeout=_DEADLINE_S)
        self._connection.connect()
        moment = datetime.fromtimestamp(week.now_ms / 1000, UTC)
        self._now = f"'{moment:%Y-%m-%dT%H:%M:%SZ}'"

    def ask(self, panel: _Panel) -> _Answer:
        """Ask what a panel asks. Raises: BenchmarkFailed."""
        before_s = cpu_s(self._pid)
        answers = [self._ask(source, text) for source, text in panel.queries]
        return _Answer(
            sum(one.seconds for one in answers),
            cpu_s(self._pid) - before_s,
            sum(one.rows for one in answers),
            sum(one.size for one in answers),
        )

    def _ask(self, source: Source, text: str) -> _Answer:
        bucket, token = self._buckets[source]
        query = text.replace("now()", self._now)  # the rows end there, however long ago
        body = urllib.parse.urlencode({"db": bucket, "q": query, "epoch": "ms"})
        headers = {
            "Authorization": f"Token {token}",
            "Content-Type": "application/x-www-form-urlencoded",
        }
        began_s = time.perf_counter()
        self._connection.request("POST", "/query", body, headers)
        answer = self._connection.getresponse()
        said = answer.read()
        seconds = time.perf_counter() - began_s
        if answer.status != 200:
            raise BenchmarkFailed(f"InfluxDB: {answer.status} {said[:300]!r} to {query}")
        [result] = msgspec.json.decode(said)["results"]
        if "error" in result:
            raise BenchmarkFailed(f"InfluxDB: {result['error']} to {query}")
        rows = sum(len(series["values"]) for series in result.get("series", []))
        return _Answer(seconds, 0.0, rows, len(said))


def _panels(week: Week) -> Iterator[_Panel]:
    """Return what every page asks: the whole nation, or the one site or device that the page is of."""
    site = week.shown
    for page in PAGES:
        chosen = {"county": _ALL, "site": _ALL, "device": _ALL}
        if not all(variable.several for variable in page.variables):
            chosen |= {"county": site.county, "site": site.name}
        if any(variable.name == "device" for variable in page.variables):
            chosen["device"] = site.devices["streetlight"][0]
        shown = page.range_from.removeprefix("now-")
        asked = [
            (f"${variable.name}", Source.RAW, shown, [str(variable.asks)])
            for variable in page.variables
        ]
        for band in page.bands:
            asked += [
                (one.name, one.source, one.last or shown, [str(ask) for ask in one.asks])
                for one in band.panels
            ]
        for panel, source, span, texts in asked:
            times = f"time >= now() - {span} AND time <= now()"
            queries = [
                (source, Query("", "", source, text).filled(chosen, times, _STEPS[page.range_from]))
                for text in texts
            ]
            yield _Panel(page=page.name, panel=panel, queries=queries)


def _rules(week: Week) -> Iterator[_Panel]:
    """Return what the alert rules of the largest county ask."""
    town = msgspec.structs.replace(read_town(_TOWN), county=week.shown.county)
    for rule in rules(town):
        times = f"time >= now() - {rule.from_s}s AND time <= now() - {rule.to_s}s"
        text = str(rule.asks).replace("$timeFilter", times)
        yield _Panel(page="alerts", panel=rule.name, queries=[(rule.source, text)])


def _files(folder: Path) -> Iterator[Path]:
    return (file for file in folder.rglob("*") if file.is_file())


def _forget(folder: Path) -> None:
    """Have the kernel forget what it remembers of the database's files."""
    os.sync()
    for file in _files(folder):
        handle = os.open(file, os.O_RDONLY)
        try:
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)


def table(found: Found) -> str:
    """Return the figures for people, the slowest first."""
    size = f"{found.devices:,} devices in {found.sites:,} sites, {found.disk_mb:,.0f} MB on disk"
    loaded = f"{found.lines:,} rows brought in {found.load_s:.0f} s"
    lines = [
        f"{size}; {loaded}; influxd has {found.resident_mb:,.0f} MB after it all",
        *(f"left out of {line}" for line in LEFT_OUT.splitlines()),
        "",
        "| page | panel | rows | kB | cold s | warm s | CPU s |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    lines += [
        f"| {one.page} | {one.panel} | {one.rows:,} | {one.kilobytes:,.0f}"
        f" | {one.cold_s:.3f} | {one.warm_s:.3f} | {one.cpu_s:.2f} |"
        for one in sorted(found.asked, key=lambda one: -one.warm_s)
    ]
    lines += ["", "| all of | cold s | warm s | CPU s |", "|---|--:|--:|--:|"]
    for page in dict.fromkeys(one.page for one in found.asked):
        mine = [one for one in found.asked if one.page == page]
        cold_s, warm_s = sum(one.cold_s for one in mine), sum(one.warm_s for one in mine)
        used_s = sum(one.cpu_s for one in mine)
        lines.append(f"| {page} | {cold_s:.2f} | {warm_s:.2f} | {used_s:.2f} |")
    return "\n".join(lines)
