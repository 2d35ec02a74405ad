"""Rows in one SQLite file: for a demo, a village, or a town without a database of its own.

Durable when `write` returns (WAL, synchronous=FULL). One view per domain shows the dictionary's
metrics as columns to people with an SQL shell.
"""

from __future__ import annotations

import asyncio
import math
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from exchange.dictionary import dictionary
from exchange.errors import StoreError
from ingest.stores import (
    Count,
    DeviceRows,
    FieldValue,
    Part,
    Point,
    Series,
    StoreRejected,
    StoreUnavailable,
)

SCHEMA_VERSION = 2

_SCHEMA = """
CREATE TABLE points (
    measurement TEXT NOT NULL,
    county TEXT NOT NULL,
    site TEXT NOT NULL,
    device TEXT NOT NULL,
    time_ns INTEGER NOT NULL,
    domain TEXT NOT NULL,
    fields TEXT NOT NULL,
    PRIMARY KEY (measurement, county, site, device, time_ns, domain)
) WITHOUT ROWID;
CREATE INDEX points_by_time ON points (measurement, time_ns);
"""
# In version 1 the domain was no part of the key.
_FROM_1 = ";".join(
    [
        "DROP INDEX points_by_time",
        "ALTER TABLE points RENAME TO points_1",
        _SCHEMA,
        "INSERT INTO points SELECT * FROM points_1",
        "DROP TABLE points_1",
    ]
)
# json_patch merges the fields of a repeated key, as InfluxDB does.
_UPSERT = """
INSERT INTO points VALUES (?, ?, ?, ?, ?, ?, ?)
ON CONFLICT DO UPDATE SET fields = json_patch(fields, excluded.fields)
"""
_ROWS = """
SELECT measurement, county, site, device, domain, time_ns, fields FROM points
WHERE measurement = ? AND time_ns >= ? AND time_ns < ? AND (? IS NULL OR device = ?)
ORDER BY time_ns, county, site, device
"""
_SITES = """
WITH RECURSIVE found (site) AS (
    SELECT min(site) FROM points WHERE measurement = ?1 AND county = ?2
    UNION ALL
    SELECT (SELECT min(site) FROM points WHERE measurement = ?1 AND county = ?2 AND site > found.site)
    FROM found WHERE found.site IS NOT NULL
)
SELECT site FROM found WHERE site IS NOT NULL
"""
# By time: a part is a small piece of what a site has.
_PART = """
FROM points INDEXED BY points_by_time
WHERE measurement = ? AND time_ns >= ? AND time_ns < ? AND county = ? AND site = ?
    AND (? = '' OR domain = ?) AND (? = '[]' OR device IN (SELECT value FROM json_each(?)))
"""
_COUNTS = f"""
SELECT iif(?, device, '') AS whose, (time_ns - ?) / ? AS step, count(fields -> ?) {_PART}
GROUP BY whose, step ORDER BY whose, step
"""
_DEVICE_ROWS = f"SELECT device, time_ns, fields {_PART} ORDER BY device, time_ns"
_DELETE = """
DELETE FROM points WHERE measurement = ?1 AND time_ns <= (
    SELECT max(time_ns) FROM (
        SELECT time_ns FROM points WHERE measurement = ?1 AND time_ns < ?2 ORDER BY time_ns LIMIT ?3
    )
)
"""
_LOCK_PATIENCE_S = 1.0
_PAGE_ROWS = 2000
_INTERRUPT_EVERY_S = 0.02
_INT64 = 1 << 63
_VIEWS = {
    "device": "lat lon label asset_id gateway interval_s up status state since age_s incident flapping gateway_up",
    "incident": "id kind open ended duration_s devices cause label",
    "command": "id status reason readback",
}

T = TypeVar("T")
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(dict[str, FieldValue]).decode


class SqliteStore:
    """The store protocol on one file; everything that touches the disk runs in a thread."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._connection: sqlite3.Connection | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sqlite")

    async def open(self) -> None:
        await self._run(self._open)

    async def write(self, points: Sequence[Point]) -> None:
        await self._run(lambda: self._write(points))

    async def rows(
        self,
        measurement: str,
        *,
        device: str | None = None,
        start_ns: int | None = None,
        end_ns: int | None = None,
    ) -> AsyncIterator[Point]:
        first = -_INT64 if start_ns is None else start_ns
        last = _INT64 - 1 if end_ns is None else end_ns
        asked = (measurement, first, last, device, device)
        async for page in self._pages(_ROWS, asked):
            for *series, time_ns, fields in page:
                yield Point(Series(*series), time_ns, _decode(fields))

    async def sites(self, measurement: str, county: str) -> list[str]:
        asked = (measurement, county)
        return [site async for page in self._pages(_SITES, asked) for (site,) in page]

    async def narrowed(self, measurement: str, fields: Sequence[str]) -> list[str]:  # noqa: ARG002 - a row says itself what it has
        return list(fields)

    async def counts(
        self, part: Part, *, counted: str, step_ns: int, by_device: bool = True
    ) -> AsyncIterator[Count]:
        asked = (by_device, part.start_ns, step_ns, f'$."{counted}"', *_asked(part))
        async for page in self._pages(_COUNTS, asked):
            for device, step, rows in page:
                if rows:
                    yield Count(device, part.start_ns + step * step_ns, rows)

    async def device_rows(self, part: Part, fields: Sequence[str]) -> AsyncIterator[DeviceRows]:
        device, held = "", list[tuple[int, dict[str, FieldValue]]]()
        async for page in self._pages(_DEVICE_ROWS, _asked(part)):
            for name, time_ns, text in page:
                if name != device and held:
                    yield _by_column(device, held, fields)
                    held = []
                device = name
                held.append((time_ns, _decode(text)))
        if held:
            yield _by_column(device, held, fields)

    async def delete_before(self, measurement: str, time_ns: int, *, most: int) -> int:
        return await self._run(lambda: self._delete(measurement, time_ns, most))

    async def ping(self) -> None:
        if self._connection is None:
            await self.open()
        async for _ in self.rows("gateway", start_ns=_INT64 - 2):
            break

    async def close(self) -> None:
        if self._connection is not None:
            await self._run(self._connection.close)
            self._connection = None
        self._thread.shutdown()

    async def _pages(self, query: str, asked: tuple[Any, ...]) -> AsyncIterator[list[Any]]:
        """Yield an answer's rows, some at a time."""
        if self._connection is None:
            await self._run(lambda: self._open(reading=True))
        # A connection of its own: a long read holds up no write.
        reader = await asyncio.to_thread(self._connect)
        with closing(reader), self._translated():
            cursor = await _unless_cancelled(reader, lambda: reader.execute(query, asked))
            while page := await _unless_cancelled(reader, lambda: cursor.fetchmany(_PAGE_ROWS)):
                yield page

    async def _run(self, job: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, job)

    def _open(self, *, reading: bool = False) -> None:
        """Open the file, and make it; but whoever only reads has mistaken the path of one that is not there."""
        with self._translated():
            if reading and not self.path.exists():
                raise StoreUnavailable(f"{self.path}: there is no such store 沒有這個資料庫")
            self.path.parent.mkdir(parents=True, exist_ok=True)
            connection = self._connect()
            try:
                self._prepare(connection)
            except BaseException:
                connection.close()
                raise
        self._connection = connection

    def _connect(self) -> sqlite3.Connection:
        with self._translated():
            return sqlite3.connect(
                self.path,
                timeout=_LOCK_PATIENCE_S,
                check_same_thread=False,
                isolation_level=None,
            )

    def _prepare(self, connection: sqlite3.Connection) -> None:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        [(version,)] = connection.execute("PRAGMA user_version")
        if version > SCHEMA_VERSION:
            raise StoreError(
                f"{self.path}: schema {version} is newer than this program's {SCHEMA_VERSION}"
            )
        wanted = {name: _view(name, columns) for name, columns in _views().items()}
        asked = "SELECT name, sql FROM sqlite_schema WHERE type = 'view'"
        if version == SCHEMA_VERSION and dict(connection.execute(asked)) == wanted:
            return
        with _transaction(connection):
            [(version,)] = connection.execute("PRAGMA user_version")  # now nobody else changes it
            for name in wanted:
                connection.execute(f'DROP VIEW IF EXISTS "{name}"')
            if version != SCHEMA_VERSION:
                for statement in (_FROM_1 if version else _SCHEMA).split(";"):
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            for view in wanted.values():
                connection.execute(view)

    def _write(self, points: Sequence[Point]) -> None:
        rows = [_row(point) for point in points]
        if self._connection is None:
            self._open()
        assert self._connection is not None
        with self._translated(), _transaction(self._connection):
            self._connection.executemany(_UPSERT, rows)

    def _delete(self, measurement: str, time_ns: int, most: int) -> int:
        if self._connection is None:
            self._open()
        assert self._connection is not None
        with self._translated(), _transaction(self._connection):
            return self._connection.execute(_DELETE, (measurement, time_ns, most)).rowcount

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise StoreUnavailable(f"{self.path}: {error}") from error


async def _unless_cancelled(reader: sqlite3.Connection, job: Callable[[], T]) -> T:
    """Run a job of a reader in a thread. Cancelled, it ends when the thread has let the reader go."""
    # A future and no task: the end of a program cancels every task, this one cannot be.
    running = asyncio.get_running_loop().run_in_executor(None, job)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        while not running.done():  # again and again: what has not begun is not interrupted
            reader.interrupt()
            with suppress(asyncio.CancelledError):
                await asyncio.wait([running], timeout=_INTERRUPT_EVERY_S)
        running.exception()  # that it was interrupted
        raise


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # after some errors SQLite has rolled back by itself
            connection.execute("ROLLBACK")
        raise


def _asked(part: Part) -> tuple[Any, ...]:
    """Return what stands for the question marks of _PART."""
    devices = _encode(part.devices).decode()
    within = (part.measurement, part.start_ns, part.end_ns, part.county, part.site)
    return (*within, part.domain, part.domain, devices, devices)


def _by_column(
    device: str, held: list[tuple[int, dict[str, FieldValue]]], fields: Sequence[str]
) -> DeviceRows:
    there = {name for _, row in held for name in row}
    columns = {name: [row.get(name) for _, row in held] for name in fields if name in there}
    return DeviceRows(device, [time_ns for time_ns, _ in held], columns)


def _row(point: Point) -> tuple[Any, ...]:
    fields: dict[str, FieldValue] = {}
    for name, value in point.fields.items():
        kind = type(value)
        if kind is bool:
            fields[name] = int(value)
            continue
        if kind is float and not math.isfinite(value):  # type: ignore[arg-type]  # it is a float
            raise StoreRejected(f"{point.series}: {name} is {value}")
        if kind is int and not -_INT64 <= value < _INT64:  # type: ignore[operator]  # it is an int
            raise StoreRejected(f"{point.series}: {name} needs more than 64 bits")
        fields[name] = value
    if not fields or not -_INT64 <= point.time_ns < _INT64:
        raise StoreRejected(f"{point.series}: no fields, or a time of more than 64 bits")
    try:
        text = _encode(fields).decode()
    except UnicodeEncodeError as error:
        raise StoreRejected(f"{point.series}: {error}") from error
    series = point.series
    return (*series[:4], point.time_ns, series.domain, text)


def _views() -> dict[str, list[str]]:
    domains = {name: list(domain.metrics) for name, domain in dictionary().items()}
    reading = ["epoch", "seq", "quality"]
    views = {name: [*metrics, *reading] for name, metrics in domains.items()}
    return views | {name: columns.split() for name, columns in _VIEWS.items()}


def _view(name: str, columns: Sequence[str]) -> str:
    shown = "".join(f', fields ->> \'$."{each}"\' AS "{each}"' for each in columns)
    return (
        f'CREATE VIEW "{name}" AS SELECT county, site, device, domain, time_ns / 1000000 AS time_ms'  # noqa: S608 - names are the dictionary's
        f", strftime('%Y-%m-%dT%H:%M:%S', time_ns / 1000000000, 'unixepoch')"
        f" || printf('.%03dZ', time_ns / 1000000 % 1000) AS time{shown}, fields"
        f" FROM points WHERE measurement = '{name}'"
    )
