"""The kit's own MQTT client, another library than our services use: what it sees is seen by an independent witness.

The one file of this room that knows aiomqtt.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress

import aiomqtt
import msgspec

from exchange.broker_url import read_broker_url
from exchange.errors import UplinkLost, UplinkRefused

CONNECT_S = 10.0
SEEN_AT_MOST = 200_000  # messages waiting to be judged; what a kit's run can never fill in earnest
_REFUSED = {1, 2, 4, 5, 0x84, 0x85, 0x86, 0x87, 0x8A, 0x8C}  # CONNACK of MQTT 3.1.1 and of MQTT 5


class Address(msgspec.Struct, frozen=True, kw_only=True):
    """Where a broker is, and as whom to go there."""

    host: str
    port: int
    username: str | None = None
    password: str | None = None
    tls: ssl.SSLContext | None = None

    def __str__(self) -> str:
        """Return the address without its secret."""
        return f"mqtt{'s' if self.tls else ''}://{self.host}:{self.port}"

    __repr__ = __str__


class Seen(msgspec.Struct, frozen=True):
    """One message as it arrived; `at_s` is of the monotonic clock, `time_s` of the wall clock."""

    topic: str
    payload: bytes
    qos: int
    retain: bool
    at_s: float
    time_s: float


class Will(msgspec.Struct, frozen=True, kw_only=True):
    """What the broker is to publish when the connection breaks off."""

    topic: str
    payload: bytes
    retain: bool = True


class Witness:
    """One connection: what it subscribed to comes in order; it can also publish."""

    def __init__(self, client: aiomqtt.Client) -> None:
        self._client = client

    async def subscribe(self, *filters: str, qos: int = 1) -> None:
        """Subscribe; with QoS 2 a message shows the QoS it was published with.

        Raises: UplinkRefused when the broker does not grant it, UplinkLost.
        """
        try:
            for one in filters:
                granted = await self._client.subscribe(one, qos=qos)
                code = granted[0] if isinstance(granted, Sequence) else granted
                value = code if isinstance(code, int) else code.value
                if value not in (0, 1, 2):
                    raise UplinkRefused(f"the broker refuses a subscription to {one}", value)
        except aiomqtt.MqttError as error:
            raise UplinkLost(str(error)) from error

    async def unsubscribe(self, one: str) -> None:
        """Take a subscription back. Raises: UplinkLost."""
        try:
            await self._client.unsubscribe(one)
        except aiomqtt.MqttError as error:
            raise UplinkLost(str(error)) from error

    async def publish(
        self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False
    ) -> None:
        """Publish; with QoS 1 return when the broker has it. Raises: UplinkLost."""
        end = self._end
        sending = asyncio.ensure_future(
            self._client.publish(topic, payload, qos=qos, retain=retain, timeout=CONNECT_S)
        )
        try:
            # A broker may end the connection in place of an answer, and aiomqtt waits on for one.
            await asyncio.wait([sending, end], return_when=asyncio.FIRST_COMPLETED)
            if not sending.done():
                raise UplinkLost(f"{topic}: the broker ended the connection")
            sending.result()
        except aiomqtt.MqttError as error:
            raise UplinkLost(f"{topic}: {error}") from error
        finally:
            sending.cancel()

    @property
    def has_ended(self) -> bool:
        """Whether the connection is over."""
        return self._end.done()

    @property
    def _end(self) -> asyncio.Future[None]:
        return self._client._disconnected  # noqa: SLF001 - aiomqtt tells it to who waits for messages only

    def vanish(self) -> None:
        """Break the connection off without a word, so that the broker publishes the will."""
        connection = self._client._client.socket()  # noqa: SLF001 - aiomqtt has no way to die
        if connection is not None:
            with socket.socket(fileno=os.dup(connection.fileno())) as beneath_tls:
                beneath_tls.shutdown(socket.SHUT_RDWR)

    async def messages(self) -> AsyncIterator[Seen]:
        """Yield every message as it comes. Raises: UplinkLost."""
        try:
            async for message in self._client.messages:
                payload = message.payload if isinstance(message.payload, bytes) else b""
                yield Seen(
                    str(message.topic),
                    payload,
                    message.qos,
                    bool(message.retain),
                    time.monotonic(),
                    time.time(),
                )
        except aiomqtt.MqttError as error:
            raise UplinkLost(str(error)) from error

    async def watch(self, take: Callable[[Seen], None], seconds: float) -> None:
        """Hand every message to `take` for so long. Raises: UplinkLost."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                async for seen in self.messages():
                    take(seen)


@asynccontextmanager
async def witness(
    address: Address,
    *,
    client_id: str | None = None,
    clean_session: bool = True,
    will: Will | None = None,
) -> AsyncIterator[Witness]:
    """Connect. Raises: UplinkRefused for a no of the broker, UplinkLost."""
    client = aiomqtt.Client(
        address.host,
        address.port,
        identifier=client_id,
        username=address.username,
        password=address.password,
        tls_context=address.tls,
        clean_session=clean_session,
        will=None
        if will is None
        else aiomqtt.Will(will.topic, will.payload, qos=1, retain=will.retain),
        timeout=CONNECT_S,
        max_queued_incoming_messages=SEEN_AT_MOST,
    )
    client.pending_calls_threshold = 1000
    try:
        await client.__aenter__()
    except aiomqtt.MqttError as error:
        raise _translated(address, error) from error
    except OSError as error:
        raise UplinkLost(f"{address}: {error}") from error
    try:
        yield Witness(client)
    finally:
        with suppress(aiomqtt.MqttError):
            await client.__aexit__(None, None, None)
        _mourned(client)


def address(url: str, *, password: str | None, tls: ssl.SSLContext | None) -> Address:
    """Return the address of `mqtt[s]://[user@]host[:port]`. Raises: ConfigError."""
    found = read_broker_url(url, "command line", "--broker")
    if found.is_tls and tls is None:
        tls = ssl.create_default_context()
    return Address(
        host=found.host,
        port=found.port,
        username=found.username,
        password=password,
        tls=tls if found.is_tls else None,
    )


def _translated(address: Address, error: aiomqtt.MqttError) -> UplinkRefused | UplinkLost:
    code = error.rc if isinstance(error, aiomqtt.MqttCodeError) else None
    value = code if isinstance(code, int) or code is None else code.value
    if value is not None and value in _REFUSED:
        return UplinkRefused(f"{address}: {error}", value)
    return UplinkLost(f"{address}: {error}")


def _mourned(client: aiomqtt.Client) -> None:
    """See how a connection ended, which asyncio would complain that nobody did."""
    end = client._disconnected  # noqa: SLF001 - aiomqtt tells it to who waits for messages only
    if end.done() and not end.cancelled():
        end.exception()
