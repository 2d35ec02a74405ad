"""Commands and results: there and back, and what is none."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import get_args
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exchange.commands import (
    Command,
    Result,
    Status,
    decode_command,
    decode_result,
    encode_command,
    encode_result,
)
from exchange.errors import CommandError

ID = "0b6c5d7e-3c53-4b61-9d0f-6f0f6a8f3f10"
milliseconds = st.integers(0, 4_000_000_000_000)
arguments = st.one_of(
    st.booleans(), st.integers(-(2**53) + 1, 2**53 - 1), st.floats(-1e9, 1e9), st.text(max_size=200)
)


def at(milliseconds: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=milliseconds)


commands = st.builds(
    lambda issued, life, **rest: Command(
        issued_at=at(issued), expires_at=at(issued + life), **rest
    ),
    issued=milliseconds,
    life=st.integers(1, 10**9),
    id=st.uuids(),
    name=st.from_regex(r"[a-z][a-z0-9_]{0,47}", fullmatch=True),
    issued_by=st.text(max_size=200),
    args=st.dictionaries(st.text(max_size=10), arguments, max_size=4),
)
results = st.builds(
    Result,
    v=st.just(1),
    id=st.uuids(),
    status=st.sampled_from(get_args(Status)),
    at=milliseconds.map(at),
    reason=st.text(max_size=500),
    readback=st.dictionaries(st.text(max_size=10), st.booleans() | st.floats(-1e9, 1e9)),
)


@given(commands)
def test_a_command_that_is_encoded_is_decoded(command: Command) -> None:
    assert decode_command(encode_command(command)) == command


@given(results)
def test_a_result_that_is_encoded_is_decoded(result: Result) -> None:
    assert decode_result(encode_result(result)) == result


def test_times_are_rfc_3339_in_utc_with_milliseconds() -> None:
    taipei = datetime(2026, 5, 1, 8, tzinfo=timezone(timedelta(hours=8)))
    command = Command(
        id=UUID(ID), name="off", issued_at=taipei, expires_at=taipei + timedelta(seconds=1)
    )
    sent = json.loads(encode_command(command))
    assert sent["issued_at"] == "2026-05-01T00:00:00.000Z"
    assert sent["expires_at"] == "2026-05-01T00:00:01.000Z"
    result = Result(v=1, id=UUID(ID), status="done", at=taipei)
    assert json.loads(encode_result(result))["at"] == "2026-05-01T00:00:00.000Z"


COMMAND: dict[str, object] = {
    "id": ID,
    "name": "set_level",
    "args": {"level": 40},
    "issued_at": "2026-05-01T08:00:00.000Z",
    "expires_at": "2026-05-01T08:01:00.000Z",
    "issued_by": "the evening shift",
}
RESULT: dict[str, object] = {"v": 1, "id": ID, "status": "done", "at": "2026-05-01T08:00:01.000Z"}


CHANGED_COMMANDS: list[dict[str, object]] = [
            {"id": "7"}, {"id": 7}, {"name": "Set"}, {"name": ""}, {"name": "off\n"}, {"name": "n" * 49}, {"args": []},
            {"args": {"level": None}}, {"args": {"level": [1]}}, {"args": {"text": "t" * 201}}, {"issued_at": 0},
            {"issued_at": "2026-05-01T08:00:00"}, {"expires_at": "soon"}, {"issued_by": "i" * 201},
]  # fmt: skip
CHANGED_RESULTS: list[dict[str, object]] = [
            {"v": 2}, {"id": "7"}, {"status": "maybe"}, {"status": None}, {"at": "now"}, {"reason": "r" * 501},
            {"readback": {"level": "40"}}, {"readback": []},
]  # fmt: skip


def without(message: dict[str, object], label: str) -> dict[str, object]:
    return {key: value for key, value in message.items() if key != label}


BREAKING: dict[str, list[object]] = {
    "EX-C-001": [
        b"", b"[]", b"{", b"\xff", b"[" * 100_000,
        *(without(COMMAND, label) for label in ("id", "name", "issued_at", "expires_at")),
        *(COMMAND | change for change in CHANGED_COMMANDS),
    ],
    "EX-C-002": [
        COMMAND | {"expires_at": COMMAND["issued_at"]},
        COMMAND | {"expires_at": "2026-05-01T07:59:59.999Z"},
        COMMAND | {"expires_at": "2026-05-01T09:30:00.000+02:00"},
    ],
    "EX-C-003": [
        b"", b"[]", b"{", b"\xff", b"[" * 100_000,
        *(without(RESULT, label) for label in RESULT),
        *(RESULT | change for change in CHANGED_RESULTS),
    ],
}  # fmt: skip  # a table


@pytest.mark.parametrize(
    ("requirement", "message"),
    [(requirement, message) for requirement, messages in BREAKING.items() for message in messages],
)
def test_a_message_that_breaks_one_requirement(requirement: str, message: object) -> None:
    payload = message if isinstance(message, bytes) else json.dumps(message).encode()
    with pytest.raises(CommandError) as caught:
        (decode_result if requirement == "EX-C-003" else decode_command)(payload)
    assert caught.value.requirement == requirement


@given(st.binary(max_size=100))
def test_random_bytes_raise_nothing_but_command_errors(payload: bytes) -> None:
    for decode in (decode_command, decode_result):
        with pytest.raises(CommandError):
            decode(payload)
