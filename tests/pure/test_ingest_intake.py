"""The intake and its batches: everything that comes in ends as points or refusals, in bounds."""

from __future__ import annotations

import itertools
import json
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import mqtt5
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ingest.batch
from exchange.readings import PackReader, Refusal, Row, Sample, Value, encode_pack
from exchange.receipts import decode_receipt
from exchange.topics import Topic
from ingest.hand import Hand
from ingest.intake import MAX_REFUSED_METRICS, Intake
from ingest.stores import Series

EPOCH = 1_795_000_000_777
_ids = itertools.count(1)


def message(
    topic: Topic | str, payload: bytes, packet_id: int | None = None
) -> mqtt5.PublishPacket:
    return mqtt5.PublishPacket(
        str(topic),
        payload,
        qos=mqtt5.QoS.AT_LEAST_ONCE,
        packet_id=packet_id or next(_ids) % 65535 + 1,
    )


def topic(
    device: str = "aq-1", *, county: str = "tw-tpe", gateway: str = "gw-1", domain: str = "air"
) -> Topic:
    return Topic(county, "street", gateway, domain, device, "readings")


def readings(to: Topic, *seqs: int, epoch: int = EPOCH) -> mqtt5.PublishPacket:
    samples = [Sample(EPOCH + 1000 * seq, epoch, seq, {"pm2_5": 1.0}) for seq in seqs]
    return message(to, encode_pack(to, samples))


def intake(max_points: int = 100, receive_maximum: int = 1000) -> Intake:
    return Intake(
        ["tw-tpe"],
        max_points=max_points,
        receive_maximum=receive_maximum,
        time_s=lambda: EPOCH / 1000 + 3600,
    )


def test_a_sample_becomes_a_point_with_its_row_key() -> None:
    taking = intake()
    taking.take([readings(topic(), 3)], 1)
    [batch] = taking.batches
    [point] = batch.points
    assert point.series == Series("air", "tw-tpe", "street", "aq-1")
    assert point.time_ns == (EPOCH + 3000) * 1_000_000 + EPOCH % 1_000_000
    assert point.fields == {"pm2_5": 1.0, "epoch": EPOCH, "seq": 3}


def test_quality_is_a_field_when_something_is_wrong() -> None:
    taking = intake()
    sample = Sample(EPOCH, EPOCH, 0, {"pm2_5": 1.0}, "uncertain:warmup")
    taking.take([message(topic(), encode_pack(topic(), [sample]))], 1)
    assert taking.batches[0].points[0].fields["quality"] == "uncertain:warmup"


def test_what_is_more_than_a_day_ahead_is_refused_and_the_rest_of_its_pack_stored() -> None:
    taking = intake()
    day_s = (
        86_400  # a sample a second, so that seq is the seconds since EPOCH; now is an hour later
    )
    taking.take([readings(topic(), 0, day_s + 3590, day_s + 3602, 10 * day_s)], 1)
    [batch] = taking.batches
    assert [point.fields["seq"] for point in batch.points] == [0, day_s + 3590]
    found = [(one.requirement, one.epoch, one.seq) for one in batch.refused]
    assert found == [("EX-R-023", EPOCH, day_s + 3602), ("EX-R-023", EPOCH, 10 * day_s)]
    assert taking.counts.refused_samples == 2
    assert taking.counts.points == 2


def test_a_result_that_is_more_than_a_day_ahead_is_refused() -> None:
    taking = intake()
    to = str(topic(domain="streetlight", device="lamp-1")).replace("/readings", "/results")
    for day in ("2026-11-19", "2099-01-01"):
        uuid = "0b6c5d7e-3c53-4b61-9d0f-6f0f6a8f3f10"
        body = {"v": 1, "id": uuid, "status": "done", "at": f"{day}T00:00:00.000Z"}
        taking.take([message(to, json.dumps(body).encode())], 1)
    [batch] = taking.batches
    assert len(batch.points) == 1
    assert [one.requirement for one in batch.refused] == ["EX-C-003"]


def test_a_full_batch_is_followed_by_another() -> None:
    taking = intake(max_points=10)
    taking.take([readings(topic(), seq) for seq in range(25)], 1)
    taking.take([readings(topic(), 25, 26)], 1)
    assert [len(batch.points) for batch in taking.batches] == [10, 10, 7]
    assert all(len(batch.points) == len(batch.routes) for batch in taking.batches)


def test_refusals_fill_a_batch_too() -> None:
    taking = intake(max_points=10)
    taking.take([message(topic(), b"nonsense") for _ in range(25)], 1)
    assert [len(batch.refused) for batch in taking.batches] == [10, 10, 5]


def test_one_pack_of_unknown_metrics_does_not_flood_the_quarantine() -> None:
    to, count = topic(), 5000
    records = json.loads(readings(to, 3).payload)
    records += [{"n": f"unknown-{number}", "v": 1} for number in range(count)]
    taking = intake()
    taking.take([message(to, json.dumps(records).encode())], 1)
    [batch] = taking.batches
    assert [point.fields["seq"] for point in batch.points] == [3]
    assert len(batch.refused) == MAX_REFUSED_METRICS + 1
    assert batch.refused[-1].detail.startswith(f"and {count - MAX_REFUSED_METRICS} more metrics")
    assert all(refused.metric for refused in batch.refused), "the sample itself is stored"
    assert taking.counts.refused_metrics == count


def test_a_county_that_is_not_served_is_kept_and_left_to_the_ingest_that_serves_it() -> None:
    taking = intake()
    foreign = readings(topic(county="tw-khh"), 0)
    taking.take([foreign, readings(topic(), 0)], 1)
    [batch] = taking.batches
    assert [refused.requirement for refused in batch.refused] == ["EX-T-007"]
    assert list(dict(batch.receipts())) == ["city/v1/tw-tpe/street/gw-1/receipts"]
    assert len(batch.packet_ids) == 2  # both are acknowledged


def test_a_mistake_of_ours_ends_one_message_and_not_the_intake(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(PackReader):
        def __init__(self, topic: Topic) -> None:
            super().__init__(topic)
            self.device = topic.device

        def rows(self, payload: bytes) -> tuple[list[Row], Sequence[Refusal]]:
            if self.device == "aq-9":
                raise ZeroDivisionError("a mistake")
            return super().rows(payload)

    monkeypatch.setattr(ingest.batch, "PackReader", Broken)
    taking = intake()
    taking.take([readings(topic("aq-9"), 0), readings(topic(), 0)], 1)
    [batch] = taking.batches
    assert [refused.requirement for refused in batch.refused] == ["EX-R-001"]
    assert len(batch.points) == 1
    assert "a mistake" in caplog.text


def test_what_many_connections_bring_stays_bounded() -> None:
    taking = intake(max_points=10, receive_maximum=30)
    for generation in range(1, 50):
        taking.take([readings(topic(), seq) for seq in range(30)], generation)
        assert sum(len(batch.packet_ids) for batch in taking.batches) <= 60


def test_what_a_broken_connection_brought_is_kept_apart_from_the_next() -> None:
    taking = intake()
    taking.take([readings(topic(), 0)], 1)
    taking.take([readings(topic(), 0), readings(topic(), 1)], 2)
    assert [(batch.generation, len(batch.packet_ids)) for batch in taking.batches] == [
        (1, 1),
        (2, 2),
    ]


def test_known_topics_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest.intake, "MAX_ROUTES", 5)
    taking = intake()
    taking.take([readings(topic(f"aq-{number}"), 0) for number in range(40)], 1)
    assert len(taking._routes) <= 5
    assert len(taking.batches[0].points) == 40


@given(st.lists(st.integers(0, 400), max_size=80), st.integers(1, 40))
def test_receipts_name_what_is_durable_and_nothing_else(seqs: list[int], max_points: int) -> None:
    taking = intake(max_points=max_points)
    for number, seq in enumerate(seqs):
        gateway = f"gw-{number % 2}"
        taking.take([readings(topic(f"aq-{number % 3}", gateway=gateway), seq)], 1)
    told: set[tuple[str, str, int]] = set()
    for batch in taking.batches:
        rejected = {place for place in range(len(batch.points)) if place % 7 == 3}
        kept = {
            (route.receipts, route.topic.device, point.fields["seq"])
            for place, (point, route) in enumerate(zip(batch.points, batch.routes, strict=True))
            if place not in rejected
        }
        named = {
            (to, device, seq)
            for to, payload in batch.receipts(rejected)
            for device, ranges in decode_receipt(payload).stored.items()
            for epoch, first, last in ranges
            for seq in range(first, last + 1)
            if epoch == EPOCH
        }
        assert named == kept
        told |= {(to, device, int(seq)) for to, device, seq in named}
    assert len(told) <= len(seqs)


def test_no_receipt_is_larger_than_any_client_takes() -> None:
    taking = intake(max_points=100_000)
    long = "d" * 48
    for number in range(9000):  # no two seqs of a device are neighbours: the worst there is
        taking.take([readings(topic(f"{number % 9}{long[:47]}"), 2 * number)], 1)
    taking.take([message(topic(), b"nonsense %d" % number) for number in range(2500)], 1)
    [batch] = taking.batches
    payloads = [payload for _, payload in batch.receipts()]
    assert max(map(len, payloads)) < 100_000
    stored = sum(
        len(ranges) for payload in payloads for ranges in decode_receipt(payload).stored.values()
    )
    assert stored == 9000
    assert sum(len(decode_receipt(payload).unreadable) for payload in payloads) == 2500


@given(st.binary(max_size=300), st.text(max_size=60))
def test_no_bytes_upset_it(payload: bytes, tail: str) -> None:
    taking = intake()
    place = "".join(letter for letter in tail if letter.isprintable() and letter not in "+#\0")
    taking.take(
        [message(topic(), payload), message(f"city/v1/tw-tpe/street/gw-1/{place}", payload)], 1
    )
    [batch] = taking.batches
    assert len(batch.packet_ids) == 2
    assert len(batch.refused) + len(batch.points) >= 2


def test_a_pack_that_only_looks_like_one() -> None:
    deep = b"[" * 100_000
    huge = json.dumps([{"bn": "tw-tpe:aq-1:", "bt": 1e308, "n": "epoch", "v": 1e308}]).encode()
    taking = intake()
    taking.take([message(topic(), deep), message(topic(), huge)], 1)
    assert len(taking.batches[0].refused) == 2


@pytest.mark.parametrize("form", ["json", "escaped", "cbor"])
def test_vendors_metrics_have_an_end(monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    monkeypatch.setattr(ingest.intake, "MAX_VENDOR_METRICS", 500)  # and 50 of a gateway
    taking = intake(max_points=1000)
    for seq in range(20):
        metrics: dict[str, Value] = {f"x-a-m{10 * seq + n}": 1.0 for n in range(10)}
        some = Sample(EPOCH + 1000 * seq, EPOCH, seq, metrics | {"pm2_5": 2.0})
        payload = encode_pack(topic(), [some], "cbor" if form == "cbor" else "json")
        if form == "escaped":
            payload = payload.replace(b'"x-', rb'"\u0078\u002d')
        taking.take([message(topic(), payload)], 1)
    taking.take(
        [
            message(
                topic(), encode_pack(topic(), [Sample(EPOCH + 10**6, EPOCH, 99, {"x-a-m3": 1.0})])
            )
        ],
        1,
    )
    [batch] = taking.batches
    kept = {name for point in batch.points for name in point.fields if name.startswith("x-")}
    assert len(batch.points) == 21
    assert all("pm2_5" in point.fields for point in batch.points[:20])
    assert len(kept) == 50
    assert "x-a-m3" in batch.points[-1].fields
    neighbour = topic("aq-2", gateway="gw-2")
    own: dict[str, Value] = {"x-b-own": 1.0}
    taking.take([message(neighbour, encode_pack(neighbour, [Sample(EPOCH, EPOCH, 0, own)]))], 1)
    assert "x-b-own" in batch.points[-1].fields
    assert {(each.requirement, bool(each.metric)) for each in batch.refused} == {("EX-R-009", True)}
    assert len(batch.refused) == taking.counts.refused_metrics == 150


# ------------------------------------------------------------------------------------------------- the rate budget

DAY_MS = 86_400_000


def budgeted(budget_per_min: int = 60) -> Intake:
    return Intake(
        ["tw-tpe"],
        max_points=10**6,
        receive_maximum=10**6,
        budget_per_min=budget_per_min,
        time_s=lambda: (EPOCH + DAY_MS) / 1000,
    )


def sent(to: Topic, *samples: tuple[int, int]) -> mqtt5.PublishPacket:
    """Return a pack of samples, each (ms since the epoch, seq)."""
    return message(
        to,
        encode_pack(to, [Sample(EPOCH + ms, EPOCH, seq, {"pm2_5": 1.0}) for ms, seq in samples]),
    )


def stored(taking: Intake) -> list[int]:
    return [int(point.fields["seq"]) for batch in taking.batches for point in batch.points]


def refused(taking: Intake) -> list[tuple[str, int]]:
    return [(each.requirement, each.seq) for batch in taking.batches for each in batch.refused]


@pytest.mark.parametrize("pack_size", [1, 7, 100])
def test_a_device_that_runs_wild_is_cut_to_its_budget(pack_size: int) -> None:
    taking = budgeted(60)
    times = [(10 * number, number) for number in range(3000)]  # 100 a second, for 30 s
    for start in range(0, len(times), pack_size):
        taking.take([sent(topic(), *times[start : start + pack_size])], 1)
    assert len(stored(taking)) == 60 + 29  # a minute's worth, and what 30 s pay for
    assert {requirement for requirement, _ in refused(taking)} == {"EX-R-027"}
    assert sorted(stored(taking) + [seq for _, seq in refused(taking)]) == list(range(3000))
    assert taking.counts.over_budget == taking.counts.refused["sample", "EX-R-027"] == 2911
    taking.take([sent(topic("aq-2"), (0, 0)), sent(topic(), (90_000, 3000))], 1)
    assert stored(taking)[-2:] == [0, 3000]  # a neighbour is not concerned, and it recovers


@pytest.mark.parametrize("newest_first", [False, True])
@pytest.mark.parametrize("pack_size", [1, 50, 1000])
def test_a_backlog_and_its_resends_are_never_over_the_budget(
    newest_first: bool, pack_size: int
) -> None:
    taking = budgeted(60)
    times = [(1000 * number, number) for number in range(5000)]  # a sample a second: just within
    packs = [sent(topic(), *times[at : at + pack_size]) for at in range(0, 5000, pack_size)]
    if newest_first:
        packs.reverse()
    for _ in range(3):
        taking.take(packs, 1)
    assert refused(taking) == []
    assert len(stored(taking)) == 15_000


def test_live_samples_in_a_drain_do_not_make_it_dear() -> None:
    taking = budgeted(60)
    for number in range(2000):
        live = sent(topic(), (3_600_000 + 1000 * number, 10_000 + number))
        taking.take([live, sent(topic(), (number, number))], 1)
    assert refused(taking) == []


def test_without_a_budget_nothing_is_counted() -> None:
    taking = budgeted(0)
    taking.take([sent(topic(), *[(number, number) for number in range(2000)])], 1)
    assert len(stored(taking)) == 2000


@given(
    st.lists(st.tuples(st.integers(0, 200_000), st.integers(1, 30)), max_size=60),
    st.integers(1, 600),
)
def test_every_sample_is_stored_or_refused_and_a_minute_holds_twice_the_budget_at_most(
    steps: list[tuple[int, int]], budget_per_min: int
) -> None:
    """Whatever the packs: times only rise here, so each counts."""
    taking = budgeted(budget_per_min)
    now_ms = seq = 0
    for pause_ms, samples in steps:
        now_ms += pause_ms
        group = [(now_ms + 100 * at, seq + at) for at in range(samples)]
        now_ms, seq = group[-1][0] + 1, seq + samples
        taking.take([sent(topic(), *group)], 1)
    assert sorted(stored(taking) + [seq for _, seq in refused(taking)]) == list(range(seq))
    times = [point.time_ms for batch in taking.batches for point in batch.points]
    for at, start_ms in enumerate(times):
        within = [ms for ms in times[at:] if ms < start_ms + 60_000]
        assert len(within) <= 2 * budget_per_min + 1


# ---------------------------------------------------------------------------------------------------- in hand


@pytest.mark.parametrize("now_s", [EPOCH / 1000, EPOCH / 1000 - 10**6])
def test_what_is_in_hand_is_not_more_than_it_says_be_it_taken_or_refused(now_s: float) -> None:
    taking = Intake(["tw-tpe"], max_points=9000, receive_maximum=9, time_s=lambda: now_s)
    head = {"bn": "tw-tpe:aq-1:", "bt": EPOCH / 1000, "n": "epoch", "v": EPOCH}
    records = [head, *({"n": "seq", "v": seq, "t": seq} for seq in range(7000))]
    pack = message(topic(), json.dumps(records).encode())
    tracemalloc.start()
    try:
        taking.take([pack], 1)
        held_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    [batch] = taking.batches
    assert len(batch.points) + len(batch.refused) == 7000
    assert 0.7 * held_bytes < batch.held_bytes < 4 * held_bytes


# ------------------------------------------------------------------------------------------------- after a crash


def test_what_was_in_hand_at_two_crashes_is_quarantined_unread(tmp_path: Path) -> None:
    again = mqtt5.PublishPacket(
        str(topic()),
        encode_pack(topic(), [Sample(EPOCH, EPOCH, 0, {"pm2_5": 1.0})]),
        qos=mqtt5.QoS.AT_LEAST_ONCE,
        packet_id=7,
        duplicate=True,
    )
    for _ in range(2):
        dying = Hand(tmp_path / "hand")
        dying.open()
        assert dying.takes(again)
        dying.close()
    living = Hand(tmp_path / "hand")
    living.open()
    taking = Intake(["tw-tpe"], max_points=9, receive_maximum=9, hand=living)
    taking.take([again, readings(topic("aq-2"), 1)], 1)
    living.close()
    [batch] = taking.batches
    assert [each.requirement for each in batch.refused] == ["EX-R-001"]
    assert "two crashes" in batch.refused[0].detail
    assert [point.series.device for point in batch.points] == ["aq-2"]
    assert set(batch.packet_ids) == {7, batch.messages[0].packet_id}
