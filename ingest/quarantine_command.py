"""`onestreet quarantine`: look at what was refused, have it judged again, or remove it.

Exit status: 0 done; 1 it could not be done (no such file or id, a locked file, one of a newer version, a store that is
away); 2 a wrong command line or configuration; 3 replay only: some payloads stay in the quarantine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import re
import sqlite3
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cbor2
import msgspec

from exchange.moments import rfc3339
from exchange.requirements import REQUIREMENTS
from ingest.config import Config, load_config, store_of
from ingest.quarantine import listing
from ingest.quarantine.database import Database
from ingest.quarantine.listing import Filter, Kept, Reason, Summary
from ingest.quarantine.replay import Replayed, replay
from ingest.quarantine.schema import QuarantineUnusable

if TYPE_CHECKING:
    from argparse import _SubParsersAction

CONFIG = Path("/etc/onestreet/ingest.toml")
LIMIT = 100
LOCK_S = 10.0
STAYS = 3
_UNITS_S = {"m": 60, "h": 3600, "d": 86_400}
# Source: RFC 8428, table 4.
_LABELS = {-3: "bt", -2: "bn", -1: "bver", 0: "n", 1: "u", 2: "v", 3: "vs", 4: "vb", 6: "t"}
_CBOR_DEPTH = 32


def run(argv: Sequence[str]) -> int:
    """Do what is asked and return the exit status. Raises: ConfigError, StoreError."""
    asked = parser().parse_args(argv)
    logging.getLogger("ingest").addHandler(logging.NullHandler())  # what is said is said here
    config = load_config(asked.config)
    try:
        status: int = asked.act(config, asked)
    except sqlite3.Error as error:
        raise QuarantineUnusable(f"{config.quarantine.path}: {error}") from error
    return status


def parser() -> argparse.ArgumentParser:
    """Return the command's arguments."""
    parser = argparse.ArgumentParser(
        prog="onestreet quarantine",
        description="What ingest refused: list, show, judge again, remove 檢視、重新處理或清除被拒的訊息",
        epilog="exit status 結束代碼: 0 done 完成; 1 could not be done 無法執行;"
        " 2 wrong command line or configuration 指令或設定錯誤; 3 replay: some stay 仍有未通過的訊息",
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    action = partial(_action, actions)
    one = action("list", "what is there, newest first 列出，最新的在前", _list)
    _filters(one)
    one.add_argument(
        "--limit",
        type=_positive,
        default=LIMIT,
        help="payloads shown, default: %(default)s 最多顯示筆數",
    )
    one.add_argument("--json", action="store_true", help="for programs 供程式讀取")
    one = action("show", "one payload, and what it broke 顯示一筆內容與被拒原因", _show)
    one.add_argument("id", type=_positive, metavar="ID")
    one = action(
        "replay", "judge again, and store what passes now 重新檢查，通過者寫入資料庫", _replay
    )
    one.add_argument("--id", type=_positive, help="this one alone 只處理這一筆")
    _filters(one)
    one = action("purge", "remove for good 永久清除", _purge)
    one.add_argument("--id", type=_positive, help="this one alone 只清除這一筆")
    _filters(one)
    one.add_argument("--all", action="store_true", help="everything 全部")
    one.add_argument("--yes", action="store_true", help="of --all: it is meant 確認清除全部")
    return parser


def _action(
    actions: _SubParsersAction[argparse.ArgumentParser],
    name: str,
    words: str,
    act: Callable[[Config, argparse.Namespace], int],
) -> argparse.ArgumentParser:
    one: argparse.ArgumentParser = actions.add_parser(name, help=words, description=words)
    one.add_argument(
        "config", type=Path, nargs="?", default=CONFIG, help="ingest.toml, default: %(default)s"
    )
    one.set_defaults(act=act)
    return one


def _filters(one: argparse.ArgumentParser) -> None:
    one.add_argument("--requirement", default="", metavar="EX-…", help="that broke this 違反的規定")
    one.add_argument("--county", default="", help="on a topic of this county 縣市")
    one.add_argument("--device", default="", help="on a topic of this device 設備")
    one.add_argument(
        "--since",
        type=_since_ms,
        metavar="TIME",
        help="received since: 30m, 12h, 7d, 2026-11-22 or 2026-11-22T08:00Z 此時之後收到的",
    )


def _filter(asked: argparse.Namespace) -> Filter:
    return Filter(
        id=asked.id if "id" in asked else None,
        requirement=asked.requirement,
        county=asked.county,
        device=asked.device,
        since_ms=asked.since,
    )


# ----------------------------------------------------------------------------------------- list, show


def _list(config: Config, asked: argparse.Namespace) -> int:
    chosen = _filter(asked)
    with listing.reading(config.quarantine.path) as connection:
        found = listing.kept(connection, chosen, limit=asked.limit)
        summary = listing.summary(connection, chosen)
    if asked.json:
        whole = msgspec.to_builtins(summary) | {"shown": [_as_json(one) for one in found]}
        sys.stdout.write(f"{json.dumps(whole, indent=1)}\n")  # ASCII alone: nothing to escape
        return 0
    for one in found:
        _say(_line(one))
    _say_summary(summary, len(found))
    return 0


def _as_json(one: Kept) -> dict[str, Any]:
    row: dict[str, Any] = one._asdict()
    row["received_at"] = _moment(row.pop("received_ms"))
    row["reasons"] = [reason._asdict() for reason in one.reasons]
    return row


def _line(one: Kept) -> str:
    counts: dict[str, int] = {}
    for reason in one.reasons:
        counts[reason.requirement] = counts.get(reason.requirement, 0) + 1
    broke = " ".join(_times(name, number) for name, number in counts.items())
    place = f"{one.county}/{one.device}" if one.device else one.topic
    detail = one.reasons[0].detail if one.reasons else ""
    return f"{one.id:>6}  {_moment(one.received_ms)}  {_short(place, 48)}  {broke}  {_short(detail, 80)}"


def _say_summary(summary: Summary, shown: int) -> None:
    _say(
        f"{summary.payloads} payloads 筆訊息, {summary.refusals} refusals 項違規"
        f" ({shown} shown 顯示 {shown} 筆)"
    )
    for words, counts in (
        ("by requirement 依規定", summary.by_requirement),
        ("by device 依設備", summary.by_device),
    ):
        if counts:
            _say(f"{words}: {_counts(counts)}")
    names = {"evicted": "evicted 汰舊", "replayed": "replayed 重新處理", "purged": "purged 清除"}
    gone = ", ".join(f"{names[what]} {sum(of.values())}" for what, of in summary.left.items())
    _say(f"refusals that left since the file was begun 已離開的違規: {gone}")


def _show(config: Config, asked: argparse.Namespace) -> int:
    with listing.reading(config.quarantine.path) as connection:
        found = listing.kept(connection, Filter(id=asked.id))
        body = listing.body(connection, asked.id)
    if not found:
        raise _no_such(asked.id, config)
    [one] = found
    _say(f"id 編號          {one.id}")
    _say(f"topic 主題       {one.topic}")
    _say(f"received 收到    {_moment(one.received_ms)}")
    _say(f"size 大小        {one.size_bytes} bytes")
    _say(f"SHA-256          {one.sha256}")
    _say("broke 違反")
    for reason in one.reasons:
        _say(f"  {_where(reason)}")
        _say(f"    {reason.detail}")
    for name in dict.fromkeys(reason.requirement for reason in one.reasons):
        if name in REQUIREMENTS:
            _say(f"  {name}: {REQUIREMENTS[name].text}")
    if body is None:
        _say("payload 內容: not kept, it came in a flood 在大量湧入時未保留")
        return 0
    if len(body) < one.size_bytes:
        _say(f"only the first {len(body)} bytes are kept 只保留前 {len(body)} 位元組")
    form, text = readable(body)
    _say(f"payload 內容 ({form}):")
    sys.stdout.write(f"{printable(text, lines=True)}\n")
    return 0


def _where(reason: Reason) -> str:
    parts = [reason.requirement]
    if reason.seq >= 0:
        parts.append(f"epoch {reason.epoch} seq {reason.seq}")
    if reason.metric:
        parts.append(f"metric {reason.metric}")
    return _times("  ".join(parts), reason.times)


def readable(body: bytes) -> tuple[str, str]:
    """Return a payload's form (JSON, CBOR, text, hex) and itself for people; not yet fit for a terminal."""
    try:
        text = body.decode()
    except UnicodeDecodeError:
        return _decoded_cbor(body) or ("hex", _hex(body))
    if text[:1] in tuple("[{ \t\r\n"):
        try:
            msgspec.json.decode(body)
            return "JSON", msgspec.json.format(body, indent=2).decode()
        except (msgspec.DecodeError, ValueError, RecursionError):
            return "text 文字", text
    return _decoded_cbor(body) or ("text 文字", text)


def _decoded_cbor(body: bytes) -> tuple[str, str] | None:
    """Return it when it is a map or an array and nothing else; what its tags mean is not worked out."""
    if not body or body[0] >> 5 not in (4, 5):
        return None
    try:
        content = cbor2.loads(body, semantic_decoders=_Tags(), max_depth=_CBOR_DEPTH)
        text = json.dumps(_named(content), indent=2, ensure_ascii=False)
    except (cbor2.CBORError, ValueError, TypeError, OverflowError, RecursionError, MemoryError):
        return None
    return "CBOR", text


class _Tags(dict[int, Callable[[Any, bool], Any]]):
    """Every tag as a text beside its content: to work some of them out would take seconds."""

    def __missing__(self, tag: int) -> Callable[[Any, bool], Any]:
        return lambda content, _immutable: {f"tag {tag}": content}


def _named(content: Any) -> Any:
    """Return what CBOR held as JSON holds it, SenML's labels by their names."""
    match content:
        case Mapping():
            return {
                _LABELS.get(key, str(key)) if type(key) is int else str(key): _named(value)
                for key, value in content.items()
            }
        case list() | tuple():
            return [_named(each) for each in content]
        case bytes():
            return content.hex()
        case bool() | int() | float() | str() | None:
            return content
        case _:
            return str(content)


def _hex(body: bytes) -> str:
    return "\n".join(
        f"{at:06x}  {body[at : at + 16].hex(' '):<47}  "
        + "".join(chr(byte) if 32 <= byte < 127 else "." for byte in body[at : at + 16])
        for at in range(0, len(body), 16)
    )


# -------------------------------------------------------------------------------------- replay, purge


def _replay(config: Config, asked: argparse.Namespace) -> int:
    database = _current(config)
    store = store_of(config, asked.config)
    done = Replayed()

    async def replay_all() -> None:
        try:
            await store.open()
            await replay(config, database, store, _filter(asked), done)
        finally:
            await store.close()

    try:
        if asked.id is not None:
            _check_there(config, asked.id)
        asyncio.run(replay_all())
    finally:
        database.close()
        _say_replayed(done)
    return STAYS if done.stay or done.cut or done.without_body else 0


def _say_replayed(done: Replayed) -> None:
    _say(
        f"passed and removed 通過並移出: {done.passed} payloads 筆訊息;"
        f" samples stored 寫入樣本: {done.samples}"
    )
    if done.stay:
        _say(f"still refused 仍被拒: {done.stay} payloads 筆訊息: {_counts(done.still)}")
    if done.cut:
        _say(f"cannot be replayed, larger than is kept 過大，未完整保留，無法重新處理: {done.cut}")
    if done.without_body:
        _say(
            "cannot be replayed, not kept in a flood 大量湧入時未保留內容，無法重新處理:"
            f" {done.without_body}"
        )


def _purge(config: Config, asked: argparse.Namespace) -> int:
    chosen = _filter(asked)
    if chosen.is_all != asked.all:
        sys.stderr.write("purge: filters, --id, or --all 請指定篩選條件、--id 或 --all\n")
        return 2
    if asked.id is not None:
        _check_there(config, asked.id)
    database = _current(config)
    try:
        with listing.reading(config.quarantine.path) as connection:
            numbers = listing.ids(connection, chosen)
        if asked.all and not asked.yes:
            sys.stderr.write(
                f"{len(numbers)} payloads would be removed for good: add --yes"
                f" 將永久清除 {len(numbers)} 筆訊息，確認請加上 --yes\n"
            )
            return 2
        gone = database.remove(numbers, "purged")
        if gone:
            database.shrink()
    finally:
        database.close()
    _say(f"removed 已清除: {gone} payloads 筆訊息")
    return 0


def _current(config: Config) -> Database:
    """Return the file for writing, brought up to date. Raises: QuarantineUnusable."""
    settings = config.quarantine
    listing.check_there(settings.path)
    database = Database(
        settings.path,
        max_bytes=settings.max_mb * 2**20,
        max_age_days=settings.max_age_days,
        lock_s=LOCK_S,
    )
    database.replace([])  # opens it
    return database


def _check_there(config: Config, number: int) -> None:
    with listing.reading(config.quarantine.path) as connection:
        if not listing.ids(connection, Filter(id=number)):
            raise _no_such(number, config)


def _no_such(number: int, config: Config) -> QuarantineUnusable:
    return QuarantineUnusable(
        f"{config.quarantine.path}: no payload {number} is in it: removed, evicted, or never there"
        f" 沒有編號 {number} 的訊息：已移出、汰舊或不存在"
    )


# ---------------------------------------------------------------------------------------------- words


def _positive(text: str) -> int:
    if not re.fullmatch(r"0*[1-9][0-9]{0,17}", text):
        raise argparse.ArgumentTypeError(f"{text!r}: a whole number above 0 應為大於 0 的整數")
    return int(text)


def _since_ms(text: str) -> int:
    if back := re.fullmatch(r"(\d{1,6})([mhd])", text, re.ASCII):
        return int((time.time() - int(back[1]) * _UNITS_S[back[2]]) * 1000)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        words = f"{text!r}: such as 30m, 12h, 7d, 2026-11-22 or 2026-11-22T08:00Z 時間格式不符"
        raise argparse.ArgumentTypeError(words) from None
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


def _moment(time_ms: int) -> str:
    try:
        return rfc3339(datetime.fromtimestamp(time_ms / 1000, UTC))
    except (ValueError, OverflowError, OSError):
        return f"{time_ms} ms"


def _times(words: str, number: int) -> str:
    return words if number == 1 else f"{words} ×{number}"


def _counts(counts: Mapping[str, int], most: int = 20) -> str:
    shown = ", ".join(f"{_short(name, 60)} {number}" for name, number in [*counts.items()][:most])
    return f"{shown}, …" if len(counts) > most else shown


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _say(line: str) -> None:
    sys.stdout.write(f"{printable(line)}\n")


def printable(text: str, *, lines: bool = False) -> str:
    """Return a text that does nothing to a terminal: what was refused may try to.

    Control characters, and those that turn the order of writing or cannot be seen, are written as escapes; with
    `lines` a line feed stays one.
    """
    return "".join(
        each
        if each.isprintable() or (lines and each == "\n")
        else each.encode("unicode_escape", "backslashreplace").decode()
        for each in text
    )
