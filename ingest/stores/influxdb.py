"""Rows in InfluxDB 2 and whatever else takes its line protocol and InfluxQL.

Through the API of version 1, which version 2 and its kin still have: only there can a credential write without
being able to delete the bucket (influxdata/influxdb#23170). Writing needs the right to write to the one bucket,
reading the right to read it; the bucket's name is the database's.

Source: docs.influxdata.com, InfluxDB v2, "Line protocol" and "InfluxDB v1 compatibility API": /write, /query
"""

from __future__ import annotations

import os
import re
import ssl
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import suppress
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import aiohttp
import msgspec

from exchange.configuration import check_private
from exchange.errors import ConfigError
from ingest.stores import (
    Count,
    DeviceRows,
    FieldValue,
    Part,
    Point,
    Series,
    StoreOverfull,
    StoreRejected,
    StoreUnavailable,
)

TOKEN_VARIABLE = "INFLUX_TOKEN"  # noqa: S105 - the name of the variable
REQUEST_TIMEOUT_S = 30.0
CHUNK_ROWS = 5000
_WRITE_TIMEOUT = aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S)

_REJECTED = (400, 422)
_TOO_LARGE = 413
_DROPPED = re.compile(r"partial write: (?:dropped (\d+) points|.* dropped=(\d+))")
_TOO_OLD = "Retention Policy Lower Bound"
_MAX_FORMS = 200_000
_MAX_BODY_FIELDS = 400_000
_MOST_FIELDS = 40
"""Of a form that is remembered of a series: what a device makes up is not, so that memory has an end."""
_MOST_OF_A_BODY = 120
"""Of one that many series share, as those of roll-ups do."""
_TAGS = ("county", "site", "device", "domain")
_in_tag = str.maketrans({",": r"\,", " ": r"\ ", "=": r"\=", "\n": r"\n"})
_in_string = str.maketrans({"\\": r"\\", '"': r"\""})

_encode = msgspec.json.Encoder().encode

Cell: TypeAlias = float | int | str | bool | None


class Token:
    """A secret, read anew when the server refuses the one in use: a rotated token needs no restart.

    Raises: ConfigError when there is none at the start.
    """

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self.value = ""
        if file is not None:
            check_private("store", "token_file", file)
        try:
            self.refresh()
        except (OSError, ValueError) as error:
            allowed = f"must hold a token, one line of text: {error}"
            raise ConfigError(
                "store", "token_file", str(file or TOKEN_VARIABLE), allowed
            ) from error
        if not self.value:
            name = TOKEN_VARIABLE if file is None else str(file)
            raise ConfigError("store", "token", "", f"a token is expected in {name}")

    def refresh(self) -> None:
        """Read it again. Raises: OSError, ValueError: then it is the one that it was."""
        if self._file is not None:
            value = self._file.read_text(encoding="utf-8").strip()
        else:
            value = os.environ.get(TOKEN_VARIABLE, "")
        if not value.isprintable():  # no header may hold it
            raise ValueError("there are several lines, or control characters")
        self.value = value

    @property
    def header(self) -> str:
        """How a request shows it: NAME:PASSWORD is a version 1 authorization, anything else a token."""
        if ":" in self.value:
            return f"Basic {b64encode(self.value.encode()).decode()}"
        return f"Token {self.value}"

    def __repr__(self) -> str:
        """Without the secret."""
        return f"Token({self._file or TOKEN_VARIABLE})"


class InfluxStore:
    """The store protocol on one bucket."""

    def __init__(
        self,
        url: str,
        bucket: str,
        token: Token,
        *,
        reading: Token | None = None,
        ca_file: Path | None = None,
    ) -> None:
        """`token` is for writing, and for reading where there is no other for that.

        `ca_file` is whose word to take for the server. Raises: ConfigError when it is none.
        """
        self._url, self._bucket, self._token = url, bucket, token
        self._reading = reading or token
        self._tls = None
        if ca_file is not None:
            try:
                self._tls = ssl.create_default_context(cafile=str(ca_file))
            except (OSError, ssl.SSLError) as error:
                allowed = f"must be a readable file of certificates in PEM: {error}"
                raise ConfigError("store", "ca_file", str(ca_file), allowed) from error
        self._lines = LineWriter()
        self._session: aiohttp.ClientSession | None = None

    async def open(self) -> None:
        if self._session is not None:  # by somebody who asked how it is
            return
        timeout = aiohttp.ClientTimeout(total=None, sock_read=REQUEST_TIMEOUT_S, sock_connect=10)
        self._session = aiohttp.ClientSession(
            timeout=timeout, connector=aiohttp.TCPConnector(ssl=self._tls or True)
        )

    async def write(self, points: Sequence[Point]) -> None:
        try:
            lines = self._lines.lines(points)
        except MemoryError as error:
            raise StoreUnavailable("there is no memory to write lines in") from error
        except Exception as error:  # a mistake of ours must not end the process of a whole town
            raise StoreRejected(f"not to be written: {type(error).__name__}: {error}") from error
        await self._post(lines)

    async def _post(self, lines: bytes) -> None:
        if self._session is None:
            await self.open()
        assert self._session is not None
        to = {"db": self._bucket, "precision": "ns"}
        headers = {"Authorization": self._token.header}
        try:
            async with self._session.post(
                f"{self._url}/write", params=to, data=lines, headers=headers, timeout=_WRITE_TIMEOUT
            ) as answer:
                if answer.status != 204:
                    raise await self._refusal(answer, self._token)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self._away(error) from error

    async def rows(
        self,
        measurement: str,
        *,
        device: str | None = None,
        start_ns: int | None = None,
        end_ns: int | None = None,
    ) -> AsyncIterator[Point]:
        kinds = await self._field_kinds(measurement)
        wanted = [f"time >= {start_ns}"] if start_ns is not None else []
        wanted += [f"time < {end_ns}"] if end_ns is not None else []
        wanted += [f'"device" = {_literal(device)}'] if device is not None else []
        where = f" WHERE {' AND '.join(wanted)}" if wanted else ""
        async for _, columns, values in self._query(f"SELECT * FROM {_name(measurement)}{where}"):  # noqa: S608 - quoted
            for row in values:
                yield _point(measurement, dict(zip(columns, row, strict=True)), kinds)

    async def sites(self, measurement: str, county: str) -> list[str]:
        asked = f'SHOW TAG VALUES FROM {_name(measurement)} WITH KEY = "site"'
        where = f' WHERE "county" = {_literal(county)}'
        return sorted(
            {str(site) async for *_, values in self._query(asked + where) for _, site in values}
        )

    async def narrowed(self, measurement: str, fields: Sequence[str]) -> list[str]:
        kinds = await self._field_kinds(measurement)
        return [name for name in fields if name in kinds]

    async def counts(
        self, part: Part, *, counted: str, step_ns: int, by_device: bool = True
    ) -> AsyncIterator[Count]:
        by = '"device", ' if by_device else ""
        asked = (
            f"SELECT count({_name(counted)}) FROM {_name(part.measurement)}{_where(part)}"  # noqa: S608 - quoted
            f" GROUP BY {by}time({step_ns}ns, {part.start_ns % step_ns}ns) fill(none)"
        )
        async for tags, _, values in self._query(asked):
            for start_ns, rows in values:
                assert isinstance(start_ns, int)
                assert isinstance(rows, int)
                yield Count(tags.get("device", ""), start_ns, rows)

    async def device_rows(self, part: Part, fields: Sequence[str]) -> AsyncIterator[DeviceRows]:
        if not fields:
            return
        asked = (
            f"SELECT {', '.join(map(_name, fields))} FROM {_name(part.measurement)}{_where(part)}"  # noqa: S608 - quoted
            ' GROUP BY "device"'
        )
        device, held = "", list[list[Cell]]()
        async for tags, _, values in self._query(asked):
            if tags.get("device", "") != device and held:  # a long series comes in several chunks
                yield _by_column(device, held, fields)
                held = []
            device = tags.get("device", "")
            held += values
        if held:
            yield _by_column(device, held, fields)

    async def delete_before(self, measurement: str, time_ns: int, *, most: int) -> int:  # noqa: ARG002 - the bucket's retention does it
        return 0

    async def ping(self) -> None:
        try:
            await self._post(b"")  # its /ping knows neither credentials nor buckets
        except StoreRejected as error:
            raise _unavailable(error) from error

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
        self._session = None

    async def _field_kinds(self, measurement: str) -> dict[str, str]:
        """Return the types of the fields: the answer's JSON writes 2.0 and 2 alike."""
        query = f"SHOW FIELD KEYS FROM {_name(measurement)}"
        return {
            str(name): str(kind) async for *_, values in self._query(query) for name, kind in values
        }

    async def _query(
        self, text: str
    ) -> AsyncIterator[tuple[dict[str, str], list[str], list[list[Cell]]]]:
        """Yield (tags, columns, rows) as the answer comes. Raises: StoreUnavailable."""
        if self._session is None:
            await self.open()
        assert self._session is not None
        asked = {"db": self._bucket, "q": text, "epoch": "ns", "chunked": "true"}
        asked["chunk_size"] = str(CHUNK_ROWS)
        # A store is near: to compress an answer costs both sides more than to carry it.
        headers = {"Authorization": self._reading.header, "Accept-Encoding": "identity"}
        try:
            async with self._session.get(
                f"{self._url}/query", params=asked, headers=headers
            ) as answer:
                if answer.status != 200:
                    raise _unavailable(await self._refusal(answer, self._reading))
                async for line in _json_lines(answer.content):
                    for result in line["results"]:
                        if "error" in result:
                            raise StoreUnavailable(f"{self._url}: {result['error']}")
                        for series in result.get("series", []):
                            yield series.get("tags", {}), series["columns"], series["values"]
        except (aiohttp.ClientError, TimeoutError, OSError, msgspec.DecodeError) as error:
            raise self._away(error) from error

    def _away(self, error: Exception) -> StoreUnavailable:
        """Return what a failed request means."""
        words = f"{self._url}: {str(error) or type(error).__name__}"
        if isinstance(error, TimeoutError):
            return StoreUnavailable(words, kind="timeout")
        refused = isinstance(error, aiohttp.ClientConnectorError)
        return StoreUnavailable(words, kind="refused" if refused else "other")

    async def _refusal(
        self, answer: aiohttp.ClientResponse, token: Token
    ) -> StoreUnavailable | StoreRejected:
        said = (await answer.content.read(2000)).decode(errors="replace")
        text = f"{self._url}: HTTP {answer.status}: {said}"
        if answer.status in _REJECTED:
            found = _DROPPED.search(said)
            dropped = int(found[1] or found[2]) if found else 0
            return StoreRejected(text, dropped=dropped, too_old=_TOO_OLD in said)
        if answer.status in (401, 403):
            with suppress(OSError, ValueError):
                token.refresh()
        if answer.status == _TOO_LARGE:
            return StoreOverfull(text)
        kind = "429" if answer.status == 429 else "5xx" if answer.status >= 500 else "other"
        return StoreUnavailable(
            text, kind=kind, retry_after_s=_seconds(answer.headers.get("Retry-After", ""))
        )


class LineWriter:
    """Line protocol, a batch at a time.

    The forms of the lines are put together first and all their numbers written by one call of the JSON encoder, which
    writes a double faster than `repr` and as exactly. What does not change between two points is built once.
    """

    def __init__(self) -> None:
        self._forms: dict[Series, _Form] = {}
        self._bodies: dict[tuple[str, ...], tuple[bytes, bool]] = {}
        self._body_fields = 0

    def lines(self, points: Iterable[Point]) -> bytes:
        """Return one line per point. Raises: StoreRejected when it cannot be written at all."""
        forms = self._forms
        pattern: list[bytes] = []
        numbers: list[FieldValue] = []
        for point in points:
            fields = point.fields
            form = forms.get(point.series)
            if form is None or form.names != tuple(fields):
                form = self._form(point.series, fields)
            if form.booleans:
                numbers.extend([+value for value in fields.values()])  # type: ignore[operator]  # no text; +True is 1
            elif form.names:
                numbers.extend(fields.values())
            pattern.append(form.pattern)
            numbers.append(point.time_ns)
        return (b"".join(pattern) % tuple(_encode(numbers)[1:-1].split(b",")))[:-1]

    def _form(self, series: Series, fields: Mapping[str, FieldValue]) -> _Form:
        if len(fields) > _MOST_OF_A_BODY or any(type(v) not in _PLACES for v in fields.values()):
            return _Form((), self._head(series) + _written(fields), booleans=False)
        # A metric never changes its type within a measurement, so its name says how it is written;
        # where it did, the line is one that InfluxDB rejects, never one that lies.
        key = series.measurement, *fields
        body = self._bodies.get(key)
        if body is None:
            places = [_named(name) + _PLACES[type(value)] for name, value in fields.items()]
            body = b",".join(places) + _END, bool in map(type, fields.values())
            if self._body_fields + len(fields) > _MAX_BODY_FIELDS:
                self._bodies.clear()
                self._body_fields = 0
            self._bodies[key] = body
            self._body_fields += len(fields)
        pattern, booleans = body
        form = _Form(tuple(fields), self._head(series) + pattern, booleans)
        if len(fields) <= _MOST_FIELDS:
            if len(self._forms) >= _MAX_FORMS:
                self._forms.popitem()  # the latest: of more series than that, most are still known
            self._forms[series] = form
        return form

    def _head(self, series: Series) -> bytes:
        measurement, *values = (str(value).translate(_in_tag) for value in series)
        tags = "".join(f",{tag}={text}" for tag, text in zip(_TAGS, values, strict=True) if text)
        return _literally(f"{measurement}{tags} ")


class _Form(NamedTuple):
    """How points of a series with certain fields are written.

    Shape: `names` is empty where a text is among the fields, or they are many: these stand in the pattern, which is
        for one point only.
    """

    names: tuple[str, ...]
    pattern: bytes
    booleans: bool


_PLACES = {float: b"%b", int: b"%bi", bool: b"%bi"}
_END = b" %b\n"


def _written(fields: Mapping[str, FieldValue]) -> bytes:
    """Return the fields of a point that is not plain, ready to stand in a pattern."""
    parts = [_named(name) + _value(value) for name, value in fields.items()]
    return b",".join(parts) + _END


def _value(value: FieldValue) -> bytes:
    if isinstance(value, bool | int):
        return b"%di" % value
    if isinstance(value, float):
        return repr(value).encode()
    return _literally(f'"{value.translate(_in_string)}"')


def _named(name: str) -> bytes:
    return _literally(f"{name.translate(_in_tag)}=")


def _literally(text: str) -> bytes:
    """Return a text that a pattern gives back as it is. Raises: StoreRejected."""
    try:
        return text.replace("%", "%%").encode()
    except UnicodeEncodeError as error:
        raise StoreRejected(f"not to be written in UTF-8: {error}") from error


def _seconds(retry_after: str) -> float | None:
    """Return how long to wait: the header holds seconds or a date (RFC 9110 section 10.2.3)."""
    if retry_after.isdecimal():
        return float(retry_after)
    try:
        return parsedate_to_datetime(retry_after).timestamp() - time.time()
    except (ValueError, OverflowError):
        return None


def _unavailable(error: StoreUnavailable | StoreRejected) -> StoreUnavailable:
    """A question of ours that is rejected is no point's fault."""
    return error if isinstance(error, StoreUnavailable) else StoreUnavailable(str(error))


async def _json_lines(content: aiohttp.StreamReader) -> AsyncIterator[Any]:
    held = b""
    async for data in content.iter_any():
        *whole, held = (held + data).split(b"\n")
        for line in whole:
            if line.strip():
                yield msgspec.json.decode(line)
    if held.strip():
        yield msgspec.json.decode(held)


def _name(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _literal(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def _where(part: Part) -> str:
    tags = {"county": part.county, "site": part.site}
    if part.domain:
        tags["domain"] = part.domain
    wanted = [f"time >= {part.start_ns}", f"time < {part.end_ns}"]
    wanted += [f"{_name(tag)} = {_literal(value)}" for tag, value in tags.items()]
    if part.devices:
        named = " OR ".join(f'"device" = {_literal(device)}' for device in part.devices)
        wanted.append(f"({named})")
    return f" WHERE {' AND '.join(wanted)}"


def _by_column(device: str, rows: list[list[Cell]], names: Sequence[str]) -> DeviceRows:
    times, *cells = zip(*rows, strict=True)
    columns = {
        name: column
        for name, column in zip(names, cells, strict=True)
        if column.count(None) < len(column)
    }
    return DeviceRows(device, times, columns)


def _point(measurement: str, row: dict[str, Cell], kinds: dict[str, str]) -> Point:
    time_ns = row.pop("time")
    assert isinstance(time_ns, int)
    county, site, device, domain = (str(row.pop(tag, None) or "") for tag in _TAGS)
    fields: dict[str, FieldValue] = {
        name: float(value) if kinds.get(name) == "float" else value
        for name, value in row.items()
        if value is not None
    }
    return Point(Series(measurement, county, site, device, domain), time_ns, fields)
