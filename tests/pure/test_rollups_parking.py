"""Parking: cases by hand, the simulated week, and that no bay is ever seen alone."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.rollups import parking
from ingest.rollups.parking import MIN_BAYS, MIN_STAYS, Stay, quantile
from ingest.rollups.samples import Fields
from ingest.rollups.settings import DEFAULTS, SiteSettings
from ingest.rollups.spans import Bounds, Span
from tests.rollup_days import cut, day_bounds, tracks
from tests.weeks import HOUR_MS, LOT_PLACES, Week

WEEK = Week(lamps=0, air=0, meters=0)
START_MS = WEEK.moment_ms(2)
MINUTE_MS = 60_000


def span(samples: Sequence[tuple[int, float]], metric: str = "occupied", hours: int = 1) -> Span:
    """Times in minutes; the last one before 0 is of the row before."""
    known = [(START_MS + minute * MINUTE_MS, value) for minute, value in samples]
    own = [one for one in known if one[0] >= START_MS]
    before = [one for one in known if one[0] < START_MS]
    return Span(
        START_MS,
        START_MS + hours * HOUR_MS,
        tracks={metric: own} if own else {},
        before={metric: before[-1]} if before else {},
    )


def over(spans: Sequence[Span], site: SiteSettings) -> Fields:
    """What a site's row says of these devices."""
    return parking.combine([parking.digest(one, site) for one in spans])


def minutes(*values: tuple[int, int, float]) -> list[tuple[int, float]]:
    """A row every five minutes from the first to before the second minute."""
    return [(minute, value) for begin, end, value in values for minute in range(begin, end, 5)]


def test_a_stay_is_from_free_to_free() -> None:
    found = parking.bay(span(minutes((-5, 10, 0), (10, 40, 1), (40, 60, 0))), DEFAULTS)
    assert found == (3600, 1800, 1, [Stay(1800, left=True)])


def test_a_car_that_was_there_before_is_no_arrival_and_its_stay_is_not_known() -> None:
    found = parking.bay(span(minutes((-5, 20, 1), (20, 60, 0))), DEFAULTS)
    assert found == (3600, 1200, 0, [])


def test_without_a_row_before_the_first_car_is_no_arrival() -> None:
    assert parking.bay(span(minutes((0, 60, 1))), DEFAULTS).arrivals == 0


def test_a_car_that_is_still_there_stayed_at_least_so_long() -> None:
    found = parking.bay(span(minutes((-5, 45, 0), (45, 60, 1))), DEFAULTS)
    assert found.stays == [Stay(900, left=False)]


def test_what_happens_in_a_gap_is_not_made_up() -> None:
    # Free, silent for longer than a value holds, then taken: somebody came, nobody knows when.
    came = parking.bay(span([*minutes((-5, 10, 0)), *minutes((40, 60, 1))]), DEFAULTS)
    assert (came.arrivals, came.stays) == (1, [])
    # Taken, silent, then free: it was there until the value no longer held, and left at some time.
    left = parking.bay(span([*minutes((-5, 5, 0), (5, 15, 1)), *minutes((45, 60, 0))]), DEFAULTS)
    assert (left.arrivals, left.stays) == (1, [Stay(1200, left=False)])
    # Taken, silent, taken: perhaps another car.
    other = parking.bay(span([*minutes((-5, 5, 0), (5, 10, 1)), *minutes((40, 60, 1))]), DEFAULTS)
    assert (other.arrivals, other.known_s) == (1, 300 + 900 + 1200)


def bays(count: int, stays_each: int) -> list[Span]:
    """Bays of one day in which cars stay 20 minutes."""
    changes: list[tuple[int, int, float]] = [(-5, 60, 0.0)]
    for number in range(stays_each):
        begin = 60 + 60 * number
        changes += [(begin, begin + 20, 1.0), (begin + 20, begin + 60, 0.0)]
    changes.append((60 + 60 * stays_each, 24 * 60, 0.0))
    return [span(minutes(*changes), hours=24) for _ in range(count)]


def test_a_site_has_occupancy_turnover_and_dwell() -> None:
    found = over(bays(4, 3), DEFAULTS)
    assert found == {
        "bays": 4,
        "arrivals": 12,
        "turnover": 3.0,
        "stays": 12,
        "dwell_median_s": 1200.0,
        "dwell_p90_s": 1200.0,
        "occupancy": pytest.approx(1 / 24),
    }


@pytest.mark.parametrize(("count", "stays_each"), [(4, 1), (MIN_BAYS, 1)])
def test_dwell_of_fewer_than_five_stays_is_not_said(count: int, stays_each: int) -> None:
    found = over(bays(count, stays_each), DEFAULTS)
    assert found["stays"] < MIN_STAYS
    assert not [name for name in found if name.startswith("dwell")]


@pytest.mark.parametrize("count", [0, 1, 2])
def test_of_fewer_than_three_bays_nothing_is_said_but_that_they_are_there(count: int) -> None:
    assert over(bays(count, 8), DEFAULTS) == {"bays": count}


def test_many_stays_in_one_bay_are_no_dwell_of_a_site() -> None:
    busy, quiet = bays(1, 8), bays(2, 0)
    found = over([*busy, *quiet], DEFAULTS)
    assert found["stays"] == 8
    assert "dwell_median_s" not in found


def test_a_sites_figures_do_not_tell_which_bay_did_what() -> None:
    a, b, c, d = (bays(1, stays)[0] for stays in (1, 2, 3, 4))
    assert over([a, b, c, d], DEFAULTS) == over([d, b, a, c], DEFAULTS)


def test_stays_that_were_not_seen_to_end_lengthen_the_dwell() -> None:
    all_left = [Stay(60.0 * n, left=True) for n in range(1, 11)]
    assert (quantile(all_left, 0.5), quantile(all_left, 0.9)) == (300, 540)
    # By hand: left at 1, 2, 3 of 6, the others seen for 2.5: 5/6 * 4/5 * (1 - 1/1)
    some = [Stay(1, True), Stay(2, True), *[Stay(2.5, False)] * 3, Stay(3, True)]
    assert quantile(some, 0.5) == 3
    assert quantile([Stay(1, True), Stay(9, False)], 0.9) is None
    assert quantile([], 0.5) is None


@given(st.lists(st.builds(Stay, st.floats(0, 1e5), st.booleans()), max_size=60))
def test_a_longer_share_is_a_longer_stay_and_one_that_happened(stays: list[Stay]) -> None:
    median, p90 = quantile(stays, 0.5), quantile(stays, 0.9)
    lengths = [stay.seconds for stay in stays if stay.left]
    assert median is None or median in lengths
    assert p90 is None or (median is not None and median <= p90)


rows = st.dictionaries(st.integers(-59, 59), st.sampled_from([0.0, 1.0]), max_size=60)


@given(rows)
def test_whatever_a_bay_says_its_times_fit_into_the_hour(samples: dict[int, float]) -> None:
    found = parking.bay(span(sorted(samples.items())), DEFAULTS)
    assert 0 <= found.occupied_s <= found.known_s <= 3600
    assert len(found.stays) <= found.arrivals
    assert sum(stay.seconds for stay in found.stays) <= found.occupied_s + 1e-9


# Lots


def lot_span(capacity: float, free: list[tuple[int, float]], name: str = "car") -> Span:
    held = span(free, f"free_{name}")
    return held._replace(
        tracks={**held.tracks, f"capacity_{name}": [(START_MS, capacity)]},
    )


def test_a_lot_is_as_full_as_its_places_are_over_time() -> None:
    found = over([lot_span(100, minutes((0, 30, 50), (30, 60, 4)))], DEFAULTS)
    assert found == {"bays": 0, "occupancy": pytest.approx(0.73), "full_s": 1800}


def test_a_lot_counts_by_its_places_and_bays_by_one_each() -> None:
    lot = lot_span(97, minutes((0, 60, 97)))
    full = [span(minutes((0, 60, 1))) for _ in range(3)]
    assert over([lot, *full], DEFAULTS)["occupancy"] == pytest.approx(0.03)


def test_other_classes_stand_for_themselves_and_what_cannot_be_is_cut() -> None:
    odd = lot_span(10, minutes((0, 60, 12)), "ev")  # more free than there are
    assert over([odd], DEFAULTS) == {"bays": 0, "occupancy_ev": 0.0}
    assert over([lot_span(0, minutes((0, 60, 0)))], DEFAULTS) == {"bays": 0, "full_s": 0.0}
    assert over([], DEFAULTS) == {"bays": 0}


# The week


def site_span(site: str, day: int, begin_h: int = 0, end_h: int = 24) -> list[Span]:
    whole = day_bounds(WEEK, day)
    bounds = Bounds(whole.start_ms + begin_h * HOUR_MS, whole.start_ms + end_h * HOUR_MS)
    found = [cut(tracks(WEEK, one), bounds) for one in WEEK.devices(site)]
    return [one for one in found if {"occupied", "free_car"} & set(one.tracks)]


def test_the_weeks_car_park_is_full_when_it_was() -> None:
    event = WEEK.event("full")
    found = over(site_span(event.site, 5), DEFAULTS)
    assert found["full_s"] == pytest.approx((event.end_ms - event.start_ms) / 1000, abs=600)
    hour = over(site_span(event.site, 5, 14, 15), DEFAULTS)
    assert hour["full_s"] == 3600
    assert hour["occupancy"] > (LOT_PLACES - 2) / (LOT_PLACES + 6)
    assert over(site_span(event.site, 4), DEFAULTS)["full_s"] == 0


def test_the_weeks_stays_are_found_as_rows_let_them_be_seen() -> None:
    found = over(site_span("xinyi", 3), DEFAULTS)
    day = day_bounds(WEEK, 3)
    truth = [
        stay
        for one in WEEK.devices("xinyi")
        if one.kind == "bay"
        for stay in WEEK.stays(one)
        if day.start_ms <= stay[0] < day.end_ms
    ]
    assert found["arrivals"] == pytest.approx(len(truth), abs=3)
    lengths = sorted((left - came) / 1000 for came, left in truth)
    assert found["dwell_median_s"] == pytest.approx(lengths[len(lengths) // 2], rel=0.2)
    assert found["dwell_median_s"] < found["dwell_p90_s"]
