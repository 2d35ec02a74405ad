"""A broken gateway is replaced: one command in the office, one code at the pole, with the real services and agents."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path

import aiomqtt
import pytest

from device_drivers.kit.registry import load
from device_drivers.kit.twin import Physics
from edge_agent.enrolment import CERTIFICATE, CONFIG, KEY, enrol
from exchange.configuration import toml_table
from exchange.enrolment import Code, read_code
from exchange.processes import Child
from exchange.tls import Tls
from provisioning.access import gateway_user
from provisioning.office import opened
from tests.agents import running_agent, until
from tests.enrolments import BY_KEY, BY_PASSWORD, COUNTY, DEADLINE_S, ONESTREET, Bureau, command
from tests.offices import Party, lets_in, service_party

NEW = "gw-9"
BOX = "box-7"
WORLD = {"pm2_5": 12.0, "pm1": 8.0, "pm10": 20.0}


@pytest.fixture
def bureau(tmp_path: Path) -> Bureau:
    return Bureau(tmp_path)


@pytest.fixture
def street(tmp_path: Path, serial_line: Callable[..., str]) -> Path:
    """The configuration of a gateway with one air box, as it was written for the old one: a template, and a row."""
    physics: Physics = lambda: WORLD  # noqa: E731 - the twin's one question
    port = serial_line(load("plantower_pms").twin({"mode": "active"}, physics, lambda _: None))
    folder = tmp_path / "as it was"
    folder.mkdir()
    (folder / "盒子.csv").write_text(f"id,asset_id\n{BOX},A-0007\n", encoding="utf-8")
    tables = [
        toml_table("[gateway]", id="someone", county="tw-khh", site="else", state_dir="x", interval_s=1.0),
        toml_table("[broker]", host="127.0.0.1", keepalive_s=7),
        "# nobody waits for receipts here\n" + toml_table("[delivery]", drain_s=0.0),
        toml_table("[[bus]]", id="tty", kind="serial", port=port),
        toml_table("[template.box]", domain="air", driver="plantower_pms", bus="tty", interval_s=1.0),
        toml_table("[[inventory]]", file="盒子.csv", template="box"),
    ]  # fmt: skip
    (folder / CONFIG).write_text("\n".join(tables), encoding="utf-8")
    return folder / CONFIG


@asynccontextmanager
async def watching(bureau: Bureau) -> AsyncIterator[None]:
    """Run the watch."""
    config = str(bureau.folder / "services" / "watch" / "ingest.toml")
    child = Child("watch", [*ONESTREET, "watch", "run", config], bureau.logs)
    await child.start()
    try:
        yield
    finally:
        await child.stop(DEADLINE_S)


def rows(bureau: Bureau, measurement: str, device: str = BOX) -> list[dict[str, object]]:
    """Return what the store holds of a device, oldest first."""
    if not bureau.store.exists():
        return []
    query = "SELECT fields FROM points WHERE measurement = ? AND device = ? ORDER BY time_ns"
    try:
        with closing(sqlite3.connect(f"file:{bureau.store}?mode=ro", uri=True)) as shell:
            return [json.loads(fields) for (fields,) in shell.execute(query, (measurement, device))]
    except sqlite3.OperationalError:  # its tables are being made
        return []


def owner(bureau: Bureau) -> tuple[object, object]:
    """Return which gateway the watch sees behind the box, and how the box is."""
    last = (rows(bureau, "device") or [{}])[-1]
    return last.get("gateway"), last.get("status")


def epochs(bureau: Bureau) -> list[int]:
    return sorted({int(str(row["epoch"])) for row in rows(bureau, "air")})


async def enrolled(code: Code, into: Path) -> Path:
    """Enrol a gateway, and return its configuration."""
    await asyncio.to_thread(enrol, code, into, state_dir=into / "state", patience_s=20.0)
    return into / CONFIG


def own_party(box: Path, bureau: Bureau, gateway: str) -> Party:
    """Return an enrolled gateway as its box makes it."""
    files = Tls(ca_file=box / "ca.pem", certificate_file=box / CERTIFICATE, key_file=box / KEY)
    return Party(gateway_user(COUNTY, gateway), bureau.ports[0], files)


async def retained(bureau: Bureau, last: str) -> set[str]:
    """Return the topics of all retained states; `last` is one of them, asked for again when all have come."""
    found: list[str] = []
    with opened(bureau.folder) as office:
        watch = service_party(bureau.folder, office.towns[0].broker, "watch")
    async with asyncio.timeout(DEADLINE_S), watch.client() as client:
        await client.subscribe(f"city/v1/{COUNTY}/+/+/+/+/state", qos=1)
        await client.subscribe(last, qos=1)
        async for message in client.messages:
            if message.retain:
                found.append(str(message.topic))
            if found.count(last) == 2:
                break
    return set(found)


async def test_a_new_gateway_takes_the_place_of_a_broken_one(
    bureau: Bureau, street: Path, tmp_path: Path
) -> None:
    into = ["--into", str(bureau.folder)]
    kept = await command("town", "gateway", "configure", f"{COUNTY}/{BY_KEY}", str(street), *into)
    assert (kept.status, kept.err) == (0, "")
    assert "kept edge.toml, 盒子.csv" in kept.out
    async with bureau.serving(), bureau.running():
        async with watching(bureau):
            old = tmp_path / "old"
            config = await enrolled(bureau.code(), old)
            assert (old / "盒子.csv").read_bytes() == (street.parent / "盒子.csv").read_bytes()
            assert "# nobody waits for receipts here" in config.read_text("utf-8")
            async with running_agent(config) as agent:
                assert (agent.config.gateway.id, agent.config.broker.keepalive_s) == (BY_KEY, 7)
                await until(lambda: owner(bureau) == (BY_KEY, "up"), DEADLINE_S)
                await until(lambda: epochs(bureau), DEADLINE_S)
                words = ["replace", f"{COUNTY}/{BY_KEY}", NEW, "--address", bureau.address, *into]
                said = await command("town", "gateway", *words)
                assert said.status == 0, said.out + said.err
                assert "2 retained states emptied" in said.out
                await until(lambda: not agent.uplink.connected, DEADLINE_S)
                assert not await lets_in(bureau.ports[0], own_party(old, bureau, BY_KEY).context)
                await until(lambda: owner(bureau)[1] == "retired", DEADLINE_S)
            before = epochs(bureau)
            (line,) = [line for line in said.out.splitlines() if line.startswith("LOCALHOST")]
            new = await enrolled(read_code(line), tmp_path / "new")
            async with running_agent(new) as agent:
                assert agent.config.gateway.id == NEW
                assert [one.id for one in agent.config.device] == [BOX]
                await until(lambda: owner(bureau) == (NEW, "up"), DEADLINE_S)
                await until(lambda: len(epochs(bureau)) > len(before), DEADLINE_S)
        root = f"city/v1/{COUNTY}/street/{NEW}"
        left = await retained(bureau, f"{root}/gateway/{NEW}/state")
        assert left == {f"{root}/gateway/{NEW}/state", f"{root}/air/{BOX}/state"}
    assert epochs(bureau)[: len(before)] == before, "history goes on"
    assert min(epochs(bureau)[len(before) :]) > max(before)
    town = (bureau.folder / "towns" / f"{COUNTY}.toml").read_text("utf-8")
    assert f'id = "{NEW}"' in town
    assert f'id = "{BY_KEY}"' not in town
    assert "a comment that stays" in town


async def test_under_the_same_name_the_old_one_is_thrown_out_at_once(
    bureau: Bureau, tmp_path: Path
) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    async with bureau.serving(), bureau.running():
        await enrolled(bureau.code(), old)
        party = own_party(old, bureau, BY_KEY)
        async with party.client(identifier="any") as client:
            words = ["replace", f"{COUNTY}/{BY_KEY}", "--same-name", "--address", bureau.address]
            said = await command("town", "gateway", *words, "--into", str(bureau.folder))
            assert said.status == 0, said.out + said.err
            assert "retained states" not in said.out, "they are the new one's now"
            with pytest.raises(aiomqtt.MqttError):
                async with asyncio.timeout(DEADLINE_S):
                    async for _ in client.messages:
                        pass
        assert not await lets_in(party.port, party.context)
        (line,) = [line for line in said.out.splitlines() if line.startswith("LOCALHOST")]
        await enrolled(read_code(line), new)
        assert await lets_in(party.port, own_party(new, bureau, BY_KEY).context)
        assert not await lets_in(party.port, party.context)


async def test_a_gateway_with_a_password_is_replaced_too(bureau: Bureau, tmp_path: Path) -> None:
    code = bureau.code(BY_PASSWORD)
    async with bureau.serving(), bureau.running():
        old = await enrolled(code, tmp_path / "old")
        word = (old.parent / "password").read_text().strip()
        user, port = gateway_user(COUNTY, BY_PASSWORD), bureau.ports[1]
        context = Tls(ca_file=old.parent / "ca.pem").context("test", "tls")
        assert await lets_in(port, context, user, word)
        words = ["replace", f"{COUNTY}/{BY_PASSWORD}", "--same-name", "--address", bureau.address]
        said = await command("town", "gateway", *words, "--into", str(bureau.folder))
        assert said.status == 0, said.out + said.err
        assert not await lets_in(port, context, user, word)
        (line,) = [line for line in said.out.splitlines() if line.startswith("LOCALHOST")]
        new = await enrolled(read_code(line), tmp_path / "new")
        assert await lets_in(port, context, user, (new.parent / "password").read_text().strip())


async def test_a_broker_that_is_away_is_asked_later(bureau: Bureau) -> None:
    into = ["--into", str(bureau.folder)]
    said = await command("town", "gateway", "replace", f"{COUNTY}/{BY_KEY}", NEW, *into)
    assert said.status == 0, said.out + said.err
    assert f"then: onestreet town gateway clear {COUNTY}/{BY_KEY} --site street" in said.out
    async with bureau.running():
        later = await command("town", "gateway", "clear", f"{COUNTY}/{BY_KEY}", *into)
        assert (later.status, later.err) == (0, "")
        assert "0 retained states emptied" in later.out
        refused = await command("town", "gateway", "clear", f"{COUNTY}/{NEW}", *into)
        assert refused.status == 2
        assert "must be revoked, or gone" in refused.err
