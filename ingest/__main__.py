"""`python -m ingest CONFIG [--with-watch]`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from exchange.errors import ConfigError, OnestreetError
from ingest.service import main


def _run() -> int:
    parser = argparse.ArgumentParser("python -m ingest", description=__doc__)
    parser.add_argument("config", type=Path, help="the TOML file")
    parser.add_argument("--with-watch", action="store_true", help="run the watch in this process")
    asked = parser.parse_args()
    try:
        return main(asked.config, asked.with_watch)
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except OnestreetError as error:
        sys.stderr.write(f"{error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(_run())
