"""What values hold when: each until the next row, for a while.

Rows are not evenly spaced: a gateway may report a value only when it changes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from math import fsum
from typing import NamedTuple, TypeAlias

from ingest.rollups.spans import Bounds, Sample, Span

Row: TypeAlias = Mapping[str, float | int | str]
"""A row of an hour or a day as it is stored, with `start_ms` and `device` beside its fields."""
Fields: TypeAlias = dict[str, float | int]
"""Fields of a row. What is not known is left out: it is neither 0 nor NaN."""


class Piece(NamedTuple):
    """A part of a span in which a value held."""

    start_ms: int
    end_ms: int
    value: float

    @property
    def seconds(self) -> float:
        return (self.end_ms - self.start_ms) / 1000


def samples(span: Span, metric: str) -> list[Sample]:
    """Return a metric's samples, the one before the span included."""
    before = span.before.get(metric)
    return ([] if before is None else [before]) + list(span.tracks.get(metric, ()))


def pieces(span: Span, metric: str, hold_s: float) -> list[Piece]:
    """Return where in the span which value of a metric held; what is left out is not known."""
    hold_ms, begin_ms = round(1000 * hold_s), span.start_ms
    found = []
    # Plain comparisons: this is done for every sample, and min() takes several times as long.
    for (time_ms, value), (next_ms, _) in pairwise([*samples(span, metric), (span.end_ms, 0.0)]):
        start_ms = time_ms if time_ms > begin_ms else begin_ms  # noqa: FURB136 - see above
        end_ms = time_ms + hold_ms
        if end_ms > next_ms:
            end_ms = next_ms
        if start_ms < end_ms:
            found.append(Piece(start_ms, end_ms, value))
    return found


def mean(held: Iterable[Piece]) -> tuple[float, float] | None:
    """Return the mean weighted by time, and how many seconds of it are known; None when none is."""
    known = list(held)
    seconds = fsum(piece.seconds for piece in known)
    if not seconds:
        return None
    return fsum(piece.value * piece.seconds for piece in known) / seconds, seconds


def number(row: Row, name: str) -> float | None:
    """Return a field of a row; None when it has none."""
    value = row.get(name)
    return None if value is None or isinstance(value, str) else float(value)


def start_ms(row: Row) -> int:
    return int(row["start_ms"])


def inside(rows: Iterable[Row], bounds: Bounds) -> list[Row]:
    """Return the rows that begin within bounds."""
    return [row for row in rows if bounds.start_ms <= start_ms(row) < bounds.end_ms]


def numbers(rows: Iterable[Row], name: str) -> Iterator[float]:
    """Yield a field of every row that has it."""
    for row in rows:
        value = number(row, name)
        if value is not None:
            yield value


def total(rows: Iterable[Row], name: str) -> float | None:
    """Return the sum of a field; None when no row has it."""
    known = list(numbers(rows, name))
    return fsum(known) if known else None
