"""Is it well? A process answers on a socket of its own; `python -m exchange.health` asks, for containers.

The answer is made when it is asked for: a process that hangs cannot leave an old one behind.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, closing, contextmanager, suppress
from pathlib import Path
from typing import TypeAlias

VARIABLE = "ONESTREET_HEALTH"
"""Names the path of the socket; without it nobody answers."""
WELL = "ready"
ANSWER_S = 3.0

Judge: TypeAlias = Callable[[], Awaitable[str]]
"""Says that all is well, or what is waited for."""


@asynccontextmanager
async def answering(judge: Judge) -> AsyncIterator[None]:
    """Answer whoever asks with the words of `judge`: `ready`, or what is waited for."""
    name = os.environ.get(VARIABLE, "")
    if not name:
        yield
        return

    async def words() -> bytes:
        return (await judge()).encode()

    async with answering_at(Path(name), words, mode=0o600):
        yield


@asynccontextmanager
async def answering_at(
    path: Path, document: Callable[[], Awaitable[bytes]], *, mode: int
) -> AsyncIterator[None]:
    """Give whoever connects to this socket one document. Raises: OSError when it cannot be made."""

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(ANSWER_S):
                writer.write(await document())
                await writer.drain()
        writer.close()

    path.unlink(missing_ok=True)  # noqa: ASYNC240 - of one that was killed; in memory
    with ExitStack() as unless_served, _reachable(path) as address:
        listener = unless_served.enter_context(closing(socket.socket(socket.AF_UNIX)))
        os.fchmod(listener.fileno(), 0o600)  # as it is bound: never open to more than `mode` says
        listener.bind(address)
        path.chmod(mode)  # noqa: ASYNC240 - the same
        server = await asyncio.start_unix_server(answer, sock=listener)
        unless_served.pop_all()
    try:
        yield
    finally:
        server.close()
        path.unlink(missing_ok=True)  # noqa: ASYNC240 - the same


async def asked(path: Path, deadline_s: float = ANSWER_S) -> bytes:
    """Return the document of a socket. Raises: OSError, TimeoutError."""
    async with asyncio.timeout(deadline_s):
        with _reachable(path) as address:
            reader, writer = await asyncio.open_unix_connection(address)
        with closing(writer):
            return await reader.read()


async def ask(path: str, deadline_s: float = ANSWER_S) -> str:
    """Return what the process at a socket says of itself, or why it says nothing."""
    try:
        answer = (await asked(Path(path), deadline_s)).decode()
    except (OSError, TimeoutError) as error:
        return f"no answer: {str(error) or type(error).__name__}"
    return answer or "no answer"


@contextmanager
def _reachable(path: Path) -> Iterator[str]:
    """Give a name that a socket's address has room for: it ends after 107 bytes, a path does not."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def main() -> int:
    """Ask the process of this container and return 0 when it is well."""
    path = os.environ.get(VARIABLE, "")
    words = asyncio.run(ask(path)) if path else f"{VARIABLE} is not set"
    sys.stdout.write(f"{words}\n")
    return 0 if words == WELL else 1


if __name__ == "__main__":
    sys.exit(main())
