"""The processes of a run: each known by its id, killed and started when told, brought back when one dies by itself."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from exchange.runtime import end_with_parent
from tests.chaos.places import PRIVATE, FaultFailed, at

READY_S = 60.0
GONE_S = 10.0
AGAIN_S = 1.0
"""A process that dies by itself comes back after so long, as a service manager would do."""


class Program:
    """One process in one place.

    Shape: it is ready when `is_up` says so, or when it says so itself (sd_notify). `deaths` counts what nobody asked
        for.
    """

    def __init__(
        self,
        name: str,
        place: str,
        argv: Sequence[str],
        folder: Path,
        *,
        environment: Mapping[str, str] | None = None,
        is_up: Callable[[], Awaitable[bool]] | None = None,
    ) -> None:
        """Nothing runs yet."""
        self.name = name
        self.deaths = 0
        self.alone = asyncio.Lock()
        """Held by a fault from breaking it to healing it."""
        self.log = folder / f"{name}.log"
        self._argv = at(place, argv)
        self._environment = dict(environment or {})
        self._is_up = is_up
        self._process: asyncio.subprocess.Process | None = None
        self._wanted = False
        self._said_ready = False
        self._keeper: asyncio.Task[None] | None = None
        self._channel = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._channel.setblocking(False)
        self._notify = PRIVATE / f"{name}.notify"
        self._channel.bind(str(self._notify))

    @property
    def pid(self) -> int:
        """Of the process that runs now. Raises: FaultFailed when none does."""
        if self._process is None or self._process.returncode is not None:
            raise FaultFailed(f"{self.name} does not run")
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def start(self) -> None:
        """Return when it is ready. Raises: FaultFailed with the end of its log."""
        await self.launch()
        await self.ready()

    async def launch(self) -> None:
        """Start it, and do not wait for others that it may wait for."""
        self._wanted = True
        await self._launch()
        self._keeper = asyncio.create_task(self._keep(), name=f"keep {self.name}")

    async def ready(self) -> None:
        """Return when it is ready. Raises: FaultFailed with the end of its log."""
        deadline_s = time.monotonic() + READY_S
        while not await self._ready_now():
            if time.monotonic() > deadline_s:
                words = self.log.read_text(errors="replace")[-3000:]
                raise FaultFailed(f"{self.name} does not become ready; its log ends:\n{words}")
            await asyncio.sleep(0.05)

    async def kill(self) -> None:
        """Kill -9; it stays down until `start`."""
        await self.running()
        pid = self.pid
        await self._unkeep()
        os.kill(pid, signal.SIGKILL)
        await self._gone()

    async def stop(self, deadline_s: float) -> int | None:
        """SIGTERM, and SIGKILL when the deadline passes. Return its status, None when it had to be killed."""
        await self._unkeep()
        if self._process is None or self._process.returncode is not None:
            return None
        self._process.terminate()
        try:
            async with asyncio.timeout(deadline_s):
                return await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._gone()
            return None

    async def running(self) -> None:
        """Return when there is a process: one that died by itself comes back. Raises: FaultFailed."""
        deadline_s = time.monotonic() + GONE_S
        while not self.is_running:
            if time.monotonic() > deadline_s:
                raise FaultFailed(f"{self.name} does not run")
            await asyncio.sleep(0.05)

    async def hang(self) -> None:
        """SIGSTOP it and its children. Raises: FaultFailed when one runs on."""
        await self.running()
        for process in self._family():
            process.suspend()
        async with asyncio.timeout(GONE_S):
            while any(one.status() != psutil.STATUS_STOPPED for one in self._family()):  # noqa: ASYNC110 - no event
                await asyncio.sleep(0.01)

    async def go_on(self) -> None:
        """SIGCONT all of it."""
        for process in self._family():
            process.resume()

    def children(self) -> list[psutil.Process]:
        """Return what it has started, living."""
        found = psutil.Process(self.pid).children(recursive=True)
        return [one for one in found if one.status() != psutil.STATUS_ZOMBIE]

    def memory(self) -> tuple[frozenset[int], int]:
        """Return the ids of it and its children, and their resident memory in bytes."""
        found: dict[int, int] = {}
        for process in self._family() if self.is_running else []:
            with suppress(psutil.NoSuchProcess):
                found[process.pid] = process.memory_info().rss
        return frozenset(found), sum(found.values())

    def _family(self) -> list[psutil.Process]:
        try:
            return [psutil.Process(self.pid), *self.children()]
        except psutil.NoSuchProcess:
            return []

    async def _launch(self) -> None:
        self._hear()
        self._said_ready = False
        # what it says is read all the time: who speaks to a full queue waits
        asyncio.get_running_loop().add_reader(self._channel, self._hear)
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **self._environment, "NOTIFY_SOCKET": str(self._notify)},
                start_new_session=True,  # Ctrl-C is the harness's
                preexec_fn=end_with_parent,
            )

    async def _ready_now(self) -> bool:
        if not self.is_running:
            return False
        if self._is_up is not None:
            return await self._is_up()
        return self._said_ready

    def _hear(self) -> None:
        """Empty the channel, and note whether READY=1 was said."""
        while True:
            try:
                self._said_ready |= b"READY=1" in self._channel.recv(4096).splitlines()
            except BlockingIOError:
                return

    async def _keep(self) -> None:
        while self._wanted:
            assert self._process is not None
            await self._process.wait()
            if not self._wanted:
                return
            self.deaths += 1
            await asyncio.sleep(AGAIN_S)
            await self._launch()

    async def _unkeep(self) -> None:
        self._wanted = False
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)

    async def _gone(self) -> None:
        assert self._process is not None
        async with asyncio.timeout(GONE_S):
            await self._process.wait()
