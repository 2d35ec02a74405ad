"""States: there and back, and what is none."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exchange.errors import StateError
from exchange.states import Descriptor, Label, Location, State, decode_state, encode_state

texts = st.text(max_size=200)
descriptors = st.builds(
    Descriptor,
    maker=texts,
    label=st.builds(Label, en=texts, zh_tw=texts),
    asset_id=texts,
    location=st.none()
    | st.builds(
        Location,
        lat=st.floats(-90, 90),
        lon=st.floats(-180, 180),
        alt=st.none() | st.floats(-500, 9000),
        heading=st.none() | st.floats(0, 360, exclude_max=True),
    ),
    metrics=st.dictionaries(st.sampled_from(["pm1", "x-acme-a"]), st.floats(0.1, 3600)),
    commands=st.lists(texts, max_size=3),
)
moments = st.integers(0, 7_000_000_000_000).map(
    lambda ms: datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=ms)
)
states = st.builds(
    State,
    v=st.just(1),
    online=st.booleans(),
    interval_s=st.floats(0.1, 86400),
    epoch=st.integers(0, 2**53 - 1),
    descriptor=descriptors,
    since=st.none() | moments,
)


@given(states)
def test_what_is_encoded_is_decoded(state: State) -> None:
    assert decode_state(encode_state(state)) == state


def test_times_are_rfc_3339_in_utc_with_milliseconds() -> None:
    taipei = datetime(2026, 5, 1, 8, 0, 0, 123_999, tzinfo=timezone(timedelta(hours=8)))
    state = State(v=1, online=True, interval_s=60, epoch=1, since=taipei)
    assert json.loads(encode_state(state))["since"] == "2026-05-01T00:00:00.123Z"


def test_an_empty_payload_retires() -> None:
    assert decode_state(b"") is None


def test_a_will_says_no_since() -> None:
    assert b"since" not in encode_state(State(v=1, online=False, interval_s=60, epoch=1))


GOOD = {"v": 1, "online": True, "interval_s": 60, "epoch": 1}


CHANGES: list[dict[str, object]] = [
    {"v": 2}, {"online": 1}, {"online": None}, {"interval_s": 0}, {"interval_s": -1}, {"interval_s": 1e9},
    {"epoch": -1}, {"epoch": 2**53}, {"epoch": 1.5}, {"since": "yesterday"}, {"since": "2026-05-01T08:00"},
    {"since": 0}, {"descriptor": []}, {"descriptor": {"maker": 7}}, {"descriptor": {"maker": "m" * 201}},
    {"descriptor": {"location": {"lat": 25.0}}}, {"descriptor": {"location": {"lat": 91, "lon": 0}}},
    {"descriptor": {"location": {"lat": 0, "lon": 181}}}, {"descriptor": {"metrics": {"pm1": "60"}}},
    {"descriptor": {"location": {"lat": 0, "lon": 0, "heading": 360}}},
]  # fmt: skip  # a table


@pytest.mark.parametrize(
    "payload",
    [
        b" ", b"null", b"[]", b"{", b"\xff", b"[" * 100_000,
        *(
            json.dumps(GOOD | change).encode()
            for change in CHANGES
        ),
        *(json.dumps({k: v for k, v in GOOD.items() if k != gone}).encode() for gone in GOOD),
    ],
)  # fmt: skip  # a table
def test_a_message_that_breaks_ex_s_001(payload: bytes) -> None:
    with pytest.raises(StateError) as caught:
        decode_state(payload)
    assert caught.value.requirement == "EX-S-001"


def test_what_a_later_version_adds_is_passed_over() -> None:
    state = decode_state(json.dumps(GOOD | {"mood": "fine"}).encode())
    assert state == State(v=1, online=True, interval_s=60, epoch=1)


@given(st.binary(min_size=1, max_size=100))
def test_random_bytes_raise_nothing_but_state_errors(payload: bytes) -> None:
    with pytest.raises(StateError):
        decode_state(payload)
