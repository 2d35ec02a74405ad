"""The settings of ingest and the watch: one TOML file, typed; a wrong one is named to the key."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import msgspec

from exchange.configuration import read_toml, secret
from exchange.errors import ConfigError
from exchange.mqtt import Settings
from exchange.tls import Tls, check_plain
from exchange.topics import County
from ingest.stores import Store, open_store

MAX_PACKET_BYTES = 2 * 1024 * 1024  # of MQTT; a pack may be 256 KiB, what is larger is quarantined
SESSION_EXPIRY_S = 600

Positive = Annotated[float, msgspec.Meta(gt=0)]


class _Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the file: no key that nobody reads."""


class Broker(_Table, frozen=True, kw_only=True):
    """Where the broker is. A password is in a file or in an environment variable, never here."""

    host: str
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)] | None = None
    """1883, or 8883 with TLS, unless given."""
    tls: Tls | None = None
    """Only a broker on loopback goes without."""
    username: str | None = None
    password_file: Path | None = None
    password_env: str | None = None
    client_id: Annotated[str, msgspec.Meta(min_length=1, max_length=100)] = "onestreet-ingest"
    """Stable: the broker keeps this client's session while it restarts."""
    receive_maximum: Annotated[int, msgspec.Meta(ge=1, le=65535)] = 10_000
    """Messages in hand, not yet stored and acknowledged, at most: what an outage of the store costs in memory."""


class BatchLimits(_Table, frozen=True, kw_only=True):
    """How much goes into one write. An idle store is written to after `max_age_s` at the latest."""

    max_points: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 5000
    max_age_s: Annotated[float, msgspec.Meta(ge=0, le=10)] = 0.0
    """How long a batch may wait for more while no write is in flight; 0 is not at all."""


class QuarantineFile(_Table, frozen=True, kw_only=True):
    """Where refused messages are kept, how many and for how long; what is oldest goes first."""

    path: Path = Path("quarantine.sqlite")
    max_mib: Annotated[int, msgspec.Meta(ge=16, le=1_048_576)] = 256
    """The file and what SQLite writes beside it stay below this."""
    max_age_days: Annotated[float, msgspec.Meta(gt=0, le=36_500)] = 90.0


class WatchSettings(_Table, frozen=True, kw_only=True):
    """How often every device's row is written, changed or not."""

    every_s: Positive = 300.0


class Config(_Table, frozen=True, kw_only=True):
    """The whole file. Paths are relative to its folder."""

    broker: Broker
    counties: Annotated[list[County], msgspec.Meta(min_length=1)]
    store: str
    store_token_file: Path | None = None
    store_ca_file: Path | None = None
    """Whose word to take for an `influxdbs://` store, unless the system's authorities are meant."""
    batch: BatchLimits = BatchLimits()
    quarantine: QuarantineFile = QuarantineFile()
    watch: WatchSettings = WatchSettings()


def load_config(path: Path) -> Config:
    """Return the settings in a file. Raises: ConfigError naming file, key, value and what is allowed."""
    config = read_toml(path, Config)
    broker = config.broker
    if broker.password_file is not None and broker.password_env is not None:
        raise ConfigError(
            str(path), "broker.password_env", broker.password_env, "not beside password_file"
        )
    check_plain(str(path), "broker", broker.host, broker.tls)
    return _anchored(config, path.resolve().parent)


def broker_settings(config: Config, *, file: Path, suffix: str = "") -> Settings:
    """Return how the client connects; `suffix` makes another client id of the same stem.

    Raises: ConfigError when the password cannot be read.
    """
    broker = config.broker
    return Settings(
        host=broker.host,
        port=broker.port or (8883 if broker.tls else 1883),
        client_id=broker.client_id + suffix,
        username=broker.username,
        password=secret(str(file), "broker", broker.password_file, broker.password_env),
        session_expiry_s=SESSION_EXPIRY_S,
        receive_maximum=broker.receive_maximum,
        max_packet_bytes=MAX_PACKET_BYTES,
    )


def broker_tls(config: Config, *, file: Path) -> Callable[[], ssl.SSLContext] | None:
    """Return what makes a TLS context for each connection, None for plain text.

    Raises: ConfigError when a file is missing now, or is a secret that others can read.
    """
    tls = config.broker.tls
    if tls is None:
        return None
    tls.context(str(file), "broker.tls")
    return partial(tls.context, str(file), "broker.tls")


def store_of(config: Config, file: Path) -> Store:
    """Return the configured store. Raises: ConfigError naming the file."""
    try:
        return open_store(
            config.store, token_file=config.store_token_file, ca_file=config.store_ca_file
        )
    except ConfigError as error:  # it knows its own key, not the file's
        keys = {"url": "store", "ca_file": "store_ca_file"}
        key = keys.get(error.key, "store_token_file")
        raise ConfigError(str(file), key, error.value, error.allowed) from error


def _anchored(config: Config, folder: Path) -> Config:
    """Return the configuration with every path absolute, seen from its file's folder."""
    broker, store, quarantine = config.broker, config.store, config.quarantine
    if broker.password_file is not None:
        broker = msgspec.structs.replace(broker, password_file=folder / broker.password_file)
    if broker.tls is not None:
        broker = msgspec.structs.replace(broker, tls=broker.tls.anchored(folder))
    if store.startswith("sqlite:///"):
        store = f"sqlite:///{folder / store.removeprefix('sqlite:///')}"
    token, ca = config.store_token_file, config.store_ca_file
    return msgspec.structs.replace(
        config,
        broker=broker,
        store=store,
        store_token_file=None if token is None else folder / token,
        store_ca_file=None if ca is None else folder / ca,
        quarantine=msgspec.structs.replace(quarantine, path=folder / quarantine.path),
    )
