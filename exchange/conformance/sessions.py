"""Sessions: parties that came in by their credentials; what comes to them is noted."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, suppress

import msgspec

from exchange.conformance.authorization import Markers, Sent
from exchange.conformance.credentials import Party
from exchange.conformance.witness import Will, Witness, witness
from exchange.errors import UplinkLost, UplinkRefused


class Session:
    """A party that is in: what comes to it is noted. It comes in again when the broker throws it out."""

    def __init__(self, party: Party, markers: Markers) -> None:
        self.party = party
        self.thrown_out = False
        self._markers = markers
        self._stack = AsyncExitStack()
        self._connection: Witness | None = None
        self._listening: asyncio.Task[None] | None = None
        self._filters: list[str] = []

    async def connect(
        self,
        *,
        client_id: str = "",
        username: str = "",
        clean_session: bool = True,
        will: Will | None = None,
    ) -> None:
        """Come in, and subscribe as before. Raises: UplinkError."""
        await self.disconnect()
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
                await self.subscribe(one)

    async def disconnect(self) -> None:
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

    async def subscribe(self, topic_filter: str) -> None:
        """Subscribe; a no is as good as a silence."""
        assert self._connection is not None
        self._filters.append(topic_filter)
        try:
            await self._connection.subscribe(topic_filter)
        except UplinkRefused:
            return
        except UplinkLost:
            self._filters.remove(topic_filter)  # a broker may end the connection instead
            await self.connect()

    async def say(self, sent: Sent, *, retain: bool = False) -> None:
        """Publish; whether it arrives is for the markers to see."""
        await self.publish(str(sent.topic), sent.payload, retain=retain)

    async def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """Publish; a broker may end the connection of who publishes what is denied."""
        assert self._connection is not None
        with suppress(UplinkLost):
            await self._connection.publish(topic, payload, retain=retain)
        if self.thrown_out or self._connection.has_ended:
            await self.connect()

    async def _listen(self, connection: Witness) -> None:
        try:
            async for seen in connection.messages():
                self._markers.take(self.party, seen)
        except UplinkLost:
            self.thrown_out = True
            self._markers.news.set()
