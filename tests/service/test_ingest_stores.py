"""The contract of a store: every test runs on every store."""

from __future__ import annotations

import asyncio
import math
import random
import sqlite3
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest

from exchange.errors import ConfigError, StoreError
from ingest.stores import (
    Count,
    DeviceRows,
    Part,
    Point,
    Series,
    Store,
    StoreRejected,
    StoreUnavailable,
    open_store,
)
from ingest.stores.sqlite import SqliteStore
from tests.influx import Influx

AIR = Series("air", "tw-tpe", "street", "aq-7")
LAMP = Series("streetlight", "tw-tpe", "street", "lamp-1")
NOON_NS = 1_795_000_000_000 * 1_000_000


@pytest.fixture(params=["sqlite", "influxdb"])
async def store(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Store]:
    if request.param == "sqlite":
        store = open_store(f"sqlite:///{tmp_path}/rows.sqlite")
    else:
        server: Influx = request.getfixturevalue("influx")
        bucket = server.bucket()
        monkeypatch.setenv("INFLUX_TOKEN", bucket.token)
        store = open_store(bucket.url)
    await store.open()
    yield store
    await store.close()


async def rows(store: Store, measurement: str, **asked: int | str | None) -> list[Point]:
    return [point async for point in store.rows(measurement, **asked)]  # type: ignore[arg-type]  # the caller's words


async def test_what_is_written_is_read(store: Store) -> None:
    points = [
        Point(AIR, NOON_NS + 123_456, {"pm2_5": 12.0, "epoch": 1_795_000_123_456, "seq": 0}),
        Point(AIR, NOON_NS + 1_000_123_456, {"pm2_5": 0.1 + 0.2, "epoch": 1, "seq": 1}),
        Point(AIR._replace(device="aq-8"), NOON_NS + 2, {"pm2_5": -1e-300, "seq": 2**53 - 1}),
    ]
    await store.write(points)
    found = await rows(store, "air")
    assert found == sorted(points, key=lambda point: point.time_ns)
    assert found[-1].time_ms == 1_795_000_001_000
    assert [type(found[1].fields[name]) for name in ("pm2_5", "epoch", "seq")] == [float, int, int]


async def test_a_resend_meets_its_own_row(store: Store) -> None:
    point = Point(AIR, NOON_NS + 5, {"pm2_5": 1.5, "seq": 4})
    await store.write([point, point])
    await store.write([point])
    assert await rows(store, "air") == [point]


async def test_two_epochs_of_one_millisecond_stay_two_rows(store: Store) -> None:
    first = Point(AIR, NOON_NS + 111_111, {"pm2_5": 1.5, "seq": 0})
    second = Point(AIR, NOON_NS + 111_112, {"pm2_5": 2.5, "seq": 0})
    await store.write([first, second])
    assert await rows(store, "air") == [first, second]


async def test_a_repeated_key_merges_its_fields(store: Store) -> None:
    await store.write([Point(AIR, NOON_NS, {"pm2_5": 1.5, "pm10": 3.0})])
    await store.write([Point(AIR, NOON_NS, {"pm2_5": 2.5, "noise": 40.0})])
    assert [point.fields for point in await rows(store, "air")] == [
        {"pm2_5": 2.5, "pm10": 3.0, "noise": 40.0}
    ]


async def test_booleans_are_0_and_1(store: Store) -> None:
    await store.write([Point(LAMP, NOON_NS, {"lit": True, "lamp_fault": False, "level": 1.0})])
    [row] = await rows(store, "streetlight")
    assert row.fields == {"lit": 1, "lamp_fault": 0, "level": 1.0}
    assert {name: type(value) for name, value in row.fields.items()} == {
        "lit": int,
        "lamp_fault": int,
        "level": float,
    }


async def test_rows_of_one_series_may_differ_in_their_fields(store: Store) -> None:
    every: list[dict[str, float | int | str]] = [
        {"lit": True, "quality": "uncertain:warmup"},
        {"lit": True, "level": 1.0},
        {"level": 2.0, "lit": False},
        {"quality": "bad:fault"},
        {"lit": True, "level": 0.5, "power": 1e-9, "quality": "bad:range(power);uncertain:clock"},
    ]
    points = [
        Point(LAMP, NOON_NS + number * 1000 + again * 10**9, {"seq": number, **fields})
        for again in range(2)
        for number, fields in enumerate(every)
    ]
    await store.write(points)
    found = [(point.time_ns, point.fields) for point in await rows(store, "streetlight")]
    wanted = [
        (
            point.time_ns,
            {name: +v if isinstance(v, bool) else v for name, v in point.fields.items()},
        )
        for point in points
    ]
    assert found == wanted


@pytest.mark.parametrize(
    "text",
    [
        "",
        'a "quoted" word',
        "back\\slash",
        "two\nlines\r\n",
        "comma, equals= space",
        "臺北市 路燈 ☂",
        "\\",
        "'x'",
    ],
)
async def test_text_comes_back_as_it_was(store: Store, text: str) -> None:
    series = Series("device", "tw-tpe", "street", "aq-7", "air")
    await store.write([Point(series, NOON_NS, {"label": text, "up": 1})])
    assert await rows(store, "device") == [Point(series, NOON_NS, {"label": text, "up": 1})]


async def test_a_vendors_metric_is_a_field_like_any_other(store: Store) -> None:
    point = Point(AIR, NOON_NS, {"x-plantower-pm2.5_cf1": 7.0, "x-acme-a b,c=d": 1.5})
    await store.write([point])
    assert await rows(store, "air") == [point]


async def test_rows_are_read_by_device_and_time(store: Store) -> None:
    points = [
        Point(AIR._replace(device=f"aq-{number % 3}"), NOON_NS + number * 1_000_000, {"pm1": 1.0})
        for number in range(30)
    ]
    await store.write(random.Random(7).sample(points, len(points)))
    assert await rows(store, "air") == points
    assert await rows(store, "air", device="aq-1") == points[1::3]
    first, last = points[4].time_ns, points[9].time_ns
    assert await rows(store, "air", start_ns=first, end_ns=last) == points[4:9]
    assert await rows(store, "air", device="aq-1", start_ns=first, end_ns=last) == [
        points[4],
        points[7],
    ]
    assert await rows(store, "air", device="no'such\"one") == []
    assert await rows(store, "nothing") == []


async def test_many_rows_are_read_in_order(store: Store) -> None:
    points = [Point(AIR, NOON_NS + number, {"pm1": float(number)}) for number in range(12_000)]
    await store.write(points[:7000])
    await store.write(points[7000:])
    assert await rows(store, "air") == points


@pytest.mark.parametrize(
    "fields",
    [{}, {"pm1": math.nan}, {"pm1": math.inf}, {"seq": 1 << 63}, {"label": "half a pair \ud83d"}],
)
async def test_a_point_that_no_store_can_hold_is_rejected(
    store: Store, fields: dict[str, float | int | str]
) -> None:
    good = Point(LAMP, NOON_NS, {"level": 1.0})
    with pytest.raises(StoreRejected):
        await store.write([good, Point(AIR, NOON_NS, fields)])
    await store.write([good])
    assert await rows(store, "streetlight") == [good]


async def test_writers_and_readers_do_not_wait_for_each_other(store: Store) -> None:
    points = [Point(AIR, NOON_NS + number, {"pm1": 1.0}) for number in range(6000)]
    await store.write(points)
    reading = store.rows("air")
    assert await anext(reading) == points[0]
    async with asyncio.timeout(10):
        await store.write([Point(LAMP, NOON_NS, {"level": 1.0})])
    assert 1 + len([point async for point in reading]) == len(points)


# By site


HOUR_NS = 3600 * 10**9
START_NS = NOON_NS - NOON_NS % HOUR_NS + 1800 * 10**9  # of an hour that begins half past


def part(**changed: object) -> Part:
    whole = Part("air", "tw-tpe", "street", START_NS, START_NS + 3 * HOUR_NS)
    return whole._replace(**changed)  # type: ignore[arg-type]  # the test's words


FIELDS = ["pm1", "noise", "epoch", "quality"]


async def device_rows(
    store: Store, asked: Part, fields: Sequence[str] = FIELDS
) -> list[DeviceRows]:
    found = [each async for each in store.device_rows(asked, fields)]
    return [
        DeviceRows(device, list(times), {name: list(column) for name, column in columns.items()})
        for device, times, columns in found
    ]


async def test_the_sites_of_a_county_are_named(store: Store) -> None:
    assert await store.sites("air", "tw-tpe") == []
    places = [("tw-tpe", "street"), ("tw-tpe", "park"), ("tw-nwt", "hill"), ("tw-tpe", "it's")]
    await store.write(
        [
            Point(Series("air", *place, "aq-7"), NOON_NS + n, {"pm1": 1.0})
            for place in places
            for n in (1, 2)
        ]
    )
    await store.write([Point(LAMP._replace(site="alley"), NOON_NS, {"level": 1.0})])
    assert await store.sites("air", "tw-tpe") == ["it's", "park", "street"]
    assert await store.sites("air", "tw-khh") == []
    assert await store.sites("streetlight", "tw-tpe") == ["alley"]


async def test_rows_are_counted_by_device_and_step(store: Store) -> None:
    minute_ns = 60 * 10**9
    times = {"aq-7": [0, 1, 59, 60, 179], "aq-10": [61, 62], "aq-8": [-1, 180]}
    await store.write(
        [
            Point(
                AIR._replace(device=device), START_NS + minute * minute_ns, {"seq": 1, "epoch": 5}
            )
            for device, minutes in times.items()
            for minute in minutes
        ]
    )
    await store.write([Point(AIR, START_NS + minute_ns * 2, {"noise": 1.0})])  # has no epoch
    await store.write([Point(AIR._replace(site="park"), START_NS, {"epoch": 1})])
    found = [each async for each in store.counts(part(), counted="epoch", step_ns=HOUR_NS)]
    assert found == [
        Count("aq-10", START_NS + HOUR_NS, 2),
        Count("aq-7", START_NS, 3),
        Count("aq-7", START_NS + HOUR_NS, 1),
        Count("aq-7", START_NS + 2 * HOUR_NS, 1),
    ]
    some = part(devices=("aq-7", "it's"), start_ns=START_NS + HOUR_NS)
    found = [each async for each in store.counts(some, counted="epoch", step_ns=HOUR_NS)]
    assert [each.rows for each in found] == [1, 1]
    asked = store.counts(part(), counted="epoch", step_ns=HOUR_NS, by_device=False)
    assert [each async for each in asked] == [
        Count("", START_NS, 3),
        Count("", START_NS + HOUR_NS, 3),
        Count("", START_NS + 2 * HOUR_NS, 1),
    ]


async def test_no_field_that_rows_have_is_left_out(store: Store) -> None:
    await store.write([Point(AIR, START_NS, {"pm1": 1.0}), Point(AIR, NOON_NS, {"noise": 1.0})])
    assert {"noise", "pm1"} <= {*await store.narrowed("air", ["pm1", "pm10", "noise"])}
    assert await store.narrowed("air", ["pm1"]) == ["pm1"]


async def test_a_sites_rows_come_device_by_device_and_column_by_column(store: Store) -> None:
    one, two = AIR._replace(device="a"), AIR._replace(device="b")
    await store.write(
        [
            Point(two, START_NS + 5, {"pm1": 2.0, "epoch": 7, "quality": "bad:fault"}),
            Point(one, START_NS + 9, {"pm1": 1.5, "epoch": 7}),
            Point(one, START_NS + 1, {"noise": 40.0, "epoch": 7}),
            Point(two, START_NS - 1, {"pm1": 9.0, "epoch": 7}),
            Point(two, START_NS + 3 * HOUR_NS, {"pm1": 9.0, "epoch": 7}),
            Point(two._replace(site="park"), START_NS + 5, {"pm1": 9.0, "epoch": 7}),
        ]
    )
    times = [START_NS + 1, START_NS + 9]
    a = DeviceRows("a", times, {"pm1": [None, 1.5], "noise": [40.0, None], "epoch": [7, 7]})
    b = DeviceRows("b", [START_NS + 5], {"pm1": [2.0], "epoch": [7], "quality": ["bad:fault"]})
    assert await device_rows(store, part()) == [a, b]
    assert await device_rows(store, part(devices=("b",))) == [b]
    wanted = ["epoch", "pm1", "is-not"]
    assert [list(each.columns) for each in await device_rows(store, part(), wanted)] == [
        ["epoch", "pm1"],
        ["epoch", "pm1"],
    ]
    assert await device_rows(store, part(measurement="nothing")) == []
    assert await device_rows(store, part(site="nowhere")) == []


async def test_a_long_series_comes_whole(store: Store) -> None:
    points = [Point(AIR, START_NS + n, {"pm1": float(n), "epoch": 1}) for n in range(12_000)]
    await store.write(points)
    await store.write([Point(AIR._replace(device="z"), START_NS, {"pm1": 1.0, "epoch": 1})])
    found = await device_rows(store, part(), ["pm1", "epoch"])
    assert [(each.device, len(each.times_ns)) for each in found] == [("aq-7", 12_000), ("z", 1)]
    assert found[0].columns["pm1"] == [float(n) for n in range(12_000)]


async def test_rows_of_two_domains_of_a_site_stay_two(store: Store) -> None:
    series = [Series("site_hour", "tw-tpe", "street", "", domain) for domain in ("air", "parking")]
    await store.write([Point(each, START_NS, {"rows": n}) for n, each in enumerate(series)])
    assert sorted(point.series.domain for point in await rows(store, "site_hour")) == [
        "air",
        "parking",
    ]
    for number, domain in enumerate(("air", "parking")):
        asked = part(measurement="site_hour", domain=domain)
        [found] = await device_rows(store, asked, ["rows"])
        assert found == DeviceRows("", [START_NS], {"rows": [number]})


# InfluxDB alone


async def test_a_conflict_of_types_is_rejected(
    influx: Influx, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = influx.bucket()
    bucket.write(f'air,county=tw-tpe,site=s,device=d noise="loud" {NOON_NS}')
    monkeypatch.setenv("INFLUX_TOKEN", bucket.token)
    store = open_store(bucket.url)
    with pytest.raises(StoreRejected, match="field type conflict"):
        await store.write([Point(AIR, NOON_NS, {"noise": 40.0})])
    await store.close()


@pytest.mark.parametrize(
    ("change", "status"),
    [("token", 401), ("bucket", 404), ("foreign", 404), ("port", None)],
)
async def test_what_is_not_the_points_fault_is_unavailable(
    influx: Influx, monkeypatch: pytest.MonkeyPatch, change: str, status: int | None
) -> None:
    bucket = influx.bucket()
    url, token = bucket.url, bucket.token
    if change == "token":
        token = "wrong"
    elif change == "bucket":
        url += "-that-is-not"
    elif change == "foreign":
        url = influx.bucket().url
    else:
        url = url.replace(f":{influx.port}/", ":1/")
    monkeypatch.setenv("INFLUX_TOKEN", token)
    store = open_store(url)
    with pytest.raises(StoreUnavailable, match=f"HTTP {status}" if status else "connect") as caught:
        await store.write([Point(AIR, NOON_NS, {"noise": 40.0})])
    assert token not in str(caught.value)
    with pytest.raises(StoreUnavailable):
        await rows(store, "air")
    await store.close()


async def test_a_token_that_was_changed_in_its_file_is_taken_up(
    influx: Influx, tmp_path: Path
) -> None:
    bucket = influx.bucket()
    file = tmp_path / "token"
    file.write_text("wrong\n")
    file.chmod(0o600)
    store = open_store(bucket.url, token_file=file)
    with pytest.raises(StoreUnavailable, match="401"):
        await store.write([Point(AIR, NOON_NS, {"noise": 40.0})])
    for unusable in (f"wrong\n{bucket.token}\n".encode(), b"\xff\n"):
        file.write_bytes(unusable)
        for _ in range(2):
            with pytest.raises(StoreUnavailable, match="401"):
                await store.write([Point(AIR, NOON_NS, {"noise": 40.0})])
    file.write_text(f"{bucket.token}\n")
    with pytest.raises(StoreUnavailable, match="401"):  # on which the file is read again
        await store.write([Point(AIR, NOON_NS, {"noise": 40.0})])
    await store.write([Point(AIR, NOON_NS, {"noise": 40.0})])
    assert len(await rows(store, "air")) == 1
    assert bucket.token not in repr(vars(store)["_token"])
    await store.close()


# SQLite alone


async def test_another_writers_lock_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "rows.sqlite"
    store = open_store(f"sqlite:///{path}")
    await store.open()
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailable, match="locked"):
            await store.write([Point(AIR, NOON_NS, {"noise": 40.0})])
    await store.write([Point(AIR, NOON_NS, {"noise": 40.0})])
    assert len(await rows(store, "air")) == 1
    await store.close()


_CANCELLED_READERS = """
import asyncio, pathlib, sys
from ingest.stores.sqlite import SqliteStore

ENDLESS = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT {} FROM n"

async def read(store, query):
    async for _ in store._pages(query, ()):
        pass

async def main():
    store = SqliteStore(pathlib.Path(sys.argv[1]))
    await store.open()
    for turn in range(40):
        query = ENDLESS.format("max(i)" if turn % 2 else "i, i, i")  # while it looks; while it fetches
        reading = asyncio.create_task(read(store, query))
        await asyncio.sleep(0.001 * turn)
        reading.cancel()
        if turn % 3 == 0:
            await asyncio.sleep(0)
            reading.cancel()
        await asyncio.wait([reading])
        assert reading.cancelled(), reading
    await store.close()

asyncio.run(main())
print("well")
"""


async def test_a_reader_that_is_cancelled_leaves_its_thread_in_peace(tmp_path: Path) -> None:
    """In a process of its own, which used to hang for ever or to end by SIGSEGV."""
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        _CANCELLED_READERS,
        str(tmp_path / "rows.sqlite"),
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(60):
            said, _ = await child.communicate()
        assert (said, child.returncode) == (b"well\n", 0)
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()


async def test_a_full_disk_takes_all_or_nothing(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "rows.sqlite")
    await store.open()

    def limit(pages: int) -> None:
        assert store._connection is not None
        (now,) = store._connection.execute("PRAGMA page_count").fetchone()
        store._connection.execute(f"PRAGMA max_page_count = {now + pages}")

    await store._run(lambda: limit(2))
    many = [Point(AIR, NOON_NS + 1_000_000 * n, {"noise": 40.0}) for n in range(2000)]
    with pytest.raises(StoreUnavailable, match="full"):
        await store.write(many)
    assert await rows(store, "air") == []
    await store._run(lambda: limit(10_000))
    await store.write(many)
    assert len(await rows(store, "air")) == 2000
    await store.close()


async def test_a_view_per_domain_shows_the_metrics_as_columns(tmp_path: Path) -> None:
    path = tmp_path / "rows.sqlite"
    store = open_store(f"sqlite:///{path}")
    await store.open()
    await store.write([Point(AIR, NOON_NS + 250_000_007, {"pm2_5": 40.5, "x-a-b": 1.0, "seq": 3})])
    await store.close()
    with closing(sqlite3.connect(path)) as shell:
        asked = "SELECT device, time, time_ms, pm2_5, seq, fields ->> '$.\"x-a-b\"' FROM air"
        assert shell.execute(asked).fetchall() == [
            ("aq-7", "2026-11-18T11:06:40.250Z", 1_795_000_000_250, 40.5, 3, 1.0)
        ]


async def test_what_is_old_is_deleted_in_small_steps(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "rows.sqlite")
    points = [
        Point(AIR._replace(device=f"aq-{n % 3}"), NOON_NS + n, {"pm1": 1.0}) for n in range(30)
    ]
    await store.write([*points, Point(LAMP, NOON_NS, {"level": 1.0})])
    steps = []
    while deleted := await store.delete_before("air", NOON_NS + 20, most=8):
        steps.append(deleted)
    assert steps == [8, 8, 4]
    assert await rows(store, "air") == points[20:]
    assert len(await rows(store, "streetlight")) == 1
    await store.close()


async def test_who_only_reads_makes_no_file(tmp_path: Path) -> None:
    path = tmp_path / "mistyped" / "rows.sqlite"
    store = SqliteStore(path)
    for asked in (rows(store, "air"), store.sites("air", "tw-tpe")):
        with pytest.raises(StoreUnavailable, match="no such store 沒有這個資料庫"):
            await asked
    assert not path.parent.exists()
    await store.ping()  # who will write asks so
    assert await rows(store, "air") == []
    await store.close()


async def test_a_file_of_version_1_keeps_its_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.sqlite"
    with closing(sqlite3.connect(path)) as old:
        old.executescript(
            """
            CREATE TABLE points (
                measurement TEXT NOT NULL, county TEXT NOT NULL, site TEXT NOT NULL,
                device TEXT NOT NULL, time_ns INTEGER NOT NULL, domain TEXT NOT NULL,
                fields TEXT NOT NULL, PRIMARY KEY (measurement, county, site, device, time_ns)
            ) WITHOUT ROWID;
            CREATE INDEX points_by_time ON points (measurement, time_ns);
            CREATE VIEW "air" AS SELECT device, fields FROM points WHERE measurement = 'air';
            INSERT INTO points VALUES ('air', 'tw-tpe', 'street', 'aq-7', 5, '', '{"pm1":1.5}');
            INSERT INTO points VALUES ('device', 'tw-tpe', 'street', 'aq-7', 5, 'air', '{"up":1}');
            PRAGMA user_version = 1;
            """
        )
    store = SqliteStore(path)
    await store.open()
    await store.write([Point(AIR, 5, {"pm10": 2.5})])
    assert await rows(store, "air") == [Point(AIR, 5, {"pm1": 1.5, "pm10": 2.5})]
    assert [point.series.domain for point in await rows(store, "device")] == ["air"]
    await store.close()
    with closing(sqlite3.connect(path)) as shell:
        assert shell.execute("SELECT pm1, pm10 FROM air").fetchall() == [(1.5, 2.5)]
        assert [row[0] for row in shell.execute("PRAGMA user_version")] == [2]


async def test_a_file_of_a_newer_program_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "rows.sqlite"
    with closing(sqlite3.connect(path)) as newer:
        newer.execute("PRAGMA user_version = 99")
    store = open_store(f"sqlite:///{path}")
    with pytest.raises(StoreError, match="99 is newer"):
        await store.open()
    await store.close()


@pytest.mark.parametrize(
    "url",
    [
        "postgres://127.0.0.1/city",
        "sqlite:///",
        "sqlite://host/file",
        "influxdb://127.0.0.1:8086/org",
        "influxdb:///org/bucket",
        "influxdb://127.0.0.1:port/org/bucket",
        "influxdb://user:hunter2@127.0.0.1:8086/org/bucket",
    ],
)
def test_a_wrong_address_is_named(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFLUX_TOKEN", "token")
    with pytest.raises(ConfigError) as caught:
        open_store(url)
    assert "hunter2" not in str(caught.value)


def test_a_missing_token_says_where_it_belongs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("INFLUX_TOKEN", raising=False)
    with pytest.raises(ConfigError, match="INFLUX_TOKEN"):
        open_store("influxdb://127.0.0.1:8086/org/bucket")
    with pytest.raises(ConfigError, match="no-such-file"):
        open_store("influxdb://127.0.0.1:8086/o/b", token_file=tmp_path / "no-such-file")


@pytest.mark.parametrize("text", [b"old\nnew\n", b"a\x00b", b"\xff\xfe"])
def test_a_file_that_holds_no_token_is_named(tmp_path: Path, text: bytes) -> None:
    file = tmp_path / "token"
    file.write_bytes(text)
    file.chmod(0o600)
    with pytest.raises(ConfigError, match="must hold a token, one line of text"):
        open_store("influxdb://127.0.0.1:8086/o/b", token_file=file)
