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
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from exchange.dictionary import dictionary
from exchange.errors import StoreError
from ingest.stores import FieldValue, Point, Series, StoreRejected, StoreUnavailable

SCHEMA_VERSION = 1

_SCHEMA = """
CREATE TABLE points (
    measurement TEXT NOT NULL,
    county TEXT NOT NULL,
    site TEXT NOT NULL,
    device TEXT NOT NULL,
    time_ns INTEGER NOT NULL,
    domain TEXT NOT NULL,
    fields TEXT NOT NULL,
    PRIMARY KEY (measurement, county, site, device, time_ns)
) WITHOUT ROWID;
CREATE INDEX points_by_time ON points (measurement, time_ns);
"""
# json_patch merges the fields of a repeated key, as InfluxDB does.
_UPSERT = """
INSERT INTO points VALUES (?, ?, ?, ?, ?, ?, ?)
ON CONFLICT DO UPDATE SET fields = json_patch(fields, excluded.fields), domain = excluded.domain
"""
_ROWS = """
SELECT measurement, county, site, device, domain, time_ns, fields FROM points
WHERE measurement = ? AND time_ns >= ? AND time_ns < ? AND (? IS NULL OR device = ?)
ORDER BY time_ns, county, site, device
"""
_LOCK_PATIENCE_S = 1.0
_PAGE_ROWS = 2000
_INT64 = 1 << 63
_VIEWS = {
    "device": "lat lon label asset_id gateway interval_s up status since",
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
        if self._connection is None:
            await self.open()
        # A connection of its own: a long read holds up no write.
        reader = await asyncio.to_thread(self._connect)
        with closing(reader):
            first = -_INT64 if start_ns is None else start_ns
            last = _INT64 - 1 if end_ns is None else end_ns
            asked = (measurement, first, last, device, device)
            with self._translated():
                cursor = await asyncio.to_thread(reader.execute, _ROWS, asked)
                while page := await asyncio.to_thread(cursor.fetchmany, _PAGE_ROWS):
                    for *series, time_ns, fields in page:
                        yield Point(Series(*series), time_ns, _decode(fields))

    async def ping(self) -> None:
        async for _ in self.rows("gateway", start_ns=_INT64 - 2):
            break

    async def close(self) -> None:
        if self._connection is not None:
            await self._run(self._connection.close)
            self._connection = None
        self._thread.shutdown()

    async def _run(self, job: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, job)

    def _open(self) -> None:
        with self._translated():
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
            if not version:
                for statement in _SCHEMA.split(";"):
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            for name, view in wanted.items():
                connection.execute(f'DROP VIEW IF EXISTS "{name}"')
                connection.execute(view)

    def _write(self, points: Sequence[Point]) -> None:
        rows = [_row(point) for point in points]
        if self._connection is None:
            self._open()
        assert self._connection is not None
        with self._translated(), _transaction(self._connection):
            self._connection.executemany(_UPSERT, rows)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise StoreUnavailable(f"{self.path}: {error}") from error


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
