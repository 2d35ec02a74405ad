"""Maintenance windows: times in which silence is meant. One TOML file, edited by hand or by `onestreet incidents`.

The file is read again when it has changed; a wrong one changes nothing and is named in the log.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, TypeAlias
from zoneinfo import ZoneInfo

import msgspec

from exchange.configuration import located, read_toml, toml_table
from exchange.errors import ConfigError
from exchange.topics import END, County, Level

_Text = Annotated[str, msgspec.Meta(max_length=200, pattern=rf"^[^\x00-\x1f\x7f]*{END}")]
_HEAD = "# Maintenance windows. Also: onestreet incidents maintenance add|list|end 維護時段\n"
_SPAN = re.compile(r"(\d{1,5})(m|h|d)")
_SPAN_MS = {"m": 60_000, "h": 3_600_000, "d": 86_400_000}


class Window(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """From when until when, and for whom: a county, one of its sites, or a device; a gateway's is its devices', too."""

    id: Level
    county: County
    site: Level | None = None
    device: Level | None = None
    begin: datetime = msgspec.field(name="from")
    end: datetime = msgspec.field(name="to")
    why: _Text = ""

    @property
    def begin_ms(self) -> int:
        return round(self.begin.timestamp() * 1000)

    @property
    def end_ms(self) -> int:
        return round(self.end.timestamp() * 1000)

    def covers(self, county: str, site: str, gateway: str, device: str, now_ms: int) -> bool:
        """Whether a device is in it now."""
        return (
            self.begin_ms <= now_ms < self.end_ms
            and self.county == county
            and self.site in (None, site)
            and self.device in (None, device, gateway)
        )


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    window: list[Window] = []


Zones: TypeAlias = Callable[[str], ZoneInfo]
"""Return a county's time zone: of times that are written without an offset."""


def read_windows(path: Path, zones: Zones) -> list[Window]:
    """Return the file's windows, none without a file. Raises: ConfigError."""
    if not path.exists():
        return []
    with located(path):
        found = []
        for index, window in enumerate(read_toml(path, _File).window):
            zone = zones(window.county)
            aware = msgspec.structs.replace(
                window, begin=_aware(window.begin, zone), end=_aware(window.end, zone)
            )
            if aware.end <= aware.begin:
                raise ConfigError(
                    str(path),
                    f"window[{index}].to",
                    str(window.end),
                    "must be after from 須晚於 from",
                )
            found.append(aware)
        return found


def add_window(path: Path, window: Window, zones: Zones) -> None:
    """Put a window at the end of the file, which stays as it is otherwise. Raises: ConfigError, OSError."""
    read_windows(path, zones)
    text = path.read_text(encoding="utf-8-sig").rstrip("\n") if path.exists() else _HEAD
    _replace(path, f"{text}\n\n{_table(window)}")


def write_windows(path: Path, windows: Sequence[Window]) -> None:
    """Write the file anew. Raises: OSError."""
    _replace(path, "\n".join([_HEAD, *map(_table, windows)]))


def _table(window: Window) -> str:
    begin, end = window.begin, window.end
    values: dict[str, object] = {"id": window.id, "county": window.county}
    values |= {"site": window.site} if window.site else {}
    values |= {"device": window.device} if window.device else {}
    values |= {
        "from": begin.isoformat("T", "milliseconds"),
        "to": end.isoformat("T", "milliseconds"),
    }
    return toml_table("[[window]]", **values, why=window.why)


def _replace(path: Path, text: str) -> None:
    """Write a file, whole or not at all."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    with draft.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def new_id() -> str:
    """Return a name for a window."""
    return f"m-{secrets.token_hex(3)}"


def moment(text: str, zone: ZoneInfo) -> datetime:
    """Return a time as an operator writes it, without an offset in `zone`. Raises: ValueError."""
    return _aware(datetime.fromisoformat(text), zone)


def span_ms(text: str) -> int:
    """Return how long `90m`, `4h` or `2d` is. Raises: ValueError."""
    match = _SPAN.fullmatch(text)
    if match is None or not int(match[1]):
        raise ValueError("expected a number and m, h or d, such as 90m, 4h, 2d 例如 4h")
    return int(match[1]) * _SPAN_MS[match[2]]


def _aware(value: datetime, zone: ZoneInfo) -> datetime:
    return value.replace(tzinfo=zone) if value.tzinfo is None else value


class Schedule:
    """The windows that hold now and later, sorted by what a look-up asks."""

    def __init__(self, windows: Sequence[Window] = ()) -> None:
        self._by_county: dict[str, list[Window]] = {}
        for window in windows:
            self._by_county.setdefault(window.county, []).append(window)
        self._edges = sorted({one.begin_ms for one in windows} | {one.end_ms for one in windows})

    def covers(self, county: str, site: str, gateway: str, device: str, now_ms: int) -> bool:
        """Whether a device is in a window now."""
        windows = self._by_county.get(county)
        return windows is not None and any(
            one.covers(county, site, gateway, device, now_ms) for one in windows
        )

    def changed_between(self, before_ms: int, now_ms: int) -> bool:
        """Whether a window began or ended after one moment and until the other."""
        return any(before_ms < edge <= now_ms for edge in self._edges)


class WindowFile:
    """The file, read again when it has changed."""

    def __init__(self, path: Path, zones: Zones) -> None:
        self.path = path
        self._zones = zones
        self._seen: tuple[int, int, int] | None = (-1, -1, -1)

    def changed(self) -> list[Window] | None:
        """Return the windows when the file is another one than at the last call, else None. Raises: ConfigError."""
        try:
            now = self.path.stat()
            seen = (now.st_ino, now.st_mtime_ns, now.st_size)
        except FileNotFoundError:
            seen = None
        except OSError as error:
            raise ConfigError(str(self.path), "file", str(error), "must be readable") from error
        if seen == self._seen:
            return None
        self._seen = seen
        return read_windows(self.path, self._zones)


def utc(time_ms: int) -> datetime:
    """Return a moment as a window has it."""
    return datetime.fromtimestamp(time_ms / 1000, UTC)
