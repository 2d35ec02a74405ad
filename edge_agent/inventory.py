"""The inventory: a CSV file with a device in each row, as an asset register or a spreadsheet gives it.

A row is a template with the row's cells put in: a column is named after a key of the device, such as `id`,
`settings.unit` or `location.lat`. An empty cell leaves to the template what it says.
"""

from __future__ import annotations

import copy
import csv
import io
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import msgspec
from msgspec import inspect

from exchange.configuration import number_or_text
from exchange.errors import ConfigError

MAX_BYTES = 16 * 1024 * 1024
"""Of one file: a hundred thousand devices."""
TEMPLATE = "template"
"""The column that chooses another template than the inventory's for its row."""
_WORDS_OF_EXCEL = "in Excel, save as CSV UTF-8 請於 Excel 另存為「CSV UTF-8（逗號分隔）」"


class Inventory(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table `[[inventory]]`: a CSV file, and the template for its rows.

    `columns` is for a file that names its columns otherwise: which key each is, `""` for one that is not read.
    """

    file: Annotated[str, msgspec.Meta(min_length=1, max_length=4096)]
    template: str = ""
    columns: dict[str, str] = {}


class Read(Inventory, frozen=True, kw_only=True):
    """An inventory that was read, and how many rows it had."""

    rows: int


class Cell(NamedTuple):
    """What stands in a cell, and in which column, as a spreadsheet calls it."""

    text: str
    column: str


class Row(NamedTuple):
    """One device's row. `header` is the line that names the columns, `columns` where each key is in the file."""

    file: str
    line: int
    header: int
    cells: dict[str, Cell]
    columns: Mapping[str, str]
    decimal_comma: bool

    @property
    def name(self) -> str:
        """How another row's error calls it."""
        return f"{self.file}:{self.line}"

    @property
    def template(self) -> str:
        """The template that the row itself chooses."""
        return self.cells[TEMPLATE].text if TEMPLATE in self.cells else ""

    def says(self, key: str) -> bool:
        """Whether the row itself says something of a key, or below it."""
        return any(one == key or one.startswith(f"{key}.") for one in self.cells)

    def data(
        self, template: Mapping[str, Any], kind_of: Callable[[str], inspect.Type | None]
    ) -> dict[str, Any]:
        """Return the device: the template, and what the row says, as the key's type has it. Raises: ConfigError."""
        data: dict[str, Any] = copy.deepcopy(dict(template))
        for key, cell in self.cells.items():
            if key == TEMPLATE:
                continue
            *path, last = key.split(".")
            table = data
            for step in path:
                table = table.setdefault(step, {})
                if not isinstance(table, dict):
                    allowed = f"{step} is no table in the template 範本中不是表格"
                    raise self.wrong(ConfigError("", key, cell.text, allowed))
            table[last] = number_or_text(cell.text, kind_of(key), decimal_comma=self.decimal_comma)
        return data

    def wrong(self, error: ConfigError) -> ConfigError:
        """Return an error of the device as this row's; what every row lacks, or has too much, is the header's."""
        is_lacking = error.kind == "missing" and error.key not in self.columns
        line = self.header if is_lacking or error.kind == "unknown" else self.line
        column = self.columns.get(error.key, "")
        return error.elsewhere(self.file, error.key, line=line, column=column)


class Rows(NamedTuple):
    """A file's devices, and the rows that are none."""

    rows: list[Row]
    problems: list[ConfigError]


def read_rows(path: Path, names: Mapping[str, str], keys: frozenset[str]) -> Rows:
    """Return the rows of a file.

    Shape: `names` are the inventory's `columns`; `keys` what a column may begin with.
    Raises: ConfigError when the file cannot be read, its first row names no device's keys, or no row follows.
    """
    file = str(path)
    text = _text(path)
    separator = _separator(text)
    table = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    header: dict[int, str] | None = None
    header_line = 1
    columns: dict[str, str] = {}
    rows: list[Row] = []
    problems: list[ConfigError] = []
    line = 1
    try:
        for found in table:
            at, line = line, table.line_num + 1
            cells = [cell.strip() for cell in found]
            if not any(cells):
                continue
            if header is None:
                header, header_line = _header(file, at, cells, names, keys), at
                columns = {key: letters(index) for index, key in header.items()}
                continue
            if extra := [place for place, cell in enumerate(cells) if cell and place not in header]:
                allowed = "no column there has a name 該欄沒有名稱"
                column = letters(extra[0])
                problems.append(
                    ConfigError(file, "row", cells[extra[0]], allowed, line=at, column=column)
                )
                continue
            given = {
                key: Cell(cells[index], letters(index))
                for index, key in header.items()
                if key and index < len(cells) and cells[index]
            }
            rows.append(Row(file, at, header_line, given, columns, separator == ";"))
    except csv.Error as error:
        allowed = f"must be CSV, with quotes closed 引號須成對: {error}"
        problems.append(ConfigError(file, "row", "", allowed, line=line))
    if header is None:
        allowed = "must have a first row that names the columns, such as id 第一列應為欄位名稱"
        raise ConfigError(file, "header", "", allowed, line=1)
    if not rows and not problems:  # as one is that is still being copied
        allowed = "must have a row for each device; it has none 清單中沒有任何設備"
        raise ConfigError(file, "row", "", allowed, line=header_line)
    return Rows(rows, problems)


def letters(index: int) -> str:
    """Return what a spreadsheet calls the column with this number, counted from 0."""
    text = ""
    while index >= 0:
        index, digit = index // 26 - 1, index % 26
        text = chr(ord("A") + digit) + text
    return text


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_BYTES:
            allowed = f"must be a file of {MAX_BYTES // 1024 // 1024} MiB at most 檔案過大"
            raise ConfigError(str(path), "file", path.stat().st_size, allowed, kind="file")
        data = path.read_bytes()
    except OSError as error:
        allowed = f"must be a readable file 檔案無法讀取: {error.strerror or error}"
        raise ConfigError(str(path), "file", path.name, allowed, kind="file") from error
    except ValueError as error:  # a name with a null in it
        allowed = f"must name a file 檔名無效: {error}"
        raise ConfigError(str(path), "file", str(path), allowed, kind="file") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        allowed = f"must be UTF-8: {_WORDS_OF_EXCEL}"
        found = data[error.start : error.end]
        raise ConfigError(str(path), "file", found, allowed, line=line) from error
    if "\0" in text:
        raise ConfigError(str(path), "file", "\0", f"must be UTF-8 text: {_WORDS_OF_EXCEL}", line=1)
    return text


def _separator(text: str) -> str:
    """Return what stands between the columns: of comma and semicolon the one that the first row has more of."""
    first = re.sub(r'"[^"]*"', "", text.lstrip()).partition("\n")[0]
    return ";" if first.count(";") > first.count(",") else ","


def _header(
    file: str, line: int, cells: list[str], names: Mapping[str, str], keys: frozenset[str]
) -> dict[int, str]:
    """Return the key of each column that has a name; an empty one is not read."""
    header: dict[int, str] = {}
    for index, name in enumerate(cells):
        if not name:
            continue
        key, column = names.get(name, name), letters(index)
        if key and key in header.values():
            allowed = "must stand in one column only 欄位重複"
            raise ConfigError(file, key, name, allowed, line=line, column=column)
        first = key.partition(".")[0]
        if key and first not in keys:
            known = ", ".join(sorted(keys))
            allowed = (
                f"one of {known}, or below one; else to be named in inventory.columns 欄位不明"
            )
            raise ConfigError(file, "header", name, allowed, line=line, column=column)
        header[index] = key
    return header
