"""An office's InfluxDB: set up, with the towns' buckets, and a token for each service that opens what it needs.

Whatever is there already is kept; what is missing is made; so it can be run again after any change or crash.

A town has a bucket of raw rows and one of hours and days, `{bucket}_rollups`. Who writes does so by a version 1
authorization (NAME:PASSWORD), which is good at `/write` and `/query` alone: whoever may write to a bucket at `/api/v2`
may delete it, too. Grafana reads by a token of version 2.

Source: docs.influxdata.com, InfluxDB v2.7, "InfluxDB v2 API": setup, orgs, buckets, authorizations; for the others
    `influx v1 auth` of github.com/influxdata/influx-cli; influxdata/influxdb#23170
"""

from __future__ import annotations

import asyncio
import secrets
import ssl
from base64 import b64encode
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import aiohttp
import msgspec

from exchange.configuration import check_private
from exchange.errors import ConfigError, StoreError
from exchange.tls import Tls, check_https
from exchange.towns import Bucket, Town
from provisioning.files import write_private

Action = Literal["write", "read"]
RAW, ROLLUPS = "", "_rollups"
"""What ends the names of a town's buckets."""
MAIN, READING = "influx.token", "influx.read.token"
SERVICES: dict[str, dict[str, list[tuple[Action, str]]]] = {
    "ingest": {MAIN: [("write", RAW)]},
    "watch": {MAIN: [("write", RAW)], READING: [("read", RAW)]},
    "rollups": {MAIN: [("write", ROLLUPS)], READING: [("read", RAW), ("read", ROLLUPS)]},
    "grafana": {MAIN: [("read", RAW), ("read", ROLLUPS)]},
}
"""What each service may do with which bucket, by the file of the token; nothing else is open to it.

No token may read and write one bucket: it could delete there, by InfluxQL.
"""
TIMEOUT_S = 20.0
_DAY_S = 86_400
_ADMINISTRATOR = "onestreet"
_VERSION_1 = "/private/legacy/authorizations"
_VERSION_2 = "/api/v2/authorizations"
_HARMLESS = {"db": "none", "q": "SHOW DATABASES"}


class Place(NamedTuple):
    """A store of an office: what ends the names of its services' folders, and the towns that it holds."""

    suffix: str
    towns: list[Town]


def places(towns: Sequence[Town]) -> list[Place]:
    """Return the office's stores. A single one needs no suffix; else each has its first county's name."""
    stores: dict[Bucket | str, list[Town]] = {}
    for town in sorted(towns, key=lambda town: town.county):
        stores.setdefault(town.store.bucket or town.store.url, []).append(town)
    if len(stores) == 1:
        return [Place("", held) for held in stores.values()]
    return [Place(f"-{held[0].county}", held) for held in stores.values()]


def set_up(office: Path, towns: Sequence[Town], *, url: str = "") -> list[Path]:
    """Make what is missing and return the token files that were written; SQLite needs nothing.

    Shape: `url` (`https://HOST:PORT`) is how the server is reached from here, where that is another
        way than the town files say.
    Raises: StoreError, ConfigError; no secret is part of them.
    """
    return asyncio.run(_set_up(office, towns, url, rotate=False))


def rotate(office: Path, towns: Sequence[Town], *, url: str = "") -> list[Path]:
    """Do as `set_up`, and give every service a new token; the old ones are void when this returns."""
    return asyncio.run(_set_up(office, towns, url, rotate=True))


async def _set_up(office: Path, towns: Sequence[Town], url: str, *, rotate: bool) -> list[Path]:
    stores = [(place, bucket) for place in places(towns) if (bucket := place.towns[0].store.bucket)]
    if not stores:
        return []
    servers = sorted({bucket.url for _, bucket in stores})
    if len(servers) > 1:
        allowed = "must be one server: an office has one InfluxDB, with as many buckets as it likes"
        raise ConfigError(str(office / "towns"), "store.url", ", ".join(servers), allowed)
    first, address = stores[0][1], url.rstrip("/") or servers[0]
    check_https("command line", "url", address)
    folder, written = office / "store", []
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    connector = aiohttp.TCPConnector(ssl=_tls(folder, address))
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
        server = _Server(session, address, folder / "admin.token")
        await server.check_version()
        await server.begin(first, folder / "admin.password")
        for place, bucket in stores:
            org = await server.organisation(bucket.org)
            kept = place.towns[0].store
            held = {
                end: await server.bucket(org, f"{bucket.bucket}{end}", days * _DAY_S)
                for end, days in [
                    (RAW, kept.retention_days),
                    (ROLLUPS, kept.rollups_retention_days),
                ]
            }
            for service, name, doors in _tokens():
                file = office / "services" / f"{service}{place.suffix}" / name
                opened = frozenset((action, held[end]) for action, end in doors)
                what = f"{service} reads" if name == READING else service
                grant = _Grant(what, bucket.bucket, opened, org)
                if await server.issue(grant, file, anew=rotate):
                    written.append(file)
    return written


def _tokens() -> Iterator[tuple[str, str, list[tuple[Action, str]]]]:
    """Yield every token: the service, its file, what it may do with which bucket."""
    for service, files in SERVICES.items():
        for name, doors in files.items():
            yield service, name, doors


def _shard_s(retention_s: int) -> int:
    """Return how much time one shard holds.

    A shard costs the server a megabyte of memory, and a gateway may send times from 1978 to 2262: what is kept for ever
    is in shards of a year, so that nobody can have it make thousands. What is not is deleted by the shard, so they are
    as short as InfluxDB makes them.
    """
    if not retention_s:
        return 364 * _DAY_S
    return 7 * _DAY_S if retention_s > 180 * _DAY_S else _DAY_S


class _Grant(NamedTuple):
    """What one token is for."""

    what: str
    bucket: str
    doors: frozenset[tuple[Action, str]]
    """What it may do with which bucket, by id."""
    org_id: str

    @property
    def description(self) -> str:
        """How it is found again."""
        return f"onestreet {self.what}: {self.bucket}"

    @property
    def kind(self) -> str:
        """Where authorizations of its kind are."""
        writes = any(action == "write" for action, _ in self.doors)
        return _VERSION_1 if writes else _VERSION_2

    @property
    def permissions(self) -> list[dict[str, Any]]:
        return [
            {"action": action, "resource": {"type": "buckets", "id": bucket, "orgID": self.org_id}}
            for action, bucket in sorted(self.doors)
        ]

    def is_met_by(self, authorization: dict[str, Any]) -> bool:
        """Whether an authorization opens this, and nothing more."""
        given = {
            (one["action"], one["resource"]["type"], one["resource"].get("id"))
            for one in authorization["permissions"]
        }
        active = authorization["status"] == "active"
        return active and given == {(action, "buckets", bucket) for action, bucket in self.doors}


class _Server:
    """The InfluxDB, asked as its administrator."""

    def __init__(self, session: aiohttp.ClientSession, url: str, token_file: Path) -> None:
        self._session = session
        self._url = url
        self._file = token_file
        self._token = ""

    async def check_version(self) -> None:
        """Check that it is an InfluxDB 2. Raises: StoreError."""
        _, said, version = await self._ask("GET", "/ping")
        if version.removeprefix("v").partition(".")[0] == "2":
            return
        found = f"InfluxDB {version}" if version else f"something else ({said[:80]!r})"
        raise StoreError(f"{self._url}: needs InfluxDB 2.7, found {found}")

    async def begin(self, first: Bucket, password_file: Path) -> None:
        """Set up a server that never was; else there must be a token of its administrator."""
        if not (await self.call("GET", "/api/v2/setup"))["allowed"]:
            self._token = _held(self._file)
            if not self._token:
                allowed = f"must hold a token of the administrator: {self._url} was set up before"
                raise ConfigError(str(self._file), "file", None, allowed)
            return
        # Kept before they are used: a crash after the setup locks nobody out.
        for file in (self._file, password_file):
            if not _held(file):
                write_private(file, secrets.token_urlsafe(36))
        token = _held(self._file)
        asked = {
            "username": _ADMINISTRATOR,
            "password": _held(password_file),
            "org": first.org,
            "bucket": first.bucket,
            "token": token,
        }
        await self.call("POST", "/api/v2/setup", asked)
        self._token = token

    async def organisation(self, name: str) -> str:
        """Return its id; made if it is missing."""
        found = await self.call("GET", "/api/v2/orgs", query={"org": name}, absent={"orgs": []})
        if not found["orgs"]:
            return str((await self.call("POST", "/api/v2/orgs", {"name": name}))["id"])
        return str(found["orgs"][0]["id"])

    async def bucket(self, org_id: str, name: str, retention_s: int) -> str:
        """Return its id; made if it is missing, and its retention as told."""
        rule = {
            "type": "expire",
            "everySeconds": retention_s,
            "shardGroupDurationSeconds": _shard_s(retention_s),
        }
        query = {"orgID": org_id, "name": name}
        found = await self.call("GET", "/api/v2/buckets", query=query, absent={"buckets": []})
        if not found["buckets"]:
            asked = {"orgID": org_id, "name": name, "retentionRules": [rule]}
            return str((await self.call("POST", "/api/v2/buckets", asked))["id"])
        [bucket] = found["buckets"]
        if bucket["retentionRules"] != [rule]:
            path = f"/api/v2/buckets/{bucket['id']}"
            await self.call("PATCH", path, {"retentionRules": [rule]})
        return str(bucket["id"])

    async def issue(self, grant: _Grant, file: Path, *, anew: bool) -> bool:
        """Have a good token in the file, and no other of its kind; tell whether it was written."""
        of_kind = [
            (kind, one)
            for kind in (_VERSION_1, _VERSION_2)
            for one in (await self.call("GET", kind, query={"orgID": grant.org_id}))[
                "authorizations"
            ]
            if one["description"] == grant.description
        ]
        mine = [one for kind, one in of_kind if kind == grant.kind]
        kept = "" if anew else await self._good_one(grant, mine, _held(file))
        written = not kept
        if written:
            kept, token = await self._new(grant)
            write_private(file, token)
        for kind, one in of_kind:  # last: the service finds the new one when the old one is refused
            if one["id"] != kept:
                await self.call("DELETE", f"{kind}/{one['id']}")
        return written

    async def _good_one(self, grant: _Grant, mine: list[dict[str, Any]], token: str) -> str:
        """Return the id of the authorization that a token is, empty where it is none."""
        name, _, password = token.partition(":")
        if bool(password) != (grant.kind == _VERSION_1):
            return ""
        if password:  # is not in the list: the server says whether it fits
            login = f"Basic {b64encode(token.encode()).decode()}"
            status, _, _ = await self._ask("GET", "/query", query=_HARMLESS, authorization=login)
            if status == 401:
                return ""
        return next(
            (str(one["id"]) for one in mine if one["token"] == name and grant.is_met_by(one)), ""
        )

    async def _new(self, grant: _Grant) -> tuple[str, str]:
        """Return a new authorization's id and its token."""
        asked: dict[str, Any] = {"orgID": grant.org_id, "description": grant.description}
        asked["permissions"] = grant.permissions
        if grant.kind != _VERSION_1:
            new = await self.call("POST", grant.kind, asked)
            return new["id"], new["token"]
        name, password = f"{grant.what}-{secrets.token_hex(8)}", secrets.token_urlsafe(36)
        new = await self.call("POST", grant.kind, asked | {"token": name})
        await self.call("POST", f"{grant.kind}/{new['id']}/password", {"password": password})
        return new["id"], f"{name}:{password}"

    async def call(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        query: dict[str, str] | None = None,
        absent: object = None,
    ) -> Any:
        """Return the answer; `absent` stands for a 404. Raises: StoreError, ConfigError."""
        status, said, _ = await self._ask(method, path, body, query)
        if status in (401, 403) and self._token:
            allowed = f"must hold a token of the administrator; {self._url} refuses it: {said}"
            raise ConfigError(str(self._file), "file", "a token", allowed)
        if status == 404 and absent is not None:
            return absent
        if status >= 300:
            raise StoreError(f"{self._url}: {method} {path}: HTTP {status}: {said}")
        try:
            return msgspec.json.decode(said) if said else None
        except msgspec.DecodeError as error:
            raise StoreError(f"{self._url}: {method} {path}: not JSON: {said[:80]!r}") from error

    async def _ask(
        self,
        method: str,
        path: str,
        body: object = None,
        query: dict[str, str] | None = None,
        authorization: str = "",
    ) -> tuple[int, str, str]:
        """Return status, text and version of an answer. Raises: StoreError."""
        if self._token and not authorization:
            authorization = f"Token {self._token}"
        headers = {"Authorization": authorization} if authorization else {}
        data = None if body is None else msgspec.json.encode(body)
        try:
            async with self._session.request(
                method, self._url + path, data=data, params=query, headers=headers
            ) as answer:
                said = await answer.text(errors="replace")
                return answer.status, said.strip(), answer.headers.get("X-Influxdb-Version", "")
        except aiohttp.ClientConnectorCertificateError as error:
            reason = error.certificate_error
            raise StoreError(f"{self._url}: its certificate is not believed: {reason}") from error
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            words = str(error) or f"no answer in {TIMEOUT_S:g} s"
            raise StoreError(f"{self._url}: not reachable: {words}") from error


def _held(file: Path) -> str:
    """Return the secret in a file, empty when there is none. Raises: ConfigError, as when others can read it."""
    check_private(str(file), "file", file)
    try:
        return file.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        allowed = f"must be readable: {getattr(error, 'strerror', None) or error}"
        raise ConfigError(str(file), "file", "a secret", allowed) from error


def _tls(folder: Path, url: str) -> ssl.SSLContext | bool:
    """Return whom to believe: the office's authority, or the system's where the office has none for its store."""
    ca_file = folder / "ca.pem"
    if not url.startswith("https://") or not ca_file.exists():
        return True
    return Tls(ca_file=ca_file).context(str(folder), "store")
