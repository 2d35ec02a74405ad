"""Raw rows counted by device and hour, and what rows made of them should therefore say of themselves."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

from ingest.days import HOUR_NS

ALL = ""
"""The device under whose name a site's rows are counted all together."""


class Closed(NamedTuple):
    """What can be made: what ended by `until_ns`, and looks at no raw row before `since_ns`."""

    since_ns: int
    until_ns: int


class Made(NamedTuple):
    """What a row was made from: `rows` of its own span, and how many stand in what else it looked at."""

    rows: int
    basis: int

    def is_short_of(self, expected: Made) -> bool:
        """Whether there is more now. Fewer raw rows were deleted since, which changes nothing."""
        return (self.rows, self.basis) < (expected.rows, expected.basis)


class Counted:
    """The counts of hours that follow each other. Shape: an hour's row looks at hours from `reach_ns` before it on."""

    def __init__(self, starts_ns: Sequence[int], *, reach_ns: int) -> None:
        self._starts, self._reach_ns = starts_ns, reach_ns
        self._places = {start_ns: place for place, start_ns in enumerate(starts_ns)}
        self._nothing = array("q", bytes(8 * len(starts_ns)))
        self._rows: dict[str, array[int]] = {}

    @property
    def devices(self) -> int:
        """How many have rows."""
        return len(self._rows)

    def add(self, device: str, start_ns: int, rows: int) -> None:
        """Count rows of a device in an hour."""
        counts = self._rows.get(device)
        if counts is None:
            counts = self._rows[device] = self._nothing[:]
        counts[self._places[start_ns]] += rows

    def reached(self, start_ns: int) -> Sequence[int]:
        """Return when the hours begin that an hour's row looks at beside its own."""
        first, place = self._span(start_ns)
        return self._starts[first:place]

    def before(self, device: str, start_ns: int) -> int:
        """Return how many rows a device has in the hours before one that this looks at."""
        first, place = self._span(start_ns)
        return sum(self._rows[device][first:place])

    def expected(self, start_ns: int) -> dict[str, Made]:
        """Return what an hour's row of each device with raw rows should say."""
        first, place = self._span(start_ns)
        return {
            device: Made(rows[place], sum(rows[first:place]))
            for device, rows in self._rows.items()
            if rows[place]
        }

    def _span(self, start_ns: int) -> tuple[int, int]:
        reached = bisect_right(self._starts, start_ns - self._reach_ns) - 1
        return max(0, reached), self._places[start_ns]


def total(made: Iterable[Made]) -> Made:
    """Return what a row of all these should say."""
    both = list(made)
    return Made(sum(each.rows for each in both), sum(each.basis for each in both))


def aligned(starts_ns: Sequence[int], most: int | None = None) -> list[Sequence[int]]:
    """Return the pieces of ascending hours in which each begins a whole hour after the one before it.

    Shape: no piece has more than `most`.
    """
    cuts = [place for place, (a, b) in enumerate(pairwise(starts_ns), 1) if b - a != HOUR_NS]
    edges = [0, *cuts, len(starts_ns)]
    step = most or max(1, len(starts_ns))
    return [
        starts_ns[begin : min(begin + step, last)]
        for first, last in pairwise(edges)
        for begin in range(first, last, step)
    ]
