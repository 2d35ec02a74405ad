"""The way from the buses to the outbox: bounded, and in batches so that one sync to the disk serves many samples."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping

from device_drivers.kit.driver import Reading
from edge_agent.config import Device
from edge_agent.outbox import Outbox, Taken, Waiting
from exchange.readings import Value, is_metric_name

QUEUED = 1000
BATCH = 500


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

    async def reading(self, device: Device, vendor: str, reading: Reading) -> None:
        """Hand in a device's reading, measured now."""
        metrics = fitted(reading.metrics, device.domain, vendor)
        await self.put(device.domain, device.id, metrics, reading.quality)

    async def put(
        self, domain: str, device: str, metrics: dict[str, Value], quality: str = ""
    ) -> None:
        """Hand in one sample, measured now."""
        time_ms = round(self._clock() * 1000)
        await self._queue.put(Taken(domain, device, time_ms, metrics, quality))

    async def run(self) -> None:
        """Keep what comes in, for ever."""
        while True:
            batch = [await self._queue.get()]
            while len(batch) < BATCH and not self._queue.empty():
                batch.append(self._queue.get_nowait())
            # what was handed in is finished even when we are told to end meanwhile
            self._on_taken(await asyncio.shield(self._outbox.take(batch)))
            for _ in batch:
                self._queue.task_done()

    async def drained(self) -> None:
        """Return when everything handed in is on disk."""
        await self._queue.join()


def fitted(metrics: Mapping[str, Value], domain: str, vendor: str) -> dict[str, Value]:
    """Return the metrics as the domain may carry them: what it lacks is the vendor's own."""
    return {
        name if is_metric_name(domain, name) else f"x-{vendor}-{name}": (
            value if is_metric_name(domain, name) else float(value)
        )
        for name, value in metrics.items()
    }
