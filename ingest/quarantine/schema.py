"""The schema of a quarantine's file, and how the file of an earlier version becomes one of this."""

from __future__ import annotations

import sqlite3
from typing import NamedTuple

from exchange.errors import StoreError
from exchange.topics import PREFIX

VERSION = 2

_TABLES = (
    # The body stands last: what is listed is read without it.
    """
    CREATE TABLE payloads (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        sha256 TEXT NOT NULL,
        topic TEXT NOT NULL,
        county TEXT NOT NULL,
        device TEXT NOT NULL,
        size_bytes INTEGER NOT NULL,
        received_ms INTEGER NOT NULL,
        body BLOB,
        UNIQUE (sha256, topic)
    )
    """,
    """
    CREATE TABLE reasons (
        payload INTEGER NOT NULL REFERENCES payloads (id),
        requirement TEXT NOT NULL,
        epoch INTEGER NOT NULL,
        seq INTEGER NOT NULL,
        metric TEXT NOT NULL,
        detail TEXT NOT NULL,
        times INTEGER NOT NULL,
        PRIMARY KEY (payload, requirement, epoch, seq, metric)
    ) WITHOUT ROWID
    """,
    # What is in the file, and what has left it: entries; evicted, replayed, purged by requirement.
    """
    CREATE TABLE tallies (
        what TEXT NOT NULL,
        requirement TEXT NOT NULL,
        count INTEGER NOT NULL,
        PRIMARY KEY (what, requirement)
    ) WITHOUT ROWID
    """,
    # For people with an SQL shell.
    """
    CREATE VIEW refusals AS
    SELECT id, requirement, county, device, epoch, seq, metric, detail, times, sha256, topic,
        strftime('%Y-%m-%dT%H:%M:%fZ', received_ms / 1000.0, 'unixepoch') AS received_at
    FROM reasons JOIN payloads ON id = payload
    """,
)
_TALLY = """
INSERT INTO tallies VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET count = count + excluded.count
"""
_FROM_1 = """
INSERT INTO payloads (sha256, topic, county, device, size_bytes, received_ms, body)
SELECT sha256, topic, county_of(topic), device_of(topic), size_bytes,
    CAST(round((julianday(received_at) - 2440587.5) * 86400000) AS INTEGER), body
FROM (
    SELECT *, rowid AS place,
        sum(length(body) + 1000) OVER (ORDER BY rowid DESC) AS bytes_since FROM payloads_1
    WHERE EXISTS (SELECT 1 FROM refusals_1 WHERE refusals_1.sha256 = payloads_1.sha256
        AND refusals_1.topic = payloads_1.topic)
)
WHERE bytes_since <= ? ORDER BY place
"""
_REASONS_FROM_1 = """
INSERT OR IGNORE INTO reasons
SELECT id, requirement, epoch, seq, metric, detail, times
FROM refusals_1 JOIN payloads USING (sha256, topic)
"""
_LEFT_OUT_FROM_1 = """
INSERT INTO tallies SELECT 'evicted', requirement, count(*) FROM refusals_1
WHERE NOT EXISTS (SELECT 1 FROM payloads WHERE payloads.sha256 = refusals_1.sha256
    AND payloads.topic = refusals_1.topic)
GROUP BY requirement
"""


class QuarantineUnusable(StoreError):
    """The quarantine's file cannot be used as it is."""


class Place(NamedTuple):
    """Whom a topic names, as far as it names anybody."""

    county: str = ""
    device: str = ""


def place_of(topic: str) -> Place:
    """Return whom a topic names, be it valid or not."""
    if not topic.startswith(f"{PREFIX}/"):
        return Place()
    levels = [*topic.split("/"), *[""] * 7]
    return Place(levels[2], levels[6])


def version_of(connection: sqlite3.Connection) -> int:
    """Return the version of a file, 0 when it is empty.

    Raises: QuarantineUnusable when it is newer than this program, or no quarantine.
    """
    # In one statement: between two another process may make the file.
    rows = connection.execute(
        "SELECT user_version, name FROM pragma_user_version LEFT JOIN sqlite_schema"
    ).fetchall()
    version = rows[0][0]
    if version > VERSION:
        raise QuarantineUnusable(
            f"its version is {version}, newer than this program's {VERSION}"
            " 檔案版本比此程式新，請更新程式"
        )
    tables = {name for _, name in rows if name is not None}
    if tables and not (version and {"payloads", "refusals"} <= tables):
        raise QuarantineUnusable("it is another database, no quarantine 不是隔離區的檔案")
    return int(version)


def prepare(connection: sqlite3.Connection, *, keep_bytes: int) -> None:
    """Make the file one of this version; of an earlier one the newest `keep_bytes` stay.

    Raises: QuarantineUnusable, sqlite3.Error.
    """
    if version_of(connection) != VERSION:
        connection.execute("BEGIN IMMEDIATE")
        try:
            version = version_of(connection)  # now nobody else changes it
            if version == 0:
                _create(connection)
            elif version == 1:
                _migrate_from_1(connection, keep_bytes)
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
    [(is_shrinkable,)] = connection.execute("PRAGMA auto_vacuum")
    if not is_shrinkable:  # once, after a migration
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        connection.execute("VACUUM")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def tally(connection: sqlite3.Connection, what: str, requirement: str, count: int) -> None:
    """Add to a tally."""
    connection.execute(_TALLY, (what, requirement, count))


def _create(connection: sqlite3.Connection) -> None:
    for statement in _TABLES:
        connection.execute(statement)
    connection.execute(f"PRAGMA user_version = {VERSION}")


def _migrate_from_1(connection: sqlite3.Connection, keep_bytes: int) -> None:
    connection.create_function("county_of", 1, lambda topic: place_of(topic).county)
    connection.create_function("device_of", 1, lambda topic: place_of(topic).device)
    for name in ("payloads", "refusals"):
        connection.execute(f"ALTER TABLE {name} RENAME TO {name}_1")
    _create(connection)
    connection.execute(_FROM_1, (keep_bytes,))
    connection.execute(_REASONS_FROM_1)
    connection.execute(_LEFT_OUT_FROM_1)
    [(entries,)] = connection.execute("SELECT count(*) FROM payloads")
    tally(connection, "entries", "", entries)
    for name in ("refusals_1", "payloads_1"):
        connection.execute(f"DROP TABLE {name}")
