"""The role broker of the conformance kit: green on a town's own broker, and no door that is left open gets by."""

from __future__ import annotations

import asyncio
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from exchange.configuration import converted
from exchange.conformance.credentials import Credentials, read_ways
from exchange.errors import ConfigError, UplinkRefused
from tests.judged_offices import SHOWN, JudgedOffice, faults, judged

HERE = "city/v1/tw-tpe"
BESIDE = "city/v1/tw-nwt"
GATEWAY, INGEST, CONSOLE = "tw-tpe.gw-1", "ingest-tw-tpe", "app.console-tw-tpe"

Mutation = Callable[[JudgedOffice], None]


async def test_a_towns_broker_is_green(tmp_path: Path) -> None:
    office = JudgedOffice(tmp_path)
    with office.running():
        report = await judged(office)
    found = {one.requirement: one.outcome for one in report.verdicts}
    assert not report.failed, faults(report)
    assert {name for name, outcome in found.items() if outcome == "passed"} == SHOWN
    assert found.keys() - SHOWN == {"EX-A-010"}
    assert report.notes == []
    assert report.seconds < 30


def allowing(user: str, *rules: str) -> Mutation:
    return lambda office: office.allow(user, *rules)


def without(line: str, instead: str = "") -> Mutation:
    return lambda office: office.edit("mosquitto.conf", lambda text: text.replace(line, instead))


def plain_text_beside(office: JudgedOffice) -> None:
    more = f"\nlistener {office.ports[3]}\nallow_anonymous false\npassword_file passwords\n"
    office.edit("mosquitto.conf", lambda text: text + more)


def passwords_unchecked(office: JudgedOffice) -> None:
    anybody = "allow_anonymous true\nacl_file acl\n"
    office.edit(
        "mosquitto.conf",
        lambda text: text.replace(
            "allow_anonymous false\nacl_file acl\npassword_file passwords\n", anybody
        ),
    )


def by_password(office: JudgedOffice, *changes: tuple[str, str]) -> None:
    """Change the listener for passwords alone."""
    file = office.folder / "broker/mosquitto.conf"
    before, _, block = file.read_text().partition("# Gateways that cannot hold a key.")
    for found, instead in changes:
        assert found in block
        block = block.replace(found, instead, 1)
    office.edit("mosquitto.conf", lambda _: before + block)


def anybody_by_password(office: JudgedOffice) -> None:
    nameless = ("use_username_as_clientid true\n", "")  # it refuses them
    by_password(office, ("allow_anonymous false", "allow_anonymous true"), nameless)


def free_ids_by_password(office: JudgedOffice) -> None:
    by_password(office, ("use_username_as_clientid true\n", ""))


def certificates_optional(office: JudgedOffice) -> None:
    strict = "require_certificate true\nuse_identity_as_username true\n"
    loose = "require_certificate false\nallow_anonymous true\n"
    nobody = "use_username_as_clientid true\n"  # refuses whoever has no name
    office.edit("mosquitto.conf", lambda text: text.replace(strict + nobody, loose, 1))


def name_from_the_client(office: JudgedOffice) -> None:
    first = "allow_anonymous false\nacl_file acl\ncafile ca.pem\n"
    office.edit(
        "mosquitto.conf",
        lambda text: text.replace(first, first.replace("false", "true"), 1).replace(
            "use_identity_as_username true\n", "", 1
        ),
    )


def another_authority_too(office: JudgedOffice) -> None:
    for name in ("ca.pem", "crl.pem"):
        more = (office.folder / "forged-ca" / name).read_text()
        office.edit(name, lambda text, more=more: text + more)  # type: ignore[misc]  # bound at once


MUTANTS: dict[str, tuple[str, Mutation]] = {
    "client ids are free": ("EX-A-008", without("use_username_as_clientid true\n")),
    "client ids are free beside a password": ("EX-A-008", free_ids_by_password),
    "certificates are optional": ("EX-A-002", certificates_optional),
    "plain text on another port": ("EX-A-001", plain_text_beside),
    "anybody on the password's port": ("EX-A-002", anybody_by_password),
    "any password": ("EX-A-002", passwords_unchecked),
    "a gateway writes its county": (
        "EX-A-003",
        allowing(GATEWAY, f"write {HERE}/+/+/+/+/readings"),
    ),
    "a gateway writes at every site": (
        "EX-A-003",
        allowing(GATEWAY, f"write {HERE}/+/gw-1/+/+/results"),
    ),
    "a gateway writes its neighbour's states": (
        "EX-A-003",
        allowing(GATEWAY, f"write {HERE}/street/gw-2/+/+/state"),
    ),
    "the name counts, not the certificate": ("EX-A-003", name_from_the_client),
    "a gateway reads everything": ("EX-A-004", allowing(GATEWAY, "read #")),
    "a gateway reads its own readings": (
        "EX-A-004",
        allowing(GATEWAY, f"read {HERE}/street/gw-1/+/+/readings"),
    ),
    "a gateway reads all states": ("EX-A-004", allowing(GATEWAY, f"read {HERE}/+/+/+/+/state")),
    "a gateway reads all commands": (
        "EX-A-004",
        allowing(GATEWAY, f"read {HERE}/+/+/+/+/commands"),
    ),
    "a gateway reads all receipts": ("EX-A-004", allowing(GATEWAY, f"read {HERE}/+/+/receipts")),
    "a gateway receipts itself": (
        "EX-A-005",
        allowing(GATEWAY, f"write {HERE}/street/gw-1/receipts"),
    ),
    "an application receipts": ("EX-A-005", allowing(CONSOLE, f"write {HERE}/+/+/receipts")),
    "a gateway commands": ("EX-A-006", allowing(GATEWAY, f"write {HERE}/+/+/+/+/commands")),
    "ingest commands": ("EX-A-006", allowing(INGEST, f"write {HERE}/+/+/+/+/commands")),
    "an application reads the next county": (
        "EX-A-007",
        allowing(CONSOLE, f"read {BESIDE}/+/+/+/+/readings"),
    ),
    "an application commands in the next county": (
        "EX-A-007",
        allowing(CONSOLE, f"write {BESIDE}/+/+/+/+/commands"),
    ),
    "ingest receipts the next county": (
        "EX-A-007",
        allowing(INGEST, f"write {BESIDE}/+/+/receipts"),
    ),
    "a gateway writes every county": (
        "EX-A-007",
        allowing(GATEWAY, "write city/v1/+/street/+/+/+/readings"),
    ),
    "no revocation list": ("EX-A-009", without("crlfile crl.pem\n")),
    "another authority is believed": ("EX-A-009", another_authority_too),
}


def test_every_requirement_has_a_mutant() -> None:
    assert {requirement for requirement, _ in MUTANTS.values()} == SHOWN


async def test_no_open_door_gets_by(tmp_path: Path) -> None:
    limit = asyncio.Semaphore(16)

    async def caught(name: str) -> str:
        requirement, mutate = MUTANTS[name]
        async with limit:
            (tmp_path / name).mkdir()
            office = JudgedOffice(tmp_path / name)
            mutate(office)
            with office.running():
                report = await judged(office)
        failed = {one.requirement for one in report.failed}
        return "" if requirement in failed else f"{name} breaks {requirement}, found {failed}"

    async with asyncio.TaskGroup() as tasks:
        tried = [tasks.create_task(caught(name)) for name in MUTANTS]
    assert [one.result() for one in tried if one.result()] == []


async def test_a_broker_that_refuses_what_is_granted_is_not_judged(tmp_path: Path) -> None:
    office = JudgedOffice(tmp_path)
    office.edit("acl", lambda text: text.replace(f"topic read {HERE}/street/gw-2/receipts\n", ""))
    with office.running(), pytest.raises(UplinkRefused, match=r"gw-2/receipts.*nothing came"):
        await judged(office)


@pytest.mark.parametrize(
    ("found", "instead", "key"),
    [
        ("[[ingest]]", "[[ingests]]", "ingests"),
        ('county = "tw-nwt"\nsite', 'county = "tw-tpe"\nsite', "gateway"),
        ('commands = ["streetlight"]', 'commands = ["jazz"]', "commands"),
        ('reason = "expired"', 'reason = "boring"', "reason"),
        ("gateways/tw-tpe/gw-1/key.pem", "gateways/tw-tpe/gw-1/none.pem", "gateway"),
    ],
)
def test_a_wrong_credentials_file_is_named(
    tmp_path: Path, found: str, instead: str, key: str
) -> None:
    office = JudgedOffice(tmp_path)
    text = office.credentials.read_text()
    assert found in text
    office.credentials.write_text(text.replace(found, instead))
    with pytest.raises(ConfigError, match=key) as caught:
        read_ways(office.credentials, office.url, "tw-tpe")
    assert str(office.credentials) in str(caught.value)


def test_the_example_of_the_page_is_a_credentials_file() -> None:
    page = Path(__file__).parents[2] / "docs/exchange/conformance-broker.md"
    example = page.read_text(encoding="utf-8").partition("```toml")[2].partition("```")[0]
    read = converted(tomllib.loads(example), Credentials, str(page))
    assert [one.county for one in read.gateways] == ["tw-tpe", "tw-tpe", "tw-nwt"]
    assert [one.reason for one in read.refused] == ["revoked"]
