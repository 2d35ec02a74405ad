"""Energy: counters that reset, gaps, meters that were replaced, and savings with their interval."""

from __future__ import annotations

import random
from math import sqrt

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ingest.rollups import energy, lamps
from ingest.rollups.energy import Lamp, savings
from ingest.rollups.samples import Fields, Row, number
from ingest.rollups.settings import DEFAULTS, SiteSettings
from ingest.rollups.spans import Bounds, Span
from tests.rollup_days import day_bounds, hours, night_bounds, of_day
from tests.weeks import HOUR_MS, STANDBY_W, Week

WEEK = Week(bays=0, lots=0, air=0)
START_MS = WEEK.moment_ms(1)
MINUTE_MS = 60_000
HOUR = Bounds(START_MS, START_MS + HOUR_MS)

Readings = dict[float, float]


def measured(readings: Readings, metric: str = "energy", hour: int = 0) -> Fields:
    """What an hour's readings say. Units: minutes from START_MS; watt-hours or watts."""
    begin_ms = START_MS + hour * HOUR_MS
    known = [
        (START_MS + round(minute * MINUTE_MS), value) for minute, value in sorted(readings.items())
    ]
    own = [one for one in known if begin_ms <= one[0] < begin_ms + HOUR_MS]
    before = [one for one in known if begin_ms - HOUR_MS <= one[0] < begin_ms]
    span = Span(
        begin_ms,
        begin_ms + HOUR_MS,
        tracks={metric: own} if own else {},
        before={metric: before[-1]} if before else {},
    )
    return energy.measured(span, "energy", "power", 900, 2000)


def rows(readings: Readings, hours_: range = range(24)) -> list[Row]:
    """The rows of the hours that have readings."""
    found: list[Row] = []
    for hour in hours_:
        fields = measured(readings, hour=hour)
        if fields:
            found.append({"start_ms": START_MS + hour * HOUR_MS, "device": "x", **fields})
    return found


def over(readings: Readings, bounds: Bounds, hours_: range = range(24)) -> Fields:
    return energy.over(rows(readings, hours_), bounds, 900, 2000)


# Counters


def test_a_counter_says_what_was_used_between_its_readings() -> None:
    found = measured({-5: 100, 5: 110, 15: 120, 25: 130})
    assert (found["energy_wh"], found["energy_known_s"]) == (30, 1800)
    assert (found["energy_gap_wh"], found["energy_gap_s"]) == (0, 0)


@given(
    st.dictionaries(st.integers(-14, 59), st.floats(0, 1e6), max_size=12),
    st.sets(st.integers(-14, 59)),
)
@example({0: 0.0, 1: 35.0, 2: 34.0}, {0})
@example({0: 0.0, 1: 35.0, 2: 34.0}, {1})
def test_what_is_written_of_an_hour_is_not_taken_back_by_late_readings(
    readings: Readings, late: set[int]
) -> None:
    """Stores merge a row that is written again: a field that is absent then would stay as it was."""
    early = {minute: value for minute, value in readings.items() if minute not in late}
    assert measured(early).keys() <= measured(readings).keys()


def test_a_counter_that_falls_began_again_at_0() -> None:
    assert measured({0: 100, 10: 110, 20: 5, 30: 15})["energy_wh"] == 25


def test_a_counter_that_trembles_counts_nothing_twice() -> None:
    assert measured({0: 100.0, 10: 100.1, 20: 100.0, 30: 100.1})["energy_wh"] == pytest.approx(0.2)


def test_a_counter_that_jumps_was_replaced_and_the_jump_is_nobodys_energy() -> None:
    # 500 kWh in ten minutes would be 3 MW
    found = measured({0: 100, 10: 110, 20: 500_000, 30: 500_010})
    assert (found["energy_wh"], found["energy_known_s"]) == (20, 1200)
    down = measured({0: 900_000, 10: 900_010, 20: 500_000, 30: 500_010})
    assert (down["energy_wh"], down["energy_known_s"]) == (20, 1200)


@pytest.mark.parametrize("readings", [{}, {30: 100.0}])
def test_one_reading_is_no_energy(readings: Readings) -> None:
    assert "energy_wh" not in measured(readings)
    assert over(readings, HOUR) == {}


def test_a_gap_within_an_hour_is_marked() -> None:
    found = measured({0: 100, 10: 110, 40: 140, 50: 150})
    assert (found["energy_wh"], found["energy_gap_wh"]) == (50, 30)
    assert (found["energy_known_s"], found["energy_gap_s"]) == (1200, 1800)


def test_the_difference_across_a_long_gap_is_spread_over_it_evenly() -> None:
    """Silent from 22:00 to 02:00 of the next day at 100 W: two hours of it are of the first day."""
    before = {60.0 * 22 - 10: 1000.0, 60.0 * 22: 1000.0}
    after = {60.0 * 26: 1400.0, 60.0 * 26 + 10: 1400.0}
    both = {**before, **after}
    first = over(both, Bounds(START_MS, START_MS + 24 * HOUR_MS), range(48))
    second = over(both, Bounds(START_MS + 24 * HOUR_MS, START_MS + 48 * HOUR_MS), range(48))
    assert first["energy_wh"] == first["energy_gap_wh"] == pytest.approx(200)
    assert second["energy_wh"] == second["energy_gap_wh"] == pytest.approx(200)
    assert first["energy_gap_s"] == 7200
    inside = over(both, Bounds(START_MS + 23 * HOUR_MS, START_MS + 25 * HOUR_MS), range(48))
    assert inside["energy_wh"] == pytest.approx(200)


@given(
    st.lists(st.floats(0.5, 200), min_size=2, max_size=60),
    st.floats(0, 1000),
    st.integers(1, 23),
)
def test_parts_of_a_day_add_up_to_what_the_counter_counted(
    pauses: list[float], power_w: float, cut_h: int
) -> None:
    """However the rows lie, with gaps or without, two parts hold all of it and neither is negative."""
    readings, minute, value = {}, 0.0, 7.0
    for pause in pauses:
        if minute >= 24 * 60:
            break
        readings[minute] = value
        minute += pause
        value += power_w * pause / 60
    day = Bounds(START_MS, START_MS + 24 * HOUR_MS)
    middle_ms = START_MS + cut_h * HOUR_MS
    parts = [Bounds(day.start_ms, middle_ms), Bounds(middle_ms, day.end_ms)]
    sums = [over(readings, part).get("energy_wh", 0.0) for part in parts]
    assert min(sums) >= 0
    assert sum(sums) == pytest.approx(max(readings.values()) - 7, abs=0.1, rel=1e-4)


# Power


def test_without_a_counter_power_is_integrated_between_rows_that_are_near() -> None:
    # A ramp from 0 to 60 W within the hour is a trapezoid: 30 Wh but for the last, unknown, ten minutes
    ramp = measured({minute: float(minute) for minute in range(0, 51, 10)}, "power")
    assert ramp["energy_wh"] == pytest.approx(25 * 50 / 60)
    assert ramp["energy_known_s"] == 3000
    gap = measured({0: 60, 10: 60, 40: 60, 50: 60}, "power")
    assert gap["energy_wh"] == pytest.approx(20)
    assert gap["energy_known_s"] == 1200
    assert measured({10: 60}, "power") == {}


@pytest.mark.parametrize("length", [23, 24, 25])
def test_a_day_of_any_length_is_whole(length: int) -> None:
    readings = {5.0 * step: 10.0 * step for step in range(-12, 12 * 40)}  # 120 W
    found = over(readings, Bounds(START_MS, START_MS + length * HOUR_MS), range(40))
    assert found["energy_wh"] == pytest.approx(120 * length)
    assert found["energy_known_s"] == length * 3600
    assert found["energy_gap_wh"] == 0


# The week


def test_a_meters_gap_in_the_week_loses_no_energy() -> None:
    event = next(one for one in WEEK.events if one.what == "silent" and "meter" in one.device)
    device = WEEK.device(event.device)
    made = hours(WEEK, device, energy.hour, DEFAULTS, range(1, 4))
    found = of_day(WEEK, device, made, 2, energy.day, DEFAULTS)
    day = day_bounds(WEEK, 2)
    dark_s = sum(
        max(0, min(end, day.end_ms) - max(begin, day.start_ms)) / 1000
        for begin, end in WEEK.dark(event.site)
    )
    truth_wh = (1500 * dark_s + 500 * (86_400 - dark_s)) / 3600
    assert found["energy_wh"] == pytest.approx(truth_wh, rel=0.01)
    assert found["energy_gap_s"] == pytest.approx(6 * 3600, abs=600)
    assert energy.site_day([found], DEFAULTS)["energy_wh"] == found["energy_wh"]
    assert energy.site_day([], DEFAULTS) == {}


def test_dimming_from_midnight_to_five_saves_what_it_should() -> None:
    """By hand: five hours at half of the rated watts save two and a half hours of them."""
    site = SiteSettings(
        lamp_watts={
            lamp.id: WEEK.rated_w(lamp) + STANDBY_W
            for lamp in WEEK.devices("neihu")
            if lamp.kind == "lamp"
        }
    )
    nights = []
    for lamp in WEEK.devices("neihu"):
        if lamp.kind == "lamp":
            made = hours(WEEK, lamp, lamps.hour, site, range(1, 4))
            nights.append(of_day(WEEK, lamp, made, 2, lamps.day, site))
    found = lamps.site_day(nights, site)
    rated_w = sum(WEEK.rated_w(lamp) for lamp in WEEK.devices("neihu") if lamp.kind == "lamp")
    assert found["night_saved_share"] > 0.999
    burning_h = number(nights[0], "night_burning_s")
    assert burning_h is not None
    burning_h /= 3600
    # What the controllers take while it is light is used, too.
    saved_wh = 2.5 * rated_w - 6 * STANDBY_W * (24 - burning_h)
    assert found["night_saved_wh"] == pytest.approx(saved_wh, rel=0.005)
    assert found["night_saved_low_wh"] < saved_wh < found["night_saved_high_wh"]
    assert found["night_baseline_wh"] == pytest.approx(rated_w * burning_h, rel=0.02)


def test_lamps_that_are_out_save_nothing() -> None:
    event = WEEK.event("lamp_dead")
    site = SiteSettings(lamp_w=80)
    lamp = WEEK.device(event.device)
    made = hours(WEEK, lamp, lamps.hour, site, range(3, 5))
    found = lamps.site_day([of_day(WEEK, lamp, made, 3, lamps.day, site)], site)
    # At most the photocell's standby is used, and nothing was to be saved.
    assert found["night_baseline_wh"] == 0
    assert -10 < found["night_saved_wh"] <= 0


def test_the_first_nights_give_each_lamps_watts() -> None:
    lamp = WEEK.device("neihu-lamp-1")
    undimmed: list[Row] = [
        {
            "device": lamp.id,
            "start_ms": 0,
            "night_energy_wh": 850.0,
            "night_energy_known_s": 36_000.0,
            "night_burning_s": 36_000.0,
        },
        {
            "device": lamp.id,
            "start_ms": 24 * HOUR_MS,
            "night_energy_wh": 1150.0,
            "night_energy_gap_wh": 200.0,
            "night_energy_known_s": 36_000.0,
            "night_burning_s": 36_000.0,
        },
        {
            "device": lamp.id,
            "start_ms": 48 * HOUR_MS,
            "night_energy_wh": 0.0,  # of a counter that was replaced nothing is known
            "night_energy_known_s": 0.0,
            "night_burning_s": 36_000.0,
        },
        {"device": "silent", "start_ms": 0},
    ]
    found = energy.MeasuredWatts()
    assert (found.nights, found.lamps) == (0, {})
    for row in undimmed:
        found.add(row)
    assert found.lamps == {lamp.id: 90.0}
    assert (found.watts, found.nights, found.lamp_nights) == (90.0, 2, 2)
    # Nights of 85 and 95 W: half their distance is the standard error of the mean.
    assert found.uncertainty_percent(0) == pytest.approx(100 * sqrt(3) * 5 / 90)
    assert found.uncertainty_percent(2) == pytest.approx(sqrt(3 * (500 / 90) ** 2 + 4))
    one = energy.MeasuredWatts()
    one.add(undimmed[0])
    assert one.uncertainty_percent(1) is None
    assert night_bounds(WEEK, 0).end_ms - night_bounds(WEEK, 0).start_ms == 24 * HOUR_MS


# Savings


def test_an_interval_is_what_one_finds_by_hand() -> None:
    site = SiteSettings(meter_class_percent=1, lamp_w_uncertainty_percent=10)
    found = savings([Lamp(700, 1000, 1.0), Lamp(700, 1000, 1.0)], site)
    wide = 2 * sqrt((0.01 * 1400 / sqrt(3)) ** 2 + (0.10 * 2000 / sqrt(3)) ** 2)
    assert found["saved_wh"] == 600
    assert found["saved_high_wh"] - 600 == pytest.approx(wide)
    assert 600 - found["saved_low_wh"] == pytest.approx(wide)


def test_what_was_not_heard_is_taken_to_be_like_the_rest_and_widens_the_interval() -> None:
    site = SiteSettings()
    whole = savings([Lamp(700, 1000, 1.0), Lamp(800, 1000, 1.0)], site)
    half = savings([Lamp(350, 500, 0.5), Lamp(400, 500, 0.5)], site)
    assert half["saved_wh"] == pytest.approx(whole["saved_wh"])
    assert half["saved_share"] == 0.5
    assert half["saved_low_wh"] < whole["saved_low_wh"]
    assert half["saved_high_wh"] > whole["saved_high_wh"]
    alone = savings([Lamp(350, 500, 0.5)], site)
    assert alone["saved_high_wh"] - alone["saved_low_wh"] > alone["saved_wh"]


@given(
    st.lists(
        st.builds(Lamp, st.floats(0, 2000), st.floats(0, 2000), st.floats(0, 1.01)), max_size=30
    )
)
def test_no_figure_is_without_its_interval(all_lamps: list[Lamp]) -> None:
    found = savings(all_lamps, DEFAULTS)
    names = {"baseline_wh", "saved_wh", "saved_low_wh", "saved_high_wh", "saved_share"}
    assert set(found) in (set(), names)
    if found:
        assert found["saved_low_wh"] <= found["saved_wh"] <= found["saved_high_wh"]
        assert 0 < found["saved_share"] <= 1


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    """1000 towns of 40 lamps with meters and plates in their limits, and lamps that are heard in part."""
    dice = random.Random(7)
    site = SiteSettings(meter_class_percent=2, lamp_w_uncertainty_percent=5)
    held = 0
    for _ in range(1000):
        meter, plate = 1 + dice.uniform(-0.02, 0.02), 1 + dice.uniform(-0.05, 0.05)
        truth, heard = 0.0, []
        for _ in range(40):
            baseline = dice.uniform(800, 1100)
            used = baseline * dice.uniform(0.6, 0.8)
            share = dice.uniform(0.5, 1)
            truth += baseline - used
            heard.append(Lamp(used * meter * share, baseline * plate * share, share))
        found = savings(heard, site)
        held += found["saved_low_wh"] <= truth <= found["saved_high_wh"]
    assert 930 <= held <= 1000


def test_of_a_small_part_of_the_night_nothing_is_said_of_the_rest() -> None:
    assert savings([Lamp(7, 10, 0.01), Lamp(7, 10, 0.01)], DEFAULTS) == {}
    assert savings([], DEFAULTS) == {}


def test_without_watts_nothing_is_said_of_savings() -> None:
    row: Row = {"device": "a", "energy_wh": 10.0, "burning_s": 3600.0, "share": 1.0, "faulty": 0}
    assert lamps.site_hour([row], DEFAULTS) == {"lamps_out": 0, "energy_wh": 10.0}
    assert lamps.site_hour([row], SiteSettings(lamp_w=20))["saved_wh"] == 10
