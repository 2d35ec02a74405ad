"""What a quarantine's file holds, for those who look into it: short reads, so that ingest is never held up."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec

from ingest.quarantine.schema import VERSION, QuarantineUnusable, version_of

LOCK_S = 5.0


class Filter(msgspec.Struct, frozen=True, kw_only=True):
    """Which payloads are meant: all that fit every word given. `requirement` is of any of its reasons."""

    id: int | None = None
    requirement: str = ""
    county: str = ""
    device: str = ""
    since_ms: int | None = None

    @property
    def is_all(self) -> bool:
        return self == Filter()

    def where(self) -> tuple[str, list[object]]:
        """Return the condition in SQL and what it is asked with."""
        given = {
            "id = ?": self.id,
            "EXISTS (SELECT 1 FROM reasons WHERE payload = id AND requirement = ?)": (
                self.requirement or None
            ),
            "county = ?": self.county or None,
            "device = ?": self.device or None,
            "received_ms >= ?": self.since_ms,
        }
        chosen = {words: value for words, value in given.items() if value is not None}
        return " AND ".join(["1", *chosen]), list(chosen.values())


class Reason(NamedTuple):
    """What a payload broke, where (-1 and empty: as a whole), and how often it came."""

    requirement: str
    epoch: int
    seq: int
    metric: str
    detail: str
    times: int


class Kept(NamedTuple):
    """A payload in the quarantine, without its body. `body_bytes` is None when a flood cost it."""

    id: int
    received_ms: int
    topic: str
    county: str
    device: str
    sha256: str
    size_bytes: int
    body_bytes: int | None
    reasons: list[Reason]


class Summary(msgspec.Struct, frozen=True):
    """How many payloads and refusals, of what and of whom; and what has left the file since it was begun."""

    payloads: int
    refusals: int
    by_requirement: dict[str, int]
    by_device: dict[str, int]
    left: dict[str, dict[str, int]]


def check_there(path: Path) -> None:
    """Check that there is a file. Raises: QuarantineUnusable."""
    if not path.is_file():
        raise QuarantineUnusable(
            f"{path}: no such file: nothing was refused yet, or it is kept elsewhere"
            " 沒有此檔案：尚無訊息被拒，或設定的路徑不同"
        )


@contextmanager
def reading(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a file to look into it. Raises: QuarantineUnusable, also for what goes wrong inside."""
    check_there(path)
    try:
        with closing(
            sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=LOCK_S)
        ) as connection:
            if version_of(connection) != VERSION:
                raise QuarantineUnusable(
                    "it is of an earlier version; ingest brings it up to date when it starts"
                    " 檔案為舊版，啟動 ingest 時會自動更新"
                )
            yield connection
    except (QuarantineUnusable, sqlite3.Error) as error:
        raise QuarantineUnusable(f"{path}: {error}") from error


def ids(
    connection: sqlite3.Connection, chosen: Filter, *, after: int = 0, limit: int = -1
) -> list[int]:
    """Return the ids of payloads, oldest first."""
    where, given = chosen.where()
    asked = f"SELECT id FROM payloads WHERE {where} AND id > ? ORDER BY id LIMIT ?"  # noqa: S608 - our own words
    return [number for (number,) in connection.execute(asked, (*given, after, limit))]


def kept(connection: sqlite3.Connection, chosen: Filter, *, limit: int = -1) -> list[Kept]:
    """Return payloads, newest first."""
    where, given = chosen.where()
    rows = connection.execute(
        "SELECT id, received_ms, topic, county, device, sha256, size_bytes, length(body)"  # noqa: S608 - our own words
        f" FROM payloads WHERE {where} ORDER BY id DESC LIMIT ?",
        (*given, limit),
    ).fetchall()
    return [Kept._make((*row, _reasons(connection, row[0]))) for row in rows]


def body(connection: sqlite3.Connection, number: int) -> bytes | None:
    """Return what is kept of a payload; None when nothing is, or it is gone."""
    row = connection.execute("SELECT body FROM payloads WHERE id = ?", (number,)).fetchone()
    return row[0] if row else None


def summary(connection: sqlite3.Connection, chosen: Filter) -> Summary:
    """Return the counts of what fits a filter, the most frequent first."""
    where, given = chosen.where()

    def counts(what: str) -> dict[str, int]:
        asked = (
            f"SELECT {what}, count(*) FROM payloads JOIN reasons ON payload = id"  # noqa: S608 - our own words
            f" WHERE {where} GROUP BY 1 ORDER BY 2 DESC, 1"
        )
        return dict(connection.execute(asked, given).fetchall())

    [(payloads,)] = connection.execute(f"SELECT count(*) FROM payloads WHERE {where}", given)  # noqa: S608 - as above
    by_requirement = counts("requirement")
    left: dict[str, dict[str, int]] = {"evicted": {}, "replayed": {}, "purged": {}}
    for what, requirement, count in connection.execute("SELECT * FROM tallies").fetchall():
        if what in left:
            left[what][requirement] = count
    return Summary(
        payloads=payloads,
        refusals=sum(by_requirement.values()),
        by_requirement=by_requirement,
        by_device=counts("county || '/' || device"),
        left=left,
    )


def _reasons(connection: sqlite3.Connection, number: int) -> list[Reason]:
    asked = (
        "SELECT requirement, epoch, seq, metric, detail, times FROM reasons"
        " WHERE payload = ? ORDER BY epoch, seq, metric, requirement"
    )
    return [Reason(*row) for row in connection.execute(asked, (number,))]
