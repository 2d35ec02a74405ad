"""Roll-ups on each store: whatever happens on the way, they say what one pass over everything says."""

from __future__ import annotations

import asyncio
import logging
import random
import sys
import time
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Sequence
from datetime import date, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import aiohttp
import msgspec
import pytest

from exchange.dictionary import dictionary
from exchange.towns import LEAST_RETENTION_DAYS
from ingest.days import DAY_NS, HOUR_NS, day_of
from ingest.registry import DeviceId, Registered
from ingest.rollups import engine as engine_module
from ingest.rollups.derivations import DERIVATIONS
from ingest.rollups.engine import FOR_EVER, RAW_BESIDE, Engine, Pace, Retention
from ingest.rollups.settings import SiteSettings
from ingest.rollups.site_days import DAY, FAULT_DAY, HOUR, MEASUREMENTS, SITE_DAY, SITE_HOUR
from ingest.rollups.statistics import names
from ingest.stores import (
    Part,
    Place,
    Point,
    Series,
    Store,
    StoreRejected,
    StoreUnavailable,
    open_store,
)
from ingest.watch import rows as watch_rows
from ingest.watch.figures import Figures
from ingest.watch.incidents import Incident
from ingest.watch.liveness import Status
from ingest.watch.rows import Shown
from tests.brokers import Broker
from tests.gateways import COUNTY, Ingest, until
from tests.influx import Influx
from tests.ports import free_port

TAIPEI = ZoneInfo("Asia/Taipei")
BERLIN = ZoneInfo("Europe/Berlin")
MINUTE_NS = 60 * 10**9
FIRST = date(2026, 10, 24)
"""Before the night in which Berlin's clocks are put back."""
EPOCH = 1_790_000_000_123


@pytest.fixture(params=["sqlite", "influxdb"])
async def stores(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[Store, Store]]:
    """Where raw rows are and where hours and days go."""
    if request.param == "sqlite":
        raw = kept = open_store(f"sqlite:///{tmp_path}/rows.sqlite")
    else:
        server: Influx = request.getfixturevalue("influx")
        raw_bucket, kept_bucket = server.bucket(), server.bucket()
        monkeypatch.setenv("INFLUX_TOKEN", raw_bucket.token)
        raw = open_store(raw_bucket.url)
        monkeypatch.setenv("INFLUX_TOKEN", kept_bucket.token)
        kept = open_store(kept_bucket.url)
    await raw.open()
    await kept.open()
    yield raw, kept
    await raw.close()
    if kept is not raw:
        await kept.close()


def engine(
    stores: tuple[Store, Store],
    now_ns: int,
    *,
    zone: ZoneInfo = TAIPEI,
    retention: Retention = FOR_EVER,
    share: float = 1.0,
    site: SiteSettings | None = None,
    every_s: float = 600.0,
) -> Engine:
    pace = Pace(
        every_s=every_s,
        recent_ns=48 * HOUR_NS,
        whole_ns=6 * 24 * HOUR_NS,
        settle_ns=2 * MINUTE_NS,
        share=share,
    )
    return Engine(
        *stores,
        {"tw-tpe": zone},
        sites={} if site is None else {"tw-tpe": site},
        pace=pace,
        retention=retention,
        now_ns=lambda: now_ns,
    )


async def rows(store: Store, measurement: str) -> list[Point]:
    found = [point async for point in store.rows(measurement)]
    return sorted(found, key=lambda point: (point.series, point.time_ns))


async def everything(store: Store) -> dict[str, list[Point]]:
    return {measurement: await rows(store, measurement) for measurement in MEASUREMENTS}


def lamp_row(minute: int, device: str = "lamp-1", **fields: float | int | str) -> Point:
    """A row so many minutes after the first day's midnight in Taipei."""
    time_ns = day_of(TAIPEI, FIRST).start_ns + minute * MINUTE_NS + 123
    series = Series("streetlight", "tw-tpe", "street", device)
    return Point(series, time_ns, {"epoch": EPOCH, "seq": minute, **fields})


def of(points: Sequence[Point], device: str, hour: int) -> Point:
    start_ns = day_of(TAIPEI, FIRST).start_ns + hour * HOUR_NS
    [found] = [p for p in points if p.series.device == device and p.time_ns == start_ns]
    return found


def fields(point: Point, *names: str) -> dict[str, float | int | str | None]:
    return {name: point.fields.get(name) for name in names}


async def test_hours_and_days_of_devices_and_sites_are_made(stores: tuple[Store, Store]) -> None:
    raw, kept = stores
    await raw.write(
        [
            lamp_row(10, power=60.0, lit=1),
            lamp_row(20, power=61.0, lit=0),
            lamp_row(30, power=65.0, lit=1, quality="bad:stuck(power)"),
            lamp_row(61, power=50.0, lit=0),
            lamp_row(15, "lamp-2", power=10.0),
            lamp_row(16, "lamp-2", power=90.0, quality="bad:fault"),
        ]
    )
    after = day_of(TAIPEI, FIRST).end_ns + HOUR_NS
    await engine(stores, after).once()
    hours = await rows(kept, HOUR)
    assert [(point.series.device, point.series.domain) for point in hours] == [
        ("lamp-1", "streetlight"),
        ("lamp-1", "streetlight"),
        ("lamp-2", "streetlight"),
    ]
    wanted = {"rows": 3, "power_count": 2, "power_min": 60.0, "power_max": 61.0, "power_mean": 60.5}
    first = of(hours, "lamp-1", 0)
    assert fields(first, *wanted) == wanted
    wanted = {"lit_count": 3, "lit_last": 1.0, "lit_s": 600.0 + 900.0}
    assert fields(first, *wanted) == wanted  # the last value holds for hold_s
    assert "lit_mean" not in first.fields
    wanted = {"rows": 1, "basis": 3, "power_mean": 50.0, "lit_s": 0.0}
    assert fields(of(hours, "lamp-1", 1), *wanted) == wanted
    assert fields(of(hours, "lamp-2", 0), "rows", "power_count") == {"rows": 2, "power_count": 1}
    [one, two] = await rows(kept, DAY)
    wanted = {"rows": 4, "power_count": 3, "power_min": 50.0, "power_mean": 57.0, "lit_last": 0.0}
    assert fields(one, *wanted) == wanted
    assert one.time_ns == two.time_ns == day_of(TAIPEI, FIRST).start_ns
    [hour_0, hour_1] = await rows(kept, SITE_HOUR)
    assert fields(hour_0, "devices", "rows") == {"devices": 2, "rows": 5}
    assert fields(hour_1, "devices", "rows") == {"devices": 1, "rows": 1}
    [day] = await rows(kept, SITE_DAY)
    assert fields(day, "devices", "rows") == {"devices": 2, "rows": 6}
    assert day.series == Series("site_day", "tw-tpe", "street", "", "streetlight")


async def test_days_that_are_not_asked_for_are_left_alone(stores: tuple[Store, Store]) -> None:
    raw, kept = stores
    await raw.write([lamp_row(minute, power=60.0) for minute in range(0, 3 * 1440, 30)])
    end_ns = day_of(TAIPEI, FIRST).start_ns + 4 * DAY_NS
    second = FIRST + timedelta(days=1)
    await engine(stores, end_ns).once(second, second)
    own = day_of(TAIPEI, second)
    for measurement in (HOUR, DAY, SITE_HOUR, SITE_DAY):
        times = {point.time_ns for point in await rows(kept, measurement)}
        assert times == set(own.hours if measurement in (HOUR, SITE_HOUR) else [own.start_ns])


async def test_what_is_not_over_is_not_made(stores: tuple[Store, Store]) -> None:
    raw, kept = stores
    await raw.write([lamp_row(minute, power=60.0) for minute in range(0, 180, 10)])
    hour_1_over = day_of(TAIPEI, FIRST).start_ns + 2 * HOUR_NS
    await engine(stores, hour_1_over + MINUTE_NS).once()
    assert len(await rows(kept, HOUR)) == 1  # settles
    await engine(stores, hour_1_over + 3 * MINUTE_NS).once()
    assert len(await rows(kept, HOUR)) == 2
    assert await rows(kept, DAY) == []


async def test_clocks_that_are_put_back_make_a_day_of_25_hours(
    stores: tuple[Store, Store],
) -> None:
    raw, kept = stores
    day = day_of(BERLIN, date(2026, 10, 25))
    series = Series("air", "tw-tpe", "street", "aq-7")
    points = [
        Point(series, day.start_ns + n * 30 * MINUTE_NS, {"epoch": 1, "co2": 400.0 + n})
        for n in range(-2, 52)
    ]
    await raw.write(points)
    await engine(stores, day.end_ns + 30 * HOUR_NS, zone=BERLIN).once()
    before, own, after = await rows(kept, DAY)
    assert (before.fields["rows"], own.fields["rows"], after.fields["rows"]) == (2, 50, 2)
    assert after.time_ns - own.time_ns == 25 * HOUR_NS
    assert len(await rows(kept, HOUR)) == 27


async def test_a_late_row_corrects_what_looks_at_it(stores: tuple[Store, Store]) -> None:
    raw, kept = stores
    points = [lamp_row(minute, power=60.0, lit=1) for minute in range(0, 30 * 60, 20)]
    late = [each for each in points if 100 < each.fields["seq"] < 180]  # type: ignore[operator]  # it is an int
    await raw.write([each for each in points if each not in late])
    now_ns = day_of(TAIPEI, FIRST).end_ns + 20 * HOUR_NS
    await engine(stores, now_ns).once()
    before = await everything(kept)
    await raw.write(late[::-1])
    made = engine(stores, now_ns)
    await made.once()
    assert made.counts.points == 2 * 2 + 2  # the hour and the one after, which looks at it; the day
    corrected = await everything(kept)
    assert corrected != before
    made = engine(stores, now_ns)
    await made.once()
    assert (made.counts.points, made.counts.raw_rows) == (0, 0)
    await engine(stores, now_ns).once(anew=True)
    assert await everything(kept) == corrected


async def test_a_night_that_ends_is_written_beside_the_day_that_stays(
    stores: tuple[Store, Store],
) -> None:
    raw, kept = stores
    lamps = [f"lamp-{number}" for number in range(60)]  # more than a question names
    await raw.write(
        [
            lamp_row(minute, lamp, power=60.0, energy=float(minute), lit=1)
            for minute in range(0, 40 * 60, 30)
            for lamp in lamps
        ]
    )
    midnight_ns = day_of(TAIPEI, FIRST).end_ns
    await engine(stores, midnight_ns + HOUR_NS, site=SITE).once()
    [early, *_] = await rows(kept, DAY)
    made = engine(stores, midnight_ns + 14 * HOUR_NS, site=SITE)
    await made.once()
    [late, *_] = await rows(kept, DAY)
    assert not nightly(early), "half a night is none"
    assert float(late.fields["night_energy_wh"]) == pytest.approx(24 * 60, rel=0.05)
    values = {name for name in early.fields if name.startswith(("power_", "energy_m", "lit_"))}
    assert values
    assert {name: late.fields[name] for name in values} == {
        name: early.fields[name] for name in values
    }
    # An hour of the day itself changes everything of one device, and nothing of the others.
    await raw.write([lamp_row(605, "lamp-7", power=600.0, energy=605.0)])
    made = engine(stores, midnight_ns + 14 * HOUR_NS, site=SITE)
    await made.once()
    assert made.counts.points == 2 * 2 + 2 + 1  # it burned all day: that stands in a row of its own

    [changed] = [row for row in await rows(kept, DAY) if row.series.device == "lamp-7"]
    assert changed.fields["power_max"] == 600.0
    [site] = await rows(kept, SITE_DAY)
    assert fields(site, "devices", "rows") == {"devices": 60, "rows": 60 * 48 + 1}


def nightly(point: Point) -> set[str]:
    return {name for name in point.fields if name.startswith("night_")}


async def test_a_night_is_told_when_it_is_over_and_what_is_known_already_before(
    stores: tuple[Store, Store],
) -> None:
    raw, kept = stores
    midnight_ns = day_of(TAIPEI, FIRST).end_ns
    meter = Series("power", "tw-tpe", "street", "meter")
    # Nothing comes after 23:00, so no count tells that the night is over.
    for minute in range(19 * 60, 23 * 60, 10):
        out = lamp_row(minute, "out", power=0.0, level=100.0, energy=0.0)
        burns = lamp_row(minute, "burns", power=60.0, level=100.0, energy=float(minute))
        imported: dict[str, float | int | str] = {"epoch": EPOCH, "energy_import": float(minute)}
        await raw.write([out, burns, Point(meter, out.time_ns, imported)])
    for now_ns in (midnight_ns + HOUR_NS, midnight_ns + 11 * HOUR_NS):
        await engine(stores, now_ns, site=SITE).once()
        points = [*await rows(kept, DAY), *await rows(kept, SITE_DAY)]
        assert {point.series.domain for point in points} == {"power", "streetlight"}
        assert not set().union(*map(nightly, points))
        [site] = [p for p in points if p.series.measurement == SITE_DAY and "lamps_out" in p.fields]
        assert site.fields["lamps_out"] == 1
        assert [row.series.device for row in await rows(kept, FAULT_DAY)] == ["out"]
    await engine(stores, midnight_ns + 13 * HOUR_NS, site=SITE).once()
    made = await everything(kept)
    assert all("night_energy_wh" in point.fields for point in made[DAY])
    [lamps] = [point for point in made[SITE_DAY] if point.series.domain == "streetlight"]
    assert nightly(lamps) >= {"night_energy_wh", "night_saved_wh", "night_saved_low_wh"}
    again = engine(stores, midnight_ns + 13 * HOUR_NS, site=SITE)
    await again.once()
    assert again.counts.points == 0
    # Days that are past are made at once, and the same.
    await again.once(anew=True)
    assert await everything(kept) == made
    # Late samples of the morning correct it.
    await raw.write([lamp_row(25 * 60, "burns", power=60.0, level=100.0, energy=25.0 * 60)])
    await engine(stores, midnight_ns + 13 * HOUR_NS, site=SITE).once()
    [corrected] = [p for p in await rows(kept, SITE_DAY) if p.series.domain == "streetlight"]
    assert float(corrected.fields["night_energy_wh"]) > float(lamps.fields["night_energy_wh"])


async def test_no_row_tells_of_a_bay(stores: tuple[Store, Store]) -> None:
    raw, kept = stores
    start_ns = day_of(TAIPEI, FIRST).start_ns
    spoken = {"bay-1": (10, 40, 41, 1500), "bay-2": (70,), "bay-3": (5,), "bay-4": (1490,)}
    for device, minutes in spoken.items():
        for seq, minute in enumerate(minutes):
            row = {"epoch": EPOCH, "seq": seq, "occupied": seq % 2, "battery_voltage": 3.0}
            series = Series("parking", "tw-tpe", "street", device)
            await raw.write([Point(series, start_ns + minute * MINUTE_NS, {**row})])
    now_ns = start_ns + 2 * DAY_NS + HOUR_NS
    await engine(stores, now_ns).once()
    made = await everything(kept)
    assert {measurement for measurement in made if made[measurement]} == {SITE_HOUR, SITE_DAY}
    assert {point.series.device for measurement in made for point in made[measurement]} == {""}
    one, two = made[SITE_DAY]
    wanted = {"devices": 3, "bays": 3, "rows": 5, "arrivals": 1}
    assert fields(one, *wanted) == wanted
    assert fields(two, "devices", "bays", "rows") == {"devices": 2, "bays": 2, "rows": 2}
    # Nothing is made twice, and what comes late makes the site's rows anew.
    again = engine(stores, now_ns)
    await again.once()
    assert (again.counts.points, again.counts.raw_rows) == (0, 0)
    late = Series("parking", "tw-tpe", "street", "bay-2")
    await raw.write([Point(late, start_ns + 80 * MINUTE_NS, {"epoch": EPOCH, "occupied": 1})])
    again = engine(stores, now_ns)
    await again.once()
    assert again.counts.points == 1 + 1  # the hour and the day
    [one, _] = await rows(kept, SITE_DAY)
    assert fields(one, "rows", "arrivals") == {"rows": 6, "arrivals": 2}


async def test_days_of_faults_stand_in_rows_of_their_own(stores: tuple[Store, Store]) -> None:
    raw, kept = stores
    by_night = range(19 * 60, 24 * 60 + 5 * 60, 10)
    lamps = {"good": 0, "faulty": 1, "out": 1}
    points = [
        lamp_row(minute, lamp, power=60.0 * (1 - fault), level=100.0, lamp_fault=fault)
        for lamp, fault in lamps.items()
        for minute in by_night
    ]
    await raw.write(points)
    # What burns by day, and one that goes on and off.
    await raw.write([lamp_row(minute, "burner", power=60.0) for minute in range(600, 900, 10)])
    await raw.write(
        [lamp_row(minute, "cycler", power=30.0 * (minute // 10 % 3)) for minute in by_night]
    )
    now_ns = day_of(TAIPEI, FIRST).end_ns + 13 * HOUR_NS
    await engine(stores, now_ns, site=SITE).once()

    async def faults() -> dict[str, str]:
        return {
            row.series.device: " ".join(
                name for name in ("faulty", "day_burner", "cycling") if row.fields[name]
            )
            for row in await rows(kept, FAULT_DAY)
        }

    assert await faults() == {
        "burner": "day_burner",
        "cycler": "cycling",
        "faulty": "faulty",
        "out": "faulty",
    }
    [burner] = [row for row in await rows(kept, FAULT_DAY) if row.series.device == "burner"]
    assert burner.time_ns == day_of(TAIPEI, FIRST).start_ns
    assert float(burner.fields["day_burning_s"]) > 17_000
    # What has no fault after all says so: no store takes a row back. 15 minutes of an hour are a fault.
    tunnel = msgspec.structs.replace(SITE, fault_s=7200.0, burns_by_day=["burner"])
    await engine(stores, now_ns, site=tunnel).once(anew=True)
    assert await faults() == {"burner": "", "cycler": "cycling", "faulty": "", "out": ""}


async def test_rows_that_were_deleted_change_nothing(
    tmp_path: Path,
) -> None:
    store = open_store(f"sqlite:///{tmp_path}/rows.sqlite")
    await store.write([lamp_row(minute, power=60.0) for minute in range(0, 1440, 7)])
    now_ns = day_of(TAIPEI, FIRST).end_ns + 20 * HOUR_NS
    await engine((store, store), now_ns).once()
    made = await everything(store)
    await store.delete_before("streetlight", lamp_row(700).time_ns, most=1000)
    await engine((store, store), now_ns).once()
    assert await everything(store) == made
    await store.close()


DOMAINS = ("streetlight", "air", "parking", "power")
METRICS = {
    "streetlight": ("power", "energy", "lit", "lamp_fault"),
    "air": ("pm2_5", "pm10", "co2"),
    "parking": ("occupied", "battery_voltage"),
    "power": ("power", "energy_import"),
}
SWITCHES = {"lit", "lamp_fault", "occupied"}
SITE = SiteSettings(lat=25.03, lon=121.56, lamp_w=80.0)


def some_days(seed: int) -> list[Point]:
    """Return rows of three days in four domains, with gaps, bad values and devices that come and go."""
    chance = random.Random(seed)
    start_ns = day_of(TAIPEI, FIRST).start_ns
    points = []
    for domain in DOMAINS:
        for site in ("north", "south"):
            for number in range(chance.randrange(1, 4)):
                series = Series(domain, "tw-tpe", site, f"{domain}-{number}")
                minute, seq = chance.randrange(0, 900), 0
                while minute < 3 * 1440:
                    row: dict[str, float | int | str] = {"epoch": EPOCH, "seq": seq}
                    for metric in METRICS[domain]:
                        if metric in SWITCHES:
                            row[metric] = chance.randrange(2)
                        elif chance.random() < 0.9:
                            row[metric] = round(chance.uniform(1, 90), 2) + minute * (
                                metric.startswith("energy")
                            )
                    if chance.random() < 0.1:
                        row["quality"] = chance.choice(
                            ["bad:fault", "uncertain:warmup", f"bad:stuck({METRICS[domain][0]})"]
                        )
                    points.append(Point(series, start_ns + minute * MINUTE_NS + 123, row))
                    minute += chance.choice([7, 13, 20, 20, 25, 300])
                    seq += 1
    return points


def fields_read(domain: str) -> set[str]:
    """Return what is read back of the hours of a domain to make days of."""
    written = DERIVATIONS[domain].written
    return {"rows", "basis", "stuck", *names(domain, [*dictionary()[domain].metrics]), *written}


class Interrupted(BaseException):
    """The process was killed here."""


class Killed:
    """A store whose user is killed at its n-th question or write."""

    def __init__(self, store: Store, after: int) -> None:
        self._store, self.left = store, after

    def _count(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise Interrupted

    def __getattr__(self, name: str) -> object:
        if name in ("write", "counts", "device_rows", "sites"):
            self._count()
        return getattr(self._store, name)


@pytest.mark.parametrize("seed", range(4))
async def test_pieces_in_any_order_with_kills_give_what_one_pass_gives(
    stores: tuple[Store, Store], tmp_path: Path, seed: int
) -> None:
    raw, kept = stores
    chance = random.Random(seed)
    points = some_days(seed)
    end_ns = day_of(TAIPEI, FIRST).start_ns + 4 * 24 * HOUR_NS
    # What is right: everything is there, and one pass is made.
    whole = open_store(f"sqlite:///{tmp_path}/whole.sqlite")
    await whole.write(points)
    await engine((whole, whole), end_ns, site=SITE).once()
    right = await everything(whole)
    again = engine((whole, whole), end_ns, site=SITE)
    await again.once()
    assert again.counts.points == 0, "one pass makes everything"
    await whole.close()
    for hour in right[HOUR]:
        assert hour.fields.keys() <= fields_read(hour.series.domain)
    # The same in pieces that come in any order, while passes begin and are killed.
    now_ns = day_of(TAIPEI, FIRST).start_ns
    chance.shuffle(points)
    for start in range(0, len(points), 400):
        await raw.write(points[start : start + 400])
        now_ns = min(now_ns + chance.randrange(4, 30) * HOUR_NS, end_ns)
        killed = Killed(kept, chance.randrange(1, 50))
        try:
            pair: tuple[Store, Store] = (raw, killed)  # type: ignore[assignment]  # it passes all on
            await engine(pair, now_ns, site=SITE).once()
        except Interrupted:
            pass
    await engine(stores, end_ns, site=SITE).once()
    settled = await everything(kept)
    for measurement in MEASUREMENTS:
        assert settled[measurement] == right[measurement]


class Listened:
    """A store whose questions are counted, and how many devices they are about."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.asked: list[str] = []

    def __getattr__(self, name: str) -> object:
        found = getattr(self._store, name)
        if name != "device_rows":
            self.asked.append(name)
            return found

        def asking(part: Part, fields: Sequence[str]) -> object:
            self.asked.append(part.measurement)
            return found(part, fields)

        return asking


async def test_nobody_is_asked_about_devices_where_the_site_says_enough(
    stores: tuple[Store, Store],
) -> None:
    await stores[0].write(
        [
            lamp_row(minute, f"lamp-{number}", power=60.0, energy=float(minute))
            for minute in range(0, 50 * 60, 20)
            for number in range(3)
        ]
    )
    now_ns = day_of(TAIPEI, FIRST).end_ns + 14 * HOUR_NS
    await engine(stores, now_ns, site=SITE).once()
    raw, kept = Listened(stores[0]), Listened(stores[1])
    pair: tuple[Store, Store] = (raw, kept)  # type: ignore[assignment]  # they pass all on
    await engine(pair, now_ns, site=SITE).once()
    assert (raw.asked.count("sites"), {*raw.asked}) == (len(dictionary()), {"sites", "counts"})
    assert kept.asked == [SITE_HOUR, SITE_DAY]
    # An hour more: what is new of it, and no hour of any device is read back.
    raw.asked.clear()
    kept.asked.clear()
    made = engine(pair, now_ns + HOUR_NS, site=SITE)
    await made.once()
    assert made.counts.points == 3 + 1
    assert raw.asked.count("streetlight") == 1
    assert kept.asked == [SITE_HOUR, SITE_DAY, "write", "write"]


# A store that is away, or refuses


class Away:
    """A store that fails for a while, or always what begins with a word."""

    def __init__(self, store: Store, error: Exception, times: int, what: str) -> None:
        self._store, self._error, self.times, self._what = store, error, times, what

    def __getattr__(self, name: str) -> object:
        if self.times and name == self._what:
            self.times -= 1
            raise self._error
        return getattr(self._store, name)


@pytest.fixture
async def local(tmp_path: Path) -> AsyncIterator[Store]:
    store = open_store(f"sqlite:///{tmp_path}/rows.sqlite")
    await store.write([lamp_row(minute, power=60.0) for minute in range(0, 1440, 30)])
    yield store
    await store.close()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "BACK_OFF_S", (0.001, 0.01))


AFTER_NS = day_of(TAIPEI, FIRST).end_ns + 20 * HOUR_NS


async def test_a_store_that_is_away_is_waited_for_and_said_once(
    local: Store, impatient: None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "ingest.rollups")
    away = Away(local, StoreUnavailable("refused", kind="refused"), 4, "write")
    pair: tuple[Store, Store] = (local, away)  # type: ignore[assignment]  # it passes all else on
    made = engine(pair, AFTER_NS)
    await made.once()
    assert made.counts.skipped == 0
    assert len(await rows(local, HOUR)) == 24
    assert [record.getMessage() for record in caplog.records] == [
        "roll-ups wait for the store: refused",
        "roll-ups go on",
    ]


async def test_what_the_store_never_manages_holds_up_nothing_else(
    local: Store, impatient: None
) -> None:
    series = Series("air", "tw-tpe", "street", "aq-7")
    await local.write([Point(series, lamp_row(5).time_ns, {"epoch": 1, "co2": 400.0})])

    class TooMuch(Away):
        def device_rows(self, part: Part, *asked: object, **further: object) -> object:
            if part.measurement == "air":
                raise StoreUnavailable("too much", kind="timeout")
            return self._store.device_rows(part, *asked, **further)  # type: ignore[arg-type]  # as asked

    pair: tuple[Store, Store] = (TooMuch(local, StoreUnavailable(""), 0, ""), local)  # type: ignore[assignment]  # as above
    made = engine(pair, AFTER_NS)
    await made.once()
    assert made.counts.skipped == 1
    assert {point.series.domain for point in await rows(local, HOUR)} == {"streetlight"}


async def test_what_the_store_rejects_is_said_and_left(
    local: Store, caplog: pytest.LogCaptureFixture
) -> None:
    away = Away(local, StoreRejected("field type conflict"), 1, "write")
    pair: tuple[Store, Store] = (local, away)  # type: ignore[assignment]  # as above
    made = engine(pair, AFTER_NS)
    await made.once()
    assert made.counts.rejected == 1
    assert "the store rejects a roll-up: field type conflict" in caplog.text
    await made.once()
    assert len(await rows(local, HOUR)) == 24


class Clock:
    """Time of the engine that goes on by hand: while it rests, and when a store is asked."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.worked_s: list[float] = []
        """Between one rest and the next."""
        self.rested_s: list[float] = []
        self._since_s = self.now_s

    def monotonic(self) -> float:
        return self.now_s

    def time(self) -> float:
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        self.worked_s.append(self.now_s - self._since_s)
        self.rested_s.append(seconds)
        self.now_s += seconds
        self._since_s = self.now_s


class Slow(Away):
    """A store that takes half a second to write."""

    def __init__(self, store: Store, clock: Clock) -> None:
        super().__init__(store, StoreUnavailable(""), 0, "")
        self._clock = clock

    async def write(self, points: Sequence[Point]) -> None:
        self._clock.now_s += 0.5
        await self._store.write(points)


async def test_it_leaves_the_store_to_others(local: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    for name in ("time", "asyncio"):  # all that it takes of them
        monkeypatch.setattr(engine_module, name, clock)
    pair: tuple[Store, Store] = (local, Slow(local, clock))  # type: ignore[assignment]  # as above
    await engine(pair, AFTER_NS, share=0.25).once()
    assert sum(clock.worked_s) > 0
    assert clock.rested_s == pytest.approx([3 * worked_s for worked_s in clock.worked_s])


async def test_old_rows_go_when_both_retentions_say_so(local: Store) -> None:
    await engine((local, local), AFTER_NS).once()
    before = await everything(local)
    later_ns = AFTER_NS + 5 * DAY_NS
    made = engine((local, local), later_ns, retention=Retention(3 * DAY_NS, 0))
    running = asyncio.create_task(made.run())
    await until(lambda: made.counts.deleted == 48)
    assert await rows(local, "streetlight") == []
    running.cancel()
    assert await everything(local) == before, "hours and days stay"
    made = engine((local, local), later_ns, retention=Retention(3 * DAY_NS, 4 * DAY_NS))
    running_again = asyncio.create_task(made.run())
    kept = (DAY, SITE_DAY)
    left = [until(lambda name=name: none_left(local, name)) for name in kept]  # type: ignore[misc]  # its default is its type
    await asyncio.gather(*left)
    running_again.cancel()
    await asyncio.wait([running, running_again])


async def test_what_the_watch_says_goes_with_raw_rows(local: Store) -> None:
    day, place = day_of(TAIPEI, FIRST), Place("tw-tpe", "street", "air")
    known = Registered(
        name=DeviceId("tw-tpe", "aq-1"),
        site="street",
        gateway="gw-1",
        domain="air",
        online=True,
        interval_s=60.0,
        epoch=EPOCH,
        label="",
        asset_id="",
        lat=None,
        lon=None,
        transport="",
    )
    shown = Shown(Status.UP, day.start_ms, 1.0, "", flapping=False, gateway_up=True)
    counts = [0] * len(Status)
    said = {
        "device_row": watch_rows.device_row(known, shown, day.start_ms),
        "retired_row": watch_rows.retired_row(known.topic, day.start_ms),
        "site_row": watch_rows.site_row(place, counts, Figures(), None, day.start_ms),
        "county_row": watch_rows.county_row("tw-tpe", "air", counts, day.start_ms),
        "device_day_row": watch_rows.device_day_row(known, day, Figures(), None),
        "site_day_row": watch_rows.site_day_row(place, day, Figures()),
        "site_hour_row": watch_rows.site_hour_row(place, day.start_ms, counts, 1),
    }
    assert set(said) == {name for name in vars(watch_rows) if name.endswith("_row")}
    incident = Incident(
        kind="device_down",
        cause="silent",
        county="tw-tpe",
        site="street",
        device="aq-1",
        label="",
        began_ms=day.start_ms,
    )
    points = [*said.values(), incident.point(day.end_ms)]
    await local.write(points)
    measurements = {point.series.measurement for point in points}
    assert measurements | {"command"} == set(RAW_BESIDE)
    made = engine((local, local), AFTER_NS + 5 * DAY_NS, retention=Retention(5 * DAY_NS, 0))
    running = asyncio.create_task(made.run())
    await asyncio.gather(
        *[until(lambda name=name: none_left(local, name)) for name in measurements]  # type: ignore[misc]  # its default is its type
    )
    running.cancel()
    await asyncio.wait([running])


async def test_a_night_is_made_of_what_is_kept_for_the_least_time(local: Store) -> None:
    retention = Retention(LEAST_RETENTION_DAYS * DAY_NS, LEAST_RETENTION_DAYS * DAY_NS)
    midnight_ns = day_of(TAIPEI, FIRST).end_ns
    for late_h in (13, 36):  # when it is over, and when the roll-ups were away for a day
        made = engine((local, local), midnight_ns + late_h * HOUR_NS, retention=retention)
        await made.once(anew=True)
        [day] = await rows(local, DAY)
        assert "night_burning_s" in day.fields


async def none_left(store: Store, measurement: str) -> bool:
    return not await rows(store, measurement)


async def test_late_rows_are_looked_for_less_often_than_hours_that_are_over(
    local: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = engine((local, local), AFTER_NS, every_s=0.01)
    running = asyncio.create_task(made.run())
    await until(lambda: made.counts.passes >= 3)  # the first looked at everything
    written = made.counts.points
    await local.write([lamp_row(605, power=600.0)])  # ten hours after midnight, and it is 20 past
    passes = made.counts.passes
    await until(lambda: made.counts.passes >= passes + 3)
    assert made.counts.points == written
    newest = (AFTER_NS - day_of(TAIPEI, FIRST).start_ns) // MINUTE_NS - 100
    await local.write([lamp_row(newest, power=60.0)])
    await until(lambda: made.counts.points > written)
    written = made.counts.points
    monkeypatch.setattr(engine_module, "LATE_EVERY_S", 0.0)
    await until(lambda: made.counts.points > written)
    running.cancel()
    await asyncio.wait([running])
    assert of(await rows(local, HOUR), "lamp-1", 10).fields["power_max"] == 600.0


async def test_a_mistake_of_ours_is_said_and_holds_up_nothing_else(
    local: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    series = Series("air", "tw-tpe", "street", "aq-7")
    await local.write([Point(series, lamp_row(5).time_ns, {"epoch": 1, "co2": 400.0})])

    def mistaken(*_: object) -> dict[str, float]:
        raise ZeroDivisionError("of air")

    broken = DERIVATIONS["air"]._replace(hour=mistaken)
    monkeypatch.setitem(DERIVATIONS, "air", broken)
    made = engine((local, local), AFTER_NS)
    await made.once()
    assert made.counts.mistakes == 1
    assert caplog.text.count("ZeroDivisionError: of air") >= 1
    assert {point.series.domain for point in await rows(local, HOUR)} == {"streetlight"}


# The command


def configured(folder: Path, further: str = "") -> Path:
    file = folder / "ingest.toml"
    file.write_text(
        f"""counties = ["tw-tpe"]
store = "sqlite:///rows.sqlite"
[broker]
host = "127.0.0.1"
[rollups]
settle_s = 0
{further}
"""
    )
    return file


async def test_once_makes_the_days_that_are_named(local: Store, tmp_path: Path) -> None:
    file = configured(tmp_path)
    command = [sys.executable, "-m", "onestreet.cli", "rollups", "once", str(file)]
    for first, hours in (("2026-10-26", 0), ("2026-10-24", 24)):
        process = await asyncio.create_subprocess_exec(
            *command, "--from", first, "--to", "2026-10-26"
        )
        assert await process.wait() == 0
        assert len(await rows(local, HOUR)) == hours


async def test_run_keeps_making_and_ends_when_told(tmp_path: Path) -> None:
    port = free_port()
    file = configured(tmp_path, f"every_s = 1\nmetrics_port = {port}")
    store = open_store(f"sqlite:///{tmp_path}/rows.sqlite")
    await store.open()
    process = await asyncio.create_subprocess_exec(
        *[sys.executable, "-m", "onestreet.cli", "rollups", "run", str(file)], stderr=PIPE
    )
    try:

        async def page(name: str) -> str:
            async with aiohttp.ClientSession() as session:
                try:
                    async with session.get(f"http://127.0.0.1:{port}/{name}") as answer:
                        return await answer.text()
                except aiohttp.ClientError:
                    return ""

        async def has_passed() -> bool:
            assert process.returncode is None
            return (
                "onestreet_rollups_passes_total" in (said := await page("metrics"))
                and "onestreet_rollups_passes_total 0" not in said
            )

        await until(has_passed)
        assert await page("readyz") == "ready\n"
        hour_ago_ns = time.time_ns() - HOUR_NS - MINUTE_NS
        series = Series("air", "tw-tpe", "street", "aq-7")
        await store.write([Point(series, hour_ago_ns, {"epoch": 1, "co2": 400.0})])
        await until(lambda: rows(store, HOUR))
        process.terminate()
        _, said_last = await asyncio.wait_for(process.communicate(), 30)
        assert process.returncode == 0
        assert b"stopped" in said_last
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        await store.close()


async def test_ingest_of_a_small_town_makes_them_too(tmp_path: Path, broker: Broker) -> None:
    town = Ingest(tmp_path, broker)
    store = town.open_store()
    series = Series("air", COUNTY, "street", "aq-7")
    await store.write([Point(series, time.time_ns() - 3 * HOUR_NS, {"epoch": 1, "co2": 400.0})])
    command = [sys.executable, "-m", "onestreet.cli", "ingest", "run", str(town.file)]
    process = await asyncio.create_subprocess_exec(*command, "--with-rollups")
    try:
        await until(lambda: rows(store, HOUR))
        process.terminate()
        assert await asyncio.wait_for(process.wait(), 30) == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        await store.close()
    refused = await asyncio.create_subprocess_exec(
        *command, "--with-rollups", "--workers", "2", stderr=PIPE
    )
    _, said = await refused.communicate()
    assert refused.returncode == 2
    assert b"onestreet rollups run" in said


_ENDS = """
import sys
from ingest.rollups.engine import Engine

async def ends(self):
    raise ZeroDivisionError("of roll-ups")

Engine._recent = ends
from onestreet.cli import main
sys.exit(main(sys.argv[1:]))
"""


async def test_roll_ups_that_end_end_ingest_beside_them(tmp_path: Path, broker: Broker) -> None:
    town = Ingest(tmp_path, broker)
    command = [sys.executable, "-c", _ENDS, "ingest", "run", str(town.file), "--with-rollups"]
    process = await asyncio.create_subprocess_exec(*command, stderr=PIPE)
    try:
        _, said = await asyncio.wait_for(process.communicate(), 30)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 1
    assert b"ZeroDivisionError: of roll-ups" in said
