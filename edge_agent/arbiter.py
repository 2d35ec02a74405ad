"""Whose turn it is on a physical bus: one exchange at a time, the most urgent first."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager
from enum import IntEnum
from heapq import heapify, heappop, heappush
from itertools import count
from typing import Final, TypeAlias

WAITING_MAX: Final = 64
"""Who comes when so many wait already is turned away at once."""


class Urgency(IntEnum):
    """Why somebody wants the bus; the lower goes first."""

    COMMAND = 0
    POLL = 1


_Place: TypeAlias = tuple[Urgency, int, asyncio.Future[None]]


class Arbiter:
    """Gives one bus to one exchange at a time; equals go in the order in which they asked."""

    def __init__(self) -> None:
        """The bus is free."""
        self._held = False
        self._queue: list[_Place] = []
        self._asked = count()

    @property
    def waiting(self) -> int:
        """How many wait for their turn."""
        return len(self._queue)

    def turn(self, urgency: Urgency, deadline_s: float) -> AbstractAsyncContextManager[None]:
        """Hold the bus. Raises: TimeoutError when the turn did not come within `deadline_s`, or too many wait."""
        return _Turn(self, urgency, deadline_s)

    async def take(self, urgency: Urgency, deadline_s: float) -> None:
        """Wait for the turn. Raises: TimeoutError."""
        if not self._held:
            self._held = True
            return
        if len(self._queue) >= WAITING_MAX:
            raise TimeoutError(f"{WAITING_MAX} exchanges wait for the bus already")
        turn = asyncio.get_running_loop().create_future()
        place = (urgency, next(self._asked), turn)
        heappush(self._queue, place)
        try:
            async with asyncio.timeout(deadline_s):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():
                self.hand_on()  # it came in the moment of giving up
            elif place in self._queue:
                self._queue.remove(place)
                heapify(self._queue)
            if isinstance(error, TimeoutError):
                raise TimeoutError(f"the bus was not free within {deadline_s:g} s") from error
            raise

    def hand_on(self) -> None:
        """Give the bus to the next one."""
        while self._queue:
            *_, turn = heappop(self._queue)
            if not turn.done():
                turn.set_result(None)
                return
        self._held = False


class _Turn(AbstractAsyncContextManager[None]):
    """A turn on the bus: a generator would cost each poll twice as much."""

    __slots__ = ("_arbiter", "_deadline_s", "_urgency")

    def __init__(self, arbiter: Arbiter, urgency: Urgency, deadline_s: float) -> None:
        self._arbiter, self._urgency, self._deadline_s = arbiter, urgency, deadline_s

    async def __aenter__(self) -> None:
        await self._arbiter.take(self._urgency, self._deadline_s)

    async def __aexit__(self, *_: object) -> None:
        self._arbiter.hand_on()
