"""`python -m tests.chaos`: faults while data flows, then the store against the truth.

The exit status is 0 when every sample is accounted for, 1 when one is not, 2 when the run itself failed.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
from pathlib import Path

import msgspec
from rich.console import Console

from exchange.runtime import log_to_stderr
from tests.chaos.places import FaultFailed, enter
from tests.chaos.plan import TRACKS, planned
from tests.chaos.run import Run, Settings
from tests.chaos.tables import show_plan, show_report


def main() -> int:
    """Run; return the exit status."""
    asked = _parser().parse_args()
    try:
        plan = planned(asked.seed, asked.minutes)
    except ValueError as error:
        _parser().error(str(error))
    console = Console(width=None if sys.stdout.isatty() else 120)
    if asked.plan:
        show_plan(console, plan)
        return 0
    influxd = os.environ.get("ONESTREET_INFLUXD", "")
    if not os.access(influxd, os.X_OK):
        _parser().error(
            f"ONESTREET_INFLUXD={influxd!r} must name the program influxd of InfluxDB 2"
        )
    enter([sys.executable, "-m", "tests.chaos", *sys.argv[1:]])
    folder = asked.folder or Path(tempfile.mkdtemp(prefix="onestreet-chaos-"))
    folder.mkdir(parents=True, exist_ok=True)
    log_to_stderr("ERROR")
    console.print(f"seed {asked.seed}, {asked.minutes:g} minutes, {len(plan)} faults, in {folder}")
    show_plan(console, plan)
    settings = Settings(
        seed=asked.seed,
        minutes=asked.minutes,
        influxd=influxd,
        folder=folder.resolve(),
        workers=asked.workers,
        gateways=asked.gateways,
        devices=asked.devices,
        tracks=frozenset(asked.only),
    )
    try:
        return _run(console, settings)
    finally:
        _hand_back(folder)


def _run(console: Console, settings: Settings) -> int:
    try:
        report = asyncio.run(Run(settings).run())
    except (FaultFailed, ExceptionGroup) as error:
        first = _first(error)
        if not isinstance(first, FaultFailed):
            raise
        console.print(f"the run failed: {first}", style="bold red", markup=False, soft_wrap=True)
        return 2
    (settings.folder / "report.json").write_bytes(
        msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n"
    )
    show_report(console, report)
    console.print(f"everything is in {settings.folder}", soft_wrap=True)
    return 1 if report.wrong else 0


def _hand_back(folder: Path) -> None:
    """What was written through sudo belongs to who asked for it."""
    owner = os.environ.get("SUDO_UID"), os.environ.get("SUDO_GID")
    if owner[0] and owner[1]:
        for path in (folder, *folder.rglob("*")):
            os.chown(path, int(owner[0]), int(owner[1]), follow_symlinks=False)


def _first(error: Exception) -> Exception:
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="chaos", description="faults while data flows")
    parser.add_argument("--seed", type=int, default=1, help="the same seed makes the same faults")
    parser.add_argument("--minutes", type=float, default=2.0, help="how long faults are made")
    parser.add_argument("--workers", type=int, default=1, help="of ingest (default: 1)")
    parser.add_argument("--gateways", type=int, default=8, help="of the load (default: 8)")
    parser.add_argument("--devices", type=int, default=24, help="of each of them (default: 24)")
    parser.add_argument("--folder", type=Path, help="for logs and report.json (default: a new one)")
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        choices=list(TRACKS),
        metavar="TRACK",
        help=f"only faults of {', '.join(TRACKS)}; may be repeated: narrows a failure down",
    )
    parser.add_argument("--plan", action="store_true", help="show the faults of the seed alone")
    return parser


if __name__ == "__main__":
    sys.exit(main())
