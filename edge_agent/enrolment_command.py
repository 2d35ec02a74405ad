"""`onestreet edge enrol`: asks for the code, says what happened and what is next, in English and in Chinese.

A code is never an argument: what is running, and with which words, is there to be read for everybody on
the machine.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_agent.enrolment import CLOCK_S, CONFIG, Enrolled, enrol
from exchange import gateway_paths
from exchange.configuration import check_private
from exchange.enrolment import Code, EnrolmentDelayed, EnrolmentRefused, read_code
from exchange.errors import ConfigError

if TYPE_CHECKING:
    from argparse import _SubParsersAction

INTO = gateway_paths.CONFIG.parent
TRIES = 5
MAX_CHARACTERS = 4096


def add_parser(actions: _SubParsersAction[Any]) -> None:
    """Add the subcommand's arguments."""
    words = "enrol this gateway in its town with the one-time code that the town gave 以一次性註冊碼註冊閘道器"
    action = actions.add_parser("enrol", help=words, description=words, allow_abbrev=False)
    action.add_argument(
        "--code-file",
        type=Path,
        metavar="FILE",
        help="a private file with the code; else it is asked for, or read from stdin",
    )
    action.add_argument(
        "--into", type=Path, default=INTO, metavar="DIR", help="default: %(default)s"
    )
    action.add_argument(
        "--state-dir",
        type=Path,
        metavar="DIR",
        help=f"default: what the town's edge.toml says, else {gateway_paths.STATE}",
    )
    action.add_argument(
        "--patience",
        type=_patience,
        default=60.0,
        metavar="SECONDS",
        help="how long to try a service that does not answer (default: 60)",
    )
    action.add_argument("--code", dest="given", nargs="*", help=argparse.SUPPRESS)
    action.add_argument("also_given", nargs="*", help=argparse.SUPPRESS)


def carry_out(arguments: argparse.Namespace) -> int:
    """Enrol and return the exit status. Raises: EnrolmentError, ConfigError."""
    if arguments.given is not None or arguments.also_given:
        sys.stderr.write(
            "onestreet edge enrol: a code is no argument, others can read those; type it when asked, or use --code-file"
            " 請勿將註冊碼放在指令參數中（其他使用者看得到），請於提示時輸入，或使用 --code-file\n"
        )
        return 2
    code = _code(arguments.code_file)
    done = enrol(
        code,
        arguments.into,
        state_dir=arguments.state_dir,
        patience_s=arguments.patience,
        waiting=_waiting,
    )
    _say(done, arguments.into)
    return 0


def _code(file: Path | None) -> Code:
    if file is not None:
        check_private("enrol", "--code-file", file)
        try:
            return read_code(file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            # Its name is not said: somebody may have put the code there.
            allowed = f"must be a readable file that holds the code: {type(error).__name__}"
            raise ConfigError("enrol", "--code-file", "…", allowed) from None
    if not sys.stdin.isatty():
        return read_code(sys.stdin.read(MAX_CHARACTERS))
    for _ in range(TRIES - 1):
        try:
            return read_code(_typed())
        except EnrolmentRefused as error:
            sys.stderr.write(f"{error}\n")
    return read_code(_typed())


def _typed() -> str:
    try:
        return input("Code 註冊碼: ")
    except EOFError:
        raise EnrolmentRefused("mistyped", "nothing was typed 未輸入") from None


def _waiting(error: EnrolmentDelayed) -> None:
    sys.stderr.write(f"{error} … trying again 重試中\n")


def _say(done: Enrolled, into: Path) -> None:
    lines = [
        f"{done.name}: enrolled 已完成註冊"
        + (" (already before 先前已完成)" if done.before else "")
    ]
    lines.append(f"credentials 憑證: {into}")
    if abs(done.clock_off_s) > CLOCK_S:
        lines.append(
            f"this clock is off by {abs(done.clock_off_s):.0f} s; set it 時鐘誤差，請校時: "
            + ("behind 慢" if done.clock_off_s > 0 else "ahead 快")
        )
    if done.paste:
        words = (
            "was there and is left as it is; put this into it 檔案已存在且未更動，請將以下內容寫入:"
        )
        lines += [f"{into / CONFIG} {words}", "", done.paste]
    lines.append(f"next 下一步: onestreet edge check {into / CONFIG}")
    sys.stdout.write("\n".join(lines) + "\n")


def _patience(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 3600:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a number of seconds, 0 to 3600 須為 0 到 3600 秒"
        )
    return value
