"""The quarantine's file: one SQLite database, shared by every worker and the command line, in bounds.

Durable when a method returns (WAL, synchronous=FULL). Whatever happens is done in transactions of bounded size, and
the file and its log stay below `max_bytes`: what is oldest goes first, its pages are used again.
"""

from __future__ import annotations

import fcntl
import logging
import os
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from ingest.quarantine.evidence import Entry, Refused
from ingest.quarantine.schema import QuarantineUnusable, place_of, prepare, tally, version_of

log = logging.getLogger(__name__)

DAY_MS = 86_400_000
LOCK_S = 0.5
CHUNK_BYTES = 1024 * 1024
CHUNK_ENTRIES = 128
REMOVED_AT_ONCE = 256
SHRUNK_PAGES = 512
PAGE_BYTES = 4096
TRANSACTION_BYTES = 6 * 1024 * 1024
"""More than any of our transactions adds to the log, with every page that it touches."""
MAX_LOG_BYTES = 32 * 1024 * 1024
SHARED_MEMORY_BYTES = 128 * 1024
TOPIC_BYTES = 1024  # a valid one has less than 300
DETAIL_BYTES = 500
METRIC_BYTES = 200
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_REASON = """
INSERT INTO reasons VALUES (?, ?, ?, ?, ?, ?, 1) ON CONFLICT DO UPDATE SET times = times + 1
"""
_FREE_PAGES = """
SELECT freelist_count, page_count FROM pragma_freelist_count, pragma_page_count
"""


class Database:
    """One connection to the file, opened when first needed, and again when another file is in its place.

    Raises: QuarantineUnusable, sqlite3.Error, OSError, each method.
    """

    def __init__(
        self,
        path: Path,
        *,
        max_bytes: int,
        max_age_days: float,
        lock_s: float = LOCK_S,
        time_s: Callable[[], float] = time.time,
    ) -> None:
        self.path = path
        self.entries = 0
        """Payloads in the file, when it was last looked at."""
        self.evicted: Counter[str] = Counter()
        """Refusals that this object evicted, by requirement."""
        self._log_bytes = min(max_bytes // 2, MAX_LOG_BYTES)
        self._pages = (max_bytes - self._log_bytes - SHARED_MEMORY_BYTES) // PAGE_BYTES
        self._max_age_ms = max_age_days * DAY_MS
        self._lock_s = lock_s
        self._time_s = time_s
        self._evicting: Counter[str] = Counter()
        self._connection: sqlite3.Connection | None = None
        self._queue: int | None = None
        self._identity: tuple[int, int] | None = None

    @property
    def size_bytes(self) -> int:
        """What the file and its log take on the disk."""
        sizes = 0
        for end in ("", "-wal", "-shm"):
            with suppress(OSError):
                sizes += Path(f"{self.path}{end}").stat().st_size
        return sizes

    def keep(self, entries: Sequence[Entry]) -> None:
        """Write what `chunks` gives at once, in one transaction."""
        bodies = sum(len(entry.body or b"") for entry in entries)
        refused = sum(len(entry.refused) for entry in entries)
        size_bytes = bodies + 1500 * len(entries) + 800 * refused
        while True:
            with self._transaction() as connection:
                lacking_bytes = size_bytes - self._room_bytes(connection)
                if lacking_bytes <= 0:
                    for entry in entries:
                        _insert(connection, entry)
                    return
                if not self._evict_oldest(connection, lacking_bytes):
                    raise QuarantineUnusable(f"{self.path}: no room")

    def tidy(self) -> bool:
        """Evict some of what is too old or too much; return whether there may be more of it."""
        if not self.path.exists():
            return False
        oldest_ms = self._time_s() * 1000 - self._max_age_ms
        with self._transaction() as connection:
            asked = "SELECT id, received_ms FROM payloads ORDER BY id LIMIT ?"
            found = connection.execute(asked, (REMOVED_AT_ONCE,)).fetchall()
            aged = [number for number, received_ms in found if received_ms < oldest_ms]
            self._evict(connection, aged)
            _, pages = connection.execute(_FREE_PAGES).fetchone()
            if pages > self._pages:  # the limit was lowered
                self._evict_oldest(connection, -self._room_bytes(connection))
        if pages > self._pages:
            self._vacuum()
        return bool(aged) or pages > self._pages

    def remove(self, ids: Sequence[int], what: str) -> int:
        """Remove payloads and count their refusals as `what`; return how many there were."""
        gone = 0
        for start in range(0, len(ids), REMOVED_AT_ONCE):
            with self._transaction() as connection:
                there = _there(connection, ids[start : start + REMOVED_AT_ONCE])
                _remove(connection, there, what)
                gone += len(there)
        return gone

    def replace(self, reasons: Iterable[tuple[int, Sequence[Refused]]]) -> None:
        """Give payloads other reasons than they had: what broke is not what breaks."""
        with self._transaction() as connection:
            for number, refused in reasons:
                if _there(connection, [number]):
                    connection.execute("DELETE FROM reasons WHERE payload = ?", (number,))
                    connection.executemany(_REASON, [_reason_row(number, one) for one in refused])

    def shrink(self) -> None:
        """Give the disk back what is free in the file."""
        while self._vacuum():
            pass
        with self._turn():
            self._current().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def set_aside(self, why: sqlite3.Error) -> None:
        """Rename a damaged file, unless another process has done it; only the newest such is kept."""
        identity = self._identity
        self.close()
        with suppress(FileNotFoundError), self.path.open("rb") as damaged:
            fcntl.flock(damaged, fcntl.LOCK_EX | fcntl.LOCK_NB)
            found = os.fstat(damaged.fileno())
            if identity != (found.st_dev, found.st_ino) or identity != _identity(self.path):
                return
            folder = Path(f"{self.path}.damaged")  # its own: what is damaged must end no backup
            folder.mkdir(exist_ok=True)
            earlier = list(folder.iterdir())
            name = folder / f"{time.time_ns()}-{self.path.name}"
            # Its log goes first: beside a new file it would be taken for that one's.
            for end in ("-wal", ""):
                with suppress(FileNotFoundError):
                    Path(f"{self.path}{end}").rename(f"{name}{end}")
            Path(f"{self.path}-shm").unlink(missing_ok=True)
            for one in earlier:
                one.unlink(missing_ok=True)
            log.error(
                "the quarantine is damaged: set aside, a new one is begun",
                extra={"why": str(why), "set_aside": str(name)},
            )

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._queue is not None:
            os.close(self._queue)
            self._queue = None

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Have the file alone, with room in its log for one transaction of ours."""
        with self._turn():
            connection = self._current()
            with self._begun(connection):
                yield connection

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Wait until no other process is at the file, or makes it.

        SQLite's own lock is not fair: of several workers in a flood some would never get it.
        """
        if self._queue is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # To read is enough: it may be another user's.
            flags = os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC
            self._queue = os.open(f"{self.path}.lock", flags, 0o644)
        fcntl.flock(self._queue, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._queue, fcntl.LOCK_UN)

    @contextmanager
    def _begun(self, connection: sqlite3.Connection) -> Iterator[None]:
        self._evicting.clear()
        for attempt in (1, 2):
            connection.execute("BEGIN IMMEDIATE")
            if self._log_has_room():
                break
            connection.execute("ROLLBACK")
            if attempt == 2:
                raise QuarantineUnusable(
                    f"{self.path}: somebody reads it for long, its log cannot be emptied"
                )
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        try:
            yield
            [(entries,)] = connection.execute(
                "SELECT coalesce(max(count), 0) FROM tallies WHERE what = 'entries'"
            )
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:  # after some errors SQLite has rolled back by itself
                connection.execute("ROLLBACK")
            raise
        self.entries = entries
        self.evicted.update(self._evicting)

    def _log_has_room(self) -> bool:
        try:
            size_bytes = Path(f"{self.path}-wal").stat().st_size
        except FileNotFoundError:
            return True
        return size_bytes <= self._log_bytes - TRANSACTION_BYTES

    def _current(self) -> sqlite3.Connection:
        """Return the connection to the file that is there now."""
        if self._connection is not None and self._identity != _identity(self.path):
            self._connection.close()  # removed, or set aside by another process
            self._connection = None
        if self._connection is None:
            self._connection = self._open()
        return self._connection

    def _open(self) -> sqlite3.Connection:
        self._identity = _identity(self.path)
        connection = sqlite3.connect(
            self.path, timeout=self._lock_s, check_same_thread=False, isolation_level=None
        )
        try:
            version_of(connection)  # first: another's file is not touched
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # of a file that is new
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute(f"PRAGMA journal_size_limit = {self._log_bytes // 4}")
            prepare(connection, keep_bytes=self._pages * PAGE_BYTES * 3 // 4)
            connection.execute(f"PRAGMA max_page_count = {self._pages}")
        except QuarantineUnusable as error:
            connection.close()
            raise QuarantineUnusable(f"{self.path}: {error}") from None
        except BaseException:
            connection.close()
            raise
        self._identity = _identity(self.path)
        return connection

    def _vacuum(self) -> bool:
        """Give some free pages back; return whether there are more."""
        with self._transaction() as connection:
            before, _ = connection.execute(_FREE_PAGES).fetchone()
        # As a script: of a statement without columns the sqlite3 module runs the first step, one page, alone.
        connection.executescript(f"PRAGMA incremental_vacuum({SHRUNK_PAGES})")
        after, _ = connection.execute(_FREE_PAGES).fetchone()
        return bool(0 < after < before)

    def _room_bytes(self, connection: sqlite3.Connection) -> int:
        """Return what can still be written, negative when the file is larger than it may be."""
        free, pages = connection.execute(_FREE_PAGES).fetchone()
        return int((free + self._pages - pages) * PAGE_BYTES)

    def _evict_oldest(self, connection: sqlite3.Connection, size_bytes: int) -> bool:
        """Evict a bounded number, up to about so many bytes; False when nothing is left."""
        asked = "SELECT id, coalesce(length(body), 0) + 300 FROM payloads ORDER BY id LIMIT ?"
        found = connection.execute(asked, (REMOVED_AT_ONCE,)).fetchall()
        chosen: list[int] = []
        for number, entry_bytes in found:
            if size_bytes <= 0:
                break
            chosen.append(number)
            size_bytes -= entry_bytes
        self._evict(connection, chosen)
        return bool(found)

    def _evict(self, connection: sqlite3.Connection, ids: Sequence[int]) -> None:
        self._evicting.update(_remove(connection, ids, "evicted"))


def chunks(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    """Yield entries in portions that make a bounded transaction."""
    chunk: list[Entry] = []
    size_bytes = 0
    for entry in entries:
        chunk.append(entry)
        size_bytes += len(entry.body or b"") + 800 * len(entry.refused)
        if size_bytes >= CHUNK_BYTES or len(chunk) >= CHUNK_ENTRIES:
            yield chunk
            chunk, size_bytes = [], 0
    if chunk:
        yield chunk


def _insert(connection: sqlite3.Connection, entry: Entry) -> None:
    seen = entry.evidence
    topic = _cut(seen.topic, TOPIC_BYTES)
    known = connection.execute(
        "SELECT id, body IS NULL FROM payloads WHERE sha256 = ? AND topic = ?",
        (seen.sha256, topic),
    ).fetchone()
    if known is None:
        row = (seen.sha256, topic, *place_of(topic), seen.size_bytes, seen.received_ms)
        asked = "INSERT INTO payloads VALUES (NULL, ?, ?, ?, ?, ?, ?, ?)"
        number = connection.execute(asked, (*row, entry.body)).lastrowid
        assert number is not None
        tally(connection, "entries", "", 1)
    else:
        number, is_missing = known
        if is_missing and entry.body is not None:
            asked = "UPDATE payloads SET body = ? WHERE id = ?"
            connection.execute(asked, (entry.body, number))
    connection.executemany(_REASON, [_reason_row(number, one) for one in entry.refused])


def is_damage(error: Exception) -> bool:
    """Whether an error says that the file is no sound database."""
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in _DAMAGED


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _there(connection: sqlite3.Connection, ids: Sequence[int]) -> list[int]:
    asked = "SELECT 1 FROM payloads WHERE id = ?"
    return [number for number in ids if connection.execute(asked, (number,)).fetchone()]


def _remove(connection: sqlite3.Connection, ids: Sequence[int], what: str) -> Counter[str]:
    """Remove payloads that are there; return their refusals by requirement, which are tallied."""
    gone: Counter[str] = Counter()
    for number in ids:
        asked = "SELECT requirement, count(*) FROM reasons WHERE payload = ? GROUP BY 1"
        gone.update(dict(connection.execute(asked, (number,)).fetchall()))
        connection.execute("DELETE FROM reasons WHERE payload = ?", (number,))
        connection.execute("DELETE FROM payloads WHERE id = ?", (number,))
    for requirement, count in gone.items():
        tally(connection, what, requirement, count)
    if ids:
        tally(connection, "entries", "", -len(ids))
    return gone


def _reason_row(number: int, refused: Refused) -> tuple[int, str, int, int, str, str]:
    return (
        number,
        refused.requirement,
        refused.epoch,
        refused.seq,
        _cut(refused.metric, METRIC_BYTES),
        _cut(refused.detail, DETAIL_BYTES),
    )


def _cut(text: str, size_bytes: int) -> str:
    """Return a text that any file takes: hostile ones are long, or no Unicode."""
    return text.encode(errors="backslashreplace")[:size_bytes].decode(errors="ignore")
