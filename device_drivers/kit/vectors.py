"""Vectors: frames of data sheets and captures, with what they mean or why they are refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Any, Literal

import msgspec


class Vector(msgspec.Struct, frozen=True, kw_only=True):
    """One frame, or the steps of a sequence.

    Shape: `expect` holds the frame's own fields (a subset; null for "no value"), `error` with the kind
    of the refusal, `frames` of a stream, `steps` of a sequence, `objects` in their order, or the
    `command` that the frame is.
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


def load_vectors(package: str) -> list[Vector]:
    """Read a driver package's vectors.json."""
    text = (files(package) / "vectors.json").read_text(encoding="utf-8")
    return msgspec.convert(json.loads(text), list[Vector])
