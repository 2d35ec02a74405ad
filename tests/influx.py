"""A real InfluxDB 2 for a test session: own process, free port, own folder, buckets and tokens on demand."""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from base64 import b64encode
from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from tests.ports import free_port

ORG = "town"
_ADMIN = "admin-token-of-a-test"
_START_DEADLINE_S = 60.0
_STOP_DEADLINE_S = 20.0
_numbers = count(1)


class Bucket:
    """A bucket and a token that may read and write it, and nothing else."""

    def __init__(self, influx: Influx, name: str) -> None:
        self.influx = influx
        self.name = name
        self.id: str = influx.call(
            "POST", "/api/v2/buckets", {"orgID": influx.org_id, "name": name, "retentionRules": []}
        )["id"]
        self.token = self.new_token()

    @property
    def url(self) -> str:
        """As `store` in ingest.toml."""
        return f"influxdb://127.0.0.1:{self.influx.port}/{ORG}/{self.name}"

    def new_token(self) -> str:
        resource = {"type": "buckets", "id": self.id, "orgID": self.influx.org_id}
        allowed = [{"action": action, "resource": resource} for action in ("read", "write")]
        asked = {"orgID": self.influx.org_id, "permissions": allowed}
        token: str = self.influx.call("POST", "/api/v2/authorizations", asked)["token"]
        return token

    def write(self, lines: str) -> None:
        """Write line protocol past our own code."""
        path = f"/api/v2/write?org={ORG}&bucket={self.name}&precision=ns"
        self.influx.call("POST", path, lines)

    def query(self, text: str) -> list[dict[str, Any]]:
        """Return the series of an InfluxQL answer, past our own code."""
        path = f"/query?{urllib.parse.urlencode({'db': self.name, 'q': text, 'epoch': 'ns'})}"
        series: list[dict[str, Any]] = self.influx.call("GET", path)["results"][0].get("series", [])
        return series


class Influx:
    """One influxd at 127.0.0.1:`port`; it can be killed and started again with what it holds.

    With an office's folder it speaks TLS by the office's certificate and is left for the office to set up.
    `settings` are further options of influxd, without their dashes.
    """

    def __init__(
        self,
        binary: str,
        folder: Path,
        *,
        office: Path | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self.port = free_port()
        self.org_id = ""
        self.url = f"https://localhost:{self.port}" if office else f"http://127.0.0.1:{self.port}"
        self._binary = binary
        self.office = office
        self._folder = folder
        self._settings = settings or {}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process that runs now."""
        assert self._process is not None, "not started"
        return self._process.pid

    def start(self, deadline_s: float = _START_DEADLINE_S) -> None:
        """Return when it takes requests."""
        assert self._process is None, "already running"
        folder = self._folder
        arguments: dict[str, object] = {
            **self._settings,
            "bolt-path": folder / "influxd.bolt",
            "sqlite-path": folder / "influxd.sqlite",
            "engine-path": folder / "engine",
            "http-bind-address": f"127.0.0.1:{self.port}",
        }
        if self.office is not None:
            arguments["tls-cert"] = self.office / "store" / "server.pem"
            arguments["tls-key"] = self.office / "store" / "server.key"
        options = [f"--{name}={value}" for name, value in arguments.items()]
        with (folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._binary, "run", "--reporting-disabled", "--log-level=warn", *options],
                stdout=log,
                stderr=log,
            )
        until_s = time.monotonic() + deadline_s
        while not self._is_ready():
            ended = self._process.poll() is not None
            if ended or time.monotonic() > until_s:
                self.kill()
                pytest.fail(f"influxd does not start:\n{(folder / 'log').read_text()[-2000:]}")
            self._pause(0.05)
        if not self.org_id and self.office is None:
            self._set_up()

    def kill(self) -> None:
        """Kill -9: what it answered 204 to is on disk."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(_STOP_DEADLINE_S)
            self._process = None

    def bucket(self) -> Bucket:
        return Bucket(self, f"city-{next(_numbers)}")

    def call(self, method: str, path: str, body: object = None, *, token: str = _ADMIN) -> Any:
        """Ask its HTTP interface, as the administrator unless another token (or NAME:PASSWORD) is given.

        Raises: HTTPError.
        """
        shown = f"Basic {b64encode(token.encode()).decode()}" if ":" in token else f"Token {token}"
        data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        request = urllib.request.Request(  # noqa: S310 - our own server
            f"{self.url}{path}",
            data if body is not None else None,
            {"Authorization": shown},
            method=method,
        )
        with urllib.request.urlopen(request, timeout=20, context=self._tls()) as answer:  # noqa: S310
            said = answer.read()
        return json.loads(said) if said else None

    def _tls(self) -> ssl.SSLContext | None:
        if self.office is None:
            return None
        return ssl.create_default_context(cafile=self.office / "store" / "ca.pem")

    def _set_up(self) -> None:
        asked = {
            "username": "admin",
            "password": "password-of-a-test",
            "org": ORG,
            "bucket": "first",
            "token": _ADMIN,
        }
        self.org_id = self.call("POST", "/api/v2/setup", asked)["org"]["id"]

    def _is_ready(self) -> bool:
        try:
            return bool(self.call("GET", "/health")["status"] == "pass")
        except (OSError, urllib.error.URLError, json.JSONDecodeError):
            return False

    def _pause(self, seconds: float) -> None:
        assert self._process is not None
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return


def influxd() -> str:
    """Return the program. A missing one fails: `make test` finds or builds it."""
    binary = os.environ.get("ONESTREET_INFLUXD", "")
    if not binary or not os.access(binary, os.X_OK):
        pytest.fail(f"ONESTREET_INFLUXD={binary!r} must name the program influxd of InfluxDB 2")
    return binary


@pytest.fixture(scope="session")
def influx(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Influx]:
    """The session's InfluxDB."""
    server = Influx(influxd(), tmp_path_factory.mktemp("influxd"))
    server.start()
    try:
        yield server
    finally:
        server.kill()
