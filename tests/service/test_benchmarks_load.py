"""The benchmarks under load measure what they say, in small: real broker, real InfluxDB, our ingest as shipped."""

from __future__ import annotations

from pathlib import Path

import msgspec

from benchmarks import disk, drain, ingest, latency, nation
from benchmarks.backlog import Load
from benchmarks.consumers import Onestreet


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
