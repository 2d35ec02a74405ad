"""The dictionaries: complete, consistent, and of a kind the exchange can carry."""

from __future__ import annotations

import re
from itertools import chain

import pytest

from exchange.dictionary import RESERVED, VENDOR_METRIC, Metric, dictionary
from exchange.readings import MAX_NUMBER
from exchange.topics import LEVEL
from exchange.units import is_registered

METRICS = [
    pytest.param(name, metric, id=f"{domain}-{name}")
    for domain, entry in dictionary().items()
    for name, metric in entry.metrics.items()
]


def test_the_domains_are_the_exchanges() -> None:
    assert {"air", "parking", "streetlight", "gateway", "weather", "power"} <= set(dictionary())
    assert all(LEVEL.fullmatch(domain) for domain in dictionary())


@pytest.mark.parametrize(("name", "metric"), METRICS)
def test_a_metric_is_sound(name: str, metric: Metric) -> None:
    assert re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name)
    assert name not in RESERVED
    assert not VENDOR_METRIC.fullmatch(name)
    assert metric.en.strip()
    assert re.search(r"[\u4e00-\u9fff]", metric.zh_tw)
    if metric.type == "boolean":
        assert (metric.unit, metric.range, metric.max_rate_per_s) == ("", None, None)
        return
    assert metric.unit
    assert metric.senml_unit == (metric.unit if is_registered(metric.unit) else "")
    assert metric.range
    low, high = metric.range
    assert -MAX_NUMBER < low < high < MAX_NUMBER
    if metric.type == "integer":
        assert low == int(low)
        assert high == int(high)


def test_a_metric_of_two_domains_is_of_one_type_and_unit() -> None:
    # A gateway's and a lamp's `temperature` land in different measurements, and are read by the same eyes.
    kinds: dict[str, set[tuple[str, str]]] = {}
    for name, metric in chain.from_iterable(e.metrics.items() for e in dictionary().values()):
        kinds.setdefault(name, set()).add((metric.type, metric.unit))
    assert {name: kind for name, kind in kinds.items() if len(kind) > 1} == {}


def test_a_unit_that_is_not_registered_is_not_written() -> None:
    assert Metric(en="Smell", zh_tw="氣味", unit="olf").senml_unit == ""
    assert Metric(en="Ozone", zh_tw="臭氧", unit="ppb").senml_unit == "ppb"
