"""Civil days as instants, and what the counts of raw rows ask for."""

from __future__ import annotations

from datetime import date, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.days import HOUR_NS, Day, beside, date_of, day_of, days, noon_ns
from ingest.rollups.counted import Counted, Made, aligned, total

TAIPEI = ZoneInfo("Asia/Taipei")
ZONES = [
    "Asia/Taipei",
    "Europe/Berlin",
    "Australia/Lord_Howe",
    "America/Havana",
    "America/Sao_Paulo",
    "Asia/Kolkata",
]


@pytest.mark.parametrize(
    ("zone", "on", "hours"),
    [
        ("Asia/Taipei", date(2026, 10, 25), 24),
        ("Europe/Berlin", date(2026, 10, 25), 25),
        ("Europe/Berlin", date(2026, 3, 29), 23),
        ("Australia/Lord_Howe", date(2026, 4, 5), 24.5),
        ("America/Havana", date(2026, 11, 1), 25),  # its midnight comes twice
        ("America/Sao_Paulo", date(2018, 11, 4), 23),  # its midnight is left out
        ("Pacific/Apia", date(2011, 12, 30), 0),  # the whole day is
    ],
)
def test_a_civil_day_is_as_long_as_its_clocks_say(zone: str, on: date, hours: float) -> None:
    day = day_of(ZoneInfo(zone), on)
    assert (day.end_ns - day.start_ns) / HOUR_NS == hours
    assert len(day.hours) == -(-hours // 1)


@given(
    st.sampled_from(ZONES),
    st.integers(1_420_070_400, 1_893_456_000),  # 2015 to 2029
    st.integers(1, 200),
)
def test_days_tile_time(zone_name: str, begin_s: int, hours: int) -> None:
    zone = ZoneInfo(zone_name)
    start_ns = begin_s * 10**9
    found = [*days(zone, start_ns, start_ns + hours * HOUR_NS)][::-1]
    assert found[0].start_ns <= start_ns
    assert found[-1].end_ns >= start_ns + hours * HOUR_NS
    for earlier, later in pairwise(found):
        assert earlier.end_ns == later.start_ns
        assert beside(zone, later)[0] == earlier
        assert beside(zone, earlier)[1] == later
    for day in found:
        assert day_of(zone, date_of(zone, day)) == day
        assert day.start_ns < noon_ns(zone, day) < day.end_ns
        ends = [day.hour_end_ns(hour) for hour in day.hours]
        assert ends == [*day.hours[1:], day.end_ns]


DAY = day_of(TAIPEI, date(2026, 11, 16))
BEFORE, _ = beside(TAIPEI, DAY)


def counted(
    own: dict[int, int], before: dict[int, int] | None = None, *, reach_h: int = 1
) -> Counted:
    """Return the counts of one device, by hour of a day and the one before it."""
    found = Counted([*BEFORE.hours, *DAY.hours], reach_ns=reach_h * HOUR_NS)
    for day, numbers in ((BEFORE, before or {}), (DAY, own)):
        for hour, rows in numbers.items():
            found.add("lamp", day.start_ns + hour * HOUR_NS, rows)
    return found


def at(hours: float) -> int:
    return DAY.start_ns + round(hours * HOUR_NS)


def test_an_hours_row_looks_at_the_hour_before_it() -> None:
    found = counted({0: 5, 1: 6, 3: 7}, {22: 1, 23: 2})
    assert found.expected(at(0)) == {"lamp": Made(5, 2)}
    assert found.expected(at(1)) == {"lamp": Made(6, 5)}
    assert found.expected(at(2)) == {}
    assert found.expected(at(3)) == {"lamp": Made(7, 0)}
    assert found.before("lamp", at(1)) == 5
    assert found.reached(at(1)) == [at(0)]
    assert found.devices == 1


def test_a_chained_hours_row_looks_further() -> None:
    found = counted({0: 5, 1: 6}, {0: 9, 1: 1, 2: 2, 23: 3}, reach_h=23)
    assert found.expected(at(0)) == {"lamp": Made(5, 6)}
    assert found.reached(at(0)) == [at(hour) for hour in range(-23, 0)]
    assert found.expected(at(1)) == {"lamp": Made(6, 10)}


@pytest.mark.parametrize(
    ("zone", "on", "pieces"),
    [
        ("Asia/Taipei", date(2026, 10, 25), 1),
        ("Europe/Berlin", date(2026, 10, 25), 1),
        ("Australia/Lord_Howe", date(2026, 4, 5), 2),  # its last hour is a half one
    ],
)
def test_hours_are_counted_at_once_as_far_as_they_are_whole(
    zone: str, on: date, pieces: int
) -> None:
    day = day_of(ZoneInfo(zone), on)
    hours = [*day.hours, *beside(ZoneInfo(zone), day)[1].hours]
    found = aligned(hours)
    assert len(found) == pieces
    assert [hour for piece in found for hour in piece] == hours
    assert all(b - a == HOUR_NS for piece in found for a, b in pairwise(piece))
    assert aligned([]) == []
    few = aligned(hours, 10)
    assert [hour for piece in few for hour in piece] == hours
    assert max(map(len, few)) == 10
    assert all(b - a == HOUR_NS for piece in few for a, b in pairwise(piece))


def test_fewer_rows_than_there_were_are_no_reason_to_make_it_anew() -> None:
    assert not Made(5, 5).is_short_of(Made(5, 5))
    assert not Made(5, 5).is_short_of(Made(4, 9))
    assert not Made(5, 5).is_short_of(Made(5, 4))
    assert Made(5, 5).is_short_of(Made(6, 1))
    assert Made(5, 5).is_short_of(Made(5, 6))
    assert total([Made(1, 2), Made(3, 4)]) == Made(4, 6)


def test_a_day_before_the_epoch_is_a_day() -> None:
    [day] = days(TAIPEI, -HOUR_NS, 0)
    assert day == Day(-8 * HOUR_NS, 16 * HOUR_NS)
    assert date_of(TAIPEI, day) + timedelta(days=1) == date(1970, 1, 2)
