"""`python -m tests.fuzz`: play streams of a seed to ingest and account for everything in them; or play files again."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tests.fuzz.runs import replay, run


def main() -> int:
    """Return 1 when something was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("files", type=Path, nargs="*", help="streams to play again, and no others")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--start", type=int, default=0, help="number of the first stream")
    parser.add_argument("--count", type=int, default=50_000, help="how many (default %(default)s)")
    parser.add_argument("--jobs", type=int, default=2, help="processes (default %(default)s)")
    parser.add_argument("--folder", type=Path, default=Path("fuzz-findings"), help="for findings")
    asked = parser.parse_args()
    if asked.files:
        return replay(asked.files)
    return run(asked.seed, range(asked.start, asked.start + asked.count), asked.jobs, asked.folder)


if __name__ == "__main__":
    sys.exit(main())
