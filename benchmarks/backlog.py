"""A backlog: what a town sent while nobody took it in, kept by the broker in an offline session."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager

import msgspec

from benchmarks.processes import BenchmarkFailed
from exchange.mqtt import Client, Message, Settings, Subscription
from exchange.readings import Sample
from exchange.topics import Topic

COUNTY = "tw-tpe"
SITE = "xinyi"
FIRST_MS = 1_760_000_000_000
EPOCH = 1_750_000_000_000
METRICS = ("pm2_5", "pm10", "temperature", "humidity")
SESSION_S = 3600
_DEADLINE_S = 60.0


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """Air boxes that take a sample a second; the same load twice is the same to the last digit."""

    messages: int
    devices: int
    gateways: int
    samples: int
    """In each message."""

    @property
    def rows(self) -> int:
        """How many rows a store holds when nothing was lost."""
        return self.messages * self.samples

    def packs(self) -> Iterator[tuple[Topic, list[Sample]]]:
        """Yield what each message says, in the order of sending: every device in turn."""
        chance = random.Random(1)
        topics = [
            Topic(COUNTY, SITE, f"gw-{n % self.gateways:03d}", "air", f"air-{n:05d}", "readings")
            for n in range(self.devices)
        ]
        for number in range(self.messages):
            first_seq = number // self.devices * self.samples
            values = {name: round(chance.uniform(1, 80), 1) for name in METRICS}
            place = number % self.devices
            yield (
                topics[place],
                [
                    Sample(FIRST_MS + 1000 * seq, EPOCH + place, seq, values)
                    for seq in range(first_seq, first_seq + self.samples)
                ],
            )

    @property
    def last(self) -> tuple[str, int]:
        """Device and time (ms) of the last row that is written."""
        number = self.messages - 1
        last_seq = (number // self.devices + 1) * self.samples - 1
        return f"air-{number % self.devices:05d}", FIRST_MS + 1000 * last_seq


async def keep_session(port: int, client_id: str, topic_filter: str) -> None:
    """Leave an offline session behind that collects what is published."""
    kept = settings(port, client_id, session_expiry_s=SESSION_S)
    async with connected(Client(kept, [Subscription(topic_filter)], _ignore)):
        pass


async def forget_session(port: int, client_id: str) -> None:
    """Make the broker forget a session and what it holds."""
    async with connected(Client(settings(port, client_id, clean_start=True), (), _ignore)):
        pass


async def fill(port: int, messages: Iterable[tuple[str, bytes]]) -> None:
    """Publish as fast as the broker takes it. Raises: BenchmarkFailed when it did not take all."""
    filler = Client(settings(port, "filler", clean_start=True), (), _ignore)
    async with connected(filler) as client:
        for topic, payload in messages:
            if not client.publish_soon(topic, payload):
                await client.publish(topic, payload, deadline_s=_DEADLINE_S)
        await client.drain(_DEADLINE_S)
        if client.counts.refused or client.counts.lost:
            raise BenchmarkFailed(f"the broker did not take the backlog: {client.counts}")


@asynccontextmanager
async def connected(client: Client) -> AsyncIterator[Client]:
    """Run a client, connected. Raises: UplinkError."""
    running = asyncio.create_task(client.run())
    try:
        await client.wait_connected(_DEADLINE_S)
        yield client
    finally:
        await client.stop(_DEADLINE_S)
        await running


def _ignore(_messages: list[Message], _generation: int) -> None:
    """Take nothing."""


def settings(
    port: int, client_id: str, *, session_expiry_s: int = 0, clean_start: bool = False
) -> Settings:
    """Return how a client of a benchmark connects: a broker that refuses it ends the benchmark."""
    return Settings(
        host="127.0.0.1",
        port=port,
        client_id=client_id,
        session_expiry_s=session_expiry_s,
        clean_start=clean_start,
        fail_fast=True,
    )
