"""What a session holds, on a real Mosquitto: filters added and taken back, and a session that is ended for good."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from exchange.errors import UplinkLost
from exchange.mqtt import Client, Message, Settings, Subscription
from tests.brokers import Mosquitto

DEADLINE_S = 10.0


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    with Mosquitto(tmp_path) as mosquitto:
        yield mosquitto


class Party:
    """A client whose session the broker keeps."""

    def __init__(self, broker: Mosquitto, name: str, *filters: str) -> None:
        self.payloads: list[bytes] = []
        settings = Settings(
            host=broker.host, port=broker.port, client_id=name, session_expiry_s=600
        )
        self.client = Client(settings, [Subscription(each) for each in filters], self._take)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Client]:
        running = asyncio.create_task(self.client.run())
        await self.client.wait_connected(DEADLINE_S)
        try:
            yield self.client
        finally:
            await self.client.stop(DEADLINE_S)
            await running

    def _take(self, messages: list[Message], generation: int) -> None:
        self.payloads += [message.payload for message in messages]
        self.client.acknowledge([message.packet_id for message in messages], generation)


async def test_a_filter_that_is_taken_back_brings_nothing_more(broker: Mosquitto) -> None:
    kept, taken = "$share/group/kept/+", "$share/group/taken/+"
    one, other = Party(broker, "one", kept, taken), Party(broker, "other", "end")
    async with one.running() as client, other.running() as sender:
        await sender.publish("taken/1", b"before")
        await client.unsubscribe([taken, "never/had"], DEADLINE_S)
        await sender.publish("taken/1", b"after")
        await sender.publish("kept/1", b"end")
        async with asyncio.timeout(DEADLINE_S):
            while b"end" not in one.payloads:  # noqa: ASYNC110 - the list has no event
                await asyncio.sleep(0.01)
        assert one.payloads == [b"before", b"end"]


async def test_retained_messages_come_when_they_are_asked_for(broker: Mosquitto) -> None:
    async with Party(broker, "first").running() as sender:
        for name in ("a/1", "a/2", "b/1"):
            await sender.publish(f"kept/{name}", name.encode(), retain=True)
    one, other = Party(broker, "one"), Party(broker, "other")
    filters = [Subscription("kept/+/+", retained=False)]
    one.client = Client(one.client.settings, filters, one._take)
    async with one.running() as client, other.running() as sender:
        for _ in range(2):  # again, though the broker knows the filter
            await client.subscribe([Subscription("kept/a/+")], DEADLINE_S)
        await client.unsubscribe(["kept/a/+"], DEADLINE_S)
        await sender.publish("kept/c/1", b"live")
        async with asyncio.timeout(DEADLINE_S):
            while b"live" not in one.payloads:  # noqa: ASYNC110 - the list has no event
                await asyncio.sleep(0.01)
    assert sorted(one.payloads) == [b"a/1", b"a/1", b"a/2", b"a/2", b"live"]


async def test_publishes_go_on_beside_it(broker: Mosquitto) -> None:
    party = Party(broker, "one", "echo/+")
    async with party.running() as client, asyncio.TaskGroup() as tasks:
        for number in range(50):
            tasks.create_task(client.publish(f"echo/{number}", b"x", deadline_s=DEADLINE_S))
            tasks.create_task(client.unsubscribe([f"other/{number}"], DEADLINE_S))


async def test_a_session_that_is_ended_leaves_nothing_behind(broker: Mosquitto) -> None:
    for ended in (False, True):
        async with Party(broker, "one", "queue/+").running() as client:
            if ended:
                await client.end_session(DEADLINE_S)
        async with Party(broker, "other").running() as sender:
            await sender.publish("queue/1", b"waits")
        again = Party(broker, "one")
        async with again.running() as client:
            assert client.session_present is not ended


async def test_without_a_connection_all_say_so(broker: Mosquitto) -> None:
    party = Party(broker, "one")
    with pytest.raises(UplinkLost, match="not connected"):
        await party.client.subscribe([Subscription("some/filter")], DEADLINE_S)
    with pytest.raises(UplinkLost, match="not connected"):
        await party.client.unsubscribe(["some/filter"], DEADLINE_S)
    with pytest.raises(UplinkLost, match="not connected"):
        await party.client.end_session(DEADLINE_S)


async def test_a_connection_that_breaks_meanwhile_is_an_error(broker: Mosquitto) -> None:
    party = Party(broker, "one")
    async with party.running() as client:
        asked = asyncio.create_task(client.unsubscribe(["some/filter"], DEADLINE_S))
        broker.kill()
        with pytest.raises(UplinkLost):
            await asked
        broker.start()
        await client.wait_connected(DEADLINE_S)


async def test_a_connection_that_has_just_ended_takes_no_filters_back(broker: Mosquitto) -> None:
    party = Party(broker, "one")
    async with party.running() as client:
        connection = client._require()
        connection.end(UplinkLost("it broke a moment ago"))
        with pytest.raises(UplinkLost, match="a moment ago"):
            await client.unsubscribe(["some/filter"], DEADLINE_S)
        await client.wait_connected(DEADLINE_S)
