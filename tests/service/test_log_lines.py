"""The log says a change once: neither a flood of poison nor a store that flaps floods it."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

import ingest.writer
from exchange.states import Descriptor, Label, State
from ingest.watch import Watch
from tests.brokers import Mosquitto
from tests.gateways import EPOCH, Gateway, Ingest, sample, until

STATE = State(
    v=1,
    online=True,
    interval_s=5.0,
    epoch=EPOCH,
    descriptor=Descriptor(label=Label(en="Gateway", zh_tw="閘道器")),
)
POISON, FAILURES = 5000, 50
WINDOW = 50


class Flapping:
    """A store behind real HTTP: every other write fails, each time in other words."""

    def __init__(self) -> None:
        self.port = 0
        self.failures = 0
        self.written = 0
        self.is_down = False
        self._turn = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        application = web.Application(client_max_size=64 << 20)
        application.router.add_post("/write", self._write)
        application.router.add_get("/ping", self._ping)
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            self.port = runner.addresses[0][1]
            yield
        finally:
            await runner.cleanup()

    async def _write(self, request: web.Request) -> web.Response:
        lines = await request.text()
        self._turn += 1
        if self.is_down or self._turn % 2:
            self.failures += 1
            return web.Response(status=503, text=f"failure {self.failures}")
        self.written += lines.count("\n") + 1
        return web.Response(status=204)

    async def _ping(self, _: web.Request) -> web.Response:
        return web.Response(status=204)


@pytest.fixture
async def flapping(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Flapping]:
    monkeypatch.setenv("INFLUX_TOKEN", "a-token")
    monkeypatch.setattr(ingest.writer, "BACKOFF_FIRST_S", 0.01)
    monkeypatch.setattr(ingest.writer, "BACKOFF_LAST_S", 0.02)
    store = Flapping()
    async with store.running():
        yield store


async def test_poison_and_a_flapping_store_are_each_said_once(
    tmp_path: Path, broker: Mosquitto, flapping: Flapping, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    url = f"influxdb://127.0.0.1:{flapping.port}/town/city"
    service = Ingest(tmp_path, broker, store=url)
    async with service.running() as running, Gateway(broker, "gw-1") as gateway:
        places = asyncio.Semaphore(WINDOW)
        topics = [
            str(gateway.topic("aq-1")),
            str(gateway.topic("AQ-1")),
            str(gateway.topic("gw-1", channel="state")),
            str(gateway.topic("aq-1", channel="results")),
        ]

        async def poison(number: int) -> None:
            async with places:
                payload = [b"no pack", b"[{}]", b"\xff" * 50, b"["][number % 4] + b"%d" % number
                await gateway.publish(topics[number // 4 % 3 if number % 5 else 3], payload)

        async with asyncio.TaskGroup() as tasks:
            for number in range(POISON):
                tasks.create_task(poison(number))
        seq = 0
        while flapping.failures < FAILURES:
            await gateway.send("aq-1", sample(seq))
            await gateway.until_stored("aq-1", [seq])
            seq += 1
        await until(lambda: running.quarantine.counts.kept + running.quarantine.counts.dropped > 0)
        counts = running.intake.counts
        assert counts.unreadable > POISON / 2  # topics that ingest does not subscribe to are none
        kinds = len(counts.refused)
    said = Counter(record.getMessage().split(":")[0] for record in caplog.records)
    assert said["the store takes nothing, everything waits"] == 1
    assert said["the store takes points again"] == 1
    assert len(caplog.records) <= kinds + 12, said
    [began] = [one for one in caplog.records if "takes nothing" in one.getMessage()]
    assert (vars(began)["kind"], vars(began)["failures"]) == ("5xx", 1)


async def test_the_watch_says_once_that_it_cannot_write(
    tmp_path: Path,
    broker: Mosquitto,
    flapping: Flapping,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr("ingest.watch.service.SWEEP_EVERY_S", 0.01)
    monkeypatch.setattr("ingest.watch.service.STORE_PATIENCE_S", 0.01)
    url = f"influxdb://127.0.0.1:{flapping.port}/town/city"
    service = Ingest(tmp_path, broker, store=url, top="[watch]\nevery_s = 0.01")
    flapping.is_down = True
    async with service.running(with_watch=True), Gateway(broker, "gw-1") as gateway:
        await gateway.tell("gw-1", STATE, domain="gateway")
        await until(lambda: flapping.failures > FAILURES)
        flapping.is_down = False
        await until(lambda: flapping.written > 3)
    said = Counter(record.getMessage().split(":")[0] for record in caplog.records)
    assert said["rows of devices cannot be written"] == 1
    assert said["rows of devices are written again"] == 1
    assert len(caplog.records) < 15, said


async def test_a_mistake_of_the_watch_is_said_once(
    tmp_path: Path,
    broker: Mosquitto,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def mistaken(*_: object) -> None:
        raise LookupError("a mistake of ours")

    monkeypatch.setattr(Watch, "_take_readings", mistaken)
    async with (
        Ingest(tmp_path, broker).running(with_watch=True),
        Gateway(broker, "gw-1") as gateway,
    ):
        for seq in range(50):
            await gateway.send("aq-1", sample(seq))
        await gateway.until_stored("aq-1", range(50))
    said = [one for one in caplog.records if "could not be judged" in one.getMessage()]
    assert len(said) == 1
    assert said[0].exc_info is not None
