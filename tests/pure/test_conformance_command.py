"""The command `onestreet conform`: a wrong command line is named, a broker that is not there is no verdict."""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path
from types import ModuleType

import pytest

from exchange.conformance import command
from exchange.conformance.judgement import Judge, Report
from exchange.conformance.witness import Address
from exchange.errors import ConfigError
from onestreet.cli import main
from tests.ports import free_port

SECRET = "hunter2"
GOOD = ["--broker", "mqtt://127.0.0.1:1", "--county", "tw-tpe", "--gateway", "g", "--device", "d"]


@pytest.mark.parametrize("role", command.ROLES)
def test_every_role_explains_itself(role: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.run([role, "--help"])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert "--broker" in out
    assert "--junit" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "ROLE"),
        (["nobody"], "nobody"),
        (["device"], "--broker"),
        (["device", *GOOD, "--county", "Taipei"], "ISO 3166-2"),
        (["device", *GOOD, "--device", "a/b"], "not one level of a topic"),
        (["device", *GOOD, "--device", "#"], "not one level of a topic"),
        (["device", *GOOD, "--seconds", "soon"], "number of seconds"),
        (["gateway", *GOOD[:-2], "--cable", "x"], "not PORT or HOST:PORT"),
        (["gateway", *GOOD[:-2], "--cable", "70000"], "not PORT or HOST:PORT"),
        (["gateway", *GOOD[:-2], "--window", "0"], "whole number above 0"),
    ],
)
def test_a_wrong_word_is_named(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        command.run(words)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--broker", "http://broker"], "mqtt[s]://[user@]host[:port]"),
        (["--broker", f"mqtt://u:{SECRET}@broker"], "a password comes from a file"),
        (["--broker", "mqtt://broker:port"], "--broker"),
        (["--password-env", "NOT_SET"], "must be set in the environment"),
        (["--password-env", "KIT_PASSWORD"], "a password needs a user"),
        (
            ["--broker", "mqtt://kit@broker.example", "--password-env", "KIT_PASSWORD"],
            "a password goes by mqtts:// only",
        ),
        (["--cert", "a.pem"], "--cert and --key need --ca"),
        (["--ca", "/nowhere.pem"], "/nowhere.pem"),
        (["--html", "/nowhere/report.html"], "--html"),
        (["--json", "/"], "--json"),
    ],
)
def test_a_wrong_setting_is_named_and_no_secret_told(
    words: list[str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("KIT_PASSWORD", SECRET)
    assert main(["conform", "device", *GOOD, *words]) == command.WRONG
    err = capsys.readouterr().err
    assert said in err
    assert SECRET not in err


@pytest.mark.parametrize("role", ["device", "gateway", "application"])
def test_a_broker_that_is_not_there_is_no_verdict(
    role: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    device = ["--device", "d"] if role == "device" else []
    where = ["--broker", f"mqtt://127.0.0.1:{free_port()}", "--county", "tw-tpe", "--gateway", "g"]
    report = tmp_path / "report.json"
    status = command.run([role, *where, *device, "--json", str(report)])
    assert status == command.UNJUDGED
    assert "not judged 無法判定" in capsys.readouterr().err
    assert not report.exists()


class Stub(ModuleType):
    """A role that says what it is told to."""

    kept: tuple[str, ...] = ()
    broken: tuple[str, ...] = ()

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--gateway")

    @classmethod
    async def judge(cls, _asked: argparse.Namespace, _address: Address) -> Report:
        judge = Judge("device", "x")
        for requirement in cls.kept:
            judge.kept(requirement, "seen")
        for requirement in cls.broken:
            judge.broken(requirement, "seen")
        return judge.report()


@pytest.mark.parametrize(
    ("kept", "broken", "status"),
    [
        (("EX-T-001",), (), command.PASSED),
        (("EX-T-001",), ("EX-R-001",), command.FAILED),
        ((), ("EX-R-001",), command.FAILED),
        ((), (), command.UNJUDGED),
    ],
)
def test_the_status_says_what_was_found_and_the_reports_are_written(
    kept: tuple[str, ...],
    broken: tuple[str, ...],
    status: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stub = type("Stub", (Stub,), {"kept": kept, "broken": broken})("stub")
    monkeypatch.setitem(sys.modules, "exchange.conformance.device", stub)
    files = {kind: tmp_path / f"report.{kind}" for kind in ("json", "junit", "html")}
    words = [word for kind, file in files.items() for word in (f"--{kind}", str(file))]
    where = ["--broker", "mqtt://127.0.0.1:1", "--county", "tw-tpe"]
    assert command.run(["device", *where, *words]) == status
    assert all(file.stat().st_size > 500 for file in files.values())
    for requirement in broken:
        assert requirement in capsys.readouterr().out


@pytest.mark.parametrize("spoiled", ["a disk that is full", "a pipe that is closed"])
def test_what_can_be_written_of_the_reports_is_written(
    spoiled: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stub = type("Stub", (Stub,), {"kept": ("EX-T-001",)})("stub")
    monkeypatch.setitem(sys.modules, "exchange.conformance.device", stub)
    page = tmp_path / "report.html"
    words = ["--broker", "mqtt://127.0.0.1:1", "--county", "tw-tpe", "--html", str(page)]
    if spoiled == "a pipe that is closed":

        class Closed(io.StringIO):
            def write(self, _words: str) -> int:
                raise BrokenPipeError

        monkeypatch.setattr(sys, "stdout", Closed())
        with pytest.raises(BrokenPipeError):
            command.run(["device", *words])
    else:
        with pytest.raises(ConfigError, match="/dev/full"):
            command.run(["device", *words, "--json", "/dev/full"])
        assert "EX-T-001" in capsys.readouterr().out
    assert page.stat().st_size > 500
