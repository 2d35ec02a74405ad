"""Ingest between a real broker and a real store: what comes in ends stored or refused, receipted and acknowledged."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sqlite3
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from pathlib import Path

import aiohttp
import mqtt5
import pytest
from aiohttp import web

from exchange.errors import UplinkRefused
from exchange.mqtt import PacketStream
from exchange.readings import MAX_PACK_BYTES, encode_pack
from exchange.topics import Topic
from tests.brokers import Mosquitto
from tests.gateways import COUNTY, DEADLINE_S, EPOCH, SITE, Gateway, Ingest, sample, until
from tests.influx import Influx

RECORD_0 = {"bn": "tw-tpe:aq-1:", "bt": 1_750_000_100, "bver": 26, "n": "epoch", "v": EPOCH}


def pack(*records: dict[str, object]) -> bytes:
    return json.dumps([RECORD_0, *records]).encode()


# ---------------------------------------------------------------------------------- what is taken


async def test_a_sample_is_stored_then_receipted(ingest: Ingest, broker: Mosquitto) -> None:
    async with ingest.running(), Gateway(broker, "gw-1") as gateway:
        await gateway.send("aq-1", sample(0, pm2_5=12.5, temperature=-3.25), sample(1))
        await gateway.send("lamp-1", sample(7, lit=True, level=40.0), domain="streetlight")
        await gateway.until_stored("aq-1", [0, 1])
        await gateway.until_stored("lamp-1", [7])
        first, _ = await ingest.rows()
        assert first.series == ("air", COUNTY, SITE, "aq-1", "")
        assert first.time_ns == sample(0).row_time_ns
        assert first.fields == {"pm2_5": 12.5, "temperature": -3.25, "epoch": EPOCH, "seq": 0}
        [lamp] = await ingest.rows("streetlight")
        assert lamp.fields == {"lit": 1, "level": 40.0, "epoch": EPOCH, "seq": 7}
    assert ingest.quarantined() == []


async def test_a_row_is_there_when_its_receipt_is(local: Ingest, broker: Mosquitto) -> None:
    seen = []

    def look(_receipt: object) -> None:
        with closing(sqlite3.connect(local.rows_file)) as shell:
            seen.append(shell.execute("SELECT max(seq) FROM air").fetchone()[0])

    async with local.running(), Gateway(broker, "gw-1") as gateway:
        gateway.on_receipt = look
        for seq in range(20):
            await gateway.send("aq-1", sample(seq))
            await gateway.until_stored("aq-1", [seq])
            assert seen[-1] == seq


async def test_a_pack_of_many_samples_in_cbor(local: Ingest, broker: Mosquitto) -> None:
    async with local.running(), Gateway(broker, "gw-1") as gateway:
        topic = gateway.topic("aq-1")
        samples = [sample(seq) for seq in range(2000)]
        await gateway.publish(str(topic), encode_pack(topic, samples, "cbor"))
        await gateway.until_stored("aq-1", range(2000))
    assert len(await local.rows()) == 2000


async def test_a_vendors_metric_is_stored(ingest: Ingest, broker: Mosquitto) -> None:
    async with ingest.running(), Gateway(broker, "gw-1") as gateway:
        payload = pack({"n": "seq", "v": 0}, {"n": "x-plantower-pm2_5_cf1", "v": 9})
        await gateway.publish(str(gateway.topic("aq-1")), payload)
        await gateway.until_stored("aq-1", [0])
    [row] = await ingest.rows()
    assert row.fields["x-plantower-pm2_5_cf1"] == 9.0
    assert isinstance(row.fields["x-plantower-pm2_5_cf1"], float)


async def test_a_resend_and_its_receipt_meet_the_same_row(
    ingest: Ingest, broker: Mosquitto
) -> None:
    async with ingest.running(), Gateway(broker, "gw-1") as gateway:
        for _ in range(3):
            count = len(gateway.receipts)
            await gateway.send("aq-1", sample(0), sample(1))
            await until(lambda: len(gateway.receipts) > count)  # noqa: B023 - awaited here
        await gateway.send("aq-1", sample(0, epoch=EPOCH + 1))
        await gateway.until_stored("aq-1", [0], epoch=EPOCH + 1)
    keys = [(row.fields["epoch"], row.fields["seq"]) for row in await ingest.rows()]
    assert keys == [(EPOCH, 0), (EPOCH + 1, 0), (EPOCH, 1)]


async def test_every_gateway_gets_its_own_receipts_and_no_others(
    local: Ingest, broker: Mosquitto
) -> None:
    async with (
        local.running(),
        Gateway(broker, "gw-1") as one,
        Gateway(broker, "gw-2") as two,
    ):
        await asyncio.gather(
            *(one.send("aq-1", sample(seq)) for seq in range(50)),
            *(two.send("aq-2", sample(seq)) for seq in range(50, 100)),
        )
        # The same device behind another gateway: the one that asks is told.
        await two.send("aq-1", sample(49))
        await one.until_stored("aq-1", range(50))
        await two.until_stored("aq-2", range(50, 100))
        await two.until_stored("aq-1", [49])
        assert one.stored("aq-2") == set()
        assert two.stored("aq-1") == {(EPOCH, 49)}


@pytest.mark.parametrize(
    ("limits", "fewest", "most"),
    [
        ("max_age_s = 10\nmax_points = 10", 10, 10),  # only a full batch is written
        ("max_age_s = 0.05\nmax_points = 1000", 1, 60),  # only an old one
        ("max_points = 1000", 1, 100),  # at once, if no write is in flight
    ],
)
async def test_batches_end_by_count_and_by_age(
    tmp_path: Path, broker: Mosquitto, limits: str, fewest: int, most: int
) -> None:
    ingest = Ingest(tmp_path, broker, account=f"[batch]\n{limits}")
    async with ingest.running() as service, Gateway(broker, "gw-1") as gateway:
        for seq in range(100):
            await gateway.send("aq-1", sample(seq))
        await gateway.until_stored("aq-1", range(100))
        assert fewest <= service.writer.counts.writes <= most


async def test_a_window_smaller_than_a_batch_is_full_when_the_broker_waits(
    tmp_path: Path, broker: Mosquitto
) -> None:
    limits = "receive_maximum = 20\n[batch]\nmax_age_s = 10"
    ingest = Ingest(tmp_path, broker, account=limits)
    async with ingest.running() as service, Gateway(broker, "gw-1") as gateway:
        for seq in range(100):
            await gateway.send("aq-1", sample(seq))
        await gateway.until_stored("aq-1", range(100))
        # Mosquitto sends a little more than it may, so a batch may hold more than the window.
        assert 2 <= service.writer.counts.writes <= 5


async def test_more_gateways_than_the_broker_takes_at_once(
    local: Ingest, broker: Mosquitto
) -> None:
    # Mosquitto lets a client have 20 publishes in flight; one batch has receipts for more.
    names = {f"gw-{number}" for number in range(70)}
    async with local.running() as service, Gateway(broker, "+") as everybody:
        with locked(local):
            for name in names:
                topic = Topic(COUNTY, SITE, name, "air", f"aq-{name}", "readings")
                await everybody.publish(str(topic), encode_pack(topic, [sample(0)]))
            await until(lambda: service.intake.counts.messages == len(names))
        await until(lambda: len(everybody.receipts) == len(names))
        assert all(everybody.stored(f"aq-{name}") for name in names)
        assert service.writer.counts.writes < 20


async def test_a_result_is_stored_as_a_command(ingest: Ingest, broker: Mosquitto) -> None:
    result = {
        "v": 1,
        "id": "7f8a3c52-9c3e-4f57-8f0e-0a4be35b3f11",
        "status": "done",
        "at": "2026-11-22T10:00:00.250Z",
        "readback": {"level": 40.0},
    }
    async with ingest.running(), Gateway(broker, "gw-1") as gateway:
        topic = gateway.topic("lamp-1", domain="streetlight", channel="results")
        await gateway.publish(str(topic), json.dumps(result).encode())
        await until(lambda: gateway.receipts)
        assert gateway.receipts == [{"v": 1, "results": [[result["id"], "done"]]}]
        await gateway.publish(str(topic), b'{"v":1}')
        await gateway.until_unreadable(b'{"v":1}', "EX-C-003")
    [row] = await ingest.rows("command")
    assert row.fields == {"id": result["id"], "status": "done", "readback": '{"level":40.0}'}


async def test_what_a_command_came_to_in_one_millisecond_is_a_row_each(
    ingest: Ingest, broker: Mosquitto
) -> None:
    """A gateway whose clock knows whole seconds: a later status, or a resend of an earlier one, hides none."""
    same = {"v": 1, "id": "7f8a3c52-9c3e-4f57-8f0e-0a4be35b3f11", "at": "2026-11-22T10:00:00.000Z"}
    accepted = {**same, "status": "accepted", "reason": "behind another"}
    done = {**same, "status": "done"}
    async with ingest.running(), Gateway(broker, "gw-1") as gateway:
        topic = gateway.topic("lamp-1", domain="streetlight", channel="results")
        for number, result in enumerate((accepted, done, accepted), 1):
            await gateway.publish(str(topic), json.dumps(result).encode())
            await until(lambda number=number: len(gateway.receipts) == number)  # type: ignore[misc]  # bound at once
    rows = await ingest.rows("command")
    assert [row.fields for row in rows] == [
        {"id": same["id"], "status": "accepted", "reason": "behind another"},
        {"id": same["id"], "status": "done"},
    ]


# -------------------------------------------------------------------------------- what is refused

WHOLE_PAYLOADS = {
    "nothing": (b"", "EX-R-001"),
    "not SenML": (b'{"temperature": 21}', "EX-R-001"),
    "half a pack": (pack({"n": "seq", "v": 0})[:-9], "EX-R-001"),
    "not UTF-8": (b'[{"bn":"\xff"}]', "EX-R-001"),
    "another device than the topic": (pack().replace(b"aq-1", b"aq-9"), "EX-R-003"),
    "a label that is not allowed": (pack({"n": "seq", "v": 0, "bu": "Cel"}), "EX-R-004"),
    "no epoch": (json.dumps([RECORD_0 | {"n": "seq", "v": 0}]).encode(), "EX-R-006"),
    "no seq": (pack({"n": "pm2_5", "v": 1}), "EX-R-007"),
    "a pack of more than 256 KiB": (
        pack({"n": "seq", "v": 0}, {"n": "pm2_5", "v": 1.5}) + b" " * MAX_PACK_BYTES,
        "EX-R-002",
    ),
    "1 MiB": (b"[" * (1 << 20), "EX-R-002"),
}


@pytest.mark.parametrize("what", WHOLE_PAYLOADS)
async def test_an_unreadable_payload_is_quarantined_and_harms_no_neighbour(
    local: Ingest, broker: Mosquitto, what: str
) -> None:
    payload, requirement = WHOLE_PAYLOADS[what]
    async with local.running(), Gateway(broker, "gw-1") as gateway:
        await gateway.send("aq-1", sample(0))
        await gateway.publish(str(gateway.topic("aq-1")), payload)
        await gateway.send("aq-1", sample(1))
        await gateway.until_stored("aq-1", [0, 1])
        await gateway.until_unreadable(payload, requirement)
        [kept] = local.quarantined()
    assert kept["requirement"] == requirement
    assert kept["topic"] == str(gateway.topic("aq-1"))
    assert kept["size_bytes"] == len(payload)
    assert kept["body"] == payload[: 256 * 1024]


@pytest.mark.parametrize(
    ("topic", "requirement"),
    [
        ("city/v1/tw-tpe/street/gw-1/noise/aq-1/readings", "EX-T-004"),
        ("city/v1/tw-tpe/street/gw-1/air/AQ_1/readings", "EX-T-002"),
        ("city/v1/tw-tpe/street/gw-1/gateway/aq-1/readings", "EX-T-006"),
    ],
)
async def test_a_topic_that_is_none_is_refused(
    local: Ingest, broker: Mosquitto, topic: str, requirement: str
) -> None:
    async with local.running(), Gateway(broker, "gw-1") as gateway:
        payload = pack({"n": "seq", "v": 0})
        await gateway.publish(topic, payload)
        await gateway.until_unreadable(payload, requirement)
        [kept] = local.quarantined()
    assert (kept["topic"], kept["requirement"]) == (topic, requirement)


async def test_a_topic_without_a_gateway_stalls_nothing(local: Ingest, broker: Mosquitto) -> None:
    async with local.running(), Gateway(broker, "gw-1") as gateway:
        await gateway.publish("city/v1/tw-tpe/Street!/gw-1/air/aq-1/readings", pack())
        await gateway.send("aq-1", sample(0))
        await gateway.until_stored("aq-1", [0])
        assert [kept["requirement"] for kept in local.quarantined()] == ["EX-T-002"]
        assert gateway.unreadable == {}


METRICS: dict[str, tuple[dict[str, object], str]] = {
    "a wrong unit": ({"n": "temperature", "u": "m", "v": 20}, "EX-R-012"),
    "out of range": ({"n": "temperature", "u": "Cel", "v": 400}, "EX-R-011"),
    "not of the dictionary": ({"n": "happiness", "v": 7}, "EX-R-009"),
    "a wrong type": ({"n": "temperature", "vs": "warm"}, "EX-R-010"),
}


@pytest.mark.parametrize("what", METRICS)
async def test_a_bad_metric_is_quarantined_and_the_rest_is_stored(
    local: Ingest, broker: Mosquitto, what: str
) -> None:
    record, requirement = METRICS[what]
    async with local.running(), Gateway(broker, "gw-1") as gateway:
        good = {"n": "pm2_5", "u": "ug/m3", "v": 12}
        await gateway.publish(str(gateway.topic("aq-1")), pack({"n": "seq", "v": 5}, good, record))
        await gateway.until_stored("aq-1", [5])
        [kept] = local.quarantined()
        assert gateway.refused("aq-1") == {}
    assert [kept[key] for key in ("requirement", "device", "epoch", "seq", "metric")] == [
        requirement,
        "aq-1",
        EPOCH,
        5,
        record["n"],
    ]
    [row] = await local.rows()
    assert row.fields == {"pm2_5": 12.0, "epoch": EPOCH, "seq": 5}


async def test_time_that_goes_backwards_within_a_pack(local: Ingest, broker: Mosquitto) -> None:
    payload = pack(
        {"n": "seq", "v": 0},
        {"n": "pm2_5", "v": 1},
        {"n": "seq", "v": 1, "t": -5},
        {"n": "pm2_5", "v": 2, "t": -5},
        {"n": "seq", "v": 2, "t": 5},
        {"n": "pm2_5", "v": 3, "t": 5},
    )
    async with local.running(), Gateway(broker, "gw-1") as gateway:
        await gateway.publish(str(gateway.topic("aq-1")), payload)
        await gateway.until_stored("aq-1", [0, 2])
        await until(lambda: gateway.refused("aq-1"))
        assert gateway.refused("aq-1") == {(EPOCH, 1): "EX-R-008"}
        assert gateway.stored("aq-1") == {(EPOCH, 0), (EPOCH, 2)}
        [kept] = local.quarantined()
    assert (kept["requirement"], kept["seq"], kept["body"]) == ("EX-R-008", 1, payload)
    assert [row.fields["seq"] for row in await local.rows()] == [0, 2]


async def test_a_quarantine_that_cannot_be_written_holds_nothing_up(
    local: Ingest, broker: Mosquitto
) -> None:
    async with local.running() as service, Gateway(broker, "gw-1") as gateway:
        local.quarantine_file.unlink(missing_ok=True)
        local.quarantine_file.mkdir()  # where the file should be
        await gateway.publish(str(gateway.topic("aq-1")), b"nonsense")
        await gateway.until_unreadable(b"nonsense", "EX-R-001")
        assert service.quarantine.counts.dropped == 1
        local.quarantine_file.rmdir()
        await gateway.publish(str(gateway.topic("aq-1")), b"more nonsense")
        await gateway.until_unreadable(b"more nonsense", "EX-R-001")
        assert [kept["body"] for kept in local.quarantined()] == [b"more nonsense"]


async def test_a_point_that_the_store_rejects_is_found_among_good_ones(
    influx: Influx, tmp_path: Path, broker: Mosquitto, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = influx.bucket()
    monkeypatch.setenv("INFLUX_TOKEN", bucket.token)
    when_ns = sample(0).row_time_ns  # a type holds within a shard
    bucket.write(f'air,county=tw-tpe,site=street,device=old noise="loud" {when_ns}')
    ingest = Ingest(tmp_path, broker, store=bucket.url)
    bad = {3, 700, 701}
    async with Gateway(broker, "gw-1") as gateway:
        samples = [
            sample(seq, noise=50.0, pm2_5=1.0) if seq in bad else sample(seq) for seq in range(1000)
        ]
        async with ingest.running():
            await gateway.send("aq-1", *samples)
            await gateway.until_stored("aq-1", set(range(1000)) - bad)
            await until(lambda: gateway.refused("aq-1"))
    assert gateway.refused("aq-1") == {(EPOCH, seq): "EX-D-003" for seq in bad}
    assert gateway.stored("aq-1") == {(EPOCH, seq) for seq in set(range(1000)) - bad}
    kept = ingest.quarantined()
    assert {each["seq"] for each in kept} == bad
    assert all("field type conflict" in each["detail"] for each in kept)
    rows = [row for row in await ingest.rows() if row.series.device == "aq-1"]
    assert {row.fields["seq"] for row in rows} == set(range(1000)) - bad


# ------------------------------------------------------------------------------- what is survived


@asynccontextmanager
async def tapped(port: int) -> AsyncIterator[tuple[int, list[mqtt5.Packet]]]:
    """Yield a port that leads to the broker, and what clients send through it, in order."""
    sent: list[mqtt5.Packet] = []

    async def pump(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, see: Callable[[bytes], None]
    ) -> None:
        while data := await reader.read(1 << 16):
            see(data)
            writer.write(data)
            await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        stream = PacketStream(1 << 24)
        inner, outer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(
            pump(reader, outer, lambda data: sent.extend(stream.feed(data))),
            pump(inner, writer, lambda _data: None),
        )

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1], sent


async def test_the_receipt_precedes_the_puback(local: Ingest, broker: Mosquitto) -> None:
    async with tapped(broker.port) as (port, sent), Gateway(broker, "gw-1") as gateway:
        local.write_config(port)
        async with local.running():
            for seq in range(30):
                await gateway.send("aq-1", sample(seq))
            await gateway.until_stored("aq-1", range(30))
            await until(lambda: sum(isinstance(each, mqtt5.PubAckPacket) for each in sent) == 30)
    receipted: set[int] = set()
    acknowledged = 0
    for packet in sent:
        if isinstance(packet, mqtt5.PublishPacket):
            for _, first, last in json.loads(packet.payload)["stored"]["aq-1"]:
                receipted |= set(range(first, last + 1))
        elif isinstance(packet, mqtt5.PubAckPacket):
            acknowledged += 1  # one sample a message, and PUBACKs go in order of arrival
            assert acknowledged - 1 in receipted
    assert (len(receipted), acknowledged) == (30, 30)


@asynccontextmanager
async def process(ingest: Ingest, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Ingest in a process of its own."""
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "ingest", str(ingest.file), *arguments, stderr=asyncio.subprocess.PIPE
    )
    try:
        yield child
    finally:
        if child.returncode is None:
            child.kill()
        await child.communicate()


async def _line(child: asyncio.subprocess.Process, text: str) -> str:
    """Return the first line of its log that holds a text."""
    assert child.stderr is not None
    async with asyncio.timeout(DEADLINE_S):
        async for line in child.stderr:
            if text in line.decode():
                return line.decode()
    raise AssertionError(f"ended without saying {text!r}")


@contextmanager
def locked(ingest: Ingest) -> Iterator[None]:
    """Somebody else holds the file's write lock: ingest receives and cannot write."""
    with closing(sqlite3.connect(ingest.rows_file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield


async def test_killed_between_receiving_and_writing_nothing_is_lost(
    local: Ingest, broker: Mosquitto
) -> None:
    async with Gateway(broker, "gw-1") as gateway:
        async with process(local) as child:
            await _line(child, "connected")
            await gateway.send("aq-1", sample(0))
            await gateway.until_stored("aq-1", [0])
            with locked(local):
                for seq in range(1, 101):
                    await gateway.send("aq-1", sample(seq))
                await _line(child, "the store takes nothing")
                child.kill()
                await child.wait()
        assert gateway.stored("aq-1") == {(EPOCH, 0)}
        async with process(local) as child:
            await gateway.until_stored("aq-1", range(101))
            child.send_signal(signal.SIGTERM)
            assert await child.wait() == 0
    assert [row.fields["seq"] for row in await local.rows()] == list(range(101))
    assert gateway.refused("aq-1") == {}


async def test_sigterm_settles_what_is_in_hand(local: Ingest, broker: Mosquitto) -> None:
    async with Gateway(broker, "gw-1") as gateway:
        async with process(local, "--with-watch") as child:
            for _ in ("ingest", "the watch"):
                await _line(child, "connected")
            for seq in range(200):
                await gateway.send("aq-1", sample(seq))
            child.send_signal(signal.SIGTERM)
            assert json.loads(await _line(child, "stopped"))["drained"] is True
            assert await child.wait() == 0
        settled = len(gateway.stored("aq-1"))
        async with local.running():  # what it left to the broker comes now
            await gateway.until_stored("aq-1", range(200))
    assert settled > 0
    assert len(await local.rows()) == 200


async def test_a_store_that_is_away_is_waited_for(
    influx: Influx, tmp_path: Path, broker: Mosquitto, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = influx.bucket()
    monkeypatch.setenv("INFLUX_TOKEN", bucket.token)
    ingest = Ingest(tmp_path, broker, store=bucket.url)
    async with ingest.running() as service, Gateway(broker, "gw-1") as gateway:
        await gateway.send("aq-1", sample(0))
        await gateway.until_stored("aq-1", [0])
        influx.kill()
        try:
            for seq in range(1, 50):
                await gateway.send("aq-1", sample(seq))
            await until(lambda: service.writer.counts.retries > 1)
            assert not service.ready
            assert gateway.stored("aq-1") == {(EPOCH, 0)}
        finally:
            influx.start()
        await gateway.until_stored("aq-1", range(50))
        assert service.ready
    assert gateway.refused("aq-1") == {}
    assert len(await ingest.rows()) == 50


@asynccontextmanager
async def narrow_proxy(port: int, max_bytes: int) -> AsyncIterator[int]:
    """Yield the port of a proxy that lets no larger request body pass, as a web server's defaults."""
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:

        async def forward(request: web.Request) -> web.Response:
            body = await request.read()  # 413 when larger
            headers = {"Authorization": request.headers["Authorization"]}
            async with session.request(
                request.method, request.path_qs, data=body, headers=headers
            ) as answer:
                return web.Response(status=answer.status, body=await answer.read())

        application = web.Application(client_max_size=max_bytes)
        application.router.add_route("*", "/{path:.*}", forward)
        runner = web.AppRunner(application)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            yield runner.addresses[0][1]
        finally:
            await runner.cleanup()


async def test_a_request_that_is_too_large_for_a_proxy_goes_in_parts(
    influx: Influx, tmp_path: Path, broker: Mosquitto, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = influx.bucket()
    monkeypatch.setenv("INFLUX_TOKEN", bucket.token)
    async with narrow_proxy(influx.port, 10_000) as port:
        url = bucket.url.replace(f":{influx.port}/", f":{port}/")
        ingest = Ingest(tmp_path, broker, store=url)
        async with ingest.running() as service, Gateway(broker, "gw-1") as gateway:
            await gateway.send("aq-1", *(sample(seq) for seq in range(1000)))
            await gateway.until_stored("aq-1", range(1000))
            assert service.ready
            assert service.writer.counts.rejected == 0


async def test_a_wrong_token_is_retried_and_nothing_is_refused(
    influx: Influx, tmp_path: Path, broker: Mosquitto, caplog: pytest.LogCaptureFixture
) -> None:
    bucket = influx.bucket()
    token = tmp_path / "token"
    token.write_text("a-wrong-token")
    token.chmod(0o600)
    ingest = Ingest(tmp_path, broker, store=bucket.url, top=f'store_token_file = "{token}"')
    async with ingest.running() as service, Gateway(broker, "gw-1") as gateway:
        for seq in range(20):
            await gateway.send("aq-1", sample(seq))
        await until(lambda: service.writer.counts.retries > 2)
        assert not service.ready
        assert gateway.receipts == []
        token.write_text(bucket.token)
        await gateway.until_stored("aq-1", range(20))
        assert service.ready
        assert service.writer.counts.rejected == 0
    assert ingest.quarantined() == []
    assert "HTTP 401" in caplog.text
    assert "a-wrong-token" not in caplog.text
    assert bucket.token not in caplog.text
    assert {row["values"][0][1] for row in bucket.query("SELECT count(pm2_5) FROM air")} == {20}


async def test_a_broker_that_is_not_there_is_waited_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broker = Mosquitto(tmp_path)
    broker.start()
    broker.kill()
    ingest = Ingest(tmp_path, broker)
    async with ingest.running(connected=False) as service:
        await until(lambda: service.client.last_error)
        assert not service.ready
        assert f"127.0.0.1:{broker.port}" in caplog.text
        broker.start()
        try:
            await until(lambda: service.ready)
            async with Gateway(broker, "gw-1") as gateway:
                await gateway.send("aq-1", sample(0))
                await gateway.until_stored("aq-1", [0])
        finally:
            await service.client.stop(1.0)
            broker.stop()


async def test_a_wrong_password_is_named_and_nothing_else_happens(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Mosquitto(tmp_path, accounts={"ingest": "right"}) as broker:
        secret = tmp_path / "password"
        secret.write_text("a-wrong-password\n")
        secret.chmod(0o600)
        ingest = Ingest(
            tmp_path, broker, account=f'username = "ingest"\npassword_file = "{secret}"'
        )
        async with ingest.running(connected=False) as service:
            await until(lambda: service.client.last_error)
            assert isinstance(service.client.last_error, UplinkRefused)
            assert "NOT_AUTHORIZED" in caplog.text
            assert "a-wrong-password" not in caplog.text + repr(service.client.settings)
            assert not service.ready
        secret.write_text("right\n")
        async with ingest.running() as service:
            await until(lambda: service.ready)


async def test_a_broker_that_forgets_everything_is_taken_up_again(
    local: Ingest, broker: Mosquitto
) -> None:
    async with local.running() as service, Gateway(broker, "gw-1") as gateway:
        await gateway.send("aq-1", sample(0))
        await gateway.until_stored("aq-1", [0])
        broker.kill()
        broker.start()
        await until(lambda: service.client.generation > 1 and service.client.connected)
        await gateway.send("aq-1", sample(1))
        await gateway.until_stored("aq-1", [1])


async def test_receipts_that_the_broker_denies_stall_nothing(tmp_path: Path) -> None:
    acl = "topic readwrite city/v1/tw-tpe/+/+/+/+/readings\ntopic read city/v1/#\n"
    # With no limit set, Mosquitto 2.0.11 ends the connection after any publish that it denies.
    with Mosquitto(tmp_path, ["max_queued_messages 10000"], acl=acl) as broker:
        ingest = Ingest(tmp_path, broker, account="receive_maximum = 5")
        async with ingest.running() as service, Gateway(broker, "gw-1") as gateway:
            for seq in range(30):
                await gateway.send("aq-1", sample(seq))
            await until(lambda: service.writer.counts.stored == 30)
            await until(lambda: service.client.counts.refused)
            assert gateway.receipts == []


async def test_the_service_manager_is_told(
    local: Ingest, broker: Mosquitto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        async with local.running() as service, Gateway(broker, "gw-1") as gateway:
            with locked(local):
                await gateway.send("aq-1", sample(0))
                await until(lambda: not service.ready)
            await until(lambda: service.ready)
            broker.kill()
            await until(lambda: not service.ready)
            monkeypatch.delenv("NOTIFY_SOCKET")  # or the broker would report too
            broker.start()
            monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
            await until(lambda: service.ready)
        told = []
        with suppress(BlockingIOError):
            while True:
                told.append(manager.recv(4096).decode())
    expected = ["READY=1", *(f"STATUS={words}" for words in ("taking in", "waiting for the store"))]
    assert told[:4] == [*expected, "STATUS=taking in"]
    assert told[4].startswith("STATUS=waiting for the broker: ")
    assert told[5:] == ["STATUS=taking in", "STOPPING=1"]


@pytest.mark.parametrize(
    ("change", "said"),
    [(("[broker]", "[borker]"), "borker"), (("sqlite:///", "oracle:///"), "store = 'oracle:///")],
)
async def test_a_wrong_configuration_ends_it_with_words(
    local: Ingest, change: tuple[str, str], said: str
) -> None:
    local.file.write_text(local.file.read_text().replace(*change))
    async with process(local) as child:
        await _line(child, said)
        assert await child.wait() == 2
