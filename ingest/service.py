"""The ingest process: one connection, one intake, one writer, and an orderly end."""

from __future__ import annotations

import asyncio
import gc
import logging
from pathlib import Path

from exchange import health, runtime
from exchange.errors import StoreError, UplinkError
from exchange.mqtt import Client, Subscription
from exchange.topics import PREFIX
from ingest.config import Config, broker_settings, broker_tls, load_config, store_of
from ingest.intake import Intake
from ingest.quarantine import Quarantine
from ingest.stores import StoreUnavailable
from ingest.watch import Watch
from ingest.writer import Writer

log = logging.getLogger(__name__)

DRAIN_DEADLINE_S = 10.0
GOODBYE_DEADLINE_S = 3.0


def main(config_path: Path, with_watch: bool = False) -> int:
    """Run ingest until SIGTERM; return the exit code. Raises: ConfigError."""
    runtime.log_to_stderr()
    config = load_config(config_path)
    # Points and packs hold no cycles: looking for some among them costs more than storing them.
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    return runtime.run(_main(config, config_path, with_watch))


async def _main(config: Config, file: Path, with_watch: bool) -> int:
    service = Service(config, file)
    watch = Watch(config, service.store, file=file) if with_watch else None
    async with health.answering(service.judge):
        return await serve(service, runtime.stop_on_signals(), watch)


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
    """Ingest for the counties of a configuration. Raises: ConfigError."""

    def __init__(self, config: Config, file: Path) -> None:
        self.store = store_of(config, file)
        self.quarantine = Quarantine(config.quarantine.path)
        settings = broker_settings(config, file=file)
        self.intake = Intake(
            config.counties,
            max_points=config.batch.max_points,
            receive_maximum=settings.receive_maximum,
        )
        self.writer = Writer(
            self.intake,
            self.store,
            self.quarantine,
            max_points=config.batch.max_points,
            max_age_s=config.batch.max_age_s,
            on_ready=lambda _ready, _why: self._say(),
        )
        subscriptions = [
            Subscription(f"{PREFIX}/{county}/+/+/+/+/{channel}")
            for county in config.counties
            for channel in ("readings", "results")
        ]
        self.client = Client(
            settings,
            subscriptions,
            self.writer.on_messages,
            on_connect=lambda _session_present: self._say(),
            on_disconnect=self._say,
            tls=broker_tls(config, file=file),
        )
        self.writer.attach(self.client)
        self._announced = False

    @property
    def ready(self) -> bool:
        """Connected, and the store takes what comes."""
        return self.client.connected and self.writer.ready

    async def judge(self) -> str:
        """Return how things stand now, in the words of `exchange.health`."""
        try:
            await self.store.ping()
        except StoreError as error:
            return f"waiting for the store: {error}"
        return health.WELL if self.ready else self._words()

    async def open(self) -> None:
        """Open the store; one that is away is waited for with the first points."""
        try:
            await self.store.open()
        except StoreUnavailable as error:
            log.warning("the store is not there yet: %s", error)

    async def run(self) -> None:
        """Run until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.client.run(), name="client")
            tasks.create_task(self.writer.run(), name="writer")

    async def drain(self, deadline_s: float) -> bool:
        """Settle what is in hand and say goodbye; False when something was left to the broker."""
        drained = await self.writer.drain(deadline_s)
        await self.client.stop(GOODBYE_DEADLINE_S)
        return drained

    async def close(self) -> None:
        """Let go of the store and the quarantine."""
        await self.store.close()
        await self.quarantine.close()

    def counts(self) -> dict[str, object]:
        """What has happened, for the log."""
        parts = (self.intake.counts, self.writer.counts, self.quarantine.counts)
        return {type(part).__module__.rpartition(".")[2]: part for part in parts}

    def _say(self, error: UplinkError | None = None) -> None:
        """Tell the service manager how things stand."""
        if self.ready and not self._announced:
            self._announced = True
            runtime.notify("READY=1")
        runtime.notify(f"STATUS={self._words(error)}")

    def _words(self, error: UplinkError | None = None) -> str:
        if not self.writer.ready:
            return "waiting for the store"
        if not self.client.connected:
            return f"waiting for the broker: {error or self.client.last_error}"
        return "taking in"
