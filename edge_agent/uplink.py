"""The uplink: samples from the outbox to the broker, receipts back."""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import TypeVar

from edge_agent.commands import Commands
from edge_agent.config import Config
from edge_agent.health import Health
from edge_agent.outbox import Outbox, Waiting
from edge_agent.packs import Outgoing, Packs
from exchange import mqtt
from exchange.delivery import Delivery
from exchange.errors import DeliveryError, OnestreetError, UplinkRefused
from exchange.receipts import Receipt, decode_receipt
from exchange.topics import Topic

T = TypeVar("T")
log = logging.getLogger(__name__)

TICK_S = 1.0
ARRIVED_MESSAGES = 1000  # that wait for us; then nothing more is read
KEPT_FOR_EVER_S = 0xFFFF_FFFF  # by MQTT's words: the broker keeps commands while we are away
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
        commands: Commands | None = None,
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
        self.connected_at_s: float | None = None
        """When this connection came, by the monotonic clock."""
        self.last_error = ""
        """Why the uplink is down, as it was logged."""
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
        self._commands = commands
        self._packs = Packs(config, outbox, self.delivery, clock)
        self._wake = asyncio.Event()
        self._wake_older = asyncio.Event()
        self._reconfigured = asyncio.Event()
        self._states_due = False
        self._given_will: Message | None = None
        self._arrived: list[mqtt.Message] = []
        self._has_arrived = asyncio.Event()
        self._is_refused = False  # the broker does not take what is published
        if commands is not None:
            commands.results.on_new = self._wake.set

    def hand_over(self, samples: Sequence[Waiting]) -> None:
        """These, one at least, are in the outbox now."""
        if self.connected:
            self._packs.hand_over(samples)
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
            except* _Reconfigured:
                pass
            except* Exception as group:  # noqa: BLE001 - sampling goes on, whatever the uplink meets
                self._report(group)
            finally:
                self.connected, self.connected_at_s = False, None
                self.delivery.disconnected()
            if self._clock() - begun_s > BACKOFF_LAST_S:
                wait_s = BACKOFF_FIRST_S
            pause_s = wait_s * random.uniform(0.5, 1.0)  # noqa: S311 - jitter
            wait_s = min(2 * wait_s, BACKOFF_LAST_S)
            if await _woken(self._reconfigured, pause_s):
                wait_s = BACKOFF_FIRST_S

    def reconfigure(self, config: Config) -> None:
        """Go on with these settings: a new session begins at once, and that is no outage."""
        self._config = config
        self._packs.reconfigure(config)
        self.delivery.resize(config.delivery.window)
        self._reconfigured.set()

    async def _session(self) -> None:
        self._reconfigured.clear()
        self._arrived.clear()
        client = self._client(self._receipts_topic, *self._commands_topics)
        async with asyncio.TaskGroup() as group:
            group.create_task(client.run())
            # the client gives up first, and says why
            await client.wait_connected(2 * self._config.broker.timeout_s)
            await self._publish_states(client)
            self.connected, self.connected_at_s = True, time.monotonic()
            self.last_error = ""
            log.info("connected", extra={"broker": "{}:{}".format(*self._config.broker.address)})
            self.delivery.connected()
            self._packs.connected()
            group.create_task(self._until_reconfigured())
            group.create_task(self._receive(client))
            group.create_task(self._send(client))
            group.create_task(self._send_older(client))

    @property
    def _commands_topics(self) -> list[str]:
        return [] if self._commands is None else [self._commands.topic_filter]

    async def _until_reconfigured(self) -> None:
        await self._reconfigured.wait()
        raise _Reconfigured

    def _client(self, *filters: str) -> mqtt.Client:
        """Return a client for one connection, with today's password and certificates. Raises: OnestreetError."""
        broker = self._config.broker
        host, port = broker.address
        context = self._tls()
        settings = mqtt.Settings(
            host=host,
            port=port,
            client_id=self._config.gateway.id,
            username=broker.username or None,
            password=self._password(),
            keepalive_s=broker.keepalive_s,
            session_expiry_s=KEPT_FOR_EVER_S,
            receive_maximum=ARRIVED_MESSAGES,
            will=mqtt.Will(topic=self.will[0], payload=self.will[1], retain=True)
            if self.will
            else None,
            connect_timeout_s=broker.timeout_s,
            once=True,
        )
        self._given_will = self.will
        client = mqtt.Client(
            settings,
            [mqtt.Subscription(one) for one in filters],
            lambda messages, _: self._take(client, messages),
            tls=None if context is None else lambda: context,
        )
        return client

    def _report(self, group: ExceptionGroup[Exception]) -> None:
        """Log what ended a session, once for as long as it is the same."""
        error: Exception = group
        while isinstance(error, ExceptionGroup):
            error = error.exceptions[0]
        reason = str(error) or type(error).__name__
        if reason == self.last_error:
            return
        self.last_error = reason
        bug = None if isinstance(error, OnestreetError) else error
        log.warning("the uplink is down", extra={"reason": reason}, exc_info=bug)

    # ---------------------------------------------------------------------------------------------- receiving

    def _take(self, client: mqtt.Client, messages: list[mqtt.Message]) -> None:
        self._arrived += messages
        self._has_arrived.set()
        if len(self._arrived) > ARRIVED_MESSAGES:  # those with QoS 0 nothing else bounds
            client.hold(True)

    async def _receive(self, client: mqtt.Client) -> None:
        while True:
            await self._has_arrived.wait()
            self._has_arrived.clear()
            messages, self._arrived = self._arrived, []
            client.hold(False)
            if self._commands is not None:
                for message in messages:
                    if message.topic != self._receipts_topic:
                        await self._commands.put(message.topic, message.payload).wait()
            # only now, and in order, as MQTT asks: what dies with us unrecorded the broker gives again
            client.acknowledge([one.packet_id for one in messages], client.generation)
            receipts = [one.payload for one in messages if one.topic == self._receipts_topic]
            await self._receipted(receipts)

    async def _receipted(self, payloads: Sequence[bytes]) -> None:
        for payload in payloads:
            try:
                receipt = decode_receipt(payload)
            except DeliveryError as error:
                log.warning("a receipt was ignored", extra={"reason": str(error)})
                continue
            self._settle(receipt)
            if self._commands is not None:
                await self._commands.results.receipted(receipt)
            if receipt.results:
                self._wake.set()
            self.receipted.set()
        if self._packs.has_backlog:  # there may be room in the window
            self._wake_older.set()

    def _settle(self, receipt: Receipt) -> None:
        """Let go of the samples that it names, everywhere at once: nobody may find one in between and send it again."""
        settled = self.delivery.receipted(self._clock(), receipt)
        keys = [one.key for one in settled]
        self._packs.settled(keys)
        self._outbox.forget(keys)
        refused = [one for one in settled if one.outcome == "refused"]
        self._health.stored += len(settled) - len(refused)
        self._health.refused += len(refused)
        for one in refused:
            log.error(
                "a sample was refused", extra={"sample": one.key, "requirement": one.requirement}
            )

    # ------------------------------------------------------------------------------------------------ sending

    async def _send(self, client: mqtt.Client) -> None:
        """Send what does not wait: states, results, and samples as they are taken."""
        while True:
            self._wake.clear()
            if self._states_due:
                self._states_due = False
                await self._publish_states(client)
            await self._publish_results(client)
            batch = await self._packs.live()
            if self._packs.has_backlog:
                self._wake_older.set()
            if batch:
                await self._publish(client, batch)
            else:
                await _woken(self._wake, TICK_S)

    async def _send_older(self, client: mqtt.Client) -> None:
        """Send what goes again, and the backlog. Live samples do not wait for it to be acknowledged."""
        while True:
            self._wake_older.clear()
            batch = [*await self._packs.again(), *await self._packs.backlog()]
            if batch:
                await self._publish(client, batch)
            else:
                await _woken(self._wake_older, TICK_S)

    async def _publish(self, client: mqtt.Client, batch: Sequence[Outgoing]) -> None:
        """Publish; what the broker did not acknowledge before the connection broke goes again at once."""
        await self._publish_all(
            client, [(one, one.topic, one.payload) for one in batch],
            lambda one: self.delivery.failed(one.sending),
        )  # fmt: skip

    async def _publish_results(self, client: mqtt.Client) -> None:
        if self._commands is None:
            return
        results, now_s = self._commands.results, self._clock()
        due = await results.due(now_s, silent=self.delivery.is_silent(now_s))
        await self._publish_all(
            client, [(one, one.waiting.topic, one.waiting.payload) for one in due], results.failed
        )

    async def _publish_all(
        self,
        client: mqtt.Client,
        messages: Sequence[tuple[T, str, bytes]],
        failed: Callable[[T], None],
        *,
        refused: Callable[[T], None] = lambda _: None,
        retain: bool = False,
    ) -> None:
        """Publish, and tell of those that the broker did not answer, and of those that it refused.

        One that it refuses waits for its receipt as the others do: whether it is stored is not the broker's to say.
        """
        unanswered = dict(enumerate(messages))

        def answered(number: int, error: UplinkRefused | None) -> None:
            one, topic, _ = unanswered.pop(number)
            self._note_answer(topic, error)
            if error is not None:
                refused(one)

        try:
            await client.publish_each(
                [(topic, payload) for _, topic, payload in messages],
                answered,
                retain=retain,
                silence_s=self._config.broker.timeout_s,
            )
        finally:
            for one, _, _ in unanswered.values():
                failed(one)

    def _note_answer(self, topic: str, error: UplinkRefused | None) -> None:
        """Say once that the broker refuses what is published, for as long as it takes nothing."""
        if error is not None and not self._is_refused:
            told = {"topic": topic, "reason": str(error)}
            log.error("the broker refuses what is published", extra=told)
        self._is_refused = error is not None

    async def _publish_states(self, client: mqtt.Client) -> None:
        """Publish every state, and retire those of devices that are not ours any more."""
        states = await self._states()
        stale = await self._outbox.stating([topic for topic, _ in states])
        # Under another name or site we would be denied: that state is for whoever renamed us to clear.
        ours = self._receipts_topic.removesuffix("receipts")
        retired = [(topic, b"") for topic in stale if topic.startswith(ours)]
        refused: set[str] = set()
        await self._publish_all(
            client,
            [(topic, topic, payload) for topic, payload in [*states, *retired]],
            lambda _: None,  # all of them go on every connection
            refused=refused.add,
            retain=True,
        )
        for topic, _ in retired:
            if topic not in refused:
                log.info("a device was retired", extra={"topic": topic})
        await self._outbox.retired([topic for topic in stale if topic not in refused])
        if self.will != self._given_will:  # the broker takes a will with a connection only
            raise _Reconfigured

    async def farewell(self) -> None:
        """Say offline, as the will would; called once nothing else runs."""
        if self.will is None:
            return
        timeout_s = self._config.broker.timeout_s
        try:
            client = self._client()
            async with asyncio.timeout(timeout_s), asyncio.TaskGroup() as group:
                group.create_task(client.run())
                await client.wait_connected(timeout_s)
                await client.publish(*self.will, retain=True, deadline_s=timeout_s)
                await client.stop(timeout_s)
        except* (OnestreetError, TimeoutError, OSError, ValueError) as errors:
            reason = str(errors.exceptions[0])
            log.warning("could not say goodbye", extra={"reason": reason})


class _Reconfigured(Exception):
    """The session ends because another is to begin."""


async def _woken(event: asyncio.Event, seconds: float) -> bool:
    """Wait for an event, at most so long, and say whether it came."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
    return event.is_set()
