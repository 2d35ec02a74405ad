"""The command `onestreet`: what it offers, what it answers to a wrong word, and what it needs."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from exchange.errors import ConfigError, StoreError
from onestreet import cli
from onestreet.cli import SUBCOMMANDS, main

PMS_FRAME = (
    "42 4d 00 1c 00 05 00 08 00 0a 00 05 00 08 00 0a 04 e3 01 62 00 3e 00 0a 00 02 00 01 97 00"
)


def pms_frame() -> str:
    body = bytes.fromhex(PMS_FRAME)
    return (body + sum(body).to_bytes(2, "big")).hex()


def ended(argv: Sequence[str]) -> object:
    with pytest.raises(SystemExit) as caught:
        main(argv)
    return caught.value.code


# ----------------------------------------------------------------------------------------- the command as a whole


@pytest.mark.parametrize("words", [["lamp"], [], ["--verbose"]])
def test_a_wrong_word(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("usage: onestreet")


def test_the_help_lists_everything(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(["--help"]) == 0
    out = capsys.readouterr().out
    for name, subcommand in SUBCOMMANDS.items():
        assert f"  {name:<12}{subcommand.words}" in out


@pytest.mark.parametrize(
    "words",
    [
        *([name] for name in SUBCOMMANDS),
        *(["edge", action] for action in ("run", "check", "read")),
    ],
    ids=" ".join,
)
def test_every_command_explains_itself(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended([*words, "--help"]) == 0
    out, err = capsys.readouterr()
    assert f"usage: onestreet {' '.join(words)} " in out
    assert err == ""


@pytest.mark.parametrize("name", [name for name in SUBCOMMANDS if name != "decode"])
def test_every_command_refuses_a_wrong_option(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended([name, "--colour=blue"]) == 2
    assert f"usage: onestreet {name}" in capsys.readouterr().err


def run_without(module: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the command where a module is not installed."""
    program = (
        f"import sys; sys.modules[{module!r}] = None\n"
        "from onestreet.cli import main\n"
        f"sys.exit(main({list(words)!r}))"
    )
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=30
    )


@pytest.mark.parametrize(
    ("module", "words", "extra"),
    [
        ("mqtt5", ["edge", "run"], "edge"),
        ("pymodbus", ["edge", "read", "lamp"], "edge"),
        ("mqtt5", ["ingest", "run"], "ingest"),
        ("mqtt5", ["watch", "run"], "ingest"),
        ("rich", ["demo"], "all"),
        ("cryptography", ["decode", "bthome", "--hex", "40"], "edge"),
    ],
)
def test_what_is_not_installed_is_named_with_the_extra(
    module: str, words: list[str], extra: str
) -> None:
    done = run_without(module, *words)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(f"onestreet {words[0]} needs {module}")
    assert done.stderr.endswith(f"pip install 'onestreet[{extra}]'\n")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (ConfigError("f.toml", "k", 1, "2"), 2, "configuration error 設定錯誤: f.toml: k = 1: 2\n"),
        (StoreError("full"), 1, "full\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_what_a_command_raises_on_purpose_is_no_traceback(
    error: BaseException,
    status: int,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(argv: Sequence[str]) -> int:
        raise error

    monkeypatch.setattr("onestreet.decode.run", fail)
    assert main(["decode"]) == status
    assert capsys.readouterr().err == words


def test_the_installed_command_is_this_one() -> None:
    command = Path(sys.executable).with_name("onestreet")
    done = subprocess.run([command, "--help"], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0
    assert cli.__name__ == "onestreet.cli"
    assert "a simulated town, end to end" in done.stdout


@pytest.mark.parametrize(
    ("redirection", "status"),
    [("| true", 0), (">&-", 0), (">/dev/full", 1)],
    ids=["a pipe that is closed", "no stdout", "a disk that is full"],
)
def test_whoever_does_not_listen_gets_no_traceback(redirection: str, status: int) -> None:
    command = f"'{sys.executable}' -m onestreet.cli town check towns/tw-tpe.toml {redirection}"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=30)
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_a_terminal_that_has_no_chinese_is_no_reason_to_stop() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "onestreet.cli", "town", "check", "towns/tw-tpe.toml"],
        capture_output=True,
        text=True,
        timeout=30,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )
    assert done.returncode == 0, done.stderr
    assert "tw-tpe Taipei City" in done.stdout


def test_a_folder_that_cannot_be_written_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert main(["town", "init", "towns/tw-tpe.toml", "--into", str(tmp_path / "file" / "x")]) == 1
    err = capsys.readouterr().err
    assert f"{tmp_path / 'file' / 'x'}: Not a directory" in err


# --------------------------------------------------------------------------------------------------------- decode


def decoded(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, object]]:
    status = main(["decode", *words])
    out, err = capsys.readouterr()
    assert err == ""
    assert out.endswith("\n")
    assert out.count("\n") == 1, "one line"
    answer: dict[str, object] = json.loads(out)
    return status, answer


def test_decode_prints_samples(capsys: pytest.CaptureFixture[str]) -> None:
    status, answer = decoded(capsys, "plantower_pms", "--hex", pms_frame(), pms_frame())
    assert status == 0
    samples = answer["samples"]
    assert isinstance(samples, list)
    assert len(samples) == 2
    assert samples[0]["metrics"]["pm2_5"] == 8
    assert samples[0]["quality"] is None


@pytest.mark.parametrize(
    ("words", "kind", "message"),
    [
        (["plantower_pms", "--hex", pms_frame()[:-2] + "00"], "bad_checksum", "sum"),
        (["plantower_pms", "--hex", "00"], "bad_header", "42 4D"),
        (["plantower_pms", "--hex", "4"], "bad_hex", "'4'"),
        (["plantower", "--hex", "42"], "unknown_driver", "bthome, intesis_dali, plantower_pms"),
        (["plantower_pms"], "usage", "--hex"),
        ([], "usage", "DRIVER"),
        (["plantower_pms", "--hex", "42", "--context", "{"], "bad_context", "not JSON"),
        (["plantower_pms", "--hex", "42", "--context", "[]"], "bad_context", "JSON object"),
        (["plantower_pms", "--hex", "42", "--context", "[" * 100_000], "bad_context", "not JSON"),
        (["plantower_pms", "--hex", "42", "--context", '{"model": "x"}'], "bad_context", "'x'"),
    ],
)
def test_decode_says_what_is_wrong(
    words: list[str], kind: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, answer = decoded(capsys, *words)
    assert status == 1
    error = answer["error"]
    assert isinstance(error, dict)
    assert set(error) == {"kind", "message", "offset"}
    assert error["kind"] == kind
    assert message in error["message"]
    assert isinstance(error["offset"], int)


# ----------------------------------------------------------------------------------------------------------- demo


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seconds", "0"], "argument --seconds: '0' is not a number above 0"),
        (["--seconds", "nan"], "'nan' is not a number above 0"),
        (["--speed", "fast"], "argument --speed: 'fast' is not a number above 0"),
        (["--lamps", "-1"], "'-1' is not a whole number from 0 to 64"),
        (["--air", "65"], "'65' is not a whole number from 0 to 64"),
        (["--kill", "store@3"], "expected WHO@SECONDS, WHO one of agent, ingest, broker"),
        (["--kill", "agent"], "argument --kill: '' is not a number above 0"),
        (["--lamps=0", "--bays=0", "--air=0"], "a town needs a device"),
    ],
)
def test_the_demo_refuses_what_it_cannot_do(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(["demo", *words]) == 2
    assert message in capsys.readouterr().err


def test_the_demo_needs_a_folder_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "truth.jsonl").touch()
    assert main(["demo", "--seconds", "1", "--folder", str(tmp_path)]) == 2
    assert f"folder = '{tmp_path}': must be new or empty" in capsys.readouterr().err


@pytest.mark.parametrize("key", ["folder", "report"])
def test_the_demo_says_at_once_where_it_cannot_write(
    key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = {"folder": str(tmp_path / "run")}
    words[key] = "/proc/nowhere/run"
    assert main(["demo", *(f"--{name}={value}" for name, value in words.items())]) == 2
    assert f"{key} = '/proc/nowhere/run': must be a f" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_demo_says_at_once_that_the_store_is_away(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INFLUX_TOKEN", "any")
    with socket.socket() as closed:  # bound, not listening: nobody else gets the port
        closed.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{closed.getsockname()[1]}"
        words = ["--store", f"influxdb://{place}/town/bucket", "--folder", str(tmp_path / "run")]
        assert main(["demo", *words]) == 1
    assert place in capsys.readouterr().err
    assert not (tmp_path / "run" / "town").exists(), "nothing was started"


def test_the_demo_refuses_a_store_that_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", "--store", "mongodb://x", "--folder", str(tmp_path / "run")]) == 2
    assert "mongodb://x" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
