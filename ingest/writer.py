"""The writer: batches into the store, their refusals into the quarantine, then receipts, then PUBACKs.

A write begins as soon as none is in flight, so that batches grow with the load by themselves; up to `max_writes` are in
flight while whole batches wait. Receipts go out when their batch is durable, PUBACKs in the order of arrival, as MQTT
asks. While the store cannot be used everything waits, and the broker, which sends no more than `receive_maximum`
messages ahead, waits with us; what is in hand is bounded in bytes too.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence

import msgspec

from exchange.errors import UplinkError, UplinkRefused
from exchange.mqtt import Client, Message
from exchange.trouble import Trouble
from ingest.batch import Batch
from ingest.intake import Intake
from ingest.quarantine import Quarantine, Refused, evidence
from ingest.stores import Point, Store, StoreOverfull, StoreRejected, StoreUnavailable

log = logging.getLogger(__name__)

BACKOFF_FIRST_S = 0.2
BACKOFF_LAST_S = 15.0
RECEIPT_DEADLINE_S = 10.0


class Counts(msgspec.Struct):
    """What became of the points. `errors` are by `StoreUnavailable.kind`."""

    stored: int = 0
    rejected: int = 0
    writes: int = 0
    retries: int = 0
    errors: dict[str, int] = msgspec.field(default_factory=dict)
    receipts: int = 0
    receipts_unsent: int = 0


class Writer:
    """Takes what the intake holds, oldest first, until it is stopped.

    Shape: `on_ready` comes when the store fails and when it is back; `on_write(seconds, points)` after
        each write that the store took.
    """

    def __init__(
        self,
        intake: Intake,
        store: Store,
        quarantine: Quarantine,
        *,
        max_points: int,
        max_age_s: float = 0.0,
        max_writes: int = 2,
        max_held_bytes: int = 256 * 2**20,
        on_ready: Callable[[], None] = lambda: None,
        on_write: Callable[[float, Sequence[Point]], None] = lambda _seconds, _points: None,
    ) -> None:
        self.counts = Counts()
        self._intake = intake
        self._store = store
        self._quarantine = quarantine
        self._max_points = max_points
        self._max_age_s = max_age_s
        self._max_writes = max_writes
        self._max_held_bytes = max_held_bytes
        self._on_ready = on_ready
        self._on_write = on_write
        self._client: Client | None = None
        self._settling: deque[Batch] = deque()  # in the order of their arrival
        self._waiting: set[Batch] = set()  # those that the store does not take
        self._changed = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._stopping = False
        self._alarm: asyncio.TimerHandle | None = None
        self._store_trouble = Trouble(
            log, "the store takes nothing, everything waits", "the store takes points again"
        )
        self._receipt_trouble = Trouble(log, "receipts cannot be sent", "receipts are sent again")

    @property
    def ready(self) -> bool:
        """Whether the store takes what it is given."""
        return not self._waiting

    @property
    def in_flight(self) -> int:
        """Batches that are being settled."""
        return len(self._settling)

    @property
    def in_hand_messages(self) -> int:
        """Messages that have arrived and are not settled."""
        return sum(len(batch.packet_ids) for batch in self._in_hand())

    @property
    def in_hand_bytes(self) -> int:
        """About how much memory they take."""
        return sum(batch.held_bytes for batch in self._in_hand())

    def attach(self, client: Client) -> None:
        """Receipts and PUBACKs go out through this client."""
        self._client = client

    def on_messages(self, messages: list[Message], generation: int) -> None:
        """Take what the client received. Once draining, nothing more: the broker keeps it."""
        if self._stopping:
            return
        self._intake.take(messages, generation)
        self._idle.clear()
        self._changed.set()
        self._hold()

    async def run(self) -> None:
        """Write for ever."""
        batches = self._intake.batches
        async with asyncio.TaskGroup() as tasks:
            while True:
                await self._changed.wait()
                self._changed.clear()
                while batches and self._may_begin():
                    batch = batches.popleft()
                    self._settling.append(batch)
                    tasks.create_task(self._settle(batch), name="batch")

    def _may_begin(self) -> bool:
        """Whether the oldest batch is to be written now: without haste, one at a time and in its time."""
        if self._intake.full or self._stopping:
            return len(self._settling) < self._max_writes
        if self._settling:
            return False
        rest_s = self._intake.batches[0].begun_s + self._max_age_s - time.monotonic()
        if self._max_age_s and rest_s > 0:
            if self._alarm is not None:
                self._alarm.cancel()
            self._alarm = asyncio.get_running_loop().call_later(rest_s, self._changed.set)
            return False
        return True

    async def drain(self, deadline_s: float) -> bool:
        """Take nothing more, and return whether everything in hand was settled in time."""
        self._stopping = True
        self._changed.set()
        try:
            await asyncio.wait_for(self._idle.wait(), deadline_s)
        except TimeoutError:
            return False
        return True

    async def _settle(self, batch: Batch) -> None:
        """End every message of a batch: durable first, then the receipts, then the PUBACKs."""
        rejected: dict[int, str] = {}
        async with asyncio.TaskGroup() as tasks:
            if batch.refused:
                tasks.create_task(self._quarantine.put(tuple(batch.refused)))
            await self._write_all(batch, rejected)
        self.counts.stored += len(batch.points) - len(rejected)
        if rejected:
            bad = [_rejected(batch, place, reason) for place, reason in rejected.items()]
            await self._quarantine.put(bad)
            batch.refused += bad
        sent = await self._send(batch.receipts(rejected))
        batch.settled = True
        # What has no receipt comes again with the next connection, which takes no PUBACK of this one.
        batch.packet_ids = batch.packet_ids if sent else []
        self._acknowledge()
        self._hold()
        self._changed.set()
        if not self._settling and not self._intake.batches:
            self._idle.set()

    def _acknowledge(self) -> None:
        """Send the PUBACKs of the batches that are settled, but none before those of an earlier one."""
        assert self._client is not None
        while self._settling and self._settling[0].settled:
            batch = self._settling.popleft()
            self._client.acknowledge(batch.packet_ids, batch.generation)

    def _in_hand(self) -> Iterable[Batch]:
        return *self._settling, *self._intake.batches

    def _hold(self) -> None:
        """Read nothing more while too much is in hand: payloads may be large, and hold many points."""
        assert self._client is not None
        self._client.hold(self.in_hand_bytes > self._max_held_bytes)

    async def _write_all(self, batch: Batch, rejected: dict[int, str]) -> None:
        """Write every point; note by place why the store rejects some."""
        for start in range(0, len(batch.points), self._max_points):
            end = min(start + self._max_points, len(batch.points))
            await self._write(batch, range(start, end), rejected)

    async def _write(self, batch: Batch, places: Sequence[int], rejected: dict[int, str]) -> None:
        """Write the points of these places; a request that cannot pass is parted, down to its bad points."""
        try:
            await self._write_until_taken(batch, [batch.points[place] for place in places])
        except StoreOverfull:
            parts = _halves(places)
        except StoreRejected as error:
            if len(places) in (1, error.dropped):
                self._reject(batch, places, str(error), rejected)
                return
            if error.too_old and 0 < error.dropped < len(places):
                places = sorted(places, key=lambda place: batch.points[place].time_ns)
                parts = places[: error.dropped], places[error.dropped :]
            else:
                parts = _halves(places)
        else:
            return
        for part in parts:
            await self._write(batch, part, rejected)

    def _reject(
        self, batch: Batch, places: Sequence[int], why: str, rejected: dict[int, str]
    ) -> None:
        if not self.counts.rejected:
            topic = batch.messages[places[0]].topic
            extra = {"requirement": "EX-D-003", "topic": topic}
            log.warning("the store rejects a point: %s", why, extra=extra)
        self.counts.rejected += len(places)
        rejected.update(dict.fromkeys(places, why))

    async def _write_until_taken(self, batch: Batch, points: Sequence[Point]) -> None:
        """Write, again and again while it is not the points' fault.

        Raises: StoreRejected; StoreOverfull when there is more than one point.
        """
        delay_s = BACKOFF_FIRST_S
        while True:
            self.counts.writes += 1
            began_s = time.monotonic()
            try:
                await self._store.write(points)
            except StoreUnavailable as error:
                if isinstance(error, StoreOverfull) and len(points) > 1:
                    raise
                self.counts.errors[error.kind] = self.counts.errors.get(error.kind, 0) + 1
                self.counts.retries += 1
                self._waits(batch, error)
                await asyncio.sleep(_pause_s(delay_s, error.retry_after_s))
                delay_s = min(2 * delay_s, BACKOFF_LAST_S)
            except StoreRejected:
                self._goes_on(batch)
                raise
            else:
                self._goes_on(batch)
                self._on_write(time.monotonic() - began_s, points)
                return

    def _waits(self, batch: Batch, error: StoreUnavailable) -> None:
        self._waiting.add(batch)
        self._store_trouble.report(str(error), kind=error.kind)
        self._on_ready()

    def _goes_on(self, batch: Batch) -> None:
        if batch in self._waiting:
            self._waiting.remove(batch)
            if not self._waiting:
                self._store_trouble.over()
                self._on_ready()

    async def _send(self, receipts: Iterable[tuple[str, bytes]]) -> bool:
        """Write receipts to the connection; False when it is gone: the messages will come again."""
        client = self._client
        assert client is not None
        for topic, payload in receipts:
            sent = False
            while not sent:
                try:
                    sent = client.publish_soon(topic, payload)
                    if not sent:
                        await client.wait_connected(RECEIPT_DEADLINE_S)
                        await client.publish(topic, payload, deadline_s=RECEIPT_DEADLINE_S)
                        sent = True
                    self.counts.receipts += 1
                except UplinkError as error:
                    self.counts.receipts_unsent += 1
                    self._receipt_trouble.report(str(error), topic=topic)
                    if not client.connected:
                        return False
                    # Refused by the broker: the gateway will ask again. Else tried again: the
                    # connection lives, so its messages would wait for their PUBACK for ever.
                    sent = isinstance(error, UplinkRefused)
                else:
                    self._receipt_trouble.over()
        return True


def _halves(places: Sequence[int]) -> tuple[Sequence[int], Sequence[int]]:
    middle = len(places) // 2
    return places[:middle], places[middle:]


def _pause_s(delay_s: float, retry_after_s: float | None) -> float:
    """Return how long to wait: with jitter, and as the store asks, within reason."""
    jittered_s = delay_s * random.uniform(0.5, 1.0)  # noqa: S311 - not a secret
    return min(max(jittered_s, retry_after_s or 0.0), BACKOFF_LAST_S)


def _rejected(batch: Batch, place: int, reason: str) -> Refused:
    """Return the refusal of a point that the store rejects by itself."""
    message, route, fields = batch.messages[place], batch.routes[place], batch.points[place].fields
    seen = evidence(message.topic, message.payload, time.time_ns() // 1_000_000)
    if route.topic.channel == "results":
        return Refused(seen, "EX-D-003", reason, route.receipts)
    where = route.topic.county, route.topic.device
    return Refused(
        seen, "EX-D-003", reason, route.receipts, *where, int(fields["epoch"]), int(fields["seq"])
    )
