"""Alert rules, contact points and notification policies as the files that Grafana provisions at its start.

The foundation SDK writes the HTTP interface's form, which has other names and lacks what keeps an alert whose series
is gone. Grafana fills in `$…` in contact points and policies, not in queries and annotations.
Source: grafana.com/docs/grafana/v12.1, "Use configuration files to provision alerting resources".
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from dashboards.alert_texts import words
from dashboards.alerts import DAY_S, Rule, rules
from exchange.errors import ConfigError
from exchange.towns import Town

PREFIX = "onestreet-"
"""Our files in a folder that may hold others'."""
CONDITION = "C"
GROUP_BY = ("county", "site")
"""One mail tells all that is wrong at a site, a gateway's death and what it took along."""
GROUP_WAIT, GROUP_INTERVAL, REPEAT_INTERVAL = "30s", "5m", "12h"
_EXPRESSION = {"type": "__expr__", "uid": "__expr__"}
_RUNBOOKS = "docs/operators"
_FILES = {"zh-TW": "alerts.zh-TW.md", "en": "alerts.md"}


def alert_files(towns: Sequence[Town]) -> dict[str, str]:
    """Return what belongs into Grafana's folder provisioning/alerting, by name: the same bytes for the same towns."""
    return {name: _text(content) for name, content in _contents(towns).items()}


def write_alerts(folder: Path, towns: Sequence[Town]) -> list[Path]:
    """Write the files; return those that changed. Raises: ConfigError as `changes` does."""
    changed = changes(folder, towns)
    for file, text in changed.items():
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    return list(changed)


def changes(folder: Path, towns: Sequence[Town]) -> dict[Path, str]:
    """Return the files that are to be written, for they are not there or say something else.

    Grafana keeps what a file that is gone once said. So a file stays and says what is to be deleted; others' are
    left alone. Raises: ConfigError for one of our names that is not what was written.
    """
    wanted, changed = _contents(towns), {}
    ours = {folder / name for name in wanted} | set(folder.glob(f"{PREFIX}*.json"))
    for file in sorted(ours):
        said = file.read_text(encoding="utf-8") if file.exists() else ""
        text = _text(_deleting(wanted.get(file.name, {}), _read(file, said)))
        if text != said:
            changed[file] = text
    return changed


def _contents(towns: Sequence[Town]) -> dict[str, dict[str, Any]]:
    files = {f"{PREFIX}{town.county}.json": {"groups": _groups(town)} for town in towns}
    told = [town for town in towns if town.alerts.mail or town.alerts.webhooks]
    if told:  # else Grafana's own stay as they are
        files[f"{PREFIX}contacts.json"] = {"contactPoints": [_contact_point(town) for town in told]}
        files[f"{PREFIX}policies.json"] = {"policies": [_policy(told)]}
    return files


def _read(file: Path, text: str) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(text or "{}")
        _ = _deleting({}, content)
    except (ValueError, TypeError, KeyError, AttributeError):
        raise ConfigError(str(file), "", None, "delete it: it was not written by us") from None
    return content


def _deleting(content: dict[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    """Return a file's content with what it said before and does not say any more."""
    merged = dict(content)
    for key, within, delete in (
        ("groups", "rules", "deleteRules"),
        ("contactPoints", "receivers", "deleteContactPoints"),
    ):
        was, stays = (
            {one["uid"] for each in said.get(key, []) for one in each[within]}
            for said in (before, content)
        )
        gone = (was | {one["uid"] for one in before.get(delete, [])}) - stays
        if gone:
            merged[delete] = [{"orgId": 1, "uid": uid} for uid in sorted(gone)]
    if "policies" not in content and ("policies" in before or "resetPolicies" in before):
        merged["resetPolicies"] = [1]
    return merged


def uid(county: str, rule: Rule) -> str:
    """Return the uid of a county's rule: Grafana takes 40 characters."""
    return f"{PREFIX}{county}-{rule.name}"


def _groups(town: Town) -> list[dict[str, Any]]:
    by_pace = sorted(rules(town), key=lambda rule: rule.every_s)
    return [
        {
            "orgId": 1,
            "name": f"{town.county} {every_s}s",
            "folder": f"onestreet {town.county}",
            "interval": f"{every_s}s",
            "rules": [_rule(town, rule) for rule in group],
        }
        for every_s, group in groupby(by_pace, key=lambda rule: rule.every_s)
    ]


def _rule(town: Town, rule: Rule) -> dict[str, Any]:
    chinese, english = words(rule, town, "zh-TW"), words(rule, town, "en")
    page = f"onestreet-overview-zh?var-county={town.county}"
    if "site" in rule.labels:
        page = f"onestreet-site-zh?var-county={town.county}&var-site={{{{ $labels.site }}}}"
    return {
        "uid": uid(town.county, rule),
        "title": f"{chinese.title} {english.title} ({town.county})",
        "condition": CONDITION,
        "data": _data(rule),
        "for": f"{rule.lasts_s}s",
        "noDataState": "Alerting" if rule.heartbeat else "KeepLast",
        "execErrState": "Alerting" if rule.name == "watch-silent" else "KeepLast",
        "missing_series_evals_to_resolve": DAY_S // rule.every_s,
        "labels": {"county": town.county, "rule": rule.name, "severity": rule.severity.value},
        "annotations": {
            "summary": chinese.summary,
            "summary_en": english.summary,
            "description": chinese.description,
            "description_en": english.description,
            "runbook_url": runbook(town, rule, "zh-TW"),
            "runbook_url_en": runbook(town, rule, "en"),
            "page": f"{{{{ externalURL }}}}d/{page}",
        },
    }


def runbook(town: Town, rule: Rule, language: str) -> str:
    """Return where it is written what a rule means and what is to be done."""
    base = town.alerts.runbooks.rstrip("/") or _RUNBOOKS
    return f"{base}/{_FILES[language]}#{rule.name}"


def _data(rule: Rule) -> list[dict[str, Any]]:
    asked: dict[str, Any] = {
        "query": str(rule.asks),
        "rawQuery": True,
        "resultFormat": "time_series",
        "datasource": {"type": "influxdb", "uid": rule.source.value},
    }
    reduced: dict[str, Any] = {
        "type": "reduce",
        "expression": "A",
        "reducer": "last",
        "settings": {"mode": "dropNN"},
        "datasource": _EXPRESSION,
    }
    compared: dict[str, Any] = {
        "type": "threshold",
        "expression": "B",
        "conditions": [{"evaluator": {"type": rule.compares, "params": list(rule.limits)}}],
        "datasource": _EXPRESSION,
    }
    span = {"from": rule.from_s, "to": rule.to_s}
    return [
        {
            "refId": ref,
            "relativeTimeRange": span,
            "datasourceUid": model["datasource"]["uid"],
            "model": {**model, "refId": ref},
        }
        for ref, model in (("A", asked), ("B", reduced), (CONDITION, compared))
    ]


def _contact_point(town: Town) -> dict[str, Any]:
    receivers: list[dict[str, Any]] = []
    if town.alerts.mail:
        # A dollar sign would be a variable to Grafana; the town's reader lets none pass.
        settings = {"addresses": ";".join(town.alerts.mail), "singleEmail": True}
        receivers.append(_receiver(f"{PREFIX}{town.county}-mail", "email", settings))
    for number, webhook in enumerate(town.alerts.webhooks, 1):
        kind, _, where = webhook.partition(":")
        url = f"$__{kind}{{{where}}}"  # filled in by Grafana, which alone may read it
        receivers.append(_receiver(f"{PREFIX}{town.county}-hook-{number}", "webhook", {"url": url}))
    return {"orgId": 1, "name": _name(town), "receivers": receivers}


def _receiver(uid: str, kind: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    return {"uid": uid, "type": kind, "settings": settings, "disableResolveMessage": False}


def _policy(told: Sequence[Town]) -> dict[str, Any]:
    """Return the tree: each county's alerts to its own; what has no own (a rule of somebody's, too) to the first."""
    return {
        "orgId": 1,
        "receiver": _name(told[0]),
        "group_by": list(GROUP_BY),
        "group_wait": GROUP_WAIT,
        "group_interval": GROUP_INTERVAL,
        "repeat_interval": REPEAT_INTERVAL,
        "routes": [
            {
                "receiver": _name(town),
                "object_matchers": [["county", "=", town.county]],
                "group_by": list(GROUP_BY),
            }
            for town in told
        ],
    }


def _name(town: Town) -> str:
    return f"onestreet {town.county}"


def _text(content: Mapping[str, Any]) -> str:
    return json.dumps({"apiVersion": 1, **content}, ensure_ascii=False, indent=1) + "\n"
