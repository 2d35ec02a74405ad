"""Chance that can be asked in any order: every draw is a pure function of its key."""

from __future__ import annotations

import math
from functools import lru_cache
from hashlib import blake2b
from typing import Final, TypeAlias

Key: TypeAlias = tuple[str | int, ...]

FORGOTTEN: Final = 0.001
"""An autoregression looks back until a step counts for less than this."""


def uniform(*key: str | int) -> float:
    """Return the key's number in [0, 1)."""
    digest = blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def between(low: float, high: float, *key: str | int) -> float:
    return low + (high - low) * uniform(*key)


@lru_cache(maxsize=65_536)
def normal(*key: str | int) -> float:
    """Return the key's draw from the standard normal distribution (Box and Muller)."""
    radius = math.sqrt(-2 * math.log(1 - uniform(*key, "radius")))
    return radius * math.cos(2 * math.pi * uniform(*key, "angle"))


def exponential(mean: float, *key: str | int) -> float:
    return -mean * math.log(1 - uniform(*key))


def autoregression(step: float, *key: str | int, carry: float = 0.9) -> float:
    """Return AR(1) noise of unit variance at `step`, whole or between two steps.

    Written as the moving average that an AR(1) process is, so that any step can be asked for alone.
    """
    whole = math.floor(step)
    part = step - whole
    memory = math.ceil(math.log(FORGOTTEN) / math.log(carry))

    def at(index: int) -> float:
        return math.sqrt(1 - carry**2) * sum(
            carry**back * normal(*key, index - back) for back in range(memory)
        )

    return at(whole) if part == 0 else (1 - part) * at(whole) + part * at(whole + 1)
