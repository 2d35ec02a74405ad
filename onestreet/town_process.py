"""The simulated town as a process: told to speak and to be silent, and where its buses are."""

from __future__ import annotations

import asyncio
import sys
import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec

from exchange.processes import ProcessFailed
from simulators.plan import TownPlan

ANSWER_S = 20.0


class TownProcess:
    """A town of twins in a process of its own."""

    def __init__(self, plan: TownPlan, run_dir: Path) -> None:
        """Nothing runs yet. The truth will be in `run_dir`."""
        self.truth_path = run_dir / "truth.jsonl"
        self.endpoints: dict[str, dict[str, Any]] = {}
        self._plan = plan
        self._began_s = 0.0
        self._run_dir = run_dir
        self._process: asyncio.subprocess.Process | None = None
        self._speaking = asyncio.Lock()

    async def start(self) -> None:
        """Return when every bus is there; the town is still silent. Raises: ProcessFailed."""
        self._run_dir.mkdir(parents=True, exist_ok=True)
        plan = self._run_dir / "plan.json"
        plan.write_bytes(msgspec.json.encode(self._plan))
        with (self._run_dir / "town.log").open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "simulators",
                str(self._run_dir),
                str(plan),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        self.endpoints = (await self._answer())["endpoints"]
        self._began_s = time.monotonic()

    def now(self) -> datetime:
        """The town's own time, within a second or so of what its physics go by."""
        since_s = time.monotonic() - self._began_s if self._began_s else 0.0
        return self._plan.start + timedelta(seconds=since_s * self._plan.speed)

    async def speak(self) -> None:
        """Let readings be completed from now on."""
        await self._tell("speak")

    async def mute(self) -> str:
        """Return when no reading is on its way any more, or what was wrong with that."""
        return await self._tell("mute")

    async def ended(self) -> int:
        """Return its exit status once it has ended."""
        assert self._process is not None
        return await self._process.wait()

    async def stop(self) -> None:
        """End it."""
        process = self._process
        if process is None or process.returncode is not None:
            return
        assert process.stdin is not None
        process.stdin.close()
        try:
            async with asyncio.timeout(ANSWER_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()

    async def _tell(self, command: str) -> str:
        async with self._speaking:
            assert self._process is not None
            assert self._process.stdin is not None
            self._process.stdin.write(f"{command}\n".encode())
            return str((await self._answer()).get("error", ""))

    async def _answer(self) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(ANSWER_S):
                line = await self._process.stdout.readline()
        except TimeoutError:
            line = b""
        if not line:
            words = (self._run_dir / "town.log").read_text(errors="replace")
            raise ProcessFailed(f"the town does not answer; its log ends:\n{words[-2000:]}")
        answer: dict[str, Any] = msgspec.json.decode(line)
        return answer
