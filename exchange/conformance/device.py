"""`onestreet conform device`: listens to one device, gives it commands when it may, and judges."""

from __future__ import annotations

import argparse
import asyncio

from exchange.conformance import arguments
from exchange.conformance.conduct import Conduct, DeviceConduct
from exchange.conformance.judgement import Judge, Report
from exchange.conformance.listening import Listener, listening, until
from exchange.conformance.orders import Orders, refrain
from exchange.conformance.pace import Pace
from exchange.conformance.witness import Address

LONGEST_S = 50.0
AROUND_LEAST_S, AROUND_MOST_S = 1.0, 8.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what this role asks for."""
    parser.add_argument("--gateway", required=True, type=arguments.level)
    parser.add_argument("--device", required=True, type=arguments.level)
    parser.add_argument(
        "--profile", default="", help="default: the one of its domain that fits best"
    )
    parser.add_argument(
        "--seconds",
        type=arguments.seconds,
        default=LONGEST_S,
        help="how long to watch at most, default: %(default)g; ends when enough was seen",
    )
    parser.add_argument(
        "--commands", action="store_true", help="give it commands: a real lamp will act"
    )


async def judge(asked: argparse.Namespace, address: Address, *, pace: Pace | None = None) -> Report:
    """Judge one device. Raises: UplinkError."""
    pace = pace or Pace()
    judged = Judge("device", f"{asked.county}/{asked.gateway}/{asked.device}")
    conduct = Conduct(
        judged, asked.county, asked.gateway, asked.device, pace=pace, profile=asked.profile
    )
    async with listening(address, conduct.filter, conduct.take) as listener:
        arguments.progress(asked, f"watching {judged.subject} for at most {asked.seconds:g} s")
        acting = asyncio.create_task(_act(asked, judged, conduct, listener, pace))
        try:
            await until(lambda: _is_enough(conduct, asked.device), asked.seconds)
            await until(lambda: not _has_new_gap(conduct, asked.device), pace.slack_s + 1)
            await acting
        finally:
            acting.cancel()
        conduct.conclude(await listener.retained(conduct.filter))
        await look_around(conduct, listener)
    return judged.report()


async def look_around(conduct: Conduct, listener: Listener) -> None:
    """Listen for a while to who else publishes for the same devices."""
    if conduct.neighbours:
        await listener.move(conduct.filter, conduct.neighbours, conduct.take_neighbour)
        await asyncio.sleep(min(AROUND_MOST_S, AROUND_LEAST_S + 2 * conduct.interval_s))
    conduct.conclude_publishers()


def _is_enough(conduct: Conduct, device: str) -> bool:
    found = conduct.devices.get(device)
    return found is not None and found.is_seen_enough


def _has_new_gap(conduct: Conduct, device: str) -> bool:
    found = conduct.devices.get(device)
    return found is not None and found.has_new_gap


async def _act(
    asked: argparse.Namespace, judged: Judge, conduct: Conduct, listener: Listener, pace: Pace
) -> None:
    """Give commands to a device that announces some, if we may."""
    if not asked.commands:
        refrain(judged, "a command acts on a real device: only with --commands")
        return

    def announcing() -> list[DeviceConduct]:
        return [one for one in conduct.devices.values() if one.commands]

    await until(announcing, asked.seconds / 2)
    if not announcing():
        refrain(judged, "its state announces no command")
        return
    device = announcing()[0]
    arguments.progress(asked, f"giving {device.name} commands")
    await Orders(judged, conduct, device, device.topic("commands"), listener.publish, pace).give()
