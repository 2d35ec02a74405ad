"""The clock: what time it is, and whether anybody may believe it.

Samples are stamped with the boot clock (CLOCK_BOOTTIME), which never jumps and goes on in suspension, and dated by what
was last known of the way from there to UTC. So a clock that is not known yet, or that somebody sets by hand, falsifies
no time: before it is known there is no date, afterwards every moment of this boot has one.
"""

from __future__ import annotations

import ctypes
import logging
import threading
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, Protocol

import msgspec

log = logging.getLogger(__name__)

KNOWN_FROM_MS = 1_767_225_600_000
"""2026-01-01: what says less is no clock that anybody set."""
JUMP_MS = 1000
_ASK_EVERY_MS = 1000  # the kernel, whether the clock is synchronised
_AT_ONCE_MS = 5  # two clocks are read within this, or read again
_TRIES = 5

_STA_UNSYNC = 0x0040
_STA_NANO = 0x2000
_TIME_ERROR = 5


class ClockSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When the system's clock is believed, and how long samples wait for that.

    `kernel`: once the kernel says that it is synchronised, as chrony, ntpd and timesyncd make it. `assumed`: whenever
    it says 2026 or later.
    """

    synchronised: Literal["kernel", "assumed"] = "assumed"
    wait_s: Annotated[float, msgspec.Meta(ge=0, le=86400)] = 300.0


class Kernel(NamedTuple):
    """What the kernel knows of its clock."""

    synchronised: bool
    offset_s: float


class TimeSource(Protocol):
    """Where the clock reads; a test steps its own."""

    @property
    def boot_id(self) -> str: ...

    def wall_ms(self) -> int: ...

    def boot_ms(self) -> int: ...

    def kernel(self) -> Kernel: ...


class _Timex(ctypes.Structure):
    """Source: struct timex, adjtimex(2)."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_long * 32),  # more than there is, in every layout
    )


class System:
    """The machine's own clocks."""

    def __init__(self) -> None:
        """Read which boot this is; where that cannot be told, every start counts as one."""
        try:
            self.boot_id = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        except OSError:
            self.boot_id = str(uuid.uuid4())
        self._libc = ctypes.CDLL(None)

    def wall_ms(self) -> int:
        """Return what the system's clock says."""
        return time.time_ns() // 1_000_000

    def boot_ms(self) -> int:
        """Return the time since the boot, suspension included."""
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000

    def kernel(self) -> Kernel:
        """Ask the kernel; where it does not answer its clock is not synchronised."""
        timex = _Timex()
        state = self._libc.adjtimex(ctypes.byref(timex))
        per_second = 1e9 if timex.status & _STA_NANO else 1e6
        is_synchronised = 0 <= state != _TIME_ERROR and not timex.status & _STA_UNSYNC
        return Kernel(is_synchronised, timex.offset / per_second)


class Clock:
    """The time for everything in the agent; safe to ask from any thread.

    Shape: `jumped` counts how often the system's clock was set by more than a second, `jump_s` is the last such step.
    """

    def __init__(
        self,
        settings: ClockSettings | None = None,
        source: TimeSource | None = None,
        memory: Path | None = None,
    ) -> None:
        """`memory` is a small file that lets a restarted agent believe what this boot has known before."""
        self.settings = settings or ClockSettings()
        self.jumped = 0
        self.jump_s = 0.0
        self._source = source or System()
        self.boot_id = self._source.boot_id
        self._memory = memory
        self._lock = threading.Lock()
        self._wall_less_boot_ms: int | None = None  # as last seen, believed or not
        self._offset_ms = self._remembered()  # from the boot clock to UTC, once known
        self._kernel = Kernel(False, 0.0)
        self._asked_ms: int | None = None
        self.look()

    @property
    def known(self) -> bool:
        """Whether moments of this boot can be dated."""
        self.look()
        return self._offset_ms is not None

    @property
    def offset_s(self) -> float | None:
        """How far the system's clock is off, as far as that can be told."""
        self.look()
        if self._offset_ms is None or self._wall_less_boot_ms is None:
            return None
        if self.settings.synchronised == "kernel" and self._kernel.synchronised:
            return self._kernel.offset_s
        return (self._wall_less_boot_ms - self._offset_ms) / 1000

    def boot_ms(self) -> int:
        """Return the time since the boot."""
        return self._source.boot_ms()

    def wall_ms(self) -> int:
        """Return what the system's clock says, right or wrong."""
        return self._source.wall_ms()

    def now_ms(self) -> int:
        """Return the time in milliseconds since 1970; before it is known, what the system's clock says."""
        now_ms = self.date(self.boot_ms())
        return self.wall_ms() if now_ms is None else now_ms

    def date(self, boot_ms: int) -> int | None:
        """Return when a moment of this boot was, None while nobody knows."""
        self.look()
        return None if self._offset_ms is None else boot_ms + self._offset_ms

    def look(self) -> None:
        """Compare the clocks: notice a jump, and take over what may be believed."""
        with self._lock:
            wall_less_boot_ms, boot_ms, within_ms = self._compared()
            before_ms = self._wall_less_boot_ms
            has_jumped = (
                before_ms is not None and abs(wall_less_boot_ms - before_ms) > JUMP_MS + within_ms
            )
            if before_ms is None or has_jumped or within_ms <= _AT_ONCE_MS:
                self._wall_less_boot_ms = wall_less_boot_ms
            if has_jumped and before_ms is not None:
                self.jumped += 1
                self.jump_s = (wall_less_boot_ms - before_ms) / 1000
                log.warning("the system's clock jumped", extra={"by_s": self.jump_s})
            if self._is_believed(boot_ms, ask=has_jumped):
                self._believe(self._wall_less_boot_ms or wall_less_boot_ms)
            elif before_ms is None and self._offset_ms is None:
                log.warning("the time is not known yet; samples wait for it")

    def _compared(self) -> tuple[int, int, int]:
        """Return wall less boot clock, the boot clock, and within which time both were read."""
        for _ in range(_TRIES):
            before_ms, wall_ms, after_ms = (
                self._source.boot_ms(),
                self._source.wall_ms(),
                self._source.boot_ms(),
            )
            if after_ms - before_ms <= _AT_ONCE_MS:
                break
        return wall_ms - before_ms, before_ms, after_ms - before_ms

    def _is_believed(self, boot_ms: int, *, ask: bool) -> bool:
        if self.settings.synchronised == "assumed":
            return boot_ms + (self._wall_less_boot_ms or 0) >= KNOWN_FROM_MS
        if ask or self._asked_ms is None or boot_ms - self._asked_ms >= _ASK_EVERY_MS:
            self._asked_ms, before = boot_ms, self._kernel
            self._kernel = self._source.kernel()
            if before.synchronised and not self._kernel.synchronised:
                log.warning("the system's clock is not synchronised any more")
        return self._kernel.synchronised

    def _believe(self, offset_ms: int) -> None:
        before_ms, self._offset_ms = self._offset_ms, offset_ms
        if before_ms is None:
            log.info("the time is known")
        if before_ms is None or abs(offset_ms - before_ms) > JUMP_MS:
            self._remember()

    def _remembered(self) -> int | None:
        if self._memory is None:
            return None
        try:
            boot_id, offset_ms = self._memory.read_text("ascii").split()
            return int(offset_ms) if boot_id == self.boot_id else None
        except (OSError, ValueError):
            return None  # the first start, or a power cut: then this is another boot anyway

    def _remember(self) -> None:
        if self._memory is None:
            return
        new = self._memory.with_name(f"{self._memory.name}.new")
        with suppress(OSError):  # a disk that is full costs the next start a wait, nothing else
            self._memory.parent.mkdir(parents=True, exist_ok=True)
            new.write_text(f"{self.boot_id} {self._offset_ms}\n", "ascii")
            new.replace(self._memory)
