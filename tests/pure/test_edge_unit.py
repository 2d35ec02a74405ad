"""The agent's unit for systemd: systemd itself reads it, rates it, and makes the user it names."""

from __future__ import annotations

import configparser
import re
import subprocess
import sys
from pathlib import Path

import pytest

from edge_agent.cli import parser
from exchange.gateway_paths import CONFIG, RUNTIME, STATE

FOLDER = Path(__file__).parents[2] / "deploy" / "systemd"
UNIT = FOLDER / "onestreet-edge.service"
DEADLINE_S = 60.0
WORST_EXPOSURE = 20  # tenths; systemd calls what is below 2.0 well protected


def said(*command: str | Path) -> str:
    """Return everything that a command of systemd says; it must succeed."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def keys(name: str) -> dict[str, list[str]]:
    """Return a unit's settings; a key may come several times."""
    found: dict[str, list[str]] = {}
    for line in (FOLDER / name).read_text("utf-8").splitlines():
        if match := re.fullmatch(r"(\w+)=(.*)", line):
            found.setdefault(match[1], []).append(match[2])
    return found


def test_systemd_finds_nothing_wrong_with_it(tmp_path: Path) -> None:
    text = UNIT.read_text("utf-8")
    here = tmp_path / UNIT.name
    here.write_text(text.replace("/opt/onestreet/current/bin/onestreet", sys.executable))
    assert sys.executable in here.read_text()
    words = said("systemd-analyze", "verify", "--man=no", "--recursive-errors=no", here)
    assert words.strip() == ""


def test_systemd_rates_it_as_well_protected() -> None:
    threshold = f"--threshold={WORST_EXPOSURE}"
    rated = said("systemd-analyze", "security", "--no-pager", "--offline=true", threshold, UNIT)
    assert "Overall exposure level" in rated


def test_a_key_that_systemd_does_not_know_would_be_found(tmp_path: Path) -> None:
    """The checks above can fail: systemd speaks of what it leaves out."""
    here = tmp_path / UNIT.name
    text = UNIT.read_text("utf-8").replace("/opt/onestreet/current/bin/onestreet", sys.executable)
    here.write_text(text.replace("WatchdogSec=60", "WatchDogSec=60"))
    command = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(here)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S)
    assert "WatchDogSec" in done.stderr


def test_what_it_starts_is_a_command_of_ours() -> None:
    [start] = keys(UNIT.name)["ExecStart"]
    program, room, *words = start.split()
    assert (program, room) == ("/opt/onestreet/current/bin/onestreet", "edge")
    arguments = parser().parse_args(words)
    assert arguments.action == "run"
    assert keys(UNIT.name)["ConditionPathExists"] == [str(arguments.config)]


def test_programs_look_where_the_unit_puts_it() -> None:
    unit = keys(UNIT.name)
    assert unit["ConditionPathExists"] == [str(CONFIG)]
    assert Path("/var/lib", unit["StateDirectory"][0]) == STATE
    assert Path("/run", unit["RuntimeDirectory"][0]) == RUNTIME
    assert f"\nCONFIG={CONFIG}\n" in (FOLDER.parent / "edge" / "install.sh").read_text("utf-8")


def test_it_is_watched_and_always_comes_back() -> None:
    unit = keys(UNIT.name)
    assert unit["Type"] == ["notify"]
    assert int(unit["WatchdogSec"][0]) > 0
    assert unit["Restart"] == ["always"]
    assert unit["StartLimitIntervalSec"] == ["0"], "else systemd gives up on a pole nobody visits"
    back_off = configparser.ConfigParser()
    back_off.read(FOLDER / "back-off.conf")
    assert back_off.getint("Service", "RestartMaxDelaySec") > int(unit["RestartSec"][0])


def test_ports_that_it_may_open_are_known_when_it_starts() -> None:
    """A name in DeviceAllow counts only once the kernel has the driver: those of USB come with an adapter."""
    allowed = {word.split()[0] for word in keys(UNIT.name)["DeviceAllow"]}
    assert allowed == {"char-ttyUSB", "char-ttyACM", "char-ttyS", "char-ttyAMA"}
    modules = (FOLDER / "onestreet.modules-load.conf").read_text().splitlines()
    assert {"usbserial", "cdc_acm"} <= set(modules)


def test_its_user_is_made_and_may_use_ports_and_bluetooth(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    said("systemd-sysusers", f"--root={tmp_path}", FOLDER / "onestreet.sysusers.conf")
    user = keys(UNIT.name)["User"][0]
    passwd = (tmp_path / "etc" / "passwd").read_text()
    assert re.search(
        rf"^{user}:[^:]*:\d+:\d+:[^:]*:/var/lib/onestreet:\S*nologin$", passwd, re.MULTILINE
    )
    groups = dict(
        re.findall(r"^(\w+):[^:]*:\d+:(.*)$", (tmp_path / "etc/group").read_text(), re.MULTILINE)
    )
    assert {name for name, members in groups.items() if members == user} == {
        "dialout",
        "bluetooth",
    }


@pytest.mark.parametrize("call", ["adjtimex", "clock_adjtime"])
def test_the_clock_may_be_asked(call: str) -> None:
    """The last filter wins: what comes after the groups that are denied is allowed."""
    filters = keys(UNIT.name)["SystemCallFilter"]
    assert filters[0] == "@system-service"
    assert call in filters[-1].split()
    assert "ProtectClock" not in keys(UNIT.name)
