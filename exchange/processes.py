"""Child processes: started, said ready by themselves, brought back when they die, ended with a deadline."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import secrets
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Literal

from exchange.errors import OnestreetError
from exchange.runtime import end_with_parent

log = logging.getLogger(__name__)

READY_S = 20.0
RESTART_FIRST_S = 0.2
RESTART_LAST_S = 5.0

Change = Literal["ready", "died"]


class ProcessFailed(OnestreetError):
    """A child process did not come up."""


class Child:
    """One process, kept alive between `start` or `begin` and `stop`.

    Shape: `argv` is the command; its output is appended to `{run_dir}/{name}.log`, or goes where ours
        goes. It is ready when it says so (sd_notify) or, where `is_up` is given, when that returns true;
        one that takes longer than `ready_s` is ended and brought back, None is for one that has to wait
        for others. `on_words` comes whenever it says how it is (STATUS=…): `words`.
    """

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        run_dir: Path | None,
        *,
        environment: Mapping[str, str] | None = None,
        is_up: Callable[[], bool] | None = None,
        on_change: Callable[[Change], None] | None = None,
        on_words: Callable[[], None] | None = None,
        ready_s: float | None = READY_S,
    ) -> None:
        """Nothing runs yet."""
        self.name = name
        self.argv = list(argv)
        self.restarts = 0
        self.words = ""
        self.ready = asyncio.Event()
        self._log = run_dir / f"{name}.log" if run_dir is not None else None
        # in Linux's abstract namespace: a path may be too long for a socket, and outlives kill -9
        self._notify = f"onestreet-{secrets.token_hex(8)}"
        self._environment = dict(environment or {})
        self._is_up = is_up
        self._on_change = on_change
        self._on_words = on_words
        self._ready_s = ready_s
        self._begun_s = 0.0
        self._before_restart: Callable[[], None] | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._channel: socket.socket | None = None
        self._said_ready = asyncio.Event()
        self._stopping = asyncio.Event()
        self._launching = asyncio.Lock()

    @property
    def pid(self) -> int:
        """Of the process that runs now, 0 when none does."""
        alive = self._process is not None and self._process.returncode is None
        return self._process.pid if alive and self._process else 0

    @property
    def exit_code(self) -> int | None:
        """Of the process that ran last; None while it runs, or when none ever did."""
        return self._process.returncode if self._process is not None else None

    async def begin(self) -> None:
        """Start it and return at once: what goes wrong from now on is tried again."""
        await self._launch()
        self._keeper = asyncio.create_task(self._keep(), name=f"keep {self.name}")

    async def start(self) -> None:
        """Start it and return when it is ready. Raises: ProcessFailed with the end of its log."""
        await self._launch()
        await self._become_ready()
        self._keeper = asyncio.create_task(self._keep(), name=f"keep {self.name}")

    async def stop(self, deadline_s: float) -> bool:
        """SIGTERM, and SIGKILL when the deadline passes. Return whether it ended by itself."""
        async with self._launching:  # after this nothing is brought back any more
            self._stopping.set()
        if self._process is None:
            return True
        self._signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(deadline_s):
                await self._process.wait()
        except TimeoutError:
            self._signal(signal.SIGKILL)
            await self._process.wait()
            return False
        finally:
            if self._keeper is not None:
                await asyncio.gather(self._keeper, return_exceptions=True)
            self._close_channel()
        return True

    def kill(self, before_restart: Callable[[], None] | None = None) -> None:
        """Kill -9; it is brought back, after `before_restart` has done its worst."""
        self._before_restart = before_restart
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        """Send a signal to the process, if it runs: its own `send_signal` may take the exit code from who waits."""
        if self._process is not None and self._process.returncode is None:
            with suppress(ProcessLookupError):
                os.kill(self._process.pid, number)

    async def _launch(self) -> None:
        self._open_channel()
        self._begun_s = time.monotonic()
        output = self._log.open("ab") if self._log is not None else None
        try:
            self._process = await asyncio.create_subprocess_exec(
                *self.argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, **self._environment, "NOTIFY_SOCKET": f"@{self._notify}"},
                start_new_session=True,  # Ctrl-C is ours to hand on
                preexec_fn=partial(end_with_parent, os.getpid()),
            )
        finally:
            if output is not None:
                output.close()

    def _open_channel(self) -> None:
        """Listen to what the process says of itself for as long as it lives."""
        self._close_channel()
        self._said_ready.clear()
        self.words = ""
        channel = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        channel.setblocking(False)
        channel.bind(f"\0{self._notify}")
        asyncio.get_running_loop().add_reader(channel, self._hear, channel)
        self._channel = channel

    def _hear(self, channel: socket.socket) -> None:
        said = channel.recv(4096).decode(errors="replace").splitlines()
        if "READY=1" in said:
            self._said_ready.set()
        for line in said:
            if line.startswith("STATUS="):
                self.words = line.removeprefix("STATUS=")
                if self._on_words is not None:
                    self._on_words()

    def _close_channel(self) -> None:
        if self._channel is not None:
            asyncio.get_running_loop().remove_reader(self._channel)
            self._channel.close()
            self._channel = None

    async def _become_ready(self) -> None:
        assert self._process is not None
        ended = asyncio.ensure_future(self._process.wait())
        said = asyncio.ensure_future(self._is_ready())
        try:
            async with asyncio.timeout(self._ready_s):
                await asyncio.wait({ended, said}, return_when=asyncio.FIRST_COMPLETED)
        except TimeoutError:
            pass
        if not said.done() or ended.done():
            said.cancel()
            ended.cancel()
            await asyncio.gather(said, ended, return_exceptions=True)
            raise ProcessFailed(f"{self.name} did not start; its log ends:\n{self._last_words()}")
        ended.cancel()
        await asyncio.gather(ended, return_exceptions=True)
        self.ready.set()
        self._changed("ready")

    async def _is_ready(self) -> None:
        if self._is_up is None:
            await self._said_ready.wait()
            return
        wait_s = 0.005
        while not self._is_up():
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, 0.1)

    async def _keep(self) -> None:
        """Bring it back for as long as nobody stopped it."""
        wait_s = RESTART_FIRST_S
        while True:
            assert self._process is not None
            if not self.ready.is_set():
                try:
                    await self._become_ready()
                except ProcessFailed:
                    self._signal(signal.SIGKILL)
            await self._process.wait()
            self.ready.clear()
            if self._stopping.is_set():
                return
            self._changed("died")
            if time.monotonic() - self._begun_s > RESTART_LAST_S:
                wait_s = RESTART_FIRST_S
            await self._pause(wait_s * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
            wait_s = min(2 * wait_s, RESTART_LAST_S)
            async with self._launching:
                if self._stopping.is_set():
                    return
                if self._before_restart is not None:
                    self._before_restart()
                    self._before_restart = None
                self.restarts += 1
                try:
                    await self._launch()
                except OSError as error:  # no memory or no process left: later there may be
                    log.warning("%s cannot be brought back now: %s", self.name, error)

    async def _pause(self, seconds: float) -> None:
        """Wait, not longer than until it is to be stopped."""
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            pass

    def _changed(self, change: Change) -> None:
        if self._on_change is not None:
            self._on_change(change)

    def _last_words(self) -> str:
        if self._log is None:
            return "(with ours)"
        lines = self._log.read_text(errors="replace").splitlines()
        return "\n".join(lines[-15:]) or "(nothing)"
