"""The ledger of commands: what was ordered, what became of it, and the results that wait for their receipt.

SQLite, and an order is synced to the disk before it is carried out: whatever is killed when, nothing is executed twice.
The trail of what was done is bounded by number and age. What is let go are orders that have expired; until when those
were valid is kept, so that one that comes again after a clock was set back is known for what it may be.

SQLite notices no damaged byte in what is stored. So each order is there twice, in columns and as it came, is compared
when it is read, and all are read at the open: a ledger of which one cannot be believed is set aside whole.
"""

from __future__ import annotations

import asyncio
import logging
import re
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Literal, NamedTuple, TypeVar
from uuid import UUID

import msgspec

from exchange.commands import (
    Command,
    Result,
    Status,
    decode_result,
    encode_command,
    encode_result,
)
from exchange.errors import CommandError, OnestreetError
from exchange.moments import Moment
from exchange.readings import Value
from exchange.topics import END

T = TypeVar("T")
log = logging.getLogger(__name__)

FILE = "commands.sqlite"  # in the agent's state_dir
SCHEMA_VERSION = 1
ENTRIES_KEPT = 5000
"""Orders in the trail, of each kind. Those that have not expired stay beyond it, up to twice as many."""
DAYS_KEPT = 400
STEADY_S = 86_400.0
"""Nothing is too old before the clock has gone steadily for so long: a wrong moment costs no trail, ..."""
STEADY_MS = 3_600_000  # ... steadily within this
RESULTS_KEPT = 1000
"""Results without a receipt; beyond it the oldest of what was not carried out goes, then the oldest, and is counted."""
UNSOUND_KEPT = 5
Kind = Literal["issued", "programme"]
"""Who ordered it: somebody through the broker, or a programme of this gateway."""
_PARTS = ("", "-wal", "-shm")
_ASIDE = re.compile(r"\.unsound-([0-9]{1,9})")
_DAY_MS = 86_400_000
_EVER_MS = 2**62
_SCHEMA = """
CREATE TABLE entry (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    kind TEXT NOT NULL,
    id TEXT UNIQUE,            -- of a command that was issued
    device TEXT NOT NULL,
    name TEXT NOT NULL,
    detail TEXT NOT NULL,      -- the order as JSON
    taken_ms INTEGER NOT NULL,
    expires_ms INTEGER NOT NULL,
    topic TEXT NOT NULL,       -- where its results go
    status TEXT NOT NULL,      -- of the newest result, '' before there is one
    at_ms INTEGER NOT NULL,    -- of the newest result
    result TEXT NOT NULL       -- the newest result as it travels
);
CREATE INDEX entry_by_kind ON entry (kind, number);
CREATE INDEX entry_by_device ON entry (device, name, status, at_ms);
CREATE TABLE result (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL,
    status TEXT NOT NULL,
    topic TEXT NOT NULL,
    payload TEXT NOT NULL,
    UNIQUE (id, status)
);
CREATE TABLE past (            -- what is known of orders that are not in the trail any more; two rows that are the same
    expired_ms INTEGER NOT NULL,  -- none was valid for longer
    issued_ms INTEGER NOT NULL    -- or was issued after that, in a ledger that was set aside; 2**62: when is not known
);
"""


class LedgerBlocked(OnestreetError):
    """The disk does not take it, or another agent has the ledger open: nothing was recorded."""


class Waiting(NamedTuple):
    """A result without a receipt."""

    number: int
    id: str
    status: str
    topic: str
    payload: bytes


class Detail(msgspec.Struct, frozen=True, kw_only=True):
    """What of an order is read again: of a command of somebody's, or of a note of the gateway's own."""

    id: UUID | None = None
    name: str = ""
    by: str = ""
    issued_by: str = ""
    expires_at: Moment | None = None
    args: dict[str, Value | str] = {}


class Came(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it."""

    id: UUID | None = None
    status: str = ""
    at: Moment | None = None
    reason: str = ""
    readback: dict[str, Value] = {}


class Entry(NamedTuple):
    """One line of the trail. Shape: `status` is "" while nothing came of it; `topic` is where its results go."""

    kind: Kind
    device: str
    name: str
    taken_ms: int
    topic: str
    status: str
    at_ms: int
    detail: Detail
    result: Came


class Issued(NamedTuple):
    """A command of somebody that was carried out. Units: `at_ms` since 1970 UTC."""

    id: str
    at_ms: int
    args: dict[str, Value]


class Ledger:
    """One gateway's ledger. All work runs in one thread of its own. Raises: LedgerBlocked, whatever is asked."""

    def __init__(self, path: Path) -> None:
        """Nothing is opened yet."""
        self.path = path
        self.unreceipted = 0
        """Results that wait for their receipt."""
        self.dropped = 0
        """Results that were let go without one."""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ledger")
        self._db: sqlite3.Connection | None = None
        self._opened_s = 0.0
        self._steady_since_s = self._epoch_ms = float("-inf")
        self._damage = ""
        """What was found in it since it was opened; it is set aside for that before anything else is asked."""
        self._is_to_open_again = False
        self._is_lost = False
        """One was set aside and nobody knew the time, or this process did it: it is dated by how long it is open."""

    async def open(self) -> None:
        """Open or create it, unless it is; one that is none of ours, or is damaged, is set aside and said aloud."""
        await self._run(self._open)

    async def close(self) -> None:
        """Close it after everything that was asked before."""
        await self._run(self._close)
        self._thread.shutdown()

    async def enter(
        self, command: Command, device: str, topic: str, now_ms: int, *, is_known: bool = True
    ) -> Entry | Literal["new", "past", "full"]:
        """Record a command, durably, before it is carried out; `topic` is where its results go.

        Shape: "new" alone may be carried out; an entry is what is known of one that came before; "past" is one that
            may have been here and been let go; "full" says that too many have not expired yet. `is_known` is the time.
        """
        return await self._run(lambda: self._enter(command, device, topic, now_ms, is_known))

    async def answer(self, result: Result, topic: str) -> None:
        """Keep a result until its receipt, and note it in the trail."""
        await self._run(lambda: self._answer(result, topic))

    async def answer_again(self, command: UUID) -> None:
        """Have the newest result of a command go out once more, receipted before or not."""
        await self._run(lambda: self._answer_again(str(command)))

    async def reply(self, result: Result, topic: str) -> None:
        """Keep a result until its receipt of what was not recorded; the trail stays as it is."""
        await self._run(lambda: self._reply(result, topic))

    async def interrupted(self) -> list[tuple[UUID, str]]:
        """Return the commands that have no last result, and where it goes."""
        return await self._run(self._interrupted)

    async def note(
        self, device: str, name: str, detail: bytes, now_ms: int, status: str, outcome: bytes
    ) -> None:
        """Add to the trail what a programme of the gateway did, and what came of it."""
        await self._run(lambda: self._note(device, name, detail, now_ms, status, outcome))

    async def results(self) -> list[Waiting]:
        """Return the results without a receipt, oldest first."""
        return await self._run(self._results)

    async def receipted(self, results: Sequence[tuple[str, str]]) -> None:
        """Let go of results that were receipted, named by command id and status."""
        await self._run(lambda: self._receipted(results))

    async def last_issued(self, device: str, name: str) -> Issued | None:
        """Return the last command of that name that somebody issued and the device carried out."""
        return await self._run(lambda: self._last_issued(device, name))

    async def trail(self, limit: int = 100) -> list[Entry]:
        """Return the newest entries, newest first."""
        return await self._run(lambda: self._trail(limit))

    # ------------------------------------------------------------------------------------------- in the thread

    async def _run(self, work: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._done, work)
        except (sqlite3.Error, OSError, _Unsound) as error:
            raise LedgerBlocked(f"{self.path}: {error}") from error

    def _done(self, work: Callable[[], T]) -> T:
        """Do it, in another ledger if there is damage in this one."""
        try:
            return work()
        except (sqlite3.DatabaseError, UnicodeDecodeError, _Unsound) as error:
            if self._db is None or not _is_damage(error):
                raise
            self._damage, self._is_to_open_again = str(error), True
            self._close()
            return work()

    @property
    def _open_db(self) -> sqlite3.Connection:
        if self._is_to_open_again:
            self._open()
        if self._db is None:
            raise LedgerBlocked(f"{self.path}: not open")
        return self._db

    def _open(self) -> None:
        if self._db is not None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            if self._damage:
                raise _Unsound(self._damage)
            db = self._connect()
        except sqlite3.OperationalError:
            raise  # a full disk, a lock: setting the file aside would lose it
        except (sqlite3.DatabaseError, _Unsound) as error:
            aside = self._set_aside()
            log.error(
                "the ledger of commands was unsound and set aside",
                extra={"reason": str(error), "aside": str(aside)},
            )
            self._damage = ""
            db = self._connect()
        self._db, self._is_to_open_again = db, False
        self._count()

    def _connect(self) -> sqlite3.Connection:
        if self.path.exists():
            with self.path.open("rb") as file:
                head = file.read(20)
            if head and head[18:] not in _FORMATS:  # SQLite would say that the disk is read-only
                raise _Unsound("no file of SQLite's")
        db = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False, timeout=1)
        db.text_factory = (
            bytes.decode
        )  # sqlite3's own says of what is no UTF-8 that the disk failed
        try:
            self._prepare(db)
        except BaseException:
            db.close()
            raise
        return db

    def _prepare(self, db: sqlite3.Connection) -> None:
        with _reading():
            db.execute("PRAGMA locking_mode=EXCLUSIVE")  # two agents would execute the same
            version = db.execute("PRAGMA user_version").fetchone()[0]
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=FULL")
            if version == 0 and not db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                # what was issued before may have been carried out: the file that knew is gone
                issued_ms = _EVER_MS if self._unsound() else 0
                past = f"(0, {issued_ms})"
                past = f"INSERT INTO past VALUES {past}, {past};"  # noqa: S608 - our own number
                db.executescript(
                    f"BEGIN; {_SCHEMA} {past} PRAGMA user_version={SCHEMA_VERSION}; COMMIT;"
                )
            elif version != SCHEMA_VERSION:
                raise _Unsound(f"schema {version}, this agent knows {SCHEMA_VERSION}")
            check = db.execute("PRAGMA integrity_check(1)").fetchone()[0]
            if check != "ok":
                raise _Unsound(check)
            for row in db.execute(f"SELECT {_COLUMNS} FROM entry"):  # noqa: S608 - our own columns
                _entry(row)
            db.execute("SELECT number, id, status, topic, payload FROM result LIMIT 0")  # are there
            [past] = set(db.execute("SELECT expired_ms, issued_ms FROM past"))
            _, issued_ms = msgspec.convert(past, tuple[int, int])
            self._opened_s = time.monotonic()
            self._is_lost = issued_ms == _EVER_MS

    def _set_aside(self) -> Path:
        numbers = self._unsound()
        aside = self._aside(max(numbers, default=0) + 1)
        for suffix in _PARTS:
            part = Path(f"{self.path}{suffix}")
            if part.exists():
                part.rename(f"{aside}{suffix}")
        for number in sorted(numbers, reverse=True)[UNSOUND_KEPT - 1 :]:
            for suffix in _PARTS:
                Path(f"{self._aside(number)}{suffix}").unlink(missing_ok=True)
        return aside

    def _unsound(self) -> list[int]:
        """Return the numbers of those that were set aside."""
        names = (path.name for path in self.path.parent.iterdir())
        found = (_ASIDE.fullmatch(name.removeprefix(self.path.name)) for name in names)
        return [int(match[1]) for match in found if match]

    def _aside(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.unsound-{number}")

    def _close(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None

    def _enter(
        self, command: Command, device: str, topic: str, now_ms: int, is_known: bool
    ) -> Entry | Literal["new", "past", "full"]:
        with _transaction(self._open_db) as db:
            if is_known:  # each time: the clock may have been wrong, and may be in the future now
                opened_ms = now_ms - _ms(time.monotonic() - self._opened_s)
                db.execute(
                    "UPDATE past SET issued_ms = ? WHERE ? OR issued_ms > ?",
                    (opened_ms, self._is_lost, opened_ms),
                )
            query = f"SELECT {_COLUMNS} FROM entry WHERE id = ?"  # noqa: S608 - our own columns
            if row := db.execute(query, (str(command.id),)).fetchone():
                return _entry(row)
            issued_ms = _ms(command.issued_at.timestamp())
            expires_ms = _ms(command.expires_at.timestamp())
            is_fresh = db.execute(
                "SELECT count(*) = sum(expired_ms < ? AND issued_ms < ?) FROM past",
                (expires_ms, issued_ms),
            ).fetchone()
            if is_fresh != (1,):
                return "past"
            number = "SELECT count(*) FROM entry WHERE kind = 'issued'"
            if db.execute(number).fetchone()[0] >= 2 * ENTRIES_KEPT:
                return "full"
            detail = encode_command(command).decode()
            db.execute(
                "INSERT INTO entry (kind, id, device, name, detail, taken_ms, expires_ms, topic, status, at_ms, result)"
                " VALUES ('issued', ?, ?, ?, ?, ?, ?, ?, '', ?, '')",
                (str(command.id), device, command.name, detail, now_ms, expires_ms, topic, now_ms),
            )
            _prune(db, "issued", now_ms, self._old_ms(now_ms))
        return "new"

    def _old_ms(self, now_ms: int) -> int:
        """Return the moment before which an order is too old."""
        now_s = time.monotonic()
        epoch_ms = now_ms - 1000 * now_s
        if abs(epoch_ms - self._epoch_ms) > STEADY_MS:
            self._epoch_ms, self._steady_since_s = epoch_ms, now_s
        is_steady = now_s - self._steady_since_s >= STEADY_S
        return now_ms - DAYS_KEPT * _DAY_MS if is_steady else 0

    def _answer(self, result: Result, topic: str) -> None:
        payload = encode_result(result).decode()
        with _transaction(self._open_db) as db:
            db.execute(
                "UPDATE entry SET status = ?, at_ms = ?, result = ? WHERE id = ?",
                (result.status, _ms(result.at.timestamp()), payload, str(result.id)),
            )
            self.dropped += _keep(db, result, topic, payload)
        self._count()

    def _reply(self, result: Result, topic: str) -> None:
        with _transaction(self._open_db) as db:
            self.dropped += _keep(db, result, topic, encode_result(result).decode())
        self._count()

    def _answer_again(self, command: str) -> None:
        with _transaction(self._open_db) as db:
            db.execute(
                "INSERT OR IGNORE INTO result (id, status, topic, payload)"
                " SELECT id, status, topic, result FROM entry WHERE id = ? AND status <> ''",
                (command,),
            )
        self._count()

    def _interrupted(self) -> list[tuple[UUID, str]]:
        rows = self._open_db.execute(
            f"SELECT {_COLUMNS} FROM entry"  # noqa: S608 - our own columns
            " WHERE kind = 'issued' AND status IN ('', 'accepted') ORDER BY number"
        )
        entries = map(_entry, rows)
        return [(one.detail.id, one.topic) for one in entries if one.detail.id is not None]

    def _note(
        self, device: str, name: str, detail: bytes, now_ms: int, status: str, outcome: bytes
    ) -> None:
        with _transaction(self._open_db) as db:
            db.execute(
                "INSERT INTO entry (kind, device, name, detail, taken_ms, expires_ms, topic, status, at_ms, result)"
                " VALUES ('programme', ?, ?, ?, ?, 0, '', ?, ?, ?)",
                (device, name, detail.decode(), now_ms, status, now_ms, outcome.decode()),
            )
            _prune(db, "programme", now_ms, self._old_ms(now_ms))

    def _results(self) -> list[Waiting]:
        rows = self._open_db.execute(
            "SELECT number, CAST(id AS BLOB), CAST(status AS BLOB), CAST(topic AS BLOB),"
            " CAST(payload AS BLOB) FROM result ORDER BY number"
        ).fetchall()
        found = []
        for row in rows:
            try:
                found.append(_waiting(row))
            except _Unsound as error:
                log.error(
                    "a damaged result was let go of",
                    extra={
                        "command": (row[1] or b"").decode(errors="replace"),
                        "reason": str(error),
                    },
                )
                self._open_db.execute("DELETE FROM result WHERE number = ?", row[:1])
                self._count()
        return found

    def _receipted(self, results: Sequence[tuple[str, str]]) -> None:
        with _transaction(self._open_db) as db:
            db.executemany("DELETE FROM result WHERE id = ? AND status = ?", results)
        self._count()

    def _count(self) -> None:
        self.unreceipted = self._open_db.execute("SELECT count(*) FROM result").fetchone()[0]

    def _last_issued(self, device: str, name: str) -> Issued | None:
        row = self._open_db.execute(
            f"SELECT {_COLUMNS} FROM entry WHERE device = ? AND name = ? AND status = 'done'"  # noqa: S608 - our own columns
            " AND kind = 'issued' ORDER BY at_ms DESC LIMIT 1",
            (device, name),
        ).fetchone()
        if row is None:
            return None
        entry = _entry(row)
        args = entry.detail.args.items()
        numbers = {name: value for name, value in args if not isinstance(value, str)}
        return Issued(str(entry.detail.id), entry.at_ms, numbers)

    def _trail(self, limit: int) -> list[Entry]:
        return _newest(self._open_db, limit)


def read_trail(path: Path, limit: int) -> list[Entry]:
    """Return the newest entries of a ledger that no agent has open, of a copy of it. Raises: LedgerBlocked."""
    try:
        with TemporaryDirectory() as folder:
            copy = Path(folder) / path.name
            shutil.copyfile(path, copy)
            with suppress(
                FileNotFoundError
            ):  # what a process that was killed had not put in its place
                shutil.copyfile(f"{path}-wal", f"{copy}-wal")
            with closing(sqlite3.connect(copy)) as db, _reading():
                db.text_factory = bytes.decode
                version = db.execute("PRAGMA user_version").fetchone()[0]
                if version != SCHEMA_VERSION:
                    raise _Unsound(f"schema {version}, not {SCHEMA_VERSION}")
                return _newest(db, limit)
    except (sqlite3.Error, OSError, _Unsound) as error:
        raise LedgerBlocked(f"{path}: {error}") from error


def _newest(db: sqlite3.Connection, limit: int) -> list[Entry]:
    query = f"SELECT {_COLUMNS} FROM entry ORDER BY number DESC LIMIT ?"  # noqa: S608 - our own columns
    return [_entry(row) for row in db.execute(query, (limit,))]


class _Unsound(Exception):
    """The file is no ledger of ours or is damaged."""


def _is_damage(error: Exception) -> bool:
    """Say whether a ledger that is open has lost something; a disk that is full or locked says otherwise."""
    if isinstance(error, sqlite3.Error):
        return getattr(error, "sqlite_errorcode", 0) & 0xFF in _DAMAGED
    return True


_FORMATS = (b"\1\1", b"\2\2")
"""Bytes 18 and 19 of the file, for writing and for reading: with a journal, with a WAL."""
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


@contextmanager
def _reading() -> Iterator[None]:
    """Whatever what is damaged raises is one error. Raises: _Unsound."""
    try:
        yield
    except sqlite3.OperationalError as error:
        if getattr(error, "sqlite_errorcode", 0) != sqlite3.SQLITE_ERROR:
            raise
        raise _Unsound(str(error)) from error  # a table or a column has lost its name
    except (msgspec.MsgspecError, CommandError, ValueError, TypeError, OverflowError) as error:
        raise _Unsound(str(error)) from error


_Ms = Annotated[int, msgspec.Meta(ge=0, le=250_000_000_000_000)]
_Topic = Annotated[str, msgspec.Meta(pattern=rf"^[a-z0-9_/-]{{0,999}}{END}")]


class _Row(msgspec.Struct, frozen=True):
    """One row of `entry`."""

    kind: Kind
    id: str | None
    device: str
    name: str
    detail: str
    taken_ms: _Ms
    expires_ms: int
    topic: _Topic
    status: Status | Literal[""]
    at_ms: _Ms
    result: str


_COLUMNS = ", ".join(_Row.__struct_fields__)
_detail = msgspec.json.Decoder(Detail).decode
_came = msgspec.json.Decoder(Came).decode


def _entry(columns: tuple[object, ...]) -> Entry:
    """Return what a row of `entry` says, if it says it with one voice. Raises: _Unsound."""
    with _reading():
        row = msgspec.convert(dict(zip(_Row.__struct_fields__, columns, strict=True)), _Row)
        detail, came = _detail(row.detail), _came(row.result or "{}")
        if row.kind == "issued":
            expires_ms = 0 if detail.expires_at is None else _ms(detail.expires_at.timestamp())
            # that travels in whole milliseconds
            said = (str(detail.id), detail.name, abs(expires_ms - row.expires_ms) <= 1)
            if said != (row.id, row.name, True):
                raise ValueError(f"command {row.id}: its order is of another")
            result = (came.id, came.status) if row.status else (detail.id, "")
            if result != (detail.id, row.status) or bool(row.result) != bool(row.status):
                raise ValueError(f"command {row.id}: its result is of another")
        elif row.id is not None:
            raise ValueError(f"command {row.id}: is one of the gateway's own")
    head = (row.kind, row.device, row.name, row.taken_ms)
    return Entry(*head, row.topic, row.status, row.at_ms, detail, came)


def _waiting(columns: tuple[int, bytes, bytes, bytes, bytes]) -> Waiting:
    """Return what a row of `result` says. Raises: _Unsound."""
    number, *texts, payload = columns
    with _reading():
        command, status, topic = map(bytes.decode, texts)
        result = decode_result(payload)
        if (str(result.id), result.status) != (command, status):
            raise ValueError("the result is of another command")
        if not msgspec.convert(topic, _Topic):
            raise ValueError("it goes nowhere")
    return Waiting(number, command, status, topic, payload)


_SURPLUS = """FROM entry
    WHERE kind = :kind AND expires_ms < :now_ms AND status NOT IN ('', 'accepted')
    AND (taken_ms < :old_ms OR number <= (
        SELECT number FROM entry WHERE kind = :kind ORDER BY number DESC LIMIT 1 OFFSET :kept))"""


def _prune(db: sqlite3.Connection, kind: Kind, now_ms: int, old_ms: int) -> None:
    """Let go of what is too old or too much, but of no order that is open or may still be valid."""
    values = {"kind": kind, "now_ms": now_ms, "old_ms": old_ms, "kept": ENTRIES_KEPT}
    (until_ms,) = db.execute(f"SELECT max(expires_ms) {_SURPLUS}", values).fetchone()
    if until_ms is not None:
        db.execute("UPDATE past SET expired_ms = max(expired_ms, ?)", (until_ms,))
        db.execute(f"DELETE {_SURPLUS}", values)


def _keep(db: sqlite3.Connection, result: Result, topic: str, payload: str) -> int:
    """Keep a result until its receipt; return how many had to go for it."""
    db.execute(
        "INSERT OR IGNORE INTO result (id, status, topic, payload) VALUES (?, ?, ?, ?)",
        (str(result.id), result.status, topic, payload),
    )
    return db.execute(
        "DELETE FROM result WHERE number IN (SELECT number FROM result"
        " ORDER BY status IN ('done', 'failed') DESC, number DESC LIMIT -1 OFFSET ?)",
        (RESULTS_KEPT,),
    ).rowcount


def _ms(seconds: float) -> int:
    return round(1000 * seconds)


@contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """All or nothing, and on the disk; sqlite3's own context manager does not begin one."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield db
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:  # after some errors SQLite has rolled back by itself
            db.execute("ROLLBACK")
        raise
