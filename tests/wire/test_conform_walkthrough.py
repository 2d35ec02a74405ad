"""The walk-through says what the kit says: each of its scripts is run, and judged."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple, TypeAlias

from exchange.conformance import device, gateway
from exchange.conformance.judgement import Report
from exchange.conformance.pace import Pace
from exchange.requirements import REQUIREMENTS
from tests.brokers import Mosquitto
from tests.kits import GATEWAY_S, address, asked, shown
from tests.mutants import EXAMPLE

PAGE = Path(__file__).parents[2] / "docs" / "exchange" / "walkthrough.md"
BLOCK = re.compile(r"^```(python|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SAID = re.compile(r"^  (EX-[A-Z]-\d{3})  (.+)\n +(.+)$", re.MULTILINE)
GATEWAY, DEVICE = "acme-1", "acme-lamp-1"
STOP_S = 10.0
SCALE = 0.1  # of the contract's times: the script knows none of them


Said: TypeAlias = dict[str, str]
"""What the kit finds broken, as the page says: the requirement and the words of its evidence, without figures."""


class Step(NamedTuple):
    """A script of the page, and what the page says of it."""

    name: str
    script: str
    said: Said


def steps() -> tuple[list[Step], list[Said]]:
    """Return the scripts, and what is said of the gateway's judge after them."""
    found: list[Step] = []
    script = ""
    said: list[Said] = []
    for kind, text in BLOCK.findall(PAGE.read_text(encoding="utf-8")):
        if kind == "python":
            script = text
            continue
        breaks = {}
        for requirement, words, evidence in SAID.findall(text):
            assert words == REQUIREMENTS[requirement].text
            breaks[requirement] = _plain(evidence)
        assert re.findall(r"failed 不符合 \(?(\d+)", text) == [str(len(breaks))]
        if script:
            found.append(Step(script.split()[1], script, breaks))
            script = ""
        else:
            said.append(breaks)
    return found, said


def _plain(words: str) -> str:
    return re.sub(r"\d+", "N", words)


def check(report: Report, said: Said) -> None:
    """Check that the kit says what the page says."""
    found = {
        one.requirement: {_plain(proof.note) for proof in one.evidence} for one in report.failed
    }
    assert found.keys() == said.keys(), shown(report)
    for requirement, words in said.items():
        assert words in found[requirement]


@asynccontextmanager
async def running(*argv: str) -> AsyncIterator[None]:
    process = await asyncio.create_subprocess_exec(sys.executable, *argv)
    try:
        yield
        assert process.returncode is None, "it ended by itself"
    finally:
        if process.returncode is None:
            process.kill()
        await asyncio.wait_for(process.wait(), STOP_S)


async def judged_device(folder: Path, script: Path) -> Report:
    folder.mkdir()  # noqa: ASYNC240 - a moment, before anything runs
    with Mosquitto(folder) as broker:
        port = [str(broker.port)] if script != EXAMPLE else [broker.host, str(broker.port)]
        async with running(str(script), *port):
            words = ["--gateway", GATEWAY, "--device", DEVICE, "--seconds", "12"]
            return await device.judge(asked(device, *words), address(broker))


async def judged_gateway(folder: Path, script: Path) -> Report:
    folder.mkdir()  # noqa: ASYNC240 - as above
    with Mosquitto(folder) as broker:
        async with running(str(script), str(broker.port)):
            words = ["--gateway", GATEWAY, "--seconds", str(GATEWAY_S)]
            return await gateway.judge(
                asked(gateway, *words), address(broker), pace=Pace().faster(SCALE)
            )


async def test_every_step_breaks_what_the_page_says(tmp_path: Path) -> None:
    found, said = steps()
    assert [step.name for step in found] == [f"step{n}.py" for n in range(1, 5)]
    assert said[-1] == {}, "the end of the road"
    for step in found:
        (tmp_path / step.name).write_text(step.script)
    last = tmp_path / found[-1].name
    *devices, example, delivering = await asyncio.gather(
        *(judged_device(tmp_path / f"{n}", tmp_path / one.name) for n, one in enumerate(found)),
        judged_device(tmp_path / "example", EXAMPLE),
        judged_gateway(tmp_path / "gateway", last),
    )
    for step, report in zip(found, devices, strict=True):
        check(report, step.said)
    check(example, {})
    check(delivering, said[0])
