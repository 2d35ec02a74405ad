"""Listening: a task that hands a judge everything a witness sees, and what a broker retains at one moment."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from exchange.conformance.witness import Address, Seen, Witness, witness
from exchange.errors import UplinkLost, UplinkRefused

SETTLED_S = 0.5  # a broker sends what it retains at once; after so long without more that was all
RETAINED_S = 10.0
_LOOK_S = 0.05
_CANCEL_AGAIN_S = 0.2


@asynccontextmanager
async def listening(
    seen: Witness, take: Callable[[Seen], object], *filters: str
) -> AsyncIterator[None]:
    """Subscribe, and hand on what comes until the end. Raises: UplinkLost when the connection broke meanwhile."""

    async def listen() -> None:
        async for one in seen.messages():
            take(one)

    task = asyncio.create_task(listen())
    try:
        try:
            await seen.subscribe(*filters, qos=2)
        except UplinkRefused:  # some brokers have no QoS 2; then QoS 2 is not told from 1
            await seen.subscribe(*filters)
        yield
        if task.done():
            task.result()
            raise UplinkLost("the broker ended the connection of the kit")
    finally:
        while not task.done():  # a cancellation may be swallowed before Python 3.12
            task.cancel()
            await asyncio.wait([task], timeout=_CANCEL_AGAIN_S)


async def retained(address: Address, *filters: str) -> dict[str, Seen]:
    """Return what the broker retains, by topic. Raises: UplinkError."""
    found: dict[str, Seen] = {}
    last_s = [0.0]
    loop = asyncio.get_running_loop()

    def take(one: Seen) -> None:
        if one.retain:
            found[one.topic] = one
            last_s[0] = loop.time()

    async with witness(address) as seen, listening(seen, take, *filters):
        last_s[0] = loop.time()
        await until(lambda: loop.time() - last_s[0] > SETTLED_S, RETAINED_S)
    return found


async def until(condition: Callable[[], object], seconds: float) -> bool:
    """Return once a condition holds, or the time is up; whether it holds."""
    try:
        async with asyncio.timeout(seconds):
            while not condition():  # noqa: ASYNC110 - what is waited for has no event
                await asyncio.sleep(_LOOK_S)
    except TimeoutError:
        pass
    return bool(condition())
