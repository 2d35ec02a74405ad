"""Ingest as several processes, for a test: started as an operator does, its workers found and killed one by one."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

from exchange.health import VARIABLE, WELL, ask
from tests.gateways import DEADLINE_S, until


class WorkerGroup:
    """`onestreet ingest run CONFIG --workers N`, running inside `async with`; leaving it is kill -9."""

    def __init__(self, config: Path, workers: int, *more: str) -> None:
        """Nothing runs yet."""
        self.health = config.with_name("health")
        self._log = config.with_name("ingest.log")
        words = ["ingest", "run", str(config), "--workers", str(workers), *more]
        self._argv = [sys.executable, "-m", "onestreet.cli", *words]
        self._process: subprocess.Popen[bytes] | None = None

    async def __aenter__(self) -> Self:
        self._start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.process.kill()
        await asyncio.to_thread(self.process.wait, DEADLINE_S)

    def _start(self) -> None:
        environment = os.environ | {VARIABLE: str(self.health)}
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(self._argv, env=environment, stdout=log, stderr=log)

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The supervisor."""
        assert self._process is not None, "not started"
        return self._process

    @property
    def lines(self) -> list[dict[str, Any]]:
        """What it and its workers have logged since the last start."""
        text = self._log.read_text().splitlines()
        return [json.loads(line) for line in text if line.startswith("{")]

    def pid_of(self, worker: int) -> int:
        """Return the process of a worker, 0 when it has none."""
        pid = self.process.pid
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            try:
                words = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"--worker" in words and words[words.index(b"--worker") + 1] == b"%d" % worker:
                return int(child)
        return 0

    async def says(self, words: str) -> None:
        """Return once it says so of itself."""

        async def said() -> bool:
            return (await ask(str(self.health))).startswith(words)

        try:
            await until(said)
        except TimeoutError:
            now = await ask(str(self.health))
            raise AssertionError(f"it says {now!r}\n{self._log.read_text()[-4000:]}") from None

    async def ready(self) -> None:
        """Return once every worker is."""
        await self.says(WELL)

    async def kill(self, worker: int) -> None:
        """Kill -9 a worker, and return when another has its place."""
        killed = self.pid_of(worker)
        os.kill(killed, signal.SIGKILL)
        await until(lambda: self.pid_of(worker) not in (0, killed))

    async def stop(self) -> int:
        """SIGTERM; return its exit status."""
        self.process.terminate()
        return await asyncio.to_thread(self.process.wait, DEADLINE_S)

    def received(self) -> dict[int | None, int]:
        """Return how many messages each worker received, as those say that have stopped."""
        return {
            line.get("worker"): line["counts"]["intake"]["messages"]
            for line in self.lines
            if line["message"] == "stopped"
        }
