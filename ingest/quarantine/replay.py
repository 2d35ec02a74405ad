"""The replay: what was refused is judged again, and what passes now is stored.

Nothing leaves the quarantine before the store has it, and a row written twice is one row: a replay that is cut short
is simply done again.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from itertools import count

import msgspec

from exchange.mqtt import Message
from ingest.config import Config
from ingest.intake import Intake
from ingest.quarantine import listing
from ingest.quarantine.database import Database
from ingest.quarantine.evidence import Refused, evidence
from ingest.quarantine.listing import Filter
from ingest.stores import Point, Store, StoreOverfull, StoreRejected

AT_ONCE = 64


class Replayed(msgspec.Struct):
    """What a replay came to, in payloads; `samples` are those written, `still` by what breaks now."""

    passed: int = 0
    samples: int = 0
    stay: int = 0
    still: Counter[str] = msgspec.field(default_factory=Counter)
    cut: int = 0
    without_body: int = 0


class _Judged(msgspec.Struct):
    """A payload judged again: its points with the (epoch, seq) of each, and what is refused."""

    id: int
    message: Message
    points: list[Point]
    refused: list[Refused]


async def replay(
    config: Config, database: Database, store: Store, chosen: Filter, done: Replayed
) -> None:
    """Judge payloads again and store what passes; `done` is kept up to date, whatever happens.

    Raises: StoreUnavailable, with nothing lost; QuarantineUnusable, sqlite3.Error, OSError.
    """
    with listing.reading(database.path) as connection:
        waiting = listing.ids(connection, chosen)
    for start in range(0, len(waiting), AT_ONCE):
        judged = _judge_some(config, database, waiting[start : start + AT_ONCE], done)
        await _settle(database, store, judged, done)


def _judge_some(
    config: Config, database: Database, ids: Sequence[int], done: Replayed
) -> list[_Judged]:
    judged = []
    with listing.reading(database.path) as connection:
        for number in ids:
            for kept in listing.kept(connection, Filter(id=number)):
                body = listing.body(connection, number)
                if body is None:
                    done.without_body += 1
                elif len(body) < kept.size_bytes:
                    done.cut += 1
                else:
                    judged.append(_judge(config, number, kept.topic, body))
    return judged


def _judge(config: Config, number: int, topic: str, body: bytes) -> _Judged:
    """Judge a payload by the code that judged it when it came."""
    message = Message(topic, body)
    # No rate budget: what waited here is no flood.
    intake = Intake(config.counties, max_points=1_000_000, receive_maximum=1)
    intake.take([message], 1)
    points = [point for batch in intake.batches for point in batch.points]
    refused = [each for batch in intake.batches for each in batch.refused]
    return _Judged(number, message, points, refused)


async def _settle(
    database: Database, store: Store, judged: Sequence[_Judged], done: Replayed
) -> None:
    points = [point for one in judged for point in one.points]
    rejected = await _rejected(store, points)
    places = count()
    for one in judged:
        for point in one.points:
            if (place := next(places)) in rejected:
                one.refused.append(_refusal(one, point, rejected[place]))
    passed = [one.id for one in judged if not one.refused]
    stay = [one for one in judged if one.refused]
    database.remove(passed, "replayed")
    database.replace([(one.id, one.refused) for one in stay])
    done.passed += len(passed)
    done.samples += len(points) - len(rejected)
    done.stay += len(stay)
    done.still.update(each.requirement for one in stay for each in one.refused)


async def _rejected(store: Store, points: Sequence[Point], start: int = 0) -> dict[int, str]:
    """Write points; return the places of those that the store rejects, and why. Raises: StoreUnavailable."""
    if not points:
        return {}
    try:
        await store.write(points)
    except (StoreRejected, StoreOverfull) as error:
        if len(points) > 1:
            middle = len(points) // 2
            first = await _rejected(store, points[:middle], start)
            return first | await _rejected(store, points[middle:], start + middle)
        if isinstance(error, StoreOverfull):
            raise
        return {start: str(error)}
    return {}


def _refusal(judged: _Judged, point: Point, why: str) -> Refused:
    seen = evidence(judged.message.topic, judged.message.payload, time.time_ns() // 1_000_000)
    epoch, seq = point.fields.get("epoch", -1), point.fields.get("seq", -1)
    return Refused(seen, "EX-D-003", why, "", epoch=int(epoch), seq=int(seq))
