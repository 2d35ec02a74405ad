"""What tests put around an edge agent: its configuration, and a witness at the broker that plays ingest."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import aiomqtt
import msgspec

from edge_agent.agent import Agent
from edge_agent.clock import Clock
from edge_agent.config_reading import read_config
from exchange.configuration import toml_table
from exchange.delivery import Key
from exchange.readings import Sample, decode_pack
from exchange.receipts import Receipt, encode_receipt
from exchange.states import State, decode_state
from exchange.topics import parse_topic
from tests.brokers import Mosquitto

DEADLINE_S = 20.0
GATEWAY, ROOT = "gw-1", "city/v1/tw-tpe/street/gw-1"


async def until(condition: Callable[[], object], deadline_s: float = DEADLINE_S) -> None:
    """Return once a condition holds."""
    async with asyncio.timeout(deadline_s):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.01)


# --------------------------------------------------------------------------------------------------- configuration


def air(bus: str, number: int = 1, **more: object) -> dict[str, object]:
    return {
        "id": f"air-{number}",
        "domain": "air",
        "driver": "plantower_pms",
        "bus": bus,
        "interval_s": 1.0,
        **more,
    }


def lamp(bus: str, number: int = 1, **more: object) -> dict[str, object]:
    return {
        "id": f"lamp-{number}",
        "domain": "streetlight",
        "driver": "intesis_dali",
        "bus": bus,
        "interval_s": 0.1,
        "settings": {"short_address": number},
        **more,
    }


def bay(bus: str, address: str, number: int = 1, **more: object) -> dict[str, object]:
    return {
        "id": f"bay-{number}",
        "domain": "parking",
        "driver": "bthome",
        "bus": bus,
        "interval_s": 1.0,
        "settings": {"address": address},
        **more,
    }


def write_config(
    folder: Path,
    broker: Mosquitto,
    buses: list[dict[str, Any]],
    devices: list[dict[str, object]],
    *,
    delivery: Mapping[str, object] | None = None,
    uplink: Mapping[str, object] | None = None,
) -> Path:
    """Write an agent's file. `delivery` and `uplink` are further keys of its tables."""
    gateway = {
        "id": GATEWAY,
        "county": "tw-tpe",
        "site": "street",
        "state_dir": str(folder / "state"),
        "interval_s": 600,
        "label": {"en": "Cabinet 7", "zh-TW": "七號箱"},
        "location": {"lat": 25.04, "lon": 121.56},
        "township": "63000050",
    }
    link = {"host": broker.host, "port": broker.port, "keepalive_s": 5, "timeout_s": 5.0}
    tables = [
        toml_table("[gateway]", **gateway),
        toml_table("[broker]", **(link | dict(uplink or {}))),
        toml_table("[delivery]", **({"drain_s": 5.0} | dict(delivery or {}))),
        *(toml_table("[[bus]]", **bus) for bus in buses),
        *(toml_table("[[device]]", **device) for device in devices),
    ]
    path = folder / "edge.toml"
    path.write_text("\n".join(tables), encoding="utf-8")
    return path


@asynccontextmanager
async def running_agent(
    path: Path,
    *,
    clock: Clock | None = None,
    monotonic_s: Callable[[], float] = time.monotonic,
    reload: asyncio.Event | None = None,
    deadline_s: float = DEADLINE_S,
) -> AsyncIterator[Agent]:
    """Run the agent in this process; leaving stops and drains it. What it raises is raised here."""
    agent = Agent(read_config(path), str(path), clock=clock, monotonic_s=monotonic_s)
    stop = asyncio.Event()
    task = asyncio.create_task(agent.run(stop, reload))
    try:
        yield agent
    finally:
        stop.set()
        async with asyncio.timeout(deadline_s):
            await task


# --------------------------------------------------------------------------------------------------------- witness


class Heard(NamedTuple):
    """One readings message. It broke no rule: a pack with refusals is never noted."""

    device: str
    domain: str
    samples: list[Sample]
    payload: bytes

    @property
    def keys(self) -> list[Key]:
        return [Key(self.device, sample.epoch, sample.seq) for sample in self.samples]


class Witness:
    """Hears everything that a gateway publishes and plays ingest.

    Shape: `answers` says whether samples get their receipt at once. `packs` has every readings message
        in order, `states` the last of each device with its number of changes.
    """

    def __init__(self, client: aiomqtt.Client, *, answers: bool) -> None:
        self.answers = answers
        self.packs: list[Heard] = []
        self.states: dict[str, State] = {}
        self.state_changes: dict[str, int] = {}
        self.retained: set[str] = set()
        self.retired: set[str] = set()
        self.wrong: list[str] = []
        self._client = client

    @property
    def keys(self) -> list[Key]:
        """Every sample heard, as often as it came."""
        return [key for heard in self.packs for key in heard.keys]

    def of(self, device: str) -> list[Sample]:
        """Return a device's samples, each once, in order of coming."""
        found = {s.seq: s for heard in self.packs if heard.device == device for s in heard.samples}
        return list(found.values())

    async def listen(self) -> None:
        async for message in self._client.messages:
            payload = bytes(message.payload) if isinstance(message.payload, bytes) else b""
            topic = parse_topic(str(message.topic))
            if topic.channel == "state":
                state = decode_state(payload)
                if state is None:
                    self.retired.add(topic.device)
                    continue
                self.states[topic.device] = state
                self.state_changes[topic.device] = self.state_changes.get(topic.device, 0) + 1
                if message.retain:
                    self.retained.add(topic.device)
                continue
            pack = decode_pack(payload, topic)
            self.wrong += [f"{topic.device}: {refusal}" for refusal in pack.refusals]
            self.packs.append(Heard(topic.device, topic.domain, pack.samples, payload))
            if self.answers:
                await self.store(self.packs[-1].keys)

    async def store(self, keys: list[Key]) -> None:
        """Say that these samples are in the store."""
        stored: dict[str, list[tuple[int, int, int]]] = {}
        for key in keys:
            stored.setdefault(key.device, []).append((key.epoch, key.seq, key.seq))
        await self.say(Receipt(v=1, stored=stored))

    async def refuse(self, keys: list[Key], requirement: str) -> None:
        refused: dict[str, list[tuple[int, int, int, str]]] = {}
        for key in keys:
            refused.setdefault(key.device, []).append((key.epoch, key.seq, key.seq, requirement))
        await self.say(Receipt(v=1, refused=refused))

    async def cannot_read(self, payload: bytes, requirement: str) -> None:
        await self.say(Receipt(v=1, unreadable=[(sha256(payload).hexdigest(), requirement)]))

    async def say(self, receipt: Receipt | bytes) -> None:
        payload = receipt if isinstance(receipt, bytes) else encode_receipt(receipt)
        await self._client.publish(f"{ROOT}/receipts", payload, qos=1)


@asynccontextmanager
async def witness(
    broker: Mosquitto, *, answers: bool = True, account: tuple[str, str] | None = None
) -> AsyncIterator[Witness]:
    """Listen in. Whatever breaks the exchange fails the test when this ends."""
    username, password = account or (None, None)
    async with aiomqtt.Client(
        broker.host, broker.port, username=username, password=password, timeout=DEADLINE_S
    ) as client:
        one = Witness(client, answers=answers)
        for channel in ("readings", "state"):
            await client.subscribe(f"city/v1/+/+/+/+/+/{channel}", qos=1)
        listening = asyncio.create_task(one.listen())
        try:
            yield one
        finally:
            while not listening.done():  # before Python 3.12 aiomqtt may swallow a cancellation
                listening.cancel()
                await asyncio.wait([listening], timeout=0.2)
            (ended,) = await asyncio.gather(listening, return_exceptions=True)
            if isinstance(ended, Exception):
                raise ended
            assert one.wrong == []


class Monotonic:
    """A monotonic clock that is moved by hand."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def json_lines(path: Path) -> list[dict[str, Any]]:
    """Return the log of a process, without the line that it is just writing."""
    whole, _, _ = path.read_bytes().rpartition(b"\n")
    return [msgspec.json.decode(line) for line in whole.splitlines() if line]
