"""Several workers of ingest on a real Mosquitto: killed under load, scaled up and down, restarted; nothing is lost."""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path

import pytest

from exchange.mqtt import Client, Message, Settings, Subscription
from tests.brokers import Mosquitto
from tests.gateways import COUNTY, DEADLINE_S, EPOCH, Gateway, Ingest, sample, until
from tests.worker_groups import WorkerGroup

NAME = "onestreet-ingest"


@pytest.fixture
def ingest(tmp_path: Path, broker: Mosquitto) -> Ingest:
    return Ingest(tmp_path, broker)


class Member:
    """Somebody with a session, such as a worker has; connected as often as asked."""

    def __init__(self, broker: Mosquitto, name: str, *filters: str) -> None:
        self.payloads: list[bytes] = []
        self._settings = Settings(
            host=broker.host, port=broker.port, client_id=name, session_expiry_s=600
        )
        self._filters = [Subscription(each) for each in filters]

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[Client]:
        def take(messages: list[Message], generation: int) -> None:
            self.payloads.extend(message.payload for message in messages)
            client.acknowledge([message.packet_id for message in messages], generation)

        client = Client(self._settings, self._filters, take)
        running = asyncio.create_task(client.run())
        await client.wait_connected(DEADLINE_S)
        try:
            yield client
        finally:
            await client.stop(DEADLINE_S)
            await running


async def has_session(broker: Mosquitto, name: str) -> bool:
    """Whether the broker keeps a session of a client that is not connected; it ends by this."""
    async with Member(broker, name).connected() as client:
        present = client.session_present
        await client.end_session(DEADLINE_S)
    return present


def remembered(ingest: Ingest) -> dict[str, object]:
    held: dict[str, object] = json.loads(
        ingest.file.with_name("quarantine.sessions.json").read_bytes()
    )
    return held


async def stored_once(ingest: Ingest, device: str, count: int) -> None:
    """Every sample is there, and nothing else; the quarantine is empty."""
    rows = [row for row in await ingest.rows() if row.series.device == device]
    assert [row.fields["seq"] for row in rows] == list(range(count))
    assert {row.fields["epoch"] for row in rows} == {EPOCH}
    assert ingest.quarantined() == []


# ----------------------------------------------------------------------------------------------- working together


async def test_workers_share_what_comes(ingest: Ingest, broker: Mosquitto) -> None:
    async with WorkerGroup(ingest.file, 3) as group, Gateway(broker, "gw-1") as gateway:
        await group.ready()
        for seq in range(90):
            await gateway.send("aq-1", sample(seq))
        await gateway.until_stored("aq-1", range(90))
        assert await group.stop() == 0
        assert group.received() == {1: 30, 2: 30, 3: 30}
    await stored_once(ingest, "aq-1", 90)


async def test_what_a_killed_worker_had_in_hand_comes_back(
    ingest: Ingest, broker: Mosquitto
) -> None:
    """Kill -9 under load, each of them more than once; no gateway sends anything again."""
    seqs = count()
    over = asyncio.Event()

    async def send_without_end(gateway: Gateway) -> None:
        while not over.is_set():
            await gateway.send("aq-1", sample(next(seqs), pm2_5=1.0))
            await asyncio.sleep(0.005)  # a load, not all that this machine can do

    async with WorkerGroup(ingest.file, 2) as group, Gateway(broker, "gw-1") as gateway:
        await group.ready()
        async with asyncio.TaskGroup() as tasks:
            for _ in range(8):
                tasks.create_task(send_without_end(gateway))
            for worker in (2, 1, 2):
                seen = len(gateway.stored("aq-1"))
                await until(lambda seen=seen: len(gateway.stored("aq-1")) > seen + 200)  # type: ignore[misc]
                await group.kill(worker)
                await group.ready()
            over.set()
        sent = next(seqs)
        await gateway.until_stored("aq-1", range(sent))
        assert gateway.refused("aq-1") == {}
        assert await group.stop() == 0
        died = [line["message"] for line in group.lines if "(-9)" in line["message"]]
        assert len(died) == 3
        assert all(group.received().values())
    await stored_once(ingest, "aq-1", sent)


async def test_workers_end_with_a_killed_supervisor(ingest: Ingest, broker: Mosquitto) -> None:
    async with WorkerGroup(ingest.file, 2) as group:
        await group.ready()
        workers = [os.pidfd_open(group.pid_of(worker)) for worker in (1, 2)]
        group.process.kill()
        for worker in workers:
            ended, _, _ = await asyncio.to_thread(select.select, [worker], [], [], DEADLINE_S)
            os.close(worker)
            assert ended


async def test_workers_share_a_quarantine(ingest: Ingest, broker: Mosquitto) -> None:
    async with WorkerGroup(ingest.file, 3) as group, Gateway(broker, "gw-1") as gateway:
        await group.ready()
        async with asyncio.TaskGroup() as tasks:
            for number in range(300):
                payload = b"no pack: %d" % number
                tasks.create_task(gateway.publish(str(gateway.topic("aq-1")), payload))
        await until(lambda: len(gateway.unreadable) == 300)
        assert await group.stop() == 0
        assert set(group.received().values()) == {100}
        for line in group.lines:
            if line["message"] == "stopped":
                assert line["counts"]["quarantine"]["dropped"] == 0
    assert len({row["sha256"] for row in ingest.quarantined()}) == 300


async def test_the_watch_runs_beside_the_first(ingest: Ingest, broker: Mosquitto) -> None:
    async with WorkerGroup(ingest.file, 2, "--with-watch") as group:
        await group.ready()
        assert await group.stop() == 0
    for name in (f"{NAME}-watch", NAME, f"{NAME}.2"):
        assert await has_session(broker, name)


async def test_a_second_signal_and_one_to_the_whole_group_are_an_orderly_end(
    ingest: Ingest, broker: Mosquitto
) -> None:
    """As systemd does it: SIGTERM to every process of the service."""
    async with WorkerGroup(ingest.file, 2) as group:
        await group.ready()
        for pid in (group.pid_of(1), group.pid_of(2), group.process.pid):
            os.kill(pid, signal.SIGTERM)
        assert await group.stop() == 0


async def test_who_has_only_begun_ends_in_order_too(ingest: Ingest) -> None:
    for pause_s in (0.2, 0.3, 0.4, 0.6):
        async with WorkerGroup(ingest.file, 3) as group:
            await asyncio.sleep(pause_s)
            async with asyncio.timeout(DEADLINE_S):
                assert await group.stop() in (0, -signal.SIGTERM), "or before it could begin"


# --------------------------------------------------------------------------------------------------- up and down


async def test_mosquitto_leaves_the_share_of_a_member_that_is_gone_waiting(
    broker: Mosquitto,
) -> None:
    """Why scaling down has to empty sessions: half of a town's samples would wait until one expires."""
    one, two = (Member(broker, name, "$share/group/town/+") for name in ("one", "two"))
    async with one.connected(), Member(broker, "sender").connected() as sender:
        async with two.connected():
            pass
        for number in range(100):
            await sender.publish("town/lamp", b"%d" % number)
        await until(lambda: len(one.payloads) == 50)
        async with two.connected() as client:
            assert client.session_present
            await until(lambda: len(two.payloads) == 50)
        assert {int(each) for each in one.payloads + two.payloads} == set(range(100))


async def test_a_restart_keeps_the_sessions(ingest: Ingest, broker: Mosquitto) -> None:
    async with Gateway(broker, "gw-1") as gateway:
        async with WorkerGroup(ingest.file, 2) as group:
            await group.ready()
            assert await group.stop() == 0
        for seq in range(100):
            await gateway.send("aq-1", sample(seq))
        async with WorkerGroup(ingest.file, 2) as group:
            await gateway.until_stored("aq-1", range(100))
            await group.ready()
            assert await group.stop() == 0
            assert group.received() == {1: 50, 2: 50}
    await stored_once(ingest, "aq-1", 100)


async def test_what_comes_between_a_brokers_restart_and_the_return_of_the_only_worker_waits_for_it(
    tmp_path: Path,
) -> None:
    """Why one that is alone does not share: Mosquitto 2.0 forgets shared filters when it is restarted."""
    with Mosquitto(tmp_path, persistent=True) as broker:
        ingest = Ingest(tmp_path, broker)
        async with WorkerGroup(ingest.file, 1) as group:
            await group.ready()
            assert await group.stop() == 0
        broker.stop()
        broker.start()
        async with Gateway(broker, "gw-1") as gateway:
            for seq in range(20):
                await gateway.send("aq-1", sample(seq))
            async with WorkerGroup(ingest.file, 1) as group:
                await gateway.until_stored("aq-1", range(20))
                assert await group.stop() == 0


@pytest.mark.parametrize("workers", [1, 2])
async def test_scaling_down_loses_and_delays_nothing(
    ingest: Ingest, broker: Mosquitto, workers: int
) -> None:
    async with Gateway(broker, "gw-1") as gateway:
        async with WorkerGroup(ingest.file, 4) as group:
            await group.ready()
            assert await group.stop() == 0
        assert remembered(ingest)["workers"] == 4
        for seq in range(200):  # 50 wait in each session
            await gateway.send("aq-1", sample(seq))
        async with WorkerGroup(ingest.file, workers) as group:
            await group.ready()
            for seq in range(200, 300):  # some of it while sessions are emptied
                await gateway.send("aq-1", sample(seq))
            await gateway.until_stored("aq-1", range(300))
            await until(lambda: remembered(ingest)["workers"] == workers)
            for seq in range(300, 400):
                await gateway.send("aq-1", sample(seq))
            await gateway.until_stored("aq-1", range(400))
            assert await group.stop() == 0
    for worker in (2, 3, 4):
        assert await has_session(broker, f"{NAME}.{worker}") is (worker <= workers)
    await stored_once(ingest, "aq-1", 400)


async def test_emptying_goes_on_after_a_kill_and_an_outage(
    tmp_path: Path, ingest: Ingest, broker: Mosquitto
) -> None:
    async with Gateway(broker, "gw-1") as gateway:
        async with WorkerGroup(ingest.file, 2) as group:
            await group.ready()
            assert await group.stop() == 0
        for seq in range(100):
            await gateway.send("aq-1", sample(seq))
        ingest.write_config(1)  # where no broker is
        async with WorkerGroup(ingest.file, 1) as group:
            await group.says("waiting for the broker")
        assert remembered(ingest)["workers"] == 2, "it was killed before it could empty anything"
        ingest.write_config(broker.port)
        async with WorkerGroup(ingest.file, 1) as group:
            await gateway.until_stored("aq-1", range(100))
            await until(lambda: remembered(ingest)["workers"] == 1)
            assert await group.stop() == 0
    assert not await has_session(broker, f"{NAME}.2")


@pytest.mark.parametrize("numbers", [(1, 2), (2, 1)])
async def test_another_number_of_workers_gets_nothing_twice(
    ingest: Ingest, broker: Mosquitto, numbers: tuple[int, int]
) -> None:
    """Worker 1 keeps its session, whose filter of the other kind would bring everything a second time."""
    async with Gateway(broker, "gw-1") as gateway:
        async with WorkerGroup(ingest.file, numbers[0]) as group:
            await group.ready()
            assert await group.stop() == 0
        async with WorkerGroup(ingest.file, numbers[1]) as group:
            await until(lambda: remembered(ingest)["workers"] == numbers[1])
            await group.ready()
            for seq in range(60):
                await gateway.send("aq-1", sample(seq))
            await gateway.until_stored("aq-1", range(60))
            assert await group.stop() == 0
            assert sum(group.received().values()) == 60


async def test_a_county_that_is_another_stores_now_is_left_alone(
    tmp_path: Path, broker: Mosquitto
) -> None:
    ingest = Ingest(tmp_path, broker)
    both = ingest.file.read_text().replace(f'["{COUNTY}"]', f'["{COUNTY}", "tw-nwt"]')
    ours = ingest.file.read_text()
    ingest.file.write_text(both)
    async with WorkerGroup(ingest.file, 1) as group:
        await group.ready()
        assert await group.stop() == 0
    ingest.file.write_text(ours)
    async with (
        WorkerGroup(ingest.file, 1) as group,
        Gateway(broker, "gw-1") as gateway,
        Member(broker, "north").connected() as north,
    ):
        await group.ready()
        assert remembered(ingest)["counties"] == [COUNTY]
        await north.publish("city/v1/tw-nwt/street/gw-9/air/aq-9/readings", b"[]")
        await gateway.send("aq-1", sample(0))
        await gateway.until_stored("aq-1", [0])
        assert await group.stop() == 0
        assert group.received() == {None: 1}
    assert ingest.quarantined() == []
