"""The watch beside ingest: every device has a row that says how it is."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from exchange.mqtt import Will
from exchange.readings import Sample
from exchange.states import Descriptor, Label, Location, State, encode_state
from exchange.topics import Topic
from ingest.stores import Point
from ingest.watch.moments import Now
from tests.brokers import Mosquitto
from tests.gateways import COUNTY, DEADLINE_S, EPOCH, SITE, Gateway, Ingest, now_ms, until

DESCRIPTOR = Descriptor(
    label=Label(en="Station square", zh_tw="站前廣場"),
    asset_id="P-0042",
    location=Location(lat=25.0478, lon=121.517),
)


def state(*, online: bool = True, interval_s: float = 5.0, epoch: int = EPOCH) -> State:
    return State(v=1, online=online, interval_s=interval_s, epoch=epoch, descriptor=DESCRIPTOR)


def will(name: str) -> Will:
    topic = Topic(COUNTY, SITE, name, "gateway", name, "state")
    return Will(topic=str(topic), payload=encode_state(state(online=False)), retain=True)


class Rows:
    """The `device` rows, read until they say what is expected."""

    def __init__(self, ingest: Ingest) -> None:
        self._ingest = ingest

    async def of(self, device: str) -> list[Point]:
        rows = await self._ingest.rows("device")
        return [row for row in rows if row.series.device == device]

    async def until(self, device: str, condition: Callable[[dict[str, object]], bool]) -> Point:
        """Return the newest row once it fulfils a condition."""
        found: list[Point] = []

        async def look() -> bool:
            found[:] = await self.of(device)
            return bool(found) and condition(dict(found[-1].fields))

        await until(look)
        return found[-1]

    async def until_status(self, device: str, status: str) -> Point:
        return await self.until(device, lambda fields: fields["status"] == status)


def sample(seq: int, *, epoch: int = EPOCH, age_ms: int = 0) -> Sample:
    return Sample(now_ms() - age_ms, epoch, seq, {"pm2_5": 1.0})


async def test_a_device_is_up_while_it_is_heard_and_unknown_after_its_gateways_will(
    local: Ingest, broker: Mosquitto
) -> None:
    rows = Rows(local)
    async with local.running(with_watch=True):
        async with Gateway(broker, "gw-1", will=will("gw-1")) as gateway:
            await gateway.tell("gw-1", state(), domain="gateway")
            await gateway.tell("aq-1", state())
            assert (await rows.until_status("gw-1", "up")).fields["up"] == 1
            assert (await rows.until_status("aq-1", "unknown")).fields["up"] == 0
            await gateway.send("aq-1", sample(0))
            row = await rows.until_status("aq-1", "up")
            assert row.series == ("device", COUNTY, SITE, "aq-1", "air")
            since, age_s = row.fields.pop("since"), row.fields.pop("age_s")
            assert isinstance(since, str)
            assert since.endswith("Z")
            assert isinstance(age_s, float)
            assert 0.0 <= age_s < DEADLINE_S
            assert row.fields == {
                "label": "站前廣場",
                "asset_id": "P-0042",
                "lat": 25.0478,
                "lon": 121.517,
                "gateway": "gw-1",
                "interval_s": 5.0,
                "up": 1,
                "status": "up",
                "state": 0,
                "incident": "",
                "flapping": 0,
                "gateway_up": 1,
            }
            await gateway.vanish()
            assert (await rows.until_status("gw-1", "down")).fields["up"] == 0
            assert (await rows.until_status("aq-1", "unknown")).fields["up"] == 0
        async with Gateway(broker, "gw-1", will=will("gw-1")) as gateway:
            await gateway.tell("gw-1", state(), domain="gateway")
            await rows.until_status("aq-1", "up")  # it was heard a moment ago


async def test_silence_makes_late_then_down(local: Ingest, broker: Mosquitto) -> None:
    rows = Rows(local)
    async with local.running(with_watch=True), Gateway(broker, "gw-1") as gateway:
        await gateway.tell("gw-1", state(), domain="gateway")
        await gateway.tell("aq-1", state(interval_s=0.1))
        await gateway.send("aq-1", sample(0))
        await rows.until_status("aq-1", "down")
        # A backlog says nothing of now; a sample of now does.
        await gateway.send("aq-1", sample(1, age_ms=60_000))
        await gateway.until_stored("aq-1", [1])
        await gateway.send("aq-1", sample(2))
        await rows.until_status("aq-1", "up")
        told = [row.fields["status"] for row in await rows.of("aq-1")]
    assert told == ["up", "late", "down", "up"]


async def test_a_retired_device_has_a_last_row(local: Ingest, broker: Mosquitto) -> None:
    rows = Rows(local)
    async with local.running(with_watch=True), Gateway(broker, "gw-1") as gateway:
        await gateway.tell("aq-1", state())
        await rows.until_status("aq-1", "unknown")
        await gateway.tell("aq-1", None)
        assert (await rows.until_status("aq-1", "retired")).fields["up"] == 0


async def test_every_device_is_written_again_and_again(tmp_path: Path, broker: Mosquitto) -> None:
    ingest_ = Ingest(tmp_path, broker, account="[watch]\nevery_s = 0.1")
    rows = Rows(ingest_)
    async with ingest_.running(with_watch=True), Gateway(broker, "gw-1") as gateway:
        await gateway.tell("gw-1", state(), domain="gateway")

        async def often() -> bool:
            return len(await rows.of("gw-1")) >= 4

        await until(often)
    assert len({row.time_ns for row in await rows.of("gw-1")}) >= 4


async def test_states_that_were_retained_before_it_started_are_known(
    local: Ingest, broker: Mosquitto
) -> None:
    async with Gateway(broker, "gw-1") as gateway:
        await gateway.tell("gw-1", state(), domain="gateway")
        await gateway.publish(str(gateway.topic("aq-9", channel="state")), b"{", retain=True)
        async with local.running(with_watch=True):
            await Rows(local).until_status("gw-1", "up")
            assert await Rows(local).of("aq-9") == []


async def test_gaps_new_epochs_and_clashing_rows_are_counted_and_told_once(
    local: Ingest, broker: Mosquitto, caplog: pytest.LogCaptureFixture
) -> None:
    async with local.running(with_watch=True), Gateway(broker, "gw-1") as gateway:
        assert local.watch is not None
        counts = local.watch.counts
        await gateway.tell("aq-1", state())
        await until(lambda: counts.states)
        begun_ms = now_ms()
        for seq in (0, 1, 5, 9, 6):
            moment = Sample(begun_ms + 10 * seq, EPOCH, seq, {"pm2_5": 1.0})
            await gateway.send("aq-1", moment)
        await until(lambda: counts.missing == 5)  # 2 3 4 7 8
        assert caplog.text.count("samples are missing: aq-1") == 1
        await gateway.send("aq-1", Sample(begun_ms + 90, EPOCH, 10, {"pm2_5": 1.0}))
        await until(lambda: counts.findings.clashes == 1)
        await gateway.send("aq-1", Sample(begun_ms + 200, EPOCH + 1, 0, {"pm2_5": 1.0}))
        await until(lambda: counts.findings.epochs == 1)


async def test_two_gateways_that_speak_for_one_device_are_told(
    local: Ingest, broker: Mosquitto, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        local.running(with_watch=True),
        Gateway(broker, "gw-1") as one,
        Gateway(broker, "gw-2") as two,
    ):
        assert local.watch is not None
        await one.tell("aq-1", state())
        await until(lambda: local.watch and local.watch.counts.states)
        await two.tell("aq-1", state(epoch=EPOCH - 1))
        await until(lambda: local.watch and local.watch.counts.disputes)
        await Rows(local).until("aq-1", lambda fields: fields["gateway"] == "gw-1")
        await two.tell("aq-1", state(epoch=EPOCH + 1))  # the newest epoch is the owner
        await Rows(local).until("aq-1", lambda fields: fields["gateway"] == "gw-2")
        await one.tell("aq-1", None)  # the replaced gateway's state is cleared
        disputes = local.watch.counts.disputes
        await one.send("aq-1", sample(0))
        await until(lambda: local.watch and local.watch.counts.disputes > disputes)
        assert (await Rows(local).of("aq-1"))[-1].fields["status"] != "retired"
    assert caplog.text.count("two gateways speak for one device: aq-1") == 1


async def test_another_start_goes_on_with_incidents_and_figures(
    ingest: Ingest, broker: Mosquitto
) -> None:
    rows = Rows(ingest)
    async with Gateway(broker, "gw-1") as gateway:
        async with ingest.running(with_watch=True):
            await gateway.tell("gw-1", state(), domain="gateway")
            for name in ("aq-1", "aq-2"):
                await gateway.tell(name, state())
                await gateway.send(name, sample(0))
                await rows.until_status(name, "up")
            await gateway.tell("aq-1", state(online=False))
            await rows.until("aq-1", lambda fields: fields["incident"] != "")

            async def kept() -> bool:
                return bool(await ingest.rows("incident"))

            await until(kept)  # not before it knows what there was
        (begun,) = await ingest.rows("incident")
        assert (begun.fields["open"], begun.series.domain) == (1, "air")
        days = {row.series.device: row.fields for row in await ingest.rows("device_day")}
        assert days["aq-2"]["received"] == 1
        async with ingest.running(with_watch=True):
            await gateway.send("aq-2", sample(1))

            async def restored() -> bool:
                assert ingest.watch is not None
                return ingest.watch.restored

            await until(restored)
            await rows.until(
                "aq-1",
                lambda fields: (
                    (fields["status"], fields["incident"]) == ("down", begun.fields["id"])
                ),
            )
            await gateway.tell("aq-1", state(epoch=EPOCH + 1))
            await gateway.send("aq-1", sample(0, epoch=EPOCH + 1))
            await rows.until_status("aq-1", "up")

            async def ended() -> bool:
                return [row.fields["open"] for row in await ingest.rows("incident")] == [0]

            await until(ended)
            await gateway.until_stored("aq-2", [1])
        (incident,) = await ingest.rows("incident")
        assert (incident.time_ns, incident.fields["id"]) == (begun.time_ns, begun.fields["id"])
        after = {row.series.device: row.fields for row in await ingest.rows("device_day")}
        assert (after["aq-2"]["received"], after["aq-1"]["received"]) == (2, 2)
        assert float(after["aq-2"]["up_s"]) >= float(days["aq-2"]["up_s"])
        (site,) = [
            row.fields for row in await ingest.rows("site_day_state") if row.series.domain == "air"
        ]
        assert site["received"] == 4


async def test_a_watch_that_was_held_blames_nobody(
    local: Ingest, broker: Mosquitto, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its clock goes on at once as after a pause of its process."""
    rows, held_s = Rows(local), 0.0
    async with local.running(with_watch=True), Gateway(broker, "gw-1") as gateway:
        watch = local.watch
        assert watch is not None
        monkeypatch.setattr(watch, "_now", lambda: Now(time.monotonic() + held_s, now_ms()))
        await gateway.tell("gw-1", state(interval_s=60.0), domain="gateway")
        await gateway.tell("aq-1", state(interval_s=60.0))
        await gateway.send("aq-1", sample(0))
        await rows.until_status("aq-1", "up")

        async def restored() -> bool:
            return watch.restored

        await until(restored)
        held_s = 600.0
        await rows.until_status("aq-1", "unknown")
        await gateway.send("aq-1", sample(1))
        await rows.until_status("aq-1", "up")
    assert await local.rows("incident") == []
    assert "down" not in [row.fields["status"] for row in await rows.of("gw-1")]


async def test_a_maintenance_window_is_taken_from_its_file_while_the_watch_runs(
    local: Ingest, broker: Mosquitto, caplog: pytest.LogCaptureFixture
) -> None:
    rows = Rows(local)
    windows = local.file.parent / "maintenance.toml"
    async with local.running(with_watch=True), Gateway(broker, "gw-1") as gateway:
        await gateway.tell("gw-1", state(), domain="gateway")
        await gateway.tell("aq-1", state(online=False))
        await rows.until_status("aq-1", "down")
        text = f'[[window]]\nid = "m-1"\ncounty = "{COUNTY}"\ndevice = "aq-1"\n'
        windows.write_text(f"{text}from = 2020-01-01T00:00:00\nto = 2019-01-01T00:00:00\n")
        await until(lambda: "must be after from" in caplog.text)
        windows.write_text(f"{text}from = 2020-01-01T00:00:00\nto = 2120-01-01T00:00:00Z\n")
        row = await rows.until_status("aq-1", "maintenance")
        assert (row.fields["up"], row.fields["state"], row.fields["incident"]) == (0, 4, "")
        windows.unlink()
        await rows.until_status("aq-1", "down")


async def test_the_watch_alone_in_its_process(local: Ingest, broker: Mosquitto) -> None:
    program = "import sys, pathlib, ingest.watch as w; sys.exit(w.main(pathlib.Path(sys.argv[1])))"
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", program, str(local.file))
    try:
        async with Gateway(broker, "gw-1") as gateway:
            await gateway.tell("gw-1", state(), domain="gateway")
            await until(local.rows_file.exists)
            await Rows(local).until_status("gw-1", "up")
            child.send_signal(signal.SIGTERM)
            async with asyncio.timeout(DEADLINE_S):
                assert await child.wait() == 0
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
