"""kill -9 at random moments on an outbox at work in a process of its own."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

from tests.outbox_runs import Account, running


async def test_kill_9_at_any_moment_loses_nothing_and_names_nobody_twice(tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    chance, account = random.Random(seed), Account()
    stages = tmp_path / "run"
    stages.mkdir()
    for number in range(8):
        lines = chance.choice([0, 3, 50, 600])
        folder = tmp_path / "state" / "outbox"
        async with running(account, folder, stages, "boot-1", number, lines=lines):
            assert account.missing == set(), f"{seed=}"
            assert account.back == set(), f"{seed=}: it stays forgotten"
            await asyncio.sleep(chance.random() * 0.02)  # somewhere within the next calls
    assert len(account.ever) > 10
    for device in "abc":
        names = sorted(name for name in account.ever if name.device == device)
        assert len({name.epoch for name in names}) <= 1, f"{seed=}: counters go on"
        assert [name.seq for name in names] == list(range(len(names))), f"{seed=}"
