"""The services on HiveMQ, a broker that shares nothing with Mosquitto: what they promise is not Mosquitto's doing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from exchange.mqtt import Client, Message, Settings, Subscription
from tests.gateways import DEADLINE_S, until
from tests.hivemq import HiveMQ


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HiveMQ]:
    """One broker for tests that keep to topics of their own."""
    with HiveMQ(tmp_path_factory.mktemp("broker")) as broker:
        yield broker


class Member:
    """A client that notes what it receives, and acknowledges it if it is told to."""

    def __init__(
        self,
        broker: HiveMQ,
        name: str,
        *filters: str,
        acknowledging: bool = True,
        receive_maximum: int = 1000,
    ) -> None:
        self.messages: list[Message] = []
        self.client = Client(
            Settings(
                host=broker.host,
                port=broker.port,
                client_id=name,
                session_expiry_s=600,
                receive_maximum=receive_maximum,
                backoff_first_s=0.05,
                backoff_max_s=0.2,
            ),
            [Subscription(each) for each in filters],
            self._take,
        )
        self.acknowledging = acknowledging
        self._running: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Member:
        self._running = asyncio.create_task(self.client.run())
        await self.client.wait_connected(DEADLINE_S)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.client.stop(1.0)

    @property
    def payloads(self) -> list[bytes]:
        return [each.payload for each in self.messages]

    async def vanish(self) -> None:
        """Die without a DISCONNECT."""
        assert self._running is not None
        assert self.client._connection is not None
        assert self.client._connection._transport is not None
        self.client._connection._transport.abort()
        self._running.cancel()
        await asyncio.wait([self._running])

    async def say(self, topic: str, payloads: list[bytes]) -> None:
        await asyncio.gather(
            *(self.client.publish(topic, each, deadline_s=DEADLINE_S) for each in payloads)
        )

    def acknowledge(self) -> None:
        """Acknowledge everything that came."""
        self.client.acknowledge([each.packet_id for each in self.messages], self.client.generation)

    def _take(self, messages: list[Message], generation: int) -> None:
        self.messages += messages
        if self.acknowledging:
            self.client.acknowledge([each.packet_id for each in messages], generation)


def numbered(count: int, first: int = 0) -> list[bytes]:
    return [b"%d" % number for number in range(first, first + count)]


async def test_what_is_published_arrives_in_order(shared: HiveMQ) -> None:
    async with (
        Member(shared, "order-in", "order/#") as reader,
        Member(shared, "order-out") as writer,
    ):
        await writer.say("order/a", numbered(500))
        await until(lambda: len(reader.messages) == 500)
        assert reader.payloads == numbered(500)


async def test_the_receive_maximum_is_kept(shared: HiveMQ) -> None:
    async with (
        Member(shared, "window-in", "window", acknowledging=False, receive_maximum=7) as reader,
        Member(shared, "window-beside", "window") as beside,
        Member(shared, "window-out") as writer,
    ):
        await writer.say("window", numbered(30))
        await until(lambda: len(beside.messages) == 30)
        await until(lambda: len(reader.messages) == 7)
        await writer.say("window", numbered(1, 30))
        await until(lambda: len(beside.messages) == 31)
        assert len(reader.messages) == 7
        reader.acknowledging = True
        reader.acknowledge()
        await until(lambda: len(reader.messages) == 31)
        assert reader.payloads == numbered(31)


async def test_a_session_is_kept_over_a_reconnect(shared: HiveMQ) -> None:
    async with Member(shared, "kept", "kept") as reader:
        assert not reader.client.session_present
    async with Member(shared, "kept-out") as writer:
        await writer.say("kept", numbered(50))
    async with Member(shared, "kept", "kept") as reader:
        assert reader.client.session_present
        await until(lambda: len(reader.messages) == 50)
        assert reader.payloads == numbered(50)


async def test_what_a_killed_client_had_in_hand_comes_again(shared: HiveMQ) -> None:
    async with Member(shared, "again-out") as writer:
        reader = Member(shared, "again", "again", acknowledging=False)
        async with reader:
            await writer.say("again", numbered(40))
            await until(lambda: len(reader.messages) == 40)
            await reader.vanish()
        async with Member(shared, "again", "again") as after:
            await until(lambda: len(after.messages) == 40)
            assert after.payloads == numbered(40)
            assert all(each.duplicate for each in after.messages)


async def test_two_share_a_subscription(shared: HiveMQ) -> None:
    async with (
        Member(shared, "half-1", "$share/halves/half/#") as one,
        Member(shared, "half-2", "$share/halves/half/#") as two,
        Member(shared, "half-out") as writer,
    ):
        await writer.say("half/a", numbered(400))
        await until(lambda: len(one.messages) + len(two.messages) >= 400)
        assert sorted(one.payloads + two.payloads) == sorted(numbered(400))
        print(len(one.messages), len(two.messages))
        assert min(len(one.messages), len(two.messages)) > 40


async def test_a_killed_members_messages_go_to_the_other(shared: HiveMQ) -> None:
    async with (
        Member(shared, "left-out") as writer,
        Member(shared, "left-2", "$share/l/left") as two,
    ):
        one = Member(shared, "left-1", "$share/l/left", acknowledging=False)
        async with one:
            await writer.say("left", numbered(200))
            await until(lambda: one.messages)
            held = one.payloads
            print(len(held), len(two.messages))
            await one.vanish()
        await writer.say("left", numbered(100, 200))
        await until(lambda: set(two.payloads) == set(numbered(300)))
        assert len(two.payloads) == 300


async def test_a_group_whose_members_are_away_loses_nothing(shared: HiveMQ) -> None:
    async with Member(shared, "away-1", "$share/a/away"), Member(shared, "away-2", "$share/a/away"):
        pass
    async with Member(shared, "away-out") as writer:
        await writer.say("away", numbered(200))
    async with Member(shared, "away-2", "$share/a/away") as two:
        await until(lambda: len(two.messages) == 200)
        assert sorted(two.payloads) == sorted(numbered(200))


async def test_what_was_acknowledged_survives_a_kill_of_the_broker(tmp_path: Path) -> None:
    with HiveMQ(tmp_path) as broker:
        async with Member(broker, "reader", "kept"), Member(broker, "sharer", "$share/k/kept"):
            pass
        async with Member(broker, "writer") as writer:
            await writer.say("kept", numbered(1000))
            broker.kill()
        broker.start()
        async with (
            Member(broker, "reader", "kept") as reader,
            Member(broker, "sharer", "$share/k/kept") as sharer,
        ):
            await until(lambda: len(reader.messages) == len(sharer.messages) == 1000)
            assert reader.payloads == sorted(sharer.payloads, key=int) == numbered(1000)
