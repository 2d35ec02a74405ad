"""`onestreet demo`."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from rich.console import Console

from exchange.errors import ConfigError
from exchange.runtime import stop_on_signals
from onestreet.demo.audit import Audit
from onestreet.demo.run import VICTIMS, Demo, Kill, report
from onestreet.demo.view import draw_audit, show
from simulators.plan import street_plan


def parser() -> argparse.ArgumentParser:
    """Return the command's arguments."""
    parser = argparse.ArgumentParser(
        prog="onestreet demo", description="A simulated town, end to end, with an audit."
    )
    parser.add_argument(
        "--seconds",
        type=_positive,
        help="run this long, then drain and audit (default: until Ctrl-C)",
    )
    parser.add_argument("--report", type=Path, help="write the audit to this JSON file")
    parser.add_argument(
        "--store",
        default="",
        metavar="URL",
        help="influxdb://HOST:PORT/ORG/BUCKET, the token in INFLUX_TOKEN "
        "(default: SQLite in the demo's folder)",
    )
    parser.add_argument(
        "--folder", type=Path, help="where everything is kept (default: demo-runs/DATE-TIME)"
    )
    parser.add_argument(
        "--seed", type=int, default=1, help="the same seed makes the same town (default: 1)"
    )
    parser.add_argument(
        "--lamps", type=_count, default=12, help="street lamps on one Modbus RTU bus (default: 12)"
    )
    parser.add_argument(
        "--bays", type=_count, default=8, help="parking bays by Bluetooth (default: 8)"
    )
    parser.add_argument(
        "--air", type=_count, default=3, help="air boxes, each on a serial line (default: 3)"
    )
    parser.add_argument(
        "--speed", type=_positive, default=60.0, help="town seconds a second (default: 60)"
    )
    parser.add_argument(
        "--kill",
        type=_kill,
        action="append",
        default=[],
        metavar="WHO@SECONDS",
        help="kill -9 agent, ingest or broker (whose memory is wiped) after some seconds; "
        "may be repeated",
    )
    return parser


def run(argv: Sequence[str]) -> int:
    """Run the demo; 0 when nothing was lost, nothing came twice and every device was heard."""
    arguments = parser().parse_args(argv)
    if not arguments.lamps + arguments.bays + arguments.air:
        parser().error("a town needs a device: --lamps, --bays or --air above 0")
    if arguments.report:
        _check_report(arguments.report)
    folder = arguments.folder or Path("demo-runs") / datetime.now().astimezone().strftime(
        "%Y%m%d-%H%M%S"
    )
    plan = street_plan(
        arguments.seed,
        lamps=arguments.lamps,
        bays=arguments.bays,
        air=arguments.air,
        speed=arguments.speed,
    )
    demo = Demo(plan, folder.resolve(), store_url=arguments.store, kills=arguments.kill)
    audit = asyncio.run(_run(demo, arguments.seconds, Console()))
    if arguments.report:
        arguments.report.write_bytes(report(audit))
    return 0 if audit.passed else 1


async def _run(demo: Demo, seconds: float | None, console: Console) -> Audit:
    stop = stop_on_signals()
    if console.is_terminal:
        demo.readers.append(asyncio.create_task(show(demo, console)))
    else:
        console.print(f"demo in {demo.folder}")
    audit = await demo.run(stop, seconds)
    if console.is_terminal:
        console.print(draw_audit(audit))
    words = f"taken {audit.taken}, stored {audit.stored}, refused {audit.refused}"
    words += f", lost {audit.lost}, duplicate {audit.duplicate}"
    console.print(words + (f", in hand at a kill {audit.in_hand}" if audit.in_hand else ""))
    if silent := [name for name, device in audit.devices.items() if not device.stored]:
        console.print(f"nothing was heard of {', '.join(silent)}")
    for note in demo.notes:
        console.print(note, soft_wrap=True)
    console.print(f"everything is in {demo.folder}", soft_wrap=True)
    sys.stdout.flush()
    return audit


def _check_report(path: Path) -> None:
    """Find out now, not after the run, whether the report can be written. Raises: ConfigError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("ab").close()
    except OSError as error:
        allowed = f"must be a file that can be written: {error.strerror}"
        raise ConfigError("demo", "report", str(path), allowed) from error


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) > 64:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to 64")
    return int(text)


def _kill(text: str) -> Kill:
    victim, _, after = text.partition("@")
    if victim not in VICTIMS:
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected WHO@SECONDS, WHO one of {', '.join(VICTIMS)}"
        )
    return Kill(victim, _positive(after))  # type: ignore[arg-type]  # one of them
