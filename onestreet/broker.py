"""The demo's Mosquitto: a subprocess on a free port of loopback, with passwords and the exchange's access rules."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
from collections.abc import Iterable
from pathlib import Path

import msgspec

from exchange.processes import ProcessFailed
from provisioning.access import gateway_rules, ingest_rules, watch_rules
from provisioning.broker import password_hash, written_passwords
from provisioning.files import write_private


class GatewayAccount(msgspec.Struct, frozen=True):
    """A gateway that may connect."""

    county: str
    site: str
    gateway: str


class BrokerFiles:
    """Configuration, passwords and access rules in one folder."""

    def __init__(self, folder: Path, county: str, gateways: Iterable[GatewayAccount]) -> None:
        """Write every file."""
        self.folder = folder
        self.host = "127.0.0.1"
        self.port = _free_port()
        self._config = folder / "mosquitto.conf"
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
        gateways = list(gateways)
        self._users = [*(gateway.gateway for gateway in gateways), "ingest", "watch"]
        self._write_passwords()
        (folder / "acl").write_text(access_rules(county, gateways))
        self._config.write_text(self._configuration())

    @property
    def argv(self) -> list[str]:
        """The command that runs it. Raises: ProcessFailed when Mosquitto is not installed."""
        return [_mosquitto(), "-c", str(self._config)]

    def password_file(self, user: str) -> Path:
        """Where a user's password is."""
        return self.folder / f"{user}.password"

    def is_up(self) -> bool:
        """Whether it accepts connections."""
        try:
            socket.create_connection((self.host, self.port), timeout=0.5).close()
        except OSError:
            return False
        return True

    def wipe(self) -> None:
        """Make it forget every session and message; only while it does not run."""
        (self.folder / "mosquitto.db").unlink(missing_ok=True)

    def _write_passwords(self) -> None:
        passwords = {user: secrets.token_urlsafe(24) for user in self._users}
        for user, password in passwords.items():
            write_private(self.password_file(user), password)
        hashes = {user: password_hash(password) for user, password in passwords.items()}
        write_private(self.folder / "passwords", written_passwords(hashes))

    def _configuration(self) -> str:
        lines = [
            f"listener {self.port} {self.host}",
            "allow_anonymous false",
            f"password_file {self.folder}/passwords",
            f"acl_file {self.folder}/acl",
            "set_tcp_nodelay true",
            "persistence true",
            f"persistence_location {self.folder}/",
            "autosave_interval 30",
            "message_size_limit 2097152",
            # more than the windows of the gateways can fill; beyond it Mosquitto drops, and they send again
            "max_queued_messages 100000",
            "log_dest stderr",
            "log_type warning",
            "log_type error",
        ]
        if os.geteuid() == 0:
            lines.append("user root")  # else it steps down to a user who cannot read the folder
        return "\n".join([*lines, ""])


def access_rules(county: str, gateways: Iterable[GatewayAccount]) -> str:
    """Return Mosquitto's ACL: the watch of the demo runs inside ingest, as the same user."""
    rules = [gateway_rules(one.gateway, one.county, one.site, one.gateway) for one in gateways]
    rules += [ingest_rules("ingest", [county]), watch_rules("ingest", [county])]
    return "\n".join([*rules, watch_rules("watch", [county])])


def _mosquitto() -> str:
    found = shutil.which(
        "mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"
    )
    if found is None:
        raise ProcessFailed("mosquitto is not installed: on Debian, apt-get install mosquitto")
    return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
