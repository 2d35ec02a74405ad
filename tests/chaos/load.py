"""The load: gateways that keep the truth, each with a connection, an outbox and the delivery rules of the exchange.

They run in the harness, which nothing kills: what they took is what must be in the store.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from hashlib import sha256
from itertools import groupby

from exchange.delivery import Delivery, Key, Sending
from exchange.errors import UplinkError
from exchange.mqtt import Client, Message, Settings, Subscription
from exchange.readings import PackFormat, Sample, Value, encode_pack
from exchange.receipts import decode_receipt
from exchange.topics import Topic
from tests.chaos.poison import Poison
from tests.chaos.truth import Taken

COUNTY, SITE = "tw-tpe", "chaos"
INTERVAL_S = 1.0
TICK_S = 0.05
PACK_SAMPLES = 50
PUBLISHES = 40
SLEW_MS = 100
DOMAINS = ("air", "streetlight", "parking")


class Metrics:
    """Values that look like a device's, with all digits that a double has."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._energy = 0

    def of(self, domain: str) -> dict[str, Value]:
        chance = self._chance
        match domain:
            case "air":
                return {
                    "pm2_5": round(chance.uniform(0, 500), chance.randrange(15)),
                    "temperature": chance.uniform(-10, 40),
                    "humidity": float(chance.randrange(100)),
                    "x-acme-fan": chance.uniform(-1e9, 1e9),
                }
            case "streetlight":
                self._energy += chance.randrange(100)
                lit = chance.random() < 0.5
                return {"lit": lit, "power": chance.uniform(0, 200), "energy": float(self._energy)}
            case _:
                return {"occupied": chance.random() < 0.5, "free_car": chance.randrange(1000)}

    def quality(self) -> str:
        return self._chance.choice(["", "", "", "uncertain:warmup", "bad:fault(temperature)"])


class _Device:
    """A device's names: a clock that is set back begins a new epoch, as the contract says."""

    def __init__(self, name: str, domain: str, now_ms: int) -> None:
        self.name, self.domain = name, domain
        self.epoch, self.next_seq, self.last_ms = now_ms, 0, now_ms - 1

    def named(self, now_ms: int) -> tuple[Key, int]:
        """Return the next sample's key and time."""
        if now_ms < self.last_ms - SLEW_MS:
            self.epoch, self.next_seq = max(now_ms, self.epoch + 1), 0
        else:
            now_ms = max(now_ms, self.last_ms + 1)
        key = Key(self.name, self.epoch, self.next_seq)
        self.next_seq, self.last_ms = self.next_seq + 1, now_ms
        return key, now_ms


class LoadGateway:
    """One gateway, while `run` runs. `on_stored` hears of every sample that is receipted."""

    def __init__(
        self,
        name: str,
        broker: tuple[str, int],
        *,
        devices: int,
        form: PackFormat,
        seed: str,
        on_told: Callable[[Taken], None],
    ) -> None:
        self.name = name
        self.truth: dict[Key, Taken] = {}
        self.waiting: dict[Key, Taken] = {}
        """The outbox: what has no receipt yet, oldest first."""
        self.offset_ms = 0
        """How far its clock is off."""
        self.sampling = True
        self._chance = random.Random(seed)
        self._metrics = Metrics(self._chance)
        self._form = form
        self._on_told = on_told
        now_ms = self._now_ms()
        self._devices = [
            _Device(f"{name}-{number}", DOMAINS[number % len(DOMAINS)], now_ms)
            for number in range(devices)
        ]
        self._delivery = Delivery(random=random.Random(seed))
        self._raw: dict[str, tuple[str, bytes]] = {}
        self._fresh: list[Key] = []
        self._publishing: set[asyncio.Task[None]] = set()
        self._client = Client(
            Settings(
                host=broker[0],
                port=broker[1],
                client_id=name,
                keepalive_s=6,
                session_expiry_s=600,
                backoff_first_s=0.2,
                backoff_max_s=2.0,
                connect_timeout_s=4.0,
            ),
            [Subscription(f"city/v1/{COUNTY}/{SITE}/{name}/receipts")],
            self._take,
            on_connect=lambda _present: self._delivery.connected(),
            on_disconnect=lambda _error: self._delivery.disconnected(),
        )

    @property
    def connected(self) -> bool:
        return self._client.connected

    @property
    def resends(self) -> int:
        return self._delivery.resends + self._delivery.probes

    async def run(self) -> None:
        """Sample and send until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._client.run())
            tasks.create_task(self._sample())
            tasks.create_task(self._send())

    async def stop(self) -> None:
        """Say goodbye; `run` is cancelled afterwards."""
        await self._client.stop(2.0)

    def restart(self) -> None:
        """Forget everything but the outbox, as a gateway does that was switched off and on."""
        self._delivery = Delivery(random=self._chance)
        if self._client.connected:
            self._delivery.connected()
        self._fresh = list(self.waiting)

    def poison(self, poison: Poison) -> None:
        """Take a payload that is wrong in some way; it is sent and resent like any other."""
        topic = Topic(COUNTY, SITE, self.name, poison.domain, poison.device, "readings")
        self._raw[poison.device] = (str(topic), poison.payload)
        for sample in poison.samples:
            sample.taken_s = time.monotonic()
            self._keep(sample)

    async def publish(self, topic: str, payload: bytes) -> None:
        """Publish something beside the delivery rules. Raises: UplinkError."""
        await self._client.publish(topic, payload)

    # ------------------------------------------------------------------------------------------------- sampling

    def _now_ms(self) -> int:
        return time.time_ns() // 1_000_000 + self.offset_ms

    async def _sample(self) -> None:
        """Let every device measure once an interval, one after another."""
        number = 0
        begun_s = time.monotonic()
        while True:
            number += 1
            await asyncio.sleep(
                begun_s + number * INTERVAL_S / len(self._devices) - time.monotonic()
            )
            if not self.sampling:
                continue
            device = self._devices[number % len(self._devices)]
            key, time_ms = device.named(self._now_ms())
            self._keep(
                Taken(
                    key,
                    device.domain,
                    COUNTY,
                    SITE,
                    time_ms,
                    self._metrics.of(device.domain),
                    self._metrics.quality(),
                    taken_s=time.monotonic(),
                )
            )

    def _keep(self, sample: Taken) -> None:
        assert sample.key not in self.truth
        self.truth[sample.key] = self.waiting[sample.key] = sample
        self._fresh.append(sample.key)

    # -------------------------------------------------------------------------------------------------- sending

    async def _send(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            now_s = time.monotonic()
            if not self._client.connected or len(self._publishing) >= PUBLISHES:
                continue
            for sending in self._delivery.due(now_s):
                found = [self.waiting[key] for key in sending.keys if key in self.waiting]
                if found:
                    topic, payload = self._packed(found)
                    self._delivery.sent_again(now_s, sending, sha256(payload).hexdigest())
                    self._publish(sending, topic, payload)
            self._send_fresh(now_s)

    def _send_fresh(self, now_s: float) -> None:
        count = min(self._delivery.room(live=True), PUBLISHES * PACK_SAMPLES)
        now, self._fresh = self._fresh[:count], self._fresh[count:]
        for pack in _packs([self.waiting[key] for key in now if key in self.waiting], self._raw):
            topic, payload = self._packed(pack)
            key, seqs = pack[0].key, [one.key.seq for one in pack]
            digest = sha256(payload).hexdigest()
            sending = self._delivery.sent(now_s, key.device, key.epoch, seqs, digest)
            self._publish(sending, topic, payload)

    def _packed(self, pack: Sequence[Taken]) -> tuple[str, bytes]:
        device = pack[0].key.device
        if device in self._raw:
            return self._raw[device]
        topic = Topic(COUNTY, SITE, self.name, pack[0].domain, device, "readings")
        samples = [
            Sample(one.time_ms, one.key.epoch, one.key.seq, one.metrics, one.quality)
            for one in pack
        ]
        return str(topic), encode_pack(topic, samples, self._form)

    def _publish(self, sending: Sending, topic: str, payload: bytes) -> None:
        delivery = self._delivery

        async def publish() -> None:
            try:
                await self._client.publish(topic, payload)
            except UplinkError:
                delivery.failed(sending)

        task = asyncio.create_task(publish())
        self._publishing.add(task)
        task.add_done_callback(self._publishing.discard)

    def _take(self, messages: list[Message], generation: int) -> None:
        now_s = time.monotonic()
        for message in messages:
            for settled in self._delivery.receipted(now_s, decode_receipt(message.payload)):
                sample = self.waiting.pop(settled.key, None)
                if sample is not None:
                    sample.told = settled.requirement or settled.outcome
                    self._on_told(sample)
        self._client.acknowledge([message.packet_id for message in messages], generation)


def _packs(samples: Iterable[Taken], raw: dict[str, tuple[str, bytes]]) -> list[list[Taken]]:
    """Return the samples as packs of one device and epoch, ascending; what has a payload of its own stays whole."""
    packs: list[list[Taken]] = []
    ordered = sorted(samples, key=lambda sample: sample.key)
    for (device, _), group in groupby(ordered, lambda sample: sample.key[:2]):
        whole = list(group)
        size = len(whole) if device in raw else PACK_SAMPLES
        packs += [whole[start : start + size] for start in range(0, len(whole), size)]
    return packs


class Load:
    """All gateways of the load."""

    def __init__(self, broker: tuple[str, int], *, gateways: int, devices: int, seed: int) -> None:
        self.stored_s: list[tuple[float, float]] = []
        """(receipt came, sample was taken), by the monotonic clock, of what is stored."""
        self.gateways = [
            LoadGateway(
                f"load-{number}",
                broker,
                devices=devices,
                form="cbor" if number % 2 else "json",
                seed=f"{seed} load {number}",
                on_told=self._told,
            )
            for number in range(gateways)
        ]
        self._running: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._running = asyncio.create_task(self._run(), name="load")

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for gateway in self.gateways:
                tasks.create_task(gateway.run())

    def check(self) -> None:
        """Raise what ended the load, if anything did."""
        if self._running is not None and self._running.done():
            self._running.result()
            raise RuntimeError("the load ended")

    def fall_silent(self) -> None:
        """Take no samples any more."""
        for gateway in self.gateways:
            gateway.sampling = False

    async def stop(self) -> None:
        for gateway in self.gateways:
            await gateway.stop()
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait([self._running])

    @property
    def waiting(self) -> int:
        """Samples without a receipt."""
        return sum(len(gateway.waiting) for gateway in self.gateways)

    @property
    def oldest_s(self) -> float:
        """When the oldest sample without a receipt was taken; infinity when there is none."""
        ages = (sample.taken_s for one in self.gateways for sample in one.waiting.values())
        return min(ages, default=float("inf"))

    @property
    def truth(self) -> list[Taken]:
        return [sample for gateway in self.gateways for sample in gateway.truth.values()]

    def gaps(self) -> dict[str, list[float]]:
        """Return when samples of each device that are stored were taken."""
        times: defaultdict[str, list[float]] = defaultdict(list)
        for sample in self.truth:
            if sample.told == "stored":
                times[sample.key.device].append(sample.taken_s)
        return times

    def _told(self, sample: Taken) -> None:
        if sample.told == "stored":
            self.stored_s.append((time.monotonic(), sample.taken_s))
