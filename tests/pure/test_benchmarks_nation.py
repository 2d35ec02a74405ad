"""The load of a nation: every device has its moment, every sample is named by its receipt, none is counted twice."""

from __future__ import annotations

from itertools import pairwise, product

import pytest

from benchmarks.country import COUNTIES, Country, shards
from benchmarks.nation import Ledger
from exchange.readings import decode_pack
from exchange.topics import parse_topic

PERIODS = 5


@pytest.fixture
def country() -> Country:
    return Country(2345, period_ms=60_000, ramp=3, first_ms=1_790_000_000_123)


def test_every_device_has_one_moment_in_a_period(country: Country) -> None:
    order = [country.device_at(slot) for slot in range(country.devices)]
    assert sorted(order) == list(range(country.devices))
    assert [country.slot_of(device) for device in order] == list(range(country.devices))


def test_a_gateways_samples_do_not_come_together(country: Country) -> None:
    first = [country.device_at(slot) // 100 for slot in range(10)]
    assert len(set(first)) > 5


def test_every_sample_is_valid_and_named_by_device_and_seq(country: Country) -> None:
    seen: dict[int, list[tuple[int, int]]] = {}
    for period, slot in product(range(PERIODS), range(0, country.devices, 7)):
        if country.joins(slot) > period:
            continue
        device = country.device_at(slot)
        county, topic, payload = country.message(device, slot, period)
        where = parse_topic(topic)
        pack = decode_pack(payload, where)
        assert (where.county, pack.refusals, len(pack.samples)) == (county, [], 1)
        assert country.device_of(where.device) == device
        seen.setdefault(device, []).append((pack.samples[0].seq, pack.samples[0].time_ms))
    for samples in seen.values():
        assert [seq for seq, _ in samples] == list(range(len(samples)))
        times = [time_ms for _, time_ms in samples]
        assert [after - before for before, after in pairwise(times)] == [country.period_ms] * (
            len(times) - 1
        )


def test_what_is_expected_is_what_is_sent(country: Country) -> None:
    sent = [
        sum(country.joins(slot) <= period for slot in range(country.devices))
        for period in range(PERIODS)
    ]
    assert sent == [country.samples_in(period) for period in range(PERIODS)]
    assert sum(country.expected(PERIODS).values()) == sum(sent)


def test_every_county_has_one_store_and_no_store_much_more_than_another() -> None:
    held = shards(4)
    assert sorted(county for each in held for county in each) == sorted(COUNTIES)
    sizes = [sum(COUNTIES[county] for county in each) for each in held]
    assert max(sizes) < 1.1 * min(sizes)


def test_the_ledger_knows_what_has_no_receipt_and_counts_none_twice(country: Country) -> None:
    ledger = Ledger(country, PERIODS)
    lost = (country.device_at(4), 1)
    for period, slot in product(range(PERIODS), range(country.devices)):
        device = country.device_at(slot)
        if country.joins(slot) <= period and (device, period) != lost:
            ledger.settle(device, period, 10.0 if slot % 100 else 500.0)
    assert list(ledger.missing(PERIODS)) == [lost]
    assert list(ledger.missing(1)) == []
    ledger.settle(country.device_at(5), 2, 10.0)
    assert ledger.doubled == 1
    assert ledger.receipted == sum(map(country.samples_in, range(PERIODS))) - 1
    p50_ms, p99_ms, max_ms = ledger.waits_ms()
    assert (p50_ms, max_ms) == (11.0, 501.0)
    assert p99_ms in (11.0, 501.0)
    assert ledger.waits_ms() == (0.0, 0.0, 0.0)
