"""The hand: what was being read at two crashes is blamed, and nothing else is."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mqtt5
import pytest

from ingest.hand import MAX_CRASHES, Hand


def message(payload: bytes) -> mqtt5.PublishPacket:
    return mqtt5.PublishPacket("city/v1/tw-tpe/street/gw-1/air/aq-1/readings", payload)


@contextmanager
def opened(path: Path) -> Iterator[Hand]:
    """A hand for as long as its process lives: what it holds at the end was in hand at a crash."""
    hand = Hand(path)
    hand.open()
    try:
        yield hand
    finally:
        hand.close()


def crash(path: Path, payload: bytes, times: int = 2) -> None:
    """Die with a message in hand."""
    for _ in range(times):
        with opened(path) as hand:
            assert hand.takes(message(payload))


def test_an_orderly_end_blames_nothing(tmp_path: Path) -> None:
    for _ in range(3):
        with opened(tmp_path / "hand") as hand:
            assert hand.takes(message(b"a"))
            hand.release()


def test_one_crash_may_be_chance(tmp_path: Path) -> None:
    for number in range(20):  # every kill meets another
        crash(tmp_path / "hand", b"%d" % number, times=1)
    with opened(tmp_path / "hand") as hand:
        assert all(hand.takes(message(b"%d" % number)) for number in range(20))


def test_what_was_in_hand_at_two_crashes_stays_to_blame(tmp_path: Path) -> None:
    crash(tmp_path / "hand", b"a")
    for _ in range(3):  # it may crash again before the broker has its PUBACK
        with opened(tmp_path / "hand") as hand:
            assert not hand.takes(message(b"a"))
            assert hand.takes(message(b"b"))
            hand.release()


def test_the_same_payload_elsewhere_is_another_message(tmp_path: Path) -> None:
    crash(tmp_path / "hand", b"a")
    elsewhere = mqtt5.PublishPacket("city/v1/tw-tpe/street/gw-1/air/aq-2/readings", b"a")
    with opened(tmp_path / "hand") as hand:
        assert hand.takes(elsewhere)


def test_the_list_is_bounded_and_forgets_the_oldest(tmp_path: Path) -> None:
    for number in range(MAX_CRASHES // 2 + 1):
        crash(tmp_path / "hand", b"%d" % number)
    with opened(tmp_path / "hand") as hand:
        assert hand.takes(message(b"0"))
        assert not hand.takes(message(b"%d" % (MAX_CRASHES // 2)))
    assert (tmp_path / "hand").stat().st_size < 100 * MAX_CRASHES


@pytest.mark.parametrize("left", [b"", b"\0\xff" * 200, b"short", b"short\n\nx\n"])
def test_a_spoilt_note_is_begun_anew(tmp_path: Path, left: bytes) -> None:
    path = tmp_path / "hand"
    path.write_bytes(left)
    crash(path, b"a")
    with opened(path) as hand:
        assert not hand.takes(message(b"a"))


def test_without_a_place_to_write_everything_is_read(tmp_path: Path) -> None:
    (tmp_path / "hand").mkdir()
    with opened(tmp_path / "hand") as hand:
        assert hand.takes(message(b"a"))
        hand.release()


def test_on_a_full_disk_everything_is_read(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))  # no file of ours may grow
    try:
        hand = Hand(tmp_path / "hand")
        hand.open()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / "hand").stat().st_size == 0
    assert hand.takes(message(b"a"))
    hand.release()
    hand.close()
