"""`onestreet edge run|check|read|commands|enrol|scan|status`.

Every error that an installer reads is in English and in Chinese.
Each action loads what it needs when it is carried out: the agent is on its way the sooner.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import msgspec

from edge_agent.advice import advice
from edge_agent.config_reading import Examined, examine, load_config
from edge_agent.quality import fitted
from exchange.configuration import located
from exchange.errors import ConfigError, DeviceError
from exchange.gateway_paths import CONFIG

if TYPE_CHECKING:
    from argparse import _SubParsersAction

FURTHER = {
    "commands": "edge_agent.trail_command",
    "enrol": "edge_agent.enrolment_command",
    "scan": "edge_agent.scan_command",
    "status": "edge_agent.status_command",
}
"""Actions with a module of their own, which has `add_parser` and `carry_out`."""


class _Parser(argparse.ArgumentParser):
    """Says what is wrong with a command line to everybody."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(2, f"{self.prog}: error 指令有誤: {message}\n{self.prog} --help 可查看用法\n")


def parser(further: Sequence[str] = tuple(FURTHER)) -> argparse.ArgumentParser:
    """Return the command's arguments; of the `further` actions those that are asked for."""
    words = "the agent on a gateway 閘道器上的代理程式"
    parser = _Parser(prog="onestreet edge", description=words)
    names = "|".join(["run", "check", "read", *FURTHER])
    actions = parser.add_subparsers(dest="action", required=True, metavar=names)
    one = _action(
        actions, "run", "read the devices and deliver what they say, until SIGTERM 執行", _run
    )
    one.add_argument("config", type=Path, nargs="?", default=CONFIG, help="default: %(default)s")
    words = "say all that is wrong with the configuration; exit status 1 if anything is 檢查設定"
    one = _action(actions, "check", words, _check)
    one.add_argument("config", type=Path, nargs="?", default=CONFIG, help="default: %(default)s")
    one = _action(actions, "read", "read one device once and print the reading 讀取一個設備", _read)
    one.add_argument("device", metavar="DEVICE", help="a device id of the configuration")
    one.add_argument(
        "--timeout", type=_seconds, default=10.0, metavar="SECONDS", help="default: 10"
    )
    one.add_argument("--config", type=Path, default=CONFIG, help="default: %(default)s")
    for name in further:
        module = import_module(FURTHER[name])
        module.add_parser(actions)
        actions.choices[name].set_defaults(carry_out=module.carry_out)
    return parser


def run(argv: Sequence[str]) -> int:
    """Carry out one action and return the exit status. Raises: ConfigError, EnrolmentError."""
    asked = argv[0] if argv else ""
    alone = asked in ("run", "check", "read")
    arguments = parser(
        () if alone else (asked,) if asked in FURTHER else tuple(FURTHER)
    ).parse_args(argv)
    status: int = arguments.carry_out(arguments)
    return status


def _action(
    actions: _SubParsersAction[_Parser],
    name: str,
    words: str,
    carry_out: Callable[[argparse.Namespace], int],
) -> argparse.ArgumentParser:
    action = actions.add_parser(name, help=words, description=words)
    action.set_defaults(carry_out=carry_out)
    return action


def _run(arguments: argparse.Namespace) -> int:
    status: int = import_module("edge_agent.agent").main(arguments.config)
    return status


def _check(arguments: argparse.Namespace) -> int:
    """Print all that is wrong, and what is doubtful; return 1 when anything is wrong."""
    examined, problems = _examined(arguments.config)
    config = examined.config if examined else None
    for problem in problems:
        sys.stdout.write(f"problem 問題: {problem}\n")
    for doubt in advice(examined) if examined else ():
        sys.stdout.write(f"note 注意: {doubt}\n")
    held = f"{len(config.device)} devices on {len(config.bus)} buses" if config else ""
    if not problems:
        sys.stdout.write(f"{arguments.config}: good 設定無誤: {held}\n")
        return 0
    sys.stdout.write(
        f"{arguments.config}: {len(problems)} to be corrected 項須修正; "
        + (
            f"until then it runs with 其餘照常: {held}\n"
            if config
            else "no agent starts with it 無法啟動\n"
        )
    )
    return 1


def _examined(file: Path) -> tuple[Examined | None, list[ConfigError]]:
    """Return what is wrong with a file, and with the secrets that it names."""
    try:
        examined = examine(file)
    except ConfigError as error:
        return None, [error]
    problems = list(examined.problems)
    if examined.config is not None:
        for look in (examined.config.broker.password, examined.config.broker.context):
            try:
                with located(file):
                    look(str(file))
            except ConfigError as error:
                problems.insert(0, error)
                examined = examined._replace(config=None)
    return examined, problems


def _read(arguments: argparse.Namespace) -> int:
    buses: Any = import_module("edge_agent.buses")
    config, problems = load_config(arguments.config)
    device = next((one for one in config.device if one.id == arguments.device), None)
    if device is None:
        for problem in problems:
            sys.stderr.write(f"problem 問題: {problem}\n")
        known = ", ".join(one.id for one in config.device)
        raise ConfigError(
            str(arguments.config), "device", arguments.device, f"one of {known} 沒有這個設備"
        )
    try:
        reading = asyncio.run(buses.read_once(config.bus_of(device), device, arguments.timeout))
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
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a number above 0 and up to 3600 應為 0 到 3600 的數字"
        )
    return value
