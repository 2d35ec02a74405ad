"""The real agent but for one sample: `python mutant_agent.py skip|double|retime|silence CONFIG`.

It does what a subtly broken gateway would do to one sample of `air-001` (`silence`: to all of them); the audit has to
see it.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

from edge_agent.agent import main
from edge_agent.intake import Intake
from exchange.readings import Value

VICTIM, AT = "air-001", 3
SHIFT_S = 0.7

honest: Callable[..., Awaitable[None]] = Intake.put
seen = 0


async def put(
    self: Intake, domain: str, device: str, metrics: dict[str, Value], quality: str = ""
) -> None:
    """Hand in one sample, unless it is the one."""
    global seen
    seen += device == VICTIM
    if device != VICTIM or (seen != AT and sys.argv[1] != "silence"):
        await honest(self, domain, device, metrics, quality)
        return
    match sys.argv[1]:
        case "skip" | "silence":
            pass
        case "double":
            await honest(self, domain, device, metrics, quality)
            await honest(self, domain, device, metrics, quality)
        case "retime":
            clock = self._clock
            self._clock = lambda: clock() + SHIFT_S
            await honest(self, domain, device, metrics, quality)
            self._clock = clock


if __name__ == "__main__":
    Intake.put = put  # type: ignore[method-assign]  # the mutation
    sys.exit(main(Path(sys.argv[2])))
