"""`python -m benchmarks [NAME…]`: measurements on this machine, with the machine's facts.

`make bench ARGS="…"` calls it with InfluxDB and Telegraf at hand.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from benchmarks import (
    bus,
    disk,
    drain,
    edge_drain,
    enrolment,
    first_sample,
    flash,
    footprint,
    fresh_clone,
    handshakes,
    ingest,
    latency,
    machine,
    nation,
    panels,
    rollups,
    tags,
    transactions,
    watch,
)
from benchmarks.backlog import Load
from benchmarks.processes import BenchmarkFailed

BENCHMARKS = {
    "ingest": "CPU per message and samples/s from a broker's backlog into InfluxDB, beside Telegraf",
    "latency": "publish to queryable at a steady pace, beside Telegraf at several flush intervals",
    "drain": "a backlog with live samples beside it: its rate, and what the live ones notice",
    "disk": "bytes per sample in InfluxDB, compacted, and in SQLite",
    "watch": "200,000 retained states: load, memory and CPU of the watch; false downs at lost adverts",
    "rollups": "hours and days: CPU, ours and InfluxDB's, of days at once, of a look, of an hour and of a night",
    "panels": "every query of pages and alerts in InfluxDB, of 160,000 lamps and a week (only when it is named)",
    "nation": "a third of a nation for an hour on this machine (only when it is named)",
    "handshakes": "TLS against plain: connections/s and CPU of each, and CPU per message once connected",
    "enrolment": "a new gateway: seconds from `gateway add` to its first stored sample",
    "first-sample": "`onestreet demo`: seconds from the command to the first stored sample",
    "fresh-clone": "`git clone` and `make demo`: seconds to the first stored sample and to the end",
    "bus": "32 slaves on a 9600-baud bus, some dead: lateness of the others, beside two peers",
    "tags": "CPU of 5,000 float values a second over Modbus TCP, beside Telegraf",
    "transactions": "Modbus transactions of one reading, with and without joined requests",
    "footprint": "the agent's memory with 100 devices, its imports, exec to first published sample",
    "flash": "bytes that the agent writes to the disk, by sample and by byte published",
    "edge-drain": "a day's outage out of the agent's outbox: its rate, and what live samples notice",
}
EDGE = ("bus", "tags", "transactions", "footprint", "flash", "edge-drain")
_WHEN_NAMED = {"nation", "panels"}
_ON_UVLOOP = {
    "latency",
    "drain",
    "nation",
    "handshakes",
    "tags",
    "edge-drain",
    "rollups",
    "watch",
}  # as services have it: its pace is measured
_PACK_MESSAGES, _MESSAGES = 20_000, 200_000


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    few = ", ".join(_WHEN_NAMED)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default: all but {few}")
    parser.add_argument("--list", action="store_true", help="print the names and end")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure to this file")
    parser.add_argument("--rounds", type=_whole, default=2, help="of those in turns (default: 2)")
    _add_ingest(parser.add_argument_group("ingest"))
    of_latency = parser.add_argument_group("latency")
    of_latency.add_argument("--rate", type=_whole, default=5000, help="messages/s (default: 5000)")
    of_latency.add_argument("--seconds", type=_whole, default=30, help="a run (default: 30)")
    of_latency.add_argument(
        "--flush", type=_wholes, default=latency.FLUSHES_MS, help="Telegraf's, ms: 10,20,50,100"
    )
    of_drain = parser.add_argument_group("drain (and --seconds of live samples alone)")
    of_drain.add_argument("--backlog", type=_whole, default=1_000_000, help="default: 1000000")
    of_drain.add_argument("--backlogged", type=_whole, default=20, help="gateways (default: 20)")
    of_drain.add_argument("--window", type=_whole, default=5000, help="default: 5000")
    of_drain.add_argument("--live", type=_whole, default=500, help="messages/s (default: 500)")
    of_disk = parser.add_argument_group("disk")
    of_disk.add_argument("--boxes", type=_whole, default=1000, help="default: 1000")
    of_disk.add_argument("--day-minutes", type=_whole, default=1440, help="default: 1440")
    of_nation = parser.add_argument_group("nation")
    of_nation.add_argument("--nation", type=_whole, default=667_000, help="devices: 667000")
    of_nation.add_argument("--minutes", type=_whole, default=60, help="held (default: 60)")
    of_nation.add_argument("--ramp", type=_whole, default=5, help="minutes to join in (default: 5)")
    of_nation.add_argument("--stores", type=_whole, default=4, help="ingests (default: 4)")
    of_nation.add_argument(
        "--max-age-ms", type=int, default=0, help="of a batch in ingest (default: 0, as shipped)"
    )
    of_nation.add_argument("--report", type=Path, metavar="FILE", help="a line a minute, JSON")
    of_watch = parser.add_argument_group("watch (and --watch, seconds of readings: 240)")
    of_watch.add_argument("--watched", type=_whole, default=200_000, help="devices: 200000")
    of_watch.add_argument(
        "--device-days",
        type=_whole,
        default=10_000,
        help="simulated, of each case (default: 10000; ten times as many take minutes)",
    )
    of_rollups = parser.add_argument_group("rollups")
    of_rollups.add_argument(
        "--lamps", type=_whole, help="of each site: 100; of panels in all: 160000"
    )
    of_rollups.add_argument("--rolled-days", type=_whole, default=2, help="default: 2")
    of_panels = parser.add_argument_group("panels (and --lamps)")
    of_panels.add_argument(
        "--database", type=Path, metavar="FOLDER", help="keep it there, and ask it again"
    )
    of_tls = parser.add_argument_group("handshakes (and --messages, --devices, --gateways)")
    of_tls.add_argument("--connections", type=_whole, default=2000, help="default: 2000")
    of_demo = parser.add_argument_group("first-sample, fresh-clone and enrolment")
    of_demo.add_argument("--runs", type=_whole, default=5, help="of each (default: 5)")
    of_demo.add_argument("--cold", action="store_true", help="clone with empty package caches")
    _add_edge(
        parser.add_argument_group("the edge: bus, tags, transactions, footprint, flash, edge-drain")
    )
    return parser


def _add_edge(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--dead", type=_counts, default=bus.DEAD, help="of the bus: 0,1,5,16")
    group.add_argument(
        "--watch", type=_whole, help="seconds: bus 180, tags 60, footprint 60, flash 120"
    )
    group.add_argument("--tags", type=_whole, default=5000, help="values a second (default: 5000)")
    group.add_argument(
        "--outage", type=_whole, default=1_000_000, help="samples of edge-drain (default: 1000000)"
    )


def _add_ingest(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--samples", type=_wholes, default=[1, 20], help="in a message, each a case (default: 1,20)"
    )
    group.add_argument(
        "--messages", type=_whole, help=f"default: {_MESSAGES}; {_PACK_MESSAGES} of several samples"
    )
    group.add_argument(
        "--forms",
        type=_forms,
        default=list(ingest.FORMS),
        help=f"default: {','.join(ingest.FORMS)}",
    )
    group.add_argument("--devices", type=_whole, default=1000, help="default: 1000")
    group.add_argument("--gateways", type=_whole, default=50, help="default: 50")
    group.add_argument(
        "--four-fields",
        action="store_true",
        help="let Telegraf carry and store the metrics only, without epoch and seq",
    )
    group.add_argument(
        "--profile",
        action="store_true",
        help="instead, show where our ingest (or, with tags, our agent) spends its time",
    )


def main(argv: Sequence[str]) -> int:
    """Run what is asked for, print it, and return the exit status."""
    parser = _parser()
    asked = parser.parse_args(argv)
    if unknown := set(asked.names) - set(BENCHMARKS):
        parser.error(f"no such benchmark: {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}")
    if asked.list:
        for name, words in BENCHMARKS.items():
            print(f"{name:14}{words}")
        return 0
    gc.freeze()  # as ingest does: what generators make from here on holds no cycles
    gc.set_threshold(50_000, 20, 100)
    facts = machine.facts()
    print("\n".join(f"{name:28}{fact}" for name, fact in facts.items()), flush=True)
    results: dict[str, Any] = {}
    try:
        for name in asked.names or [name for name in BENCHMARKS if name not in _WHEN_NAMED]:
            print(f"\n{name}: {BENCHMARKS[name]}", flush=True)
            loop = uvloop.new_event_loop if name in _ON_UVLOOP else None
            with asyncio.Runner(loop_factory=loop) as runner:
                results[name] = runner.run(_measured(name, asked))
    except BenchmarkFailed as error:
        print(f"no figure: {error}", file=sys.stderr)
        return 1
    except asyncio.CancelledError:
        print("no figure: told to stop", file=sys.stderr)
        return 128 + signal.SIGTERM
    finally:
        if asked.json:
            content = msgspec.json.encode({"machine": facts, "results": results})
            asked.json.write_bytes(msgspec.json.format(content) + b"\n")
    return 0


async def _measured(name: str, asked: argparse.Namespace) -> object:
    """Run one benchmark, print its table, and return its figures. SIGTERM ends it with all that it started."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    if name in EDGE:
        return await _edge(name, asked)
    match name:
        case "ingest":
            return await _ingest(asked)
        case "latency":
            late = await latency.measure(
                rate_per_s=asked.rate,
                seconds=asked.seconds,
                rounds=asked.rounds,
                flushes_ms=asked.flush,
            )
            print(latency.table(late))
            return late
        case "drain":
            plan = drain.Plan(
                samples=asked.backlog,
                gateways=asked.backlogged,
                window=asked.window,
                live_per_s=asked.live,
                seconds=asked.seconds,
            )
            drained = await drain.measure(plan)
            print(drain.table(drained))
            return drained
        case "disk":
            taken = await disk.measure(devices=asked.boxes, minutes=asked.day_minutes)
            print(disk.table(taken))
            return taken
        case "nation":
            held = await nation.measure(
                devices=asked.nation,
                minutes=asked.minutes,
                stores=asked.stores,
                ramp=asked.ramp,
                max_age_ms=asked.max_age_ms,
                report=asked.report,
            )
            print(nation.table(held))
            return held
        case "watch":
            city = watch.Plan(devices=asked.watched, seconds=asked.watch or 240)
            seen = await watch.measure(city)
            wolves = watch.wolves(asked.device_days)
            print(watch.table(seen, wolves))
            return [seen, *wolves]
        case "rollups":
            rolled = await rollups.measure(
                rollups.Plan(lamps=asked.lamps or 100, days=asked.rolled_days)
            )
            print(rollups.table(rolled))
            return rolled
        case "panels":
            shown = await panels.measure(
                panels.Plan(lamps=asked.lamps or 160_000, folder=asked.database)
            )
            print(panels.table(shown))
            return shown
        case "handshakes":
            load = _load(asked, 1)
            shaken = await handshakes.measure(asked.connections, load, rounds=asked.rounds)
            print(handshakes.table(shaken))
            return shaken
        case "first-sample":
            first = await first_sample.measure(asked.runs)
            print(first_sample.table(first))
            return first
        case "fresh-clone":
            clone = await fresh_clone.measure(cold=asked.cold)
            print(fresh_clone.table(clone))
            return clone
        case _:
            enrolled = await enrolment.measure(asked.runs)
            print(enrolment.table(enrolled))
            return enrolled


async def _edge(name: str, asked: argparse.Namespace) -> object:
    """The same, of the agent on a gateway."""
    match name:
        case "bus":
            held = await bus.measure(bus.Plan(seconds=asked.watch or 180, dead=asked.dead))
            print(bus.table(held))
            return held
        case "tags":
            plan = tags.Plan(tags=asked.tags, seconds=asked.watch or 60)
            if asked.profile:
                await tags.profile(plan)
                return None
            polled = await tags.measure(plan, rounds=asked.rounds)
            print(tags.table(polled))
            return polled
        case "transactions":
            counted = await transactions.measure()
            print(transactions.table(counted))
            return counted
        case "footprint":
            weighed = await footprint.measure(asked.watch or 60, starts=asked.runs)
            print(footprint.table(weighed))
            return weighed
        case "flash":
            written = await flash.measure(asked.watch or 120)
            print(flash.table(written))
            return written
        case _:
            outage = edge_drain.Plan(samples=asked.outage, seconds=asked.seconds)
            drained = await edge_drain.measure(outage)
            print(edge_drain.table(drained))
            return drained


async def _ingest(asked: argparse.Namespace) -> list[ingest.Comparison]:
    found = []
    for samples in asked.samples:
        load = _load(asked, samples)
        if asked.profile:
            await ingest.profile(load)
            continue
        compared = await ingest.compare(
            load, rounds=asked.rounds, same_fields=not asked.four_fields, forms=asked.forms
        )
        print(ingest.table(compared), end="\n\n", flush=True)
        found.append(compared)
    return found


def _load(asked: argparse.Namespace, samples: int) -> Load:
    messages = asked.messages or (_MESSAGES if samples == 1 else _PACK_MESSAGES)
    return Load(
        messages=messages,
        devices=min(asked.devices, messages),
        gateways=asked.gateways,
        samples=samples,
    )


def _whole(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 1")
    return value


def _counts(text: str) -> list[int]:
    return [int(each) if each == "0" else _whole(each) for each in text.split(",")]


def _wholes(text: str) -> list[int]:
    return [_whole(each) for each in text.split(",")]


def _forms(text: str) -> list[str]:
    forms = text.split(",")
    if unknown := set(forms) - set(ingest.FORMS):
        raise argparse.ArgumentTypeError(
            f"{', '.join(unknown)}: expected some of {', '.join(ingest.FORMS)}"
        )
    return forms


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
