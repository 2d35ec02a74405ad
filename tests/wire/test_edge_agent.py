"""The edge agent on simulated buses and a real Mosquitto, with a witness that plays ingest."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from device_drivers.ble.bthome.driver import Driver as Bthome
from device_drivers.kit.driver import Reading, Value
from device_drivers.kit.registry import load
from device_drivers.links.modbus import open_modbus_rtu
from device_drivers.modbus.intesis_dali.driver import Driver as Dali
from device_drivers.serial.plantower_pms.driver import Driver as Plantower
from edge_agent import agent as agent_module
from edge_agent import buses as buses_module
from edge_agent import packs as packs_module
from edge_agent import uplink as uplink_module
from edge_agent.agent import Agent
from edge_agent.clock import Clock, ClockSettings
from edge_agent.outbox import Outbox
from edge_agent.uplink import Uplink
from exchange.delivery import BACKOFF_FIRST_S, BACKOFF_JITTER, PROOF_AGE_S, SILENCE_S, Key
from exchange.processes import Child
from exchange.readings import encode_pack
from exchange.receipts import Receipt
from onestreet.cli import main
from provisioning.authority import Authority
from provisioning.files import write_private, write_public
from simulators.line import Endpoint
from simulators.pytest_plugin import BluezBench
from simulators.serial_line import SerialLine
from tests.agents import (
    DEADLINE_S,
    GATEWAY,
    Monotonic,
    air,
    bay,
    json_lines,
    lamp,
    running_agent,
    until,
    witness,
    write_config,
)
from tests.brokers import Mosquitto
from tests.stepped_time import WrongTime

BAY = "C0:FF:EE:00:00:01"
AIR: dict[str, Value] = {"pm1": 7.0, "pm2_5": 11.0, "pm10": 18.0}
LAMP: dict[str, Value] = {"level": 40, "lit": True}
PARKED: dict[str, Value] = {"occupied": True, "distance": 0.31, "battery_voltage": 3.05}

Truths = list[Mapping[str, Value]]
Hosts = Callable[..., Any]


def twin(
    driver: str, settings: Mapping[str, object], world: dict[str, Value], truth: Truths
) -> Any:
    return load(driver).twin(settings, lambda: world, truth.append)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    with Mosquitto(tmp_path) as one:
        yield one


@pytest.fixture
def truths() -> dict[str, Truths]:
    return {}


@pytest.fixture
def lamps(modbus_line: Hosts, truths: dict[str, Truths]) -> Callable[..., dict[str, Any]]:
    """Host lamps on one RTU line and return the bus."""

    def host(*numbers: int, bus: str = "rs485") -> dict[str, Any]:
        twins = [
            twin("intesis_dali", {"short_address": n}, LAMP, truths.setdefault(f"lamp-{n}", []))
            for n in numbers
        ]
        return {"id": bus, "kind": "modbus-rtu", "port": modbus_line(*twins)["port"]}

    return host


@pytest.fixture
def air_box(serial_line: Hosts, truths: dict[str, Truths]) -> dict[str, Any]:
    """Host an air box on a serial line and return the bus."""
    truth = truths.setdefault("air-1", [])
    port = serial_line(twin("plantower_pms", {"mode": "active"}, AIR, truth))
    return {"id": "tty0", "kind": "serial", "port": port}


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Callable[[str], list[logging.LogRecord]]:
    """Return `logged(message)`: the agent's log lines that say so."""
    caplog.set_level("INFO", "edge_agent")

    def find(message: str) -> list[logging.LogRecord]:
        return [record for record in caplog.records if record.message == message]

    return find


Logged = Callable[[str], list[logging.LogRecord]]
Lamps = Callable[..., dict[str, Any]]


def extra(record: logging.LogRecord, name: str) -> Any:
    return vars(record)[name]


# ------------------------------------------------------------------------------------------- from buses to broker


async def test_three_buses_arrive_whole_and_in_order(
    tmp_path: Path,
    broker: Mosquitto,
    lamps: Lamps,
    air_box: dict[str, Any],
    bluez: BluezBench,
    truths: dict[str, Truths],
) -> None:
    truths["bay-1"] = []
    bluez.add(twin("bthome", {"address": BAY}, PARKED, truths["bay-1"]))
    buses = [air_box, lamps(1, 2), {"id": "radio", "kind": "ble"}]
    devices = [air("tty0"), lamp("rs485", 1), lamp("rs485", 2), bay("radio", BAY)]
    async with witness(broker) as seen:
        async with running_agent(write_config(tmp_path, broker, buses, devices)):
            await until(lambda: all(len(seen.of(device)) >= 2 for device in truths))
            await until(lambda: len(seen.of("lamp-1")) >= 10)
        for device, truth in truths.items():
            samples = seen.of(device)
            assert [sample.seq for sample in samples] == list(range(len(samples)))
            assert len({sample.epoch for sample in samples}) == 1
            times = [sample.time_ms for sample in samples]
            assert times == sorted(set(times))
            heard = [sample.metrics for sample in samples]
            said = [dict(values) for values in truth[: len(heard)]]
            # an advert that is met again 4 s later counts as a new one: so does BTHome, and a stall may be as long
            assert heard == (said if device != "bay-1" else [said[0]] * len(heard))
        assert {heard.device: heard.domain for heard in seen.packs} == {
            "air-1": "air",
            "lamp-1": "streetlight",
            "lamp-2": "streetlight",
            "bay-1": "parking",
            GATEWAY: "gateway",
        }
        metrics = seen.of(GATEWAY)[0].metrics
        assert metrics["bus_errors"] == 0
        assert metrics["disk_free"] > 0


async def test_states_are_retained_and_complete(
    tmp_path: Path, broker: Mosquitto, lamps: Lamps, air_box: dict[str, Any]
) -> None:
    devices = [
        air("tty0", settings={"model": "pms5003st"}),
        lamp(
            "rs485",
            1,
            label={"en": "Lamp 1", "zh-TW": "路燈一"},
            location={"lat": 25.0, "lon": 121.5, "alt": 7.5, "heading": 90},
            asset_id="P-0001",
            cabinet="C7",
            circuit="L2",
            township="63000050",
            serial="S/N 1",
            installed="2024-05-01",
        ),
    ]
    path = write_config(tmp_path, broker, [air_box, lamps(1)], devices)
    async with running_agent(path) as agent:
        await until(lambda: agent.uplink.connected and agent.outbox.depth)
        async with witness(broker) as seen:
            await until(lambda: {"air-1", "lamp-1", GATEWAY} <= seen.states.keys())
            await until(lambda: seen.of("lamp-1"))
            assert seen.retained == {"air-1", "lamp-1", GATEWAY}
            gateway, state = seen.states[GATEWAY], seen.states["lamp-1"]
            assert gateway.online
            assert gateway.since is not None
            assert gateway.interval_s == 600
            assert gateway.descriptor.label.zh_tw == "七號箱"
            assert gateway.descriptor.location is not None
            assert state.online
            assert state.since == gateway.since
            assert state.interval_s == 0.1
            assert state.epoch == seen.of("lamp-1")[0].epoch
            about = state.descriptor
            assert (about.maker, about.model, about.brand_origin) == (
                "Intesis",
                "INMBSDAL0640200",
                "ES",
            )
            assert (about.driver, about.transport) == ("intesis_dali", "modbus")
            assert (about.label.en, about.label.zh_tw) == ("Lamp 1", "路燈一")
            assert about.location is not None
            assert (about.location.alt, about.location.heading) == (7.5, 90)
            assert (about.asset_id, about.cabinet, about.circuit) == ("P-0001", "C7", "L2")
            assert (about.township, about.serial) == ("63000050", "S/N 1")
            assert about.installed == "2024-05-01"
            assert about.commands == ["set_level"]
            assert about.metrics["level"] == 0.1
            assert about.metrics.keys() >= seen.of("lamp-1")[0].metrics.keys()
            box = seen.states["air-1"].descriptor
            assert box.model == "pms5003st"
            assert "hcho" in box.metrics


async def test_a_state_learns_what_an_advertiser_sends(
    tmp_path: Path, broker: Mosquitto, bluez: BluezBench, truths: dict[str, Truths]
) -> None:
    truths["bay-1"] = []
    bluez.add(twin("bthome", {"address": BAY}, PARKED, truths["bay-1"]))
    path = write_config(
        tmp_path, broker, [{"id": "radio", "kind": "ble"}], [bay("radio", BAY, interval_s=0.1)]
    )
    async with witness(broker) as seen, running_agent(path):
        await until(lambda: len(seen.of("bay-1")) >= 3)
        await until(lambda: seen.states["bay-1"].descriptor.metrics)
        named = seen.states["bay-1"].descriptor.metrics
        assert named == dict.fromkeys(sorted(seen.of("bay-1")[0].metrics), 0.1)
        assert seen.states[GATEWAY].descriptor.metrics.keys() >= seen.of(GATEWAY)[0].metrics.keys()
        assert seen.state_changes["bay-1"] <= 2, "on connecting, and once it is learned"


async def test_a_device_that_is_no_longer_configured_is_retired(
    tmp_path: Path, broker: Mosquitto, lamps: Lamps, air_box: dict[str, Any]
) -> None:
    buses = [air_box, lamps(1)]
    both = write_config(tmp_path, broker, buses, [air("tty0"), lamp("rs485", 1)])
    async with running_agent(both) as agent:
        await until(lambda: agent.uplink.connected)
    async with witness(broker) as seen:
        await until(lambda: {"air-1", "lamp-1", GATEWAY} <= seen.states.keys())
    one = write_config(tmp_path, broker, [air_box], [air("tty0")])
    for _ in range(2):  # once is enough: the next start finds nothing more to retire
        async with running_agent(one) as agent:
            await until(lambda: agent.uplink.connected)
        async with witness(broker) as seen:
            await until(lambda: {"air-1", GATEWAY} <= seen.states.keys())
            assert "lamp-1" not in seen.states


async def test_a_device_is_not_retired_while_the_broker_refuses_that(
    tmp_path: Path,
    lamps: Lamps,
    air_box: dict[str, Any],
    logged: Logged,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(uplink_module, "BACKOFF_LAST_S", 0.3)
    monkeypatch.setenv("UPLINK_SECRET", "word")
    anything = "user ingest\ntopic readwrite #\nuser gw-1\ntopic readwrite #\n"
    accounts = {"gw-1": "word", "ingest": "ingest"}
    broker = Mosquitto(tmp_path, accounts=accounts, acl=anything, persistent=True)
    uplink = {"username": "gw-1", "password_env": "UPLINK_SECRET"}
    devices = [air("tty0"), lamp("rs485", 1)]
    with broker:
        both = write_config(tmp_path, broker, [air_box, lamps(1)], devices, uplink=uplink)
        async with running_agent(both) as agent:
            await until(lambda: agent.uplink.connected)
    broker.acl = f"{anything}topic deny city/+/+/+/+/streetlight/lamp-1/state\n"
    one = write_config(tmp_path, broker, [air_box], devices[:1], uplink=uplink)
    async with running_agent(one) as agent:
        with broker:
            await until(lambda: bool(logged("the broker refuses what is published")))
        assert not logged("a device was retired")
        broker.acl = anything
        with broker:
            await until(lambda: agent.uplink.connected)
            async with witness(broker, account=("ingest", "ingest")) as seen:
                await until(lambda: {"air-1", GATEWAY} <= seen.states.keys())
                assert "lamp-1" not in seen.states
    assert len(logged("a device was retired")) == 1


async def test_packs_in_cbor(tmp_path: Path, broker: Mosquitto, lamps: Lamps) -> None:
    path = write_config(
        tmp_path, broker, [lamps(1)], [lamp("rs485", 1)], delivery={"format": "cbor"}
    )
    async with witness(broker) as seen, running_agent(path) as agent:
        await until(lambda: len(seen.of("lamp-1")) >= 3)
        await until(lambda: agent.health.stored >= 3)
        assert all(not heard.payload.startswith(b"[") for heard in seen.packs)
        assert seen.of("lamp-1")[0].metrics["level"] == 40


# ------------------------------------------------------------------------------------------------------- receipts


async def test_only_a_receipt_lets_a_sample_go(
    tmp_path: Path, broker: Mosquitto, lamps: Lamps, logged: Logged
) -> None:
    path = write_config(tmp_path, broker, [lamps(1)], [lamp("rs485", 1)])
    async with witness(broker, answers=False) as seen, running_agent(path) as agent:
        await until(lambda: len(seen.of("lamp-1")) >= 5)
        first = [key for key in seen.keys if key.device == "lamp-1"][:5]
        assert agent.outbox.depth >= 6, "the gateway's own sample is in it, too"
        assert len(await agent.outbox.find(first)) == 5
        # what is nobody's, was never sent, or is no receipt lets nothing go
        epoch = first[0].epoch
        await seen.say(b"{")
        await seen.say(Receipt(v=1, stored={"lamp-1": [(epoch, 100_000, 200_000)]}))
        await seen.say(Receipt(v=1, stored={"lamp-1": [(epoch + 1, 0, 1000)], "no": [(1, 0, 9)]}))
        await seen.store([first[2], first[3]])
        await until(lambda: agent.health.stored == 2)
        left = await agent.outbox.find(first)
        assert [one.sample.seq for one in left] == [0, 1, 4]
        assert len(logged("a receipt was ignored")) == 1
        seen.answers = True
        await seen.store(seen.keys)


async def test_what_is_silent_is_sent_again_by_the_rules_only(
    tmp_path: Path, broker: Mosquitto, lamps: Lamps
) -> None:
    clock = Monotonic()
    path = write_config(
        tmp_path,
        broker,
        [lamps(1)],
        [lamp("rs485", 1, interval_s=600)],
        delivery={"drain_s": 0},
    )
    async with (
        witness(broker, answers=False) as seen,
        running_agent(path, monotonic_s=clock) as agent,
    ):

        async def again(after_s: float) -> list[Key]:
            """Move the clock and return what is sent because of it, before a marker of our own."""
            before = len(seen.keys)
            clock.now_s += after_s
            marker = f"marker-{secrets.token_hex(4)}"
            agent.uplink._wake_older.set()
            await agent.intake.put("air", marker, {"pm2_5": 1.0})
            await until(lambda: marker in {key.device for key in seen.keys})
            sent = [key for key in seen.keys[before:] if not key.device.startswith("marker")]
            await seen.store([key for key in seen.keys[before:] if key.device == marker])
            await until(lambda: marker not in {key.device for key in unsettled(agent)})
            return sent

        await until(lambda: {"lamp-1", GATEWAY} <= {key.device for key in seen.keys})
        lamp_key, gateway_key = Key("lamp-1", seen.of("lamp-1")[0].epoch, 0), seen.keys[0]
        assert await again(0) == []
        assert await again(BACKOFF_FIRST_S - 1) == [], "the back-off has not passed"
        # the back-off has passed, and a receipt for what was sent later is old enough
        sent = await again(1 + BACKOFF_FIRST_S * BACKOFF_JITTER + PROOF_AGE_S)
        assert sorted(sent) == sorted({lamp_key, gateway_key})
        first, second = (heard for heard in seen.packs if heard.device == "lamp-1")
        assert first.samples == second.samples, "a resend is the same row"
        steps = [await again(25) for _ in range(3)]
        assert steps[:2] == [[], []], "the second back-off is twice as long"
        assert sorted(steps[2]) == sorted({lamp_key, gateway_key})
        assert agent.uplink.delivery.resends == 4
        await seen.store([lamp_key])
        await until(lambda: lamp_key not in unsettled(agent))
        assert await again(10 * BACKOFF_FIRST_S) == [gateway_key]


def unsettled(agent: Any) -> list[Key]:
    return [key for sending in agent.uplink.delivery._sendings.values() for key in sending.keys]


async def test_with_no_receipt_at_all_only_the_oldest_is_probed(
    tmp_path: Path, broker: Mosquitto, lamps: Lamps
) -> None:
    clock = Monotonic()
    path = write_config(
        tmp_path, broker, [lamps(1)], [lamp("rs485", 1)], delivery={"drain_s": 0, "pack_samples": 1}
    )
    async with (
        witness(broker, answers=False) as seen,
        running_agent(path, monotonic_s=clock) as agent,
    ):
        await until(lambda: len(seen.keys) >= 10)
        oldest = unsettled(agent)[0]  # two go out at a time: the first to come need not be it
        clock.now_s += SILENCE_S + BACKOFF_FIRST_S * (1 + BACKOFF_JITTER)
        agent.uplink._wake_older.set()
        await until(lambda: seen.keys.count(oldest) == 2)
        count = len(set(seen.keys))
        await until(lambda: len(set(seen.keys)) >= count + 10)  # the agent went round many times
        assert len(seen.keys) == len(set(seen.keys)) + 1
        assert (agent.uplink.delivery.probes, agent.uplink.delivery.resends) == (1, 0)


async def test_the_window_is_never_exceeded(
    tmp_path: Path, broker: Mosquitto, lamps: Lamps
) -> None:
    path = write_config(
        tmp_path, broker, [lamps(1)], [lamp("rs485", 1)], delivery={"window": 10, "drain_s": 0.1}
    )
    async with witness(broker, answers=False) as seen, running_agent(path) as agent:
        await until(lambda: agent.outbox.depth >= 25)
        assert len(seen.keys) == 10
        await seen.store(seen.keys[:4])
        await until(lambda: len(seen.keys) == 14)
        seen.answers = True
        await seen.store(seen.keys)
        await until(lambda: agent.outbox.depth < 10)
    assert len(seen.keys) == len(set(seen.keys))


async def test_a_refusal_is_final_and_logged_with_its_id(
    tmp_path: Path, broker: Mosquitto, lamps: Lamps, logged: Logged
) -> None:
    path = write_config(
        tmp_path, broker, [lamps(1)], [lamp("rs485", 1)], delivery={"pack_samples": 1}
    )
    async with witness(broker, answers=False) as seen, running_agent(path) as agent:
        await until(lambda: len(seen.packs) >= 5)
        lamps_packs = [heard for heard in seen.packs if heard.device == "lamp-1"]
        (refused,) = lamps_packs[0].keys
        (unread,) = lamps_packs[1].keys
        await seen.refuse([refused], "EX-R-007")
        await seen.cannot_read(lamps_packs[1].payload, "EX-R-001")
        await seen.cannot_read(b"of somebody else", "EX-R-002")
        await until(lambda: agent.health.refused == 2)
        assert await agent.outbox.find([refused, unread]) == []
        said = [
            (extra(record, "sample"), extra(record, "requirement"))
            for record in logged("a sample was refused")
        ]
        assert said == [(refused, "EX-R-007"), (unread, "EX-R-001")]
        seen.answers = True
        await seen.store(seen.keys)
    assert seen.keys.count(refused) == 1


# ---------------------------------------------------------------------------------------------------- the uplink


async def test_a_broker_that_is_not_there_yet_gets_everything_later(
    tmp_path: Path, lamps: Lamps, logged: Logged, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uplink_module, "BACKOFF_LAST_S", 0.5)
    broker = Mosquitto(tmp_path)
    broker.start()
    broker.stop()
    path = write_config(tmp_path, broker, [lamps(1)], [lamp("rs485", 1)], delivery={"drain_s": 0.1})
    async with running_agent(path) as agent:
        await until(lambda: agent.outbox.depth >= 15)
        assert not agent.uplink.connected
        (down,) = logged("the uplink is down")
        assert "refused" in extra(down, "reason").lower()
        with broker:
            async with witness(broker) as seen:
                await until(lambda: agent.uplink.connected)
                await until(lambda: len(seen.of("lamp-1")) >= 16)
                await until(lambda: agent.outbox.depth == 0)
                samples = seen.of("lamp-1")
                assert sorted(sample.seq for sample in samples) == list(range(len(samples)))
                assert max(len(heard.samples) for heard in seen.packs) >= 10, "backlog in big packs"
            broker.kill()
            await until(lambda: not agent.uplink.connected)
            broker.start()
            await until(lambda: agent.uplink.connected)
    assert len(logged("connected")) == 2


async def test_a_broker_that_refuses_the_password(
    tmp_path: Path, lamps: Lamps, logged: Logged, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uplink_module, "BACKOFF_LAST_S", 0.3)
    monkeypatch.setenv("UPLINK_SECRET", "right")
    accounts = {"gw-1": "wrong", "ingest": "ingest"}
    broker = Mosquitto(tmp_path, accounts=accounts)
    broker.start()
    uplink = {"username": "gw-1", "password_env": "UPLINK_SECRET"}
    path = write_config(tmp_path, broker, [lamps(1)], [lamp("rs485", 1)], uplink=uplink)
    async with running_agent(path) as agent:
        await until(lambda: agent.outbox.depth >= 15)
        assert broker.log.count("not authorised") >= 2, "it has tried again"
        assert not agent.uplink.connected
        (down,) = logged("the uplink is down")
        assert "authori" in extra(down, "reason").lower()
        assert down.exc_info is None
        assert "right" not in down.getMessage() + extra(down, "reason")
        broker.stop()
        accounts["gw-1"] = "right"
        with broker:
            async with witness(broker, account=("ingest", "ingest")) as seen:
                await until(lambda: len(seen.of("lamp-1")) >= 16)
                await until(lambda: agent.outbox.depth == 0)
                samples = seen.of("lamp-1")
                assert sorted(sample.seq for sample in samples) == list(range(len(samples)))


async def test_a_password_that_is_replaced_while_it_runs_is_taken_up(
    tmp_path: Path, lamps: Lamps, logged: Logged, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uplink_module, "BACKOFF_LAST_S", 0.3)
    word = tmp_path / "password"
    word.touch(mode=0o600)
    word.write_text("old")
    broker = Mosquitto(tmp_path, accounts={"gw-1": "new"})
    uplink = {"username": "gw-1", "password_file": "password"}
    drain = {"drain_s": 0.1}  # nobody sends receipts here
    with broker:
        path = write_config(
            tmp_path, broker, [lamps(1)], [lamp("rs485", 1)], delivery=drain, uplink=uplink
        )
        async with running_agent(path) as agent:
            await until(lambda: "not authorised" in broker.log)
            word.unlink()
            await until(lambda: len(logged("the uplink is down")) == 2)
            assert "broker.password_file" in extra(logged("the uplink is down")[1], "reason")
            word.touch(mode=0o600)
            word.write_text("new")
            await until(lambda: agent.uplink.connected)
            word.unlink()
    assert len(logged("could not say goodbye")) == 1, "it ends in peace all the same"


async def test_a_broker_that_takes_nothing_is_told_of_once_and_gets_it_all_later(
    tmp_path: Path, lamps: Lamps, logged: Logged, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It lets us in, and denies what we publish: Mosquitto closes the connection each time."""
    monkeypatch.setattr(uplink_module, "BACKOFF_LAST_S", 0.3)
    accounts = {"gw-1": "word", "ingest": "ingest"}
    everything = "user ingest\ntopic readwrite #\n"
    broker = Mosquitto(tmp_path, accounts=accounts, acl=f"{everything}user gw-1\ntopic read #\n")
    monkeypatch.setenv("UPLINK_SECRET", "word")
    uplink = {"username": "gw-1", "password_env": "UPLINK_SECRET"}
    broker.start()
    path = write_config(tmp_path, broker, [lamps(1)], [lamp("rs485", 1)], uplink=uplink)
    async with running_agent(path) as agent:
        await until(lambda: broker.log.count(" as gw-1 ") >= 3)
        await until(lambda: agent.outbox.depth >= 5)
        (refused,) = logged("the broker refuses what is published")
        assert "NOT_AUTHORIZED" in extra(refused, "reason")
        broker.stop()
        broker.acl = f"{everything}user gw-1\ntopic readwrite #\n"
        with broker:
            async with witness(broker, account=("ingest", "ingest")) as seen:
                await until(lambda: len(seen.of("lamp-1")) >= 6)
                await until(lambda: agent.outbox.depth == 0)
                seqs = sorted(sample.seq for sample in seen.of("lamp-1"))
                assert seqs == list(range(len(seqs)))


async def test_a_certificate_that_the_broker_refuses_is_named_and_told_once(
    tmp_path: Path,
    lamps: Lamps,
    logged: Logged,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With TLS 1.3 the broker's no comes after our handshake, as an alert."""
    monkeypatch.setattr(uplink_module, "BACKOFF_LAST_S", 0.1)
    ours = Authority.create(tmp_path / "ours", "ours")
    write_pair(tmp_path, "server", *ours.issue("broker", "server", names=["localhost"]))
    another = Authority.create(tmp_path / "another", "another")
    write_pair(tmp_path, "gateway", *another.issue("tw-tpe.gw-1", "client"))
    lines = [
        f"cafile {tmp_path / 'ours' / 'ca.pem'}",
        f"certfile {tmp_path / 'server.pem'}",
        f"keyfile {tmp_path / 'server.key'}",
        "require_certificate true",
    ]
    files = {"ca_file": "ours/ca.pem", "certificate_file": "gateway.pem", "key_file": "gateway.key"}
    uplink = {"host": "localhost", "timeout_s": 1.5, "tls": files}
    tried: list[float] = []
    monkeypatch.setattr(Uplink, "_client", counted(Uplink._client, tried))
    with Mosquitto(tmp_path, lines) as broker:
        path = write_config(
            tmp_path,
            broker,
            [lamps(1)],
            [lamp("rs485", 1)],
            delivery={"drain_s": 0.1},
            uplink=uplink,
        )
        async with running_agent(path):
            await until(lambda: len(tried) >= 3)
    (down,) = logged("the uplink is down")
    assert "alert unknown ca" in extra(down, "reason")
    assert [record for record in caplog.records if record.name == "exchange.mqtt"] == []


def write_pair(folder: Path, name: str, key: bytes, certificate: bytes) -> None:
    write_private(folder / f"{name}.key", key)
    write_public(folder / f"{name}.pem", certificate)


def counted(method: Callable[[Any], Any], calls: list[float]) -> Callable[[Any], Any]:
    def call(*arguments: Any) -> Any:
        calls.append(time.monotonic())
        return method(*arguments)

    return call


async def test_a_wiped_broker_is_found_out(
    tmp_path: Path, lamps: Lamps, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Samples that a broker acknowledged and lost come again; none is doubted for longer than needed."""
    monkeypatch.setattr(uplink_module, "BACKOFF_LAST_S", 0.3)
    clock = Monotonic()
    with Mosquitto(tmp_path) as broker:
        path = write_config(tmp_path, broker, [lamps(1)], [lamp("rs485", 1)])
        async with running_agent(path, monotonic_s=clock) as agent:
            async with witness(broker, answers=False) as before:
                await until(lambda: len(before.keys) >= 5)
            broker.kill()
            broker.start()
            async with witness(broker) as seen:
                await until(lambda: agent.health.stored >= 1)
                assert not set(before.keys) <= set(seen.keys)
                clock.now_s += BACKOFF_FIRST_S * (1 + BACKOFF_JITTER)
                stored = agent.health.stored
                await until(lambda: agent.health.stored > stored + 1)
                clock.now_s += PROOF_AGE_S

                def come_again() -> bool:
                    # what was on its way at the jump proves nothing: a later sample's receipt ages on
                    clock.now_s += 0.1
                    return set(before.keys) <= set(seen.keys)

                await until(come_again)
                await until(lambda: agent.outbox.depth <= 1)


async def test_an_uplink_that_meets_a_bug_goes_on(
    tmp_path: Path, broker: Mosquitto, lamps: Lamps, logged: Logged, monkeypatch: pytest.MonkeyPatch
) -> None:
    mended = asyncio.Event()

    def encode(*arguments: Any) -> bytes:
        if not mended.is_set():
            raise IndexError("a bug")
        return encode_pack(*arguments)

    monkeypatch.setattr(packs_module, "encode_pack", encode)
    monkeypatch.setattr(uplink_module, "BACKOFF_LAST_S", 0.3)
    path = write_config(tmp_path, broker, [lamps(1)], [lamp("rs485", 1)])
    async with witness(broker) as seen, running_agent(path) as agent:
        await until(lambda: agent.outbox.depth >= 10)
        (down, *_) = logged("the uplink is down")
        assert extra(down, "reason") == "a bug"
        assert down.exc_info, "a bug is logged with its traceback"
        mended.set()
        await until(lambda: len(seen.of("lamp-1")) >= 11)
        await until(lambda: agent.outbox.depth == 0)
        assert agent.uplink.delivery.unreceipted == 0
        assert len(seen.keys) == len(set(seen.keys))


async def test_a_clock_that_is_set_back_is_told_by_the_state(
    tmp_path: Path, broker: Mosquitto, lamps: Lamps, logged: Logged
) -> None:
    path = write_config(tmp_path, broker, [lamps(1)], [lamp("rs485", 1)])
    time_source = WrongTime()
    clock = Clock(source=time_source)
    async with witness(broker) as seen, running_agent(path, clock=clock):
        await until(lambda: len(seen.of("lamp-1")) >= 3)
        time_source.wrong_ms = -3_600_000
        await until(lambda: len({key.epoch for key in seen.keys if key.device == "lamp-1"}) == 2)
        old, new = sorted({key.epoch for key in seen.keys if key.device == "lamp-1"})
        assert new == old + 1, "above every epoch before it, although the clock says less"
        await until(lambda: seen.states["lamp-1"].epoch == new)
        (record,) = logged("a new epoch begins")
        assert extra(record, "device") == "lamp-1"


async def test_a_clock_that_nobody_set_is_told_by_the_state_and_by_the_will(
    tmp_path: Path, broker: Mosquitto, lamps: Lamps
) -> None:
    path = write_config(tmp_path, broker, [lamps(1)], [lamp("rs485", 1)])
    time_source = WrongTime()
    time_source.synchronised = False
    clock = Clock(ClockSettings(synchronised="kernel", wait_s=600), time_source)
    async with witness(broker) as seen, running_agent(path, clock=clock) as agent:
        await until(lambda: GATEWAY in seen.states and agent.outbox.undated >= 3)
        assert not seen.states[GATEWAY].clock_known
        assert not seen.packs, "samples wait for the time"
        given = agent.uplink.will
        time_source.synchronised = True
        await until(lambda: seen.states[GATEWAY].clock_known and seen.of("lamp-1"))
        assert agent.uplink.will != given
        await until(lambda: agent.uplink.connected and broker.log.count(f" as {GATEWAY} ") == 2)
        samples = seen.of("lamp-1")
        assert [sample.seq for sample in samples] == list(range(len(samples)))


# ------------------------------------------------------------------------------------------------- troubled buses


async def test_a_port_that_is_missing_at_the_start_stops_nobody(
    tmp_path: Path,
    broker: Mosquitto,
    lamps: Lamps,
    logged: Logged,
    truths: dict[str, Truths],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(DEADLINE_S)
        manager.bind("\0" + (name := f"test-{secrets.token_hex(8)}"))
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
        monkeypatch.setattr(buses_module, "REOPEN_LAST_S", 0.5)
        port = tmp_path / "ttyAIR"
        buses = [lamps(1), {"id": "tty0", "kind": "serial", "port": str(port)}]
        path = write_config(tmp_path, broker, buses, [air("tty0"), lamp("rs485", 1)])
        async with witness(broker) as seen, running_agent(path):
            await until(lambda: len(seen.of("lamp-1")) >= 3)
            assert manager.recv(100) == b"READY=1"
            (lost,) = logged("bus lost")
            assert extra(lost, "bus") == "tty0"
            assert str(port) in extra(lost, "reason")
            assert lost.exc_info is None
            async with SerialLine(twin("plantower_pms", {}, AIR, []), port):
                await until(lambda: seen.of("air-1"))
                assert seen.of("air-1")[0].seq == 0
            assert len(logged("device is back")) == 1


async def test_a_line_that_is_unplugged_comes_back(
    tmp_path: Path, broker: Mosquitto, lamps: Lamps, logged: Logged, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buses_module, "REOPEN_LAST_S", 0.3)
    port = tmp_path / "ttyAIR"
    buses = [lamps(1), {"id": "tty0", "kind": "serial", "port": str(port)}]
    path = write_config(tmp_path, broker, buses, [air("tty0"), lamp("rs485", 1)])
    truth: Truths = []
    box = twin("plantower_pms", {}, AIR, truth)
    async with witness(broker) as seen:
        async with SerialLine(box, port):
            running = running_agent(path)
            agent = await running.__aenter__()
            await until(lambda: seen.of("air-1"))
        await until(lambda: logged("bus lost"))
        lit = len(seen.of("lamp-1"))
        await until(lambda: len(seen.of("lamp-1")) > lit + 3)
        assert agent.health.devices["air-1"].failing == "LinkLost"
        assert agent.health.bus_errors >= 1
        async with SerialLine(box, port):
            count = len(truth)
            await until(lambda: len(seen.of("air-1")) > count)
            await running.__aexit__(None, None, None)
        samples = seen.of("air-1")
        assert [sample.seq for sample in samples] == list(range(len(samples)))
        assert agent.health.devices["air-1"].failing is None
        assert len(logged("device is back")) == 1


@pytest.mark.parametrize(
    "error", [ValueError("no number"), IndexError("list index"), TimeoutError()]
)
async def test_a_driver_with_a_bug_costs_its_device_only(
    tmp_path: Path,
    broker: Mosquitto,
    lamps: Lamps,
    air_box: dict[str, Any],
    logged: Logged,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    async def fail(*_: object) -> Reading:
        raise error

    real = Dali.read

    async def read(self: Dali, bus: Any) -> Reading:
        return await (fail() if self._first == 200 else real(self, bus))

    monkeypatch.setattr(Dali, "read", read)
    monkeypatch.setattr(Plantower, "read", fail)
    devices = [air("tty0"), lamp("rs485", 1), lamp("rs485", 2)]
    path = write_config(tmp_path, broker, [air_box, lamps(1, 2)], devices)
    async with witness(broker) as seen, running_agent(path) as agent:
        await until(lambda: len(seen.of("lamp-1")) >= 5)
        broken = agent.health.devices["lamp-2"], agent.health.devices["air-1"]
        await until(lambda: all(device.errors >= 2 for device in broken))
        records = logged("device does not answer as it should")
        assert sorted(extra(record, "device") for record in records) == ["air-1", "lamp-2"]
        for record in records:
            if isinstance(error, TimeoutError):
                assert extra(record, "kind") == "DeviceSilent"
            else:
                assert extra(record, "kind") == "DriverFailed"
                assert extra(record, "reason") == f"{type(error).__name__}: {error}"
                assert record.exc_info, "a bug is logged with its traceback"
        assert agent.health.devices["lamp-1"].errors == 0
        assert agent.health.devices["air-1"].errors < 200, "it does not spin"


async def test_a_driver_that_hands_in_nonsense_costs_its_device_only(
    tmp_path: Path, broker: Mosquitto, lamps: Lamps, logged: Logged, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Dali.read

    async def read(self: Dali, bus: Any) -> Reading:
        if self._first == 200:
            return Reading({"level": None})  # type: ignore[dict-item]  # what the test is about
        if self._first == 300:
            return Reading({"level": float("nan"), "lit": True, "x-intesis-n": 10**40})
        return await real(self, bus)

    monkeypatch.setattr(Dali, "read", read)
    devices = [lamp("rs485", number) for number in (1, 2, 3)]
    path = write_config(tmp_path, broker, [lamps(1, 2, 3)], devices)
    async with witness(broker) as seen, running_agent(path) as agent:
        await until(lambda: len(seen.of("lamp-1")) >= 5)
        await until(lambda: len(seen.of("lamp-3")) >= 3)
        assert seen.of("lamp-2") == []
        assert agent.health.devices["lamp-2"].errors >= 2
        (record,) = logged("device does not answer as it should")
        assert extra(record, "reason").startswith("not a reading: Expected")
        sample = seen.of("lamp-3")[0]
        assert sample.metrics == {"lit": True}
        assert sample.quality == "bad:fault(level);bad:fault(x-intesis-n)"


async def test_a_radio_driver_with_a_bug_and_a_radio_that_vanishes(
    tmp_path: Path,
    broker: Mosquitto,
    bluez: BluezBench,
    logged: Logged,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    second = BAY[:-1] + "2"
    real = Bthome.hear

    def hear(self: Bthome, advert: Any) -> Reading | None:
        if self.address == second:
            raise KeyError(advert.rssi_dbm)
        return real(self, advert)

    monkeypatch.setattr(Bthome, "hear", hear)
    for address in (BAY, second):
        bluez.add(twin("bthome", {"address": address}, PARKED, []))
    devices = [bay("radio", BAY), bay("radio", second, 2)]
    path = write_config(tmp_path, broker, [{"id": "radio", "kind": "ble"}], devices)
    async with witness(broker) as seen, running_agent(path) as agent:
        await until(lambda: len(seen.of("bay-1")) >= 2)
        assert agent.health.devices["bay-2"].errors >= 1
        (record,) = logged("device does not answer as it should")
        assert extra(record, "device") == "bay-2"
        assert extra(record, "reason").startswith("KeyError: ")


async def test_a_driver_that_hangs_holds_up_nobody(
    tmp_path: Path, broker: Mosquitto, lamps: Lamps, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buses_module, "HUNG_S", 0.2)
    real = Dali.read

    async def read(self: Dali, bus: Any) -> Reading:
        if self._first == 200:
            await asyncio.Event().wait()
        return await real(self, bus)

    monkeypatch.setattr(Dali, "read", read)
    path = write_config(tmp_path, broker, [lamps(1, 2)], [lamp("rs485", 1), lamp("rs485", 2)])
    async with witness(broker) as seen, running_agent(path) as agent:
        await until(lambda: len(seen.of("lamp-1")) >= 5)
        assert agent.health.devices["lamp-2"].failing == "DeviceSilent"


async def test_a_link_that_raises_what_it_should_not_is_opened_again(
    tmp_path: Path, broker: Mosquitto, lamps: Lamps, logged: Logged, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts = 0

    def open_rtu(port: str, **more: Any) -> Any:
        nonlocal attempts
        attempts += 1
        if attempts < 4:
            raise AttributeError("a library's bug")
        return open_modbus_rtu(port, **more)

    monkeypatch.setattr(buses_module, "open_modbus_rtu", open_rtu)
    monkeypatch.setattr(buses_module, "REOPEN_FIRST_S", 0.02)
    path = write_config(tmp_path, broker, [lamps(1)], [lamp("rs485", 1)])
    async with witness(broker) as seen, running_agent(path):
        await until(lambda: len(seen.of("lamp-1")) >= 3)
    (lost,) = logged("bus lost")
    assert extra(lost, "reason") == "AttributeError: a library's bug"
    assert lost.exc_info


# ------------------------------------------------------------------------------------------ the process, its end


def agent_process(folder: Path, config: Path) -> Child:
    return Child("agent", [sys.executable, "-m", "edge_agent", str(config)], folder)


async def test_a_killed_agent_is_told_by_its_will_and_goes_on_with_everything(
    tmp_path: Path, broker: Mosquitto, lamps: Lamps
) -> None:
    path = write_config(tmp_path, broker, [lamps(1)], [lamp("rs485", 1)])
    child = agent_process(tmp_path, path)
    async with witness(broker, answers=False) as seen:
        await child.start()
        try:
            await until(lambda: len(seen.of("lamp-1")) >= 5)
            before = seen.states[GATEWAY]
            count, kept = len(seen.keys), set(seen.keys)
            child.kill()
            await until(lambda: not seen.states[GATEWAY].online)
            will = seen.states[GATEWAY]
            assert will.since is None
            assert will.descriptor == before.descriptor
            assert will.epoch == before.epoch
            assert seen.states["lamp-1"].online, "unknown, not down: that is for the watch to say"
            await until(lambda: seen.states[GATEWAY].online)
            assert seen.states["lamp-1"].epoch == seen.of("lamp-1")[0].epoch
            seen.answers = True
            await seen.store(seen.keys)
            await until(lambda: kept <= set(seen.keys[count:]))  # the outbox came along
            samples = seen.of("lamp-1")
            assert [sample.seq for sample in samples] == list(range(len(samples)))
            assert len({sample.epoch for sample in samples}) == 1
        finally:
            assert await child.stop(DEADLINE_S)


async def test_sigterm_drains_and_says_goodbye(
    tmp_path: Path, broker: Mosquitto, lamps: Lamps, truths: dict[str, Truths]
) -> None:
    path = write_config(tmp_path, broker, [lamps(1)], [lamp("rs485", 1)])
    child = agent_process(tmp_path, path)
    async with witness(broker, answers=False) as seen:
        await child.start()
        await until(lambda: len(seen.of("lamp-1")) >= 5)
        os.kill(child.pid, signal.SIGTERM)
        stopping = asyncio.create_task(child.stop(DEADLINE_S))
        seen.answers = True
        await seen.store(seen.keys)
        assert await stopping
        await until(lambda: not seen.states[GATEWAY].online)
        assert seen.states[GATEWAY].since is None
        heard = [sample.metrics for sample in seen.of("lamp-1")]
        assert heard == [dict(values) for values in truths["lamp-1"]], "nothing read is left behind"
    last = json_lines(tmp_path / "agent.log")[-1]
    assert (last["message"], last["outbox"]) in {("stopped", 0), ("stopped", 1)}
    outbox = Outbox(tmp_path / "state" / "outbox")
    await outbox.open()
    assert await outbox.count(excluding_domain="gateway") == 0
    await outbox.close()


async def test_a_drain_has_a_deadline_and_keeps_what_it_could_not_deliver(
    tmp_path: Path, broker: Mosquitto, lamps: Lamps, logged: Logged
) -> None:
    path = write_config(tmp_path, broker, [lamps(1)], [lamp("rs485", 1)], delivery={"drain_s": 0.3})
    async with witness(broker, answers=False) as seen:
        async with running_agent(path):
            await until(lambda: len(seen.of("lamp-1")) >= 3)
        await until(lambda: not seen.states[GATEWAY].online)
        kept = {key for key in seen.keys if key.device == "lamp-1"}
    assert len(logged("not everything was receipted; it stays in the outbox")) == 1
    outbox = Outbox(tmp_path / "state" / "outbox")
    await outbox.open()
    there = {Key(one.device, one.sample.epoch, one.sample.seq) for one in await outbox.after(0, 99)}
    await outbox.close()
    assert kept <= there


async def test_a_drain_without_a_broker_ends_in_time(
    tmp_path: Path, broker: Mosquitto, lamps: Lamps, logged: Logged
) -> None:
    path = write_config(
        tmp_path,
        broker,
        [lamps(1)],
        [lamp("rs485", 1)],
        delivery={"drain_s": 0.3},
        uplink={"timeout_s": 1.0},
    )
    async with running_agent(path) as agent:
        await until(lambda: agent.uplink.connected)
        broker.kill()
        await until(lambda: agent.outbox.depth >= 3)
    assert len(logged("could not say goodbye")) == 1
    assert len(logged("stopped")) == 1


@pytest.mark.parametrize("during", ["connecting", "sending"])
async def test_a_cancellation_that_a_library_swallows_does_not_keep_it_alive(
    tmp_path: Path, broker: Mosquitto, lamps: Lamps, monkeypatch: pytest.MonkeyPatch, during: str
) -> None:
    """As asyncio.wait_for does before Python 3.12, when what it waits for ends at the same moment."""
    monkeypatch.setattr(agent_module, "CANCEL_AGAIN_S", 0.2)
    real, swallowing = Agent._states, asyncio.Event()
    calls = 0

    async def states(self: Agent) -> Any:
        nonlocal calls
        calls += 1
        if calls == {"connecting": 1, "sending": 2}[during]:
            swallowing.set()
            with suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
        return await real(self)

    monkeypatch.setattr(Agent, "_states", states)
    path = write_config(tmp_path, broker, [lamps(1)], [lamp("rs485", 1)], delivery={"drain_s": 0})
    async with witness(broker), running_agent(path, deadline_s=5.0) as agent:
        if during == "sending":
            await until(lambda: agent.uplink.connected)
            agent.uplink.republish_states()
        await asyncio.wait_for(swallowing.wait(), DEADLINE_S)


# ----------------------------------------------------------------------------------------- onestreet edge read


def read(capsys: pytest.CaptureFixture[str], path: Path, *words: str) -> tuple[int, str, str]:
    status = main(["edge", "read", *words, "--config", str(path)])
    out, err = capsys.readouterr()
    return status, out, err


def test_edge_read_of_every_bus(
    tmp_path: Path,
    broker: Mosquitto,
    lamps: Lamps,
    serial_line: Hosts,
    modbus_line: Hosts,
    bluez: BluezBench,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bluez.add(twin("bthome", {"address": BAY}, PARKED, []))
    tcp: Endpoint = modbus_line(twin("intesis_dali", {"short_address": 5}, LAMP, []), tcp=True)
    passive = {"mode": "passive"}
    buses = [
        {"id": "tty0", "kind": "serial", "port": serial_line(twin("plantower_pms", {}, AIR, []))},
        {
            "id": "tty1",
            "kind": "serial",
            "port": serial_line(twin("plantower_pms", passive, AIR, [])),
        },
        lamps(1),
        {"id": "net", "kind": "modbus-tcp", "host": tcp["host"], "port": tcp["port"]},
        {"id": "radio", "kind": "ble"},
    ]
    devices = [
        air("tty0"),
        air("tty1", 2, settings=passive),
        lamp("rs485", 1),
        lamp("net", 5),
        bay("radio", BAY),
    ]
    path = write_config(tmp_path, broker, buses, devices)
    for device, metric, value in (
        ("air-1", "pm2_5", 11.0),
        ("air-2", "pm2_5", 11.0),
        ("lamp-1", "level", 40),
        ("lamp-5", "lit", True),
        ("bay-1", "occupied", True),
    ):
        status, out, err = read(capsys, path, device)
        assert (status, err) == (0, ""), device
        answer = json.loads(out)
        assert answer["device"] == device
        assert answer["metrics"][metric] == value
        assert answer["quality"] is None


def test_edge_read_of_what_does_not_answer(
    tmp_path: Path, broker: Mosquitto, lamps: Lamps, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = {"id": "tty0", "kind": "serial", "port": str(tmp_path / "ttyNONE")}
    bus = lamps(1) | {"timeout_s": 0.1}
    path = write_config(
        tmp_path, broker, [missing, bus], [air("tty0"), lamp("rs485", 1), lamp("rs485", 9)]
    )
    status, out, err = read(capsys, path, "lamp-9", "--timeout", "0.5")
    assert (status, out) == (1, "")
    assert err.startswith("lamp-9: no reading 讀取失敗: DeviceRefused: ")
    status, out, err = read(capsys, path, "air-1", "--timeout", "0.5")
    assert (status, out) == (1, "")
    assert err.startswith("air-1: no reading 讀取失敗: LinkLost: ")
    assert "ttyNONE" in err
