"""An edge agent whose clock goes wrong: `python -m tests.hasty_agent OFFSET_FILE CONFIG [MODULE.NAME=NUMBER …]`.

The file holds milliseconds that its clock is ahead; the constants that are named are what its waits are made of.
libfaketime would do it from outside, but makes the sleeps of Python 3.11 fail and its threads spin.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path


def main(offset: Path, config: Path, constants: Iterable[str]) -> int:
    """Run the agent."""
    right_ns = time.time_ns
    ahead_ms = 0

    def wrong_ns() -> int:
        nonlocal ahead_ms
        ahead_ms = int(offset.read_text() or ahead_ms)  # empty while it is written
        return right_ns() + ahead_ms * 1_000_000

    time.time_ns = wrong_ns
    time.time = lambda: wrong_ns() / 1e9
    agent = import_module("edge_agent.agent")  # only now: a default may be the clock
    for constant in constants:
        name, _, number = constant.partition("=")
        module, _, name = name.rpartition(".")
        assert hasattr(import_module(module), name), constant
        setattr(import_module(module), name, float(number))
    status: int = agent.main(config)
    return status


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]))
