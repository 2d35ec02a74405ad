"""A run of the fuzzer: streams shared among processes, of which one may hang, crash or be killed by the kernel.

What is found becomes a file: the bytes that the broker sent. Moved into tests/fuzz/corpus it is played by every run of
the tests.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import resource
import sys
import time
import traceback
from collections import Counter
from hashlib import sha256
from multiprocessing import connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, NamedTuple

from tests.fuzz.accounts import settle
from tests.fuzz.streams import Streams

CPU_BOUND_S = 2.0  # of one stream; the slowest takes a twentieth
SILENT_S = 60.0  # and this long by the clock: it hangs
MEMORY_BYTES = 2 << 30
SAID_EVERY_S = 10.0
KEPT = 5  # files of one kind of finding

_spawn = multiprocessing.get_context("spawn")


class Finding(NamedTuple):
    """What went wrong, at which stream, and by what it is recognised as another of a kind."""

    number: int
    kind: str
    words: str


class _Worker:
    """A process that plays numbers, and where it stands."""

    def __init__(self, seed: int, numbers: range, folder: Path) -> None:
        self.numbers = numbers
        self.at = _spawn.RawValue("q", numbers.start)
        self.ended: Counter[str] = Counter()
        self.findings: list[Finding] = []
        self._seen = (numbers.start, time.monotonic())
        self._words, there = _spawn.Pipe(duplex=False)
        self._log = folder / f"worker-{numbers.start}.log"
        target: Any = _work
        self._process: SpawnProcess = _spawn.Process(
            target=target, args=(seed, numbers, self.at, there, str(self._log)), daemon=True
        )
        self._process.start()
        there.close()

    @property
    def sentinel(self) -> int:
        """What becomes ready when the process ends."""
        return self._process.sentinel

    def watch(self) -> range | None:
        """Return the numbers that are left when it has ended, None while it works."""
        while self._words.poll():
            try:
                said = self._words.recv()
            except EOFError:
                break
            if isinstance(said, Finding):
                self.findings.append(said)
            else:
                self.ended += said
        now_s, at = time.monotonic(), int(self.at.value)
        if at != self._seen[0]:
            self._seen = at, now_s
        if self._process.is_alive():
            if now_s - self._seen[1] < SILENT_S:
                return None
            self._process.kill()
            self._process.join()
            self.findings.append(Finding(at, "hangs", f"nothing for {SILENT_S:g} s"))
        elif self._process.exitcode:
            log = self._log.read_text(errors="replace")[-2000:]
            code = self._process.exitcode
            self.findings.append(Finding(at, f"ends-{code}", f"it ended with {code}: {log}"))
        else:
            self._log.unlink(missing_ok=True)
            return range(0)
        return self.numbers[self.numbers.index(at) + 1 :]


def run(seed: int, numbers: range, jobs: int, folder: Path) -> int:
    """Play these streams of a seed; return 1 when something was found."""
    os.environ["RUST_BACKTRACE"] = "0"  # the codec panics on text that is not UTF-8; that is known
    folder.mkdir(parents=True, exist_ok=True)
    begun_s = said_s = time.monotonic()
    parts = [numbers[job::jobs] for job in range(jobs)]
    workers = [_Worker(seed, part, folder) for part in parts if part]
    ended: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    while workers:
        connection.wait([worker.sentinel for worker in workers], timeout=0.1)
        for worker in list(workers):
            left = worker.watch()
            for finding in worker.findings:
                kinds[finding.kind] += 1
                if kinds[finding.kind] <= KEPT:
                    _keep(seed, finding, folder)
            worker.findings.clear()
            if left is not None:
                ended += worker.ended
                workers.remove(worker)
                if left:
                    workers.append(_Worker(seed, left, folder))
        if time.monotonic() - said_s >= SAID_EVERY_S:
            said_s = time.monotonic()
            at = min(int(worker.at.value) for worker in workers) if workers else numbers.stop
            _say(f"seed {seed}: all before {at} played; --start {at} goes on from there")
    took_s = time.monotonic() - begun_s
    _say(f"seed {seed}: {len(numbers)} streams from {numbers.start} in {took_s:.0f} s")
    _say(", ".join(f"{name} {number}" for name, number in sorted(ended.items())))
    _say(f"findings: {dict(kinds) or 'none'}")
    return 1 if kinds else 0


def replay(files: list[Path]) -> int:
    """Play streams from files; return 1 when one of them is a finding."""
    status = 0
    for file in files:
        finding = asyncio.run(_played(file.read_bytes()))
        _say(f"{file}: {finding or 'all accounted for'}")
        status |= finding is not None
    return status


def _keep(seed: int, finding: Finding, folder: Path) -> None:
    stream = Streams(seed).stream(finding.number)
    file = folder / f"{finding.kind}-{sha256(stream).hexdigest()[:12]}.bin"
    file.write_bytes(stream)
    _say(f"seed {seed}, stream {finding.number}: {finding.words}")
    _say(f"  again: python -m tests.fuzz {file}")


async def _played(stream: bytes) -> str | None:
    try:
        settle(stream)
    except BaseException as error:  # noqa: BLE001 - a panic is no Exception
        return f"{type(error).__name__}: {error}"
    return None


def _work(seed: int, numbers: range, at: Any, words: Any, log: str) -> None:
    """Play numbers in a process of its own."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 2)  # panics are loud
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    sys.set_int_max_str_digits(0)
    logging.disable(logging.CRITICAL)
    asyncio.run(_play(seed, numbers, at, words))


async def _play(seed: int, numbers: range, at: Any, words: Any) -> None:
    streams = Streams(seed)
    ended: Counter[str] = Counter()
    for number in numbers:
        at.value = number
        stream = streams.stream(number)
        begun_s = time.thread_time()
        try:
            ended += settle(stream)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # noqa: BLE001 - a panic is no Exception
            where = traceback.extract_tb(error.__traceback__)[-1]
            kind = f"{type(error).__name__}-{where.name.strip('<>')}-{where.lineno}"
            words.send(Finding(number, kind, f"{type(error).__name__}: {error}"[:500]))
        took_s = time.thread_time() - begun_s
        if took_s > CPU_BOUND_S:
            words.send(Finding(number, "stalls", f"{took_s:.1f} s of CPU"))
        if number % 100 == 0:
            await asyncio.sleep(0)  # lets the loop forget its cancelled timers
    words.send(ended)


def _say(words: str) -> None:
    sys.stdout.write(f"{words}\n")
    sys.stdout.flush()
