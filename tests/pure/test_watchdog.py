"""The service manager hears of an agent for as long as it gets on: a loop or a thread that hangs falls silent."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from edge_agent.outbox import Outbox
from exchange.errors import OnestreetError
from exchange.runtime import keep_watchdog, watchdog_s

DEADLINE_S = 30.0
ALLOWED_S = 0.4


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """What systemd is to a service: a datagram socket, and two words in the environment."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", str(round(ALLOWED_S * 1e6)))
        monkeypatch.delenv("WATCHDOG_PID", raising=False)
        yield channel


def heard(channel: socket.socket, within_s: float) -> bytes:
    """Return the next word of the service, empty when there is none."""
    channel.settimeout(within_s)
    with suppress(TimeoutError):
        return channel.recv(100)
    return b""


async def heard_meanwhile(channel: socket.socket, within_s: float = DEADLINE_S) -> bytes:
    return await asyncio.to_thread(heard, channel, within_s)


def until_silent(channel: socket.socket) -> None:
    """Return once nothing has come for longer than the manager allows; it would restart the service now."""
    while heard(channel, 2 * ALLOWED_S):
        pass


@pytest.mark.parametrize(
    ("allowed", "process", "seconds"),
    [
        ("60000000", "", 60.0),
        pytest.param("60000000", str(os.getpid()), 60.0, id="this process"),
        ("60000000", "1", None),  # meant for another process
        ("0", "", None),
        ("", "", None),
        ("soon", "", None),
    ],
)
def test_what_the_manager_allows(
    allowed: str, process: str, seconds: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", allowed)
    monkeypatch.setenv("WATCHDOG_PID", process)
    assert watchdog_s() == seconds


async def test_without_a_watching_manager_it_returns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)

    async def progress() -> None:
        raise AssertionError("nobody wants to know")

    await keep_watchdog(progress)


async def test_a_thread_that_hangs_falls_silent_and_is_heard_again(
    manager: socket.socket, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    outbox = Outbox(tmp_path / "outbox.sqlite")
    await outbox.open()
    watchdog = asyncio.create_task(keep_watchdog(lambda: outbox.find([])))
    hung = threading.Event()
    try:
        for _ in range(3):
            assert await heard_meanwhile(manager) == b"WATCHDOG=1"
        outbox._thread.submit(hung.wait)
        await asyncio.to_thread(until_silent, manager)
        assert "no progress: the service manager is told nothing" in caplog.text
        hung.set()
        assert await heard_meanwhile(manager) == b"WATCHDOG=1"
    finally:
        hung.set()
        watchdog.cancel()
        await asyncio.gather(watchdog, return_exceptions=True)
        await outbox.close()


async def test_what_answers_with_an_error_is_no_progress(manager: socket.socket) -> None:
    async def progress() -> None:
        raise OnestreetError("the outbox is gone")

    watchdog = asyncio.create_task(keep_watchdog(progress))
    assert await heard_meanwhile(manager, 3 * ALLOWED_S) == b""
    watchdog.cancel()
    await asyncio.gather(watchdog, return_exceptions=True)


def test_a_loop_that_hangs_falls_silent(manager: socket.socket) -> None:
    program = (
        "import asyncio, signal, threading; from exchange.runtime import keep_watchdog, run\n"
        "async def progress(): pass\n"
        "async def main():\n"
        "    loop = asyncio.get_running_loop()\n"
        "    loop.add_signal_handler(signal.SIGUSR1, threading.Event().wait)  # for ever\n"
        "    await keep_watchdog(progress)\n"
        "run(main())"
    )
    process = subprocess.Popen([sys.executable, "-c", program])
    try:
        for _ in range(3):
            assert heard(manager, DEADLINE_S) == b"WATCHDOG=1"
        process.send_signal(signal.SIGUSR1)
        until_silent(manager)
        assert process.poll() is None, "it hangs; the manager would kill it"
    finally:
        process.kill()
        process.wait(DEADLINE_S)
