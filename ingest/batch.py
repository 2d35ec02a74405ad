"""A batch: what is in hand between its arrival and its receipts.

A gateway gets receipts for exactly what it sent, on the topic of the gateway that the message came
from; a device that moved to another gateway is receipted to the one that asks.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import TypeVar

from exchange.mqtt import Message
from exchange.readings import PackReader
from exchange.receipts import Range, Receipt, RefusedRange, encode_receipt, ranges
from exchange.topics import Topic
from ingest.quarantine import Refused
from ingest.rate_budget import RateBudget
from ingest.stores import FieldValue, Point, Series

# An entry is at most about 100 bytes, so a receipt stays below 100 KB, which any client can take.
RECEIPT_ENTRIES = 1000
POINT_BYTES = 600
"""About what a point of a handful of metrics takes, with its dict and numbers."""
REFUSED_BYTES = 200

T = TypeVar("T")


class Route:
    """What a topic means, worked out once, and what its device has left of its rate budget.

    Two are the same only when they are one object.
    """

    __slots__ = ("budget", "is_readings", "receipts", "rows", "series", "topic")

    def __init__(self, topic: Topic, series: Series) -> None:
        self.topic = topic
        self.series = series
        self.budget = RateBudget()
        self.receipts = topic.receipts
        self.is_readings = topic.channel == "readings"
        self.rows = PackReader(topic).rows


class Batch:
    """Points in the order of their arrival, and what was refused beside them.

    Shape: `routes` and `messages` are in step with `points`; `packet_ids` are of the connection
        `generation`. `payload_bytes` is what its messages weigh, `settled` that its receipts are out.
    """

    __slots__ = (
        "begun_s",
        "generation",
        "messages",
        "packet_ids",
        "payload_bytes",
        "points",
        "refused",
        "routes",
        "settled",
    )

    def __init__(self, generation: int, begun_s: float) -> None:
        self.generation = generation
        self.begun_s = begun_s
        self.points: list[Point] = []
        self.routes: list[Route] = []
        self.messages: list[Message] = []
        self.refused: list[Refused] = []
        self.packet_ids: list[int | None] = []
        self.payload_bytes = 0
        self.settled = False

    @property
    def held_bytes(self) -> int:
        """About how much memory it takes."""
        parts_bytes = POINT_BYTES * len(self.points) + REFUSED_BYTES * len(self.refused)
        return self.payload_bytes + parts_bytes

    def receipts(self, rejected: Collection[int] = ()) -> Iterator[tuple[str, bytes]]:
        """Yield (topic, payload) of the receipts; `rejected` points, by their place, have none."""
        ledgers: defaultdict[str, _Ledger] = defaultdict(_Ledger)
        stored: defaultdict[tuple[Route, FieldValue], list[int]] = defaultdict(list)
        for place, (point, route) in enumerate(zip(self.points, self.routes, strict=True)):
            if rejected and place in rejected:
                continue
            fields = point.fields
            if route.is_readings:
                stored[route, fields["epoch"]].append(fields["seq"])  # type: ignore[arg-type]  # the pack's, a whole number
            else:
                result = str(fields["id"]), str(fields["status"])
                ledgers[route.receipts].results.append(result)
        for (route, epoch), seqs in stored.items():
            device, known = route.topic.device, ledgers[route.receipts].stored
            known += [(device, (epoch, first, last)) for first, last in ranges(seqs)]  # type: ignore[misc]  # as above
        for refused in self.refused:
            if refused.receipts and not refused.metric:
                ledgers[refused.receipts].refuse(refused)
        for topic, ledger in ledgers.items():
            for receipt in ledger.receipts():
                yield topic, encode_receipt(receipt)


class _Ledger:
    """What one gateway is told."""

    __slots__ = ("refused", "results", "stored", "unreadable")

    def __init__(self) -> None:
        self.stored: list[tuple[str, Range]] = []
        self.refused: defaultdict[tuple[str, int, str], list[int]] = defaultdict(list)
        self.unreadable: list[tuple[str, str]] = []
        self.results: list[tuple[str, str]] = []

    def refuse(self, refused: Refused) -> None:
        if refused.seq < 0:
            self.unreadable.append((refused.evidence.sha256, refused.requirement))
        else:
            key = refused.device, refused.epoch, refused.requirement
            self.refused[key].append(refused.seq)

    def receipts(self) -> Iterator[Receipt]:
        for some in _split(self.stored):
            yield Receipt(v=1, stored=_by_device(some))
        refused: list[tuple[str, RefusedRange]] = [
            (device, (epoch, first, last, requirement))
            for (device, epoch, requirement), seqs in self.refused.items()
            for first, last in ranges(seqs)
        ]
        for some_refused in _split(refused):
            yield Receipt(v=1, refused=_by_device(some_refused))
        for unreadable in _split(self.unreadable):
            yield Receipt(v=1, unreadable=unreadable)
        for results in _split(self.results):
            yield Receipt(v=1, results=results)


def _split(entries: Sequence[T]) -> Iterator[list[T]]:
    for start in range(0, len(entries), RECEIPT_ENTRIES):
        yield list(entries[start : start + RECEIPT_ENTRIES])


def _by_device(entries: Iterable[tuple[str, T]]) -> dict[str, list[T]]:
    found: defaultdict[str, list[T]] = defaultdict(list)
    for device, entry in entries:
        found[device].append(entry)
    return dict(found)
