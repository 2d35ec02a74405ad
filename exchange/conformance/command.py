"""`onestreet conform device|gateway|application|ingest|broker`: judges one party from outside and writes reports."""

from __future__ import annotations

import argparse
import asyncio
import re
import ssl
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from exchange.configuration import secret
from exchange.conformance import arguments
from exchange.conformance import report as reports
from exchange.conformance.judgement import Report
from exchange.conformance.witness import Address, address
from exchange.errors import ConfigError, UplinkError
from exchange.tls import Tls, is_loopback

FILE = "command line"
ROLES = {
    "device": ("a device: its readings, its state, its commands", "under a minute"),
    "gateway": ("a gateway: all of its devices, and delivery", "two minutes"),
    "application": ("who sends commands", "as long as --seconds says"),
    "ingest": ("an ingest: its receipts, while faults are put in", "a minute"),
    "broker": ("a broker: its locked doors", "a minute"),
}
"""Each has its module beside this one, with `add_arguments(parser)` and `async judge(asked, address) -> Report`."""

PASSED, FAILED, WRONG, UNJUDGED = 0, 1, 2, 3
"""Exit statuses: nothing broken, something broken, a wrong command line, nothing could be judged."""


def run(argv: Sequence[str]) -> int:
    """Judge, write the reports and return the exit status. Raises: ConfigError."""
    chooser = argparse.ArgumentParser(
        prog="onestreet conform",
        description="Whether a party keeps to the exchange, requirement by requirement."
        " 檢測一方是否符合資訊交換標準，逐條列出。",
        epilog="\n".join(f"  {name:<13}{what} ({long})" for name, (what, long) in ROLES.items())
        + "\n\nexit status 結束代碼: 0 nothing broken 無違反, 1 something broken 有違反,"
        " 2 wrong command line 指令有誤, 3 nothing could be judged 無法判定",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    chooser.add_argument("role", choices=ROLES, metavar="ROLE")
    role = chooser.parse_args(argv[:1]).role
    module = import_module(f"exchange.conformance.{role}")
    parser = argparse.ArgumentParser(
        prog=f"onestreet conform {role}", description=f"Judges {ROLES[role][0]}."
    )
    _add_common(parser)
    module.add_arguments(parser)
    asked = parser.parse_args(argv[1:])
    _check(asked)
    try:
        found: Report = asyncio.run(module.judge(asked, _address(asked)))
    except UplinkError as error:
        sys.stderr.write(f"not judged 無法判定: {error}\n")
        return UNJUDGED
    _write(found, asked)
    if found.failed:
        return FAILED
    return PASSED if any(one.outcome == "passed" for one in found.verdicts) else UNJUDGED


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--broker", required=True, metavar="URL", help="mqtt[s]://[user@]host[:port]"
    )
    parser.add_argument("--county", required=True, type=arguments.county, help="such as tw-tpe")
    arguments.add_credentials(parser, "credentials of the kit")
    out = parser.add_argument_group("reports")
    for kind in ("json", "junit", "html"):
        out.add_argument(f"--{kind}", type=Path, metavar="FILE")
    out.add_argument("--quiet", action="store_true", help="nothing but failures on the terminal")


def _check(asked: argparse.Namespace) -> None:
    """Check before the run what would fail after it. Raises: ConfigError."""
    for kind in ("json", "junit", "html"):
        file: Path | None = getattr(asked, kind)
        if file is not None and (file.is_dir() or not file.absolute().parent.is_dir()):
            raise ConfigError(
                FILE, f"--{kind}", str(file), "must be a file in a folder that exists"
            )


def _address(asked: argparse.Namespace) -> Address:
    """Return where the broker is, and as whom the kit goes there. Raises: ConfigError."""
    password = secret(FILE, "--broker", asked.password_file, asked.password_env)
    tls: ssl.SSLContext | None = None
    if asked.ca is not None:
        files = Tls(ca_file=asked.ca, certificate_file=asked.cert, key_file=asked.key)
        tls = files.context(FILE, "--broker")
    elif asked.cert is not None or asked.key is not None:
        raise ConfigError(FILE, "--ca", None, "--cert and --key need --ca beside them")
    found = address(asked.broker, password=password, tls=tls)
    if found.tls is None and tls is not None:
        raise ConfigError(FILE, "--ca", str(asked.ca), "goes with mqtts:// only")
    if password is not None and found.username is None:
        raise ConfigError(FILE, "--broker", asked.broker, "a password needs a user: user@host")
    if password is not None and found.tls is None and not is_loopback(found.host):
        allowed = "a password goes by mqtts:// only, but to this machine itself"
        raise ConfigError(FILE, "--broker", re.sub(r"//[^@]*@", "//", asked.broker), allowed)
    return found


def _write(found: Report, asked: argparse.Namespace) -> None:
    """Write the files, whichever can be, then the text: who reads it may stop listening. Raises: ConfigError."""
    failed: ConfigError | None = None
    for file, written in (
        (asked.json, reports.json),
        (asked.junit, reports.junit),
        (asked.html, reports.html),
    ):
        if file is not None:
            try:
                file.write_bytes(written(found))
            except OSError as error:
                failed = ConfigError(FILE, "report", str(file), f"must be writable: {error}")
    sys.stdout.write(reports.text(found, brief=asked.quiet))
    if failed is not None:
        raise failed
