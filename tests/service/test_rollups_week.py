"""Two days of the simulated week, rolled up in a real InfluxDB: the figures are what is true of them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import timedelta

import pytest

from ingest.days import HOUR_NS
from ingest.rollups.engine import FOR_EVER, Engine, Pace
from ingest.rollups.settings import SiteSettings
from ingest.rollups.site_days import DAY, SITE_DAY, SITE_HOUR
from ingest.stores import FieldValue, Point, Store, open_store
from tests.influx import Influx
from tests.weeks import HOUR_MS, Week, What

WEEK = Week(interval_s=600, days=6, lamps=3, bays=3, air=1)
DOMAINS = {
    "xinyi": "streetlight",
    "neihu": "streetlight",
    "station": "air",
    "shuinan": "air",
    "xinban": "parking",
}
"""What of each site is looked at: the rest would only take time."""
DAYS = (4, 5)
WATTS = 80.0

Cells = dict[tuple[str, int], dict[str, FieldValue]]


@pytest.fixture
async def closing() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


@pytest.fixture
async def rolled_up(
    influx: Influx, monkeypatch: pytest.MonkeyPatch, closing: AsyncExitStack
) -> Store:
    """What the engine made of two days, when the night of the second was over."""
    raw_bucket, kept_bucket = influx.bucket(), influx.bucket()
    monkeypatch.setenv("INFLUX_TOKEN", raw_bucket.token)
    raw = open_store(raw_bucket.url)
    monkeypatch.setenv("INFLUX_TOKEN", kept_bucket.token)
    kept = open_store(kept_bucket.url)
    for store in (raw, kept):
        await store.open()
        closing.push_async_callback(store.close)
    for site, domain in DOMAINS.items():
        points = [
            point
            for device in WEEK.devices(site)
            if device.topic.domain == domain
            for point in WEEK.rows(device)
            if point.time_ms >= WEEK.moment_ms(DAYS[0]) - HOUR_MS
        ]
        await raw.write(points)
    sites = {
        f"{town.county}/{site.id}": SiteSettings(
            lat=site.location.lat, lon=site.location.lon, lamp_w=WATTS
        )
        for town, site in WEEK.sites.values()
        if site.id in DOMAINS
    }
    now_ns = WEEK.end_ms * 1_000_000 + 13 * HOUR_NS
    pace = Pace(
        every_s=600,
        recent_ns=48 * HOUR_NS,
        whole_ns=9 * 24 * HOUR_NS,
        settle_ns=HOUR_NS // 30,
        share=1.0,
    )
    zones = {town.county: WEEK.zone for town in WEEK.towns}
    engine = Engine(
        raw, kept, zones, sites=sites, pace=pace, retention=FOR_EVER, now_ns=lambda: now_ns
    )
    await engine.once(*(WEEK.start + timedelta(days=day) for day in DAYS))
    return kept


async def cells(store: Store, measurement: str, domain: str, step_ms: int) -> Cells:
    """The fields of a site's rows by (site, number of the day or hour)."""
    points: list[Point] = [point async for point in store.rows(measurement)]
    return {
        (point.series.site, (point.time_ms - WEEK.start_ms) // step_ms): point.fields
        for point in points
        if point.series.domain == domain
    }


def tonight(what: What, day: int) -> list[str]:
    """The sites of lamps to which something happens in the night that begins on a day."""
    midnight_ms = WEEK.moment_ms(day, 23)
    return [e.site for e in WEEK.events if e.what == what and e.start_ms <= midnight_ms < e.end_ms]


async def test_the_figures_of_days_are_what_is_true_of_them(rolled_up: Store) -> None:
    lamps = await cells(rolled_up, SITE_DAY, "streetlight", 24 * HOUR_MS)
    assert set(lamps) == {(site, day) for site in ("xinyi", "neihu") for day in DAYS}
    for (site, day), fields in lamps.items():
        assert fields["lamps_out"] == tonight("lamp_fault", day).count(site), (site, day)
        assert fields["day_burners"] == int(site == "neihu"), (site, day)
        names = ("night_saved_low_wh", "night_saved_wh", "night_saved_high_wh")
        low, saved, high = (float(fields[name]) for name in names)
        assert low < saved < high

    air = await cells(rolled_up, SITE_HOUR, "air", HOUR_MS)
    assert set(air) == {
        (site, hour) for site in ("station", "shuinan") for hour in range(4 * 24, 6 * 24)
    }
    smog = WEEK.event("smog")
    began, ended = ((ms - WEEK.start_ms) // HOUR_MS for ms in (smog.start_ms, smog.end_ms))
    for (site, hour), fields in air.items():
        # Six hours make an index, and twelve are looked back to.
        if hour >= 4 * 24 + 6 and (site != smog.site or not began <= hour < ended + 12):
            assert (fields["aqi"], fields["indicative"]) == (40, 1), (site, hour)
    assert {air[smog.site, hour]["aqi"] for hour in range(began + 12, ended)} == {157}

    parking = await cells(rolled_up, SITE_DAY, "parking", 24 * HOUR_MS)
    full = WEEK.event("full")
    for (site, day), fields in parking.items():
        expected_s = (full.end_ms - full.start_ms) / 1000 if (site, day) == (full.site, 5) else 0
        assert fields["full_s"] == pytest.approx(expected_s, abs=1200)
        assert 0 < float(fields["occupancy"]) < 1

    lamp = WEEK.device("neihu-lamp-1")
    counted = [
        float(row.fields["energy"])
        for row in WEEK.rows(lamp)
        if WEEK.moment_ms(4) - 600_000 <= row.time_ms
    ]
    days = [float(point.fields["energy_wh"]) async for point in rolled_up.rows(DAY, device=lamp.id)]
    assert len(days) == 2
    assert sum(days) == pytest.approx(counted[-1] - counted[0], abs=0.1)
