"""Moments: now by two clocks, and the rounds in which the watch goes."""

from __future__ import annotations

from typing import NamedTuple

NEVER_S = float("-inf")
DAY_EVERY_S = 600.0
"""How often the figures of a running day are written."""
SETTLED_AFTER_S = 120.0
"""After the connection: who has no retained state by then, has none; who was not heard, is silent."""


class Now(NamedTuple):
    """A moment by two clocks: the monotonic one in seconds, UTC in milliseconds."""

    s: float
    ms: int
