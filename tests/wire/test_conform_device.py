"""The role `device` of the conformance kit: a conforming publisher is green, every mutant is found."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import aiomqtt
import pytest

from exchange.conformance.judgement import Report
from exchange.errors import UplinkLost
from tests.agents import until
from tests.brokers import Mosquitto
from tests.kits import broken, judge_application, judge_device, shown
from tests.mutants import COUNTY, Mutant, Publisher, commands, device_mutants, running


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    with Mosquitto(tmp_path, ["log_type error", "log_type subscribe"]) as one:
        yield one


async def test_a_plain_script_is_green(broker: Mosquitto) -> None:
    with running(Publisher, "right", broker.port):
        report = await judge_device(broker, "right")
    assert not report.failed, shown(report)
    outcomes = {one.requirement: one.outcome for one in report.verdicts}
    not_shown = {name for name, outcome in outcomes.items() if outcome == "not applicable"}
    assert not_shown == {"EX-R-008", "EX-R-015", "EX-R-019"}, (
        "one sample a pack, none marked or lost"
    )
    assert report.seconds < 10


async def test_every_mutant_of_a_device_is_found(broker: Mosquitto) -> None:
    at_once = asyncio.Semaphore(25)  # more would accuse each other of what a busy machine did

    async def judged(number: int, mutant: Mutant) -> Report:
        async with at_once:
            return await judged_alone(f"mutant-{number}", mutant)

    async def judged_alone(name: str, mutant: Mutant) -> Report:
        judging = asyncio.create_task(judge_device(broker, name))
        # a sin that is done once is not done before the kit listens
        await until(lambda: f"/{name}/" in broker.log)
        with running(mutant.publisher, name, broker.port):
            return await judging

    mutants = device_mutants()
    reports = await asyncio.gather(*(judged(*one) for one in enumerate(mutants)))
    wrong = {
        mutant.name: (broken(report), shown(report))
        for mutant, report in zip(mutants, reports, strict=True)
        if broken(report) != mutant.breaks
    }
    assert not wrong, "\n".join(
        f"{name}: {found}\n{words}" for name, (found, words) in wrong.items()
    )


async def test_every_breach_of_an_application_is_found(broker: Mosquitto) -> None:
    async def judged(number: int) -> tuple[str, Report]:
        name = f"town-{number}"
        topic = f"city/v1/{COUNTY}/street/{name}/streetlight/{name}-lamp/commands"
        requirement, where, payload = commands(topic)[number]
        with running(Publisher, name, broker.port):
            judging = asyncio.create_task(judge_application(broker, name, 2.0))
            async with aiomqtt.Client(broker.host, broker.port) as client:
                while not judging.done():
                    await client.publish(where, payload, qos=1)
                    await asyncio.wait([judging], timeout=0.3)
            return requirement, await judging

    for requirement, report in await asyncio.gather(*map(judged, range(5))):
        assert broken(report) == {requirement} - {""}, shown(report)
        if not requirement:
            assert {one.outcome for one in report.verdicts} == {"passed"}


async def test_a_device_that_nobody_hears_is_not_judged(broker: Mosquitto) -> None:
    report = await judge_device(broker, "nobody", seconds=1.0)
    assert {one.outcome for one in report.verdicts} <= {"not applicable", "declared"}


async def test_a_profile_that_is_asked_for_is_judged(broker: Mosquitto) -> None:
    with running(Publisher, "lamps", broker.port):
        right, wrong = await asyncio.gather(
            judge_device(broker, "lamps", "--profile", "lamp_controller"),
            judge_device(broker, "lamps", "--profile", "no-such-profile"),
        )
    outcomes = {one.requirement: one for one in right.verdicts}
    assert outcomes["EX-R-025"].outcome == outcomes["EX-S-009"].outcome == "passed"
    outcomes = {one.requirement: one for one in wrong.verdicts}
    assert outcomes["EX-R-025"].outcome == outcomes["EX-S-009"].outcome == "not applicable"
    assert "lamp_controller" in outcomes["EX-R-025"].reason


async def test_a_broker_that_goes_ends_the_run_at_once(broker: Mosquitto) -> None:
    judging = asyncio.create_task(judge_device(broker, "nobody", seconds=60.0))
    async with asyncio.timeout(10):
        await asyncio.wait([judging], timeout=1.0)
        broker.kill()
        with pytest.raises(UplinkLost):
            await judging
