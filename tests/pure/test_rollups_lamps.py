"""Lamps of the simulated week: what is out, burns by day, cycles; and cases by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.rollups import lamps
from ingest.rollups.samples import Row, number
from ingest.rollups.settings import DEFAULTS, SiteSettings
from ingest.rollups.spans import Bounds, Span
from tests.rollup_days import day_bounds, hours, of_day
from tests.weeks import HOUR_MS, Week

WEEK = Week(bays=0, lots=0, air=0, meters=0)
NOON_MS = WEEK.moment_ms(2, 12)
MINUTE_MS = 60_000


def settings(site: str) -> SiteSettings:
    place = WEEK.sites[site][1].location
    return SiteSettings(lat=place.lat, lon=place.lon)


def site_days(site: str, day: int, settings: SiteSettings) -> list[Row]:
    """The rows of one day of a site's lamps."""
    found = []
    for device in WEEK.devices(site):
        if device.kind == "lamp":
            rows = hours(WEEK, device, lamps.hour, settings, range(day - 1, day + 2))
            found.append(of_day(WEEK, device, rows, day, lamps.day, settings))
    return found


@pytest.mark.parametrize(
    ("what", "day", "others"),
    [("lamp_fault", 3, 0), ("lamp_dead", 3, 0), ("lamp_dead", 1, 0)],
)
def test_a_lamp_that_is_dark_at_night_is_out_with_a_flag_or_without(
    what: str, day: int, others: int
) -> None:
    event = next(one for one in WEEK.events if one.what == what)
    rows = site_days(event.site, day, settings(event.site))
    happens = event.start_ms <= WEEK.moment_ms(day, 20) < event.end_ms
    out = {row["device"] for row in rows if row["faulty"]}
    assert out == ({event.device} if happens else set())
    assert lamps.site_day(rows, settings(event.site))["lamps_out"] == len(out)


def test_a_lamp_that_burns_by_day_is_found_unless_it_is_meant_to() -> None:
    event = next(one for one in WEEK.events if one.what == "day_burner")
    site = settings(event.site)
    rows = site_days(event.site, 4, site)
    assert lamps.site_day(rows, site)["day_burners"] == 1
    burning = {row["device"]: number(row, "day_burning_s") for row in rows}
    long_s = burning.pop(event.device)
    assert long_s is not None
    assert 9.5 * 3600 < long_s < 10.5 * 3600  # a day in November without half an hour at each end
    assert set(burning.values()) == {0.0}
    meant = SiteSettings(lat=site.lat, lon=site.lon, burns_by_day=[event.device])
    assert lamps.site_day(rows, meant)["day_burners"] == 0
    assert "day_burners" not in lamps.site_day(site_days(event.site, 4, DEFAULTS), DEFAULTS)


def test_a_lamp_that_goes_on_and_off_all_night_is_cycling_and_a_dimmed_one_is_not() -> None:
    event = next(one for one in WEEK.events if one.what == "cycling")
    rows = site_days(event.site, 3, settings(event.site))
    assert {row["device"] for row in rows if row["cycling"]} == {event.device}
    quiet = [row["night_switchings"] for row in rows if row["device"] != event.device]
    assert set(quiet) == {2}
    assert lamps.site_day(rows, settings(event.site))["cycling"] == 1


def test_burning_time_is_that_of_the_night() -> None:
    device = WEEK.device("neihu-lamp-1")
    rows = hours(WEEK, device, lamps.hour, DEFAULTS, range(1, 4))
    found = of_day(WEEK, device, rows, 2, lamps.day, DEFAULTS)
    begin, end = next(one for one in WEEK.dark("neihu") if one[0] > WEEK.moment_ms(2, 12))
    # Each photocell is 3 to 12 minutes late at dusk, and as early at dawn.
    burning_s = number(found, "night_burning_s")
    assert burning_s is not None
    assert (end - begin) / 1000 - 1500 - 600 < burning_s < (end - begin) / 1000 - 360 + 600
    assert found["night_known_s"] == 24 * 3600


def test_a_silent_lamp_is_not_judged() -> None:
    event = next(one for one in WEEK.events if one.what == "silent" and "lamp" in one.device)
    device = WEEK.device(event.device)
    rows = hours(WEEK, device, lamps.hour, settings(event.site), range(5, 7))
    found = of_day(WEEK, device, rows, 6, lamps.day, settings(event.site))
    assert set(found) == {"start_ms", "device"}
    assert lamps.site_day([], settings(event.site)) == {"lamps_out": 0}


# By hand


def span(**metrics: dict[int, float]) -> Span:
    """An hour from noon; times in minutes."""
    known = {
        name: [(NOON_MS + minute * MINUTE_MS, value) for minute, value in samples.items()]
        for name, samples in metrics.items()
    }
    return Span(
        NOON_MS,
        NOON_MS + HOUR_MS,
        tracks={name: [one for one in all_ if one[0] >= NOON_MS] for name, all_ in known.items()},
        before={name: all_[0] for name, all_ in known.items() if all_[0][0] < NOON_MS},
    )


def every_ten(value: float) -> dict[int, float]:
    return dict.fromkeys(range(0, 60, 10), value)


@pytest.mark.parametrize(
    ("metrics", "burning_s", "faulty"),
    [
        ({"lit": 1, "power": 60}, 3600, 0),
        ({"lit": 1, "power": 0.4}, 0, 1),  # says so, but takes nothing
        ({"level": 100, "lit": 0, "power": 0.4}, 0, 1),  # was told to
        ({"level": 10, "power": 4}, 0, 0),  # takes little because it is dimmed
        ({"lit": 0, "power": 0.4}, 0, 0),
        ({"lit": 1}, 3600, 0),  # no meter: what it says
        ({"lit": 1, "lamp_fault": 1}, 0, 1),
        ({"level": 50, "gear_fault": 1}, 0, 1),
        ({"lit": 0, "gear_fault": 1}, 0, 1),  # a fault by day is one, too
        ({"level": 0}, 0, 0),
    ],
)
def test_what_a_lamp_says_and_takes_is_judged(
    metrics: dict[str, float], burning_s: float, faulty: int
) -> None:
    found = lamps.hour(span(**{name: every_ten(v) for name, v in metrics.items()}), DEFAULTS)
    assert (found["burning_s"], found["faulty"]) == (burning_s, faulty)


def test_a_fault_that_passes_is_none() -> None:
    flags = {0: 0.0, 10: 1.0, 20: 0.0, 30: 0.0, 40: 0.0, 50: 0.0}
    found = lamps.hour(span(lit=every_ten(1), lamp_fault=flags), DEFAULTS)
    assert (found["fault_s"], found["faulty"]) == (600, 0)


def test_a_switching_between_two_hours_is_counted_once() -> None:
    assert lamps.hour(span(lit={-5: 0, **every_ten(1)}), DEFAULTS)["switchings"] == 1
    assert lamps.hour(span(lit=every_ten(1)), DEFAULTS)["switchings"] == 0
    flicker = {minute: float(minute // 10 % 2) for minute in range(0, 60, 10)}
    assert lamps.hour(span(lit=flicker), DEFAULTS)["switchings"] == 5


def test_a_value_holds_for_a_while_and_then_nothing_is_known() -> None:
    found = lamps.hour(span(lit={0: 1.0}), DEFAULTS)
    assert (found["known_s"], found["burning_s"]) == (900, 900)
    assert lamps.hour(span(), DEFAULTS) == {}
    only_temperature = Span(NOON_MS, NOON_MS + HOUR_MS, {"temperature": [(NOON_MS, 31.0)]}, {})
    assert lamps.hour(only_temperature, DEFAULTS) == {}


samples = st.dictionaries(st.integers(-59, 59), st.sampled_from([0.0, 1.0]), max_size=30)


@given(samples, samples, st.sampled_from([0.4, 60.0]))
def test_whatever_rows_there_are_times_fit_into_the_hour(
    lit: dict[int, float], fault: dict[int, float], power: float
) -> None:
    whole = {name: dict(sorted(one.items())) for name, one in [("lit", lit), ("lamp_fault", fault)]}
    given_rows = {name: one for name, one in whole.items() if one}
    if lit:
        given_rows["power"] = dict.fromkeys(whole["lit"], power)
    found = lamps.hour(span(**given_rows), settings("neihu"))
    assert found.get("burning_s", 0) <= found.get("known_s", 0) <= 3600
    assert found.get("day_burning_s", 0) <= found.get("burning_s", 0)
    assert found.get("fault_s", 0) <= 3600


@pytest.mark.parametrize("length", [23, 24, 25])
def test_a_day_of_any_length_sums_its_own_hours(length: int) -> None:
    begin_ms = day_bounds(WEEK, 2).start_ms
    rows: list[Row] = [
        {
            "start_ms": begin_ms + HOUR_MS * n,
            "device": "x",
            "known_s": 3600.0,
            "burning_s": 60.0,
            "share": 1.0,
            "energy_wh": 5.0,
            "energy_known_s": 3600.0,
            "switchings": 1,
            "faulty": 0,
        }
        for n in range(-5, 40)
    ]
    day = Bounds(begin_ms, begin_ms + length * HOUR_MS)
    night = Bounds(begin_ms + 12 * HOUR_MS, begin_ms + (length + 12) * HOUR_MS)
    found = lamps.day(rows, WEEK.start, day, night, DEFAULTS)
    assert (found["burning_s"], found["energy_wh"]) == (60 * length, 5 * length)
    assert found["share"] == pytest.approx(1)
    assert found["night_switchings"] == length


def test_an_hour_has_no_field_that_is_not_named() -> None:
    """What is not named is not read back when its day is made."""
    full = span(
        energy={-5: 1.0, **{minute: minute + 1.0 for minute in (0, 10, 40, 50)}},
        lit=every_ten(1),
        lamp_fault=every_ten(0),
    )
    assert set(lamps.hour(full, settings("neihu"))) == set(lamps.WRITES)
