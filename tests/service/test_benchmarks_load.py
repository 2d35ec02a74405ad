"""The benchmarks under load measure what they say, in small: real broker, real InfluxDB, our ingest as shipped."""

from __future__ import annotations

import time
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec

from benchmarks import disk, drain, ingest, latency, nation
from benchmarks.backlog import Load, connected, settings
from benchmarks.consumers import Onestreet
from benchmarks.country import Country
from benchmarks.processes import until
from exchange.mqtt import Client, Message, Subscription
from exchange.readings import decode_pack
from exchange.receipts import Receipt, encode_receipt
from exchange.topics import PREFIX, parse_topic
from tests.brokers import Mosquitto


async def test_a_backlog_is_measured_in_both_of_our_forms() -> None:
    load = Load(messages=200, devices=10, gateways=2, samples=20)
    forms = ["onestreet-json", "onestreet-cbor"]
    found = await ingest.compare(load, rounds=1, same_fields=True, forms=forms)
    assert [(run.consumer, run.rows_missing) for run in found.runs] == [(each, 0) for each in forms]
    assert (found.json_ratio, found.best_ratio) == (None, None)
    assert sum(found.runs[0].share(whose) for whose in ("consumer", "broker", "database")) > 99
    assert "database, % of CPU" in ingest.table(found)


async def test_latency_is_measured_by_probes_and_no_sample_is_lost() -> None:
    found = await latency.measure(rate_per_s=200, seconds=1, rounds=1, flushes_ms=(), warm_s=0.5)
    (run,) = found.runs
    assert (run.lost, run.waits.lost) == (0, 0)
    assert run.waits.probes >= 10
    assert 0 < run.waits.p50_ms <= run.waits.p99_ms <= run.waits.max_ms
    assert "onestreet-json" in latency.table(found)


async def test_a_backlog_drains_from_windows_and_from_the_brokers_queue() -> None:
    plan = drain.Plan(samples=4000, gateways=2, window=200, live_per_s=20, seconds=1)
    found = await drain.measure(plan, [Onestreet()])
    assert found.windowed.samples_per_s > 0
    assert (found.windowed.alone.lost, found.windowed.during.lost) == (0, 0)
    assert [(each.consumer, each.lost) for each in found.queued] == [("onestreet-json", 0)]
    assert "from the gateways" in drain.table(found)


async def test_disk_is_weighed_once_everything_is_compacted() -> None:
    found = await disk.measure(devices=10, minutes=200)
    assert 1 < found.tsm_bytes / found.samples < 200
    assert 20 < found.sqlite_bytes / found.samples < 1000
    assert "bytes/sample" in disk.table(found)


async def test_a_nation_is_held_and_every_sample_accounted_for(tmp_path: Path) -> None:
    report = tmp_path / "report.jsonl"
    found = await nation.measure(
        devices=2300, minutes=2, stores=2, ramp=2, period_s=1.0, report=report
    )
    assert found.sent == found.receipted == found.rows == 1150 + 3 * 2300
    lines = [msgspec.json.decode(line) for line in report.read_bytes().splitlines()]
    assert [line["held"] for line in lines[:4]] == [False, False, True, True]
    assert sum(line["receipted"] for line in lines) == found.sent
    assert set(found.cpu_us) >= {"broker", "database", "generator"}
    assert "KB/device" in nation.table(found)


async def test_what_gets_no_receipt_goes_again_and_is_counted_once(broker: Mosquitto) -> None:
    country = Country(300, period_ms=300, ramp=1, first_ms=time.time_ns() // 1_000_000)
    generator = nation.Generator(country, broker.port, 2)
    lost: set[tuple[str, int]] = set()

    def answer(messages: list[Message], generation: int) -> None:
        for message in messages:
            topic = parse_topic(message.topic)
            (sample,) = decode_pack(message.payload, topic).samples
            key = topic.device, sample.seq
            if country.device_of(topic.device) % 7 == 0 and key not in lost:
                lost.add(key)
                continue
            stored = {topic.device: [(sample.epoch, sample.seq, sample.seq)]}
            receipt = encode_receipt(Receipt(v=1, stored=stored))
            assert taker.publish_soon(topic.receipts, receipt, qos=0)
        taker.acknowledge([message.packet_id for message in messages], generation)

    filters = [Subscription(f"{PREFIX}/+/+/+/+/+/readings")]
    taker = Client(settings(broker.port, "taker", clean_start=True), filters, answer)
    ledger = generator.ledger
    async with AsyncExitStack() as running:
        for client in (taker, *generator.clients.values()):
            await running.enter_async_context(connected(client))
        await generator.run()
        assert generator.sent == 600
        await until(lambda: ledger.receipted == 600 - len(lost) < 600, "the others are receipted")
        await generator.send_again(2)
        await until(lambda: ledger.receipted == 600, "the lost ones are receipted")
    assert (generator.again, ledger.doubled) == (len(lost), 0)
