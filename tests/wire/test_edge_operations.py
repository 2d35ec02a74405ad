"""A real agent as its keepers see it: systemd, Prometheus, and the one with a phone at the pole."""

from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import re
import select
import signal
import socket
import struct
import sys
import termios
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from device_drivers.kit.registry import load
from edge_agent.status import AgentStatus, decode_status
from edge_agent.terminal_text import width_of
from exchange.health import asked
from tests.agents import DEADLINE_S, GATEWAY, lamp, running_agent, until, write_config
from tests.brokers import Mosquitto
from tests.ports import free_port

LONG_S = 3 * DEADLINE_S
ALLOWED_S = 4.0
LINES = 13  # of a terminal: room for one of three devices
Hosts = Callable[..., Any]


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    with Mosquitto(tmp_path) as one:
        yield one


class Keeper:
    """What asks an agent: over its socket, over HTTP, and as the service manager."""

    def __init__(self, config: Path, port: int) -> None:
        self.config = config
        self.socket = config.parent / "state" / "status.sock"
        self._port = port

    async def status(self) -> AgentStatus:
        return decode_status(await asked(self.socket, deadline_s=LONG_S))

    async def get(self, path: str) -> tuple[int, str]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        writer.write(f"GET {path} HTTP/1.1\r\nHost: gateway\r\n\r\n".encode())
        async with asyncio.timeout(LONG_S):
            head, _, body = (await reader.read()).decode().partition("\r\n\r\n")
        writer.close()
        return int(head.split()[1]), body

    async def until_page(self, path: str, status: int) -> str:
        """Return what a page says once it has this status."""
        async with asyncio.timeout(LONG_S):
            while True:
                with suppress(ConnectionRefusedError):  # it is not listening yet
                    found, words = await self.get(path)
                    if found == status:
                        return words
                await asyncio.sleep(0.05)

    async def metric(self, name: str, **labels: str) -> float:
        for family in text_string_to_metric_families((await self.get("/metrics"))[1]):
            for one in family.samples:
                if one.name == f"onestreet_edge_{name}" and one.labels == labels:
                    return one.value
        raise AssertionError(f"no {name} {labels}")

    async def view(self, *words: str) -> tuple[int, str]:
        """What the command prints."""
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "onestreet.cli", "edge", "status"),
            *("--config", str(self.config), *words),
            stdout=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(LONG_S):
            out, _ = await child.communicate()
        return child.returncode or 0, out.decode()


@pytest.fixture
def keeper(tmp_path: Path, broker: Mosquitto, modbus_line: Hosts) -> Keeper:
    """An agent with a lamp on one bus, and two on another that is not there."""
    twin = load("intesis_dali").twin(
        {"short_address": 1}, lambda: {"level": 40}, list[Any]().append
    )
    buses = [
        {"id": "rs485", "kind": "modbus-rtu", "port": modbus_line(twin)["port"]},
        {"id": "gone", "kind": "modbus-tcp", "host": "127.0.0.1", "port": free_port()},
    ]
    devices = [lamp("rs485", 1), lamp("gone", 2), lamp("gone", 3)]
    config = write_config(tmp_path, broker, buses, devices)
    port = free_port()
    with config.open("a", encoding="utf-8") as file:
        file.write(f'\n[metrics]\nlisten = "127.0.0.1:{port}"\n')
    return Keeper(config, port)


@asynccontextmanager
async def process(
    keeper: Keeper, manager: socket.socket
) -> AsyncIterator[asyncio.subprocess.Process]:
    """The agent as systemd starts it."""
    name = keeper.config.with_name("notify")
    manager.bind(str(name))
    manager.setblocking(False)
    environment = {"NOTIFY_SOCKET": str(name), "WATCHDOG_USEC": str(round(ALLOWED_S * 1e6))}
    with keeper.config.with_name("agent.log").open("wb") as log:
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "onestreet.cli", "edge", "run", str(keeper.config)),
            env=os.environ | environment,
            stderr=log,
        )
    try:
        yield child
    finally:
        if child.returncode is None:
            child.kill()
        await child.wait()


async def told(manager: socket.socket, words: str) -> None:
    """Return once the service manager was told so."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(LONG_S):
        while (await loop.sock_recv(manager, 1000)).decode() != words:
            pass


@pytest.mark.timeout(5 * LONG_S)
async def test_an_agent_is_watched_scraped_and_looked_at(keeper: Keeper, broker: Mosquitto) -> None:
    of_lamp = {"bus": "rs485", "device": "lamp-1"}
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        async with process(keeper, manager) as child:
            await told(manager, "READY=1")
            for _ in range(3):
                await told(manager, "WATCHDOG=1")

            assert await keeper.until_page("/readyz", 200) == "ready\n"
            assert await keeper.get("/healthz") == (200, "alive\n")
            assert await keeper.metric("bus_open", bus="rs485") == 1
            assert await keeper.metric("bus_open", bus="gone") == 0, "and yet it is ready"
            assert await keeper.metric("uplink_connected") == 1
            assert await keeper.metric("clock_known") == 1
            assert await keeper.metric("resident_memory_bytes") > 1e6
            readings = await keeper.metric("device_readings_total", **of_lamp)
            async with asyncio.timeout(LONG_S):
                while await keeper.metric("device_readings_total", **of_lamp) <= readings:
                    pass

            status = await keeper.status()
            assert (status.gateway, status.process) == (GATEWAY, child.pid)
            lamp_1, lamp_2, _ = status.device
            assert lamp_1.metrics["level"] == 40
            assert lamp_1.age_s is not None
            assert (lamp_2.readings, lamp_2.failing) == (0, "LinkLost")
            assert not status.bus[1].is_open
            assert status.bus[1].reason
            code, text = await keeper.view("--once", "--lang", "zh-TW")
            assert (code, "正常運作" in text, "level 40" in text) == (0, True, True)

            broker.kill()
            assert await keeper.until_page("/readyz", 503) == "waiting for the broker\n"
            assert await keeper.get("/healthz") == (200, "alive\n")
            broker.start()
            await keeper.until_page("/readyz", 200)

            child.terminate()
            await told(manager, "STOPPING=1")
            assert await child.wait() == 0
        code, text = await keeper.view("--once", "--lang", "en")
        assert (code, "the agent is not running" in text) == (1, True)
        assert "last sign of life" in text


@pytest.mark.timeout(5 * LONG_S)
async def test_an_agent_that_hangs_is_no_longer_heard_of(keeper: Keeper) -> None:
    """Stopped by a signal it can neither ping nor answer; systemd would end it as this does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        async with process(keeper, manager) as child:
            await told(manager, "WATCHDOG=1")
            child.send_signal(signal.SIGSTOP)
            loop = asyncio.get_running_loop()
            with pytest.raises(TimeoutError):
                while True:  # what it said before it hung
                    async with asyncio.timeout(2 * ALLOWED_S):
                        await loop.sock_recv(manager, 1000)
            child.kill()
            await child.wait()
        code, text = await keeper.view("--once", "--lang", "en")
        assert (code, "ended without a farewell" in text) == (1, True)


@pytest.mark.timeout(5 * LONG_S)
async def test_an_outbox_that_hangs_is_no_health(keeper: Keeper) -> None:
    async with running_agent(keeper.config, deadline_s=LONG_S) as agent:
        await until(lambda: keeper.socket.exists(), LONG_S)
        await keeper.until_page("/healthz", 200)
        hung = threading.Event()
        agent.outbox._thread.submit(hung.wait)
        try:
            words = await keeper.until_page("/healthz", 503)
            assert "outbox has not answered" in words
            assert (await keeper.status()).gateway == GATEWAY, "who looks sees it nevertheless"
        finally:
            hung.set()
        await keeper.until_page("/healthz", 200)


@pytest.mark.timeout(5 * LONG_S)
async def test_the_live_view_fits_a_phone_and_leaves_the_terminal_as_it_was(keeper: Keeper) -> None:
    """On a terminal of 40 columns and few lines, in Chinese; it shows the agent's end, too, and ends with Ctrl-C."""
    inner, outer = pty.openpty()
    fcntl.ioctl(outer, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, 40, 0, 0))
    shown = b""

    async def until_shown(words: str) -> None:
        nonlocal shown
        try:
            async with asyncio.timeout(LONG_S):
                while words.encode() not in shown:
                    if (await asyncio.to_thread(select.select, [inner], [], [], 0.2))[0]:
                        shown += os.read(inner, 65536)
        except TimeoutError:
            pytest.fail(f"no {words!r} in {shown[-2000:].decode(errors='replace')!r}")

    async with running_agent(keeper.config, deadline_s=LONG_S):
        await until(lambda: keeper.socket.exists(), LONG_S)
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "onestreet.cli", "edge", "status"),
            *("--config", str(keeper.config), "--lang", "zh-TW"),
            stdin=outer,
            stdout=outer,
            stderr=outer,
            start_new_session=True,
            env={**os.environ, "COLUMNS": "", "LINES": ""},
            # a shell that has put us into the background lets nobody hear Ctrl-C
            preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        )
        try:
            await until_shown("正常運作")
            await until_shown("lamp-2")  # it has trouble and comes first
            await until_shown("2 台設備未列出")
        except BaseException:
            child.kill()
            raise
    try:
        await until_shown("代理程式未執行")
        assert b"\x1b[?1049l" not in shown
        frames = shown.decode().split("\x1b[H")[1:]
        for frame in frames:
            lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", frame).split("\r\n")
            assert len(lines) <= LINES
            assert max(map(width_of, lines)) <= 40
        child.send_signal(signal.SIGINT)
        await until_shown("\x1b[?1049l")
        assert await child.wait() == 0
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
        os.close(outer)
        os.close(inner)
