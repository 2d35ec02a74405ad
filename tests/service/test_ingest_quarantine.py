"""The quarantine beside a running ingest: a flood, a full disk, kill -9; and a replay while it runs."""

from __future__ import annotations

import asyncio
import hashlib
import random
import resource
import sqlite3
import statistics
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest

from exchange.readings import encode_pack
from exchange.topics import Topic
from ingest.quarantine import MAX_BODY_BYTES, Quarantine, Refused, evidence
from tests.brokers import Mosquitto
from tests.gateways import DEADLINE_S, EPOCH, Gateway, Ingest, sample, until
from tests.influx import Bucket, Influx

TOPIC = "city/v1/tw-tpe/street/gw-1/air/aq-1/readings"
RECEIPTS = "city/v1/tw-tpe/street/gw-1/receipts"


def select(path: Path, text: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(path)) as shell:
        return shell.execute(text).fetchall()


async def test_a_payload_is_kept_once_and_a_repeated_refusal_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "quarantine.sqlite"
    seen = evidence(TOPIC, b"a pack", 1_795_000_000_250)
    many = [
        Refused(seen, "EX-R-009", "unknown", RECEIPTS, "tw-tpe", "aq-1", 1, seq, "happiness")
        for seq in range(50)
    ]
    for _ in range(2):
        quarantine = Quarantine(path)
        await quarantine.put(many)
        await quarantine.put([Refused(seen, "EX-R-001", "unreadable", RECEIPTS)])
        await quarantine.close()
    assert select(
        path,
        "SELECT DISTINCT payloads.topic, size_bytes, body, received_at"
        " FROM refusals JOIN payloads USING (sha256, topic)",
    ) == [(TOPIC, 6, b"a pack", "2026-11-18T11:06:40.250Z")]
    assert select(path, "SELECT requirement, count(*), sum(times) FROM refusals GROUP BY 1") == [
        ("EX-R-001", 1, 2),
        ("EX-R-009", 50, 100),
    ]


async def test_different_unreadable_payloads_are_different_refusals(tmp_path: Path) -> None:
    path = tmp_path / "quarantine.sqlite"
    quarantine = Quarantine(path)
    large = b"x" * (3 * MAX_BODY_BYTES)
    await quarantine.put(
        [Refused(evidence(TOPIC, body, 0), "EX-R-001", "", RECEIPTS) for body in (b"a", large)]
    )
    await quarantine.close()
    found = select(
        path, "SELECT size_bytes, length(body) FROM refusals JOIN payloads USING (sha256, topic)"
    )
    assert sorted(found) == [(1, 1), (len(large), MAX_BODY_BYTES)]


async def test_one_payload_on_two_wrong_topics_is_two_refusals(tmp_path: Path) -> None:
    path = tmp_path / "quarantine.sqlite"
    quarantine = Quarantine(path)
    topics = [TOPIC, f"{TOPIC}/more"]
    await quarantine.put(
        [Refused(evidence(topic, b"a", 0), "EX-T-001", "", RECEIPTS) for topic in topics]
    )
    await quarantine.close()
    found = select(path, "SELECT topic, body FROM refusals JOIN payloads USING (sha256, topic)")
    assert sorted(found) == [(topic, b"a") for topic in topics]


# --------------------------------------------------------------------------------- a process, a flood

POISON = 20_000
LARGE_EVERY = 40
LARGE_BYTES = 200 * 1024
WINDOW = 400
"""Poison without a receipt at most, as of a gateway."""
SLOWER = 10
"""How much longer good messages may take in a flood, than a quiet one takes: they stand in one queue with it."""


@asynccontextmanager
async def process(ingest: Ingest) -> AsyncIterator[asyncio.subprocess.Process]:
    """Ingest in a process of its own, connected; what it says stands in a file."""
    before = said(ingest, "connected to ")
    with ingest.file.with_suffix(".log").open("ab") as log:
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "ingest", str(ingest.file)), stderr=log
        )
    try:
        await until(lambda: said(ingest, "connected to ") > before)
        yield child
    finally:
        if child.returncode is None:
            child.terminate()
            async with asyncio.timeout(DEADLINE_S):
                await child.wait()


def said(ingest: Ingest, words: str) -> int:
    log = ingest.file.with_suffix(".log")
    return log.read_text().count(words) if log.exists() else 0


async def onestreet_quarantine(*words: str | Path) -> tuple[int, str]:
    """Return the exit status of the command, and what it said."""
    program = "import sys; from ingest.quarantine_command import run; sys.exit(run(sys.argv[1:]))"
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program, *map(str, words)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await asyncio.wait_for(child.communicate(), 2 * DEADLINE_S)
    assert child.returncode is not None
    return child.returncode, out.decode()


def disk_bytes(path: Path) -> int:
    return sum(one.stat().st_size for one in path.parent.glob(f"{path.name}*") if one.is_file())


def assert_sound(path: Path) -> None:
    assert select(path, "PRAGMA integrity_check") == [("ok",)]
    counted = select(path, "SELECT count FROM tallies WHERE what = 'entries'")
    assert select(path, "SELECT count(*) FROM payloads") == counted


class Flood:
    """A gateway gone mad: payloads that nobody can read, every so many of them large."""

    def __init__(self, gateway: Gateway, *, seed: int) -> None:
        print("seed", seed)  # noqa: T201 - so that a failure can be repeated
        self._random = random.Random(seed)
        self._gateway = gateway
        self._room = asyncio.Semaphore(WINDOW)
        self._answered = asyncio.Event()
        self.sent: set[str] = set()
        self.waiting: set[str] = set()
        gateway.on_receipt = self._note

    async def send(self, number: int) -> None:
        """Publish so many, and return when each has its receipt."""
        topic = str(self._gateway.topic("mad-1"))
        async with asyncio.TaskGroup() as tasks:
            for at in range(number):
                await self._room.acquire()
                size = LARGE_BYTES if at % LARGE_EVERY == 0 else 60
                payload = b"\xff" + self._random.randbytes(size)
                digest = hashlib.sha256(payload).hexdigest()
                self.sent.add(digest)
                self.waiting.add(digest)
                self._answered.clear()
                tasks.create_task(self._gateway.publish(topic, payload))
        await asyncio.wait_for(self._answered.wait(), 2 * DEADLINE_S)

    def _note(self, receipt: dict[str, Any]) -> None:
        for digest, _ in receipt.get("unreadable", []):
            if digest in self.waiting:
                self.waiting.remove(digest)
                self._room.release()
        if not self.waiting:
            self._answered.set()


async def latencies_s(gateway: Gateway, first: int, goes_on: Callable[[int], bool]) -> list[float]:
    """Send a sample at a time; return how long each receipt took."""
    found: list[float] = []
    came = asyncio.Event()
    gateway.on_receipt = lambda _receipt: came.set()
    while goes_on(len(found)):
        came.clear()
        began_s = time.monotonic()
        await gateway.send("aq-1", sample(first + len(found)))
        await asyncio.wait_for(came.wait(), DEADLINE_S)
        found.append(time.monotonic() - began_s)
    return found


@pytest.fixture
def bucket(influx: Influx, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    bucket = influx.bucket()
    monkeypatch.setenv("INFLUX_TOKEN", bucket.token)
    return bucket


async def test_a_flood_of_poison_is_receipted_in_bounds_and_harms_no_neighbour(
    tmp_path: Path, broker: Mosquitto, bucket: Bucket
) -> None:
    ingest = Ingest(tmp_path, broker, store=bucket.url, account="[quarantine]\nmax_mb = 16")
    async with (
        process(ingest),
        Gateway(broker, "gw-1") as good,
        Gateway(broker, "gw-2") as mad,
    ):
        await good.send("aq-1", sample(0))
        await good.until_stored("aq-1", [0])
        quiet = await latencies_s(good, 1, lambda count: count < 100)
        flood = Flood(mad, seed=1)
        flooding = asyncio.create_task(flood.send(POISON))
        beside = await latencies_s(good, 101, lambda _count: not flooding.done())
        await flooding
        assert disk_bytes(ingest.quarantine_file) <= 16 * 2**20
    assert disk_bytes(ingest.quarantine_file) <= 16 * 2**20
    quiet_s, beside_s = statistics.median(quiet), statistics.median(beside)
    found = f"{len(beside)} samples: {1e3 * quiet_s:.1f} ms, in the flood {1e3 * beside_s:.1f} ms"
    assert beside_s <= SLOWER * quiet_s + 0.05, found
    assert max(beside) < 3.0
    assert {row.fields["seq"] for row in await ingest.rows()} == set(range(101 + len(beside)))
    assert_sound(ingest.quarantine_file)
    kept = {digest for (digest,) in select(ingest.quarantine_file, "SELECT sha256 FROM payloads")}
    assert kept
    assert kept <= flood.sent
    assert said(ingest, "a flood of refused messages:") == 1


async def test_kill_9_in_a_flood_leaves_a_sound_file_and_nothing_unanswered(
    tmp_path: Path, broker: Mosquitto
) -> None:
    ingest = Ingest(tmp_path, broker)
    async with Gateway(broker, "gw-2") as mad:
        flood = Flood(mad, seed=2)
        async with process(ingest):  # its session is there
            await flood.send(50)
        flooding = asyncio.create_task(flood.send(3000))
        for _ in range(4):
            async with process(ingest) as child:
                before = len(flood.sent)
                await until(lambda before=before: len(flood.sent) > before + 300)  # type: ignore[misc]  # bound at once
                child.kill()
                await child.wait()
            assert_sound(ingest.quarantine_file)
        async with process(ingest):
            await flooding
    assert flood.waiting == set()
    assert_sound(ingest.quarantine_file)


async def test_a_full_disk_stops_neither_samples_nor_receipts(
    tmp_path: Path, broker: Mosquitto, bucket: Bucket
) -> None:
    ingest = Ingest(tmp_path, broker, store=bucket.url)
    async with (
        process(ingest) as child,
        Gateway(broker, "gw-1") as good,
        Gateway(broker, "gw-2") as mad,
    ):
        flood = Flood(mad, seed=3)
        await flood.send(10)
        # No file of this process grows any more: the kernel refuses as a full disk does.
        unlimited = resource.prlimit(
            child.pid, resource.RLIMIT_FSIZE, (400_000, resource.RLIM_INFINITY)
        )
        flooding = asyncio.create_task(flood.send(2000))
        await latencies_s(good, 0, lambda count: count < 50)
        await flooding
        assert said(ingest, "the quarantine cannot be written") == 1
        resource.prlimit(child.pid, resource.RLIMIT_FSIZE, unlimited)
        before = len(ingest.quarantined())

        async def kept_again() -> bool:
            await flood.send(1)
            return len(ingest.quarantined()) > before

        await until(kept_again)
    assert flood.waiting == set()
    assert {row.fields["seq"] for row in await ingest.rows()} == set(range(50))
    assert_sound(ingest.quarantine_file)


# -------------------------------------------------------------------------------- replay beside ingest


async def test_what_was_refused_is_stored_after_the_counties_are_corrected(
    tmp_path: Path, broker: Mosquitto, bucket: Bucket
) -> None:
    ingest = Ingest(tmp_path, broker, store=bucket.url)
    foreign = Topic("tw-nwt", "street", "gw-9", "air", "aq-9", "readings")
    lost = [encode_pack(foreign, [sample(2 * seq), sample(2 * seq + 1)]) for seq in range(100)]
    async with process(ingest), Gateway(broker, "gw-1") as gateway:
        await gateway.send("aq-1", sample(0))
        await gateway.until_stored("aq-1", [0])
        # A quarantine that another ingest filled: these subscribe to their own counties alone.
        filling = Quarantine(ingest.quarantine_file)
        why = ("EX-T-007", "county 'tw-nwt' is not of tw-tpe", foreign.receipts)
        await filling.put([Refused(evidence(str(foreign), body, EPOCH), *why) for body in lost])
        await filling.close()
        status, out = await onestreet_quarantine("replay", ingest.file)
        assert (status, "EX-T-007 100" in out) == (3, True), out
        corrected = ingest.file.read_text().replace('["tw-tpe"]', '["tw-tpe", "tw-nwt"]')
        ingest.file.write_text(corrected)

        flood = Flood(gateway, seed=4)
        flooding = asyncio.create_task(flood.send(500))
        status, out = await onestreet_quarantine("replay", ingest.file, "--county", "tw-nwt")
        assert (status, "samples stored 寫入樣本: 200" in out) == (0, True), out
        await flooding
    rows = [row for row in await ingest.rows() if row.series.device == "aq-9"]
    assert [row.fields["seq"] for row in rows] == list(range(200))
    assert {row.series.county for row in rows} == {"tw-nwt"}
    assert_sound(ingest.quarantine_file)


async def test_what_the_store_still_rejects_stays_and_the_rest_is_stored(
    tmp_path: Path, broker: Mosquitto, bucket: Bucket
) -> None:
    when_ns = sample(0).row_time_ns  # a type holds within a shard
    bucket.write(f'air,county=tw-tpe,site=street,device=old noise="loud" {when_ns}')
    ingest = Ingest(tmp_path, broker, store=bucket.url)
    async with process(ingest), Gateway(broker, "gw-1") as gateway:
        samples = [sample(0), sample(1, noise=50.0), sample(2)]
        await gateway.send("aq-1", *samples)
        await until(lambda: gateway.refused("aq-1"))
        assert gateway.refused("aq-1") == {(EPOCH, 1): "EX-D-003"}
        for _ in range(2):
            status, out = await onestreet_quarantine("replay", ingest.file)
            assert (status, "EX-D-003 1" in out) == (3, True), out
        status, out = await onestreet_quarantine("show", ingest.file, "1")
        assert (status, "field type conflict" in out) == (0, True), out
    rows = [row for row in await ingest.rows() if row.series.device == "aq-1"]
    assert {row.fields["seq"] for row in rows} == {0, 2}


async def test_a_store_that_is_away_loses_nothing(
    tmp_path: Path, broker: Mosquitto, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INFLUX_TOKEN", "token-of-a-test")
    ingest = Ingest(tmp_path, broker, store="influxdb://127.0.0.1:9/town/air")
    quarantine = Quarantine(ingest.quarantine_file)
    topic = Topic("tw-tpe", "street", "gw-1", "air", "aq-1", "readings")
    pack = encode_pack(topic, [sample(0)])
    await quarantine.put([Refused(evidence(TOPIC, pack, 0), "EX-R-027", "", RECEIPTS)])
    await quarantine.close()
    status, out = await onestreet_quarantine("replay", ingest.file)
    assert status != 0
    assert "127.0.0.1:9" in out
    assert "0 payloads" in out
    assert len(ingest.quarantined()) == 1
