"""What fails again and again is said once, and so is its end; what flaps floods no log."""

from __future__ import annotations

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exchange.trouble import QUIET_S, Trouble


class Watched:
    """A trouble on a clock that the test turns, and the records of its log."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.records: list[logging.LogRecord] = []
        log = logging.Logger("watched")  # noqa: LOG001 - one of its own for each example
        log.addFilter(self._keep)
        self.trouble = Trouble(log, "it fails", "it works again", clock_s=lambda: self.now_s)

    def _keep(self, record: logging.LogRecord) -> bool:
        self.records.append(record)
        return False

    @property
    def said(self) -> list[str]:
        return [record.getMessage() for record in self.records]


@pytest.fixture
def watched() -> Watched:
    return Watched()


def test_a_beginning_and_an_end_are_said_once(watched: Watched) -> None:
    watched.trouble.over()
    for _ in range(50):
        watched.trouble.report("no answer", url="there")
        watched.now_s += 7
    for _ in range(50):
        watched.trouble.over(url="there")
    assert watched.said == ["it fails: no answer", "it works again"]
    began, ended = (vars(record) for record in watched.records)
    assert (began["why"], began["failures"], began["url"]) == ("no answer", 1, "there")
    assert (ended["lasted_s"], ended["failures"], ended["url"]) == (350, 50, "there")


def test_another_reason_is_said_when_the_first_has_had_its_time(watched: Watched) -> None:
    watched.trouble.report("no answer")
    for number in range(100):
        watched.now_s += 1
        watched.trouble.report(f"reason {number % 2}")
    assert watched.said == ["it fails: no answer", "it fails: reason 1"]


def test_what_flaps_is_said_once_a_minute_with_its_number(watched: Watched) -> None:
    for _ in range(50):
        watched.trouble.report("no answer")
        watched.trouble.over()
        watched.now_s += 1
    assert watched.said == ["it fails: no answer", "it works again"]
    watched.now_s += QUIET_S
    watched.trouble.report("no answer")
    assert vars(watched.records[-1])["failures"] == 50


def test_what_stays_is_not_kept_back(watched: Watched) -> None:
    watched.trouble.report("no answer")
    watched.trouble.over()
    watched.now_s += 1
    watched.trouble.report("no answer")
    assert len(watched.said) == 2
    watched.now_s += QUIET_S
    watched.trouble.report("no answer")
    assert watched.said[2:] == ["it fails: no answer"]


@given(st.lists(st.tuples(st.sampled_from(["", "a", "b"]), st.floats(0, 30)), max_size=200))
def test_the_log_stays_within_its_bound_and_tells_the_truth_at_last(
    steps: list[tuple[str, float]],
) -> None:
    watched = Watched()
    for why, pause_s in steps:
        watched.now_s += pause_s
        watched.trouble.report(why) if why else watched.trouble.over()
    assert len(watched.said) <= 2 * (1 + watched.now_s / QUIET_S)
    watched.now_s += QUIET_S + 1
    watched.trouble.report("c")
    assert watched.said[-1] == "it fails: c"
    watched.trouble.over()
    assert watched.said[-1] == "it works again"
