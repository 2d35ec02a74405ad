"""A cable between a gateway and its broker that the kit can hang and pull. It passes bytes on: TLS goes through it."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Self

from exchange.errors import ConfigError

CHUNK = 65536


class Cable:
    """Listens, and connects each who comes to the broker."""

    def __init__(self, listen: tuple[str, int], broker: tuple[str, int]) -> None:
        self.connections = 0
        """How many came through, over all time."""
        self._listen, self._broker = listen, broker
        self._server: asyncio.Server | None = None
        self._flows = asyncio.Event()
        self._flows.set()
        self._is_pulled = False
        self._open: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        """Listen. Raises: ConfigError when the port is taken."""
        host, port = self._listen
        try:
            self._server = await asyncio.start_server(self._come, host, port)
        except OSError as error:
            allowed = f"must be an address to listen at: {error.strerror or error}"
            raise ConfigError("command line", "--cable", f"{host}:{port}", allowed) from error
        return self

    async def __aexit__(self, *_: object) -> None:
        self.pull()
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def hang(self) -> None:
        """Let nothing through any more, and close nothing."""
        self._flows.clear()

    def pull(self) -> None:
        """Break every connection, and refuse new ones."""
        self._is_pulled = True
        for writer in self._open:
            writer.transport.abort()

    def restore(self) -> None:
        """Let everything through again."""
        self._is_pulled = False
        self._flows.set()

    async def _come(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._open.add(writer)
        try:
            if not self._is_pulled:
                await self._connect(reader, writer)
        except (OSError, asyncio.CancelledError):
            pass  # a broken connection is what this is for
        finally:
            writer.transport.abort()
            self._open.discard(writer)
            self._tasks.discard(task)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(*self._broker)
        self.connections += 1
        self._open.add(far_writer)
        try:
            ways = [
                asyncio.create_task(self._pass(reader, far_writer)),
                asyncio.create_task(self._pass(far_reader, writer)),
            ]
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
        finally:
            far_writer.transport.abort()
            self._open.discard(far_writer)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(CHUNK):
                await self._flows.wait()
                writer.write(data)
                await writer.drain()
            # an orderly end is passed on as one: a DISCONNECT before it is not lost
            writer.close()
            await writer.wait_closed()
