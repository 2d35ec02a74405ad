"""The kit behind a town's locked doors: with an account of its own, over TLS, and a cable that TLS goes through."""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from exchange.conformance import device, gateway
from exchange.conformance.pace import Pace
from exchange.conformance.witness import Address
from provisioning.office import init
from tests.kits import DEVICE_S, FAST, GATEWAY_S, asked, shown
from tests.mutants import COUNTY, Publisher, running
from tests.offices import (
    HOST,
    OfficeBroker,
    Party,
    broker_table,
    gateway_party,
    made_party,
    town_text,
)
from tests.ports import free_port

GATEWAY = "gw-1"
SCALE = 0.1
PAGE = Path(__file__).parents[2] / "docs" / "exchange" / "conformance.md"
RULES = re.findall(
    r"^```text\n(user kit\n.*?)^```$", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL
)[0]
"""What docs say that the account of the kit may do."""


class Town(NamedTuple):
    """A gateway's account, the kit's address, and where the broker is for gateways."""

    gateway: Party
    kit: Address


@pytest.fixture
def town(tmp_path: Path) -> Iterator[Town]:
    file = tmp_path / f"{COUNTY}.toml"
    file.write_text(town_text(COUNTY, broker_table(), gateways=[GATEWAY]))
    with init([file], tmp_path / "office") as office:
        settings = office.towns[0].broker
        ca_file = office.folder / "ca" / "ca.pem"
        kit = made_party(
            office.authority, tmp_path / "kit", "kit", settings.service_port, ca_file=ca_file
        )
    with (office.folder / "broker" / "acl").open("a") as rules:
        rules.write(RULES)
    ports = settings.port, settings.password_port, settings.service_port
    with OfficeBroker(office.folder, ports):
        address = Address(host=HOST, port=kit.port, tls=kit.context)
        yield Town(gateway_party(office.folder, settings, COUNTY, GATEWAY), address)


def locked(context: ssl.SSLContext) -> type:
    """A publisher that goes by TLS."""

    class Locked(Publisher):  # type: ignore[misc]  # the example has no types
        def __init__(self, *address: object) -> None:
            super().__init__(HOST, address[1])  # as the certificate says
            self.client.tls_set_context(context)

    return Locked


async def test_a_device_is_judged_on_one_connection(town: Town) -> None:
    """The broker takes an account's name for its client id: a second connection would end the first."""
    with running(locked(town.gateway.context), GATEWAY, town.gateway.port):
        words = ["--gateway", GATEWAY, "--device", f"{GATEWAY}-lamp", "--seconds", str(DEVICE_S)]
        report = await device.judge(asked(device, *words), town.kit, pace=FAST)
    assert not report.failed, shown(report)
    assert sum(one.outcome == "passed" for one in report.verdicts) > 25


# paho does not close a socket whose TLS handshake broke
@pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <ssl.SSLSocket:pytest.PytestUnraisableExceptionWarning"
)
async def test_a_gateway_is_judged_and_its_cable_pulled(town: Town) -> None:
    cable = free_port()
    kit = town.kit
    with running(locked(town.gateway.context), GATEWAY, cable, scale=SCALE):
        words = ["--gateway", GATEWAY, "--seconds", str(GATEWAY_S)]
        words += ["--cable", f"{HOST}:{cable}", "--cable-to", f"{HOST}:{town.gateway.port}"]
        report = await gateway.judge(asked(gateway, *words), kit, pace=Pace().faster(SCALE))
    assert not report.failed, shown(report)
    outcomes = {one.requirement: one.outcome for one in report.verdicts}
    for requirement in ("EX-D-004", "EX-D-006", "EX-D-008", "EX-D-009", "EX-S-004", "EX-S-005"):
        assert outcomes[requirement] == "passed", requirement
