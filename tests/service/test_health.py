"""Health as a container's health check asks for it: real processes whose broker or store goes and comes back."""

from __future__ import annotations

import asyncio
import os
import signal
import socket as socketlib
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

from exchange.health import ANSWER_S, VARIABLE, ask
from tests.brokers import Mosquitto
from tests.gateways import until
from tests.influx import Influx
from tests.worker_groups import WorkerGroup

DEADLINE_S = 40.0


@contextmanager
def running(room: str, *, config: Path, socket: Path) -> Iterator[subprocess.Popen[bytes]]:
    words = {"ingest": ["-m", "ingest"], "watch": ["-m", "onestreet.cli", "watch", "run"]}[room]
    with config.with_name(f"{room}.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, *words, config],
            env=os.environ | {VARIABLE: str(socket)},
            stdout=log,
            stderr=log,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait(DEADLINE_S)


async def until_it_says(socket: Path, words: str, *, anywhere: bool = False) -> None:
    said = ""
    try:
        async with asyncio.timeout(DEADLINE_S):
            while not (words in said if anywhere else said.startswith(words)):
                await asyncio.sleep(0.05)
                said = await ask(str(socket))
    except TimeoutError:
        pytest.fail(f"it says {said!r}, not {words!r}")


def checked(socket: Path) -> tuple[int, str]:
    """What the container's own check makes of it."""
    done = subprocess.run(
        [sys.executable, "-m", "exchange.health"],
        env=os.environ | {VARIABLE: str(socket)},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    return done.returncode, done.stdout.strip()


@pytest.mark.parametrize("room", ["ingest", "watch"])
async def test_a_service_is_well_while_broker_and_store_are_there(
    room: str,
    tmp_path: Path,
    broker: Mosquitto,
    influx: Influx,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bucket = influx.bucket()
    monkeypatch.setenv("INFLUX_TOKEN", bucket.token)
    config, socket = tmp_path / "ingest.toml", tmp_path / "health"
    config.write_text(
        f'counties = ["tw-tpe"]\nstore = "{bucket.url}"\n'
        f'[broker]\nhost = "{broker.host}"\nport = {broker.port}\n'
    )
    assert checked(socket)[0] == 1, "nobody is there yet"
    with running(room, config=config, socket=socket) as process:
        await until_it_says(socket, "ready")
        assert await asyncio.to_thread(checked, socket) == (0, "ready")

        broker.kill()
        await until_it_says(socket, "waiting for the broker")
        status, words = await asyncio.to_thread(checked, socket)
        assert (status, words[:22]) == (1, "waiting for the broker")
        broker.start()
        await until_it_says(socket, "ready")

        influx.kill()
        try:
            await until_it_says(socket, "waiting for the store")
            assert (await asyncio.to_thread(checked, socket))[0] == 1
        finally:
            await asyncio.to_thread(influx.start)
        await until_it_says(socket, "ready")
        process.terminate()
        assert await asyncio.to_thread(process.wait, DEADLINE_S) == 0
    assert not socket.exists()


async def test_a_process_that_hangs_is_not_well(tmp_path: Path, broker: Mosquitto) -> None:
    config, socket = tmp_path / "ingest.toml", tmp_path / "health"
    config.write_text(
        'counties = ["tw-tpe"]\nstore = "sqlite:///rows.sqlite"\n'
        f'[broker]\nhost = "{broker.host}"\nport = {broker.port}\n'
    )
    with running("ingest", config=config, socket=socket) as process:
        await until_it_says(socket, "ready")
        process.send_signal(signal.SIGSTOP)
        async with asyncio.timeout(ANSWER_S + DEADLINE_S):
            assert (await ask(str(socket))).startswith("no answer")
        process.send_signal(signal.SIGCONT)
        await until_it_says(socket, "ready")


def sockets(folder: Path) -> list[Path]:
    return sorted(folder.glob("health*"))


async def test_workers_are_well_when_each_of_them_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the service manager is told and what a health check asks: which one is not, in words."""
    manager = socketlib.socket(socketlib.AF_UNIX, socketlib.SOCK_DGRAM)
    manager.bind(str(tmp_path / "notify"))
    manager.setblocking(False)
    told: list[str] = []

    def heard() -> list[str]:
        with suppress(BlockingIOError):
            while True:
                told.append(manager.recv(4096).decode())
        return told

    config = tmp_path / "ingest.toml"
    ingest = WorkerGroup(config, 2)
    socket = ingest.health
    with closing(manager), Mosquitto(tmp_path) as broker:
        config.write_text(
            'counties = ["tw-tpe"]\nstore = "sqlite:///rows.sqlite"\n'
            f'[broker]\nhost = "{broker.host}"\nport = {broker.port}\n'
        )
        broker.kill()
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        async with ingest as group:
            monkeypatch.delenv("NOTIFY_SOCKET")  # or the broker would report too
            for worker in ("worker 1", "worker 2"):
                await until_it_says(socket, f"{worker}: waiting for the broker", anywhere=True)
            assert "READY=1" not in heard()
            broker.start()
            await until_it_says(socket, "ready")
            assert await asyncio.to_thread(checked, socket) == (0, "ready")
            await until(lambda: heard()[-1] == "STATUS=2 workers taking in")
            assert told.count("READY=1") == 1

            os.kill(group.pid_of(2), signal.SIGSTOP)
            async with asyncio.timeout(DEADLINE_S):
                assert (await ask(str(socket))).startswith("worker 2: no answer")
            assert await asyncio.to_thread(checked, socket) != (0, "ready")
            os.kill(group.pid_of(2), signal.SIGCONT)
            await until_it_says(socket, "ready")

            os.kill(group.pid_of(1), signal.SIGKILL)
            await until_it_says(socket, "worker 1: ")
            await until(lambda: any(words.startswith("STATUS=worker 1: ") for words in heard()))
            await until_it_says(socket, "ready")
            assert await group.stop() == 0
            assert heard().count("READY=1") == 1
            assert "STOPPING=1" in told
    assert sockets(tmp_path) == []


def test_a_container_that_names_no_socket_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    done = subprocess.run(
        [sys.executable, "-m", "exchange.health"],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert (done.returncode, done.stdout) == (1, f"{VARIABLE} is not set\n")
