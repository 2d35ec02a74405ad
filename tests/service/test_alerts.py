"""Alert rules on a real InfluxDB: for each the rows that make it fire, and those that let it rest."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AsyncExitStack
from datetime import datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest

from dashboards.alert_files import alert_files, uid
from dashboards.alerts import DAY_S, HOUR_S, rules
from dashboards.panels import Source
from exchange.towns import Town, read_town
from ingest.rollups.engine import Engine as Rollups
from ingest.rollups.engine import Pace
from ingest.rollups.settings import SiteSettings
from ingest.stores import Store as OurStore
from ingest.stores import open_store
from tests.alert_engine import Engine, Labels, State, rules_of
from tests.influx import Bucket, Influx
from tests.weeks import Event, Week

TOWN = read_town(Path(__file__).parents[2] / "towns" / "tw-tpe.toml")
NAMES = [rule.name for rule in rules(TOWN)]
AT_S = 1_795_000_000  # some moment; rules know no other clock than the one they are asked by
MINUTE_S = 60
PACE = Pace(
    every_s=600,
    recent_ns=2 * DAY_S * 10**9,
    whole_ns=7 * DAY_S * 10**9,
    settle_ns=120 * 10**9,
    share=1.0,
)
AT_ONCE: dict[str, str] = {"for": "0s"}
Value = int | float


class Row(NamedTuple):
    """A row of the county, so long before AT_S. A whole number is an integer of the store."""

    measurement: str
    tags: Mapping[str, str]
    fields: Mapping[str, Value]
    ago_s: int = MINUTE_S
    county: str = TOWN.county

    def __str__(self) -> str:
        tags = "".join(f",{name}={value}" for name, value in self.tags.items())
        fields = ",".join(
            f"{name}={value}" + ("i" if isinstance(value, int) else "")
            for name, value in self.fields.items()
        )
        time_ns = (AT_S - self.ago_s) * 1_000_000_000
        return f"{self.measurement},county={self.county}{tags} {fields} {time_ns}"


def gateway(name: str, state: int, ago_s: int = MINUTE_S) -> Row:
    tags = {"site": "s", "device": name, "domain": "gateway"}
    return Row("device", tags, {"state": state}, ago_s)


def site(
    measurement: str, domain: str, at: str = "s", ago_s: int = MINUTE_S, **fields: Value
) -> Row:
    return Row(measurement, {"site": at, "domain": domain}, fields, ago_s)


def bay(name: str, occupied: int, at: str = "s", ago_s: int = MINUTE_S) -> Row:
    return Row("parking", {"site": at, "device": name}, {"occupied": occupied}, ago_s)


def lot(name: str, free: int, capacity: int, ago_s: int = MINUTE_S) -> Row:
    fields = {"free_car": free, "capacity_car": capacity}
    return Row("parking", {"site": "s", "device": name}, fields, ago_s)


class Case(NamedTuple):
    """Rows, and the label sets of which the rule then says that it fires; of all others it says that it rests."""

    rule: str
    why: str
    rows: tuple[Row, ...]
    fires: tuple[Mapping[str, str], ...] = ()
    rests: tuple[Mapping[str, str], ...] = ()


HOUR_ROW_S = 2 * HOUR_S
YESTERDAY_S = DAY_S + 4 * HOUR_S
CASES = (
    Case(
        "gateway-down",
        "only `down` fires",
        tuple(gateway(f"g{state}", state) for state in range(6)),
        fires=({"site": "s", "device": "g2"},),
        rests=tuple({"site": "s", "device": f"g{state}"} for state in (0, 1, 3, 4, 5)),
    ),
    Case(
        "gateway-down",
        "the newest row counts, and the last that is known holds",
        (
            gateway("came-back", 2, ago_s=600),
            gateway("came-back", 0),
            gateway("went", 0, ago_s=20 * HOUR_S),
            gateway("went", 2, ago_s=19 * HOUR_S),
        ),
        fires=({"site": "s", "device": "went"},),
        rests=({"site": "s", "device": "came-back"},),
    ),
    Case(
        "gateway-down",
        "lamps are not gateways",
        (Row("device", {"site": "s", "device": "l", "domain": "streetlight"}, {"state": 2}),),
    ),
    Case(
        "device-silent",
        "one is enough; unknown, late and maintained ones are not silent; a dead gateway is another rule's",
        (
            site("site_now", "streetlight", down=1, unknown=0),
            site("site_now", "air", down=0, unknown=7, late=2, maintenance=1),
            site("site_now", "gateway", down=1),
            site("site_now", "streetlight", "t", 600, down=3),
            site("site_now", "streetlight", "t", down=0),
        ),
        fires=({"site": "s", "domain": "streetlight"},),
        rests=({"site": "s", "domain": "air"}, {"site": "t", "domain": "streetlight"}),
    ),
    *(
        Case(
            rule,
            "the newest day's row, which is up to two days old",
            (
                site("site_day", "streetlight", "s", 2 * DAY_S, **{field: 1}),
                site("site_day", "streetlight", "t", 2 * DAY_S, **{field: 1}),
                site("site_day", "streetlight", "t", DAY_S, **{field: 0}),
                site("site_day", "power", "u", DAY_S, **{field: 1}),
            ),
            fires=({"site": "s"},),
            rests=({"site": "t"},),
        )
        for rule, field in (("lamp-fault", "lamps_out"), ("day-burner", "day_burners"))
    ),
    Case(
        "air-unhealthy",
        "above the band's end, not at it; another domain's rows are no air",
        (
            site("site_hour", "air", "s", HOUR_ROW_S, aqi=101),
            site("site_hour", "air", "t", HOUR_ROW_S, aqi=100),
            site("site_hour", "weather", "u", HOUR_ROW_S, aqi=300),
            site("site_hour", "air", "v", HOUR_ROW_S, devices=3),
        ),
        fires=({"site": "s"},),
        rests=({"site": "t"},),
    ),
    Case(
        "car-park-full",
        "from 95 of 100 bays on, by the newest word of each",
        (
            *(bay(f"b{number}", int(number < 95)) for number in range(100)),
            *(bay(f"b{number}", int(number < 94), "t") for number in range(100)),
            *(bay(f"b{number}", 1, "t", 1200) for number in range(100)),
        ),
        fires=({"site": "s"},),
        rests=({"site": "t"},),
    ),
    Case(
        "car-park-full",
        "a bay that is silent for over an hour is not taken",
        (bay("here", 0), bay("gone", 1, ago_s=HOUR_S + 60), bay("gone", 1, "t", HOUR_S + 60)),
        rests=({"site": "s"},),
    ),
    Case(
        "car-lot-full",
        "by what is free of what there is; a closed lot is not full, and one that does not say is neither",
        (
            lot("full", 5, 100),
            lot("room", 6, 100),
            lot("closed", 0, 0),
            Row("parking", {"site": "s", "device": "no-count"}, {"capacity_car": 100}),
            bay("bay", 1),
        ),
        fires=({"site": "s", "device": "full"},),
        rests=({"site": "s", "device": "room"},),
    ),
    Case(
        "sensor-stuck",
        "any domain",
        (
            site("site_hour", "air", "s", HOUR_ROW_S, stuck=1),
            site("site_hour", "weather", "s", HOUR_ROW_S, stuck=0),
        ),
        fires=({"site": "s", "domain": "air"},),
        rests=({"site": "s", "domain": "weather"},),
    ),
    Case(
        "day-incomplete",
        "yesterday counts, neither today nor the day before",
        (
            site("site_day_state", "air", "s", YESTERDAY_S, completeness=0.899),
            site("site_day_state", "air", "t", YESTERDAY_S, completeness=0.9),
            site("site_day_state", "air", "t", YESTERDAY_S - DAY_S, completeness=0.1),
            site("site_day_state", "air", "t", YESTERDAY_S + DAY_S, completeness=0.1),
        ),
        fires=({"site": "s", "domain": "air"},),
        rests=({"site": "t", "domain": "air"},),
    ),
    Case(
        "ingest-late",
        "one new sample of any gateway is life",
        (Row("gateway", {"site": "s", "device": "g"}, {"seq": 4}, 14 * MINUTE_S),),
        rests=({},),
    ),
    Case(
        "watch-silent",
        "one row of any site is life",
        (site("site_now", "air", ago_s=14 * MINUTE_S, devices=0),),
        rests=({},),
    ),
    Case(
        "rollups-silent",
        "the hour before last is in time",
        (site("site_hour", "air", ago_s=2 * HOUR_S + 15 * MINUTE_S, devices=3),),
        rests=({},),
    ),
)
OTHER_COUNTY = (
    gateway("g", 2)._replace(county="tw-nwt"),
    bay("b", 1)._replace(county="tw-nwt"),
    lot("l", 0, 100)._replace(county="tw-nwt"),
    *(
        site(measurement, domain, "s", ago_s, **fields)._replace(county="tw-nwt")
        for measurement, domain, ago_s, fields in (
            ("site_now", "streetlight", MINUTE_S, {"down": 9, "devices": 9}),
            ("site_hour", "streetlight", HOUR_ROW_S, {"stuck": 9, "devices": 9}),
            ("site_hour", "air", HOUR_ROW_S, {"aqi": 301}),
            ("site_day", "streetlight", YESTERDAY_S, {"day_burners": 9, "lamps_out": 9}),
            ("site_day_state", "air", YESTERDAY_S, {"completeness": 0.0}),
        )
    ),
    Row("gateway", {"site": "s", "device": "g"}, {"seq": 1}, MINUTE_S, "tw-nwt"),
)


class Store:
    """A county's two buckets, and its rules on them."""

    def __init__(self, influx: Influx) -> None:
        self.buckets: dict[str, Bucket] = {source: influx.bucket() for source in Source}

    def write(self, *rows: Row) -> None:
        rolled_up = ("site_hour", "site_day")
        for source in Source:
            kept = source is Source.ROLLUPS
            lines = [str(row) for row in rows if (row.measurement in rolled_up) == kept]
            if lines:
                self.buckets[source].write("\n".join(lines))

    def engine(self, name: str, town: Town = TOWN, **changed: object) -> Engine:
        [rule] = [rule for rule in rules(town) if rule.name == name]
        provisioned = rules_of(alert_files([town])[f"onestreet-{town.county}.json"])
        return Engine({**provisioned[uid(town.county, rule)], **changed}, self.buckets)


@pytest.fixture
def store(influx: Influx) -> Store:
    return Store(influx)


def labels(said: Mapping[str, str]) -> Labels:
    return frozenset(said.items())


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.rule}: {case.why}")
def test_a_rule_fires_and_rests(store: Store, case: Case) -> None:
    store.write(*OTHER_COUNTY, *case.rows)
    said = store.engine(case.rule).evaluate(AT_S)
    assert {one for one, fires in said.items() if fires} == {labels(one) for one in case.fires}
    assert {one for one, fires in said.items() if fires == 0} == {labels(one) for one in case.rests}


def test_every_rule_has_rows_that_make_it_fire_and_rows_that_let_it_rest() -> None:
    heartbeats = {
        rule.name for rule in rules(TOWN) if rule.heartbeat
    }  # they fire for no rows: below
    assert {case.rule for case in CASES if case.fires} | heartbeats == set(NAMES)
    assert {case.rule for case in CASES if case.rests} == set(NAMES)


@pytest.mark.parametrize(
    ("rule", "last"),
    [
        (
            "ingest-late",
            Row("gateway", {"site": "s", "device": "g"}, {"seq": 4}, 15 * MINUTE_S + 1),
        ),
        ("watch-silent", site("site_now", "air", ago_s=15 * MINUTE_S + 1, devices=3)),
        ("rollups-silent", site("site_hour", "air", ago_s=4 * HOUR_S + 1, devices=3)),
    ],
)
def test_a_heartbeat_that_ends_is_an_alert_until_the_next(
    store: Store, rule: str, last: Row
) -> None:
    engine = store.engine(rule)
    store.write(*OTHER_COUNTY, last)
    nobody = frozenset[tuple[str, str]]()
    assert engine.tick(AT_S - 2) == {nobody: "Normal"}
    assert engine.tick(AT_S) == {nobody: "Pending"}
    assert engine.tick(AT_S + 240) == {nobody: "Pending"}
    assert engine.tick(AT_S + 300) == {nobody: "Alerting"}
    store.write(last._replace(ago_s=-600))
    assert engine.tick(AT_S + 700) == {nobody: "Normal"}


def test_limits_are_those_of_the_towns_file(store: Store) -> None:
    limits = msgspec.structs.replace(
        TOWN.alerts,
        down_devices=5,
        aqi=150,
        car_park_full_percent=50.0,
        completeness_percent=50.0,
        lag_minutes=60,
    )
    town = msgspec.structs.replace(TOWN, alerts=limits)
    store.write(
        site("site_now", "air", ago_s=59 * MINUTE_S, down=4, devices=9),
        site("site_hour", "air", ago_s=HOUR_ROW_S, aqi=150),
        bay("a", 1),
        bay("b", 0),
        site("site_day_state", "air", ago_s=YESTERDAY_S, completeness=0.6),
    )
    for rule, usually, here in (
        ("device-silent", 1, 0),
        ("air-unhealthy", 1, 0),
        ("car-park-full", 0, 1),
        ("day-incomplete", 1, 0),
        ("watch-silent", None, 0),
    ):
        for limited_by, fires in ((TOWN, usually), (town, here)):
            said = store.engine(rule, limited_by).evaluate(AT_S)
            assert list(said.values()) == ([] if fires is None else [fires]), rule


# What vanishes ends nothing


def states(engine: Engine, at_s: float, ticks: int = 1, **how: bool) -> set[State]:
    """Return the states of its alerts after so many evaluations, a minute apart."""
    for tick in range(ticks):
        found = engine.tick(at_s + tick * MINUTE_S, **how)
    return set(found.values())


def test_a_gateway_stays_down_while_the_watch_is_dead(store: Store) -> None:
    engine = store.engine("gateway-down")
    store.write(gateway("g", 2), gateway("other", 0))
    assert states(engine, AT_S, 3) == {"Alerting", "Normal"}
    assert states(engine, AT_S + 23 * HOUR_S) == {"Alerting", "Normal"}
    assert states(engine, AT_S + 30 * HOUR_S, 3) == {"Alerting", "Normal"}  # no rows at all
    store.write(gateway("g", 0, ago_s=-31 * HOUR_S))
    assert states(engine, AT_S + 31 * HOUR_S + 1) == {"Normal"}


def test_a_gateway_whose_rows_alone_stop_stays_down_for_a_day_of_rows_and_one_more(
    store: Store,
) -> None:
    engine = store.engine("gateway-down")
    store.write(gateway("g", 2), gateway("other", 0), gateway("other", 0, ago_s=-25 * HOUR_S))
    assert states(engine, AT_S, 3) == {"Alerting", "Normal"}
    assert states(engine, AT_S + 23 * HOUR_S) == {"Alerting", "Normal"}
    gone_s = AT_S + 25 * HOUR_S
    assert states(engine, gone_s, DAY_S // MINUTE_S - 1) == {"Alerting", "Normal"}
    assert states(engine, gone_s) == {"Normal"}


def test_a_full_car_park_stays_full_when_its_gateway_dies(store: Store) -> None:
    store.write(bay("a", 1), bay("a", 0, "t"))
    engine = store.engine("car-park-full")
    usual = store.engine("car-park-full", missing_series_evals_to_resolve=2)
    for one in (engine, usual):
        assert states(one, AT_S, 6) == {"Alerting", "Normal"}
    later_s = 2 * HOUR_S
    store.write(bay("a", 0, "t", -later_s))  # the other site goes on
    for one, left in ((engine, {"Alerting", "Normal"}), (usual, {"Normal"})):
        assert states(one, AT_S + later_s, 5) == left
    store.write(bay("a", 0, "s", -later_s - 300))
    assert states(engine, AT_S + later_s + 301) == {"Normal"}


def test_a_store_that_does_not_answer_is_one_alert_and_ends_none(store: Store) -> None:
    store.write(
        gateway("g", 2),
        site("site_now", "air", down=1, devices=2),
        Row("gateway", {"site": "s", "device": "g"}, {"seq": 1}),
        site("site_hour", "air", ago_s=HOUR_ROW_S, aqi=200, stuck=0, devices=1),
    )
    engines = {name: store.engine(name) for name in NAMES}
    before = {name: states(engine, AT_S, 7) for name, engine in engines.items()}
    assert [name for name, found in before.items() if "Alerting" in found] == [
        "gateway-down",
        "device-silent",
        "air-unhealthy",
    ]
    after = {name: states(engine, AT_S + 420, 7, fails=True) for name, engine in engines.items()}
    assert {name for name in NAMES if after[name] != before[name]} == {"watch-silent"}
    assert after["watch-silent"] == {"Alerting"}


def test_a_gateway_that_takes_forty_lamps_along_is_one_alert(store: Store) -> None:
    store.write(
        gateway("g", 2),
        site("site_now", "gateway", down=1, devices=1),
        site("site_now", "streetlight", down=0, unknown=40, devices=40),
        Row("gateway", {"site": "s", "device": "h"}, {"seq": 1}),
        site("site_hour", "streetlight", ago_s=HOUR_ROW_S, stuck=0, devices=40),
    )
    firing = [
        (name, dict(one))
        for name in NAMES
        for one, state in store.engine(name, TOWN, **AT_ONCE).tick(AT_S).items()
        if state == "Alerting"
    ]
    assert firing == [("gateway-down", {"site": "s", "device": "g"})]


# The simulated week


def test_in_the_simulated_week_the_lot_is_full_when_it_was(store: Store) -> None:
    week = Week(lamps=1, bays=1, air=1, meters=1)
    event = week.event("full")
    rows = [
        f"parking,county={event.county},site={event.site},device={event.device} "
        f"free_car={point.fields['free_car']}i,capacity_car={point.fields['capacity_car']}i "
        f"{point.time_ns}"
        for point in week.rows(week.device(event.device))
    ]
    store.buckets[Source.RAW].write("\n".join(rows))
    engine = store.engine("car-lot-full", town_of(week, event.county))
    moments_s = (
        event.start_ms / 1000 - 1,
        (event.start_ms + event.end_ms) / 2000,
        event.end_ms / 1000 + 600,
    )
    assert [list(engine.evaluate(at_s).values()) for at_s in moments_s] == [[0], [1], [0]]


async def test_in_the_simulated_week_our_rollups_make_rules_fire(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    week = Week(lamps=3, bays=1, lots=1, air=2, meters=1)
    happens: tuple[tuple[str, Event, dict[str, str]], ...] = (
        ("lamp-fault", week.event("lamp_fault"), {}),
        ("day-burner", week.event("day_burner"), {}),
        ("air-unhealthy", week.event("smog"), {}),
        ("sensor-stuck", week.event("stuck"), {"domain": "air"}),
    )
    async with AsyncExitStack() as stores:
        raw, kept = [await opened(bucket, stores, monkeypatch) for bucket in store.buckets.values()]
        sun, zones = {}, {}
        for _, event, _ in happens:
            points = week.rows(week.device(event.device))
            while some := list(islice(points, 2000)):
                await raw.write(some)
            at = week.sites[event.site][1].location
            sun[f"{event.county}/{event.site}"] = SiteSettings(lat=at.lat, lon=at.lon)
            zones[event.county] = week.zone

        async def fires(moment_ms: int) -> list[float | None]:
            """Roll up what is over by then; return what each rule says of its event's site."""
            rollups = Rollups(
                raw, kept, zones, sites=sun, pace=PACE, now_ns=lambda: moment_ms * 1_000_000
            )
            today = datetime.fromtimestamp(moment_ms / 1000, week.zone).date()
            await rollups.once(today - timedelta(days=1), today)
            said = []
            for rule, event, more in happens:
                answer = store.engine(rule, town_of(week, event.county)).evaluate(moment_ms / 1000)
                said.append(answer[labels({"site": event.site, **more})])
            return said

        assert await fires(week.moment_ms(2, 6)) == [0, 0, 0, 0]
        assert await fires(week.moment_ms(3, 23)) == [1, 0, 0, 1]  # doubted after a day
        assert await fires(week.moment_ms(5, 3)) == [1, 1, 1, 0]
        for _, event, _ in happens:
            heart = store.engine("rollups-silent", town_of(week, event.county))
            assert heart.evaluate(week.moment_ms(5, 3) / 1000) == {frozenset(): 0}


async def opened(
    bucket: Bucket, stack: AsyncExitStack, monkeypatch: pytest.MonkeyPatch
) -> OurStore:
    monkeypatch.setenv("INFLUX_TOKEN", bucket.token)
    store = open_store(bucket.url)
    await store.open()
    stack.push_async_callback(store.close)
    return store


def town_of(week: Week, county: str) -> Town:
    [town] = [town for town in week.towns if town.county == county]
    return town
