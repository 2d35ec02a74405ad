"""How much silence is none: the wheel, and the two bounds that pull at a device's patience."""

from __future__ import annotations

import math
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.watch import false_downs
from ingest.watch.liveness import (
    DOWN_GRACE_S,
    LEAST_PATIENCE,
    MOST_PATIENCE,
    PROVEN_AFTER,
    Losses,
    Status,
    down_s,
    late_s,
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


@given(st.floats(0.01, 7 * DAY_S), st.integers(0, 5000), st.integers(0, 5000))
def test_patience_is_bounded_and_late_comes_before_down(
    interval_s: float, heard: int, missed: int
) -> None:
    patience = Losses(heard, missed).patience(interval_s, "modbus")
    assert LEAST_PATIENCE <= patience <= MOST_PATIENCE
    assert late_s(interval_s) < down_s(interval_s, patience)


def test_who_loses_nothing_is_down_after_two_intervals() -> None:
    losses = Losses()
    assert losses.patience(INTERVAL_S, "modbus") == 2
    assert down_s(INTERVAL_S, 2) <= 2 * INTERVAL_S + 5
    assert losses.patience(INTERVAL_S, "ble") == MOST_PATIENCE  # until it has shown what it loses
    for _ in range(PROVEN_AFTER):
        losses.note(INTERVAL_S + 0.7, INTERVAL_S)
    assert losses.patience(INTERVAL_S, "ble") == 2


def test_an_outage_is_no_loss_and_neither_is_a_burst() -> None:
    losses = Losses(heard=100)
    losses.note(3600.0, INTERVAL_S)
    losses.note(0.5, INTERVAL_S)
    assert (losses.heard, losses.missed) == (100, 0)


@pytest.mark.parametrize(("loss", "expected"), [(0.0001, 3), (0.01, 5), (0.1, 9), (0.5, 10)])
def test_patience_grows_with_losses(loss: float, expected: int) -> None:
    losses = Losses(heard=100_000 - round(100_000 * loss), missed=round(100_000 * loss))
    assert losses.patience(INTERVAL_S, "ble") == expected


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
    found = false_downs(devices=20, days=30, adverts=adverts, loss=0.1, random=Random(7))
    assert found.device_days == 600
    assert found.downs == 0
    assert found.patience <= (LEAST_PATIENCE if adverts >= 5 else MOST_PATIENCE)


def test_the_simulation_can_find_false_downs() -> None:
    found = false_downs(
        devices=2, days=10, adverts=1, loss=0.1, random=Random(7), transport="modbus", learns=False
    )
    assert found.downs == pytest.approx(20 * 13, rel=0.3)


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
