"""The office: the folder that holds a broker's towns, keys, accounts and configuration.

    towns/{county}.toml                 what all the rest is made from
    ca/                                 the authority; its key never leaves this folder
    broker/                             Mosquitto runs in here
    services/{ingest,watch,rollups,grafana,APPLICATION}/
    services/ingest/worker-2/           what a further worker connects with; of one that is no more it may be
                                        deleted once ingest has said that its session is emptied
    store/                              the certificate of InfluxDB
    enrolment/                          the service that takes installers' codes
    gateways/{county}/{gateway}/        what a gateway needs; may be deleted once it is there
    configurations/{county}/{gateway}/  edge.toml and its inventories, which a gateway gets with its code

Every file is written whole, and every command makes again what is missing, so that one that was killed is
repaired by the next. One command at a time.
"""

from __future__ import annotations

import io
import os
import re
import secrets
import shutil
import signal
import stat
import tarfile
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath

import msgspec

from exchange.configuration import TomlFile, check_private, secret, toml_table, toml_value
from exchange.errors import ConfigError, OnestreetError
from exchange.folder_lock import locked
from exchange.towns import Gateway, Site, Town, read_town, read_towns
from provisioning import broker
from provisioning.access import access_rules, application_user, gateway_user
from provisioning.authority import (
    Authority,
    Issued,
    Kind,
    fits,
    is_key,
    names_of,
    new_key,
    serial_of,
)
from provisioning.files import make_folder, write_private, write_public
from provisioning.store import Place, places

_WORKER_FOLDER = re.compile(r"worker-([2-9]|[1-9][0-9]+)")
_MADE = "# Made by `onestreet town` from towns/*.toml: what is changed here is lost with the next command."
_TLS = {"ca_file": "ca.pem", "certificate_file": "certificate.pem", "key_file": "key.pem"}
SERVERS = ("broker", "store", "enrolment")
RESTORING = ".restoring"
"""In an office while it is restored: half of one would have a new authority, or forget towns."""


class OfficeError(OnestreetError):
    """The office cannot do what was asked."""


class Office:
    """An office that is open: nobody else writes to it. Use `opened` or `init`."""

    def __init__(self, folder: Path, passphrase: bytes | None) -> None:
        """Read towns and authority. Raises: ConfigError."""
        self.folder = folder
        self.towns = read_towns((folder / "towns").glob("*.toml"))
        self.authority = Authority.load(folder / "ca", passphrase)
        self.gateway_days: int | None = None
        """How long certificates of gateways are valid, if not for the usual time."""
        self._passphrase = passphrase

    @property
    def places(self) -> list[Place]:
        """The stores, each with the towns that it holds; an ingest and a watch for each."""
        return places(self.towns)

    @property
    def broker_names(self) -> list[str]:
        """What the broker's certificate is for."""
        settings = self.towns[0].broker
        return list(dict.fromkeys([settings.host, *settings.names, "localhost", "broker"]))

    def town(self, county: str) -> Town:
        """Return a county's town. Raises: ConfigError."""
        for town in self.towns:
            if town.county == county:
                return town
        known = ", ".join(town.county for town in self.towns)
        raise ConfigError(str(self.folder / "towns"), "county", county, f"one of {known}")

    def gateway(self, county: str, gateway: str) -> Gateway:
        """Return a gateway. Raises: ConfigError."""
        for one in self.town(county).gateways:
            if one.id == gateway:
                return one
        known = ", ".join(one.id for one in self.town(county).gateways) or "none yet"
        file = self._town_file(county)
        raise ConfigError(str(file), "gateway.id", gateway, f"one of {known}")

    def gateway_folder(self, county: str, gateway: str) -> Path:
        """Return where a gateway's credentials are laid out."""
        return self.folder / "gateways" / county / gateway

    def is_revoked(self, county: str, gateway: str) -> bool:
        """Whether it was revoked, and not added again."""
        return (self.gateway_folder(county, gateway) / "revoked").exists()

    # ------------------------------------------------------------------------------------------------ making

    def regenerate(self, *, hand_out: bool = False) -> list[Issued]:
        """Make every file that is missing or not as the towns say; return what was revoked by that.

        Shape: `hand_out` makes keys and passwords for gateways that have none, too; without it they
        wait to be enrolled.
        """
        revoked = self.authority.revoke_superseded()
        expected = self._expected_users()
        for one in self.authority.all_valid():
            if one.kind == "client" and one.name not in expected:
                revoked += self.authority.revoke(one.serial)
        self._write_services()
        for town in self.towns:
            for gateway in town.gateways:
                self._write_gateway(town, gateway, hand_out)
        self._write_servers()
        self._write_broker()
        return revoked

    def _expected_users(self) -> set[str]:
        """Return the names that may have a client's certificate."""
        users = {f"watch{place.suffix}" for place in self.places}
        users |= {user for place in self.places for user in self._workers(place)}
        for town in self.towns:
            users |= {application_user(one.id) for one in town.applications}
            users |= {
                gateway_user(town.county, one.id)
                for one in town.gateways
                if one.credential == "certificate" and not self.is_revoked(town.county, one.id)
            }
        return users

    def _workers(self, place: Place) -> dict[str, Path]:
        """Return the users of an ingest's workers, each with the folder of its certificate.

        One that is no more keeps its own for as long as its folder is there: what waits in its session
        is still to be stored.
        """
        first = self.folder / "services" / f"ingest{place.suffix}"
        found = [_WORKER_FOLDER.fullmatch(path.name) for path in first.glob("worker-*")]
        kept = [int(match[1]) for match in found if match]
        last = max([place.towns[0].store.workers, *kept])
        further = {
            f"{first.name}.{number}": first / f"worker-{number}" for number in range(2, last + 1)
        }
        return {first.name: first, **further}

    def _write_services(self) -> None:
        services = self.folder / "services"
        for place in self.places:
            for user, folder in self._workers(place).items():
                self._keep_pair(folder, user, "client")
            watch = f"watch{place.suffix}"
            self._keep_pair(services / watch, watch, "client")
            for name in ("ingest", "watch", "rollups"):
                user = f"{name}{place.suffix}"
                make_folder(services / user / "data")
                write_public(services / user / "ca.pem", self.authority.certificate)
                write_public(services / user / "ingest.toml", self._service_file(name, place))
        for town in self.towns:
            for one in town.applications:
                self._keep_pair(services / one.id, application_user(one.id), "client")

    def _service_file(self, name: str, place: Place) -> str:
        """Return the configuration of an ingest, of its watch or of its rollups, which share the store."""
        settings, store = self.towns[0].broker, place.towns[0].store.url
        file = PurePosixPath(store.removeprefix("sqlite:///"))
        if store.startswith("sqlite:") and name != "ingest" and not file.is_absolute():
            store = f"sqlite:///../ingest{place.suffix}/{file}"
        top: dict[str, object] = {"counties": [one.county for one in place.towns], "store": store}
        if not store.startswith("sqlite:"):
            top["store_token_file"] = "influx.token"  # noqa: S105 - a file's name
            if name != "ingest":
                top["store_read_token_file"] = "influx.read.token"  # noqa: S105 - the same
        if store.startswith("influxdbs:"):
            top["store_ca_file"] = "ca.pem"
        further: list[str] = []
        tls = _TLS
        if name == "rollups":  # which connect to no broker, but the file has to say how
            tls = {key: f"../watch{place.suffix}/{file_}" for key, file_ in _TLS.items()}
        if name == "ingest":
            top["workers"] = place.towns[0].store.workers
            further = [folder.name for folder in self._workers(place).values()][1:]
        tables = [
            toml_table(_MADE, **top),
            toml_table(
                "[broker]",
                host=settings.host,
                port=settings.service_port,
                client_id=name + place.suffix,
                tls=tls,
            ),
            toml_table("[timezones]", **{one.county: one.timezone for one in place.towns}),
            toml_table("[quarantine]", path="data/quarantine.sqlite"),
            *(
                toml_table("[[worker]]", tls={key: f"{own}/{file}" for key, file in _TLS.items()})
                for own in further
            ),
        ]
        if name == "rollups":
            tables += _rollups(place.towns)
        return "\n".join(tables)

    def _write_gateway(self, town: Town, gateway: Gateway, hand_out: bool) -> None:
        """Lay a gateway's credentials out, if it has none; what was handed over stays away."""
        folder = self.gateway_folder(town.county, gateway.id)
        user = gateway_user(town.county, gateway.id)
        if self.is_revoked(town.county, gateway.id):
            for name in ("key.pem", "certificate.pem", "password"):
                (folder / name).unlink(missing_ok=True)
            return
        by_key = gateway.credential == "certificate"
        has = bool(self.authority.valid(user)) if by_key else user in self._passwords()
        if not folder.exists() and (has or not hand_out):
            return
        make_folder(folder)
        if not by_key:
            if not (folder / "password").exists() and not has:
                write_private(folder / "password", secrets.token_urlsafe(24))
            write_public(folder / "ca.pem", self.authority.certificate)
        else:
            self._keep_pair(folder, user, "client", days=self.gateway_days)
        write_public(folder / "broker.toml", self.broker_table(town.county, gateway.id))

    def broker_table(self, county: str, gateway: str) -> str:
        """Return the table `broker` of a gateway's edge.toml; files are beside it."""
        place = {"county": county, "site": self.gateway(county, gateway).site, "id": gateway}
        head = f"# In edge.toml, [gateway]: {toml_value(place)}\n[broker]"
        return toml_table(head, **self.broker_keys(county, gateway))

    def broker_keys(self, county: str, gateway: str) -> dict[str, object]:
        """Return what stands in that table."""
        settings, one = self.town(county).broker, self.gateway(county, gateway)
        if one.credential == "certificate":
            return {"host": settings.host, "port": settings.port, "tls": _TLS}
        return {
            "host": settings.host,
            "port": settings.password_port,
            "username": gateway_user(county, gateway),
            "password_file": "password",
            "tls": {"ca_file": "ca.pem"},
        }

    def _write_servers(self) -> None:
        names = self.broker_names
        self._keep_server(self.folder / "broker", "broker", names)
        self._keep_server(self.folder / "enrolment", "enrolment", names)
        urls = [town.store.bucket for town in self.towns if town.store.url.startswith("influxdbs:")]
        hosts = [
            bucket.url.removeprefix("https://").rpartition(":")[0].strip("[]")
            for bucket in urls
            if bucket is not None
        ]
        if hosts:
            self._keep_server(
                self.folder / "store", "store", [*dict.fromkeys(hosts), "localhost", "store"]
            )

    def _write_broker(self) -> None:
        folder = self.folder / "broker"
        make_folder(folder / "data")
        wanted = self._passwords()
        write_private(folder / "passwords", broker.written_passwords(wanted))
        here = [
            (
                list(self._workers(place)),
                f"watch{place.suffix}",
                [town.county for town in place.towns],
            )
            for place in self.places
        ]
        write_public(folder / "acl", access_rules(self._open_towns(), here))
        write_public(folder / "crl.pem", self.authority.crl())
        owner = folder.stat().st_uid  # whoever runs this command
        write_public(folder / "mosquitto.conf", broker.configuration(self.towns[0].broker, owner))

    def _open_towns(self) -> list[Town]:
        """Return the towns without the gateways that were revoked."""
        return [
            _with_gateways(
                town, [one for one in town.gateways if not self.is_revoked(town.county, one.id)]
            )
            for town in self.towns
        ]

    def _passwords(self) -> dict[str, str]:
        """Return the hashes that hold: of a password laid out, else the one that is there."""
        file = self.folder / "broker" / "passwords"
        held = broker.read_passwords(file.read_text()) if file.exists() else {}
        hashes = {}
        for town in self._open_towns():
            for gateway in town.gateways:
                if gateway.credential != "password":
                    continue
                user = gateway_user(town.county, gateway.id)
                laid = self.gateway_folder(town.county, gateway.id) / "password"
                hashed = held.get(user)
                if laid.exists():
                    word = secret(str(laid.parent), "gateway", laid, None) or ""
                    if hashed is None or not broker.password_fits(word, hashed):
                        hashed = broker.password_hash(word)
                if hashed is not None:
                    hashes[user] = hashed
        return hashes

    def _keep_server(
        self, folder: Path, name: str, names: Sequence[str], *, renew: bool = False
    ) -> None:
        self._keep_pair(
            folder, name, "server", names, files=("server.key", "server.pem"), renew=renew
        )

    def _keep_pair(
        self,
        folder: Path,
        user: str,
        kind: Kind,
        names: Sequence[str] = (),
        *,
        files: tuple[str, str] = ("key.pem", "certificate.pem"),
        days: int | None = None,
        renew: bool = False,
    ) -> None:
        """Have a key and its certificate in a folder, and whom to believe."""
        key_file, certificate_file = (folder / name for name in files)
        check_private(str(key_file), "file", key_file)
        write_public(folder / "ca.pem", self.authority.certificate)
        key, certificate = _read(key_file), _read(certificate_file)
        sound = fits(key, certificate)
        if sound and not renew:
            known = {one.serial for one in self.authority.valid(user)}
            if serial_of(certificate) in known and names_of(certificate) == set(names):
                return
        self.authority.supersede(user)
        if renew or not is_key(key):
            key = new_key()
        write_private(key_file, key)
        _, certificate = self.authority.issue(
            user,
            kind,
            names=names,
            days=days,
            key_pem=key,
            by_previous=kind == "server",  # a gateway may not have heard of a new CA yet
        )
        write_public(certificate_file, certificate)

    # ------------------------------------------------------------------------------------------------ changing

    def add_gateway(
        self,
        county: str,
        gateway: str,
        site: str,
        *,
        credential: str = "certificate",
        hand_out: bool = True,
    ) -> None:
        """Add a gateway to its town's file, or open the door again to one that was revoked. Raises: ConfigError."""
        if any(one.id == gateway for one in self.town(county).gateways):
            self._reopen(county, gateway, site)
        else:
            more = {} if credential == "certificate" else {"credential": credential}
            table = toml_table("[[gateway]]", id=gateway, site=site, **more)
            text = self._town_file(county).read_text(encoding="utf-8").rstrip("\n")
            self._replace_town(county, f"{text}\n\n{table}")
        if hand_out:
            make_folder(self.gateway_folder(county, gateway))  # one that is there is filled
        self.regenerate()

    def rename_gateway(self, county: str, old: str, new: str) -> None:
        """Have a gateway go by another name in its town's file; what the old name had is revoked and gone.

        Raises: ConfigError when the name is no good, or taken, or the file is to be changed by hand.
        """
        number = self.town(county).gateways.index(self.gateway(county, old))
        file = self._town_file(county)
        lines = file.read_text(encoding="utf-8").split("\n")
        line = TomlFile(file).line_of(f"gateway[{number}].id") or 0
        written = rf"""(\bid["']?\s*=\s*)(["']){re.escape(old)}\2"""
        lines[line - 1], changed = re.subn(written, rf'\g<1>"{new}"', lines[line - 1])
        if changed != 1:
            allowed = f'must stand there as id = "{old}" to be changed to {new}'
            raise ConfigError(str(file), f"gateway[{number}].id", old, allowed, line=line)
        self._replace_town(county, "\n".join(lines))
        shutil.rmtree(self.gateway_folder(county, old), ignore_errors=True)

    def admit_gateway(self, county: str, gateway: str, *, hand_out: bool) -> None:
        """Open the door to a gateway of its town's file that was revoked, or is new there. Raises: ConfigError."""
        self.gateway(county, gateway)
        if self.is_revoked(county, gateway):
            shutil.rmtree(self.gateway_folder(county, gateway))
        if hand_out:
            make_folder(self.gateway_folder(county, gateway))
        self.regenerate()

    def _reopen(self, county: str, gateway: str, site: str) -> None:
        one, file = self.gateway(county, gateway), str(self._town_file(county))
        if site and one.site != site:
            raise ConfigError(file, "gateway.site", site, f"{gateway} is at {one.site}")
        if not self.is_revoked(county, gateway):
            allowed = "is there already; to give it a new key or password: onestreet town rotate"
            raise ConfigError(file, "gateway.id", gateway, allowed)
        shutil.rmtree(self.gateway_folder(county, gateway))

    def _replace_town(self, county: str, text: str) -> None:
        """Write a town's file, if it is right."""
        file = self._town_file(county)
        others = [path for path in (self.folder / "towns").glob("*.toml") if path != file]
        with tempfile.TemporaryDirectory() as folder:
            tried = Path(folder) / file.name
            tried.write_text(text, encoding="utf-8")
            try:
                towns = read_towns([*others, tried])
            except ConfigError as error:
                raise ConfigError(str(file), error.key, error.value, error.allowed) from None
        write_public(file, text)
        self.towns = towns

    def revoke_gateway(self, county: str, gateway: str) -> list[Issued]:
        """Close every door to a gateway, now and until it is added again; return its certificates."""
        self.gateway(county, gateway)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        write_public(self.gateway_folder(county, gateway) / "revoked", f"{now}\n")
        return self.regenerate()

    def sign_gateway(self, county: str, gateway: str, request_pem: bytes) -> bytes:
        """Return a certificate for a gateway's own key; what it had before is superseded.

        Raises: ConfigError, OfficeError when it may have none, AuthorityError when the request is no good.
        """
        self.check_open(county, gateway, "certificate")
        user = gateway_user(county, gateway)
        certificate = self.authority.sign_request(request_pem, user, days=self.gateway_days)
        self.authority.supersede(user, keep=serial_of(certificate))
        return certificate

    def has_password(self, county: str, gateway: str) -> bool:
        """Whether the broker knows a password of a gateway."""
        return gateway_user(county, gateway) in self._passwords()

    def check_open(self, county: str, gateway: str, credential: str = "") -> None:
        """Check that a gateway may have credentials, of a kind. Raises: ConfigError, OfficeError."""
        one = self.gateway(county, gateway)
        if credential and one.credential != credential:
            raise OfficeError(f"{county}/{gateway} goes by {one.credential}, not {credential}")
        if self.is_revoked(county, gateway):
            raise OfficeError(f"{county}/{gateway} was revoked: add it again first")

    def rotate_gateway(self, county: str, gateway: str, *, at_once: bool = False) -> None:
        """Lay a new key and certificate, or a new password, out for a gateway.

        Shape: without `at_once` the old certificate is valid for some days more.
        """
        self.check_open(county, gateway)
        folder = make_folder(self.gateway_folder(county, gateway))
        if self.gateway(county, gateway).credential == "password":
            write_private(folder / "password", secrets.token_urlsafe(24))
        else:
            user = gateway_user(county, gateway)
            self._keep_pair(folder, user, "client", days=self.gateway_days, renew=True)
        self._end_overlap(gateway_user(county, gateway), at_once)
        self.regenerate()

    def _end_overlap(self, user: str, at_once: bool) -> None:
        for one in self.authority.valid(user):
            if at_once and one.superseded_until is not None:
                self.authority.revoke(one.serial)

    def rotate_service(self, name: str, *, at_once: bool = False) -> None:
        """Give a service, an application or a server a new key and certificate; an ingest's workers one each.

        Raises: OfficeError.
        """
        services = self.folder / "services"
        clients = {
            one.id: {application_user(one.id): services / one.id}
            for town in self.towns
            for one in town.applications
        }
        for place in self.places:
            watch = f"watch{place.suffix}"
            clients[watch] = {watch: services / watch}
            clients[f"ingest{place.suffix}"] = self._workers(place)
        if name in clients:
            for user, folder in clients[name].items():
                self._keep_pair(folder, user, "client", renew=True)
                self._end_overlap(user, at_once)
        elif name in SERVERS and (self.folder / name / "server.pem").exists():
            names = sorted(names_of((self.folder / name / "server.pem").read_bytes()))
            self._keep_server(self.folder / name, name, names, renew=True)
            self._end_overlap(name, at_once)
        else:
            known = ", ".join(["COUNTY/GATEWAY", "ca", *SERVERS, *sorted(clients)])
            raise OfficeError(f"{name!r} cannot be rotated; one of {known}")
        self.regenerate()

    def rotate_authority(self) -> None:
        """Begin to rotate the CA: what is signed from now on is by the new one; both are believed."""
        self.authority.rotate(_authority_name(self.towns), self._passphrase)
        self.regenerate()

    def retire_authority(self, *, force: bool = False) -> None:
        """End the rotation of the CA. Raises: OfficeError naming gateways that the old one alone vouches for."""
        left = self.left_behind()
        if left and not force:
            raise OfficeError(
                f"only the old authority vouches for {', '.join(left)}: rotate them first"
            )
        self.authority.retire_previous()
        self.regenerate()

    def left_behind(self) -> list[str]:
        """Return the gateways whose certificates are all of a CA that is being rotated out."""
        valid = self.authority.all_valid()
        current = {one.name for one in valid if self.authority.is_current(one)}
        gateways = {
            gateway_user(town.county, one.id) for town in self.towns for one in town.gateways
        }
        return sorted({one.name for one in valid if one.name in gateways} - current)

    def bundle(self, county: str, gateway: str, more: Mapping[str, str] = {}) -> bytes:
        """Return a tar of what a gateway needs, and of `more` files. Raises: OfficeError when nothing is laid out."""
        folder = self.gateway_folder(county, gateway)
        files = [
            folder / name
            for name in ("broker.toml", "ca.pem", "certificate.pem", "key.pem", "password")
        ]
        if not (folder / "broker.toml").exists():
            raise OfficeError(
                f"{folder} holds nothing: it was handed over, or waits to be enrolled; to lay out a new"
                f" key or password: onestreet town rotate {county}/{gateway}"
            )
        target = io.BytesIO()
        with tarfile.open(fileobj=target, mode="w") as tar:
            contents = {file.name: file.read_bytes() for file in files if file.exists()}
            for name, content in (contents | {name: more[name].encode() for name in more}).items():
                about = tarfile.TarInfo(f"{gateway}/{name}")
                about.size, about.mode, about.mtime = len(content), 0o600, int(time.time())
                tar.addfile(about, io.BytesIO(content))
        return target.getvalue()

    def reload_broker(self) -> bool:
        """Have the Mosquitto that runs in this office's folder read its files again; False when none does."""
        folder = self.folder / "broker"
        try:
            pid = int((folder / "data" / "mosquitto.pid").read_text())
            about = Path(f"/proc/{pid}")
            ours = (about / "cwd").samefile(
                folder
            )  # a number of old may be another process' by now
            if not ours or (about / "comm").read_text().strip() != "mosquitto":
                return False
            os.kill(pid, signal.SIGHUP)
        except (OSError, ValueError):
            return False
        return True

    def _town_file(self, county: str) -> Path:
        return self.folder / "towns" / f"{county}.toml"


@contextmanager
def opened(folder: Path, passphrase_file: Path | None = None) -> Iterator[Office]:
    """Open an office, for us alone. Raises: ConfigError, Busy when another command is at work."""
    check_office(folder)
    with locked(folder):
        yield Office(folder, _passphrase(passphrase_file))


@contextmanager
def init(
    files: Iterable[Path], into: Path, passphrase_file: Path | None = None, *, hand_out: bool = True
) -> Iterator[Office]:
    """Make an office, or add towns to one; keys and passwords that are there stay. Yields it, made.

    Raises: ConfigError when a file is wrong, or would forget gateways that the office's own copy has.
    """
    passphrase = _passphrase(passphrase_file)
    given = {file.name: file for file in files}
    for file in given.values():
        read_town(file)
    make_folder(into)
    _check_folder(into)
    with locked(into):
        kept = {file.name: file for file in (into / "towns").glob("*.toml")}
        towns = read_towns((kept | given).values())
        if not towns:
            raise ConfigError("command line", "TOWN.toml", None, "name at least one town's file")
        for name in kept.keys() & given.keys():
            _check_keeps_gateways(kept[name], given[name])
        for name, file in given.items():
            write_public(into / "towns" / name, file.read_bytes())
        if not (into / "ca" / "ca.pem").exists():
            Authority.create(into / "ca", _authority_name(towns), passphrase)
        office = Office(into, passphrase)
        office.regenerate(hand_out=hand_out)
        yield office


def _check_keeps_gateways(kept: Path, given: Path) -> None:
    """Check that a file does not forget what `gateway add` wrote into the office's copy."""
    if kept.resolve() == given.resolve():
        return
    has = {one.id for one in read_town(given).gateways}
    for one in read_town(kept).gateways:
        if one.id not in has:
            allowed = f"{kept} has this gateway; to take it away, delete it there"
            raise ConfigError(str(given), "gateway.id", one.id, allowed)


def check_office(folder: Path) -> None:
    """Check that a folder is an office, whole and private. Raises: ConfigError."""
    if not (folder / "ca" / "ca.pem").exists():
        allowed = "must be an office's folder: onestreet town init TOWN.toml --into DIR makes one"
        raise ConfigError("command line", "into", str(folder), allowed)
    _check_folder(folder)


def _check_folder(folder: Path) -> None:
    about = folder.stat()
    mode = stat.S_IMODE(about.st_mode)
    allowed = ""
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        allowed = f"must be private (chmod 700): its mode is {mode:04o}"
    elif (folder / RESTORING).exists():
        allowed = "holds a restore that was broken off: empty it, and restore again"
    if allowed:
        raise ConfigError("command line", "into", str(folder), allowed)


def _passphrase(file: Path | None) -> bytes | None:
    word = secret("command line", "ca_passphrase", file, None)
    return None if word is None else word.encode()


def _rollups(towns: Sequence[Town]) -> list[str]:
    """Return what rollups read beside the rest: how long rows are kept, and where each site is."""
    kept = towns[0].store
    days = {
        "raw_retention_days": kept.retention_days,
        "retention_days": kept.rollups_retention_days,
    }
    sites = {f"{town.county}/{one.id}": _of_site(one) for town in towns for one in town.sites}
    return [
        toml_table("[rollups]", **{key: value for key, value in days.items() if value}),
        toml_table("[rollups.sites]", **sites),
    ]


def _of_site(site: Site) -> dict[str, object]:
    """Return what rollups go by at a site: where it is, and what its file says of its lamps and stations."""
    said = {
        "lamp_w": site.lamp_w,
        "lamp_watts": site.lamp_watts,
        "burns_by_day": site.burns_by_day,
        "reference_stations": site.reference_stations,
    }
    if site.lamp_w or site.lamp_watts:
        said["lamp_w_uncertainty_percent"] = site.lamp_w_uncertainty_percent
    place = {"lat": site.location.lat, "lon": site.location.lon}
    return place | {key: value for key, value in said.items() if value or value == 0.0}


def _authority_name(towns: Sequence[Town]) -> str:
    return f"onestreet {' '.join(town.county for town in towns)}"


def _with_gateways(town: Town, gateways: list[Gateway]) -> Town:
    return msgspec.structs.replace(town, gateways=gateways)


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        return b""
