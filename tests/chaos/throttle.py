"""What stands between ingest and InfluxDB, and does to writes what it is told: `python -m tests.chaos.throttle`.

It runs beside the database. A line on stdin sets the mode and starts counting anew, `count` asks alone; the answer is
how many writes came since, and how many of them did not end well.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys

import aiohttp
from aiohttp import web

MODES = ("pass", "429", "503", "500", "500-late", "closes", "slow")
SLOW_S = 3.0
MAX_BODY_BYTES = 64 * 1024 * 1024
_KEPT = ("Authorization", "Content-Type", "Content-Encoding", "Accept-Encoding")


class Throttle:
    """Passes requests on, or does not."""

    def __init__(self, upstream: str) -> None:
        """`upstream` is the database's URL."""
        self.mode = "pass"
        self.met = self.bad = 0
        self._upstream = upstream
        self._session: aiohttp.ClientSession | None = None

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer one request; only writes are hindered."""
        body = await request.read()
        if request.path not in ("/write", "/api/v2/write"):
            return await self._passed(request, body)
        self.met += 1
        answer = await self._hindered(request, body)
        self.bad += answer.status >= 400
        return answer

    async def _hindered(self, request: web.Request, body: bytes) -> web.StreamResponse:
        match self.mode:
            case "429":
                return web.Response(status=429, headers={"Retry-After": "1"}, text="too many")
            case "503":
                return web.Response(status=503, headers={"Retry-After": "2"}, text="overloaded")
            case "500":
                return web.Response(status=500, text="internal error")
            case "500-late":  # it has the points and says that it does not
                await self._passed(request, body)
                return web.Response(status=500, text="timeout")
            case "closes":
                return self._closed(request)
            case "slow":
                await asyncio.sleep(SLOW_S)
        return await self._passed(request, body)

    async def _passed(self, request: web.Request, body: bytes) -> web.StreamResponse:
        if self._session is None:
            self._session = aiohttp.ClientSession(auto_decompress=False)
        headers = {name: request.headers[name] for name in _KEPT if name in request.headers}
        try:
            async with self._session.request(
                request.method, f"{self._upstream}{request.raw_path}", data=body, headers=headers
            ) as answer:
                said = await answer.read()
                given = {
                    name: answer.headers[name]
                    for name in ("Content-Type", "Content-Encoding", "Retry-After")
                    if name in answer.headers
                }
                return web.Response(status=answer.status, body=said, headers=given)
        except aiohttp.ClientError:  # the database is not there: nor are we
            return self._closed(request)

    def _closed(self, request: web.Request) -> web.Response:
        if request.transport is not None:
            request.transport.abort()
        return web.Response(status=500)

    async def obey(self) -> None:
        """Take modes from stdin until it ends."""
        lines = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(lines), sys.stdin
        )
        while line := await lines.readline():
            mode = line.decode().strip()
            os.write(sys.stdout.fileno(), f"{self.met} {self.bad}\n".encode())
            if mode == "count":
                continue
            if mode not in MODES:
                raise SystemExit(f"{mode!r} is not one of {', '.join(MODES)}")
            self.mode, self.met, self.bad = mode, 0, 0
        if self._session is not None:
            await self._session.close()


async def serve(host: str, port: int, upstream: str) -> None:
    """Serve until stdin ends."""
    throttle = Throttle(upstream)
    application = web.Application(client_max_size=MAX_BODY_BYTES)
    application.router.add_route("*", "/{path:.*}", throttle.handle)
    server = web.AppRunner(application)
    await server.setup()
    await web.TCPSite(server, host, port).start()
    os.write(sys.stdout.fileno(), b"ready\n")
    await throttle.obey()
    await server.cleanup()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("upstream")
    asked = parser.parse_args()
    asyncio.run(serve(asked.host, asked.port, asked.upstream))
