"""State: who a device is and whether its gateway stands behind it; retained, one per device."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from exchange.errors import StateError
from exchange.moments import Moment, rfc3339
from exchange.readings import Whole

Text = Annotated[str, msgspec.Meta(max_length=200)]


class Location(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where a device is. Units: WGS 84 degrees, metres above the ellipsoid, degrees clockwise from north."""

    lat: Annotated[float, msgspec.Meta(ge=-90, le=90)]
    lon: Annotated[float, msgspec.Meta(ge=-180, le=180)]
    alt: float | None = None
    heading: Annotated[float, msgspec.Meta(ge=0, lt=360)] | None = None


class Label(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What people call a device."""

    en: Text = ""
    zh_tw: Text = msgspec.field(name="zh-TW", default="")


class Descriptor(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is known of a device. `asset_id` is the pole or bay number that citizens see."""

    maker: Text = ""
    model: Text = ""
    brand_origin: Text = ""
    serial: Text = ""
    firmware: Text = ""
    driver: Text = ""
    driver_version: Text = ""
    transport: Text = ""
    label: Label = Label()
    asset_id: Text = ""
    cabinet: Text = ""
    circuit: Text = ""
    location: Location | None = None
    township: Text = ""
    installed: Text = ""
    metrics: dict[str, float] = {}
    """Metric name to the seconds between its samples."""
    commands: list[Text] = []


class State(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A device's state. A gateway's last will is its own, with `online` false and no `since`.

    `clock_known` is left out unless a gateway does not know the time: its samples wait, or go out marked.
    """

    v: Literal[1]
    online: bool
    interval_s: Annotated[float, msgspec.Meta(gt=0, le=7 * 86400)]
    epoch: Whole
    descriptor: Descriptor = Descriptor()
    since: Moment | None = None
    clock_known: bool = True


_decoder = msgspec.json.Decoder(State)
_encode = msgspec.json.Encoder().encode


def encode_state(state: State) -> bytes:
    """Return the state as it travels."""
    since = {} if state.since is None else {"since": rfc3339(state.since)}
    return _encode(msgspec.to_builtins(state) | since)


def decode_state(payload: bytes) -> State | None:
    """Return the state, None for the empty payload that retires a device. Raises: StateError."""
    if not payload:
        return None
    try:
        return _decoder.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise StateError("EX-S-001", f"not a state: {error}") from error
