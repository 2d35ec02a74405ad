"""The audit finds every single sample that was lost, came twice or was moved in time."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_drivers.kit.driver import Value
from onestreet.demo.audit import Audit, DeviceAudit, Entry, StoredRow, audit_device, total
from onestreet.demo.run import report

T0_MS = 1_795_000_000_000
INTERVAL_S = 1.0


def counts(audit: DeviceAudit) -> tuple[int, int]:
    return audit.lost, audit.duplicate


def town(
    values: list[Value], shifts_ms: list[int] | None = None
) -> tuple[list[Entry], list[StoredRow]]:
    """Return a truth with one entry a second, and its rows."""
    truth = [Entry(T0_MS + 1000 * n, {"level": value}) for n, value in enumerate(values)]
    shifts_ms = shifts_ms or [0] * len(values)
    rows = [
        StoredRow(entry.at_ms + shift_ms, T0_MS, seq, dict(entry.values))
        for seq, (entry, shift_ms) in enumerate(zip(truth, shifts_ms, strict=True))
    ]
    return truth, rows


@st.composite
def towns(draw: st.DrawFn) -> tuple[list[Entry], list[StoredRow]]:
    # few values, so that neighbours are often equal: the hard case
    values = draw(st.lists(st.sampled_from([0, 1, 2.5]), min_size=1, max_size=30))
    shifts_ms = draw(
        st.lists(st.integers(0, 499), min_size=len(values), max_size=len(values)),
    )
    return town(list(values), shifts_ms)


@given(towns())
def test_what_arrived_whole_passes(one: tuple[list[Entry], list[StoredRow]]) -> None:
    truth, rows = one
    audit = audit_device(truth, rows, INTERVAL_S)
    assert audit == DeviceAudit(len(truth), len(rows), 0, 0, 0)


@given(towns(), st.randoms(use_true_random=False))
def test_the_order_of_the_store_does_not_matter(
    one: tuple[list[Entry], list[StoredRow]], chance: random.Random
) -> None:
    truth, rows = one
    chance.shuffle(rows)
    assert counts(audit_device(truth, rows, INTERVAL_S)) == (0, 0)


@given(towns(), st.data())
def test_dropping_any_row_is_one_lost(
    one: tuple[list[Entry], list[StoredRow]], data: st.DataObject
) -> None:
    truth, rows = one
    del rows[data.draw(st.integers(0, len(rows) - 1))]
    audit = audit_device(truth, rows, INTERVAL_S)
    assert counts(audit) == (1, 0)
    assert audit.stored == len(rows)


@given(towns(), st.data())
def test_doubling_any_row_is_one_duplicate(
    one: tuple[list[Entry], list[StoredRow]], data: st.DataObject
) -> None:
    truth, rows = one
    twin = rows[data.draw(st.integers(0, len(rows) - 1))]
    # as a second row for one name, or under a name of its own
    by_ms = data.draw(st.integers(0, 3000))
    seq = data.draw(st.sampled_from([twin.seq, 10_000]))
    rows.append(twin._replace(time_ms=twin.time_ms + by_ms, seq=seq))
    assert counts(audit_device(truth, rows, INTERVAL_S)) == (0, 1)


@given(towns(), st.data())
def test_moving_any_row_is_one_lost_and_one_duplicate(
    one: tuple[list[Entry], list[StoredRow]], data: st.DataObject
) -> None:
    truth, rows = one
    index = data.draw(st.integers(0, len(rows) - 1))
    entry = truth[index]
    by_ms = data.draw(st.integers(500, 100_000) | st.integers(-100_000, -500))
    rows[index] = rows[index]._replace(time_ms=entry.at_ms + by_ms)
    assert counts(audit_device(truth, rows, INTERVAL_S)) == (1, 1)


@given(towns(), st.data())
def test_changing_any_row_is_one_lost_and_one_duplicate(
    one: tuple[list[Entry], list[StoredRow]], data: st.DataObject
) -> None:
    truth, rows = one
    index = data.draw(st.integers(0, len(rows) - 1))
    changed = data.draw(st.sampled_from([{"level": 7}, {}, {"level": 0, "lit": 1}, {"lit": 1}]))
    rows[index] = rows[index]._replace(values=changed)
    assert counts(audit_device(truth, rows, INTERVAL_S)) == (1, 1)


@pytest.mark.parametrize(
    ("interval_s", "shift_ms", "found"),
    [
        (1.0, 499, (0, 0)),
        (1.0, 500, (1, 1)),
        (1.0, -499, (0, 0)),
        (1.0, -500, (1, 1)),
        (0.2, 99, (0, 0)),
        (0.2, 100, (1, 1)),
        (10.0, 1000, (0, 0)),
        (10.0, 1001, (1, 1)),
    ],
)
def test_the_tolerance_is_a_second_and_under_half_the_interval(
    interval_s: float, shift_ms: int, found: tuple[int, int]
) -> None:
    truth, rows = town([1], [shift_ms])
    assert counts(audit_device(truth, rows, interval_s)) == found


def test_booleans_are_stored_as_numbers() -> None:
    truth = [Entry(T0_MS, {"lit": True, "level": 40, "power": 2.5})]
    row = StoredRow(T0_MS, 1, 0, {"lit": 1, "level": 40.0, "power": 2.5})
    assert counts(audit_device(truth, [row], 1.0)) == (0, 0)
    assert counts(audit_device(truth, [row._replace(values={**row.values, "lit": 0})], 1.0)) == (
        1,
        1,
    )


def test_a_name_is_of_its_epoch() -> None:
    truth, rows = town([1, 1])
    rows[1] = rows[1]._replace(epoch=T0_MS + 1, seq=0)
    assert counts(audit_device(truth, rows, INTERVAL_S)) == (0, 0)


def test_rows_must_come_in_the_order_of_the_truth() -> None:
    truth = [Entry(T0_MS, {"level": 1}), Entry(T0_MS + 100, {"level": 2})]
    rows = [StoredRow(T0_MS, 1, 0, {"level": 2}), StoredRow(T0_MS + 100, 1, 1, {"level": 1})]
    assert counts(audit_device(truth, rows, 1.0)) == (1, 1)


def test_what_a_killed_agent_had_in_hand_is_not_lost() -> None:
    truth, rows = town([0, 1, 2, 3, 4, 5])
    span = (truth[2].at_ms - 1, truth[3].at_ms)
    later = [row._replace(seq=row.seq - 2) for row in rows[4:]]
    audit = audit_device(truth, [*rows[:2], *later], INTERVAL_S, killed=[span])
    assert audit == DeviceAudit(6, 4, 0, 0, 0, in_hand=2)
    at_the_end = audit_device(truth, rows[:4], INTERVAL_S, killed=[(truth[4].at_ms, 2**62)])
    assert at_the_end == DeviceAudit(6, 4, 0, 0, 0, in_hand=2)


def test_a_kill_excuses_nothing_else() -> None:
    truth, rows = town([0, 1, 2, 3, 4, 5])
    span = (truth[2].at_ms - 1, truth[3].at_ms)
    later = [row._replace(seq=row.seq - 2) for row in rows[4:]]
    audit = audit_device(truth, [rows[0], *later], INTERVAL_S, killed=[span])
    assert (audit.lost, audit.in_hand, audit.duplicate) == (1, 2, 0)
    twice = [*rows, rows[2]._replace(seq=77)]
    assert counts(audit_device(truth, twice, INTERVAL_S, killed=[span])) == (0, 1)


GOOD = DeviceAudit(10, 10, 0, 0, 0)


def test_the_town_passes_only_whole() -> None:
    assert total({"a": GOOD, "b": GOOD}).passed
    assert not total({}).passed
    assert not total({"a": GOOD, "b": DeviceAudit(0, 0, 0, 0, 0)}).passed, "b was never heard"
    assert not total({"a": GOOD, "b": DeviceAudit(10, 9, 0, 1, 0)}).passed
    assert not total({"a": GOOD, "b": DeviceAudit(10, 10, 0, 0, 1)}).passed
    assert total({"a": GOOD, "b": DeviceAudit(10, 9, 0, 0, 0, in_hand=1)}).passed


def test_the_report_is_the_sum_and_every_device() -> None:
    audit: Audit = total({"a": GOOD, "b": DeviceAudit(9, 5, 1, 2, 3, 4)})
    assert json.loads(report(audit)) == {
        "taken": 19,
        "stored": 15,
        "refused": 1,
        "lost": 2,
        "duplicate": 3,
        "in_hand": 4,
        "devices": {
            "a": {"taken": 10, "stored": 10, "refused": 0, "lost": 0, "duplicate": 0, "in_hand": 0},
            "b": {"taken": 9, "stored": 5, "refused": 1, "lost": 2, "duplicate": 3, "in_hand": 4},
        },
    }


def test_what_has_a_name_was_taken_and_no_kill_excuses_its_loss() -> None:
    truth, rows = town([0, 1, 2, 3, 4, 5])
    span = (truth[2].at_ms - 1, truth[3].at_ms)
    one_named = [*rows[:2], *(row._replace(seq=row.seq - 1) for row in rows[4:])]
    audit = audit_device(truth, one_named, INTERVAL_S, killed=[span])
    assert audit == DeviceAudit(6, 4, 0, 1, 0, in_hand=1)
    refused = audit_device(truth, one_named, INTERVAL_S, killed=[span], refused=1)
    assert refused == DeviceAudit(6, 4, 1, 0, 0, in_hand=2)
    both_named = audit_device(truth, [*rows[:2], *rows[4:]], INTERVAL_S, killed=[span])
    assert both_named == DeviceAudit(6, 4, 0, 2, 0, in_hand=0)
