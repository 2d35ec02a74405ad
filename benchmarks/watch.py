"""The watch: what a city of retained states costs it, at the start and then on; and how often it cries wolf.

A real broker keeps the states, the watch is a process of its own on a real database. Beside it, without any of them,
a simulation of devices that lose adverts: silent for a while and taken for dead.
"""

from __future__ import annotations

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
from benchmarks.pace import Pace, late_words
from benchmarks.processes import BenchmarkFailed, Meter, Process, resident_mb
from benchmarks.stage import shipped_bounds, stage
from exchange.mqtt import Client, Message
from exchange.readings import Sample, encode_pack
from exchange.states import Descriptor, Label, Location, State, encode_state
from exchange.topics import Topic
from ingest.watch.liveness import Losses, down_s

BEHIND = 200  # devices of a gateway
EPOCH = 1_790_000_000_777
METRICS = {"lit": 60.0, "level": 60.0, "power": 60.0, "lamp_fault": 60.0}
_LOADED = "devices are known"
_LOAD_DEADLINE_S, _FILL_DEADLINE_S = 300.0, 600.0
_DAY_S = 86_400


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What is watched: so many lamps, each with a sample an interval, for so long."""

    devices: int = 200_000
    interval_s: float = 60.0
    seconds: int = 120


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
    cpu_percent: float
    """Of one core, while every device sends once an interval and rows are written."""
    peak_mb: float
    pace: str


class FalseDowns(msgspec.Struct, frozen=True, kw_only=True):
    """What became of devices that live and lose adverts."""

    device_days: float
    adverts: int
    loss: float
    downs: int
    patience: int
    """The most intervals that were waited in the end."""

    @property
    def in_100_000_days(self) -> float:
        """How many false alarms 100,000 device-days would have had."""
        return 100_000 * self.downs / self.device_days


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
            config = _config(seat.folder, port, seat.bucket.url, seat.bucket.token)
            command: list[str | Path] = [
                sys.executable,
                "-m",
                "onestreet.cli",
                "watch",
                "run",
                config,
            ]
            began_s = time.monotonic()
            async with Process(command, seat.folder / "log") as watch:
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
                rate_per_s = plan.devices / plan.interval_s
                pace = Pace(rate_per_s, lambda number: _send(city, plan, number))
                held_s = time.monotonic()
                await pace.run(round(rate_per_s * plan.seconds))
                cpu_s, held_s = meter.lap()["watch"], time.monotonic() - held_s
                return Watched(
                    devices=said.devices,
                    load_s=said.load_s,
                    first_s=waited_s,
                    load_cpu_s=load_cpu_s,
                    loaded_mb=loaded_mb,
                    messages_per_s=rate_per_s,
                    cpu_percent=100 * cpu_s / held_s,
                    peak_mb=resident_mb(watch.pid, peak=True),
                    pace=late_words(pace.late_s),
                )


def false_downs(
    *,
    devices: int,
    days: float,
    adverts: int,
    loss: float,
    random: Random,
    interval_s: float = 60.0,
    transport: str = "ble",
    learns: bool = True,
) -> FalseDowns:
    """Let devices live and lose adverts, `adverts` in an interval; count how often one is called down.

    Shape: an interval has a sample when one of its adverts arrives; without `learns` nobody's patience grows.
    """
    missing, downs, most = loss**adverts, 0, 0
    for _ in range(devices):
        losses, intervals = Losses(), 0
        for _ in range(round(days * _DAY_S / interval_s)):
            intervals += 1
            if random.random() < missing:
                continue
            silence_s = intervals * interval_s
            patience_s = down_s(interval_s, losses.patience(interval_s, transport))
            downs += silence_s > patience_s
            if learns:
                losses.note(silence_s, interval_s)
            intervals = 0
        most = max(most, losses.patience(interval_s, transport))
    return FalseDowns(
        device_days=devices * days, adverts=adverts, loss=loss, downs=downs, patience=most
    )


def wolves(device_days: int) -> list[FalseDowns]:
    """Return false alarms at a tenth of the adverts lost: one advert an interval, two, and five."""
    devices = max(device_days // 100, 1)
    days = device_days / devices
    return [
        false_downs(devices=devices, days=days, adverts=adverts, loss=0.1, random=Random(adverts))
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
        f"  {found.messages_per_s:,.0f} messages/s: {found.cpu_percent:.1f} % of a core,"
        f" peak {found.peak_mb:.0f} MB ({found.pace})"
    )
    lines += [
        f"  {100 * one.loss:.0f} % lost of {one.adverts} adverts/interval: {one.downs} false downs in"
        f" {one.device_days:,.0f} device-days ({one.in_100_000_days:.1f} in 100,000);"
        f" waits {one.patience} intervals at most"
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


def _send(city: Client, plan: Plan, number: int) -> bool:
    seq, lamp = divmod(number, plan.devices)
    values = {"lit": True, "level": 70.0, "power": 52.5, "lamp_fault": False}
    topic = _topic(lamp, "readings")
    sample = Sample(time.time_ns() // 1_000_000, EPOCH + 1000 * lamp, seq, values)
    return city.publish_soon(str(topic), encode_pack(topic, [sample]))


def _config(folder: Path, port: int, store: str, token: str) -> Path:
    secret = folder / "influx.token"
    secret.write_text(token)
    secret.chmod(0o600)
    file = folder / "ingest.toml"
    file.write_text(
        f'counties = ["{COUNTY}"]\nstore = "{store}"\nstore_token_file = "influx.token"\n'
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
