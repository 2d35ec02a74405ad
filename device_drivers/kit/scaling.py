"""Scaled integers as decimals: 2506 at 0.01 is 25.06, not 25.060000000000002."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from functools import cache
from math import lcm


@cache
def linear(scale: float, add: float = 0) -> Callable[[float], float]:
    """Return the function raw * scale + add, rounded once; whole numbers stay whole.

    The scale is taken as it is printed (0.01 means one hundredth), so one division of integers gives
    the float nearest to the decimal that the data sheet means.
    """
    slope, offset = Fraction(str(scale)), Fraction(str(add))
    steps = lcm(slope.denominator, offset.denominator)
    times, plus = int(slope * steps), int(offset * steps)

    def value(raw: float) -> float:
        scaled = raw * times + plus
        return scaled if steps == 1 else scaled / steps

    return value
