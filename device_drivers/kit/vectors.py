"""Vectors: frames of data sheets and captures, with what they mean or why they are refused.

The driver decodes; the profile says which metric each of a frame's own fields is; a vector is the witness.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from typing import Any, Literal, Protocol

import msgspec

from device_drivers.errors import FrameError
from device_drivers.kit.driver import Context, Reading, Value
from device_drivers.kit.profile import Profile


class Vector(msgspec.Struct, frozen=True, kw_only=True):
    """One frame, or the steps of a sequence.

    Shape: `expect` holds the frame's own fields (a subset; null for "no value"), `error` with the kind
    of the refusal, `frames` of a stream, `steps` of a sequence, `objects` in their order, `quality`, or
    the `command` that the frame is.
    """

    id: str
    direction: Literal["rx", "tx"]
    transport: str
    frame_hex: str | None
    context: dict[str, Any]
    expect: dict[str, Any]
    kind: Literal["published", "derived"]
    source: str
    device: str = ""
    family: str = ""
    note: str = ""
    rel_tol: float = 1e-6
    abs_tol: float = 0.0

    @property
    def frame(self) -> bytes:
        return bytes.fromhex(self.frame_hex or "")


class Witnessed(Protocol):
    """What vectors are held against: a driver package."""

    @property
    def profile(self) -> Profile: ...

    def decode(self, frames: Sequence[bytes], context: Context) -> list[Reading]: ...

    def encode(self, request: str) -> bytes: ...


def load_vectors(package: str) -> list[Vector]:
    """Read a driver package's vectors.json."""
    text = (files(package) / "vectors.json").read_text(encoding="utf-8")
    return msgspec.convert(json.loads(text), list[Vector])


def expected_metrics(
    profile: Profile, fields: Iterable[tuple[str, object]]
) -> list[tuple[str, Value | None]]:
    """Return fields of a frame as metrics; what is no metric is left out."""
    points = {point.field: point for point in profile.points if point.metric}
    return [
        (points[name].metric, None if value is None else points[name].metric_of_field(value))
        for name, value in fields
        if name in points and (value is None or isinstance(value, int | float))
    ]


def differences(driver: Witnessed, vector: Vector) -> list[str]:
    """Say in words where the driver and the vector disagree; empty when they agree."""
    expect = vector.expect
    if vector.direction == "tx":
        built = driver.encode(expect["command"]).hex()
        return [] if built == vector.frame_hex else [f"built {built}, must be {vector.frame_hex}"]
    if "steps" in expect:
        return _sequence_differences(driver, vector)
    try:
        readings = driver.decode([vector.frame], vector.context)
    except FrameError as error:
        wanted = expect.get("error")
        return [] if error.kind == wanted else [f"refused as {error}, expected {wanted or expect}"]
    if "error" in expect:
        return [f"{readings} instead of the refusal {expect['error']}"]
    if expect.get("kind") == "ack":
        return [f"{readings} out of an acknowledgement"] if readings else []

    frames = expect.get("frames", [expect])
    if len(readings) != len(frames):
        return [f"{len(readings)} readings, expected {len(frames)}"]
    found: list[str] = []
    for reading, fields in zip(readings, frames, strict=True):
        found += _reading_differences(driver.profile, vector, reading, fields)
    return found


def _sequence_differences(driver: Witnessed, vector: Vector) -> list[str]:
    """Take the steps one more at a time: a step is accepted when it adds a reading."""
    found: list[str] = []
    steps: list[dict[str, Any]] = vector.expect["steps"]
    frames = [bytes.fromhex(step["frame_hex"]) for step in steps]
    taken = 0
    for count, step in enumerate(steps, 1):
        times_s = [float(one["t"]) for one in steps[:count]]
        readings = len(driver.decode(frames[:count], {**vector.context, "t": times_s}))
        if readings != taken + step["accepted"]:
            found.append(f"step {count}: {readings} readings after {taken}, expected {step}")
        taken = readings
    return found


def _reading_differences(
    profile: Profile, vector: Vector, reading: Reading, fields: Mapping[str, Any]
) -> list[str]:
    found: list[str] = []
    if reading.quality != fields.get("quality", ""):
        found.append(f"quality {reading.quality!r}, expected {fields.get('quality', '')!r}")
    if "objects" in fields:  # all of them, in their order; channels have names of their own
        expected = expected_metrics(profile, fields["objects"])
        pairs = list(zip(expected, reading.metrics.items(), strict=False))
        if len(expected) != len(reading.metrics):
            found.append(f"{reading.metrics}, expected {expected}")
        compared: list[tuple[str, Value | None, Value | None]] = [
            (name, value, got) for (name, value), (_, got) in pairs
        ]
    else:
        named = expected_metrics(profile, fields.items())
        compared = [(name, value, reading.metrics.get(name)) for name, value in named]
        if not named:
            found.append("the vector names no field of the profile")
    for name, value, got in compared:
        same = got is value or (
            got is not None
            and value is not None
            and isinstance(got, bool) == isinstance(value, bool)
            and math.isclose(got, value, rel_tol=vector.rel_tol, abs_tol=vector.abs_tol)
        )
        if not same:
            found.append(f"{name} = {got!r}, expected {value!r}")
    return found
