"""What a page is made of, free of any library: the tables of `pages/` are written in these words.

Shape: a page is bands from top to bottom, a band panels from left to right, 24 units wide in all. A phone shows one
    panel below the other in that order, so what matters most stands first and nothing depends on its neighbour.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from dashboards.influxql import Select, TagValues

WIDTH = 24


class Source(StrEnum):
    """The data sources, by uid."""

    RAW = "onestreet"
    ROLLUPS = "onestreet-rollups"


def bucket_of(source: Source, raw: str) -> str:
    """Return the bucket behind a data source, by the name of the one of raw rows."""
    return raw if source is Source.RAW else f"{raw}_rollups"


class Kind(StrEnum):
    """How a panel shows what it asks for."""

    STAT = "stat"
    TABLE = "table"
    LINES = "lines"
    BARS = "bars"
    STATES = "states"
    MAP = "map"


class Link(StrEnum):
    """Where a click on a value leads; what is chosen goes along."""

    COUNTY = "county"
    SITE = "site"
    DEVICE = "device"


@dataclass(frozen=True, kw_only=True)
class Field:
    """A column of a panel's answer: how it is called and shown."""

    name: str
    text: str
    """Key of its words."""
    unit: str = ""
    """As the dictionary writes units; empty for what has none."""
    values: str = ""
    """Key of the names of its values."""
    limits: str = ""
    """Key of the limits at which its colour changes."""
    colour: str = ""
    """Of its line, where one stands for something."""
    link: Link | None = None
    hidden: bool = False
    """Asked for a link or the map, not shown."""
    right_axis: bool = False
    width: int = 0
    """Of its column in a table; 0 for its share of the room, but no less than its words need. Units: pixels."""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One question and how its answer looks.

    Shape: its words are `{page}.{name}` and `{page}.{name}.about`, or, said once for all pages, `panel.{name}…`.
    """

    name: str
    kind: Kind
    asks: Sequence[Select]
    fields: Sequence[Field]
    width: int = WIDTH
    source: Source = Source.RAW
    by_site: bool = False
    """A line of its one field for each site."""
    marks: Sequence[str] = ()
    """Of each query by site, the key of what its lines' names have in brackets; empty for nothing."""
    worst: Sequence[str] = ()
    """The fields that a table is sorted by, the largest first: what somebody has to look at. A map has one, and
    draws the largest above the others."""
    least: bool = False
    """The smallest first."""
    last: str = ""
    """The time that it shows, where that is not the page's: so much until now."""
    empty: str
    """Key of what is said when there are no rows."""
    title: str = ""
    """Key of its title, where that is the name of a metric or quantity; what it says of itself is `chart.about`."""


@dataclass(frozen=True, kw_only=True)
class Band:
    """Panels side by side. One with a `fold` is closed until somebody opens it, and asks nothing until then."""

    panels: Sequence[Panel]
    height: int
    fold: str = ""
    """Key of the words on it."""


@dataclass(frozen=True, kw_only=True)
class Variable:
    """What is chosen at the top of a page."""

    name: str
    asks: TagValues
    several: bool = True
    """Several may be chosen, and all."""


@dataclass(frozen=True, kw_only=True)
class Page:
    """One page. Shape: its uid is `onestreet-{name}`; its words are `{name}` and `{name}.about`."""

    name: str
    variables: Sequence[Variable]
    bands: Sequence[Band]
    range_from: str = "now-7d"
    refresh: str = "1m"
