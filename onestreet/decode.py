"""`onestreet decode`: what a driver makes of bytes given by hand."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import NoReturn

from device_drivers.errors import FrameError
from device_drivers.kit.driver import Reading
from device_drivers.kit.registry import driver_ids, load
from exchange.errors import ConfigError


class _Refused(Exception):
    """The command line cannot be carried out."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise _Refused("usage", message)


def parser() -> argparse.ArgumentParser:
    """Return the command's arguments."""
    parser = _Parser(
        prog="onestreet decode", description="Decode frames of a device, given in hex."
    )
    parser.add_argument("driver", metavar="DRIVER", help=f"one of {', '.join(driver_ids())}")
    parser.add_argument(
        "--hex",
        dest="frames",
        action="extend",
        nargs="+",
        required=True,
        metavar="HEX",
        help="one frame each, in order; a serial stream may also be given whole",
    )
    parser.add_argument(
        "--context",
        default="{}",
        metavar="JSON",
        help="what the bytes do not say: a request's address, a key, the model",
    )
    return parser


def run(argv: Sequence[str]) -> int:
    """Print the samples, or what is wrong, as one line of JSON; return 0 or 1."""
    try:
        samples = [_sample(reading) for reading in _decoded(argv)]
    except FrameError as error:
        return _print_error(error.kind, error.message, error.offset)
    except ConfigError as error:
        return _print_error("bad_config", str(error))
    except _Refused as error:
        return _print_error(error.kind, str(error))
    print(json.dumps({"samples": samples}, ensure_ascii=False))
    return 0


def _decoded(argv: Sequence[str]) -> list[Reading]:
    asked = parser().parse_args(argv)
    if asked.driver not in driver_ids():
        raise _Refused("unknown_driver", f"{asked.driver!r} is none of {', '.join(driver_ids())}")
    frames = [_bytes(text) for text in asked.frames]
    try:
        context = json.loads(asked.context)
    except (ValueError, RecursionError) as error:
        raise _Refused("bad_context", f"not JSON: {error}") from error
    if not isinstance(context, dict):
        raise _Refused("bad_context", "must be a JSON object")
    return load(asked.driver).decode(frames, context)


def _bytes(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError as error:
        raise _Refused("bad_hex", f"{text!r}: {error}") from error


def _sample(reading: Reading) -> dict[str, object]:
    return {"metrics": reading.metrics, "quality": reading.quality or None}


def _print_error(kind: str, message: str, offset: int = 0) -> int:
    error = {"kind": kind, "message": message, "offset": offset}
    print(json.dumps({"error": error}, ensure_ascii=False))
    return 1
