"""Who may write and read what: the access rules that the demo's broker runs with, every denial on a real broker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import aiomqtt
import pytest

from onestreet.broker import GatewayAccount, access_rules
from tests.brokers import Mosquitto

DEADLINE_S = 10.0
COUNTY = "tw-tpe"
ROOT = f"city/v1/{COUNTY}/street"
OURS, THEIRS = f"{ROOT}/gw-1", f"{ROOT}/gw-2"
ELSEWHERE = "city/v1/tw-nwt/street/gw-1"
USERS = ("gw-1", "gw-2", "ingest", "watch", "all-seeing")


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mosquitto]:
    gateways = [GatewayAccount(COUNTY, "street", name) for name in ("gw-1", "gw-2")]
    rules = access_rules(COUNTY, gateways)
    for user in USERS:  # beside the rules under test: what tells a test that nothing more will come
        rules += f"\nuser {user}\ntopic readwrite end/{user}\n"
    rules += "topic readwrite #\n"
    accounts = dict.fromkeys(USERS, "a password of tests")
    folder = tmp_path_factory.mktemp("access")
    # With no limit set, Mosquitto 2.0.11 ends the connection after any publish that it denies.
    limit = ["max_queued_messages 10000"]
    with Mosquitto(folder, limit, accounts=accounts, acl=rules) as mosquitto:
        yield mosquitto


@asynccontextmanager
async def connected(broker: Mosquitto, user: str) -> AsyncIterator[aiomqtt.Client]:
    async with asyncio.timeout(DEADLINE_S):
        async with aiomqtt.Client(
            broker.host, broker.port, username=user, password="a password of tests"
        ) as client:
            yield client


async def heard_until(client: aiomqtt.Client, end: str) -> list[str]:
    """Return the topics that come before the end."""
    topics = []
    async for message in client.messages:
        if message.topic.value == end:
            break
        topics.append(message.topic.value)
    return topics


async def written(broker: Mosquitto, user: str, topics: list[str]) -> set[str]:
    """Return on which of the topics a user's messages pass the broker."""
    async with connected(broker, "all-seeing") as seeing, connected(broker, user) as writer:
        await seeing.subscribe("#", qos=1)
        for topic in [*topics, f"end/{user}"]:
            await writer.publish(topic, b"x", qos=1)
        return set(await heard_until(seeing, f"end/{user}"))


async def read(broker: Mosquitto, user: str, topics: list[str]) -> set[str]:
    """Return which of the topics a user hears who asks for everything."""
    async with connected(broker, user) as reader, connected(broker, "all-seeing") as writer:
        await reader.subscribe("#", qos=1)
        for topic in [*topics, f"end/{user}"]:
            await writer.publish(topic, b"x", qos=1)
        return set(await heard_until(reader, f"end/{user}"))


def topics_of(gateway: str) -> list[str]:
    channels = ("readings", "state", "results", "commands")
    return [f"{gateway}/receipts", *(f"{gateway}/air/aq-1/{channel}" for channel in channels)]


EVERYTHING = [topic for gateway in (OURS, THEIRS, ELSEWHERE) for topic in topics_of(gateway)]
OF_DEVICES = {"readings", "state", "results"}


def ending(topics: list[str], channels: set[str]) -> set[str]:
    return {topic for topic in topics if topic.rpartition("/")[2] in channels}


async def test_a_gateway_writes_its_own_branch_only(broker: Mosquitto) -> None:
    assert await written(broker, "gw-1", EVERYTHING) == ending(topics_of(OURS), OF_DEVICES)


async def test_a_gateway_reads_its_own_commands_and_receipts_only(broker: Mosquitto) -> None:
    mine = ending(topics_of(OURS), {"commands", "receipts"})
    assert await read(broker, "gw-1", EVERYTHING) == mine


async def test_ingest_writes_its_countys_receipts_only(broker: Mosquitto) -> None:
    assert await written(broker, "ingest", EVERYTHING) == {f"{OURS}/receipts", f"{THEIRS}/receipts"}


async def test_the_watch_writes_nothing(broker: Mosquitto) -> None:
    assert await written(broker, "watch", EVERYTHING) == set()


@pytest.mark.parametrize("user", ["ingest", "watch"])
async def test_no_service_reads_another_county_or_commands(broker: Mosquitto, user: str) -> None:
    heard = await read(broker, user, EVERYTHING)
    assert heard <= ending(topics_of(OURS) + topics_of(THEIRS), OF_DEVICES)
    assert heard >= ending(topics_of(OURS) + topics_of(THEIRS), {"readings", "state"})


async def test_nobody_comes_in_with_a_wrong_password(broker: Mosquitto) -> None:
    for user, password in (("gw-1", "wrong"), (None, None)):
        with pytest.raises(aiomqtt.MqttError, match=r"[Nn]ot authori[sz]ed"):
            async with aiomqtt.Client(
                broker.host, broker.port, username=user, password=password, timeout=DEADLINE_S
            ):
                pass
