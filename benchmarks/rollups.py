"""What roll-ups cost: days of a simulated week made at once, looked through when nothing is missing, then hour by hour.

The engine runs in this process on a real database, at the pace that costs most: it never rests.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import msgspec

from benchmarks.processes import BenchmarkFailed, Meter
from ingest.days import DAY_NS, HOUR_NS
from ingest.rollups.engine import Engine, Pace
from ingest.rollups.settings import SiteSettings
from ingest.stores import Store, open_store
from tests.influx import Bucket, Influx
from tests.weeks import Week


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What is rolled up: nine sites with so many lamps each, and some of everything else."""

    lamps: int = 100
    days: int = 2
    interval_s: int = 300


class Rolled(msgspec.Struct, frozen=True, kw_only=True):
    """What one pass cost."""

    what: str
    devices: int
    samples: int
    """Raw rows that it was about."""
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
    samples, devices = await week.write(raw), len([*week.devices()])
    end_ns = week.end_ms * 1_000_000
    # What is over by when: all but the last two hours; no more; an hour more; the last day and its night.
    steps = {
        "made": end_ns - 2 * HOUR_NS,
        "looked through": end_ns - 2 * HOUR_NS,
        "an hour": end_ns - HOUR_NS,
        "an hour, the day and its night": end_ns + 13 * HOUR_NS,
    }
    an_hour = devices * 3600 // plan.interval_s
    about = dict(zip(steps, (samples - 2 * an_hour,) * 2 + (an_hour,) * 2, strict=True))
    found = []
    for what, now_ns in steps.items():
        look_ns = (plan.days + 1) * DAY_NS
        pace = Pace(every_s=600, recent_ns=look_ns, whole_ns=look_ns, settle_ns=0, share=1)
        zones = {town.county: week.zone for town in week.towns}
        now = lambda now_ns=now_ns: now_ns  # noqa: E731 - of this turn
        engine = Engine(raw, kept, zones, sites=_sites(week), pace=pace, now_ns=now)
        meter, ours_s, began_s = Meter({"influxd": influxd}), time.process_time(), time.monotonic()
        await engine.once()
        counts = engine.counts
        if counts.skipped or counts.rejected or counts.mistakes:
            raise BenchmarkFailed(f"not everything was rolled up: {counts}")
        rolled = Rolled(
            what=what,
            devices=devices,
            samples=about[what],
            rows_read=counts.raw_rows,
            rows_written=counts.points,
            seconds=time.monotonic() - began_s,
            ours_s=time.process_time() - ours_s,
            store_s=meter.lap()["influxd"],
        )
        found.append(rolled)
    return found


def _sites(week: Week) -> dict[str, SiteSettings]:
    """Return settings with which everything is derived that there is."""
    return {
        f"{town.county}/{site.id}": SiteSettings(
            lat=site.location.lat, lon=site.location.lon, lamp_w=80.0
        )
        for town, site in week.sites.values()
    }


def _opened(bucket: Bucket, folder: Path) -> Store:
    file = folder / f"{bucket.name}.token"
    file.touch(mode=0o600)
    file.write_text(bucket.token)
    return open_store(bucket.url, token_file=file)


def table(passes: list[Rolled]) -> str:
    """Return the figures as a table."""
    lines = [
        f"{passes[0].devices:,} devices",
        "",
        "| pass | samples | rows read | written | s | CPU s, ours | influxd | a million samples, ours | influxd |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    lines += [
        f"| {one.what} | {one.samples:,} | {one.rows_read:,} | {one.rows_written:,} | {one.seconds:.1f}"
        f" | {one.ours_s:.2f} | {one.store_s:.2f}"
        f" | {one.a_million(one.ours_s):.2f} | {one.a_million(one.store_s):.2f} |"
        for one in passes
    ]
    return "\n".join(lines)
