"""The clock: what is believed, and what a moment of this boot is worth before and after."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_agent.clock import KNOWN_FROM_MS, Clock, ClockSettings, System
from tests.stepped_time import T0_MS, SteppedTime


def test_the_machines_own_clocks_can_be_read() -> None:
    source = System()
    before_ms = source.boot_ms()
    assert 0 < before_ms <= source.boot_ms()
    assert source.wall_ms() > KNOWN_FROM_MS
    assert len(source.boot_id) == 36
    assert source.boot_id == System().boot_id
    assert isinstance(source.kernel().synchronised, bool)
    assert abs(source.kernel().offset_s) < 1
    assert Clock().known, "by default a clock of 2026 or later is believed"


def test_a_moment_before_the_clock_was_known_is_dated_once_it_is() -> None:
    time = SteppedTime()
    time.wrong_ms, time.synchronised = -3_600_000 * 24 * 300, False
    clock = time.clock(by_kernel=True)
    measured_ms = clock.boot_ms()
    assert (clock.known, clock.date(measured_ms), clock.offset_s) == (False, None, None)
    time.step(90)
    time.wrong_ms, time.synchronised = 0, True
    assert clock.known
    assert clock.date(measured_ms) == T0_MS
    assert clock.now_ms() == T0_MS + 90_000


def test_who_sets_the_clock_by_hand_falsifies_no_time(caplog: pytest.LogCaptureFixture) -> None:
    time = SteppedTime()
    clock = time.clock(by_kernel=True)
    assert clock.now_ms() == T0_MS
    time.wrong_ms, time.synchronised = -7_200_000, False  # as date(1) does it
    time.step(1)
    assert clock.now_ms() == T0_MS + 1000
    assert clock.offset_s == -7200
    assert (clock.jumped, clock.jump_s) == (1, -7200)
    for _ in range(5):
        time.step(1)
        clock.look()
    assert clock.jumped == 1
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == [
        "the system's clock jumped",
        "the system's clock is not synchronised any more",
    ]


def test_a_synchronised_clock_that_is_stepped_is_followed() -> None:
    time = SteppedTime()
    clock = time.clock(by_kernel=True)
    time.wrong_ms = 30_000
    assert clock.now_ms() == T0_MS + 30_000
    time.wrong_ms = 0  # the server that was wrong is right again
    assert clock.now_ms() == T0_MS
    assert clock.jumped == 2


def test_a_slewed_clock_does_not_jump() -> None:
    time = SteppedTime()
    clock = time.clock()
    for _ in range(100):
        time.step(1)
        time.wrong_ms += 40
        assert clock.known
    assert clock.jumped == 0
    assert clock.now_ms() == time.wall_ms()


def test_the_kernels_own_estimate_is_told_while_it_is_synchronised() -> None:
    time = SteppedTime()
    time.kernel_offset_s = 0.003
    assert time.clock(by_kernel=True).offset_s == 0.003
    assert time.clock().offset_s == 0


def test_a_year_before_ours_is_no_time(caplog: pytest.LogCaptureFixture) -> None:
    time = SteppedTime(true_ms=KNOWN_FROM_MS - 1)
    clock = time.clock()
    for _ in range(3):
        assert not clock.known
    assert caplog.text.count("the time is not known yet") == 1
    time.step(0.002)
    assert clock.known


def test_a_restarted_agent_believes_what_this_boot_has_known(tmp_path: Path) -> None:
    memory, time = tmp_path / "state" / "clock", SteppedTime()
    settings = ClockSettings(synchronised="kernel")
    assert Clock(settings, time, memory).known
    time.synchronised = False  # hours without the uplink
    time.wrong_ms = 5_000_000
    time.step(10)
    again = Clock(settings, time, memory)
    assert again.known
    assert again.now_ms() == T0_MS + 10_000
    assert again.offset_s == 5000
    next_boot = time.rebooted("boot-2")
    next_boot.synchronised = False
    assert not Clock(settings, next_boot, memory).known


@pytest.mark.parametrize("content", [b"", b"boot-1", b"boot-1 x", b"\xff\xfe\x00", b"boot-1 1 2"])
def test_a_memory_that_is_none_is_no_matter(tmp_path: Path, content: bytes) -> None:
    memory, time = tmp_path / "clock", SteppedTime()
    memory.write_bytes(content)
    time.synchronised = False
    assert not Clock(ClockSettings(synchronised="kernel"), time, memory).known


def test_a_reader_that_was_held_up_sees_no_jump() -> None:
    class HeldUp(SteppedTime):
        """Between two looks at its clocks two seconds pass."""

        def wall_ms(self) -> int:
            self.step(2)
            return super().wall_ms()

    time = HeldUp()
    clock = time.clock()
    for _ in range(5):
        clock.look()
    assert clock.jumped == 0
