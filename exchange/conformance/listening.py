"""Listening: a judge hears everything on one connection, and what a broker retains at one moment.

One connection, because a broker may take a party's name for its client id: a second one would end the first.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager

from exchange.conformance.witness import Address, Seen, Witness, witness
from exchange.errors import UplinkRefused

FIRST_S = 3.0  # a broker sends what it retains at once, if neither it nor this machine is held up
SETTLED_S = 0.5  # after so long without more that was all
RETAINED_S = 10.0
_LOOK_S = 0.05


class Listener:
    """Hands on what comes, in order."""

    def __init__(
        self, seen: Witness, take: Callable[[Seen], object], group: asyncio.TaskGroup
    ) -> None:
        self._seen, self._take, self._group = seen, take, group
        self._tasks: list[asyncio.Task[None]] = []
        self._held: dict[str, Seen] | None = None
        self._held_s = 0.0
        self.publish = seen.publish

    def start(self, work: Coroutine[object, object, None]) -> None:
        """Have something done until the end; whoever listens ends when it fails."""
        self._tasks.append(self._group.create_task(work))

    def end(self) -> None:
        """End what was started."""
        for task in self._tasks:
            task.cancel()

    async def subscribe(self, *topics: str) -> None:
        """Subscribe. Raises: UplinkError."""
        try:
            await self._seen.subscribe(*topics, qos=2)
        except UplinkRefused:  # some brokers have no QoS 2; then QoS 2 is not told from 1
            await self._seen.subscribe(*topics)

    async def move(self, before: str, topics: list[str], take: Callable[[Seen], object]) -> None:
        """Listen elsewhere from now on: on two subscriptions that overlap a message may come twice."""
        await self._seen.unsubscribe(before)
        self._take = take
        await self.subscribe(*topics)

    async def retained(self, topics: str) -> dict[str, Seen]:
        """Return what the broker retains, by topic: who subscribes anew is told. Raises: UplinkError."""
        loop = asyncio.get_running_loop()
        held = self._held = {}
        try:
            self._held_s = loop.time()
            await self.subscribe(topics)
            self._held_s = loop.time()
            await until(
                lambda: loop.time() - self._held_s > (SETTLED_S if held else FIRST_S), RETAINED_S
            )
        finally:
            self._held = None
        return held

    async def listen(self) -> None:
        """Go on for ever. Raises: UplinkLost."""
        async for one in self._seen.messages():
            if self._held is not None and one.retain:
                self._held[one.topic] = one
                self._held_s = asyncio.get_running_loop().time()
            else:
                self._take(one)


@asynccontextmanager
async def listening(
    address: Address, topics: str, take: Callable[[Seen], object]
) -> AsyncIterator[Listener]:
    """Connect, subscribe, and hand on what comes until the end.

    Raises: UplinkError, as soon as the connection breaks.
    """
    try:
        async with witness(address) as seen, asyncio.TaskGroup() as group:
            listener = Listener(seen, take, group)
            try:
                listener.start(listener.listen())
                await listener.subscribe(topics)
                yield listener
            finally:
                listener.end()
    except ExceptionGroup as several:  # what broke first; the rest follows from it
        raise several.exceptions[0] from several


async def until(condition: Callable[[], object], seconds: float) -> bool:
    """Return once a condition holds, or the time is up; whether it holds."""
    try:
        async with asyncio.timeout(seconds):
            while not condition():  # noqa: ASYNC110 - what is waited for has no event
                await asyncio.sleep(_LOOK_S)
    except TimeoutError:
        pass
    return bool(condition())
