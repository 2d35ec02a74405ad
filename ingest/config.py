"""The settings of ingest and the watch: one TOML file, typed; a wrong one is named to the key."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated
from zoneinfo import ZoneInfo

import msgspec

from exchange.broker_table import BrokerTable
from exchange.configuration import check_zone, located, read_toml
from exchange.errors import ConfigError
from exchange.mqtt import Settings
from exchange.tls import Tls
from exchange.topics import END, County
from exchange.towns import LEAST_RETENTION_DAYS
from ingest.metrics import Endpoint
from ingest.rollups.settings import SiteSettings
from ingest.stores import Store, open_store

MAX_PACKET_BYTES = 2 * 1024 * 1024  # of MQTT; a pack may be 256 KiB, what is larger is quarantined
SESSION_EXPIRY_S = 600
MAX_WORKERS = 64
TIMEZONE = "Asia/Taipei"

RetentionDays = Annotated[int, msgspec.Meta(ge=LEAST_RETENTION_DAYS, le=36_500)]
VendorMetric = Annotated[
    str, msgspec.Meta(pattern=rf"^x-[a-z0-9]{{1,32}}-[a-z0-9][a-z0-9_.-]{{0,62}}{END}")
]


class _Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the file: no key that nobody reads."""


class Broker(BrokerTable, frozen=True, kw_only=True):
    """Where the broker is, and what it may hand over at once."""

    client_id: Annotated[
        str, msgspec.Meta(min_length=1, max_length=100, pattern=r"^[^/+#\x00-\x1f]+$")
    ] = "onestreet-ingest"
    """Stable: the broker keeps this client's session while it restarts. Worker 2 is `{client_id}.2`, and so on;
    the name of what they share, too."""
    receive_maximum: Annotated[int, msgspec.Meta(ge=1, le=65535)] = 10_000
    """Messages in hand, not yet stored and acknowledged, at most."""
    max_held_mb: Annotated[int, msgspec.Meta(ge=8, le=65_536)] = 256
    """About how much memory they may take: what an outage of the store costs. Beyond it nothing more is read."""


class Worker(_Table, frozen=True, kw_only=True):
    """What a worker has for itself."""

    tls: Tls


class BatchLimits(_Table, frozen=True, kw_only=True):
    """How much goes into one write. An idle store is written to after `max_age_s` at the latest."""

    max_points: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 5000
    max_age_s: Annotated[float, msgspec.Meta(ge=0, le=10)] = 0.0
    """How long a batch may wait for more while no write is in flight; 0 is not at all."""
    max_writes: Annotated[int, msgspec.Meta(ge=1, le=16)] = 2
    """Writes in flight at most; the second begins when a whole batch waits."""


class QuarantineFile(_Table, frozen=True, kw_only=True):
    """Where refused messages are kept, how many and for how long; what is oldest goes first."""

    path: Path = Path("quarantine.sqlite")
    max_mb: Annotated[int, msgspec.Meta(ge=16, le=1_048_576)] = 256
    """The file and what SQLite writes beside it stay below this, in 2^20 bytes."""
    max_age_days: Annotated[float, msgspec.Meta(gt=0, le=36_500)] = 90.0


class WatchSettings(_Table, frozen=True, kw_only=True):
    """What the watch goes by."""

    every_s: Annotated[float, msgspec.Meta(gt=0, le=600)] = 300.0
    """How often every device's row is written, changed or not; pages ask for the last 15 minutes."""
    flaps_per_h: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 6
    """A device that goes down more often than that in an hour is one incident, not many."""
    maintenance: Path = Path("maintenance.toml")
    """Windows in which silence is meant; read again when it changes."""


class RollupSettings(_Table, frozen=True, kw_only=True):
    """What hours and days are made by, how fast, and how long they are kept."""

    store: str = ""
    """Where they go; absent: the `store` of the file if it is SQLite, else the bucket `{bucket}_rollups` beside it."""
    every_s: Annotated[float, msgspec.Meta(ge=1, le=3600)] = 600.0
    """How often it looks for hours that are over."""
    recent_h: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 48
    """How many of the latest hours it looks through once an hour, for samples that came late."""
    whole_days: Annotated[int, msgspec.Meta(ge=1, le=36_500)] = 30
    """How many days it looks through once a day."""
    settle_s: Annotated[float, msgspec.Meta(ge=0, le=3600)] = 120.0
    """How long after its end an hour is made first."""
    share: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.5
    """It works for this part of its time at most and leaves the store to others for the rest."""
    raw_retention_days: RetentionDays | None = None
    """How long raw rows are kept, in InfluxDB as its bucket says; absent: for ever."""
    retention_days: RetentionDays | None = None
    """How long hours and days are kept, in InfluxDB as their bucket says; absent: for ever."""
    vendor_metrics: list[VendorMetric] = []
    """Metrics beside the dictionary's that are rolled up, too."""
    sites: dict[str, SiteSettings] = {}
    """By `county/site`, or by county for all its sites that have none of their own."""
    metrics_host: Annotated[str, msgspec.Meta(min_length=1)] = "127.0.0.1"
    metrics_port: Annotated[int, msgspec.Meta(ge=1, le=65535)] | None = None
    """Where `onestreet rollups run` is asked for metrics and readiness; nobody answers when it is absent."""


class Config(_Table, frozen=True, kw_only=True):
    """The whole file. Paths are relative to its folder."""

    broker: Broker
    counties: Annotated[list[County], msgspec.Meta(min_length=1)]
    store: str
    store_token_file: Path | None = None
    store_read_token_file: Path | None = None
    """What reads, where the other may only write: a token that does both could delete, too."""
    store_ca_file: Path | None = None
    """Whose word to take for an `influxdbs://` store, unless the system's authorities are meant."""
    rate_budget_per_min: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 1200
    """Samples that a device may take in a minute of its own time, as each worker counts (EX-R-027); 0: any number."""
    workers: Annotated[int, msgspec.Meta(ge=1, le=MAX_WORKERS)] = 1
    """How many processes share the work, each with a connection of its own."""
    further: list[Worker] = msgspec.field(name="worker", default_factory=list)
    """Workers 2, 3, …: needed where clients are known by certificate. There may be more than `workers`: those of
    an earlier start, whose sessions are to be emptied."""
    batch: BatchLimits = BatchLimits()
    quarantine: QuarantineFile = QuarantineFile()
    watch: WatchSettings = WatchSettings()
    timezones: dict[County, str] = {}
    """IANA names, by county: its civil days; a county that is not among them has Taiwan's."""
    rollups: RollupSettings = RollupSettings()
    metrics: Endpoint = Endpoint()

    def zone(self, county: str) -> ZoneInfo:
        """Return the time zone of a county's civil days."""
        return ZoneInfo(self.timezones.get(county, TIMEZONE))


def load_config(path: Path, workers: int | None = None) -> Config:
    """Return the settings in a file; `workers` goes before the file's key.

    Raises: ConfigError naming file, line, key, value and what is allowed.
    """
    with located(path):
        return _checked(path, workers)


def _checked(path: Path, workers: int | None) -> Config:
    config = read_toml(path, Config)
    if workers is not None:
        if not 1 <= workers <= MAX_WORKERS:
            raise ConfigError("command line", "--workers", workers, f"1 to {MAX_WORKERS}")
        config = msgspec.structs.replace(config, workers=workers)
    broker = config.broker
    broker.check(str(path))
    if config.further and broker.tls is None:
        allowed = "only beside broker.tls: without it there is no TLS for any worker"
        raise ConfigError(str(path), "worker", len(config.further), allowed)
    for worker in range(2, config.workers + 1):
        _check_identity(config, worker, file=path)
    for county, zone in config.timezones.items():
        check_zone(str(path), f"timezones.{county}", zone)
    last = 65536 - config.workers
    if config.metrics.port is not None and config.metrics.port > last:
        allowed = f"at most {last}: each worker has a port of its own"
        raise ConfigError(str(path), "metrics.port", config.metrics.port, allowed)
    anchored = _anchored(config, path.resolve().parent)
    file = config.quarantine.path
    if "\0" in str(file) or not file.name or anchored.quarantine.path.is_dir():
        raise ConfigError(str(path), "quarantine.path", file, "must name a file")
    return anchored


def by_certificate(config: Config) -> bool:
    """Whether the broker knows us by a certificate: it may be good for one connection."""
    return config.broker.tls is not None and config.broker.tls.certificate_file is not None


def _check_identity(config: Config, worker: int, *, file: Path) -> None:
    """Check that a worker after the first can be told from the others. Raises: ConfigError."""
    if by_certificate(config) and len(config.further) < worker - 1:
        raise ConfigError(
            str(file),
            "worker",
            len(config.further),
            f"for worker {worker} there must be a table [[worker]] with a certificate of its own (tls = "
            "{ ca_file, certificate_file, key_file }), one for each worker from the second on: a broker that "
            "takes the client id from the certificate lets each connect once. In an office: [store] workers in "
            "the town's file, then onestreet town init --into OFFICE",
        )


def broker_settings(config: Config, *, file: Path, worker: int = 1, suffix: str = "") -> Settings:
    """Return how a client connects; `suffix` makes another client id of the same stem.

    Raises: ConfigError when the password cannot be read.
    """
    broker = config.broker
    suffix = suffix or (f".{worker}" if worker > 1 else "")
    return Settings(
        host=broker.host,
        port=broker.address[1],
        client_id=broker.client_id + suffix,
        username=broker.username or None,
        password=broker.password(str(file)),
        session_expiry_s=SESSION_EXPIRY_S,
        receive_maximum=broker.receive_maximum,
        max_packet_bytes=MAX_PACKET_BYTES,
    )


def broker_tls(
    config: Config, *, file: Path, worker: int = 1
) -> Callable[[], ssl.SSLContext] | None:
    """Return what makes a TLS context for each connection, None for plain text.

    Raises: ConfigError when a file is missing now, or is a secret that others can read.
    """
    tls, table = config.broker.tls, "broker.tls"
    if tls is None:
        return None
    if worker > 1:
        _check_identity(config, worker, file=file)
        if worker - 2 < len(config.further):
            tls, table = config.further[worker - 2].tls, f"worker[{worker - 2}].tls"
    tls.context(str(file), table)
    return partial(tls.context, str(file), table)


def store_of(config: Config, file: Path) -> Store:
    """Return the configured store. Raises: ConfigError naming the file."""
    return _opened(config, config.store, "store", file)


def rollup_stores(config: Config, file: Path) -> tuple[Store, Store]:
    """Return the stores of raw rows and of hours and days, one where they are the same. Raises: ConfigError."""
    url = config.rollups.store or _rollups_of(config.store)
    raw = store_of(config, file)
    return raw, raw if url == config.store else _opened(config, url, "rollups.store", file)


def _opened(config: Config, url: str, key: str, file: Path) -> Store:
    token_file, ca_file = config.store_token_file, config.store_ca_file
    reading = config.store_read_token_file
    try:
        return open_store(url, token_file=token_file, read_token_file=reading, ca_file=ca_file)
    except ConfigError as error:  # it knows its own key, not the file's
        keys = {"url": key, "ca_file": "store_ca_file"}
        key = keys.get(error.key, "store_token_file")
        if reading is not None and error.value == str(reading):
            key = "store_read_token_file"
        raise ConfigError(str(file), key, error.value, error.allowed) from error


def _rollups_of(store: str) -> str:
    """Return where hours and days go beside raw rows."""
    return store if store.startswith("sqlite:") else f"{store}_rollups"


def _anchored(config: Config, folder: Path) -> Config:
    """Return the configuration with every path absolute, seen from its file's folder."""
    broker, store, quarantine = config.broker.anchored(folder), config.store, config.quarantine
    watch, rollups = config.watch, config.rollups
    if store.startswith("sqlite:///"):
        store = f"sqlite:///{folder / store.removeprefix('sqlite:///')}"
    kept = rollups.store
    if kept.startswith("sqlite:///"):
        kept = f"sqlite:///{folder / kept.removeprefix('sqlite:///')}"
    token, ca = config.store_token_file, config.store_ca_file
    reading = config.store_read_token_file
    return msgspec.structs.replace(
        config,
        broker=broker,
        further=[Worker(tls=each.tls.anchored(folder)) for each in config.further],
        store=store,
        store_token_file=None if token is None else folder / token,
        store_read_token_file=None if reading is None else folder / reading,
        store_ca_file=None if ca is None else folder / ca,
        quarantine=msgspec.structs.replace(quarantine, path=folder / quarantine.path),
        watch=msgspec.structs.replace(watch, maintenance=folder / watch.maintenance),
        rollups=msgspec.structs.replace(rollups, store=kept),
    )
