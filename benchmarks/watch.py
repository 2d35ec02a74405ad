"""The watch: what a city of retained states costs it, at the start and then on; and how often it cries wolf.

A real broker with the shipped bounds keeps the states, the watch is a process of its own on a real database. One
client stands in for all gateways; ingest does not run beside it. Without any of them: devices that lose adverts.
"""

from __future__ import annotations

import asyncio
import json
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import NamedTuple

import msgspec

from benchmarks.backlog import COUNTY, SITE, connected, settings
from benchmarks.lost_adverts import FalseDowns, false_downs
from benchmarks.pace import Pace, late_words
from benchmarks.processes import BenchmarkFailed, Meter, Process, resident_mb
from benchmarks.stage import shipped_bounds, stage
from exchange.mqtt import Client, Message
from exchange.readings import Sample, encode_pack
from exchange.states import Descriptor, Label, Location, State, encode_state
from exchange.topics import Topic
from ingest.config import load_config, store_of
from tests.influx import Bucket

BEHIND = 200  # devices of a gateway
EPOCH = 1_790_000_000_777
VALUES = {"lit": True, "level": 70.0, "power": 52.5, "lamp_fault": False}
METRICS = {"lit": 60.0, "level": 60.0, "power": 60.0, "lamp_fault": 60.0}
_LOADED = "devices are known"
_LOAD_DEADLINE_S, _FILL_DEADLINE_S = 300.0, 600.0
_DOWN_DEADLINE_S = 180.0


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What is watched: so many lamps, each with a sample an interval, for so long."""

    devices: int = 200_000
    interval_s: float = 60.0
    seconds: int = 240

    @property
    def silent(self) -> range:
        """The lamps that say one thing and no more."""
        return range(7, self.devices, max(self.devices // 100, 1))


class Watched(msgspec.Struct, frozen=True, kw_only=True):
    """What it cost."""

    devices: int
    load_s: float
    """From the connection to the newest device."""
    first_s: float
    """From exec to there."""
    load_cpu_s: float
    loaded_mb: float
    messages_per_s: float
    up_cpu_percent: float
    """Of one core, while every device comes up: in the first interval."""
    cpu_percent: float
    """... and while all send once an interval, and rows are written."""
    peak_mb: float
    silent: int
    down_s: float
    """From the last sample of a lamp that falls silent to its row that says `down`, at most."""
    pace: str


async def measure(plan: Plan) -> Watched:
    """Watch such a city. Raises: BenchmarkFailed."""
    with stage(shipped_bounds()) as scene:
        port = scene.broker.port
        async with connected(Client(settings(port, "city"), (), _ignore)) as city:
            for number, (topic, payload) in enumerate(_states(plan)):
                if not city.publish_soon(str(topic), payload, retain=True):
                    await city.drain(_FILL_DEADLINE_S)
                    await city.publish(str(topic), payload, retain=True)
                if number % 1000 == 999:
                    await city.drain(_FILL_DEADLINE_S)
            await city.drain(_FILL_DEADLINE_S)
            seat = scene.seat("watch")
            config = _config(seat.folder, port, seat.bucket)
            program = [sys.executable, "-m", "onestreet.cli", "watch", "run"]
            began_s = time.monotonic()
            async with Process([*program, config], seat.folder / "log") as watch:
                meter = Meter({"watch": watch.pid})
                said = await watch.until(
                    lambda: _loaded(seat.folder / "log"), _LOADED, deadline_s=_LOAD_DEADLINE_S
                )
                assert said is not None
                waited_s = time.monotonic() - began_s
                expected = plan.devices + math.ceil(plan.devices / BEHIND)
                if said.devices != expected:
                    raise BenchmarkFailed(f"{said.devices} devices are known, {expected} there are")
                await watch.until_at_rest(deadline_s=_LOAD_DEADLINE_S)
                load_cpu_s, loaded_mb = meter.lap()["watch"], resident_mb(watch.pid)
                town = _Town(city, plan)
                up_percent, _ = await _held(town, meter, plan.interval_s)
                percent, pace = await _held(town, meter, plan.seconds - plan.interval_s)
                down_s = await _until_down(town, config)
                return Watched(
                    devices=said.devices,
                    load_s=said.load_s,
                    first_s=waited_s,
                    load_cpu_s=load_cpu_s,
                    loaded_mb=loaded_mb,
                    messages_per_s=plan.devices / plan.interval_s,
                    up_cpu_percent=up_percent,
                    cpu_percent=percent,
                    peak_mb=resident_mb(watch.pid, peak=True),
                    silent=len(plan.silent),
                    down_s=down_s,
                    pace=pace,
                )


class _Town:
    """The lamps; `sent` is how often one of them had its turn."""

    def __init__(self, city: Client, plan: Plan) -> None:
        self.plan = plan
        self.sent = 0
        self.last_ms: dict[str, int] = {}
        """Of those that fell silent, when they were heard last."""
        self._city = city

    def send(self, _number: int) -> bool:
        """Have the next lamp send; False when there is no room."""
        seq, lamp = divmod(self.sent, self.plan.devices)
        topic, now_ms = _topic(lamp, "readings"), time.time_ns() // 1_000_000
        is_silent = lamp in self.plan.silent
        if not is_silent or not seq:
            sample = Sample(now_ms, EPOCH + 1000 * lamp, seq, VALUES)
            if not self._city.publish_soon(str(topic), encode_pack(topic, [sample])):
                return False
            if is_silent:
                self.last_ms[topic.device] = now_ms
        self.sent += 1
        return True


async def _held(town: _Town, meter: Meter, seconds: float) -> tuple[float, str]:
    """Return what part of a core the watch takes while all send for a time, and how the pace was."""
    pace = Pace(town.plan.devices / town.plan.interval_s, town.send)
    meter.lap()
    began_s = time.monotonic()
    await pace.run(round(pace.rate_per_s * seconds))
    return 100 * meter.lap()["watch"] / (time.monotonic() - began_s), late_words(pace.late_s)


async def _until_down(town: _Town, config: Path) -> float:
    """Return the longest time from a lamp's last sample to the row that says so. Raises: BenchmarkFailed."""
    store = store_of(load_config(config), config)
    end_s = time.monotonic() + _DOWN_DEADLINE_S
    longest_ms = 0
    try:
        for device, last_ms in town.last_ms.items():
            while True:
                rows = [row async for row in store.rows("device", device=device)]
                down = [row.time_ms for row in rows if row.fields["status"] == "down"]
                if down:
                    longest_ms = max(longest_ms, min(down) - last_ms)
                    break
                if time.monotonic() > end_s:
                    says = [row.fields["status"] for row in rows]
                    raise BenchmarkFailed(f"{device} is silent, and its rows say {says}")
                await asyncio.sleep(1.0)
    finally:
        await store.close()
    return longest_ms / 1000


def wolves(device_days: int) -> list[FalseDowns]:
    """Return false alarms at a tenth of the adverts lost: one advert an interval, two, and five."""
    return [
        false_downs(device_days=device_days, adverts=adverts, loss=0.1, random=Random(adverts))
        for adverts in (1, 2, 5)
    ]


def table(found: Watched, simulated: list[FalseDowns]) -> str:
    """Return the figures for people."""
    lines = [f"the watch, {found.devices:,} devices:"]
    lines.append(
        f"  load {found.load_s:.1f} s from the connection, {found.first_s:.1f} s from exec until it says so;"
        f" {found.load_cpu_s:.1f} s CPU, {found.loaded_mb:.0f} MB"
    )
    lines.append(
        f"  {found.messages_per_s:,.0f} messages/s: {found.up_cpu_percent:.1f} % of a core while all come up,"
        f" {found.cpu_percent:.1f} % then; peak {found.peak_mb:.0f} MB ({found.pace})"
    )
    lines.append(
        f"  {found.silent} fall silent: down in the store after {found.down_s:.1f} s at most"
    )
    lines += [
        f"  {100 * one.loss:.0f} % lost of {one.adverts} adverts/interval: {one.downs} false downs in"
        f" {one.device_days:,.0f} device-days ({one.in_100_000_days:.1f} in 100,000);"
        f" most are down after {one.patience} intervals, none after more than {one.most_patience}"
        for one in simulated
    ]
    return "\n".join(lines)


def _states(plan: Plan) -> Iterator[tuple[Topic, bytes]]:
    for number in range(plan.devices):
        if number % BEHIND == 0:
            gateway = f"gw-{number // BEHIND}"
            own = Topic(COUNTY, SITE, gateway, "gateway", gateway, "state")
            yield own, encode_state(State(v=1, online=True, interval_s=60.0, epoch=EPOCH))
        yield _topic(number, "state"), encode_state(_state(plan, number))


def _state(plan: Plan, number: int) -> State:
    descriptor = Descriptor(
        maker="Acme",
        model="L2",
        brand_origin="TW",
        serial=f"A1B2-{number:06d}",
        firmware="1.4",
        transport="modbus",
        label=Label(en=f"Lamp {number}", zh_tw=f"大安路燈 {number}"),
        asset_id=f"大安-{number:06d}",
        cabinet=f"C-{number // 40}",
        circuit="3",
        location=Location(lat=25.0 + number % 1000 / 1e5, lon=121.5 + number // 1000 / 1e4),
        township="大安區",
        metrics=METRICS,
        commands=["set_level"],
    )
    return State(
        v=1,
        online=True,
        interval_s=plan.interval_s,
        epoch=EPOCH + 1000 * number,
        descriptor=descriptor,
    )


def _topic(number: int, channel: str) -> Topic:
    gateway = f"gw-{number // BEHIND}"
    return Topic(COUNTY, SITE, gateway, "streetlight", f"lamp-{number:06d}", channel)  # type: ignore[arg-type]  # ours


def _config(folder: Path, port: int, bucket: Bucket) -> Path:
    secret = folder / "influx.token"
    secret.write_text(bucket.token)
    secret.chmod(0o600)
    file = folder / "ingest.toml"
    file.write_text(
        f'counties = ["{COUNTY}"]\nstore = "{bucket.url}"\nstore_token_file = "influx.token"\n'
        f'[broker]\nhost = "127.0.0.1"\nport = {port}\nclient_id = "watched"\n'
    )
    return file


class _Loaded(NamedTuple):
    devices: int
    load_s: float


def _loaded(log: Path) -> _Loaded | None:
    """Return what the watch's log says of its load, once it does."""
    for line in log.read_text().splitlines():
        if _LOADED in line and line.endswith("}"):
            said = json.loads(line)
            return _Loaded(int(said["message"].split()[0]), float(said["load_s"]))
    return None


def _ignore(_messages: list[Message], _generation: int) -> None:
    """Nothing is subscribed."""
