"""The watch as a service: what it hears from the broker, and what it writes to the store."""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import islice
from pathlib import Path

from exchange import health, runtime
from exchange.errors import ConfigError, ContractError, StoreError, UplinkError
from exchange.mqtt import Client, Message
from exchange.readings import Pack, decode_pack
from exchange.states import decode_state
from exchange.topics import Topic, parse_topic
from exchange.trouble import Trouble
from ingest.config import Config, broker_settings, broker_tls, load_config, store_of
from ingest.days import HOUR_MS, Days
from ingest.registry import DeviceId, Registry
from ingest.stores import Place, Point, Store, StoreRejected, StoreUnavailable
from ingest.watch.incidents import KEPT_MS, MEASUREMENT, Incident, incident_of
from ingest.watch.lookout import Counts, Lookout, Restored
from ingest.watch.maintenance import WindowFile
from ingest.watch.moments import DAY_EVERY_S, Now
from ingest.watch.roll_call import RollCall, live
from ingest.watch.rows import (
    DEVICE_DAY,
    SITE_DAY_STATE,
    SITE_HOUR_STATE,
    figures_of,
    losses_of,
    most_of,
)
from ingest.watch.sites import Hour

log = logging.getLogger(__name__)

SWEEP_EVERY_S = 0.25
_LEVELS = 8
POINTS_A_WRITE = 1000
STORE_PATIENCE_S = 5.0
GOODBYE_DEADLINE_S = 3.0
FLUSH_DEADLINE_S = 10.0
WINDOWS_EVERY_S = 2.0
LOADED_AFTER_S, LOADED_AT_LATEST_S = 2.0, 120.0
RESTORE_PAUSE_S, RESTORE_ATTEMPTS = 5.0, 3
MAX_EARLY = 20_000
"""Readings that are kept until the states of their devices have come."""
LATE_DAY_MS = HOUR_MS
"""So long after midnight the day before is read back, too."""


def now() -> Now:
    """Return this moment."""
    return Now(time.monotonic(), time.time_ns() // 1_000_000)


class Watch:
    """The watch over the counties of a configuration. Raises: ConfigError."""

    def __init__(
        self, config: Config, store: Store, *, file: Path, clock: Callable[[], Now] = now
    ) -> None:
        settings = config.watch
        self.connected = asyncio.Event()
        """Set with the first connection: from then on the registry fills."""
        self._now = clock
        self._store = store
        self._days = {county: Days(config.zone(county)) for county in config.counties}
        self._every_s = settings.every_s
        self.lookout = Lookout(
            self._days.__getitem__, every_s=settings.every_s, flaps_per_h=settings.flaps_per_h
        )
        self._windows = WindowFile(settings.maintenance, config.zone)
        self._loaded = asyncio.Event()
        self._ended = asyncio.Event()
        self._ended.set()
        self._begun_s = self._newest_s = float("-inf")
        self._windows_s = self._touched_s = self._written_s = float("-inf")
        self._early: list[tuple[Topic, Pack, Now]] = []
        self._rows: list[Point] = []
        self.restored = False
        """Whether it knows what an earlier run wrote, or that it never will."""
        self._store_rest_until_s = float("-inf")
        self._store_trouble = Trouble(
            log, "rows of devices cannot be written", "rows of devices are written again"
        )
        self._windows_trouble = Trouble(
            log, "the maintenance windows cannot be read", "the maintenance windows are read again"
        )
        self.client = Client(
            broker_settings(config, file=file, suffix="-watch"),
            live(config.counties),
            self._on_messages,
            on_connect=self._on_connect,
            on_disconnect=self._on_disconnect,
            tls=broker_tls(config, file=file),
        )
        self._roll_call = RollCall(self.client, config.counties)

    @property
    def counts(self) -> Counts:
        """What it has seen."""
        return self.lookout.counts

    @property
    def registry(self) -> Registry:
        """Every device there is."""
        return self.lookout.registry

    async def run(self) -> None:
        """Watch until `stop` or cancelled."""
        self._ended.clear()
        try:
            await self._run()
        finally:
            self._ended.set()

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            beside = [
                tasks.create_task(self._sweep_for_ever(), name="sweep"),
                tasks.create_task(self._write_for_ever(), name="write"),
                tasks.create_task(self._restore(), name="restore"),
                tasks.create_task(self._roll_call.run(), name="roll call"),
            ]
            await self.client.run()
            for task in beside:
                task.cancel()

    async def stop(self, deadline_s: float) -> None:
        """End `run` in order, having written how the day went so far."""
        await self.client.stop(deadline_s)
        await self._ended.wait()  # until then somebody else writes
        with suppress(StoreError, TimeoutError):
            async with asyncio.timeout(FLUSH_DEADLINE_S):
                await self._flush()

    async def judge(self) -> str:
        """Return how things stand now, in the words of `exchange.health`."""
        if not self.client.connected:
            return f"waiting for the broker: {self.client.last_error}"
        try:
            await self._store.ping()
        except StoreError as error:
            return f"waiting for the store: {error}"
        return health.WELL

    def _wake(self) -> Now:
        """Return this moment, as everything begins that judges by it."""
        moment = self._now()
        self.lookout.wake(moment)
        return moment

    # What comes in

    def _on_connect(self, session_present: bool) -> None:
        if not (session_present and self.connected.is_set()):
            self._roll_call.begin(self.registry.gateways())
        self.connected.set()
        self._begun_s = self._newest_s = self._now().s
        self._loaded.clear()
        self.lookout.seeing(self._wake(), continued=session_present)

    def _on_disconnect(self, _error: UplinkError) -> None:
        self.lookout.blind(self._wake())

    def _on_messages(self, messages: list[Message], generation: int) -> None:
        moment, devices = self._wake(), len(self.registry.devices)
        once = self.lookout.remarks.once
        for message in messages:
            try:
                topic = self._known_topic(message.topic) or parse_topic(message.topic)
                if topic.channel == "state":
                    self._roll_call.name(topic.county, topic.gateway)
                    self._roll_call.hear()
                    self.lookout.take_state(topic, decode_state(message.payload), moment)
                else:
                    self._take_readings(topic, decode_pack(message.payload, topic), moment)
            except ContractError as error:
                if "/state" in message.topic:
                    self.counts.bad_states += 1
                    once("a state cannot be taken", message.topic, str(error))
                # Readings that break the contract are ingest's to refuse.
            except Exception as error:  # noqa: BLE001 - said once, and the watch goes on
                self._mistaken(error, message.topic)
        if len(self.registry.devices) != devices:
            self._newest_s = moment.s
        self.client.acknowledge([message.packet_id for message in messages], generation)

    def _known_topic(self, text: str) -> Topic | None:
        """Return the topic of readings that a device is known by: it was judged when its state came."""
        levels = text.split("/")
        if len(levels) != _LEVELS or levels[-1] != "readings":
            return None
        _, _, county, site, gateway, domain, device, _ = levels
        known = self.registry.devices.get(DeviceId(county, device))
        if known is None or (known.site, known.gateway, known.domain) != (site, gateway, domain):
            return None
        return Topic(county, site, gateway, domain, device, "readings")

    def _take_readings(self, topic: Topic, pack: Pack, moment: Now) -> None:
        if DeviceId(topic.county, topic.device) not in self.registry.devices:
            self._roll_call.name(topic.county, topic.gateway)
            if not self._roll_call.is_over and len(self._early) < MAX_EARLY:
                self._early.append((topic, pack, moment))
                return
        self.lookout.take_readings(topic, pack.samples, moment)

    def _take_early(self) -> None:
        """Take what came before the states of its devices, as of then."""
        if self._early and self._roll_call.is_over:
            early, self._early = self._early, []
            for topic, pack, moment in early:
                try:
                    self.lookout.take_readings(topic, pack.samples, moment)
                except Exception as error:  # noqa: BLE001 - said once, and the watch goes on
                    self._mistaken(error, str(topic))

    def _mistaken(self, error: Exception, topic: str) -> None:
        """Say a mistake of ours: one message must not end the watch of a town."""
        what = "a message could not be judged"
        self.lookout.remarks.once(what, type(error).__name__, topic, mistake=error)

    def _read_windows(self, moment: Now) -> None:
        if moment.s - self._windows_s < WINDOWS_EVERY_S:
            return
        self._windows_s = moment.s
        try:
            windows = self._windows.changed()
        except ConfigError as error:
            self._windows_trouble.report(str(error))
            return
        if windows is not None:
            self._windows_trouble.over()
            self.lookout.set_windows(windows, moment)
            if windows:
                log.info("maintenance windows: %d", len(windows))

    # What an earlier run left

    async def _restore(self) -> None:
        """Read back open incidents and the figures of today; until that is done none are written.

        Devices come first: what is read is theirs at once, and is never held twice.
        """
        await self._loaded.wait()
        attempts = 0
        while attempts < RESTORE_ATTEMPTS:
            try:
                await (
                    self._store.ping()
                )  # one that is away is waited for; one that lets nobody read, is not
                attempts += 1
                await self._read_back()
            except StoreError as error:
                why = str(error)
                await asyncio.sleep(RESTORE_PAUSE_S)
            else:
                break
        else:
            words = "the watch cannot read its own rows: the figures of today begin now: %s"
            log.warning(words, why)
        self.restored = True

    async def _read_back(self) -> None:
        moment = self._now()
        starts = [days.of(moment.ms - LATE_DAY_MS).start_ms for days in self._days.values()]
        begin_ns = min(starts) * 1_000_000
        incidents: list[Incident] = []
        since_ns = (moment.ms - KEPT_MS) * 1_000_000
        async for point in self._store.rows(MEASUREMENT, start_ns=since_ns):
            found = incident_of(point)
            if found is not None and not found.ended_ms and found.county in self._days:
                incidents.append(found)
        async for point in self._store.rows(DEVICE_DAY, start_ns=begin_ns):
            county = point.series.county
            if county in self._days:
                day = self._days[county].of(point.time_ms)
                one = Restored(day, figures_of(point), losses_of(point))
                self.lookout.restore_day(DeviceId(county, point.series.device), one)
        # Kept until all is read: what fails is begun again, and must not be added twice.
        days = [point async for point in self._store.rows(SITE_DAY_STATE, start_ns=begin_ns)]
        hour_ns = (moment.ms - HOUR_MS) * 1_000_000
        hours = [point async for point in self._store.rows(SITE_HOUR_STATE, start_ns=hour_ns)]
        moment = self._now()
        self.lookout.restore_incidents(incidents, moment)
        for point in days:
            place = Place(point.series.county, point.series.site, point.series.domain)
            if place.county in self._days:
                day = self._days[place.county].of(point.time_ms)
                self.lookout.sites.restore_day(place, day, figures_of(point), moment)
        for point in hours:
            place = Place(point.series.county, point.series.site, point.series.domain)
            if place.county in self._days:
                hour = Hour(point.time_ms, *most_of(point))
                self.lookout.sites.restore_hour(place, hour, moment)

    # What goes out

    async def _sweep_for_ever(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_EVERY_S)
            moment = self._wake()
            self._read_windows(moment)
            self._take_early()
            if moment.s - self._touched_s >= self._every_s:
                self._touched_s = moment.s
                self.lookout.book.touch()
            self.lookout.sweep(moment)
            self._say_when_loaded(moment)

    def _say_when_loaded(self, moment: Now) -> None:
        """Say, once for each connection, how many devices there are: when no more came for a while."""
        if self._loaded.is_set() or not self.client.connected:
            return
        is_over = self._roll_call.is_over and moment.s - self._newest_s >= LOADED_AFTER_S
        if not is_over and moment.s - self._begun_s < LOADED_AT_LATEST_S:
            return
        self._loaded.set()
        load_s = round(self._newest_s - self._begun_s, 2)
        log.info("%d devices are known", len(self.registry.devices), extra={"load_s": load_s})

    async def _write_for_ever(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_EVERY_S)
            await self._write()

    async def _write(self) -> None:
        """Write what is due. What a failing store misses is written anew when it is back."""
        moment = self._wake()
        if moment.s < self._store_rest_until_s:
            return
        since_s, self._written_s = min(moment.s - self._written_s, DAY_EVERY_S), moment.s
        if self.restored:
            self._rows += self.lookout.day_rows(moment, since_s)
        while True:
            # While the roll is called, more changes than anybody reads: devices' rows come after it.
            is_over = self._roll_call.is_over or self._loaded.is_set()
            limit = POINTS_A_WRITE if is_over else 0
            self._rows += self.lookout.rows(self._now(), limit, incidents=self.restored)
            if not self._rows or not await self._write_in_hand():
                return

    async def _write_in_hand(self) -> bool:
        """Write the rows in hand; False when they have to be written again."""
        while self._rows:
            part = self._rows[:POINTS_A_WRITE]
            try:
                await self._write_rows(part)
            except StoreUnavailable as error:
                rest_s = max(STORE_PATIENCE_S, error.retry_after_s or 0.0)
                self._store_rest_until_s = self._now().s + rest_s
                self._store_trouble.report(str(error), kind=error.kind)
                self._rows = newest(self._rows)
                return False
            else:
                self._store_trouble.over()
            del self._rows[:POINTS_A_WRITE]
        return True

    async def _write_rows(self, rows: list[Point]) -> None:
        """Write rows; of those that the store rejects none is lost but itself. Raises: StoreUnavailable."""
        try:
            await self._store.write(rows)
        except StoreRejected as error:
            if len(rows) == 1:
                self.counts.rejected += 1
                what = "the store rejects a row of the watch"
                self.lookout.remarks.once(what, rows[0].series.measurement, str(error))
                return
            half = len(rows) // 2
            await self._write_rows(rows[:half])
            await self._write_rows(rows[half:])

    async def _flush(self) -> None:
        """Write what is left; nothing when the store is away."""
        moment = self._now()
        if moment.s < self._store_rest_until_s:
            return
        self._rows += self.lookout.rows(moment, POINTS_A_WRITE, incidents=self.restored)
        if not await self._write_in_hand() or not self.restored:
            return
        left = self.lookout.last_rows(moment)
        while part := list(islice(left, POINTS_A_WRITE)):
            await self._write_rows(part)


def main(config_path: Path) -> int:
    """Run the watch until SIGTERM; return the exit code. Raises: ConfigError."""
    runtime.log_to_stderr()
    config = load_config(config_path)
    # What is kept holds no cycles: looking for some among 200,000 devices costs more than watching them.
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    return runtime.run(_main(config, config_path))


async def _main(config: Config, file: Path) -> int:
    stop = runtime.stop_on_signals()
    store = store_of(config, file)
    watch = Watch(config, store, file=file)
    try:
        async with health.answering(watch.judge), asyncio.TaskGroup() as tasks:
            watching = tasks.create_task(watch.run(), name="watch")
            announcing = tasks.create_task(_announce(watch), name="announce")
            await stop.wait()
            runtime.notify("STOPPING=1")
            await watch.stop(GOODBYE_DEADLINE_S)
            watching.cancel()
            announcing.cancel()
    finally:
        await store.close()
    log.info("stopped", extra={"counts": watch.counts})
    return 0


async def _announce(watch: Watch) -> None:
    await watch.connected.wait()
    runtime.notify("READY=1")


def newest(rows: list[Point]) -> list[Point]:
    """Return the last row of each device, incident, day and hour, so that an outage piles nothing up."""

    def key(row: Point) -> tuple[object, ...]:
        keeps_its_time = row.series.measurement in (DEVICE_DAY, SITE_DAY_STATE, SITE_HOUR_STATE)
        return row.series, row.fields.get("id"), row.time_ns if keeps_its_time else 0

    return list({key(row): row for row in rows}.values())
