"""A run of the fuzzer notices a process that dies or hangs, says at which stream, and goes on behind it."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import tests.fuzz.runs
from tests.fuzz.__main__ import main
from tests.fuzz.runs import Finding, _keep, _Worker, replay
from tests.fuzz.streams import HANDSHAKE, Streams

DEADLINE_S = 60.0


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[_Worker]:
    worker = _Worker(1, range(5, 10**7), tmp_path)
    try:
        yield worker
    finally:
        worker._process.kill()
        worker._process.join()


def left(worker: _Worker) -> range:
    """What a worker leaves when it has ended."""
    deadline_s = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline_s:
        if (numbers := worker.watch()) is not None:
            return numbers
        threading.Event().wait(0.02)
    raise AssertionError("it works on")


def played(worker: _Worker, at_least: int) -> int:
    deadline_s = time.monotonic() + DEADLINE_S
    while worker.at.value < at_least:
        assert time.monotonic() < deadline_s
        assert worker.watch() is None
        threading.Event().wait(0.02)
    pid = worker._process.pid
    assert pid is not None
    return pid


def test_a_process_that_dies_is_a_finding(worker: _Worker) -> None:
    os.kill(played(worker, 20), signal.SIGKILL)
    numbers = left(worker)
    [finding] = worker.findings
    assert finding.kind == "ends--9"
    assert finding.number >= 20
    assert numbers == range(finding.number + 1, 10**7)


def test_a_process_that_hangs_is_a_finding(
    worker: _Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.kill(played(worker, 20), signal.SIGSTOP)
    monkeypatch.setattr(tests.fuzz.runs, "SILENT_S", 0.3)
    numbers = left(worker)
    [finding] = worker.findings
    assert finding.kind == "hangs"
    assert numbers[0] == finding.number + 1


def test_a_finding_becomes_a_file_that_plays_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _keep(1, Finding(3, "Unaccounted-check-1", "a sample is missing"), tmp_path)
    [file] = tmp_path.iterdir()
    assert file.read_bytes() == Streams(1).stream(3)
    assert f"python -m tests.fuzz {file}" in capsys.readouterr().out
    assert replay([file]) == 0


def test_what_is_wrong_in_a_file_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("exchange.mqtt._Connection.acknowledge", lambda _self, _ids: None)
    publish = bytes.fromhex("320600016100 07 00")
    file = tmp_path / "one.bin"
    file.write_bytes(HANDSHAKE + publish)
    monkeypatch.setattr("sys.argv", ["fuzz", str(file)])
    assert main() == 1
    assert "sent and acknowledged" in capsys.readouterr().out
