"""The watch: what needs one owner per device. The registry, liveness, and order across packs.

An ordinary subscriber beside ingest: it writes the `device` measurement, so that a map needs no
join and silence is a row. Its memory is rebuilt from retained states; nothing depends on it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import msgspec

from exchange import health, runtime
from exchange.errors import ContractError, StoreError
from exchange.moments import rfc3339
from exchange.mqtt import Client, Message, Subscription
from exchange.readings import Pack, decode_pack
from exchange.states import decode_state
from exchange.topics import PREFIX, Topic, parse_topic
from exchange.trouble import Trouble
from ingest.config import Config, broker_settings, broker_tls, load_config, store_of
from ingest.continuity import Continuity, Findings
from ingest.intake import MAX_ROUTES
from ingest.registry import Change, DeviceId, Registered, Registry
from ingest.stores import FieldValue, Point, Series, Store, StoreRejected, StoreUnavailable

log = logging.getLogger(__name__)

Status = Literal["up", "late", "down", "unknown", "retired"]

SWEEP_EVERY_S = 0.5
UP_INTERVALS, UP_AT_LEAST_S = 2, 10.0
LATE_INTERVALS, LATE_AT_LEAST_S = 3, 15.0
POINTS_A_WRITE = 1000
STORE_PATIENCE_S = 5.0
GOODBYE_DEADLINE_S = 3.0


class Counts(msgspec.Struct):
    """What the watch has seen."""

    states: int = 0
    bad_states: int = 0
    disputes: int = 0
    missing: int = 0
    findings: Findings = msgspec.field(default_factory=Findings)


class _Watched(msgspec.Struct):
    """A device between its first message and its retirement. Times are of the monotonic clock."""

    continuity: Continuity
    begun_s: float
    heard_s: float | None = None
    status: Status = "unknown"
    since_ms: int = 0
    written_s: float = float("-inf")


class Watch:
    """The watch over the counties of a configuration. Raises: ConfigError."""

    def __init__(self, config: Config, store: Store, *, file: Path) -> None:
        self.counts = Counts()
        self.registry = Registry()
        self.connected = asyncio.Event()
        """Set with the first connection: from then on the registry fills."""
        self._store = store
        self._every_s = config.watch.every_s
        self._counties = frozenset(config.counties)
        self._watched: dict[DeviceId, _Watched] = {}
        self._topics: dict[str, Topic] = {}
        self._told: set[tuple[str, str]] = set()
        self._rows: list[Point] = []
        self._store_rest_until_s = float("-inf")
        self._store_trouble = Trouble(
            log, "rows of devices cannot be written", "rows of devices are written again"
        )
        self.client = Client(
            broker_settings(config, file=file, suffix="-watch"),
            [
                Subscription(f"{PREFIX}/{county}/+/+/+/+/{channel}")
                for county in config.counties
                for channel in ("state", "readings")
            ],
            self._on_messages,
            on_connect=self._on_connect,
            tls=broker_tls(config, file=file),
        )

    async def run(self) -> None:
        """Watch until `stop` or cancelled."""
        async with asyncio.TaskGroup() as tasks:
            sweeping = tasks.create_task(self._sweep_for_ever(), name="sweep")
            await self.client.run()
            sweeping.cancel()

    async def stop(self, deadline_s: float) -> None:
        """End `run` in order."""
        await self.client.stop(deadline_s)

    async def judge(self) -> str:
        """Return how things stand now, in the words of `exchange.health`."""
        if not self.client.connected:
            return f"waiting for the broker: {self.client.last_error}"
        try:
            await self._store.ping()
        except StoreError as error:
            return f"waiting for the store: {error}"
        return health.WELL

    # What comes in

    def _on_connect(self, session_present: bool) -> None:
        self.connected.set()
        if not session_present:
            for watched in self._watched.values():
                watched.continuity.interrupt()

    def _on_messages(self, messages: list[Message], generation: int) -> None:
        for message in messages:
            try:
                topic = self._topics.get(message.topic) or self._parse(message.topic)
                if topic.channel == "state":
                    self._take_state(topic, message.payload)
                else:
                    self._take_readings(topic, decode_pack(message.payload, topic))
            except ContractError as error:
                if "/state" in message.topic:
                    self.counts.bad_states += 1
                    self._tell("a state cannot be taken", message.topic, str(error))
                # Readings that break the contract are ingest's to refuse.
            except Exception as error:  # noqa: BLE001 - said once, and the watch goes on
                # One message must not end the watch of a town, whatever our own mistake is.
                what = "a message could not be judged"
                self._tell(what, type(error).__name__, message.topic, error)
        self.client.acknowledge([message.packet_id for message in messages], generation)

    def _parse(self, text: str) -> Topic:
        topic = parse_topic(text)
        if len(self._topics) >= MAX_ROUTES:
            self._topics.clear()
        self._topics[text] = topic
        return topic

    def _take_state(self, topic: Topic, payload: bytes) -> None:
        self.counts.states += 1
        change = self.registry.apply(topic, decode_state(payload))
        name = DeviceId(topic.county, topic.device)
        if change is Change.DISPUTED:
            self._dispute(topic)
        elif change is Change.SET:
            self._watch(name).written_s = float("-inf")
        elif change is Change.RETIRED:
            self._retire(name, topic)

    def _take_readings(self, topic: Topic, pack: Pack) -> None:
        name = DeviceId(topic.county, topic.device)
        known = self.registry.devices.get(name)
        if known is None:
            self._tell("readings of a device without a state", topic.device, str(topic))
            return
        if known.topic.gateway != topic.gateway:
            self._dispute(topic)
        watched = self._watch(name)
        missing = watched.continuity.missing
        found = watched.continuity.take(pack.samples)
        self.counts.findings += found
        self.counts.missing += watched.continuity.missing - missing
        if found.clashes:
            self._tell("two samples claim one row", topic.device, str(topic))
        if found.epochs:
            self._tell("a new epoch: an unknown number of samples may be lost", topic.device)
        if watched.continuity.missing > missing:
            self._tell("samples are missing", topic.device, str(watched.continuity.missing))
        # A backlog says nothing of now.
        limit_ms = 1000 * _late_s(known)
        now_ms = _now_ms()
        if any(abs(now_ms - sample.time_ms) <= limit_ms for sample in pack.samples):
            watched.heard_s = time.monotonic()

    def _watch(self, name: DeviceId) -> _Watched:
        watched = self._watched.get(name)
        if watched is None:
            watched = _Watched(Continuity(), time.monotonic(), since_ms=_now_ms())
            self._watched[name] = watched
        return watched

    def _retire(self, name: DeviceId, topic: Topic) -> None:
        watched = self._watched.pop(name, None)
        if watched is not None:
            self.counts.missing -= watched.continuity.missing
            fields: dict[str, FieldValue] = {
                "up": 0,
                "status": "retired",
                "since": _rfc3339(_now_ms()),
            }
            self._rows.append(Point(_series(topic), _now_ms() * 1_000_000, fields))

    def _dispute(self, topic: Topic) -> None:
        self.counts.disputes += 1
        self._tell("two gateways speak for one device", topic.device, str(topic))

    def _tell(
        self, what: str, whom: str, detail: str = "", mistake: Exception | None = None
    ) -> None:
        """Log once what may come in thousands."""
        if (what, whom) not in self._told:
            if len(self._told) >= MAX_ROUTES:
                self._told.clear()
            self._told.add((what, whom))
            level = logging.WARNING if mistake is None else logging.ERROR
            log.log(level, "%s: %s", what, whom, extra={"detail": detail}, exc_info=mistake)

    # What goes out

    async def _sweep_for_ever(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_EVERY_S)
            self._sweep(time.monotonic())
            await self._write()

    def _sweep(self, now_s: float) -> None:
        """Judge every device; put a row in hand for each that changed or is due."""
        for name, known in self.registry.devices.items():
            watched = self._watch(name)
            status = self._judge(known, watched, now_s)
            if status != watched.status:
                level = logging.WARNING if status in ("down", "unknown") else logging.INFO
                log.log(level, "%s is %s", name.device, status)
                watched.status, watched.since_ms = status, _now_ms()
                watched.written_s = float("-inf")
            if now_s - watched.written_s >= self._every_s:
                watched.written_s = now_s
                self._rows.append(_row(known, watched))

    def _judge(self, known: Registered, watched: _Watched, now_s: float) -> Status:
        if known.topic.domain == "gateway":
            return "up" if known.state.online else "down"
        if self.registry.gateway_online(known.topic) is False:
            return "unknown"
        if not known.state.online:
            return "down"
        if watched.heard_s is None:
            return "unknown" if now_s - watched.begun_s <= _late_s(known) else "down"
        age_s = now_s - watched.heard_s
        if age_s <= max(UP_INTERVALS * known.state.interval_s, UP_AT_LEAST_S):
            return "up"
        return "late" if age_s <= _late_s(known) else "down"

    async def _write(self) -> None:
        """Write the rows in hand. What a failing store misses is written anew when it is back."""
        if not self._rows or time.monotonic() < self._store_rest_until_s:
            return
        rows, self._rows = self._rows, []
        for start in range(0, len(rows), POINTS_A_WRITE):
            try:
                await self._store.write(rows[start : start + POINTS_A_WRITE])
            except StoreUnavailable as error:
                rest_s = max(STORE_PATIENCE_S, error.retry_after_s or 0.0)
                self._store_rest_until_s = time.monotonic() + rest_s
                self._store_trouble.report(str(error), kind=error.kind)
                self._rows = _newest(rows[start:])
                return
            except StoreRejected as error:
                self._tell("the store rejects rows of devices", "device", str(error))
            else:
                self._store_trouble.over()


def main(config_path: Path) -> int:
    """Run the watch until SIGTERM; return the exit code. Raises: ConfigError."""
    runtime.log_to_stderr()
    config = load_config(config_path)
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


def _late_s(known: Registered) -> float:
    return max(LATE_INTERVALS * known.state.interval_s, LATE_AT_LEAST_S)


def _series(topic: Topic) -> Series:
    return Series("device", topic.county, topic.site, topic.device, topic.domain)


def _row(known: Registered, watched: _Watched) -> Point:
    descriptor, location = known.state.descriptor, known.state.descriptor.location
    fields: dict[str, FieldValue] = {
        "label": descriptor.label.zh_tw or descriptor.label.en or known.topic.device,
        "asset_id": descriptor.asset_id,
        "gateway": known.topic.gateway,
        "interval_s": float(known.state.interval_s),
        "up": int(watched.status in ("up", "late")),
        "status": watched.status,
        "since": _rfc3339(watched.since_ms),
    }
    if location is not None:
        fields |= {"lat": float(location.lat), "lon": float(location.lon)}
    time_ns = _now_ms() * 1_000_000 + known.state.epoch % 1_000_000
    return Point(_series(known.topic), time_ns, fields)


def _newest(rows: list[Point]) -> list[Point]:
    """Return the last row of each device, so that an outage piles nothing up."""
    return list({row.series: row for row in rows}.values())


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _rfc3339(time_ms: int) -> str:
    return rfc3339(datetime.fromtimestamp(time_ms / 1000, UTC))
