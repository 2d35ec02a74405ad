"""A worker of ingest: one connection, one intake, one writer, and an orderly end; it may be the only one.

Beside it, whoever has no worker above it empties the sessions of those that an earlier start had.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import random
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from exchange import health, runtime
from exchange.errors import ConfigError, StoreError, UplinkError, UplinkLost, UplinkRefused
from exchange.mqtt import Client, Subscription
from exchange.trouble import Trouble
from ingest.config import SESSION_EXPIRY_S, Config, broker_settings, broker_tls, store_of
from ingest.hand import Hand
from ingest.intake import Intake
from ingest.metrics import Metrics, serving
from ingest.quarantine import Quarantine
from ingest.sessions import Sessions
from ingest.stores import StoreUnavailable
from ingest.watch import Watch
from ingest.writer import Writer

log = logging.getLogger(__name__)

DRAIN_DEADLINE_S = 10.0
GOODBYE_DEADLINE_S = 3.0
UNSUBSCRIBE_DEADLINE_S = 10.0
TAKING_IN = "taking in"
RETRY_S = 5.0
QUIET_S = 2.0
"""A session from which nothing came for so long, and of which nothing is in hand, is empty."""


def main(config: Config, file: Path, *, worker: int | None = None, with_watch: bool = False) -> int:
    """Run a worker until SIGTERM, without a number the only one; return the exit code. Raises: ConfigError."""
    # Points and packs hold no cycles: looking for some among them costs more than storing them.
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    return runtime.run(_main(config, file, worker, with_watch))


async def _main(config: Config, file: Path, worker: int | None, with_watch: bool) -> int:
    sessions, stop = Sessions(config), runtime.stop_on_signals()
    service = Service(config, file, worker=worker or 1)
    watch = Watch(config, service.store, file=file) if with_watch else None
    async with AsyncExitStack() as around:
        await around.enter_async_context(health.answering(service.judge))
        try:
            metrics = serving(config.metrics, service.metrics, service.judge, worker=worker or 1)
            await around.enter_async_context(metrics)
        except socket.gaierror as error:
            allowed = f"must be an address of this machine: {error.strerror}"
            raise ConfigError(str(file), "metrics.host", config.metrics.host, allowed) from error
        except OSError as error:
            allowed = f"must be free, for worker {worker or 1}, too: {error.strerror}"
            raise ConfigError(str(file), "metrics.port", config.metrics.port, allowed) from error
        if worker is None:  # nobody above it, who would mind the sessions
            sessions.remember()
            service.on_ready = sessions.tidied
            await around.enter_async_context(retiring(config, file, sessions))
        return await serve(service, stop, watch)


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
    while worker in sessions.retired:
        try:
            await _empty(config, file, worker)
        except ConfigError as error:
            words = "the session of worker %d is left to expire, its messages come again from the gateways: %s"
            log.error(words, worker, error)
        except Exception:
            # The town's own work goes on beside it, whatever is wrong here.
            log.exception("the session of worker %d is not emptied yet", worker)
            await asyncio.sleep(RETRY_S * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
            continue
        sessions.emptied(worker)


async def _empty(config: Config, file: Path, worker: int) -> None:
    """Take over the session of a worker that is no more, and end it once nothing is in it."""
    log.info("the session of worker %d, which is no more, is being emptied", worker)
    service = Service(config, file, worker=worker, retired=True)
    try:
        await service.open()
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(service.run(), name=f"retired {worker}")
            await service.retire()
            running.cancel()
    finally:
        await service.close()
    log.info("the session of worker %d is emptied and ended", worker)


async def serve(service: Service, stop: asyncio.Event, watch: Watch | None = None) -> int:
    """Run until `stop`, then drain; return 1 when not everything in hand could be settled.

    Raises: StoreError when the store can never be used.
    """
    try:
        await service.open()
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(service.run(), name="ingest")]
            if watch is not None:
                running.append(tasks.create_task(watch.run(), name="watch"))
            await stop.wait()
            runtime.notify("STOPPING=1")
            if watch is not None:
                await watch.stop(GOODBYE_DEADLINE_S)
            drained = await service.drain(DRAIN_DEADLINE_S)
            for task in running:
                task.cancel()
    finally:
        await service.close()
    log.info("stopped", extra={"counts": service.counts(), "drained": drained})
    return 0 if drained else 1


class Service:
    """A worker for the counties of a configuration.

    Shape: a `retired` one takes what its session holds and nothing more, and tells nobody how it is.
        `on_ready` is called once, when it is ready for the first time.

    Raises: ConfigError.
    """

    def __init__(
        self, config: Config, file: Path, *, worker: int = 1, retired: bool = False
    ) -> None:
        sessions = Sessions(config)
        self.on_ready: Callable[[], None] = lambda: None
        self._notify: Callable[[str], None] = (lambda _words: None) if retired else runtime.notify
        self._unwanted = [*sessions.wanted, *sessions.unwanted] if retired else sessions.unwanted
        self._tidy = retired
        self.metrics = Metrics()
        self.store = store_of(config, file)
        self.quarantine = Quarantine(
            config.quarantine.path,
            max_bytes=config.quarantine.max_mb * 2**20,
            max_age_days=config.quarantine.max_age_days,
        )
        settings = broker_settings(config, file=file, worker=worker)
        self._hand = Hand(config.quarantine.path.with_suffix(f".{settings.client_id}.hand"))
        self.intake = Intake(
            config.counties,
            max_points=config.batch.max_points,
            receive_maximum=settings.receive_maximum,
            budget_per_min=config.rate_budget_per_min,
            late_s=config.metrics.late_s,
            hand=self._hand,
        )
        self.writer = Writer(
            self.intake,
            self.store,
            self.quarantine,
            max_points=config.batch.max_points,
            max_age_s=config.batch.max_age_s,
            max_writes=config.batch.max_writes,
            max_held_bytes=config.broker.max_held_mb * 2**20,
            on_ready=self._say,
            on_write=self.metrics.on_write,
        )
        self.client = Client(
            settings,
            [] if retired else [Subscription(each) for each in sessions.wanted],
            self.writer.on_messages,
            on_connect=self._connected,
            on_disconnect=self._say,
            tls=broker_tls(config, file=file, worker=worker),
        )
        self.writer.attach(self.client)
        self.metrics.attach(
            intake=self.intake,
            writer=self.writer,
            quarantine=self.quarantine,
            client=self.client,
        )
        self._announced = False

    @property
    def ready(self) -> bool:
        """Connected by the filters of this start alone, and the store takes what comes."""
        return self.client.connected and self._tidy and self.writer.ready

    async def judge(self) -> str:
        """Return how things stand now, in the words of `exchange.health`."""
        try:
            await self.store.ping()
        except StoreError as error:
            return f"waiting for the store: {error}"
        return health.WELL if self.ready else self._words()

    async def open(self) -> None:
        """Open the store; one that is away is waited for with the first points."""
        self._hand.open()
        try:
            await self.store.open()
        except StoreUnavailable as error:
            log.warning("the store is not there yet: %s", error)

    async def run(self) -> None:
        """Run until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.client.run(), name="client")
            tasks.create_task(self.writer.run(), name="writer")
            tasks.create_task(self.quarantine.run(), name="quarantine")
            tasks.create_task(self._tidy_session(), name="session")

    async def drain(self, deadline_s: float) -> bool:
        """Settle what is in hand and say goodbye; False when something was left to the broker."""
        drained = await self.writer.drain(deadline_s)
        await self.client.stop(GOODBYE_DEADLINE_S)
        return drained

    async def retire(self) -> None:
        """Return when the session is emptied and ended, or has expired because the broker was away so long."""
        trouble = Trouble(log, "a session is not emptied yet", "a session is being emptied")
        seen_s = time.monotonic()
        while time.monotonic() - seen_s < SESSION_EXPIRY_S:
            try:
                await self.client.wait_connected(RETRY_S)
                seen_s = time.monotonic()
                await self.client.unsubscribe(self._unwanted, UNSUBSCRIBE_DEADLINE_S)
                await self._until_quiet()
                await self.client.end_session(GOODBYE_DEADLINE_S)
            except UplinkError as error:
                trouble.report(str(error))
                await asyncio.sleep(RETRY_S * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
            else:
                break
        await self.drain(DRAIN_DEADLINE_S)

    async def _until_quiet(self) -> None:
        """Return when nothing has come for a while and nothing is in hand. Raises: UplinkLost."""
        count, since_s = -1, 0.0
        while count < 0 or time.monotonic() - since_s < QUIET_S:
            if not self.client.connected:
                raise UplinkLost(f"not connected: {self.client.last_error}")
            now = self.intake.counts.messages
            if now != count or self.writer.in_hand_messages:
                count, since_s = now, time.monotonic()
            await asyncio.sleep(QUIET_S / 10)

    async def close(self) -> None:
        """Let go of the store, the quarantine and the hand."""
        await self.store.close()
        await self.quarantine.close()
        self._hand.close()

    def counts(self) -> dict[str, object]:
        """What has happened, for the log."""
        parts = (self.intake.counts, self.writer.counts, self.quarantine.counts)
        return {type(part).__module__.rpartition(".")[2]: part for part in parts}

    def _connected(self, session_present: bool) -> None:
        self._tidy = self._tidy or not session_present
        self._say()

    async def _tidy_session(self) -> None:
        """Have the broker forget filters of an earlier start, once those of this one are granted."""
        while not self._tidy:
            try:
                await self.client.wait_connected(RETRY_S)
            except UplinkError:
                continue
            if self._tidy:
                return
            try:
                await self.client.unsubscribe(self._unwanted, UNSUBSCRIBE_DEADLINE_S)
            except UplinkRefused as error:
                log.warning("the broker keeps filters of an earlier start: %s", error)
            except UplinkError:  # the client has told why; it connects again
                await asyncio.sleep(RETRY_S * random.uniform(0.05, 0.1))  # noqa: S311 - jitter
                continue
            self._tidy = True
            self._say()

    def _say(self, error: UplinkError | None = None) -> None:
        """Tell the service manager how things stand."""
        if self.ready and not self._announced:
            self._announced = True
            self.on_ready()
            self._notify("READY=1")
        self._notify(f"STATUS={self._words(error)}")

    def _words(self, error: UplinkError | None = None) -> str:
        if not self.writer.ready:
            return "waiting for the store"
        if not self.client.connected:
            return f"waiting for the broker: {error or self.client.last_error}"
        return TAKING_IN if self._tidy else "taking back filters of an earlier start"
