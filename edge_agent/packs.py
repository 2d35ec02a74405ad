"""Packs: which samples of the outbox go out next, and how they are put together.

Live goes before backlog. Live is what was taken since the connection came and could go at once; all that is older, or
found the window full, is backlog. The backlog is read in large chunks, so that each device's share makes large packs,
and goes as far as its part of the window reaches. What waits for a receipt is left to the delivery rules.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import sha256
from itertools import groupby
from operator import attrgetter
from typing import NamedTuple

from edge_agent.config import Config
from edge_agent.outbox import Outbox, Waiting
from exchange.delivery import PARKED_EVERY_S, Delivery, Key, Sending
from exchange.readings import MAX_PACK_BYTES, encode_pack
from exchange.topics import Topic

LIVE_SAMPLES = 1000
CHUNK_SAMPLES = 5000
"""Samples of the backlog that are read at once, and held in memory."""
BACKLOG_PACKS = 20
"""Packs of the backlog that are put together at once: live samples are not kept waiting for more."""
LOOK_EVERY_S = 1.0
"""How often it is looked for what goes again."""


class Outgoing(NamedTuple):
    """A pack on its way. Shape: `topic` and `payload` are what is published."""

    sending: Sending
    topic: str
    payload: bytes


class _Packed(NamedTuple):
    """Samples of one device and one epoch as they travel."""

    samples: list[Waiting]
    topic: str
    payload: bytes
    digest: str

    @property
    def seqs(self) -> list[int]:
        return [one.sample.seq for one in self.samples]


class Packs:
    """Takes samples from the outbox and notes with `delivery` what goes out."""

    def __init__(
        self, config: Config, outbox: Outbox, delivery: Delivery, clock: Callable[[], float]
    ) -> None:
        self.reconfigure(config)
        self._outbox = outbox
        self._delivery = delivery
        self._clock = clock
        self._live_id = 0  # up to it everything was sent, or is backlog
        self._backlog_id = 0  # up to it everything was read
        self._backlog_end_id = 0
        self._handed: list[Waiting] = []  # in the outbox as well, which need not be asked for them
        self._ahead: deque[list[Waiting]] = deque()  # read, not sent
        self._settled: set[Key] | None = None  # while a chunk is read
        self._released = 0
        self._begun_again_s = self._looked_s = float("-inf")

    def reconfigure(self, config: Config) -> None:
        """Go on with these settings."""
        self._gateway, self._settings = config.gateway, config.delivery
        self._topics: dict[tuple[str, str], tuple[Topic, str]] = {}

    def hand_over(self, samples: Sequence[Waiting]) -> None:
        """The outbox took these, one at least, in this order. It is asked for what nobody hands over."""
        if self._handed and self._handed[-1].id + 1 != samples[0].id:
            self._handed.clear()
        self._handed += samples
        if len(self._handed) > LIVE_SAMPLES:
            self._handed.clear()

    def connected(self) -> None:
        """What is in the outbox now is backlog."""
        self._live_id = self._outbox.last_id
        self._handed.clear()
        self._looked_s = float("-inf")
        self._begin_again()

    def settled(self, keys: Sequence[Key]) -> None:
        """These have their receipt; one that is just being read does not go again."""
        if self._settled is not None:
            self._settled.update(keys)

    async def again(self) -> list[Outgoing]:
        """Return the packs that the delivery rules send again."""
        batch: list[Outgoing] = []
        now_s = self._clock()
        if now_s - self._looked_s < LOOK_EVERY_S:
            return batch
        self._looked_s = now_s
        for sending in self._delivery.due(now_s):
            keys = sending.keys
            found = await self._outbox.find(keys)
            here = {_key(one) for one in found}
            self._delivery.gone(key for key in keys if key not in here)
            waiting = [one for one in found if one.sample.seq in sending.seqs]
            whole = list(self._packed(waiting))
            for packed in whole:
                part = packed.seqs if len(whole) > 1 else None
                self._delivery.sent_again(self._clock(), sending, packed.digest, part)
                batch.append(Outgoing(sending, packed.topic, packed.payload))
        return batch

    async def live(self) -> list[Outgoing]:
        """Return packs of what was just taken, as far as the window reaches; the rest is backlog from now on."""
        newest_id = self._outbox.last_id
        if newest_id <= self._live_id:
            return []
        read: list[Waiting] = []
        if limit := min(self._delivery.room(live=True), LIVE_SAMPLES):
            read = await self._after_live(limit)
            if not read:
                self._live_id = newest_id  # the outbox let go of them
        # while they were read the backlog may have taken some of the room
        fitting = read[: self._delivery.room(live=True)]
        batch = self._sent(self._in_packs(fitting))
        if fitting:
            self._live_id = fitting[-1].id
        if not self._delivery.room(live=True):
            self._give_up_live()
        return batch

    async def _after_live(self, limit: int) -> list[Waiting]:
        """Return what was taken next; the outbox's thread is woken for it only when it was not handed over."""
        handed, self._handed = self._handed, []
        if handed and handed[0].id <= self._live_id + 1 and handed[-1].id > self._live_id:
            return [one for one in handed if one.id > self._live_id][:limit]
        return await self._outbox.after(self._live_id, limit)

    async def backlog(self) -> list[Outgoing]:
        """Return packs of what is older, as far as its part of the window reaches."""
        self._look_for_released()
        if not self.has_backlog:
            return []
        pack = self._settings.pack_samples
        if not self._delivery.room(live=False, pack=pack):
            return []
        if not self._ahead:
            await self._read_ahead()
        room = self._delivery.room(live=False, pack=pack)
        packs: list[list[Waiting]] = []
        while self._ahead and room and len(packs) < BACKLOG_PACKS:
            samples = self._ahead.popleft()
            if len(samples) > room:
                self._ahead.appendleft(samples[room:])
                samples = samples[:room]
            packs.append(samples)
            room -= len(samples)
        batch = self._sent(packs)
        if self.has_backlog:
            self._delivery.room(live=False, pack=pack)  # says whether more would go if it could
        return batch

    # ------------------------------------------------------------------------------------------------- the backlog

    @property
    def has_backlog(self) -> bool:
        """Whether something older waits for room."""
        return bool(self._ahead) or self._backlog_id < self._backlog_end_id

    def _begin_again(self) -> None:
        """Read everything from the beginning that does not wait for a receipt."""
        self._backlog_id, self._backlog_end_id = 0, self._live_id
        self._ahead.clear()
        self._released = self._delivery.released
        self._begun_again_s = self._clock()

    def _give_up_live(self) -> None:
        """The window is full: what could not go is backlog, so that what is taken later goes before it."""
        if not self.has_backlog:
            self._backlog_id = self._live_id
        self._live_id = self._backlog_end_id = max(self._live_id, self._outbox.last_id)

    def _look_for_released(self) -> None:
        """What nobody receipted for hours was let go of; it gets another chance as often as what is parked."""
        is_time = self._clock() - self._begun_again_s >= PARKED_EVERY_S
        if self._released != self._delivery.released and is_time:
            self._begin_again()

    async def _read_ahead(self) -> None:
        begin_id, end_id = self._backlog_id, self._backlog_end_id
        settled: set[Key] = set()
        self._settled = settled
        in_flight = self._delivery.holds
        try:
            waiting = await self._outbox.between(begin_id, end_id, CHUNK_SAMPLES)
        finally:
            self._settled = None
        if begin_id != self._backlog_id:
            return  # begun again meanwhile
        self._backlog_id = waiting[-1].id if len(waiting) == CHUNK_SAMPLES else end_id
        fresh = [one for one in waiting if not in_flight(*_key(one)) and _key(one) not in settled]
        self._ahead.extend(self._in_packs(fresh))

    # --------------------------------------------------------------------------------------------------- packing

    def _in_packs(self, waiting: Sequence[Waiting]) -> Iterator[list[Waiting]]:
        """Yield the samples as packs: one device, one epoch, ascending."""
        size = self._settings.pack_samples
        ordered = sorted(waiting, key=_series)  # stable: within a series as they were taken
        for _, group in groupby(ordered, _series):
            whole = list(group)
            yield from (whole[start : start + size] for start in range(0, len(whole), size))

    def _sent(self, packs: Iterable[list[Waiting]]) -> list[Outgoing]:
        """Pack them and note them as sent: all before the first, so that an error leaves nothing half noted."""
        ready = [packed for pack in packs for packed in self._packed(pack)]
        batch = []
        for packed in ready:
            device, epoch = _series(packed.samples[0])
            now_s = self._clock()
            sending = self._delivery.sent(now_s, device, epoch, packed.seqs, packed.digest)
            batch.append(Outgoing(sending, packed.topic, packed.payload))
        return batch

    def _packed(self, samples: Sequence[Waiting]) -> Iterator[_Packed]:
        """Yield the samples as they travel: each domain, which a reload may correct, on its own topic."""
        for _, group in groupby(samples, attrgetter("domain")):
            yield from self._fitting(list(group))

    def _fitting(self, samples: list[Waiting]) -> Iterator[_Packed]:
        """Yield samples of one topic, in halves for as long as they are too large."""
        topic, address = self._topic(samples[0].domain, samples[0].device)
        payload = encode_pack(topic, [one.sample for one in samples], self._settings.format)
        if len(payload) > MAX_PACK_BYTES and len(samples) > 1:
            middle = len(samples) // 2
            yield from self._fitting(samples[:middle])
            yield from self._fitting(samples[middle:])
        else:
            yield _Packed(samples, address, payload, sha256(payload).hexdigest())

    def _topic(self, domain: str, device: str) -> tuple[Topic, str]:
        """Return where a device's samples go, also as text."""
        if (found := self._topics.get((domain, device))) is None:
            gateway = self._gateway
            topic = Topic(gateway.county, gateway.site, gateway.id, domain, device, "readings")
            found = self._topics[domain, device] = topic, str(topic)
        return found


def _series(one: Waiting) -> tuple[str, int]:
    return one.device, one.sample.epoch


def _key(one: Waiting) -> Key:
    return Key(one.device, one.sample.epoch, one.sample.seq)
