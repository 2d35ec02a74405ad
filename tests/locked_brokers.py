"""A town's real broker with all its doors, as the office makes it, and the ways in for whoever tries them."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from provisioning.authority import Authority
from provisioning.office import init
from tests.ports import free_port

HOST = "0.0.0.0"  # noqa: S104 - of this machine, and yet not loopback: plain text must not be offered there
COUNTY, ELSEWHERE = "tw-tpe", "tw-nwt"
_DEADLINE_S = 10.0
_TOWN = """
county = "{county}"
name = {{ en = "A county", zh-TW = "縣市" }}
timezone = "Asia/Taipei"
circle = {{ id = "north", en = "North", zh-TW = "北部" }}
extent = {{ south = 24.0, west = 121.0, north = 26.0, east = 122.0 }}
townships = [{{ id = "first", en = "First", zh-TW = "第一區" }}]
[broker]
host = "{host}"
port = {ports[0]}
password_port = {ports[1]}
service_port = {ports[2]}
[store]
url = "sqlite:///data/{county}.sqlite"
[[site]]
id = "street"
label = {{ en = "Street", zh-TW = "街道" }}
township = "first"
location = {{ lat = 25.0, lon = 121.5 }}
{gateways}
[[application]]
id = "console-{county}"
commands = ["streetlight"]
"""
_GATEWAY = '[[gateway]]\nid = "{id}"\nsite = "street"\ncredential = "{credential}"\n'


class Office:
    """An office of two counties in a folder, with credentials for the kit; nothing runs yet."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "office"
        self.ports = [free_port() for _ in range(4)]
        """For certificates, for passwords, for services, and one that the office knows nothing of."""
        files = []
        for county, gateways in (
            (COUNTY, {"gw-1": "certificate", "gw-2": "certificate", "gw-3": "password"}),
            (ELSEWHERE, {"gw-9": "certificate"}),
        ):
            tables = [
                _GATEWAY.format(id=one, credential=credential)
                for one, credential in gateways.items()
            ]
            town = _TOWN.format(
                county=county, host=HOST, ports=self.ports, gateways="\n".join(tables)
            )
            files.append(folder / f"{county}.toml")
            files[-1].write_text(town)
        with init(files, self.folder) as office:
            office.add_gateway(COUNTY, "gw-stolen", "street")
            shutil.copytree(office.gateway_folder(COUNTY, "gw-stolen"), self.folder / "revoked")
            office.revoke_gateway(COUNTY, "gw-stolen")
            self._refused(office.authority, "expired", days=-1)
            (self.folder / "forged-ca").mkdir(mode=0o700)
            forged = Authority.create(self.folder / "forged-ca", "Another authority")
            self._refused(forged, "forged", days=10)
        self.credentials = self.folder / "credentials.toml"
        self.credentials.write_text(self._credentials())

    @property
    def url(self) -> str:
        return self.url_of(0)

    def url_of(self, listener: int) -> str:
        return f"mqtts://{HOST}:{self.ports[listener]}"

    def allow(self, user: str, *rules: str) -> None:
        """Add rules to a user's: `write TOPIC`."""
        more = "".join(f"\ntopic {rule}" for rule in rules)
        self.edit("acl", lambda text: text.replace(f"user {user}\n", f"user {user}{more}\n"))

    def edit(self, name: str, change: Callable[[str], str]) -> None:
        """Change one of the broker's files; a change that changes nothing is a mistake."""
        file = self.folder / "broker" / name
        text = file.read_text()
        changed = change(text)
        assert changed != text, name
        file.write_text(changed)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run Mosquitto as the office configured it."""
        folder = self.folder / "broker"
        with (folder / "log").open("ab") as log:
            process = subprocess.Popen(
                ["mosquitto", "-c", "mosquitto.conf"], cwd=folder, stdout=log, stderr=log
            )
        try:
            deadline_s = time.monotonic() + _DEADLINE_S
            while not all(map(_listens, self.ports[:3])):
                assert time.monotonic() < deadline_s, (folder / "log").read_text()
                assert process.poll() is None, (folder / "log").read_text()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(0.02)
            yield
        finally:
            process.terminate()
            process.wait(_DEADLINE_S)

    def _refused(self, authority: Authority, name: str, *, days: int) -> None:
        folder = self.folder / name
        folder.mkdir(mode=0o700)
        key, certificate = authority.issue(f"{COUNTY}.gw-1", "client", days=days)
        (folder / "key.pem").write_bytes(key)
        (folder / "key.pem").chmod(0o600)
        (folder / "certificate.pem").write_bytes(certificate)

    def _credentials(self) -> str:
        lines = ['ca_file = "ca/ca.pem"']

        def login(table: str, folder: str, listener: int, *more: str) -> None:
            pair = f'certificate_file = "{folder}/certificate.pem"\nkey_file = "{folder}/key.pem"'
            broker = f'broker = "{self.url_of(listener)}"'
            lines.extend([f"[[{table}]]", broker, *more, pair])

        for county, gateway in ((COUNTY, "gw-1"), (COUNTY, "gw-2"), (ELSEWHERE, "gw-9")):
            where = f'county = "{county}"\nsite = "street"\nid = "{gateway}"'
            where += f'\nusername = "{county}.{gateway}"'  # the certificate's name counts, not this
            login("gateway", f"gateways/{county}/{gateway}", 0, where)
        lines += [
            "[[gateway]]",
            f'broker = "{self.url_of(1)}"\ncounty = "{COUNTY}"\nsite = "street"\nid = "gw-3"',
            f'username = "{COUNTY}.gw-3"',
            f'password_file = "gateways/{COUNTY}/gw-3/password"',
        ]
        for county in (COUNTY, ELSEWHERE):
            login("ingest", f"services/ingest-{county}", 2, f'counties = ["{county}"]')
            named = f'id = "console-{county}"\ncounty = "{county}"\ncommands = ["streetlight"]'
            login("application", f"services/console-{county}", 2, named)
        for reason, folder in (
            ("expired", "expired"),
            ("revoked", "revoked"),
            ("from another CA", "forged"),
        ):
            login("refused", folder, 0, f'reason = "{reason}"')
        return "\n".join([*lines, ""])


def _listens(port: int) -> bool:
    try:
        socket.create_connection((HOST, port), timeout=1).close()
    except OSError:
        return False
    return True
