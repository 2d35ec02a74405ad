"""Is it well? A process answers on a socket of its own; `python -m exchange.health` asks, for containers.

The answer is made when it is asked for: a process that hangs cannot leave an old one behind.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import TypeAlias

VARIABLE = "ONESTREET_HEALTH"
"""Names the path of the socket; without it nobody answers."""
WELL = "ready"
ANSWER_S = 3.0
MAX_CLIENTS = 16
MAX_NAME_BYTES = 256

Judge: TypeAlias = Callable[[], Awaitable[str]]
"""Says that all is well, or what is waited for."""
Document: TypeAlias = Callable[[], Awaitable[bytes]]
"""Makes what a client gets, when it asks."""


@asynccontextmanager
async def answering(judge: Judge) -> AsyncIterator[None]:
    """Answer whoever asks with the words of `judge`: `ready`, or what is waited for."""
    name = os.environ.get(VARIABLE, "")
    if not name:
        yield
        return

    async def words() -> bytes:
        return (await judge()).encode()

    async with answering_at(Path(name), {"": words}, mode=0o600):
        yield


@asynccontextmanager
async def answering_at(
    path: Path, documents: Mapping[str, Document], *, mode: int
) -> AsyncIterator[None]:
    """Give whoever connects to this socket the document that it asks for. Raises: OSError when it cannot be made.

    Shape: a client says a document's name in one line, or nothing and its end: then it gets the one without a name. One
    that is not there is answered with nothing, and so is a client too many.
    """
    clients: set[asyncio.Task[None]] = set()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(clients) >= MAX_CLIENTS:
            writer.transport.abort()
            return
        client = asyncio.create_task(_answer(reader, writer, documents))
        clients.add(client)
        client.add_done_callback(clients.discard)

    path.unlink(missing_ok=True)  # noqa: ASYNC240 - of one that was killed; in memory
    with ExitStack() as unless_served, _reachable(path) as address:
        listener = unless_served.enter_context(closing(socket.socket(socket.AF_UNIX)))
        os.fchmod(listener.fileno(), 0o600)  # as it is bound: never open to more than `mode` says
        listener.bind(address)
        path.chmod(mode)  # noqa: ASYNC240 - the same
        server = await asyncio.start_unix_server(connected, sock=listener, limit=MAX_NAME_BYTES)
        unless_served.pop_all()
    try:
        yield
    finally:
        server.close()
        path.unlink(missing_ok=True)  # noqa: ASYNC240 - the same
        for client in clients:
            client.cancel()
        await asyncio.gather(*clients, return_exceptions=True)


async def _answer(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, documents: Mapping[str, Document]
) -> None:
    """Answer one question within ANSWER_S, whatever the client does, and end the connection."""
    try:
        async with asyncio.timeout(ANSWER_S):
            name = (await reader.readline()).decode().strip()
            if name in documents:
                writer.write(await documents[name]())
            writer.close()
            await writer.wait_closed()  # once it has read everything
    except (OSError, TimeoutError, ValueError):
        pass  # gone, too slow, or no name
    finally:
        writer.transport.abort()


async def asked(path: Path, document: str = "", *, deadline_s: float = ANSWER_S) -> bytes:
    """Return a document of a socket, empty when it has none of this name or no time. Raises: OSError, TimeoutError."""
    async with asyncio.timeout(deadline_s):
        with _reachable(path) as address:
            reader, writer = await asyncio.open_unix_connection(address)
        with closing(writer):
            writer.write(f"{document}\n".encode())
            return await reader.read()


async def ask(path: str, deadline_s: float = ANSWER_S) -> str:
    """Return what the process at a socket says of itself, or why it says nothing."""
    try:
        answer = (await asked(Path(path), deadline_s=deadline_s)).decode()
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
