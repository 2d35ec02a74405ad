"""How the watch judges, with time as the test says."""

from __future__ import annotations

import logging
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exchange.readings import Sample
from exchange.states import Location
from ingest.registry import DeviceId
from ingest.stores import Place, Point
from ingest.watch.incidents import Incident, incident_of
from ingest.watch.liveness import Status
from ingest.watch.maintenance import Window, utc
from ingest.watch.moments import Now
from ingest.watch.rows import most_of
from ingest.watch.sites import Hour
from tests.lookouts import COUNTY, EPOCH, LIMIT, NOON_MS, SITE, Street

UP, LATE, DOWN, UNKNOWN = Status.UP, Status.LATE, Status.DOWN, Status.UNKNOWN
BOUND_S = 5.0


def street(*devices: str, interval_s: float = 60.0, begun_ms: int = NOON_MS) -> Street:
    """Return a street whose gateway stands behind these devices, each heard once."""
    one = Street(begun_ms=begun_ms)
    one.state("gw-1")
    for device in devices:
        one.state(device, interval_s=interval_s)
        one.hear(device)
    one.pass_time(1.0)
    return one


def hear_for(one: Street, seconds: float, *devices: str, interval_s: float = 60.0) -> None:
    """Let time pass in which these devices are heard as they should be."""
    for _ in range(round(seconds / interval_s)):
        one.pass_time(interval_s, step_s=1.0)
        for device in devices:
            one.hear(device)


def test_a_device_is_down_within_two_intervals_and_five_seconds() -> None:
    one = street("aq-1", "aq-2")
    hear_for(one, 600, "aq-1", "aq-2")
    silent_from_s = one.now_s
    for _ in range(2):
        one.pass_time(59.0)
        one.hear("aq-2")
    assert one.status("aq-1") is UP
    while one.status("aq-1") is not DOWN:
        one.pass_time(0.25)
        one.hear("aq-2")
    assert 120.0 < one.now_s - silent_from_s <= 120.0 + BOUND_S
    assert [row.fields["status"] for row in one.rows("device", "aq-1")][-2:] == ["late", "down"]
    one.hear("aq-1")
    assert one.status("aq-1") is UP


def test_a_silent_device_is_one_incident_from_beginning_to_end() -> None:
    one = street("aq-1", "aq-2")
    hear_for(one, 1800, "aq-2")
    (begun,) = one.incidents()
    assert (begun.fields["kind"], begun.fields["cause"], begun.fields["open"]) == (
        "device_down",
        "silent",
        1,
    )
    last = one.rows("device", "aq-1")[-1]
    assert (last.fields["incident"], last.fields["up"], last.fields["state"]) == (
        begun.fields["id"],
        0,
        2,
    )
    one.hear("aq-1")
    one.pass_time(1.0)
    (ended,) = one.incidents()
    assert ended.time_ns == begun.time_ns
    assert (ended.fields["open"], ended.fields["ended"]) == (0, one.now.ms - 1000)
    assert ended.fields["duration_s"] == pytest.approx(1800 - 124, abs=2)
    assert one.rows("device", "aq-1")[-1].fields["incident"] == ""


def test_what_its_gateway_says_is_down_at_once() -> None:
    one = street("aq-1", "aq-2")
    one.state("aq-1", online=False)
    assert one.status("aq-1") is DOWN
    one.pass_time(1.0)
    assert [row.fields["cause"] for row in one.incidents()] == ["gateway_says"]


def test_a_gateway_that_goes_is_one_incident_and_one_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    names = [f"aq-{number}" for number in range(200)]
    one = street(*names)
    one.state("gw-1", online=False)
    one.pass_time(3600.0, step_s=5.0)
    assert {one.status(name) for name in names} == {UNKNOWN}
    (incident,) = one.incidents()
    assert (incident.fields["kind"], incident.fields["devices"]) == ("gateway_down", 200)
    assert incident.series.device == "gw-1"
    ids = {one.rows("device", name)[-1].fields["incident"] for name in names}
    assert ids == {incident.fields["id"]}
    assert [record.getMessage() for record in caplog.records] == [
        "gw-1 is down: nothing is known of 200 devices"
    ]
    one.state("gw-1")
    for name in names:
        one.hear(name)
    one.pass_time(1.0)
    assert {one.status(name) for name in names} == {UP}
    assert one.incidents(still=True) == []
    assert len(caplog.records) == 2


def test_silence_of_all_is_its_gateways() -> None:
    """With short intervals the broker's word that a gateway is gone comes later than the silence."""
    one = street("aq-1", "aq-2", "aq-3", interval_s=5.0)
    hear_for(one, 60, "aq-1", "aq-2", "aq-3", interval_s=5.0)
    one.pass_time(30.0)
    assert [one.status(name) for name in ("gw-1", "aq-1", "aq-2")] == [DOWN, UNKNOWN, UNKNOWN]
    (incident,) = one.incidents()
    assert (incident.fields["kind"], incident.fields["cause"]) == ("gateway_down", "gateway_silent")
    one.state("gw-1", online=False)
    one.pass_time(1.0)
    (incident,) = one.incidents()
    assert incident.fields["cause"] == "gateway_offline"
    one.state("gw-1")
    one.hear("aq-1")
    one.pass_time(1.0)
    assert [one.status(name) for name in ("gw-1", "aq-1", "aq-2")] == [UP, UP, UNKNOWN]
    for _ in range(6):
        one.pass_time(4.0)
        one.hear("aq-1")
    assert one.status("aq-2") is DOWN
    assert {row.fields["kind"] for row in one.incidents(still=True)} == {"device_down"}


def test_who_was_not_heard_since_its_gateway_came_back_is_not_up() -> None:
    one = street("aq-1", "aq-2")
    one.state("gw-1", online=False)
    one.pass_time(600.0)
    one.state("gw-1")
    one.pass_time(1.0)
    assert one.status("aq-1") is UNKNOWN
    hear_for(one, 180, "aq-2")
    assert (one.status("aq-1"), one.status("aq-2")) == (DOWN, UP)


def come_and_go(one: Street, times: int) -> None:
    """Have aq-1 come and go every 20 s, beside aq-2."""
    for _ in range(times):
        one.state("aq-1", online=False)
        one.pass_time(10.0)
        one.state("aq-1")
        one.hear("aq-1")
        one.hear("aq-2")
        one.pass_time(10.0)


def test_a_device_that_comes_and_goes_is_one_incident() -> None:
    one = street("aq-1", "aq-2")
    come_and_go(one, 100)
    (flapping,) = one.incidents("flapping")
    assert flapping.fields["open"] == 1
    assert len(one.incidents("device_down")) == 6
    rows = one.rows("device", "aq-1")
    assert len(rows) < 30
    assert rows[-1].fields["flapping"] == 1
    hear_for(one, 2400, "aq-1", "aq-2")
    assert one.incidents(still=True) == []
    assert one.rows("device", "aq-1")[-1].fields["flapping"] == 0


def test_a_gateway_that_comes_and_goes_floods_nothing(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    names = [f"aq-{number}" for number in range(20)]
    one = street(*names)
    for _ in range(100):
        one.state("gw-1", online=False)
        one.pass_time(10.0)
        one.state("gw-1")
        for name in names:
            one.hear(name)
        one.pass_time(10.0)
    assert {row.fields["kind"] for row in one.incidents(still=True)} == {"flapping"}
    assert len(one.incidents()) <= 7
    assert len(one.rows("device", "aq-7")) < 40
    assert len(caplog.records) < 20
    hear_for(one, 2400, *names)
    assert one.incidents(still=True) == []
    assert {one.rows("device", name)[-1].fields["status"] for name in names} == {"up"}


def test_a_device_that_dies_of_it_is_down_in_the_end() -> None:
    one = street("aq-1", "aq-2")
    for _ in range(10):
        one.state("aq-1", online=False)
        one.pass_time(1.0)
        one.state("aq-1")
        one.hear("aq-1")
    hear_for(one, 3600, "aq-2")
    assert [row.fields["kind"] for row in one.incidents(still=True)] == ["device_down"]


def test_while_the_watch_hears_nothing_it_judges_nobody() -> None:
    one = street("aq-1")
    before = len(one.rows("device"))
    one.lookout.blind(one.now)
    one.pass_time(3600.0, step_s=5.0)
    assert one.status("aq-1") is UP
    assert len(one.rows("device")) == before
    one.lookout.seeing(one.now, continued=True)
    one.pass_time(2.0)
    assert one.status("aq-1") is UNKNOWN
    one.pass_time(130.0)
    assert one.status("aq-1") is DOWN
    figures = one.figures("aq-1")
    assert figures.judged_ms <= 140_000


def test_a_watch_that_was_held_blames_nobody_for_what_it_did_not_hear() -> None:
    """What was sent meanwhile waits in the socket, and whoever is due is looked at first."""
    one = street("aq-1", "aq-2", interval_s=5.0)
    hear_for(one, 60, "aq-1", "aq-2", interval_s=5.0)
    one.lookout.wake(one.now)
    one.now_s += 40.0
    one.lookout.wake(one.now)
    one.lookout.sweep(one.now)
    one.hear("aq-1")
    one.pass_time(2.0)
    assert [one.status(name) for name in ("gw-1", "aq-1", "aq-2")] == [UP, UP, UNKNOWN]
    assert one.incidents() == []
    assert one.figures("aq-1").judged_ms <= 64_000
    for _ in range(3):
        one.pass_time(4.0)
        one.hear("aq-1")
    assert one.status("aq-2") is DOWN


def test_a_watch_that_is_late_by_little_was_not_held() -> None:
    one = street("aq-1", "aq-2", interval_s=5.0)
    for _ in range(5):
        one.now_s += 4.0
        one.lookout.wake(one.now)
        one.lookout.sweep(one.now)
        one.hear("aq-2")
    assert one.status("aq-1") is DOWN
    one.lookout.blind(one.now)
    one.now_s += 40.0
    one.lookout.wake(one.now)
    one.pass_time(60.0)
    assert one.figures("aq-2").judged_ms <= 22_000


def test_maintenance_is_neither_up_nor_down() -> None:
    one = street("aq-1", "aq-2")
    begin_ms = one.now.ms + 60_000
    window = Window(
        id="m-1", county=COUNTY, device="gw-1", begin=utc(begin_ms), end=utc(begin_ms + 600_000)
    )
    other = Window(
        id="m-2", county=COUNTY, site="elsewhere", begin=utc(begin_ms), end=utc(begin_ms + 10**7)
    )
    one.lookout.set_windows([window, other], one.now)
    one.pass_time(61.0)
    assert one.status("aq-1") is Status.MAINTENANCE
    one.state("gw-1", online=False)
    one.pass_time(500.0)
    assert one.incidents() == []
    one.pass_time(110.0)
    assert (one.status("gw-1"), one.status("aq-1")) == (DOWN, UNKNOWN)
    figures = one.figures("aq-1")
    assert figures.maintenance_ms == pytest.approx(600_000, abs=1000)
    assert figures.down_ms == 0


def test_a_maintenance_window_ends_an_incident() -> None:
    one = street("aq-1", "aq-2")
    hear_for(one, 300, "aq-2")
    assert len(one.incidents(still=True)) == 1
    window = Window(
        id="m-1", county=COUNTY, begin=utc(one.now.ms - 1), end=utc(one.now.ms + 600_000)
    )
    one.lookout.set_windows([window], one.now)
    assert one.incidents(still=True) == []


def test_a_retired_device_has_a_last_row_and_no_incident() -> None:
    one = street("aq-1", "aq-2")
    hear_for(one, 300, "aq-2")
    one.empty("aq-1")
    one.pass_time(600.0)
    rows = one.rows("device", "aq-1")
    assert (rows[-1].fields["status"], rows[-1].fields["state"]) == ("retired", 5)
    assert {row.series.device for row in one.incidents(still=True)} == {"aq-2"}
    assert one.status("aq-1") is None


def test_between_two_gateways_a_device_is_unknown_and_not_retired_for_ever() -> None:
    one = street("aq-1", "aq-2")
    for name in ("aq-1", "gw-1", "aq-2"):
        one.empty(name)
    one.pass_time(1.0)
    assert one.rows("device", "aq-1")[-1].fields["status"] == "retired"
    one.pass_time(600.0)
    assert one.rows("device", "aq-1")[-1].fields["status"] == "unknown"
    (incident,) = one.incidents()
    assert (incident.fields["kind"], incident.fields["devices"]) == ("gateway_gone", 2)
    one.state("gw-2", "gw-2")
    one.state("aq-1", "gw-2", epoch=5)
    one.hear("aq-1", "gw-2", epoch=5)
    one.pass_time(1.0)
    (incident,) = one.incidents()
    assert (incident.fields["open"], incident.fields["devices"]) == (1, 1)
    last = one.rows("device", "aq-1")[-1].fields
    assert (last["status"], last["gateway"]) == ("up", "gw-2")
    one.state("aq-2", "gw-2", epoch=5)
    one.pass_time(1.0)
    assert one.incidents(still=True) == []


def test_a_gateway_that_is_emptied_and_stated_again_is_not_gone() -> None:
    one = street("aq-1", "aq-2")
    for name in ("gw-1", "aq-1", "aq-2"):
        one.empty(name)
    one.state("gw-1")
    one.state("aq-2")
    hear_for(one, 180, "aq-2")
    assert [one.status(name) for name in ("gw-1", "aq-1", "aq-2")] == [UP, None, UP]
    assert one.incidents() == []


def test_nobody_waits_for_another_gateway_for_ever() -> None:
    one = street("aq-1")
    one.empty("aq-1")
    one.empty("gw-1")
    one.pass_time(73 * 3600.0, step_s=20.0)
    assert one.rows("device", "aq-1")[-1].fields["status"] == "retired"
    assert one.incidents(still=True) == []
    assert one.status("aq-1") is None


def test_two_gateways_that_speak_for_one_device_are_an_incident_that_ends() -> None:
    one = street("aq-1")
    one.state("aq-1", "gw-2", epoch=1)
    one.pass_time(60.0)
    assert [row.fields["kind"] for row in one.incidents(still=True)] == ["two_gateways"]
    hear_for(one, 3720, "aq-1")
    assert one.incidents(still=True) == []


def test_a_device_taken_out_of_one_of_two_gateways_is_the_others_at_once() -> None:
    one = street("aq-1", "aq-2")
    one.state("gw-2", "gw-2")
    one.state("aq-1", "gw-2", epoch=1)
    one.hear("aq-1", "gw-2", epoch=1)
    one.pass_time(60.0)
    one.empty("aq-1")
    one.hear("aq-1", "gw-2", epoch=1)
    one.pass_time(5.0)
    last = one.rows("device", "aq-1")[-1].fields
    assert (last["status"], last["gateway"]) == ("up", "gw-2")
    one.state("gw-1", online=False)
    assert (one.status("aq-1"), one.status("aq-2")) == (UP, UNKNOWN)
    one.empty("aq-1", "gw-2")
    one.pass_time(1.0)
    assert one.rows("device", "aq-1")[-1].fields["status"] == "retired"


def test_a_site_says_how_many_are_how() -> None:
    one = street("aq-1", "aq-2", "aq-3")
    one.state("aq-3", online=False)
    one.pass_time(6.0)
    row = [row for row in one.rows("site_now") if row.series.domain == "air"][-1]
    assert row.series == ("site_now", COUNTY, SITE, "", "air")
    shown = {name: row.fields[name] for name in ("devices", "up", "late", "down", "unknown")}
    assert shown == {"devices": 3, "up": 2, "late": 0, "down": 1, "unknown": 0}
    assert row.fields["completeness"] == 1.0
    assert row.fields["maintenance"] == 0
    times = [row.time_ms for row in one.rows("site_now") if row.series.domain == "air"]
    assert all(after - before >= 5000 for before, after in pairwise(times))


def test_a_county_says_how_many_are_how_in_all_its_sites() -> None:
    one = street("aq-1", "aq-2")
    one.state("aq-1", online=False)
    one.pass_time(6.0)

    def last() -> dict[str, object]:
        row = [row for row in one.rows("county_now") if row.series.domain == "air"][-1]
        assert row.series == ("county_now", COUNTY, "", "", "air")
        return dict(row.fields)

    shown = {"devices": 2, "up": 1, "late": 0, "down": 1, "unknown": 0, "maintenance": 0}
    assert last() == shown | {"incidents": 1}
    one.empty("aq-1")
    one.empty("aq-2")
    one.pass_time(61.0)
    assert last() == dict.fromkeys([*shown, "incidents"], 0)
    times = [row.time_ms for row in one.rows("county_now") if row.series.domain == "air"]
    assert all(after - before >= 5000 for before, after in pairwise(times))


def test_an_hour_of_a_site_keeps_the_most_that_were_down_at_once() -> None:
    one = street("aq-1", "aq-2", "aq-3")

    def keep_up(seconds: float) -> None:
        hear_for(one, seconds, "aq-2", "aq-3")

    def hours() -> list[Point]:
        return [row for row in one.rows("site_hour_state") if row.series.domain == "air"]

    keep_up(600)  # aq-1 is silent
    one.state("aq-2", online=False)
    one.state("aq-2")
    one.hear("aq-2")
    keep_up(3600)
    one.hear("aq-1")
    keep_up(3600)
    found = {row.time_ms: row.fields for row in hours()}
    assert all(time_ms % 3_600_000 == 0 for time_ms in found)
    first, second, third = (found[time_ms] for time_ms in sorted(found)[-3:])
    assert (first["down"], first["devices"]) == (2, 3)
    assert second["down"] == 1  # as it was when the hour began
    assert third["down"] in (0, 1)
    other = Street(begun_ms=one.now.ms)
    other.state("aq-1")
    other.lookout.sites.restore_hour(
        Place(COUNTY, SITE, "air"), Hour(max(found), *most_of(hours()[-1])), other.now
    )
    other.pass_time(800.0, step_s=1.0)
    again = other.rows("site_hour_state")[-1].fields
    assert again["devices"] == 3  # not below what was seen


def test_a_site_is_in_the_middle_of_its_devices_and_says_when_none_is_left() -> None:
    one = Street()
    one.state("gw-1")
    one.state("aq-1", location=Location(lat=24.0, lon=121.0))
    one.state("aq-2", location=Location(lat=25.0, lon=121.5))
    one.state("aq-3")

    def last() -> dict[str, object]:
        one.pass_time(70.0)
        return dict([row for row in one.rows("site_now") if row.series.domain == "air"][-1].fields)

    assert (last()["lat"], last()["lon"]) == (24.5, 121.25)
    one.state("aq-2", location=Location(lat=24.0, lon=121.0))
    assert (last()["lat"], last()["lon"]) == (24.0, 121.0)
    for name in ("aq-1", "aq-2", "aq-3"):
        one.empty(name)
    assert (last()["devices"], "lat" in last()) == (0, False)


def test_many_changes_are_few_lines(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    names = [f"aq-{number}" for number in range(500)]
    one = street(*names)
    for name in names:
        one.state(name, online=False)
    one.pass_time(300.0)
    assert len(caplog.records) < 40
    assert "and 470 further changes of devices" in caplog.text


def again(one: Street, *devices: str, interval_s: float = 60.0) -> Street:
    """Return the street as another run of the watch finds it a minute later, with the incidents left open."""
    kept = [found for row in one.incidents(still=True) if (found := incident_of(row))]
    other = Street(begun_ms=one.now.ms + 60_000)
    other.state("gw-1")
    for device in devices:
        other.state(device, interval_s=interval_s)
        other.pass_time(0.5)
    other.lookout.restore_incidents(kept, other.now)
    return other


AIR = ("aq-1", "aq-2", "aq-3")


def test_a_gateway_that_is_silent_at_a_restart_is_the_same_incident() -> None:
    one = street(*AIR, interval_s=5.0)
    hear_for(one, 60, *AIR, interval_s=5.0)
    one.pass_time(30.0)
    (before,) = one.incidents()
    other = again(one, *AIR, interval_s=5.0)
    other.pass_time(300.0)
    assert [other.status(name) for name in ("gw-1", *AIR)] == [DOWN, UNKNOWN, UNKNOWN, UNKNOWN]
    (incident,) = other.incidents()
    assert (incident.fields["id"], incident.fields["open"]) == (before.fields["id"], 1)
    since = one.rows("device", "gw-1")[-1].fields["since"]
    assert other.rows("device", "gw-1")[-1].fields["since"] == since
    other.hear("aq-1")
    other.pass_time(1.0)
    assert [other.status(name) for name in ("gw-1", *AIR)] == [UP, UP, UNKNOWN, UNKNOWN]
    assert other.incidents(still=True) == []


def test_a_gateway_that_was_heard_before_its_silence_was_read_back_is_not_silent() -> None:
    one = street(*AIR, interval_s=5.0)
    hear_for(one, 60, *AIR, interval_s=5.0)
    one.pass_time(30.0)
    kept = [found for row in one.incidents(still=True) if (found := incident_of(row))]
    other = street(*AIR, begun_ms=one.now.ms + 60_000)
    other.lookout.restore_incidents(kept, other.now)
    assert other.status("gw-1") is UP


def test_a_gateway_that_fell_silent_while_the_watch_was_away_is_one_incident() -> None:
    one = street(*AIR)
    hear_for(one, 600, *AIR)
    other = again(one, *AIR)
    other.pass_time(300.0)
    (incident,) = other.incidents()
    assert (incident.fields["kind"], incident.fields["cause"]) == ("gateway_down", "gateway_silent")
    assert {other.status(name) for name in AIR} == {UNKNOWN}


def test_a_gateway_that_died_while_the_broker_was_away_is_one_incident() -> None:
    one = Street()
    one.state("gw-1", interval_s=300.0)
    for name in AIR:
        one.state(name)
    for name in ("gw-1", *AIR):
        one.hear(name)
    one.pass_time(1.0)
    one.lookout.blind(one.now)
    one.pass_time(600.0, step_s=5.0)
    one.lookout.seeing(one.now, continued=True)
    one.pass_time(700.0)
    (incident,) = one.incidents()
    assert (incident.fields["kind"], incident.fields["cause"]) == ("gateway_down", "gateway_silent")


def test_who_was_called_down_before_its_gateway_was_found_silent_is_the_gateways() -> None:
    one = Street()
    one.state("gw-1")
    for name, interval_s in (("aq-1", 60.0), ("aq-2", 120.0), ("aq-3", 120.0)):
        one.state(name, interval_s=interval_s)
        one.hear(name)
    one.pass_time(1.0)
    one.lookout.blind(one.now)
    one.pass_time(600.0, step_s=5.0)
    one.lookout.seeing(one.now, continued=True)
    one.pass_time(130.0)
    assert [row.fields["kind"] for row in one.incidents(still=True)] == ["device_down"]
    one.pass_time(130.0)
    assert [row.fields["kind"] for row in one.incidents(still=True)] == ["gateway_down"]
    assert {one.status(name) for name in AIR} == {UNKNOWN}


def test_who_was_down_long_before_its_gateway_keeps_its_incident() -> None:
    one = street(*AIR)
    hear_for(one, 600, "aq-1", "aq-2")
    one.pass_time(300.0)
    assert {(row.series.device, row.fields["kind"]) for row in one.incidents(still=True)} == {
        ("aq-3", "device_down"),
        ("gw-1", "gateway_down"),
    }


def test_who_was_down_before_a_restart_is_down_since_then_and_its_gateway_is_not_silent() -> None:
    one = street(*AIR)
    hear_for(one, 600, "aq-3")
    before = one.incidents(still=True)
    assert len(before) == 2
    other = again(one, "aq-1", "aq-2")
    other.pass_time(300.0)
    after = other.incidents(still=True)
    assert [row.fields["id"] for row in after] == [row.fields["id"] for row in before]
    for name in ("aq-1", "aq-2"):
        assert other.status(name) is DOWN
        since = one.rows("device", name)[-1].fields["since"]
        assert other.rows("device", name)[-1].fields["since"] == since


def test_devices_whose_site_moves_are_retired_there_and_nowhere_else() -> None:
    one = street("aq-1")
    for name in ("gw-1", "aq-1"):
        one.state(name, site="square")
    for name in ("gw-1", "aq-1"):
        one.empty(name)
    one.hear("aq-1")
    hear_for(one, 180, "aq-1")
    assert one.incidents() == []
    for name in ("gw-1", "aq-1"):
        last = {row.series.site: row.fields["status"] for row in one.rows("device", name)}
        assert last == {SITE: "retired", "square": "up"}
    left = {row.series.site: row.fields["devices"] for row in one.rows("site_now")}
    assert left == {SITE: 0, "square": 1}


def test_rows_of_a_county_and_its_sites_say_how_many_incidents_are_open() -> None:
    def said(street: Street) -> set[object]:
        street.pass_time(6.0)
        air = [
            [row for row in street.rows(name) if row.series.domain == "air"][-1]
            for name in ("county_now", "site_now")
        ]
        return {row.fields.get("incidents") for row in air}

    one = street("aq-1", "aq-2")
    assert said(one) == {0}
    one.state("aq-1", online=False)
    one.state("aq-2", online=False)
    assert said(one) == {2}
    kept = [found for row in one.incidents(still=True) if (found := incident_of(row))]
    other = Street(begun_ms=one.now.ms + 60_000)
    other.state("gw-1")
    other.state("aq-1", online=False)
    unsure = other.lookout.rows(other.now, LIMIT, incidents=False)
    assert "county_now" in {row.series.measurement for row in unsure}
    assert not any("incidents" in row.fields for row in unsure)
    other.lookout.restore_incidents(kept, other.now)
    assert said(other) == {2}
    other.state("aq-1")
    other.hear("aq-1")
    assert said(other) == {1}
    other.pass_time(200.0)  # the other one is no more
    assert said(other) == {1}  # aq-1 is silent again
    gateways = [row.fields for row in other.rows("county_now") if row.series.domain == "gateway"]
    assert gateways[-1]["incidents"] == 0


ACTS = st.sampled_from(
    ["hear", "old", "on", "off", "gw on", "gw off", "empty", "blind", "see", "gw empty"]
)
INTERVAL_S = 20.0


class Story:
    """Whatever may happen to three devices and their gateway."""

    def __init__(self) -> None:
        self.street = Street()
        self.heard_s = dict.fromkeys(("aq-0", "aq-1", "aq-2"), float("-inf"))
        self.is_seeing = True
        self.state("gw-1", online=True)

    def state(self, device: str, *, online: bool, epoch: int = EPOCH) -> None:
        self.street.state(device, online=online, interval_s=INTERVAL_S, epoch=epoch)

    def act(self, what: str, device: str) -> None:
        one = self.street
        match what:
            case "hear" | "old" if one.status(device) is not None:
                one.hear(device, age_s=3600.0 if what == "old" else 0.0)
                if what == "hear":
                    self.heard_s[device] = one.now_s
            case "on" | "off":
                self.state(device, online=what == "on")
            case "gw on" | "gw off":
                self.state("gw-1", online=what == "gw on")
            case "empty":
                one.empty(device)
            case "gw empty":
                one.empty("gw-1")
            case "blind":
                one.lookout.blind(one.now)
                self.is_seeing = False
            case "see":
                one.lookout.seeing(one.now, continued=device == "aq-0")
                self.is_seeing = True

    def ends_well(self) -> None:
        """Have everything be as it should for longer than anything is remembered."""
        one = self.street
        one.lookout.seeing(one.now, continued=False)
        newest = 2 * 10**12
        for device in self.heard_s:
            self.state(device, online=True, epoch=newest)
        self.state("gw-1", online=True)
        for _ in range(int(4000 / INTERVAL_S)):
            one.pass_time(INTERVAL_S, step_s=5.0)
            for device in self.heard_s:
                one.hear(device, epoch=newest)


@given(st.lists(st.tuples(ACTS, st.integers(0, 2), st.floats(0.1, 200.0)), max_size=40))
def test_whatever_comes_nobody_silent_is_up_and_every_incident_ends(
    acts: list[tuple[str, int, float]],
) -> None:
    story = Story()
    one = story.street
    for what, number, wait_s in acts:
        story.act(what, f"aq-{number}")
        one.pass_time(wait_s, step_s=1.0)
        for device, heard_s in story.heard_s.items():
            if story.is_seeing and one.now_s - heard_s > 2 * INTERVAL_S + BOUND_S:
                assert one.status(device) is not UP
    story.ends_well()
    assert {one.status(device) for device in story.heard_s} == {UP}
    assert one.incidents(still=True) == []
    counted = [row for row in one.rows("site_now") if row.series.domain == "air"][-1]
    assert (counted.fields["devices"], counted.fields["up"]) == (3, 3)


def test_a_window_over_a_gateway_is_its_devices_too() -> None:
    one = street("aq-1", "aq-2")
    windows = [Window(id="m-1", county=COUNTY, device="gw-1", begin=utc(0), end=utc(2**42))]
    one.lookout.set_windows(windows, one.now)
    one.pass_time(3600.0, step_s=5.0)
    assert {one.status(name) for name in ("gw-1", "aq-1", "aq-2")} == {Status.MAINTENANCE}
    assert one.incidents() == []
    one.lookout.set_windows([], one.now)
    one.pass_time(300.0, step_s=1.0)
    assert {row.series.device for row in one.incidents()} == {"aq-1", "aq-2"}


def test_a_store_that_is_too_slow_passes_nobody_over() -> None:
    """One is written where one changes again."""
    names = [f"aq-{number}" for number in range(10)]
    one = Street()
    for name in names:
        one.state(name)
    seen: set[str] = set()
    for turn in range(20):
        one.state("aq-9", epoch=EPOCH + turn + 1)
        rows = one.lookout.rows(one.now, 1 + (turn == 0) * 2)  # of the site and the county, too
        seen |= {row.series.device for row in rows if row.series.measurement == "device"}
    assert seen == set(names)


def test_what_is_taken_late_puts_no_clock_back() -> None:
    """Readings may have waited for the state of their device."""
    one = street("aq-1")
    before = Now(one.now.s - 0.5, one.now.ms - 500)
    one.hear("aq-1")
    watched = one.lookout._watched[DeviceId(COUNTY, "aq-1")]
    samples = [Sample(before.ms, EPOCH, 9, {})]
    one.lookout.take_readings(one.topic("aq-1", "gw-1", "readings"), samples, before)
    assert watched.heard_s == watched.gateway.heard_s == one.now.s


def test_another_run_knows_who_comes_and_goes() -> None:
    one = street("aq-1", "aq-2")
    come_and_go(one, 8)
    kept = [found for row in one.incidents(still=True) if (found := incident_of(row))]
    assert [found.kind for found in kept] == ["flapping"]
    other = street("aq-1", "aq-2", begun_ms=one.now.ms)
    other.lookout.restore_incidents(kept, other.now)
    for _ in range(10):  # so slowly that a run of its own would not call it that
        hear_for(other, 780, "aq-1", "aq-2")
        other.state("aq-1", online=False)
        other.pass_time(1.0)
        other.state("aq-1")
        other.hear("aq-1")
    assert [row.fields["id"] for row in other.incidents("flapping")] == [kept[0].id]
    assert other.incidents("device_down") == []
    assert other.rows("device", "aq-1")[-1].fields["flapping"] == 1
    hear_for(other, 2400, "aq-1", "aq-2")
    assert other.incidents(still=True) == []
    assert other.rows("device", "aq-1")[-1].fields["flapping"] == 0


def test_who_comes_and_goes_and_is_in_maintenance_at_a_restart_is_in_maintenance() -> None:
    one = street("aq-1", "aq-2")
    windows = [Window(id="m-1", county=COUNTY, device="aq-1", begin=utc(0), end=utc(2**42))]
    one.lookout.set_windows(windows, one.now)
    before = Incident(
        kind="flapping",
        cause="changes_often",
        county=COUNTY,
        site=SITE,
        device="aq-1",
        label="",
        began_ms=one.now.ms - 600_000,
    )
    one.lookout.restore_incidents([before], one.now)
    one.pass_time(200.0)
    assert one.incidents("flapping", still=True) == []


def test_another_run_goes_on_with_an_incident_and_ends_one_of_a_device_that_is_no_more() -> None:
    one = street("aq-1", "aq-2")
    one.state("aq-1", online=False)
    one.state("aq-2", online=False)
    one.pass_time(60.0)
    kept = [found for row in one.incidents() if (found := incident_of(row))]
    assert len(kept) == 2
    other = Street(begun_ms=one.now.ms + 60_000)
    other.state("gw-1")
    other.state("aq-1", online=False)
    twice = msgspec.structs.replace(
        kept[0], began_ms=kept[0].began_ms + 5
    )  # by a run that was cut short
    other.lookout.restore_incidents([twice, *kept], other.now)
    other.pass_time(1.0)
    assert {row.fields["id"] for row in other.incidents(still=True)} == {one.id for one in kept}
    assert {row.fields["id"] for row in other.incidents(still=False)} == {twice.id}
    last = other.rows("device", "aq-1")[-1]
    assert last.fields["incident"] == f"{COUNTY}/aq-1/device_down/{kept[0].began_ms}"
    other.pass_time(300.0)
    assert [row.series.device for row in other.incidents(still=True)] == ["aq-1"]
    other.state("aq-1", online=True)
    other.hear("aq-1")
    assert other.incidents(still=True) == []
