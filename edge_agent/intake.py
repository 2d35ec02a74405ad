"""The way from the buses to the outbox: bounded, and in batches so that one write serves many samples.

A disk that takes nothing makes the buses wait, and nothing that was handed in is thrown away.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable

from device_drivers.kit.driver import Reading
from edge_agent.clock import Clock
from edge_agent.config import Device
from edge_agent.outbox import Outbox, OutboxBlocked, Taken, Waiting
from edge_agent.quality import fitted
from exchange.readings import Value

log = logging.getLogger(__name__)

QUEUED = 1000
BATCH = 500
GATHER_S = 0.03  # what comes shortly after a sample goes with it: each batch wakes up the outbox, the uplink and ingest
RETRY_FIRST_S = 0.2
RETRY_LAST_S = 10.0
ASK_S = 1.0  # whether samples that wait for the clock have got their time


class Intake:
    """Takes readings, stamped by the boot clock; a full queue makes the buses wait."""

    def __init__(
        self,
        outbox: Outbox,
        on_taken: Callable[[list[Waiting]], None],
        clock: Clock | None = None,
    ) -> None:
        """`on_taken` hears of every sample once it is kept and has its name."""
        self._outbox = outbox
        self._on_taken = on_taken
        self._clock = clock or Clock()
        self._queue: asyncio.Queue[Taken] = asyncio.Queue(QUEUED)
        self._in_hand = 0

    @property
    def waiting(self) -> int:
        """Samples that are not kept yet."""
        return self._in_hand + self._queue.qsize()

    async def reading(self, device: Device, reading: Reading) -> None:
        """Hand in a device's reading, measured now. Raises: msgspec.ValidationError when it is none."""
        fit = fitted(reading, device)
        await self.put(device.domain, device.id, fit.metrics, fit.quality)

    async def put(
        self, domain: str, device: str, metrics: dict[str, Value], quality: str = ""
    ) -> None:
        """Hand in one sample, measured now."""
        boot_ms = self._clock.boot_ms()
        await self._queue.put(Taken(domain, device, None, metrics, quality, boot_ms))

    async def run(self) -> None:
        """Keep what comes in, for ever."""
        while True:
            batch = await self._next()
            self._in_hand = len(batch)
            if waiting := await self._kept(batch):
                self._on_taken(waiting)
            self._in_hand = 0
            for _ in batch:
                self._queue.task_done()

    async def _next(self) -> list[Taken]:
        """Return what was handed in; nothing now and then, while samples wait for the clock."""
        try:
            async with asyncio.timeout(ASK_S if self._outbox.undated else None):
                batch = [await self._queue.get()]
        except TimeoutError:
            return []
        await asyncio.sleep(GATHER_S)
        while len(batch) < BATCH and not self._queue.empty():
            batch.append(self._queue.get_nowait())
        return batch

    async def _kept(self, batch: list[Taken]) -> list[Waiting]:
        """Return the batch once it is kept, however long that takes."""
        wait_s = RETRY_FIRST_S
        while True:
            try:
                # what was handed in is finished even when we are told to end meanwhile
                return await asyncio.shield(self._outbox.take(batch))
            except OutboxBlocked as error:
                if wait_s == RETRY_FIRST_S:
                    log.error(
                        "samples cannot be kept; the buses wait", extra={"reason": str(error)}
                    )
            await asyncio.sleep(wait_s * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
            wait_s = min(2 * wait_s, RETRY_LAST_S)

    async def drained(self) -> None:
        """Return when everything handed in is kept."""
        await self._queue.join()
