"""What the tests of ingest put around it: gateways that send and collect receipts, and ingest itself."""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import json
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

from exchange.mqtt import Client, Message, Settings, Subscription, Will
from exchange.readings import Sample, Value, encode_pack
from exchange.states import State, encode_state
from exchange.topics import Topic
from ingest.config import load_config
from ingest.service import Service, serve
from ingest.stores import Point, Store, open_store
from ingest.watch import Watch
from tests.brokers import Broker

DEADLINE_S = 20.0
COUNTY, SITE = "tw-tpe", "street"
EPOCH = 1_750_000_000_777


async def until(condition: Callable[[], object]) -> None:
    """Return once a condition, or what it is a coroutine of, holds."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            holds = condition()
            if inspect.isawaitable(holds):
                holds = await holds
            if holds:
                return
            await asyncio.sleep(0.01)


def sample(seq: int, *, epoch: int = EPOCH, quality: str = "", **metrics: Value) -> Sample:
    """Return a sample of now; the defaults make `seq` its only property."""
    time_ms = EPOCH + 1000 * (seq + 1)
    return Sample(time_ms, epoch, seq, metrics or {"pm2_5": float(seq)}, quality)


class Gateway:
    """A gateway with its own connection: what it got is kept as plain JSON, not in our types."""

    def __init__(
        self, broker: Broker, name: str, *, county: str = COUNTY, will: Will | None = None
    ) -> None:
        self.name, self.county = name, county
        self.receipts: list[Any] = []
        self.on_receipt: Callable[[Any], None] = lambda _receipt: None
        self._client = Client(
            Settings(
                host=broker.host,
                port=broker.port,
                client_id=name,
                will=will,
                session_expiry_s=60,
                backoff_first_s=0.05,
                backoff_max_s=0.2,
            ),
            [Subscription(f"city/v1/{county}/{SITE}/{name}/receipts")],
            self._take,
        )
        self._running: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Gateway:
        self._running = asyncio.create_task(self._client.run())
        await self._client.wait_connected(DEADLINE_S)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.stop(1.0)

    async def vanish(self) -> None:
        """Die without a DISCONNECT, so that the broker publishes the will."""
        assert self._running is not None
        assert self._client._connection is not None
        assert self._client._connection._transport is not None
        self._client._connection._transport.abort()
        self._running.cancel()
        await asyncio.wait([self._running])

    def topic(self, device: str, *, domain: str = "air", channel: str = "readings") -> Topic:
        return Topic(self.county, SITE, self.name, domain, device, channel)  # type: ignore[arg-type]  # the test's word

    async def send(self, device: str, *samples: Sample, domain: str = "air") -> bytes:
        """Publish a pack and return its payload."""
        topic = self.topic(device, domain=domain)
        payload = encode_pack(topic, samples)
        await self.publish(str(topic), payload)
        return payload

    async def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        await self._client.wait_connected(DEADLINE_S)
        await self._client.publish(topic, payload, retain=retain, deadline_s=DEADLINE_S)

    async def tell(self, device: str, state: State | None, *, domain: str = "air") -> None:
        topic = str(self.topic(device, domain=domain, channel="state"))
        await self.publish(topic, b"" if state is None else encode_state(state), retain=True)

    def stored(self, device: str) -> set[tuple[int, int]]:
        """(epoch, seq) of what was receipted as stored."""
        return {
            (epoch, seq)
            for receipt in self.receipts
            for epoch, first, last in receipt.get("stored", {}).get(device, [])
            for seq in range(first, last + 1)
        }

    def refused(self, device: str) -> dict[tuple[int, int], str]:
        """(epoch, seq) of what was receipted as refused, and why."""
        return {
            (epoch, seq): requirement
            for receipt in self.receipts
            for epoch, first, last, requirement in receipt.get("refused", {}).get(device, [])
            for seq in range(first, last + 1)
        }

    @property
    def unreadable(self) -> dict[str, str]:
        """Digest of what was receipted as unreadable, and why."""
        return dict(entry for receipt in self.receipts for entry in receipt.get("unreadable", []))

    async def until_stored(self, device: str, seqs: Iterable[int], *, epoch: int = EPOCH) -> None:
        wanted = {(epoch, seq) for seq in seqs}
        await until(lambda: wanted <= self.stored(device))

    async def until_unreadable(self, payload: bytes, requirement: str) -> None:
        digest = hashlib.sha256(payload).hexdigest()
        await until(lambda: digest in self.unreadable)
        assert self.unreadable[digest] == requirement

    def _take(self, messages: list[Message], generation: int) -> None:
        for message in messages:
            receipt = json.loads(message.payload)
            self.receipts.append(receipt)
            self.on_receipt(receipt)
        self._client.acknowledge([message.packet_id for message in messages], generation)


class Ingest:
    """Ingest as its configuration file makes it, in this process or in one of its own."""

    def __init__(
        self, folder: Path, broker: Broker, *, store: str = "", top: str = "", account: str = ""
    ) -> None:
        """`top` and `account` are further lines of the file and of its table [broker]."""
        self.rows_file = folder / "rows.sqlite"
        self.quarantine_file = folder / "quarantine.sqlite"
        self.store_url = store or f"sqlite:///{self.rows_file}"
        self.file = folder / "ingest.toml"
        self._lines = f'counties = ["{COUNTY}"]\nstore = "{self.store_url}"\n{top}\n'
        self._account = account
        self.watch: Watch | None = None
        self.write_config(broker.port)

    def write_config(self, port: int) -> None:
        self.file.write_text(
            f'{self._lines}\n[broker]\nhost = "127.0.0.1"\nport = {port}\n{self._account}\n'
        )

    @asynccontextmanager
    async def running(
        self, *, with_watch: bool = False, connected: bool = True
    ) -> AsyncIterator[Service]:
        """Run it here; leaving is SIGTERM. Yields once it is subscribed, if it is to be `connected`."""
        config, stop = load_config(self.file), asyncio.Event()
        service = Service(config, self.file)
        self.watch = watch = Watch(config, service.store, file=self.file) if with_watch else None
        serving = asyncio.create_task(serve(service, stop, watch))
        try:
            if connected:
                await service.client.wait_connected(DEADLINE_S)
                if watch is not None:
                    await watch.client.wait_connected(DEADLINE_S)
            yield service
        finally:
            stop.set()
            async with asyncio.timeout(DEADLINE_S):
                await serving

    def open_store(self) -> Store:
        return open_store(self.store_url)

    async def rows(self, measurement: str = "air") -> list[Point]:
        store = self.open_store()
        try:
            return [point async for point in store.rows(measurement)]
        finally:
            await store.close()

    def quarantined(self) -> list[dict[str, Any]]:
        if not self.quarantine_file.exists():
            return []
        with closing(sqlite3.connect(self.quarantine_file)) as shell:
            shell.row_factory = sqlite3.Row
            asked = "SELECT * FROM refusals JOIN payloads USING (sha256, topic)"
            return [dict(row) for row in shell.execute(asked)]


def now_ms() -> int:
    return time.time_ns() // 1_000_000
