"""What is in flight: bounded, several writes at a time, in order to the broker, whatever the store does."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from exchange.health import WELL
from exchange.readings import Sample, Value, encode_pack
from ingest.service import Service
from tests import crashing_ingest
from tests.brokers import Mosquitto
from tests.gateways import DEADLINE_S, EPOCH, Gateway, Ingest, now_ms, sample, until
from tests.influx import Bucket, Influx

Answer = Callable[[web.Request], Awaitable[web.StreamResponse | None]]


class Between:
    """A proxy before InfluxDB. `answer` may answer a write by itself, or wait, or let it pass by None."""

    def __init__(self, port: int) -> None:
        self.answer: Answer | None = None
        self.port = 0
        self.writes = 0
        self._to = port

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[Between]:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{self._to}") as session:

            async def forward(request: web.Request) -> web.StreamResponse:
                body = await request.read()
                if request.path == "/write":
                    self.writes += 1
                    if self.answer is not None and (own := await self.answer(request)) is not None:
                        return own
                headers = {"Authorization": request.headers.get("Authorization", "")}
                async with session.request(
                    request.method, request.path_qs, data=body, headers=headers
                ) as answer:
                    return web.Response(status=answer.status, body=await answer.read())

            application = web.Application(client_max_size=2**26)
            application.router.add_route("*", "/{path:.*}", forward)
            runner = web.AppRunner(application, shutdown_timeout=0.2)
            await runner.setup()
            try:
                await web.TCPSite(runner, "127.0.0.1", 0).start()
                self.port = runner.addresses[0][1]
                yield self
            finally:
                await runner.cleanup()


@pytest.fixture
async def between(influx: Influx) -> AsyncIterator[Between]:
    async with Between(influx.port).serving() as proxy:
        yield proxy


@pytest.fixture
def bucket(influx: Influx, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    bucket = influx.bucket()
    monkeypatch.setenv("INFLUX_TOKEN", bucket.token)
    return bucket


def behind(between: Between, bucket: Bucket) -> str:
    return bucket.url.replace(f":{bucket.influx.port}/", f":{between.port}/")


async def test_a_slow_write_holds_up_no_other_and_pubacks_keep_their_order(
    between: Between, bucket: Bucket, tmp_path: Path, broker: Mosquitto
) -> None:
    slow = asyncio.Event()

    async def answer(_: web.Request) -> None:
        if between.writes == 1:
            await slow.wait()

    between.answer = answer
    ingest = Ingest(
        tmp_path, broker, store=behind(between, bucket), account="[batch]\nmax_points = 10"
    )
    async with ingest.running() as service, Gateway(broker, "gw-1") as gateway:
        await gateway.send("aq-1", sample(0))
        await until(lambda: between.writes == 1)
        for seq in range(1, 31):
            await gateway.send("aq-1", sample(seq))
        await until(lambda: len(gateway.stored("aq-1")) >= 10)  # the second write is done
        assert (EPOCH, 0) not in gateway.stored("aq-1")
        assert service.writer.in_hand_messages == 31  # none is acknowledged before the first
        assert service.writer.in_flight == 2
        slow.set()
        await gateway.until_stored("aq-1", range(31))
        await until(lambda: service.writer.in_hand_messages == 0)
    assert len(await ingest.rows()) == 31


@pytest.mark.parametrize("what", ["429", "429 by date", "500", "503", "closed"])
async def test_a_store_that_cannot_is_asked_again_and_nothing_is_refused(
    between: Between, bucket: Bucket, tmp_path: Path, broker: Mosquitto, what: str
) -> None:
    times: list[float] = []

    async def answer(request: web.Request) -> web.Response | None:
        times.append(asyncio.get_running_loop().time())
        if len(times) > 2:
            return None
        if what == "closed":
            assert request.transport is not None
            request.transport.abort()
        soon = format_datetime(datetime.now(UTC) + timedelta(seconds=3), usegmt=True)
        after = {"429": "2", "429 by date": soon}.get(what)
        status = int(what[:3]) if what != "closed" else 500
        return web.Response(status=status, headers={"Retry-After": after} if after else {})

    between.answer = answer
    ingest = Ingest(tmp_path, broker, store=behind(between, bucket))
    async with ingest.running() as service, Gateway(broker, "gw-1") as gateway:
        await gateway.send("aq-1", sample(0))
        await until(lambda: not service.ready)
        await gateway.until_stored("aq-1", [0])
        assert service.ready
        assert service.writer.counts.retries == 2
        kind = {"500": "5xx", "503": "5xx", "closed": "other"}.get(what, "429")
        assert service.writer.counts.errors == {kind: 2}
    if what.startswith("429"):
        assert times[1] - times[0] >= 1.0  # as asked; a date has whole seconds
    assert gateway.refused("aq-1") == {}


async def test_a_hanging_store_is_given_up_and_asked_again(
    between: Between,
    bucket: Bucket,
    tmp_path: Path,
    broker: Mosquitto,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("ingest.stores.influxdb._WRITE_TIMEOUT", aiohttp.ClientTimeout(total=0.3))

    async def answer(_: web.Request) -> None:
        if between.writes == 1:
            await asyncio.Event().wait()

    between.answer = answer
    ingest = Ingest(tmp_path, broker, store=behind(between, bucket))
    async with ingest.running() as service, Gateway(broker, "gw-1") as gateway:
        await gateway.send("aq-1", sample(0))
        await gateway.until_stored("aq-1", [0])
        assert service.writer.counts.errors == {"timeout": 1}
    assert f"everything waits: http://127.0.0.1:{between.port}: TimeoutError" in caplog.text


async def test_who_asks_first_leaves_no_session_behind(
    between: Between, bucket: Bucket, tmp_path: Path, broker: Mosquitto
) -> None:
    ingest = Ingest(tmp_path, broker, store=behind(between, bucket))
    store = ingest.open_store()
    await store.ping()
    await store.open()
    await store.close()  # an unclosed session is a warning, and warnings are errors


@pytest.mark.parametrize("wrong", ["token", "bucket"])
async def test_who_may_not_write_is_not_ready(
    bucket: Bucket,
    tmp_path: Path,
    broker: Mosquitto,
    monkeypatch: pytest.MonkeyPatch,
    wrong: str,
) -> None:
    """Told before the first sample comes."""
    url = bucket.url
    async with Ingest(tmp_path, broker, store=url).running() as service:
        assert await service.judge() == WELL
    if wrong == "token":
        monkeypatch.setenv("INFLUX_TOKEN", "no-such-token")
    else:
        url += "-that-is-not-there"
    async with Ingest(tmp_path, broker, store=url).running() as service:
        assert {"token": "401", "bucket": "404"}[wrong] in await service.judge()


async def test_what_is_older_than_the_store_keeps_is_refused_at_once(
    influx: Influx, between: Between, bucket: Bucket, tmp_path: Path, broker: Mosquitto
) -> None:
    """Not halved: InfluxDB says how many it dropped, and they are the oldest."""
    rule = {"type": "expire", "everySeconds": 86_400, "shardGroupDurationSeconds": 3600}
    influx.call("PATCH", f"/api/v2/buckets/{bucket.id}", {"retentionRules": [rule]})
    ingest = Ingest(tmp_path, broker, store=behind(between, bucket))
    old = [sample(seq) for seq in range(1000)]  # of long ago
    new = [Sample(now_ms() + seq, EPOCH, seq, {"pm2_5": 1.0}) for seq in range(1000, 1100)]
    async with ingest.running() as service, Gateway(broker, "gw-1") as gateway:
        await gateway.send("aq-1", *old)
        await until(lambda: len(gateway.refused("aq-1")) == 1000)
        assert between.writes == 1
        points = service.intake.counts.points
        held = asyncio.Event()

        async def answer(_: web.Request) -> None:
            if between.writes == 2:
                await held.wait()

        between.answer = answer
        await gateway.send("aq-2", sample(0))
        await until(lambda: between.writes == 2)
        for seq in range(100):  # old and new in one batch, in turns
            await gateway.send("aq-3", sample(seq))
            await gateway.send("aq-1", new[seq])
        await until(lambda: service.intake.counts.points == points + 201)
        held.set()
        await gateway.until_stored("aq-1", range(1000, 1100))
        await until(lambda: len(gateway.refused("aq-3")) == 100)
        assert between.writes == 2 + 3
    assert set(gateway.refused("aq-1").values()) == {"EX-D-003"}
    assert all("outside retention policy" in each["detail"] for each in ingest.quarantined())


async def test_memory_is_bounded_by_what_the_messages_weigh(
    between: Between, bucket: Bucket, tmp_path: Path, broker: Mosquitto
) -> None:
    """200 messages are far from the receive maximum, yet they hold 100,000 points."""
    away = asyncio.Event()

    async def answer(_: web.Request) -> web.Response | None:
        return None if away.is_set() else web.Response(status=503)

    between.answer = answer
    ingest = Ingest(tmp_path, broker, store=behind(between, bucket), account="max_held_mb = 8")
    async with ingest.running() as service, Gateway(broker, "gw-1") as gateway:
        for number in range(200):
            some = [sample(seq) for seq in range(500 * number, 500 * number + 500)]
            await gateway.send("aq-1", *some)
        await until(lambda: service.writer.in_hand_bytes > 8 * 2**20)
        await until(lambda: service.writer.counts.retries > 3)
        # One read of the socket more than the bound: 256 KiB of packs, and the points in them.
        assert service.writer.in_hand_bytes < 14 * 2**20
        assert service.intake.counts.messages < 50
        away.set()
        await gateway.until_stored("aq-1", range(100_000))
    assert len(await ingest.rows()) == 100_000


async def test_a_device_over_its_budget_is_told_so_and_its_neighbour_is_not(
    tmp_path: Path, broker: Mosquitto
) -> None:
    ingest = Ingest(tmp_path, broker, top="rate_budget_per_min = 60")
    wild = [Sample(EPOCH + 10 * seq, EPOCH, seq, {"pm2_5": 1.0}) for seq in range(1000)]
    async with ingest.running() as service, Gateway(broker, "gw-1") as gateway:
        for start in range(0, 1000, 50):
            await gateway.send("aq-1", *wild[start : start + 50])
            await gateway.send("aq-2", sample(start))
        await until(lambda: len(gateway.refused("aq-1")) + len(gateway.stored("aq-1")) == 1000)
        await gateway.until_stored("aq-2", range(0, 1000, 50))
        assert len(gateway.stored("aq-1")) == 60 + 9
        assert service.intake.counts.over_budget == 931
    assert set(gateway.refused("aq-1").values()) == {"EX-R-027"}
    assert gateway.refused("aq-2") == {}
    assert ingest.quarantined()


@asynccontextmanager
async def crashing(ingest: Ingest) -> AsyncIterator[asyncio.subprocess.Process]:
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", crashing_ingest.__name__, str(ingest.file)
    )
    try:
        yield child
    finally:
        if child.returncode is None:
            child.kill()
        await child.wait()


async def test_a_message_that_ingest_dies_of_is_quarantined_unread_in_the_end(
    tmp_path: Path, broker: Mosquitto
) -> None:
    ingest = Ingest(tmp_path, broker)
    async with Gateway(broker, "gw-1") as gateway:
        topic = gateway.topic("aq-9")
        metrics: dict[str, Value] = {crashing_ingest.DEADLY.decode(): 1.0}
        deadly = encode_pack(topic, [Sample(EPOCH, EPOCH, 0, metrics)])
        async with crashing(ingest) as child:
            await until(lambda: _heard(gateway))
            await gateway.publish(str(topic), deadly)
            for seq in range(1, 50):
                await gateway.send("aq-1", sample(seq))
            async with asyncio.timeout(DEADLINE_S):
                assert await child.wait() == -signal.SIGABRT
        for _ in range(2):  # it is noted when it comes again
            async with crashing(ingest) as child, asyncio.timeout(DEADLINE_S):
                assert await child.wait() == -signal.SIGABRT
        async with crashing(ingest) as child:
            await gateway.until_unreadable(deadly, "EX-R-001")
            await gateway.until_stored("aq-1", range(50))
            child.send_signal(signal.SIGTERM)
            async with asyncio.timeout(DEADLINE_S):
                assert await child.wait() == 0
    [kept] = ingest.quarantined()
    assert kept["body"] == deadly
    assert "two crashes" in kept["detail"]


async def test_a_kill_is_no_message_s_fault(tmp_path: Path, broker: Mosquitto) -> None:
    ingest = Ingest(tmp_path, broker)
    async with Gateway(broker, "gw-1") as gateway:
        for start in range(0, 600, 200):
            async with crashing(ingest) as child:
                if not start:
                    await until(lambda: _heard(gateway))
                for seq in range(start, start + 200):
                    await gateway.send("aq-1", sample(seq))
                child.kill()
        async with ingest.running() as service:
            await gateway.until_stored("aq-1", range(600))
            assert _refused(service) == 0
    assert len(await ingest.rows()) == 600


async def _heard(gateway: Gateway) -> bool:
    """Say whether a sample is taken in: one sent before the first subscription goes nowhere."""
    await gateway.send("aq-1", sample(0))
    await asyncio.sleep(0.05)
    return bool(gateway.stored("aq-1"))


def _refused(service: Service) -> int:
    return sum(service.intake.counts.refused.values())
