"""The hand: what was being read at two crashes is blamed, and nothing else is."""

from __future__ import annotations

import resource
from pathlib import Path

import mqtt5
import pytest

from ingest.hand import MAX_CRASHES, Hand


def message(payload: bytes) -> mqtt5.PublishPacket:
    return mqtt5.PublishPacket("city/v1/tw-tpe/street/gw-1/air/aq-1/readings", payload)


def opened(path: Path) -> Hand:
    hand = Hand(path)
    hand.open()
    return hand


def crash(path: Path, payload: bytes, times: int = 2) -> None:
    """Die with a message in hand."""
    for _ in range(times):
        assert opened(path).takes(message(payload))


def test_an_orderly_end_blames_nothing(tmp_path: Path) -> None:
    hand = opened(tmp_path / "hand")
    assert hand.takes(message(b"a"))
    hand.release()
    hand.close()
    assert opened(tmp_path / "hand").takes(message(b"a"))


def test_what_was_released_before_a_crash_is_not_to_blame(tmp_path: Path) -> None:
    hand = opened(tmp_path / "hand")
    hand.takes(message(b"a"))
    hand.release()
    assert opened(tmp_path / "hand").takes(message(b"a"))


def test_one_crash_may_be_chance(tmp_path: Path) -> None:
    for number in range(20):  # every kill meets another
        crash(tmp_path / "hand", b"%d" % number, times=1)
    hand = opened(tmp_path / "hand")
    assert all(hand.takes(message(b"%d" % number)) for number in range(20))


def test_what_was_in_hand_at_two_crashes_stays_to_blame(tmp_path: Path) -> None:
    crash(tmp_path / "hand", b"a")
    for _ in range(3):  # it may crash again before the broker has its PUBACK
        hand = opened(tmp_path / "hand")
        assert not hand.takes(message(b"a"))
        assert hand.takes(message(b"b"))
        hand.release()


def test_the_same_payload_elsewhere_is_another_message(tmp_path: Path) -> None:
    crash(tmp_path / "hand", b"a")
    elsewhere = mqtt5.PublishPacket("city/v1/tw-tpe/street/gw-1/air/aq-2/readings", b"a")
    assert opened(tmp_path / "hand").takes(elsewhere)


def test_the_list_is_bounded_and_forgets_the_oldest(tmp_path: Path) -> None:
    for number in range(MAX_CRASHES // 2 + 1):
        crash(tmp_path / "hand", b"%d" % number)
    hand = opened(tmp_path / "hand")
    assert hand.takes(message(b"0"))
    assert not hand.takes(message(b"%d" % (MAX_CRASHES // 2)))
    assert (tmp_path / "hand").stat().st_size < 100 * MAX_CRASHES


@pytest.mark.parametrize("left", [b"", b"\0\xff" * 200, b"short", b"short\n\nx\n"])
def test_a_spoilt_note_is_begun_anew(tmp_path: Path, left: bytes) -> None:
    path = tmp_path / "hand"
    path.write_bytes(left)
    crash(path, b"a")
    assert not opened(path).takes(message(b"a"))


def test_without_a_place_to_write_everything_is_read(tmp_path: Path) -> None:
    (tmp_path / "hand").mkdir()
    hand = opened(tmp_path / "hand")
    assert hand.takes(message(b"a"))
    hand.release()
    hand.close()


def test_on_a_full_disk_everything_is_read(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))  # no file of ours may grow
    try:
        hand = opened(tmp_path / "hand")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / "hand").stat().st_size == 0
    assert hand.takes(message(b"a"))
    hand.release()
    hand.close()
