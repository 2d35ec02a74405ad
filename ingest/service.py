"""What a worker of ingest does: one connection, one intake, one writer, and an orderly end."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from pathlib import Path

from exchange import health, runtime
from exchange.errors import StoreError, UplinkError, UplinkRefused
from exchange.mqtt import Client, Subscription
from ingest.config import Config, broker_settings, broker_tls, store_of
from ingest.hand import Hand
from ingest.intake import Intake
from ingest.metrics import Metrics
from ingest.quarantine import Quarantine
from ingest.rollups.engine import Engine
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


async def serve(
    service: Service,
    stop: asyncio.Event,
    watch: Watch | None = None,
    rollups: Engine | None = None,
) -> int:
    """Run until `stop`, then drain; return 1 when not everything in hand could be settled.

    Raises: StoreError when the store can never be used; what ends the watch or the roll-ups, ends all.
    """
    try:
        await service.open()
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(service.run(), name="ingest")]
            if watch is not None:
                running.append(tasks.create_task(watch.run(), name="watch"))
            if rollups is not None:
                running.append(tasks.create_task(rollups.run(), name="rollups"))
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
        self.unwanted = [*sessions.wanted, *sessions.unwanted] if retired else sessions.unwanted
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
                await self.client.unsubscribe(self.unwanted, UNSUBSCRIBE_DEADLINE_S)
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
