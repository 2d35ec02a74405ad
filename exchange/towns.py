"""Towns as files: one county is one TOML file, read by everything that has to know it.

docs/towns.md shows every key; a test holds it to the types here.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal, NamedTuple
from urllib.parse import urlsplit

import msgspec

from exchange.configuration import check_zone, converted, located, read_toml
from exchange.dictionary import dictionary
from exchange.errors import ConfigError
from exchange.tls import check_host, is_loopback
from exchange.topics import END, County, Level

LEAST_RETENTION_DAYS = 5
"""A lamp's night is made of rows of the day before it to the noon after it, and may be made a day late."""
MAX_EXTENT_DEG = 10.0
"""More than any county's map needs: a digit was lost."""
SERVICES = ("ingest", "watch", "rollups", "grafana")
"""What runs beside the applications, in folders of these names."""

_PRINTABLE = r"[^\x00-\x1f\x7f]"
_URLS = "influxdbs://HOST:PORT/ORG/BUCKET (influxdb:// on loopback) or sqlite:///PATH"

Credential = Literal["certificate", "password"]
ReadChannel = Literal["readings", "state", "results"]

Text = Annotated[str, msgspec.Meta(min_length=1, max_length=200, pattern=f"^{_PRINTABLE}*{END}")]
Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]
Host = Annotated[
    str,
    msgspec.Meta(pattern=rf"^[A-Za-z0-9_:]([A-Za-z0-9._:-]*[A-Za-z0-9])?{END}", max_length=253),
]
Latitude = Annotated[float, msgspec.Meta(ge=-90, le=90)]
Longitude = Annotated[float, msgspec.Meta(ge=-180, le=180)]
Interval = Annotated[float, msgspec.Meta(ge=0.01, le=7 * 86400)]
Percent = Annotated[float, msgspec.Meta(ge=0, le=100)]
Watts = Annotated[float, msgspec.Meta(gt=0, le=10_000)]
Mail = Annotated[
    str,
    msgspec.Meta(
        pattern=rf"^[A-Za-z0-9.!#%&'*+/=?^_`{{|}}~-]+@[A-Za-z0-9.-]+{END}", max_length=254
    ),
]
Webhook = Annotated[
    str,
    msgspec.Meta(
        pattern=rf"^(file:/[A-Za-z0-9._/-]+|env:[A-Za-z_][A-Za-z0-9_]*){END}", max_length=200
    ),
]
"""Where its URL is kept, as Grafana sees it: whoever knows the URL may speak in the channel."""
Link = Annotated[
    str, msgspec.Meta(pattern=rf"^(https?://[A-Za-z0-9._~:/?=&%@+-]+)?{END}", max_length=500)
]


class _Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the file: no key that nobody reads."""


class Name(_Table, frozen=True, kw_only=True):
    """What people call it, in both languages."""

    en: Text
    zh_tw: Text = msgspec.field(name="zh-TW")


class Circle(Name, frozen=True, kw_only=True):
    """The living circle (生活圈) of neighbouring counties that this one belongs to."""

    id: Level


class Township(Name, frozen=True, kw_only=True):
    """A district, city or township (鄉鎮市區) of the county."""

    id: Level


class Extent(_Table, frozen=True, kw_only=True):
    """What a map of the county shows. Units: WGS 84 degrees."""

    south: Latitude
    west: Longitude
    north: Latitude
    east: Longitude


class Location(_Table, frozen=True, kw_only=True):
    """A point. Units: WGS 84 degrees."""

    lat: Latitude
    lon: Longitude


class Broker(_Table, frozen=True, kw_only=True):
    """The broker that the county's gateways go to; several counties may share one."""

    host: Host
    """The name in its certificate, by which clients know it."""
    names: list[Host] = []
    """Further names and addresses in its certificate."""
    port: Port = 8883
    """Gateways that hold a key: TLS, both sides by certificate."""
    password_port: Port = 8884
    """Gateways that cannot hold one: TLS and a password."""
    service_port: Port = 8885
    """Ingest, watch and applications: TLS, both sides by certificate."""


class Bucket(NamedTuple):
    """Where in an InfluxDB 2 a county's rows are."""

    url: str
    """As HTTP takes it: `https://HOST:PORT`."""
    org: str
    bucket: str


class Store(_Table, frozen=True, kw_only=True):
    """Where the county's rows are kept; several counties may share one."""

    url: str
    """`influxdbs://HOST:PORT/ORG/BUCKET`, `influxdb://…` on loopback, or `sqlite:///PATH` (from ingest's folder)."""
    retention_days: Annotated[int, msgspec.Meta(ge=0, le=36_500)] = 0
    """How long they are kept; 0 is for ever, else LEAST_RETENTION_DAYS or more."""
    rollups_retention_days: Annotated[int, msgspec.Meta(ge=0, le=36_500)] = 0
    """The same of their hours and days, which InfluxDB has in the bucket `{BUCKET}_rollups`."""
    workers: Annotated[int, msgspec.Meta(ge=1, le=64)] = 1
    """How many processes of ingest write there, each with a certificate and a connection of its own."""

    @property
    def bucket(self) -> Bucket | None:
        """The address in an InfluxDB; None for SQLite. Raises: ValueError saying what is wrong with the URL."""
        if self.url.startswith("sqlite:///") and self.url != "sqlite:///":
            return None
        parts = urlsplit(self.url)
        path = parts.path.split("/")
        if parts.scheme not in ("influxdb", "influxdbs") or len(path) != 3 or not all(path[1:]):
            raise ValueError(f"must be {_URLS}")
        if "@" in parts.netloc or parts.query or parts.fragment:
            raise ValueError(f"no secret and nothing further stands in it; must be {_URLS}")
        if not parts.hostname:
            raise ValueError(f"a host is missing; must be {_URLS}")
        check_host(parts.hostname)
        if parts.scheme == "influxdb" and not is_loopback(parts.hostname):
            raise ValueError(
                f"{parts.hostname} is not loopback, and goes by TLS only: influxdbs://"
            )
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        http = "https" if parts.scheme == "influxdbs" else "http"
        return Bucket(f"{http}://{host}:{parts.port or 8086}", path[1], path[2])


class Alerts(_Table, frozen=True, kw_only=True):
    """Limits that dashboards and alert rules go by."""

    completeness_percent: Percent = 90.0
    """A device's day is incomplete below this part of its expected samples."""
    aqi: Annotated[int, msgspec.Meta(ge=0, le=500)] = 100
    """Air is called unhealthy above this index."""
    car_park_full_percent: Percent = 95.0
    """A car park is called full from this part of its bays on."""
    down_devices: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 1
    """So many silent devices of one domain at a site are an alert."""
    lag_minutes: Annotated[int, msgspec.Meta(ge=5, le=1440)] = 15
    """Nothing new for so long is an alert of the office itself."""
    mail: list[Mail] = []
    """Who is told."""
    webhooks: list[Webhook] = []
    """What else is told: `file:/PATH` or `env:NAME` that holds the URL."""
    runbooks: Link = ""
    """Where alerts' links find docs/operators; empty: they name the file in the repository."""


class Site(_Table, frozen=True, kw_only=True):
    """A field site (場域)."""

    id: Level
    label: Name
    township: Level
    location: Location
    lamp_w: Watts | None = None
    """What a lamp would take at full output, or took before it was dimmed: what savings are told against."""
    lamp_watts: dict[Level, Watts] = {}
    """The same of single lamps."""
    lamp_w_uncertainty_percent: Percent = 10.0
    """The limit of error of these watts."""
    burns_by_day: list[Level] = []
    """Lamps that are meant to burn by day, in tunnels and underpasses."""
    reference_stations: list[Level] = []
    """Devices of reference grade; what any other says of the air is labelled indicative."""


class Gateway(_Table, frozen=True, kw_only=True):
    """What publishes: a gateway, or a device with its own uplink."""

    id: Level
    site: Level
    label: Name | None = None
    credential: Credential = "certificate"


class Application(_Table, frozen=True, kw_only=True):
    """A named application and what it may do."""

    id: Level
    commands: list[str] = []
    """Domains whose devices in this county it may command."""
    reads: list[ReadChannel] = msgspec.field(
        default_factory=lambda: ["readings", "state", "results"]
    )
    """Channels that it may read in this county."""
    counties: list[County] = []
    """Further counties that granted it to read the same channels there, where they share the broker."""


class Town(_Table, frozen=True, kw_only=True):
    """One county: its names, its place, what is in it, where its data goes."""

    county: County
    """ISO 3166-2 in lower case; the name of the file, too."""
    name: Name
    timezone: str
    """IANA name; the county's civil days are by it."""
    circle: Circle
    extent: Extent
    townships: Annotated[list[Township], msgspec.Meta(min_length=1)]
    broker: Broker
    store: Store
    intervals: dict[str, Interval] = {}
    """Seconds between samples, by domain, for devices whose gateway does not say otherwise."""
    alerts: Alerts = Alerts()
    sites: Annotated[list[Site], msgspec.Meta(min_length=1)] = msgspec.field(name="site")
    gateways: list[Gateway] = msgspec.field(name="gateway", default_factory=list)
    applications: list[Application] = msgspec.field(name="application", default_factory=list)


def read_town(path: Path) -> Town:
    """Return the checked file. Raises: ConfigError naming file, line, key, value and what is allowed."""
    with located(path):
        return _checked(path)


def _checked(path: Path) -> Town:
    file = str(path)
    try:
        town = read_toml(path, Town)
    except ConfigError as error:
        if error.key == "intervals[...]" and isinstance(error.value, Mapping):
            for domain, interval_s in error.value.items():  # one of them is what is wrong
                converted(interval_s, Interval, file, f"intervals.{domain}")
        raise
    if town.county != path.stem:
        allowed = f"must be the file's name, {path.stem!r}: one county, one file"
        raise ConfigError(file, "county", town.county, allowed)
    check_zone(file, "timezone", town.timezone)
    _check_extent(file, town)
    _check_broker(file, town.broker)
    try:
        _ = town.store.bucket
    except ValueError as error:
        raise ConfigError(file, "store.url", _without_secret(town.store.url), str(error)) from None
    _check_retention(file, "store.retention_days", town.store.retention_days)
    _check_retention(file, "store.rollups_retention_days", town.store.rollups_retention_days)
    for table, ids in (
        ("townships", [one.id for one in town.townships]),
        ("site", [one.id for one in town.sites]),
        ("gateway", [one.id for one in town.gateways]),
        ("application", [one.id for one in town.applications]),
    ):
        _check_unique(file, table, ids)
    townships, sites = [one.id for one in town.townships], [one.id for one in town.sites]
    for index, site in enumerate(town.sites):
        _check_one_of(file, f"site[{index}].township", site.township, townships)
    for index, gateway in enumerate(town.gateways):
        _check_one_of(file, f"gateway[{index}].site", gateway.site, sites)
    for domain in town.intervals:
        if domain not in dictionary():
            allowed = f"no such domain; one of {', '.join(dictionary())}"
            raise ConfigError(file, f"intervals.{domain}", town.intervals[domain], allowed)
    for index, application in enumerate(town.applications):
        _check_application(file, f"application[{index}]", application, town.county)
    return town


def read_towns(paths: Iterable[Path]) -> list[Town]:
    """Return the files of one office by county, checked one by one and against each other. Raises: ConfigError."""
    files = sorted(paths, key=lambda path: path.stem)
    towns = [read_town(file) for file in files]
    agreed = _Agreed()
    for file, town in zip(files, towns, strict=True):
        with located(file):
            agreed.check(file, "county", town.county, file)
            agreed.check(file, "circle", town.circle.id, town.circle)
            agreed.check(file, "broker", "", town.broker)  # an office has one
            agreed.check(file, "store.retention_days", town.store.bucket, town.store.retention_days)
            kept_days = town.store.rollups_retention_days
            agreed.check(file, "store.rollups_retention_days", town.store.bucket, kept_days)
            place = town.store.bucket or town.store.url
            agreed.check(file, "store.workers", place, town.store.workers)
            for index, application in enumerate(town.applications):
                agreed.check(file, f"application[{index}].id", application.id, file)
    return towns


class _Agreed:
    """What the files said so far: of one thing all say the same; a file says itself where it must be the only one."""

    def __init__(self) -> None:
        self._said: dict[tuple[str, Hashable], tuple[Path, object]] = {}

    def check(self, file: Path, key: str, about: Hashable, value: object) -> None:
        """Check one key, which says `value` of `about`. Raises: ConfigError."""
        kind = key.rpartition("]")[2] if "]" in key else key
        where, said = self._said.setdefault((kind, about), (file, value))
        if said == value or about is None:
            return
        if value is file:
            raise ConfigError(str(file), key, about, f"must be unique: {where} has it, too")
        found = msgspec.to_builtins(value)
        raise ConfigError(
            str(file), key, found, f"must be as in {where}: {msgspec.to_builtins(said)}"
        )


def _check_extent(file: str, town: Town) -> None:
    extent = town.extent
    for low, high in (("south", "north"), ("west", "east")):
        begin, end = getattr(extent, low), getattr(extent, high)
        if not begin < end <= begin + MAX_EXTENT_DEG:
            allowed = f"must be above {low} = {begin} by {MAX_EXTENT_DEG:g} degrees at most"
            raise ConfigError(file, f"extent.{high}", end, allowed)
    for index, site in enumerate(town.sites):
        for key, value, begin, end in (
            ("lat", site.location.lat, extent.south, extent.north),
            ("lon", site.location.lon, extent.west, extent.east),
        ):
            if not begin <= value <= end:
                allowed = f"must be in the county's extent, {begin} to {end}"
                raise ConfigError(file, f"site[{index}].location.{key}", value, allowed)


def _check_broker(file: str, broker: Broker) -> None:
    ports = {"port": broker.port}
    for key in ("password_port", "service_port"):
        value = getattr(broker, key)
        for other, taken in ports.items():
            if value == taken:
                allowed = f"must differ from {other}: each listener has its own port"
                raise ConfigError(file, f"broker.{key}", value, allowed)
        ports[key] = value


def _check_application(file: str, key: str, application: Application, county: str) -> None:
    if application.id.partition("-")[0] in SERVICES:
        allowed = f"{', '.join(SERVICES)} and names that begin so are taken by our own services"
        raise ConfigError(file, f"{key}.id", application.id, allowed)
    for index, domain in enumerate(application.commands):
        _check_one_of(file, f"{key}.commands[{index}]", domain, list(dictionary()))
    for index, other in enumerate(application.counties):
        if other == county:
            allowed = "further counties only: its own it may read anyway"
            raise ConfigError(file, f"{key}.counties[{index}]", other, allowed)


def _check_retention(file: str, key: str, kept_days: int) -> None:
    if 0 < kept_days < LEAST_RETENTION_DAYS:
        allowed = f"must be 0, for ever, or {LEAST_RETENTION_DAYS} at least"
        raise ConfigError(file, key, kept_days, allowed)


def _check_unique(file: str, table: str, ids: Sequence[str]) -> None:
    for index, value in enumerate(ids):
        if value in ids[:index]:
            allowed = f"must be unique: {table}[{ids.index(value)}] has it, too"
            raise ConfigError(file, f"{table}[{index}].id", value, allowed)


def _check_one_of(file: str, key: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise ConfigError(file, key, value, f"one of {', '.join(known)}")


def _without_secret(url: str) -> str:
    return f"{url.partition(':')[0]}://…" if "@" in url or "?" in url else url
