"""The role `gateway` of the conformance kit: our own agent and a plain script are green, every mutant is found."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import aiomqtt
import pytest

from exchange.configuration import toml_table
from exchange.conformance.judgement import Report
from exchange.conformance.listening import until
from exchange.processes import Child
from onestreet.edge_tables import bus_id, device_table, reached
from onestreet.town_process import TownProcess
from simulators.plan import street_plan
from tests.brokers import Mosquitto
from tests.kits import SCALE, broken, judge_gateway, shown
from tests.mutants import COUNTY, Mutant, Publisher, gateway_mutants, running
from tests.ports import free_port

ONESTREET = Path(sys.executable).with_name("onestreet")
SMALL_WINDOW = 30
AGENT_WINDOW = 100
GATEWAY = "gw-judged"
DEVICES = ("lamp-001", "bay-001", "air-001")
STOP_S = 10.0
BACKLOG_S = 60.0


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    with Mosquitto(tmp_path) as one:
        yield one


# ------------------------------------------------------------------------------------------------ at the fast pace


class Narrow(Publisher):  # type: ignore[misc]  # the example has no types
    """Keeps to a small window."""

    window = SMALL_WINDOW


RIGHT = Mutant("nothing", frozenset(), Narrow, SMALL_WINDOW)


async def judged(broker: Mosquitto, name: str, mutant: Mutant) -> Report:
    cable = free_port()
    with running(mutant.publisher, name, cable, scale=SCALE):
        return await judge_gateway(broker, name, cable, mutant.window)


async def judge_mutants(broker: Mosquitto) -> None:
    mutants = [RIGHT, *gateway_mutants()]
    reports = await asyncio.gather(
        *(judged(broker, f"gateway-{number}", one) for number, one in enumerate(mutants))
    )
    wrong = [
        f"{mutant.name}: {broken(report)}\n{shown(report)}"
        for mutant, report in zip(mutants, reports, strict=True)
        if broken(report) != mutant.breaks
    ]
    assert not wrong, "\n".join(wrong)
    outcomes = {one.requirement: one.outcome for one in reports[0].verdicts}
    not_shown = {name for name, outcome in outcomes.items() if outcome == "not applicable"}
    assert not_shown == {"EX-R-008", "EX-R-015"}, "one sample a pack, none marked"


async def judge_with_a_backlog(broker: Mosquitto) -> None:
    """What the gateway sent before the run, and how often, is unknown, and held against nobody."""
    name, cable = "gateway-backlog", free_port()
    with running(Publisher, name, broker.port, scale=SCALE) as one:
        await until(lambda: any(waiting.resends > 1 for waiting in list(one.outbox)), BACKLOG_S)
        assert len(one.outbox) > SMALL_WINDOW
        report = await judge_gateway(broker, name, cable)
    assert not report.failed, shown(report)
    outcomes = {one.requirement: one for one in report.verdicts}
    assert outcomes["EX-D-004"].outcome == outcomes["EX-D-006"].outcome == "passed"
    assert "did not connect by the cable" in outcomes["EX-S-004"].reason


async def judge_beside_another_ingest(broker: Mosquitto) -> None:
    """Somebody else sends receipts: then nothing can be said of delivery, and the report says why."""
    name = "gateway-receipted"
    judging = asyncio.create_task(judged(broker, name, RIGHT))
    async with aiomqtt.Client(broker.host, broker.port) as other:
        await asyncio.wait([judging], timeout=8.0)
        await other.publish(f"city/v1/{COUNTY}/street/{name}/receipts", b'{"v":1}', qos=1)
    report = await judging
    assert not report.failed, shown(report)
    outcomes = {one.requirement: one for one in report.verdicts}
    for requirement in ("EX-D-004", "EX-D-006", "EX-D-008", "EX-D-010", "EX-C-007"):
        assert outcomes[requirement].outcome == "not applicable"
        assert "another ingest" in outcomes[requirement].reason
    assert any("another ingest" in note for note in report.notes)


# ------------------------------------------------------------------------------------------------ at the real pace


class Run(NamedTuple):
    """One run of the kit's command."""

    status: int
    out: str
    report: Any


async def conform(report: Path, role: str, broker: Mosquitto, *words: str) -> Run:
    """Run the command and return what came of it."""
    where = ["--broker", f"mqtt://{broker.host}:{broker.port}", "--county", COUNTY]
    argv = [str(ONESTREET), "conform", role, *where, "--gateway", GATEWAY, "--json", str(report)]
    process = await asyncio.create_subprocess_exec(
        *argv, *words, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    out, _ = await process.communicate()
    assert process.returncode is not None
    return Run(process.returncode, out.decode(), _read(report, out.decode()))


def _read(report: Path, said: str) -> Any:
    assert report.exists(), said
    return json.loads(report.read_bytes())


@asynccontextmanager
async def our_agent(folder: Path, broker: Mosquitto, cable: int) -> AsyncIterator[None]:
    """Run our agent on a simulated street."""
    plan = street_plan(11, lamps=2, bays=2, air=1)
    assert plan.county == COUNTY
    town = TownProcess(plan, folder / "town")
    try:
        await town.start()
        file = folder / "agent.toml"
        place = {"lat": 25.0375, "lon": 121.5637}
        tables = [
            toml_table("[gateway]", id=GATEWAY, county=plan.county, site=plan.site, interval_s=2.0,
                       state_dir=str(folder / "state"), location=place),
            toml_table("[broker]", host="127.0.0.1", port=cable, keepalive_s=10),
            toml_table("[delivery]", window=AGENT_WINDOW, drain_s=0.0),
            *(toml_table("[[bus]]", id=bus_id(one.id), **reached(town.endpoints[one.id]))
              for one in plan.buses),
            *(device_table(one, plan, number, 2.0) for number, one in enumerate(plan.devices)),
        ]  # fmt: skip
        file.write_text("\n".join(tables), encoding="utf-8")
        radio = [end["dbus"] for end in town.endpoints.values() if end["kind"] == "ble"]
        agent = Child(
            "agent",
            [sys.executable, "-m", "edge_agent", str(file)],
            folder,
            environment={"DBUS_SYSTEM_BUS_ADDRESS": radio[0]},
        )
        await agent.start()
        try:
            await town.speak()
            yield
        finally:
            await agent.stop(STOP_S)
    finally:
        await town.stop()


async def judge_ours(folder: Path, broker: Mosquitto) -> None:
    cable = free_port()
    async with our_agent(folder, broker, cable):
        junit, page = folder / "report.xml", folder / "report.html"
        words = ["--window", str(AGENT_WINDOW), "--cable", str(cable), "--commands"]
        words += ["--junit", str(junit), "--html", str(page)]
        gateway, *devices = await asyncio.gather(
            conform(folder / "gateway.json", "gateway", broker, *words),
            *(
                conform(folder / f"{device}.json", "device", broker, "--device", device)
                for device in DEVICES
            ),
        )
    for run in (gateway, *devices):
        assert run.status == 0, run.out
        assert run.report["passed"]
    outcomes = {one["requirement"]: one["outcome"] for one in gateway.report["verdicts"]}
    not_shown = {name for name, outcome in outcomes.items() if outcome == "not applicable"}
    assert not_shown <= {"EX-R-012", "EX-R-015"}, gateway.out
    assert gateway.report["seconds"] < 180
    assert all(run.report["seconds"] < 60 for run in devices)
    assert junit.read_bytes().startswith(b"<?xml")
    assert GATEWAY in page.read_text(encoding="utf-8")


@pytest.mark.timeout(300)  # the back-offs of a real gateway: 30 s, then a minute
async def test_our_agent_is_green_and_every_mutant_of_a_gateway_is_found(
    broker: Mosquitto, tmp_path: Path
) -> None:
    results = await asyncio.gather(
        judge_mutants(broker),
        judge_beside_another_ingest(broker),
        judge_with_a_backlog(broker),
        judge_ours(tmp_path, broker),
        return_exceptions=True,
    )
    failures = [one for one in results if one is not None]
    assert not failures, "\n\n".join(map(str, failures))
