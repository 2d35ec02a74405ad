"""Arguments that several roles take: what each must be, and what `--quiet` keeps from who waits."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from exchange.topics import COUNTY


def add_credentials(parser: argparse.ArgumentParser, title: str) -> None:
    """Take what opens a broker's door: a password, and TLS."""
    door = parser.add_argument_group(title)
    password = door.add_mutually_exclusive_group()
    password.add_argument("--password-file", type=Path, metavar="FILE")
    password.add_argument("--password-env", metavar="NAME", help="an environment variable")
    door.add_argument("--ca", type=Path, metavar="FILE", help="default: the system's authorities")
    door.add_argument("--cert", type=Path, metavar="FILE")
    door.add_argument("--key", type=Path, metavar="FILE")


def county(text: str) -> str:
    """Return a county's code."""
    if not COUNTY.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not ISO 3166-2 in lower case, as tw-tpe")
    return text


def level(text: str) -> str:
    """Return one level of a topic; whether it is a right one is for the judgement."""
    if not text or set(text) & set("/+#\0") or len(text) > 200:
        raise argparse.ArgumentTypeError(f"{text!r} is not one level of a topic")
    return text


def seconds(text: str) -> float:
    """Return a duration of a run."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 1 <= value <= 86400:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 1 to 86400")
    return value


def samples(text: str) -> int:
    """Return a number of samples."""
    if not text.isdecimal() or not 1 <= int(text) <= 10_000_000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def endpoint(text: str) -> tuple[str, int]:
    """Return host and port; the port alone is one of this machine."""
    host, _, port = text.rpartition(":")
    if not port.isdecimal() or not 0 < int(port) < 65536:
        raise argparse.ArgumentTypeError(f"{text!r} is not PORT or HOST:PORT")
    return host.strip("[]") or "127.0.0.1", int(port)


def progress(asked: argparse.Namespace, words: str) -> None:
    """Tell whoever waits what happens now; on stderr, so that the report stands alone."""
    if not asked.quiet:
        sys.stderr.write(f"… {words}\n")
        sys.stderr.flush()
