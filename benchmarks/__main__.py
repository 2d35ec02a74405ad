"""`python -m benchmarks [NAME…]`: measurements on this machine, with the machine's facts.

`make bench ARGS="…"` calls it with InfluxDB and Telegraf at hand.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from benchmarks import enrolment, first_sample, fresh_clone, handshakes, ingest, machine
from benchmarks.backlog import Load
from benchmarks.processes import BenchmarkFailed

BENCHMARKS = {
    "ingest": "CPU per message and samples/s from a broker's backlog into InfluxDB, beside Telegraf",
    "handshakes": "TLS against plain: connections/s and CPU of each, and CPU per message once connected",
    "enrolment": "a new gateway: seconds from `gateway add` to its first stored sample",
    "first-sample": "`onestreet demo`: seconds from the command to the first stored sample",
    "fresh-clone": "`git clone` and `make demo`: seconds to the first stored sample and to the end",
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="which (default: all)")
    parser.add_argument("--list", action="store_true", help="print the names and end")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure to this file")
    of_ingest = parser.add_argument_group("ingest")
    of_ingest.add_argument("--messages", type=_whole, default=200_000, help="default: 200000")
    of_ingest.add_argument("--samples", type=_whole, default=1, help="in a message (default: 1)")
    of_ingest.add_argument("--devices", type=_whole, default=1000, help="default: 1000")
    of_ingest.add_argument("--gateways", type=_whole, default=50, help="default: 50")
    of_ingest.add_argument("--rounds", type=_whole, default=2, help="of each (default: 2)")
    of_ingest.add_argument(
        "--four-fields",
        action="store_true",
        help="let Telegraf carry and store the metrics only, without epoch and seq",
    )
    of_ingest.add_argument(
        "--profile", action="store_true", help="instead, show where our ingest spends its time"
    )
    of_tls = parser.add_argument_group("handshakes (and --messages, --rounds)")
    of_tls.add_argument("--connections", type=_whole, default=2000, help="default: 2000")
    of_demo = parser.add_argument_group("first-sample, fresh-clone and enrolment")
    of_demo.add_argument("--runs", type=_whole, default=5, help="of each (default: 5)")
    of_demo.add_argument("--cold", action="store_true", help="clone with empty package caches")
    return parser


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
    facts = machine.facts()
    print("\n".join(f"{name:28}{fact}" for name, fact in facts.items()), flush=True)
    results: dict[str, Any] = {}
    try:
        for name in asked.names or BENCHMARKS:
            print(f"\n{name}: {BENCHMARKS[name]}", flush=True)
            loop = uvloop.new_event_loop if name == "handshakes" else None  # as services have it
            with asyncio.Runner(loop_factory=loop) as runner:
                results[name] = runner.run(_measured(name, asked))
    except BenchmarkFailed as error:
        print(f"no figure: {error}", file=sys.stderr)
        return 1
    finally:
        if asked.json:
            content = msgspec.json.encode({"machine": facts, "results": results})
            asked.json.write_bytes(msgspec.json.format(content) + b"\n")
    return 0


async def _measured(name: str, asked: argparse.Namespace) -> object:
    """Run one benchmark, print its table, and return its figures."""
    if name == "first-sample":
        first = await first_sample.measure(asked.runs)
        print(first_sample.table(first))
        return first
    if name == "fresh-clone":
        clone = await fresh_clone.measure(cold=asked.cold)
        print(fresh_clone.table(clone))
        return clone
    if name == "enrolment":
        enrolled = await enrolment.measure(asked.runs)
        print(enrolment.table(enrolled))
        return enrolled
    load = Load(
        messages=asked.messages,
        devices=min(asked.devices, asked.messages),
        gateways=asked.gateways,
        samples=asked.samples,
    )
    if name == "handshakes":
        shaken = await handshakes.measure(asked.connections, load, rounds=asked.rounds)
        print(handshakes.table(shaken))
        return shaken
    if asked.profile:
        await ingest.profile(load)
        return None
    compared = await ingest.compare(load, rounds=asked.rounds, same_fields=not asked.four_fields)
    print(ingest.table(compared))
    return compared


def _whole(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 1")
    return value


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
