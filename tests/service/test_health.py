"""Health as a container's health check asks for it: real processes whose broker or store goes and comes back."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from exchange.health import ANSWER_S, VARIABLE, ask
from tests.brokers import Mosquitto
from tests.influx import Influx

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


async def until_it_says(socket: Path, words: str) -> None:
    said = ""
    try:
        async with asyncio.timeout(DEADLINE_S):
            while not said.startswith(words):
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


def test_a_container_that_names_no_socket_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    done = subprocess.run(
        [sys.executable, "-m", "exchange.health"],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert (done.returncode, done.stdout) == (1, f"{VARIABLE} is not set\n")
