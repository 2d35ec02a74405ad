"""`onestreet edge run|check|read|enrol`. Every error that an installer reads is in English and in Chinese."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from edge_agent.agent import main
from edge_agent.buses import read_once
from edge_agent.config import Config, read_config
from edge_agent.enrolment_command import add_parser, carry_out
from edge_agent.intake import fitted
from exchange.errors import ConfigError, DeviceError

CONFIG = Path("/etc/onestreet/edge.toml")


def parser() -> argparse.ArgumentParser:
    """Return the command's arguments."""
    parser = argparse.ArgumentParser(prog="onestreet edge", description="The agent on a gateway.")
    actions = parser.add_subparsers(dest="action", required=True, metavar="run|check|read|enrol")
    for name, words in (
        ("run", "read the devices and deliver what they say, until SIGTERM"),
        ("check", "check the configuration and say what is wrong with it"),
        ("read", "read one device once and print the reading"),
    ):
        action = actions.add_parser(name, help=words, description=words)
        if name == "read":
            action.add_argument("device", metavar="DEVICE", help="a device id of the configuration")
            action.add_argument(
                "--timeout", type=_seconds, default=10.0, metavar="SECONDS", help="default: 10"
            )
            action.add_argument("--config", type=Path, default=CONFIG, help="default: %(default)s")
        else:
            action.add_argument(
                "config", type=Path, nargs="?", default=CONFIG, help="default: %(default)s"
            )
    add_parser(actions)
    return parser


def run(argv: Sequence[str]) -> int:
    """Carry out one of the four and return the exit status. Raises: ConfigError, EnrolmentError."""
    arguments = parser().parse_args(argv)
    if arguments.action == "enrol":
        return carry_out(arguments)
    if arguments.action == "run":
        return main(arguments.config)
    config = read_config(arguments.config)
    config.broker.password(str(arguments.config))
    config.broker.context(str(arguments.config))
    if arguments.action == "check":
        words = f"{len(config.device)} devices on {len(config.bus)} buses"
        sys.stdout.write(f"{arguments.config}: good 設定無誤: {words}\n")
        return 0
    return _read(config, arguments)


def _read(config: Config, arguments: argparse.Namespace) -> int:
    device = next((one for one in config.device if one.id == arguments.device), None)
    if device is None:
        known = ", ".join(one.id for one in config.device)
        raise ConfigError(str(arguments.config), "device", arguments.device, f"one of {known}")
    try:
        reading = asyncio.run(read_once(config.bus_of(device), device, arguments.timeout))
    except DeviceError as error:
        sys.stderr.write(f"{device.id}: no reading 讀取失敗: {type(error).__name__}: {error}\n")
        return 1
    fit = fitted(reading, device)
    line = {"device": device.id, "metrics": fit.metrics, "quality": fit.quality or None}
    sys.stdout.write(msgspec.json.encode(line).decode() + "\n")
    return 0


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 3600:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0 and up to 3600")
    return value
