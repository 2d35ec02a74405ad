"""InfluxQL as values: names and texts are quoted in one place, and no other file of the room puts a query together.

Shape: `str(select)` is what stands in a panel. Grafana fills in its own words when it asks: `$timeFilter`,
    `$__interval`, and the variables of a page, which appear as regular expressions only: Grafana escapes them so.
Source: docs.influxdata.com, InfluxQL 1.x reference, "Literals" and "Identifiers", which InfluxDB 2's /query speaks;
    grafana.com/docs, "Variable syntax", format `regex`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Function = Literal["last", "first", "sum", "mean", "min", "max", "count"]
Fill = Literal["none", "null", "0"]
Comparison = Literal["=", "!=", "<", "<=", ">", ">="]

INTERVAL = "$__interval"
"""As wide as a pixel of the panel: Grafana's to say."""
MAX_ROWS = 1000
"""No panel asks for more rows than somebody would look at."""
_DURATION = re.compile(r"[1-9][0-9]*[smhdw]")
_UNSAID = ("$", "[[", "\0", "\r")
"""What Grafana would fill in, and what InfluxQL has no way to write."""
_VARIABLE = re.compile(r"[a-z]+")


@dataclass(frozen=True)
class Expression:
    """A value of each row. Made by `column`, `call` and arithmetic, never from text."""

    text: str

    def named(self, name: str) -> Column:
        """Return it as a column of the answer."""
        return Column(self, name)

    def __add__(self, other: Expression) -> Expression:
        return Expression(f"({self.text} + {other.text})")

    def __sub__(self, other: Expression) -> Expression:
        return Expression(f"({self.text} - {other.text})")

    def __mul__(self, other: Expression) -> Expression:
        return Expression(f"({self.text} * {other.text})")

    def __truediv__(self, other: Expression) -> Expression:
        return Expression(f"({self.text} / {other.text})")


@dataclass(frozen=True)
class Column:
    """An expression and the name that it has in the answer."""

    expression: Expression
    name: str

    def __str__(self) -> str:
        """Return it as it stands after SELECT."""
        return f"{self.expression.text} AS {quoted_name(self.name)}"


@dataclass(frozen=True)
class Condition:
    """What a row must be like. Made by the functions below, never from text."""

    text: str

    def __or__(self, other: Condition) -> Condition:
        return Condition(f"({self.text} OR {other.text})")


@dataclass(frozen=True, kw_only=True)
class Select:
    """A query. Shape: `source` is a measurement or a query; `every` needs an aggregate in each column."""

    columns: Sequence[Column]
    source: str | Select
    where: Sequence[Condition] = ()
    by: Sequence[str] = ()
    """Tags to group by."""
    every: str = ""
    """Time to group by: a duration or INTERVAL."""
    fill: Fill = "none"
    newest_first: bool = False
    limit: int = 0
    """At most so many rows of a group; 0 where grouping bounds them already."""
    series: int = 0
    """At most so many groups by tags, in the order of their names; 0 for all."""
    zone: str = ""
    """IANA name; groups of days begin at its midnight."""

    def __post_init__(self) -> None:
        if not self.columns:
            raise ValueError("a query needs a column")
        if self.every and self.every != INTERVAL:
            _check_duration(self.every)
        if not 0 <= self.limit <= MAX_ROWS:
            raise ValueError(f"limit {self.limit}: 0 to {MAX_ROWS}")

    def __str__(self) -> str:
        """Return the text of the query."""
        source = f"({self.source})" if isinstance(self.source, Select) else quoted_name(self.source)
        words = ["SELECT", ", ".join(map(str, self.columns)), "FROM", source]
        if self.where:
            words += ["WHERE", " AND ".join(condition.text for condition in self.where)]
        groups = [f"time({self.every})"] if self.every else []
        groups += [quoted_name(tag) for tag in self.by]
        if groups:
            words += ["GROUP BY", ", ".join(groups)]
        if self.every:
            words.append(f"fill({self.fill})")
        if self.newest_first:
            words.append("ORDER BY time DESC")
        if self.limit:
            words.append(f"LIMIT {self.limit}")
        if self.series:
            words.append(f"SLIMIT {self.series}")
        if self.zone:
            words.append(f"tz({quoted_text(self.zone)})")
        return " ".join(words)


@dataclass(frozen=True, kw_only=True)
class TagValues:
    """The values that a tag has in a measurement, for a variable of a page."""

    tag: str
    source: str
    where: Sequence[Condition] = ()

    def __str__(self) -> str:
        """Return the text of the query."""
        key = quoted_name(self.tag)
        words = ["SHOW TAG VALUES FROM", quoted_name(self.source), "WITH KEY =", key]
        if self.where:
            words += ["WHERE", " AND ".join(condition.text for condition in self.where)]
        return " ".join([*words, f"LIMIT {MAX_ROWS}"])


def column(name: str) -> Expression:
    """Return a field or tag as it is."""
    return Expression(quoted_name(name))


def call(function: Function, argument: str | Expression) -> Expression:
    """Return an aggregate over a column, by its name, or over an expression."""
    inner = argument.text if isinstance(argument, Expression) else quoted_name(argument)
    return Expression(f"{function}({inner})")


def top(name: str, count: int, of: Sequence[str] = ()) -> Expression:
    """Return the largest values of a field, of each tuple of tags one; further columns are those of their rows."""
    if not 0 < count <= MAX_ROWS:
        raise ValueError(f"top {count}: 1 to {MAX_ROWS}")
    return Expression(f"top({', '.join(map(quoted_name, (name, *of)))}, {count})")


def number(value: float) -> Expression:
    """Return a constant. Raises: ValueError for what InfluxQL cannot say."""
    text = repr(float(value))
    if not re.fullmatch(r"-?[0-9]+\.[0-9]+", text):
        raise ValueError(f"{value} is no number that InfluxQL can be told")
    return Expression(text)


def is_text(name: str, value: str) -> Condition:
    """Hold rows whose tag or field is this text."""
    return Condition(f"{quoted_name(name)} = {quoted_text(value)}")


def compares(name: str, how: Comparison, value: float) -> Condition:
    """Hold rows whose field compares so with a number."""
    return Condition(f"{quoted_name(name)} {how} {number(value).text}")


def chosen(name: str, variable: str = "") -> Condition:
    """Hold rows whose tag is chosen on the page: in the variable of the same name, where no other is given."""
    variable = variable or name
    if not _VARIABLE.fullmatch(variable):
        raise ValueError(f"{variable!r} is no name of a variable: small letters only")
    return Condition(f"{quoted_name(name)} =~ /^${{{variable}:regex}}$/")


def in_range() -> Condition:
    """Hold rows of the time range that the page shows."""
    return Condition("$timeFilter")


def since(duration: str) -> Condition:
    """Hold rows that are younger than this, whatever range the page shows."""
    _check_duration(duration)
    return Condition(f"time > now() - {duration}")


def quoted_name(name: str) -> str:
    """Return a name as an identifier. Raises: ValueError for one that Grafana would change."""
    return f'"{_escaped(name, chr(34))}"'


def quoted_text(text: str) -> str:
    """Return a text as a literal. Raises: ValueError for one that Grafana would change."""
    return f"'{_escaped(text, chr(39))}'"


def _escaped(text: str, quote: str) -> str:
    if not text or any(one in text for one in _UNSAID):
        raise ValueError(f"{text!r}: must not be empty, nor hold NUL, a carriage return, $ or [[")
    for plain, escape in (("\\", "\\\\"), (quote, f"\\{quote}"), ("\n", "\\n")):
        text = text.replace(plain, escape)
    return text


def _check_duration(duration: str) -> None:
    if not _DURATION.fullmatch(duration):
        raise ValueError(f"{duration!r} is no duration such as 15m")
