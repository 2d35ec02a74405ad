"""A machine's clocks, moved by hand."""

from __future__ import annotations

from typing import Literal

from edge_agent.clock import Clock, ClockSettings, Kernel, System

T0_MS = 1_795_000_000_000
"""What a right clock says when a stepped one begins."""


class WrongTime(System):
    """The machine's clocks, but for a wall clock that is `wrong_ms` off and what the kernel says of it."""

    wrong_ms = 0
    synchronised = True

    def kernel(self) -> Kernel:
        return Kernel(self.synchronised, 0.0)

    def wall_ms(self) -> int:
        return super().wall_ms() + self.wrong_ms


class SteppedTime:
    """One boot of a machine. Shape: `wrong_ms` is how far its wall clock is from the true time."""

    def __init__(
        self, boot_id: str = "boot-1", *, true_ms: int = T0_MS, up_ms: int = 60_000
    ) -> None:
        self.boot_id = boot_id
        self.true_ms = true_ms
        self.up_ms = up_ms
        self.wrong_ms = 0
        self.kernel_offset_s = 0.0
        self.synchronised = True

    def step(self, seconds: float) -> None:
        """Let time pass."""
        self.true_ms += round(seconds * 1000)
        self.up_ms += round(seconds * 1000)

    def wall_ms(self) -> int:
        return self.true_ms + self.wrong_ms

    def boot_ms(self) -> int:
        return self.up_ms

    def kernel(self) -> Kernel:
        return Kernel(self.synchronised, self.kernel_offset_s)

    def rebooted(self, boot_id: str, *, off_s: float = 10.0) -> SteppedTime:
        """Return the machine's clocks after a power cut."""
        return SteppedTime(boot_id, true_ms=self.true_ms + round(off_s * 1000), up_ms=5_000)

    def clock(self, *, by_kernel: bool = False, wait_s: float = 300.0) -> Clock:
        """Return a clock that reads this."""
        synchronised: Literal["kernel", "assumed"] = "kernel" if by_kernel else "assumed"
        return Clock(ClockSettings(synchronised=synchronised, wait_s=wait_s), self)
