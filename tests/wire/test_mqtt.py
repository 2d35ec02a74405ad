"""The MQTT client against a real Mosquitto, an independent client, and a peer that misbehaves."""

from __future__ import annotations

import asyncio
import logging
import random
import sys
import textwrap
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import aiomqtt
import pytest

from exchange.errors import UplinkError, UplinkLost, UplinkRefused
from exchange.mqtt import Client, Message, Settings, Subscription, Will
from tests.brokers import Mosquitto

DEADLINE_S = 10.0

CONNACK = bytes.fromhex("20 03 00 00 00")
SUBACK = bytes.fromhex("90 04 00 01 00 01")
PINGRESP = bytes.fromhex("d0 00")


class Inbox:
    """What a client received, in order."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.reads = 0
        self.generation = 0
        self._arrived = asyncio.Event()

    def __call__(self, messages: list[Message], generation: int) -> None:
        self.messages += messages
        self.reads += 1
        self.generation = generation
        self._arrived.set()

    @property
    def payloads(self) -> list[bytes]:
        return [message.payload for message in self.messages]

    def full(self, count: int) -> Callable[[], bool]:
        return lambda: len(self.messages) >= count

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while not condition():
                self._arrived.clear()
                await self._arrived.wait()


class Wire:
    """The broker's end of one connection, by hand."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def packet(self) -> bytes:
        """The client's next packet."""
        async with asyncio.timeout(DEADLINE_S):
            head = await self._reader.readexactly(1)
            length = shift = 0
            while True:
                byte = await self._reader.readexactly(1)
                head += byte
                length |= (byte[0] & 0x7F) << shift
                shift += 7
                if byte[0] < 0x80:
                    return head + await self._reader.readexactly(length)

    async def closed(self) -> bytes:
        """Everything until the client closes."""
        async with asyncio.timeout(DEADLINE_S):
            return await self._reader.read()

    async def greet(self, connack: bytes = CONNACK, suback: bytes = SUBACK) -> None:
        assert (await self.packet())[0] == 0x10
        self.send(connack)
        assert (await self.packet())[0] == 0x82
        self.send(suback)


class _ClosesAfterUs(asyncio.StreamReaderProtocol):
    """Closes its end when the client has closed its own, like a broker."""

    def eof_received(self) -> bool:
        super().eof_received()
        return False


class Peer:
    """A TCP server that speaks only as a test tells it to."""

    def __init__(self) -> None:
        self.port = 0
        self._wires: asyncio.Queue[Wire] = asyncio.Queue()
        self._all: list[Wire] = []

    async def accept(self) -> Wire:
        async with asyncio.timeout(DEADLINE_S):
            return await self._wires.get()

    def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        wire = Wire(reader, writer)
        self._all.append(wire)
        self._wires.put_nowait(wire)

    async def close(self) -> None:
        for wire in self._all:
            wire.writer.transport.abort()
            with suppress(OSError):
                await wire.writer.wait_closed()


@pytest.fixture
async def peer() -> AsyncIterator[Peer]:
    peer = Peer()
    server = await asyncio.get_running_loop().create_server(
        lambda: _ClosesAfterUs(asyncio.StreamReader(), peer.connected), "127.0.0.1", 0
    )
    peer.port = server.sockets[0].getsockname()[1]
    yield peer
    server.close()
    await peer.close()


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    with Mosquitto(tmp_path) as broker:
        yield broker


def settings_for(at: Mosquitto | Peer, **changes: object) -> Settings:
    fields: dict[str, object] = {
        "host": "127.0.0.1",
        "port": at.port,
        "client_id": "service",
        "backoff_first_s": 0.05,
        "backoff_max_s": 0.2,
        **changes,
    }
    return Settings(**fields)  # type: ignore[arg-type] # the tests change fields of every type


@asynccontextmanager
async def running(client: Client, stop_deadline_s: float = 5.0) -> AsyncIterator[Client]:
    """A client while it runs; what ends `run` ends the test."""
    task = asyncio.create_task(client.run())
    try:
        yield client
    finally:
        async with asyncio.timeout(DEADLINE_S):
            await client.stop(stop_deadline_s)
            await task


@asynccontextmanager
async def connected(
    at: Mosquitto | Peer,
    topic_filter: str | None = None,
    inbox: Inbox | None = None,
    *,
    qos: int = 1,
    **changes: object,
) -> AsyncIterator[Client]:
    subscriptions = [Subscription(topic_filter, qos)] if topic_filter else []  # type: ignore[arg-type] # 0 or 1
    async with running(
        Client(settings_for(at, **changes), subscriptions, inbox or Inbox())
    ) as client:
        await client.wait_connected(DEADLINE_S)
        yield client


@asynccontextmanager
async def witness(
    broker: Mosquitto, topic_filter: str | None = None, **options: object
) -> AsyncIterator[aiomqtt.Client]:
    """An independent client."""
    async with aiomqtt.Client(broker.host, broker.port, **options) as client:  # type: ignore[arg-type] # see above
        if topic_filter:
            await client.subscribe(topic_filter, qos=1)
        yield client


async def cut(client: Client) -> None:
    """Break the connection without a word and wait for the next."""
    assert client._connection is not None and client._connection._transport is not None
    client._connection._transport.abort()
    await reconnected(client)


async def reconnected(client: Client) -> None:
    """Wait for this connection's end and for the next one."""
    if client._connection is not None:
        async with asyncio.timeout(DEADLINE_S):
            await client._connection.ended
    await client.wait_connected(DEADLINE_S)


async def next_message(client: aiomqtt.Client) -> aiomqtt.Message:
    async with asyncio.timeout(DEADLINE_S):
        message: aiomqtt.Message = await anext(aiter(client.messages))
        return message


# With a real broker


async def test_publishes_with_both_qos_and_retain(broker: Mosquitto) -> None:
    async with witness(broker, "t/#") as other, connected(broker) as client:
        await client.publish("t/0", b"at most once", qos=0)
        await client.publish("t/1", b"at least once", retain=True)
        assert client.unacked == 0
        got = [await next_message(other), await next_message(other)]
        assert [(str(m.topic), m.payload, m.qos) for m in got] == [
            ("t/0", b"at most once", 0),
            ("t/1", b"at least once", 1),
        ]
        async with witness(broker, "t/#", identifier="late") as late:
            retained = await next_message(late)
            assert (retained.payload, retained.retain) == (b"at least once", True)


async def test_receives_with_both_qos(broker: Mosquitto) -> None:
    inbox = Inbox()
    async with connected(broker, "t/#", inbox) as client, witness(broker) as other:
        await other.publish("t/0", b"zero", qos=0)
        await other.publish("t/1", b"one", qos=1)
        await inbox.until(inbox.full(2))
        assert inbox.payloads == [b"zero", b"one"]
        assert inbox.messages[0].packet_id is None
        client.acknowledge([m.packet_id for m in inbox.messages], inbox.generation)


async def test_only_the_unacknowledged_come_again(broker: Mosquitto) -> None:
    first, second, third = Inbox(), Inbox(), Inbox()
    async with connected(broker, "t", first, session_expiry_s=60) as client:
        assert not client.session_present
        async with witness(broker) as other:
            for number in range(10):
                await other.publish("t", str(number), qos=1)
        await first.until(first.full(10))
        client.acknowledge([m.packet_id for m in first.messages[:4]], first.generation)

    async with connected(broker, "t", second, session_expiry_s=60) as client:
        assert client.session_present
        await second.until(second.full(6))
        assert second.payloads == [b"4", b"5", b"6", b"7", b"8", b"9"]
        assert all(message.duplicate for message in second.messages)
        client.acknowledge([m.packet_id for m in second.messages], second.generation)

    async with connected(broker, "t", third, session_expiry_s=60) as client:
        assert client.session_present
        await client.publish("t", b"marker")  # nothing comes before it
        await third.until(third.full(1))
        assert third.payloads == [b"marker"]


async def test_receive_maximum_bounds_what_is_in_hand(broker: Mosquitto) -> None:
    inbox = Inbox()
    subscriptions = [Subscription("t", 1), Subscription("marker", 0)]
    client = Client(settings_for(broker, receive_maximum=5), subscriptions, inbox)
    async with running(client), witness(broker) as other:
        await client.wait_connected(DEADLINE_S)
        for number in range(20):
            await other.publish("t", str(number), qos=1)
        # QoS 0 is outside the window, so it overtakes what waits behind it.
        await other.publish("marker", "m", qos=0)
        await inbox.until(lambda: b"m" in inbox.payloads)
        assert inbox.payloads == [b"0", b"1", b"2", b"3", b"4", b"m"]


async def test_a_backlog_does_not_pile_up_in_hand(broker: Mosquitto) -> None:
    """Mosquitto 2.0 answers each PUBACK with up to the receive maximum of further messages."""
    count, receive_maximum, payload = 1500, 10, bytes(8192)
    in_one_read = 256 * 1024 // len(payload) + 1
    async with connected(broker, "t", session_expiry_s=60):
        pass
    async with connected(broker, client_id="load") as load:
        for _ in range(count):
            await load.publish("t", payload)
    inbox = Inbox()
    done = 0
    async with connected(
        broker, "t", inbox, session_expiry_s=60, receive_maximum=receive_maximum, keepalive_s=1
    ) as client:
        while done < count:
            await inbox.until(inbox.full(done + 1))
            assert len(inbox.messages) - done <= receive_maximum + in_one_read
            batch = inbox.messages[done : done + 5]
            client.acknowledge([m.packet_id for m in batch], inbox.generation)
            done += len(batch)
            if done == 100:  # what waits for an answer is answered, however much is before it
                await client.publish("elsewhere", b"")
                in_one_read += len(inbox.messages)
        assert len(inbox.messages) == count
        assert client.generation == 1


async def test_acknowledgements_of_an_earlier_connection_are_dropped(broker: Mosquitto) -> None:
    inbox, again = Inbox(), Inbox()
    async with connected(broker, "t", inbox, session_expiry_s=60) as client:
        async with witness(broker) as other:
            for number in range(3):
                await other.publish("t", str(number), qos=1)
        await inbox.until(inbox.full(3))
        old = [m.packet_id for m in inbox.messages], inbox.generation
        await cut(client)
        await inbox.until(inbox.full(6))
        assert inbox.generation == old[1] + 1
        assert client.session_present
        client.acknowledge(*old)  # the same ids are in hand again
    async with connected(broker, "t", again, session_expiry_s=60):
        await again.until(again.full(3))
        assert again.payloads == [b"0", b"1", b"2"]


@pytest.mark.parametrize("payload_bytes", [0, 1024 * 1024])
async def test_payloads_of_any_size_both_ways(broker: Mosquitto, payload_bytes: int) -> None:
    inbox = Inbox()
    payload = bytes(range(256)) * (payload_bytes // 256)
    async with (
        witness(broker, "out") as other,
        connected(broker, "in", inbox) as client,
    ):
        await client.publish("out", payload)
        assert (await next_message(other)).payload == payload
        await other.publish("in", payload, qos=1)
        await inbox.until(inbox.full(1))
        assert inbox.payloads == [payload]


async def test_twenty_thousand_messages_arrive_once_in_order_in_batches(tmp_path: Path) -> None:
    count = 20_000
    inbox = Inbox()
    with Mosquitto(tmp_path, ["max_inflight_messages 0"]) as broker:
        async with connected(broker, "t", client_id="sink", session_expiry_s=60):
            pass  # the broker keeps its filter, and now queues
        async with connected(broker, client_id="load") as load:
            async with asyncio.timeout(DEADLINE_S):
                for number in range(count):
                    while not load.publish_soon("t", b"%d" % number):
                        await load.drain(DEADLINE_S)
                await load.drain(DEADLINE_S)
            assert (load.unacked, load.counts.lost, load.counts.refused) == (0, 0, 0)

        received = 0
        sink = Client(
            settings_for(broker, client_id="sink", session_expiry_s=60, receive_maximum=65535),
            [Subscription("t")],
            lambda messages, generation: take(messages, generation),
        )

        def take(messages: list[Message], generation: int) -> None:
            nonlocal received
            received += len(messages)
            inbox(messages, generation)
            sink.acknowledge([m.packet_id for m in messages], generation)

        async with running(sink):
            await inbox.until(lambda: received == count)
    assert inbox.payloads == [b"%d" % number for number in range(count)]
    assert not any(message.duplicate for message in inbox.messages)
    assert inbox.reads < count / 10


async def test_a_client_stops_at_any_moment_of_connecting(broker: Mosquitto) -> None:
    # uvloop closes the handle of a cancelled connection under a transport that looks open.
    for moment in range(40):
        client = Client(settings_for(broker), [], Inbox())
        async with running(client):
            for _ in range(moment):
                await asyncio.sleep(0)
            if moment >= 20:
                await asyncio.sleep((moment - 20) * 50e-6)
        assert client.last_error is None, f"stopped after {moment} turns of the loop"


async def test_a_client_stops_when_its_broker_has_just_died(tmp_path: Path) -> None:
    for _ in range(10):
        with Mosquitto(tmp_path) as broker:
            client = Client(settings_for(broker), [], Inbox())
            async with running(client, stop_deadline_s=0.2):
                await client.wait_connected(DEADLINE_S)
                broker.kill()


async def test_wrong_password_is_said_once_and_retried(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    with Mosquitto(tmp_path, accounts={"service": "right"}) as broker:
        settings = settings_for(broker, username="service", password="not-this")
        assert "not-this" not in repr(settings)
        assert not any("not-this" in str(part) for part in settings.__rich_repr__())
        async with running(Client(settings, [], Inbox())) as client:
            async with asyncio.timeout(DEADLINE_S):
                while client.generation < 4:
                    with pytest.raises(UplinkError):
                        await client.wait_connected(0.05)
            assert isinstance(client.last_error, UplinkRefused)
            assert client.last_error.code in {0x86, 0x87}
            with pytest.raises(UplinkLost, match=r"NOT_AUTHORIZED|BAD_USER_NAME"):
                await client.publish("t", b"")
        assert [r.getMessage() for r in caplog.records] == [str(client.last_error)]
        assert "not-this" not in caplog.text

        final = Client(settings_for(broker, username="service", fail_fast=True), [], Inbox())
        with pytest.raises(UplinkRefused):
            await final.run()

        async with connected(broker, username="service", password="right"):
            pass


async def test_survives_a_killed_broker(broker: Mosquitto) -> None:
    inbox = Inbox()
    events: list[str] = []
    down = asyncio.Event()

    def on_disconnect(error: UplinkError) -> None:
        events.append(type(error).__name__)
        down.set()

    client = Client(
        settings_for(broker, session_expiry_s=60),
        [Subscription("t/#")],
        inbox,
        on_connect=lambda present: events.append(f"up {present}"),
        on_disconnect=on_disconnect,
    )
    async with running(client):
        await client.wait_connected(DEADLINE_S)
        broker.kill()
        async with asyncio.timeout(DEADLINE_S):
            await down.wait()
        assert not client.connected
        assert not client.publish_soon("t", b"")
        with pytest.raises(UplinkLost):
            await client.publish("t", b"")
        broker.start()
        await client.wait_connected(DEADLINE_S)
        async with witness(broker) as other:
            await other.publish("t/after", b"still subscribed", qos=1)
        await inbox.until(inbox.full(1))
    assert events == ["up False", "UplinkLost", "up False"]


async def test_retained_messages_come_at_the_start_and_not_at_every_reconnect(
    broker: Mosquitto,
) -> None:
    async with witness(broker) as other:
        await other.publish("t/state", b"retained", qos=1, retain=True)
    for _ in range(2):  # the second finds its session kept
        inbox = Inbox()
        async with connected(broker, "t/#", inbox, qos=0, session_expiry_s=60) as client:
            await inbox.until(inbox.full(1))
            await cut(client)
            await client.publish("t/marker", b"marker")
            await inbox.until(inbox.full(2))
            assert inbox.payloads == [b"retained", b"marker"]


async def test_a_denied_publish_is_refused(tmp_path: Path) -> None:
    """Mosquitto 2.0 answers with the reason code, and then closes the connection."""
    acl = "user service\ntopic readwrite allowed\n"
    with Mosquitto(tmp_path, accounts={"service": "pw"}, acl=acl) as broker:
        async with connected(broker, username="service", password="pw") as client:
            await client.publish("allowed", b"")
            with pytest.raises(UplinkRefused, match="NOT_AUTHORIZED") as refused:
                await client.publish("forbidden", b"")
            assert refused.value.code == 0x87
            await reconnected(client)
            assert client.publish_soon("forbidden", b"")
            await reconnected(client)
            assert (client.counts.refused, client.counts.lost) == (1, 0)
            await client.publish("allowed", b"")


async def test_unsendable_topics_and_settings_are_refused_here(broker: Mosquitto) -> None:
    async with connected(broker) as client:
        for topic in ("", "a/+/b", "a/#", "x" * 70_000, "\ud800"):
            with pytest.raises(UplinkRefused) as refused:
                await client.publish(topic, b"")
            assert refused.value.code == 0x90
        with pytest.raises(UplinkRefused) as refused:
            await client.publish("t", bytes(1 << 25))
        assert refused.value.code == 0x95
        assert client.unacked == 0
        await client.publish("t", b"the connection is none the worse")
    with pytest.raises(UplinkRefused, match="settings"):
        Client(settings_for(broker, keepalive_s=70_000), [], Inbox())


async def test_the_will_is_published_when_the_process_dies(broker: Mosquitto) -> None:
    program = textwrap.dedent(f"""
        import asyncio
        from exchange.mqtt import Client, Settings, Will
        will = Will(topic="t/will", payload=b"gone", retain=True)
        settings = Settings(host="127.0.0.1", port={broker.port}, client_id="mortal", will=will)
        asyncio.run(Client(settings, [], print, on_connect=lambda _: print("up", flush=True)).run())
    """)
    async with witness(broker, "t/#") as other:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE
        )
        try:
            assert process.stdout is not None
            async with asyncio.timeout(DEADLINE_S):
                assert await process.stdout.readline() == b"up\n"
        finally:
            process.kill()
            await process.wait()
        message = await next_message(other)
        assert (str(message.topic), message.payload) == ("t/will", b"gone")


async def test_no_will_after_an_orderly_stop(broker: Mosquitto) -> None:
    async with witness(broker, "t/#") as other:
        async with connected(broker, will=Will(topic="t/will", payload=b"gone")) as client:
            assert client.publish_soon("t/last", b"flushed by stop")
        assert not client.connected
        await other.publish("t/marker", b"", qos=1)
        topics = [str((await next_message(other)).topic) for _ in range(2)]
        assert topics == ["t/last", "t/marker"]


# With a peer that says what a real broker would not say on demand


async def test_a_receipt_reaches_the_broker_before_its_puback(peer: Peer) -> None:
    count = 50

    def receipt_then_puback(messages: list[Message], generation: int) -> None:
        for message in messages:
            assert client.publish_soon("receipts", message.payload)
            client.acknowledge([message.packet_id], generation)

    client = Client(settings_for(peer), [Subscription("t")], receipt_then_puback)
    async with running(client, stop_deadline_s=0):
        wire = await peer.accept()
        await wire.greet()
        for number in range(1, count + 1):
            wire.send(bytes.fromhex("32 06 00 01 74") + number.to_bytes(2, "big") + b"\x00")
        for number in range(1, count + 1):
            publish, puback = await wire.packet(), await wire.packet()
            assert publish[0] == 0x32
            assert puback == b"\x40\x02" + number.to_bytes(2, "big")


async def test_a_silent_broker_is_noticed(peer: Peer) -> None:
    lost: asyncio.Future[UplinkError] = asyncio.get_running_loop().create_future()
    client = Client(settings_for(peer, keepalive_s=1), [], Inbox(), on_disconnect=lost.set_result)
    async with running(client):
        wire = await peer.accept()
        await wire.packet()
        wire.send(CONNACK)
        begun_s = asyncio.get_running_loop().time()
        assert await wire.packet() == b"\xc0\x00"
        async with asyncio.timeout(DEADLINE_S):
            assert "nothing heard for 1.5 s" in str(await lost)
        assert 1.4 < asyncio.get_running_loop().time() - begun_s < 2.5
        await peer.accept()  # and it tries again


async def test_an_idle_connection_lives_on_pings_at_the_brokers_pace(peer: Peer) -> None:
    async with running(Client(settings_for(peer, keepalive_s=600), [], Inbox())) as client:
        wire = await peer.accept()
        await wire.packet()
        wire.send(bytes.fromhex("20 06 00 00 03 13 00 01"))  # server keep alive: 1 s
        for _ in range(4):
            assert await wire.packet() == b"\xc0\x00"
            wire.send(PINGRESP)
        assert client.connected
        assert client.generation == 1


@pytest.mark.parametrize(
    ("nonsense", "code"),
    [
        ("30 05 00 01 ff 00 61", 0x81),  # a topic that is not UTF-8
        ("00 00", 0x81),
        ("30 ff ff ff ff 01", 0x81),
        ("30 80 80 80 02", 0x95),  # announces 4 MiB
        ("50 02 00 01", 0x82),  # a PUBREC, and we never send QoS 2
        ("20 03 00 00 00", 0x82),  # a second CONNACK
    ],
)
# On text that is not UTF-8 the codec drops the decoder's error before it panics.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_nonsense_ends_the_connection_and_not_the_client(
    peer: Peer, nonsense: str, code: int
) -> None:
    inbox = Inbox()
    async with running(Client(settings_for(peer), [Subscription("t")], inbox)) as client:
        wire = await peer.accept()
        await wire.greet()
        wire.send(bytes.fromhex("30 05 00 01 74 00 61") + bytes.fromhex(nonsense))
        assert await wire.packet() == bytes([0xE0, 1, code])
        assert await wire.closed() == b""
        await (await peer.accept()).greet()
        await client.wait_connected(DEADLINE_S)
        assert inbox.payloads == ([b"a"] if code != 0x82 else [])


async def test_random_bytes_never_end_the_client(peer: Peer) -> None:
    seed = random.randrange(1 << 32)
    print("seed", seed)  # noqa: T201 - so that a failure can be repeated
    rng = random.Random(seed)
    client = Client(settings_for(peer, backoff_first_s=0.001, backoff_max_s=0.001), [], Inbox())
    async with running(client):
        for _ in range(30):
            wire = await peer.accept()
            await wire.packet()
            wire.send(CONNACK + rng.randbytes(rng.randrange(200)))
            wire.writer.write_eof()
            await wire.closed()


@pytest.mark.parametrize("suback", ["90 04 00 01 00 87", "90 04 00 01 00 00", "90 03 00 01 00"])
async def test_a_filter_that_is_not_granted_is_an_error(peer: Peer, suback: str) -> None:
    inbox = Inbox()
    client = Client(settings_for(peer, backoff_first_s=60), [Subscription("t/#")], inbox)
    async with running(client):
        wire = await peer.accept()
        # A kept session may send before it answers.
        await wire.greet(suback=bytes.fromhex("30 05 00 01 74 00 61" + suback))
        assert await wire.packet() == bytes.fromhex("e0 00")
        with pytest.raises(UplinkError, match=r"t/#|number of filters"):
            await client.wait_connected(0.1)
        assert inbox.messages == []


@pytest.mark.parametrize("suback", ["90 04 00 01 00 87", "90 04 00 01 00 00", "90 03 00 01 00"])
async def test_one_more_filter_that_is_not_granted_is_an_error(peer: Peer, suback: str) -> None:
    client = Client(settings_for(peer), (), Inbox())
    async with running(client):
        wire = await peer.accept()
        wire.send(CONNACK)
        await client.wait_connected(DEADLINE_S)
        asked = asyncio.create_task(client.subscribe([Subscription("t/#")], DEADLINE_S))
        await wire.packet()
        await wire.packet()
        wire.send(bytes.fromhex(suback))
        with pytest.raises(UplinkError, match=r"t/#|number of filters"):
            await asked
        assert client.connected


async def test_messages_before_the_suback_come_after_on_connect(peer: Peer) -> None:
    events: list[str] = []
    inbox = Inbox()

    def on_messages(messages: list[Message], generation: int) -> None:
        events.extend(message.payload.decode() for message in messages)
        inbox(messages, generation)

    client = Client(
        settings_for(peer),
        [Subscription("t")],
        on_messages,
        on_connect=lambda present: events.append(f"connected {present}"),
    )
    async with running(client):
        wire = await peer.accept()
        await wire.greet(
            connack=bytes.fromhex("20 03 01 00 00  30 05 00 01 74 00 61"),
            suback=SUBACK + bytes.fromhex("30 05 00 01 74 00 62"),
        )
        await inbox.until(inbox.full(2))
    assert events == ["connected True", "a", "b"]


async def test_the_brokers_window_is_kept(peer: Peer) -> None:
    async with running(Client(settings_for(peer), [], Inbox()), stop_deadline_s=0) as client:
        wire = await peer.accept()
        await wire.packet()
        wire.send(bytes.fromhex("20 06 00 00 03 21 00 03"))  # receive maximum 3
        await client.wait_connected(DEADLINE_S)
        assert [client.publish_soon("t", b"") for _ in range(5)] == [True] * 3 + [False] * 2
        assert client.publish_soon("t", b"", qos=0)
        waiting = asyncio.create_task(client.publish("t", b"w"))
        ids = [(await wire.packet())[5:7] for _ in range(3)]
        assert (await wire.packet())[0] == 0x30
        assert client.unacked == 3
        wire.send(b"\x40\x02" + ids[1])
        assert (await wire.packet())[-1:] == b"w"
        assert not client.publish_soon("t", b"")
        wire.writer.close()
        with pytest.raises(UplinkLost):
            await waiting
        assert client.counts.lost == 2
        assert client.unacked == 0


async def test_many_are_published_as_one_and_each_is_answered(broker: Mosquitto) -> None:
    """More than the broker's window, which is 20, and more than one write."""
    count, answers = 250, list[tuple[int, UplinkRefused | None]]()
    async with witness(broker, "t/#") as other, connected(broker) as client:
        messages = [(f"t/{number}", b"%d" % number) for number in range(count)]
        await client.publish_each(
            messages, lambda number, error: answers.append((number, error)), silence_s=DEADLINE_S
        )
        assert sorted(answers) == [(number, None) for number in range(count)]
        heard = [await next_message(other) for _ in range(count)]
        assert [message.payload for message in heard] == [payload for _, payload in messages]
        await client.publish_each([], lambda *_: None)


async def test_of_many_it_is_told_which_were_answered_and_how(peer: Peer) -> None:
    answers: list[tuple[int, str]] = []
    async with running(Client(settings_for(peer), [], Inbox()), stop_deadline_s=0) as client:
        wire = await peer.accept()
        await wire.packet()
        wire.send(bytes.fromhex("20 06 00 00 03 21 00 03"))  # receive maximum 3
        await client.wait_connected(DEADLINE_S)
        publishing = asyncio.create_task(
            client.publish_each(
                [("t", b"a"), ("t/#", b"b"), ("t", b"c"), ("t", b"d"), ("t", b"e")],
                lambda number, error: answers.append((number, str(error))),
            )
        )
        first, *_ = [(await wire.packet())[5:7] for _ in range(3)]
        assert answers == [(1, "topic 't/#': Invalid topic")], "never sent"
        wire.send(b"\x40\x04" + first + b"\x87\x00")
        assert (await wire.packet())[-1:] == b"e"
        wire.writer.close()
        with pytest.raises(UplinkLost):
            await publishing
        assert answers[1:] == [(0, "the broker refused a publish: NOT_AUTHORIZED")]


async def test_a_broker_that_answers_none_of_many_is_given_up(peer: Peer) -> None:
    async with running(Client(settings_for(peer), [], Inbox()), stop_deadline_s=0) as client:
        wire = await peer.accept()
        await wire.packet()
        wire.send(CONNACK)
        await client.wait_connected(DEADLINE_S)
        with pytest.raises(UplinkLost, match=r"answered no publish for 0\.1 s"):
            await client.publish_each([("t", b"a")], lambda *_: None, silence_s=0.1)


@pytest.mark.parametrize(
    ("after", "words"),
    [
        ("20 03 00 87 00", "the broker refused the connection: NOT_AUTHORIZED"),
        ("20 03 00 00 00 e0 02 8b 00", "the broker disconnected: SERVER_SHUTTING_DOWN"),
    ],
)
async def test_one_connection_ends_with_what_ended_it(
    peer: Peer, after: str, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "exchange.mqtt")
    task = asyncio.create_task(Client(settings_for(peer, once=True), [], Inbox()).run())
    wire = await peer.accept()
    await wire.packet()
    wire.send(bytes.fromhex(after))
    with pytest.raises(UplinkError, match=words):
        await task
    assert caplog.records == [], "it is the caller's to say"


async def test_packet_ids_in_use_are_passed_over(peer: Peer) -> None:
    async with running(Client(settings_for(peer), [], Inbox()), stop_deadline_s=0) as client:
        wire = await peer.accept()
        await wire.packet()
        wire.send(CONNACK)
        await client.wait_connected(DEADLINE_S)
        assert client.publish_soon("t", b"")
        assert client._connection is not None
        client._connection._last_id = 0xFFFE
        assert client.publish_soon("t", b"")
        assert client.publish_soon("t", b"")
        ids = [(await wire.packet())[5:7].hex() for _ in range(3)]
        assert ids == ["0001", "ffff", "0002"]


async def test_the_brokers_packet_size_is_kept(peer: Peer) -> None:
    async with running(Client(settings_for(peer), [], Inbox()), stop_deadline_s=0) as client:
        wire = await peer.accept()
        await wire.packet()
        wire.send(bytes.fromhex("20 08 00 00 05 27 00 00 00 64"))  # maximum packet size 100
        await client.wait_connected(DEADLINE_S)
        with pytest.raises(UplinkRefused, match="the broker takes 100") as refused:
            client.publish_soon("t", bytes(93))
        assert refused.value.code == 0x95
        assert client.unacked == 0
        assert client.publish_soon("t", bytes(92))
        assert len(await wire.packet()) == 100


async def test_a_peer_that_does_not_read_fills_a_bounded_buffer(peer: Peer) -> None:
    async with running(Client(settings_for(peer), [], Inbox())) as client:
        wire = await peer.accept()
        await wire.packet()
        wire.writer.transport.pause_reading()  # type: ignore[attr-defined] # StreamWriter hides it
        wire.send(CONNACK)
        await client.wait_connected(DEADLINE_S)
        written = 0
        while client.publish_soon("t", bytes(65536), qos=0):
            written += 1
            assert written < 2000, "more than 128 MB taken from a peer that reads nothing"
            await asyncio.sleep(0)
        waiting = asyncio.create_task(client.publish("t", b"room again", qos=0))
        wire.writer.transport.resume_reading()  # type: ignore[attr-defined] # StreamWriter hides it
        for _ in range(written):
            assert len(await wire.packet()) > 65536
        assert (await wire.packet()).endswith(b"room again")
        await waiting


async def test_backs_off_when_another_takes_the_session(peer: Peer) -> None:
    client = Client(settings_for(peer, backoff_first_s=0.001, backoff_max_s=0.6), [], Inbox())
    async with running(client):
        wire = await peer.accept()
        await wire.packet()
        wire.send(CONNACK + bytes.fromhex("e0 02 8e 00"))
        await wire.closed()
        begun_s = asyncio.get_running_loop().time()
        await peer.accept()
        assert asyncio.get_running_loop().time() - begun_s > 0.25
        assert "another client uses our client id" in str(client.last_error)


async def test_cancelling_says_goodbye(peer: Peer) -> None:
    client = Client(settings_for(peer), [], Inbox())
    task = asyncio.create_task(client.run())
    wire = await peer.accept()
    await wire.packet()
    wire.send(CONNACK)
    await client.wait_connected(DEADLINE_S)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await wire.closed() == bytes.fromhex("e0 00")
    assert not client.connected


async def test_an_error_in_a_callback_ends_run(peer: Peer) -> None:
    def broken(messages: list[Message], generation: int) -> None:
        raise LookupError("a bug of the service")

    task = asyncio.create_task(Client(settings_for(peer), [Subscription("t")], broken).run())
    wire = await peer.accept()
    await wire.greet()
    wire.send(bytes.fromhex("30 05 00 01 74 00 61"))
    with pytest.raises(LookupError, match="a bug of the service"):
        await task


async def test_no_answer_and_nobody_there_are_lost_connections(peer: Peer) -> None:
    async with running(Client(settings_for(peer, connect_timeout_s=0.1), [], Inbox())) as client:
        await peer.accept()
        await peer.accept()
        assert "no answer in 0.1 s" in str(client.last_error)
    nobody = Client(Settings(host="127.0.0.1", port=1, client_id="c"), [], Inbox())
    async with running(nobody):
        with pytest.raises(UplinkLost, match=r"127\.0\.0\.1:1"):
            await nobody.wait_connected(0.2)
