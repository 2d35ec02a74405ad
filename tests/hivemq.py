"""A real HiveMQ Community Edition for a test: another MQTT 5 broker than the one that everything is made with."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    load_pem_private_key,
    pkcs12,
)

from tests.brokers import Broker, BrokerProcess

MAX_PACKET_BYTES = 2_162_688
"""As an office bids Mosquitto: more than ingest takes, so that it can refuse what is too large."""
MAX_QUEUED = 100_000
"""As an office bids Mosquitto; HiveMQ's own default is a thousand."""
_STORE_PASSWORD = "of-a-test"


def class_path() -> str:
    """Return where Java finds it. A missing one fails: `make test` fetches it."""
    path = os.environ.get("ONESTREET_HIVEMQ", "")
    if not Path(path.partition(":")[0], "Broker.class").is_file():
        pytest.fail(f"ONESTREET_HIVEMQ={path!r} must be what scripts/build_hivemq.sh prints")
    return path


def command(*arguments: str) -> list[str]:
    """Return how Java is started; a test needs little memory and no best machine code."""
    options = ["-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:-UsePerfData"]
    return ["java", *options, "-cp", class_path(), "Broker", *arguments]


class HiveMQ(Broker):
    """One HiveMQ at 127.0.0.1:`port`, where anybody may do anything; its sessions and messages are on disk."""

    def __init__(
        self, folder: Path, *, max_queued: int = MAX_QUEUED, receive_maximum: int = 100
    ) -> None:
        """`receive_maximum` is how many publishes of one client it takes before it has answered one."""
        super().__init__(command("."), folder=folder / "hivemq")
        self._max_queued, self._receive_maximum = max_queued, receive_maximum

    def __exit__(self, *_: object) -> None:
        self.kill()  # an orderly stop takes four seconds

    def _configure(self) -> None:
        listener = "<tcp-listener>{}</tcp-listener>".format(
            f"<port>{self.port}</port><bind-address>{self.host}</bind-address>"
        )
        write_configuration(
            self._folder,
            [listener],
            max_queued=self._max_queued,
            receive_maximum=self._receive_maximum,
        )


class OfficeHiveMQ(BrokerProcess):
    """HiveMQ in Mosquitto's place: with an office's certificates, access rules, passwords and revocation list."""

    def __init__(self, office: Path, folder: Path, *, host: str, ports: Sequence[int]) -> None:
        """`ports` are those for certificates, for passwords and for services."""
        files = (office / "broker").resolve()
        super().__init__(command(".", str(files)), folder=folder, log=folder / "log", ports=ports)
        folder.mkdir()
        _write_key_stores(files, folder)
        by_certificate, by_password, by_service = ports
        listeners = [
            _tls_listener(folder, host, by_certificate, certificates=True),
            _tls_listener(folder, host, by_password, certificates=False),
            _tls_listener(folder, host, by_service, certificates=True),
        ]
        write_configuration(folder, listeners)


def write_configuration(
    folder: Path,
    listeners: Sequence[str],
    *,
    max_queued: int = MAX_QUEUED,
    receive_maximum: int = 100,
) -> None:
    """Write config.xml; all that is not here is HiveMQ's default."""
    (folder / "conf").mkdir(exist_ok=True)
    (folder / "conf" / "config.xml").write_text(
        f"""\
<hivemq>
  <listeners>{"".join(listeners)}</listeners>
  <mqtt>
    <queued-messages>
      <max-queue-size>{max_queued}</max-queue-size><strategy>discard</strategy>
    </queued-messages>
    <packets><max-packet-size>{MAX_PACKET_BYTES}</max-packet-size></packets>
    <receive-maximum>
      <server-receive-maximum>{receive_maximum}</server-receive-maximum>
    </receive-maximum>
  </mqtt>
  <persistence><mode>file</mode></persistence>
  <anonymous-usage-statistics><enabled>false</enabled></anonymous-usage-statistics>
</hivemq>
"""
    )


def _tls_listener(folder: Path, host: str, port: int, *, certificates: bool) -> str:
    place, word = escape(str(folder.resolve())), f"<password>{_STORE_PASSWORD}</password>"
    key = f"<private-key-password>{_STORE_PASSWORD}</private-key-password>"
    mode = "REQUIRED" if certificates else "NONE"
    return f"""
    <tls-tcp-listener>
      <port>{port}</port><bind-address>{host}</bind-address><name>at {port}</name>
      <tls>
        <keystore><path>{place}/server.p12</path>{word}{key}</keystore>
        <truststore><path>{place}/ca.p12</path>{word}</truststore>
        <client-authentication-mode>{mode}</client-authentication-mode>
      </tls>
    </tls-tcp-listener>"""


def _write_key_stores(files: Path, folder: Path) -> None:
    """Write an office's PEM files in the form that Java reads."""
    locked = BestAvailableEncryption(_STORE_PASSWORD.encode())
    key = load_pem_private_key((files / "server.key").read_bytes(), None)
    own, *chain = x509.load_pem_x509_certificates((files / "server.pem").read_bytes())
    (folder / "server.p12").write_bytes(
        pkcs12.serialize_key_and_certificates(b"server", key, own, chain, locked)  # type: ignore[arg-type]  # an EC key
    )
    trusted = [
        pkcs12.PKCS12Certificate(one, b"authority")
        for one in x509.load_pem_x509_certificates((files / "ca.pem").read_bytes())
    ]
    (folder / "ca.p12").write_bytes(pkcs12.serialize_java_truststore(trusted, locked))
