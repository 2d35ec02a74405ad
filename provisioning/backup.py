"""Backup and restore: the office's files, what was refused, and the rows, while everything runs.

A backup is a folder of its own, whole or not at all:

    office/       every file of the office, keys and tokens included, so it is as secret as the office
    sqlite/       each SQLite file of the services (quarantine, small stores), by SQLite's own online copy
    store/        InfluxDB: its metadata (organisations, buckets, authorizations) and its shards
    backup.json   what each file must be, by SHA-256

The broker's memory is not in it: gateways send again what no receipt came for.

Source: docs.influxdata.com, InfluxDB v2.7, "InfluxDB v2 API": backup, restore; for the order in which they are
    asked `clients/restore` of github.com/influxdata/influx-cli
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import os
import shutil
import sqlite3
import ssl
from collections.abc import AsyncIterable, AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, closing
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from pathlib import Path

import aiohttp
import msgspec

from exchange.configuration import check_private
from exchange.errors import ConfigError, OnestreetError, StoreError
from exchange.folder_lock import locked
from exchange.tls import Tls
from exchange.towns import Bucket, Town, read_towns
from provisioning.files import make_folder
from provisioning.office import RESTORING, check_office

CONTENTS = "backup.json"
PASSING = ("street", "broker/data", "store/data", "services/*/data")
"""What an office holds beside its files: written by those that run, and copied by their own means, if at all."""
ANSWER_S = 60.0
"""How long the store may be silent; a backup of years is one long answer."""
METADATA = ("kv", "sql", "buckets")
_SQLITE = b"SQLite format 3\x00"
_CHUNK_BYTES = 1 << 20


class BackupError(OnestreetError):
    """A backup cannot be made, or is not what was written."""


class Contents(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`backup.json`."""

    v: int = 1
    at: datetime
    files: dict[str, str]
    """SHA-256 by name."""


class _Shard(msgspec.Struct, frozen=True):
    id: int


class _ShardGroup(msgspec.Struct, frozen=True):
    shards: list[_Shard]
    end: datetime = msgspec.field(name="endTime")
    deleted_at: datetime | None = msgspec.field(name="deletedAt", default=None)


class _Policy(msgspec.Struct, frozen=True):
    groups: list[_ShardGroup] = msgspec.field(name="shardGroups")
    kept_ns: int = msgspec.field(name="duration")
    """0 is for ever."""

    def is_over(self, group: _ShardGroup) -> bool:
        """Whether InfluxDB deletes a group, or has done so: there is no restoring into it then."""
        age = datetime.now(UTC) - group.end
        return bool(self.kept_ns) and age > timedelta(microseconds=self.kept_ns // 1000)


class _Manifest(msgspec.Struct, frozen=True):
    """What InfluxDB says of a bucket; only what is needed of it."""

    policies: list[_Policy] = msgspec.field(name="retentionPolicies")


# ---------------------------------------------------------------------------------------------------------- backup


def back_up(office: Path, into: Path, *, url: str = "") -> Path:
    """Write a backup to a new folder in `into`, named after the moment (UTC), and return it.

    Shape: `url` (`https://HOST:PORT`) is how the store is reached from here, where that is another
        way than the town files say.
    Raises: BackupError, StoreError, ConfigError; what was half written is gone then.
    """
    now = datetime.now(UTC).replace(microsecond=0)
    done = into / f"{now:%Y%m%dT%H%M%SZ}"
    half = into / f".{done.name}.half"
    check_office(office)
    with locked(make_folder(into)):
        for broken_off in into.glob(".*.half"):  # by a kill; as secret as a whole one
            shutil.rmtree(broken_off)
        if done.exists():
            raise BackupError(f"{done} is there already")
        _fill(half, office, url, now)
        half.rename(done)
    return done


def _fill(half: Path, office: Path, url: str, now: datetime) -> None:
    make_folder(half)
    try:
        bucket = _bucket(read_towns((office / "towns").glob("*.toml")))
        if bucket is not None:
            asyncio.run(_save_store(office, url or bucket.url, make_folder(half / "store")))
        _save_sqlite(office, half / "sqlite")
        with locked(office):
            _copy_office(office, half / "office")
        files = {name: _digest(half / name) for name in sorted(_names(half))}
        contents = msgspec.json.encode(Contents(at=now, files=files))
        (half / CONTENTS).write_bytes(msgspec.json.format(contents, indent=1) + b"\n")
        _make_durable(half)
    except BaseException:
        shutil.rmtree(half, ignore_errors=True)
        raise


def check(backup: Path) -> Contents:
    """Return what a backup holds, every file compared with its digest. Raises: BackupError."""
    try:
        contents = msgspec.json.decode((backup / CONTENTS).read_bytes(), type=Contents)
    except (OSError, msgspec.DecodeError) as error:
        raise BackupError(f"{backup / CONTENTS}: not a backup: {error}") from error
    found = set(_names(backup)) - {CONTENTS}
    for name in sorted(found ^ contents.files.keys()):
        word = "is missing" if name in contents.files else "does not belong to it"
        raise BackupError(f"{backup}: {name} {word}")
    for name, digest in contents.files.items():
        if _digest(backup / name) != digest:
            raise BackupError(f"{backup}: {name} was changed")
    return contents


# --------------------------------------------------------------------------------------------------------- restore


def restore_office(backup: Path, office: Path) -> None:
    """Make the office's folder anew, with what was refused; the rows come by `restore_store`.

    Raises: BackupError, ConfigError when there is an office already.
    """
    check(backup)
    if office.exists() and any(office.iterdir()):
        raise ConfigError("command line", "into", str(office), "must be new or empty")
    make_folder(office).chmod(0o700)
    (office / RESTORING).touch()
    for part in ("office", "sqlite"):
        for name in _names(backup / part) if (backup / part).exists() else ():
            target = office / name
            make_folder(target.parent)
            shutil.copyfile(backup / part / name, target)
            target.chmod((backup / part / name).stat().st_mode & 0o777)
    _make_durable(office)
    (office / RESTORING).unlink()


def restore_store(backup: Path, office: Path, *, url: str = "") -> None:
    """Bring organisations, buckets, authorizations and rows into an InfluxDB that was never set up.

    Shape: `url` as in `back_up`.
    Raises: BackupError, StoreError, ConfigError.
    """
    check(backup)
    bucket = _bucket(read_towns((office / "towns").glob("*.toml")))
    if bucket is None or not (backup / "store").exists():
        raise BackupError(f"{backup} and {office} have no InfluxDB in common")
    asyncio.run(_load_store(office, bucket, url or bucket.url, backup / "store"))


# ----------------------------------------------------------------------------------------------------------- files


def _names(folder: Path) -> Iterator[str]:
    """Every file below a folder, by its name from there."""
    return (str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())


def _copy_office(office: Path, into: Path) -> None:
    passing = {path for pattern in PASSING for path in office.glob(pattern)}
    for name in _names(office):
        source = office / name
        if passing.isdisjoint({source, *source.parents}):
            make_folder((into / name).parent)
            shutil.copyfile(source, into / name)
            (into / name).chmod(source.stat().st_mode & 0o777)


def _save_sqlite(office: Path, into: Path) -> None:
    """Copy each SQLite file of the services as it is at one moment, whoever writes to it."""
    for source in sorted(office.glob("services/*/data/*")):
        if not source.is_file():
            continue
        with source.open("rb") as file:
            if file.read(len(_SQLITE)) != _SQLITE:
                continue
        target = into / source.relative_to(office)
        make_folder(target.parent)
        try:
            with (
                closing(sqlite3.connect(f"{source.absolute().as_uri()}?mode=ro", uri=True)) as live,
                closing(sqlite3.connect(target)) as copy,
            ):
                live.backup(copy)
                [(verdict,)] = copy.execute("PRAGMA integrity_check(1)")
        except sqlite3.Error as error:
            raise BackupError(f"{source}: {error}") from error
        if verdict != "ok":
            raise BackupError(f"{source}: {verdict}")
        target.chmod(0o600)


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _make_durable(folder: Path) -> None:
    for path in (*folder.rglob("*"), folder):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


# -------------------------------------------------------------------------------------------------------- InfluxDB


def _bucket(towns: Sequence[Town]) -> Bucket | None:
    return next((town.store.bucket for town in towns if town.store.bucket), None)


async def _save_store(office: Path, url: str, into: Path) -> None:
    async with _server(office, url) as server:
        async with server.get("/api/v2/backup/metadata") as answer:
            await _check(answer)
            parts = aiohttp.MultipartReader.from_response(answer)
            while (part := await parts.next()) is not None:
                name = str(getattr(part, "name", ""))
                if name not in METADATA or not isinstance(part, aiohttp.BodyPartReader):
                    raise StoreError(f"{url}: its backup has a part that is unknown: {name!r}")
                await _write(into / name, _body(part))
        for shard in _shards(into):
            async with server.get(f"/api/v2/backup/shards/{shard}") as answer:
                if answer.status == HTTPStatus.NOT_FOUND:  # its time was up meanwhile
                    continue
                await _check(answer)
                await _write(into / f"shard-{shard}", answer.content.iter_chunked(_CHUNK_BYTES))


async def _load_store(office: Path, bucket: Bucket, url: str, saved: Path) -> None:
    async with _server(office, url) as server:
        async with server.get("/api/v2/setup") as answer:
            await _check(answer)
            if not (await answer.json())["allowed"]:
                raise StoreError(f"{url}: was set up before; restore into one that never was")
        asked = {
            "username": "restoring",  # until the next call brings the real ones
            "password": _secret(office / "store" / "admin.token")[:70],
            "org": bucket.org,
            "bucket": bucket.bucket,
            "token": _secret(office / "store" / "admin.token"),
        }
        async with server.post("/api/v2/setup", json=asked) as answer:
            await _check(answer)
        for name in ("kv", "sql"):
            await _send(server, f"/api/v2/restore/{name}", saved / f"{name}.gz")
        for shard in _shards(saved):
            file = saved / f"shard-{shard}.gz"
            if file.exists():
                await _send(server, f"/api/v2/restore/shards/{shard}", file)


@asynccontextmanager
async def _server(office: Path, url: str) -> AsyncIterator[aiohttp.ClientSession]:
    """Ask the store as its administrator. Raises: StoreError for whatever goes wrong with that."""
    folder = office / "store"
    tls: ssl.SSLContext | bool = True
    if url.startswith("https:"):
        tls = Tls(ca_file=folder / "ca.pem").context(str(folder), "store")
    headers = {"Authorization": f"Token {_secret(folder / 'admin.token')}"}
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=ANSWER_S)
    try:
        async with aiohttp.ClientSession(
            url, connector=aiohttp.TCPConnector(ssl=tls), headers=headers, timeout=timeout
        ) as session:
            yield session
    except (aiohttp.ClientError, TimeoutError, OSError, msgspec.DecodeError) as error:
        raise StoreError(f"{url}: {str(error) or type(error).__name__}") from error


def _secret(file: Path) -> str:
    check_private(str(file), "file", file)
    try:
        return file.read_text(encoding="utf-8").strip()
    except OSError as error:
        allowed = f"must hold the token of the store's administrator: {error.strerror}"
        raise ConfigError(str(file), "file", None, allowed) from error


def _shards(saved: Path) -> Iterator[int]:
    """Yield the shards that the saved metadata names, but for those whose time is up when their turn comes."""
    buckets = gzip.decompress((saved / "buckets.gz").read_bytes())
    return (
        shard.id
        for manifest in msgspec.json.decode(buckets, type=list[_Manifest])
        for policy in manifest.policies
        for group in policy.groups
        if group.deleted_at is None and not policy.is_over(group)
        for shard in group.shards
    )


async def _body(part: aiohttp.BodyPartReader) -> AsyncIterator[bytes]:
    while not part.at_eof():
        yield await part.read_chunk(_CHUNK_BYTES)


async def _write(file: Path, content: AsyncIterable[bytes]) -> None:
    """Write a body as it comes, packed: shards shrink a lot."""
    handle = os.open(f"{file}.gz", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as raw, gzip.open(raw, "wb", compresslevel=1) as target:
        async for data in content:
            await asyncio.to_thread(target.write, data)


async def _send(server: aiohttp.ClientSession, path: str, file: Path) -> None:
    headers = {"Content-Type": "application/octet-stream", "Content-Encoding": "gzip"}
    with file.open("rb") as body:
        async with server.post(path, data=body, headers=headers) as answer:
            await _check(answer)


async def _check(answer: aiohttp.ClientResponse) -> None:
    """Check that the store did as asked. Raises: StoreError."""
    if not answer.ok:
        said = (await answer.text(errors="replace"))[:300]
        raise StoreError(f"{answer.url}: HTTP {answer.status}: {said}")
