"""`onestreet incidents` on each store, and the file of maintenance windows that it keeps."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from ingest.config import load_config
from ingest.stores import Point, Series
from ingest.watch.incidents import Cause, Incident, Kind
from ingest.watch.maintenance import read_windows
from onestreet.cli import main
from tests.gateways import COUNTY, SITE, Ingest, now_ms

HOUR_MS = 3_600_000


def incident(
    device: str, kind: Kind, cause: Cause, hours_ago: float, lasted_h: float = 0.0
) -> Incident:
    began_ms = now_ms() - round(hours_ago * HOUR_MS)
    ended_ms = began_ms + round(lasted_h * HOUR_MS) if lasted_h else 0
    return Incident(
        kind=kind,
        cause=cause,
        county=COUNTY,
        site=SITE,
        device=device,
        domain="gateway" if kind == "gateway_down" else "air",
        label="站前\x1b[2J廣場",
        began_ms=began_ms,
        ended_ms=ended_ms,
        devices=12 if kind == "gateway_down" else 1,
    )


@pytest.fixture
def kept(ingest: Ingest) -> Ingest:
    """Return a store with an open incident, one that is over, and one that is long over."""

    async def write() -> None:
        store = ingest.open_store()
        incidents = [
            incident("gw-1", "gateway_down", "gateway_offline", 2.5),
            incident("aq-1", "device_down", "silent", 30.0, 1.0),
            incident("aq-2", "flapping", "changes_often", 24 * 30, 1.0),
        ]
        try:
            await store.write([one.point(now_ms()) for one in incidents])
        finally:
            await store.close()

    asyncio.run(write())
    return ingest


def listed(ingest: Ingest, capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    assert main(["incidents", "list", str(ingest.file), "--json", *words]) == 0
    return json.loads(capsys.readouterr().out)


def devices(found: Any) -> list[str]:
    return [one["device"] for one in found["incidents"]]


def test_what_is_open_and_what_was(kept: Ingest, capsys: pytest.CaptureFixture[str]) -> None:
    found = listed(kept, capsys)
    assert devices(found) == ["gw-1"]
    assert found["open"] == 1
    [one] = found["incidents"]
    assert (one["kind"], one["devices"], one["open"], one["domain"]) == (
        "gateway_down",
        12,
        True,
        "gateway",
    )
    assert one["duration_s"] == pytest.approx(2.5 * 3600, abs=60)
    assert "ended" not in one
    assert devices(listed(kept, capsys, "--all")) == ["gw-1", "aq-1"]
    assert devices(listed(kept, capsys, "--closed")) == ["aq-1"]
    assert devices(listed(kept, capsys, "--all", "--since", "90d")) == ["gw-1", "aq-1", "aq-2"]
    assert devices(listed(kept, capsys, "--all", "--since", "24h")) == ["gw-1"]
    assert devices(listed(kept, capsys, "--all", "--device", "aq-1")) == ["aq-1"]
    assert devices(listed(kept, capsys, "--all", "--county", "tw-khh")) == []


def test_a_line_says_it_in_both_languages_and_moves_no_cursor(
    kept: Ingest, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["incidents", "list", str(kept.file)]) == 0
    first, last = capsys.readouterr().out.splitlines()
    assert "2h30m" in first
    assert "OPEN 未結  gateway down 閘道器失聯" in first
    assert f"{COUNTY}/{SITE}/gw-1 站前�[2J廣場, 12 devices 部設備: its connection broke" in first
    assert last == "1 incidents 件事件, 1 open 件未結"


@pytest.fixture
def alone(tmp_path: Path) -> Path:
    file = tmp_path / "ingest.toml"
    text = (
        f'counties = ["{COUNTY}"]\nstore = "sqlite:///rows.sqlite"\n[broker]\nhost = "127.0.0.1"\n'
    )
    file.write_text(text)
    return file


def windows(file: Path, *words: str) -> int:
    action, *rest = words
    at = 1 if action in ("add", "end") else 0
    return main(["incidents", "maintenance", action, *rest[:at], str(file), *rest[at:]])


def test_a_window_is_added_shown_and_ended(alone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = alone.with_name("maintenance.toml")
    kept.write_text("# 值班表\n", encoding="utf-8")
    assert windows(alone, "add", f"{COUNTY}/{SITE}", "--for", "4h", "--why", "換燈具") == 0
    begin = ["--from", "2099-01-01T08:00", "--to", "2099-01-01T17:00"]
    assert windows(alone, "add", COUNTY, "--device", "gw-1", *begin) == 0
    assert kept.read_text(encoding="utf-8").startswith("# 值班表\n")
    now, later = read_windows(kept, load_config(alone).zone)
    assert (now.site, now.device, now.why) == (SITE, None, "換燈具")
    assert (now.end - now.begin).total_seconds() == 4 * 3600
    assert now.covers(COUNTY, SITE, "gw-1", "aq-1", now_ms())
    assert not now.covers(COUNTY, "elsewhere", "gw-1", "aq-1", now_ms())
    assert later.begin == datetime(2099, 1, 1, 0, tzinfo=UTC)
    capsys.readouterr()
    assert windows(alone, "list") == 0
    shown = capsys.readouterr().out
    assert f"{later.id}  to come 未到  2099-01-01 08:00 – 2099-01-01 17:00  {COUNTY}/gw-1" in shown
    assert f"{now.id}  now 進行中" in shown
    assert windows(alone, "end", now.id) == 0
    assert windows(alone, "end", later.id) == 0
    capsys.readouterr()
    assert windows(alone, "list", "--json") == 0
    [left] = json.loads(capsys.readouterr().out)
    assert left["id"] == now.id
    assert read_windows(kept, load_config(alone).zone)[0].end_ms <= now_ms()
    assert windows(alone, "end", "m-none") == 2
    assert "m-none" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ([COUNTY, "--for", "soon"], "--for = 'soon'"),
        ([COUNTY, "--to", "yesterday"], "--to = 'yesterday'"),
        ([COUNTY, "--to", "2020-01-01T00:00"], "須晚於開始"),
        (["tw-khh", "--for", "1h"], "COUNTY = 'tw-khh'"),
        ([f"{COUNTY}/A B", "--for", "1h"], "SITE = 'A B'"),
        ([COUNTY, "--device", "#", "--for", "1h"], "--device = '#'"),
        ([COUNTY, "--device", "", "--for", "1h"], "--device = ''"),
        ([f"{COUNTY}/", "--for", "1h"], "SITE = ''"),
        ([COUNTY, "--for", "1h", "--why", "a\nb"], "--why = 'a\\nb'"),
        ([COUNTY, "--for", "1h", "--why", "x" * 201], "--why = 'xxx"),
        ([COUNTY, "--for", "1h", "--why", "\udcff"], "--why = "),
        ([COUNTY, "--from", "0001-01-01T00:00", "--to", "2099-12-12"], "--from = '0001"),
        ([COUNTY, "--from", "9999-12-31T23:00Z", "--for", "1h"], "--from = '9999"),
        ([COUNTY, "--for", "99999d"], "--for = '99999d'"),
        ([COUNTY, "--from", "2020-01-01T00:00", "--to", "2020-01-02T00:00"], "時段已過"),
    ],
)
def test_a_wrong_word_is_named(
    alone: Path, capsys: pytest.CaptureFixture[str], words: list[str], named: str
) -> None:
    assert windows(alone, "add", *words) == 2
    assert named in capsys.readouterr().err
    assert not alone.with_name("maintenance.toml").exists()


def test_a_window_between_two_moments_that_are_one_is_refused(
    alone: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On 2099-03-29 Berlin has no half past two."""
    text = alone.read_text()
    alone.write_text(f'timezones = {{ {COUNTY} = "Europe/Berlin" }}\n{text}')
    gap = ["--from", "2099-03-29T02:30", "--to", "2099-03-29T03:30"]
    assert windows(alone, "add", COUNTY, *gap) == 2
    assert "須晚於開始" in capsys.readouterr().err
    day = ["--from", "2099-03-28T12:00", "--for", "24h"]
    assert windows(alone, "add", COUNTY, *day) == 0
    assert "2099-03-28 12:00 – 2099-03-29 13:00" in capsys.readouterr().out


def test_a_time_beyond_every_store_is_named(
    alone: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["incidents", "list", str(alone), "--since", "9999-12-31"]) == 2
    assert "--since = '9999-12-31'" in capsys.readouterr().err


def test_who_lists_makes_no_store(
    alone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone.write_text(alone.read_text().replace("rows.sqlite", "mistyped/rows.sqlite"))
    assert main(["incidents", "list", str(alone)]) == 1
    said = capsys.readouterr()
    assert "there is no such store 沒有這個資料庫" in said.err
    assert not said.out
    assert not (tmp_path / "mistyped").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([COUNTY], ""),
        ([f"{COUNTY}/{SITE}"], ""),
        ([f"{COUNTY}/daann"], "knows no such site"),
        ([COUNTY, "--device", "aq-1"], ""),
        ([f"{COUNTY}/{SITE}", "--device", "aq-1"], ""),
        ([COUNTY, "--device", "aq-9"], "knows no such device; the window"),
        ([f"{COUNTY}/daann", "--device", "aq-1"], f"no such device; it is at 它位於 {SITE};"),
    ],
)
def test_a_window_for_what_nobody_knows_is_taken_with_a_word(
    ingest: Ingest, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    async def write() -> None:
        store = ingest.open_store()
        series = Series("device", COUNTY, SITE, "aq-1", "air")
        try:
            await store.write([Point(series, now_ms() * 1_000_000, {"up": 1})])
        finally:
            await store.close()

    asyncio.run(write())
    assert windows(ingest.file, "add", *words, "--for", "1h") == 0
    beware = capsys.readouterr().err
    assert said in beware
    assert bool(said) == bool(beware)
    assert (
        len(read_windows(ingest.file.with_name("maintenance.toml"), load_config(ingest.file).zone))
        == 1
    )


def test_a_file_that_is_wrong_stays_as_it_is(
    alone: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = alone.with_name("maintenance.toml")
    kept.write_text('[[window]]\nid = "m-1"\ncounty = "Taipei"\n')
    assert windows(alone, "add", COUNTY, "--for", "1h") == 2
    assert "window[0].county" in capsys.readouterr().err
    assert "m-1" in kept.read_text()
