"""The role ingest of the conformance kit: green on our ingest and on a small foreign one, and no mutant gets by."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path

import pytest

from exchange.conformance import ingest as role
from exchange.conformance import poison
from exchange.conformance.cases import Case, Played
from exchange.conformance.judgement import Report
from exchange.conformance.witness import Address, address, witness
from exchange.errors import ContractError
from exchange.readings import decode_pack
from exchange.requirements import REQUIREMENTS, binding
from exchange.tls import Tls
from exchange.topics import parse_topic
from tests.brokers import Mosquitto
from tests.gateways import DEADLINE_S, Ingest, until
from tests.judged_offices import JudgedOffice
from tests.mutant_ingests import MUTANTS, PlainIngest, counties, running

SHOWN = {name for name, one in binding("ingest").items() if one.shown != "declared"}


async def judged(broker: Mosquitto, county: str, *options: str) -> Report:
    return await judged_at(Address(host=broker.host, port=broker.port), county, *options)


async def judged_at(address: Address, county: str, *options: str) -> Report:
    parser = argparse.ArgumentParser()
    for common in ("--broker", "--county", "--ca"):
        parser.add_argument(common)
    role.add_arguments(parser)
    return await role.judge(parser.parse_args(["--county", county, *options]), address)


def outcomes(report: Report) -> dict[str, str]:
    return {one.requirement: one.outcome for one in report.verdicts}


def faults(report: Report) -> str:
    return "\n".join(
        f"{one.requirement}: {each.note}" for one in report.failed for each in one.evidence
    )


@asynccontextmanager
async def our_ingest(file: Path) -> AsyncIterator[None]:
    """`onestreet ingest run` in a process of its own."""
    command = [sys.executable, "-m", "onestreet.cli", "ingest", "run", str(file)]
    child = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
    assert child.stderr is not None
    said = []

    async def connected() -> bool:
        assert child.stderr is not None
        said.append((await child.stderr.readline()).decode())
        assert said[-1], "".join(said)
        return "connected to" in said[-1]

    await until(connected)
    reading = asyncio.create_task(child.stderr.read())
    try:
        yield
    finally:
        child.terminate()
        async with asyncio.timeout(DEADLINE_S):
            await child.wait()
            await reading


@pytest.mark.parametrize("store", ["sqlite", "influxdb"])
async def test_our_own_ingest_is_green(
    store: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    broker: Mosquitto,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url = ""
    if store == "influxdb":
        bucket = request.getfixturevalue("influx").bucket()
        monkeypatch.setenv("INFLUX_TOKEN", bucket.token)
        url = bucket.url
    ingest = Ingest(tmp_path, broker, store=url)
    async with our_ingest(ingest.file):
        report = await judged(broker, "tw-tpe")
    found = outcomes(report)
    assert not report.failed, faults(report)
    assert {name for name, outcome in found.items() if outcome == "passed"} == SHOWN
    assert {found[name] for name in found.keys() - SHOWN} == {"declared"}
    assert report.seconds < 30


async def test_our_own_ingest_is_green_behind_locked_doors(tmp_path: Path) -> None:
    office = JudgedOffice(tmp_path)
    folder = office.folder / "gateways/tw-tpe"
    pair = Tls(
        ca_file=folder / "gw-1/ca.pem",
        certificate_file=folder / "gw-1/certificate.pem",
        key_file=folder / "gw-1/key.pem",
    )
    beside = ["--ca", str(pair.ca_file), "--broker", office.url]
    for option, name in (("cert", "certificate.pem"), ("key", "key.pem")):
        beside += [f"--neighbour-{option}", str(folder / "gw-2" / name)]
    where = address(office.url, password=None, tls=pair.context("test", "tls"))
    names = ["--site", "street", "--gateway", "gw-1", "--neighbour", "gw-2"]
    file = office.folder / "services/ingest-tw-tpe/ingest.toml"
    with office.running():
        async with our_ingest(file):
            report = await judged_at(where, "tw-tpe", *names, *beside)
    assert not report.failed, faults(report)
    assert {name for name, outcome in outcomes(report).items() if outcome == "passed"} == SHOWN


async def test_another_ingest_is_green_and_nothing_is_left_behind(broker: Mosquitto) -> None:
    async with running(broker.host, broker.port, PlainIngest("zz-a")):
        report = await judged(broker, "zz-a", "--deadline", "5")
    assert not report.failed, faults(report)
    assert {name for name, outcome in outcomes(report).items() if outcome == "passed"} == SHOWN
    async with witness(Address(host=broker.host, port=broker.port)) as later:
        left: list[str] = []
        await later.subscribe("city/v1/zz-a/#")
        await later.watch(lambda seen: left.append(seen.topic), 0.5)
    assert left == []


async def test_a_silent_county_is_no_success(broker: Mosquitto) -> None:
    report = await judged(broker, "zz-b", "--deadline", "1")
    assert [one.requirement for one in report.failed] == ["EX-D-020"]
    assert "passed" not in outcomes(report).values()


def test_every_requirement_has_a_mutant() -> None:
    assert {requirement for requirement, _ in MUTANTS.values()} == SHOWN


async def test_no_mutant_gets_by(broker: Mosquitto) -> None:
    limit = asyncio.Semaphore(12)
    free = counties()

    async def caught(name: str) -> str:
        requirement, kind = MUTANTS[name]
        county = next(free)
        async with limit, running(broker.host, broker.port, kind(county)):
            report = await judged(broker, county, "--deadline", "3", "--flood", "40")
        failed = {one.requirement for one in report.failed}
        return "" if requirement in failed else f"{name} breaks {requirement}, found {failed}"

    async with asyncio.TaskGroup() as tasks:
        tried = [tasks.create_task(caught(name)) for name in MUTANTS]
    assert [one.result() for one in tried if one.result()] == []


async def test_two_groups_are_found(broker: Mosquitto) -> None:
    async with running(broker.host, broker.port, PlainIngest("zz-c"), PlainIngest("zz-c")):
        report = await judged(broker, "zz-c", "--deadline", "5", "--flood", "10")
    assert [one.requirement for one in report.failed] == ["EX-D-033"], faults(report)


# ------------------------------------------------------------------------------------------------------ poison

AIR = Played(
    county="tw-tpe",
    site="street",
    gateway="gw-1",
    domain="air",
    device="aq-1",
    epoch=1_750_000_000_777,
    begun_s=1_750_000_000,
)


def poisons() -> list[Case]:
    seqs = count()
    return [
        *poison.metrics(AIR, seqs),
        poison.backwards(AIR, seqs),
        *poison.payloads(AIR, seqs),
        *poison.topics(AIR),
        *poison.oversized(AIR, seqs),
    ]


@pytest.mark.parametrize("case", poisons(), ids=lambda case: case.what)
def test_the_decoder_finds_what_the_kit_expects(case: Case) -> None:
    if case.unreadable:
        with pytest.raises(ContractError) as caught:
            decode_pack(case.payload, parse_topic(case.topic))
        assert caught.value.requirement == case.unreadable
        return
    pack = decode_pack(case.payload, parse_topic(case.topic))
    found = {("aq-1", one.epoch, one.seq): "" for one in pack.samples}
    found |= {
        ("aq-1", one.epoch, one.seq): one.requirement for one in pack.refusals if not one.metric
    }
    assert found == case.keys
    assert pack.refusals


def test_every_rule_of_readings_is_poisoned() -> None:
    found = set()
    for case in poisons():
        try:
            refusals = decode_pack(case.payload, parse_topic(case.topic)).refusals
        except ContractError as error:
            found.add(error.requirement)
        else:
            found.update(one.requirement for one in refusals)
    shown = {name for name, one in REQUIREMENTS.items() if one.shown == "message"}
    readings = {name for name in shown if name.startswith("EX-R")}
    # What breaks another EX-T never reaches an ingest: it is on no topic that it subscribes to.
    assert found == readings | {"EX-T-002", "EX-T-004", "EX-T-006"}
    bad = poison.result(AIR)
    assert (bad.unreadable, json.loads(bad.payload)["status"]) == ("EX-C-003", "perhaps")
