"""The doors of an office's InfluxDB: what each token is for, and what somebody gets done by one."""

from __future__ import annotations

from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlencode

from tests.influx import Influx

LINE = "air,county=tw-tpe co2=1 1795000000000000000"
WHAT_EACH_MAY_DO = {
    ("ingest", "influx.token"): [("write", "")],
    ("watch", "influx.token"): [("write", "")],
    ("watch", "influx.read.token"): [("read", "")],
    ("rollups", "influx.token"): [("write", "_rollups")],
    ("rollups", "influx.read.token"): [("read", ""), ("read", "_rollups")],
    ("grafana", "influx.token"): [("read", ""), ("read", "_rollups")],
}
"""By service and file: what may be done with which bucket, by the end of its name."""
TOKENS = tuple(WHAT_EACH_MAY_DO)
AUTHORIZATIONS = ("/api/v2/authorizations", "/private/legacy/authorizations")


class As:
    """What a token gets done at the server, at every door that takes its kind."""

    def __init__(self, server: Influx, token: str) -> None:
        self._server, self._token = server, token

    def get(self, path: str, **query: str) -> Any:
        """Return an answer; nothing, where the door is closed."""
        path = f"{path}?{urlencode(query)}" if query else path
        try:
            return self._server.call("GET", path, token=self._token)
        except HTTPError as error:
            assert error.code in (401, 403), error
            return {}

    def status(self, method: str, path: str, body: object = None) -> int:
        try:
            self._server.call(method, path, body, token=self._token)
        except HTTPError as error:
            return error.code
        return 200

    def writes(self, bucket: str) -> bool:
        """Whether it gets a row into a bucket, by any way."""
        ways = (f"/write?db={bucket}", f"/api/v2/write?org=onestreet&bucket={bucket}")
        return 200 in [self.status("POST", way, LINE) for way in ways]

    def rows(self, bucket: str, query: str = "SELECT * FROM air") -> int:
        """Return how many rows it gets to see."""
        results = self.get("/query", db=bucket, q=query).get("results", [])
        return sum(
            len(series["values"]) for result in results for series in result.get("series", [])
        )

    def bucket(self, name: str) -> dict[str, Any]:
        [found] = self.get("/api/v2/buckets", name=name)["buckets"]
        return dict(found)

    def authorizations(self, bucket: str) -> list[dict[str, Any]]:
        """Return those of both kinds that are about one bucket."""
        found = [
            one
            for path in AUTHORIZATIONS
            for one in self.get(path).get("authorizations", [])
            if one["description"].endswith(f": {bucket}")
        ]
        return sorted(found, key=lambda one: str(one["description"]))
