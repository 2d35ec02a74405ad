"""Evidence: a payload that was refused, whole or in part, and what it broke."""

from __future__ import annotations

import hashlib

import msgspec

MAX_BODY_BYTES = 256 * 1024


class Evidence(msgspec.Struct, frozen=True, gc=False):
    """A payload as it came, its body cut at 256 KiB; the digest is of all of it."""

    topic: str
    sha256: str
    size_bytes: int
    body: bytes
    received_ms: int


class Refused(msgspec.Struct, frozen=True, gc=False):
    """One thing that was refused: a metric, a sample (`metric` empty) or a payload (`seq` -1).

    Shape: `receipts` is where its gateway gets receipts, empty when the topic names no gateway.
    """

    evidence: Evidence
    requirement: str
    detail: str
    receipts: str
    county: str = ""
    device: str = ""
    epoch: int = -1
    seq: int = -1
    metric: str = ""


class Entry(msgspec.Struct, gc=False):
    """A payload and its refusals on their way to the file. `body` is None when it is not to be kept."""

    evidence: Evidence
    body: bytes | None
    refused: list[Refused]


def evidence(topic: str, payload: bytes, received_ms: int) -> Evidence:
    """Return what is kept of a payload."""
    digest = hashlib.sha256(payload).hexdigest()
    return Evidence(topic, digest, len(payload), payload[:MAX_BODY_BYTES], received_ms)
