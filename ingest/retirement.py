"""Scaling down: sessions of workers that are no more are taken over, emptied and ended, beside the town's own work."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from exchange.errors import ConfigError, UplinkError, UplinkLost
from exchange.trouble import Trouble
from ingest.config import SESSION_EXPIRY_S, Config
from ingest.service import (
    DRAIN_DEADLINE_S,
    GOODBYE_DEADLINE_S,
    RETRY_S,
    UNSUBSCRIBE_DEADLINE_S,
    Service,
)
from ingest.sessions import Sessions

log = logging.getLogger(__name__)

QUIET_S = 2.0
"""A session from which nothing came for so long, and of which nothing is in hand, is empty."""


@asynccontextmanager
async def retiring(config: Config, file: Path, sessions: Sessions) -> AsyncIterator[None]:
    """Empty the sessions of workers that are no more, beside whatever else is done."""
    tasks = [
        asyncio.create_task(_retire(config, file, sessions, worker), name=f"retire {worker}")
        for worker in sorted(sessions.retired)
    ]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _retire(config: Config, file: Path, sessions: Sessions, worker: int) -> None:
    trouble = Trouble(
        log,
        f"the session of worker {worker} is not emptied yet",
        f"the session of worker {worker} is emptied after all",
    )
    while worker in sessions.retired:
        try:
            await _empty(config, file, worker)
        except ConfigError as error:
            words = "the session of worker %d is left to expire, its messages come again from the gateways: %s"
            log.error(words, worker, error)
        except Exception as error:  # noqa: BLE001 - the town's own work goes on beside it, whatever is wrong here
            causes = error.exceptions if isinstance(error, ExceptionGroup) else [error]
            trouble.report("; ".join(f"{type(each).__name__}: {each}" for each in causes))
            await asyncio.sleep(RETRY_S * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
            continue
        trouble.over()
        sessions.emptied(worker)


async def _empty(config: Config, file: Path, worker: int) -> None:
    """Take over the session of a worker that is no more, and end it once nothing is in it."""
    log.info("the session of worker %d, which is no more, is being emptied", worker)
    service = Service(config, file, worker=worker, retired=True)
    try:
        await service.open()
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(service.run(), name=f"retired {worker}")
            await _take_out(service)
            running.cancel()
    finally:
        await service.close()
    log.info("the session of worker %d is emptied and ended", worker)


async def _take_out(service: Service) -> None:
    """Return when the session is emptied and ended, or has expired because the broker was away so long."""
    trouble = Trouble(log, "a session is not emptied yet", "a session is being emptied")
    seen_s = time.monotonic()
    while time.monotonic() - seen_s < SESSION_EXPIRY_S:
        try:
            await service.client.wait_connected(RETRY_S)
            seen_s = time.monotonic()
            await service.client.unsubscribe(service.unwanted, UNSUBSCRIBE_DEADLINE_S)
            await _until_quiet(service)
            await service.client.end_session(GOODBYE_DEADLINE_S)
        except UplinkError as error:
            trouble.report(str(error))
            await asyncio.sleep(RETRY_S * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
        else:
            break
    await service.drain(DRAIN_DEADLINE_S)


async def _until_quiet(service: Service) -> None:
    """Return when nothing has come for a while and nothing is in hand. Raises: UplinkLost."""
    count, since_s = -1, 0.0
    while count < 0 or time.monotonic() - since_s < QUIET_S:
        if not service.client.connected:
            raise UplinkLost(f"not connected: {service.client.last_error}")
        now = service.intake.counts.messages
        if now != count or service.writer.in_hand_messages:
            count, since_s = now, time.monotonic()
        await asyncio.sleep(QUIET_S / 10)
