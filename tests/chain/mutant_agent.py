"""The real agent with its intake altered: `mutant_agent.py KIND CONFIG` spoils one sample of one device.

The audit must find each of them, else it proves nothing.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from edge_agent.agent import main
from edge_agent.clock import Clock
from edge_agent.intake import Intake
from exchange.readings import Value

DEVICE, VICTIM = "bay-001", 3
MOVED_S = 0.7  # of a device that is heard every second: more than half its interval


class Ahead(Clock):
    """A clock that reads a moment of the future."""

    def boot_ms(self) -> int:
        return super().boot_ms() + round(1000 * MOVED_S)


class Spoiler:
    """Stands in for `Intake.put`."""

    def __init__(self, kind: str, crashed: Path) -> None:
        self._kind = "none" if crashed.exists() else kind
        self._crashed = crashed
        self._seen = 0
        self._put = Intake.put

    async def put(
        self,
        intake: Intake,
        domain: str,
        device: str,
        metrics: dict[str, Value],
        quality: str = "",
    ) -> None:
        self._seen += device == DEVICE
        if device == DEVICE and self._kind == "silence":
            return  # not one sample, but all of them
        if device != DEVICE or self._seen != VICTIM or self._kind == "none":
            await self._put(intake, domain, device, metrics, quality)
        elif self._kind == "double":
            for _ in range(2):
                await self._put(intake, domain, device, metrics, quality)
        elif self._kind == "move":
            right, intake._clock = intake._clock, Ahead()
            await self._put(intake, domain, device, metrics, quality)
            intake._clock = right
        elif self._kind == "alter":
            await self._put(intake, domain, device, metrics | {"distance": 9.0}, quality)
        elif self._kind == "crash":
            self._crashed.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        else:
            assert self._kind == "skip"


if __name__ == "__main__":
    config = Path(sys.argv[2])
    spoiler = Spoiler(sys.argv[1], config.with_name("crashed"))

    async def put(
        self: Intake, domain: str, device: str, metrics: dict[str, Value], quality: str = ""
    ) -> None:
        await spoiler.put(self, domain, device, metrics, quality)

    Intake.put = put  # type: ignore[method-assign]  # this is what a mutant is
    sys.exit(main(config))
