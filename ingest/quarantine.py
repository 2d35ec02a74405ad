"""The quarantine: what was refused, durably, with the requirement it breaks and what a replay needs.

A payload is kept once, however many of its samples and metrics were refused. When the file cannot
be written the bodies are dropped and counted: a full disk must not hold up the good samples.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import sqlite3
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import msgspec

log = logging.getLogger(__name__)

MAX_BODY_BYTES = 256 * 1024
SCHEMA_VERSION = 1

_SCHEMA = """
CREATE TABLE payloads (
    sha256 TEXT NOT NULL,
    topic TEXT NOT NULL,
    size_bytes INTEGER NOT NULL,
    body BLOB NOT NULL,
    received_at TEXT NOT NULL,
    PRIMARY KEY (sha256, topic)
);
CREATE TABLE refusals (
    requirement TEXT NOT NULL,
    county TEXT NOT NULL,
    device TEXT NOT NULL,
    epoch INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    metric TEXT NOT NULL,
    whole_payload TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    topic TEXT NOT NULL,
    detail TEXT NOT NULL,
    times INTEGER NOT NULL DEFAULT 1,
    PRIMARY KEY (requirement, county, device, epoch, seq, metric, whole_payload),
    FOREIGN KEY (sha256, topic) REFERENCES payloads (sha256, topic)
);
"""
_PAYLOAD = (
    "INSERT OR IGNORE INTO payloads"
    " VALUES (?, ?, ?, ?, strftime('%Y-%m-%dT%H:%M:%fZ', ? / 1000.0, 'unixepoch'))"
)
_REFUSAL = """
INSERT INTO refusals VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 1)
ON CONFLICT DO UPDATE SET times = times + 1
"""


class Evidence(msgspec.Struct, frozen=True, gc=False):
    """A payload as it came, its body cut at 256 KiB; the digest is of all of it."""

    topic: str
    sha256: str
    size_bytes: int
    body: bytes
    received_ms: int


class Refused(msgspec.Struct, frozen=True, gc=False):
    """One thing that was refused: a metric, a sample (`metric` empty) or a payload (`seq` -1).

    Shape: `receipts` is where its gateway gets receipts, empty when the topic names no gateway.
    """

    evidence: Evidence
    requirement: str
    detail: str
    receipts: str
    county: str = ""
    device: str = ""
    epoch: int = -1
    seq: int = -1
    metric: str = ""


class Counts(msgspec.Struct):
    """What became of refusals. `dropped` could not be written: only their receipts exist."""

    kept: int = 0
    dropped: int = 0


def evidence(topic: str, payload: bytes, received_ms: int) -> Evidence:
    """Return what is kept of a payload."""
    digest = hashlib.sha256(payload).hexdigest()
    return Evidence(topic, digest, len(payload), payload[:MAX_BODY_BYTES], received_ms)


class Quarantine:
    """The quarantine in one SQLite file, opened when first needed and again after an error."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.counts = Counts()
        self._connection: sqlite3.Connection | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="quarantine")

    async def put(self, refused: Sequence[Refused]) -> None:
        """Return when they are durable, or dropped and counted."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._put, refused)

    async def close(self) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, self._close)
        self._thread.shutdown()

    def _put(self, refused: Sequence[Refused]) -> None:
        try:
            connection = self._connection or self._open()
            self._connection = connection
            with connection:  # one transaction
                connection.executemany(_PAYLOAD, {_payload_row(each) for each in refused})
                connection.executemany(_REFUSAL, [_refusal_row(each) for each in refused])
        except (sqlite3.Error, OSError) as error:
            self._close()
            if not self.counts.dropped:
                log.error("the quarantine cannot be written, bodies are dropped: %s", error)
            self.counts.dropped += len(refused)
        else:
            self.counts.kept += len(refused)

    def _open(self) -> sqlite3.Connection:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(self.path, timeout=1.0, check_same_thread=False)
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            [(version,)] = connection.execute("PRAGMA user_version")
            if not version:
                connection.executescript(
                    f"BEGIN; {_SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
                )
        except sqlite3.Error:
            connection.close()
            raise
        return connection

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _payload_row(refused: Refused) -> tuple[str, str, int, bytes, int]:
    seen = refused.evidence
    return seen.sha256, seen.topic, seen.size_bytes, seen.body, seen.received_ms


def _refusal_row(refused: Refused) -> tuple[str, str, str, int, int, str, str, str, str, str]:
    digest, topic = refused.evidence.sha256, refused.evidence.topic
    return (
        refused.requirement,
        refused.county,
        refused.device,
        refused.epoch,
        refused.seq,
        refused.metric,
        f"{digest} {topic}" if refused.seq < 0 else "",
        digest,
        topic,
        refused.detail,
    )


def refused_samples(path: Path) -> dict[str, int]:
    """Return how many whole samples of each device a quarantine file holds; empty when there is no file."""
    if not path.exists():
        return {}
    query = "SELECT device, count(*) FROM refusals WHERE seq >= 0 AND metric = '' GROUP BY device"
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5.0)) as connection:
        return dict(connection.execute(query).fetchall())
