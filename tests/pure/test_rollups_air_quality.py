"""Taiwan's index: published values, the rules of its means, and what holds for any air."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exchange.air_quality_index import BEYOND, Scale, Table, bands, table_on
from exchange.dictionary import dictionary
from ingest.days import HOUR_MS
from ingest.rollups import air_quality
from ingest.rollups.air_quality import HOURS_BACK, corrected_pm2_5, index, sub_index
from ingest.rollups.samples import Row
from ingest.rollups.settings import DEFAULTS, SiteSettings
from ingest.rollups.spans import Bounds, Span
from tests.rollup_days import hours
from tests.weeks import Week

TODAY = date(2026, 11, 16)
START_MS = 1_794_758_400_000  # 2026-11-16T00:00+08:00


def table() -> Table:
    found = table_on(TODAY)
    assert found is not None
    return found


def scales(metric: str) -> list[Scale]:
    return [scale for scale in table().scales if scale.metric == metric]


# Taichung's Environmental Protection Bureau published these on 2025-08-29 at 12:00, with whole concentrations:
# station, index, pollutant, its moving mean. taqm.epb.taichung.gov.tw/TQAMNEWAQITABLE.aspx
TAICHUNG = [
    ("Xitun", 43, "pm10", 26),
    ("Wenshan", 47, "pm10", 28),
    ("Wuqi", 57, "pm10", 36),
    ("Dadu", 52, "pm10", 32),
    ("Longjing", 48, "pm10", 29),
]


@pytest.mark.parametrize(("station", "aqi", "metric", "mean"), TAICHUNG)
def test_the_table_gives_what_a_city_published(
    station: str, aqi: int, metric: str, mean: float
) -> None:
    assert sub_index(mean, scales(metric)[0]) == aqi, station


# The same page rounds PM2.5 to whole micrograms; each index must follow from a mean that rounds so.
@pytest.mark.parametrize(
    ("station", "aqi", "rounded"),
    [
        ("Zhongming", 43, 11),
        ("Dali", 37, 9),
        ("Shalu", 56, 14),
        ("Fengyuan", 42, 10),
        ("Dajia", 53, 13),
        ("Taiping", 52, 13),
        ("Wufeng", 40, 10),
        ("Wuri", 30, 8),
        ("Houli", 62, 16),
        ("Dongda", 44, 11),
    ],
)
def test_a_published_index_of_fine_dust_follows_from_a_mean_that_rounds_to_the_published_one(
    station: str, aqi: int, rounded: int
) -> None:
    means = [rounded - 0.5 + tenth / 10 for tenth in range(11)]
    assert aqi in [sub_index(mean, scales("pm2_5")[0]) for mean in means], station


# By hand: AQI = low + (value - value low) / (value high - value low) * (high - low)
@pytest.mark.parametrize(
    ("metric", "value", "expected"),
    [
        ("pm2_5", 0, 0),
        ("pm2_5", 12.4, 50),
        ("pm2_5", 12.44, 50),  # rounds to 12.4
        ("pm2_5", 12.45, 51),  # half goes up: 12.5
        ("pm2_5", 30.4, 100),
        ("pm2_5", 35.5, 113),  # 101 + 5.0 / 19.9 * 49 = 113.3
        ("pm2_5", 500.4, 500),
        ("pm2_5", 500.5, BEYOND),
        ("pm10", 604, 500),
        ("pm10", 605, BEYOND),
        ("co", 4400, 50),  # the dictionary's ppb; the table's ppm
        ("co", 4449, 50),
        ("co", 4450, 51),
        ("co", 50_500, BEYOND),
        ("no2", 21, 50),
        ("no2", 22, 51),
        ("no2", 2050, BEYOND),
    ],
)
def test_a_sub_index_is_what_one_finds_by_hand(metric: str, value: float, expected: int) -> None:
    assert sub_index(value, scales(metric)[0]) == expected


def test_ozone_counts_by_eight_hours_and_by_one() -> None:
    assert index({"o3": [60] * 8}, table()) == {"aqi_o3": 67, "aqi": 67}  # 51 + 5 / 15 * 49 = 67.3
    assert index({"o3": [100] + [0] * 7}, table())["aqi"] == 12  # one hour of 100 says nothing
    assert index({"o3": [101] + [0] * 7}, table())["aqi"] == 101  # of 101 it does
    assert index({"o3": [300] * 8}, table())["aqi"] == 300  # eight hours say no more than that
    assert index({"o3": [450] * 8}, table())["aqi"] == 346  # 301 + 45 / 99 * 99
    assert index({"o3": [605]}, table()) == {"aqi_o3": BEYOND, "aqi": BEYOND}


def test_sulphur_dioxide_above_200_counts_by_the_day() -> None:
    assert index({"so2": [900]}, table())["aqi"] == 200
    assert index({"so2": [900] * 18}, table())["aqi"] == 448  # 401 + 95 / 199 * 99 = 448.3


def test_the_largest_sub_index_is_the_index() -> None:
    found = index({"pm2_5": [10.0] * 12, "pm10": [40.0] * 12, "no2": [5.0]}, table())
    assert found == {"aqi_pm2_5": 40, "aqi_pm10": 61, "aqi_no2": 12, "aqi": 61}


def test_the_moving_mean_of_dust_weighs_four_hours_as_much_as_twelve() -> None:
    # 0.5 * (4 * 40 + 8 * 10) / 12 + 0.5 * 40 = 30.0 -> 51 + 17.5 / 17.9 * 49 = 98.9
    assert index({"pm2_5": [40.0] * 4 + [10.0] * 8}, table())["aqi"] == 99


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        ([1, 1, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0], True),  # 2 of 4 and 6 of 12
        ([1, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1], False),  # 1 of 4
        ([1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0], False),  # 5 of 12
    ],
)
def test_dust_has_an_index_from_2_of_4_and_6_of_12_hours_on(
    known: list[int], expected: bool
) -> None:
    hours = [10.0 if there else None for there in known]
    assert bool(index({"pm2_5": hours}, table())) is expected


@given(
    st.sampled_from(["pm2_5", "pm10", "no2", "co"]),
    st.lists(st.floats(0, 3000), min_size=2, max_size=2).map(sorted),
)
def test_more_of_a_pollutant_is_never_a_lower_index(metric: str, values: list[float]) -> None:
    low, high = (sub_index(value, scales(metric)[0]) for value in values)
    assert low is not None
    assert high is not None
    assert 0 <= low <= high <= BEYOND


@given(
    st.dictionaries(
        st.sampled_from(air_quality.POLLUTANTS),
        st.lists(st.none() | st.floats(0, 1e6), max_size=24),
    )
)
def test_an_index_is_the_largest_of_its_sub_indices_whatever_is_missing(
    means: dict[str, list[float | None]],
) -> None:
    found = index(means, table())
    subs = [value for name, value in found.items() if name != "aqi"]
    assert found.get("aqi") == max(subs, default=None)


def test_every_table_is_whole() -> None:
    metrics = dictionary()["air"].metrics
    for scale in table().scales:
        assert scale.metric in metrics
        assert metrics[scale.metric].unit in ("ug/m3", "ppb")
        assert sum(mean.weight for mean in scale.mean) == 1
        for (_, high, _, value_high), (low, _, value_low, _) in pairwise(scale.steps):
            assert low == high + 1
            assert round(value_low - value_high, 9) == round(10**-scale.decimals, 9)
    assert [band.low for band in bands()] == [0, 51, 101, 151, 201, 301]
    assert [band.high + 1 for band in bands()[:-1]] == [band.low for band in bands()[1:]]
    assert (bands()[1].zh_tw, bands()[-1].en) == ("普通", "Hazardous")


def test_a_day_keeps_the_table_that_was_in_force() -> None:
    later = msgspec.structs.replace(table(), effective=date(2027, 1, 1))
    tables = [later, table()]
    assert table_on(date(2026, 12, 31), tables) is table()
    assert table_on(date(2027, 1, 1), tables) is later
    assert table_on(date(2024, 12, 31), tables) is None


# Rows


def hour_span(minutes: dict[int, float], metric: str = "pm2_5") -> Span:
    track = [(START_MS + 60_000 * minute, value) for minute, value in minutes.items()]
    return Span(START_MS, START_MS + HOUR_MS, tracks={metric: track}, before={})


def test_an_hour_is_weighed_by_time_for_rows_come_only_on_change() -> None:
    # 10 for 15 minutes, then 30: (15 * 10 + 15 * 30 + 30 * 30 ...), not the mean of four rows
    found = air_quality.hour(hour_span({0: 10, 15: 30, 30: 30, 45: 30}), DEFAULTS)
    assert found == {"pm2_5_hour": 25.0}


def test_an_hour_counts_from_45_known_minutes_on() -> None:
    every_10 = dict.fromkeys(range(0, 31, 10), 8.0)  # the last holds for 15 minutes
    assert air_quality.hour(hour_span(every_10), DEFAULTS)["pm2_5_hour"] == 8
    less = dict.fromkeys(range(0, 21, 10), 8.0)
    assert "pm2_5_hour" not in air_quality.hour(hour_span(less), DEFAULTS)
    assert air_quality.hour(hour_span({}), DEFAULTS) == {}


def test_a_reference_station_is_not_indicative_and_a_site_is_as_its_worst_station() -> None:
    site = SiteSettings(reference_stations=["epa-1"])
    assert air_quality.chain(hour_rows([8.0]), TODAY, site) == {"indicative": 1}
    station: Row = {"start_ms": START_MS, "device": "epa-1", "no2_hour": 21.0}
    found = air_quality.chain([station], TODAY, site)
    assert found == {"indicative": 0, "aqi_no2": 50, "aqi": 50}
    devices: list[Row] = [
        {"start_ms": START_MS, "device": "aq-1", "aqi": 80, "indicative": 1},
        {"start_ms": START_MS, "device": "aq-2", "indicative": 1},
        {"start_ms": START_MS, "device": "epa-1", "aqi": 60, "indicative": 0},
    ]
    assert air_quality.site_hour(devices, site) == {
        "aqi": 80,
        "aqi_mean": 70,
        "aqi_stations": 2,
        "indicative": 1,
    }
    assert air_quality.site_hour(devices[1:], site)["indicative"] == 0
    assert air_quality.site_hour([], site) == {"aqi_stations": 0}


def hour_rows(values: Sequence[float | None], begin_ms: int = START_MS) -> list[Row]:
    return [
        {"start_ms": begin_ms + HOUR_MS * place, "device": "aq-1", "pm2_5_hour": value}
        for place, value in enumerate(values)
        if value is not None
    ]


def test_an_index_looks_back_by_hours_of_the_clock_not_by_rows() -> None:
    whole = hour_rows([10.0] * 8 + [40.0] * 4)
    assert air_quality.chain(whole, TODAY, DEFAULTS)["aqi"] == 99  # as by hand, above
    gap = hour_rows([10.0] * 6 + [None] * 5 + [40.0])
    assert air_quality.chain(gap, TODAY, DEFAULTS) == {"indicative": 1}  # 1 of the newest 4
    assert air_quality.chain([], TODAY, DEFAULTS) == {}
    assert air_quality.chain(whole, date(2024, 1, 1), DEFAULTS) == {"indicative": 1}


@pytest.mark.parametrize("hours", [23, 24, 25])
def test_a_day_is_the_index_of_its_mean_however_long_it_is(hours: int) -> None:
    bounds = Bounds(START_MS, START_MS + HOUR_MS * hours)
    rows = hour_rows([500.0] + [20.0] * hours + [500.0], START_MS - HOUR_MS)
    judged: list[Row] = [
        {**row, "aqi": 70, "indicative": 1, "aqi_no2": 30 + place} for place, row in enumerate(rows)
    ]
    found = air_quality.day(judged, TODAY, bounds, bounds, DEFAULTS)
    # 51 + 7.5 / 17.9 * 49 = 71.5: half a step from 72
    assert found["aqi_pm2_5"] == 72
    assert found["aqi_no2"] == 30 + hours
    assert found["aqi"] == 72
    assert (found["aqi_max"], found["aqi_hours"], found["indicative"]) == (70, hours, 1)


def test_a_day_without_rows_says_only_that() -> None:
    bounds = Bounds(START_MS, START_MS + 24 * HOUR_MS)
    assert air_quality.day([], TODAY, bounds, bounds, DEFAULTS) == {"aqi_hours": 0}


# By hand from the formulas of the source
@pytest.mark.parametrize(
    ("cf1", "humidity", "expected"),
    [
        (20.0, 50.0, 11.92),  # 10.48 - 4.31 + 5.75
        (40.0, 50.0, 27.64),  # 0.655 * 40 + 1.44
        (100.0, 50.0, 80.04),  # 78.6 + 1.44
        (235.0, 50.0, 200.0425),  # 0.738 * 235 + 0.72 + (2.966 + 48.819) / 2
        (300.0, 50.0, 289.526),  # 207 + 79.56 + 2.966
        (0.0, 100.0, 0.0),
    ],
)
def test_the_correction_of_a_low_cost_sensor_is_the_published_one(
    cf1: float, humidity: float, expected: float
) -> None:
    assert corrected_pm2_5(cf1, humidity) == pytest.approx(expected, abs=0.001)


def test_a_correction_stands_beside_the_raw_value_and_only_where_it_is_asked_for() -> None:
    minutes = [START_MS + 600_000 * ten for ten in range(6)]
    tracks = {
        "pm2_5": [(at, 18.0) for at in minutes],
        "x-plantower-pm2_5_cf1": [(at, 20.0) for at in minutes],
        "humidity": [(at, 50.0) for at in minutes],
    }
    span = Span(START_MS, START_MS + HOUR_MS, tracks=tracks, before={})
    assert "pm2_5_corrected_hour" not in air_quality.hour(span, DEFAULTS)
    asked = air_quality.hour(span, SiteSettings(cf1_metric="x-plantower-pm2_5_cf1"))
    assert asked["pm2_5_hour"] == 18
    assert asked["pm2_5_corrected_hour"] == pytest.approx(11.92)


# The week


def test_the_weeks_smog_comes_into_the_index_as_the_means_let_it() -> None:
    week = Week(lamps=0, bays=0, lots=0, meters=0)
    event = week.event("smog")
    device = week.device(event.device)
    rows = hours(week, device, air_quality.hour, DEFAULTS, [3, 4])
    found: dict[int, float] = {}
    for place, row in enumerate(rows):
        back = rows[max(0, place - HOURS_BACK + 1) : place + 1]
        age = (int(row["start_ms"]) - event.start_ms) // HOUR_MS
        found[age] = air_quality.chain(back, TODAY, DEFAULTS).get("aqi", -1)
    # By hand: n hours of 60 instead of 10 make 10 + 50 * (n / 12 + min(n, 4) / 4) / 2
    expected = {-1: 40, 0: 67, 1: 90, 2: 112, 3: 133, 6: 148, 7: 152, 11: 157, 17: 157}
    # The first hour begins with what the last sample before it said.
    assert {age: found[age] for age in expected} == pytest.approx(expected, abs=3)
    assert [found[age] for age in (-1, 12, 17)] == [40, 157, 157]
