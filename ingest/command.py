"""`onestreet ingest run` and `onestreet watch run`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from exchange import runtime
from exchange.errors import ConfigError
from ingest import watch, worker, workers
from ingest.config import by_certificate, load_config

CONFIG = Path("/etc/onestreet/ingest.toml")


def run(argv: Sequence[str]) -> int:
    """Run ingest until SIGTERM and return the exit status. Raises: ConfigError."""
    parser = _parser("ingest", "from the broker into the store, until SIGTERM")
    parser.add_argument("--with-watch", action="store_true", help="run the watch in this process")
    parser.add_argument(
        "--with-rollups", action="store_true", help="make hours and days in this process"
    )
    parser.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes that share the work (default: workers in CONFIG, 1)",
    )
    parser.add_argument("--worker", type=int, metavar="K", help=argparse.SUPPRESS)  # one of them
    asked = parser.parse_args(argv)
    file: Path = asked.config
    config = load_config(file, asked.workers)
    if asked.with_watch and by_certificate(config):
        allowed = (
            "its certificate is for one connection, and the watch needs another: run"
            " `onestreet watch run` with the watch's own folder (in an office: services/watch/ingest.toml)"
        )
        raise ConfigError("command line", "--with-watch", str(file), allowed)
    runtime.log_to_stderr(**({} if asked.worker is None else {"worker": asked.worker}))
    if config.workers > 1 and asked.worker is None:
        if asked.with_rollups:
            allowed = "a town of one worker; beside several, run `onestreet rollups run`"
            raise ConfigError("command line", "--with-rollups", config.workers, allowed)
        return workers.main(config, file, with_watch=asked.with_watch)
    within = {"with_watch": asked.with_watch, "with_rollups": asked.with_rollups}
    return worker.main(config, file, worker=asked.worker, **within)


def run_watch(argv: Sequence[str]) -> int:
    """Run the watch until SIGTERM and return the exit status. Raises: ConfigError."""
    asked = _parser("watch", "the registry and what is up, until SIGTERM").parse_args(argv)
    return watch.main(asked.config)


def _parser(name: str, words: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"onestreet {name}", description=words)
    parser.add_argument("action", choices=["run"], metavar="run", help=words)
    parser.add_argument("config", type=Path, nargs="?", default=CONFIG, help="default: %(default)s")
    return parser
