"""The quarantine: what was refused, durably, with the requirement it breaks and what a replay needs.

A payload is kept once, however many of its samples and metrics were refused. It is bounded in size and age, and in
what a flood may write; when the file cannot be written what was refused is dropped and counted. Nothing of this holds
up the good samples: `put` returns within PUT_DEADLINE_S whatever comes.
"""

from __future__ import annotations

import asyncio
import logging
import random
import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar

import msgspec

from exchange.trouble import Trouble
from ingest.quarantine.budget import Budget
from ingest.quarantine.database import Database, chunks, is_damage
from ingest.quarantine.evidence import MAX_BODY_BYTES, Entry, Evidence, Refused, evidence
from ingest.quarantine.schema import QuarantineUnusable

__all__ = [
    "MAX_BODY_BYTES",
    "Counts",
    "Evidence",
    "Quarantine",
    "QuarantineUnusable",
    "Refused",
    "evidence",
    "refused_samples",
]

log = logging.getLogger(__name__)

MAX_BYTES = 256 * 1024 * 1024
MAX_AGE_DAYS = 90.0
PUT_DEADLINE_S = 1.0
WRITE_S = 0.7
"""How long one call writes; a transaction of ours is over long before the deadline on a disk that works."""
SLOW_S = 0.1
REST_FACTOR = 4
"""A file that fails slowly is left alone for so many times what the failure took."""
_SILENT = "the disk does not answer"
TIDY_EVERY_S = 60.0
TIDY_TIMES = 64
"""In a row: a clock that jumps ahead for a while must not cost all that is kept."""

T = TypeVar("T")


class Counts(msgspec.Struct):
    """What became of refusals: each is kept, only counted (over the budget) or dropped (could not be written).

    Shape: `bodies_dropped` are payloads kept without their body, over the budget too; `evicted` refusals were kept
        first, and left for the bounds of size and age, `evicted_by` requirement.
    """

    kept: int = 0
    only_counted: int = 0
    dropped: int = 0
    bodies_dropped: int = 0
    evicted: int = 0
    evicted_by: dict[str, int] = msgspec.field(default_factory=dict)


class _Outcome(msgspec.Struct):
    """What became of refusals in a call of the thread, and why not all were kept."""

    kept: int = 0
    dropped: int = 0
    why: str = ""


class Quarantine:
    """The quarantine in one SQLite file, opened when first needed and again after an error.

    Calls may overlap: what waits while the disk works is written together.
    """

    def __init__(
        self,
        path: Path,
        *,
        max_bytes: int = MAX_BYTES,
        max_age_days: float = MAX_AGE_DAYS,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path = path
        self.counts = Counts()
        self.size_bytes = 0
        """The file and its log on the disk, when it was last written or tidied."""
        self.entries = 0
        """Payloads in the file, then."""
        self._database = Database(path, max_bytes=max_bytes, max_age_days=max_age_days)
        self._budget = Budget(clock_s)
        self._clock_s = clock_s
        self._turn = asyncio.Lock()
        self._waiting: list[Entry] = []
        self._job: asyncio.Future[Any] | None = None
        self._rest_until_s = float("-inf")
        self._trouble = Trouble(
            log,
            "the quarantine cannot be written, what is refused is dropped and counted",
            "the quarantine is written again",
            clock_s=clock_s,
        )

    async def put(self, refused: Sequence[Refused]) -> None:
        """Return when they are durable, or dropped and counted; after PUT_DEADLINE_S in any case."""
        admitted = self._budget.admit(refused)
        self.counts.only_counted += admitted.only_counted
        self.counts.bodies_dropped += admitted.bodies_dropped
        self._waiting += admitted.entries
        with suppress(TimeoutError):
            async with asyncio.timeout(PUT_DEADLINE_S), self._turn:
                entries, self._waiting = self._waiting, []  # others' too: theirs find nothing then
                if not entries:
                    return
                if self._is_stuck:
                    self._count(_Outcome(dropped=_refusals(entries), why=_SILENT))
                elif self._clock_s() < self._rest_until_s:
                    self.counts.dropped += _refusals(entries)
                else:
                    await self._in_thread(lambda: self._write(entries), self._count)

    async def run(self) -> None:
        """Evict what is too old, now and every minute, until cancelled."""
        while True:
            for _ in range(TIDY_TIMES):
                if not await self._tidied():
                    break
            await asyncio.sleep(TIDY_EVERY_S)

    async def close(self) -> None:
        """Write what waits, and let go of the file; a disk that does not answer is not waited for."""
        await self.put([])
        with suppress(TimeoutError):
            async with asyncio.timeout(PUT_DEADLINE_S), self._turn:
                if not self._is_stuck:
                    await self._in_thread(self._database.close)

    @property
    def _is_stuck(self) -> bool:
        """Whether the thread has not come back from an earlier turn."""
        return self._job is not None and not self._job.done()

    async def _tidied(self) -> bool:
        """Return whether there is more to evict."""
        with suppress(TimeoutError):
            async with asyncio.timeout(PUT_DEADLINE_S), self._turn:
                if not self._is_stuck:
                    return await self._in_thread(self._tidy)
        return False

    async def _in_thread(
        self, work: Callable[[], T], count: Callable[[T], None] = lambda _: None
    ) -> T:
        """Run one thing at a time in a thread; it goes on, and is counted, if nobody waits any more."""
        loop = asyncio.get_running_loop()
        job: asyncio.Future[T] = loop.create_future()

        def run() -> None:
            try:
                end = partial(job.set_result, work())
            except BaseException as error:  # noqa: BLE001 - whoever waits is told
                end = partial(job.set_exception, error)
            with suppress(RuntimeError):  # the loop is closed, and nobody waits
                loop.call_soon_threadsafe(end)

        def done(ended: asyncio.Future[T]) -> None:
            if not ended.cancelled():
                self._look()
                count(ended.result())

        job.add_done_callback(done)
        self._job = job
        # A daemon: Python waits for any other thread when it ends, and this one may hang with its disk.
        Thread(target=run, name="quarantine", daemon=True).start()
        return await asyncio.shield(job)

    def _look(self) -> None:
        """Bring what is told of the file up to date."""
        self.entries = self._database.entries
        self.size_bytes = self._database.size_bytes
        self.counts.evicted_by = dict(self._database.evicted)
        self.counts.evicted = self._database.evicted.total()

    def _count(self, outcome: _Outcome) -> None:
        """Count, and say when it begins to fail and when it is over."""
        self.counts.kept += outcome.kept
        self.counts.dropped += outcome.dropped
        if outcome.why:
            self._trouble.report(outcome.why, path=str(self.path), dropped=self.counts.dropped)
        elif outcome.kept:
            self._trouble.over(dropped=self.counts.dropped)

    # ------------------------------------------------------------------------------ in the thread

    def _write(self, entries: Sequence[Entry]) -> _Outcome:
        outcome = _Outcome()
        begun_s = self._clock_s()
        for chunk in chunks(entries):
            if self._clock_s() - begun_s > WRITE_S and not outcome.why:
                outcome.why = f"the disk is too slow: not done in {WRITE_S} s"
            outcome.why = outcome.why or self._keep(chunk)
            if outcome.why:
                outcome.dropped += _refusals(chunk)
            else:
                outcome.kept += _refusals(chunk)
        took_s = self._clock_s() - begun_s
        if outcome.why and took_s > SLOW_S:
            factor = REST_FACTOR * random.uniform(0.8, 1.2)  # noqa: S311 - not a secret
            self._rest_until_s = begun_s + took_s * (1 + factor)
        return outcome

    def _keep(self, chunk: Sequence[Entry]) -> str:
        """Write entries; return why they could not be written."""
        try:
            self._heal(lambda: self._database.keep(chunk))
        except Exception as error:  # noqa: BLE001 - whatever it is, what is refused must not end ingest
            self._close_after(error)
            return f"{type(error).__name__}: {error}"
        return ""

    def _tidy(self) -> bool:
        try:
            return self._heal(self._database.tidy)
        except Exception as error:  # noqa: BLE001 - as above
            self._close_after(error)
            return False

    def _heal(self, work: Callable[[], T]) -> T:
        """Do it, in a new file when this one proves to be damaged."""
        try:
            return work()
        except sqlite3.Error as error:
            if not is_damage(error):
                raise
            self._database.set_aside(error)
            return work()

    def _close_after(self, error: Exception) -> None:
        if isinstance(error, sqlite3.Error | OSError | QuarantineUnusable):
            with suppress(sqlite3.Error):
                self._database.close()
        else:
            log.error("a mistake in the quarantine", exc_info=error)


def _refusals(entries: Sequence[Entry]) -> int:
    return sum(len(entry.refused) for entry in entries)


def refused_samples(path: Path) -> dict[str, int]:
    """Return how many whole samples of each device a quarantine file holds; empty when there is no file."""
    if not path.exists():
        return {}
    query = """
        SELECT device, count(DISTINCT epoch || ' ' || seq) FROM refusals
        WHERE seq >= 0 AND metric = '' GROUP BY device
    """
    with closing(
        sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=5.0)
    ) as connection:
        return dict(connection.execute(query).fetchall())
