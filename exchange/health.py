"""Is it well? A process answers on a socket of its own; `python -m exchange.health` asks, for containers.

The answer is made when it is asked for: a process that hangs cannot leave an old one behind.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path

VARIABLE = "ONESTREET_HEALTH"
"""Names the path of the socket; without it nobody answers."""
WELL = "ready"
ANSWER_S = 3.0


@asynccontextmanager
async def answering(judge: Callable[[], Awaitable[str]]) -> AsyncIterator[None]:
    """Answer whoever asks with the words of `judge`: `ready`, or what is waited for."""
    name = os.environ.get(VARIABLE, "")
    if not name:
        yield
        return
    path = Path(name)

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(ANSWER_S):
                writer.write((await judge()).encode())
                await writer.drain()
        writer.close()

    path.unlink(missing_ok=True)  # noqa: ASYNC240 - of one that was killed; in memory
    server = await asyncio.start_unix_server(answer, path)
    try:
        yield
    finally:
        server.close()
        path.unlink(missing_ok=True)  # noqa: ASYNC240 - the same


async def ask(path: str, deadline_s: float = ANSWER_S) -> str:
    """Return what the process at a socket says of itself, or why it says nothing."""
    try:
        async with asyncio.timeout(deadline_s):
            reader, writer = await asyncio.open_unix_connection(path)
            with closing(writer):
                answer = (await reader.read()).decode()
    except (OSError, TimeoutError) as error:
        return f"no answer: {str(error) or type(error).__name__}"
    return answer or "no answer"


def main() -> int:
    """Ask the process of this container and return 0 when it is well."""
    path = os.environ.get(VARIABLE, "")
    words = asyncio.run(ask(path)) if path else f"{VARIABLE} is not set"
    sys.stdout.write(f"{words}\n")
    return 0 if words == WELL else 1


if __name__ == "__main__":
    sys.exit(main())
