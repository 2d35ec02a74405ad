"""What version 1 left: one SQLite file, synced on every take. It is taken over once, and then removed.

The new folder is made whole beside its place and renamed into it: whenever this is interrupted, either the file or the
folder is complete.
"""

from __future__ import annotations

import logging
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import msgspec

from edge_agent.outbox.book import write_book
from edge_agent.outbox.disk import Disk
from edge_agent.outbox.records import VERSION, Book, Counter, Kept, encode
from edge_agent.outbox.segments import Segments, set_aside

log = logging.getLogger(__name__)

_BATCH = 1000
_metrics = msgspec.json.Decoder(dict[str, bool | int | float]).decode


class _Unsound(Exception):
    """The file is no outbox of version 1."""


def take_over(file: Path, folder: Path, disk: Disk, *, segment_bytes: int) -> None:
    """Bring the samples, counters and topics of a file of version 1 into a folder of ours.

    A file that is unsound is set aside and said. Raises: OSError.
    """
    if not folder.exists():
        new = folder.with_name(f"{folder.name}.new")
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        try:
            count = _copy(file, new, disk, segment_bytes)
        except sqlite3.OperationalError as error:
            # a lock, a full disk: nothing is wrong with the file
            raise OSError(str(error)) from error
        except (sqlite3.DatabaseError, msgspec.MsgspecError, _Unsound) as error:
            shutil.rmtree(new)
            new.mkdir()
            aside = [set_aside(part, new / "unsound") for part in _parts(file) if part.exists()]
            told = {"reason": str(error), "aside": str(folder / "unsound" / aside[0].name)}
            log.error("the outbox was unsound and set aside", extra=told)
        else:
            log.info("the outbox gets its new form", extra={"samples": count})
        disk.sync_folder(new)
        new.rename(folder)
        disk.sync_folder(folder.parent)
    disk.remove(*_parts(file))


def _parts(file: Path) -> list[Path]:
    return [Path(f"{file}{suffix}") for suffix in ("", "-wal", "-shm")]


def _copy(file: Path, folder: Path, disk: Disk, segment_bytes: int) -> int:
    with closing(sqlite3.connect(file, timeout=1)) as db:
        db.execute("PRAGMA locking_mode=EXCLUSIVE")
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version != 1:
            raise _Unsound(f"schema {version} in a file of version 1")
        check = db.execute("PRAGMA quick_check(1)").fetchone()[0]
        if check != "ok":
            raise _Unsound(check)
        counters = {
            str(device): Counter(epoch, next_seq, last_ms)
            for device, epoch, next_seq, last_ms in db.execute("SELECT * FROM counter")
        }
        topics = [str(topic) for (topic,) in db.execute("SELECT topic FROM state")]
        sequence = db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'sample'").fetchone()
        next_id = int(sequence[0]) + 1 if sequence else 1
        segments = Segments(folder, disk, segment_bytes=segment_bytes)
        count = 0
        for batch in _batches(db):
            segments.append([(one, encode(one)) for one in batch], counters, next_id, 0)
            count += len(batch)
    write_book(folder, Book(VERSION, True, "disk", "", counters, next_id, topics), disk)
    return count


def _batches(db: sqlite3.Connection) -> Iterator[list[Kept]]:
    rows = db.execute(
        "SELECT id, domain, device, epoch, seq, time_ms, quality, metrics FROM sample ORDER BY id"
    )
    while batch := rows.fetchmany(_BATCH):
        yield [
            Kept(number, domain, device, epoch, seq, time_ms, quality, _metrics(metrics))
            for number, domain, device, epoch, seq, time_ms, quality, metrics in batch
        ]
