"""Maintenance windows: times in which silence is meant. One TOML file, edited by hand or by `onestreet incidents`.

The file is read again when it has changed; a wrong one changes nothing and is named in the log. A command writes only
what is read again, and one command at a time.
"""

from __future__ import annotations

import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, TypeAlias
from zoneinfo import ZoneInfo

import msgspec

from exchange.configuration import located, read_toml, toml_table
from exchange.errors import ConfigError
from exchange.folder_lock import locked
from exchange.topics import END, County, Level

# TOML writes neither control characters nor halves of a letter, which a terminal may send.
WHY = re.compile(r"[^\x00-\x1f\x7f\ud800-\udfff]{0,200}")
_Text = Annotated[str, msgspec.Meta(pattern=f"^{WHY.pattern}{END}")]
FIRST_YEAR, LAST_YEAR = 2000, 2199
"""Of times that somebody writes: before them zones have seconds, which TOML has not; stores end in 2262."""
KEPT = timedelta(days=90)
"""So long a window that is over stays in the file."""
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
        found = read_toml(path, _File).window
        return [_aware_window(one, zones, str(path), index) for index, one in enumerate(found)]


def _aware_window(window: Window, zones: Zones, file: str, index: int) -> Window:
    times = {}
    for key, name in (("from", "begin"), ("to", "end")):
        value = getattr(window, name)
        try:
            times[name] = aware(value, zones(window.county))
        except ValueError as error:
            raise ConfigError(file, f"window[{index}].{key}", str(value), str(error)) from error
    found = msgspec.structs.replace(window, **times)
    if found.end_ms <= found.begin_ms:
        allowed = "must be after from 須晚於 from"
        raise ConfigError(file, f"window[{index}].to", str(window.end), allowed)
    return found


def add_window(path: Path, window: Window, zones: Zones) -> None:
    """Put a window at the end of the file, which stays as it is otherwise. Raises: ConfigError, Busy, OSError."""
    with _held(path) as file:
        read_windows(file, zones)
        text = file.read_text(encoding="utf-8-sig").rstrip("\n") if file.exists() else _HEAD
        _replace(file, f"{text}\n\n{_table(window)}", zones)


def end_window(path: Path, name: str, zones: Zones, now: datetime) -> None:
    """End a window, or cancel one not begun; those that are long over go. Raises: ConfigError, Busy, OSError."""
    with _held(path) as file:
        windows = read_windows(file, zones)
        if name not in [one.id for one in windows]:
            known = ", ".join(one.id for one in windows) or "none 無"
            allowed = f"is no window; there are 沒有這個時段，現有: {known}"
            raise ConfigError(str(path), "id", name, allowed)
        short = [_ended(one, now) if one.id == name and one.end > now else one for one in windows]
        left = [one for one in short if one.begin_ms < one.end_ms and one.end > now - KEPT]
        _replace(file, "\n".join([_HEAD, *map(_table, left)]), zones)


def _ended(window: Window, now: datetime) -> Window:
    return msgspec.structs.replace(window, end=now.astimezone(window.end.tzinfo))


@contextmanager
def _held(path: Path) -> Iterator[Path]:
    """Keep every other command from the file, and yield it itself where `path` is a link. Raises: Busy, OSError."""
    file = Path(os.path.realpath(path))
    with locked(file.parent):
        yield file


def _table(window: Window) -> str:
    begin, end = window.begin, window.end
    values: dict[str, object] = {"id": window.id, "county": window.county}
    values |= {"site": window.site} if window.site else {}
    values |= {"device": window.device} if window.device else {}
    values |= {
        "from": begin.isoformat(),
        "to": end.isoformat(),
    }
    return toml_table("[[window]]", **values, why=window.why)


def _replace(path: Path, text: str, zones: Zones) -> None:
    """Write a file, whole or not at all, when it can be read again. Raises: ConfigError, OSError."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with draft.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            _give_rights(file.fileno(), path)
            os.fsync(file.fileno())
        read_windows(draft, zones)
        draft.replace(path)
    except ConfigError as error:
        raise error.elsewhere(str(path), error.key, line=error.line) from error
    finally:
        draft.unlink(missing_ok=True)


def _give_rights(handle: int, path: Path) -> None:
    """Give a file those of the one it replaces; a new one holds no secret, and the watch may be somebody else."""
    mode = 0o644
    if path.exists():
        old = path.stat()
        mode = stat.S_IMODE(old.st_mode)
        with suppress(PermissionError):
            os.fchown(handle, old.st_uid, old.st_gid)
    os.fchmod(handle, mode)


def new_id() -> str:
    """Return a name for a window."""
    return f"m-{secrets.token_hex(3)}"


def moment(text: str, zone: ZoneInfo) -> datetime:
    """Return a time as an operator writes it, without an offset in `zone`. Raises: ValueError."""
    return aware(datetime.fromisoformat(text), zone)


def span_ms(text: str) -> int:
    """Return how long `90m`, `4h` or `2d` is. Raises: ValueError."""
    match = _SPAN.fullmatch(text)
    if match is None or not int(match[1]):
        raise ValueError("expected a number and m, h or d, such as 90m, 4h, 2d 例如 4h")
    return int(match[1]) * _SPAN_MS[match[2]]


def aware(value: datetime, zone: ZoneInfo) -> datetime:
    """Return a time that there is: without an offset in `zone`, one that a clock skips as it stands after it.

    Raises: ValueError.
    """
    if not FIRST_YEAR <= value.year <= LAST_YEAR:
        raise ValueError(f"a time in the years {FIRST_YEAR} to {LAST_YEAR} 年份須在此範圍")
    found = value.replace(tzinfo=zone) if value.tzinfo is None else value
    return found.astimezone(UTC).astimezone(found.tzinfo)


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


_NOTHING = (-1, -1, -1)


class WindowFile:
    """The file, read again when it has changed."""

    def __init__(self, path: Path, zones: Zones) -> None:
        self.path = path
        self._zones = zones
        self._seen: tuple[int, int, int] | None = _NOTHING
        self._holds = "no window holds until then 修正前沒有任何時段生效"

    def changed(self) -> list[Window] | None:
        """Return the windows when the file is another one than at the last call, else None.

        Raises: ConfigError; it says what holds meanwhile.
        """
        try:
            try:
                now = self.path.stat()
                seen = (now.st_ino, now.st_mtime_ns, now.st_size)
            except FileNotFoundError:
                seen = None
            except OSError as error:
                self._seen = _NOTHING
                raise ConfigError(str(self.path), "file", str(error), "must be readable") from error
            if seen == self._seen:
                return None
            self._seen = seen
            windows = read_windows(self.path, self._zones)
        except ConfigError as error:
            error.allowed = f"{error.allowed}; {self._holds}"
            raise
        self._holds = "the windows read before hold until then 修正前沿用先前的時段"
        return windows


def utc(time_ms: int) -> datetime:
    """Return a moment as a window has it."""
    return datetime.fromtimestamp(time_ms / 1000, UTC)
