"""The plan is the seed's alone, and the comparison sees everything that can be wrong."""

from __future__ import annotations

import random
from itertools import pairwise

import msgspec
import pytest

from exchange.delivery import Key
from tests.chaos.plan import CYCLE_S, QUIET_S, TRACKS, Fault, planned
from tests.chaos.poison import poisons
from tests.chaos.truth import InQuarantine, StoredRow, Taken, compare, longest_gap_s
from tests.chaos.twins import Reading, Row, matched

EPOCH = 1_790_000_000_123
KEY = Key("air-1", EPOCH, 0)


# --------------------------------------------------------------------------------------------------------- plan


@pytest.mark.parametrize("minutes", [2.0, 2.5, 10.0])
def test_the_same_seed_makes_the_same_faults(minutes: float) -> None:
    assert planned(7, minutes) == planned(7, minutes)
    assert planned(7, minutes) != planned(8, minutes)


@pytest.mark.parametrize("seed", range(40))
def test_every_kind_of_fault_comes_and_none_overlaps_another_of_its_track(seed: int) -> None:
    minutes = 2 + seed % 9
    faults = planned(seed, minutes)
    cycles = (minutes * 60 - 2 * QUIET_S) // CYCLE_S
    for track, kinds in TRACKS.items():
        mine = [fault for fault in faults if fault.track == track]
        for kind in {kind.name for kind in kinds}:
            times = sum(fault.kind == kind for fault in mine)
            assert times == cycles * sum(each.name == kind for each in kinds)
        for one, later in pairwise(mine):
            assert one.at_s + one.for_s + one.rest_s <= later.at_s + 0.2
        assert all(QUIET_S <= fault.at_s <= minutes * 60 - QUIET_S for fault in mine)


def test_a_run_too_short_for_every_fault_is_refused() -> None:
    with pytest.raises(ValueError, match="every kind of fault needs 2"):
        planned(1, 1.9)


def test_a_plan_is_the_same_on_every_machine() -> None:
    """A change here changes what every seed that was ever reported means."""
    assert planned(1, 2.0)[0] == Fault(5.7, "store", "store-503", 1.2, 1.0, 165578116)


# -------------------------------------------------------------------------------------------------- comparison


def taken(**changes: object) -> Taken:
    sample = Taken(
        KEY, "air", "tw-tpe", "chaos", 1_790_000_001_000, {"pm1": 1.5, "lit": True}, told="stored"
    )
    return msgspec.structs.replace(sample, **changes)


def row(**changes: object) -> StoredRow:
    fields = {"pm1": 1.5, "lit": 1, "epoch": EPOCH, "seq": 0}
    time_ns = 1_790_000_001_000_000_123
    stored = StoredRow("air", "tw-tpe", "chaos", "air-1", time_ns, fields)
    return stored._replace(**changes)  # type: ignore[arg-type]  # the test's own words


def found(**changes: object) -> str:
    """Return what the account of one sample and one row counts, but for what is taken."""
    account = compare([taken()], [row(**changes)], [])
    assert not account.is_clean or account.stored == 1
    return _counted(account)


def _counted(account: object) -> str:
    counts = msgspec.to_builtins(account)
    return " ".join(f"{k}={v}" for k, v in counts.items() if v and k not in ("taken", "examples"))


def test_a_sample_with_its_row_is_stored() -> None:
    assert _counted(compare([taken()], [row()], [])) == "stored=1"


def test_a_sample_without_a_row_is_lost() -> None:
    assert _counted(compare([taken()], [], [])) == "lost=1"


def test_a_good_sample_in_quarantine_is_lost() -> None:
    refused = InQuarantine("EX-R-001", KEY, "")
    assert _counted(compare([taken()], [], [refused])) == "lost=1"


def test_a_second_row_is_a_duplicate() -> None:
    second = row(time_ns=1_790_000_001_000_000_124)
    assert _counted(compare([taken()], [row(), second], [])) == "stored=1 duplicate=1"


@pytest.mark.parametrize(
    "changes",
    [
        {"fields": {"pm1": 1.5000000000000002, "lit": 1, "epoch": EPOCH, "seq": 0}},
        {"fields": {"pm1": 1.5, "lit": 0, "epoch": EPOCH, "seq": 0}},
        {"fields": {"pm1": 1.5, "epoch": EPOCH, "seq": 0}},
        {"fields": {"pm1": 1.5, "lit": 1, "epoch": EPOCH, "seq": 0, "quality": "bad:fault"}},
        {"time_ns": 1_790_000_001_001_000_123},
        {"site": "elsewhere"},
        {"county": "tw-tao"},
        {"domain": "parking"},
    ],
)
def test_a_row_that_differs_is_altered(changes: dict[str, object]) -> None:
    assert found(**changes) == "altered=1"


def test_a_row_of_nobody_is_foreign() -> None:
    stranger = row(device="air-2")
    assert _counted(compare([taken()], [row(), stranger], [])) == "stored=1 foreign=1"


@pytest.mark.parametrize("told", ["", "EX-R-001"])
def test_a_stored_sample_whose_gateway_was_not_told_so_is_untold(told: str) -> None:
    assert _counted(compare([taken(told=told)], [row()], [])) == "untold=1"


def test_what_is_to_be_refused_is_in_quarantine_with_its_id() -> None:
    sample = taken(refused_with="EX-R-008", told="EX-R-008")
    right, wrong = InQuarantine("EX-R-008", KEY, ""), InQuarantine("EX-R-001", KEY, "")
    assert _counted(compare([sample], [], [right])) == "refused=1"
    assert _counted(compare([sample], [], [wrong])) == "lost=1"
    assert _counted(compare([sample], [], [])) == "lost=1"
    assert _counted(compare([sample], [row()], [right])) == "refused=1 foreign=1"
    untold = msgspec.structs.replace(sample, told="stored")
    assert _counted(compare([untold], [], [right])) == "untold=1"


def test_a_payload_without_samples_is_found_by_its_digest() -> None:
    sample = taken(refused_with="EX-R-001", digest="ab" * 32, told="EX-R-001")
    assert _counted(compare([sample], [], [InQuarantine("EX-R-001", None, "ab" * 32)])) == (
        "refused=1"
    )
    assert _counted(compare([sample], [], [InQuarantine("EX-R-001", None, "cd" * 32)])) == "lost=1"


def test_an_account_of_nothing_is_not_clean() -> None:
    assert not compare([], [], []).is_clean


def test_the_longest_gap_is_between_two_that_follow_each_other() -> None:
    assert longest_gap_s([5.0, 1.0, 2.0]) == 3.0
    assert longest_gap_s([]) == 0.0


def test_poison_is_another_every_time_and_the_seeds_alone() -> None:
    kinds = poisons("tw-tpe", "chaos", random.Random(1))
    again = poisons("tw-tpe", "chaos", random.Random(1))
    assert [one.device for one in kinds] == [one.device for one in again]
    assert len({one.device for one in kinds}) == len(kinds) == len({one.kind for one in kinds})


# ------------------------------------------------------------------------------------------------------- twins


def readings(*values: float, excused: tuple[int, ...] = ()) -> list[Reading]:
    return [
        Reading(1000 * place, {"pm1": value}, place in excused)
        for place, value in enumerate(values)
    ]


def rows(*values: float, late_ms: int = 0) -> list[Row]:
    return [Row(1, seq, 1000 * seq + late_ms, {"pm1": value}) for seq, value in enumerate(values)]


def counts(truth: list[Reading], stored: list[Row]) -> tuple[int, int, int, int]:
    """Return (stored, lost, duplicate, in hand)."""
    account = matched(truth, stored)
    assert account.taken == len(truth)
    return account.stored, account.lost, account.duplicate, account.in_hand


def test_readings_in_order_with_their_values_are_stored() -> None:
    assert counts(readings(1, 1, 2), rows(1, 1, 2, late_ms=900)) == (3, 0, 0, 0)


def test_a_missing_row_is_a_loss_unless_its_agent_was_dead() -> None:
    stored = [row for row in rows(1, 2, 3) if row.seq != 1]
    assert counts(readings(1, 2, 3), stored) == (2, 1, 0, 0)
    assert counts(readings(1, 2, 3, excused=(1,)), stored) == (2, 0, 0, 1)


def test_of_equal_readings_the_one_that_was_in_hand_is_excused() -> None:
    stored = [row for row in rows(1, 1, 1) if row.seq != 1]
    assert counts(readings(1, 1, 1, excused=(1,)), stored) == (2, 0, 0, 1)


def test_a_row_of_no_reading_and_a_second_row_are_duplicates() -> None:
    assert counts(readings(1, 2), rows(1, 2, 9)) == (2, 0, 1, 0)
    assert counts(readings(1, 2), [*rows(1, 2), rows(1)[0]]) == (2, 0, 1, 0)


def test_an_altered_value_is_a_loss_and_a_duplicate() -> None:
    assert counts(readings(1, 2, 3), rows(1, 2.5, 3)) == (2, 1, 1, 0)


def test_rows_out_of_order_are_wrong() -> None:
    assert counts(readings(1, 2), rows(2, 1)) != (2, 0, 0, 0)
