"""On which line of a TOML file each key stands: for errors, after the parser has taken the file.

The parser of the standard library keeps no positions. This is read only when there is something to say, or a table is
to be replaced, and takes for granted that the text is valid.

Source: https://toml.io/en/v1.0.0
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from typing import NamedTuple

_TOKEN = re.compile(
    r"""
    (?P<blank>[ \t\r]+|\#[^\n]*)
  | (?P<newline>\n)
  | (?P<string>\"{3}(?:\\.|[^\\])*?\"{3,5} | '{3}.*?'{3,5} | "(?:\\.|[^"\\\n])*" | '[^'\n]*')
  | (?P<sign>[\[\]{}=,.])
  | (?P<bare>[^\s\[\]{}=,.\#"']+)
    """,
    re.VERBOSE | re.DOTALL,
)
_INDEX = re.compile(r"\[(\d+)\]")


class Place:
    """A table, an array or a value: the line where it begins, and what is in it by key or number."""

    def __init__(self, line: int | None) -> None:
        """`line` counts from 1; the file as a whole has none."""
        self.line = line
        self.inner: dict[str | int, Place] = {}

    def entered(self, key: str | int, line: int) -> Place:
        """Return what is under a key, which begins here unless it was there already."""
        return self.inner.setdefault(key, Place(line))

    @property
    def last(self) -> Place:
        """Of an array of tables the last one, to which a header below it belongs."""
        return self.inner[len(self.inner) - 1] if 0 in self.inner else self

    def line_of(self, path: str) -> int | None:
        """Return the line of a key such as `device[2].settings.unit`; of one that is missing its table's."""
        place = self
        while path:
            if match := _INDEX.match(path):
                key: str | int = int(match[1])
                rest = path[match.end() :]
            else:
                key = max(
                    (name for name in place.inner if _begins(path, name)), key=_length, default=""
                )
                rest = path[_length(key) :]
            found = place.inner.get(key)
            if found is None:
                break
            place, path = found, rest.removeprefix(".")
        return place.line


def _begins(path: str, name: str | int) -> bool:
    """Whether a path goes on from a key; keys may have dots and brackets in them."""
    return (
        isinstance(name, str) and path.startswith(name) and path[len(name) :][:1] in ("", ".", "[")
    )


def _length(name: str | int) -> int:
    return len(str(name))


class Statement(NamedTuple):
    """A key at the top of a file, or a table: the first name in its path, and its lines, both included."""

    name: str
    first: int
    last: int


def statements(text: str) -> list[Statement]:
    """Return the parts of a text that is valid TOML, in their order; comments are in none.

    Raises: RecursionError, ValueError when it is not.
    """
    reader = _Reader(text)
    reader.read()
    return reader.statements


def places(text: str) -> Place:
    """Return where everything is in a text that is valid TOML. Raises: RecursionError, ValueError when it is not."""
    return _Reader(text).read()


class _Token(NamedTuple):
    kind: str
    text: str
    line: int


class _Reader:
    def __init__(self, text: str) -> None:
        self._tokens = _tokens(text)
        self._next = next(self._tokens)
        self._at = 1
        self.statements: list[Statement] = []

    def read(self) -> Place:
        whole = table = Place(None)
        while self._next.kind != "end":
            if self._next.kind == "newline":
                self._take()
                continue
            first = self._next.line
            if self._next.text == "[":
                name, table = self._header(whole)
                self.statements.append(Statement(name, first, self._at))
            else:
                name = self._pair(table)
                if table is not whole:  # it belongs to the table above
                    name, first, _ = self.statements.pop()
                self.statements.append(Statement(name, first, self._at))
        return whole

    def _take(self, text: str = "") -> _Token:
        token = self._next
        if text and token.text != text:
            raise ValueError(f"line {token.line}: expected {text!r}, found {token.text!r}")
        self._next = next(self._tokens, token)
        if token.kind != "newline":
            self._at = token.line + token.text.count("\n")
        return token

    def _header(self, whole: Place) -> tuple[str, Place]:
        line = self._take("[").line
        is_array = self._next.text == "["
        if is_array:
            self._take()
        *path, name = self._key()
        self._take("]")
        place = whole
        for key in path:
            place = place.entered(key, line).last
        place = place.entered(name, line)
        if is_array:
            self._take("]")
            place = place.entered(len(place.inner), line)
        return [*path, name][0], place

    def _key(self) -> list[str]:
        keys = [_plain(self._take())]
        while self._next.text == ".":
            self._take()
            keys.append(_plain(self._take()))
        return keys

    def _pair(self, table: Place) -> str:
        line = self._next.line
        path = self._key()
        for key in path:
            table = table.entered(key, line)
        self._take("=")
        self._value(table)
        return path[0]

    def _value(self, place: Place) -> None:
        if self._next.text == "[":
            self._take()
            while self._past_newlines().text != "]":
                self._value(place.entered(len(place.inner), self._next.line))
                if self._past_newlines().text == ",":
                    self._take()
            self._take("]")
        elif self._next.text == "{":
            self._take()
            while self._past_newlines().text != "}":
                self._pair(place)
                if self._past_newlines().text == ",":
                    self._take()
            self._take("}")
        else:
            self._take()
            while self._next.kind not in ("newline", "end") and self._next.text not in ",]}":
                self._take()

    def _past_newlines(self) -> _Token:
        while self._next.kind == "newline":
            self._take()
        if self._next.kind == "end":
            raise ValueError("an array or a table has no end")
        return self._next


def _tokens(text: str) -> Iterator[_Token]:
    line, at = 1, 0
    while match := _TOKEN.match(text, at):
        kind, found = str(match.lastgroup), match[0]
        if kind != "blank":
            yield _Token(kind, found, line)
        line += found.count("\n")
        at = match.end()
    if at < len(text):
        raise ValueError(f"line {line}: no TOML")
    yield _Token("end", "", line)


def _plain(token: _Token) -> str:
    if token.kind == "string":
        return str(tomllib.loads(f"key = {token.text}")["key"])
    if token.kind != "bare":
        raise ValueError(f"line {token.line}: expected a key, found {token.text!r}")
    return token.text
