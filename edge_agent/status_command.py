"""`onestreet edge status`: how the agent on this gateway is, live, in English or in Chinese.

Plain ANSI on whatever terminal there is, a phone's among them: lines are cut to its width, in which a Chinese
character counts as two, and the devices that have trouble come first.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import msgspec

from edge_agent.status import NAME, AgentStatus, BusStatus, DeviceStatus, decode_status
from edge_agent.terminal_text import DOTS, GAP, Row, Text, Tone, cut, plain, table
from exchange.gateway_paths import CONFIG, RUNTIME, STATE
from exchange.health import ANSWER_S, WELL, asked

if TYPE_CHECKING:
    from argparse import _SubParsersAction

EVERY_S = 1.0
COLUMNS, LINES = 80, 24

Lang = Literal["en", "zh-TW"]
_COLOURS: Mapping[Tone, str] = {"good": "32", "doubtful": "33", "bad": "31"}
_ON_SCREEN, _OFF_SCREEN = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
_HOME, _END_OF_LINE, _END_OF_SCREEN = "\x1b[H", "\x1b[K", "\x1b[J"

_CHINESE = {
    "ready": "正常運作",
    "waiting for": "等待",
    "the broker": "訊息代理",
    "bus": "匯流排",
    "up": "已執行",
    "memory": "記憶體",
    "uplink": "上行",
    "connected": "已連線",
    "not connected": "未連線",
    "for": "持續",
    "receipt after": "回條需時",
    "outbox": "待送",
    "samples": "筆樣本",
    "left": "可再存",
    "unreceipted": "未收回條",
    "parked": "暫置",
    "dropped": "已丟棄",
    "not on disk yet": "尚未寫入",
    "clock": "時鐘",
    "known": "已校時",
    "not known: samples wait": "尚未校時，樣本等待中",
    "off by": "誤差",
    "set": "被調整",
    "times": "次",
    "commands": "命令",
    "office": "市府",
    "programme": "時程",
    "state": "狀態",
    "open": "正常",
    "lost": "中斷",
    "not tried": "尚未開啟",
    "busy": "忙碌",
    "losses": "斷線",
    "device": "設備",
    "age": "多久前",
    "late": "延遲",
    "missed": "漏讀",
    "errors": "錯誤",
    "values": "讀值",
    "probe in": "重試於",
    "probing": "重試中",
    "no reading yet": "尚無讀值",
    "more devices": "台設備未列出",
    "the agent is not running": "代理程式未執行",
    "the agent was ended without a farewell (power cut or kill)": "代理程式異常終止（斷電或強制結束）",
    "the agent does not answer: it hangs or is busy": "代理程式沒有回應：當機或忙碌",
    "not allowed: use sudo, or join the group of": "權限不足：請用 sudo，或加入此檔案的群組",
    "it answers what this version does not understand": "回應的版本與本程式不符",
    "last sign of life": "最後活動",
    "ago": "前",
    "see": "請查看",
    "s": "秒",
    "min": "分鐘",
    "h": "小時",
    "d": "天",
}


class Places(NamedTuple):
    """Where the agent answers, and where it keeps its files."""

    socket: Path
    state: Path


class Down(NamedTuple):
    """Why there is no snapshot: English words of `_CHINESE`, and what they are about."""

    why: str
    about: str


def add_parser(actions: _SubParsersAction[Any]) -> None:
    """Add the subcommand's arguments."""
    words = "how the agent on this gateway is, live 顯示代理程式即時狀態"
    action = actions.add_parser("status", help=words, description=words)
    action.add_argument(
        "--socket", type=Path, metavar="FILE", help="the agent's; default: as in the configuration"
    )
    action.add_argument("--config", type=Path, default=CONFIG, help="default: %(default)s")
    action.add_argument("--once", action="store_true", help="print it once and end 只顯示一次")
    action.add_argument("--json", action="store_true", help="print the agent's document, once")
    action.add_argument(
        "--lang", choices=["en", "zh-TW"], help="default: what LANG says 語言，預設依 LANG"
    )


def carry_out(arguments: argparse.Namespace) -> int:
    """Show the status; return 0 when the agent is running, else 1."""
    at = places(arguments.config)
    if arguments.socket is not None:
        at = at._replace(socket=arguments.socket)
    lang = arguments.lang or language(os.environ)
    if arguments.json:
        return asyncio.run(_print_document(at))
    if arguments.once or not sys.stdout.isatty():
        return asyncio.run(_print_once(at, lang))
    with suppress(KeyboardInterrupt):  # that is how it ends
        asyncio.run(_live(at, lang))
    return 0


def language(environment: Mapping[str, str]) -> Lang:
    """Return the language that the terminal speaks."""
    names = (environment.get(name, "") for name in ("LC_ALL", "LC_MESSAGES", "LANG"))
    return "zh-TW" if next(filter(None, names), "").lower().startswith("zh") else "en"


def places(config: Path) -> Places:
    """Return where the agent answers and keeps its files; a configuration with mistakes, or none, is no hindrance."""
    state, named = STATE, ""
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        data = tomllib.loads(config.read_text(encoding="utf-8-sig"))
        state = config.parent / str(data["gateway"]["state_dir"])
        named = str(data.get("status", {}).get("socket", ""))
    return Places(config.parent / named if named else state / NAME, state)


async def fetched(socket: Path, document: str = "") -> bytes | Down:
    """Return a document of the agent as it came, or why there is none."""
    try:
        found = await asked(socket, document, deadline_s=ANSWER_S)
    except FileNotFoundError:
        return Down("the agent is not running", str(socket))
    except ConnectionRefusedError:
        return Down("the agent was ended without a farewell (power cut or kill)", str(socket))
    except PermissionError:
        return Down("not allowed: use sudo, or join the group of", str(socket))
    except (TimeoutError, OSError):
        found = b""
    return found or Down("the agent does not answer: it hangs or is busy", str(socket))


async def _snapshot(socket: Path) -> AgentStatus | Down:
    document = await fetched(socket)
    if isinstance(document, Down):
        return document
    try:
        return decode_status(document)
    except msgspec.MsgspecError as error:
        return Down("it answers what this version does not understand", str(error))


async def _print_document(at: Places) -> int:
    found = await _snapshot(at.socket)
    if isinstance(found, AgentStatus):
        document: object = found
    else:
        seen = last_sign(at.state)
        document = {"running": False, "why": found.why, "about": found.about, "last_seen": seen}
    sys.stdout.write(msgspec.json.encode(document).decode() + "\n")
    return int(isinstance(found, Down))


async def _print_once(at: Places, lang: Lang) -> int:
    found = await _snapshot(at.socket)
    width = shutil.get_terminal_size((COLUMNS, LINES)).columns if sys.stdout.isatty() else 10**6
    lines = shown(found, lang) if isinstance(found, AgentStatus) else down(found, at.state, lang)
    for line in lines:
        sys.stdout.write(f"{cut(line.words, width)}\n")
    return int(isinstance(found, Down))


async def _live(at: Places, lang: Lang) -> None:
    earlier: AgentStatus | None = None
    with _screen():
        while True:
            found = await _snapshot(at.socket)
            width, height = shutil.get_terminal_size((COLUMNS, LINES))
            if isinstance(found, AgentStatus):
                lines = shown(found, lang, height=height, earlier=earlier)
                earlier = found
            else:
                lines = down(found, at.state, lang)
            frame = f"{_END_OF_LINE}\n".join(_painted(line, width) for line in lines[:height])
            sys.stdout.write(f"{_HOME}{frame}{_END_OF_LINE}{_END_OF_SCREEN}")
            sys.stdout.flush()
            await asyncio.sleep(EVERY_S)


@contextmanager
def _screen() -> Iterator[None]:
    """Draw on the terminal's other screen, so that what was there is there again afterwards."""
    sys.stdout.write(_ON_SCREEN)
    try:
        yield
    finally:
        sys.stdout.write(_OFF_SCREEN)
        sys.stdout.flush()


def _painted(line: Text, width: int) -> str:
    words = cut(line.words, width)
    if not line.tone or "NO_COLOR" in os.environ:
        return words
    return f"\x1b[{_COLOURS[line.tone]}m{words}\x1b[0m"


# ----------------------------------------------------------------------------------------------- what is shown


def shown(
    status: AgentStatus,
    lang: Lang,
    *,
    height: int | None = None,
    earlier: AgentStatus | None = None,
) -> list[Text]:
    """Return the view; with `height` only as many devices as there is room for.

    Shape: `earlier` is the snapshot shown before: a bus is then as busy as it was since, not since the start.
    """
    say = _Speaker(lang)
    lines = [
        Text(
            f"{status.gateway}  {status.county}/{status.site}  onestreet {status.version}  "
            f"{say('up')} {say.span(status.uptime_s)}  {say('memory')} {say.size(status.memory_bytes)}"
        ),
        _readiness(status, say),
        _uplink(status, say),
        _outbox(status, say),
        _clock(status, say),
    ]
    if status.commands:
        lines.append(_commands(status, say))
    lines += [Text(""), *_buses(status, say, earlier), Text("")]
    devices = _devices(status, say)
    if height is not None and len(lines) + len(devices) > height:
        room = max(1, height - len(lines) - 1)
        left_out = len(devices) - room
        devices = [*devices[:room], Text(f"{DOTS} {left_out} {say('more devices')}")]
    return lines + devices


def down(why: Down, state: Path, lang: Lang) -> list[Text]:
    """Return what is shown when there is no snapshot."""
    say = _Speaker(lang)
    lines = [Text(f"{say(why.why)}: {why.about}", "bad")]
    seen = last_sign(state)
    if seen is not None:
        ago = say.span((datetime.now(UTC) - seen).total_seconds())
        lines.append(Text(f"{say('last sign of life')} {_local(seen)} ({ago} {say('ago')})"))
    lines.append(Text(f"{say('see')}: systemctl status onestreet-edge; sudo onestreet edge check"))
    return lines


def last_sign(state: Path) -> datetime | None:
    """Return when the agent last wrote to its files, as far as they are there and may be seen."""
    latest = 0.0
    for folder in (state, state / "outbox", *([RUNTIME] if state == STATE else [])):
        with suppress(OSError):
            latest = max([latest, *(one.stat().st_mtime for one in folder.iterdir())])
    return datetime.fromtimestamp(latest, UTC) if latest else None


def _readiness(status: AgentStatus, say: _Speaker) -> Text:
    if status.readiness == WELL:
        return Text(say("ready"), "good")
    waits = [] if status.uplink.connected else [say("the broker")]
    waits += [f"{say('bus')} {bus.id}" for bus in status.bus if not bus.tried]
    return Text(f"{say('waiting for')} {', '.join(waits)}", "bad")


def _uplink(status: AgentStatus, say: _Speaker) -> Text:
    uplink = status.uplink
    words = [say("uplink"), say("connected" if uplink.connected else "not connected")]
    if uplink.for_s is not None:
        words.append(f"{say('for')} {say.span(uplink.for_s)}")
    words.append(uplink.broker)
    if uplink.round_trip_s is not None:
        words.append(f"{say('receipt after')} {say.seconds(uplink.round_trip_s)}")
    words += filter(None, [uplink.reason])
    return Text(plain(GAP.join(words)), "" if uplink.connected else "bad")


def _outbox(status: AgentStatus, say: _Speaker) -> Text:
    outbox, uplink = status.outbox, status.uplink
    words = [say("outbox"), f"{outbox.depth} {say('samples')}", say.size(outbox.size_bytes)]
    if outbox.hours_left is not None:
        words.append(f"{say('left')} {say.span(3600 * outbox.hours_left)}")
    words.append(f"{say('unreceipted')} {uplink.unreceipted}")
    for label, number in (
        ("parked", uplink.parked),
        ("not on disk yet", outbox.waiting),
        ("dropped", sum(outbox.dropped.values())),
    ):
        if number:
            words.append(f"{say(label)} {number}")
    return Text(GAP.join(words), "bad" if any(outbox.dropped.values()) else "")


def _clock(status: AgentStatus, say: _Speaker) -> Text:
    clock = status.clock
    words = [say("clock"), say("known" if clock.known else "not known: samples wait")]
    words.append(_local(status.at))
    if clock.offset_s is not None:
        words.append(f"{say('off by')} {clock.offset_s:+.3f} {say('s')}")
    if clock.jumps:
        words.append(f"{say('set')} {clock.jumps} {say('times')}")
    return Text(GAP.join(words), "" if clock.known else "bad")


def _commands(status: AgentStatus, say: _Speaker) -> Text:
    words = [say("commands")]
    for giver, results in status.commands.items():
        done = ", ".join(f"{name} {number}" for name, number in sorted(results.items()))
        words.append(f"{say(giver)}: {done}")
    return Text(plain(GAP.join(words)))


def _buses(status: AgentStatus, say: _Speaker, earlier: AgentStatus | None) -> list[Text]:
    before = {bus.id: bus.busy_s for bus in earlier.bus} if earlier else {}
    span_s = status.uptime_s - earlier.uptime_s if earlier else status.uptime_s
    rows = [Row([say("bus"), say("state"), say("busy"), say("losses"), ""])]
    for bus in status.bus:
        busy = (bus.busy_s - before.get(bus.id, 0.0)) / span_s if span_s > 0 else 0.0
        share = f"{min(1.0, max(0.0, busy)):.0%}"
        rows.append(Row([bus.id, say(_state(bus)), share, str(bus.lost), bus.reason], _tone(bus)))
    return table(rows)


def _state(bus: BusStatus) -> str:
    if bus.is_open:
        return "open"
    return "lost" if bus.tried else "not tried"


def _tone(bus: BusStatus) -> Tone:
    return "" if bus.is_open else "bad"


def _devices(status: AgentStatus, say: _Speaker) -> list[Text]:
    head = Row([say(word) for word in ("device", "age", "late", "missed", "errors", "values")])
    rows = [_device(device, say) for device in status.device]
    order: Sequence[Tone] = ("bad", "doubtful", "good", "")
    return table([head, *sorted(rows, key=lambda row: order.index(row.tone))])


def _device(device: DeviceStatus, say: _Speaker) -> Row:
    cells = [
        device.id,
        "-" if device.age_s is None else say.span(device.age_s),
        "-" if device.lateness_s is None else say.seconds(device.lateness_s),
        str(device.missed),
        str(device.errors),
    ]
    if device.failing or device.breaker != "closed":
        words = [f"{device.failing}: {device.reason}" if device.failing else device.reason]
        if device.breaker == "probing":
            words.insert(0, say("probing"))
        elif device.next_probe_s is not None:
            words.insert(0, f"{say('probe in')} {say.span(device.next_probe_s)}")
        return Row([*cells, "; ".join(filter(None, words))], "bad")
    # what a maker alone says comes last: a narrow terminal has no room for it
    metrics = sorted(device.metrics.items(), key=lambda metric: metric[0].startswith("x-"))
    values = ", ".join(f"{name} {_number(value)}" for name, value in metrics)
    last = GAP.join(filter(None, [device.quality, values])) or say("no reading yet")
    is_late = device.age_s is None or device.age_s > 3 * device.interval_s
    return Row([*cells, last], "doubtful" if device.quality or is_late else "")


def _number(value: float | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:.6g}"


# ----------------------------------------------------------------------------------------------------------- words


class _Speaker:
    """Says words in one language."""

    def __init__(self, lang: Lang) -> None:
        self._lang = lang

    def __call__(self, words: str) -> str:
        return _CHINESE[words] if self._lang == "zh-TW" else words

    def span(self, seconds: float) -> str:
        """A time to the nearest thing that matters."""
        for word, length_s in (("s", 1), ("min", 60), ("h", 3600)):
            if seconds < 100 * length_s:
                return f"{max(0, int(seconds // length_s))} {self(word)}"
        return f"{int(seconds // 86400)} {self('d')}"

    def seconds(self, seconds: float) -> str:
        return f"{seconds:.2f} {self('s')}"

    @staticmethod
    def size(size_bytes: int) -> str:
        for word, length in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
            if size_bytes >= length:
                return f"{size_bytes / length:.3g} {word}"
        return f"{size_bytes} B"


def _local(moment: datetime) -> str:
    return moment.astimezone().isoformat(sep=" ", timespec="seconds")
