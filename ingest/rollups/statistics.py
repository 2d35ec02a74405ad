"""What a metric's values come to in an hour and a day: number; least, most, mean; the last one; how long it was true.

A day is made of its hours, so that what an hour's row holds is enough for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from math import fsum
from operator import mul
from typing import NamedTuple, TypeAlias

from exchange.dictionary import dictionary
from ingest.rollups.samples import pieces
from ingest.rollups.spans import Span
from ingest.stores import FieldValue

Columns: TypeAlias = Mapping[str, Sequence[FieldValue | None]]

CUMULATIVE = frozenset(
    {"energy", "energy_import", "energy_export", "lamp_hours", "dropped", "bus_errors"}
)
"""Metrics that only grow, until their counter is set back: what they were last is kept."""


@cache
def booleans(domain: str) -> frozenset[str]:
    """Return the domain's metrics that are true or false."""
    metrics = dictionary()[domain].metrics
    return frozenset(name for name, metric in metrics.items() if metric.type == "boolean")


def names(domain: str, metrics: Sequence[str]) -> list[str]:
    """Return what the fields are called that metrics may have."""
    return [name for metric in metrics for name in _names(domain, metric) if name]


class _Names(NamedTuple):
    """What the fields of a metric are called; empty where it has none of that kind."""

    number: str
    least: str
    most: str
    mean: str
    last: str
    seconds: str


@cache
def _names(domain: str, metric: str) -> _Names:
    true_or_false, grows = metric in booleans(domain), metric in CUMULATIVE
    # The least and the mean of what only grows, or is true or false, say nothing that the others do not.
    has_last = true_or_false or grows
    return _Names(
        f"{metric}_count",
        "" if has_last else f"{metric}_min",
        "" if has_last else f"{metric}_max",
        "" if has_last else f"{metric}_mean",
        f"{metric}_last" if has_last else "",
        f"{metric}_s" if true_or_false else "",
    )


def hour(domain: str, hour: Span, hold_s: float) -> dict[str, FieldValue]:
    """Return the statistics of each metric that has a good value in the hour; a value holds for `hold_s` at most."""
    fields: dict[str, FieldValue] = {}
    for metric, track in hour.tracks.items():
        count, least, most, mean, last, seconds = _names(domain, metric)
        fields[count] = len(track)
        if mean:
            values = [value for _, value in track]
            fields[least] = low = min(values)
            fields[most] = high = max(values)
            of_all = fsum(values) / len(values)
            fields[mean] = min(max(of_all, low), high)  # rounding moves it not out
        if last:
            fields[last] = track[-1][1]
        if seconds:
            held = pieces(hour, metric, hold_s)
            fields[seconds] = fsum([piece.seconds for piece in held if piece.value])
    return fields


def day(domain: str, hours: Columns, metrics: Sequence[str]) -> dict[str, FieldValue]:
    """Return the same of a day from the columns of its hours, ascending."""
    fields: dict[str, FieldValue] = {}
    for metric in metrics:
        count, least, most, mean, last, seconds = _names(domain, metric)
        counts = [int(value) for value in _known(hours, count)]
        if not counts:
            continue
        fields[count] = sum(counts)
        if mean:
            means = _known(hours, mean)
            total = fsum(map(mul, counts, means))
            fields[least] = min(_known(hours, least))
            fields[most] = max(_known(hours, most))
            fields[mean] = min(max(total / sum(counts), min(means)), max(means))
        if last:
            fields[last] = _known(hours, last)[-1]
        if seconds:
            fields[seconds] = fsum(_known(hours, seconds))
    return fields


def _known(hours: Columns, name: str) -> list[float]:
    return [float(value) for value in hours.get(name, ()) if value is not None]
