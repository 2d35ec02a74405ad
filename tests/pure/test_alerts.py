"""Alert rules and their files, without a store: words, links, bounds, contacts; and the operators' pages about them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from grafana_foundation_sdk.models import expr

from dashboards.alert_files import alert_files, write_alerts
from dashboards.alert_texts import words
from dashboards.alerts import DOWN, Rule, rules
from dashboards.influxql import Select
from dashboards.pages import PAGES
from dashboards.texts import LANGUAGES, Language, say
from exchange.errors import ConfigError
from exchange.topics import parse_topic
from exchange.towns import Town, read_town, read_towns
from ingest.days import Day
from ingest.stores import Place
from ingest.watch.figures import Figures
from ingest.watch.liveness import Status
from ingest.watch.rows import retired_row, site_day_row, site_row
from tests.alert_engine import COMPARISONS, rules_of

ROOT = Path(__file__).parents[2]
TOWNS = read_towns((ROOT / "towns").glob("*.toml"))
TOWN = TOWNS[0]
RULES = rules(TOWN)
OPERATORS = ROOT / "docs" / "operators"
SUFFIX = {"en": "", "zh-TW": ".zh-TW"}
CHINESE = re.compile(r"[一-鿿]")


def by_name(rule: Rule) -> str:
    return rule.name


def provisioned(town: Town = TOWN) -> list[dict[str, Any]]:
    return [
        dict(rule)
        for rule in rules_of(alert_files([town])[f"onestreet-{town.county}.json"]).values()
    ]


def with_alerts(town: Town, **changes: Any) -> Town:
    return msgspec.structs.replace(town, alerts=msgspec.structs.replace(town.alerts, **changes))


def document(name: str, language: Language) -> str:
    return (OPERATORS / f"{name}{SUFFIX[language]}.md").read_text(encoding="utf-8")


def sections(text: str) -> dict[str, str]:
    """Return what a document says under each heading that has a name."""
    parts = re.split(r'^#+ <a id="([a-z0-9-]+)"></a>', text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


# Rules


def test_every_county_has_its_own_rules_and_grafana_can_name_them() -> None:
    files = alert_files(TOWNS)
    assert sorted(files) == sorted(
        f"onestreet-{town.county}.json" for town in TOWNS
    )  # nobody is told yet
    every = [rule for text in files.values() for rule in rules_of(text).values()]
    assert len({rule["uid"] for rule in every}) == len(TOWNS) * len(RULES) == len(every)
    assert all(len(rule["uid"]) <= 40 for rule in every)
    for text in files.values():
        titles = [rule["title"] for rule in rules_of(text).values()]
        assert len(set(titles)) == len(titles)  # one folder takes a title once


def test_the_same_towns_give_the_same_bytes() -> None:
    assert alert_files(TOWNS) == alert_files(TOWNS)


@pytest.mark.parametrize("rule", RULES, ids=by_name)
def test_a_rule_reads_its_county_by_sites_gateways_or_car_parks_within_a_time(rule: Rule) -> None:
    inner = rule.asks.source if isinstance(rule.asks.source, Select) else rule.asks
    said = [condition.text for condition in inner.where]
    assert f"\"county\" = '{TOWN.county}'" in said
    assert "$timeFilter" in said
    assert inner.source in ("site_now", "site_day_state", "site_hour", "site_day") or (
        inner.source in ("gateway", "parking")
        or (inner.source == "device" and "\"domain\" = 'gateway'" in said)
    ), "a row of each of 160,000 lamps"
    assert [column.name for column in rule.asks.columns] == ["value"]
    assert not rule.asks.every


@pytest.mark.parametrize("rule", provisioned(), ids=lambda rule: rule["labels"]["rule"])
def test_a_rule_is_in_grafanas_form(rule: dict[str, Any]) -> None:
    asked, reduced, compared = rule["data"]
    assert [one["refId"] for one in rule["data"]] == ["A", "B", "C"]
    assert rule["condition"] == "C"
    assert asked["datasourceUid"] in ("onestreet", "onestreet-rollups")
    assert asked["relativeTimeRange"]["from"] > asked["relativeTimeRange"]["to"] >= 0
    for one, model in ((reduced, expr.TypeReduce), (compared, expr.TypeThreshold)):
        assert one["datasourceUid"] == "__expr__"
        written = model.from_json(one["model"]).to_json()
        assert {key: one["model"][key] for key in written} == json.loads(
            json.dumps(written, default=lambda part: part.to_json())
        )
    [condition] = compared["model"]["conditions"]
    assert condition["evaluator"]["type"] in COMPARISONS
    seconds = int(rule["interval"][:-1])
    assert seconds % 10 == 0  # Grafana's own step
    assert rule["missing_series_evals_to_resolve"] * seconds == 86_400


def test_what_rules_ask_of_the_watch_is_what_it_writes() -> None:
    site, day = Place(TOWN.county, "s", "air"), Day(0, 86_400 * 10**9)
    figures = Figures(received=90, missing=10)
    lamp = parse_topic(f"city/v1/{TOWN.county}/s/g/gateway/g/state")
    written = (
        retired_row(lamp, 0),
        site_row(site, [0] * len(Status), figures, None, 0),
        site_day_row(site, day, figures),
    )
    fields = {point.series.measurement: point.fields for point in written}
    for rule in RULES:
        if rule.asks.source in ("device", "site_now", "site_day_state"):
            [column] = rule.asks.columns
            [field] = re.findall(r'\("(\w+)"\)', column.expression.text)
            assert field in fields[str(rule.asks.source)]
    assert DOWN == Status.DOWN


def test_what_cannot_be_judged_keeps_its_alerts_and_one_rule_says_so() -> None:
    for rule in provisioned():
        heartbeat = rule["labels"]["rule"] in ("ingest-late", "watch-silent", "rollups-silent")
        assert rule["noDataState"] == ("Alerting" if heartbeat else "KeepLast")
    failing = [
        rule["labels"]["rule"] for rule in provisioned() if rule["execErrState"] != "KeepLast"
    ]
    assert failing == ["watch-silent"]


# Words


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("rule", RULES, ids=by_name)
def test_a_rule_says_what_it_is_with_what_it_knows(rule: Rule, language: Language) -> None:
    said = words(rule, TOWN, language)
    assert all(bool(CHINESE.search(text)) == (language == "zh-TW") for text in said)
    text = " ".join(said)
    assert "<" not in text
    assert (TOWN.name.zh_tw if language == "zh-TW" else TOWN.name.en) in said.summary
    assert set(re.findall(r"\$labels\.(\w+)", text)) == set(rule.labels)
    if rule.heartbeat:
        assert "$values" not in text  # no rows, no value
    assert "{{" not in said.title


def test_what_grafana_would_fill_in_at_its_start_stands_nowhere() -> None:
    for rule in provisioned():
        assert "$" not in json.dumps([rule["labels"], rule["title"], rule["uid"]])
        assert not re.search(r"\$[{_]", json.dumps(rule["annotations"]))


# Contacts


def test_mail_and_webhooks_of_each_county() -> None:
    first, second, third = TOWNS[:3]
    towns = [
        first,
        with_alerts(second, mail=["a@town.gov.tw", "b@town.gov.tw"]),
        with_alerts(third, webhooks=["file:/office/services/grafana/hook.url", "env:HOOK_URL"]),
    ]
    files = alert_files(towns)
    points = json.loads(files["onestreet-contacts.json"])["contactPoints"]
    assert {
        point["name"]: [(one["type"], one["settings"]) for one in point["receivers"]]
        for point in points
    } == {
        f"onestreet {second.county}": [
            ("email", {"addresses": "a@town.gov.tw;b@town.gov.tw", "singleEmail": True})
        ],
        f"onestreet {third.county}": [
            ("webhook", {"url": "$__file{/office/services/grafana/hook.url}"}),
            ("webhook", {"url": "$__env{HOOK_URL}"}),
        ],
    }
    uids = [one["uid"] for point in points for one in point["receivers"]]
    assert len(set(uids)) == len(uids)
    assert all(len(one) <= 40 for one in uids)


def test_one_mail_tells_all_of_a_site_to_its_own_county() -> None:
    towns = [TOWNS[0], *(with_alerts(town, mail=["a@town.gov.tw"]) for town in TOWNS[1:3])]
    [policy] = json.loads(alert_files(towns)["onestreet-policies.json"])["policies"]
    assert (
        policy["receiver"] == f"onestreet {TOWNS[1].county}"
    )  # the first that is told of anything
    assert [(route["object_matchers"], route["receiver"]) for route in policy["routes"]] == [
        ([["county", "=", town.county]], f"onestreet {town.county}") for town in TOWNS[1:3]
    ]
    for route in (policy, *policy["routes"]):
        assert route["group_by"] == ["county", "site"]
    grouped = {"county", *(label for rule in RULES for label in rule.labels)}
    assert set(policy["group_by"]) <= grouped


# Files


def written(folder: Path) -> dict[str, dict[str, Any]]:
    return {
        file.name.removeprefix("onestreet-"): json.loads(file.read_text(encoding="utf-8"))
        for file in folder.glob("onestreet-*.json")
    }


def test_files_are_written_where_something_changed(tmp_path: Path) -> None:
    folder = tmp_path / "alerting"
    foreign = "groups: []"
    assert [file.name for file in write_alerts(folder, TOWNS)] == sorted(alert_files(TOWNS))
    (folder / "mine.yaml").write_text(foreign)
    assert write_alerts(folder, TOWNS) == []
    louder = [with_alerts(TOWNS[0], aqi=50), *TOWNS[1:]]
    assert write_alerts(folder, louder) == [folder / f"onestreet-{TOWNS[0].county}.json"]
    for name, text in alert_files(louder).items():
        assert (folder / name).read_text(encoding="utf-8") == text
    assert (folder / "mine.yaml").read_text() == foreign


def test_grafana_is_told_what_is_gone_until_it_is_back(tmp_path: Path) -> None:
    first, second = TOWNS[:2]
    told = with_alerts(second, mail=["a@town.gov.tw"], webhooks=["env:HOOK"])
    write_alerts(tmp_path, [first, told])
    for _ in range(2):  # a restart of Grafana that did not see the first time
        write_alerts(tmp_path, [with_alerts(first, mail=["b@town.gov.tw"])])
        files = written(tmp_path)
        assert files[f"{second.county}.json"]["deleteRules"] == [
            {"orgId": 1, "uid": uid}
            for uid in sorted(rules_of(alert_files([second])[f"onestreet-{second.county}.json"]))
        ]
        assert [one["uid"] for one in files["contacts.json"]["deleteContactPoints"]] == [
            f"onestreet-{second.county}-hook-1",
            f"onestreet-{second.county}-mail",
        ]
    write_alerts(tmp_path, [first])
    assert written(tmp_path)["policies.json"] == {"apiVersion": 1, "resetPolicies": [1]}
    assert len(written(tmp_path)["contacts.json"]["deleteContactPoints"]) == 3
    write_alerts(tmp_path, [first, told])
    files = written(tmp_path)
    assert "deleteRules" not in files[f"{second.county}.json"]
    assert "resetPolicies" not in files["policies.json"]
    assert [one["uid"] for one in files["contacts.json"]["deleteContactPoints"]] == [
        f"onestreet-{first.county}-mail"
    ]


@pytest.mark.parametrize("text", ["[]", "not JSON", '{"groups": [{}]}', '{"deleteRules": [1]}'])
def test_a_file_of_our_name_that_we_did_not_write_is_named(tmp_path: Path, text: str) -> None:
    file = tmp_path / f"onestreet-{TOWN.county}.json"
    file.write_text(text)
    with pytest.raises(ConfigError) as told:
        write_alerts(tmp_path, TOWNS)
    assert told.value.file == str(file)
    assert file.read_text() == text


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("webhooks", ["https://hooks.example/services/secret"]),
        ("webhooks", ["file:relative"]),
        ("webhooks", ["file:/a}/$(b)"]),
        ("webhooks", ["env:A-B"]),
        ("mail", ["a@b$HOME"]),
        ("mail", ["a;b@c"]),
        ("mail", ["nobody"]),
        ("runbooks", "javascript:alert(1)"),
        ("lag_minutes", 1),
        ("down_devices", 0),
    ],
)
def test_a_secret_or_a_wrong_contact_in_a_towns_file_is_refused(
    tmp_path: Path, key: str, value: object
) -> None:
    text = (ROOT / "towns" / f"{TOWN.county}.toml").read_text(encoding="utf-8")
    path = tmp_path / f"{TOWN.county}.toml"
    path.write_text(text.replace("[alerts]\n", f"[alerts]\n{key} = {json.dumps(value)}\n"))
    with pytest.raises(ConfigError) as told:
        read_town(path)
    assert told.value.key.startswith(f"alerts.{key}")


# What operators read


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_rule_has_its_section_and_its_link_leads_there(language: Language) -> None:
    found = sections(document("alerts", language))
    assert [name for name in found if name in {rule.name for rule in RULES}] == list(found)
    assert set(found) == {rule.name for rule in RULES}
    key = "runbook_url" + ("_en" if language == "en" else "")
    for rule in provisioned():
        path, _, anchor = rule["annotations"][key].partition("#")
        assert ROOT / path == OPERATORS / f"alerts{SUFFIX[language]}.md"
        assert anchor in found
    abroad = with_alerts(TOWN, runbooks="https://town.example/onestreet/")
    [first, *_] = provisioned(abroad)
    assert first["annotations"][key].startswith(
        f"https://town.example/onestreet/alerts{SUFFIX[language]}.md#"
    )


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("rule", RULES, ids=by_name)
def test_a_section_says_title_severity_meaning_and_what_to_do(
    rule: Rule, language: Language
) -> None:
    heading, _, body = sections(document("alerts", language))[rule.name].partition("\n")
    assert heading.strip() == words(rule, TOWN, language).title
    assert f"`{rule.severity.value}`" in body
    for part in ("What it means", "What to do") if language == "en" else ("代表什麼", "怎麼處理"):
        assert f"**{part}" in body


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_page_has_its_section(language: Language) -> None:
    found = sections(document("pages", language))
    assert list(found) == [page.name for page in PAGES]
    for page in PAGES:
        heading, _, body = found[page.name].partition("\n")
        assert heading.strip() == say(page.name, language)
        assert say(f"{page.name}.about", language) in body


@pytest.mark.parametrize("name", ["alerts", "pages"])
def test_both_languages_have_the_same_sections(name: str) -> None:
    english, chinese = (sections(document(name, language)) for language in ("en", "zh-TW"))
    assert list(english) == list(chinese)
    assert all(CHINESE.search(body) for body in chinese.values())
    assert not any(CHINESE.search(body) for body in english.values())
