"""The quarantine's file: its bounds, its budget, what happens when it cannot be used, and its earlier version."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import random
import resource
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Barrier
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exchange.errors import ConfigError
from ingest.config import load_config
from ingest.quarantine import (
    PUT_DEADLINE_S,
    Evidence,
    Quarantine,
    QuarantineUnusable,
    Refused,
    budget,
    evidence,
    refused_samples,
)
from ingest.quarantine.budget import BODY_BYTES, REFUSALS, SHARES, Budget
from ingest.quarantine.database import LOCK_S, Database, chunks
from ingest.quarantine.evidence import Entry
from ingest.quarantine.schema import VERSION
from tests.gateways import until

TOPIC = "city/v1/tw-tpe/street/gw-1/air/aq-1/readings"
RECEIPTS = "city/v1/tw-tpe/street/gw-1/receipts"
VERSION_1 = Path(__file__).parent / "data" / "quarantine_v1.sqlite"
MIB = 1024 * 1024
MAX_BYTES = 16 * MIB


class Clock:
    """A monotonic clock that moves when told."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def whole(payload: bytes, *, topic: str = TOPIC, gateway: str = "gw-1", ms: int = 0) -> Refused:
    receipts = RECEIPTS.replace("gw-1", gateway)
    return Refused(evidence(topic, payload, ms), "EX-R-001", "unreadable", receipts)


def entries(payloads: Sequence[bytes], *, ms: int = 0) -> list[Entry]:
    found = [whole(payload, ms=ms) for payload in payloads]
    return [Entry(one.evidence, one.evidence.body, [one]) for one in found]


def database(path: Path, *, max_bytes: int = MAX_BYTES, **more: Any) -> Database:
    return Database(path, max_bytes=max_bytes, max_age_days=90, **more)


def select(path: Path, text: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(path)) as shell:
        return shell.execute(text).fetchall()


def file_bytes(path: Path) -> dict[str, int]:
    """The sizes of the file and of what SQLite writes beside it."""
    return {one.name: one.stat().st_size for one in path.parent.glob(f"{path.name}*")}


def take_away(path: Path) -> None:
    for name in file_bytes(path):
        (path.parent / name).unlink()


def is_sound(path: Path) -> bool:
    counted = "SELECT count FROM tallies WHERE what = 'entries'"
    return (
        select(path, "PRAGMA integrity_check") == [("ok",)]
        and select(path, "SELECT count(*) FROM payloads") == select(path, counted)
        and select(
            path, "SELECT count(*) FROM reasons WHERE payload NOT IN (SELECT id FROM payloads)"
        )
        == [(0,)]
    )


# --------------------------------------------------------------------------------------------- budget


def test_a_flood_of_one_gateway_leaves_room_for_the_others() -> None:
    clock = Clock()
    limited = Budget(clock)
    flood = limited.admit([whole(b"%d" % number) for number in range(3 * REFUSALS)])
    assert len(flood.entries) == REFUSALS // SHARES
    assert flood.only_counted == 3 * REFUSALS - REFUSALS // SHARES
    other = limited.admit([whole(b"other", gateway="gw-2")])
    assert [entry.body for entry in other.entries] == [b"other"]
    clock.now_s += budget.WINDOW_S
    assert len(limited.admit([whole(b"later")]).entries) == 1


def test_many_gateways_together_have_a_budget_too() -> None:
    admitted = Budget(Clock()).admit(
        [whole(b"%d" % number, gateway=f"gw-{number}") for number in range(3 * REFUSALS)]
    )
    assert len(admitted.entries) == REFUSALS
    assert admitted.only_counted == 2 * REFUSALS


def test_large_bodies_are_left_out_and_what_they_broke_is_not() -> None:
    body = b"x" * 200_000
    admitted = Budget(Clock()).admit([whole(b"%d" % number + body) for number in range(20)])
    kept = [entry for entry in admitted.entries if entry.body is not None]
    assert len(admitted.entries) == 20
    assert len(kept) == BODY_BYTES // SHARES // 200_000
    assert admitted.bodies_dropped == 20 - len(kept)
    assert admitted.only_counted == 0


def test_a_payload_counts_once_however_many_of_its_samples_are_refused() -> None:
    body = b"x" * 200_000
    many = [
        Refused(evidence(TOPIC, body, 0), "EX-D-003", "", RECEIPTS, seq=seq) for seq in range(10)
    ]
    [entry] = Budget(Clock()).admit(many).entries
    assert entry.body == body
    assert len(entry.refused) == 10


@given(
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 262_144), st.integers(0, 3)), max_size=60)
)
def test_whatever_comes_is_accounted_for_and_within_the_budget(
    came: list[tuple[int, int, int]],
) -> None:
    refused = [
        Refused(Evidence(TOPIC, str(name), size, bytes(size), 0), "EX-R-001", "", f"gw-{gateway}")
        for name, size, gateway in came
    ]
    admitted = Budget(Clock()).admit(refused)
    assert sum(len(entry.refused) for entry in admitted.entries) + admitted.only_counted == len(
        came
    )
    assert sum(len(entry.body or b"") for entry in admitted.entries) <= BODY_BYTES
    assert sum(entry.body is None for entry in admitted.entries) == admitted.bodies_dropped


async def test_a_flood_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    clock = Clock()
    quarantine = Quarantine(tmp_path / "q.sqlite", clock_s=clock)
    flood = [whole(b"%d" % number) for number in range(REFUSALS)]
    for _ in range(3):
        await quarantine.put(flood)
        clock.now_s += budget.WINDOW_S
    assert caplog.text.count("a flood of refused messages") == 1
    for _ in range(2):
        await quarantine.put([whole(b"one")])
        clock.now_s += 100.0
    assert caplog.text.count("the flood of refused messages is over") == 1
    counts = quarantine.counts
    assert counts.kept + counts.only_counted == 3 * REFUSALS + 2
    assert counts.dropped == 0
    await quarantine.close()


# --------------------------------------------------------------------------------------------- bounds


def test_the_file_stays_below_its_bound_and_the_oldest_goes(tmp_path: Path) -> None:
    path = tmp_path / "q.sqlite"
    kept = database(path)
    source = random.Random(1)
    largest = written = 0
    for round_number in range(60):
        size = source.choice([50, 2000, 200_000])
        payloads = [source.randbytes(size) for _ in range(max(1, min(400, 800_000 // size)))]
        for chunk in chunks(entries(payloads)):
            kept.keep(chunk)
            largest = max(largest, kept.size_bytes)
        written += len(payloads)
        assert kept.entries <= written, round_number
    kept.close()
    assert largest <= MAX_BYTES
    assert 0 < kept.entries < written
    assert kept.evicted == {"EX-R-001": written - kept.entries}
    assert select(path, "SELECT min(id), max(id) FROM payloads") == [
        (written - kept.entries + 1, written)
    ]
    assert select(path, "SELECT count FROM tallies WHERE what = 'evicted'") == [
        (written - kept.entries,)
    ]
    assert is_sound(path)


def test_small_ones_do_not_make_it_grow_either(tmp_path: Path) -> None:
    kept = database(tmp_path / "q.sqlite")
    largest = 0
    for start in range(0, 30_000, 500):
        for chunk in chunks(entries([b"%d" % number for number in range(start, start + 500)])):
            kept.keep(chunk)
        largest = max(largest, kept.size_bytes)
    kept.close()
    assert largest <= MAX_BYTES
    assert kept.evicted.total() == 30_000 - kept.entries > 0
    assert is_sound(tmp_path / "q.sqlite")


def test_somebody_who_reads_for_long_does_not_make_the_log_grow(tmp_path: Path) -> None:
    path = tmp_path / "q.sqlite"
    kept = database(path, lock_s=0.05)
    kept.keep(entries([b"first"]))
    with closing(sqlite3.connect(path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM payloads").fetchall()
        with pytest.raises(QuarantineUnusable, match="somebody reads it for long"):
            for number in range(100):
                kept.keep(entries([b"%d" % number + bytes(250_000)] * 1))
        assert kept.size_bytes <= MAX_BYTES
        reader.execute("COMMIT")
    kept.keep(entries([b"last"]))
    kept.close()
    assert is_sound(path)


def test_what_is_too_old_goes_though_nothing_comes(tmp_path: Path) -> None:
    day_ms, path = 86_400_000, tmp_path / "q.sqlite"
    kept = database(path, time_s=lambda: 100 * 86_400)
    for day in (1, 9, 11, 99):
        kept.keep(entries([b"%d" % day], ms=day * day_ms))
    while kept.tidy():
        pass
    assert select(path, "SELECT body FROM payloads") == [(b"11",), (b"99",)]
    assert kept.entries == 2
    assert kept.evicted == {"EX-R-001": 2}
    kept.close()


async def test_it_is_tidied_from_the_start(tmp_path: Path) -> None:
    path = tmp_path / "q.sqlite"
    earlier = database(path)
    earlier.keep(entries([b"old"], ms=1))
    earlier.keep(entries([b"new"], ms=time.time_ns() // 1_000_000))
    earlier.close()
    quarantine = Quarantine(path)
    running = asyncio.create_task(quarantine.run())
    await until(lambda: quarantine.entries == 1)
    assert quarantine.counts.evicted_by == {"EX-R-001": 1}
    assert quarantine.counts.evicted == 1
    assert quarantine.size_bytes == sum(file_bytes(path).values())
    running.cancel()
    await asyncio.wait([running])
    await quarantine.close()


async def test_nothing_is_made_where_nothing_was_refused(tmp_path: Path) -> None:
    path = tmp_path / "q.sqlite"
    quarantine = Quarantine(path)
    running = asyncio.create_task(quarantine.run())
    await quarantine.put([])
    running.cancel()
    await asyncio.wait([running])
    await quarantine.close()
    assert file_bytes(path) == {}


def test_a_bound_that_was_lowered_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "q.sqlite"
    before = database(path, max_bytes=64 * MIB)
    payloads = [b"%d" % number + bytes(250_000) for number in range(100)]
    for chunk in chunks(entries(payloads, ms=time.time_ns() // 1_000_000)):
        before.keep(chunk)
    before.close()
    assert path.stat().st_size > MAX_BYTES
    after = database(path)
    while after.tidy():
        pass
    assert after.size_bytes <= MAX_BYTES
    assert 0 < after.entries < 100
    after.close()
    assert select(path, "SELECT max(id) FROM payloads") == [(100,)]
    assert is_sound(path)


def test_what_is_purged_is_given_back_to_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "q.sqlite"
    kept = database(path)
    for chunk in chunks(entries([b"%d" % number + bytes(250_000) for number in range(20)])):
        kept.keep(chunk)
    assert kept.remove(range(1, 30), "purged") == 20
    kept.shrink()
    assert kept.size_bytes < 200_000
    assert kept.remove([1], "purged") == 0
    kept.close()
    assert select(path, "SELECT * FROM tallies ORDER BY what") == [
        ("entries", "", 0),
        ("purged", "EX-R-001", 20),
    ]


def test_its_bounds_are_settings(tmp_path: Path) -> None:
    file = tmp_path / "ingest.toml"
    lines = 'counties = ["tw-tpe"]\nstore = "sqlite:///a"\n[broker]\nhost = "127.0.0.1"\n'
    file.write_text(f"{lines}[quarantine]\npath = 'q'\nmax_mb = 16\nmax_age_days = 7\n")
    chosen = load_config(file).quarantine
    assert (chosen.path, chosen.max_mb, chosen.max_age_days) == (tmp_path / "q", 16, 7.0)
    file.write_text(f"{lines}[quarantine]\nmax_mb = 15\n")
    with pytest.raises(ConfigError, match=r"quarantine\.max_mb = 15: .* >= 16"):
        load_config(file)


# --------------------------------------------------------------------------------- several at a time


async def test_calls_overlap_and_each_is_durable_when_it_returns(tmp_path: Path) -> None:
    path = tmp_path / "q.sqlite"
    quarantine = Quarantine(path)

    async def put(number: int) -> None:
        one = whole(b"%d" % number)
        await quarantine.put([one])
        assert (one.evidence.sha256,) in select(path, "SELECT sha256 FROM refusals"), number

    await asyncio.gather(*(put(number) for number in range(60)))
    assert quarantine.counts.kept == 60
    assert quarantine.entries == 60
    await quarantine.close()


def test_several_workers_share_one_new_file(tmp_path: Path) -> None:
    path = tmp_path / "q.sqlite"

    def work(worker: int) -> Database:
        mine = database(path, lock_s=10.0)
        for number in range(40):
            mine.keep(entries([b"%d %d" % (worker, number) + bytes(100_000)]))
        mine.close()
        return mine

    with ThreadPoolExecutor(4) as threads:
        workers = list(threads.map(work, range(4)))
    evicted = sum(one.evicted.total() for one in workers)
    assert select(path, "SELECT count(*) FROM payloads") == [(160 - evicted,)]
    assert evicted
    assert is_sound(path)


def test_workers_that_start_at_once_make_one_file(tmp_path: Path) -> None:
    def work(path: Path) -> None:
        mine = database(path)
        at_once.wait(10)
        mine.keep(entries([path.name.encode()]))
        mine.close()

    at_once = Barrier(4)
    with ThreadPoolExecutor(4) as threads:
        for number in range(40):
            path = tmp_path / f"{number}.sqlite"
            list(threads.map(work, [path] * 4))
            assert select(path, "SELECT count(*) FROM payloads") == [(1,)]


# ----------------------------------------------------------------------------- when it cannot be used


def a_folder(path: Path) -> None:
    path.mkdir()


def a_newer_version(path: Path) -> None:
    with closing(sqlite3.connect(path)) as shell:
        shell.execute(f"PRAGMA user_version = {VERSION + 1}")


def another_database(path: Path) -> None:
    with closing(sqlite3.connect(path)) as shell:
        shell.executescript("CREATE TABLE points (a); PRAGMA user_version = 1;")


def a_folder_that_takes_no_file(path: Path) -> None:
    path.symlink_to("/proc/self/no-such-file")


@pytest.mark.parametrize(
    "there", [a_folder, a_newer_version, another_database, a_folder_that_takes_no_file]
)
async def test_a_file_that_cannot_be_used_costs_its_evidence_alone(
    there: Callable[[Path], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    path = tmp_path / "q.sqlite"
    there(path)
    before = path.read_bytes() if path.is_file() else b""
    clock = Clock()
    quarantine = Quarantine(path, clock_s=clock)
    for number in range(5):
        await quarantine.put([whole(b"%d" % number)])
    assert (quarantine.counts.kept, quarantine.counts.dropped) == (0, 5)
    assert caplog.text.count("cannot be written") == 1
    assert (path.read_bytes() if path.is_file() else b"") == before
    path.rmdir() if path.is_dir() else path.unlink()
    clock.now_s += 100.0
    await quarantine.put([whole(b"last")])
    assert (quarantine.counts.kept, quarantine.counts.dropped) == (1, 5)
    assert caplog.text.count("is written again") == 1
    await quarantine.close()


@contextmanager
def no_right_to_write(folder: Path) -> Iterator[None]:
    """Have this process read a folder's files alone, whoever runs it."""
    for one in folder.iterdir():
        one.chmod(0o444)
    folder.chmod(0o555)
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)
        folder.chmod(0o755)


async def test_a_read_only_file_costs_its_evidence_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with TemporaryDirectory() as name:  # that everybody can reach, unlike pytest's
        path = Path(name) / "q.sqlite"
        kept = database(path)
        kept.keep(entries([b"before"]))
        kept.close()
        quarantine = Quarantine(path)
        with no_right_to_write(path.parent):
            await quarantine.put([whole(b"meanwhile")])
            await quarantine.close()
        assert quarantine.counts.dropped == 1
        assert "readonly database" in caplog.text
        assert select(path, "SELECT body FROM payloads") == [(b"before",)]


async def test_a_locked_file_holds_up_one_call_and_then_none(tmp_path: Path) -> None:
    path = tmp_path / "q.sqlite"
    quarantine = Quarantine(path)
    await quarantine.put([whole(b"before")])
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        began_s = time.monotonic()
        await quarantine.put([whole(b"first")])
        first_s = time.monotonic() - began_s
        for number in range(100):
            await quarantine.put([whole(b"%d" % number)])
        all_s = time.monotonic() - began_s
        other.execute("ROLLBACK")
    assert LOCK_S / 2 < first_s < PUT_DEADLINE_S + 0.5
    assert all_s - first_s < 0.5, "it was tried again and again"
    assert quarantine.counts.dropped == 101
    await quarantine.close()


async def test_a_disk_that_does_not_answer_is_waited_for_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    answers = threading.Event()
    real = Database.keep

    def slow(self: Database, some: Sequence[Entry]) -> None:
        assert answers.wait(30)
        real(self, some)

    monkeypatch.setattr(Database, "keep", slow)
    quarantine = Quarantine(tmp_path / "q.sqlite")
    began_s = time.monotonic()
    await asyncio.gather(*(quarantine.put([whole(b"%d" % number)]) for number in range(3)))
    assert PUT_DEADLINE_S <= time.monotonic() - began_s < PUT_DEADLINE_S + 1.0
    began_s = time.monotonic()
    for number in range(50):
        await quarantine.put([whole(b"more %d" % number)])
    assert time.monotonic() - began_s < 0.5
    assert quarantine.counts.kept == 0
    answers.set()
    await until(lambda: quarantine.counts.kept)
    await quarantine.close()
    counts = quarantine.counts
    assert counts.kept + counts.dropped == 53
    assert counts.dropped >= 50
    assert "the disk does not answer" in caplog.text


def test_a_disk_that_does_not_answer_holds_up_no_end(tmp_path: Path) -> None:
    """A worker that is stopped while it has the file to itself is like a disk that hangs."""
    path = tmp_path / "q.sqlite"
    program = (
        "import asyncio, sys; from pathlib import Path\n"
        "from ingest.quarantine import Quarantine, Refused, evidence\n"
        "async def main():\n"
        "    quarantine = Quarantine(Path(sys.argv[1]))\n"
        "    await quarantine.put([Refused(evidence('topic', b'x', 1), 'EX-R-001', 'why', '')])\n"
        "    await quarantine.close()\n"
        "asyncio.run(main())\n"
    )
    with Path(f"{path}.lock").open("wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        ended = subprocess.run([sys.executable, "-c", program, str(path)], timeout=20, check=False)
    assert ended.returncode == 0
    assert refused_samples(path) == {}


@contextmanager
def small_files(size_bytes: int) -> Iterator[None]:
    """Have this process write no file beyond a size: the kernel says no, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_a_full_disk_costs_bodies_and_the_file_stays_sound(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    clock = Clock()
    path = tmp_path / "q.sqlite"
    quarantine = Quarantine(path, clock_s=clock)

    async def flood(name: bytes) -> None:
        for number in range(12):
            await quarantine.put([whole(name + b"%d" % number + bytes(200_000))])
            clock.now_s += 2.0

    with small_files(1_000_000):
        await flood(b"full")
    full = quarantine.counts.dropped
    assert 0 < full < 12
    assert quarantine.counts.kept == 12 - full
    assert caplog.text.count("cannot be written") == 1
    assert is_sound(path)
    clock.now_s += 100.0
    await flood(b"free")
    assert quarantine.counts.dropped == full
    assert caplog.text.count("is written again") == 1
    await quarantine.close()
    assert select(path, "SELECT count(*) FROM payloads") == [(24 - full,)]
    assert is_sound(path)


def set_aside(folder: Path) -> list[Path]:
    return list(folder.glob("q.sqlite.damaged/*.sqlite"))


@pytest.mark.parametrize("from_byte", [0, 3 * 4096])
async def test_a_damaged_file_is_set_aside_and_another_begun(
    tmp_path: Path, from_byte: int, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "q.sqlite"
    for time_number in range(3):
        before = database(path)
        before.keep(entries([b"%d" % number + bytes(20_000) for number in range(50)]))
        before.close()
        with path.open("r+b") as file:
            file.seek(from_byte)
            file.write(os.urandom(path.stat().st_size - from_byte))
        spoilt = path.read_bytes()
        quarantine = Quarantine(path)
        await quarantine.put([whole(b"after")])
        assert (quarantine.counts.kept, quarantine.counts.dropped) == (1, 0), time_number
        await quarantine.close()
        assert select(path, "SELECT body FROM payloads") == [(b"after",)]
        [aside] = set_aside(tmp_path)
        assert aside.read_bytes()[-4096:] == spoilt[-4096:]
        assert caplog.text.count("the quarantine is damaged") == time_number + 1
        assert is_sound(path)


async def test_a_damaged_file_is_set_aside_once_for_all_workers(tmp_path: Path) -> None:
    path = tmp_path / "q.sqlite"
    one, two = Quarantine(path), Quarantine(path)
    await one.put([whole(b"%d" % number + bytes(5000)) for number in range(50)])
    await two.put([whole(b"two")])
    with closing(sqlite3.connect(path)) as shell:
        shell.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(path.stat().st_size - 4096))
    for number in range(3):
        await one.put([whole(b"one %d" % number)])
        await two.put([whole(b"two %d" % number)])
    await one.close()
    await two.put([whole(b"two still")])
    await two.close()
    assert one.counts.dropped == two.counts.dropped == 0
    assert len(set_aside(tmp_path)) == 1
    assert select(path, "SELECT count(*) FROM payloads") == [(7,)]
    assert is_sound(path)


async def test_a_file_that_is_taken_away_is_begun_again(tmp_path: Path) -> None:
    path = tmp_path / "q.sqlite"
    quarantine = Quarantine(path)
    await quarantine.put([whole(b"before")])
    take_away(path)
    await quarantine.put([whole(b"after")])
    await quarantine.close()
    assert select(path, "SELECT body FROM payloads") == [(b"after",)]


# ------------------------------------------------------------------------------------ hostile contents

_any_text = st.text(st.characters(exclude_categories=()), max_size=40)


@given(
    topic=_any_text,
    detail=_any_text,
    metric=_any_text,
    payload=st.binary(max_size=50),
    times=st.integers(1, 400),
)
def test_no_text_upsets_it(
    tmp_path_factory: pytest.TempPathFactory,
    topic: str,
    detail: str,
    metric: str,
    payload: bytes,
    times: int,
) -> None:
    path = tmp_path_factory.mktemp("hostile") / "q.sqlite"

    async def put() -> Quarantine:
        quarantine = Quarantine(path)
        seen = evidence(topic * times, payload, 0)
        hostile = Refused(seen, "EX-R-009", detail * times, "", seq=1, metric=metric * times)
        await quarantine.put([hostile, hostile])
        await quarantine.close()
        return quarantine

    assert asyncio.run(put()).counts.kept == 2
    [row] = select(path, "SELECT length(CAST(topic AS BLOB)), length(detail), times FROM refusals")
    assert row[0] <= 1024
    assert row[1] <= 500
    assert row[2] == 2
    shutil.rmtree(path.parent)


def test_a_body_that_a_flood_cost_comes_with_the_payload_another_time(tmp_path: Path) -> None:
    path = tmp_path / "q.sqlite"
    kept = database(path)
    one = whole(b"body")
    kept.keep([Entry(one.evidence, None, [one])])
    assert select(path, "SELECT body FROM payloads") == [(None,)]
    kept.keep([Entry(one.evidence, b"body", [one])])
    assert select(path, "SELECT body FROM payloads") == [(b"body",)]
    kept.keep([Entry(one.evidence, None, [one])])
    assert select(path, "SELECT body, times FROM payloads JOIN reasons ON payload = id") == [
        (b"body", 3)
    ]
    kept.close()


# ------------------------------------------------------------------------------------------- version 1


def test_version_1_is_migrated(tmp_path: Path) -> None:
    path = tmp_path / "q.sqlite"
    shutil.copyfile(VERSION_1, path)
    assert refused_samples(path) == {}
    migrated = database(path)
    migrated.keep(entries([b"new"]))
    migrated.close()
    assert select(path, "PRAGMA user_version") == [(VERSION,)]
    assert select(path, "PRAGMA auto_vacuum") == [(2,)]
    found = select(
        path,
        "SELECT id, county, device, topic, size_bytes, received_ms, length(body) FROM payloads",
    )
    assert found == [
        (1, "tw-tpe", "aq-1", TOPIC, 179, 1_795_000_100_250, 179),
        (2, "tw-tpe", "aq-1", TOPIC, 8, 1_795_000_101_000, 8),
        (3, "", "", "no/topic/\x1b[31m", 2, 1_795_000_103_000, 2),
        (4, "tw-tpe", "aq-1", TOPIC, 300, 1_795_000_105_000, 64),
        (5, "tw-tpe", "aq-1", TOPIC, 3, 0, 3),
    ]
    asked = "SELECT id, requirement, seq, metric, times, received_at FROM refusals ORDER BY id, 2"
    assert select(path, asked) == [
        (1, "EX-R-009", 5, "happiness", 2, "2026-11-18T11:08:20.250Z"),
        (1, "EX-R-012", 5, "temperature", 1, "2026-11-18T11:08:20.250Z"),
        (2, "EX-R-001", -1, "", 2, "2026-11-18T11:08:21.000Z"),
        (3, "EX-T-001", -1, "", 1, "2026-11-18T11:08:23.000Z"),
        (4, "EX-R-002", -1, "", 1, "2026-11-18T11:08:25.000Z"),
        (5, "EX-R-001", -1, "", 1, "1970-01-01T00:00:00.000Z"),
    ]
    assert is_sound(path)


def test_of_version_1_what_fits_is_migrated_and_the_rest_counted(tmp_path: Path) -> None:
    path = tmp_path / "q.sqlite"
    shutil.copyfile(VERSION_1, path)
    with closing(sqlite3.connect(path)) as shell, shell:
        for number in range(100):
            digest = f"{number:064}"
            row = (digest, TOPIC, 250_000, bytes(250_000), "2026-11-19T00:00:00.000Z")
            shell.execute("INSERT INTO payloads VALUES (?, ?, ?, ?, ?)", row)
            key = ("EX-R-001", "", "", -1, -1, "", f"{digest} {TOPIC}", digest, TOPIC, "", 1)
            shell.execute("INSERT INTO refusals VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", key)
    assert path.stat().st_size > MAX_BYTES
    migrated = database(path)
    migrated.keep(entries([b"new"]))
    assert migrated.size_bytes <= MAX_BYTES
    migrated.close()
    large = "SELECT max(CAST(sha256 AS INTEGER)), count(*) FROM payloads WHERE size_bytes = 250000"
    [(newest, there)] = select(path, large)
    assert newest == 99
    assert 0 < there < 100
    evicted = dict(select(path, "SELECT requirement, count FROM tallies WHERE what = 'evicted'"))
    others = {"EX-R-002": 1, "EX-R-009": 1, "EX-R-012": 1, "EX-T-001": 1}
    assert evicted == {"EX-R-001": 101 - there, **others}
    assert is_sound(path)


def test_two_workers_migrate_it_once(tmp_path: Path) -> None:
    path = tmp_path / "q.sqlite"
    shutil.copyfile(VERSION_1, path)

    def work(worker: int) -> None:
        mine = database(path, lock_s=10.0)
        mine.keep(entries([b"of %d" % worker]))
        mine.close()

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(work, range(4)))
    assert select(path, "SELECT count(*) FROM payloads") == [(8,)]
    assert is_sound(path)
