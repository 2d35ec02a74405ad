"""Processes that are measured from outside: what Linux says of their time and memory."""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self, TypeVar

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_REST_S = 0.5
_REST_CPU_S = 0.01
_STOP_DEADLINE_S = 30.0

T = TypeVar("T")


class BenchmarkFailed(Exception):
    """What was to be measured did not happen; there is no figure."""


def cpu_s(pid: int) -> float:
    """CPU time of a process so far, user and system, all threads, in steps of 10 ms."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def resident_mb(pid: int, *, peak: bool = False) -> float:
    """The memory that a process has, or the most that it has had."""
    key = "VmHWM:" if peak else "VmRSS:"
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) / 1024
    raise BenchmarkFailed(f"process {pid} has no memory")


class Meter:
    """CPU time of several processes, lap by lap."""

    def __init__(self, pids: Mapping[str, int]) -> None:
        """The first lap begins now."""
        self.pids = dict(pids)
        self._marks = self._now()

    def lap(self) -> dict[str, float]:
        """Return the CPU seconds of each since the last lap. Raises: BenchmarkFailed when one is gone."""
        before, self._marks = self._marks, self._now()
        return {name: now_s - before[name] for name, now_s in self._marks.items()}

    def _now(self) -> dict[str, float]:
        try:
            return {name: cpu_s(pid) for name, pid in self.pids.items()}
        except FileNotFoundError as error:
            raise BenchmarkFailed(f"a process has ended: {error.filename}") from error


def ordinary(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment in which Python keeps what it compiled, as it does for everybody."""
    return {key: value for key, value in environment.items() if key != "PYTHONDONTWRITEBYTECODE"}


async def until(
    condition: Callable[[], T], what: str, *, deadline_s: float = 60.0, every_s: float = 0.01
) -> T:
    """Return what `condition` does as soon as that is true. Raises: BenchmarkFailed."""
    end_s = time.monotonic() + deadline_s
    while not (found := condition()):
        if time.monotonic() > end_s:
            raise BenchmarkFailed(f"{what}: not within {deadline_s:g} s")
        await asyncio.sleep(every_s)
    return found


class Process:
    """A program inside `async with`, its output in a file; ended by SIGTERM when left.

    Shape: `environment` is all of it; without one it is ours.
    """

    def __init__(
        self,
        argv: Sequence[str | Path],
        log: Path,
        *,
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
    ) -> None:
        self.log = log
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                argv,
                cwd=folder,
                env=ordinary(os.environ if environment is None else environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        self.pid = self._process.pid

    @property
    def ended(self) -> int | None:
        """Its exit status, None while it runs."""
        return self._process.poll()

    async def until(
        self,
        condition: Callable[[], T],
        what: str,
        *,
        deadline_s: float = 60.0,
        every_s: float = 0.01,
    ) -> T:
        """Like `until`, and end with what it wrote when it ends first. Raises: BenchmarkFailed."""

        def met() -> T:
            found = condition()
            if not found and self.ended is not None:
                raise BenchmarkFailed(f"{what}: ended with {self.ended}\n{self.tail}")
            return found

        return await until(met, what, deadline_s=deadline_s, every_s=every_s)

    async def lives_for(self, seconds: float) -> None:
        """Let time pass. Raises: BenchmarkFailed when it does not live through it."""
        end_s = time.monotonic() + seconds
        await self.until(
            lambda: time.monotonic() >= end_s,
            f"process {self.pid} lives on",
            deadline_s=2 * seconds + _STOP_DEADLINE_S,  # the clock decides, not how late we look
            every_s=0.1,
        )

    async def until_at_rest(self, *, deadline_s: float = 60.0) -> float:
        """Return its CPU time once that stands nearly still."""
        marks = [(time.monotonic(), cpu_s(self.pid))]

        def rests() -> bool:
            now_s, used_s = time.monotonic(), cpu_s(self.pid)
            if used_s - marks[0][1] > _REST_CPU_S:
                marks[0] = now_s, used_s
            return now_s - marks[0][0] >= _REST_S

        await self.until(rests, f"process {self.pid} comes to rest", deadline_s=deadline_s)
        return cpu_s(self.pid)

    @property
    def tail(self) -> str:
        """The end of what it wrote."""
        return self.log.read_text(errors="replace")[-3000:]

    async def stop(self) -> int:
        """SIGTERM, SIGKILL when that takes too long; return the exit status."""
        if self.ended is None:
            self._process.terminate()
        try:
            return await asyncio.to_thread(self._process.wait, _STOP_DEADLINE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()
