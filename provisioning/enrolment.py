"""Enrolment, the town's side: one-time codes, and what a gateway gets for one.

Only a digest of a code's secret is kept, in `enrolment/codes.json`. A code belongs to one gateway and is good for one
key: when its answer was lost on the way, the same key may ask again for a quarter of an hour and gets the same
certificate; another key never does. The certificate is signed, then the code is marked as used on disk, and then
the answer leaves: killed at any moment, the town has answered nobody without knowing it afterwards.
"""

from __future__ import annotations

import hmac
import secrets
from datetime import UTC, datetime, timedelta
from io import BytesIO, StringIO
from pathlib import Path

import msgspec
import segno

from exchange.configuration import check_private
from exchange.enrolment import (
    BrokerAddress,
    Code,
    EnrolmentRefused,
    Grant,
    Request,
    new_code,
    secret_digest,
)
from exchange.errors import ConfigError
from exchange.states import Label, Location
from provisioning import kept_configurations
from provisioning.access import gateway_user
from provisioning.authority import issuer_of, names_of, requested_key
from provisioning.broker import password_hash, read_passwords, written_passwords
from provisioning.files import write_private
from provisioning.office import Office

DAYS = 7.0
AGAIN = timedelta(minutes=15)
"""How long the key that used a code may ask again."""
KEPT = timedelta(days=30)
"""How long after its end a code is told from one that never was."""


class Entry(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A code, by the digest of its secret. `key` is the digest of the key that used it."""

    county: str
    gateway: str
    expires: datetime
    used: datetime | None = None
    key: str = ""
    certificate: str = ""
    salt: str = ""
    """Of a gateway with a password; wiped when nobody may ask for the password again."""

    @property
    def name(self) -> str:
        """Whose it is."""
        return f"{self.county}/{self.gateway}"


class Codes(msgspec.Struct, kw_only=True):
    """The file."""

    v: int = 1
    codes: dict[str, Entry] = {}


def add_code(
    office: Office, county: str, gateway: str, *, address: str = "", days: float = DAYS
) -> Code:
    """Make a gateway's code; earlier ones of the same gateway that nobody used are gone.

    The broker has to be reloaded after this for a gateway with a password: its old one is replaced.

    Shape: `address` is where gateways reach the service, `HOST[:PORT]`; the broker's host unless given.
    Raises: ConfigError when the town has no such gateway, it was revoked, or the address is not in
        the service's certificate.
    """
    found = office.gateway(county, gateway)
    if office.is_revoked(county, gateway):
        raise ConfigError("command line", "gateway", gateway, "was revoked: add it again first")
    certificate = (office.folder / "enrolment" / "server.pem").read_bytes()
    issuer = issuer_of(certificate, office.authority.certificate)
    if issuer is None:
        allowed = "must be signed by the office's authority: `onestreet town init` repairs it"
        raise ConfigError("enrolment", "server.pem", "of another authority", allowed)
    try:
        code = new_code(address or office.town(county).broker.host, issuer)
    except EnrolmentRefused as error:
        raise ConfigError("command line", "enrolment", address, error.detail) from error
    if code.host not in {name.lower() for name in names_of(certificate)}:
        allowed = (
            "must be broker.host or one of broker.names: the service's certificate is for those"
        )
        raise ConfigError("command line", "enrolment", code.host, allowed)
    now = datetime.now(UTC).replace(microsecond=0)
    entry = Entry(county=county, gateway=gateway, expires=now + timedelta(days=days))
    if found.credential == "password":
        entry.salt = secrets.token_hex(32)
        _keep_password(office, entry, _password(entry, code.secret))
    codes = read_codes(office.folder)
    codes.codes = {
        digest: one
        for digest, one in codes.codes.items()
        if now < one.expires + KEPT and (one.used or one.name != entry.name)
    }
    codes.codes[code.digest] = entry
    _write_codes(office.folder, codes)
    return code


def forget_codes(office: Office, county: str, gateway: str) -> None:
    """Make a gateway's codes worthless, whatever becomes of it; before it is revoked."""
    codes, name = read_codes(office.folder), f"{county}/{gateway}"
    codes.codes = {digest: one for digest, one in codes.codes.items() if one.name != name}
    _write_codes(office.folder, codes)


def grant(office: Office, request: Request, *, now: datetime | None = None) -> Grant:
    """Return what a gateway gets for its code, which is used from then on.

    Raises: EnrolmentRefused; AuthorityError when the signing request is no good, which uses no code
        up; ConfigError when a file of the office is not as it must be.
    """
    now = now or datetime.now(UTC)
    key, secret = requested_key(request.request.encode()), bytes.fromhex(request.secret)
    codes = read_codes(office.folder)
    entry = codes.codes.get(secret_digest(secret))
    if entry is None:
        raise EnrolmentRefused("unknown")
    if entry.used is None and entry.expires <= now:
        raise EnrolmentRefused("expired", entry.name)
    if entry.used is not None and not (entry.key == key and now < entry.used + AGAIN):
        raise EnrolmentRefused("used", entry.name)
    try:
        credential = office.gateway(entry.county, entry.gateway).credential
    except ConfigError as error:
        raise EnrolmentRefused("withdrawn", entry.name) from error
    # What a gateway gets is settled when its code is made; its file may say something else by now.
    if office.is_revoked(entry.county, entry.gateway) or (credential == "password") != bool(
        entry.salt
    ):
        raise EnrolmentRefused("withdrawn", entry.name)
    password = _password(entry, secret) if entry.salt else ""
    kept_configurations.kept(
        office, entry.county, entry.gateway
    )  # one that is damaged uses no code up
    if entry.used is None:
        if not password:
            signed = office.sign_gateway(entry.county, entry.gateway, request.request.encode())
            entry.certificate = signed.decode()
        entry.used, entry.key = now, key
        _write_codes(office.folder, codes)
    return _granted(office, entry, password)


def _granted(office: Office, entry: Entry, password: str) -> Grant:
    town, gateway = office.town(entry.county), office.gateway(entry.county, entry.gateway)
    site = next(one for one in town.sites if one.id == gateway.site)
    label = gateway.label or site.label
    return Grant(
        county=town.county,
        site=gateway.site,
        gateway=gateway.id,
        broker=BrokerAddress(
            host=town.broker.host,
            port=town.broker.password_port if password else town.broker.port,
            username=gateway_user(town.county, gateway.id),
        ),
        ca=office.authority.certificate.decode(),
        certificate=entry.certificate,
        password=password,
        label=Label(en=label.en, zh_tw=label.zh_tw),
        location=Location(lat=site.location.lat, lon=site.location.lon),
        township=site.township,
        intervals=town.intervals,
        files=kept_configurations.kept(office, entry.county, entry.gateway),
    )


# -------------------------------------------------------------------------------------------------------- pictures


def picture(code: Code, kind: str) -> bytes:
    """Return the code's QR as `svg` or `png`."""
    out = BytesIO()
    segno.make(code.text, error="m", micro=False).save(out, kind=kind, scale=8)
    return out.getvalue()


def terminal_picture(code: Code) -> str:
    """Return the code's QR in block characters."""
    out = StringIO()
    segno.make(code.text, error="m", micro=False).terminal(out, compact=True)
    return out.getvalue()


# ---------------------------------------------------------------------------------------------- passwords and file


def _password(entry: Entry, secret: bytes) -> str:
    """Return the password that belongs to a code. Neither the code, seen later, nor the file alone gives it.

    So the broker knows its hash from the day of the code on, and need not be told anything when a
    gateway enrols; and the password itself is kept nowhere.
    """
    return hmac.new(bytes.fromhex(entry.salt), secret, "sha256").hexdigest()


def _keep_password(office: Office, entry: Entry, password: str) -> None:
    """Have the broker know a password, in place of one that was laid out."""
    laid = office.gateway_folder(entry.county, entry.gateway) / "password"
    laid.unlink(missing_ok=True)
    file = office.folder / "broker" / "passwords"
    hashes = read_passwords(file.read_text(encoding="utf-8"))
    hashes[gateway_user(entry.county, entry.gateway)] = password_hash(password)
    write_private(file, written_passwords(hashes))


def read_codes(folder: Path) -> Codes:
    """Return an office's codes. Raises: ConfigError when others may read them, or it is damaged."""
    file = folder / "enrolment" / "codes.json"
    check_private(str(file.parent), "codes.json", file)
    try:
        return msgspec.json.decode(file.read_bytes(), type=Codes)
    except FileNotFoundError:
        return Codes()
    except (OSError, msgspec.MsgspecError) as error:
        allowed = "must be the list of codes that `onestreet town` keeps"
        raise ConfigError(str(file), "file", str(error), allowed) from error


def _write_codes(folder: Path, codes: Codes) -> None:
    now = datetime.now(UTC)
    for entry in codes.codes.values():
        if entry.used is not None and entry.used + AGAIN <= now:
            entry.salt = ""
    text = msgspec.json.format(msgspec.json.encode(codes), indent=1)
    write_private(folder / "enrolment" / "codes.json", text)
