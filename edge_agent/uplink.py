"""The uplink: samples from the outbox to the broker, receipts back. The one file that knows aiomqtt."""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
import time
from collections.abc import Awaitable, Callable, Sequence
from hashlib import sha256
from itertools import groupby

import aiomqtt

from edge_agent.config import Config
from edge_agent.health import Health
from edge_agent.outbox import Outbox, OutboxDamaged, Waiting
from exchange.delivery import Delivery, Sending
from exchange.errors import DeliveryError, OnestreetError
from exchange.readings import MAX_PACK_BYTES, encode_pack
from exchange.receipts import decode_receipt
from exchange.topics import Topic

log = logging.getLogger(__name__)

TICK_S = 1.0
BATCH_SAMPLES = 2000
CONCURRENT_PUBLISHES = 20
QUEUED_RECEIPTS = 1000  # one that finds no place is as good as lost: its samples go again
BACKOFF_FIRST_S = 0.5
BACKOFF_LAST_S = 30.0

Message = tuple[str, bytes]
"""Topic and payload."""


class Uplink:
    """One gateway's connection, for as long as the agent runs."""

    def __init__(
        self,
        config: Config,
        outbox: Outbox,
        health: Health,
        *,
        states: Callable[[], Awaitable[Sequence[Message]]],
        password: Callable[[], str | None] = lambda: None,
        tls: Callable[[], ssl.SSLContext | None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`states` gives every retained state as it is now: all go out on every connect.

        `password` and `tls` are asked before each connection, so that what was renewed is taken up.
        """
        gateway = config.gateway
        self.delivery = Delivery(window=config.delivery.window)
        self.will: Message | None = None
        """What the broker says for us when we are gone; set before `run`."""
        self.connected = False
        self.receipted = asyncio.Event()
        self._config = config
        self._password = password
        self._outbox = outbox
        self._health = health
        self._states = states
        self._tls = tls
        self._clock = clock
        self._receipts_topic = str(
            Topic(gateway.county, gateway.site, gateway.id, "", "", "receipts")
        )
        self._sent_id = 0
        self._wake = asyncio.Event()
        self._states_due = False
        self._last_error = ""
        self._library_said = ""
        self._library_log = logging.Logger(f"{__name__}.library")  # noqa: LOG001 - its filter is this one's
        self._library_log.parent = log
        self._library_log.addFilter(self._is_warning)

    def wake(self) -> None:
        """There is something new to send."""
        self._wake.set()

    def republish_states(self) -> None:
        """A state changed."""
        self._states_due = True
        self._wake.set()

    async def run(self) -> None:
        """Stay connected until cancelled; every failure backs off with jitter."""
        wait_s = BACKOFF_FIRST_S
        while True:
            begun_s = self._clock()
            try:
                await self._session()
            except* OutboxDamaged:
                raise  # only a new start helps
            except* Exception as group:  # noqa: BLE001 - sampling goes on, whatever the uplink meets
                self._report(group)
            finally:
                self.connected = False
                self.delivery.disconnected()
            if self._clock() - begun_s > BACKOFF_LAST_S:
                wait_s = BACKOFF_FIRST_S
            await asyncio.sleep(wait_s * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
            wait_s = min(2 * wait_s, BACKOFF_LAST_S)

    def _is_warning(self, record: logging.LogRecord) -> bool:
        """Keep what the library says of an error for the one line that reports it: the cause, such as a TLS alert."""
        if record.levelno < logging.ERROR:
            return True
        self._library_said = record.getMessage()
        return False

    async def _session(self) -> None:
        self._library_said = ""
        async with self._client() as client:
            client.pending_calls_threshold = CONCURRENT_PUBLISHES  # as many are no surprise
            await client.subscribe(self._receipts_topic, qos=1)
            await self._publish_states(client)
            self.connected = True
            self._last_error = ""
            log.info("connected", extra={"broker": "{}:{}".format(*self._config.broker.address)})
            self.delivery.connected()
            async with asyncio.TaskGroup() as group:
                group.create_task(self._receive(client))
                group.create_task(self._send(client))

    def _client(self) -> aiomqtt.Client:
        broker = self._config.broker
        return aiomqtt.Client(
            *broker.address,
            identifier=self._config.gateway.id,
            username=broker.username or None,
            password=self._password(),
            tls_context=self._tls(),
            clean_session=False,
            keepalive=broker.keepalive_s,
            timeout=broker.timeout_s,
            will=aiomqtt.Will(*self.will, qos=1, retain=True) if self.will else None,
            max_queued_incoming_messages=QUEUED_RECEIPTS,
            logger=self._library_log,
        )

    def _report(self, group: ExceptionGroup[Exception]) -> None:
        """Log what ended a session, once for as long as it is the same."""
        error: Exception = group
        while isinstance(error, ExceptionGroup):
            error = error.exceptions[0]
        reason = self._library_said or str(error) or type(error).__name__
        if reason == self._last_error:
            return
        self._last_error = reason
        bug = None if isinstance(error, aiomqtt.MqttError | OnestreetError) else error
        log.warning("the uplink is down", extra={"reason": reason}, exc_info=bug)

    # ---------------------------------------------------------------------------------------------- receiving

    async def _receive(self, client: aiomqtt.Client) -> None:
        async for message in client.messages:
            payload = message.payload if isinstance(message.payload, bytes) else b""
            try:
                receipt = decode_receipt(payload)
            except DeliveryError as error:
                log.warning("a receipt was ignored", extra={"reason": str(error)})
                continue
            settled = self.delivery.receipted(self._clock(), receipt)
            refused = [one for one in settled if one.outcome == "refused"]
            self._health.stored += len(settled) - len(refused)
            self._health.refused += len(refused)
            self._health.uplink_rtt_s = self.delivery.round_trip_s
            for one in refused:
                log.error(
                    "a sample was refused",
                    extra={"sample": one.key, "requirement": one.requirement},
                )
            if settled:
                await self._outbox.forget(one.key for one in settled)
                self._wake.set()
                self.receipted.set()

    # ------------------------------------------------------------------------------------------------ sending

    async def _send(self, client: aiomqtt.Client) -> None:
        while not _is_cancelled():
            self._wake.clear()
            if self._states_due:
                self._states_due = False
                await self._publish_states(client)
            batch = [*await self._again(), *await self._fresh()]
            if batch:
                await self._publish(client, batch)
                continue
            try:
                async with asyncio.timeout(TICK_S):
                    await self._wake.wait()
            except TimeoutError:
                pass

    async def _again(self) -> list[tuple[Sending, Message]]:
        """Return the packs that the delivery rules send again."""
        batch = []
        for sending in self.delivery.due(self._clock()):
            waiting = await self._outbox.find(sending.keys)
            for part in self._halved(waiting) if waiting else []:
                message, digest = self._packed(part)
                self.delivery.sent_again(self._clock(), sending, digest)
                batch.append((sending, message))
        return batch

    async def _fresh(self) -> list[tuple[Sending, Message]]:
        """Return packs of samples that were never sent, as far as the window reaches."""
        room = min(self.delivery.room(live=True), BATCH_SAMPLES)
        if not room:
            return []
        waiting = await self._outbox.after(self._sent_id, room)
        # all are packed before the first is noted as sent: what cannot be packed leaves nothing half noted
        packed = [(pack, *self._packed(pack)) for pack in self._packs(waiting)]
        batch = []
        for pack, message, digest in packed:
            sample = pack[0].sample
            seqs = [one.sample.seq for one in pack]
            sending = self.delivery.sent(self._clock(), pack[0].device, sample.epoch, seqs, digest)
            batch.append((sending, message))
        if waiting:
            self._sent_id = waiting[-1].id
        return batch

    def _packs(self, waiting: Sequence[Waiting]) -> list[list[Waiting]]:
        """Return the samples as packs: one device, one epoch, ascending, none too large."""

        def series(one: Waiting) -> tuple[str, int]:
            return one.device, one.sample.epoch

        size = self._config.delivery.pack_samples
        packs = []
        for _, group in groupby(sorted(waiting, key=lambda one: (*series(one), one.id)), series):
            whole = list(group)
            packs += [whole[start : start + size] for start in range(0, len(whole), size)]
        return [part for pack in packs for part in self._halved(pack)]

    def _halved(self, pack: list[Waiting]) -> list[list[Waiting]]:
        if len(pack) == 1 or len(self._packed(pack)[0][1]) <= MAX_PACK_BYTES:
            return [pack]
        middle = len(pack) // 2
        return [*self._halved(pack[:middle]), *self._halved(pack[middle:])]

    def _packed(self, pack: Sequence[Waiting]) -> tuple[Message, str]:
        gateway = self._config.gateway
        topic = Topic(
            gateway.county, gateway.site, gateway.id, pack[0].domain, pack[0].device, "readings"
        )
        payload = encode_pack(topic, [one.sample for one in pack], self._config.delivery.format)
        return (str(topic), payload), sha256(payload).hexdigest()

    async def _publish(
        self, client: aiomqtt.Client, batch: Sequence[tuple[Sending, Message]]
    ) -> None:
        """Publish; what the broker did not acknowledge before the connection broke goes again at once."""
        unacknowledged = dict(enumerate(batch))

        async def publish(number: int, topic: str, payload: bytes) -> None:
            await client.publish(topic, payload, qos=1)
            del unacknowledged[number]

        try:
            for start in range(0, len(batch), CONCURRENT_PUBLISHES):
                async with asyncio.TaskGroup() as group:
                    for number in range(start, min(start + CONCURRENT_PUBLISHES, len(batch))):
                        group.create_task(publish(number, *batch[number][1]))
        finally:
            for sending, _ in unacknowledged.values():
                self.delivery.failed(sending)

    async def _publish_states(self, client: aiomqtt.Client) -> None:
        """Publish every state, and retire those of devices that are not ours any more."""
        states = await self._states()
        stale = await self._outbox.stating([topic for topic, _ in states])
        for topic, payload in states:
            await client.publish(topic, payload, qos=1, retain=True)
        for topic in stale:
            # Under another name or site we would be denied: that state is for whoever renamed us to clear.
            if topic.startswith(self._receipts_topic.removesuffix("receipts")):
                await client.publish(topic, b"", qos=1, retain=True)
                log.info("a device was retired", extra={"topic": topic})
        await self._outbox.retired(stale)

    async def farewell(self) -> None:
        """Say offline, as the will would; called once nothing else runs."""
        if self.will is None:
            return
        try:
            async with asyncio.timeout(self._config.broker.timeout_s), self._client() as client:
                await client.publish(*self.will, qos=1, retain=True)
        except (aiomqtt.MqttError, OnestreetError, TimeoutError, OSError, ValueError) as error:
            log.warning("could not say goodbye", extra={"reason": str(error)})


def _is_cancelled() -> bool:
    """Say whether this task was told to end: asyncio.wait_for, in every call of aiomqtt, may swallow it before 3.12."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
