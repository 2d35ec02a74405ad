"""An edge agent whose clock goes wrong as a file says: `python -m tests.chaos.shifted_agent OFFSET_FILE CONFIG`.

libfaketime would do it from outside, but makes the sleeps of Python 3.11 fail and its threads spin.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path


def main(offset: Path) -> int:
    """Run the agent; the file holds milliseconds that its clock is ahead."""
    right_ns = time.time_ns

    def wrong_ns() -> int:
        return right_ns() + int(offset.read_text()) * 1_000_000

    time.time_ns = wrong_ns
    time.time = lambda: wrong_ns() / 1e9
    from edge_agent.cli import run  # its defaults take the clock when they are imported

    return run(["run", *sys.argv[2:]])


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
