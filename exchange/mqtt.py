"""The MQTT 5 client that services share: QoS 0 and 1, explicit PUBACKs, one list per socket read.

A device may use any MQTT client. A service takes in a whole town through one connection, where a
future or a task for each message costs more than everything else it does; so received messages are
handed over as one list per socket read, and acknowledged in batches when the caller says so.

Bytes are written in the order of the calls. A receipt published before `acknowledge` therefore
reaches the broker before the PUBACK.

Source: MQTT Version 5.0, OASIS Standard, 7 March 2019
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import ssl
import struct
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Literal, TypeAlias, cast

import mqtt5
import msgspec

from exchange.errors import ConfigError, UplinkError, UplinkLost, UplinkRefused

log = logging.getLogger(__name__)

Message: TypeAlias = mqtt5.PublishPacket
"""A received publish; callers use `topic`, `payload`, `retain`, `duplicate` and `packet_id`."""

QoS: TypeAlias = Literal[0, 1]

# The codec aborts on a packet of 2^28 bytes; nobody sends an eighth of that in earnest.
_LARGEST_OUT_BYTES = 1 << 25
_WRITE_BUFFER_BYTES = 1 << 20
_PACKETS_AT_ONCE = 100
_CLOSE_DEADLINE_S = 2.0
_CLOSED_BY_US = "closed by this side"

# Reason codes of conditions that pass by themselves; behind any other code is a setting to change.
_PASSING = {0x00, 0x80, 0x83, 0x88, 0x89, 0x8B, 0x8D, 0x8E, 0x93, 0x96, 0x97, 0x98, 0x9F, 0xA0}
_SESSION_TAKEN_OVER = 0x8E
_TOPIC_NAME_INVALID = 0x90
_PACKET_TOO_LARGE = 0x95
_QOS_NOT_SUPPORTED = 0x9B


class Will(msgspec.Struct, frozen=True, kw_only=True):
    """What the broker publishes for us when the connection dies without a DISCONNECT."""

    topic: str
    payload: bytes
    qos: QoS = 1
    retain: bool = False
    delay_s: int = 0


class Subscription(msgspec.Struct, frozen=True):
    """A topic filter (`$share/…` too) and the QoS asked for; less than that counts as refused.

    Shape: without `retained` only what is published from now on comes.
    """

    topic_filter: str
    qos: QoS = 1
    retained: bool = True


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """How to reach a broker, and as whom.

    Shape: `clean_start` holds for the first connection of a `Client` only, so that its own session
        survives a reconnect. `receive_maximum` bounds the messages not yet acknowledged; a broker
        that sends more is read no further, give or take one socket read. `fail_fast` makes `run`
        raise `UplinkRefused` instead of trying again; `once` makes it raise whatever ended the
        first connection, and leaves saying so to the caller.
    """

    host: str
    port: int = 1883
    client_id: str
    username: str | None = None
    password: str | None = None
    keepalive_s: int = 30
    session_expiry_s: int = 0
    clean_start: bool = False
    receive_maximum: int = 1000
    max_packet_bytes: int = 2 * 1024 * 1024
    will: Will | None = None
    connect_timeout_s: float = 10.0
    backoff_first_s: float = 0.5
    backoff_max_s: float = 30.0
    fail_fast: bool = False
    once: bool = False

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        """Everything but the password, for logs and tracebacks."""
        shown = [(name, getattr(self, name)) for name in self.__struct_fields__]
        return [(name, "***" if name == "password" and value else value) for name, value in shown]

    def __repr__(self) -> str:
        """Like `__rich_repr__`."""
        return f"Settings({', '.join(f'{name}={value!r}' for name, value in self.__rich_repr__())})"


class Counts(msgspec.Struct):
    """Connections, and what became of messages that nobody awaits (`publish_soon`), over all of them."""

    connects: int = 0
    connections_lost: int = 0
    refused: int = 0
    lost: int = 0


class _TakenOver(UplinkLost):
    """Another client connected with our client id."""


class Client:
    """One client id at one broker, connected for as long as `run` runs.

    Shape: `on_messages(messages, generation)` gets all publishes of one socket read; `generation`
        numbers the connection they came on and goes back to `acknowledge`.
        `on_connect(session_present)` comes when every filter is granted, before the first message;
        `on_disconnect(error)` when that connection is lost, not on `stop`. Callbacks do not block;
        what they raise ends `run`. `tls` is asked for a context before each connection, so that a
        renewed certificate is taken up.

    Raises: UplinkRefused when MQTT cannot carry the settings.
    """

    def __init__(
        self,
        settings: Settings,
        subscriptions: Sequence[Subscription],
        on_messages: Callable[[list[Message], int], None],
        *,
        on_connect: Callable[[bool], None] | None = None,
        on_disconnect: Callable[[UplinkError], None] | None = None,
        tls: Callable[[], ssl.SSLContext] | None = None,
    ) -> None:
        try:
            self._greeting = _greeting(settings, subscriptions, first=True)
            self._next_greeting = _greeting(settings, subscriptions, first=False)
        except (ValueError, OverflowError) as error:
            raise UplinkRefused(f"MQTT cannot carry these settings: {error}") from error
        self.settings = settings
        self.counts = Counts()
        self.last_error: UplinkError | None = None
        self.generation = 0
        self._subscriptions = tuple(subscriptions)
        self._on_messages = on_messages
        self._on_connect = on_connect
        self._on_disconnect = on_disconnect
        self._tls = tls
        self._connection: _Connection | None = None
        self._held = False
        self._handshake: asyncio.Timeout | None = None
        self._running = False
        self._up = asyncio.Event()
        self._stopping = asyncio.Event()
        self._stopped = asyncio.Event()

    @property
    def connected(self) -> bool:
        """Accepted by the broker, and every filter granted."""
        return self._connection is not None and self._connection.error is None

    @property
    def session_present(self) -> bool:
        """Whether the broker had kept the session when this connection began."""
        return self._connection is not None and self._connection.session_present

    @property
    def unacked(self) -> int:
        """QoS 1 publishes of ours that the broker has not answered yet."""
        return len(self._connection.in_flight) if self._connection else 0

    async def run(self) -> None:
        """Stay connected until `stop` or cancellation.

        Raises: UplinkRefused with `fail_fast`; any UplinkError with `once`; whatever a callback raised.
        """
        if self._running:
            raise RuntimeError("this client is already running")
        self._running = True
        clock_s = asyncio.get_running_loop().time
        delay_s = 0.0
        try:
            while not self._stopping.is_set():
                begun_s = clock_s()
                try:
                    await self._stay_connected()
                except UplinkError as error:
                    self._report(error)
                    if self.settings.once:
                        raise
                    if self.settings.fail_fast and isinstance(error, UplinkRefused):
                        raise
                    lasted = clock_s() - begun_s > delay_s + self.settings.connect_timeout_s
                    delay_s = self._next_delay_s(0.0 if lasted else delay_s, error)
                    # Jitter keeps a town's clients from returning in step.
                    pause_s = delay_s * random.uniform(0.5, 1.0)  # noqa: S311 - not a secret
                    with suppress(TimeoutError):
                        async with asyncio.timeout(pause_s):
                            await self._stopping.wait()
        finally:
            self._running = False
            self._stopped.set()

    async def wait_connected(self, deadline_s: float) -> None:
        """Return once connected.

        Raises: UplinkError, the last one if there is one, when the deadline passes first.
        """
        try:
            async with asyncio.timeout(deadline_s):
                await self._up.wait()
        except TimeoutError:
            raise self.last_error or UplinkLost(f"not connected within {deadline_s} s") from None

    async def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        qos: QoS = 1,
        retain: bool = False,
        deadline_s: float = 30.0,
    ) -> None:
        """Publish; with QoS 1, return when the broker has taken it.

        Raises: UplinkRefused when the broker says no or the message can never be sent to it;
            UplinkLost when there is no connection, it breaks, or the deadline passes.
        """
        connection = self._require()
        try:
            async with asyncio.timeout(deadline_s):
                await connection.publish(topic, payload, qos, retain=retain)
        except TimeoutError:
            raise UplinkLost(f"{topic}: not taken by the broker within {deadline_s} s") from None

    async def publish_each(
        self,
        messages: Iterable[tuple[str, bytes]],
        answered: Callable[[int, UplinkRefused | None], None],
        *,
        retain: bool = False,
        silence_s: float = 30.0,
    ) -> None:
        """Publish many with QoS 1 and return when the broker has answered each.

        Shape: `answered(number, error)` hears of each message by its place, as it is answered; the
            error says why the broker does not take it.

        Raises: UplinkLost when there is no connection, it breaks, or the broker answers nothing for
            `silence_s`; whatever was not answered by then may have been taken or not.
        """
        await self._require().publish_each(messages, answered, silence_s, retain=retain)

    def publish_soon(
        self, topic: str, payload: bytes, *, qos: QoS = 1, retain: bool = False
    ) -> bool:
        """Publish without waiting; False, and nothing sent, when not connected or there is no room.

        Raises: UplinkRefused when the message could never be sent to this broker.
        """
        connection = self._connection
        if connection is None or not connection.has_room(qos):
            return False
        connection.send(topic, payload, qos, retain, None)
        return True

    async def drain(self, deadline_s: float) -> None:
        """Return when the broker has answered every QoS 1 publish.

        Raises: UplinkLost when there is no connection, it breaks, or the deadline passes first.
        """
        connection = self._require()
        try:
            async with asyncio.timeout(deadline_s):
                await connection.until(lambda: not connection.in_flight)
        except TimeoutError:
            raise UplinkLost(f"{self.unacked} publishes unanswered after {deadline_s} s") from None

    def acknowledge(self, packet_ids: Iterable[int | None], generation: int) -> None:
        """Send the PUBACKs of received messages in one write, each id once, in order of arrival.

        Ids of an earlier connection are dropped: the broker sends those messages again. None, the
        id of a QoS 0 message, is passed over.
        """
        if self._connection is not None and generation == self.generation:
            self._connection.acknowledge(packet_ids)

    def hold(self, held: bool) -> None:
        """Read nothing more, on this connection and the next, or go on: for a receiver that is full."""
        self._held = held
        if self._connection is not None:
            self._connection.hold(held)

    async def stop(self, deadline_s: float) -> None:
        """Let the broker answer what is in flight, say DISCONNECT, close, and end `run`."""
        self._stopping.set()
        with suppress(UplinkLost):
            await self.drain(deadline_s)
        if self._connection is not None:
            self._connection.end(UplinkLost(_CLOSED_BY_US))
        if self._handshake is not None and not self._handshake.expired():
            self._handshake.reschedule(0)
        if self._running:
            # Nothing is left to wait for but closing, which has a deadline of its own.
            await self._stopped.wait()

    async def subscribe(self, subscriptions: Sequence[Subscription], deadline_s: float) -> None:
        """Ask for more until the session ends; retained messages come anew. No other connection asks for it.

        Raises: UplinkRefused when the broker says no; UplinkLost when there is no connection, it breaks,
            or the deadline passes.
        """
        connection = self._require()
        try:
            async with asyncio.timeout(deadline_s):
                await connection.subscribe(subscriptions)
        except TimeoutError:
            raise UplinkLost(f"filters not granted within {deadline_s} s") from None

    async def unsubscribe(self, filters: Sequence[str], deadline_s: float) -> None:
        """Have the broker forget filters that a kept session may hold; one that it does not know is none.

        Raises: UplinkRefused when the broker says no; UplinkLost when there is no connection, it breaks,
            or the deadline passes.
        """
        connection = self._require()
        try:
            async with asyncio.timeout(deadline_s):
                await connection.unsubscribe(filters)
        except TimeoutError:
            raise UplinkLost(f"filters not taken back within {deadline_s} s") from None

    async def end_session(self, deadline_s: float) -> None:
        """Do as `stop`, and have the broker forget this session and all that waits in it.

        Raises: UplinkLost when there is no connection to say so on.
        """
        self._require().last_expiry_s = 0
        await self.stop(deadline_s)

    def _require(self) -> _Connection:
        if self._connection is None:
            raise UplinkLost(f"not connected: {self.last_error or 'not yet'}")
        return self._connection

    def _next_delay_s(self, delay_s: float, error: UplinkError) -> float:
        if isinstance(error, _TakenOver):
            # Two clients with one id throw each other out for ever: the slower, the less harm.
            return self.settings.backoff_max_s
        return min(max(self.settings.backoff_first_s, 2 * delay_s), self.settings.backoff_max_s)

    def _report(self, error: UplinkError) -> None:
        if str(error) != str(self.last_error) and not self.settings.once:
            log.warning("%s", error)
        self.last_error = error

    async def _stay_connected(self) -> None:
        settings = self.settings
        where = f"{settings.host}:{settings.port}"
        self.generation += 1
        connection = _Connection(
            settings,
            self._subscriptions,
            self._greeting,
            self.counts,
            self._up,
            on_ready=self._ready,
            on_messages=self._deliver,
        )
        established = False
        try:
            async with asyncio.timeout(settings.connect_timeout_s) as self._handshake:
                await asyncio.get_running_loop().create_connection(
                    lambda: connection,
                    settings.host,
                    settings.port,
                    ssl=self._tls() if self._tls else None,
                )
                established = True
                await connection.ready
            self._handshake = None
            if not self._stopping.is_set():
                await connection.ended
            if not self._stopping.is_set():
                self._lost(connection.error)
        except TimeoutError:
            if not self._stopping.is_set():
                words = f"{where}: no answer in {settings.connect_timeout_s} s"
                raise UplinkLost(words) from None
        except ssl.SSLCertVerificationError as error:
            raise UplinkRefused(f"{where}: certificate: {error.verify_message}") from error
        except OSError as error:
            raise UplinkLost(f"{where}: {_reason(error)}") from error
        except ConfigError as error:  # a certificate that is being renewed will be there again
            raise UplinkLost(f"{where}: {error}") from error
        finally:
            self._connection = self._handshake = None
            if established:
                await connection.close()
            else:
                connection.abandon()

    def _lost(self, error: Exception | None) -> None:
        assert error is not None
        was_connected, self._connection = self._connection is not None, None
        self.counts.connections_lost += was_connected
        if isinstance(error, UplinkError):
            self._report(error)
            if was_connected and self._on_disconnect is not None:
                self._on_disconnect(error)
        raise error

    def _ready(self, connection: _Connection) -> None:
        self._connection = connection
        self.counts.connects += 1
        connection.hold(self._held)
        self._greeting = self._next_greeting
        self.last_error = None
        if not self.settings.once:
            log.info("connected to %s:%d", self.settings.host, self.settings.port)
        if self._on_connect is not None:
            self._on_connect(connection.session_present)

    def _deliver(self, messages: list[Message]) -> None:
        self._on_messages(messages, self.generation)


_Answered: TypeAlias = asyncio.Future[None] | Callable[[UplinkRefused | None], None] | None
"""What becomes of a publish once the broker has answered; None when nobody waits for it."""


class _Connection(asyncio.Protocol):
    """One connection, from CONNECT to its first error, after which it does nothing more."""

    def __init__(
        self,
        settings: Settings,
        subscriptions: Sequence[Subscription],
        greeting: _Greeting,
        counts: Counts,
        up: asyncio.Event,
        *,
        on_ready: Callable[[_Connection], None],
        on_messages: Callable[[list[Message]], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._settings = settings
        self._subscriptions = subscriptions
        self._counts = counts
        self._up = up
        self._greeting = greeting
        self._on_ready = on_ready
        self._on_messages = on_messages
        self._transport: asyncio.Transport | None = None
        self._stream = PacketStream(settings.max_packet_bytes)
        self._accepted = False
        self._paused = True  # until the broker has accepted us, and after the end
        self._window = 0
        self._largest_bytes = _LARGEST_OUT_BYTES
        self._last_id = 0
        self._early: list[Message] = []  # a kept session sends before our filters are answered
        self._room: list[asyncio.Future[None]] = []
        self._heard_s = self._loop.time()
        self._in_hand = 0  # QoS 1 messages delivered and not acknowledged
        self._awaited = 0  # callers who wait for the broker to say something
        self._held = False  # the receiver has no room
        self._deaf = False  # reading is paused
        self._keepalive_s = 0
        self._timer: asyncio.TimerHandle | None = None
        self.in_flight: dict[int, _Answered] = {}
        self._asking: dict[int, tuple[Sequence[Subscription], asyncio.Future[None]]] = {}
        self.last_expiry_s: int | None = None  # how long the session outlives us, if not as agreed
        self.session_present = False
        self.error: Exception | None = None
        # The first two also come true by an error; look at `error` then.
        self.ready: asyncio.Future[None] = self._loop.create_future()
        self.ended: asyncio.Future[None] = self._loop.create_future()
        self._closed: asyncio.Future[None] = self._loop.create_future()

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one in all but name
        self._transport.set_write_buffer_limits(_WRITE_BUFFER_BYTES)
        self._transport.write(self._greeting.connect)

    def data_received(self, data: bytes) -> None:
        if self.error is not None:
            return
        self._heard_s = self._loop.time()
        packets = self._stream.feed(data)
        messages = cast("list[Message]", packets)
        try:
            if set(map(type, packets)) != {Message}:
                messages = [packet for packet in packets if type(packet) is Message]
                for packet in packets:
                    if type(packet) is not Message:
                        self._take(packet)
                self._wake()
            if messages and self.error is None:
                self._in_hand += len(messages) - [each.packet_id for each in messages].count(None)
                self._hand_over(messages)
        except Exception as error:  # noqa: BLE001 - a callback's error is raised again by run()
            self.end(error)
        if self._stream.fault:
            code, reason = self._stream.fault
            self.end(UplinkLost(f"the broker sent {reason}"), say=code)
        self._pace()

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = self.error is not None or not self._accepted
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self.end(UplinkLost(f"connection lost: {exc or 'closed by the broker'}"))
        self._closed.set_result(None)

    # What the client calls

    def has_room(self, qos: QoS) -> bool:
        return not self._paused and (not qos or len(self.in_flight) < self._window)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for a condition that PUBACKs or the transport bring about.

        Raises: UplinkLost when the connection ends first.
        """
        while self.error is None:
            if condition():
                return
            waiter = self._loop.create_future()
            self._room.append(waiter)
            await self._listening(waiter)
        raise UplinkLost(str(self.error))

    async def _listening(self, answer: asyncio.Future[None]) -> None:
        """Wait for what the broker will say, and read until it has."""
        self._awaited += 1
        self._pace()
        try:
            await answer
        finally:
            self._awaited -= 1

    async def publish(self, topic: str, payload: bytes, qos: QoS, *, retain: bool) -> None:
        await self.until(lambda: self.has_room(qos))
        answered = self._loop.create_future() if qos else None
        self.send(topic, payload, qos, retain, answered)
        if answered is not None:
            await self._listening(answered)

    async def publish_each(
        self,
        messages: Iterable[tuple[str, bytes]],
        answered: Callable[[int, UplinkRefused | None], None],
        silence_s: float,
        *,
        retain: bool,
    ) -> None:
        left = 0

        def one_answered(number: int, error: UplinkRefused | None) -> None:
            nonlocal left
            left -= 1
            answered(number, error)

        packets: list[bytes] = []  # to be written at once: a write costs more than a message
        try:
            for number, (topic, payload) in enumerate(messages):
                if len(packets) >= _PACKETS_AT_ONCE or not self.has_room(1):
                    self._write_all(packets)
                    async with asyncio.timeout(silence_s):
                        await self.until(lambda: self.has_room(1))
                left += 1
                told = partial(one_answered, number)
                try:
                    packets.append(self._publishing(topic, payload, 1, retain, told))
                except UplinkRefused as error:
                    told(error)
            self._write_all(packets)
            while before := left:
                async with asyncio.timeout(silence_s):
                    await self.until(lambda: left < before)
        except TimeoutError:
            raise UplinkLost(f"the broker has answered no publish for {silence_s:g} s") from None

    def send(self, topic: str, payload: bytes, qos: QoS, retain: bool, answered: _Answered) -> None:
        """Write a publish; call only with room.

        Raises: UplinkRefused when the message could never be sent to this broker.
        """
        self._write_all([self._publishing(topic, payload, qos, retain, answered)])

    def _publishing(
        self, topic: str, payload: bytes, qos: QoS, retain: bool, answered: _Answered
    ) -> bytes:
        """Return a publish that counts as in flight. Raises: UplinkRefused."""
        packet_id = self._free_id() if qos else None
        size_bytes = len(payload)
        if size_bytes <= self._largest_bytes:
            try:
                data = mqtt5.PublishPacket(
                    topic, payload, qos=_QOS[qos], retain=retain, packet_id=packet_id
                ).write()
            except ValueError as error:
                raise UplinkRefused(f"topic {topic!r}: {error}", _TOPIC_NAME_INVALID) from error
            size_bytes = len(data)
        if size_bytes > self._largest_bytes:
            raise UplinkRefused(
                f"{topic}: {size_bytes} bytes, the broker takes {self._largest_bytes}",
                _PACKET_TOO_LARGE,
            )
        if packet_id is not None:
            self.in_flight[packet_id] = answered
            self._last_id = packet_id
        return data

    def _write_all(self, packets: list[bytes]) -> None:
        """Write publishes and empty the list."""
        if packets:
            self._write(b"".join(packets))
            packets.clear()
            if self._deaf:
                self._pace()

    async def subscribe(self, subscriptions: Sequence[Subscription]) -> None:
        filters = _filters(subscriptions, mqtt5.RetainHandling.SEND_ALWAYS)
        await self._ask(
            lambda packet_id: mqtt5.SubscribePacket(packet_id, filters).write(), subscriptions
        )

    async def unsubscribe(self, filters: Sequence[str]) -> None:
        await self._ask(lambda packet_id: mqtt5.UnsubscribePacket(packet_id, list(filters)).write())

    async def _ask(
        self, packet: Callable[[int], bytes], subscriptions: Sequence[Subscription] = ()
    ) -> None:
        """Send what a SUBACK or an UNSUBACK answers, and wait for that."""
        if self.error is not None:
            raise UplinkLost(str(self.error))
        packet_id = self._last_id = self._free_id()
        answered: asyncio.Future[None] = self._loop.create_future()
        self._asking[packet_id] = subscriptions, answered
        self._write(packet(packet_id))
        await self._listening(answered)

    def acknowledge(self, packet_ids: Iterable[int | None]) -> None:
        # A PUBACK that says success is these four bytes: type, length, packet id.
        words = [0x4002_0000 | packet_id for packet_id in packet_ids if packet_id is not None]
        if words and self.error is None:
            self._write(struct.pack(f">{len(words)}L", *words))
            self._in_hand -= len(words)
            self._pace()

    def hold(self, held: bool) -> None:
        self._held = held
        self._pace()

    def end(self, error: Exception, *, say: mqtt5.DisconnectReasonCode | None = None) -> None:
        """End for good; `say` tells the broker why, otherwise it is a plain goodbye."""
        if self.error is not None:
            return
        self.error = error
        self._up.clear()
        self._paused = True
        if self._timer is not None:
            self._timer.cancel()
        for answered in self.in_flight.values():
            if answered is None:
                self._counts.lost += 1
            elif isinstance(answered, asyncio.Future) and not answered.done():
                answered.set_exception(UplinkLost(str(error)))
        self.in_flight.clear()
        for _, answer in self._asking.values():
            if not answer.done():
                answer.set_exception(UplinkLost(str(error)))
        self._asking.clear()
        self._wake()
        for future in (self.ready, self.ended):
            if not future.done():
                future.set_result(None)
        if self._transport is None or self._transport.is_closing():
            return
        reason = say or mqtt5.DisconnectReasonCode.NORMAL_DISCONNECTION
        goodbye = mqtt5.DisconnectPacket(
            reason_code=reason, session_expiry_interval=self.last_expiry_s
        )
        self._write(goodbye.write())
        # Closing a socket that still receives resets it, and our last PUBACKs are lost with it: so
        # only the sending half closes, and the broker closes the rest.
        if self._transport.can_write_eof():
            with suppress(OSError):  # the broker has died, and the loop has not noticed
                self._transport.write_eof()
        if self._deaf:
            self._transport.resume_reading()

    def abandon(self) -> None:
        """Give up a connection that the loop has closed, or never made."""
        # uvloop's transport looks open then, and raises when written to.
        transport, self._transport = self._transport, None
        self.end(UplinkLost(_CLOSED_BY_US))
        if transport is not None:
            transport.abort()

    async def close(self) -> None:
        """Leave nothing open, whatever state the established connection is in."""
        assert self._transport is not None
        self.end(UplinkLost(_CLOSED_BY_US))
        try:
            await asyncio.wait([self._closed], timeout=_CLOSE_DEADLINE_S)
        finally:
            self._transport.abort()  # it may be mute, and never close

    # What the broker says

    def _take(self, packet: mqtt5.Packet) -> None:
        match packet:
            case mqtt5.PubAckPacket():
                self._on_puback(packet)
            case mqtt5.PingRespPacket():
                pass
            case mqtt5.ConnAckPacket() if not self._accepted:
                self._on_connack(packet)
            case mqtt5.SubAckPacket() if self._accepted and not self.ready.done():
                self._on_suback(packet)
            case mqtt5.SubAckPacket() | mqtt5.UnsubAckPacket() if packet.packet_id in self._asking:
                self._on_answer(packet)
            case mqtt5.DisconnectPacket():
                self.end(_as_error("the broker disconnected", packet))
            case _:
                self.end(
                    UplinkLost(f"the broker sent a {type(packet).__name__} out of turn"),
                    say=mqtt5.DisconnectReasonCode.PROTOCOL_ERROR,
                )

    def _on_connack(self, packet: mqtt5.ConnAckPacket) -> None:
        if int(packet.reason_code):
            return self.end(_as_error("the broker refused the connection", packet))
        if not int(packet.max_qos):
            return self.end(UplinkRefused("the broker offers no QoS 1", _QOS_NOT_SUPPORTED))
        self._accepted = True
        self._paused = False
        self.session_present = packet.session_present
        self._window = packet.receive_max
        self._largest_bytes = min(packet.max_packet_size or _LARGEST_OUT_BYTES, _LARGEST_OUT_BYTES)
        asked_s = packet.server_keep_alive
        self._keepalive_s = self._settings.keepalive_s if asked_s is None else asked_s
        if self._keepalive_s:
            self._timer = self._loop.call_later(self._keepalive_s / 2, self._keep_alive)
        if self._subscriptions:
            self._write(self._greeting.subscribe)
        else:
            self._become_ready()
        return None

    def _on_suback(self, packet: mqtt5.SubAckPacket) -> None:
        fault = _fault(self._subscriptions, packet)
        if fault is not None:
            return self.end(fault)
        self._become_ready()
        return None

    def _become_ready(self) -> None:
        self.ready.set_result(None)
        self._up.set()
        self._on_ready(self)
        if self._early:
            self._on_messages(self._early)
            self._early = []

    def _hand_over(self, messages: list[Message]) -> None:
        if self.ready.done():
            self._on_messages(messages)
        else:
            self._early += messages

    def _on_puback(self, packet: mqtt5.PubAckPacket) -> None:
        answered = self.in_flight.pop(packet.packet_id, None)
        error: UplinkRefused | None = None
        if (code := int(packet.reason_code)) >= 0x80:
            error = UplinkRefused(_words("the broker refused a publish", packet), code)
        if answered is None:
            if error and not self._counts.refused:
                log.warning("%s", error)
            self._counts.refused += error is not None
        elif not isinstance(answered, asyncio.Future):
            answered(error)
        elif not answered.done():
            if error:
                answered.set_exception(error)
            else:
                answered.set_result(None)

    def _on_answer(self, packet: mqtt5.SubAckPacket | mqtt5.UnsubAckPacket) -> None:
        subscriptions, answered = self._asking.pop(packet.packet_id)
        if answered.done():
            return
        if isinstance(packet, mqtt5.SubAckPacket):
            fault = _fault(subscriptions, packet)
        else:
            refused = [code for code in packet.reason_codes if int(code) >= 0x80]
            words = "filters taken back: the broker said"
            fault = (
                UplinkRefused(f"{words} {refused[0].name}", int(refused[0])) if refused else None
            )
        if fault is None:
            answered.set_result(None)
        else:
            answered.set_exception(fault)

    def _keep_alive(self) -> None:
        silent_s = 0.0 if self._deaf else self._loop.time() - self._heard_s
        patience_s = 1.5 * self._keepalive_s - silent_s
        if patience_s <= 0:
            self.end(UplinkLost(f"nothing heard for {1.5 * self._keepalive_s:g} s"))
            return
        # Also on a busy connection: one that only sends learns only so that the broker is alive.
        self._write(b"\xc0\x00")
        delay_s = min(self._keepalive_s / 2, patience_s)
        self._timer = self._loop.call_later(delay_s, self._keep_alive)

    def _pace(self) -> None:
        # Mosquitto 2.0 sends a backlog beyond the receive maximum, so the socket has to wait: but not
        # while somebody waits for an answer that may be behind it, or our filters are not granted.
        full = self._held or self._in_hand > self._settings.receive_maximum
        deaf = full and not self._awaited and self.ready.done()
        if deaf != self._deaf and self.error is None:
            assert self._transport is not None
            self._deaf = deaf
            self._heard_s = self._loop.time()
            if deaf:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()

    def _wake(self) -> None:
        room, self._room = self._room, []
        for waiter in room:
            if not waiter.done():
                waiter.set_result(None)

    def _free_id(self) -> int:
        packet_id = self._last_id % 0xFFFF + 1
        while packet_id in self.in_flight or packet_id in self._asking:
            packet_id = packet_id % 0xFFFF + 1
        return packet_id

    def _write(self, data: bytes) -> None:
        assert self._transport is not None
        self._transport.write(data)


class PacketStream:
    """Bytes in, whole packets out, wherever the bytes were cut.

    Shape: after a malformed or oversized packet `fault` is (what to tell the broker, words) and
        nothing more comes out.
    """

    def __init__(self, max_packet_bytes: int) -> None:
        self._max_packet_bytes = max_packet_bytes
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._needed_bytes = 0
        self.fault: tuple[mqtt5.DisconnectReasonCode, str] | None = None

    def feed(self, data: bytes) -> list[mqtt5.Packet]:
        """Take the next bytes; return the packets they complete."""
        if self.fault:
            return []
        if self._held:
            # Joined once, when the packet is complete: a large one in small pieces stays linear.
            self._held.append(data)
            self._held_bytes += len(data)
            if self._held_bytes < self._needed_bytes:
                return []
            data = b"".join(self._held)
            self._held.clear()
        packets: list[mqtt5.Packet] = []
        view, start, end = memoryview(data), 0, len(data)
        limit, read = self._max_packet_bytes, mqtt5.read
        words = ""
        try:
            while start < end:
                packet, size = read(view[start:])
                if size > limit:
                    break
                packets.append(packet)
                start += size
        except Exception as error:  # noqa: BLE001 - IndexError: too short; ValueError: malformed
            words = str(error)
        except BaseException as error:
            # Text that is not UTF-8 makes the codec panic, which is no Exception.
            if type(error).__name__ != "PanicException":
                raise
            words = "text that is not UTF-8"
        if start < end:
            self._hold(data[start:], words)
        return packets

    def _hold(self, rest: bytes, words: str) -> None:
        # The codec says "too short" of an incomplete packet and of one that lies about a length
        # inside, and may dislike an incomplete one early; only whole packets are judged.
        size_bytes = _packet_bytes(rest)
        if size_bytes is None:
            words = "a packet with an impossible length"
        elif size_bytes > self._max_packet_bytes:
            code = mqtt5.DisconnectReasonCode.PACKET_TOO_LARGE
            self.fault = code, f"{size_bytes} bytes in one packet, at most {self._max_packet_bytes}"
            return
        elif size_bytes > len(rest):
            self._held.append(rest)
            self._held_bytes, self._needed_bytes = len(rest), size_bytes
            return
        code = mqtt5.DisconnectReasonCode.MALFORMED_PACKET
        self.fault = code, f"a malformed packet: {words} ({rest[:16].hex(' ')})"


def _packet_bytes(head: bytes) -> int | None:
    """Size of the packet that begins here, or one more byte than there is; None when impossible."""
    length = 0
    for place, byte in enumerate(head[1:5]):
        length |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return 2 + place + length
    return None if len(head) > 4 else len(head) + 1


_QOS = (mqtt5.QoS.AT_MOST_ONCE, mqtt5.QoS.AT_LEAST_ONCE)


class _Greeting(msgspec.Struct, frozen=True):
    """The first packets of a connection, encoded."""

    connect: bytes
    subscribe: bytes


def _greeting(
    settings: Settings, subscriptions: Sequence[Subscription], *, first: bool
) -> _Greeting:
    will = settings.will
    connect = mqtt5.ConnectPacket(
        settings.client_id,
        username=settings.username,
        password=None if settings.password is None else settings.password.encode(),
        clean_start=settings.clean_start and first,
        will=None
        if will is None
        else mqtt5.Will(
            will.topic,
            payload=will.payload,
            qos=_QOS[will.qos],
            retain=will.retain,
            will_delay_interval=will.delay_s,
        ),
        keep_alive=settings.keepalive_s,
        session_expiry_interval=settings.session_expiry_s,
        receive_max=settings.receive_maximum,
        max_packet_size=settings.max_packet_bytes,
    ).write()
    if not subscriptions:
        return _Greeting(connect, b"")
    # Asked on every connection: a kept session may hold the filters of an older configuration. A
    # client that has just begun wants all retained messages, after a reconnect only what is new.
    handling = mqtt5.RetainHandling
    retained = handling.SEND_ALWAYS if first else handling.SEND_IF_SUBSCRIPTION_NOT_EXISTS
    return _Greeting(connect, mqtt5.SubscribePacket(1, _filters(subscriptions, retained)).write())


def _filters(
    subscriptions: Sequence[Subscription], retained: mqtt5.RetainHandling
) -> list[mqtt5.TopicFilter]:
    never = mqtt5.RetainHandling.SEND_NEVER
    return [
        mqtt5.TopicFilter(
            each.topic_filter,
            max_qos=_QOS[each.qos],
            retain_handling=retained if each.retained else never,
        )
        for each in subscriptions
    ]


def _fault(subscriptions: Sequence[Subscription], packet: mqtt5.SubAckPacket) -> UplinkError | None:
    """Return what is wrong with what the broker granted."""
    for subscription, granted in zip(subscriptions, packet.reason_codes, strict=False):
        if int(granted) != subscription.qos:
            code = int(granted) if int(granted) >= 0x80 else _QOS_NOT_SUPPORTED
            what = f"filter {subscription.topic_filter!r} with QoS {subscription.qos}"
            return UplinkRefused(f"{what}: the broker said {granted.name}", code)
    if len(packet.reason_codes) != len(subscriptions):
        return UplinkLost("the broker answered another number of filters than asked")
    return None


def _reason(error: OSError) -> str:
    """What failed: asyncio says that a call failed, the system why."""
    number = error.errno or 0  # below 0: of the resolver, whose own words are clear
    return str(error) if number <= 0 or isinstance(error, ssl.SSLError) else os.strerror(number)


def _words(
    what: str, packet: mqtt5.ConnAckPacket | mqtt5.PubAckPacket | mqtt5.DisconnectPacket
) -> str:
    text = f"{what}: {packet.reason_code.name}"
    return f"{text} ({packet.reason_str})" if packet.reason_str else text


def _as_error(what: str, packet: mqtt5.ConnAckPacket | mqtt5.DisconnectPacket) -> UplinkError:
    code, text = int(packet.reason_code), _words(what, packet)
    if code == _SESSION_TAKEN_OVER:
        return _TakenOver(f"{text}: another client uses our client id")
    return UplinkLost(text) if code in _PASSING else UplinkRefused(text, code)
