"""The way from the buses to the outbox: bounded, and in batches so that one sync to the disk serves many samples.

A disk that takes nothing makes the buses wait, and nothing that was handed in is thrown away.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections.abc import Callable

import msgspec

from device_drivers.kit.driver import Reading
from edge_agent.config import Device
from edge_agent.outbox import Outbox, OutboxBlocked, Taken, Waiting
from exchange.readings import MAX_NUMBER, Value, is_metric_name

log = logging.getLogger(__name__)

QUEUED = 1000
BATCH = 500
RETRY_FIRST_S = 0.2
RETRY_LAST_S = 10.0


class Intake:
    """Takes readings; a full queue makes the buses wait."""

    def __init__(
        self,
        outbox: Outbox,
        on_taken: Callable[[list[Waiting]], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`on_taken` hears of every batch once it is on disk."""
        self._outbox = outbox
        self._on_taken = on_taken
        self._clock = clock
        self._queue: asyncio.Queue[Taken] = asyncio.Queue(QUEUED)
        self._in_hand = 0

    @property
    def waiting(self) -> int:
        """Samples that are not on disk yet."""
        return self._in_hand + self._queue.qsize()

    async def reading(self, device: Device, reading: Reading) -> None:
        """Hand in a device's reading, measured now. Raises: msgspec.ValidationError when it is none."""
        fit = fitted(reading, device)
        await self.put(device.domain, device.id, fit.metrics, fit.quality)

    async def put(
        self, domain: str, device: str, metrics: dict[str, Value], quality: str = ""
    ) -> None:
        """Hand in one sample, measured now."""
        time_ms = round(self._clock() * 1000)
        await self._queue.put(Taken(domain, device, time_ms, metrics, quality))

    async def run(self) -> None:
        """Keep what comes in, for ever. Raises: OutboxDamaged."""
        while True:
            batch = [await self._queue.get()]
            while len(batch) < BATCH and not self._queue.empty():
                batch.append(self._queue.get_nowait())
            self._in_hand = len(batch)
            self._on_taken(await self._kept(batch))
            self._in_hand = 0
            for _ in batch:
                self._queue.task_done()

    async def _kept(self, batch: list[Taken]) -> list[Waiting]:
        """Return the batch once it is on disk, however long that takes."""
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
        """Return when everything handed in is on disk."""
        await self._queue.join()


def named(metric: str, device: Device) -> str:
    """Return a driver's metric as the exchange calls it: what the domain lacks is the vendor's own."""
    return metric if is_metric_name(device.domain, metric) else f"x-{device.vendor}-{metric}"


def fitted(reading: Reading, device: Device) -> Reading:
    """Return the reading as its domain may carry it.

    A metric that the domain lacks is the vendor's own; a value that is no number the exchange knows is left out and
    marked. Raises: msgspec.ValidationError when a driver's reading is none.
    """
    reading = msgspec.convert(msgspec.to_builtins(reading), Reading)
    metrics: dict[str, Value] = {}
    marks = [reading.quality] if reading.quality else []
    for name, value in reading.metrics.items():
        known = is_metric_name(device.domain, name)
        name = named(name, device)
        if not (isinstance(value, bool) or (math.isfinite(value) and abs(value) < MAX_NUMBER)):
            marks.append(f"bad:fault({name})")
        else:
            metrics[name] = value if known else float(value)
    return Reading(metrics, ";".join(marks))
