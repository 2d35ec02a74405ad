"""An HTTP endpoint for whoever watches a process: a few pages, bounded in clients and in time, whatever they do."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import NamedTuple, TypeAlias

from exchange.health import ANSWER_S, WELL, Judge
from exchange.trouble import Trouble

log = logging.getLogger(__name__)

MAX_CLIENTS = 16
MAX_HEAD_BYTES = 8192
CONNECTION_S = 10.0  # how long a client may take, with all it does
TEXT = "text/plain; charset=utf-8"
EXPOSITION = "text/plain; version=0.0.4; charset=utf-8"
"""Source: Prometheus, exposition formats: the text format."""


class Answer(NamedTuple):
    """What a page says."""

    body: str
    status: int = 200
    kind: str = TEXT


Page: TypeAlias = Callable[[], Awaitable[Answer]]


def verdict(judge: Judge, well: str = WELL) -> Page:
    """Return the page that is 200 while `judge` says `well`, and else 503 with what it says."""

    async def page() -> Answer:
        try:
            async with asyncio.timeout(ANSWER_S):
                words = await judge()
        except TimeoutError:
            words = f"no judgement in {ANSWER_S:g} s"
        return Answer(f"{words}\n", 200 if words == well else 503)

    return page


@asynccontextmanager
async def serving(host: str, port: int, pages: Mapping[str, Page]) -> AsyncIterator[None]:
    """Answer GET and HEAD of the pages. Raises: OSError when the port cannot be had."""
    mistake = Trouble(log, "a question cannot be answered", "questions are answered again")
    clients: set[asyncio.Task[None]] = set()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(clients) >= MAX_CLIENTS:
            writer.transport.abort()
            return
        client = asyncio.create_task(_serve(reader, writer, pages, mistake))
        clients.add(client)
        client.add_done_callback(clients.discard)

    server = await asyncio.start_server(connected, host, port, limit=MAX_HEAD_BYTES)
    try:
        yield
    finally:
        server.close()
        for client in clients:
            client.cancel()
        await asyncio.gather(*clients, return_exceptions=True)


async def _serve(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    pages: Mapping[str, Page],
    mistake: Trouble,
) -> None:
    """Answer one question, then end the connection: none is held open."""
    try:
        async with asyncio.timeout(CONNECTION_S):
            head = await reader.readuntil(b"\r\n\r\n")
            method, path, version = head.partition(b"\r\n")[0].decode("ascii").split(" ")
            if version not in ("HTTP/1.1", "HTTP/1.0"):
                return
            answer = await _answer(method, path.partition("?")[0], pages, mistake)
            writer.write(_encoded(answer, with_body=method != "HEAD"))
            writer.write_eof()
            while await reader.read(MAX_HEAD_BYTES):
                pass  # what it sent beyond its head: closed before, it would never read the answer
            writer.close()
            await writer.wait_closed()
    except (OSError, ValueError, TimeoutError, EOFError, asyncio.LimitOverrunError):
        pass  # no HTTP, or gone: no news, a port scan would fill the log
    finally:
        writer.transport.abort()


async def _answer(method: str, path: str, pages: Mapping[str, Page], mistake: Trouble) -> Answer:
    if method not in ("GET", "HEAD"):
        return Answer("only GET\n", 405)
    if path not in pages:
        return Answer(f"{', '.join(pages)}\n", 404)
    try:
        answer = await pages[path]()
    except Exception as error:  # noqa: BLE001 - said, and the process goes on
        mistake.report(f"{type(error).__name__}: {error}", path=path)
        return Answer("a mistake of ours\n", 500)
    mistake.over()
    return answer


def _encoded(answer: Answer, *, with_body: bool) -> bytes:
    body = answer.body.encode()
    head = (
        f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}\r\n"
        f"Content-Type: {answer.kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + (body if with_body else b"")
