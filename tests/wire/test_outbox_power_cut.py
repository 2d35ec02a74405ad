"""Power cuts, on a real file system that drops what was not synced, under an outbox at work in a process."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.outbox_runs import DEADLINE_S, Account, Name, running

LOST_MS = 2000
SHARES = (0.0, 0.5, 1.0)  # of what was not synced, that is on disk all the same
SOON, LATE = range(5, 50), range(500, 800)  # lines of a run, some seconds the latter


class PowerSwitch:
    """The disk's process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def answer(self) -> list[bytes]:
        assert self._process.stdout is not None
        async with asyncio.timeout(DEADLINE_S):
            line = await self._process.stdout.readline()
        assert line, "the disk ended"
        return line.split()

    async def ask(self, command: str) -> list[bytes]:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{command}\n".encode())
        return await self.answer()


@asynccontextmanager
async def mounted(folder: Path) -> AsyncIterator[PowerSwitch]:
    await asyncio.to_thread(folder.mkdir)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.power_cut_disk", str(folder)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    switch = PowerSwitch(process)
    try:
        assert await switch.answer() == [b"up"]
        yield switch
    finally:
        assert process.stdin is not None
        process.stdin.close()
        async with asyncio.timeout(DEADLINE_S):
            await process.wait()
        if process.returncode:  # it has not unmounted: then nobody could remove the folder
            await (await asyncio.create_subprocess_exec("umount", "-l", str(folder))).wait()


async def test_the_disk_drops_what_was_not_synced(tmp_path: Path) -> None:
    """A disk that kept everything would prove nothing."""
    script = """
import os, sys
for number in range(40):
    file = os.open(f"{sys.argv[1]}/{number}", os.O_RDWR | os.O_CREAT)
    os.pwrite(file, b"a" * 1000, 0)
    if number % 4:
        os.fsync(file)
    os.pwrite(file, b"b" * 1000, 1000)
    if number == 20:
        os.fsync(os.open(sys.argv[1], os.O_RDONLY))
"""
    left: dict[int, dict[str, bytes]] = {}
    for seed in range(12):
        async with mounted(tmp_path / str(seed)) as switch:
            folder = tmp_path / str(seed) / "d"
            await asyncio.to_thread(folder.mkdir)
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-c", script, str(folder)
            )
            assert await process.wait() == 0
            root = ["-c", "import os, sys; os.fsync(os.open(sys.argv[1], os.O_RDONLY))"]
            syncing = await asyncio.create_subprocess_exec(
                sys.executable, *root, str(folder.parent)
            )
            assert await syncing.wait() == 0
            await switch.ask(f"cut {seed} {SHARES[seed % 3]}")
            await switch.ask("boot")
            left[seed] = await asyncio.to_thread(_files, folder)
    for files in left.values():
        assert all(str(number) in files for number in range(21)), "their folder was synced"
        synced = [files[str(number)] for number in range(21) if number % 4]
        assert all(data.startswith(b"a" * 1000) for data in synced)
    assert any(len(files) < 40 for files in left.values()), "names that were not synced"
    every = [data for files in left.values() for data in files.values()]
    assert any(data == b"" for data in every)
    assert any(b"b" not in data for data in every)
    assert any(0 < data.count(b"b") < 1000 for data in every), "torn"
    assert any(data[1000:].startswith(b"\0") for data in every), "a size without its content"


@pytest.mark.timeout(400)  # half a minute, on a machine that has nothing else to do
async def test_a_power_cut_loses_at_most_the_last_two_seconds(tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    chance, account = random.Random(seed), Account()
    lost = boots = 0
    runs = [(chance.choice(lines), share) for lines in (SOON, LATE) for share in (None, *SHARES)]
    chance.shuffle(runs)
    runs.sort(
        key=lambda run: run[0] not in LATE or run[1] != 0
    )  # first: nothing but what was synced, ever
    with tempfile.TemporaryDirectory(dir="/dev/shm") as memory:
        async with mounted(tmp_path / "disk") as switch:
            folder = tmp_path / "disk" / "state" / "outbox"
            for number, (lines, share) in enumerate(runs):
                run = (account, folder, Path(memory), f"boot-{boots}", number)
                async with running(*run, lines=lines):
                    missing, account.missing = account.missing, set()
                    assert not missing, f"{seed=} {number=}"
                    await asyncio.sleep(chance.random() * 0.02)  # somewhere within the next calls
                    if is_cut := share is not None:
                        _, cut_ms = await switch.ask(f"cut {chance.randrange(2**32)} {share}")
                if not is_cut:
                    continue  # a kill between two cuts: the next run finds everything
                boots += 1
                for stage in await asyncio.to_thread(lambda: list(Path(memory).iterdir())):
                    stage.unlink()
                await switch.ask("boot")
                epochs = {name.device: name.epoch for name in sorted(account.ever)}
                stamps, account.stamps = account.stamps, {}
                run = (account, folder, Path(memory), f"boot-{boots}", 200 + number)
                async with running(*run, lines=5):
                    where = f"{seed=} {number=}"
                    _check_lost(account.missing, stamps, int(cut_ms), where)
                    lost += len(account.missing)
                    account.gone |= account.missing
                for name in account.stamps:
                    assert name.epoch > epochs.get(name.device, 0), f"{where}: a new epoch"
    assert boots == 6, f"{seed=}"
    assert lost > 0, f"{seed=}: else nothing was cut"


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _check_lost(
    missing: set[Name], stamps: dict[Name, tuple[int, int]], cut_ms: int, where: str
) -> None:
    """Check that what was lost was taken within the last two seconds before the cut.

    Shape: from the taking of what was lost to the last measurement whose taking had ended by then, so that a machine
    that stands still in between does not count.
    """
    before = [stamp_ms for stamp_ms, done_ms in stamps.values() if done_ms <= cut_ms]
    newest_ms = max(before, default=0)
    for name in missing:
        assert name in stamps, f"{where}: {name} is of an earlier boot"
        _, done_ms = stamps[name]
        assert done_ms >= newest_ms - LOST_MS, f"{where}: {name}"
