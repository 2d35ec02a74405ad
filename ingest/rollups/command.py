"""`onestreet rollups run|once|baseline`: hours and days from raw rows, until SIGTERM or once; what lamps took."""

from __future__ import annotations

import argparse
import asyncio
import logging
import math
import sys
from collections.abc import Coroutine, Sequence
from contextlib import AsyncExitStack
from datetime import date
from pathlib import Path
from typing import Any

from exchange import health, runtime
from exchange.errors import ConfigError
from ingest.config import Config, load_config, rollup_stores
from ingest.days import DAY_NS, HOUR_NS
from ingest.rollups.baseline import measured
from ingest.rollups.engine import Engine, Pace, Retention
from ingest.rollups.metrics import serving
from ingest.stores import StoreUnavailable

log = logging.getLogger(__name__)

CONFIG = Path("/etc/onestreet/ingest.toml")
ONCE_PATIENCE_S = 60.0
"""So long may the store be away from `once`, which somebody waits for."""
YEARS = range(2000, 2100)


def run(argv: Sequence[str]) -> int:
    """Run the subcommand and return its exit status. Raises: ConfigError."""
    parser = _parser()
    asked = parser.parse_args(argv)
    if asked.action != "run" and asked.first and asked.last and asked.first > asked.last:
        parser.error(f"--from {asked.first} --to {asked.last}: {_ORDER}")
    runtime.log_to_stderr()
    file: Path = asked.config
    work = _baseline if asked.action == "baseline" else _main
    return runtime.run(work(load_config(file), file, asked))


def engine(config: Config, file: Path, patience_s: float = math.inf) -> Engine:
    """Return the engine that a configuration asks for, and that gives a store up after so long. Raises: ConfigError."""
    raw, kept = rollup_stores(config, file)
    settings = config.rollups
    return Engine(
        raw,
        kept,
        {county: config.zone(county) for county in config.counties},
        sites=settings.sites,
        pace=Pace(
            every_s=settings.every_s,
            recent_ns=settings.recent_h * HOUR_NS,
            whole_ns=settings.whole_days * DAY_NS,
            settle_ns=round(settings.settle_s * 1e9),
            share=settings.share,
        ),
        retention=Retention(
            (settings.raw_retention_days or 0) * DAY_NS, (settings.retention_days or 0) * DAY_NS
        ),
        vendor_metrics=settings.vendor_metrics,
        patience_s=patience_s,
    )


async def _main(config: Config, file: Path, asked: argparse.Namespace) -> int:
    patience_s = ONCE_PATIENCE_S if asked.action == "once" else math.inf
    stop, made = runtime.stop_on_signals(), engine(config, file, patience_s)
    settings = config.rollups
    async with AsyncExitStack() as around:
        around.push_async_callback(made.close)
        if asked.action == "once":
            work = made.once(asked.first, asked.last, anew=asked.anew)
            try:
                return await _until(stop, work, made)
            except StoreUnavailable as error:
                sys.stderr.write(f"{_NO_STORE}: {error}\n")
                return 1
        await around.enter_async_context(health.answering(made.judge))
        try:
            where = settings.metrics_host, settings.metrics_port
            await around.enter_async_context(serving(*where, made))
        except OSError as error:
            allowed = f"must be free, at an address of this machine: {error.strerror}"
            raise ConfigError(str(file), "rollups.metrics_port", where[1], allowed) from error
        runtime.notify("READY=1")
        await _until(stop, made.run(), made)
        return 0


async def _baseline(config: Config, file: Path, asked: argparse.Namespace) -> int:
    """Print what the lamps of each site took; return 1 where nothing is known."""
    raw, kept = rollup_stores(config, file)
    zones = {county: config.zone(county) for county in config.counties}
    try:
        found = measured(kept, zones, config.rollups.sites, asked.first, asked.last)
        every = [site.text(each=asked.each) async for site in found]
    finally:
        for store in {id(store): store for store in (raw, kept)}.values():
            await store.close()
    if not every:
        sys.stderr.write(f"{_NO_NIGHTS}\n")
        return 1
    sys.stdout.write("\n\n".join([_PASTE, *every]) + "\n")
    return 0


async def _until(stop: asyncio.Event, work: Coroutine[Any, Any, None], made: Engine) -> int:
    """Work until it is done or told to stop; return 0 when it was done, and all of it."""
    working = asyncio.create_task(work, name="rollups")
    stopping = asyncio.create_task(stop.wait(), name="stop")
    await asyncio.wait([working, stopping], return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    done = working.done()
    if done:
        working.result()  # raises what it raised
    else:
        runtime.notify("STOPPING=1")
        # Anywhere is a good place to stop: what is not made is found to be missing by the next pass.
        working.cancel()
        await asyncio.wait([working])
    log.info("stopped", extra={"counts": made.counts})
    left = made.counts.skipped + made.counts.rejected + made.counts.mistakes
    return 0 if done and not left else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="onestreet rollups", description=_WORDS)
    actions = parser.add_subparsers(dest="action", required=True, metavar="run|once|baseline")
    running = actions.add_parser("run", help="until SIGTERM", description=_WORDS)
    once = actions.add_parser("once", help="one pass, then end", description=_WORDS)
    baseline = actions.add_parser("baseline", help=_BASELINE, description=_BASELINE)
    for each in (running, once, baseline):
        each.add_argument("config", type=Path, nargs="?", default=CONFIG, help="%(default)s")
    for key, dest, words in (("--from", "first", _NIGHTS), ("--to", "last", _LAST_NIGHT)):
        baseline.add_argument(key, dest=dest, type=_day, metavar="DATE", required=True, help=words)
    baseline.add_argument("--each", action="store_true", help=_EACH)
    once.add_argument("--from", dest="first", type=_day, metavar="DATE", help=_FROM)
    once.add_argument("--to", dest="last", type=_day, metavar="DATE", help=_TO)
    once.add_argument("--anew", action="store_true", help=_ANEW)
    return parser


def _day(text: str) -> date:
    try:
        day = date.fromisoformat(text)
    except ValueError:
        day = date.min
    if day.year not in YEARS:
        raise argparse.ArgumentTypeError(f"{text!r}: {_DATE}")
    return day


_DATE = "a day as 2026-11-23, from 2000 to 2099 日期須如 2026-11-23，自 2000 至 2099 年"
_ORDER = "the first day comes first 起始日不得晚於結束日"
_NO_STORE = "the store does not answer; what is made stays 儲存服務沒有回應，已完成的統計仍保留"
_WORDS = "hours and days of devices and sites, from raw rows 由原始資料彙整每小時與每日統計"
_BASELINE = (
    "what lamps took while they burned, as settings to paste 實測路燈亮燈時的瓦數，可直接貼入設定"
)
_NIGHTS = (
    "the day on which the first of these nights begins, before lamps are dimmed 調光前第一晚的日期"
)
_LAST_NIGHT = "the day on which the last of them begins 最後一晚的日期"
_EACH = "each lamp's watts, too 同時列出每盞燈"
_NO_NIGHTS = (
    "no night of a lamp is known in these days: onestreet rollups once --from --to makes them "
    "這段期間沒有路燈的夜間統計"
)
_PASTE = """# To the site's [[site]] in the town's file (then onestreet town init), or to its entry in [rollups.sites].
# Nights already made are told against it after onestreet rollups once --anew.
# 貼入縣市檔案的 [[site]]（再執行 onestreet town init），或 [rollups.sites] 中的場域。
# 已統計的夜晚以 onestreet rollups once --anew 重算。"""
_FROM = "first civil day, YYYY-MM-DD; default: as far back as is looked through daily 起始日"
_TO = "last civil day, YYYY-MM-DD; default: today 結束日"
_ANEW = "make all of it anew, as after a change of settings 全部重新計算，例如變更設定之後"
