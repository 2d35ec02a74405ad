"""An office whose broker the kit judges: all its doors, and the ways in for whoever tries them."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable
from pathlib import Path

from exchange.conformance import broker as role
from exchange.conformance.judgement import Report
from exchange.conformance.witness import address
from exchange.requirements import binding
from exchange.tls import Tls
from provisioning.authority import Authority
from provisioning.office import init
from tests.offices import OfficeBroker, broker_table, made_party, town_text
from tests.ports import free_port

HOST = "0.0.0.0"  # noqa: S104 - of this machine, and yet not loopback: plain text must not be offered there
COUNTY, ELSEWHERE = "tw-tpe", "tw-nwt"
SHOWN = {name for name, one in binding("broker").items() if one.shown != "declared"}
"""What the role broker shows to be kept."""


class JudgedOffice:
    """An office of two counties in a folder, with credentials for the kit; nothing runs yet."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "office"
        self.ports = [free_port() for _ in range(4)]
        """For certificates, for passwords, for services, and one that the office knows nothing of."""
        files = []
        broker = broker_table(self.ports[:3], HOST)
        for county, gateways, by_password in (
            (COUNTY, ["gw-1", "gw-2"], ["gw-3"]),
            (ELSEWHERE, ["gw-9"], []),
        ):
            console = f'[[application]]\nid = "console-{county}"\ncommands = ["streetlight"]'
            town = town_text(
                county,
                broker,
                gateways=gateways,
                by_password=by_password,
                store=f"sqlite:///data/{county}.sqlite",
                more=console,
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

    def running(self) -> OfficeBroker:
        """Return its broker, to be run as the office configured it."""
        return OfficeBroker(self.folder, self.ports[:3])

    def _refused(self, authority: Authority, name: str, *, days: int) -> None:
        user, ca_file = f"{COUNTY}.gw-1", self.folder / "ca" / "ca.pem"
        made_party(authority, self.folder / name, user, self.ports[0], ca_file=ca_file, days=days)

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


async def judged(office: JudgedOffice, *more: str) -> Report:
    """Let the role broker of the kit judge the office's broker, which runs."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--broker")
    parser.add_argument("--county")
    role.add_arguments(parser)
    common = ["--broker", office.url, "--county", COUNTY, "--plain-port", str(office.ports[3])]
    asked = parser.parse_args([*common, "--credentials", str(office.credentials), *more])
    tls = Tls(ca_file=office.folder / "ca/ca.pem").context("test", "tls")
    return await role.judge(asked, address(office.url, password=None, tls=tls))


def faults(report: Report) -> str:
    """Return what a report complains of, in words."""
    return "\n".join(
        f"{one.requirement}: {each.topic} {each.note}"
        for one in report.failed
        for each in one.evidence
    )
