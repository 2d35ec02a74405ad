"""The services of a run, as an operator would set them up: broker, database with what throttles it, ingest, watch."""

from __future__ import annotations

import asyncio
import sqlite3
import sys
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from exchange.configuration import toml_table
from exchange.delivery import Key
from exchange.runtime import end_with_parent
from tests.chaos.load import COUNTY
from tests.chaos.places import Disk, FaultFailed, address, at, side_address
from tests.chaos.poison import CONFLICT_METRIC, DAY_MS, RETENTION_DAYS
from tests.chaos.programs import Program
from tests.chaos.truth import Field, InQuarantine, StoredRow
from tests.influx import ORG, Influx

BROKER_PORT, DATABASE_PORT, THROTTLE_PORT = 1883, 8086, 8087
BUCKET = "chaos"
RECEIVE_MAXIMUM = 1000
HARNESS = "harness"
"""The device of the rows that the harness writes itself, so that a number in one field is rejected."""
_ANSWER_S = 20.0
_FRESH_WAL = str(Path(__file__).parents[2] / "scripts" / "fresh_wal.sh")
_FRESH_FIRST = 'sh "$1" "$2" && shift 2 && exec "$@"'
_TAGS = {"time", "county", "site", "device", "domain"}


async def _listens(place: str, port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection(side_address(place), port)
    except OSError:
        return False
    writer.close()
    return True


class Broker:
    """Mosquitto with persistence on a disk of its own."""

    def __init__(self, folder: Path, disk: Disk) -> None:
        self.address = (address("office"), BROKER_PORT)
        self._disk = disk
        config = folder / "mosquitto.conf"
        lines = [
            f"listener {BROKER_PORT} 0.0.0.0",
            "allow_anonymous true",
            "set_tcp_nodelay true",
            "persistence true",
            f"persistence_location {disk.path}/",
            "autosave_interval 5",
            "message_size_limit 2097152",
            "max_queued_messages 100000",
            "user root",  # else it steps down to a user who cannot read the folder
        ]
        config.write_text("\n".join([*lines, ""]))
        self.program = Program(
            "broker",
            "office",
            ["mosquitto", "-c", str(config)],
            folder,
            is_up=lambda: _listens("office", BROKER_PORT),
        )

    def wipe(self) -> None:
        """Forget every session and message; only while it does not run."""
        assert not self.program.is_running
        for file in self._disk.path.glob("mosquitto.db*"):
            file.unlink()


class Database:
    """influxd on a disk of its own."""

    def __init__(self, binary: str, folder: Path, disk: Disk) -> None:
        self._api = Influx(binary, folder)
        self._api.url = f"http://{side_address('store')}:{DATABASE_PORT}"
        self.token_file = folder / "token"
        options = {
            "bolt-path": disk.path / "influxd.bolt",
            "sqlite-path": disk.path / "influxd.sqlite",
            "engine-path": disk.path / "engine",
            "http-bind-address": f":{DATABASE_PORT}",
            "log-level": "warn",
        }
        arguments = [f"--{name}={value}" for name, value in options.items()]
        start = [binary, "run", "--reporting-disabled", *arguments]
        self.program = Program(
            "influxd",
            "store",
            # as in an office: without it what is stored after its disk was full is gone at the start after that
            ["sh", "-c", _FRESH_FIRST, "influxd", _FRESH_WAL, str(disk.path / "engine"), *start],
            folder,
            is_up=lambda: asyncio.to_thread(self._api._is_ready),
        )

    def set_up(self) -> None:
        """Make the bucket, its token, and the field that no number goes into."""
        api = self._api
        api._set_up()
        rules = [{"type": "expire", "everySeconds": RETENTION_DAYS * DAY_MS // 1000}]
        asked = {"orgID": api.org_id, "name": BUCKET, "retentionRules": rules}
        bucket = api.call("POST", "/api/v2/buckets", asked)["id"]
        resource = {"type": "buckets", "id": bucket, "orgID": api.org_id}
        allowed = [{"action": action, "resource": resource} for action in ("read", "write")]
        asked = {"orgID": api.org_id, "permissions": allowed}
        token = api.call("POST", "/api/v2/authorizations", asked)["token"]
        self.token_file.write_text(token)
        self.token_file.chmod(0o600)
        tags = f"air,county={COUNTY},device={HARNESS}"
        for day in (0, 1):  # a run may go over midnight, and a shard lasts a day
            moment = f" {DAY_MS * day + _now_ms()}"
            lines = f'{tags} {CONFLICT_METRIC}="text"{moment}'
            api.call("POST", f"/api/v2/write?org={ORG}&bucket={BUCKET}&precision=ms", lines)

    def rows(self) -> Iterator[StoredRow]:
        """Yield every row that the bucket holds of devices, past our own code."""
        for domain in ("air", "parking", "streetlight", "gateway"):
            names = self._query(f'SHOW TAG VALUES FROM "{domain}" WITH KEY = "device"')
            devices = [name for one in names for _, name in one["values"]]
            for device in sorted(set(devices) - {HARNESS}):
                asked = f'SELECT * FROM "{domain}" WHERE "device" = \'{device}\''  # noqa: S608 - our own
                for series in self._query(asked):
                    for values in series["values"]:
                        yield _row(domain, dict(zip(series["columns"], values, strict=True)))

    def _query(self, text: str) -> list[dict[str, Any]]:
        asked = urllib.parse.urlencode({"db": BUCKET, "q": text, "epoch": "ns"})
        (result,) = self._api.call("GET", f"/query?{asked}")["results"]
        if "error" in result:
            raise FaultFailed(f"{text}: {result['error']}")
        series: list[dict[str, Any]] = result.get("series", [])
        return series


def _row(domain: str, row: dict[str, Any]) -> StoredRow:
    fields: dict[str, Field] = {
        name: value for name, value in row.items() if value is not None and name not in _TAGS
    }
    where = (row["county"], row["site"], row["device"])
    return StoredRow(domain, *where, row["time"], fields)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


class Throttle:
    """What stands before the database, told what to do to writes."""

    def __init__(self, folder: Path) -> None:
        self._log = folder / "throttle.log"
        self._process: asyncio.subprocess.Process | None = None
        self._asking = asyncio.Lock()

    async def start(self) -> None:
        upstream = f"http://127.0.0.1:{DATABASE_PORT}"
        argv = [sys.executable, "-m", "tests.chaos.throttle", address("store"), str(THROTTLE_PORT)]
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *at("store", [*argv, upstream]),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                preexec_fn=end_with_parent,
            )
        await self._answer()

    async def tell(self, word: str) -> tuple[int, int]:
        """Set a mode, or only ask with `count`; return the writes since the last mode, and those that failed."""
        async with self._asking:
            assert self._process is not None
            assert self._process.stdin is not None
            self._process.stdin.write(f"{word}\n".encode())
            met, bad = (await self._answer()).split()
            return int(met), int(bad)

    async def stop(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()

    async def _answer(self) -> str:
        assert self._process is not None
        assert self._process.stdout is not None
        async with asyncio.timeout(_ANSWER_S):
            line = await self._process.stdout.readline()
        if not line:
            raise FaultFailed(f"the throttle ended: {self._log.read_text()[-2000:]}")
        return line.decode()


class IngestFiles:
    """Ingest and the watch, on one configuration."""

    def __init__(self, folder: Path, token_file: Path, quarantine: Disk, *, workers: int) -> None:
        store = f"influxdb://{address('store')}:{THROTTLE_PORT}/{ORG}/{BUCKET}"
        self._quarantine = quarantine.path
        top = toml_table(
            "# The run's", counties=[COUNTY], store=store, store_token_file=str(token_file)
        )
        broker = {"host": "127.0.0.1", "port": BROKER_PORT, "client_id": "ingest"}
        tables = [
            top,
            toml_table("[broker]", **broker, receive_maximum=RECEIVE_MAXIMUM),
            toml_table("[quarantine]", path=str(quarantine.path / "quarantine.sqlite")),
        ]
        file = folder / "ingest.toml"
        file.write_text("\n".join(tables))
        options = ["--workers", str(workers)] if workers > 1 else []
        python = sys.executable
        self.ingest = Program(
            "ingest", "office", [python, "-m", "ingest", str(file), *options], folder
        )
        self.watch = Program(
            "watch", "office", [python, "-m", "onestreet.cli", "watch", "run", str(file)], folder
        )

    def quarantined(self) -> list[InQuarantine]:
        """Return everything that was refused as a whole sample or payload."""
        found: list[InQuarantine] = []
        for file in sorted(self._quarantine.rglob("*.sqlite")):
            asked = "SELECT requirement, device, epoch, seq, sha256 FROM refusals WHERE metric = ''"
            with closing(sqlite3.connect(file, timeout=5.0)) as shell:
                for requirement, device, epoch, seq, digest in shell.execute(asked):
                    key = Key(device, epoch, seq) if seq >= 0 else None
                    found.append(InQuarantine(requirement, key, digest))
        return found
