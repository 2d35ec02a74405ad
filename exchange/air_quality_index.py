"""Air quality indices as data: the bands that people know and the tables that were in force on a day.

The arithmetic is ingest's, the colours are what dashboards show; both read this one file.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from datetime import date
from functools import cache
from importlib.resources import files
from typing import Annotated, Literal

import msgspec

BEYOND = 501
"""The index of what lies above a table: it is shown as 500+, and nothing is extrapolated."""


class _Entry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An entry of the file: no key that nobody reads."""


class Band(_Entry, frozen=True, kw_only=True):
    """What an index from `low` to `high`, both included, is called. Shape: `color` is `#rrggbb`."""

    low: int
    high: int
    color: Annotated[str, msgspec.Meta(pattern="^#[0-9a-f]{6}$")]
    en: str
    zh_tw: str = msgspec.field(name="zh-TW")


class Mean(_Entry, frozen=True, kw_only=True):
    """A mean of the newest hours, one of which is the hour itself."""

    hours: int
    least: int
    weight: float


class Scale(_Entry, frozen=True, kw_only=True):
    """From means of one metric to a sub-index.

    Shape: `steps` are (index low, index high, value low, value high), ascending. Above the last one the index is beyond
        the table, or, with `above = "other"`, the last step's highest: another scale of the metric says more.
    Units: values in the dictionary's unit divided by `divisor`, rounded half up to `decimals`.
    """

    metric: str
    decimals: int
    mean: list[Mean]
    steps: list[tuple[int, int, float, float]]
    divisor: float = 1
    above: Literal["beyond", "other"] = "beyond"
    daily: Literal["mean", "max"] = "max"
    """Of a day counts the sub-index of its mean, or the highest of its hours."""


class Table(_Entry, frozen=True, kw_only=True):
    """The scales of an index that holds from a day on."""

    effective: date
    source: str
    en: str
    zh_tw: str = msgspec.field(name="zh-TW")
    scales: list[Scale] = msgspec.field(name="scale")


class _File(_Entry, frozen=True, kw_only=True):
    bands: list[Band] = msgspec.field(name="band")
    tables: list[Table] = msgspec.field(name="table")


def bands() -> list[Band]:
    """Return the bands, ascending."""
    return _file().bands


def table_on(day: date, tables: Iterable[Table] | None = None) -> Table | None:
    """Return the table in force on a civil day; None before the first one that is known."""
    known = _file().tables if tables is None else tables
    return max(
        (table for table in known if table.effective <= day),
        key=lambda table: table.effective,
        default=None,
    )


@cache
def _file() -> _File:
    text = (files("exchange") / "air_quality_index.toml").read_text(encoding="utf-8")
    return msgspec.convert(tomllib.loads(text), _File)
