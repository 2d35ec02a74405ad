"""A wheel of due times: who is to be looked at when, at the same small price for ten and for 200,000."""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heappop, heappush
from math import ceil
from typing import Generic, TypeVar

T = TypeVar("T")


class Wheel(Generic[T]):
    """Hands out what is due, at most `tick_s` late and never early. What was put in twice comes twice."""

    def __init__(self, tick_s: float) -> None:
        self._tick_s = tick_s
        self._slots: dict[int, list[T]] = {}
        self._order: list[int] = []

    def put(self, due_s: float, what: T) -> None:
        """Hand it out at `due_s`."""
        number = ceil(due_s / self._tick_s)
        slot = self._slots.get(number)
        if slot is None:
            self._slots[number] = [what]
            heappush(self._order, number)
        else:
            slot.append(what)

    def due(self, now_s: float) -> Iterator[T]:
        """Yield what is due; what is put in meanwhile and is due already, too."""
        while self._order and self._order[0] * self._tick_s <= now_s:
            yield from self._slots.pop(heappop(self._order))
