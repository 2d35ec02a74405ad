"""Grafana's evaluation of an alert rule, the part of it that our rules use, on a real InfluxDB at any moment.

Shape: query A (InfluxQL, `time_series`), B reduces each series to its last number, C compares it. An alert is kept per
    label set through pending, alerting and missing series.
Source: grafana 12.1, pkg/tsdb/influxdb/influxql (a series is a tag set and a column), pkg/expr (reduce, threshold),
    pkg/services/ngalert/state (pending, KeepLast, MissingSeries after so many evaluations).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tests.influx import Bucket

Labels = frozenset[tuple[str, str]]
State = Literal["Normal", "Pending", "Alerting"]

COMPARISONS: Mapping[str, Callable[..., bool]] = {
    "gt": lambda value, limit: value > limit,
    "gte": lambda value, limit: value >= limit,
    "lt": lambda value, limit: value < limit,
    "within_range": lambda value, low, high: low < value < high,
}


@dataclass
class _Instance:
    state: State = "Normal"
    since_s: float = 0.0
    missed: int = 0


@dataclass
class Engine:
    """One rule as provisioned, evaluated against buckets by the uid of their data source."""

    rule: Mapping[str, Any]
    buckets: Mapping[str, Bucket]
    instances: dict[Labels, _Instance] = field(default_factory=dict)

    def evaluate(self, at_s: float) -> dict[Labels, float | None]:
        """Return what condition C says of each label set: 1, 0 or None. Raises: AssertionError for an unknown form."""
        results: dict[str, dict[Labels, Any]] = {}
        for query in self.rule["data"]:
            model, uid = query["model"], query["datasourceUid"]
            assert model["refId"] == query["refId"]
            if uid != "__expr__":
                results[query["refId"]] = self._series(query, at_s)
            elif model["type"] == "reduce":
                assert (model["reducer"], model["settings"]) == ("last", {"mode": "dropNN"})
                results[query["refId"]] = {
                    labels: _last(values) for labels, values in results[model["expression"]].items()
                }
            else:
                assert model["type"] == "threshold"
                [condition] = model["conditions"]
                evaluator = condition["evaluator"]
                holds = COMPARISONS[evaluator["type"]]
                results[query["refId"]] = {
                    labels: None if value is None else float(holds(value, *evaluator["params"]))
                    for labels, value in results[model["expression"]].items()
                }
        answer: dict[Labels, float | None] = results[self.rule["condition"]]
        return answer

    def tick(self, at_s: float, *, fails: bool = False) -> dict[Labels, State]:
        """Evaluate as the scheduler does, or find that the store does not answer; return each alert's state."""
        answer = {} if fails else self.evaluate(at_s)
        if not answer:
            said = self.rule["execErrState" if fails else "noDataState"]
            assert said in ("KeepLast", "Alerting")
            if said == "KeepLast":  # of every alert there is; without one nothing begins
                for instance in self.instances.values():
                    instance.missed = 0
                return self._states()
            answer = {frozenset(): 1.0}
        for labels, instance in list(self.instances.items()):
            if labels not in answer:
                instance.missed += 1
                if instance.missed >= self.rule["missing_series_evals_to_resolve"]:
                    del self.instances[labels]
        for labels, value in answer.items():
            instance = self.instances.setdefault(labels, _Instance())
            instance.missed = 0
            if value is None:
                continue
            if not value:
                instance.state = "Normal"
            elif instance.state == "Normal":
                instance.state, instance.since_s = "Pending", at_s
            if instance.state == "Pending" and at_s - instance.since_s >= _seconds(
                self.rule["for"]
            ):
                instance.state = "Alerting"
        return self._states()

    def _states(self) -> dict[Labels, State]:
        return {labels: instance.state for labels, instance in self.instances.items()}

    def _series(self, query: Mapping[str, Any], at_s: float) -> dict[Labels, list[float | None]]:
        model, span = query["model"], query["relativeTimeRange"]
        assert model["rawQuery"] and model["resultFormat"] == "time_series"
        low, high = (round((at_s - span[end]) * 1000) for end in ("from", "to"))
        text = model["query"].replace("$timeFilter", f"time >= {low}ms and time <= {high}ms")
        assert "$" not in text, text
        found: dict[Labels, list[float | None]] = {}
        for series in self.buckets[query["datasourceUid"]].query(text):
            assert series["columns"] == ["time", "value"], (
                "a second column makes two alerts of one label set"
            )
            labels = frozenset(series.get("tags", {}).items())
            assert labels not in found
            found[labels] = [row[1] for row in series["values"]]
        return found


def _last(values: list[float | None]) -> float | None:
    """Reduce as `dropNN` does: what is no number is left out, and nothing is left of nothing."""
    numbers = [value for value in values if value is not None and math.isfinite(value)]
    return numbers[-1] if numbers else None


def _seconds(duration: str) -> int:
    assert duration.endswith("s"), duration
    return int(duration[:-1])


def rules_of(text: str) -> dict[str, Mapping[str, Any]]:
    """Return the rules of a provisioning file by uid, each with its group's interval as `interval`."""
    return {
        rule["uid"]: {**rule, "interval": group["interval"]}
        for group in json.loads(text)["groups"]
        for rule in group["rules"]
    }
