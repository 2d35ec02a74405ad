"""The file of maintenance windows: what is written is read again, by one at a time, and stays whose it was."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from exchange.errors import ConfigError
from ingest.watch.maintenance import (
    Window,
    WindowFile,
    add_window,
    end_window,
    moment,
    read_windows,
)

TAIPEI, BERLIN = ZoneInfo("Asia/Taipei"), ZoneInfo("Europe/Berlin")
BEGIN = datetime(2026, 12, 1, 8, tzinfo=TAIPEI)


def zones(_county: str) -> ZoneInfo:
    return TAIPEI


def window(name: str) -> Window:
    return Window(id=name, county="tw-tpe", begin=BEGIN, end=BEGIN + timedelta(hours=4))


def names(path: Path) -> list[str]:
    return [one.id for one in read_windows(path, zones)]


@pytest.fixture
def strict_umask() -> Iterator[None]:
    before = os.umask(0o077)
    yield
    os.umask(before)


def test_windows_of_many_at_once_are_all_there(tmp_path: Path) -> None:
    path = tmp_path / "maintenance.toml"
    wanted = [f"m-{number}" for number in range(24)]
    with ThreadPoolExecutor(8) as many:
        list(many.map(lambda name: add_window(path, window(name), zones), wanted))
    assert sorted(names(path)) == sorted(wanted)
    now = BEGIN - timedelta(days=1)
    with ThreadPoolExecutor(8) as many:
        added = many.map(lambda name: add_window(path, window(name), zones), ["n-1", "n-2", "n-3"])
        ended = many.map(lambda name: end_window(path, name, zones, now), wanted[:20])
        list(added)
        list(ended)
    assert sorted(names(path)) == sorted([*wanted[20:], "n-1", "n-2", "n-3"])
    assert [each.name for each in tmp_path.iterdir()] == ["maintenance.toml"]


def test_a_link_stays_one(tmp_path: Path) -> None:
    there = tmp_path / "elsewhere" / "windows.toml"
    there.parent.mkdir()
    path = tmp_path / "maintenance.toml"
    path.symlink_to(there)
    for _ in range(2):  # one that leads nowhere yet, then one to a file
        add_window(path, window("m-1"), zones)
        end_window(path, "m-1", zones, BEGIN - timedelta(days=1))
        add_window(path, window("m-2"), zones)
    assert path.is_symlink()
    assert names(there) == ["m-2", "m-2"]


def test_who_may_read_it_may_do_so_afterwards(tmp_path: Path, strict_umask: None) -> None:
    path = tmp_path / "maintenance.toml"
    add_window(path, window("m-1"), zones)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    path.chmod(0o640)
    add_window(path, window("m-2"), zones)
    end_window(path, "m-1", zones, BEGIN - timedelta(days=1))
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_what_could_not_be_read_again_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "maintenance.toml"
    text = 'window = [{ id = "m-1", county = "tw-tpe", from = 2026-12-01T08:00:00, to = 2026-12-02T08:00:00 }]\n'
    path.write_text(text)
    with pytest.raises(ConfigError) as refused:  # TOML has no more of a list that is closed
        add_window(path, window("m-2"), zones)
    assert refused.value.file == str(path)
    assert path.read_text() == text
    assert [each.name for each in tmp_path.iterdir()] == ["maintenance.toml"]


@pytest.mark.parametrize(
    ("begin", "end", "named"),
    [
        ("0001-01-01T00:00:00", "2026-12-02T08:00:00", "window[0].from"),
        ("2026-12-01T08:00:00", "9999-12-31T23:00:00Z", "window[0].to"),
        ("2026-03-29T02:30:00", "2026-03-29T03:30:00", "window[0].to"),
    ],
)
def test_a_time_that_nobody_can_use_is_named(
    tmp_path: Path, begin: str, end: str, named: str
) -> None:
    path = tmp_path / "maintenance.toml"
    path.write_text(f'[[window]]\nid = "m-1"\ncounty = "tw-tpe"\nfrom = {begin}\nto = {end}\n')
    with pytest.raises(ConfigError) as refused:
        read_windows(path, lambda _: BERLIN)
    assert refused.value.key == named


def test_a_time_that_a_clock_skips_is_the_one_after_it() -> None:
    assert moment("2026-03-29T02:30", BERLIN) == datetime(2026, 3, 29, 1, 30, tzinfo=UTC)
    assert moment("2026-03-29T02:30", BERLIN).hour == 3


def test_it_is_said_what_holds_while_the_file_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "maintenance.toml"
    path.write_text("[[window]\n")
    of_a_start = WindowFile(path, zones)
    with pytest.raises(ConfigError, match="no window holds until then 修正前沒有任何時段生效"):
        of_a_start.changed()
    path.unlink()
    add_window(path, window("m-1"), zones)
    assert [one.id for one in of_a_start.changed() or []] == ["m-1"]
    path.write_text("[[window]\n")
    with pytest.raises(ConfigError, match="the windows read before hold until then"):
        of_a_start.changed()
    assert of_a_start.changed() is None
