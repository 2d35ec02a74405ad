"""Every page on a simulated week of the example's first county: raw rows, our own roll-ups, the watch of an hour.

Nothing here knows how rows look: what writes them for operators writes them for this test.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from operator import itemgetter
from random import Random
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import pytest

from dashboards.judgement import Query, Store
from dashboards.pages import PAGES
from dashboards.panels import Page, Panel, Source
from exchange.dictionary import dictionary
from exchange.readings import Sample
from ingest.days import Days
from ingest.rollups.engine import Engine, Pace
from ingest.rollups.settings import SiteSettings
from ingest.stores import Point, open_store
from ingest.stores import Store as RowStore
from ingest.watch.lookout import Lookout, Now
from tests.influx import Influx
from tests.weeks import Week

pytestmark = pytest.mark.timeout(600)  # a week is made before the first test

ZONE = ZoneInfo("Asia/Taipei")
COUNTY, SITES = "tw-tpe", ("xinyi", "neihu")
ROLLED_UP_FROM = 3
"""Days after the first one; what is rolled up is read by ranges of three days at most, or as lines."""
HOUR_NS = 3600 * 10**9
WATCHED_S = 3600
STEP_S = 15
POINTS_A_WRITE = 1000


class Shown(NamedTuple):
    """A week that ends now, and where its rows are."""

    week: Week
    store: Store
    start_ms: int
    now_ms: int


def week_of_now(now_ms: int) -> Week:
    """Return the week whose seventh day is today."""
    today = datetime.fromtimestamp(now_ms / 1000, UTC).astimezone(ZONE).date()
    return Week(start=today - timedelta(days=6), lamps=5, bays=4)


async def write_week(week: Week, raw: RowStore, rollups: RowStore, now_ms: int) -> None:
    """Write what devices, roll-ups and watch leave by now."""
    await raw.open()
    await rollups.open()
    try:
        for site in SITES:
            await write_all(raw, list(week.points(site, now_ms)))
        await write_all(raw, watched(week, now_ms))
        sites = {
            f"{town.county}/{site.id}": SiteSettings(
                lat=site.location.lat, lon=site.location.lon, lamp_w=90.0
            )
            for town, site in (week.sites[name] for name in SITES)
        }
        pace = Pace(
            every_s=600, recent_ns=48 * HOUR_NS, whole_ns=168 * HOUR_NS, settle_ns=0, share=1.0
        )
        engine = Engine(
            raw, rollups, {COUNTY: ZONE}, sites=sites, pace=pace, now_ns=lambda: now_ms * 1_000_000
        )
        await engine.once(week.start + timedelta(days=ROLLED_UP_FROM))
        await engine.close()
    finally:
        await raw.close()
        await rollups.close()


async def write_all(store: RowStore, points: list[Point]) -> None:
    for start in range(0, len(points), POINTS_A_WRITE):
        await store.write(points[start : start + POINTS_A_WRITE])


def watched(week: Week, now_ms: int) -> list[Point]:
    """Return what the watch writes in the last hour, having begun with it."""
    days = Days(ZONE)
    lookout = Lookout(lambda _: days, every_s=300.0, flaps_per_h=6, random=Random(1))
    begun_ms = now_ms - 1000 * WATCHED_S
    begin = Now(0.0, begun_ms)
    lookout.seeing(begin, continued=False)
    heard = []
    for device in (one for site in SITES for one in week.devices(site)):
        lookout.take_state(device.topic, device.state, begin)
        for point in week.rows(device, now_ms):
            if point.time_ms >= begun_ms:
                epoch, seq = point.fields["epoch"], point.fields["seq"]
                heard.append((point.time_ms, device.topic, Sample(point.time_ms, epoch, seq, {})))  # type: ignore[arg-type]  # integers, as written
    heard.sort(key=itemgetter(0))
    written: list[Point] = []
    for second in range(0, WATCHED_S + 1, STEP_S):
        now = Now(float(second), begun_ms + 1000 * second)
        while heard and heard[0][0] <= now.ms:
            _, topic, sample = heard.pop(0)
            lookout.take_readings(topic, [sample], now)
        lookout.sweep(now)
        written += lookout.rows(now, 1_000_000)
        written += lookout.day_rows(now, STEP_S)
    return written


@pytest.fixture(scope="module")
def shown(influx: Influx) -> Shown:
    raw, rollups = influx.bucket(), influx.bucket()
    now_ms = time.time_ns() // 1_000_000
    week = week_of_now(now_ms)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("INFLUX_TOKEN", raw.token)
        raw_store = open_store(raw.url)
        environment.setenv("INFLUX_TOKEN", rollups.token)
        rollup_store = open_store(rollups.url)
    asyncio.run(write_week(week, raw_store, rollup_store, now_ms))
    buckets = {Source.RAW.value: raw.name, Source.ROLLUPS.value: rollups.name}
    permissions = [
        {
            "action": "read",
            "resource": {"type": "buckets", "id": bucket.id, "orgID": influx.org_id},
        }
        for bucket in (raw, rollups)
    ]
    asked = {"orgID": influx.org_id, "permissions": permissions}
    token: str = influx.call("POST", "/api/v2/authorizations", asked)["token"]
    return Shown(week, Store(influx.url, token, buckets), week.start_ms, now_ms)


def rows(
    shown: Shown,
    page: Page,
    panel: Panel,
    *,
    county: str = ".*",
    site: str = ".*",
    device: str = ".*",
) -> list[dict[str, Any]]:
    """Return the rows of all queries of a panel, over the week."""
    variables = {"county": county, "site": site, "device": device}
    time_range = f"time >= {shown.start_ms}ms AND time <= {shown.now_ms}ms"
    found = []
    for select in panel.asks:
        text = Query(page.name, panel.name, panel.source.value, str(select))
        for series in shown.store.ask(panel.source.value, text.filled(variables, time_range)):
            tags = series.get("tags", {})
            found += [
                {**tags, **dict(zip(series["columns"], row, strict=True))}
                for row in series["values"]
            ]
    return found


def panels() -> Iterator[tuple[Page, Panel, bool]]:
    for page in PAGES:
        for band in page.bands:
            for panel in band.panels:
                yield page, panel, bool(band.fold)


def panel_of(page: str, name: str) -> tuple[Page, Panel]:
    [found] = [(one, panel) for one, panel, _ in panels() if (one.name, panel.name) == (page, name)]
    return found


EMPTY = {
    "device.commands",  # nobody commands anything
    *("parking.broken", "air.broken", "gateways.broken"),  # only a lamp is silent
    "site.incomplete",  # and in the hour that the watch sees, nothing is lost
}
ABSENT = {
    "parking.lots": {"free_motorcycle"},
    "air.aqi by day": {"aqi_reference"},
    "air.stations": {"aqi_pm10", "aqi_o3", "aqi_co", "aqi_so2", "aqi_no2"},
    "gateways.outbox_hours_left": {"outbox_hours_left"},
    "gateways.dropped": {"dropped"},
    "gateways.health": {
        *("outbox_hours_left", "dropped", "bus_errors", "clock_known", "clock_offset"),
        *("memory", "disk_free"),
    },
    "device.states": {"gear_fault"},
    "site.troubled": {"age_s"},
}
"""What the week's devices do not measure; no station is of reference grade; the lamp was silent before the watch."""
OPEN = [(page, panel) for page, panel, folded in panels() if not folded]


def name_of(value: object) -> str:
    return getattr(value, "name", "")


@pytest.mark.parametrize(("page", "panel"), OPEN, ids=name_of)
def test_a_panel_shows_what_our_own_writers_write(shown: Shown, page: Page, panel: Panel) -> None:
    found = rows(shown, page, panel)
    name = f"{page.name}.{panel.name}"
    absent = ABSENT.get(name, set())
    if name in EMPTY or absent >= {field.name for field in panel.fields if not field.hidden}:
        assert found == []
        return
    assert found, [str(select) for select in panel.asks]
    for field in panel.fields:
        if field.name not in absent and name != "device.measured":
            there = [row[field.name] for row in found if row.get(field.name) is not None]
            assert there, f"{field.name} is never there"
            if field.unit == "share":
                assert all(0 <= one <= 1 for one in there), field.name


def test_charts_of_a_device_have_lines_for_what_devices_measure(shown: Shown) -> None:
    measured: dict[str, set[str]] = {}
    for device in (one for site in SITES for one in shown.week.devices(site)):
        points = shown.week.rows(device, shown.start_ms + 86_400_000)
        metrics = measured.setdefault(device.topic.domain, set())
        for point in points:
            metrics |= point.fields.keys() & dictionary()[device.topic.domain].metrics.keys()
    assert measured.keys() >= {"streetlight", "parking", "air", "power", "gateway"}
    for page, panel, folded in panels():
        if folded:
            domain = panel.name.split()[0]
            wanted = {one.name for one in panel.fields} & measured.get(domain, set())
            assert set().union(*rows(shown, page, panel)) - {"time"} == wanted, panel.name


def test_a_lamp_that_is_silent_is_the_first_thing_one_sees(shown: Shown) -> None:
    silent = shown.week.event("silent", "xinyi-lamp-5")
    county, site = silent.county, silent.site
    broken = rows(shown, *panel_of("overview", "broken"), county=county, site=site)
    assert [(row["kind"], row["device"]) for row in broken] == [("device_down", silent.device)]
    [down] = rows(shown, *panel_of("overview", "down"), county=county, site=site)
    assert down["down"] == 1
    [troubled] = rows(shown, *panel_of("site", "troubled"), county=county, site=site)
    assert (troubled["device"], troubled["state"]) == (silent.device, 2)


def test_a_lamp_with_a_fault_is_named_and_says_so_on_its_page(shown: Shown) -> None:
    faulty = shown.week.event("lamp_fault")
    found = rows(shown, *panel_of("streetlights", "out"), county=faulty.county, site=faulty.site)
    assert {row["device"] for row in found} == {faulty.device}
    said = rows(shown, *panel_of("device", "states"), site=faulty.site, device=faulty.device)
    assert {row["lamp_fault"] for row in said if row.get("lamp_fault") is not None} == {0, 1}
    bay = rows(shown, *panel_of("device", "states"), site=faulty.site, device="xinyi-bay-1")
    assert bay
    assert all(row.keys() == {"time", "state"} for row in bay), "it has no line of lamps"


def test_a_map_of_devices_draws_what_is_down_last(shown: Shown) -> None:
    silent = shown.week.event("silent", "xinyi-lamp-5")
    found = rows(shown, *panel_of("site", "map"), site=silent.site)
    found.sort(key=lambda row: float(row["worst"]))
    assert (found[-1]["device"], found[-1]["state"]) == (silent.device, 2)
    away = {row["state"]: row["worst"] for row in found}
    assert sorted(away, key=away.__getitem__) == [0, 2]
