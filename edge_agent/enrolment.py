"""Enrolment, the gateway's side: from a one-time code to key, certificate and configuration.

The key is made here and never leaves. Nothing is sent before the service has proved that it is the
town's: the CA certificate comes first, over a connection that believes nobody, and counts only when
the code's fingerprint fits; the secret goes over a second one that believes that CA alone.

A cut of power at any moment costs nothing: the key waits in `next-key.pem` until everything else is in place,
and with it the same code gets the same answer again, for as long as the town allows.
"""

from __future__ import annotations

import http.client
import os
import random
import ssl
import stat
import threading
import time
import tomllib
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from msgspec.structs import replace

from exchange.configuration import check_private, toml_table
from exchange.enrolment import (
    CA_PATH,
    CONFIGURATION,
    ENROL_PATH,
    MAX_ANSWER_BYTES,
    Code,
    EnrolmentDelayed,
    EnrolmentRefused,
    Grant,
    Reason,
    Refusal,
    Request,
    fingerprint,
    read_message,
    with_towns_word,
)
from exchange.errors import ConfigError
from exchange.gateway_paths import STATE

STEP_S = 10.0  # one answer of the network
CALL_S = 25.0  # one call, however slowly it drips
BACKOFF_FIRST_S, BACKOFF_LAST_S = 1.0, 15.0
CLOCK_S = 120.0  # further off than this is worth a word

NEXT_KEY, KEY, CERTIFICATE, CA = "next-key.pem", "key.pem", "certificate.pem", "ca.pem"
PASSWORD, CONFIG, RECORD = "password", CONFIGURATION, "enrolment.json"
_NOT_YET_VALID, _EXPIRED = 9, 10  # X509_V_ERR_CERT_NOT_YET_VALID, X509_V_ERR_CERT_HAS_EXPIRED


class Enrolled(NamedTuple):
    """What came of it. `paste` is for an edge.toml that somebody else wrote and that does not fit yet."""

    name: str
    before: bool
    """This code had enrolled this gateway already; nothing was changed."""
    paste: str
    clock_off_s: float


class _Record(msgspec.Struct, frozen=True, kw_only=True):
    """What enrolled this gateway: a code's digest, and the answer without its password."""

    code: str
    grant: Grant


class _Answer(NamedTuple):
    status: int
    body: bytes
    clock_off_s: float
    """How far our clock is behind the date in the answer."""


def enrol(
    code: Code,
    into: Path,
    *,
    state_dir: Path | None = None,
    patience_s: float = 60.0,
    waiting: Callable[[EnrolmentDelayed], None] = lambda _: None,
) -> Enrolled:
    """Get this gateway's credentials into a folder; the same code again changes nothing.

    Shape: without `state_dir` it is the kept configuration's, if there is one; `waiting` hears why an attempt failed
    that will be repeated.
    Raises: EnrolmentRefused; EnrolmentDelayed when `patience_s` is over; ConfigError for the folder.
    """
    _check_folder(into)
    record = _recorded(into)
    if record and record.code == code.digest and not (into / NEXT_KEY).exists():
        return Enrolled(_name(record.grant), True, _paste(into, record.grant, state_dir), 0.0)
    key = _next_key(into)
    trusted = _patiently(lambda: _authority(code), patience_s, waiting)
    body = msgspec.json.encode(Request(secret=code.secret.hex(), request=_request(key)))
    grant, off_s = _patiently(lambda: _asked(code, trusted, body), patience_s, waiting)
    _check(grant, key)
    return Enrolled(_name(grant), False, _kept(into, code, grant, state_dir), off_s)


# ---------------------------------------------------------------------------------------------------- the service


def _authority(code: Code) -> str:
    """Return the CA certificate of the code's town, in PEM."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # the fingerprint is what is believed
    answer = _call(code, context, "GET", CA_PATH, b"")
    if answer.status != 200:
        raise _unlike(code, answer)
    try:
        found = x509.load_pem_x509_certificates(answer.body)
    except ValueError as error:
        raise EnrolmentRefused("answer", f"{code.address}: no certificate") from error
    for one in found:
        if fingerprint(one.public_bytes(serialization.Encoding.DER)) == code.fingerprint:
            return _pem(one)
    raise EnrolmentRefused("authority", code.address)


def _asked(code: Code, ca: str, body: bytes) -> tuple[Grant, float]:
    """Return what the service grants, and how far our clock is off."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.load_verify_locations(cadata=ca)
    answer = _call(code, context, "POST", ENROL_PATH, body)
    try:
        if answer.status == 200:
            return read_message(answer.body, Grant), answer.clock_off_s
        refusal = read_message(answer.body, Refusal)
    except EnrolmentRefused as error:
        raise _unlike(code, answer) from error
    if refusal.reason == "busy":
        raise EnrolmentDelayed("busy", retry_after_s=refusal.retry_after_s)
    raise EnrolmentRefused(refusal.reason)


def _unlike(code: Code, answer: _Answer) -> EnrolmentDelayed | EnrolmentRefused:
    """Return what an answer means that is none of ours."""
    detail = f"{code.address}: HTTP {answer.status}"
    if answer.status >= 500:
        return EnrolmentDelayed("unreachable", detail)
    return EnrolmentRefused("answer", detail)


def _call(code: Code, context: ssl.SSLContext, method: str, path: str, body: bytes) -> _Answer:
    """Make one call, in a thread that is left behind when its time is up."""
    done: list[_Answer | Exception] = []

    def work() -> None:
        try:
            done.append(_exchanged(code, context, method, path, body))
        except Exception as error:  # noqa: BLE001 - raised again by the caller
            done.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(CALL_S)
    try:
        outcome = done[0] if done else TimeoutError(f"no answer in {CALL_S:g} s")
        if isinstance(outcome, Exception):
            raise outcome
    except ssl.SSLCertVerificationError as error:
        reason: Reason = "clock" if error.verify_code in (_NOT_YET_VALID, _EXPIRED) else "authority"
        now = datetime.now(UTC).isoformat(" ", "seconds")
        detail = f"{error.verify_message}; it is {now} here 本機時間"
        raise EnrolmentRefused(
            reason, detail if reason == "clock" else error.verify_message
        ) from error
    except (OSError, http.client.HTTPException) as error:
        words = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise EnrolmentDelayed("unreachable", f"{code.address}: {words}") from error
    return outcome


def _exchanged(code: Code, context: ssl.SSLContext, method: str, path: str, body: bytes) -> _Answer:
    connection = http.client.HTTPSConnection(code.host, code.port, timeout=STEP_S, context=context)
    try:
        connection.request(method, path, body or None, {"Content-Type": "application/json"})
        response = connection.getresponse()
        found = response.read(MAX_ANSWER_BYTES)
        off_s = 0.0
        with suppress(TypeError, ValueError):  # no date, or none that can be read
            off_s = parsedate_to_datetime(response.headers["Date"]).timestamp() - time.time()
        return _Answer(response.status, found, off_s)
    finally:
        connection.close()


def _patiently(
    call: Callable[[], Any], patience_s: float, waiting: Callable[[EnrolmentDelayed], None]
) -> Any:
    """Call until it is decided or the time is up; every repetition backs off with jitter."""
    end_s, wait_s = time.monotonic() + patience_s, BACKOFF_FIRST_S
    while True:
        try:
            return call()
        except EnrolmentDelayed as error:
            pause_s = max(wait_s * random.uniform(0.5, 1.0), error.retry_after_s)  # noqa: S311 - jitter
            if time.monotonic() + pause_s > end_s:
                raise
            waiting(error)
            threading.Event().wait(pause_s)
        wait_s = min(2 * wait_s, BACKOFF_LAST_S)


# -------------------------------------------------------------------------------------------- key and certificate


def _next_key(into: Path) -> ec.EllipticCurvePrivateKey:
    """Return the key that waits for its certificate; a new one when none does."""
    file = into / NEXT_KEY
    if file.exists():
        check_private("enrol", NEXT_KEY, file)
        with suppress(
            ValueError, TypeError
        ):  # cut off while it was written, by other means than ours
            found = serialization.load_pem_private_key(file.read_bytes(), None)
            if isinstance(found, ec.EllipticCurvePrivateKey):
                return found
    key = ec.generate_private_key(ec.SECP256R1())
    text = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    _write(file, text, 0o600)
    return key


def _request(key: ec.EllipticCurvePrivateKey) -> str:
    """Return the request; the town knows from the code whose it is."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


def _check(grant: Grant, key: ec.EllipticCurvePrivateKey) -> None:
    """Check that the answer is whole and of use. Raises: EnrolmentRefused."""
    try:
        authorities = x509.load_pem_x509_certificates(grant.ca.encode())
        if bool(grant.certificate) == bool(grant.password):
            raise ValueError("neither a certificate nor a password, or both")
        if grant.certificate:
            mine = x509.load_pem_x509_certificate(grant.certificate.encode())
            if mine.public_key() != key.public_key():
                raise ValueError("the certificate is for another key")
            if not any(_is_signed(mine, one) for one in authorities):
                raise ValueError("the certificate is not signed by the town")
    except ValueError as error:
        raise EnrolmentRefused("answer", str(error)) from error


def _is_signed(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


# ------------------------------------------------------------------------------------------------------ the folder


def _check_folder(into: Path) -> None:
    """Check that nobody else can put files there. Raises: ConfigError."""
    try:
        into.mkdir(mode=0o700, parents=True, exist_ok=True)
        mode = stat.S_IMODE(into.stat().st_mode)
    except OSError as error:
        allowed = f"must be a folder that this user may write to: {error.strerror}"
        raise ConfigError("enrol", "--into", str(into), allowed) from error
    if mode & (stat.S_IWGRP | stat.S_IWOTH):
        allowed = f"others must not write there (chmod go-w): its mode is {mode:04o}"
        raise ConfigError("enrol", "--into", str(into), allowed)


def _recorded(into: Path) -> _Record | None:
    try:
        return read_message((into / RECORD).read_bytes(), _Record)
    except (OSError, EnrolmentRefused):
        return None


def _kept(into: Path, code: Code, grant: Grant, state_dir: Path | None) -> str:
    """Put everything in place, the key last, and return what is to be pasted."""
    _write(into / CA, grant.ca.encode(), 0o644)
    if grant.certificate:
        _write(into / CERTIFICATE, grant.certificate.encode(), 0o644)
    else:
        _write(into / PASSWORD, grant.password.encode() + b"\n", 0o600)
    if not (into / CONFIG).exists():
        for name, text in grant.files.items():
            if name != CONFIG:
                _write(into / name, text.encode(), 0o644)
        _write(into / CONFIG, _config(grant, state_dir).encode(), 0o644)
    known = replace(grant, password="", files={})
    _write(into / RECORD, msgspec.json.encode(_Record(code=code.digest, grant=known)), 0o600)
    if grant.certificate:
        (into / NEXT_KEY).replace(into / KEY)
    else:
        (into / NEXT_KEY).unlink()  # it only told this gateway from another with the same code
    return _paste(into, grant, state_dir)


def _write(path: Path, data: bytes, mode: int) -> None:
    """Write a file whole or not at all; root's belong to the folder's owner, who runs the agent."""
    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)
    handle = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(handle, "wb") as file:
        os.fchmod(handle, mode)
        if os.geteuid() == 0:
            owner = path.parent.stat()
            os.fchown(handle, owner.st_uid, owner.st_gid)
        file.write(data)
        file.flush()
        os.fsync(handle)
    new.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


# ----------------------------------------------------------------------------------------------- the configuration


def _tables(grant: Grant, state_dir: Path | None) -> dict[str, dict[str, Any]]:
    """Return what the town knows of edge.toml, by table."""
    gateway: dict[str, Any] = {
        "id": grant.gateway,
        "county": grant.county,
        "site": grant.site,
        "state_dir": str(state_dir or STATE),
    }
    if "gateway" in grant.intervals:
        gateway["interval_s"] = grant.intervals["gateway"]
    for key, value in (("label", grant.label), ("location", grant.location)):
        if value and (table := msgspec.to_builtins(value)):
            gateway[key] = table
    if grant.township:
        gateway["township"] = grant.township
    broker: dict[str, Any] = {"host": grant.broker.host, "port": grant.broker.port}
    tls = {"ca_file": CA}
    if grant.certificate:
        tls |= {"certificate_file": CERTIFICATE, "key_file": KEY}
    else:
        broker |= {"username": grant.broker.username, "password_file": PASSWORD}
    return {"gateway": gateway, "broker": broker | {"tls": tls}}


def _config(grant: Grant, state_dir: Path | None) -> str:
    """Return a whole edge.toml: the one that the town keeps, or a gateway that reports its own health alone."""
    tables = _tables(grant, state_dir)
    if CONFIG in grant.files:
        with suppress(ValueError, RecursionError):  # as if there were none
            return with_towns_word(grant.files[CONFIG], **tables, state_dir=str(state_dir or ""))
    head = """\
# The agent on this gateway, written by `onestreet edge enrol`. Check it with: onestreet edge check
# Put tables [[bus]] and [[device]] at the end, as docs/examples/edge.toml shows.
# 請在檔案最後加上 [[bus]] 與 [[device]] 表格，範例見 docs/examples/edge.toml。
"""
    asked = [f"{name} {seconds:g}" for name, seconds in sorted(grant.intervals.items())]
    tail = (
        f"# The town asks for interval_s 市府要求的取樣間隔: {', '.join(asked)}\n" if asked else ""
    )
    clock = toml_table("[clock]", synchronised="kernel")
    return f"{head}\n{_toml(tables)}\n{clock}\n{tail}"


def _toml(tables: Mapping[str, Mapping[str, Any]]) -> str:
    return "\n".join(toml_table(f"[{name}]", **table) for name, table in tables.items())


def _paste(into: Path, grant: Grant, state_dir: Path | None) -> str:
    """Return what an edge.toml lacks of what the town says; nothing when it fits."""
    tables = _tables(grant, state_dir)
    try:
        found = tomllib.loads((into / CONFIG).read_text(encoding="utf-8"))
        gateway, broker = found["gateway"], found["broker"]
        whose = (gateway.get(key) == tables["gateway"][key] for key in ("id", "county", "site"))
        way = (broker.get(key) == value for key, value in tables["broker"].items())
        fits = all(whose) and all(way)
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        fits = False
    return "" if fits else _toml(tables)


def _name(grant: Grant) -> str:
    return f"{grant.county}/{grant.gateway}"
