"""A subscriber that takes part in nothing: which samples got their receipt, and how long the live ones took."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import Self

from benchmarks.backlog import settings
from benchmarks.processes import BenchmarkFailed
from exchange.mqtt import Client, Message, Subscription
from exchange.readings import decode_pack
from exchange.receipts import decode_receipt
from exchange.topics import PREFIX, parse_topic

_DEADLINE_S = 60.0


class Listener:
    """Inside `async with` it hears one gateway's receipts, and the readings of one domain: the live ones."""

    def __init__(self, port: int, gateway: str, live_domain: str) -> None:
        self.stored: Counter[str] = Counter()
        """Samples with a receipt, by device."""
        self.live_ms: list[float] = []
        """From a live sample's own time to its receipt, since this was emptied last."""
        self.last_s = 0.0
        """When the latest receipt came."""
        self._out: dict[tuple[str, int, int], int] = {}
        filters = [
            Subscription(f"{PREFIX}/+/+/{gateway}/receipts"),
            Subscription(f"{PREFIX}/+/+/{gateway}/{live_domain}/+/readings"),
        ]
        self._client = Client(settings(port, "listener", clean_start=True), filters, self._take)

    async def __aenter__(self) -> Self:
        self._running = asyncio.create_task(self._client.run())
        await self._client.wait_connected(_DEADLINE_S)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.stop(_DEADLINE_S)
        await self._running

    def _take(self, messages: list[Message], generation: int) -> None:
        for message in messages:
            topic = parse_topic(message.topic)
            if topic.channel == "receipts":
                self._receipt(message.payload)
            else:
                for sample in decode_pack(message.payload, topic).samples:
                    self._out[topic.device, sample.epoch, sample.seq] = sample.time_ms
        self._client.acknowledge([message.packet_id for message in messages], generation)

    def _receipt(self, payload: bytes) -> None:
        receipt = decode_receipt(payload)
        if receipt.refused or receipt.unreadable:
            raise BenchmarkFailed(f"samples were refused: {receipt}")
        now_ms, self.last_s = time.time_ns() / 1e6, time.monotonic()
        for device, ranges in receipt.stored.items():
            for epoch, first, last in ranges:
                self.stored[device] += last - first + 1
                for seq in range(first, last + 1) if self._out else ():
                    time_ms = self._out.pop((device, epoch, seq), None)
                    if time_ms is not None:
                        self.live_ms.append(now_ms - time_ms)
