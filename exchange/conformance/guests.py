"""Guests: parties that came in by their credentials; what comes to them is noted."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, suppress

import msgspec

from exchange.conformance.credentials import Party
from exchange.conformance.doors import Doors, Sent
from exchange.conformance.witness import Will, Witness, witness
from exchange.errors import UplinkLost, UplinkRefused


class Guest:
    """A party that is in: what comes to it is noted. It comes in again when the broker throws it out."""

    def __init__(self, party: Party, doors: Doors) -> None:
        self.party = party
        self.thrown_out = False
        self._doors = doors
        self._stack = AsyncExitStack()
        self._connection: Witness | None = None
        self._listening: asyncio.Task[None] | None = None
        self._filters: list[str] = []

    async def enter(
        self,
        *,
        client_id: str = "",
        username: str = "",
        clean_session: bool = True,
        will: Will | None = None,
    ) -> None:
        """Come in, and subscribe as before. Raises: UplinkError."""
        await self.leave()
        address = self.party.address
        self._connection = await self._stack.enter_async_context(
            witness(
                msgspec.structs.replace(address, username=username or address.username),
                client_id=client_id or self.party.client_id,
                clean_session=clean_session,
                will=will,
            )
        )
        self.thrown_out = False
        self._listening = asyncio.create_task(self._listen(self._connection))
        if clean_session:
            filters, self._filters = self._filters, []
            for one in filters:
                await self.ask(one)

    async def leave(self) -> None:
        """Go."""
        if self._listening is not None:
            self._listening.cancel()
            await asyncio.wait([self._listening])
        self._connection = self._listening = None
        with suppress(UplinkLost):
            await self._stack.aclose()

    def vanish(self) -> None:
        """Go without a word."""
        assert self._connection is not None
        self._connection.vanish()

    async def ask(self, topic_filter: str) -> None:
        """Subscribe; a no is as good as a silence."""
        assert self._connection is not None
        self._filters.append(topic_filter)
        try:
            await self._connection.subscribe(topic_filter)
        except UplinkRefused:
            return
        except UplinkLost:
            self._filters.remove(topic_filter)  # a broker may end the connection instead
            await self.enter()

    async def say(self, sent: Sent, *, retain: bool = False) -> None:
        """Publish; whether it arrives is for the doors to see."""
        await self.publish(str(sent.topic), sent.payload, retain=retain)

    async def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """Publish; a broker may end the connection of who publishes what is denied."""
        assert self._connection is not None
        with suppress(UplinkLost):
            await self._connection.publish(topic, payload, retain=retain)
        if self.thrown_out:
            await self.enter()

    async def _listen(self, connection: Witness) -> None:
        try:
            async for seen in connection.messages():
                self._doors.take(self.party, seen)
        except UplinkLost:
            self.thrown_out = True
            self._doors.news.set()
