"""Questions to InfluxDB over one connection that stays open: what a reader would see, and when."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Self

import aiohttp
import msgspec

from benchmarks.processes import BenchmarkFailed
from tests.influx import Bucket

_DEADLINE_S = 300.0
_PATIENCE_S = 20.0  # no new row for so long: the rest is lost
_COUNT_EVERY_S = 1.0  # counting costs the database


class Reader:
    """One bucket's reader inside `async with`."""

    def __init__(self, bucket: Bucket) -> None:
        """It shows the bucket's own token."""
        self._url = f"http://127.0.0.1:{bucket.influx.port}/query"
        self._database = bucket.name
        self._headers = {"Authorization": f"Token {bucket.token}"}
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=1),
            timeout=aiohttp.ClientTimeout(total=_DEADLINE_S),
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._session is not None
        await self._session.close()

    async def rows(self, query: str) -> list[list[Any]]:
        """Return the rows of an InfluxQL answer, times in ns. Raises: BenchmarkFailed."""
        assert self._session is not None
        asked = {"db": self._database, "q": query, "epoch": "ns"}
        try:
            async with self._session.get(self._url, params=asked, headers=self._headers) as answer:
                result = msgspec.json.decode(await answer.read())["results"][0]
        except (aiohttp.ClientError, TimeoutError, KeyError, msgspec.DecodeError) as error:
            raise BenchmarkFailed(f"InfluxDB does not answer {query!r}: {error!r}") from error
        if "error" in result:
            raise BenchmarkFailed(f"InfluxDB answers {query!r}: {result['error']}")
        return [row for series in result.get("series", []) for row in series["values"]]

    async def count(
        self, measurement: str = "air", field: str = "pm2_5", *, where: str = ""
    ) -> int:
        """Return how many rows have a field."""
        condition = f" WHERE {where}" if where else ""
        found = await self.rows(f'SELECT count("{field}") FROM "{measurement}"{condition}')  # noqa: S608 - our own words
        return int(found[0][1]) if found else 0

    async def count_until(self, expected: int) -> int:
        """Return the number of rows once it is the expected one, or once none has come for long."""
        rows, changed_s = -1, time.monotonic()
        while True:
            found = await self.count()
            if found != rows:
                rows, changed_s = found, time.monotonic()
            if rows >= expected or time.monotonic() - changed_s > _PATIENCE_S:
                return rows
            await asyncio.sleep(_COUNT_EVERY_S)
