"""The sun by our formula, against astral's."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import pytest
from astral import Observer
from astral.sun import elevation, sun
from hypothesis import given
from hypothesis import strategies as st

from ingest.rollups.spans import Bounds
from ingest.rollups.sun import daylight, elevation_deg

DAY_MS = 86_400_000
TAIPEI = (25.0366, 121.5646)
A_DAY = Bounds(1_794_758_400_000, 1_794_758_400_000 + DAY_MS)  # 2026-11-16, by Taipei's clocks


@given(
    st.floats(-66, 66),
    st.floats(-180, 180),
    st.datetimes(datetime(2025, 1, 1), datetime(2045, 1, 1)),  # noqa: DTZ001 - made UTC below
)
def test_the_sun_is_where_astral_has_it(lat: float, lon: float, when: datetime) -> None:
    moment = when.replace(tzinfo=UTC)
    ours = elevation_deg(lat, lon, round(moment.timestamp() * 1000))
    assert ours == pytest.approx(elevation(Observer(lat, lon), moment, False), abs=0.05)


@pytest.mark.parametrize("month", range(1, 13))
def test_day_begins_and_ends_within_a_minute_of_astral_all_year(month: int) -> None:
    on = date(2026, month, 21)
    start_ms = round(
        (datetime(2026, month, 21, tzinfo=UTC) - timedelta(hours=8)).timestamp() * 1000
    )
    (day,) = daylight(*TAIPEI, Bounds(start_ms, start_ms + DAY_MS))
    theirs = sun(Observer(*TAIPEI), on, tzinfo=UTC)
    rises = datetime(2026, month, 20, tzinfo=UTC) if theirs["sunrise"].day == 20 else None
    wanted = theirs["sunrise"] - (timedelta() if rises else timedelta(days=1))
    assert day.start_ms == pytest.approx(wanted.timestamp() * 1000, abs=90_000)
    assert day.end_ms == pytest.approx(theirs["sunset"].timestamp() * 1000, abs=90_000)


def test_a_tolerance_shortens_the_day_at_both_ends_and_cuts_nothing_at_a_spans_edge() -> None:
    (whole,) = daylight(*TAIPEI, A_DAY)
    (shorter,) = daylight(*TAIPEI, A_DAY, 1800)
    assert shorter.start_ms - whole.start_ms == pytest.approx(1_800_000, abs=3000)
    assert whole.end_ms - shorter.end_ms == pytest.approx(1_800_000, abs=3000)
    noon = Bounds(A_DAY.start_ms + DAY_MS // 2, A_DAY.start_ms + DAY_MS // 2 + 3_600_000)
    assert daylight(*TAIPEI, noon, 1800) == [noon]


def test_hours_cut_the_day_into_the_same_light_as_the_day_itself() -> None:
    hours = [Bounds(t, t + 3_600_000) for t in range(A_DAY.start_ms, A_DAY.end_ms, 3_600_000)]
    light = [one for hour in hours for one in daylight(*TAIPEI, hour, 1800)]
    (whole,) = daylight(*TAIPEI, A_DAY, 1800)
    assert sum(b - a for a, b in light) == pytest.approx(whole.end_ms - whole.start_ms, abs=5000)


def test_where_the_sun_stays_up_or_down_a_day_is_whole_or_none() -> None:
    june = 1_782_000_000_000  # 2026-06-21
    assert daylight(78.2, 15.6, Bounds(june, june + DAY_MS)) == [Bounds(june, june + DAY_MS)]
    december = june + 183 * DAY_MS
    assert daylight(78.2, 15.6, Bounds(december, december + DAY_MS)) == []
