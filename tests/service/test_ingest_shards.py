"""Counties routed to stores: an ingest for each, so that one store's trouble is none of the other's counties'."""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from exchange.health import WELL, ask
from tests.brokers import Mosquitto
from tests.gateways import COUNTY, Gateway, sample
from tests.influx import Bucket, Influx, influxd
from tests.worker_groups import WorkerGroup

NORTH, SOUTH = COUNTY, "tw-khh"


@pytest.fixture
def second(tmp_path: Path) -> Iterator[Influx]:
    """Another InfluxDB, a process of its own."""
    folder = tmp_path / "influxd"
    folder.mkdir()
    server = Influx(influxd(), folder)
    server.start()
    try:
        yield server
    finally:
        server.kill()


def shard(folder: Path, county: str, broker: Mosquitto, bucket: Bucket) -> Path:
    """Return the ingest.toml of a county with a store of its own, as an office writes one for each."""
    own = folder / county
    own.mkdir()
    (own / "influx.token").write_text(bucket.token)
    (own / "influx.token").chmod(0o600)
    (own / "ingest.toml").write_text(
        f'counties = ["{county}"]\nstore = "{bucket.url}"\nstore_token_file = "influx.token"\n'
        f'[broker]\nhost = "{broker.host}"\nport = {broker.port}\nclient_id = "ingest-{county}"\n'
    )
    return own / "ingest.toml"


async def pace_s(gateway: Gateway, first: int, number: int) -> float:
    """Return how long a sample takes from its publish to its receipt, in the middle of many."""
    taken = []
    for seq in range(first, first + number):
        begun_s = time.perf_counter()
        await gateway.send("aq-1", sample(seq, pm2_5=1.0))
        await gateway.until_stored("aq-1", [seq])
        taken.append(time.perf_counter() - begun_s)
    return statistics.median(taken)


def rows(bucket: Bucket) -> dict[str, int]:
    """Return how many samples of each county a bucket holds, asked past our own code."""
    found = bucket.query("SELECT count(seq) FROM air GROUP BY county")
    return {each["tags"]["county"]: each["values"][0][1] for each in found}


@pytest.mark.parametrize("trouble", ["dead", "hanging"])
async def test_a_store_in_trouble_is_not_noticed_by_another_stores_counties(
    tmp_path: Path, broker: Mosquitto, influx: Influx, second: Influx, trouble: str
) -> None:
    northern, southern = second.bucket(), influx.bucket()
    async with (
        WorkerGroup(shard(tmp_path, NORTH, broker, northern), 2) as ill,
        WorkerGroup(shard(tmp_path, SOUTH, broker, southern), 2) as well,
        Gateway(broker, "gw-n", county=NORTH) as north,
        Gateway(broker, "gw-s", county=SOUTH) as south,
    ):
        await asyncio.gather(ill.ready(), well.ready())
        await north.send("aq-1", sample(0))
        await north.until_stored("aq-1", [0])
        ordinary_s = await pace_s(south, 0, 60)

        if trouble == "dead":
            second.kill()
        else:
            os.kill(second.pid, signal.SIGSTOP)
        try:
            for seq in range(1, 300):
                await north.send("aq-1", sample(seq))
            now_s = await pace_s(south, 60, 60)
            assert now_s < 3 * ordinary_s + 0.2, "a busy machine; a stall would last for seconds"
            assert await ask(str(well.health)) == WELL
            assert len(north.stored("aq-1")) == 1, "the others wait"
            await ill.says("worker 1: ")  # waiting for the store, or for an answer of it
        finally:
            if trouble == "dead":
                await asyncio.to_thread(second.start)
            else:
                with suppress(ProcessLookupError):
                    os.kill(second.pid, signal.SIGCONT)
        await north.until_stored("aq-1", range(300))
        await ill.ready()
        assert rows(northern) == {NORTH: 300}
        assert rows(southern) == {SOUTH: 120}
        assert [await group.stop() for group in (ill, well)] == [0, 0]
