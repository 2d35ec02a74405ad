"""The demo, whole: nothing lost and nothing twice, whatever is killed; and an audit that finds what is spoiled."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import functools
import json
import os
import pty
import re
import socket
import subprocess
import sys
import termios
import threading
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from onestreet.cli import main
from onestreet.demo import command
from onestreet.demo.run import Demo, Kill
from simulators.plan import street_plan
from simulators.town import Town
from tests.influx import Influx

DEADLINE_S = 100.0
ONESTREET = Path(sys.executable).with_name("onestreet")
MUTANT = (sys.executable, str(Path(__file__).with_name("mutant_agent.py")))
KEYS = {"taken", "stored", "refused", "lost", "duplicate"}


def checked(report: dict[str, Any], devices: int) -> None:
    """Check that a report makes sense and that nothing in it is amiss."""
    assert report.keys() >= KEYS | {"devices"}
    assert len(report["devices"]) == devices
    for name, device in report["devices"].items():
        assert device.keys() >= KEYS
        assert device["stored"] > 0, name
        assert device["taken"] == device["stored"] + device["lost"] + device["in_hand"], name
    for key in [*KEYS, "in_hand"]:
        assert report[key] == sum(device[key] for device in report["devices"].values())
    assert (report["lost"], report["duplicate"], report["refused"]) == (0, 0, 0)


def test_one_command_runs_the_whole_path(tmp_path: Path) -> None:
    run = (
        tmp_path / 'a "street", 50%23 #1? 路'
    )  # a folder's name says nothing to TOML, nor in a URL
    report = tmp_path / "reports" / "report.json"
    done = subprocess.run(
        [ONESTREET, "demo", "--seconds", "8", "--folder", run, "--report", report],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(report.read_text())
    checked(found, 12 + 8 + 3)
    assert found["taken"] == found["stored"] > 100
    assert found["in_hand"] == 0
    words = f"taken {found['taken']}, stored {found['stored']}, refused 0, lost 0, duplicate 0\n"
    assert words in done.stdout
    assert str(run) in done.stdout
    for log in ("agent", "ingest"):
        text = (run / f"{log}.log").read_text()
        assert "Traceback" not in text
        assert '"level":"error"' not in text
    nobody_listens(run)


def nobody_listens(run: Path) -> None:
    """Check that the broker went with its demo."""
    port = tomllib.loads((run / "agent.toml").read_text())["broker"]["port"]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=1)


@pytest.mark.timeout(240)  # what a wiped broker lost is found out after 30 s and 10 s at the least
async def test_kill_9_of_everything_costs_nothing(tmp_path: Path) -> None:
    kills = [Kill("agent", 2.0), Kill("ingest", 4.5), Kill("broker", 6.5)]
    demo = Demo(street_plan(3, lamps=6, bays=4, air=3), tmp_path / "run", kills=kills)
    async with asyncio.timeout(2 * DEADLINE_S):
        audit = await demo.run(asyncio.Event(), 9.0)
    assert {name: child.restarts for name, child in demo.children.items()} == {
        "broker": 1,
        "ingest": 1,
        "agent": 1,
    }
    assert (audit.lost, audit.duplicate, audit.refused) == (0, 0, 0)
    assert audit.passed
    assert audit.in_hand <= 13, "of each device one reading at most"
    assert audit.stored + audit.in_hand == audit.taken > 60


# ------------------------------------------------------------------------------------------------------- mutants


async def mutated(kind: str, folder: Path) -> tuple[bool, int, int]:
    """Return whether the demo passed, and what was lost and what came twice."""
    plan = street_plan(5, lamps=1, bays=2, air=0)
    demo = Demo(plan, folder / kind, agent_argv=[*MUTANT, kind])
    async with asyncio.timeout(DEADLINE_S):
        audit = await demo.run(asyncio.Event(), 6.0)
    spoiled = audit.devices["bay-001"]
    assert spoiled.taken > 4
    assert (audit.lost, audit.duplicate) == (spoiled.lost, spoiled.duplicate), "only that one"
    return audit.passed, audit.lost, audit.duplicate


async def test_an_agent_that_spoils_one_sample_is_found_out(tmp_path: Path) -> None:
    kinds = ("none", "double", "move", "alter")
    found = await asyncio.gather(*(mutated(kind, tmp_path) for kind in kinds))
    assert dict(zip(kinds, found, strict=True)) == {
        "none": (True, 0, 0),
        "double": (False, 0, 1),
        "move": (False, 1, 1),
        "alter": (False, 1, 1),
    }


def test_the_command_fails_when_one_sample_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mutant = functools.partial(Demo, agent_argv=[*MUTANT, "skip"])
    monkeypatch.setattr(command, "Demo", mutant)
    report = tmp_path / "report.json"
    words = ["--seconds", "6", "--lamps", "0", "--bays", "1", "--air", "0"]
    words += ["--folder", str(tmp_path / "run"), "--report", str(report)]
    assert main(["demo", *words]) == 1
    found = json.loads(report.read_text())
    assert (found["lost"], found["duplicate"]) == (1, 0)
    assert "lost 1, duplicate 0" in capsys.readouterr().out


async def test_a_device_that_never_arrives_fails_the_demo(tmp_path: Path) -> None:
    plan = street_plan(5, lamps=0, bays=2, air=0)
    demo = Demo(plan, tmp_path / "run", agent_argv=[*MUTANT, "silence"])
    async with asyncio.timeout(DEADLINE_S):
        audit = await demo.run(asyncio.Event(), 3.0)
    silent = audit.devices["bay-001"]
    assert (silent.stored, silent.lost) == (0, silent.taken)
    assert silent.taken > 0
    assert (audit.lost, audit.duplicate) == (silent.lost, 0)
    assert not audit.passed


async def test_an_agent_that_dies_by_itself_is_not_excused(tmp_path: Path) -> None:
    """What a killed agent had in hand is no loss; what one loses that crashes is."""
    plan = street_plan(5, lamps=0, bays=2, air=0)
    demo = Demo(plan, tmp_path / "run", agent_argv=[*MUTANT, "crash"])
    async with asyncio.timeout(DEADLINE_S):
        audit = await demo.run(asyncio.Event(), 6.0)
    assert demo.children["agent"].restarts == 1
    assert not audit.passed
    assert audit.devices["bay-001"].lost == 1
    assert (audit.in_hand, audit.duplicate) == (0, 0)


# ------------------------------------------------------------------------------------------------------- a store


async def test_a_real_influxdb_holds_everything_once(
    tmp_path: Path, influx: Influx, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = influx.bucket()
    monkeypatch.setenv("INFLUX_TOKEN", bucket.token)
    plan = street_plan(7, lamps=4, bays=3, air=2)
    demo = Demo(plan, tmp_path / "run", store_url=bucket.url)
    async with asyncio.timeout(DEADLINE_S):
        audit = await demo.run(asyncio.Event(), 6.0)
    assert audit.passed
    assert (audit.lost, audit.duplicate, audit.refused) == (0, 0, 0)
    counted = sum(
        series["values"][0][1]
        for domain, metric in (("streetlight", "level"), ("parking", "occupied"), ("air", "pm2_5"))
        for series in bucket.query(f'SELECT count({metric}) FROM {domain} GROUP BY "device"')  # noqa: S608 - our words
    )
    assert counted == audit.stored > 30, "as InfluxDB counts them itself"


# ---------------------------------------------------------------------------------------------------- a terminal


class Terminal:
    """A program on a terminal of its own, as a person would run it."""

    def __init__(self, argv: list[str]) -> None:
        self._master, slave = pty.openpty()
        termios.tcsetwinsize(slave, (60, 160))
        self.process = subprocess.Popen(
            argv,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=functools.partial(fcntl.ioctl, 0, termios.TIOCSCTTY, 0),
            # its size is the terminal's own word: readline has told ours to whoever this process starts
            env=os.environ | {"TERM": "xterm-256color", "COLUMNS": "", "LINES": ""},
        )
        os.close(slave)
        self._shown = bytearray()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def shown(self) -> str:
        """Everything so far, without colours and movements."""
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self._shown.decode(errors="replace"))

    def type(self, keys: bytes) -> None:
        os.write(self._master, keys)

    def wait_for(self, pattern: str) -> None:
        deadline_s = time.monotonic() + DEADLINE_S
        while not re.search(pattern, self.shown):
            ended = self.process.poll() is not None
            self._reader.join(DEADLINE_S if ended else 0.05)
            done = ended or time.monotonic() > deadline_s
            assert not done or re.search(pattern, self.shown), self.shown[-3000:]

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(DEADLINE_S)
        self._reader.join(DEADLINE_S)
        os.close(self._master)

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._master, 65536)
            except OSError as error:
                assert error.errno == errno.EIO  # the program has closed its end
                return
            self._shown += data


@contextmanager
def terminal(*argv: str) -> Iterator[Terminal]:
    one = Terminal(list(argv))
    try:
        yield one
    finally:
        one.close()


def test_ctrl_c_drains_and_prints_the_audit(tmp_path: Path) -> None:
    run, report = tmp_path / "run", tmp_path / "report.json"
    words = ["demo", "--lamps", "2", "--bays", "2", "--air", "1"]
    with terminal(str(ONESTREET), *words, "--folder", str(run), "--report", str(report)) as screen:
        screen.wait_for("stored 已入庫")
        for device, metric in (
            ("lamp-001", "level"),
            ("lamp-002", "level"),
            ("bay-001", "occupied"),
            ("bay-002", "occupied"),
            ("air-001", "pm2_5"),
        ):
            screen.wait_for(f"{device} .*{metric}")
        screen.type(b"\x03")
        screen.wait_for("draining 收尾中")
        screen.wait_for("audit 稽核")
        screen.wait_for("lost 0, duplicate 0")
        assert screen.process.wait(DEADLINE_S) == 0
        assert "Traceback" not in screen.shown
        for word in ("路燈", "Modbus RTU", "Bluetooth", "serial"):
            assert word in screen.shown
    checked(json.loads(report.read_text()), 5)
    nobody_listens(run)


# --------------------------------------------------------------------------------------------------------- a seed


def test_a_seed_makes_a_town() -> None:
    def values(seed: int) -> list[object]:
        plan = street_plan(seed, lamps=3, bays=3, air=2)
        seen: list[object] = [plan]
        for hours in range(0, 24, 3):
            now_s = plan.start.timestamp() + 3600 * hours
            town = Town(seed, functools.partial(float, now_s), plan.place)
            seen += [town.physics(device.id, device.domain)() for device in plan.devices]
        return seen

    assert values(1) == values(1)
    assert values(1)[1:] != values(2)[1:]
