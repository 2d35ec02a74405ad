"""The simulated week: what tests of pages, alerts and rollups rely on."""

from __future__ import annotations

from collections import Counter
from itertools import islice, pairwise

import pytest

from exchange.dictionary import dictionary
from ingest.stores import FieldValue, Point
from tests.weeks import EVENTS, HOUR_MS, LOT_PLACES, Event, Week

WEEK = Week()


def at(event: Event, *, week: Week = WEEK) -> dict[int, dict[str, FieldValue]]:
    """Rows of an event's device while it lasts, by time."""
    rows = week.rows(week.device(event.device))
    return {row.time_ms: row.fields for row in rows if event.start_ms <= row.time_ms < event.end_ms}


def test_there_are_nine_sites_with_devices_of_every_kind_through_their_own_gateways() -> None:
    devices = list(WEEK.devices())
    assert len(WEEK.sites) == 9
    by_site = Counter((one.topic.site, one.topic.domain) for one in devices)
    assert {count for (_, domain), count in by_site.items() if domain == "streetlight"} == {6}
    names = [(one.topic.county, one.id) for one in devices]
    assert len(set(names)) == len(names)
    gateways = {one.id for one in devices if one.topic.domain == "gateway"}
    assert {one.topic.gateway for one in devices} == gateways


def test_every_event_happens_and_none_to_a_device_that_is_not_there() -> None:
    assert len(WEEK.events) == len(EVENTS)
    few = Week(lamps=2, bays=0, air=1)
    assert {event.device for event in few.events} <= {one.id for one in few.devices()}
    assert few.event("lamp_fault") == WEEK.event("lamp_fault")


def test_the_same_seed_gives_the_same_rows_in_any_order_and_another_seed_others() -> None:
    def some(week: Week) -> list[Point]:
        return list(islice(week.rows(week.device("neihu-bay-1")), 300))

    assert some(WEEK) == some(Week())
    assert [row.fields["occupied"] for row in some(WEEK)] != [
        row.fields["occupied"] for row in some(Week(seed=2))
    ]


@pytest.mark.parametrize("kind", ["lamp", "bay", "lot", "air", "meter"])
def test_rows_are_what_the_dictionary_says(kind: str) -> None:
    device = WEEK.device(f"shuinan-{kind}-1")
    metrics = dictionary()[device.topic.domain].metrics
    types = {"float": float, "integer": int, "boolean": int}
    seq = 0
    for row in WEEK.rows(device):
        fields = dict(row.fields)
        assert (fields.pop("epoch"), fields.pop("seq")) == (device.state.epoch, seq)
        seq += 1
        quality = fields.pop("quality", "")
        for name, value in fields.items():
            assert type(value) is types[metrics[name].type]
            low, high = metrics[name].range or (0, 1)
            assert f"({name})" in str(quality) or low <= float(value) <= high
    assert seq == 7 * 24 * 12


def test_lamps_burn_by_night_and_broken_ones_do_not() -> None:
    lamp = WEEK.device("xinyi-lamp-1")
    for row in WEEK.rows(lamp):
        into = [min(row.time_ms - b, e - row.time_ms) for b, e in WEEK.dark("xinyi")]
        if max(into) > HOUR_MS / 4:
            assert row.fields["lit"] == 1
        if max(into) < -HOUR_MS / 4:
            assert row.fields["power"] == 0.4
    flagged = at(WEEK.event("lamp_fault"))
    assert {row["lit"] for row in flagged.values()} == {0}
    assert {row["lamp_fault"] for row in flagged.values()} == {0, 1}
    dead = at(WEEK.event("lamp_dead"))
    assert {row["lit"] for row in dead.values()} == {0, 1}
    assert {row["power"] for row in dead.values()} == {0.4}
    assert all(row["lit"] for row in at(WEEK.event("day_burner")).values())


def test_what_is_silent_is_away_and_what_is_lost_leaves_a_gap_in_seq() -> None:
    for event in WEEK.events:
        if event.what == "silent":
            assert at(event) == {}
    assert at(WEEK.event("gateway_down")) == {}
    lost = WEEK.event("lost")
    assert at(lost) == {}
    seqs = [int(row.fields["seq"]) for row in WEEK.rows(WEEK.device(lost.device))]
    assert seqs[-1] + 1 - len(seqs) == 12
    again = WEEK.event("new_epoch")
    (before, *_, after) = [row.fields for row in WEEK.rows(WEEK.device(again.device))]
    assert int(after["epoch"]) > int(before["epoch"])


def test_a_counter_that_is_replaced_begins_at_0_and_else_never_falls() -> None:
    falls = Counter[str]()
    for device in WEEK.devices("station"):
        if device.topic.domain == "streetlight":
            values = [float(row.fields["energy"]) for row in WEEK.rows(device)]
            falls[device.id] = sum(after < before for before, after in pairwise(values))
    assert {name: count for name, count in falls.items() if count} == {"station-lamp-1": 1}


def test_a_backlog_is_known_only_when_its_gateway_is_back() -> None:
    event = WEEK.event("uplink_out")
    lamp = WEEK.device("lukang-lamp-1")
    middle_ms = (event.start_ms + event.end_ms) // 2
    then = [row.time_ms for row in WEEK.rows(lamp, middle_ms)]
    assert max(then) < event.start_ms
    later = [row.time_ms for row in WEEK.rows(lamp, event.end_ms)]
    assert sum(event.start_ms <= time_ms for time_ms in later) == 36
    assert list(WEEK.rows(lamp))[: len(later)] == list(WEEK.rows(lamp, event.end_ms))


def test_the_car_park_is_full_when_it_is_said_and_never_else() -> None:
    event = WEEK.event("full")
    for device in (one for one in WEEK.devices() if one.kind == "lot"):
        for row in WEEK.rows(device):
            full = float(row.fields["free_car"]) <= 0.05 * LOT_PLACES
            expected = device.id == event.device and event.start_ms <= row.time_ms < event.end_ms
            assert full is expected


def test_bays_hold_one_car_at_a_time() -> None:
    stays = WEEK.stays(WEEK.device("xinyi-bay-1"))
    assert len(stays) > 30
    ends = [moment for stay in stays for moment in stay]
    assert ends == sorted(ends)


def test_stuck_and_damp_values_are_marked() -> None:
    stuck = at(WEEK.event("stuck"))
    assert len({row["pm2_5"] for row in stuck.values()}) == 1
    assert sum("quality" in row for row in stuck.values()) == 24 * 12
    damp = at(WEEK.event("damp"))
    assert {row["quality"] for row in damp.values()} == {"bad:range(humidity)"}


def test_a_country_is_made_one_device_after_another() -> None:
    country = Week(lamps=17_778, bays=0, lots=0, air=0, meters=0)
    devices = country.devices("shuinan")
    lamp = next(one for one in islice(devices, 10_000, None))
    assert len(list(country.rows(lamp))) == 7 * 24 * 12
