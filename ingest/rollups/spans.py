"""A span: what one device measured in an hour or a day, as the arithmetic of a domain takes it."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple, TypeAlias

from exchange import QUALITY_MARK
from ingest.days import HOUR_NS, MS_NS
from ingest.stores import DeviceRows, FieldValue

BEFORE_NS = HOUR_NS
"""How far back the row before a span may be. What a device said earlier than that says nothing any more."""

Sample: TypeAlias = tuple[int, float]
"""When, in ms, and what."""

_MARK = re.compile(QUALITY_MARK)


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


class _Column(NamedTuple):
    """The good values of a metric, row by row; `gaps` says whether any is None."""

    values: Sequence[float | None]
    gaps: bool


class GoodRows:
    """A device's rows without what is marked bad, to be cut into spans."""

    def __init__(self, rows: DeviceRows, metrics: Sequence[str]) -> None:
        self._times_ns = rows.times_ns
        self._times_ms = [time_ns // MS_NS for time_ns in rows.times_ns]
        self._marks = rows.columns.get("quality")
        self._columns: dict[str, _Column] = {}
        bad = [bad_metrics(str(mark or "")) for mark in self._marks or ()]
        for metric in metrics:
            column = rows.columns.get(metric)
            if column is not None:
                self._columns[metric] = _good(metric, column, bad if any(bad) else None)

    def rows(self, start_ns: int, end_ns: int) -> int:
        """Return how many rows are in a while."""
        first, last = self._places(start_ns, end_ns)
        return last - first

    def marks(self, start_ns: int, end_ns: int) -> Sequence[FieldValue | None]:
        """Return the quality of each row in a while; nothing where no row has one."""
        first, last = self._places(start_ns, end_ns)
        return self._marks[first:last] if self._marks else ()

    def span(self, start_ns: int, end_ns: int) -> Span:
        """Return what rows of a while say, and the last one before it."""
        first, last = self._places(start_ns, end_ns)
        times = self._times_ms[first:last]
        tracks: dict[str, Sequence[Sample]] = {}
        for metric, (values, gaps) in self._columns.items():
            track = list(zip(times, values[first:last], strict=True))
            if gaps:
                track = [sample for sample in track if sample[1] is not None]
            if track:
                tracks[metric] = track  # type: ignore[assignment]  # without None
        before: dict[str, Sample] = {}
        if first and self._times_ns[first - 1] >= start_ns - BEFORE_NS:
            time_ms = self._times_ms[first - 1]
            for metric, (values, _) in self._columns.items():
                value = values[first - 1]
                if value is not None:
                    before[metric] = time_ms, value
        return Span(start_ns // MS_NS, end_ns // MS_NS, tracks, before)

    def _places(self, start_ns: int, end_ns: int) -> tuple[int, int]:
        first = bisect_left(self._times_ns, start_ns)
        return first, bisect_left(self._times_ns, end_ns, first)


def _good(
    metric: str, column: Sequence[FieldValue | None], bad: Sequence[frozenset[str]] | None
) -> _Column:
    if bad is None and None not in column:
        return _Column([*map(float, column)], gaps=False)  # type: ignore[arg-type]  # none is None
    wrong = bad or [frozenset[str]()] * len(column)
    values = [
        None if value is None or metric in marked or "" in marked else float(value)
        for value, marked in zip(column, wrong, strict=True)
    ]
    return _Column(values, gaps=True)


@lru_cache(maxsize=1024)
def bad_metrics(quality: str) -> frozenset[str]:
    """Return the metrics that a quality calls bad; `""` among them means all."""
    found = (_MARK.fullmatch(mark) for mark in quality.split(";"))
    return frozenset(match[3] or "" for match in found if match and match[1] == "bad")
