"""Packs for tests: every domain's samples, valid by construction, and the records to break them with."""

from __future__ import annotations

import json
from typing import Any

import cbor2
from hypothesis import strategies as st

from exchange.dictionary import Metric, dictionary
from exchange.readings import (
    MAX_ABSOLUTE_S,
    MAX_NUMBER,
    MIN_ABSOLUTE_S,
    REASONS,
    PackFormat,
    Sample,
    Value,
)
from exchange.topics import Topic

Record = dict[str, Any]

EPOCH = 1_749_990_000_456
BT = 1_750_000_000.5
CBOR_LABELS = {
    "bt": -3, "bn": -2, "bver": -1, "n": 0, "u": 1, "v": 2, "vs": 3, "vb": 4, "t": 6,
}  # fmt: skip  # RFC 8428 table 4

formats: st.SearchStrategy[PackFormat] = st.sampled_from(["json", "cbor"])
counts = st.integers(0, MAX_NUMBER - 1)
domains = st.sampled_from(sorted(dictionary()))
vendor_names = st.from_regex(r"x-[a-z0-9]{1,8}-[a-z0-9][a-z0-9_.-]{0,8}", fullmatch=True)


def readings_topic(domain: str = "air") -> Topic:
    """A topic for readings of this domain."""
    device = "gw-1" if domain == "gateway" else "dev-7"
    return Topic("tw-tpe", "xinyi", "gw-1", domain, device, "readings")


def head(domain: str = "air", **labels: Any) -> Record:
    """The first record of a pack."""
    topic = readings_topic(domain)
    bn = f"{topic.county}:{topic.device}:"
    return {"bn": bn, "bt": BT, "bver": 26, "n": "epoch", "v": EPOCH} | labels


def packed(records: Any, form: PackFormat = "json") -> bytes:
    """The payload of these records, right or wrong."""
    if form == "json":
        return json.dumps(records).encode()
    return cbor2.dumps(
        [{CBOR_LABELS.get(label, label): value for label, value in r.items()} for r in records]
    )


def values(metric: Metric) -> st.SearchStrategy[Value]:
    """What a sample may hold of this metric."""
    if metric.type == "boolean":
        return st.booleans()
    low, high = metric.range or (1 - MAX_NUMBER, MAX_NUMBER - 1)
    if metric.type == "integer":
        return st.integers(int(low), int(high))
    return st.floats(low, high)


def qualities(metrics: list[str]) -> st.SearchStrategy[str]:
    """No mark, or some; each on the sample or on one of its metrics."""
    mark = st.builds(
        lambda grade, reason, metric: f"{grade}:{reason}{metric and f'({metric})'}",
        st.sampled_from(["uncertain", "bad"]),
        st.sampled_from(REASONS),
        st.sampled_from(["", *metrics]),
    )
    return st.lists(mark, max_size=2).map(";".join)


@st.composite
def samples(draw: st.DrawFn, domain: str, *, at_most: int = 4) -> list[Sample]:
    """Samples of one device and one epoch, in order."""
    number = draw(st.integers(1, at_most))
    times = st.integers(MIN_ABSOLUTE_S * 1000, (MAX_ABSOLUTE_S - 1) * 1000)
    epoch = draw(counts)
    in_order = zip(
        sorted(draw(st.sets(times, min_size=number, max_size=number))),
        sorted(draw(st.sets(counts, min_size=number, max_size=number))),
        strict=True,
    )
    return [
        Sample(time_ms, epoch, seq, metrics, draw(qualities(list(metrics))))
        for time_ms, seq in in_order
        for metrics in [draw(metric_sets(domain))]
    ]


@st.composite
def metric_sets(draw: st.DrawFn, domain: str) -> dict[str, Value]:
    """Some of a domain's metrics, and some of a vendor's."""
    known = dictionary()[domain].metrics
    names = draw(st.lists(st.sampled_from(sorted(known)), unique=True, max_size=4))
    found: dict[str, Value] = {name: draw(values(known[name])) for name in names}
    numbers = st.floats(-MAX_NUMBER, MAX_NUMBER, exclude_min=True, exclude_max=True)
    return found | draw(st.dictionaries(vendor_names, numbers, max_size=2))
