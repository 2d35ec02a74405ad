"""The services on HiveMQ, a broker that shares nothing with Mosquitto: what they promise is not Mosquitto's doing."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from itertools import count
from pathlib import Path

import pytest

from exchange.errors import UplinkLost, UplinkRefused
from exchange.mqtt import Client, Message, Settings, Subscription
from tests.gateways import DEADLINE_S, EPOCH, Gateway, Ingest, sample, until
from tests.hivemq import MAX_PACKET_BYTES, HiveMQ, OfficeHiveMQ
from tests.judged_offices import HOST, SHOWN, JudgedOffice, faults, judged
from tests.worker_groups import WorkerGroup


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HiveMQ]:
    """One broker for tests that keep to topics of their own."""
    with HiveMQ(tmp_path_factory.mktemp("broker")) as broker:
        yield broker


# ------------------------------------------------------------------------------------ the client


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


async def unless_stalled(trial: Callable[[Path], Awaitable[None]], folder: Path) -> None:
    """Try up to three times, each with a broker of its own.

    A member of a new group may never be called (docs/brokers.md): that is a time-out, and the broker's fault; a sample
    that is lost or comes twice is no time-out, and fails at once.
    """
    for number in range(3):
        with suppress(TimeoutError):
            (folder / str(number)).mkdir()
            return await trial(folder / str(number))
    pytest.fail("stalled three times")


def numbered(many: int, first: int = 0) -> list[bytes]:
    return [b"%d" % number for number in range(first, first + many)]


async def test_what_is_published_arrives_in_order(shared: HiveMQ) -> None:
    async with (
        Member(shared, "order-in", "order/#") as reader,
        Member(shared, "order-out") as writer,
    ):
        await writer.say("order/a", numbered(500))
        await until(lambda: len(reader.messages) == 500)
        assert reader.payloads == numbered(500)


async def test_the_receive_maximum_is_kept(shared: HiveMQ) -> None:
    async with Member(shared, "window-in", "window"):
        pass
    async with (
        Member(shared, "window-beside", "window") as beside,
        Member(shared, "window-out") as writer,
    ):
        await writer.say("window", numbered(30))
        async with Member(
            shared, "window-in", "window", acknowledging=False, receive_maximum=7
        ) as reader:
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
    async with Member(shared, "again", "again"):
        pass
    async with Member(shared, "again-out") as writer:
        await writer.say("again", numbered(40))
    async with Member(shared, "again", "again", acknowledging=False) as before:
        await until(lambda: len(before.messages) == 40)
        await before.vanish()
    async with Member(shared, "again", "again") as after:
        await until(lambda: len(after.messages) == 40)
        assert after.payloads == numbered(40)
        assert all(each.duplicate for each in after.messages)


async def test_two_share_a_subscription(tmp_path: Path) -> None:
    async def trial(folder: Path) -> None:
        with HiveMQ(folder) as broker:
            async with (
                Member(broker, "half-1", "$share/halves/half/#") as one,
                Member(broker, "half-2", "$share/halves/half/#") as two,
                Member(broker, "half-out") as writer,
            ):
                # One by one: of a backlog one may take all (docs/brokers.md).
                for number, payload in enumerate(numbered(60)):
                    await writer.say("half/a", [payload])
                    await until(lambda: len(one.messages) + len(two.messages) > number)  # noqa: B023 - awaited here
                assert sorted(one.payloads + two.payloads) == sorted(numbered(60))
                assert min(len(one.messages), len(two.messages)) > 5

    await unless_stalled(trial, tmp_path)


async def test_a_killed_members_messages_go_to_the_other(shared: HiveMQ) -> None:
    async with (
        Member(shared, "left-out") as writer,
        Member(shared, "left-1", "$share/l/left", acknowledging=False) as one,
    ):
        await writer.say("left", numbered(200))
        await until(lambda: one.messages)
        async with Member(shared, "left-2", "$share/l/left") as two:
            await one.vanish()
            await writer.say("left", numbered(100, 200))
            # What the other held itself may come to it again.
            await until(lambda: set(two.payloads) == set(numbered(300)))


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
            await writer.vanish()
        broker.kill()
        broker.start()
        async with (
            Member(broker, "reader", "kept") as reader,
            Member(broker, "sharer", "$share/k/kept") as sharer,
        ):
            await until(lambda: len(reader.messages) == len(sharer.messages) == 1000)
            assert reader.payloads == sorted(sharer.payloads, key=int) == numbered(1000)


async def test_who_comes_by_the_same_id_takes_the_session_over(shared: HiveMQ) -> None:
    async with (
        Member(shared, "taken", "taken") as first,
        Member(shared, "taken", "taken") as second,
    ):
        assert second.client.session_present
        await until(lambda: "SESSION_TAKEN_OVER" in str(first.client.last_error))
        assert not first.client.connected


async def test_what_is_too_large_is_not_even_sent(shared: HiveMQ) -> None:
    async with Member(shared, "large") as writer:
        await writer.say("large", [bytes(MAX_PACKET_BYTES - 100)])
        with pytest.raises(UplinkRefused, match=f"the broker takes {MAX_PACKET_BYTES}"):
            await writer.say("large", [bytes(MAX_PACKET_BYTES)])
        assert writer.client.generation == 1


async def test_beyond_a_full_queue_the_newest_are_dropped_and_nobody_is_told(
    tmp_path: Path,
) -> None:
    with HiveMQ(tmp_path, max_queued=100) as broker:
        async with Member(broker, "reader", "full"), Member(broker, "sharer", "$share/f/full"):
            pass
        async with Member(broker, "writer") as writer:
            await writer.say("full", numbered(150))  # each acknowledged
        async with (
            Member(broker, "reader", "full") as reader,
            Member(broker, "sharer", "$share/f/full") as sharer,
            Member(broker, "writer") as writer,
        ):
            await until(lambda: len(reader.messages) == len(sharer.messages) == 100)
            await writer.say("full", [b"last"])
            await until(lambda: reader.payloads[-1] == sharer.payloads[-1] == b"last")
            assert reader.payloads == sharer.payloads == [*numbered(100), b"last"]


# ---------------------------------------------------------------------------------------- ingest


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[HiveMQ]:
    with HiveMQ(tmp_path) as broker:
        yield broker


@asynccontextmanager
async def process(ingest: Ingest, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Ingest in a process of its own; what it says stands in the test's output."""
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "ingest", str(ingest.file), *arguments
    )
    try:
        yield child
    finally:
        if child.returncode is None:
            child.kill()
        await child.wait()


async def deliver(gateway: Gateway, device: str, number: int) -> None:
    """Send samples one by one, and again what is not receipted, as an agent does; return when all are."""
    wanted = {(EPOCH, seq) for seq in range(number)}
    async with asyncio.timeout(3 * DEADLINE_S):
        while missing := sorted(wanted - gateway.stored(device)):
            for _, seq in missing:
                with suppress(UplinkLost):
                    await gateway.send(device, sample(seq, pm2_5=1.0))
            with suppress(TimeoutError):
                async with asyncio.timeout(2):
                    await until(lambda: wanted <= gateway.stored(device))


async def seqs(ingest: Ingest, device: str) -> list[object]:
    """Return what is stored of a device, in order of time: each once, if nothing is lost or doubled."""
    return [row.fields["seq"] for row in await ingest.rows() if row.series.device == device]


async def test_a_reading_ends_in_the_store_and_its_receipt_at_its_gateway(
    ingest: Ingest, broker: HiveMQ
) -> None:
    async with (
        process(ingest) as child,
        Gateway(broker, "gw-1") as one,
        Gateway(broker, "gw-2") as two,
    ):
        await asyncio.gather(deliver(one, "aq-1", 200), deliver(two, "aq-2", 200))
        await two.publish(str(two.topic("aq-2")), b"{")
        await two.until_unreadable(b"{", "EX-R-001")
        assert one.stored("aq-2") == two.stored("aq-1") == set()
        child.send_signal(signal.SIGTERM)
        assert await child.wait() == 0
    assert await seqs(ingest, "aq-1") == await seqs(ingest, "aq-2") == list(range(200))
    assert len(ingest.quarantined()) == 1


async def test_ingest_killed_in_the_middle_loses_and_doubles_nothing(
    ingest: Ingest, broker: HiveMQ
) -> None:
    enough = asyncio.Event()

    async def flow(gateway: Gateway) -> int:
        """Send each sample once, and return how many: what comes again comes from the broker."""
        for seq in count(1):
            if enough.is_set():
                return seq
            await gateway.send("aq-1", sample(seq, pm2_5=1.0))
        raise AssertionError

    async with Gateway(broker, "gw-1") as gateway, asyncio.TaskGroup() as tasks:
        async with process(ingest):
            await deliver(gateway, "aq-1", 1)  # from here on the broker keeps its session
        flowing = tasks.create_task(flow(gateway))
        for _ in range(3):
            async with process(ingest) as child:
                goal = len(gateway.stored("aq-1")) + 300
                await until(lambda: len(gateway.stored("aq-1")) >= goal)  # noqa: B023 - awaited here
                child.kill()
        enough.set()
        sent = await flowing
        async with process(ingest):
            await gateway.until_stored("aq-1", range(sent))
    assert await seqs(ingest, "aq-1") == list(range(sent))
    assert gateway.refused("aq-1") == {}


async def test_a_broker_killed_in_the_middle_loses_and_doubles_nothing(
    local: Ingest, broker: HiveMQ
) -> None:
    async with process(local), Gateway(broker, "gw-1") as gateway, asyncio.TaskGroup() as tasks:
        delivering = tasks.create_task(deliver(gateway, "aq-1", 3000))
        for goal in (500, 1500):
            await until(lambda: len(gateway.stored("aq-1")) >= goal)  # noqa: B023 - awaited here
            assert not delivering.done()
            broker.kill()
            await asyncio.to_thread(broker.start)
        await delivering
    assert await seqs(local, "aq-1") == list(range(3000))
    assert gateway.refused("aq-1") == {}


async def test_two_workers_share_a_load_and_each_is_killed(tmp_path: Path) -> None:
    async def trial(folder: Path) -> None:
        with HiveMQ(folder) as broker:
            await share_a_load(Ingest(folder, broker), broker)

    await unless_stalled(trial, tmp_path)


async def share_a_load(ingest: Ingest, broker: HiveMQ) -> None:
    over, seqs_sent = asyncio.Event(), count()

    async def flow(gateway: Gateway) -> None:
        while not over.is_set():
            await gateway.send("aq-1", sample(next(seqs_sent), pm2_5=1.0))
            await asyncio.sleep(0.005)  # a load, not all that this machine can do

    async with WorkerGroup(ingest.file, 2) as group:
        await group.ready()
        # Most often it is a member that subscribed at once in a new session: docs/brokers.md
        assert await group.stop() == 0
    async with WorkerGroup(ingest.file, 2) as group, Gateway(broker, "gw-1") as gateway:
        await group.ready()
        try:
            async with asyncio.TaskGroup() as tasks:
                for _ in range(4):
                    tasks.create_task(flow(gateway))
                for worker in (1, 2):
                    goal = len(gateway.stored("aq-1")) + 200
                    await until(lambda: len(gateway.stored("aq-1")) >= goal)  # noqa: B023 - awaited here
                    await group.kill(worker)
                    await group.ready()
                over.set()
        except* TimeoutError as stalled:
            raise TimeoutError from stalled
        sent = next(seqs_sent)
        await gateway.until_stored("aq-1", range(sent))
        for seq in range(sent, sent + 40):  # of a backlog one may take all: docs/brokers.md
            await gateway.send("aq-1", sample(seq, pm2_5=1.0))
            await gateway.until_stored("aq-1", [seq])
        assert await group.stop() == 0
        assert all(group.received().values())
    assert await seqs(ingest, "aq-1") == list(range(sent + 40))
    assert gateway.refused("aq-1") == {}


# ----------------------------------------------------------------------------------------- doors


async def test_the_doors_of_an_office_hold_here_too(tmp_path: Path) -> None:
    office = JudgedOffice(tmp_path)
    with OfficeHiveMQ(office.folder, tmp_path / "hivemq", host=HOST, ports=office.ports[:3]):
        report = await judged(office)
    assert not report.failed, faults(report)
    assert {one.requirement for one in report.verdicts if one.outcome == "passed"} == SHOWN
