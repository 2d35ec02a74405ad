"""Gateways that send as gateways must: one connection each, receipts taken, at most W samples without one."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from hashlib import sha256
from typing import NamedTuple, Self

from benchmarks.backlog import COUNTY, connected, settings
from benchmarks.processes import BenchmarkFailed
from exchange.delivery import Delivery
from exchange.mqtt import Client, Message, Subscription
from exchange.readings import Sample
from exchange.receipts import decode_receipt
from exchange.topics import PREFIX, Topic

Encode = Callable[[Topic, Sequence[Sample]], tuple[str, bytes]]


class Parcel(NamedTuple):
    """A pack that is ready to go."""

    device: str
    epoch: int
    seqs: range
    topic: str
    payload: bytes
    digest: str


def parcel(topic: Topic, samples: Sequence[Sample], encode: Encode) -> Parcel:
    """Return the pack of these samples, of one epoch and without a gap."""
    where, payload = encode(topic, samples)
    seqs = range(samples[0].seq, samples[-1].seq + 1)
    return Parcel(topic.device, samples[0].epoch, seqs, where, payload, sha256(payload).hexdigest())


class Gateway:
    """One gateway: live first, then its backlog, as far as its window reaches.

    Shape: the window's rules are `exchange.delivery`'s. Nothing is lost on the way here, so a pack that
        is due again fails the measurement instead of going again.
    """

    def __init__(self, port: int, name: str, *, window: int) -> None:
        self.name = name
        self.stored = 0
        self.drained = 0
        """Those of the backlog among them."""
        self._live: deque[Parcel] = deque()
        self._backlog: deque[Parcel] = deque()
        self._draining: set[str] = set()
        self._delivery = Delivery(window=window)
        filters = [Subscription(f"{PREFIX}/{COUNTY}/+/{name}/receipts")]
        self.client = Client(
            settings(port, name, clean_start=True),
            filters,
            self._receipts,
            on_connect=lambda _present: self._delivery.connected(),
        )

    @property
    def unsettled(self) -> int:
        """Samples sent and not receipted."""
        return self._delivery.unreceipted

    def hold(self, backlog: Iterable[Parcel]) -> None:
        """Take over a backlog, of devices that send nothing live."""
        self._backlog.extend(backlog)
        self._draining |= {one.device for one in self._backlog}
        self.pump()

    def send_live(self, one: Parcel) -> None:
        """Send as soon as there is room, before any backlog."""
        self._live.append(one)
        self.pump()

    def pump(self) -> None:
        """Send what there is room for."""
        for queue, live in ((self._live, True), (self._backlog, False)):
            while queue and self._delivery.room(live=live) >= len(queue[0].seqs):
                one = queue[0]
                if not self.client.publish_soon(one.topic, one.payload):
                    return
                self._delivery.sent(time.monotonic(), one.device, one.epoch, one.seqs, one.digest)
                queue.popleft()

    def check(self) -> None:
        """Fail when a sample is refused, or was lost on the way. Raises: BenchmarkFailed."""
        if due := self._delivery.due(time.monotonic()):
            raise BenchmarkFailed(f"{self.name} would have to send again: {due[0]}")

    def _receipts(self, messages: list[Message], generation: int) -> None:
        now_s = time.monotonic()
        for message in messages:
            for one in self._delivery.receipted(now_s, decode_receipt(message.payload)):
                if one.outcome != "stored":
                    raise BenchmarkFailed(f"{one.key} was refused with {one.requirement}")
                self.stored += 1
                self.drained += one.key.device in self._draining
        self.client.acknowledge([message.packet_id for message in messages], generation)
        self.pump()


@asynccontextmanager
async def running(gateways: Sequence[Gateway]) -> AsyncIterator[None]:
    """Keep gateways connected. Raises: UplinkError; BenchmarkFailed when a sample was refused."""
    async with AsyncExitStack() as stack:
        for gateway in gateways:
            await stack.enter_async_context(connected(gateway.client))
        yield


class Senders:
    """Gateways without a window, inside `async with`: they send what they are given and count receipts.

    Shape: `names` are those of topics; with `receipts` each takes its own.
    """

    def __init__(self, port: int, names: Sequence[str], encode: Encode, *, receipts: bool) -> None:
        self.names = list(names)
        self.stored = 0
        self._encode = encode
        self._clients = {name: self._client(port, name, receipts=receipts) for name in names}
        self._stack = AsyncExitStack()

    def send(self, topic: Topic, samples: Sequence[Sample]) -> bool:
        """Send through the topic's gateway; False when there is no room."""
        return self._clients[topic.gateway].publish_soon(*self._encode(topic, samples))

    def _client(self, port: int, name: str, *, receipts: bool) -> Client:
        filters = [Subscription(f"{PREFIX}/{COUNTY}/+/{name}/receipts")] if receipts else []

        def take(messages: list[Message], generation: int) -> None:
            for message in messages:
                receipt = decode_receipt(message.payload)
                if receipt.refused or receipt.unreadable:
                    raise BenchmarkFailed(f"{name} was refused something: {receipt}")
                for ranges in receipt.stored.values():
                    self.stored += sum(last - first + 1 for _, first, last in ranges)
            client.acknowledge([message.packet_id for message in messages], generation)

        client = Client(settings(port, name, clean_start=True), filters, take)
        return client

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            for client in self._clients.values():
                await stack.enter_async_context(connected(client))
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()
