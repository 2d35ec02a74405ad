"""What stands in for ingest where the store is not the question: it reads every pack by the rules and receipts it.

It keeps nothing. As ingest does, it answers a gateway once for all packs of one read of the socket.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Self

from benchmarks.backlog import settings
from benchmarks.processes import BenchmarkFailed
from exchange.mqtt import Client, Message, Subscription
from exchange.readings import Sample, decode_pack
from exchange.receipts import Receipt, encode_receipt, ranges
from exchange.topics import PREFIX, Topic, parse_topic

_DEADLINE_S = 60.0
_FILTER = f"{PREFIX}/+/+/+/+/+/readings"

Watcher = Callable[[Topic, Sequence[Sample]], None]
"""Hears of every pack as it comes."""


class Receiver:
    """Inside `async with` it takes what the gateways at a broker send.

    Shape: a pack that breaks a rule fails the measurement. What came more than once counts more than once.
    """

    def __init__(self, port: int, watcher: Watcher = lambda _topic, _samples: None) -> None:
        self.packs = 0
        self.samples = 0
        self.of_gateways = 0
        """The samples that gateways took of themselves, among those."""
        self.payload_bytes = 0
        self._watcher = watcher
        self._client = Client(
            settings(port, "receiver", clean_start=True), [Subscription(_FILTER)], self._take
        )

    def check(self) -> None:
        """Raises: BenchmarkFailed when a pack broke a rule, or the broker is gone."""
        if self._running.done():
            self._running.result()
            raise BenchmarkFailed("the receiver has ended")

    async def __aenter__(self) -> Self:
        self._running = asyncio.create_task(self._client.run())
        await self._client.wait_connected(_DEADLINE_S)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.stop(_DEADLINE_S)
        await self._running

    def _take(self, messages: list[Message], generation: int) -> None:
        seqs: dict[str, dict[tuple[str, int], list[int]]] = defaultdict(lambda: defaultdict(list))
        for message in messages:
            topic = parse_topic(message.topic)
            pack = decode_pack(message.payload, topic)
            if pack.refusals:
                raise BenchmarkFailed(f"{message.topic}: {pack.refusals[0]}")
            self._watcher(topic, pack.samples)
            self.packs += 1
            self.samples += len(pack.samples)
            if topic.domain == "gateway":
                self.of_gateways += len(pack.samples)
            self.payload_bytes += len(message.payload)
            for sample in pack.samples:
                seqs[topic.receipts][topic.device, sample.epoch].append(sample.seq)
        for where, series in seqs.items():
            stored: dict[str, list[tuple[int, int, int]]] = {}
            for (device, epoch), of_device in series.items():
                spans = [(epoch, first, last) for first, last in ranges(of_device)]
                stored.setdefault(device, []).extend(spans)
            self._client.publish_soon(where, encode_receipt(Receipt(v=1, stored=stored)))
        self._client.acknowledge([message.packet_id for message in messages], generation)
