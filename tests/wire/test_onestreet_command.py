"""`onestreet command` at a real broker, with a device behind it that does as the test says."""

from __future__ import annotations

import asyncio
import json
import ssl
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import aiomqtt
import pytest

from exchange.commands import Command, Result, Status, decode_command, encode_result
from exchange.errors import ConfigError
from exchange.states import Descriptor, State, encode_state
from onestreet.command_issuing import run
from provisioning.authority import Authority
from provisioning.files import write_private, write_public
from tests.brokers import Mosquitto
from tests.ports import free_port

GATEWAY = "city/v1/tw-tpe/street/gw-1/streetlight/lamp-1"
RUN = """
import json, sys
from onestreet import command_issuing
vars(command_issuing).update(json.loads(sys.argv[1]))
sys.exit(command_issuing.run(sys.argv[2:]))
"""
Answers = Callable[[Command], list[tuple[Status, str]]]


class Ran(NamedTuple):
    """One run of the command."""

    status: int
    out: str
    err: str


async def give(*words: str, **haste: float) -> Ran:
    """Run the command; `haste` are constants of it, for a test in which nothing comes however long it waits."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        RUN,
        json.dumps(haste),
        *words,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(60):
        out, err = await process.communicate()
    assert process.returncode is not None
    return Ran(process.returncode, out.decode(), err.decode())


class Device:
    """A lamp that has a state and answers commands."""

    def __init__(self, client: aiomqtt.Client, answers: Answers) -> None:
        self.commands: list[Command] = []
        self.topics: list[str] = []
        self._client, self._answers = client, answers

    async def state(
        self, topic: str = GATEWAY, *, epoch: int = 1, commands: tuple[str, ...] = ("set_level",)
    ) -> None:
        state = State(
            v=1,
            online=True,
            since=datetime.now(UTC),
            interval_s=60,
            epoch=epoch,
            descriptor=Descriptor(commands=list(commands)),
        )
        await self._client.publish(f"{topic}/state", encode_state(state), qos=1, retain=True)

    async def listen(self) -> None:
        async for message in self._client.messages:
            assert isinstance(message.payload, bytes)
            command = decode_command(message.payload)
            self.commands.append(command)
            self.topics.append(str(message.topic))
            results = str(message.topic).replace("/commands", "/results")
            for status, reason in self._answers(command):
                result = Result(
                    v=1,
                    id=command.id,
                    status=status,
                    at=datetime.now(UTC),
                    reason=reason,
                    readback={"level": 40} if status == "done" else {},
                )
                await self._client.publish(results, encode_result(result), qos=1)


@asynccontextmanager
async def device(
    broker: Mosquitto,
    *answers: Status,
    account: tuple[str, str] | None = None,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[Device]:
    username, password = account or (None, None)
    async with aiomqtt.Client(
        "localhost" if tls else broker.host,
        broker.port,
        username=username,
        password=password,
        tls_context=tls,
        timeout=20.0,
    ) as client:
        one = Device(client, lambda _command: [(status, f"so {status}") for status in answers])
        await client.subscribe("city/v1/+/+/+/+/+/commands", qos=1)
        await one.state()
        listening = asyncio.create_task(one.listen())
        try:
            yield one
        finally:
            while not listening.done():
                listening.cancel()
                await asyncio.wait([listening], timeout=0.2)
            (ended,) = await asyncio.gather(listening, return_exceptions=True)
            if isinstance(ended, Exception):
                raise ended


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    with Mosquitto(tmp_path) as one:
        yield one


def at(broker: Mosquitto, *more: str) -> list[str]:
    return ["--broker", f"mqtt://{broker.host}:{broker.port}", *more]


async def test_a_command_is_given_and_its_result_is_the_exit_status(broker: Mosquitto) -> None:
    async with device(broker, "accepted", "done") as one:
        await one.state("city/v1/tw-tpe/street/gw-0/streetlight/lamp-1", epoch=0)
        ran = await give("lamp-1", "set_level", *at(broker, "--issued-by", "夜班"), "level=40")
        assert ran.status == 0, ran.err
        (command,) = one.commands
        assert (command.name, command.args, command.issued_by) == (
            "set_level",
            {"level": 40},
            "夜班",
        )
        assert 59 < (command.expires_at - command.issued_at).total_seconds() < 61
        said = json.loads(ran.out)
        assert (said["device"], said["status"], said["readback"]) == (
            "lamp-1",
            "done",
            {"level": 40},
        )
        assert said["id"] == str(command.id)
        assert "已受理" in ran.err


@asynccontextmanager
async def long_way(broker: Mosquitto, packet_s: float) -> AsyncIterator[int]:
    """Give a port from which each packet of the broker takes so long to come."""

    async def to_broker(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(4096):
            writer.write(data)

    async def packet(reader: asyncio.StreamReader) -> bytes:
        head, length, shift = await reader.readexactly(1), 0, 0
        while True:
            head += (byte := await reader.readexactly(1))
            length += (byte[0] & 0x7F) << shift
            shift += 7
            if byte[0] < 0x80:
                return head + await reader.readexactly(length)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream, up = await asyncio.open_connection(broker.host, broker.port)
        forth = asyncio.create_task(to_broker(reader, up))
        try:
            while True:
                data = await packet(upstream)
                await asyncio.sleep(packet_s)
                writer.write(data)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            forth.cancel()
            up.close()
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


@pytest.mark.parametrize("newest", ["gw-0", "gw-1"])
async def test_on_a_long_way_the_newest_of_its_gateways_gets_the_command(
    broker: Mosquitto, newest: str
) -> None:
    async with device(broker, "done") as one, long_way(broker, 0.4) as port:
        for gateway in ("gw-0", "gw-1"):
            topic = GATEWAY.replace("gw-1", gateway)
            await one.state(topic, epoch=2 if gateway == newest else 1)
        url = f"mqtt://127.0.0.1:{port}"
        ran = await give("lamp-1", "set_level", "level=40", "--broker", url)
        assert ran.status == 0, ran.err
        assert [topic.split("/")[4] for topic in one.topics] == [newest]


@pytest.mark.parametrize(
    ("answer", "status", "words"),
    [("failed", 1, "執行失敗"), ("expired", 4, "已逾時"), ("rejected", 5, "被拒絕")],
)
async def test_what_did_not_happen_is_told(
    broker: Mosquitto, answer: Status, status: int, words: str
) -> None:
    async with device(broker, answer):
        ran = await give("lamp-1", "set_level", "level=40", *at(broker, "--county", "tw-tpe"))
        assert ran.status == status
        assert words in ran.err
        assert f"so {answer}" in ran.err
        assert json.loads(ran.out)["status"] == answer


async def test_one_that_nobody_answers_ends_when_it_has_expired(broker: Mosquitto) -> None:
    async with device(broker) as one:
        words = ["lamp-1", "set_level", "level=40", *at(broker, "--expires", "1")]
        ran = await give(*words, GRACE_S=1.0)
        assert (ran.status, ran.out) == (6, "")
        assert "逾時仍沒有回覆" in ran.err
        assert len(one.commands) == 1


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["lamp-1", "blink"], 2, "set_level"),
        (["lamp-1", "set_level"], 2, "level=0…100"),
        (["lamp-1", "set_level", "level=140"], 2, "0 … 100"),
        (["lamp-1", "set_level", "level=true"], 2, "0 … 100"),
        (["lamp-1", "set_level", "level=high"], 2, "0 … 100"),
        (["lamp-1", "set_level", "level=1", "fade=2"], 2, "level=0…100"),
        (["lamp-9", "set_level", "level=1"], 6, "找不到設備狀態"),
    ],
)
async def test_what_the_device_would_reject_is_not_sent(
    broker: Mosquitto, words: list[str], status: int, said: str
) -> None:
    async with device(broker, "done") as one:
        ran = await give(*words, *at(broker))
        assert (ran.status, ran.out) == (status, "")
        assert said in ran.err
        assert one.commands == []


async def test_a_device_of_two_counties_has_to_be_told_apart(broker: Mosquitto) -> None:
    async with device(broker, "done") as one:
        await one.state(GATEWAY.replace("tw-tpe", "tw-khh"))
        ran = await give("lamp-1", "set_level", "level=40", *at(broker))
        assert ran.status == 2
        assert "tw-khh, tw-tpe" in ran.err
        assert one.commands == []
        ran = await give("lamp-1", "set_level", "level=40", *at(broker, "--county", "tw-khh"))
        assert ran.status == 0
        assert len(one.commands) == 1


async def test_a_broker_that_is_not_there_or_refuses(tmp_path: Path, broker: Mosquitto) -> None:
    url = f"mqtt://127.0.0.1:{free_port()}"
    ran = await give("lamp-1", "set_level", "level=40", "--broker", url, CONNECT_S=1.0)
    assert ran.status == 3
    assert "無法連線" in ran.err
    (tmp_path / "locked").mkdir()
    with Mosquitto(tmp_path / "locked", accounts={"ops": "right"}) as locked:
        word = tmp_path / "word"
        word.write_text("wrong")
        word.chmod(0o600)
        url = f"mqtt://ops@{locked.host}:{locked.port}"
        ran = await give("lamp-1", "set_level", "--broker", url, "--password-file", str(word))
        assert ran.status == 3
        assert "wrong" not in ran.err


async def test_with_tls_a_password_and_a_configuration(tmp_path: Path) -> None:
    authority = Authority.create(tmp_path / "office", "office")
    key, certificate = authority.issue("broker", "server", names=["localhost"])
    write_private(tmp_path / "server.key", key)
    write_public(tmp_path / "server.pem", certificate)
    lines = [
        f"cafile {tmp_path / 'office' / 'ca.pem'}",
        f"certfile {tmp_path / 'server.pem'}",
        f"keyfile {tmp_path / 'server.key'}",
    ]
    word = tmp_path / "word"
    word.write_text("secret")
    word.chmod(0o600)
    ca = str(tmp_path / "office" / "ca.pem")
    with Mosquitto(tmp_path, lines, accounts={"ops": "secret"}) as broker:
        tls = ssl.create_default_context(cafile=ca)
        async with device(broker, "done", account=("ops", "secret"), tls=tls):
            url = f"mqtts://ops@localhost:{broker.port}"
            doors = ["--broker", url, "--ca", ca, "--password-file", str(word)]
            first = await give("lamp-1", "set_level", "level=40", *doors)
            config = tmp_path / "ops.toml"
            config.write_text(
                f'county = "tw-tpe"\n[broker]\nhost = "localhost"\nport = {broker.port}\n'
                'username = "ops"\npassword_file = "word"\ntls = { ca_file = "office/ca.pem" }\n'
            )
            second = await give("lamp-1", "set_level", "level=40", "--config", str(config))
    assert (first.status, second.status) == (0, 0), first.err + second.err


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["--broker", "http://x"], "--broker"),
        (["--broker", "mqtt://u:p@localhost"], "--broker"),
        (["--broker", "mqtt://broker.example"], "--broker"),
        (["--broker", "mqtt://localhost:99999"], "--broker"),
        (["--broker", "mqtt://localhost", "--ca", "x"], "--ca"),
        (["--broker", "mqtts://localhost", "--cert", "x"], "--ca"),
        (
            ["--broker", "mqtt://localhost", "--password-env", "NOT_SET_ANYWHERE"],
            "--broker.password_env",
        ),
        (["--broker", "mqtt://localhost", "--county", "Taipei"], "--county"),
        (["--broker", "mqtt://localhost", "level"], "KEY=VALUE"),
        (["--broker", "mqtt://localhost", "level=1", "level=2"], "KEY=VALUE"),
        (["--config", "not-there.toml"], "file"),
        (["--config", "not-there.toml", "--ca", "x"], "--ca"),
    ],
)
def test_a_wrong_command_line_is_named(words: list[str], key: str) -> None:
    with pytest.raises(ConfigError) as error:
        run(["lamp-1", "set_level", *words])
    assert error.value.key == key
    assert "u:p" not in str(error.value)
