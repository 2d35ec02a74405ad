"""When devices are polled: no drift, no bursts after a pause, dead devices in the gaps and ever more rarely."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.schedule import PATIENCE_S, SETTLE_S, SPREAD_S, Pacing, Schedule

intervals = st.floats(0.05, 3600)


@given(st.lists(intervals, min_size=1, max_size=50), st.floats(0, 1e6))
def test_first_polls_are_spread(each: list[float], now_s: float) -> None:
    slots = Schedule(each, now_s).slots
    assert [slot.interval_s for slot in slots] == each
    for slot in slots:
        spread_s = min(slot.interval_s, SPREAD_S)
        assert now_s + SETTLE_S <= slot.due_s <= now_s + SETTLE_S + spread_s
    if len(set(each)) == 1:
        for one, next_one in pairwise(slots):
            apart_s = min(each[0], SPREAD_S) / len(each)
            assert next_one.due_s - one.due_s == pytest.approx(apart_s, abs=1e-6)


def test_polls_of_one_grain_follow_each_other() -> None:
    """Where there is no line to share out, waking up once serves several."""
    dues = [slot.due_s - SETTLE_S for slot in Schedule([1.0] * 8, 0.0, grain_s=0.25).slots]
    assert dues == pytest.approx([0.0, 0.0, 0.25, 0.25, 0.5, 0.5, 0.75, 0.75])
    dues = [slot.due_s - SETTLE_S for slot in Schedule([0.1] * 4, 0.0, grain_s=0.25).slots]
    assert dues == pytest.approx([0.0] * 4)


@given(
    st.lists(st.sampled_from([1.0, 2.5, 60.0]), min_size=1, max_size=6),
    st.lists(
        st.tuples(
            st.sampled_from(["answer", "answer", "answer", "fail", "alive", "resume", "other"]),
            st.integers(0, 5),
            st.floats(0, 3),
        ),
        max_size=60,
    ),
)
def test_whatever_happened_who_is_due_first_is_asked_first(
    each: list[float], steps: list[tuple[str, int, float]]
) -> None:
    schedule, now_s = Schedule(each, 0.0), 0.0
    for step, which, passed_s in steps:
        now_s += passed_s
        chosen, again_s = schedule.choice(now_s)
        living = [slot for slot in schedule.slots if not slot.failures]
        first = min(living, key=lambda slot: slot.due_s, default=None)
        if chosen is not None and not chosen.failures:
            assert chosen is first
        if first is not None:
            assert chosen is not None or again_s <= first.due_s
            assert chosen is not None or now_s < first.due_s
        slot = schedule.slots[which % len(each)] if step == "other" else chosen
        match step:
            case "resume":
                schedule.resume(now_s)
            case "alive":
                schedule.alive(which % len(each), now_s)
            case "fail" if slot is not None:
                schedule.failed(slot, now_s, now_s + 0.1)
            case _ if slot is not None:
                schedule.answered(slot, now_s)
            case _:
                pass


def test_an_answer_that_takes_its_time_does_not_make_the_schedule_drift() -> None:
    schedule = Schedule([0.3], 100.0)
    (slot,) = schedule.slots
    first_s = slot.due_s
    for poll in range(20_000):
        assert slot.due_s == pytest.approx(first_s + 0.3 * poll, abs=1e-6)
        schedule.answered(slot, slot.due_s + 0.2)
    assert slot.missed == 0


def test_polls_that_were_missed_are_counted_and_not_made_up_for() -> None:
    schedule = Schedule([2.0], 100.0 - SETTLE_S)
    (slot,) = schedule.slots
    schedule.answered(slot, 107.0)  # the bus was held up: 102, 104 and 106 have passed
    assert slot.due_s == pytest.approx(108.0)
    assert slot.missed == 3


def test_a_bus_that_was_away_asks_everybody_once_and_goes_on_where_it_was() -> None:
    schedule = Schedule([2.0, 2.0], 100.0 - SETTLE_S)
    first, second = schedule.slots
    fail(schedule, 1, 3)
    schedule.resume(207.3)
    assert first.due_s == second.due_s == 207.3 + SETTLE_S
    assert first.missed == 53, "the 54th is made up for"
    assert second.missed == 0, "what was not asked for was not missed"
    schedule.answered(first, 207.5)
    assert first.due_s == pytest.approx(208.0)


def fail(schedule: Schedule, index: int, times: int, cost_s: float = 0.2) -> list[float]:
    """Let a device fail; return how long it was left alone each time."""
    slot = schedule.slots[index]
    waits = []
    for _ in range(times):
        asked_s = slot.due_s
        schedule.failed(slot, asked_s, asked_s + cost_s)
        waits.append(slot.due_s - asked_s)
    return waits


@pytest.mark.parametrize(
    ("interval_s", "first_s"), [(0.1, 5.0), (10.0, 10.0), (40.0, 40.0), (300.0, 40.0)]
)
def test_a_dead_device_is_asked_ever_more_rarely_but_twice_in_a_minute(
    interval_s: float, first_s: float
) -> None:
    schedule = Schedule([interval_s], 0.0)
    (slot,) = schedule.slots
    closed = fail(schedule, 0, 2)
    assert not slot.opened
    for wait_s in closed:
        assert wait_s <= max(min(interval_s, 40.0), 0.3) + 0.21
    waits = fail(schedule, 0, 8)
    assert slot.opened
    assert 0.75 * first_s <= waits[0] - 0.2 <= first_s
    for wait_s in waits[-3:]:
        assert 30.0 <= wait_s - 0.2 <= 40.0
    assert slot.missed == 0, "what was not asked for was not missed"
    schedule.answered(slot, slot.due_s + 0.1)
    assert not slot.opened
    assert slot.due_s - SETTLE_S == pytest.approx(
        round((slot.due_s - SETTLE_S) / interval_s) * interval_s
    )


def test_a_device_that_is_heard_otherwise_is_asked_at_once() -> None:
    schedule = Schedule([10.0], 0.0)
    fail(schedule, 0, 6)
    schedule.alive(0, 200.0)
    assert schedule.choice(200.0) == (schedule.slots[0], 200.0)


def test_a_failed_device_is_asked_only_in_a_gap() -> None:
    schedule = Schedule([1.0, 1.0], 0.0)
    polled, failed = schedule.slots
    schedule.failed(failed, 0.6, 0.9)  # it took 0.3 s
    failed.due_s = 1.9
    schedule.answered(polled, 1.2)
    assert polled.due_s == pytest.approx(2.1)
    choice, again_s = schedule.choice(1.9)
    assert choice is None
    assert again_s == pytest.approx(2.1)
    schedule.answered(polled, 2.2)
    assert schedule.choice(2.2) == (failed, 2.2)


@given(
    st.lists(st.floats(0.05, 0.5), min_size=1, max_size=20),
    st.integers(0, 20),
    st.floats(0.05, 1.0),
    st.randoms(use_true_random=False),
)
def test_the_dead_take_no_more_than_their_share_from_the_living(
    costs_s: list[float], dead: int, timeout_s: float, chance: random.Random
) -> None:
    """Whatever the load: a dead device makes polls wait for one exchange at a time, and rarely."""
    count = len(costs_s) + dead
    schedule = Schedule([10.0] * count, 0.0, Pacing(probe_share=0.1))
    order = [*range(count)]
    chance.shuffle(order)
    dead_ones = set(order[:dead])
    now_s, pressed_s = 0.0, 0.0
    while now_s < 300.0:
        slot, again_s = schedule.choice(now_s)
        if slot is None:
            assert again_s > now_s
            now_s = again_s
            continue
        if slot.index in dead_ones:
            was_known, cost_s = slot.failures > 0, slot.cost_s
            next_poll_s = min(
                (other.due_s for other in schedule.slots if not other.failures), default=now_s + 9
            )
            pressed_s += timeout_s * (was_known and next_poll_s < now_s + cost_s - 1e-6)
            schedule.failed(slot, now_s, now_s + timeout_s)
            now_s += timeout_s
        else:
            took_s = costs_s[slot.index % len(costs_s)]
            schedule.answered(slot, now_s + took_s)
            now_s += took_s
    assert pressed_s <= 0.1 * now_s + 2 * timeout_s


def lateness(
    dead: set[int], *, count: int = 32, timeout_s: float = 0.2, cost_s: float = 0.06
) -> tuple[list[float], Schedule, float]:
    """Simulate twenty minutes of a line; return how late the living were polled."""
    schedule = Schedule([10.0] * count, 0.0)
    late: list[float] = []
    now_s = 0.0
    while now_s < 1200.0:
        slot, again_s = schedule.choice(now_s)
        if slot is None:
            now_s = again_s
        elif slot.index in dead:
            schedule.failed(slot, now_s, now_s + timeout_s)
            now_s += timeout_s
        else:
            if now_s > 60.0:  # until each was asked once nobody knows who is dead
                late.append(now_s - slot.due_s)
            schedule.answered(slot, now_s + cost_s)
            now_s += cost_s
    return sorted(late), schedule, now_s


@pytest.mark.parametrize("dead", [1, 5, 16, 31])
@pytest.mark.parametrize(("timeout_s", "cost_s"), [(0.2, 0.06), (0.2, 0.3), (1.0, 0.06)])
def test_the_living_hardly_notice_the_dead(dead: int, timeout_s: float, cost_s: float) -> None:
    alone, _, _ = lateness(set(), cost_s=cost_s)
    beside, schedule, _ = lateness(
        set(range(0, 2 * dead, 2)) if dead <= 16 else set(range(dead)),
        timeout_s=timeout_s,
        cost_s=cost_s,
    )
    p99 = int(0.99 * len(beside))
    assert beside[p99] <= alone[int(0.99 * len(alone))] + timeout_s
    for slot in schedule.slots:
        assert slot.missed <= dead * timeout_s / slot.interval_s


def test_whoever_revives_is_asked_within_a_minute() -> None:
    """Sixteen of 32 are dead on a bus that is nine tenths full; each is asked every minute all the same."""
    schedule = Schedule([10.0] * 32, 0.0)
    dead = set(range(0, 32, 2))
    asked: dict[int, list[float]] = {index: [0.0] for index in dead}
    now_s = 0.0
    while now_s < 1800.0:
        slot, again_s = schedule.choice(now_s)
        if slot is None:
            now_s = again_s
        elif slot.index in dead:
            asked[slot.index].append(now_s)
            schedule.failed(slot, now_s, now_s + 0.2)
            now_s += 0.2
        else:
            schedule.answered(slot, now_s + 0.56)
            now_s += 0.56
    for times in asked.values():
        assert max(b - a for a, b in pairwise([*times, now_s])) < 60.0


def test_on_a_bus_without_gaps_the_dead_wait_their_patience_and_keep_to_their_share() -> None:
    schedule = Schedule([1.0] * 2, 0.0)
    schedule.failed(schedule.slots[1], 0.6, 1.6)
    now_s, asked = 1.6, list[float]()
    while now_s < 100.0:
        slot, again_s = schedule.choice(now_s)
        if slot is None:
            now_s = again_s
        elif slot.index == 1:
            asked.append(now_s)
            schedule.failed(slot, now_s, now_s + 1.0)
            now_s += 1.0
        else:
            schedule.answered(slot, now_s + 0.9)
            now_s += 0.9
    assert asked, "it is not forgotten"
    assert asked[0] >= 2.0 + PATIENCE_S
    assert len(asked) <= 0.1 * 100.0 + 1
    assert min(b - a for a, b in pairwise(asked)) >= 10.0


@pytest.mark.parametrize(("count", "interval_s", "timeout_s"), [(84, 1.0, 1.0), (32, 10.0, 0.2)])
def test_when_all_had_failed_and_one_answers_the_others_are_asked_at_once(
    count: int, interval_s: float, timeout_s: float
) -> None:
    """It was the line, or we: nobody waits for a probe of its own."""
    schedule = Schedule([interval_s] * count, 0.0)
    now_s, heard = run_until(schedule, 120.0, timeout_s, answers=False)
    assert heard == set()
    begins_s = max(now_s, min(slot.due_s for slot in schedule.slots))
    lasts_s = 2 * count * 0.005
    _, heard = run_until(schedule, begins_s + lasts_s, timeout_s, answers=True, now_s=begins_s)
    assert len(heard) == count


def test_those_that_stay_dead_then_keep_to_their_share() -> None:
    schedule = Schedule([1.0] * 20, 0.0)
    now_s, _ = run_until(schedule, 60.0, 0.5, answers=False)
    revived = schedule.slots[0]
    lost_s = 0.0
    end_s = now_s + 300.0
    while now_s < end_s:
        slot, later_s = schedule.choice(now_s)
        if slot is None:
            now_s = later_s
        elif slot is revived:
            now_s += 0.01
            schedule.answered(slot, now_s)
        else:
            poll_s = revived.due_s
            now_s += 0.5
            schedule.failed(slot, now_s - 0.5, now_s)
            lost_s += max(0.0, now_s - max(poll_s, now_s - 0.5)) if not revived.failures else 0.0
    assert lost_s <= 300.0 * (schedule.pacing.probe_share + 0.01)


def run_until(
    schedule: Schedule, end_s: float, timeout_s: float, *, answers: bool, now_s: float = 0.0
) -> tuple[float, set[int]]:
    """Serve a bus on which everybody answers, or nobody; return the time and who was heard."""
    heard = set()
    while now_s < end_s:
        slot, later_s = schedule.choice(now_s)
        if slot is None:
            now_s = later_s
        elif answers:
            now_s += 0.005
            schedule.answered(slot, now_s)
            heard.add(slot.index)
        else:
            now_s += timeout_s
            schedule.failed(slot, now_s - timeout_s, now_s)
    return now_s, heard
