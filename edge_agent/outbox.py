"""The outbox: every sample taken and not yet receipted, on disk before it is offered to the broker.

SQLite in WAL mode. Taking is synced to the disk (`synchronous=FULL`), so a sample that was taken survives kill -9 and a
power cut, and the counters of a device are never behind its samples. Forgetting is not synced: a sample that comes back
after a power cut is sent again and meets its own row.

A disk that is full, or that fails, raises OutboxBlocked: nothing was taken, and the same call may be made again. A file
that turns out to be damaged while it is open raises OutboxDamaged: the next opening sets it aside.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec

from exchange.delivery import Key
from exchange.errors import OnestreetError
from exchange.readings import Sample, Value

T = TypeVar("T")
log = logging.getLogger(__name__)

SCHEMA_VERSION = 1
SLEW_MS = 100
"""Two readings of one burst may fall on one millisecond, and a clock is slewed back by less than this: a sample's time
then goes on from its predecessor's. More is a clock that was set back."""
_SCHEMA = """
CREATE TABLE sample (
    id INTEGER PRIMARY KEY AUTOINCREMENT,  -- never reused: the order of taking
    domain TEXT NOT NULL,
    device TEXT NOT NULL,
    epoch INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    time_ms INTEGER NOT NULL,
    quality TEXT NOT NULL,
    metrics TEXT NOT NULL,
    UNIQUE (device, epoch, seq)
);
CREATE TABLE counter (
    device TEXT PRIMARY KEY,
    epoch INTEGER NOT NULL,
    next_seq INTEGER NOT NULL,
    last_ms INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE state (
    topic TEXT PRIMARY KEY  -- the broker retains something of ours there
) WITHOUT ROWID;
"""
_encode = msgspec.json.Encoder().encode
_metrics = msgspec.json.Decoder(dict[str, bool | int | float]).decode


class Taken(NamedTuple):
    """What a bus hands in: one reading with the time it was measured at."""

    domain: str
    device: str
    time_ms: int
    metrics: dict[str, Value]
    quality: str = ""


class Waiting(NamedTuple):
    """A sample in the outbox; `id` rises in the order of taking."""

    id: int
    domain: str
    device: str
    sample: Sample


class OutboxBlocked(OnestreetError):
    """The disk does not do what the outbox needs; it may later."""


class OutboxDamaged(OnestreetError):
    """The file is damaged; final until it is opened again."""


class Outbox:
    """The samples of one gateway. One thread of its own does the work, in order of the calls."""

    def __init__(self, path: Path) -> None:
        """Nothing is opened yet."""
        self.path = path
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="outbox")
        self._db: sqlite3.Connection | None = None
        self._depth = 0
        self._gone: set[Key] = set()  # receipted, not deleted yet

    @property
    def depth(self) -> int:
        """Samples in it."""
        return self._depth

    async def open(self) -> None:
        """Open or create it. A file that is not a sound outbox is set aside, said aloud, and a new one begun.

        Raises: OutboxBlocked, also when another agent has it open.
        """
        await self._run(self._open)

    async def close(self) -> None:
        """Close it after everything that was asked before."""
        await self._run(self._close)
        self._thread.shutdown()

    async def take(self, readings: Sequence[Taken]) -> list[Waiting]:
        """Keep the readings durably and return them named by epoch and seq. Raises: OutboxBlocked."""
        return await self._run(lambda: self._take(readings))

    async def after(self, last_id: int, limit: int) -> list[Waiting]:
        """Return the next samples in the order of taking."""
        return await self._run(
            lambda: self._select("WHERE id > ? ORDER BY id LIMIT ?", (last_id, limit))
        )

    async def find(self, keys: Sequence[Key]) -> list[Waiting]:
        """Return those of the named samples that are still here, ascending."""
        return await self._run(lambda: self._find(keys))

    async def forget(self, keys: Iterable[Key]) -> None:
        """Let go of samples that have their receipt; what the disk does not let go now goes the next time."""
        gone = list(keys)
        await self._run(lambda: self._forget(gone))

    async def count(self, *, excluding_domain: str) -> int:
        """Return how many samples of other domains it holds."""
        query = "SELECT count(*) FROM sample WHERE domain <> ?"
        return await self._run(
            lambda: int(self._open_db.execute(query, (excluding_domain,)).fetchone()[0])
        )

    async def epoch_of(self, device: str, now_ms: int) -> int:
        """Return the epoch that the device's next sample will have, beginning one where there is none.

        Raises: OutboxBlocked.
        """
        return await self._run(lambda: self._epoch_of(device, now_ms))

    async def stating(self, topics: Sequence[str]) -> list[str]:
        """Note where states are about to be retained; return where older ones are that nobody stands behind now."""
        return await self._run(lambda: self._stating(topics))

    async def retired(self, topics: Sequence[str]) -> None:
        """Note that nothing is retained there any more."""
        await self._run(lambda: self._retired(topics))

    # ------------------------------------------------------------------------------------------- in the thread

    async def _run(self, work: Callable[[], T]) -> T:
        """Raises: OutboxBlocked, OutboxDamaged."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except sqlite3.OperationalError as error:
            raise OutboxBlocked(f"{self.path}: {error}") from error
        except sqlite3.DatabaseError as error:
            raise OutboxDamaged(f"{self.path}: {error}") from error

    @property
    def _open_db(self) -> sqlite3.Connection:
        if self._db is None:
            raise RuntimeError("the outbox is not open")
        return self._db

    def _open(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._db = self._connect()
        except sqlite3.OperationalError:
            raise  # a full disk, a lock: setting the file aside would lose it
        except OSError as error:
            raise OutboxBlocked(f"{self.path}: {error}") from error
        except (sqlite3.DatabaseError, _Unsound) as error:
            aside = self._set_aside()
            log.error(
                "the outbox was unsound and set aside",
                extra={"reason": str(error), "aside": str(aside)},
            )
            self._db = self._connect()
        self._depth = self._db.execute("SELECT count(*) FROM sample").fetchone()[0]

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False, timeout=1)
        try:
            db.execute("PRAGMA locking_mode=EXCLUSIVE")  # two agents would name samples alike
            version = db.execute("PRAGMA user_version").fetchone()[0]
            db.execute("PRAGMA journal_mode=WAL")
            if version == 0 and not db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                db.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version={SCHEMA_VERSION}; COMMIT;")
            elif version != SCHEMA_VERSION:
                raise _Unsound(f"schema {version}, this agent knows {SCHEMA_VERSION}")
            check = db.execute("PRAGMA quick_check(1)").fetchone()[0]
            if check != "ok":
                raise _Unsound(check)
        except BaseException:
            db.close()
            raise
        return db

    def _set_aside(self) -> Path:
        number = 1
        while (aside := self.path.with_name(f"{self.path.name}.unsound-{number}")).exists():
            number += 1
        for suffix in ("", "-wal", "-shm"):
            part = Path(f"{self.path}{suffix}")
            if part.exists():
                part.rename(f"{aside}{suffix}")
        return aside

    def _close(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None

    def _take(self, readings: Sequence[Taken]) -> list[Waiting]:
        db = self._open_db
        waiting = []
        with _transaction(db, "FULL"):
            for reading in readings:
                epoch, seq, time_ms = self._name(db, reading.device, reading.time_ms)
                sample = Sample(time_ms, epoch, seq, reading.metrics, reading.quality)
                row = (
                    reading.domain,
                    reading.device,
                    epoch,
                    seq,
                    sample.time_ms,
                    sample.quality,
                    _encode(sample.metrics).decode(),
                )
                cursor = db.execute(
                    "INSERT INTO sample (domain, device, epoch, seq, time_ms, quality, metrics)"
                    " VALUES (?, ?, ?, ?, ?, ?, ?)",
                    row,
                )
                waiting.append(
                    Waiting(cursor.lastrowid or 0, reading.domain, reading.device, sample)
                )
        self._depth += len(waiting)
        return waiting

    def _name(self, db: sqlite3.Connection, device: str, time_ms: int) -> tuple[int, int, int]:
        """Return epoch, seq and time of the device's next sample; a clock that was set back begins a new epoch."""
        found = db.execute(
            "SELECT epoch, next_seq, last_ms FROM counter WHERE device = ?", (device,)
        ).fetchone()
        if found is None:
            epoch, seq = time_ms, 0
        else:
            epoch, seq, last_ms = found
            if time_ms < last_ms - SLEW_MS:
                epoch, seq = max(time_ms, epoch + 1), 0
            else:
                time_ms = max(time_ms, last_ms + 1)
        db.execute(
            "INSERT OR REPLACE INTO counter (device, epoch, next_seq, last_ms) VALUES (?, ?, ?, ?)",
            (device, epoch, seq + 1, time_ms),
        )
        return epoch, seq, time_ms

    def _epoch_of(self, device: str, now_ms: int) -> int:
        db = self._open_db
        found = db.execute("SELECT epoch FROM counter WHERE device = ?", (device,)).fetchone()
        if found is None:
            found = (now_ms,)
            with _transaction(db, "FULL"):
                db.execute("INSERT INTO counter VALUES (?, ?, 0, ?)", (device, now_ms, now_ms - 1))
        return int(found[0])

    def _stating(self, topics: Sequence[str]) -> list[str]:
        db = self._open_db
        with _transaction(db, "NORMAL"):
            db.executemany("INSERT OR IGNORE INTO state VALUES (?)", [(topic,) for topic in topics])
        known = {topic for (topic,) in db.execute("SELECT topic FROM state")}
        return sorted(known - set(topics))

    def _retired(self, topics: Sequence[str]) -> None:
        db = self._open_db
        with _transaction(db, "NORMAL"):
            db.executemany("DELETE FROM state WHERE topic = ?", [(topic,) for topic in topics])

    def _select(self, where: str, values: tuple[object, ...]) -> list[Waiting]:
        rows = self._open_db.execute(
            f"SELECT id, domain, device, epoch, seq, time_ms, quality, metrics FROM sample {where}",  # noqa: S608 - our own clauses
            values,
        )
        return [
            Waiting(number, domain, device, Sample(time_ms, epoch, seq, _metrics(metrics), quality))
            for number, domain, device, epoch, seq, time_ms, quality, metrics in rows
        ]

    def _find(self, keys: Sequence[Key]) -> list[Waiting]:
        found = [
            waiting
            for key in keys
            for waiting in self._select("WHERE device = ? AND epoch = ? AND seq = ?", tuple(key))
        ]
        return sorted(found, key=lambda waiting: waiting.id)

    def _forget(self, keys: Iterable[Key]) -> None:
        were_kept = bool(self._gone)
        self._gone.update(keys)
        db = self._open_db
        try:
            with _transaction(db, "NORMAL"):
                cursor = db.executemany(
                    "DELETE FROM sample WHERE device = ? AND epoch = ? AND seq = ?", self._gone
                )
        except sqlite3.OperationalError as error:
            if not were_kept:
                log.warning("receipted samples stay for now", extra={"reason": str(error)})
            return
        self._gone.clear()
        self._depth -= cursor.rowcount


class _Unsound(Exception):
    """The file is no outbox of ours or is damaged."""


@contextmanager
def _transaction(db: sqlite3.Connection, synchronous: str) -> Iterator[None]:
    """All or nothing; sqlite3's own context manager does not begin one."""
    db.execute(f"PRAGMA synchronous={synchronous}")
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:  # after some errors SQLite has rolled back by itself
            db.execute("ROLLBACK")
        raise
