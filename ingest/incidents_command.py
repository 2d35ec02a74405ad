"""`onestreet incidents`: what is broken, since when and whose fault it is; and windows in which silence is meant.

Exit status: 0 done; 1 it could not be done (a store that is away, is none or lets nobody read); 2 a wrong command line
(no such window, too) or configuration.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from exchange.errors import ConfigError, OnestreetError
from exchange.incident_kinds import CALLED
from exchange.moments import rfc3339
from exchange.topics import COUNTY, LEVEL
from ingest.config import Config, load_config, store_of
from ingest.days import HOUR_MS
from ingest.watch.incidents import KEPT_MS, KINDS, MEASUREMENT, Incident, incident_of
from ingest.watch.maintenance import (
    FIRST_YEAR,
    LAST_YEAR,
    WHY,
    Window,
    add_window,
    aware,
    end_window,
    moment,
    new_id,
    read_windows,
    span_ms,
    utc,
)

if TYPE_CHECKING:
    from argparse import _SubParsersAction

CONFIG = Path("/etc/onestreet/ingest.toml")
SINCE = "7d"
LOOK_DEADLINE_S = 5.0
LOOK_BACK_MS = 24 * HOUR_MS
"""So long the store is asked whether there is what a window is for, and so far back."""
_KINDS = {kind: f"{called.en.lower()} {called.zh_tw}" for kind, called in CALLED.items()}
_CAUSES = {
    "gateway_offline": "its connection broke or it was stopped 連線中斷或停機",
    "gateway_silent": "connected, but nothing comes of any device 連線中但所有設備無資料",
    "gateway_says": "its gateway does not reach it 閘道器讀不到設備",
    "silent": "no sample for two intervals, on a radio for as many as its losses ask for 超過容許時間無資料",
    "states_emptied": "its states were emptied, its devices wait for another 狀態已清除，設備等待新閘道器",
    "changes_often": "it went down too often in an hour 一小時內斷線次數過多",
    "row_claimed_twice": "two samples have one time 兩筆樣本同一時間",
    "two_speak": "two gateways state this device 兩部閘道器都回報此設備",
}


class Asked(NamedTuple):
    """What a listing is about. `since_ms` is the least time at which it was open."""

    since_ms: int
    show: str
    county: str
    site: str
    device: str
    kind: str

    def takes(self, one: Incident) -> bool:
        """Whether an incident is meant."""
        return (
            (self.show != "open" or not one.ended_ms)
            and (self.show != "closed" or bool(one.ended_ms))
            and (not one.ended_ms or one.ended_ms >= self.since_ms)
            and self.county in ("", one.county)
            and self.site in ("", one.site)
            and self.device in ("", one.device)
            and self.kind in ("", one.kind)
        )


def run(argv: Sequence[str]) -> int:
    """Do what is asked and return the exit status. Raises: ConfigError, StoreError."""
    asked = parser().parse_args(argv)
    status: int = asked.act(load_config(asked.config), asked)
    return status


def parser() -> argparse.ArgumentParser:
    """Return the command's arguments."""
    parser = argparse.ArgumentParser(
        prog="onestreet incidents",
        description="What is broken, since when, and what it takes along 目前與過去的異常事件",
        epilog="exit status 結束代碼: 0 done 完成; 1 could not be done 無法執行;"
        " 2 wrong command line or configuration 指令或設定錯誤",
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    one = _action(actions, "list", "incidents, the newest first 列出事件，最新的在前", _list)
    shown = one.add_mutually_exclusive_group()
    for name, words in (("closed", "those that are over 已結束"), ("all", "both 全部")):
        shown.add_argument(f"--{name}", dest="show", action="store_const", const=name, help=words)
    one.set_defaults(show="open")
    one.add_argument(
        "--since",
        default=SINCE,
        metavar="TIME",
        help="open at any time since: 30m, 12h, 7d or 2026-11-22T08:00, default: %(default)s 此時之後",
    )
    one.add_argument("--county", default="", help="縣市")
    one.add_argument("--site", default="", help="場域")
    one.add_argument("--device", default="", help="the culprit 肇因設備")
    one.add_argument("--kind", default="", choices=["", *KINDS], metavar="KIND", help="類別")
    one.add_argument("--json", action="store_true", help="for programs 供程式讀取")
    words = "windows in which silence is meant 維護時段：期間不告警、不計入妥善率"
    windows = actions.add_parser("maintenance", help=words, description=words)
    doing = windows.add_subparsers(dest="doing", required=True, metavar="ACTION")
    one = _action(doing, "add", "a new window 新增", _add, which="COUNTY[/SITE]")
    one.add_argument("--device", metavar="ID", help="a gateway's is its devices', too 設備或閘道器")
    one.add_argument("--from", dest="begin", metavar="TIME", help="default: now 預設為現在")
    until = one.add_mutually_exclusive_group(required=True)
    until.add_argument("--for", dest="span", metavar="SPAN", help="90m, 4h, 2d 為期")
    until.add_argument("--to", dest="end", metavar="TIME", help="2026-11-22T17:00 結束時間")
    one.add_argument("--why", default="", help="事由")
    one = _action(doing, "list", "windows, the latest first 列出", _list_windows)
    one.add_argument("--json", action="store_true", help="for programs 供程式讀取")
    one = _action(doing, "end", "end or cancel one 提前結束或取消", _end, which="ID")
    return parser


def _action(
    actions: _SubParsersAction[argparse.ArgumentParser],
    name: str,
    words: str,
    act: Callable[[Config, argparse.Namespace], int],
    *,
    which: str = "",
) -> argparse.ArgumentParser:
    one: argparse.ArgumentParser = actions.add_parser(name, help=words, description=words)
    if which:
        one.add_argument("which", metavar=which)
    where = "the watch's ingest.toml, default: %(default)s"
    one.add_argument("config", type=Path, nargs="?", default=CONFIG, help=where)
    one.set_defaults(act=act)
    return one


# Incidents


def _list(config: Config, asked: argparse.Namespace) -> int:
    now_ms = _now_ms()
    since_ms = _since_ms(asked.since, config, now_ms)
    wanted = Asked(since_ms, asked.show, asked.county, asked.site, asked.device, asked.kind)
    found = asyncio.run(_read(config, asked.config, wanted))
    if asked.json:
        listed = [_as_json(one, now_ms) for one in found]
        whole = {"open": sum(one["open"] for one in listed), "incidents": listed}
        sys.stdout.write(f"{json.dumps(whole, indent=1)}\n")  # ASCII alone: nothing to escape
        return 0
    for one in found:
        _say(_line(one, config, now_ms))
    still = sum(not one.ended_ms for one in found)
    _say(f"{len(found)} incidents 件事件, {still} open 件未結")
    return 0


async def _read(config: Config, file: Path, asked: Asked) -> list[Incident]:
    store = store_of(config, file)
    try:
        start_ns = max(asked.since_ms - KEPT_MS, 0) * 1_000_000
        found = [incident_of(row) async for row in store.rows(MEASUREMENT, start_ns=start_ns)]
    finally:
        await store.close()
    taken = [one for one in found if one is not None and asked.takes(one)]
    return sorted(taken, key=lambda one: (one.began_ms, one.id), reverse=True)


def _as_json(one: Incident, now_ms: int) -> dict[str, Any]:
    row = msgspec.to_builtins(one)
    del row["began_ms"], row["ended_ms"]
    ended = {"ended": _utc(one.ended_ms)} if one.ended_ms else {}
    return {
        "id": one.id,
        "open": not one.ended_ms,
        "began": _utc(one.began_ms),
        **ended,
        "duration_s": ((one.ended_ms or now_ms) - one.began_ms) / 1000,
        **row,
    }


def _line(one: Incident, config: Config, now_ms: int) -> str:
    lasted = _span((one.ended_ms or now_ms) - one.began_ms)
    state = "ended 已結束" if one.ended_ms else "OPEN 未結"
    label = "" if one.label in ("", one.device) else f" {one.label}"
    along = f", {one.devices} devices 部設備" if one.kind.startswith("gateway") else ""
    return (
        f"{_local(one.began_ms, config, one.county)}  {lasted:>7}  {state}  {_KINDS[one.kind]}"
        f"  {one.county}/{one.site}/{one.device}{label}{along}: {_CAUSES.get(one.cause, one.cause)}"
    )


# Maintenance windows


def _add(config: Config, asked: argparse.Namespace) -> int:
    county, slash, site = asked.which.partition("/")
    if county not in config.counties:
        allowed = f"one of {', '.join(config.counties)}, as the configuration has them 縣市"
        raise ConfigError("command line", "COUNTY", county, allowed)
    # One that is empty is wrong, too: a shell's variable that is not set, and nobody means the county by it.
    for key, level in (("SITE", site if slash else None), ("--device", asked.device)):
        if level is not None and not LEVEL.fullmatch(level):
            raise ConfigError("command line", key, level, f"must match {LEVEL.pattern} 格式不符")
    if not WHY.fullmatch(asked.why):
        allowed = "one line of at most 200 letters 一行，最多 200 字"
        raise ConfigError("command line", "--why", asked.why, allowed)
    begin, end = _begin_and_end(config, asked, county)
    window = Window(
        id=new_id(),
        county=county,
        site=site or None,
        device=asked.device,
        begin=begin,
        end=end,
        why=asked.why,
    )
    add_window(config.watch.maintenance, window, config.zone)
    _say(f"{window.id}  {_window(window, config)}")
    if doubt := asyncio.run(_doubt(config, asked.config, window)):
        sys.stderr.write(f"{doubt}\n")
    return 0


def _begin_and_end(
    config: Config, asked: argparse.Namespace, county: str
) -> tuple[datetime, datetime]:
    zone, now = config.zone(county), utc(_now_ms())
    begin = now if asked.begin is None else _moment(asked.begin, "--from", config, county)
    if asked.end is not None:
        key, text = "--to", asked.end
        end = _moment(text, key, config, county)
    else:
        key, text = "--for", asked.span
        try:
            end = begin.astimezone(UTC) + timedelta(milliseconds=span_ms(text))
            end = aware(end, zone)
        except ValueError as error:
            raise ConfigError("command line", key, text, str(error)) from error
    if end.astimezone(UTC) <= begin.astimezone(UTC):
        allowed = "must be after its beginning 須晚於開始"
        raise ConfigError("command line", key, text, allowed)
    if end <= now:
        allowed = "it would be over already 時段已過"
        raise ConfigError("command line", key, text, allowed)
    return begin.astimezone(zone), end.astimezone(zone)


async def _doubt(config: Config, file: Path, window: Window) -> str:
    """Return what is to be said of a window for what the store has not; nothing where it cannot be asked."""
    if window.site is None and window.device is None:
        return ""
    try:
        async with asyncio.timeout(LOOK_DEADLINE_S):
            sites = await _sites(config, file, window)
    except (OnestreetError, OSError):  # a time-out, too: a window needs no store
        return ""
    if window.site in sites or (window.site is None and sites):
        return ""
    name, name_zh = ("device", "設備") if window.device else ("site", "場域")
    where = f"; it is at 它位於 {', '.join(sorted(sites))}" if window.device and sites else ""
    return (
        f"beware 注意: the watch knows no such {name}{where}; the window holds all the same"
        f" 監看服務查無此{name_zh}，時段仍已新增"
    )


async def _sites(config: Config, file: Path, window: Window) -> set[str]:
    """Return the sites at which its device is, or all of its county. Raises: ConfigError, StoreError."""
    store = store_of(config, file)
    try:
        if window.device is None:
            return set(await store.sites("device", window.county))
        since_ns = (_now_ms() - LOOK_BACK_MS) * 1_000_000
        rows = store.rows("device", device=window.device, start_ns=since_ns)
        named = {row.series async for row in rows}
        return {series.site for series in named if series.county == window.county}
    finally:
        await store.close()


def _list_windows(config: Config, asked: argparse.Namespace) -> int:
    windows = read_windows(config.watch.maintenance, config.zone)
    windows.sort(key=lambda one: (one.begin, one.id), reverse=True)
    if asked.json:
        sys.stdout.write(f"{json.dumps(msgspec.to_builtins(windows), indent=1)}\n")
        return 0
    now_ms = _now_ms()
    for one in windows:
        state = "over 已過" if one.end_ms <= now_ms else "now 進行中"
        state = "to come 未到" if one.begin_ms > now_ms else state
        _say(f"{one.id}  {state}  {_window(one, config)}")
    _say(f"{len(windows)} windows 個時段: {config.watch.maintenance}")
    return 0


def _end(config: Config, asked: argparse.Namespace) -> int:
    end_window(config.watch.maintenance, asked.which, config.zone, utc(_now_ms()))
    _say(f"{asked.which}: ended 已結束")
    return 0


def _window(one: Window, config: Config) -> str:
    place = "/".join(level for level in (one.county, one.site, one.device) if level)
    begin, end = (_local(each, config, one.county) for each in (one.begin_ms, one.end_ms))
    return f"{begin} – {end}  {place}  {one.why}".rstrip()


# Words


def _since_ms(text: str, config: Config, now_ms: int) -> int:
    try:
        return now_ms - span_ms(text)
    except ValueError:
        when = _moment(text, "--since", config, config.counties[0])
        return round(when.timestamp() * 1000)


def _moment(text: str, key: str, config: Config, county: str) -> datetime:
    try:
        return moment(text, config.zone(county))
    except ValueError as error:
        allowed = (
            "a time such as 2026-11-22T08:00 (the county's) or 2026-11-22T00:00Z,"
            f" in the years {FIRST_YEAR} to {LAST_YEAR} 時間，年份須在此範圍"
        )
        raise ConfigError("command line", key, text, allowed) from error


def _local(time_ms: int, config: Config, county: str) -> str:
    zone = config.zone(county if COUNTY.fullmatch(county) else "")
    return f"{utc(time_ms).astimezone(zone):%Y-%m-%d %H:%M}"


def _utc(time_ms: int) -> str:
    return rfc3339(utc(time_ms))


def _span(for_ms: int) -> str:
    minutes = max(for_ms, 0) // 60_000
    if minutes < 60:
        return f"{minutes}m"
    if minutes < 48 * 60:
        return f"{minutes // 60}h{minutes % 60:02}m"
    return f"{minutes // 1440}d{minutes % 1440 // 60:02}h"


def _say(text: str) -> None:
    """Print a line without what would move a terminal's cursor: labels are anybody's words."""
    sys.stdout.write(f"{''.join(each if each.isprintable() else '�' for each in text)}\n")


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
