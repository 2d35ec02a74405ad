"""Ingest is scraped while it works: the sums are what was sent, readiness is honest, and a scraper harms nobody."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, closing, contextmanager
from pathlib import Path

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

import exchange.endpoint
from exchange.endpoint import MAX_CLIENTS
from exchange.readings import MAX_PACK_BYTES, Sample, encode_pack
from ingest.metrics import Endpoint, Metrics, serving
from tests.brokers import Mosquitto
from tests.gateways import DEADLINE_S, EPOCH, Gateway, Ingest, now_ms, sample, until
from tests.ports import free_port, is_open

Sums = dict[tuple[str, frozenset[tuple[str, str]]], float]
RESULT = {
    "v": 1,
    "id": "7f8a3c52-9c3e-4f57-8f0e-0a4be35b3f11",
    "status": "done",
    "at": "2026-11-22T10:00:00.250Z",
}
CUT_OFF = ConnectionResetError, asyncio.IncompleteReadError


class Scraper:
    """Prometheus at one process: every scrape must be whole, and no counter may go back."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.scrapes = 0
        self._last: Sums = {}

    async def ask(self, path: str) -> tuple[int, str]:
        async with aiohttp.ClientSession() as session, session.get(self.url + path) as answer:
            return answer.status, await answer.text()

    async def scrape(self) -> Sums:
        status, text = await self.ask("/metrics")
        assert status == 200
        sums: Sums = {}
        for family in text_string_to_metric_families(text):
            for one in family.samples:
                key = one.name, frozenset(one.labels.items())
                sums[key] = one.value
                if family.type == "counter":
                    assert one.value >= self._last.get(key, 0.0), key
        self._last = sums
        self.scrapes += 1
        return sums

    async def value(self, name: str, **labels: str) -> float:
        sums = await self.scrape()
        return sums.get((f"onestreet_ingest_{name}", frozenset(labels.items())), 0.0)

    async def until_ready(self, status: int) -> str:
        """Return the words of /readyz once it answers so."""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                found, words = await self.ask("/readyz")
                if found == status:
                    return words.strip()
                await asyncio.sleep(0.02)


@asynccontextmanager
async def process(
    folder: Path, broker: Mosquitto, *arguments: str
) -> AsyncIterator[tuple[Ingest, Scraper, asyncio.subprocess.Process]]:
    """Ingest in a process of its own, once it is ready, and who scrapes it, or its first worker."""
    port = next(port for port in iter(free_port, 0) if not is_open(port + 1))
    service = Ingest(folder, broker, top=f"[metrics]\nport = {port}")
    command = [sys.executable, "-m", "ingest", str(service.file), *arguments]
    child = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
    scraper = Scraper(port)
    try:
        await until(lambda: is_open(port))
        await scraper.until_ready(200)
        yield service, scraper, child
    finally:
        if child.returncode is None:
            child.kill()
        await child.communicate()


@contextmanager
def locked(service: Ingest) -> Iterator[None]:
    """Somebody else holds the file's write lock: ingest receives and cannot write."""
    with closing(sqlite3.connect(service.rows_file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield


async def test_the_sums_are_what_was_sent(tmp_path: Path, broker: Mosquitto) -> None:
    async with (
        process(tmp_path, broker) as (service, scraper, child),
        Gateway(broker, "gw-1") as gateway,
    ):
        sending = asyncio.create_task(_send_everything(gateway))
        while not sending.done():
            await scraper.scrape()  # while it works
        good, bad_samples, bad_metrics, bad_payloads, results, messages = await sending

        async def all_received() -> bool:
            received = await scraper.value("messages_received_total")
            in_hand = await scraper.value("messages_in_hand")
            return received == messages and in_hand == 0

        await until(all_received)
        await until(lambda: len(gateway.stored("aq-1")) == good)
        assert await scraper.value("samples_received_total") == good + bad_samples + results
        assert await scraper.value("samples_stored_total") == good + results
        assert await scraper.value("samples_late_total") == good  # all of an old epoch
        refused = {"kind": "sample", "requirement": "EX-R-008"}
        assert await scraper.value("refused_total", **refused) == bad_samples
        refused = {"kind": "metric", "requirement": "EX-R-009"}
        assert await scraper.value("refused_total", **refused) == bad_metrics
        refused = {"kind": "payload", "requirement": "EX-R-001"}
        assert await scraper.value("refused_total", **refused) == bad_payloads
        kept = bad_samples + bad_metrics + bad_payloads
        await until(lambda: _is(scraper, "quarantine_kept_total", kept))
        assert await scraper.value("quarantine_size_bytes") > 0
        assert await scraper.value("write_points_sum") == good + results
        writes = await scraper.value("store_writes_total")
        assert await scraper.value("write_seconds_count") == writes > 0
        assert await scraper.value("lag_seconds_count") == writes
        assert await scraper.value("receipts_sent_total") > 0
        assert await scraper.value("mqtt_connects_total") == 1
        assert scraper.scrapes > 0
        assert len(await service.rows()) == good
        assert len(await service.rows("command")) == results
        child.terminate()
        assert child.stderr is not None
        lines = (await child.stderr.read()).decode().splitlines()
        assert await child.wait() == 0
    last = json.loads(lines[-1])
    assert last["message"] == "stopped"
    assert last["counts"]["writer"]["stored"] == good + results


async def _is(scraper: Scraper, name: str, wanted: float) -> bool:
    return await scraper.value(name) == wanted


async def _send_everything(gateway: Gateway) -> tuple[int, int, int, int, int, int]:
    """Send good and bad, and return how many of each: samples, samples, metrics, payloads, results, messages."""
    topic = gateway.topic("aq-1")
    for start in range(0, 300, 3):
        await gateway.send("aq-1", *(sample(seq) for seq in range(start, start + 3)))
    head = {"bn": "tw-tpe:aq-1:", "bt": EPOCH / 1000 + 301, "bver": 26, "n": "epoch", "v": EPOCH}
    for seq in range(300, 310):
        records = [
            head | {"bt": EPOCH / 1000 + seq + 1},
            {"n": "seq", "v": seq},
            {"n": "happiness", "v": 7},
            {"n": "seq", "v": 5, "t": 0.5},  # it does not rise
        ]
        await gateway.publish(str(topic), json.dumps(records).encode())
    for number in range(20):
        await gateway.publish(str(topic), b"no pack %d" % number)
    results = str(gateway.topic("lamp-1", domain="streetlight", channel="results"))
    await gateway.publish(results, json.dumps(RESULT).encode())
    return 310, 10, 10, 20, 1, 100 + 10 + 20 + 1


async def test_what_counts_as_late_is_a_setting(tmp_path: Path, broker: Mosquitto) -> None:
    ingest = Ingest(tmp_path, broker, top="[metrics]\nlate_s = 10.0")
    now = now_ms()
    samples = [
        Sample(now - ago_ms, now, seq, {"pm2_5": 1.0}) for seq, ago_ms in enumerate([60_000, 0])
    ]
    async with ingest.running() as service, Gateway(broker, "gw-1") as gateway:
        await gateway.send("aq-1", *samples)
        await gateway.until_stored("aq-1", range(2), epoch=now)
        assert service.intake.counts.late == 1


async def test_readiness_goes_with_the_store_and_returns(tmp_path: Path, broker: Mosquitto) -> None:
    async with (
        process(tmp_path, broker) as (service, scraper, _),
        Gateway(broker, "gw-1") as gateway,
    ):
        assert await scraper.ask("/healthz") == (200, "alive\n")
        assert await scraper.value("store_ready") == 1
        with locked(service):
            await gateway.send("aq-1", sample(0))
            assert "waiting for the store" in await scraper.until_ready(503)
            assert await scraper.value("store_ready") == 0
            assert (await scraper.ask("/healthz"))[0] == 200
            await until(lambda: _at_least(scraper, "store_retries_total", 2))
            assert await scraper.value("store_errors_total", kind="other") >= 2
            assert await scraper.value("messages_in_hand") == 1
        await gateway.until_stored("aq-1", [0])
        await scraper.until_ready(200)
        assert await scraper.value("store_ready") == 1


async def _at_least(scraper: Scraper, name: str, wanted: float) -> bool:
    return await scraper.value(name) >= wanted


async def test_readiness_goes_with_the_broker_and_returns(
    tmp_path: Path, broker: Mosquitto
) -> None:
    async with process(tmp_path, broker) as (_, scraper, _):
        broker.kill()
        assert "waiting for the broker" in await scraper.until_ready(503)
        assert await scraper.value("mqtt_connected") == 0
        broker.start()
        await scraper.until_ready(200)
        assert await scraper.value("mqtt_connects_total") == 2
        assert await scraper.value("mqtt_connections_lost_total") == 1


async def test_every_worker_answers_at_its_own_port(tmp_path: Path, broker: Mosquitto) -> None:
    async with (
        process(tmp_path, broker, "--workers", "2") as (_, scraper, child),
        Gateway(broker, "gw-1") as gateway,
    ):
        workers = [scraper, Scraper(int(scraper.url.rpartition(":")[2]) + 1)]
        await until(lambda: is_open(int(workers[1].url.rpartition(":")[2])))
        await workers[1].until_ready(200)
        for seq in range(100):
            await gateway.send("aq-1", sample(seq))
        await gateway.until_stored("aq-1", range(100))
        stored = [await each.value("samples_stored_total") for each in workers]
        assert sum(stored) == 100
        assert min(stored) > 0
        child.terminate()
        assert await child.wait() == 0


# ----------------------------------------------------------------------------- whoever asks


async def judged() -> str:
    return "ready"


@asynccontextmanager
async def answering(judge: object = judged) -> AsyncIterator[Scraper]:
    port = free_port()
    async with serving(Endpoint(port=port - 1), Metrics(), judge, worker=2):  # type: ignore[arg-type]  # a judge
        yield Scraper(port)


async def test_a_question_gets_its_answer_and_no_more() -> None:
    async with answering() as scraper:
        assert await scraper.ask("/readyz") == (200, "ready\n")
        assert (await scraper.ask("/secrets"))[0] == 404
        async with aiohttp.ClientSession() as session:
            async with session.post(f"{scraper.url}/metrics", data=b"x" * 10_000) as answer:
                assert answer.status == 405
            async with session.get(f"{scraper.url}/metrics") as answer:
                assert answer.headers["Connection"] == "close"
                assert answer.headers["Content-Type"].startswith("text/plain; version=")


async def test_nobody_answers_where_no_port_is_given() -> None:
    async with serving(Endpoint(), Metrics(), judged):
        pass
    with pytest.raises(OSError, match="in use"):
        async with answering() as scraper:
            taken = int(scraper.url.rpartition(":")[2])
            async with serving(Endpoint(port=taken), Metrics(), judged):
                raise AssertionError("two at one port")


async def test_a_judge_that_hangs_is_not_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange.endpoint, "ANSWER_S", 0.05)

    async def hangs() -> str:
        await asyncio.get_running_loop().create_future()
        return "ready"

    async with answering(hangs) as scraper:
        assert await scraper.ask("/readyz") == (503, "no judgement in 0.05 s\n")


async def test_a_judge_with_a_mistake_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    async def mistaken() -> str:
        raise LookupError("nobody there")

    async with answering(mistaken) as scraper:
        for _ in range(50):
            assert await scraper.ask("/readyz") == (500, "a mistake of ours\n")
    [said] = [record for record in caplog.records if record.levelname != "DEBUG"]
    assert said.getMessage() == "a question cannot be answered: LookupError: nobody there"


async def test_clients_that_hang_harm_nobody(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(exchange.endpoint, "CONNECTION_S", 1.0)
    async with answering() as scraper, AsyncExitStack() as open_ends:
        port = int(scraper.url.rpartition(":")[2])

        async def client(said: bytes) -> asyncio.StreamReader:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            open_ends.callback(writer.close)
            writer.write(said)
            return reader

        words = [b"", b"GET /metr", b"GET /metrics HTTP/1.1\r\nHost: x\r\n", b"POST / HTTP/1.1\r\n"]
        silent = [await client(words[number % len(words)]) for number in range(MAX_CLIENTS)]
        one_more = await client(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        async with asyncio.timeout(DEADLINE_S):
            with pytest.raises(CUT_OFF):
                await one_more.readexactly(1)
            for reader in silent:  # cut off in their time
                with pytest.raises(CUT_OFF):
                    await reader.readexactly(1)
        assert (await scraper.ask("/healthz"))[0] == 200
        for garbage in (b"\x16\x03\x01" + b"\xff" * 500, b"A" * 70_000, b"GET / HTTP/9\r\n\r\n"):
            reader = await client(garbage)
            async with asyncio.timeout(DEADLINE_S):
                with pytest.raises(CUT_OFF):
                    await reader.readexactly(1 << 20)
        assert (await scraper.ask("/metrics"))[0] == 200
    assert [record for record in caplog.records if record.levelname != "DEBUG"] == []


async def test_a_large_pack_delays_no_scrape(tmp_path: Path, broker: Mosquitto) -> None:
    async with (
        process(tmp_path, broker) as (_, scraper, _),
        Gateway(broker, "gw-1") as gateway,
    ):
        topic = gateway.topic("aq-1")
        payload = encode_pack(topic, [sample(seq) for seq in range(3000)])
        assert len(payload) <= MAX_PACK_BYTES
        for _ in range(5):
            await gateway.publish(str(topic), payload)
            await scraper.scrape()
        await gateway.until_stored("aq-1", range(3000))
        assert await scraper.value("samples_stored_total") <= 5 * 3000
