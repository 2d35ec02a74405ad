"""The command `onestreet`: one subcommand a room; a room that is not installed says which extra brings it."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import NamedTuple, TypeAlias

from exchange.errors import ConfigError, OnestreetError

Run: TypeAlias = Callable[[Sequence[str]], int]
"""Takes the words after the subcommand, returns the exit status."""


class Subcommand(NamedTuple):
    """Where a subcommand lives, `module:function`, and what brings it."""

    target: str
    extra: str
    words: str


SUBCOMMANDS = {
    "demo": Subcommand(
        "onestreet.demo.command:run", "all", "a simulated town, end to end, with an audit"
    ),
    "edge": Subcommand("edge_agent.cli:run", "edge", "the agent on a gateway"),
    "ingest": Subcommand("ingest.command:run", "ingest", "from the broker into the store"),
    "quarantine": Subcommand(
        "ingest.quarantine_command:run", "ingest", "what was refused: list, show, replay, purge"
    ),
    "incidents": Subcommand(
        "ingest.incidents_command:run",
        "ingest",
        "what is broken and since when; maintenance windows",
    ),
    "watch": Subcommand("ingest.command:run_watch", "ingest", "the registry and what is up"),
    "dashboards": Subcommand(
        "dashboards.command:run", "dashboards", "what operators see in Grafana: build, check, push"
    ),
    "rollups": Subcommand(
        "ingest.rollups.command:run", "ingest", "hours and days of devices and sites: run, once"
    ),
    "conform": Subcommand(
        "exchange.conformance.command:run", "conform", "whether a party keeps to the exchange"
    ),
    "town": Subcommand("onestreet.town:run", "town", "a town's keys, accounts, broker and store"),
    "street": Subcommand(
        "onestreet.street:run", "all", "every gateway of an office's towns, simulated"
    ),
    "command": Subcommand(
        "onestreet.command_issuing:run",
        "ingest",
        "gives a device one command and waits for its result",
    ),
    "decode": Subcommand(
        "onestreet.decode:run", "edge", "what a driver makes of bytes given in hex"
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand and return its exit status: 2 for a wrong command line or configuration."""
    words = list(sys.argv[1:] if argv is None else argv)
    _make_terminal_patient()
    parser = argparse.ArgumentParser(
        prog="onestreet",
        description="A town's streetlights, parking sensors and air boxes through one interface.",
        epilog=_listing(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("subcommand", choices=SUBCOMMANDS, metavar="SUBCOMMAND")
    chosen = parser.parse_args(words[:1]).subcommand
    try:
        module, _, function = SUBCOMMANDS[chosen].target.partition(":")
        run: Run = getattr(import_module(module), function)
        status = run(words[1:])
        sys.stdout.flush()  # what cannot be written is found out here, not by the interpreter's end
    except ModuleNotFoundError as error:
        extra = SUBCOMMANDS[chosen].extra
        sys.stderr.write(
            f"onestreet {chosen} needs {error.name}: pip install 'onestreet[{extra}]'\n"
        )
        return 2
    except ConfigError as error:
        sys.stderr.write(f"configuration error 設定錯誤: {error}\n")
        return 2
    except OnestreetError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except BrokenPipeError:  # `| head` has seen enough
        _stop_talking()
        return 1
    except OSError as error:
        named = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        sys.stderr.write(f"cannot be read or written 無法讀寫: {named}\n")
        _stop_talking()
        return 1
    except KeyboardInterrupt:
        return 130
    return status


def _make_terminal_patient() -> None:
    """Have no command fail half-way because nobody listens or a letter is not known there."""
    if sys.stdout is None:  # started with `>&-`
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - for as long as the process
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _stop_talking() -> None:
    """Try once more to say what was said; what cannot be written then is not tried at the interpreter's end."""
    try:
        sys.stdout.flush()
    except OSError:
        with Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())


def _listing() -> str:
    return "\n".join(f"  {name:<12}{one.words}" for name, one in SUBCOMMANDS.items())


if __name__ == "__main__":
    sys.exit(main())
