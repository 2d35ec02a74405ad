"""Figures of civil days: never more seconds than a day has, and every sample on its day."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exchange.states import Location
from ingest.days import Days
from ingest.registry import DeviceId
from ingest.stores import Point
from ingest.watch.lookout import Restored
from ingest.watch.rows import figures_of, losses_of
from ingest.watch.service import newest
from tests.lookouts import COUNTY, EPOCH, Street

HOUR_MS = 3_600_000
NAME = DeviceId(COUNTY, "aq-1")
FIELDS = ("up_s", "down_s", "unknown_s", "maintenance_s")


def ms(text: str) -> int:
    return round(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)


@pytest.mark.parametrize(
    ("zone", "moment", "start", "hours"),
    [
        ("Asia/Taipei", "2026-11-23T15:59", "2026-11-22T16:00", 24),
        ("Asia/Taipei", "2026-11-23T16:00", "2026-11-23T16:00", 24),
        ("Europe/Berlin", "2026-03-29T12:00", "2026-03-28T23:00", 23),
        ("Europe/Berlin", "2026-10-25T12:00", "2026-10-24T22:00", 25),
        ("America/Havana", "2026-03-08T12:00", "2026-03-08T05:00", 23),
        ("Asia/Taipei", "1975-04-01T12:00", "1975-03-31T16:00", 23),
    ],
)
def test_a_day_is_as_long_as_its_zone_says(zone: str, moment: str, start: str, hours: int) -> None:
    day = Days(ZoneInfo(zone)).of(ms(moment))
    assert (day.start_ms, day.end_ms) == (ms(start), ms(start) + hours * HOUR_MS)


@given(st.integers(0, 4 * 10**12), st.sampled_from(["Asia/Taipei", "Europe/Berlin", "Asia/Tehran"]))
def test_every_moment_is_in_its_day_and_days_join(time_ms: int, zone: str) -> None:
    days = Days(ZoneInfo(zone))
    day = days.of(time_ms)
    assert day.start_ms <= time_ms < day.end_ms
    after = days.of(day.end_ms)
    assert after.start_ms == day.end_ms
    assert days.of(day.end_ms - 1) == day


def days_of(street: Street, measurement: str = "device_day") -> list[Point]:
    return [
        row
        for row in street.rows(measurement, "aq-1" if measurement == "device_day" else None)
        if measurement == "device_day" or row.series.domain == "air"
    ]


ACTS = st.lists(
    st.tuples(st.sampled_from(["hear", "off", "on", "gw", "blind", "back"]), st.floats(1, 20_000)),
    max_size=25,
)


@given(ACTS, st.sampled_from(["2026-03-28T12:00", "2026-10-24T12:00", "2026-11-23T12:00"]))
def test_the_seconds_of_a_day_are_never_more_than_it_has(
    acts: list[tuple[str, float]], begun: str
) -> None:
    one = Street(zone="Europe/Berlin", begun_ms=ms(begun))
    one.state("gw-1")
    one.state("aq-1")
    for act, wait_s in acts:
        match act:
            case "hear":
                one.hear("aq-1")
            case "on" | "off":
                one.state("aq-1", online=act == "on")
            case "gw":
                one.state("gw-1", online=False)
            case "blind":
                one.lookout.blind(one.now)
            case "back":
                one.begun_ms -= 1_800_000  # somebody sets the clock
            case _:
                pass
        one.pass_time(wait_s, step_s=600.0)
        if act == "blind":
            one.lookout.seeing(one.now, continued=True)
    one.written += one.lookout.last_rows(one.now)
    days = Days(ZoneInfo("Europe/Berlin"))
    rows = days_of(one)
    assert rows
    for row in [*rows, *days_of(one, "site_day_state")]:
        day = days.of(row.time_ms)
        assert row.time_ms == day.start_ms
        total_s = sum(float(row.fields[name]) for name in FIELDS)
        assert 0 <= total_s <= (day.end_ms - day.start_ms) / 1000
    if "back" in [
        act for act, _ in acts
    ]:  # the clock takes back what one had counted and the other had not
        return
    by_day = {row.time_ms: row.fields for row in rows}
    for row in days_of(one, "site_day_state"):
        of_device = by_day[row.time_ms]
        assert {name: row.fields[name] for name in FIELDS} == {
            name: of_device[name] for name in FIELDS
        }


def test_a_whole_day_is_accounted_for_and_finished_after_midnight() -> None:
    one = Street(begun_ms=ms("2026-11-22T15:59:00"))
    one.state("gw-1")
    one.state("aq-1")
    for _ in range(24 * 60 + 20):
        one.hear("aq-1")
        one.pass_time(60.0, step_s=5.0)
    first, whole, _ = sorted(days_of(one), key=lambda row: row.time_ms)
    assert first.fields["up_s"] == pytest.approx(60, abs=1)
    assert whole.time_ms == ms("2026-11-22T16:00")
    assert whole.fields["up_s"] == 86_400.0
    assert (whole.fields["received"], whole.fields["missing"]) == (1440, 0)
    assert (whole.fields["completeness"], whole.fields["availability"]) == (1.0, 1.0)


def test_what_is_missing_is_counted_until_it_comes() -> None:
    one = Street()
    one.state("gw-1")
    one.state("aq-1")
    for _ in range(6):
        one.hear("aq-1")
        one.pass_time(60.0)
    one.skip("aq-1", 4)
    one.hear("aq-1")
    one.pass_time(650.0)
    figures = one.figures("aq-1")
    assert (figures.received, figures.missing, figures.completeness) == (7, 4, 7 / 11)
    site = [row for row in one.rows("site_now") if row.series.domain == "air"][-1]
    assert site.fields["completeness"] == 7 / 11
    one._seqs["aq-1"] = 5
    for _ in range(4):
        one.hear("aq-1", age_s=600.0)
    assert one.figures("aq-1").completeness == 1.0


def test_a_sample_of_yesterday_is_counted_there() -> None:
    one = Street(begun_ms=ms("2026-11-22T15:50"))
    one.state("gw-1")
    one.state("aq-1")
    one.hear("aq-1")
    one.pass_time(1900.0, step_s=5.0)
    before, _ = sorted(days_of(one), key=lambda row: row.time_ms)
    assert before.fields["received"] == 1
    one.hear("aq-1", age_s=1800.0)
    one.pass_time(1300.0, step_s=5.0)
    before, today = sorted(days_of(one), key=lambda row: row.time_ms)
    assert (before.fields["received"], today.fields["received"]) == (2, 0)
    sites = {row.time_ms: row.fields["received"] for row in days_of(one, "site_day_state")}
    assert sites == {before.time_ms: 2, today.time_ms: 0}


def test_a_device_that_changes_its_gateway_keeps_its_day() -> None:
    one = Street()
    one.state("gw-1")
    one.state("aq-1")
    for _ in range(10):
        one.hear("aq-1")
        one.pass_time(60.0, step_s=5.0)
    one.empty("aq-1")
    one.empty("gw-1")
    one.pass_time(600.0)
    one.state("gw-2", "gw-2")
    one.state("aq-1", "gw-2", epoch=EPOCH + 1)
    one.hear("aq-1", "gw-2", epoch=EPOCH + 1)
    one.pass_time(700.0)
    (row,) = days_of(one)
    assert row.fields["received"] == 11
    assert float(row.fields["up_s"]) >= 600
    (site,) = days_of(one, "site_day_state")
    assert site.fields["received"] == 11


def test_another_run_goes_on_where_one_stopped() -> None:
    one = Street()
    one.state("gw-1")
    one.state("aq-1", transport="ble")
    for _ in range(200):
        one.hear("aq-1")
        one.pass_time(60.0, step_s=5.0)
    one.skip("aq-1", 3)
    one.hear("aq-1")
    one.written += one.lookout.last_rows(one.now)
    kept = days_of(one)[-1]
    other = Street(begun_ms=one.now.ms + 60_000)
    other.state("gw-1")
    other.state("aq-1", transport="ble")
    other.hear("aq-1")
    day = Days(ZoneInfo("Asia/Taipei")).of(kept.time_ms)
    restored = Restored(day, figures_of(kept), losses_of(kept))
    for _ in range(2):
        other.lookout.restore_day(NAME, restored)
    for _ in range(10):
        other.pass_time(60.0, step_s=5.0)
        other.hear("aq-1")
    figures = other.figures("aq-1")
    assert (figures.received, figures.missing) == (201 + 11, 3)
    assert figures.up_ms == pytest.approx(210 * 60_000, abs=1000)
    watched = other.lookout._watched[NAME]
    assert watched.losses is not None
    assert watched.losses.patience(60.0) == 2


def test_a_store_that_is_away_over_midnight_misses_no_day() -> None:
    one = Street(begun_ms=ms("2026-11-23T15:50"))  # ten minutes before midnight in Taipei
    one.state("gw-1")
    one.state("aq-1")
    held: list[Point] = []
    for _ in range(40):
        one.hear("aq-1")
        one.now_s += 60.0
        one.lookout.sweep(one.now)
        held = newest([*held, *one.lookout.rows(one.now, 1000), *one.lookout.day_rows(one.now, 60)])
    mine = [row for row in held if row.series.device == "aq-1"]
    days = [row.time_ms for row in mine if row.series.measurement == "device_day"]
    assert days == [ms("2026-11-22T16:00"), ms("2026-11-23T16:00")]
    assert len([row for row in mine if row.series.measurement == "device"]) == 1
    sites = [row.time_ms for row in held if row.series[::4] == ("site_day_state", "air")]
    assert sites == days
    hours = [row.time_ms for row in held if row.series[::4] == ("site_hour_state", "air")]
    assert hours == [ms("2026-11-23T15:00"), ms("2026-11-23T16:00")]


def test_what_the_watch_writes_is_in_the_contract() -> None:
    one = Street(begun_ms=ms("2026-11-23T15:50"))
    one.state("gw-1")
    one.state("aq-1", transport="ble", location=Location(lat=25.0, lon=121.5))
    one.state("aq-2", online=False)
    for _ in range(20):
        one.hear("aq-1")
        one.pass_time(60.0, step_s=5.0)
    one.written += one.lookout.last_rows(one.now)
    rows: dict[str, set[str]] = {}
    for point in one.written:
        rows.setdefault(point.series.measurement, set()).update(point.fields)
    text = (Path(__file__).parents[2] / "docs/exchange/store.md").read_text()
    told = {
        name: set(re.findall(r"`(\w+)`", fields))
        for name, fields in re.findall(r"^\| `(\w+)` \| [^|]+ \| ([^|]+) \|$", text, re.MULTILINE)
    }
    told["site_day_state"] = told["device_day"] - {"lived", "heard", "missed"}
    assert rows == {name: told.get(name) for name in rows}
    assert len(rows) == 7
