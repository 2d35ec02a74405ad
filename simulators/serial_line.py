"""A serial line with one twin on it."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from device_drivers.kit.twin import SerialTwin
from simulators.gate import Gate
from simulators.line import Endpoint, LineTasks
from simulators.pseudo_terminal import PseudoTerminal


class SerialLine:
    """Hosts a `SerialTwin` on a pseudo terminal at `path`.

    The twin speaks every `twin.period_s` while the gate is open and a client has the port open.
    After an opening it waits one period first: the client sets its port and discards what it held.
    """

    def __init__(
        self, twin: SerialTwin, path: Path, *, gate: Gate | None = None, baud: int | None = None
    ) -> None:
        self._twin, self._gate = twin, gate or Gate()
        self._stirred = asyncio.Event()
        self._gate.watch(self._stirred.set)
        self._terminal = PseudoTerminal(path, hear=self._hear, changed=self._stirred.set, baud=baud)
        self._tasks = LineTasks()

    @property
    def port(self) -> str:
        """The path a client opens."""
        return str(self._terminal.path)

    @property
    def endpoint(self) -> Endpoint:
        return {"kind": "serial", "port": self.port}

    async def __aenter__(self) -> Self:
        await self._terminal.__aenter__()
        await self._tasks.__aenter__()
        self._voice = self._tasks.create_task(self._speak(), name=f"voice of {self.port}")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._voice.cancel()
        try:
            await self._tasks.__aexit__(kind, error, trace)
        finally:
            await self._terminal.__aexit__(kind, error, trace)

    async def quiet(self) -> None:
        await self._terminal.drained()

    def _hear(self, data: bytes) -> None:
        answer = self._gate.pass_through(lambda: self._twin.hear(data))
        if answer:
            self._terminal.write(answer)
        self._stirred.set()  # the host may have changed the mode, and with it the period

    async def _speak(self) -> None:
        loop = asyncio.get_running_loop()
        spoke_s = float("-inf")
        while True:
            self._stirred.clear()
            wait_s = self._silence_s(loop.time(), spoke_s)
            if wait_s is not None and wait_s <= 0:
                spoke_s = loop.time()
                self._terminal.write(self._twin.speak())
                continue
            with suppress(TimeoutError):
                # Not wait_for: until Python 3.12 it may swallow a cancellation.
                async with asyncio.timeout(wait_s):
                    await self._stirred.wait()

    def _silence_s(self, now_s: float, spoke_s: float) -> float | None:
        """Return how long to be silent yet; None until something changes."""
        period_s, opened_s = self._twin.period_s, self._terminal.attended_since_s
        if period_s is None or opened_s is None or not self._gate.is_open:
            return None
        if not self._terminal.is_clear:  # the client does not read: a frame now would be cut
            return period_s
        return max(spoke_s, opened_s) + period_s - now_s
