"""Pages as code: quoting, words in both languages, limits on what they ask, and what `check` finds wrong."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from datetime import date
from pathlib import Path
from typing import Any, get_args

import pytest
from grafana_foundation_sdk.models import units
from hypothesis import given
from hypothesis import strategies as st

from dashboards import grafana
from dashboards.command import run
from dashboards.files import PROVISIONED, page_files, read, write
from dashboards.grafana import page_json, uid
from dashboards.influxql import (
    INTERVAL,
    MAX_ROWS,
    Select,
    TagValues,
    call,
    chosen,
    column,
    compares,
    in_range,
    is_text,
    number,
    quoted_name,
    quoted_text,
    since,
    top,
)
from dashboards.judgement import findings, panels, queries
from dashboards.looks import GREY, LIMITS, UNITS, VALUES
from dashboards.pages import PAGES
from dashboards.panels import WIDTH, Field, Kind, Page, Panel
from dashboards.texts import LANGUAGES, TEXTS, Language, say, titles
from exchange.air_quality_index import bands, table_on
from exchange.commands import Status
from exchange.dictionary import dictionary
from exchange.errors import ConfigError
from ingest.watch.incidents import KINDS
from ingest.watch.liveness import Status as WatchStatus

ROOT = Path(__file__).parents[2]
UNSAID = ("$", "[[", "\0", "\r")
sayable = st.text(min_size=1).filter(lambda text: not any(one in text for one in UNSAID))

# ------------------------------------------------------------------------------------------------------- InfluxQL


def unquoted(text: str) -> str:
    """Read a quoted text as InfluxQL's scanner does: to the first quote that no backslash precedes."""
    quote, rest = text[0], iter(text[1:])
    found: list[str] = []
    for one in rest:
        if one == quote:
            assert next(rest, None) is None, "it ends early"
            return "".join(found)
        assert one != "\n", "a line feed must be escaped"
        if one == "\\":
            one = next(rest)
            assert one in ("\\", quote, "n"), "an escape that InfluxQL does not know"
            one = "\n" if one == "n" else one
        found.append(one)
    raise AssertionError("it does not end")


@given(sayable)
def test_whatever_a_name_or_text_holds_it_is_read_as_it_is(text: str) -> None:
    assert unquoted(quoted_name(text)) == text
    assert unquoted(quoted_text(text)) == text


@given(sayable, sayable)
def test_no_text_gets_out_of_its_condition(name: str, value: str) -> None:
    condition = is_text(name, value).text
    head = quoted_name(name)
    assert condition.startswith(f"{head} = ")
    assert unquoted(condition[len(head) + 3 :]) == value


@given(st.sampled_from(UNSAID), st.text(), st.text())
def test_what_grafana_would_fill_in_is_refused(unsaid: str, before: str, after: str) -> None:
    for quoted in (quoted_name, quoted_text):
        with pytest.raises(ValueError, match="must not"):
            quoted(before + unsaid + after)


@given(st.floats(allow_nan=True, allow_infinity=True))
def test_a_number_is_one_or_is_refused(value: float) -> None:
    try:
        text = number(value).text
    except ValueError:
        assert value != value or abs(value) >= 1e16 or abs(value) < 1e-4
    else:
        assert float(text) == value


def test_a_query_reads_as_one_would_write_it() -> None:
    inner = Select(
        columns=[call("last", "down").named("down")],
        source="site_now",
        where=[chosen("county"), since("15m"), compares("down", ">", 0)],
        by=["county", "site"],
    )
    query = Select(columns=[call("sum", "down").named("down")], source=inner, limit=5)
    assert str(query) == (
        'SELECT sum("down") AS "down" FROM (SELECT last("down") AS "down" FROM "site_now"'
        ' WHERE "county" =~ /^${county:regex}$/ AND time > now() - 15m AND "down" > 0.0'
        ' GROUP BY "county", "site") LIMIT 5'
    )
    by_day = Select(
        columns=[(column("a") / (column("a") + column("b") - number(2))).named("share")],
        source="m",
        where=[in_range(), is_text("x", "1") | is_text("x", "2")],
        every="1d",
        zone="Asia/Taipei",
        newest_first=True,
    )
    assert str(by_day) == (
        'SELECT ("a" / (("a" + "b") - 2.0)) AS "share" FROM "m"'
        " WHERE $timeFilter AND (\"x\" = '1' OR \"x\" = '2')"
        " GROUP BY time(1d) fill(none) ORDER BY time DESC tz('Asia/Taipei')"
    )
    values = TagValues(tag="site", source="site_now", where=[chosen("county", "place")])
    assert str(values) == (
        'SHOW TAG VALUES FROM "site_now" WITH KEY = "site"'
        f' WHERE "county" =~ /^${{place:regex}}$/ LIMIT {MAX_ROWS}'
    )


@pytest.mark.parametrize(
    "make",
    [
        lambda: Select(columns=[], source="m"),
        lambda: Select(columns=[column("a").named("a")], source="m", limit=MAX_ROWS + 1),
        lambda: Select(columns=[column("a").named("a")], source="m", every="1 day"),
        lambda: since("1d; DROP"),
        lambda: chosen("county", "county}$/ OR 1"),
    ],
)
def test_what_is_no_query_is_refused(make: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=r"."):
        make()


# ---------------------------------------------------------------------------------------------------------- words

MAINLAND = re.split(
    r"\s+",
    "數據 網關 網絡 信息 服務器 默認 實時 質量 屏幕 點擊 刷新 支持 運行 設置 程序 文件 軟件 硬件 傳感器 "
    "視頻 登陸 賬 泊位 鏈接 數組 字節 內存 硬盤 打印 缺省 調試 在線 離線率 反饋 激活 導出 界面 菜單",
)
"""What is said otherwise in Taiwan: 資料, 閘道器, 網路, 訊息, 伺服器, 預設, 即時, 品質, 螢幕, 點選 …"""


@pytest.mark.parametrize("key", TEXTS)
def test_a_text_is_in_both_languages_and_in_taiwans_chinese(key: str) -> None:
    text = TEXTS[key]
    assert text.en.strip() == text.en != ""
    assert text.zh_tw.strip() == text.zh_tw != ""
    if key != "this language":
        assert not re.search(r"[\u3000-\u9fff\uff00-\uffef]", text.en)
        assert re.search(r"[\u4e00-\u9fff]", text.zh_tw)
    text.zh_tw.encode("cp950")  # Big5: simplified letters are not in it
    assert [word for word in MAINLAND if word in text.zh_tw] == []
    assert not re.search(r"[\u4e00-\u9fff][,;:!?]", text.zh_tw), "Chinese has its own punctuation"


def test_no_text_is_missing_and_none_is_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    used = {"folder"}  # of the folders themselves

    def spy(key: str, language: Any) -> str:
        used.add(key)
        return say(key, language)

    monkeypatch.setattr(grafana, "say", spy)
    for page in PAGES:
        page_json(page, "zh-TW")
    assert used == set(TEXTS)


def test_both_languages_ask_and_show_the_same() -> None:
    for page in PAGES:
        chinese, english = (json.loads(page_json(page, language)) for language in LANGUAGES)
        assert [one.text for one in queries(chinese)] == [one.text for one in queries(english)]
        assert [one["gridPos"] for one in panels(chinese)] == [
            one["gridPos"] for one in panels(english)
        ]
        assert (chinese["uid"], english["uid"]) == (
            f"onestreet-{page.name}-zh",
            uid(page.name, "en"),
        )


# ---------------------------------------------------------------------------------------------------------- looks

KNOWN_UNITS = {value for name, value in vars(units).items() if isinstance(value, str)}


def test_every_unit_of_the_dictionary_is_one_of_grafanas() -> None:
    measured = {
        metric.unit for domain in dictionary().values() for metric in domain.metrics.values()
    }
    assert measured <= UNITS.keys()
    assert {one for one in UNITS.values() if not one.startswith("time:")} <= KNOWN_UNITS


def test_values_have_the_names_that_the_store_writes() -> None:
    assert VALUES["command"].keys() == set(get_args(Status))
    assert VALUES["domain"].keys() == dictionary().keys()
    assert list(VALUES["state"]) == ["0", "1", "2", "3", "4", "5"]
    assert VALUES["kind"].keys() == VALUES["meaning"].keys() == set(KINDS)
    words = [VALUES["state"][str(int(status))].text for status in WatchStatus]
    assert words == [f"state.{status.word}" for status in WatchStatus]


@pytest.mark.parametrize(("language", "suffix"), [("en", ""), ("zh-TW", ".zh-TW")])
def test_pages_and_operators_name_the_table_of_the_index_and_its_day(
    language: Language, suffix: str
) -> None:
    table = table_on(date.max)
    assert table is not None
    for name in ("aqi by site", "aqi by hour", "aqi by day", "stations"):
        assert str(table.effective) in say(f"air.{name}.about", language)
    about = say("air.aqi by site.about", language)
    assert (table.zh_tw if language == "zh-TW" else table.en) in about
    document = (ROOT / f"docs/operators/pages{suffix}.md").read_text(encoding="utf-8")
    assert str(table.effective) in document


def test_a_line_of_what_is_indicative_says_so() -> None:
    [air] = [page for page in PAGES if page.name == "air"]
    for language in LANGUAGES:
        asked = [
            one["targets"]
            for one in panels(json.loads(page_json(air, language)))
            if one["title"] == say("air.aqi by hour", language)
        ]
        [[indicative, reference]] = asked
        lines = "$tag_site, $tag_county"
        assert reference["alias"] == lines
        assert indicative["alias"] == f"{lines} ({say('indicative', language)})"


@pytest.mark.parametrize(("language", "suffix"), [("en", ""), ("zh-TW", ".zh-TW")])
def test_an_incident_is_called_on_pages_as_in_its_document(language: Language, suffix: str) -> None:
    document = (ROOT / f"docs/operators/incidents{suffix}.md").read_text(encoding="utf-8")
    for kind in KINDS:
        name = say(f"kind.{kind}", language)
        assert f"\n| {name.lower()} |" in document


def test_limits_rise_from_zero_and_what_is_missing_is_neither_good_nor_bad() -> None:
    for steps in LIMITS.values():
        assert (steps[0].above, steps[0].colour) == (None, GREY)
        rest = [step.above for step in steps[1:] if step.above is not None]
        assert len(rest) == len(steps) - 1
        assert rest == sorted(rest)
        assert rest[0] == 0
    assert [step.colour for step in LIMITS["aqi"][1:]] == [band.color for band in bands()]


def test_no_metric_that_has_limits_goes_below_zero() -> None:
    for _, panel in shown():
        for domain in set().union(*map(sources, panel.asks)) & dictionary().keys():
            for field in panel.fields:
                metric = dictionary()[domain].metrics.get(field.name)
                if field.limits and metric is not None:
                    assert metric.range is not None
                    assert metric.range[0] >= 0, field.name


# ---------------------------------------------------------------------------------------------------------- pages

EVERY_DEVICE = {*dictionary(), "device", "device_day", "rollup_hour", "rollup_day"}
"""Measurements with rows of each device: at 160,000 of them too many for a page about all."""
ONE_SITE = {"site", "device"}
FEW = {
    "parking.lots",
    *(f"air.{name}" for name in ("stations", "pm2_5", "pm10", "temperature", "humidity")),
    *(f"gateways.{name}" for name in ("states", "health", "backlog", "delay")),
    *(
        f"gateways.{name}"
        for name in ("outbox_depth", "outbox_hours_left", "dropped", "uplink_rtt")
    ),
}
"""Panels about gateways, of which there is one for many devices, about car parks, and about hours of air boxes."""


def sources(select: Select) -> set[str]:
    return sources(select.source) if isinstance(select.source, Select) else {select.source}


def shown() -> list[tuple[Page, Panel]]:
    return [(page, panel) for page in PAGES for band in page.bands for panel in band.panels]


@pytest.mark.parametrize("count", [0, -1, MAX_ROWS + 1])
def test_the_worst_are_so_many_as_somebody_would_look_at(count: int) -> None:
    assert top("aqi", MAX_ROWS).text == f'top("aqi", {MAX_ROWS})'
    with pytest.raises(ValueError, match="top"):
        top("aqi", count)


def test_pages_about_many_devices_read_rows_of_sites() -> None:
    for page, panel in shown():
        if page.name in ONE_SITE or f"{page.name}.{panel.name}" in FEW:
            continue
        for select in panel.asks:
            assert sources(select).isdisjoint(EVERY_DEVICE), f"{page.name}.{panel.name}"


def test_no_page_shows_a_bay_over_time() -> None:
    """Neither whether it is taken nor what is above it: it would be a car's diary."""
    for page, panel in shown():
        for select in panel.asks:
            words = str(select)
            if re.search(r'"(occupied|distance)"', words):
                assert select.by == () and INTERVAL not in words, f"{page.name}.{panel.name}"


def test_pages_of_one_site_choose_one() -> None:
    for page in PAGES:
        several = {variable.name: variable.several for variable in page.variables}
        assert several.pop("county")
        assert several.pop("site") is (page.name not in ONE_SITE)
        assert several == ({"device": False} if page.name == "device" else {})


def test_rows_that_are_not_grouped_are_limited() -> None:
    for page, panel in shown():
        for select in panel.asks:
            one = select
            if not any("(" in column.expression.text for column in one.columns):
                assert one.limit, f"{page.name}.{panel.name}"
            if one.every:
                assert one.every in (INTERVAL, "1h", "1d")
                assert bool(one.series) is bool(one.by), "so many lines nobody tells apart"


def test_every_band_is_as_wide_as_the_page_and_not_higher_than_a_phone() -> None:
    for page in PAGES:
        for band in page.bands:
            if not band.fold:
                assert sum(panel.width for panel in band.panels) == WIDTH, page.name
            assert band.height <= 12


def test_a_page_says_first_what_is_broken() -> None:
    for page in PAGES:
        names = [panel.name for band in page.bands[:4] for panel in band.panels]
        assert {"broken", "incidents"} & set(names), page.name
        assert page.bands[0].height == 4, "figures first"


def test_charts_of_a_device_show_every_metric_with_the_dictionarys_unit() -> None:
    [device] = [page for page in PAGES if page.name == "device"]
    for domain, one in dictionary().items():
        [band] = [band for band in device.bands if band.fold == f"domain.{domain}"]
        fields: dict[str, Field] = {f.name: f for panel in band.panels for f in panel.fields}
        assert fields.keys() == one.metrics.keys()
        for name, metric in one.metrics.items():
            assert fields[name].unit == metric.unit
            assert bool(fields[name].values) is (metric.type == "boolean")
        for panel in band.panels:
            assert len({field.unit for field in panel.fields}) == 1


def test_links_keep_what_is_chosen() -> None:
    for _, text in page_files():
        page = json.loads(text)
        others, *of_one, language, wall = page["links"]
        assert (others["type"], others["asDropdown"]) == ("dashboards", True)
        one_site = page["title"] in {say(name, "en") for name in ONE_SITE} | {
            say(name, "zh-TW") for name in ONE_SITE
        }
        assert (set(others["tags"]) < set(page["tags"])) is not one_site
        assert len(of_one) == len(ONE_SITE) - one_site
        for link in of_one:  # all sites must not go along to a page of one
            assert link["includeVars"] is one_site
        assert language["url"].removesuffix("-zh") == f"/d/{page['uid'].removesuffix('-zh')}"
        assert (wall["url"], page["refresh"]) == (f"/d/{page['uid']}?kiosk", "1m")
        assert all(link["includeVars"] for link in (others, language, wall))
        assert all(link["keepTime"] for link in page["links"])
        urls = re.findall(r'"(/d/[^"]+var-[^"]+)"', text)
        assert bool(urls) is not page["uid"].startswith("onestreet-device")
        for url in urls:
            target = url.split("?")[0].removesuffix("-zh")
            wanted = {"overview": 1, "site": 2, "device": 3}[target.rpartition("onestreet-")[2]]
            names = ["county", "site", "device"][:wanted]
            assert re.findall(r"var-(\w+)=\$\{__data\.fields\.(\w+)\}", url) == [
                (name, name) for name in names
            ]
            assert url.endswith("${__url_time_range}")


def test_the_worst_stands_first_in_a_table() -> None:
    for page, panel in shown():
        if panel.worst and panel.kind is not Kind.MAP:
            assert panel.kind is Kind.TABLE
            built = json.loads(page_json(page, "en"))
            title = say(titles(page, panel)[0], "en")
            [made] = [one for one in panels(built) if one["title"] == title]
            names = {
                one["value"]
                for override in made["fieldConfig"]["overrides"]
                for one in override["properties"]
                if one["id"] == "displayName"
            }
            sorted_by = made["options"]["sortBy"]
            assert len(sorted_by) == len(panel.worst)
            for by in sorted_by:
                assert by["displayName"] in names
                assert by["desc"] is not panel.least


def test_a_map_draws_the_worst_above_the_others() -> None:
    for page in PAGES:
        for made in panels(json.loads(page_json(page, "en"))):
            if made["type"] == "geomap":
                [drawn] = made["transformations"]
                assert drawn["id"] == "sortBy"
                assert drawn["options"]["sort"] == [{"field": "worst", "desc": False}]


def test_states_over_time_have_no_pager_and_end_where_a_device_is_silent() -> None:
    for page in PAGES:
        for made in panels(json.loads(page_json(page, "en"))):
            if made["type"] == "state-timeline":
                assert made["options"]["perPage"] == 0
                assert all("fill(null)" in target["query"] for target in made["targets"])
                for override in made["fieldConfig"]["overrides"]:
                    said = {one["id"]: one["value"] for one in override["properties"]}
                    assert said["custom.spanNulls"] == 10_800_000


def tables(language: Language) -> Iterator[tuple[str, Panel, list[dict[str, Any]], int]]:
    """Return each table, its columns' looks from left to right, and how wide it is on a screen of 1440."""
    for page in PAGES:
        made = {one["title"]: one for one in panels(json.loads(page_json(page, language)))}
        for panel in (panel for band in page.bands for panel in band.panels):
            if panel.kind is Kind.TABLE:
                built = made[say(titles(page, panel)[0], language)]
                looks = [
                    {"field": field, **{one["id"]: one["value"] for one in override["properties"]}}
                    for field, override in zip(
                        panel.fields, built["fieldConfig"]["overrides"], strict=True
                    )
                    if not field.hidden
                ]
                room = (1440 - 24) * panel.width // WIDTH - 8 - 18
                yield f"{page.name}.{panel.name}", panel, looks, room


PHONE = 390 - 50
"""What a table has of its width."""


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_phone_shows_what_a_row_is_about_and_how_it_stands(language: Language) -> None:
    for name, panel, looks, _ in tables(language):
        worst = panel.worst[:1] or ("kind", "status", "burned", "burning_s", "day_burning_s")
        taken = 0
        for look in looks:
            taken += look.get("custom.width") or look["custom.minWidth"]
            if look["field"].name in worst or look["field"].name == "state":
                break
        assert taken <= PHONE, name


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_table_shows_all_of_its_columns_on_a_screen(language: Language) -> None:
    for name, _, looks, room in tables(language):
        fixed = sum(look.get("custom.width", 0) for look in looks)
        least = [look["custom.minWidth"] for look in looks if "custom.width" not in look]
        share = (room - fixed) / len(least)
        assert max(least) <= share, name


def test_a_county_stands_last_where_a_row_is_not_about_it() -> None:
    for page, panel in shown():
        names = [field.name for field in panel.fields if not field.hidden]
        if panel.kind is Kind.TABLE and "county" in names and "site" in names:
            assert names[-1] == "county", f"{page.name}.{panel.name}"


def test_a_link_finds_what_goes_along_in_its_row() -> None:
    for page, panel in shown():
        names = {field.name for field in panel.fields}
        for field in panel.fields:
            if field.link is not None:
                needed = {"county": 1, "site": 2, "device": 3}[field.link]
                along = set(("county", "site", "device")[:needed])
                assert along <= names, f"{page.name}.{panel.name}"


def test_the_words_of_a_panel_are_its_own_or_those_of_all_pages() -> None:
    for page, panel in shown():
        for key in titles(page, panel):
            assert key in TEXTS


# ----------------------------------------------------------------------------------------------- build and check


def test_the_same_source_gives_the_same_bytes_and_they_are_what_is_provisioned() -> None:
    assert dict(page_files()) == dict(page_files())
    assert read(ROOT / PROVISIONED) == dict(page_files()), "run: onestreet dashboards build"


def test_build_writes_what_changed_and_takes_away_what_is_no_page_any_more(tmp_path: Path) -> None:
    assert len(write(tmp_path)) == len(PAGES) * len(LANGUAGES)
    assert write(tmp_path) == []
    old, kept = tmp_path / "en" / "onestreet-old.json", tmp_path / "en" / "ours.json"
    old.write_text("{}")
    kept.write_text("{}")
    assert write(tmp_path) == [old]
    assert not old.exists()
    assert kept.exists()


def test_the_pages_have_no_findings() -> None:
    assert findings(dict(page_files())) == []


PageJson = dict[str, Any]


def _no_title(page: PageJson) -> None:
    page["panels"][0]["title"] = ""


def _no_description(page: PageJson) -> None:
    del page["panels"][0]["description"]


def _no_unit(page: PageJson) -> None:
    page["panels"][0]["fieldConfig"]["defaults"]["unit"] = ""


def _same_id(page: PageJson) -> None:
    page["panels"][1]["id"] = page["panels"][0]["id"]


def _overlap(page: PageJson) -> None:
    page["panels"][1]["gridPos"]["x"] -= 1


def _too_wide(page: PageJson) -> None:
    page["panels"][-1]["gridPos"]["w"] = 25


def _endless(page: PageJson) -> None:
    page["panels"][0]["targets"][0]["query"] = 'SELECT last("down") FROM "site_now"'


def _dead_link(page: PageJson) -> None:
    page["links"][0]["url"] = "/d/onestreet-nowhere"


def _english(page: PageJson) -> None:
    page["panels"][0]["title"] = "Open incidents"


def _english_value(page: PageJson) -> None:
    page["panels"][0]["fieldConfig"]["defaults"]["noValue"] = "None"


def _foreign_source(page: PageJson) -> None:
    page["panels"][0]["targets"][0]["datasource"]["uid"] = "other"


def _mute(page: PageJson) -> None:
    del page["panels"][0]["fieldConfig"]["defaults"]["noValue"]


def _aimless(page: PageJson) -> None:
    page["panels"][0]["targets"] = []


def _no_page(page: PageJson) -> None:
    del page["panels"]


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (_no_title, "no title"),
        (_no_description, "no description"),
        (_no_unit, "no unit"),
        (_same_id, "two panels have the id 1"),
        (_overlap, "lies upon"),
        (_too_wide, "reaches out of the grid"),
        (_endless, "a query without an end in time"),
        (_dead_link, "a link leads to no page: /d/onestreet-nowhere"),
        (_english, "not translated: Open incidents"),
        (_english_value, "not translated: None"),
        (_foreign_source, "no data source of ours: other"),
        (_mute, "says nothing where there are no rows"),
        (_aimless, "asks nothing"),
        (_no_page, "no page of ours: Object missing required field `panels`"),
    ],
)
def test_check_finds_what_is_wrong(
    harm: Callable[[PageJson], None],
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write(tmp_path)
    file = tmp_path / "zh-TW" / "onestreet-overview-zh.json"
    page = json.loads(file.read_text(encoding="utf-8"))
    harm(page)
    file.write_text(json.dumps(page), encoding="utf-8")
    assert run(["check", str(tmp_path)]) == 1
    assert words in capsys.readouterr().err


def test_two_pages_with_one_uid_are_found() -> None:
    pages = dict(page_files())
    first = next(iter(pages.values()))
    assert "two pages have this uid" in findings({**pages, "copy.json": first})[0]


def test_a_file_that_is_no_page_is_named_and_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path)
    name = "zh-TW/onestreet-overview-zh.json"
    (tmp_path / name).write_text("{bad", encoding="utf-8")
    assert run(["check", str(tmp_path)]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{name}: no page of Grafana's")
    (tmp_path / name).write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="must be readable text") as told:
        run(["check", str(tmp_path)])
    assert told.value.file == str(tmp_path / name)


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:abc",
        "https://grafana.example:0",
        "https://[::1",
        "http://grafana.example",
        "grafana.example",
    ],
)
def test_a_token_goes_to_no_url_that_is_none(url: str, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("t", encoding="ascii")
    with pytest.raises(ConfigError, match="must be https://HOST:PORT"):
        run(["push", url, "--token-file", str(token)])


def test_a_token_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file") as told:
        run(["push", "https://grafana.example:3000", "--token-file", str(tmp_path / "none")])
    assert told.value.file == str(tmp_path / "none")


def test_check_says_that_all_is_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["build", "--into", str(tmp_path)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(PAGES) * len(LANGUAGES)
    assert run(["check", str(tmp_path)]) == 0
    assert run(["check"]) == 0
    assert capsys.readouterr().out == "good 頁面無誤: 14 pages 頁\n" * 2


def test_build_writes_the_rules_of_towns_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    town = ROOT / "towns" / "tw-tpe.toml"
    words = ["build", "--into", str(tmp_path / "pages"), "--alerts", str(tmp_path / "rules")]
    assert run([*words, "--towns", str(town)]) == 0
    assert f"{tmp_path / 'rules' / 'onestreet-tw-tpe.json'}\n" in capsys.readouterr().out
    assert run([*words, "--towns", str(town)]) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["check", "EMPTY"], "folder"),
        (["build", "--into", "EMPTY", "--alerts", "x"], "--towns, --alerts"),
        (["build", "--into", "EMPTY", "--towns", "x.toml"], "--towns, --alerts"),
        (["check", "--store", "http://x/y"], "--store"),
        (["check", "--store", "sqlite:///x"], "--store"),
        (["check", "--store", "influxdb://localhost:1/o/b"], "--store-token-file"),
        (["push", "http://grafana.example:3000", "--token-file", "x"], "url"),
        (["push", "grafana.example", "--token-file", "x"], "url"),
    ],
)
def test_a_wrong_command_line_is_named(words: list[str], key: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        run([str(tmp_path) if word == "EMPTY" else word for word in words])
    assert refused.value.key == key


def test_a_field_has_one_look_in_a_panel() -> None:
    for page, panel in shown():
        seen: Mapping[str, Field] = {field.name: field for field in panel.fields}
        assert len(seen) == len(panel.fields), f"{page.name}.{panel.name}"
