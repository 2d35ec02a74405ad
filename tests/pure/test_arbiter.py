"""Whose turn it is on a bus: one at a time, the urgent first, and nobody waits for ever."""

from __future__ import annotations

import asyncio
import random

import pytest

from edge_agent.arbiter import WAITING_MAX, Arbiter, Urgency

DEADLINE_S = 20.0


async def settled() -> None:
    """Let everything that can go on go on."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_commands_overtake_polls_and_equals_keep_their_order() -> None:
    arbiter, order = Arbiter(), list[str]()

    async def exchange(name: str, urgency: Urgency) -> None:
        async with arbiter.turn(urgency, DEADLINE_S):
            order.append(name)
            await asyncio.sleep(0)

    async with arbiter.turn(Urgency.POLL, DEADLINE_S):
        waiting = []
        for name in ("poll 1", "poll 2", "command 1", "poll 3", "command 2"):
            urgency = Urgency.COMMAND if name.startswith("command") else Urgency.POLL
            waiting.append(asyncio.create_task(exchange(name, urgency)))
            await settled()
        assert order == []
        assert arbiter.waiting == 5
    await asyncio.gather(*waiting)
    assert order == ["command 1", "command 2", "poll 1", "poll 2", "poll 3"]
    async with arbiter.turn(Urgency.POLL, 0.0):
        pass  # it is free again


async def test_a_turn_that_does_not_come_has_a_deadline() -> None:
    arbiter = Arbiter()
    async with arbiter.turn(Urgency.POLL, DEADLINE_S):
        with pytest.raises(TimeoutError, match=r"not free within 0\.01 s"):
            async with arbiter.turn(Urgency.COMMAND, 0.01):
                pytest.fail("two at a time")
        assert arbiter.waiting == 0


async def test_a_queue_has_an_end() -> None:
    arbiter = Arbiter()

    async def wait() -> None:
        async with arbiter.turn(Urgency.COMMAND, DEADLINE_S):
            pass

    async with arbiter.turn(Urgency.POLL, DEADLINE_S):
        waiting = [asyncio.create_task(wait()) for _ in range(WAITING_MAX)]
        await settled()
        with pytest.raises(TimeoutError, match=str(WAITING_MAX)):
            await wait()
    await asyncio.gather(*waiting)


async def test_whoever_is_told_to_end_while_waiting_blocks_nobody() -> None:
    """Cancellations fall anywhere, also into the moment in which the turn comes."""
    chance = random.Random(7)
    arbiter = Arbiter()
    inside = most = finished = 0

    async def exchange() -> None:
        nonlocal inside, most, finished
        async with arbiter.turn(chance.choice(list(Urgency)), DEADLINE_S):
            inside += 1
            most = max(most, inside)
            try:
                for _ in range(chance.randrange(3)):
                    await asyncio.sleep(0)
            finally:
                inside -= 1
        finished += 1

    tasks = []
    for _ in range(500):
        tasks.append(asyncio.create_task(exchange()))
        for _ in range(chance.randrange(3)):
            await asyncio.sleep(0)
        if chance.random() < 0.4:
            chance.choice(tasks).cancel()
    async with asyncio.timeout(DEADLINE_S):
        results = await asyncio.gather(*tasks, return_exceptions=True)
    assert most == 1
    assert finished == sum(result is None for result in results) > 100
    assert any(isinstance(result, asyncio.CancelledError) for result in results)
    assert arbiter.waiting == 0
