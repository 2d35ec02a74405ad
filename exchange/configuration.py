"""Configuration files: TOML into a type, where every error names file, line, key, value and what is allowed; and back.

What is allowed is said in English and, for what this file checks itself, in Chinese after it.
"""

from __future__ import annotations

import json
import os
import re
import stat
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from functools import cache, cached_property
from pathlib import Path
from typing import Any, TypeVar
from zoneinfo import ZoneInfo

import msgspec
from msgspec import inspect

from exchange.errors import ConfigError, ConfigMistake
from exchange.toml_lines import Place, places, statements

T = TypeVar("T")
MAX_MISTAKES = 20
"""Of one table: who has more wrong than that has put something else there."""
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_STEP = re.compile(r"\.([^.\[\]]+)|\[(\d+|\.\.\.)\]")
_UNKNOWN = re.compile(r"Object contains unknown field `(.+?)`")
_MISSING = re.compile(r"Object missing required field `(.+?)`")
_AT_LINE = re.compile(r"\(at line (\d+), column \d+\)$")
_EXPECTED = re.compile(r"Expected `(?P<kinds>[^`]+)` ?(?P<rest>.*)", re.DOTALL)
_INTEGER = re.compile(r"[+-]?[0-9]{1,18}")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_KINDS = {"int": "整數", "float": "數字", "str": "文字", "bool": " true 或 false "}
_KINDS |= {"object": "表格", "array": "陣列"}
type_info = cache(inspect.type_info)
"""What a type is made of; of ten thousand wrong rows it is asked many times."""


class TomlFile:
    """A file as it was read: its data, and where in it each key stands."""

    def __init__(self, path: Path) -> None:
        """Read it. Raises: ConfigError."""
        self.name = str(path)
        try:
            self._text = path.read_text(
                encoding="utf-8-sig"
            )  # Notepad's mark at the beginning, too
        except (OSError, UnicodeDecodeError) as error:
            allowed = "must be a readable TOML file"
            raise ConfigError(self.name, "file", str(error), allowed, kind="file") from error
        try:
            self.data = tomllib.loads(self._text)
        except (ValueError, RecursionError) as error:  # numbers and nesting without end, too
            at = _AT_LINE.search(str(error))
            line = int(at[1]) if at else None
            raise ConfigError(
                self.name, "file", str(error), "must be valid TOML", line=line, kind="file"
            ) from error

    @cached_property
    def _places(self) -> Place:
        try:
            return places(self._text)
        except (ValueError, RecursionError):  # the parser knows better; then no line is named
            return Place(None)

    def line_of(self, key: str) -> int | None:
        """Return the line of a key such as `device[2].settings.unit`; of one that is missing its table's."""
        return self._places.line_of(key)


def read_toml(path: Path, shape: type[T]) -> T:
    """Return the file as the type. Raises: ConfigError."""
    with located(path):
        return converted(TomlFile(path).data, shape, str(path))


@contextmanager
def located(path: Path) -> Iterator[None]:
    """Give a ConfigError about a key of a TOML file its line, if it has none."""
    try:
        yield
    except ConfigError as error:
        if error.line is None and error.file == str(path):
            with suppress(ConfigError):  # there is no such file, or not any more
                error.line = TomlFile(path).line_of(error.key)
        raise


def converted(data: object, shape: type[T], file: str, key: str = "") -> T:
    """Return `data` as the type; `key` is where in the file it stands. Raises: ConfigError."""
    try:
        return msgspec.convert(data, shape, dec_hook=_path)
    except msgspec.ValidationError as error:
        message, _, place = str(error).partition(" - at `$")
        message = message.replace(" | null", "")  # TOML has none
        inner = place.rstrip("`")
        value, kind = _at(data, shape, inner)
        found: object = value
        path = (key + inner).lstrip(".")
        choices = _choices(kind)
        mistake: ConfigMistake = "value" if path else "file"
        if unknown := _UNKNOWN.match(message):
            name, allowed = unknown[1], _keys(_chosen(kind, value))
            found = value.get(name) if isinstance(value, Mapping) else value
            path, mistake = f"{path}.{name}".lstrip("."), "unknown"
            message = (
                f"unknown key{_hint(name, allowed)}; allowed are {', '.join(allowed)} 沒有這個鍵"
            )
        elif missing := _MISSING.match(message):
            name = missing[1]
            path, found, mistake = f"{path}.{name}".lstrip("."), None, "missing"
            message = _required(choices if name == _tag_field(kind) else ())
        elif choices and message.startswith("Invalid"):
            message = f"one of {', '.join(choices)}{_hint(str(found), choices)} 只能是其中之一"
        else:
            message += _expected_in_chinese(message)
        raise ConfigError(file, path or "file", found, message, kind=mistake) from error


def mistakes(data: object, shape: Any, file: str, key: str = "") -> list[ConfigError]:
    """Return what is wrong with a table and those in it, of each key the first mistake; nothing when it is right."""
    try:
        converted(data, shape, file, key)
    except ConfigError as error:
        first = error
    else:
        return []
    kind = _chosen(type_info(shape), data)
    if not isinstance(kind, inspect.StructType) or not isinstance(data, Mapping):
        return [first]
    types = {field.encode_name: field.type for field in kind.fields}
    tag = {kind.tag_field: kind.tag} if kind.tag_field else {}
    found: list[ConfigError] = []
    for name, value in data.items():
        path = f"{key}.{name}".lstrip(".")
        inner = _chosen(types[name], value) if name in types else None
        if isinstance(inner, inspect.StructType) and isinstance(value, Mapping):
            found += mistakes(value, inner.cls, file, path)
            continue
        try:
            converted(tag | {name: value}, shape, file, key)
        except ConfigError as error:
            if error.kind != "missing" or error.key.startswith((f"{path}.", f"{path}[")):
                found.append(error)  # else it is a key beside this one
    unknown = [name for name in data if name not in types and name not in tag]
    meant = {match for name in unknown for match in get_close_matches(name, types, 1)}
    for field in kind.fields:
        name = field.encode_name
        if field.required and name not in data and name not in meant:
            path = f"{key}.{name}".lstrip(".")
            found.append(ConfigError(file, path, None, _required(), kind="missing"))
    return found[:MAX_MISTAKES] or [first]


def _required(choices: Sequence[str] = ()) -> str:
    one_of = f": one of {', '.join(choices)}" if choices else ""
    return f"this key is required{one_of} 此鍵必填"


def _expected_in_chinese(message: str) -> str:
    """Return what msgspec expects, said in Chinese; nothing for what it says otherwise."""
    match = _EXPECTED.match(message)
    if match is None:
        return ""
    kinds = [_KINDS.get(kind, kind) for kind in match["kinds"].split(" | ")]
    words = f" 必須是{'或'.join(kinds)}"
    rest = match["rest"]
    if bound := re.match(r"(of length )?([<>]=?|==) \S+", rest):
        words += f"，{'長度 ' if bound[1] else ''}{bound[0].removeprefix('of length ')}"
    elif rest.startswith("matching regex"):
        words += "，且合於此格式"
    return words


def check_zone(file: str, key: str, name: str) -> ZoneInfo:
    """Return the time zone that has this name. Raises: ConfigError."""
    try:
        return ZoneInfo(name)
    except (ValueError, OSError, KeyError):  # a folder's name, a path, no such zone
        allowed = (
            "must be a name of the IANA time zone database, such as Asia/Taipei"
            " 須為時區名稱; a small system may lack the package tzdata"
        )
        raise ConfigError(file, key, name, allowed) from None


def toml_table(head: str, **values: object) -> str:
    """Return a table of TOML under its head, such as `[broker]`."""
    return "\n".join(
        [head, *(f"{_toml_key(key)} = {toml_value(value)}" for key, value in values.items()), ""]
    )


def with_tables(text: str, tables: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a text of TOML with other tables in place of those at its top that have their names.

    Everything else, comments too, stays as it is. Raises: ValueError, RecursionError when it is no TOML.
    """
    tomllib.loads(text)
    lines = text.split("\n")
    parts = statements(text)
    roots = {name.partition(".")[0] for name in tables}
    headed = (part.first for part in parts if lines[part.first - 1].lstrip().startswith("["))
    at = next(headed, len(lines) + 1) - 1  # keys at the top go before the first table
    gone = {
        line for part in parts if part.name in roots for line in range(part.first - 1, part.last)
    }
    new = "\n".join(toml_table(f"[{name}]", **table) for name, table in tables.items())
    head = [line for number, line in enumerate(lines[:at]) if number not in gone]
    rest = [line for number, line in enumerate(lines[at:], at) if number not in gone]
    while rest and not rest[0].strip():
        del rest[0]
    return "\n".join([*head, new, *rest])


def toml_value(value: object) -> str:
    """Return a value as TOML writes it: strings, numbers, and lists and tables of them, in one line."""
    if isinstance(value, Mapping):
        pairs = (f"{_toml_key(key)} = {toml_value(one)}" for key, one in value.items())
        return f"{{ {', '.join(pairs)} }}"
    if isinstance(value, list):
        return f"[{', '.join(map(toml_value, value))}]"
    return json.dumps(value, ensure_ascii=False)  # strings, numbers and booleans are those of JSON


def _toml_key(key: str) -> str:
    return key if _BARE_KEY.fullmatch(key) else json.dumps(key, ensure_ascii=False)


def secret(config: str, table: str, file: Path | str | None, variable: str | None) -> str | None:
    """Return a password, from a file or an environment variable; None when neither is named.

    Shape: `config` and `table` are where the keys `password_file` and `password_env` stand.
    Raises: ConfigError; the secret itself is never part of it.
    """
    if file:
        return _read_secret(config, f"{table}.password_file", Path(file))
    if not variable:
        return None
    found = os.environ.get(variable, "")
    if not found:
        key = f"{table}.password_env"
        raise ConfigError(config, key, variable, "must be set in the environment")
    return found


def check_private(config: str, key: str, file: Path) -> None:
    """Check that a secret's file is its owner's alone; root's may be read by a group.

    A file that is not there is left to the reader, who says so. Raises: ConfigError.
    """
    try:
        about = file.stat()
    except OSError:
        return
    others = stat.S_IRWXO | stat.S_IWGRP | (0 if about.st_uid == 0 else stat.S_IRGRP)
    mode = stat.S_IMODE(about.st_mode)
    if mode & others:
        allowed = f"must be private (chmod 600): its mode is {mode:04o}"
        raise ConfigError(config, key, str(file), allowed)


def _read_secret(config: str, key: str, file: Path) -> str:
    check_private(config, key, file)
    reason = "it is empty"
    try:
        if found := file.read_text(encoding="utf-8").rstrip("\r\n"):
            return found
    except OSError as error:
        reason = error.strerror or str(error)
    except UnicodeDecodeError as error:
        reason = str(error)
    allowed = f"must be a readable file that holds the password: {reason}"
    raise ConfigError(config, key, str(file), allowed)


def _path(kind: type, text: object) -> object:
    """Read the one type beyond msgspec's that settings have."""
    if kind is not Path or not isinstance(text, str):
        raise ValueError("Expected a path")
    return Path(text)


def _at(data: object, shape: Any, place: str) -> tuple[Any, inspect.Type]:
    """Return the value and its type at msgspec's path, such as `.device[0].settings`."""
    kind = type_info(shape)
    value: Any = data
    for name, number in _STEP.findall(place):
        kind = _inner(kind, value, name)
        if name:
            value = value.get(name) if isinstance(value, Mapping) else None
        elif isinstance(value, list) and number.isdecimal():
            value = value[int(number)]
    return value, kind


def type_at(kind: inspect.Type, path: Sequence[str]) -> inspect.Type | None:
    """Return the type under the keys of a path, None where the type has no such key."""
    for name in path:
        members = kind.types if isinstance(kind, inspect.UnionType) else (kind,)
        below = [found for member in members if (found := _below(member, name)) is not None]
        if not below:
            return None
        kind = below[0]
    return kind


def _below(kind: inspect.Type, name: str) -> inspect.Type | None:
    if isinstance(kind, inspect.StructType):
        return next((field.type for field in kind.fields if field.encode_name == name), None)
    return kind.value_type if isinstance(kind, inspect.DictType) else None


def number_or_text(text: str, kind: inspect.Type | None, *, decimal_comma: bool = False) -> object:
    """Return what a cell of a table says where its type is a number or a truth value; else the text itself.

    What is wrong stays text, and is found when the whole is converted.
    """
    members = kind.types if isinstance(kind, inspect.UnionType) else (kind,)
    for member in members:
        found: object = text
        if isinstance(member, inspect.BoolType):
            found = {"true": True, "false": False}.get(text.lower(), text)
        elif isinstance(member, inspect.LiteralType):
            found = next((value for value in member.values if str(value) == text), text)
        elif isinstance(member, inspect.IntType) and _INTEGER.fullmatch(text):
            found = int(text)
        elif isinstance(member, inspect.FloatType):
            number = text.replace(",", ".") if decimal_comma else text
            found = float(number) if _NUMBER.fullmatch(number) else text
        if found is not text:
            return found
    return text


def _inner(kind: inspect.Type, value: object, name: str) -> inspect.Type:
    kind = _chosen(kind, value)
    if isinstance(kind, inspect.StructType):
        return next((field.type for field in kind.fields if field.encode_name == name), kind)
    if isinstance(kind, inspect.DictType):
        return kind.value_type
    if isinstance(kind, inspect.ListType):
        return kind.item_type
    return kind


def _chosen(kind: inspect.Type, value: object) -> inspect.Type:
    """Of a tagged union, the member that the value names."""
    if not isinstance(kind, inspect.UnionType):
        return kind
    for member in kind.types:
        if isinstance(member, inspect.StructType) and isinstance(value, Mapping):
            if member.tag_field is None or value.get(member.tag_field) == member.tag:
                return member
        elif isinstance(member, inspect.ListType) and isinstance(value, list):
            return member
    return kind


def _keys(kind: inspect.Type) -> list[str]:
    """Return the keys that a table may hold."""
    if isinstance(kind, inspect.UnionType):  # such as a table that may be left out
        return [key for member in kind.types for key in _keys(member)]
    if not isinstance(kind, inspect.StructType):
        return []
    tag = [kind.tag_field] if kind.tag_field else []
    return tag + [field.encode_name for field in kind.fields]


def _choices(kind: inspect.Type) -> list[str]:
    """Return the words that a value, or the tag of a table, may be."""
    if isinstance(kind, inspect.UnionType):
        return [choice for member in kind.types for choice in _choices(member)]
    if isinstance(kind, inspect.LiteralType):
        return [str(value) for value in kind.values]
    if isinstance(kind, inspect.StructType) and kind.tag is not None:
        return [str(kind.tag)]
    return []


def _tag_field(kind: inspect.Type) -> str | None:
    if isinstance(kind, inspect.UnionType):
        return next((tag for member in kind.types if (tag := _tag_field(member))), None)
    return kind.tag_field if isinstance(kind, inspect.StructType) else None


def _hint(name: str, allowed: Sequence[str]) -> str:
    close = get_close_matches(name, allowed, 1)
    return f" (did you mean {close[0]}?)" if close else ""
