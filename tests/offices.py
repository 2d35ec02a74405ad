"""A town's office for a test, and a real Mosquitto that runs from its files."""

from __future__ import annotations

import asyncio
import os
import signal
import ssl
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import aiomqtt
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from exchange.tls import Tls
from exchange.towns import Broker
from provisioning.access import application_user, gateway_user
from provisioning.authority import Authority
from provisioning.files import write_private, write_public
from tests.brokers import MosquittoProcess
from tests.ports import free_port

HOST = "localhost"


def broker_table(ports: Sequence[int] | None = None, host: str = HOST) -> str:
    """Return a town's table `broker` with three ports, free ones unless given."""
    port, password, service = ports or [free_port() for _ in range(3)]
    numbers = f"port = {port}, password_port = {password}, service_port = {service}"
    return f'broker = {{ host = "{host}", {numbers} }}'


def town_text(
    county: str,
    broker: str,
    *,
    gateways: Iterable[str] = (),
    by_password: Iterable[str] = (),
    store: str = "sqlite:///data/town.sqlite",
    workers: int = 1,
    more: str = "",
) -> str:
    """Return a town's file; every gateway stands at its one site, `street`."""
    lines = [
        f"# {county}, a comment that stays",
        f'county = "{county}"',
        f'name = {{ en = "{county}", zh-TW = "測試" }}',
        'timezone = "Asia/Taipei"',
        'circle = { id = "north", en = "North", zh-TW = "北" }',
        "extent = { south = 24.9, west = 121.4, north = 25.3, east = 121.7 }",
        'townships = [{ id = "daan", en = "Daan", zh-TW = "大安區" }]',
        broker,
        f'store = {{ url = "{store}", workers = {workers} }}',
        "[[site]]",
        'id = "street"',
        'label = { en = "Street", zh-TW = "街道" }',
        'township = "daan"',
        "location = { lat = 25.0, lon = 121.5 }",
    ]
    for name in gateways:
        lines += ["[[gateway]]", f'id = "{name}"', 'site = "street"']
    for name in by_password:
        lines += ["[[gateway]]", f'id = "{name}"', 'site = "street"', 'credential = "password"']
    return "\n".join([*lines, more, ""])


class Party(NamedTuple):
    """Somebody with credentials: user name, port, and the files that open it."""

    user: str
    port: int
    tls: Tls
    password: str | None = None

    @property
    def context(self) -> ssl.SSLContext:
        return self.tls.context("test", "tls")

    def client(self, identifier: str | None = None, **more: object) -> aiomqtt.Client:
        """Return a client as it is; the broker makes the user name its client id."""
        return aiomqtt.Client(
            HOST,
            self.port,
            identifier=identifier,
            username=self.user if self.password else None,
            password=self.password,
            tls_context=self.context,
            timeout=10,
            **more,  # type: ignore[arg-type]  # passed on
        )


def own_files(folder: Path) -> Tls:
    """Return what a folder of an office holds for a client."""
    return Tls(
        ca_file=folder / "ca.pem",
        certificate_file=folder / "certificate.pem",
        key_file=folder / "key.pem",
    )


def gateway_party(office: Path, broker: Broker, county: str, gateway: str) -> Party:
    """Return a gateway as its folder makes it."""
    folder, user = office / "gateways" / county / gateway, gateway_user(county, gateway)
    if (folder / "password").exists():
        word = (folder / "password").read_text()
        return Party(user, broker.password_port, Tls(ca_file=folder / "ca.pem"), word)
    return Party(user, broker.port, own_files(folder))


def service_party(office: Path, broker: Broker, name: str) -> Party:
    """Return ingest, the watch or an application as its folder makes it."""
    user = name if name.startswith(("ingest", "watch")) else application_user(name)
    return Party(user, broker.service_port, own_files(office / "services" / name))


def made_party(
    authority: Authority, folder: Path, user: str, port: int, *, ca_file: Path, **more: object
) -> Party:
    """Return somebody with a certificate of an authority, made for the test."""
    key, certificate = authority.issue(user, "client", **more)  # type: ignore[arg-type]  # passed on
    write_private(folder / "key.pem", key)
    write_public(folder / "certificate.pem", certificate)
    files = Tls(
        ca_file=ca_file, certificate_file=folder / "certificate.pem", key_file=folder / "key.pem"
    )
    return Party(user, port, files)


def signing_request(key_pem: bytes, common_name: str) -> bytes:
    """Return a signing request for a key, in PEM."""
    key = serialization.load_pem_private_key(key_pem, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM)


class OfficeBroker(MosquittoProcess):
    """Mosquitto in an office's folder, as docs say: `cd DIR/broker && mosquitto -c mosquitto.conf`."""

    def __init__(self, office: Path, ports: Iterable[int]) -> None:
        super().__init__(office / "broker" / "mosquitto.conf", office / "broker.log", ports)

    def restart(self) -> None:
        self.stop()
        self.start()

    def hang_up(self) -> None:
        os.kill(self.pid, signal.SIGHUP)


async def lets_in(
    port: int,
    context: ssl.SSLContext | None,
    user: str | None = None,
    password: str | None = None,
) -> bool:
    """Whether a listener takes a CONNECT; every way of saying no is no.

    With TLS 1.3 a refused client learns of it only after its own handshake, so that a CONNACK is asked for.
    """
    async with asyncio.timeout(10):
        try:
            reader, writer = await asyncio.open_connection(HOST, port, ssl=context)
        except (OSError, ssl.SSLError):
            return False
        try:
            writer.write(connect_packet(user, password))
            answer = await reader.readexactly(4)
        except (OSError, ssl.SSLError, asyncio.IncompleteReadError):
            return False
        finally:
            writer.transport.abort()
    return answer == b"\x20\2\0\0"


def connect_packet(user: str | None = None, password: str | None = None) -> bytes:
    """Return a CONNECT of MQTT 3.1.1."""
    flags = 2 | (0x80 if user is not None else 0) | (0x40 if password is not None else 0)
    fields = [b"asker", *(text.encode() for text in (user, password) if text is not None)]
    payload = b"".join(len(field).to_bytes(2, "big") + field for field in fields)
    body = b"\0\4MQTT\4" + bytes([flags]) + b"\0\x3c" + payload
    assert len(body) < 128, "one byte of length"
    return b"\x10" + bytes([len(body)]) + body
