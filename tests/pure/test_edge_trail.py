"""`onestreet edge commands`: the audit trail, asked of the agent, or read from what it left."""

from __future__ import annotations

import asyncio
import json
import shutil
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from device_drivers.errors import DeviceSilent
from device_drivers.kit.driver import Value
from edge_agent.cli import run
from edge_agent.commands import Commands
from edge_agent.config import Device, Gateway
from edge_agent.ledger import FILE, Ledger
from edge_agent.status import MODE
from exchange.commands import Command, encode_command
from exchange.health import answering_at
from exchange.moments import rfc3339
from tests.agents import until

NOW_MS = 1_800_000_000_000
GATEWAY = Gateway(id="gw-1", county="tw-tpe", site="street", state_dir="state")
TOPIC = "city/v1/tw-tpe/street/gw-1/streetlight/lamp-1/commands"
LAMP = Device(
    id="lamp-1",
    domain="streetlight",
    driver="intesis_dali",
    bus="rs485",
    interval_s=60,
    settings={"short_address": 1},
)


class Clock:
    known = True

    def now_ms(self) -> int:
        return NOW_MS


async def execute(
    device_id: str, name: str, args: Mapping[str, Value], *, deadline_s: float
) -> dict[str, Value]:
    del device_id, name, deadline_s
    if args["level"] == 20:
        raise DeviceSilent("no answer")
    return {"level": args["level"]}


def order(level: int, by: str) -> Command:
    issued = datetime.fromtimestamp(NOW_MS / 1000, UTC)
    return Command(
        id=uuid4(),
        name="set_level",
        args={"level": level},
        issued_at=issued,
        expires_at=issued + timedelta(seconds=60),
        issued_by=by,
    )


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "edge.toml"
    path.write_text('[gateway]\nstate_dir = "state"\n')
    (tmp_path / "state").mkdir()
    return path


async def lived(state: Path, orders: list[Command]) -> None:
    """An agent's commands, asked by nobody while they run, and killed: nothing is put in order."""
    ledger = Ledger(state / "living" / FILE)
    commands = Commands(GATEWAY, [LAMP], ledger, Clock(), execute)
    await commands.open()
    running = asyncio.create_task(commands.run())
    for one in orders:
        commands.put(TOPIC, encode_command(one))
    await until(lambda: commands.counts.total() == len(orders))
    await commands.order("lamp-1", "set_level", {"level": 35}, by="programme p", deadline_s=5)
    for part in ("", "-wal"):
        shutil.copyfile(state / "living" / f"{FILE}{part}", state / f"{FILE}{part}")
    running.cancel()
    await asyncio.wait([running])
    await commands.close()


def shown(capsys: pytest.CaptureFixture[str], config: Path, *words: str) -> tuple[int, str, str]:
    status = run(["commands", "--config", str(config), *words])
    out, err = capsys.readouterr()
    return status, out, err


def test_what_an_agent_left_is_read_and_not_touched(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = config.parent / "state"
    orders = [order(10, "night shift"), order(20, "夜班"), order(140, "\x1b[2J")]
    asyncio.run(lived(state, orders))
    before = {path: path.read_bytes() for path in state.glob(f"{FILE}*")}
    status, out, _ = shown(capsys, config, "--json")
    assert status == 0
    found: list[dict[str, Any]] = json.loads(out)["orders"]
    assert [(one["kind"], one["by"], one["args"], one["status"]) for one in found] == [
        ("programme", "programme p", {"level": 35}, "done"),
        ("issued", "\x1b[2J", {"level": 140}, "rejected"),
        ("issued", "夜班", {"level": 20}, "failed"),
        ("issued", "night shift", {"level": 10}, "done"),
    ]
    assert found[3]["id"] == str(orders[0].id)
    assert found[3]["readback"] == {"level": 10}
    assert found[3]["expires_at"] == rfc3339(orders[0].expires_at)
    assert found[2]["reason"] == "DeviceSilent: no answer"
    assert {path: path.read_bytes() for path in state.glob(f"{FILE}*")} == before
    status, out, err = shown(capsys, config, "--last", "2", "--lang", "en")
    assert "does not answer" in err
    head, rejected, programme = out.splitlines()
    assert head.split() == ["taken", "device", "command", "result", "by", "reason"]
    assert "level=140" in rejected
    assert "rejected  ?[2J" in rejected, "nobody's words steer the terminal"
    assert "done" in programme
    assert "programme p" in programme
    _, out, err = shown(capsys, config, "--lang", "zh-TW")
    assert "代理程式沒有回應" in err
    assert "執行失敗" in out.splitlines()[2]


async def test_the_agent_that_runs_is_asked(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = config.parent / "state"
    ledger = Ledger(state / FILE)
    commands = Commands(GATEWAY, [LAMP], ledger, Clock(), execute)
    await commands.open()
    documents = {"": commands.trail_document, "commands": commands.trail_document}
    async with answering_at(state / "status.sock", documents, mode=MODE):
        assert (await asyncio.to_thread(shown, capsys, config, "--lang", "zh-TW")) == (
            0,
            "尚無命令\n",
            "",
        )
        await commands.order("lamp-1", "set_level", {"level": 35}, by="programme p", deadline_s=5)
        status, out, err = await asyncio.to_thread(shown, capsys, config, "--lang", "en")
        assert (status, err) == (0, "")
        assert "set_level level=35" in out
        await commands.close()
    blocked = Commands(GATEWAY, [LAMP], Ledger(state / FILE), Clock(), execute)  # a full disk
    documents["commands"] = blocked.trail_document
    async with answering_at(state / "status.sock", documents, mode=MODE):
        status, out, _ = await asyncio.to_thread(shown, capsys, config, "--lang", "en")
        assert status == 1
        assert "cannot be read" in out
        assert "not open" in out
    await blocked.close()


def test_where_there_is_nothing_it_says_so(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, _ = shown(capsys, config, "--lang", "en")
    assert status == 1
    assert "cannot be read" in out
    assert FILE in out
    with closing(sqlite3.connect(config.parent / "state" / FILE)) as db:
        db.execute("PRAGMA user_version = 99")
    status, out, _ = shown(capsys, config, "--json")
    assert status == 1
    assert "schema 99" in json.loads(out)["problem"]
    for words in ("0", "1001", "x", "-1"):
        with pytest.raises(SystemExit) as end:
            shown(capsys, config, f"--last={words}")
        assert end.value.code == 2
