"""What roll-ups cost: hours and days of a simulated week made at once, then looked through when nothing is missing.

The engine runs in this process on a real database, at the pace that costs most: it never rests.
"""

from __future__ import annotations

import os
import tempfile
import time
from datetime import timedelta
from pathlib import Path

import msgspec

from benchmarks.processes import BenchmarkFailed, Meter
from ingest.rollups.days import HOUR_NS
from ingest.rollups.engine import Engine, Pace
from ingest.stores import Store, open_store
from tests.influx import Bucket, Influx
from tests.weeks import Week

_DAY_NS = 24 * HOUR_NS


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What is rolled up: nine sites with so many lamps each, and some of everything else."""

    lamps: int = 100
    days: int = 7
    interval_s: int = 60


class Rolled(msgspec.Struct, frozen=True, kw_only=True):
    """What one pass cost."""

    what: str
    samples: int
    """Raw rows of the days that were looked through."""
    rows_read: int
    rows_written: int
    seconds: float
    ours_s: float
    """CPU of the engine."""
    store_s: float
    """CPU of the database."""

    def a_million(self, cpu_s: float) -> float:
        """Return CPU seconds for a million samples."""
        return 1e6 * cpu_s / self.samples


async def measure(plan: Plan) -> list[Rolled]:
    """Roll such a week up, and look through it again. Raises: BenchmarkFailed."""
    influxd = os.environ.get("ONESTREET_INFLUXD", "")
    if not os.access(influxd, os.X_OK):
        raise BenchmarkFailed("ONESTREET_INFLUXD must name influxd: `make bench` sees to it")
    with tempfile.TemporaryDirectory(prefix="onestreet-bench-") as name:
        folder = Path(name)
        influx = Influx(influxd, folder)
        try:
            influx.start()
            raw, kept = (_opened(influx.bucket(), folder) for _ in range(2))
            try:
                return await _measured(plan, raw, kept, influx.pid)
            finally:
                await raw.close()
                await kept.close()
        finally:
            influx.kill()


async def _measured(plan: Plan, raw: Store, kept: Store, influxd: int) -> list[Rolled]:
    week = Week(days=plan.days, interval_s=plan.interval_s, lamps=plan.lamps)
    samples = await week.write(raw)
    end_ns = week.end_ms * 1_000_000 + _DAY_NS  # so that the last night is over
    first, last = week.start, week.start + timedelta(days=plan.days)
    found = []
    for what in ("made", "looked through"):
        engine = Engine(
            raw,
            kept,
            {town.county: week.zone for town in week.towns},
            sites={},
            pace=Pace(every_s=600, recent_ns=2 * _DAY_NS, whole_ns=_DAY_NS, settle_ns=0, share=1),
            now_ns=lambda: end_ns,
        )
        meter, ours_s, began_s = Meter({"influxd": influxd}), time.process_time(), time.monotonic()
        await engine.once(first, last)
        counts = engine.counts
        if counts.skipped or counts.rejected:
            raise BenchmarkFailed(f"not everything was rolled up: {counts}")
        found.append(
            Rolled(
                what=what,
                samples=samples,
                rows_read=counts.raw_rows,
                rows_written=counts.points,
                seconds=time.monotonic() - began_s,
                ours_s=time.process_time() - ours_s,
                store_s=meter.lap()["influxd"],
            )
        )
    return found


def _opened(bucket: Bucket, folder: Path) -> Store:
    file = folder / f"{bucket.name}.token"
    file.touch(mode=0o600)
    file.write_text(bucket.token)
    return open_store(bucket.url, token_file=file)


def table(passes: list[Rolled]) -> str:
    """Return the figures as a table."""
    lines = [
        "| pass | samples | read | written | s | CPU s a million samples, ours | influxd |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    lines += [
        f"| {one.what} | {one.samples:,} | {one.rows_read:,} | {one.rows_written:,} | {one.seconds:.1f}"
        f" | {one.a_million(one.ours_s):.2f} | {one.a_million(one.store_s):.2f} |"
        for one in passes
    ]
    return "\n".join(lines)
