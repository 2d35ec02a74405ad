"""Commands to a device and their results."""

from __future__ import annotations

from typing import Annotated, Literal
from uuid import UUID

import msgspec

from exchange.errors import CommandError
from exchange.moments import Moment, rfc3339
from exchange.topics import END

Argument = float | int | bool | Annotated[str, msgspec.Meta(max_length=200)]
Status = Literal["accepted", "done", "failed", "expired", "rejected"]


class Command(msgspec.Struct, frozen=True, kw_only=True):
    """An order to one device. `issued_by` is for people: rights come from the broker."""

    id: UUID
    name: Annotated[str, msgspec.Meta(pattern=rf"^[a-z][a-z0-9_]{{0,47}}{END}")]
    issued_at: Moment
    expires_at: Moment
    issued_by: Annotated[str, msgspec.Meta(max_length=200)] = ""
    args: dict[str, Argument] = {}


class Result(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What became of a command; delivered like a reading, until its receipt."""

    v: Literal[1]
    id: UUID
    status: Status
    at: Moment
    reason: Annotated[str, msgspec.Meta(max_length=500)] = ""
    readback: dict[str, float | int | bool] = {}


_commands = msgspec.json.Decoder(Command)
_results = msgspec.json.Decoder(Result)
_encode = msgspec.json.Encoder().encode


def encode_command(command: Command) -> bytes:
    """Return the command as it travels."""
    moments = {"issued_at": rfc3339(command.issued_at), "expires_at": rfc3339(command.expires_at)}
    return _encode(msgspec.to_builtins(command) | moments)


def encode_result(result: Result) -> bytes:
    """Return the result as it travels."""
    return _encode(msgspec.to_builtins(result) | {"at": rfc3339(result.at)})


def decode_command(payload: bytes) -> Command:
    """Return the command. Raises: CommandError (EX-C-001 shape, EX-C-002 it expires before it is issued)."""
    try:
        command = _commands.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CommandError("EX-C-001", f"not a command: {error}") from error
    if command.expires_at <= command.issued_at:
        raise CommandError("EX-C-002", "expires_at is not after issued_at")
    return command


def decode_result(payload: bytes) -> Result:
    """Return the result. Raises: CommandError (EX-C-003)."""
    try:
        return _results.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CommandError("EX-C-003", f"not a result: {error}") from error
