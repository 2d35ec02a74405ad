"""The store: where rows are kept, and the one protocol that every store speaks.

StoreError
├── StoreUnavailable    network, 401, 403, 404, 429, 5xx, a lock: not the points' fault; retried
│   └── StoreOverfull   413: so many points at once are too many; retried in halves
└── StoreRejected       this request can never be taken; the caller finds the point that it is about
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, TypeAlias
from urllib.parse import SplitResult, urlsplit

import msgspec

from exchange.errors import ConfigError, StoreError
from exchange.tls import is_loopback

FieldValue: TypeAlias = float | int | str

STORE_ERROR_KINDS = ("timeout", "429", "5xx", "refused", "other")

_URLS = "sqlite:///PATH or influxdb://HOST:PORT/ORG/BUCKET (influxdbs:// with TLS)"


class StoreUnavailable(StoreError):
    """The store cannot take anything now; the points are kept and written again."""

    def __init__(
        self, detail: str, *, kind: str = "other", retry_after_s: float | None = None
    ) -> None:
        """Keep what happened, one of STORE_ERROR_KINDS, and what the store said of when to come back."""
        super().__init__(detail)
        self.kind = kind
        self.retry_after_s = retry_after_s


class StoreOverfull(StoreUnavailable):
    """The request is larger than something on the way to the store lets pass."""


class StoreRejected(StoreError):
    """The store will never take this request as it is.

    Shape: `dropped` points of it, 0 when it does not say; with `too_old` they are the oldest ones.
    """

    def __init__(self, detail: str, *, dropped: int = 0, too_old: bool = False) -> None:
        super().__init__(detail)
        self.dropped = dropped
        self.too_old = too_old


class Series(NamedTuple):
    """Whose rows: a measurement and its tags. Rows of a domain's own measurement have no tag `domain`."""

    measurement: str
    county: str
    site: str
    device: str
    domain: str = ""


class Place(NamedTuple):
    """A domain's devices at a site."""

    county: str
    site: str
    domain: str


class Point(msgspec.Struct, frozen=True, gc=False):
    """One row. Its key is the series and `time_ns`: milliseconds and (epoch mod 10^6) nanoseconds."""

    series: Series
    time_ns: int
    fields: dict[str, FieldValue]

    @property
    def time_ms(self) -> int:
        """When it was measured: what readers show."""
        return self.time_ns // 1_000_000


class Part(NamedTuple):
    """The rows of a measurement that one site has in a while; of the named devices only, where there are some."""

    measurement: str
    county: str
    site: str
    start_ns: int
    end_ns: int
    """Not included."""
    devices: tuple[str, ...] = ()
    domain: str = ""
    """Of measurements whose rows have this tag; every row where it is empty."""


class Count(NamedTuple):
    """How many rows a device has in one step of a while."""

    device: str
    start_ns: int
    rows: int


class DeviceRows(NamedTuple):
    """Rows of one device by ascending time, column by column.

    Shape: every column is as long as `times_ns`, with None where a row lacks the field; no column is empty.
    """

    device: str
    times_ns: Sequence[int]
    columns: Mapping[str, Sequence[FieldValue | None]]


class Store(Protocol):
    """Keeps points. Booleans come back as 0 and 1; a row written again gains the new fields."""

    async def open(self) -> None:
        """Get ready. Raises: StoreError."""

    async def write(self, points: Sequence[Point]) -> None:
        """Return when every point is durable; after an error any of them may have to be written again.

        Raises: StoreUnavailable, StoreRejected.
        """

    def rows(
        self,
        measurement: str,
        *,
        device: str | None = None,
        start_ns: int | None = None,
        end_ns: int | None = None,
    ) -> AsyncIterator[Point]:
        """Yield rows by ascending time, from `start_ns` to before `end_ns`. Raises: StoreUnavailable."""

    async def sites(self, measurement: str, county: str) -> list[str]:
        """Return the sites of a county that have such rows. Raises: StoreUnavailable."""

    async def narrowed(self, measurement: str, fields: Sequence[str]) -> list[str]:
        """Return those of these fields that rows have, all where only rows would tell. Raises: StoreUnavailable."""

    def counts(
        self, part: Part, *, counted: str, step_ns: int, by_device: bool = True
    ) -> AsyncIterator[Count]:
        """Yield, device by device, how many rows with the field `counted` are in each step that has some.

        Shape: steps begin at the part's start. Not `by_device`, those of all together, as of a device without a name.
        Raises: StoreUnavailable.
        """

    def device_rows(self, part: Part, fields: Sequence[str]) -> AsyncIterator[DeviceRows]:
        """Yield these fields of each device's rows, devices ascending; a whole float may come as an integer.

        Raises: StoreUnavailable.
        """

    async def delete_before(self, measurement: str, time_ns: int, *, most: int) -> int:
        """Delete about `most` of the oldest rows before a time and return how many; 0 when none is left.

        Shape: always 0 where the store itself has a retention. Raises: StoreUnavailable.
        """

    async def ping(self) -> None:
        """Return when it would take a point now, as far as it tells without one. Raises: StoreUnavailable."""

    async def close(self) -> None:
        """Let go of everything."""


def open_store(
    url: str,
    *,
    token_file: Path | None = None,
    read_token_file: Path | None = None,
    ca_file: Path | None = None,
) -> Store:
    """Return the store at a URL, to be opened; an InfluxDB token is in the file or in INFLUX_TOKEN.

    `read_token_file` has another one for reading: who may read and write a bucket may delete in it. `ca_file` is
    whose word to take for an `influxdbs://` server; the system's authorities otherwise.

    Raises: ConfigError.
    """
    scheme, _, file = url.partition(":///")
    if scheme == "sqlite" and file:  # as it is: a folder's name may hold what means more in a URL
        from ingest.stores.sqlite import SqliteStore

        return SqliteStore(Path(file))
    parts = urlsplit(url)
    try:
        port = parts.port or 8086
    except ValueError as error:
        raise ConfigError("store", "url", url, str(error)) from None
    # Imported here: a town on SQLite does not pay for a client of InfluxDB, nor the reverse.
    match parts:
        case SplitResult(scheme="influxdb" | "influxdbs" as scheme, username=None, password=None):
            match parts.path.split("/"):
                case ["", org, bucket] if parts.hostname and org and bucket:
                    from ingest.stores.influxdb import InfluxStore, Token

                    secure = "s" if scheme == "influxdbs" else ""
                    if not secure and not is_loopback(parts.hostname):
                        allowed = (
                            "influxdbs://…: a server that is not on loopback is reached by TLS only"
                        )
                        raise ConfigError("store", "url", url, allowed)
                    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
                    address = f"http{secure}://{host}:{port}"
                    reading = None if read_token_file is None else Token(read_token_file)
                    token = Token(token_file)
                    return InfluxStore(address, bucket, token, reading=reading, ca_file=ca_file)
        case SplitResult(password=str()):
            raise ConfigError("store", "url", f"{parts.scheme}://…", "no secret stands in the URL")
    raise ConfigError("store", "url", url, _URLS)
