"""The uplink: samples from the outbox to the broker, receipts back. The one file that knows aiomqtt."""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import TypeVar, cast

import aiomqtt

from edge_agent.commands import Commands
from edge_agent.config import Config
from edge_agent.health import Health
from edge_agent.outbox import Outbox
from edge_agent.packs import Outgoing, Packs
from exchange.delivery import Delivery
from exchange.errors import DeliveryError, OnestreetError
from exchange.receipts import Receipt, decode_receipt
from exchange.topics import Topic

T = TypeVar("T")
log = logging.getLogger(__name__)

TICK_S = 1.0
IN_FLIGHT = 40  # messages without the broker's acknowledgement; the library holds back what is more
QUEUED_MESSAGES = 1000  # a receipt that finds no place is as good as lost: its samples go again
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
        self._library_said = ""
        self._library_log = logging.Logger(f"{__name__}.library")  # noqa: LOG001 - its filter is this one's
        self._library_log.parent = log
        self._library_log.setLevel(logging.WARNING)
        self._library_log.addFilter(self._is_warning)
        if commands is not None:
            commands.results.on_new = self._wake.set

    def wake(self) -> None:
        """There is something new to send, or room to send it."""
        self._wake.set()
        self._wake_older.set()

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

    def _is_warning(self, record: logging.LogRecord) -> bool:
        """Keep what the library says of an error for the one line that reports it: the cause, such as a TLS alert."""
        if record.levelno < logging.ERROR:
            return True
        self._library_said = record.getMessage()
        return False

    def reconfigure(self, config: Config) -> None:
        """Go on with these settings: a new session begins at once, and that is no outage."""
        self._config = config
        self._packs.reconfigure(config)
        self.delivery.resize(config.delivery.window)
        self._reconfigured.set()

    async def _session(self) -> None:
        self._reconfigured.clear()
        self._library_said = ""
        async with self._client() as client:
            await client.subscribe(self._receipts_topic, qos=1)
            if self._commands is not None:
                await client.subscribe(self._commands.topic_filter, qos=1)
            await self._publish_states(client)
            self.connected, self.connected_at_s = True, time.monotonic()
            self.last_error = ""
            log.info("connected", extra={"broker": "{}:{}".format(*self._config.broker.address)})
            self.delivery.connected()
            self._packs.connected()
            async with asyncio.TaskGroup() as group:
                group.create_task(self._until_reconfigured())
                group.create_task(self._receive(client))
                group.create_task(self._send(client))
                group.create_task(self._send_older(client))

    async def _until_reconfigured(self) -> None:
        await self._reconfigured.wait()
        raise _Reconfigured

    def _client(self) -> aiomqtt.Client:
        broker = self._config.broker
        client = aiomqtt.Client(
            *broker.address,
            identifier=self._config.gateway.id,
            username=broker.username or None,
            password=self._password(),
            tls_context=self._tls(),
            clean_session=False,
            keepalive=broker.keepalive_s,
            timeout=broker.timeout_s,
            will=aiomqtt.Will(*self.will, qos=1, retain=True) if self.will else None,
            max_queued_incoming_messages=QUEUED_MESSAGES,
            max_inflight_messages=IN_FLIGHT,
            logger=self._library_log,
        )
        self._given_will = self.will
        client.pending_calls_threshold = 10_000  # a whole batch that waits is no surprise
        client._client.manual_ack_set(True)  # noqa: SLF001 - aiomqtt has no name of its own for it
        return client

    def _report(self, group: ExceptionGroup[Exception]) -> None:
        """Log what ended a session, once for as long as it is the same."""
        error: Exception = group
        while isinstance(error, ExceptionGroup):
            error = error.exceptions[0]
        reason = self._library_said or str(error) or type(error).__name__
        if reason == self.last_error:
            return
        self.last_error = reason
        bug = None if isinstance(error, aiomqtt.MqttError | OnestreetError) else error
        log.warning("the uplink is down", extra={"reason": reason}, exc_info=bug)

    # ---------------------------------------------------------------------------------------------- receiving

    async def _receive(self, client: aiomqtt.Client) -> None:
        async for message in client.messages:
            payload = message.payload if isinstance(message.payload, bytes) else b""
            topic = str(message.topic)
            is_command = topic != self._receipts_topic
            if is_command and self._commands is not None:
                await self._commands.put(topic, payload).wait()
            # only now, and in order, as MQTT asks: what dies with us unrecorded the broker gives again
            client._client.ack(message.mid, message.qos)  # noqa: SLF001 - as above
            if is_command:
                continue
            try:
                receipt = decode_receipt(payload)
            except DeliveryError as error:
                log.warning("a receipt was ignored", extra={"reason": str(error)})
                continue
            await self._receipted(receipt)

    async def _receipted(self, receipt: Receipt) -> None:
        settled = self.delivery.receipted(self._clock(), receipt)
        keys = [one.key for one in settled]
        self._packs.settled(keys)
        refused = [one for one in settled if one.outcome == "refused"]
        self._health.stored += len(settled) - len(refused)
        self._health.refused += len(refused)
        for one in refused:
            log.error(
                "a sample was refused", extra={"sample": one.key, "requirement": one.requirement}
            )
        if self._commands is not None:
            await self._commands.results.receipted(receipt)
        if receipt.results:
            self.receipted.set()
        if keys:
            self.wake()  # before the disk: there is room in the window already
            await self._outbox.forget(keys)
            self.receipted.set()

    # ------------------------------------------------------------------------------------------------ sending

    async def _send(self, client: aiomqtt.Client) -> None:
        """Send what does not wait: states, results, and samples as they are taken."""
        while not _is_cancelled():
            self._wake.clear()
            if self._states_due:
                self._states_due = False
                await self._publish_states(client)
            await self._publish_results(client)
            if batch := await self._packs.live():
                await self._publish(client, batch)
            else:
                await _woken(self._wake, TICK_S)

    async def _send_older(self, client: aiomqtt.Client) -> None:
        """Send what goes again, and the backlog. Live samples do not wait for it to be acknowledged."""
        while not _is_cancelled():
            self._wake_older.clear()
            batch = [*await self._packs.again(), *await self._packs.backlog()]
            if batch:
                await self._publish(client, batch)
            else:
                await _woken(self._wake_older, TICK_S)

    async def _publish(self, client: aiomqtt.Client, batch: Sequence[Outgoing]) -> None:
        """Publish; what the broker did not acknowledge before the connection broke goes again at once."""
        await self._publish_all(
            client, [(one, one.topic, one.payload) for one in batch],
            lambda one: self.delivery.failed(one.sending),
        )  # fmt: skip

    async def _publish_results(self, client: aiomqtt.Client) -> None:
        if self._commands is None:
            return
        results, now_s = self._commands.results, self._clock()
        due = await results.due(now_s, silent=self.delivery.is_silent(now_s))
        await self._publish_all(
            client, [(one, one.waiting.topic, one.waiting.payload) for one in due], results.failed
        )

    async def _publish_all(
        self,
        client: aiomqtt.Client,
        messages: Sequence[tuple[T, str, bytes]],
        failed: Callable[[T], None],
    ) -> None:
        """Publish, and tell of those that the broker did not acknowledge.

        The library sends them all at once and they are awaited as one: its own `publish` has a task, a timer and an
        event for each message, which cost as much again as sending it.
        """
        batch = _Batch(len(messages))
        unacknowledged = cast("dict[int, _Batch]", client._pending_publishes)  # noqa: SLF001 - as above
        left = dict(enumerate(messages))
        sent: dict[int, int] = {}
        try:
            for number, (_, topic, payload) in left.items():
                info = client._client.publish(topic, payload, qos=1)  # noqa: SLF001 - as above
                if info.rc:
                    raise aiomqtt.MqttCodeError(info.rc, "Could not publish message")
                unacknowledged[info.mid] = batch
                sent[info.mid] = number
            await batch.acknowledged(self._config.broker.timeout_s)
        finally:
            for mid, number in sent.items():
                if unacknowledged.pop(mid, None) is None:
                    del left[number]
            for one, _, _ in left.values():
                failed(one)

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
        if self.will != self._given_will:  # the broker takes a will with a connection only
            raise _Reconfigured

    async def farewell(self) -> None:
        """Say offline, as the will would; called once nothing else runs."""
        if self.will is None:
            return
        try:
            async with asyncio.timeout(self._config.broker.timeout_s), self._client() as client:
                await client.publish(*self.will, qos=1, retain=True)
        except (aiomqtt.MqttError, OnestreetError, TimeoutError, OSError, ValueError) as error:
            log.warning("could not say goodbye", extra={"reason": str(error)})


class _Batch:
    """Messages that are published together. aiomqtt calls `set` for each that the broker acknowledged."""

    def __init__(self, size: int) -> None:
        self._left = size
        self._none_left = asyncio.Event()

    def set(self) -> None:
        self._left -= 1
        if not self._left:
            self._none_left.set()

    async def acknowledged(self, timeout_s: float) -> None:
        """Return once all are. Raises: aiomqtt.MqttError when the broker says nothing for so long."""
        while before := self._left:
            await _woken(self._none_left, timeout_s)
            if self._left == before:
                raise aiomqtt.MqttError("Operation timed out")


class _Reconfigured(Exception):
    """The session ends because another is to begin."""


async def _woken(event: asyncio.Event, seconds: float) -> bool:
    """Wait for an event, at most so long, and say whether it came."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
    return event.is_set()


def _is_cancelled() -> bool:
    """Say whether this task was told to end: asyncio.wait_for, in every call of aiomqtt, may swallow it before 3.12."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
