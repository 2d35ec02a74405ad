"""The watch asks for retained states in turns: what a broker's queue does not hold is dropped without a word."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from exchange.readings import Sample
from exchange.states import State
from ingest.registry import DeviceId
from ingest.watch import roll_call
from ingest.watch.liveness import Status
from tests.brokers import Mosquitto
from tests.gateways import COUNTY, EPOCH, Gateway, Ingest, now_ms, until

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
            lookout, name = town.watch.lookout, DeviceId(COUNTY, "aq-1")

            async def heard() -> bool:
                await gateway.send("aq-1", Sample(now_ms(), EPOCH, len(seqs), {"pm2_5": 1.0}))
                seqs.append(0)
                return lookout.status(name) is Status.UP

            seqs: list[int] = []
            await until(heard)
            await until(lambda: DeviceId(COUNTY, "aq-2") in known(town))
