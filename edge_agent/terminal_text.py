"""Text on a terminal: in columns in which a Chinese character counts as two, and without what could steer it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple
from unicodedata import combining, east_asian_width

GAP = "  "
DOTS = ".."  # one … is wide on some terminals and narrow on others

Tone = Literal["", "good", "doubtful", "bad"]


class Text(NamedTuple):
    """A line, and what it is to the one who looks."""

    words: str
    tone: Tone = ""


class Row(NamedTuple):
    """A row of a table, and what it is to the one who looks."""

    cells: Sequence[str]
    tone: Tone = ""


def table(rows: Sequence[Row]) -> list[Text]:
    """Align the cells; the last one is as long as it likes."""
    clean = [[plain(cell) for cell in row.cells] for row in rows]
    widths = [max(map(width_of, column)) for column in list(zip(*clean, strict=True))[:-1]]
    lines = []
    for row, cells in zip(rows, clean, strict=True):
        padded = [
            cell + " " * (width - width_of(cell))
            for cell, width in zip(cells, widths, strict=False)  # all but the last
        ]
        lines.append(Text(GAP.join([*padded, cells[-1]]).rstrip(), row.tone))
    return lines


def plain(text: str) -> str:
    """Return the text without what could steer a terminal: devices and brokers have their words in it."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def width_of(text: str) -> int:
    """Return how many columns of a terminal a text takes.

    Source: Unicode Standard Annex 11, East Asian Width.
    """
    return sum(map(_columns, text))


def cut(text: str, width: int) -> str:
    """Return the text, ended by dots where there is no room for the rest."""
    if width_of(text) <= width:
        return text
    kept, taken = "", 0
    for letter in text:
        taken += _columns(letter)
        if taken > width - len(DOTS):
            break
        kept += letter
    return kept + DOTS


def _columns(letter: str) -> int:
    if combining(letter):
        return 0
    return 2 if east_asian_width(letter) in "WF" else 1
