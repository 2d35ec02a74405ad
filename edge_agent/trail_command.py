"""`onestreet edge commands`: what this gateway was ordered, by whom, and what came of it.

The agent is asked; while none runs, a copy of its ledger is read, so that nothing of the agent's is touched.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from edge_agent.ledger import FILE, LedgerBlocked, read_trail
from edge_agent.status_command import Down, Lang, Places, down, fetched, language, places
from edge_agent.terminal_text import Row, Text, cut, table
from edge_agent.trail import LAST_MAX, Order, Trail, decode_trail, encode_trail, trail_of
from exchange.gateway_paths import CONFIG

if TYPE_CHECKING:
    from argparse import _SubParsersAction

DOCUMENT = "commands"
LAST = 20
_CHINESE = {
    "taken": "時間",
    "device": "設備",
    "command": "命令",
    "result": "結果",
    "by": "來源",
    "reason": "原因",
    "accepted": "已受理",
    "done": "已執行",
    "failed": "執行失敗",
    "expired": "已逾時",
    "rejected": "被拒絕",
    "under way": "執行中",
    "nothing was ordered yet": "尚無命令",
    "the agent does not answer; this is what its ledger holds": "代理程式沒有回應，以下為其留下的紀錄",
    "the trail cannot be read": "無法讀取命令紀錄",
}


def add_parser(actions: _SubParsersAction[Any]) -> None:
    """Add the subcommand's arguments."""
    words = "what this gateway was ordered, and what came of it 顯示命令紀錄"
    action = actions.add_parser("commands", help=words, description=words)
    action.add_argument(
        "--last",
        type=_number,
        default=LAST,
        metavar="N",
        help=f"so many, up to {LAST_MAX} 顯示最近幾筆; default: {LAST}",
    )
    action.add_argument("--json", action="store_true", help="print the document 輸出 JSON")
    action.add_argument(
        "--socket", type=Path, metavar="FILE", help="the agent's; default: as in the configuration"
    )
    action.add_argument("--config", type=Path, default=CONFIG, help="default: %(default)s")
    action.add_argument(
        "--lang", choices=["en", "zh-TW"], help="default: what LANG says 語言，預設依 LANG"
    )


def carry_out(arguments: argparse.Namespace) -> int:
    """Show the newest orders; return 0 when they could be had, else 1."""
    at = places(arguments.config)
    if arguments.socket is not None:
        at = at._replace(socket=arguments.socket)
    lang: Lang = arguments.lang or language(os.environ)
    why, trail = _found(at)
    trail = msgspec.structs.replace(trail, orders=trail.orders[: arguments.last])
    if arguments.json:
        sys.stdout.write(encode_trail(trail).decode() + "\n")
        return int(bool(trail.problem))
    if trail.problem:
        lines = [Text(f"{_say('the trail cannot be read', lang)}: {trail.problem}")]
        lines += down(why, at.state, lang) if why else []
    else:
        if why is not None:
            words = _say("the agent does not answer; this is what its ledger holds", lang)
            sys.stderr.write(f"{words}\n")
        lines = shown(trail, lang)
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 10**6
    for line in lines:
        sys.stdout.write(f"{cut(line.words, width)}\n")
    return int(bool(trail.problem))


def shown(trail: Trail, lang: Lang) -> list[Text]:
    """Return the orders as a table, the oldest first, so that the newest stands where the eye is."""
    if not trail.orders:
        return [Text(_say("nothing was ordered yet", lang))]
    head = ("taken", "device", "command", "result", "by", "reason")
    rows = [Row([_say(word, lang) for word in head])]
    return table([*rows, *(_row(order, lang) for order in reversed(trail.orders))])


def _row(order: Order, lang: Lang) -> Row:
    args = [f"{name}={_plain(value)}" for name, value in order.args.items()]
    return Row(
        [
            order.taken.astimezone().isoformat(sep=" ", timespec="seconds"),
            order.device,
            " ".join([order.name, *args]),
            _say(order.status or "under way", lang),
            order.by,
            order.reason,
        ]
    )


def _found(at: Places) -> tuple[Down | None, Trail]:
    """Return the trail, and why it is not the agent's own answer."""
    document = asyncio.run(fetched(at.socket, DOCUMENT))
    try:
        if not isinstance(document, Down):
            return None, decode_trail(document)
        return document, trail_of(read_trail(at.state / FILE, LAST_MAX))
    except (msgspec.MsgspecError, LedgerBlocked) as error:
        return document if isinstance(document, Down) else None, Trail(problem=str(error))


def _plain(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value}"


def _say(words: str, lang: Lang) -> str:
    return _CHINESE.get(words, words) if lang == "zh-TW" else words


def _number(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= LAST_MAX:
        words = f"{text!r} is not a number from 1 to {LAST_MAX} 應為 1 到 {LAST_MAX} 的整數"
        raise argparse.ArgumentTypeError(words)
    return int(text)
