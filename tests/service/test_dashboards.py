"""Every query of every page on a real InfluxDB that holds rows of every measurement: it is taken, and answers."""

from __future__ import annotations

import json
import time
from typing import Any, NamedTuple

import pytest

from dashboards.grafana import page_json
from dashboards.influxql import Select, TagValues, column, is_text
from dashboards.judgement import Query, Store, panels, queries, refusals
from dashboards.looks import GREEN, RED, VIOLET
from dashboards.pages import PAGES
from dashboards.panels import Kind, Page, Panel, Source
from exchange.dictionary import dictionary
from tests.influx import Influx
from tests.shown_town import OPEN_INCIDENTS, REFERENCE_SITE, SITES, ShownTown

RANGE = "time > now() - 7d"


class Asked(NamedTuple):
    """One query of one panel."""

    page: Page
    panel: Panel
    number: int

    @property
    def text(self) -> str:
        return str(self.panel.asks[self.number])


ASKED = [
    Asked(page, panel, index)
    for page in PAGES
    for band in page.bands
    for panel in band.panels
    for index in range(len(panel.asks))
]


def name(asked: Asked) -> str:
    return f"{asked.page.name}.{asked.panel.name}.{asked.number}"


@pytest.fixture(scope="module")
def store(influx: Influx) -> Store:
    raw, rollups = influx.bucket(), influx.bucket()
    town = ShownTown.of_now()
    raw.write(town.raw())
    rollups.write(town.rollups())
    permissions = [
        {
            "action": "read",
            "resource": {"type": "buckets", "id": bucket.id, "orgID": influx.org_id},
        }
        for bucket in (raw, rollups)
    ]
    asked = {"orgID": influx.org_id, "permissions": permissions}
    token: str = influx.call("POST", "/api/v2/authorizations", asked)["token"]
    buckets = {Source.RAW.value: raw.name, Source.ROLLUPS.value: rollups.name}
    return Store(influx.url, token, buckets)


def answer(store: Store, asked: Asked, **chosen: str) -> list[dict[str, Any]]:
    """Return the rows as Grafana's table has them: tags beside the columns."""
    variables = {"county": ".*", "site": ".*", "device": ".*", **chosen}
    source = asked.panel.source.value
    text = Query(asked.page.name, asked.panel.name, source, asked.text).filled(variables, RANGE)
    return [
        {**series.get("tags", {}), **dict(zip(series["columns"], row, strict=True))}
        for series in store.ask(source, text)
        for row in series["values"]
    ]


@pytest.mark.parametrize("asked", ASKED, ids=name)
def test_a_panel_gets_rows_with_every_column_that_it_shows(store: Store, asked: Asked) -> None:
    rows = answer(store, asked)
    assert rows, asked.text
    if asked.panel.kind in (Kind.LINES, Kind.STATES):
        wanted = {column.name for column in asked.panel.asks[asked.number].columns}
        assert wanted <= {field.name for field in asked.panel.fields}
        if asked.panel.by_site:
            wanted |= {"county", "site"}
    else:
        wanted = {field.name for field in asked.panel.fields}
    for row in rows:
        assert row.keys() >= wanted, asked.text
    for one in wanted - {"age_s"}:
        assert any(row[one] is not None for row in rows), f"{one} is never there: {asked.text}"


@pytest.mark.parametrize("asked", ASKED, ids=name)
def test_a_panel_shows_what_is_chosen_and_nothing_else(store: Store, asked: Asked) -> None:
    nowhere = answer(store, asked, county="tw-xxx")
    shown = {field.name for field in asked.panel.fields} - {"time"}
    assert [row for row in nowhere if any(row.get(one) is not None for one in shown)] == []
    county, site = SITES[0]
    for row in answer(store, asked, county=county, site=site):
        assert row.get("county", county) == county
        assert row.get("site", site) == site


def stat(page: str, panel: str) -> Asked:
    [found] = [one for one in ASKED if (one.page.name, one.panel.name) == (page, panel)]
    return found


PLACES, DOMAINS = len(SITES), len(dictionary())
DOMAIN_OF = {"streetlights": "streetlight", "parking": "parking", "air": "air"}
"""Of the pages about one domain."""


@pytest.mark.parametrize(
    ("page", "panel", "column", "value"),
    [
        ("overview", "incidents", "incidents", len(OPEN_INCIDENTS)),
        ("overview", "down", "down", 2 * PLACES * DOMAINS),
        ("overview", "devices", "devices", 10 * PLACES * DOMAINS),
        ("overview", "completeness", "completeness", 0.95),
        ("overview", "availability", "availability", 0.9),
        ("streetlights", "down", "down", 2 * PLACES),
        ("streetlights", "lamps_out", "lamps_out", PLACES),
        ("streetlights", "energy", "night_energy_wh", 5000.0 * PLACES),
        ("streetlights", "saved_low", "night_saved_low_wh", 2500.0 * PLACES),
        ("parking", "occupancy", "occupancy", 0.7),
        ("air", "worst", "aqi", 80),
        ("air", "mean", "aqi_mean", 60.5),
        ("gateways", "outbox_depth", "outbox_depth", PLACES),
    ],
)
def test_a_figure_is_the_one_of_now(
    store: Store, page: str, panel: str, column: str, value: float
) -> None:
    [row] = answer(store, stat(page, panel))
    assert row[column] == pytest.approx(value)


def test_tables_have_a_row_for_each_of_what_they_list(store: Store) -> None:
    assert len(answer(store, stat("overview", "sites"))) == PLACES * DOMAINS
    assert len(answer(store, stat("overview", "map"))) == PLACES
    assert len(answer(store, stat("overview", "counties"))) == len({one for one, _ in SITES})
    assert len(answer(store, stat("gateways", "health"))) == PLACES
    assert len(answer(store, stat("air", "stations"))) == PLACES
    troubled = answer(store, stat("site", "troubled"))
    assert {row["state"] for row in troubled} == {1, 2, 3, 4}


MAPS = [(page, panel) for page, panel, _ in ASKED if panel.name == "map" and page.name != "site"]
SITE_STATES = {
    "well": ((0, 0), GREEN),
    "gateway-dead": ((0, 4), VIOLET),
    "one-unknown": ((0, 1), VIOLET),
    "one-down": ((1, 0), RED),
    "both": ((1, 300), RED),
}
"""How many devices are down and unknown in a site, and the colour that it has then."""


@pytest.mark.parametrize(("page", "panel"), MAPS, ids=lambda one: one.name)
def test_a_site_is_on_a_map_in_the_colour_of_its_worst_state(
    influx: Influx, page: Page, panel: Panel
) -> None:
    bucket = influx.bucket()
    now_ns = time.time_ns() - 60 * 10**9
    for site, ((down, unknown), _) in SITE_STATES.items():
        for domain in dictionary():
            bad = domain == DOMAIN_OF.get(page.name, "streetlight")
            fields = f"devices=400i,down={down * bad}i,unknown={unknown * bad}i,lat=25.0,lon=121.5"
            bucket.write(f"site_now,county=tw-tpe,site={site},domain={domain} {fields} {now_ns}")
    rows = answer(
        Store(influx.url, bucket.token, {"onestreet": bucket.name}), Asked(page, panel, 0)
    )
    [built] = [one for one in panels(json.loads(page_json(page, "en"))) if one["type"] == "geomap"]
    [layer] = built["options"]["layers"]
    judged = layer["config"]["style"]["color"]["field"]
    [looks] = [
        {each["id"]: each["value"] for each in one["properties"]}
        for one in built["fieldConfig"]["overrides"]
        if one["matcher"]["options"] == judged
    ]
    assert looks["color"] == {"mode": "thresholds"}
    steps = looks["thresholds"]["steps"]
    colours = {
        row["site"]: [
            step["color"] for step in steps if step["value"] is None or step["value"] <= row[judged]
        ][-1]
        for row in rows
    }
    assert colours == {site: colour for site, (_, colour) in SITE_STATES.items()}
    for row in rows:
        assert (row["down"], row["unknown"]) == SITE_STATES[row["site"]][0]


def test_a_site_with_counters_only_has_its_day_and_few_stays_have_no_length(influx: Influx) -> None:
    bucket = influx.bucket()
    yesterday_ns = time.time_ns() - 24 * 3600 * 10**9
    for site, fields in {
        "counters": "bays=0i,occupancy=0.5",
        "quiet": "bays=9i,occupancy=0.1,turnover=0.3,stays=4i,dwell_median_s=60.0,dwell_p90_s=90.0",
        "busy": "bays=9i,occupancy=0.9,turnover=7.0,stays=5i,dwell_median_s=60.0,dwell_p90_s=90.0",
    }.items():
        bucket.write(f"site_day,county=tw-tpe,site={site},domain=parking {fields} {yesterday_ns}")
    store = Store(influx.url, bucket.token, {Source.ROLLUPS.value: bucket.name})
    days = {row["site"]: row for row in answer(store, stat("parking", "sites by day"))}
    assert days.keys() == {"counters", "quiet", "busy"}
    assert (days["counters"]["occupancy"], days["counters"]["turnover"]) == (0.5, None)
    [stays] = answer(store, stat("parking", "stays by day"))
    assert (stays["site"], stays["stays"], stays["dwell_median_s"]) == ("busy", 5, 60.0)


def test_what_is_indicative_is_said_of_sites_hours_and_days(store: Store) -> None:
    by_site = {row["site"]: row["indicative"] for row in answer(store, stat("air", "aqi by site"))}
    assert by_site == {site: int(site != REFERENCE_SITE) for _, site in SITES}
    for name in ("aqi by hour", "aqi by day"):
        asked = [one for one in ASKED if (one.page.name, one.panel.name) == ("air", name)]
        indicative, reference = (
            {site for site in by_site if answer(store, one, site=site)} for one in asked
        )
        assert reference == {REFERENCE_SITE}, name
        assert indicative == by_site.keys() - {REFERENCE_SITE}, name


def test_what_is_broken_says_since_when_and_what_it_means(store: Store) -> None:
    rows = answer(store, stat("overview", "broken"))
    times = [row["time"] for row in rows]
    assert times == sorted(times, reverse=True)
    assert all(row["kind"] == row["meaning"] for row in rows)
    assert {row["kind"] for row in rows} == {"gateway_down", "device_down"}


def test_days_are_civil_days(store: Store) -> None:
    for page, panel in (("overview", "days"), ("streetlights", "energy by night")):
        for row in answer(store, stat(page, panel)):
            assert row["time"] % 86_400_000 == 16 * 3_600_000, "midnight in Taipei is 16:00 UTC"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_store_takes_every_query_of_the_files_too(store: Store, page: Page) -> None:
    """As `check` asks them, with those of variables."""
    assert refusals(json.loads(page_json(page, "zh-TW")), store) == []


def test_a_query_that_the_store_does_not_take_is_named(store: Store) -> None:
    page = json.loads(page_json(PAGES[0], "en"))
    page["panels"][0]["targets"][0]["query"] = "SELECT FROM time > now() - 1h"
    [words] = refusals(page, store)
    assert words.startswith("onestreet-overview: Open incidents: ")
    assert "failed to parse query" in words


def test_variables_list_what_there_is(store: Store) -> None:
    page = json.loads(page_json(PAGES[-1], "en"))
    found = {query.place: query for query in queries(page) if query.text.startswith("SHOW")}
    [counties] = store.ask("onestreet", found["County"].filled())
    assert [row[1] for row in counties["values"]] == ["tw-khh", "tw-tpe"]
    chosen = {"county": "tw-tpe", "site": "(neihu|xinyi)"}
    [sites] = store.ask("onestreet", found["Site"].filled(chosen))
    assert [row[1] for row in sites["values"]] == ["neihu", "xinyi"]
    [devices] = store.ask("onestreet", found["Device"].filled(chosen))
    assert len(devices["values"]) == 2 * DOMAINS


AWKWARD = [
    "it's",
    'a "b"',
    "back\\slash",
    "\\",
    "';DROP",
    "a\nb",
    "大安",
    " ",
    "/re/",
    "--",
    "%",
]


@pytest.mark.parametrize("text", AWKWARD)
def test_names_and_texts_arrive_as_they_are(influx: Influx, text: str) -> None:
    """What is quoted finds the row that has it, as field, as measurement and as value."""
    bucket = influx.bucket()
    token = bucket.token
    shown = text.replace("\\", "\\\\").replace('"', '\\"')
    bucket.write(f'm v="{shown}",n=1i 1')
    store = Store(influx.url, token, {"onestreet": bucket.name})
    query = Select(columns=[column("n").named(text)], source="m", where=[is_text("v", text)])
    [series] = store.ask("onestreet", str(query))
    assert series["columns"] == ["time", text]
    assert store.ask("onestreet", str(TagValues(tag=text, source=text))) == []
