"""Runs of an outbox in a process, one after the other, and the account of what it took and what is left."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

DEADLINE_S = 120.0


class Name(NamedTuple):
    """A sample's name."""

    device: str
    epoch: int
    seq: int


class Content(NamedTuple):
    """What a name stands for, for ever."""

    time_ms: int
    number: int


@dataclass
class Account:
    """What was said in all runs. Shape: `stamps` to (measured, taken) by the boot clock, of this boot."""

    ever: dict[Name, Content] = field(default_factory=dict)
    gone: set[Name] = field(default_factory=set)
    stamps: dict[Name, tuple[int, int]] = field(default_factory=dict)
    there: set[Name] = field(default_factory=set)
    """What the newest run found."""
    missing: set[Name] = field(default_factory=set)
    """What it should have found, and did not."""
    forgotten: set[Name] = field(default_factory=set)
    """What has its receipt, and `forget` has returned."""
    back: set[Name] = field(default_factory=set)
    """What of that the newest run found all the same."""

    def hear(self, line: bytes) -> None:
        """Note a line; an incomplete one, of a process that was killed, says nothing."""
        words = line.decode().split()
        if not line.endswith(b"\n"):
            return
        if words[0] == "ready":
            self.missing = self.ever.keys() - self.gone - self.there
            self.back = self.there & self.forgotten
            self.gone -= self.there
            self.forgotten -= self.there
            return
        name = Name(words[1], int(words[2]), int(words[3]))
        content = Content(int(words[4]), int(words[5]))
        match words[0]:
            case "took":
                assert name not in self.ever, f"{name} was given twice"
                self.ever[name] = content
                self.forgotten |= self.gone
                self.stamps[name] = (int(words[6]), int(words[7]))
            case "gone":
                self.gone.add(name)
            case "there":
                # taken just before the kill: nobody could say so any more
                assert self.ever.setdefault(name, content) == content, f"{name} has changed"
                assert name not in self.there
                self.there.add(name)


@asynccontextmanager
async def running(
    account: Account, folder: Path, stages: Path, boot_id: str, seed: int, *, lines: int
) -> AsyncIterator[None]:
    """Run an outbox; enter once it has said what it found, and so many lines more. Leaving kills it, wherever it is."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.outbox_process"),
        *(str(folder), str(stages), boot_id, str(seed)),
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    account.there.clear()
    try:
        async with asyncio.timeout(DEADLINE_S):
            while not (line := await process.stdout.readline()).startswith(b"ready"):
                assert line, "it ended"
                account.hear(line)
            account.hear(line)
            for _ in range(lines):
                account.hear(await process.stdout.readline())
        yield
    finally:
        if process.returncode is None:
            process.kill()
        async with asyncio.timeout(DEADLINE_S):
            while line := await process.stdout.readline():
                account.hear(line)  # what it had said before counts
            await process.wait()
