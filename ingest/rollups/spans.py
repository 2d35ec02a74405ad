"""A span: what one device measured in an hour or a day, as the arithmetic of a domain takes it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple, TypeAlias

from exchange import QUALITY_MARK
from ingest.stores import DeviceRows

BEFORE_NS = 3600 * 10**9
"""How far back the row before a span may be. What a device said earlier than that says nothing any more."""

Sample: TypeAlias = tuple[int, float]
"""When, in ms, and what."""

_MARK = re.compile(QUALITY_MARK)
_MS_NS = 1_000_000


class Bounds(NamedTuple):
    """From `start_ms` to before `end_ms`."""

    start_ms: int
    end_ms: int


class Span(NamedTuple):
    """The good values of one device in a while.

    Shape: `tracks[metric]` is (time in ms, value), ascending; a metric without a good value is not there. `before`
        holds those of the last row within BEFORE_NS before the span. Booleans are 0 and 1.
    """

    start_ms: int
    end_ms: int
    tracks: Mapping[str, Sequence[Sample]]
    before: Mapping[str, Sample]


def span(
    start_ns: int,
    end_ns: int,
    rows: DeviceRows,
    before: Mapping[str, Sample],
    metrics: Sequence[str],
) -> Span:
    """Return what a device's rows say, without what is marked bad."""
    return Span(start_ns // _MS_NS, end_ns // _MS_NS, _tracks(rows, metrics), before)


def latest(rows: DeviceRows, metrics: Sequence[str]) -> dict[str, Sample]:
    """Return the good values of one row, or the last ones of several."""
    return {metric: track[-1] for metric, track in _tracks(rows, metrics).items()}


def _tracks(rows: DeviceRows, metrics: Sequence[str]) -> dict[str, list[tuple[int, float]]]:
    times = [time_ns // _MS_NS for time_ns in rows.times_ns]
    marks = rows.columns.get("quality")
    bad = None if marks is None else [bad_metrics(str(mark or "")) for mark in marks]
    tracks: dict[str, list[tuple[int, float]]] = {}
    for metric in metrics:
        column = rows.columns.get(metric)
        if column is None:
            continue
        values = zip(times, column, strict=True)
        if bad is None:
            track = [(when, float(value)) for when, value in values if value is not None]
        else:
            track = [
                (when, float(value))
                for (when, value), wrong in zip(values, bad, strict=True)
                if value is not None and metric not in wrong and "" not in wrong
            ]
        if track:
            tracks[metric] = track
    return tracks


@lru_cache(maxsize=1024)
def bad_metrics(quality: str) -> frozenset[str]:
    """Return the metrics that a quality calls bad; `""` among them means all."""
    found = (_MARK.fullmatch(mark) for mark in quality.split(";"))
    return frozenset(match[3] or "" for match in found if match and match[1] == "bad")
