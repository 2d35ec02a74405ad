"""The watch asks for retained states in turns: what a broker's queue does not hold is dropped without a word."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import msgspec
import pytest

from exchange.errors import UplinkRefused
from exchange.mqtt import Client, Subscription
from exchange.readings import Sample
from exchange.states import State
from ingest.registry import DeviceId
from ingest.watch import roll_call
from ingest.watch.liveness import Status
from ingest.watch.roll_call import RollCall
from tests.brokers import Mosquitto
from tests.gateways import COUNTY, EPOCH, Gateway, Ingest, now_ms, until
from tests.lookouts import status_of

GATEWAYS, BEHIND = 30, 20
STATE = State(v=1, online=True, interval_s=60.0, epoch=EPOCH)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    """One that keeps 240 messages for a client, of which it sends 10 at a time."""
    with Mosquitto(tmp_path, ["max_queued_messages 240"]) as mosquitto:
        yield mosquitto


@pytest.fixture
def town(tmp_path: Path, broker: Mosquitto) -> Ingest:
    return Ingest(tmp_path, broker, account="receive_maximum = 10")


def known(town: Ingest) -> dict[DeviceId, object]:
    assert town.watch is not None
    return dict(town.watch.registry.devices)


async def test_more_states_than_the_broker_queues_are_all_known(
    town: Ingest, broker: Mosquitto, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roll_call, "STATES_A_TURN", 200)
    async with Gateway(broker, "city") as city:
        for number in range(GATEWAYS):
            city.name = f"gw-{number}"  # one connection for all of them
            await city.tell(city.name, STATE, domain="gateway")
            for lamp in range(BEHIND):
                await city.tell(f"lamp-{number}-{lamp}", STATE, domain="streetlight")
        async with town.running(with_watch=True):
            await until(lambda: len(known(town)) == GATEWAYS * (1 + BEHIND))


async def test_a_gateway_without_a_state_is_called_when_it_is_heard(
    town: Ingest, broker: Mosquitto
) -> None:
    async with Gateway(broker, "gw-1") as gateway:
        await gateway.tell("aq-1", STATE)
        await gateway.tell("aq-2", STATE)
        async with town.running(with_watch=True):
            assert town.watch is not None
            lookout = town.watch.lookout

            async def heard() -> bool:
                await gateway.send("aq-1", Sample(now_ms(), EPOCH, len(seqs), {"pm2_5": 1.0}))
                seqs.append(0)
                return status_of(lookout, "aq-1") is Status.UP

            seqs: list[int] = []
            await until(heard)
            await until(lambda: DeviceId(COUNTY, "aq-2") in known(town))


async def test_states_that_change_all_the_time_hold_up_no_turn(
    town: Ingest, broker: Mosquitto, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roll_call, "TURN_S", 1.0)
    async with Gateway(broker, "gw-1") as gateway:
        await gateway.tell("gw-1", STATE, domain="gateway")

        async def change() -> None:
            while True:
                for online in (False, True):
                    state = msgspec.structs.replace(STATE, online=online)
                    await gateway.tell("aq-1", state)
                    await asyncio.sleep(0.01)

        changing = asyncio.create_task(change())
        try:
            async with town.running(with_watch=True):
                assert town.watch is not None
                called = town.watch._roll_call
                await until(lambda: len(known(town)) == 2)
                await until(lambda: called.is_over)

                async def written() -> bool:
                    return any(row.series.device == "gw-1" for row in await town.rows("device"))

                await until(written)
        finally:
            changing.cancel()
            await asyncio.wait([changing])


class _Refusing:
    """A broker that will not have one filter, by the words of its client."""

    def __init__(self, refused: str) -> None:
        self._refused = refused
        self.granted: list[str] = []
        self.held: set[str] = set()

    async def subscribe(self, subscriptions: Sequence[Subscription], _deadline_s: float) -> None:
        asked = [one.topic_filter for one in subscriptions]
        granted = [one for one in asked if self._refused not in one]
        self.held |= set(granted)
        if granted != asked:
            raise UplinkRefused("not this one", 0x87)
        self.granted += granted

    async def unsubscribe(self, filters: Sequence[str], _deadline_s: float) -> None:
        self.held -= set(filters)


async def test_one_gateway_that_is_refused_costs_no_other(caplog: pytest.LogCaptureFixture) -> None:
    broker = _Refusing("gw-3")
    called = RollCall(cast("Client", broker), [COUNTY])
    called.begin([(COUNTY, f"gw-{number}") for number in range(9)])
    calling = asyncio.create_task(called.run())
    try:
        await until(lambda: called.is_over)
    finally:
        calling.cancel()
        await asyncio.wait([calling])
    assert (
        len(broker.granted) == len(set(broker.granted)) == 9
    )  # the county's gateways, and 8 of them
    assert broker.held == set()
    assert "gw-3" in caplog.text
