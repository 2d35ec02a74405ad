"""The agent's snapshot and its views: what is shown is what is so, in two languages, on a narrow terminal."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import select
import socket
import stat
import time
import unicodedata
from collections.abc import Iterator
from contextlib import AsyncExitStack, closing, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

from edge_agent import status_command
from edge_agent.metrics import Endpoint, answering_scrapes, exposition
from edge_agent.status import (
    AgentStatus,
    BusStatus,
    ClockStatus,
    DeviceStatus,
    OutboxStatus,
    UplinkStatus,
    answering_status,
    decode_status,
)
from edge_agent.status_command import down, language, last_sign, shown
from edge_agent.terminal_text import cut, width_of
from exchange.configuration import converted
from exchange.errors import ConfigError
from exchange.health import asked
from tests.ports import free_port

DOCS = Path(__file__).parents[2] / "docs" / "operators"
ROW = re.compile(r"^\| `(onestreet_edge_\w+)` \| (\w+) \| ([^|]*) \| (.+?) \|$", re.MULTILINE)
DEADLINE_S = 20.0
AT = datetime(2026, 11, 22, 10, 0, 0, tzinfo=UTC)


def status(**changes: Any) -> AgentStatus:
    """An agent with something of everything."""
    parts: dict[str, Any] = {
        "version": "0.1.0",
        "gateway": "gw-daan-01",
        "county": "tw-tpe",
        "site": "daan",
        "process": 4711,
        "at": AT,
        "uptime_s": 5 * 86400.0,
        "memory_bytes": 43_000_000,
        "uplink": UplinkStatus(
            broker="mqtt.example.org:8883",
            connected=True,
            for_s=7200.0,
            round_trip_s=0.21,
            unreceipted=12,
            resends=3,
            stored=1000,
            refused=1,
        ),
        "outbox": OutboxStatus(
            depth=1234, size_bytes=1_200_000, hours_left=71.5, dropped={"full": 0}
        ),
        "clock": ClockStatus(known=True, offset_s=0.002),
        "commands": {"office": {"failed": 1, "done": 3}, "programme": {"done": 4}},
        "bus": [
            BusStatus(id="air", kind="serial", tried=True, is_open=True, opened=2, busy_s=108000.0),
            BusStatus(
                id="lamps", kind="modbus-rtu", tried=True, is_open=False, reason="no port", lost=1
            ),
        ],
        "device": [
            DeviceStatus(
                id="aq-7",
                bus="air",
                interval_s=5.0,
                readings=100,
                missed=2,
                lateness_s=0.01,
                age_s=3.2,
                metrics={"pm2_5": 12.3, "presence": True},
            ),
            DeviceStatus(
                id="lamp-0231",
                bus="lamps",
                interval_s=30.0,
                errors=40,
                breaker="open",
                next_probe_s=20.0,
                failing="DeviceSilent",
                reason="no answer in 1 s",
            ),
        ],
    }
    return AgentStatus(**(parts | changes))


# -------------------------------------------------------------------------------------------------- readiness


def test_ready_is_a_session_and_every_bus_tried() -> None:
    whole = status()
    assert whole.readiness == "ready", "a bus that is lost was tried"
    untried = msgspec.structs.replace(whole.bus[1], tried=False)
    cut_off = msgspec.structs.replace(whole.uplink, connected=False)
    assert status(bus=[whole.bus[0], untried]).readiness == "waiting for bus lamps"
    assert status(uplink=cut_off).readiness == "waiting for the broker"
    assert status(uplink=cut_off, bus=[untried]).readiness == "waiting for the broker, bus lamps"


# ----------------------------------------------------------------------------------------------------- metrics


def scraped(of: AgentStatus) -> dict[str, Metric]:
    """What Prometheus' own parser makes of it."""
    return {family.name: family for family in text_string_to_metric_families(exposition(of))}


def values(of: AgentStatus, name: str) -> dict[tuple[str, ...], float]:
    samples = scraped(of)[f"onestreet_edge_{name}"].samples
    return {tuple(one.labels.values()): one.value for one in samples}


def test_the_numbers_are_those_of_the_snapshot() -> None:
    of = status()
    assert values(of, "device_readings") == {("air", "aq-7"): 100, ("lamps", "lamp-0231"): 0}
    assert values(of, "device_errors")["lamps", "lamp-0231"] == 40
    assert values(of, "device_missed")["air", "aq-7"] == 2
    assert values(of, "device_lateness_seconds") == {("air", "aq-7"): 0.01}
    assert values(of, "device_breaker_open") == {("air", "aq-7"): 0, ("lamps", "lamp-0231"): 1}
    assert values(of, "bus_open") == {("air",): 1, ("lamps",): 0}
    assert values(of, "bus_losses")["lamps",] == 1
    assert values(of, "bus_busy_seconds")["air",] == 108000
    assert values(of, "outbox_samples") == {(): 1234}
    assert values(of, "outbox_left_seconds") == {(): 71.5 * 3600}
    assert values(of, "device_last_reading_timestamp_seconds") == {
        ("air", "aq-7"): of.at.timestamp() - 3.2
    }
    assert values(of, "outbox_dropped") == {("full",): 0}
    assert values(of, "commands") == {
        ("office", "done"): 3,
        ("office", "failed"): 1,
        ("programme", "done"): 4,
    }
    assert values(of, "delivery_unreceipted") == {(): 12}
    assert values(of, "uplink_round_trip_seconds") == {(): 0.21}
    assert values(of, "clock_known") == {(): 1}
    assert values(of, "resident_memory_bytes") == {(): 43_000_000}


def test_what_is_not_known_has_no_sample() -> None:
    unknown = ClockStatus(known=False)
    assert values(status(clock=unknown), "clock_offset_seconds") == {}
    assert values(status(clock=unknown), "clock_known") == {(): 0}
    assert values(status(clock=unknown), "device_last_reading_timestamp_seconds") == {}


def test_labels_are_escaped() -> None:
    strange = DeviceStatus(id='a"b\\c\nd', bus="b", interval_s=1.0)
    assert list(values(status(device=[strange]), "device_readings")) == [("b", 'a"b\\c\nd')]


def test_names_follow_the_conventions_and_every_metric_is_documented() -> None:
    families = scraped(status()).values()
    for family in families:
        assert re.fullmatch(r"onestreet_edge_[a-z_]+", family.name)
        assert family.documentation.endswith(".")
    wanted = {
        family.name + ("_total" if family.type == "counter" else ""): (
            family.type,
            ", ".join(family.samples[0].labels),
            family.documentation,
        )
        for family in families
    }
    english = (DOCS / "edge-metrics.md").read_text("utf-8")
    assert {name: (*kind, words) for name, *kind, words in ROW.findall(english)} == wanted
    chinese = (DOCS / "edge-metrics.zh-TW.md").read_text("utf-8")
    assert {name: (kind, labels) for name, kind, labels, _ in ROW.findall(chinese)} == {
        name: (kind, labels) for name, (kind, labels, _) in wanted.items()
    }
    for text in (english, chinese):
        assert set(re.findall(r"\bonestreet_edge_\w+", text)) <= set(wanted)


async def get(port: int, path: str) -> tuple[int, str]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    async with asyncio.timeout(DEADLINE_S):
        head, _, body = (await reader.read()).decode().partition("\r\n\r\n")
    writer.close()
    return int(head.split()[1]), body


async def test_prometheus_and_a_watcher_get_their_answers() -> None:
    now = status()
    life = "alive"

    async def alive() -> str:
        return life

    port = free_port()
    async with answering_scrapes(Endpoint(listen=f"127.0.0.1:{port}"), lambda: now, alive):
        assert await get(port, "/metrics") == (200, exposition(now))
        assert await get(port, "/healthz") == (200, "alive\n")
        assert await get(port, "/readyz") == (200, "ready\n")
        life = "the outbox does not answer"
        now = status(uplink=UplinkStatus(broker="b", connected=False))
        assert await get(port, "/healthz") == (503, "the outbox does not answer\n")
        assert await get(port, "/readyz") == (503, "waiting for the broker\n")
        assert (await get(port, "/"))[0] == 404


async def test_a_port_that_is_taken_ends_no_agent(caplog: pytest.LogCaptureFixture) -> None:
    async def alive() -> str:
        return "alive"

    async with AsyncExitStack() as both:
        endpoint = Endpoint(listen=f"127.0.0.1:{free_port()}")
        for _ in range(2):
            await both.enter_async_context(answering_scrapes(endpoint, status, alive))
    assert [record.message for record in caplog.records] == ["metrics cannot be asked for"]


@pytest.mark.parametrize("listen", ["127.0.0.1:9101", "[::1]:9101", "gateway.example:9101", ""])
def test_addresses_that_are_taken(listen: str) -> None:
    found = converted({"listen": listen}, Endpoint, "edge.toml")
    if listen:
        assert found.address == (listen.rpartition(":")[0].strip("[]"), 9101)


@pytest.mark.parametrize("listen", ["9101", ":9101", "127.0.0.1", "127.0.0.1:port", "::1:9101\n"])
def test_addresses_that_are_none(listen: str) -> None:
    with pytest.raises(ConfigError, match="listen"):
        converted({"listen": listen}, Endpoint, "edge.toml")


# ------------------------------------------------------------------------------------------------------ socket


async def test_the_socket_gives_one_document_and_is_the_groups(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100) / ("e" * 100)  # longer than a socket's address
    deep.mkdir(parents=True)
    path = deep / "status.sock"
    async with answering_status(path, status):
        assert decode_status(await asked(path)) == status()
        assert decode_status(await asked(path)) == status()
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
    assert not path.exists()


async def test_a_socket_that_was_left_behind_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "status.sock"
    async with answering_status(path, status):
        os.link(path, tmp_path / "kept")
    (tmp_path / "kept").rename(path)  # as after kill -9
    async with answering_status(path, status):
        assert decode_status(await asked(path)).gateway == "gw-daan-01"


async def test_without_a_socket_the_agent_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with answering_status(tmp_path / "nowhere" / "status.sock", status):
        pass
    assert [record.message for record in caplog.records] == ["the status cannot be asked for"]


async def test_the_socket_has_documents_by_name(tmp_path: Path) -> None:
    path = tmp_path / "status.sock"

    async def trail() -> bytes:
        return b"[]"

    async def by_hand(words: bytes) -> bytes:
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(words)
        writer.write_eof()
        with closing(writer):
            return await reader.read()

    async with answering_status(path, status, {"commands": trail}), asyncio.timeout(DEADLINE_S):
        assert await asked(path, "commands") == b"[]"
        assert await asked(path, "nonsense") == b""
        assert decode_status(await by_hand(b"")) == status(), "as `socat - UNIX:… </dev/null`"
        assert decode_status(await by_hand(b"\n")) == status()
        assert await by_hand(b"\xff\n") == b""
        assert await by_hand(b"commands" * 10_000) == b""


@pytest.mark.parametrize("words", [b"\n", b""], ids=["never reads", "never asks"])
async def test_a_client_that_does_nothing_is_let_go(tmp_path: Path, words: bytes) -> None:
    """Its answer is larger than what the kernel keeps for it."""
    path = tmp_path / "status.sock"
    lasting = status(gateway="g" * 1_000_000)
    async with answering_status(path, lambda: lasting):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            client.send(words)
            poller = select.poll()
            poller.register(client, select.POLLRDHUP)
            hung_up = await asyncio.to_thread(poller.poll, DEADLINE_S * 1000)
            assert hung_up, "the agent keeps what it holds for this client"
        assert decode_status(await asked(path)) == lasting


async def test_of_hundreds_of_clients_sixteen_are_served(tmp_path: Path) -> None:
    path = tmp_path / "status.sock"
    lasting = status(gateway="g" * 1_000_000)
    made = 0

    def counted() -> AgentStatus:
        nonlocal made
        made += 1
        return lasting

    async with answering_status(path, counted), AsyncExitStack() as clients:
        for _ in range(500):
            client = clients.enter_context(socket.socket(socket.AF_UNIX))
            client.connect(str(path))
            await asyncio.sleep(0)  # it is let in, or turned away
            with suppress(OSError):
                client.send(b"\n")
        async with asyncio.timeout(DEADLINE_S):
            while True:  # once those that were let in are let go
                with suppress(OSError):
                    if document := await asked(path):
                        break
                await asyncio.sleep(0.05)
        assert decode_status(document) == lasting
    assert made <= 100, "every other one was turned away"


# -------------------------------------------------------------------------------------------------------- view


def words(of: AgentStatus, lang: Any = "en", **more: Any) -> str:
    return "\n".join(line.words for line in shown(of, lang, **more))


def test_the_view_says_what_matters() -> None:
    text = words(status())
    for wanted in (
        "gw-daan-01  tw-tpe/daan  onestreet 0.1.0  up 5 d  memory 43 MB",
        "uplink  connected  for 2 h  mqtt.example.org:8883  receipt after 0.21 s",
        "outbox  1234 samples  1.2 MB  left 71 h  unreceipted 12",
        f"clock  known  {AT.astimezone().isoformat(sep=' ')}  off by +0.002 s",
        "commands  office: done 3, failed 1  programme: done 4",
    ):
        assert wanted in text
    assert re.search(r"^air +open +25% +0$", text, re.MULTILINE)
    assert re.search(r"^lamps +lost +0% +1 +no port$", text, re.MULTILINE)
    assert re.search(r"^aq-7 +3 s +0.01 s +2 +0 +pm2_5 12.3, presence true$", text, re.MULTILINE)
    assert "probe in 20 s; DeviceSilent: no answer in 1 s" in text
    assert text.index("lamp-0231") < text.index("aq-7"), "trouble comes first"


def test_what_a_maker_alone_says_comes_last() -> None:
    """On 80 columns there is no room for it."""
    metrics: dict[str, Any] = {"x-maker-flags": 7, "level": 40, "x-maker-mode": 1, "lit": True}
    one = DeviceStatus(id="d", bus="air", interval_s=5.0, age_s=1.0, metrics=metrics)
    assert "level 40, lit true, x-maker-flags 7, x-maker-mode 1" in words(status(device=[one]))


def test_a_bus_is_as_busy_as_it_was_since_the_last_look() -> None:
    earlier = status()
    bus = msgspec.structs.replace(earlier.bus[0], busy_s=108000.9)
    now = status(uptime_s=earlier.uptime_s + 1.0, bus=[bus])
    assert re.search(r"^air +open +90%", words(now, earlier=earlier), re.MULTILINE)


def test_chinese_says_the_same_and_stands_in_columns() -> None:
    lines = [line.words for line in shown(status(), "zh-TW")]
    text = "\n".join(lines)
    assert "正常運作" in text
    assert "未收回條 12" in text
    assert len(lines) == len(shown(status(), "en"))
    head = next(line for line in lines if line.startswith("設備"))
    row = next(line for line in lines if line.startswith("aq-7"))
    assert width_of(head[: head.index("多久前")]) == width_of(row[: row.index("3 秒")])


def test_every_word_of_the_view_has_its_chinese() -> None:
    """The words that views say are string literals: `say(…)` fails on one that has no translation."""
    source = Path(status_command.__file__).read_text("utf-8")
    said = re.findall(r"""\bsay\(["']([^"']+)["']\)""", source)
    said += re.findall(r'Down\("([^"]+)"', source)
    assert len(said) > 30
    assert [word for word in said if word not in status_command._CHINESE] == []
    for chinese in status_command._CHINESE.values():
        assert any(unicodedata.east_asian_width(letter) == "W" for letter in chinese)


@pytest.mark.parametrize("width", [20, 40, 80])
@pytest.mark.parametrize("lang", ["en", "zh-TW"])
def test_no_line_is_wider_than_the_terminal(lang: Any, width: int) -> None:
    for line in shown(status(), lang):
        assert width_of(cut(line.words, width)) <= width
    assert cut("路燈控制器一號", 9) == "路燈控.."
    assert cut("路燈", 4) == "路燈"


def test_only_as_many_devices_as_there_is_room_for() -> None:
    many = [DeviceStatus(id=f"d-{n}", bus="air", interval_s=5.0, age_s=1.0) for n in range(300)]
    bad = msgspec.structs.replace(many[250], failing="FrameError", reason="bad_checksum at byte 3")
    many[250] = bad
    lines = shown(status(device=many), "en", height=24)
    assert len(lines) == 24
    text = "\n".join(line.words for line in lines)
    assert "d-250" in text
    shown_devices = len(re.findall(r"^d-\d+", text, re.MULTILINE))
    assert f".. {300 - shown_devices} more devices" in text
    assert len(shown(status(device=many), "en")) > 300


def test_what_devices_say_cannot_steer_the_terminal() -> None:
    evil = DeviceStatus(
        id="d", bus="air", interval_s=5.0, failing="FrameError", reason="\x1b[2J\r\n\x07gone"
    )
    bus = BusStatus(id="air", kind="serial", tried=True, is_open=False, reason="\x9b31m")
    uplink = UplinkStatus(broker="b", connected=False, reason="\x1b]0;owned\x07")
    for line in shown(status(device=[evil], bus=[bus], uplink=uplink), "en"):
        assert line.words.isprintable()


@pytest.mark.parametrize(
    ("environment", "lang"),
    [
        ({"LANG": "zh_TW.UTF-8"}, "zh-TW"),
        ({"LANG": "zh_TW.UTF-8", "LC_ALL": "C.UTF-8"}, "en"),
        ({"LANG": "en_GB.UTF-8", "LC_MESSAGES": "zh_TW"}, "zh-TW"),
        ({}, "en"),
    ],
)
def test_the_terminal_says_the_language(environment: dict[str, str], lang: str) -> None:
    assert language(environment) == lang


# ----------------------------------------------------------------------------------------------------- command


@pytest.fixture(autouse=True)
def english(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    yield


def command(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str]:
    parser = argparse.ArgumentParser()
    actions = parser.add_subparsers()
    status_command.add_parser(actions)
    code = status_command.carry_out(parser.parse_args(["status", *argv]))
    return code, capsys.readouterr().out


async def test_the_command_finds_the_agent_by_its_configuration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "edge.toml"
    config.write_text('[gateway]\nstate_dir = "state"\n[[device]]\nnonsense = 1\n')
    (tmp_path / "state").mkdir()
    async with answering_status(tmp_path / "state" / "status.sock", status):
        code, out = await asyncio.to_thread(command, capsys, "--config", str(config))
        assert (code, "gw-daan-01" in out, "\x1b" in out) == (0, True, False)
        code, out = await asyncio.to_thread(
            command, capsys, "--config", str(config), "--once", "--lang", "zh-TW"
        )
        assert (code, "正常運作" in out) == (0, True)
        code, out = await asyncio.to_thread(command, capsys, "--config", str(config), "--json")
        assert (code, decode_status(out)) == (0, status())
    config.write_text('[gateway]\nstate_dir = "elsewhere"\n[status]\nsocket = "state/s"\n')
    async with answering_status(tmp_path / "state" / "s", status):
        code, out = await asyncio.to_thread(command, capsys, "--config", str(config))
        assert code == 0


def test_an_agent_that_is_down_is_said_with_its_last_sign(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, state = tmp_path / "edge.toml", tmp_path / "state"
    config.write_text('[gateway]\nstate_dir = "state"\n')
    state.mkdir()
    here = ("--config", str(config))
    code, out = command(capsys, *here)
    assert code == 1
    assert "the agent is not running" in out
    assert "last sign" not in out
    moments = [datetime(2026, 11, 20, hour, 0, tzinfo=UTC) for hour in (8, 7)]
    (state / "outbox").mkdir()
    for file, moment in zip(["outbox/1.seg", "commands.sqlite"], moments, strict=True):
        (state / file).write_bytes(b"")
        os.utime(state / file, (moment.timestamp(), moment.timestamp()))
    os.utime(state / "outbox", (0, 0))
    assert last_sign(state) == moments[0]
    code, out = command(capsys, *here)
    assert "last sign of life 2026-11-20" in out
    code, out = command(capsys, *here, "--lang", "zh-TW")
    assert "代理程式未執行" in out
    assert "最後活動 2026-11-20" in out
    code, out = command(capsys, *here, "--json")
    answer = json.loads(out)
    assert (code, answer["running"], answer["last_seen"]) == (1, False, "2026-11-20T08:00:00Z")


async def test_an_agent_that_was_killed_or_hangs_is_told_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "status.sock"
    async with answering_status(path, status):
        os.link(path, tmp_path / "kept")
    (tmp_path / "kept").rename(path)
    code, out = await asyncio.to_thread(command, capsys, "--socket", str(path))
    assert (code, "ended without a farewell" in out) == (1, True)
    path.unlink()

    open_ends = []

    def hangs(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        open_ends.append(writer)

    monkeypatch.setattr(status_command, "ANSWER_S", 0.2)
    server = await asyncio.start_unix_server(hangs, path)
    code, out = await asyncio.to_thread(command, capsys, "--socket", str(path))
    assert (code, "does not answer" in out) == (1, True)
    server.close()
    for end in open_ends:
        end.close()
        await end.wait_closed()
    garbage = tmp_path / "garbage.sock"

    async def nonsense(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b"ready")
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_unix_server(nonsense, garbage)
    code, out = await asyncio.to_thread(command, capsys, "--socket", str(garbage))
    assert (code, "does not understand" in out) == (1, True)
    server.close()


def test_down_is_said_for_every_reason_in_both_languages(tmp_path: Path) -> None:
    why = status_command.Down("the agent is not running", "status.sock")
    for lang in ("en", "zh-TW"):
        assert len(down(why, tmp_path, lang)) == 2


@pytest.mark.parametrize(("lang", "page"), [("en", "README.md"), ("zh-TW", "README.zh-TW.md")])
def test_the_view_that_installers_are_shown_is_the_real_one(
    lang: Any, page: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "Asia/Taipei")
    time.tzset()
    uptime_s = 26 * 3600.0
    of = status(
        at=datetime(2026, 11, 23, 2, 0, tzinfo=UTC),
        uptime_s=uptime_s,
        uplink=UplinkStatus(
            broker="mqtt.example.org:8883",
            connected=True,
            for_s=uptime_s,
            round_trip_s=0.21,
            unreceipted=12,
        ),
        outbox=OutboxStatus(depth=12, size_bytes=48_000, hours_left=2100.0),
        commands={},
        bus=[
            BusStatus(
                id="lamps", kind="modbus-rtu", tried=True, is_open=True, busy_s=0.31 * uptime_s
            )
        ],
        device=[
            DeviceStatus(
                id="lamp-0231",
                bus="lamps",
                interval_s=30.0,
                errors=3,
                lateness_s=0.01,
                age_s=12.0,
                metrics={"level": 80, "power": 61.2},
            )
        ],
    )
    view = "\n".join(line.words for line in shown(of, lang))
    text = (DOCS.parent / "installers" / page).read_text("utf-8")
    monkeypatch.undo()
    time.tzset()
    assert f"```\n{view}\n```" in text
