"""Runs of the conformance kit in a test, as its command line makes them but in this process."""

from __future__ import annotations

import argparse
from typing import Any

import msgspec

from exchange.conformance import application, device, gateway
from exchange.conformance.judgement import Report
from exchange.conformance.pace import Pace
from exchange.conformance.report import text
from exchange.conformance.witness import Address
from tests.brokers import Mosquitto
from tests.mutants import COUNTY

SCALE = 0.3  # of the contract's times, for publishers that run them as fast
SLACK_S = 2.0  # many run at once
FAST = msgspec.structs.replace(Pace().faster(SCALE), slack_s=SLACK_S)
DEVICE_S, GATEWAY_S = 10.0, 60.0


def address(broker: Mosquitto) -> Address:
    """Where the broker is for the kit."""
    return Address(host=broker.host, port=broker.port)


def asked(module: Any, *words: str) -> argparse.Namespace:
    """What a role's command line asks for, without a broker."""
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    found = parser.parse_args(words)
    found.county, found.quiet = COUNTY, True
    return found


async def judge_device(
    broker: Mosquitto, name: str, *words: str, seconds: float = DEVICE_S
) -> Report:
    """Judge the lamp of a publisher of this name, at the fast pace, with commands."""
    words = ("--gateway", name, "--device", f"{name}-lamp", "--commands", *words)
    return await device.judge(
        asked(device, *words, "--seconds", str(seconds)), address(broker), pace=FAST
    )


async def judge_gateway(
    broker: Mosquitto, name: str, cable: int, window: int = 5000, *words: str
) -> Report:
    """Judge a publisher of this name that connects to the port `cable`, at the fast pace, with commands."""
    words = ("--gateway", name, "--cable", str(cable), "--window", str(window), *words)
    return await gateway.judge(
        asked(gateway, *words, "--commands", "--seconds", str(GATEWAY_S)),
        address(broker),
        pace=FAST,
    )


async def judge_application(broker: Mosquitto, name: str, seconds: float) -> Report:
    """Judge who gives a publisher's lamp commands."""
    words = ("--gateway", name, "--seconds", str(seconds))
    return await application.judge(asked(application, *words), address(broker))


def broken(report: Report) -> set[str]:
    """The ids that a report says are broken."""
    return {one.requirement for one in report.failed}


def shown(report: Report) -> str:
    """A report for a failed assertion."""
    return text(report, brief=True)
