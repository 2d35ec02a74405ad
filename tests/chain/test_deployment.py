"""docker-compose.yml's parts as processes: up in order, data end to end by TLS, backup, loss of everything, restore."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
import sqlite3
import ssl
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml

from dashboards.files import page_files
from dashboards.judgement import Store, queries, refusals
from exchange.dictionary import dictionary
from exchange.topics import PREFIX
from tests.deployment import ROOT, Model, Parts, compose, read_environment
from tests.ports import free_port

DEADLINE_S = 60.0
ONESTREET = Path(sys.executable).with_name("onestreet")
HOST = socket.gethostname()  # as in containers, servers go by a name that is not localhost
COUNTY, GATEWAY, SITE = "tw-tpe", "xinyi-1", "xinyi"
DOMAINS = {"streetlight": 4, "parking": 4, "air": 1, "gateway": 1}
"""Devices of a simulated gateway."""
Row = tuple[str, str]


def onestreet(*words: str | Path) -> str:
    done = subprocess.run([ONESTREET, *words], capture_output=True, text=True, timeout=DEADLINE_S)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def town_file(folder: Path) -> Path:
    """Taipei with servers on free ports of this machine, and devices that are heard more often."""
    text = (ROOT / "towns" / f"{COUNTY}.toml").read_text(encoding="utf-8")
    text = text.partition("[[application]]")[0]  # they are granted to read other counties
    ports = [free_port() for _ in range(4)]
    own = (
        f'host = "{HOST}"\nport = {ports[0]}\npassword_port = {ports[1]}\nservice_port = {ports[2]}'
    )
    for pattern, new in (
        (r'host = "localhost"', own),
        (r"//localhost:8086/", f"//{HOST}:{ports[3]}/"),
        (r"(?m)^(\w+) = 60$", r"\1 = 1"),
    ):
        text, times = re.subn(pattern, new, text)
        assert times, pattern
    file = folder / f"{COUNTY}.toml"
    file.write_text(text, encoding="utf-8")
    return file


def made(office: Path, *towns: Path) -> Model:
    """Make the office as an operator does, and return what compose makes of it."""
    onestreet("town", "init", *towns, "--into", office)
    if os.geteuid() == 0:  # nothing in a container runs as root: the office is to be somebody's
        os.chown(office, 1000, 1000)
        onestreet("town", "init", "--into", office)
    return compose(read_environment(office / "compose.env"))


@pytest.fixture
def office(tmp_path: Path) -> Path:
    return tmp_path / "office"


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Callable[[Model], Parts]]:
    begun: list[Parts] = []

    def begin(model: Model) -> Parts:
        begun.append(Parts(model, tmp_path / f"p{len(begun)}"))
        return begun[-1]

    yield begin
    for parts in begun:
        parts.down()


class Reader:
    """Reads rows as Grafana does: InfluxQL over TLS, by the token that may read and nothing else."""

    def __init__(self, office: Path) -> None:
        environment = read_environment(office / "compose.env")
        host, port = environment["ONESTREET_STORE_HOST"], environment["ONESTREET_STORE_PORT"]
        self._url = f"https://{host}:{port}/query"
        self._bucket = environment["ONESTREET_STORE_BUCKET"]
        own = office / "services" / "grafana"
        self._tls = ssl.create_default_context(cafile=own / "ca.pem")
        self._token = (own / "influx.token").read_text().strip()

    def rows(self) -> set[Row]:
        """Every row of every measurement, written out."""
        return {
            (measurement, json.dumps(row, sort_keys=True))
            for measurement in (*dictionary(), "device", "command")
            for row in self.of(measurement)
        }

    def of(self, measurement: str) -> list[dict[str, Any]]:
        asked = {"db": self._bucket, "q": f'SELECT * FROM "{measurement}"', "epoch": "ns"}  # noqa: S608 - our own words
        request = urllib.request.Request(  # noqa: S310 - https
            f"{self._url}?{urllib.parse.urlencode(asked)}",
            headers={"Authorization": f"Token {self._token}"},
        )
        with urllib.request.urlopen(request, timeout=DEADLINE_S, context=self._tls) as answer:  # noqa: S310 - https
            [result] = json.load(answer)["results"]
        return [
            dict(zip(series["columns"], row, strict=True))
            for series in result.get("series", [])
            for row in series["values"]
        ]

    def heard(self, measurement: str) -> set[str]:
        return {row["device"] for row in self.of(measurement)}


def grafana_sees(model: Model) -> Store:
    """Return the store as Grafana reads it: by its provisioned sources, filled in from its own variables and files."""
    grafana = model["services"]["grafana"]
    inside = {one["target"]: Path(one["source"]) for one in grafana["volumes"] if "source" in one}
    file = inside["/etc/grafana/provisioning/datasources"] / "store.yaml"
    own = "/office/services/grafana"

    def filled(text: str) -> str:
        text = re.sub(
            rf"\$__file{{{own}/(.+?)}}", lambda found: (inside[own] / found[1]).read_text(), text
        )
        return re.sub(
            r"\$\{?(\w+)\}?", lambda found: str(grafana["environment"][found[1]]), text
        ).strip()

    sources = {one["uid"]: one for one in yaml.safe_load(file.read_text())["datasources"]}
    buckets = {uid: filled(one["jsonData"]["dbName"]) for uid, one in sources.items()}
    shown = {
        (filled(one["url"]), filled(one["secureJsonData"]["httpHeaderValue1"]))
        for one in sources.values()
    }
    [(url, header)] = shown
    return Store(url, header.removeprefix("Token "), buckets, str(inside[own] / "ca.pem"))


def wait_for(what: Callable[[], bool], parts: Parts, words: str) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    pause = subprocess.Popen(["sleep", str(2 * DEADLINE_S)])
    try:
        while not what():
            if time.monotonic() > deadline_s:
                pytest.fail(f"{words}\n{parts['ingest'].words}\n{parts['street'].words}")
            try:
                pause.wait(0.1)
            except subprocess.TimeoutExpired:
                continue
    finally:
        pause.kill()
        pause.wait(DEADLINE_S)


def digests(office: Path) -> set[str]:
    """What nobody but `store-setup` writes: all but volumes, store/ and tokens. The CRL is signed anew every time."""
    return {
        f"{path.relative_to(office)} {hashlib.sha256(path.read_bytes()).hexdigest()}"
        for path in sorted(office.rglob("*"))
        if path.is_file()
        and path.relative_to(office).parts[0] not in ("street", "store")
        and "data" not in path.relative_to(office).parts
        and path.name not in ("influx.token", "influx.read.token", "crl.pem", ".lock")
    }


def poison(office: Path) -> None:
    """Publish, as a gateway that may, something that cannot be taken."""
    settings = read_environment(office / "compose.env")
    folder = office / "gateways" / COUNTY / GATEWAY
    tls = {"cafile": "ca.pem", "cert": "certificate.pem", "key": "key.pem"}
    words = [word for name, file in tls.items() for word in (f"--{name}", str(folder / file))]
    words += ["-h", HOST, "-p", settings["ONESTREET_BROKER_PORT"], "-q", "1", "-m", "no readings"]
    topic = f"{PREFIX}/{COUNTY}/{SITE}/{GATEWAY}/air/poisoned/readings"
    done = subprocess.run(
        ["mosquitto_pub", *words, "-t", topic], capture_output=True, text=True, timeout=DEADLINE_S
    )
    assert done.returncode == 0, done.stderr


def quarantined(office: Path) -> list[tuple[Any, ...]]:
    file = office / "services" / "ingest" / "data" / "quarantine.sqlite"
    if not file.exists():
        return []
    with closing(sqlite3.connect(file)) as shell:
        if not shell.execute("SELECT * FROM sqlite_schema").fetchall():
            return []
        return shell.execute(
            "SELECT * FROM refusals JOIN payloads USING (sha256, topic)"
        ).fetchall()


@pytest.mark.timeout(300)
def test_a_town_runs_is_backed_up_is_lost_and_comes_back(
    office: Path, tmp_path: Path, up: Callable[[Model], Parts]
) -> None:
    model = made(office, town_file(tmp_path))
    at_first = digests(office)
    parts = up(model)
    parts.up("ingest", "watch", "rollups", "street")
    read = Reader(office)
    gateways = 2
    for domain, each in DOMAINS.items():
        wait_for(
            lambda domain=domain, each=each: len(read.heard(domain)) == each * gateways,  # type: ignore[misc]  # bound at once
            parts,
            f"not every device of {domain} is in the store: {read.heard(domain)}",
        )
    wait_for(lambda: {row["up"] for row in read.of("device")} >= {1}, parts, "the watch is silent")
    seen = grafana_sees(model)
    pages = [json.loads(text) for path, text in page_files() if path.startswith("zh-TW/")]
    assert [words for page in pages for words in refusals(page, seen)] == []
    [devices] = [
        query
        for page in pages
        for query in queries(page)
        if (query.page, query.place) == ("onestreet-overview-zh", "設備數")
    ]
    wait_for(
        lambda: (
            {row[-1] for one in seen.ask(devices.source, devices.filled()) for row in one["values"]}
            == {gateways * sum(DOMAINS.values())}
        ),
        parts,
        "Grafana does not see each device",
    )
    poison(office)
    wait_for(lambda: bool(quarantined(office)), parts, "nothing was refused")
    assert digests(office) == at_first, "somebody wrote outside of volumes"

    before = read.rows()
    parts.run("backup")  # everything runs on
    after = read.rows()
    refused = quarantined(office)
    assert len(after) > len(before), "the town spoke all the while"
    [backup] = Path(f"{office}-backups").iterdir()
    stopped = parts.down()
    assert not any(stopped.values()), stopped
    shutil.rmtree(office)

    onestreet("town", "restore", backup, "--into", office)
    model = made(office)
    assert digests(office) == at_first
    assert (office / "ca" / "ca.key").stat().st_mode & 0o777 == 0o600
    assert quarantined(office) == refused
    parts = up(model)
    parts.run("restore-store", backup.name)
    restored = Reader(office).rows()
    assert before <= restored <= after, "row by row: all from before the backup, none from after it"
    parts.up("ingest", "watch", "rollups", "street")
    newest = max(row["time"] for row in Reader(office).of("air"))
    wait_for(
        lambda: max(row["time"] for row in read.of("air")) > newest,
        parts,
        "after the restore nothing new arrives: by the same keys, tokens and accounts",
    )
    assert Reader(office).rows() >= restored
