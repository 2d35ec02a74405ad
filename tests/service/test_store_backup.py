"""An office with its InfluxDB: what a backup brings back into a new one; how one from before roll-ups gets them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from zoneinfo import ZoneInfo

import pytest

from dashboards import alert_files
from ingest.watch.maintenance import Window, add_window
from provisioning import cli, store
from provisioning.backup import back_up, restore_office, restore_store
from tests.influx import Influx, influxd
from tests.offices import broker_table, town_text
from tests.store_doors import TOKENS, WHAT_EACH_MAY_DO, As

COUNTY, RAW, ROLLUPS = "tw-tpe", "town", "town_rollups"
WRITERS = {"ingest": RAW, "rollups": ROLLUPS}
KEPT_DAYS = {RAW: 400, ROLLUPS: 800}
DAY_NS = 86_400 * 10**9
AGES_DAYS = (0, 10, 40, 390)
"""Of the rows: each in a shard of its own."""
BEFORE_ROLLUPS: dict[str, dict[str, list[tuple[store.Action, str]]]] = {
    "ingest": {store.MAIN: [("write", store.RAW)]},
    "watch": {store.MAIN: [("write", store.RAW)]},
    "grafana": {store.MAIN: [("read", store.RAW)]},
}
"""What each service could do in an office that was made before there were roll-ups."""
OWN = ("smtp.password", "grafana.env")
"""What somebody has written by hand, beside Grafana's files."""
Server = Callable[..., Influx]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """Begins an InfluxDB by an office's certificate that nobody has set up; on a free port, or in place of another."""
    begun: list[Influx] = []

    def begin(office: Path, like: Influx | None = None, **settings: str) -> Influx:
        folder = tmp_path / f"influxd-{len(begun)}"
        folder.mkdir()
        begun.append(Influx(influxd(), folder, office=office, settings=settings))
        if like is not None:
            begun[-1].port, begun[-1].url = like.port, like.url
        return begun[-1]

    yield begin
    for one in begun:
        one.kill()


def town(*words: str | Path) -> None:
    """Do as `onestreet town`."""
    assert cli.run([str(word) for word in words], alerts=alert_files.changes) == 0


def make(folder: Path, office: Path, port: int, store_keys: str) -> None:
    url = f"influxdbs://localhost:{port}/onestreet/{RAW}"
    text = town_text(COUNTY, broker_table(), gateways=["gw-1"], store=url)
    file = folder / f"{COUNTY}.toml"
    file.write_text(text.replace("workers = 1", store_keys), encoding="utf-8")
    town("init", file, "--into", office)
    give_to_somebody(office)
    town("init", "--into", office)


def give_to_somebody(office: Path) -> None:
    """Have an office be an ordinary user's: nothing in a container runs as root."""
    if os.geteuid() == 0:
        os.chown(office, 1000, 1000)


def write_by_hand(office: Path) -> None:
    """Have in the office what its people keep there: a maintenance window, and how mail is sent."""
    begin = datetime.now(UTC)
    window = Window(id="m-1", county=COUNTY, begin=begin, end=begin + timedelta(hours=4), why="燈")
    zone = ZoneInfo("Asia/Taipei")
    add_window(office / "services" / "watch" / "maintenance.toml", window, lambda _: zone)
    for name in OWN:
        file = office / "services" / "grafana" / name
        file.write_text("GF_SMTP_ENABLED=true\n")
        file.chmod(0o600)


def fill(
    server: Influx, office: Path, by: Sequence[tuple[str, str]] = tuple(WRITERS.items())
) -> None:
    """Write rows of many days into both buckets, each by the token of who does that."""
    now_ns = time.time_ns()
    for service, bucket in by:
        lines = [
            f"air,county={COUNTY},site=street,device=aq-1 co2={age},epoch=1i,seq={age}i"
            f" {now_ns - age * DAY_NS}"
            for age in AGES_DAYS
        ]
        token = (office / "services" / service / "influx.token").read_text()
        server.call("POST", f"/write?db={bucket}", "\n".join(lines), token=token)


def chief(server: Influx, office: Path) -> As:
    return As(server, (office / "store" / "admin.token").read_text())


def rows(server: Influx, office: Path, bucket: str) -> list[Any]:
    asked = urlencode({"db": bucket, "q": "SELECT * FROM air", "epoch": "ns"})
    token = (office / "store" / "admin.token").read_text()
    [result] = server.call("GET", f"/query?{asked}", token=token)["results"]
    return [row for series in result.get("series", []) for row in series["values"]]


def held(server: Influx, office: Path) -> str:
    """Return all that an InfluxDB holds of an office: both buckets, how long they keep, what is granted, the rows."""
    admin = chief(server, office)
    buckets = {
        name: {key: admin.bucket(name)[key] for key in ("id", "orgID", "retentionRules")}
        for name in KEPT_DAYS
    }
    grants = [
        [one["id"], one["description"], one["token"], one["permissions"]]
        for one in admin.authorizations(RAW)
    ]
    found = {name: rows(server, office, name) for name in KEPT_DAYS}
    return json.dumps([buckets, grants, found], sort_keys=True, indent=1)


def files(office: Path) -> dict[str, tuple[str, int]]:
    """What every file of an office is: content and mode; without what those write that run."""
    return {
        str(path.relative_to(office)): (
            hashlib.sha256(path.read_bytes()).hexdigest(),
            path.stat().st_mode & 0o777,
        )
        for path in office.rglob("*")
        if path.is_file() and "data" not in path.relative_to(office).parts
    }


def assert_each_token_does_its_own(server: Influx, office: Path) -> None:
    """And nothing more; this writes rows, so it comes last."""
    for token in TOKENS:
        me = As(server, office.joinpath("services", *token).read_text())
        doors = {
            (action, end)
            for end in ("", "_rollups")
            for action, does in (
                ("write", me.writes(f"{RAW}{end}")),
                ("read", me.rows(f"{RAW}{end}") > 0),
            )
            if does
        }
        assert doors == set(WHAT_EACH_MAY_DO[token]), token


def test_both_buckets_every_token_and_every_file_come_back(tmp_path: Path, server: Server) -> None:
    office, restored = tmp_path / "office", tmp_path / "restored"
    first = server(office)
    keys = ", ".join(["workers = 2", f"retention_days = {KEPT_DAYS[RAW]}"])
    keys += f", rollups_retention_days = {KEPT_DAYS[ROLLUPS]}"
    make(tmp_path, office, first.port, keys)
    first.start()
    town("store", "--into", office)
    write_by_hand(office)
    fill(first, office)
    before, kept = held(first, office), files(office)
    backup = back_up(office, tmp_path / "backups")
    fill(first, office)  # too late
    assert held(first, office) != before
    first.kill()
    shutil.rmtree(office)

    restore_office(backup, restored)
    assert files(restored) == kept
    for name in (
        "services/rollups/ingest.toml",
        "services/rollups/compose.toml",
        "services/rollups/influx.read.token",
        "services/watch/influx.read.token",
        "services/watch/maintenance.toml",
        f"services/grafana/alerting/onestreet-{COUNTY}.json",
        *(f"services/grafana/{name}" for name in OWN),
    ):
        assert name in kept
    fresh = server(restored)
    fresh.start()
    restore_store(backup, restored, url=fresh.url)
    assert held(fresh, restored) == before
    fresh.kill()
    fresh.start()
    assert held(fresh, restored) == before, "it was in memory alone"
    town("init", "--into", restored)
    town("store", "--into", restored, "--url", fresh.url)
    assert held(fresh, restored) == before, "nothing is made anew"
    for name, days in KEPT_DAYS.items():
        [rule] = chief(fresh, restored).bucket(name)["retentionRules"]
        assert rule["everySeconds"] == days * 86_400
        assert len(rows(fresh, restored, name)) == len(AGES_DAYS)
    assert_each_token_does_its_own(fresh, restored)


def test_what_grew_too_old_since_the_backup_keeps_nothing_from_coming_back(
    tmp_path: Path, server: Server
) -> None:
    office = tmp_path / "office"
    first = server(office)
    make(tmp_path, office, first.port, "workers = 1")
    first.start()
    town("store", "--into", office)
    fill(first, office)
    file = office / "towns" / f"{COUNTY}.toml"
    shorter = file.read_text(encoding="utf-8").replace("workers = 1", "retention_days = 5")
    file.write_text(shorter, encoding="utf-8")
    town("store", "--into", office)  # InfluxDB looks for what is too old every half hour
    assert len(rows(first, office, ROLLUPS)) == len(AGES_DAYS)
    backup = back_up(office, tmp_path / "backups")
    first.kill()

    fresh = server(office, **{"storage-retention-check-interval": "5ms"})
    fresh.start()
    restore_store(backup, office, url=fresh.url)
    assert len(rows(fresh, office, ROLLUPS)) == len(AGES_DAYS)
    assert 1 <= len(rows(fresh, office, RAW)) < len(AGES_DAYS)


def make_as_before_rollups(
    folder: Path, office: Path, server: Influx, patch: pytest.MonkeyPatch
) -> None:
    """Make an office with a store of one bucket, three tokens, and without the files that came later."""
    make(folder, office, server.port, "workers = 1")
    server.start()
    with patch.context() as older:
        older.setattr(store, "SERVICES", BEFORE_ROLLUPS)
        town("store", "--into", office)
    admin = chief(server, office)
    bucket = admin.bucket(ROLLUPS)["id"]
    assert admin.status("DELETE", f"/api/v2/buckets/{bucket}") == 200
    for name in ("rollups", "grafana/alerting"):
        shutil.rmtree(office / "services" / name)
    (office / "services" / "grafana" / "grafana.env").unlink()
    for name in ("ingest.toml", "compose.toml"):
        file = office / "services" / "watch" / name
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if not line.startswith("store_read_token_file")]
        assert len(kept) == len(lines) - 1
        file.write_text("".join(kept), encoding="utf-8")


@pytest.mark.parametrize("restored", [False, True], ids=["as it runs", "from a backup"])
@pytest.mark.parametrize("order", [("init", "store"), ("store", "init")], ids="-".join)
def test_an_office_from_before_rollups_gets_them_and_keeps_what_it_has(
    tmp_path: Path,
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    order: tuple[str, str],
    restored: bool,
) -> None:
    office = tmp_path / "office"
    running = server(office)
    make_as_before_rollups(tmp_path, office, running, monkeypatch)
    fill(running, office, (("ingest", RAW),))
    before, raw = files(office), rows(running, office, RAW)
    reading = As(running, (office / "services" / "grafana" / "influx.token").read_text())
    assert reading.rows(RAW) == len(AGES_DAYS)
    if restored:
        backup = back_up(office, tmp_path / "backups")
        running.kill()
        shutil.rmtree(office)
        restore_office(backup, office)
        give_to_somebody(office)
        running = server(office, running)
        running.start()
        restore_store(backup, office)

    capsys.readouterr()
    for action in order:
        town(action, "--into", office)
    told = capsys.readouterr().out
    assert ("next: onestreet town init" in told) == (order[0] == "store"), told
    after = files(office)
    assert set(after) - set(before) == {
        "services/watch/influx.read.token",
        *(
            f"services/rollups/{name}"
            for name in (
                "ca.pem",
                "compose.toml",
                "influx.read.token",
                "influx.token",
                "ingest.toml",
            )
        ),
        f"services/grafana/alerting/onestreet-{COUNTY}.json",
        "services/grafana/grafana.env",
    }
    assert {name for name in before if after.get(name) != before[name]} == {
        "broker/crl.pem",  # signed anew every time
        "ca/crl.pem",
        "services/grafana/influx.token",  # what it opens cannot be changed
        "services/watch/compose.toml",
        "services/watch/ingest.toml",
    }
    assert rows(running, office, RAW) == raw
    assert reading.rows(RAW) == 0, "Grafana's old token is void"
    file = office / "services" / "rollups" / "ingest.toml"
    first = datetime.now(UTC).date() - timedelta(days=max(AGES_DAYS) + 1)
    words = [sys.executable, "-m", "onestreet.cli", "rollups", "once", str(file), f"--from={first}"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    admin = chief(running, office)
    assert admin.rows(ROLLUPS, "SELECT * FROM rollup_day") >= len(AGES_DAYS) - 1
    fill(running, office)
    assert_each_token_does_its_own(running, office)
