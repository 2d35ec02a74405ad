"""The outbox as the agent sees it: one thread of its own does the work, in the order of the calls.

Only what is forgotten waits for the next call: a burst of receipts wakes nobody.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import math
import os
import secrets
import shutil
from collections import Counter as Tally
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, TypeVar

import msgspec

from edge_agent.clock import JUMP_MS, KNOWN_FROM_MS, Clock
from edge_agent.outbox.book import Foreign, read_book, write_book
from edge_agent.outbox.disk import Disk
from edge_agent.outbox.mark import MarkFile
from edge_agent.outbox.records import (
    ENDED,
    VERSION,
    Book,
    Counter,
    Counters,
    Gone,
    Kept,
    Mark,
    Record,
    Undated,
    Waiting,
    advance,
    encode,
    kept,
    ranges,
)
from edge_agent.outbox.segments import Segment, Segments, Series
from edge_agent.outbox.stage import Stage, volatile_folder
from edge_agent.outbox.undated import UndatedFile
from exchange.delivery import Key
from exchange.errors import OnestreetError
from exchange.readings import Value
from exchange.trouble import Trouble

T = TypeVar("T")
log = logging.getLogger(__name__)

SLEW_MS = 100
"""Two readings of one burst may fall on one millisecond, and a clock is slewed back by less than this: a sample's time
then goes on from its predecessor's. More is a clock that was set back."""
SPILL_AFTER_MS = 1500  # a sample without a receipt goes to the disk then
SPILL_SAMPLES = 5000  # in one write
TEND_LEAST_S = 0.25  # between two looks at what is due, so that with the sync itself it is there within two seconds
RETRY_MS = 1000  # a disk that took nothing is asked again
STAGE_BYTES = 1 << 20  # then the stage is written anew, without what has left
STAGE_MOST_BYTES = 4 << 20
"""Held for a disk that takes nothing, before the buses wait. In memory a sample is up to eighteen times its record."""
UNDATED_MOST = 20_000  # samples wait for the clock, then patience is over
STEADY_MS = 6 * 3_600_000  # a clock that has not jumped for so long says how old something is
INFLOW_S = 600.0  # what comes in is averaged over so long
MB = 1_000_000


class OutboxSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How samples are kept until their receipt, and how many: what exceeds either limit goes, the oldest first."""

    stage: Literal["memory", "disk"] = "memory"
    max_mb: Annotated[int, msgspec.Meta(ge=4, le=65_536)] = 512
    max_age_days: Annotated[float, msgspec.Meta(gt=0, le=3650)] = 90.0


class Taken(NamedTuple):
    """What comes in: one reading, with the time it was measured at, or, while that is not known, that of the boot."""

    domain: str
    device: str
    time_ms: int | None
    metrics: dict[str, Value]
    quality: str = ""
    boot_ms: int = 0


class OutboxBlocked(OnestreetError):
    """The disk does not do what the outbox needs; it may later."""


class _Fresh(NamedTuple):
    """A sample that is in the stage alone."""

    waiting: Waiting
    body: bytes
    boot_ms: int


class Outbox:
    """The samples of one gateway.

    Shape: `dropped` counts by reason: `size`, `age`, `damaged`.
    """

    def __init__(
        self,
        path: Path,
        settings: OutboxSettings | None = None,
        clock: Clock | None = None,
        *,
        stage_folder: Path | None = None,
    ) -> None:
        """Nothing is opened yet. `path` is the folder; a file of version 1 is beside it, with the suffix `.sqlite`.

        `stage_folder` is where the stage is, unless the machine says.
        """
        self.path = path.with_suffix("")
        self.settings = settings or OutboxSettings()
        self.dropped: Tally[str] = Tally()
        self.undated = 0
        """Samples that wait for the clock."""
        self.last_id = 0
        """Of the newest sample that has a name."""
        self.size_bytes = 0
        self._clock = clock or Clock()
        self._disk = Disk()
        self._max_bytes = self.settings.max_mb * MB
        self._segment_bytes = min(1 << 20, self._max_bytes // 8)
        self._segments = Segments(self.path, self._disk, segment_bytes=self._segment_bytes)
        self._undated_file = UndatedFile(self.path, self._disk)
        self._marks = MarkFile(self.path, self._disk)
        self._stage_folder = stage_folder
        self._stage: Stage | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="outbox")
        self._tending: asyncio.Task[None] | None = None
        self._lock: int | None = None
        self._held = 0
        self._leaving: deque[list[Key]] = deque()  # forgotten, but still among what it holds
        self._due_ms = 0  # when it is to be tended
        self._is_open = False
        self._is_begun = False  # the book or a mark says that a run is under way
        self._is_settled = True  # unless a doubt of the start could not be noted
        self._is_book_due = False  # a mark says what it should
        self._number = 0  # of the newest of them
        self._above = 0  # every epoch that begins is later
        self._token = ""
        self._counters: dict[str, Counter] = {}
        self._next_id = 1
        self._topics: set[str] = set()
        self._fresh: dict[int, _Fresh] = {}
        self._fresh_bytes = 0
        self._names: dict[Key, int] = {}  # of the fresh
        self._undated: dict[int, tuple[Undated, int]] = {}  # with when it came, by the boot clock
        self._floor_ms = KNOWN_FROM_MS  # nothing is dated before what was seen in an earlier run
        self._unknown_since_ms: int | None = None
        self._blocked_by = ""
        self._trouble = Trouble(
            log,
            "the disk takes nothing: samples are held in memory, a power cut would lose them",
            "the disk takes samples again",
        )
        self._stuck = Trouble(
            log,
            "what is over the limit cannot be removed",
            "what is over the limit is removed again",
        )
        self._retry_ms = 0
        self._has_dropped = False
        self._has_failed = False
        self._offset_ms: int | None = None
        self._steady_since_ms = 0
        self._inflow = 0.0  # bytes, those of long ago counting less
        self._inflow_ms: int | None = None
        self._inflow_since_ms = 0

    @property
    def depth(self) -> int:
        """Samples in it, those that wait for the clock among them; about, while work is under way."""
        return max(0, self._held - sum(map(len, self._leaving)))

    @property
    def bytes_written(self) -> int:
        """What flash was asked to take, in blocks, since the start; what the file system adds is not in it."""
        return self._disk.written

    def hours_left(self) -> float | None:
        """Return how long it can go on taking what comes in now without dropping anything; None before it is known."""
        if self._inflow_ms is None:
            return None
        now_ms = self._clock.boot_ms()
        span_s = (now_ms - self._inflow_since_ms) / 1000
        share = INFLOW_S * -math.expm1(-max(span_s, 1.0) / INFLOW_S)
        inflow = self._inflow * math.exp((self._inflow_ms - now_ms) / 1000 / INFLOW_S) / share
        if inflow <= 0:
            return None
        room = self._max_bytes - self.size_bytes
        with suppress(OSError):  # a folder that is gone: then the limit alone is known
            room = min(room, shutil.disk_usage(self.path).free)
        return min(max(room, 0) / inflow / 3600, self.settings.max_age_days * 24)

    # -------------------------------------------------------------------------------------------------- calls

    async def open(self) -> None:
        """Open or create it, and tend it until it is closed. What is not sound is set aside and said aloud.

        Raises: OutboxBlocked, also when another agent has it open.
        """
        await self._run(self._open)
        self._tending = asyncio.create_task(self._tend_always())

    async def close(self) -> None:
        """Close it after everything that was asked before; what it holds is on disk then."""
        if self._tending is not None:
            self._tending.cancel()
            await asyncio.wait([self._tending])
        await asyncio.get_running_loop().run_in_executor(self._thread, self._close)
        self._thread.shutdown()

    async def take(self, readings: Sequence[Taken]) -> list[Waiting]:
        """Keep the readings and return them named by epoch and seq, behind those that have waited for the clock.

        Those that wait for it now are not among them. Raises: OutboxBlocked; then nothing was taken.
        """
        return await self._run(lambda: self._take(readings))

    async def after(self, last_id: int, limit: int) -> list[Waiting]:
        """Return the next samples in the order of taking."""
        return await self._run(lambda: self._between(last_id, self._next_id, limit))

    async def between(self, after_id: int, up_to_id: int, limit: int) -> list[Waiting]:
        """Return samples in the order of taking, from behind one id up to another."""
        return await self._run(lambda: self._between(after_id, up_to_id, limit))

    async def find(self, keys: Sequence[Key]) -> list[Waiting]:
        """Return those of the named samples that are still here, ascending. The others will not come back."""
        return await self._run(lambda: self._find(keys))

    def forget(self, keys: Iterable[Key]) -> None:
        """Let go of samples that have their receipt: before whatever is asked next, and within two seconds."""
        if gone := list(keys):
            self._leaving.append(gone)

    async def count(self, *, excluding_domain: str) -> int:
        """Return how many samples of other domains it holds that can be sent."""
        return await self._run(lambda: self._count(excluding_domain))

    async def epoch_of(self, device: str, now_ms: int) -> int:
        """Return the epoch that the device's next sample will have, beginning one where there is none.

        Raises: OutboxBlocked.
        """
        return (await self.epochs_of([device], now_ms))[device]

    async def epochs_of(self, devices: Sequence[str], now_ms: int) -> dict[str, int]:
        """Return the epochs of the devices' next samples, beginning all that there are not in one write.

        Raises: OutboxBlocked.
        """
        return await self._run(lambda: self._epochs_of(devices, now_ms))

    async def stating(self, topics: Sequence[str]) -> list[str]:
        """Note where states are about to be retained; return where older ones are that nobody stands behind now."""
        return await self._run(lambda: self._stating(topics))

    async def retired(self, topics: Sequence[str]) -> None:
        """Note that nothing is retained there any more."""
        await self._run(lambda: self._set_topics(self._topics - set(topics)))

    async def tend(self) -> float:
        """Do what is due by now: to the disk with what has waited long enough, away with what is too old.

        Return in how many seconds something may be due again.
        """
        return await self._run(self._tend)

    async def _tend_always(self) -> None:
        while True:
            try:
                if self._clock.boot_ms() >= self._due_ms:  # else a batch that came has seen to it
                    await self.tend()
            except OutboxBlocked as error:  # reading what is to be dropped may fail as well
                self._complain(str(error))
            except (
                Exception
            ):  # a mistake of ours is no reason to bring nothing to the disk any more
                if not self._has_failed:
                    log.exception("the outbox was not tended")
                self._has_failed = True
            left_s = (self._due_ms - self._clock.boot_ms()) / 1000
            await asyncio.sleep(max(TEND_LEAST_S, left_s))

    async def _run(self, work: Callable[[], T]) -> T:
        """Raises: OutboxBlocked."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._done, work)

    # ------------------------------------------------------------------------------------------- in the thread

    def _done(self, work: Callable[[], T]) -> T:
        """Raises: OutboxBlocked."""
        try:
            self._let_go()
            return work()
        except OSError as error:
            raise OutboxBlocked(f"{self.path}: {error}") from error
        finally:
            self._count_held()

    def _count_held(self) -> None:
        self.undated = len(self._undated)
        self._held = self._segments.depth + len(self._fresh) + self.undated
        self.size_bytes = self._segments.size
        if self._segments.damaged:
            self.dropped["damaged"] = self._segments.damaged

    # ------------------------------------------------------------------------------------------ opening, closing

    def _open(self) -> None:
        parent = self.path.parent
        self._disk.make_folder(parent)
        self._lock = os.open(self.path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o640)
        try:
            self._lock_alone(self._lock)
            self._take_over_first_version()
            if not self.path.exists():
                self._disk.make_folder(self.path)
            with suppress(OSError):  # a disk that is full already: then the book alone serves
                self._marks.prepare()
            self._recover()
        except BaseException:
            os.close(self._lock)
            self._lock = None
            raise
        self._is_open = True

    def _take_over_first_version(self) -> None:
        if (file := self.path.with_suffix(".sqlite")).exists():
            from edge_agent.outbox.first_version import take_over  # once in a gateway's life

            take_over(file, self.path, self._disk, segment_bytes=self._segment_bytes)

    @staticmethod
    def _lock_alone(file: int) -> None:
        """Two agents would name samples alike. Raises: OSError."""
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OSError("locked: another agent has it open") from error

    def _recover(self) -> None:
        """Find out what is there, and whether it is all that was ever taken."""
        try:
            book = read_book(self.path)
        except Foreign as error:
            aside = self._set_folder_aside()
            told = {"reason": str(error), "aside": str(aside)}
            log.error("the outbox was unsound and set aside", extra=told)
            book = None
        marks = [one for one in self._marks.read() if book is None or one.number > book.number]
        self._number = max([book.number if book else 0, *(one.number for one in marks)])
        self._above = max([book.above if book else 0, *(one.epoch for one in marks)])
        mark = marks[-1] if marks else None
        self._is_book_due = mark is not None
        boot_ms = self._clock.boot_ms()
        self._segments.open(boot_ms)
        undated = {one.id: one for one in self._undated_file.read()}
        on_disk, next_id = self._segments.counters()
        last_id = self._segments.last_id
        counters = dict(book.counters) if book else {}
        self._topics = set(book.topics) if book else set()
        is_complete = self._proven(book, mark, counters, on_disk, undated)
        self._counters = _further(counters, self._counters)
        is_doubtful = not is_complete or self._segments.is_damaged
        if is_doubtful:
            self._counters = _further(self._counters, on_disk)
            if self._counters:
                words = "it cannot be proved that nothing was lost; every device begins a new epoch"
                log.warning(words)
            self._counters = {
                device: counter._replace(next_seq=ENDED)
                for device, counter in self._counters.items()
            }
            self._is_begun = False
        newest_ms = [one.last_ms for one in self._counters.values()]
        self._floor_ms = max([KNOWN_FROM_MS, *newest_ms])
        named_id = max([last_id, *self._fresh])
        self._undated = {
            number: (one, boot_ms) for number, one in sorted(undated.items()) if number > named_id
        }
        ids = [self._next_id, next_id, book.next_id if book else 1, named_id + 1]
        ids += [one.next_id for one in marks]
        self._next_id = max(*ids, *(number + 1 for number in self._undated), 1)
        self.last_id = named_id
        if is_doubtful:
            try:
                self._begin()
            except OSError as error:  # the doubt lasts as long as what raises it is as it was found
                self._complain(str(error))
                self._is_settled = False
                return
        self._settle()

    def _settle(self) -> None:
        """Make what was found durable: a killed process may have been between a write and its sync."""
        self._segments.mend()
        try:
            self._marks.settle()
            self._segments.settle()
            self._undated_file.settle()
            for folder in (self.path, *self.path.parents[:2]):
                self._disk.sync_folder(folder)
        except OSError as error:  # then a new book comes first, and syncs the folder as well
            log.error("the disk does not sync", extra={"reason": str(error)})
            self._is_begun = False

    def _proven(
        self,
        book: Book | None,
        mark: Mark | None,
        counters: dict[str, Counter],
        on_disk: dict[str, Counter],
        undated: dict[int, Undated],
    ) -> bool:
        """Take over what proves the outbox complete, and say whether something does."""
        if mark is not None:
            return bool(mark.token) and self._replayed(mark.token, undated)
        if book is None:
            return not on_disk and not undated and not self._segments.last_id
        if book.clean:
            return True
        if book.stage == "disk":
            counters.update(_further(counters, on_disk))
            return not self._segments.torn and not self._undated_file.torn
        return self._replayed(book.token, undated)

    def _replayed(self, token: str, undated: dict[int, Undated]) -> bool:
        """Take over the stage of a killed run, and say whether there is one."""
        folder = self._stage_folder or volatile_folder()
        stage = Stage(folder, self.path) if folder else None
        records = stage.recover(token, self._clock.boot_id) if stage else None
        if records is None:
            return False
        self._replay(records, self._segments.last_id, undated)
        self._stage, self._token, self._is_begun = stage, token, True
        return True

    def _replay(self, records: list[Record], last_id: int, undated: dict[int, Undated]) -> None:
        """Take over what the stage of a killed run holds; what is on disk as well is there already."""
        for record in records:
            match record:
                case Counters(counters, next_id):
                    self._counters = _further(self._counters, counters)
                    self._next_id = max(self._next_id, next_id)
                case Kept():
                    counter = Counter(record.epoch, record.seq + 1, record.time_ms)
                    advance(self._counters, record.device, counter)
                    undated.pop(record.id, None)
                    self._next_id = max(self._next_id, record.id + 1)
                    if record.id > last_id:
                        self._add_fresh(record.waiting, encode(record), 0)
                case Undated():
                    undated[record.id] = record
                    self._next_id = max(self._next_id, record.id + 1)
                case Gone(gone):
                    for first, last in gone:
                        for number in range(first, last + 1):
                            self._drop_fresh(number)
                case _:
                    pass

    def _set_folder_aside(self) -> Path:
        """Keep a folder of a later version for whoever wants to go back to that; one such is kept."""
        aside = self.path.with_name(f"{self.path.name}.unsound")
        shutil.rmtree(aside, ignore_errors=True)
        self.path.rename(aside)
        self.path.mkdir()
        self._disk.sync_folder(self.path.parent)
        return aside

    def _begin(self) -> None:
        """Note durably that a run is under way, before the first sample of it is taken. Raises: OSError."""
        if self._is_begun:
            return
        token = self._token or secrets.token_hex(16)  # what a killed run left is named by its own
        if self._stage is None and self.settings.stage == "memory":
            if folder := self._stage_folder or volatile_folder():
                self._stage = Stage(folder, self.path)
            else:
                log.warning("there is no folder in memory: every batch is synced to the disk")
        if self._stage is not None:
            try:
                self._stage.begin(token, self._clock.boot_id, self._staged())
            except OSError as error:
                self._leave_stage(error)
        self._record(self._counters, token)
        self._token, self._is_begun = token, True
        if not self._is_settled:
            self._is_settled = True
            self._settle()

    def _leave_stage(self, error: OSError) -> None:
        told = {"reason": str(error)}
        log.warning(
            "the stage in memory takes nothing; every batch is synced to the disk", extra=told
        )
        self._stage = None

    def _staged(self) -> list[Record]:
        """Return what a stage begins with."""
        return [
            Counters(self._counters, self._next_id),
            *(one for one, _ in self._undated.values()),
            *(kept(fresh.waiting) for fresh in self._fresh.values()),
        ]

    def _record(self, counters: dict[str, Counter], token: str) -> None:
        """Have on disk which epochs there are and what the stage is called: in the book, or else by a mark.

        Raises: OSError; then nobody may hear of them.
        """
        boot_ms = self._clock.boot_ms()
        if not self._is_book_due or boot_ms >= self._retry_ms:
            try:
                self._write_book(counters, token)
            except OSError as error:
                self._complain(str(error))
                self._retry_ms = boot_ms + RETRY_MS
            else:
                return
        self._write_mark(counters, token)

    def _write_book(self, counters: dict[str, Counter], token: str, *, clean: bool = False) -> None:
        self._number += 1
        stage = "disk" if self._stage is None else "memory"
        topics = sorted(self._topics)
        book = Book(
            VERSION, clean, stage, token, counters, self._next_id, topics, self._number, self._above
        )
        write_book(self.path, book, self._disk)
        self._is_book_due = False

    def _write_mark(self, counters: dict[str, Counter], token: str) -> None:
        self._number += 1
        epoch = max([self._above, *(one.epoch for one in counters.values())])
        named = token if self._stage is not None else ""
        self._marks.write(Mark(self._number, named, epoch, self._next_id))
        self._is_book_due = True

    def _close(self) -> None:
        """Whatever fails here is what a kill would leave, and is found at the next start."""
        try:
            if self._is_open:
                self._let_go()
            if self._is_open and self._is_begun:
                self._spill()
                self._write_book(self._counters, self._token, clean=True)
                if self._stage is not None:
                    self._stage.remove()
        except OSError as error:
            log.error("the outbox could not be closed in order", extra={"reason": str(error)})
        finally:
            self._is_open = False
            self._count_held()
            if self._lock is not None:
                os.close(self._lock)
                self._lock = None

    # --------------------------------------------------------------------------------------------------- taking

    def _take(self, readings: Sequence[Taken]) -> list[Waiting]:
        if not self._is_open:
            raise RuntimeError("the outbox is not open")
        self._begin()
        self._end_stage_unless_wanted()
        named = self._date()
        if not readings:
            return named
        self._tend()
        if self._blocked_by and self._fresh_bytes > STAGE_MOST_BYTES:
            raise OSError(self._blocked_by)
        boot_ms = self._clock.boot_ms()
        batch = _Batch(self._counters, self._next_id, self._above)
        offset_ms = self._clock.date(0)
        is_over = self._is_patience_over(boot_ms)
        for reading in readings:
            time_ms = reading.time_ms
            if time_ms is None and offset_ms is not None:
                time_ms = reading.boot_ms + offset_ms
            if self._undated or (time_ms is None and not is_over):
                batch.undated.append(self._not_dated(reading, time_ms, batch.next_id))
                batch.next_id += 1
            elif time_ms is None:
                estimate_ms = self._estimate_ms(reading.boot_ms, self._clock.wall_ms())
                quality = _uncertain(reading.quality)
                batch.name(reading._replace(quality=quality), estimate_ms, is_known=False)
            else:
                batch.name(reading, time_ms, is_known=offset_ms is not None)
        named += self._keep(batch, boot_ms)
        return named

    def _keep(self, batch: _Batch, boot_ms: int) -> list[Waiting]:
        """Keep a batch, all of it or nothing. Raises: OSError."""
        if batch.begun:
            # an epoch is on disk before anybody hears of it, so that it is never begun again
            self._record({**self._counters, **batch.counters}, self._token)
        samples = [(one, encode(one)) for one in batch.named]
        undated = [encode(one) for one in batch.undated]
        if self._stage is not None:
            try:
                self._stage.append([*undated, *(body for _, body in samples)])
            except OSError as error:
                self._to_disk(error)
        if self._stage is None:
            if batch.undated:
                self._undated_file.append(batch.undated)
            if samples:
                self._segments.append(samples, self._counters, self._next_id, boot_ms)
        self._counters.update(batch.counters)
        self._next_id = batch.next_id
        self._undated.update((one.id, (one, boot_ms)) for one in batch.undated)
        waiting = [one.waiting for one, _ in samples]
        if self._stage is not None:
            for one, (_, body) in zip(waiting, samples, strict=True):
                self._add_fresh(one, body, boot_ms)
        if waiting:
            self.last_id = waiting[-1].id
        self._count_inflow(sum(len(body) for _, body in samples) + sum(map(len, undated)), boot_ms)
        self._keep_within_limits()
        return waiting

    def _end_stage_unless_wanted(self) -> None:
        """A killed run had a stage, the configuration has none now: what it held goes to the disk. Raises: OSError."""
        if self._stage is not None and self.settings.stage == "disk":
            stage = self._stage
            self._give_up_stage()
            stage.remove()

    def _to_disk(self, error: OSError) -> None:
        """Go on without a stage that takes nothing. Raises: OSError when the disk takes nothing, either."""
        self._give_up_stage()
        self._leave_stage(error)

    def _give_up_stage(self) -> None:
        """Bring to the disk what is in the stage, and the book that says so. Raises: OSError; then the stage stays."""
        stage, self._stage = self._stage, None
        try:
            self._spill()
            self._write_book(self._counters, self._token)
        except OSError:
            self._stage = stage
            raise

    def _add_fresh(self, waiting: Waiting, body: bytes, boot_ms: int) -> None:
        self._fresh[waiting.id] = _Fresh(waiting, body, boot_ms)
        self._fresh_bytes += len(body)
        self._names[_key(waiting)] = waiting.id

    def _drop_fresh(self, number: int) -> None:
        if (fresh := self._fresh.pop(number, None)) is not None:
            self._fresh_bytes -= len(fresh.body)
            del self._names[_key(fresh.waiting)]

    def _epochs_of(self, devices: Sequence[str], now_ms: int) -> dict[str, int]:
        begun = {}
        for device in devices:
            counter = self._counters.get(device)
            if counter is None or counter.next_seq == ENDED:
                epoch = max(now_ms, self._above + 1, counter.epoch + 1 if counter else 0)
                begun[device] = Counter(epoch, 0, now_ms - SLEW_MS)
        if begun:
            self._begin()
            self._record({**self._counters, **begun}, self._token)
            if self._stage is not None:
                try:
                    self._stage.append([encode(Counters(begun, self._next_id))])
                except OSError as error:
                    self._to_disk(error)
            self._counters.update(begun)
        return {device: self._counters[device].epoch for device in devices}

    # --------------------------------------------------------------------------------------------------- dating

    def _not_dated(self, reading: Taken, time_ms: int | None, number: int) -> Undated:
        return Undated(
            number,
            self._clock.boot_id,
            reading.boot_ms,
            self._clock.wall_ms(),
            time_ms,
            reading.domain,
            reading.device,
            reading.quality,
            reading.metrics,
        )

    def _is_patience_over(self, boot_ms: int) -> bool:
        """Say whether samples go out although nobody knows the time."""
        if self._clock.known:
            self._unknown_since_ms = None
            return False
        if self._unknown_since_ms is None:
            self._unknown_since_ms = boot_ms
        waited_ms = boot_ms - self._unknown_since_ms
        return waited_ms >= 1000 * self._clock.settings.wait_s or len(self._undated) >= UNDATED_MOST

    def _estimate_ms(self, boot_ms: int, wall_ms: int) -> int:
        """Return the best that can be said: no earlier than the last known time and what passed since this boot."""
        return max(wall_ms, self._floor_ms + boot_ms)

    def _date(self) -> list[Waiting]:
        """Name and date what has waited for the clock, as far as that can be done now. Raises: OSError."""
        if not self._undated:
            return []
        boot_ms = self._clock.boot_ms()
        is_over = self._is_patience_over(boot_ms)
        batch = _Batch(self._counters, self._next_id, self._above)
        for one, _ in self._undated.values():
            is_of_now = one.boot_id == self._clock.boot_id
            time_ms = one.time_ms
            if time_ms is None and is_of_now:
                time_ms = self._clock.date(one.boot_ms)
            reading = Taken(one.domain, one.device, time_ms, one.metrics, one.quality)
            if time_ms is not None:
                batch.name(reading, time_ms, is_known=True, number=one.id)
            elif is_over or not is_of_now:
                reading = reading._replace(quality=_uncertain(one.quality))
                estimate_ms = self._estimate_ms(one.boot_ms, one.wall_ms)
                batch.name(reading, estimate_ms, is_known=False, number=one.id)
            else:
                break
        if not batch.named:
            return []
        waiting = self._keep(batch, boot_ms)
        was_on_disk = self._undated_file.last_id >= batch.named[0].id
        for named in batch.named:
            del self._undated[named.id]
        if was_on_disk:
            with suppress(OSError):  # until this is done a start knows them by their ids
                self._spill()
                self._undated_file.replace(one for one, _ in self._undated.values())
        log.info(
            "samples that waited for the clock have their time", extra={"samples": len(waiting)}
        )
        return waiting

    # ------------------------------------------------------------------------------------------------- spilling

    def _tend(self) -> float:
        if self._is_open and self._is_begun:
            self._spill_what_is_due()
            self._segments.note()
            if self._segments.is_stuck and not self._undated_file.last_id:
                with suppress(OSError):  # then what has left is sent again after a start
                    self._write_mark(self._counters, self._token)
                    self._segments.release()
            self._keep_within_limits()
        now_ms = self._clock.boot_ms()
        wait_ms = self._spill_in_ms(now_ms)
        self._due_ms = now_ms + wait_ms
        return wait_ms / 1000

    def _spill_what_is_due(self) -> None:
        """Bring what is old enough to the disk, and the book, once it takes something again."""
        self._shorten_stage()
        now_ms = self._clock.boot_ms()
        if self._blocked_by and now_ms < self._retry_ms:
            return
        is_due = self._stage is not None and self._spill_in_ms(now_ms) <= 0
        try:
            if is_due:
                self._spill()
            if self._is_book_due:
                self._write_book(self._counters, self._token)
                is_due = True
        except OSError as error:
            self._complain(str(error))
            self._retry_ms = now_ms + RETRY_MS
        else:
            if is_due:
                self._blocked_by = ""
                self._trouble.over()

    def _spill_in_ms(self, now_ms: int) -> int:
        """Return when the oldest sample goes to the disk; one that comes from now on goes no sooner than the last."""
        came_ms = [fresh.boot_ms for fresh in _first(self._fresh.values())]
        last_id = self._undated_file.last_id
        came_ms += _first(ms for one, ms in self._undated.values() if one.id > last_id)
        return min(came_ms, default=now_ms) + SPILL_AFTER_MS - now_ms

    def _shorten_stage(self) -> None:
        """Write the stage anew when it has become much longer than what it holds, whatever the disk does."""
        if self._stage is None:
            return
        if (
            self._stage.grown > STAGE_BYTES
            and self._stage.size > STAGE_BYTES + 2 * self._fresh_bytes
        ):
            with suppress(OSError):  # an append that fails later sends all to the disk
                self._stage.begin(self._token, self._clock.boot_id, self._staged())

    def _complain(self, reason: str) -> None:
        self._blocked_by = reason
        self._trouble.report(reason)

    def _spill(self) -> None:
        """Make everything durable that is not, and begin the stage anew. Raises: OSError."""
        last_id = self._undated_file.last_id
        if undated := [one for one, _ in self._undated.values() if one.id > last_id]:
            self._undated_file.append(undated)
        boot_ms = self._clock.boot_ms()
        while fresh := list(islice(self._fresh.values(), SPILL_SAMPLES)):
            samples = [(kept(one.waiting), one.body) for one in fresh]
            self._segments.append(samples, self._counters, self._next_id, boot_ms)
            for one in fresh:
                self._drop_fresh(one.waiting.id)
        if self._stage is not None:
            self._stage.begin(self._token, self._clock.boot_id, self._staged())
        self._keep_within_limits()

    def _keep_within_limits(self) -> None:
        """Drop the oldest samples when there are too many, or when they are too old; what the disk keeps, stays."""
        self._watch_clock()
        while (oldest := self._segments.oldest) is not None:
            if self._segments.size > self._max_bytes:
                reason = "size"
            elif self._is_too_old(oldest):
                reason = "age"
            else:
                break
            try:
                gone = self._segments.drop(oldest)
            except OSError as error:
                self._stuck.report(str(error))
                return
            self._stuck.over()
            if not self._has_dropped:
                told = {"reason": reason, "max_mb": self.settings.max_mb}
                told |= {"max_age_days": self.settings.max_age_days}
                log.error(
                    "the outbox is over its limit: the oldest samples are dropped", extra=told
                )
            self._has_dropped = True
            self.dropped[reason] += gone
        if self._has_dropped and not self._segments.depth:
            log.info("the outbox has room again", extra={"dropped": dict(self.dropped)})
            self._has_dropped = False

    def _watch_clock(self) -> None:
        """Note since when the clock has not jumped."""
        offset_ms = self._clock.date(0)
        before_ms, self._offset_ms = self._offset_ms, offset_ms
        if offset_ms is None or before_ms is None or abs(offset_ms - before_ms) > JUMP_MS:
            self._steady_since_ms = self._clock.boot_ms()

    def _is_too_old(self, segment: Segment) -> bool:
        """Judge what this run wrote by the boot clock, and what is older once the clock has stood: nothing hastes."""
        boot_ms, most_ms = self._clock.boot_ms(), self.settings.max_age_days * 86_400_000
        if segment.written_ms is not None:
            return boot_ms - segment.written_ms > most_ms
        if self._offset_ms is None or boot_ms - self._steady_since_ms < STEADY_MS:
            return False
        return boot_ms + self._offset_ms - segment.newest_ms > most_ms

    def _count_inflow(self, size: int, boot_ms: int) -> None:
        if self._inflow_ms is None:
            self._inflow_ms = self._inflow_since_ms = boot_ms
        self._inflow *= math.exp((self._inflow_ms - boot_ms) / 1000 / INFLOW_S)
        self._inflow += size
        self._inflow_ms = boot_ms

    # ------------------------------------------------------------------------------------------------- the rest

    def _between(self, after_id: int, up_to_id: int, limit: int) -> list[Waiting]:
        found = self._segments.between(after_id, up_to_id, limit)
        for number, fresh in self._fresh.items():
            if len(found) >= limit:
                break
            if after_id < number <= up_to_id:
                found.append(fresh.waiting)
        return found

    def _find(self, keys: Sequence[Key]) -> list[Waiting]:
        numbers = [number for key in set(keys) if (number := self._names.get(key)) is not None]
        found = self._segments.find(self._elsewhere(keys))
        return found + [self._fresh[number].waiting for number in sorted(numbers)]

    def _elsewhere(self, keys: Iterable[Key]) -> dict[Series, list[int]]:
        """Return those of the keys that are not fresh, by series."""
        wanted: dict[Series, set[int]] = {}
        for key in keys:
            if key not in self._names:
                wanted.setdefault((key.device, key.epoch), set()).add(key.seq)
        return {name: sorted(seqs) for name, seqs in wanted.items()}

    def _let_go(self) -> None:
        """Forget what was told since the last call, all in one; what cannot be read now, with the next one."""
        gone = [key for _ in range(len(self._leaving)) for key in self._leaving.popleft()]
        if not gone:
            return
        try:
            left = self._forget(gone)
        except Exception:  # it must not end whoever asks next: `take` would stop the agent
            if not self._has_failed:
                log.exception("the outbox was not tended")
            self._has_failed = True
            return
        self._count_held()
        if left:
            self._leaving.append(left)

    def _forget(self, keys: Sequence[Key]) -> list[Key]:
        """Forget them, but for those that it returns."""
        left: list[Key] = []
        elsewhere = self._elsewhere(keys)
        numbers = sorted({number for key in keys if (number := self._names.get(key)) is not None})
        for number in numbers:
            self._drop_fresh(number)
        if elsewhere:
            unread = self._segments.forget(elsewhere)
            left = [key for key in keys if (key.device, key.epoch) in unread]
        if numbers and self._stage is not None:
            with suppress(OSError):  # after a kill they are sent again, and meet their rows
                self._stage.append([encode(Gone(ranges(numbers)))])
        return left

    def _count(self, excluding_domain: str) -> int:
        fresh = sum(one.waiting.domain != excluding_domain for one in self._fresh.values())
        return self._segments.depth - self._segments.of_domain(excluding_domain) + fresh

    def _stating(self, topics: Sequence[str]) -> list[str]:
        stale = sorted(self._topics - set(topics))
        self._set_topics(self._topics | set(topics))
        return stale

    def _set_topics(self, topics: set[str]) -> None:
        if topics == self._topics:
            return
        before, self._topics = self._topics, topics
        try:
            self._begin()
            self._record(self._counters, self._token)
        except OSError:
            self._topics = before
            raise


class _Batch:
    """Samples that are being taken: nothing of the outbox has changed yet."""

    def __init__(self, counters: dict[str, Counter], next_id: int, above: int) -> None:
        self.counters: dict[str, Counter] = {}
        self.next_id = next_id
        self.named: list[Kept] = []
        self.undated: list[Undated] = []
        self.begun = False
        self._before = counters
        self._above = above

    def name(
        self, reading: Taken, time_ms: int, *, is_known: bool, number: int | None = None
    ) -> None:
        """Give a reading its name and its time, for ever; a clock that was set back begins a new epoch."""
        device = reading.device
        counter = self.counters.get(device) or self._before.get(device)
        if counter is None:
            epoch, seq, self.begun = max(time_ms, self._above + 1), 0, True
        else:
            epoch, seq, last_ms = counter
            was_guessed = is_known and epoch < KNOWN_FROM_MS <= time_ms
            if seq == ENDED or was_guessed or time_ms < last_ms - SLEW_MS:
                epoch, seq, self.begun = max(time_ms, epoch + 1, self._above + 1), 0, True
            else:
                time_ms = max(time_ms, last_ms + 1)
        self.counters[device] = Counter(epoch, seq + 1, time_ms)
        if number is None:
            number, self.next_id = self.next_id, self.next_id + 1
        self.named.append(
            Kept(
                number,
                reading.domain,
                device,
                epoch,
                seq,
                time_ms,
                reading.quality,
                reading.metrics,
            )
        )


def _further(one: dict[str, Counter], other: dict[str, Counter]) -> dict[str, Counter]:
    """Return of each device the counter that had come further."""
    found = dict(one)
    for device, counter in other.items():
        advance(found, device, counter)
    return found


def _first(values: Iterable[T]) -> list[T]:
    for value in values:
        return [value]
    return []


def _key(waiting: Waiting) -> Key:
    return Key(waiting.device, waiting.sample.epoch, waiting.sample.seq)


def _uncertain(quality: str) -> str:
    return f"{quality};uncertain:clock" if quality else "uncertain:clock"
