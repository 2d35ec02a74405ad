"""What every process does alike: tells the service manager, logs JSON lines, stops when told."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import secrets
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest

from exchange.processes import Child, ProcessFailed
from exchange.runtime import JsonLines, notify, run, stop_on_signals

DEADLINE_S = 20.0


@pytest.fixture
def manager() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.settimeout(DEADLINE_S)
        yield channel


# ------------------------------------------------------------------------------------------- the service manager


def test_ready_is_said_on_a_socket_with_a_path(
    manager: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager.bind(str(tmp_path / "notify"))
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    notify("READY=1")
    assert manager.recv(100) == b"READY=1"


def test_ready_is_said_on_an_abstract_socket(
    manager: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"test-{secrets.token_hex(8)}"
    manager.bind(f"\0{name}")
    monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
    notify("STATUS=忙碌\nREADY=1")
    assert manager.recv(100) == "STATUS=忙碌\nREADY=1".encode()


def test_without_a_manager_nothing_happens(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify("READY=1")
    assert caplog.records == []


def test_a_manager_that_is_gone_is_no_reason_to_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    notify("READY=1")
    assert "the service manager cannot be told" in caplog.text


def test_a_manager_that_does_not_listen_holds_nothing_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        while not caplog.records:  # until its queue is full: 10 to 512 words, by the kernel
            notify("STATUS=well")
    assert "the service manager cannot be told: timed out" in caplog.text


# ------------------------------------------------------------------------------------------------------- logging


@pytest.fixture
def logger() -> Iterator[tuple[logging.Logger, io.StringIO]]:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines())
    logger = logging.getLogger("tests.of.json.lines")
    logger.propagate = False
    logger.setLevel("DEBUG")
    logger.addHandler(handler)
    yield logger, stream
    logger.removeHandler(handler)


def test_an_event_is_one_line_of_json(logger: tuple[logging.Logger, io.StringIO]) -> None:
    log, stream = logger
    log.warning("a %s\nwas heard", "裝置", extra={"device": "aq-1", "path": Path("/x"), "n": 3})
    text = stream.getvalue()
    assert text.count("\n") == 1
    line = json.loads(text)
    at = datetime.fromisoformat(line.pop("time"))
    assert abs((datetime.now(UTC) - at).total_seconds()) < DEADLINE_S
    assert line == {
        "level": "warning",
        "logger": "tests.of.json.lines",
        "message": "a 裝置\nwas heard",
        "device": "aq-1",
        "path": "/x",
        "n": 3,
    }


def test_what_an_event_is_about_overwrites_nothing_of_the_line(
    logger: tuple[logging.Logger, io.StringIO],
) -> None:
    """A lamp's level is no severity: whoever filters by it would never see the warning."""
    log, stream = logger
    about = {"level": 100, "time": "18:00", "logger": "a", "device": "lamp-1", "exception": "none"}
    try:
        raise ValueError("no such lamp")
    except ValueError:
        log.warning("could not be switched", extra=about, exc_info=True)
    line = json.loads(stream.getvalue())
    assert (line["level"], line["logger"]) == ("warning", "tests.of.json.lines")
    assert datetime.fromisoformat(line["time"])
    assert line["exception"].endswith("ValueError: no such lamp")
    assert line["device"] == "lamp-1"
    kept = {key: line[f"extra_{key}"] for key in ("level", "time", "logger", "exception")}
    assert kept == {key: about[key] for key in kept}


def test_an_exception_stays_on_its_line(logger: tuple[logging.Logger, io.StringIO]) -> None:
    log, stream = logger
    try:
        raise ValueError("no such lamp")
    except ValueError:
        log.exception("failed")
    text = stream.getvalue()
    assert text.count("\n") == 1
    line = json.loads(text)
    assert line["message"] == "failed"
    assert line["exception"].endswith("ValueError: no such lamp")


def test_processes_log_json_to_stderr_and_nothing_to_stdout() -> None:
    program = (
        "import logging; from exchange.runtime import log_to_stderr; log_to_stderr()\n"
        "logging.getLogger('x').info('hello'); logging.getLogger('x').debug('hidden')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=30)
    assert done.stdout == b""
    (line,) = done.stderr.splitlines()
    assert json.loads(line)["message"] == "hello"


# ------------------------------------------------------------------------------------------------ running, stopping


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_stops_in_an_orderly_way(number: signal.Signals) -> None:
    async def main() -> int:
        stop = stop_on_signals()
        assert not stop.is_set()
        os.kill(os.getpid(), number)
        async with asyncio.timeout(DEADLINE_S):
            await stop.wait()
        return 7

    earlier = signal.signal(number, signal.SIG_DFL)  # whoever runs the tests may ignore it
    try:
        assert run(main()) == 7
    finally:
        signal.signal(number, earlier)


def test_nohup_is_respected() -> None:
    program = (
        "import asyncio, os, signal; from exchange.runtime import run, stop_on_signals\n"
        "async def main():\n"
        "    stop = stop_on_signals(); os.kill(os.getpid(), signal.SIGHUP)\n"
        "    os.kill(os.getpid(), signal.SIGTERM); await stop.wait(); return 7\n"
        "signal.signal(signal.SIGHUP, signal.SIG_IGN); code = run(main())\n"
        "raise SystemExit(code if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else 1)"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=DEADLINE_S).returncode == 7


# ------------------------------------------------------------------------------------------------ child processes

READY = "import sys; from exchange.runtime import notify; notify('READY=1'); "


def child(folder: Path, program: str) -> Child:
    return Child("child", [sys.executable, "-c", program], folder)


async def until_restarted(one: Child, times: int) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while one.restarts < times or not one.ready.is_set():  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0.01)


async def test_a_child_says_itself_that_it_is_ready(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100) / ("e" * 100)  # no path for a socket
    deep.mkdir(parents=True)
    one = child(deep, READY + "import signal; signal.pause()")
    await one.start()
    assert one.ready.is_set()
    assert one.pid
    assert await one.stop(DEADLINE_S)
    assert one.pid == 0


async def test_a_child_that_does_not_start_is_told_with_its_last_words(tmp_path: Path) -> None:
    one = child(tmp_path, "raise SystemExit('no such lamp')")
    with pytest.raises(ProcessFailed, match="no such lamp"):
        await one.start()
    assert await one.stop(1.0)


async def test_a_killed_child_comes_back_until_it_is_stopped(tmp_path: Path) -> None:
    changes: list[str] = []
    one = Child(
        "child",
        [sys.executable, "-c", READY + "import signal; signal.pause()"],
        tmp_path,
        on_change=changes.append,
    )
    await one.start()
    wiped: list[int] = []
    one.kill(lambda: wiped.append(one.pid))
    await until_restarted(one, 1)
    assert wiped == [0], "while nothing runs"
    assert changes == ["ready", "died", "ready"]
    assert await one.stop(DEADLINE_S)
    assert one.pid == 0
    assert changes == ["ready", "died", "ready"], "being stopped is no death"


def test_a_child_does_not_outlive_a_killed_parent(tmp_path: Path) -> None:
    program = (
        "import asyncio, os, signal, sys; from pathlib import Path\n"
        "from exchange.processes import Child\n"
        f"child = Child('child', [sys.executable, '-c', {READY + 'import signal; signal.pause()'!r}],"
        f" Path({str(tmp_path)!r}))\n"
        "async def main():\n"
        "    await child.start(); print(child.pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)\n"
        "asyncio.run(main())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=DEADLINE_S)
    assert done.returncode == -signal.SIGKILL, done.stderr
    with suppress(ProcessLookupError):  # it may be gone already
        orphan = os.pidfd_open(int(done.stdout))
        ended, _, _ = select.select([orphan], [], [], DEADLINE_S)
        os.close(orphan)
        assert ended


async def test_one_that_waits_for_others_says_what_for(tmp_path: Path) -> None:
    waits = (
        "import signal, sys; from exchange.runtime import notify; notify('STATUS=waiting for 燈')\n"
    )
    ready = "signal.sigwait({signal.SIGUSR1}); notify('READY=1\\nSTATUS=lit'); signal.pause()"
    blocked = "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})\n"
    said: list[str] = []
    argv = [sys.executable, "-c", blocked + waits + ready]
    one = Child("child", argv, tmp_path, ready_s=None, on_words=lambda: said.append(one.words))
    await one.begin()
    async with asyncio.timeout(DEADLINE_S):
        while not said:  # noqa: ASYNC110 - the test's own list
            await asyncio.sleep(0.01)
    assert not one.ready.is_set()
    os.kill(one.pid, signal.SIGUSR1)
    async with asyncio.timeout(DEADLINE_S):
        await one.ready.wait()
    assert said == ["waiting for 燈", "lit"]
    assert await one.stop(DEADLINE_S)
    assert one.exit_code == -signal.SIGTERM


async def test_one_that_never_gets_ready_is_brought_back_and_stopped(tmp_path: Path) -> None:
    one = Child("child", [sys.executable, "-c", "raise SystemExit(3)"], tmp_path, ready_s=None)
    await one.begin()
    async with asyncio.timeout(DEADLINE_S):
        while one.restarts < 2:  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0.01)
    assert await one.stop(DEADLINE_S)
    assert one.exit_code in (3, -signal.SIGTERM)


async def test_stopping_one_that_is_just_being_brought_back(tmp_path: Path) -> None:
    one = child(tmp_path, READY + "import signal; signal.pause()")
    await one.start()
    one.kill()
    async with asyncio.timeout(DEADLINE_S):
        while one.ready.is_set():  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0.001)
        assert await one.stop(DEADLINE_S)
    assert one.pid == 0


async def test_a_child_that_does_not_listen_is_killed(tmp_path: Path) -> None:
    deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    one = child(tmp_path, deaf + READY + "\nwhile True: signal.pause()")
    await one.start()
    assert not await one.stop(0.1)
    assert one.pid == 0
