"""What a metric's values come to in an hour and a day: number, least, most, mean; the last one; how long it was true.

A day is made of its hours, so that what an hour's row holds is enough for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from math import fsum
from typing import TypeAlias

from exchange.dictionary import dictionary
from ingest.rollups.samples import pieces
from ingest.rollups.spans import Span
from ingest.stores import FieldValue

Fields: TypeAlias = Mapping[str, FieldValue]

CUMULATIVE = frozenset(
    {"energy", "energy_import", "energy_export", "lamp_hours", "dropped", "bus_errors"}
)
"""Metrics that only grow, until their counter is set back: what they were last is kept."""

PRIVATE = {"parking": frozenset({"occupied", "distance"})}
"""Metrics that would be a bay's diary: kept of the site alone."""


@cache
def booleans(domain: str) -> frozenset[str]:
    """Return the domain's metrics that are true or false."""
    metrics = dictionary()[domain].metrics
    return frozenset(name for name, metric in metrics.items() if metric.type == "boolean")


def names(metrics: Sequence[str]) -> list[str]:
    """Return what the fields are called that metrics may have."""
    kinds = ("count", "min", "max", "mean", "last", "s")
    return [f"{metric}_{kind}" for metric in metrics for kind in kinds]


def hour(domain: str, hour: Span, hold_s: float) -> dict[str, FieldValue]:
    """Return the statistics of each metric that has a good value in the hour; a value holds for `hold_s` at most."""
    fields: dict[str, FieldValue] = {}
    for metric, track in sorted(hour.tracks.items()):
        if metric in PRIVATE.get(domain, ()):
            continue
        values = [value for _, value in track]
        fields[f"{metric}_count"] = len(values)
        fields[f"{metric}_min"] = min(values)
        fields[f"{metric}_max"] = max(values)
        fields[f"{metric}_mean"] = _between(fsum(values) / len(values), values)
        true_or_false = metric in booleans(domain)
        if true_or_false or metric in CUMULATIVE:
            fields[f"{metric}_last"] = values[-1]
        if true_or_false:
            held = pieces(hour, metric, hold_s)
            fields[f"{metric}_s"] = fsum(piece.seconds for piece in held if piece.value)
    return fields


def day(domain: str, hours: Sequence[Fields]) -> dict[str, FieldValue]:
    """Return the same of a day from its hours, ascending."""
    fields: dict[str, FieldValue] = {}
    names = sorted({name for row in hours for name in row if name.endswith("_count")})
    for metric in (name.removesuffix("_count") for name in names):
        rows = [row for row in hours if f"{metric}_mean" in row]
        if not rows:
            continue  # a count of something else
        counts = [int(row[f"{metric}_count"]) for row in rows]
        means = list(_floats(rows, f"{metric}_mean"))
        total = fsum(count * mean for count, mean in zip(counts, means, strict=True))
        fields[f"{metric}_count"] = sum(counts)
        fields[f"{metric}_min"] = min(_floats(rows, f"{metric}_min"))
        fields[f"{metric}_max"] = max(_floats(rows, f"{metric}_max"))
        fields[f"{metric}_mean"] = _between(total / sum(counts), means)
        if metric in booleans(domain) or metric in CUMULATIVE:
            fields[f"{metric}_last"] = rows[-1][f"{metric}_last"]
        if metric in booleans(domain):
            fields[f"{metric}_s"] = fsum(_floats(rows, f"{metric}_s"))
    return fields


def _floats(rows: Sequence[Fields], name: str) -> Iterator[float]:
    return (float(row[name]) for row in rows)


def _between(mean: float, values: Sequence[float]) -> float:
    """Return a mean that rounding has not moved out of what it is the mean of."""
    return min(max(mean, min(values)), max(values))
