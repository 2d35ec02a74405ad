"""How much silence is none: the wheel, and the two bounds that pull at a device's patience."""

from __future__ import annotations

import math
from random import Random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.lost_adverts import false_downs, in_a_row, note_all
from ingest.watch.liveness import (
    DOWN_GRACE_S,
    LEAST_PATIENCE,
    MOST_PATIENCE,
    PROVEN_AFTER,
    Losses,
    Status,
    down_s,
    late_s,
    losses_by,
)
from ingest.watch.wheel import Wheel
from tests.lookouts import Street

INTERVAL_S = 60.0
DAY_S = 86_400


@given(st.lists(st.floats(0, 1000), max_size=60), st.floats(0.1, 50))
def test_a_wheel_hands_out_each_once_and_in_time(dues_s: list[float], step_s: float) -> None:
    wheel: Wheel[int] = Wheel(0.05)
    for number, due_s in enumerate(dues_s):
        wheel.put(due_s, number)
    now_s, seen = 0.0, list[int]()
    while now_s < 1000 + step_s:
        now_s += step_s
        for number in wheel.due(now_s):
            assert dues_s[number] <= now_s + 0.05
            seen.append(number)
        late = [due_s for number, due_s in enumerate(dues_s) if number not in seen]
        assert all(due_s > now_s - 0.1 for due_s in late)
    assert sorted(seen) == list(range(len(dues_s)))


@given(st.floats(0.01, 7 * DAY_S), st.floats(0, 5000), st.integers(0, 9000), st.integers(0, 9000))
def test_patience_is_bounded_and_late_comes_before_down(
    interval_s: float, lived: float, heard: int, missed: int
) -> None:
    losses = Losses(lived, heard, min(heard, missed))
    assert LEAST_PATIENCE <= losses.patience(interval_s) <= MOST_PATIENCE
    assert late_s(interval_s) < down_s(interval_s, None) <= down_s(interval_s, losses)


@given(st.lists(st.floats(0.001, 2000), max_size=300))
def test_whatever_the_silences_are_not_more_is_missed_than_heard(silences_s: list[float]) -> None:
    losses = Losses()
    for silence_s in silences_s:
        losses.note(silence_s, INTERVAL_S)
        assert 0 <= losses.missed <= losses.heard
        losses.patience(INTERVAL_S)


def test_who_is_on_a_wire_or_loses_nothing_is_down_after_two_intervals() -> None:
    bound_s = 2 * INTERVAL_S + 5
    assert losses_by("modbus") is None
    assert down_s(INTERVAL_S, None) <= bound_s
    losses = losses_by("ble")
    assert losses is not None
    assert losses.patience(INTERVAL_S) == MOST_PATIENCE  # until it has shown what it loses
    for _ in range(PROVEN_AFTER + 1):
        losses.note(INTERVAL_S + 0.7, INTERVAL_S)
    assert down_s(INTERVAL_S, losses) <= bound_s


def test_who_is_heard_often_is_known_as_soon() -> None:
    losses = Losses()
    for _ in range(20 * PROVEN_AFTER + 1):
        losses.note(INTERVAL_S / 20, INTERVAL_S)
    assert losses.patience(INTERVAL_S) == LEAST_PATIENCE


def test_an_outage_is_no_loss_and_neither_is_a_burst() -> None:
    losses = Losses(lived=100.0, heard=100)
    losses.note(3600.0, INTERVAL_S)
    losses.note(0.6, INTERVAL_S)
    assert losses.lived == pytest.approx(100.01)
    assert (losses.heard, losses.missed) == (101, 0)


@pytest.mark.parametrize(
    ("adverts", "loss", "expected"),
    [
        (1, 0.0003, 3),
        (1, 0.01, 5),
        (1, 0.1, 9),
        (2, 0.1, 5),
        (4, 0.1, 3),
        (5, 0.1, 2),
        (20, 0.2, 2),
    ],
)
def test_patience_grows_with_losses_and_falls_with_adverts(
    adverts: int, loss: float, expected: int
) -> None:
    heard = round(4000 * adverts * (1 - loss))
    losses = Losses(4000.0, heard, round(heard * loss))
    assert losses.patience(INTERVAL_S) == expected


def test_what_the_two_bounds_ask_for_together() -> None:
    """One advert an interval and a tenth lost: two missed in a row 13 times a day, so no rule has both."""
    intervals_a_day = DAY_S / INTERVAL_S
    at_two = 0.9 * 0.1**LEAST_PATIENCE * intervals_a_day
    assert at_two == pytest.approx(13, abs=0.1)
    needed = math.ceil(math.log(1e-5 / (0.9 * intervals_a_day)) / math.log(0.1))
    assert needed == 9
    adverts = math.ceil(needed / LEAST_PATIENCE)  # in each interval, and two intervals are enough
    assert adverts == 5
    assert 0.1 ** (adverts * LEAST_PATIENCE) * intervals_a_day <= 1e-5


@pytest.mark.parametrize("adverts", [1, 2, 5])
def test_false_downs_at_a_tenth_of_the_adverts_lost(adverts: int) -> None:
    found = false_downs(device_days=1000, adverts=adverts, loss=0.1, random=Random(7))
    assert found.device_days == 1000
    assert found.downs == 0
    if adverts == 5:
        assert found.patience == LEAST_PATIENCE


def test_the_simulation_can_find_false_downs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Losses, "patience", lambda _losses, _interval_s: LEAST_PATIENCE)
    found = false_downs(device_days=100, adverts=1, loss=0.1, random=Random(7))
    assert found.downs == pytest.approx(100 * 13, rel=0.1)


def test_as_many_arrive_in_a_row_as_do_one_by_one() -> None:
    random = Random(3)
    drawn = [in_a_row(0.9, random) for _ in range(20_000)]
    assert sum(drawn) / len(drawn) == pytest.approx(9, rel=0.03)  # 0.9 / (1 - 0.9)
    assert sum(not one for one in drawn) / len(drawn) == pytest.approx(0.1, rel=0.1)


@given(
    st.lists(st.tuples(st.integers(0, 6000), st.integers(1, 30)), max_size=12),
    st.sampled_from([1, 2, 4]),
)
def test_the_simulation_counts_as_the_service_does(
    runs: list[tuple[int, int]], adverts: int
) -> None:
    """At once what the watch notes sample by sample; the times of these are exact in binary."""
    at_once, one_by_one = Losses(), Losses()
    apart_s = 64.0 / adverts
    for arrived, lost in runs:
        note_all(at_once, apart_s, 64.0, arrived)
        for _ in range(arrived):
            one_by_one.note(apart_s, 64.0)
        for losses in (at_once, one_by_one):
            losses.note((lost + 1) * apart_s, 64.0)
        assert msgspec.to_builtins(at_once) == msgspec.to_builtins(one_by_one)


def test_a_device_that_loses_a_tenth_is_late_and_never_down() -> None:
    """The same through the lookout itself: a week of one device, sample by sample."""
    one, random = Street(), Random(3)
    one.state("gw-1")
    one.state("aq-1", transport="ble")
    one.state("aq-2")
    seen = set()
    for _ in range(7 * 1440):
        one.pass_time(INTERVAL_S, step_s=INTERVAL_S / 6)
        seen.add(one.status("aq-1"))
        one.hear("aq-2")
        if random.random() >= 0.1:
            one.hear("aq-1")
    assert {Status.UP, Status.LATE} <= seen <= {Status.UP, Status.LATE, Status.UNKNOWN}
    assert one.incidents() == []
    silent_from_s = one.now_s
    while one.status("aq-1") is not Status.DOWN:
        one.pass_time(1.0)
        one.hear("aq-2")
    patience_s = one.now_s - silent_from_s
    assert patience_s <= MOST_PATIENCE * INTERVAL_S + DOWN_GRACE_S + 1
