"""When devices are polled: no drift, no bursts after a pause, dead devices less and less often."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.schedule import SETTLE_S, SLOWEST_RETRY_S, Turn, turns

intervals = st.floats(0.05, 3600)


@given(st.lists(intervals, max_size=50), st.floats(0, 1e6))
def test_first_polls_are_spread_over_the_intervals(each: list[float], now_s: float) -> None:
    schedule = turns(each, now_s)
    assert [turn.interval_s for turn in schedule] == each
    for turn in schedule:
        assert now_s + SETTLE_S <= turn.due_s <= now_s + SETTLE_S + turn.interval_s
    if len(set(each)) == 1:
        dues = [turn.due_s for turn in schedule]
        for one, next_one in pairwise(dues):
            assert next_one - one == pytest.approx(each[0] / len(each), abs=1e-6)


def test_an_answer_that_takes_its_time_does_not_make_the_schedule_drift() -> None:
    turn = Turn(2.0, 100.0)
    for poll in range(1000):
        assert turn.due_s == 100.0 + 2.0 * poll
        turn.answered(turn.due_s + 0.7)
    assert turn.missed == 0


def test_polls_that_were_missed_are_counted_and_not_made_up_for() -> None:
    turn = Turn(2.0, 100.0)
    turn.answered(107.0)  # the bus was held up: 102, 104 and 106 have passed
    assert turn.due_s == 108.0
    assert turn.missed == 3


def test_a_dead_device_is_asked_less_and_less_often() -> None:
    turn = Turn(2.0, 0.0)
    waits = []
    for _ in range(8):
        asked_s = turn.due_s
        turn.failed(asked_s + 1.0)
        waits.append(turn.due_s - asked_s)
    assert waits == sorted(waits)
    assert waits[0] == 2.0
    assert SLOWEST_RETRY_S <= waits[-1] <= SLOWEST_RETRY_S + turn.interval_s
    assert turn.missed == 0, "what was not asked for was not missed"
    turn.answered(turn.due_s + 0.1)
    asked_s = turn.due_s
    turn.failed(asked_s)
    assert turn.due_s - asked_s == 2.0, "an answer begins anew"


def test_a_slow_device_is_retried_at_its_own_pace() -> None:
    turn = Turn(300.0, 0.0)
    for _ in range(5):
        asked_s = turn.due_s
        turn.failed(asked_s + 1.0)
        assert turn.due_s - asked_s == 300.0


@given(
    intervals,
    st.lists(st.tuples(st.booleans(), st.floats(0, 500)), min_size=1, max_size=60),
)
def test_the_next_time_is_always_ahead_and_on_the_grid(
    interval_s: float, polls: list[tuple[bool, float]]
) -> None:
    turn = Turn(interval_s, 10.0)
    for answered, took_s in polls:
        now_s = turn.due_s + took_s
        (turn.answered if answered else turn.failed)(now_s)
        assert turn.due_s > now_s - 1e-6
        assert turn.due_s <= now_s + max(SLOWEST_RETRY_S, interval_s) + interval_s + 1e-6
        steps = (turn.due_s - 10.0) / interval_s
        assert steps == pytest.approx(round(steps), abs=1e-4)
