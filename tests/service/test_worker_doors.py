"""Workers behind locked doors: an office's Mosquitto lets each certificate connect once, and go by its rules."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from sqlite3 import connect
from typing import NamedTuple

import pytest

from exchange.errors import ConfigError
from exchange.mqtt import Client, Message, Settings, Subscription
from exchange.readings import encode_pack
from exchange.tls import Tls
from exchange.topics import Topic
from exchange.towns import Broker
from ingest import command
from ingest.config import load_config
from provisioning.office import init
from tests.gateways import DEADLINE_S, sample, until
from tests.offices import HOST, OfficeBroker, broker_table, own_files, town_text
from tests.worker_groups import WorkerGroup

COUNTY = "tw-tpe"
TOPIC = Topic(COUNTY, "street", "gw-1", "air", "aq-1", "readings")
WORKERS = 3
_NOTE = "Note: It is recommended"
"""What Mosquitto says of our configuration whenever it has read it."""


class Doors(NamedTuple):
    """An office whose ingest has three workers, and its running broker."""

    folder: Path
    settings: Broker
    broker: OfficeBroker

    @property
    def config(self) -> Path:
        return self.folder / "services" / "ingest" / "ingest.toml"

    async def made(self, workers: int) -> None:
        """Have another number of workers, as an operator does; return when the broker has read its files again."""
        file = self.folder.parent / f"{COUNTY}.toml"
        text = file.read_text()
        changed = text.replace(f"workers = {WORKERS}", f"workers = {workers}")
        assert changed != text
        file.write_text(changed)
        with init([file], self.folder) as office:
            notes = self.broker.log.count(_NOTE)
            assert office.reload_broker()
        await until(lambda: self.broker.log.count(_NOTE) > notes)


@pytest.fixture
def doors(tmp_path: Path) -> Iterator[Doors]:
    file = tmp_path / f"{COUNTY}.toml"
    file.write_text(town_text(COUNTY, broker_table(), gateways=["gw-1"], workers=WORKERS))
    with init([file], tmp_path / "office") as office:
        settings = office.towns[0].broker
        folder = office.folder
    ports = settings.port, settings.password_port, settings.service_port
    with OfficeBroker(folder, ports) as broker:
        yield Doors(folder, settings, broker)


class Party:
    """Somebody with an office's certificate."""

    def __init__(self, port: int, tls: Tls, *filters: str) -> None:
        self.messages: list[Message] = []
        self.client = Client(
            Settings(host=HOST, port=port, client_id="is its certificate's", session_expiry_s=60),
            [Subscription(each) for each in filters],
            self._take,
            tls=lambda: tls.context("test", "tls"),
        )

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[Client]:
        running = asyncio.create_task(self.client.run())
        await self.client.wait_connected(DEADLINE_S)
        try:
            yield self.client
        finally:
            await self.client.stop(DEADLINE_S)
            await running

    def _take(self, messages: list[Message], generation: int) -> None:
        self.messages += messages
        self.client.acknowledge([message.packet_id for message in messages], generation)

    def stored(self) -> set[int]:
        """Return the seqs that receipts call stored."""
        return {
            seq
            for message in self.messages
            for _, first, last in json.loads(message.payload).get("stored", {}).get("aq-1", [])
            for seq in range(first, last + 1)
        }


def gateway(doors: Doors) -> Party:
    folder = doors.folder / "gateways" / COUNTY / "gw-1"
    return Party(doors.settings.port, own_files(folder), f"city/v1/{COUNTY}/street/gw-1/receipts")


async def send(client: Client, *seqs: int) -> None:
    for seq in seqs:
        await client.publish(str(TOPIC), encode_pack(TOPIC, [sample(seq)]), deadline_s=DEADLINE_S)


async def test_workers_of_an_office_share_work_and_leave_by_their_own_doors(doors: Doors) -> None:
    party = gateway(doors)
    async with party.connected() as client:
        async with WorkerGroup(doors.config, WORKERS) as group:
            await group.ready()
            await send(client, *range(90))
            await until(lambda: party.stored() == set(range(90)))
            await doors.made(
                2
            )  # while they run: at a SIGHUP Mosquitto drops who knows by certificate and is away
            assert await group.stop() == 0
            assert group.received() == {1: 30, 2: 30, 3: 30}
        await send(client, *range(90, 180))  # 30 of them wait for the worker that is no more
        async with WorkerGroup(doors.config, 2) as group:
            await until(lambda: party.stored() == set(range(180)))
            words = "the session of worker 3 is emptied and ended"
            await until(lambda: words in [line["message"] for line in group.lines])
            assert await group.stop() == 0
    rows = doors.folder / "services" / "ingest" / "data" / "town.sqlite"
    with closing(connect(rows)) as shell:
        assert shell.execute("SELECT count(*) FROM points").fetchone() == (180,)


async def test_a_shared_filter_opens_no_more_than_the_rules(doors: Doors) -> None:
    """What Mosquitto does with `$share/…`: it asks its rules about each message, as for any filter."""
    worker = own_files(doors.folder / "services" / "ingest" / "worker-2")
    watch = own_files(doors.folder / "services" / "watch")
    service = doors.settings.service_port
    curious = Party(service, worker, "$share/all/#")
    unasked = Party(service, watch, "$share/watch/#")
    head = f"city/v1/{COUNTY}/street/gw-1/air/aq-1"
    async with gateway(doors).connected() as client, curious.connected(), unasked.connected():
        for channel in ("state", "results", "readings"):
            await client.publish(f"{head}/{channel}", b"x", deadline_s=DEADLINE_S)
        await until(lambda: len(curious.messages) == 2 and len(unasked.messages) == 2)
        assert [each.topic for each in curious.messages] == [f"{head}/results", f"{head}/readings"]
        assert [each.topic for each in unasked.messages] == [f"{head}/state", f"{head}/readings"]


def test_more_workers_than_certificates_are_refused(doors: Doors) -> None:
    with pytest.raises(ConfigError) as refused:
        command.run(["run", str(doors.config), "--workers", str(WORKERS + 1)])
    assert (refused.value.file, refused.value.key) == (str(doors.config), "worker")
    assert "for worker 4 there must be a table [[worker]]" in refused.value.allowed
    assert load_config(doors.config, WORKERS).workers == WORKERS


def test_the_watch_does_not_run_by_ingests_certificate(doors: Doors) -> None:
    with pytest.raises(ConfigError, match="run `onestreet watch run` with the watch's own folder"):
        command.run(["run", str(doors.config), "--with-watch"])
