"""`onestreet ingest run` and `onestreet watch run`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ingest import service, watch

CONFIG = Path("/etc/onestreet/ingest.toml")


def run(argv: Sequence[str]) -> int:
    """Run ingest until SIGTERM and return the exit status. Raises: ConfigError."""
    parser = _parser("ingest", "from the broker into the store, until SIGTERM")
    parser.add_argument("--with-watch", action="store_true", help="run the watch in this process")
    asked = parser.parse_args(argv)
    return service.main(asked.config, asked.with_watch)


def run_watch(argv: Sequence[str]) -> int:
    """Run the watch until SIGTERM and return the exit status. Raises: ConfigError."""
    asked = _parser("watch", "the registry and what is up, until SIGTERM").parse_args(argv)
    return watch.main(asked.config)


def _parser(name: str, words: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"onestreet {name}", description=words)
    parser.add_argument("action", choices=["run"], metavar="run", help=words)
    parser.add_argument("config", type=Path, nargs="?", default=CONFIG, help="default: %(default)s")
    return parser
