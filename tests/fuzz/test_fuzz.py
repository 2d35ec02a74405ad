"""Whatever a broker says ends in order: no crash, no stall, nothing unaccounted.

ONESTREET_FUZZ_SEED tries other streams. `make fuzz N=1000000 SEED=7` plays more of them than fit into a test.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from exchange.mqtt import _Connection
from exchange.readings import PackReader, Refusal, Row
from exchange.receipts import ranges
from ingest.batch import Batch
from ingest.intake import Intake
from ingest.stores import Point
from ingest.stores.influxdb import LineWriter
from ingest.stores.sqlite import _row
from tests.fuzz.accounts import Unaccounted, settle
from tests.fuzz.runs import replay
from tests.fuzz.streams import Streams

SEED = int(os.environ.get("ONESTREET_FUZZ_SEED", "20261122"))
COUNT = 50_000
ROOT = Path(__file__).parents[2]
CORPUS = sorted((Path(__file__).parent / "corpus").glob("*.bin"))

# On text that is not UTF-8 the codec drops the decoder's error before it panics.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.mark.timeout(300)  # half a minute where nobody else works
def test_streams_of_a_seed_are_accounted_for(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "tests.fuzz", "--seed", SEED, "--count", COUNT]
    done = subprocess.run(
        [*map(str, words), "--folder", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
    )
    print(done.stdout)  # noqa: T201 - shown beside a failure
    assert done.returncode == 0, done.stdout + done.stderr
    last = done.stdout.splitlines()
    assert f"{COUNT} streams from 0" in last[-3]
    ended = {name: int(number) for name, number in map(str.split, last[-2].split(", "))}
    assert ended["alive"] + ended["ended"] == COUNT
    assert ended["alive"] > COUNT / 2
    assert ended["ended"] > COUNT / 20
    assert ended["stored"] > COUNT / 2
    assert len([name for name in ended if name.startswith("EX-")]) > 25  # it goes everywhere


@pytest.mark.parametrize("file", CORPUS, ids=lambda file: file.stem)
def test_what_was_found_once_stays_accounted_for(file: Path) -> None:
    assert replay([file]) == 0


def test_a_number_makes_the_same_stream_wherever_it_is_asked() -> None:
    one, two, other = Streams(SEED), Streams(SEED), Streams(SEED + 1)
    assert [one.stream(number) for number in range(50)] == [
        two.stream(number) for number in reversed(range(50))
    ][::-1]
    assert one.stream(7) != other.stream(7)


async def test_where_the_bytes_are_cut_makes_no_difference() -> None:
    streams = Streams(SEED)
    alive = 0
    for number in range(300):
        stream = streams.stream(number)
        ended = settle(stream)
        if ended["alive"]:  # else what lies behind the end is not looked at
            alive += 1
            assert all(settle(stream, cuts) == ended for cuts in (1, 2)), number
    assert alive > 100


# ------------------------------------------------------------- an ingest with a mistake is found out

Mistake = Callable[[pytest.MonkeyPatch], None]
MISTAKES: dict[str, Mistake] = {}


def mistake(change: Mistake) -> Mistake:
    MISTAKES[change.__name__] = change
    return change


@mistake
def a_point_is_dropped(patch: pytest.MonkeyPatch) -> None:
    original = PackReader.rows

    def most(self: PackReader, payload: bytes) -> tuple[list[Row], Sequence[Refusal]]:
        found, refused = original(self, payload)
        return (found[:-1] if len(found) > 1 else found), refused

    patch.setattr(PackReader, "rows", most)


@mistake
def a_refused_metric_is_not_named(patch: pytest.MonkeyPatch) -> None:
    original = Intake._refuse_parts

    def silent(self: Any, batch: Any, route: Any, message: Any, refusals: Any) -> None:
        original(self, batch, route, message, refusals[1:])

    patch.setattr(Intake, "_refuse_parts", silent)


@mistake
def a_requirement_has_no_such_id(patch: pytest.MonkeyPatch) -> None:
    original = Intake._refuse_parts

    def renamed(self: Any, batch: Any, route: Any, message: Any, refusals: list[Refusal]) -> None:
        others = [msgspec.structs.replace(each, requirement="EX-R-999") for each in refusals]
        original(self, batch, route, message, others)

    patch.setattr(Intake, "_refuse_parts", renamed)


@mistake
def a_receipt_is_not_sent(patch: pytest.MonkeyPatch) -> None:
    original = Batch.receipts

    def fewer(self: Batch, rejected: Any = ()) -> Iterator[tuple[str, bytes]]:
        yield from list(original(self, rejected))[1:]

    patch.setattr(Batch, "receipts", fewer)


@mistake
def a_receipt_names_a_neighbour(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        "ingest.batch.ranges",
        lambda seqs: [(low, high + (high == low)) for low, high in ranges(seqs)],
    )


@mistake
def an_acknowledgement_is_swallowed(patch: pytest.MonkeyPatch) -> None:
    original = _Connection.acknowledge
    patch.setattr(_Connection, "acknowledge", lambda self, ids: original(self, list(ids)[1:]))


@mistake
def a_line_says_another_number(patch: pytest.MonkeyPatch) -> None:
    original = LineWriter.lines
    patch.setattr(
        LineWriter, "lines", lambda self, points: original(self, points).replace(b"=1", b"=2")
    )


@mistake
def a_row_of_sqlite_lacks_a_field(patch: pytest.MonkeyPatch) -> None:
    def fewer(point: Point) -> tuple[Any, ...]:
        name, *_ = point.fields
        return _row(msgspec.structs.replace(point, fields={name: point.fields[name]}))

    patch.setattr("tests.fuzz.accounts.sqlite_row", fewer)


@pytest.mark.parametrize("name", MISTAKES)
async def test_a_mistake_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    streams = Streams(SEED)
    MISTAKES[name](monkeypatch)
    found = 0
    for number in range(400):
        try:
            settle(streams.stream(number))
        except Unaccounted:
            found += 1
    assert found > 0
