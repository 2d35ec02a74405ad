"""The metrics: what they say is what was counted, every name is documented, and nothing of the wire becomes a label."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import NamedTuple

import mqtt5
import pytest
from prometheus_client.core import Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from exchange.mqtt import Client, Settings
from exchange.requirements import REQUIREMENTS
from ingest.intake import Intake
from ingest.metrics import Metrics
from ingest.quarantine import Quarantine
from ingest.rollups import metrics as rollups
from ingest.rollups.engine import Engine, Pace
from ingest.stores import Point, Series
from ingest.stores.sqlite import SqliteStore
from ingest.writer import Writer
from tests.pure.test_fuzz_corpus import KNOWN, carried

DOCS = Path(__file__).parents[2] / "docs"
ROW = re.compile(r"^\| `(onestreet_\w+)` \| (\w+) \| ([^|]*) \| (.+?) \|$", re.MULTILINE)
USED = re.compile(r"\bonestreet_(?:ingest|rollups)_\w+")


class Parts(NamedTuple):
    """The parts of an ingest that has not begun."""

    metrics: Metrics
    intake: Intake
    writer: Writer
    quarantine: Quarantine
    client: Client
    rollups: rollups.Metrics


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    metrics = Metrics()
    intake = Intake(["tw-tpe", "tw-nwt", "tw-khh"], max_points=10**6, receive_maximum=10**6)
    quarantine = Quarantine(tmp_path / "quarantine.sqlite")
    store = SqliteStore(tmp_path / "rows.sqlite")
    writer = Writer(intake, store, quarantine, max_points=10**6, on_write=metrics.on_write)
    client = Client(Settings(host="broker", client_id="ingest"), [], writer.on_messages)
    metrics.attach(intake=intake, writer=writer, quarantine=quarantine, client=client)
    pace = Pace(every_s=600.0, recent_ns=0, whole_ns=0, settle_ns=0, share=1.0)
    engine = Engine(store, store, {}, sites={}, pace=pace)
    return Parts(metrics, intake, writer, quarantine, client, rollups.Metrics(engine))


def scraped(metrics: Metrics | rollups.Metrics) -> dict[str, Metric]:
    """What Prometheus' own parser makes of the answer."""
    text = generate_latest(metrics.registry).decode()
    return {family.name: family for family in text_string_to_metric_families(text)}


def value(metrics: Metrics, name: str, **labels: str) -> float:
    found = metrics.registry.get_sample_value(f"onestreet_ingest_{name}", labels)
    assert found is not None, name
    return found


def all_of_ours(parts: Parts) -> list[Metric]:
    """Ingest's and the roll-ups'."""
    return [*ours(parts.metrics).values(), *ours(parts.rollups).values()]


def ours(metrics: Metrics | rollups.Metrics) -> dict[str, Metric]:
    return {name: one for name, one in scraped(metrics).items() if name.startswith("onestreet_")}


def documented_as(family: Metric) -> str:
    return family.name + ("_total" if family.type == "counter" else "")


def test_names_follow_the_conventions(parts: Parts) -> None:
    for family in all_of_ours(parts):
        assert re.fullmatch(r"onestreet_(ingest|rollups)_[a-z_]+", family.name)
        assert family.documentation.endswith(".")
        for one in family.samples:
            if family.type == "counter":
                assert one.name.endswith("_total")
        assert not re.search(r"_(ms|millis|minutes|kb|mb)\b", family.name)
    assert "process_resident_memory_bytes" in scraped(parts.metrics)


def test_every_metric_is_documented_and_no_other(parts: Parts) -> None:
    wanted = {
        documented_as(family): (family.type, family.documentation) for family in all_of_ours(parts)
    }
    english = {
        name: (kind, words)
        for name, kind, _, words in ROW.findall((DOCS / "metrics.md").read_text("utf-8"))
    }
    assert english == wanted
    chinese = (DOCS / "metrics.zh-TW.md").read_text("utf-8")
    assert {name: kind for name, kind, _, _ in ROW.findall(chinese)} == {
        name: kind for name, (kind, _) in wanted.items()
    }


@pytest.mark.parametrize("name", ["metrics.md", "metrics.zh-TW.md"])
def test_what_the_documents_use_is_there(parts: Parts, name: str) -> None:
    text = (DOCS / name).read_text("utf-8")
    known = {documented_as(family) for family in all_of_ours(parts)}
    known |= {one.name for family in all_of_ours(parts) for one in family.samples}
    assert set(USED.findall(text)) <= known
    assert text.count("alert:") == 5


def test_counts_are_read_when_asked(parts: Parts) -> None:
    metrics, intake, writer, quarantine, client, _ = parts
    intake.counts.messages, intake.counts.points, intake.counts.refused_samples = 7, 20, 3
    intake.counts.late, intake.counts.over_budget, intake.counts.misjudged = 5, 2, 1
    intake.counts.refused["sample", "EX-R-008"] = 3
    writer.counts.stored, writer.counts.rejected, writer.counts.retries = 19, 1, 4
    writer.counts.errors["timeout"] = 4
    quarantine.counts.kept, quarantine.counts.dropped, quarantine.counts.evicted = 3, 2, 1
    quarantine.counts.only_counted, quarantine.counts.bodies_dropped = 8, 9
    client.counts.connects, client.counts.refused = 6, 2
    assert value(metrics, "messages_received_total") == 7
    assert value(metrics, "samples_received_total") == 23
    assert value(metrics, "samples_late_total") == 5
    assert value(metrics, "samples_over_budget_total") == 2
    assert value(metrics, "messages_misjudged_total") == 1
    assert value(metrics, "refused_total", kind="sample", requirement="EX-R-008") == 3
    assert value(metrics, "samples_stored_total") == 19
    assert value(metrics, "samples_rejected_total") == 1
    assert value(metrics, "store_retries_total") == 4
    assert value(metrics, "store_errors_total", kind="timeout") == 4
    assert value(metrics, "quarantine_kept_total") == 3
    assert value(metrics, "quarantine_dropped_total") == 2
    assert value(metrics, "quarantine_only_counted_total") == 8
    assert value(metrics, "quarantine_bodies_dropped_total") == 9
    assert value(metrics, "quarantine_evicted_total") == 1
    assert value(metrics, "mqtt_connects_total") == 6
    assert value(metrics, "mqtt_publishes_refused_total") == 2
    assert value(metrics, "mqtt_connected") == 0
    assert value(metrics, "store_ready") == 1


def test_a_write_is_observed(parts: Parts) -> None:
    now_ns = time.time_ns()
    series = Series("air", "tw-tpe", "street", "aq-1")
    points = [Point(series, now_ns - 10**9 * age_s, {"seq": 1}) for age_s in (90, 7, 40)]
    parts.metrics.on_write(0.02, points)
    ahead = [Point(series, now_ns + 10**12, {"seq": 1})]
    parts.metrics.on_write(0.03, ahead)
    assert value(parts.metrics, "write_points_count") == 2
    assert value(parts.metrics, "write_points_sum") == 4
    assert value(parts.metrics, "write_seconds_sum") == pytest.approx(0.05)
    assert value(parts.metrics, "write_seconds_bucket", le="0.025") == 1
    assert 7 <= value(parts.metrics, "lag_seconds_sum") < 20


def test_nothing_of_the_wire_becomes_a_label(parts: Parts) -> None:
    messages = [
        mqtt5.PublishPacket(
            case.topic, case.payload, qos=mqtt5.QoS.AT_LEAST_ONCE, packet_id=number % 65535 + 1
        )
        for number, case in enumerate(KNOWN)
        if carried(case.topic)
    ]
    parts.intake.take(messages, 0)
    families = ours(parts.metrics)
    labels = {
        (name, text)
        for family in families.values()
        for one in family.samples
        for name, text in one.labels.items()
        if name not in ("le", "version", "python")
    }
    allowed = {("requirement", each) for each in REQUIREMENTS}
    allowed |= {("kind", each) for each in ("sample", "metric", "payload")}
    assert labels <= allowed
    refused = families["onestreet_ingest_refused"].samples
    by_kind = {
        kind: sum(one.value for one in refused if one.labels["kind"] == kind)
        for kind in ("sample", "metric", "payload")
    }
    counts = parts.intake.counts
    assert by_kind == {
        "sample": counts.refused_samples,
        "metric": counts.refused_metrics,
        "payload": counts.unreadable,
    }
    assert min(by_kind.values()) > 0


def test_a_scrape_is_quick(parts: Parts) -> None:
    begun_s = time.thread_time()
    for _ in range(20):
        generate_latest(parts.metrics.registry)
    assert time.thread_time() - begun_s < 20 * 0.05  # in the loop, every 15 seconds or so
