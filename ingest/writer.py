"""The writer: a batch into the store, its refusals into the quarantine, then receipts, then PUBACKs.

One write is in flight at a time; what arrives meanwhile is the next batch, so batches grow with the
load by themselves. While the store cannot be used everything waits, and the broker, which sends no
more than `receive_maximum` messages ahead, waits with us.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

import msgspec

from exchange.errors import UplinkError, UplinkRefused
from exchange.mqtt import Client, Message
from ingest.batch import Batch
from ingest.intake import Intake
from ingest.quarantine import Quarantine, Refused, evidence
from ingest.stores import Point, Store, StoreOverfull, StoreRejected, StoreUnavailable

log = logging.getLogger(__name__)

BACKOFF_FIRST_S = 0.2
BACKOFF_LAST_S = 15.0
RECEIPT_DEADLINE_S = 10.0


class Counts(msgspec.Struct):
    """What became of the points."""

    stored: int = 0
    rejected: int = 0
    writes: int = 0
    store_errors: int = 0
    receipts: int = 0
    receipts_unsent: int = 0


class Writer:
    """Takes what the intake holds, oldest first, until it is stopped.

    Shape: `on_ready(ready, why)` comes when the store fails and when it is back.
    """

    def __init__(
        self,
        intake: Intake,
        store: Store,
        quarantine: Quarantine,
        *,
        max_points: int,
        max_age_s: float = 0.0,
        on_ready: Callable[[bool, str], None] = lambda _ready, _why: None,
    ) -> None:
        self.counts = Counts()
        self.ready = True
        self._why = ""
        self._intake = intake
        self._store = store
        self._quarantine = quarantine
        self._max_points = max_points
        self._max_age_s = max_age_s
        self._on_ready = on_ready
        self._client: Client | None = None
        self._arrived = asyncio.Event()
        self._full = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._stopping = False

    def attach(self, client: Client) -> None:
        """Receipts and PUBACKs go out through this client."""
        self._client = client

    def on_messages(self, messages: list[Message], generation: int) -> None:
        """Take what the client received. Once draining, nothing more: the broker keeps it."""
        if self._stopping:
            return
        self._intake.take(messages, generation)
        self._idle.clear()
        self._arrived.set()
        if self._intake.full:
            self._full.set()

    async def run(self) -> None:
        """Write for ever."""
        batches = self._intake.batches
        while True:
            await self._arrived.wait()
            await self._grow(batches[0])
            await self._settle(batches.popleft())
            if not (self._intake.full or self._stopping):
                self._full.clear()
            if not batches:
                self._arrived.clear()
                self._idle.set()

    async def _grow(self, batch: Batch) -> None:
        """Give the only batch its time to become larger."""
        if self._max_age_s and not self._full.is_set():
            rest_s = batch.begun_s + self._max_age_s - time.monotonic()
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, rest_s)):
                    await self._full.wait()

    async def drain(self, deadline_s: float) -> bool:
        """Take nothing more, and return whether everything in hand was settled in time."""
        self._stopping = True
        self._full.set()
        try:
            await asyncio.wait_for(self._idle.wait(), deadline_s)
        except TimeoutError:
            return False
        return True

    async def _settle(self, batch: Batch) -> None:
        """End every message of a batch: durable first, then the receipts, then the PUBACKs."""
        points = batch.points
        rejected: dict[int, str] = {}
        for start in range(0, len(points), self._max_points):
            await self._write(points, start, min(start + self._max_points, len(points)), rejected)
        self.counts.stored += len(points) - len(rejected)
        for place, reason in rejected.items():
            batch.refused.append(_rejected(batch, place, reason))
        if batch.refused:
            await self._quarantine.put(batch.refused)
        if await self._send(batch.receipts(rejected)):
            assert self._client is not None
            self._client.acknowledge(batch.packet_ids, batch.generation)

    async def _write(
        self, points: Sequence[Point], start: int, end: int, rejected: dict[int, str]
    ) -> None:
        """Write points[start:end]; a request that cannot pass is halved, down to its bad points."""
        try:
            await self._write_until_taken(points[start:end])
        except (StoreRejected, StoreOverfull) as error:
            if end - start == 1:
                if not self.counts.rejected:
                    log.warning("the store rejects a point: %s", error)
                self.counts.rejected += 1
                rejected[start] = str(error)
                return
            middle = (start + end) // 2
            await self._write(points, start, middle, rejected)
            await self._write(points, middle, end, rejected)

    async def _write_until_taken(self, points: Sequence[Point]) -> None:
        """Write, again and again while it is not the points' fault.

        Raises: StoreRejected; StoreOverfull when there is more than one point.
        """
        delay_s = BACKOFF_FIRST_S
        while True:
            self.counts.writes += 1
            try:
                await self._store.write(points)
            except StoreUnavailable as error:
                if isinstance(error, StoreOverfull) and len(points) > 1:
                    raise
                self.counts.store_errors += 1
                self._become_ready(False, str(error))
                await asyncio.sleep(_pause_s(delay_s, error.retry_after_s))
                delay_s = min(2 * delay_s, BACKOFF_LAST_S)
            else:
                self._become_ready(True, "")
                return

    def _become_ready(self, ready: bool, why: str) -> None:
        if ready == self.ready and why == self._why:
            return
        if ready:
            log.info("the store takes points again")
        else:
            log.warning("the store takes nothing, everything waits: %s", why)
        self.ready, self._why = ready, why
        self._on_ready(ready, why)

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
                except UplinkError as error:
                    self.counts.receipts_unsent += 1
                    log.warning("a receipt could not be sent: %s", error)
                    if not client.connected:
                        return False
                    # Refused by the broker: the gateway will ask again. Else tried again: the
                    # connection lives, so its messages would wait for their PUBACK for ever.
                    sent = isinstance(error, UplinkRefused)
            self.counts.receipts += 1
        return True


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
