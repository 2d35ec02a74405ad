"""The intake: messages in, batches of points out; judged by the contract, nothing waited for.

Whatever a message holds, it ends as points or as refusals. Everything that can be worked out once
for a topic is kept with its route: this runs for every message of a town.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence

import msgspec

from exchange.commands import decode_result
from exchange.errors import CommandError, ContractError, TopicError
from exchange.mqtt import Message
from exchange.readings import Refusal, Row
from exchange.topics import PREFIX, parse_topic
from ingest.batch import Batch, Route
from ingest.quarantine import Evidence, Refused, evidence
from ingest.stores import FieldValue, Point, Series

log = logging.getLogger(__name__)

MAX_ROUTES = 200_000
MAX_REFUSED_METRICS = 100
"""Named one by one, per payload; the quarantine keeps the payload, so the others can be seen there."""
AHEAD_S = 86_400
"""How far ahead of our clock a time may be: a store opens files for each week or year that a row is in."""
_AHEAD = "its time is more than a day ahead of the clock of ingest"
_encode = msgspec.json.Encoder().encode


class Counts(msgspec.Struct):
    """What came in."""

    messages: int = 0
    points: int = 0
    unreadable: int = 0
    refused_samples: int = 0
    refused_metrics: int = 0


class Intake:
    """What has arrived and is not yet being written: batches of about `max_points`, oldest first.

    Shape: at most `receive_maximum` messages of a connection are in hand, because the broker sends
        no more before they are acknowledged.
    """

    def __init__(
        self,
        counties: Collection[str],
        *,
        max_points: int,
        receive_maximum: int,
        clock_s: Callable[[], float] = time.monotonic,
        time_s: Callable[[], float] = time.time,
    ) -> None:
        self.counties = frozenset(counties)
        self.counts = Counts()
        self.batches: deque[Batch] = deque()
        self._max_points = max_points
        self._receive_maximum = receive_maximum
        self._clock_s = clock_s
        self._time_s = time_s
        self._generation = 0
        self._routes: dict[str, Route] = {}

    @property
    def full(self) -> bool:
        """Whether there is a whole batch, or all that the broker sends ahead of PUBACKs."""
        batches = self.batches
        return len(batches) > 1 or (
            len(batches) == 1
            and (
                len(batches[0].points) >= self._max_points
                or len(batches[0].packet_ids) >= min(self._max_points, self._receive_maximum)
            )
        )

    def take(self, messages: Sequence[Message], generation: int) -> None:
        """Judge messages and put them into batches."""
        if generation != self._generation:
            self._reconnected(generation)
        batch = self._open_batch()
        max_points, routes = self._max_points, self._routes
        points = 0
        latest_ns = int((self._time_s() + AHEAD_S) * 1e9)
        for message in messages:
            if len(batch.packet_ids) >= max_points or len(batch.points) >= max_points:
                batch = self._open_batch()
            batch.packet_ids.append(message.packet_id)
            topic = message.topic
            try:
                route = routes.get(topic) or self._route(topic)
                if not route.is_readings:
                    _take_result(batch, route, message, latest_ns)
                    continue
                rows, refusals = route.rows(message.payload)
                if rows and rows[-1].time_ns > latest_ns:  # time rises within a pack
                    rows, refusals = _without_future(rows, refusals, latest_ns)
                points += len(rows)
                for row in rows:
                    batch.points.append(Point(route.series, row.time_ns, row.fields))
                    batch.routes.append(route)
                    batch.messages.append(message)
                if refusals:
                    self._refuse_parts(batch, route, message, refusals)
            except ContractError as error:
                self._refuse(batch, message, error.requirement, str(error))
            except Exception as error:
                # One message must not end the intake of a town, whatever our own mistake is.
                log.exception("a message could not be judged", extra={"topic": topic})
                self._refuse(batch, message, "EX-R-001", f"{type(error).__name__}: {error}")
        self.counts.messages += len(messages)
        self.counts.points += points

    def _refuse_parts(
        self, batch: Batch, route: Route, message: Message, refusals: Sequence[Refusal]
    ) -> None:
        """Note what was refused of a pack whose other samples are taken.

        A pack may hold tens of thousands of unknown metrics: noted one by one they would cost
        everybody's time and memory.
        """
        seen = _evidence(message)
        samples = [refusal for refusal in refusals if not refusal.metric]
        metrics = [refusal for refusal in refusals if refusal.metric]
        self.counts.refused_samples += len(samples)
        self.counts.refused_metrics += len(metrics)
        if len(metrics) > MAX_REFUSED_METRICS:
            first = metrics[MAX_REFUSED_METRICS]
            words = f"and {len(metrics) - MAX_REFUSED_METRICS} more metrics: {first.detail}"
            rest = msgspec.structs.replace(first, detail=words)
            metrics = [*metrics[:MAX_REFUSED_METRICS], rest]
        for refusal in (*samples, *metrics):
            batch.refused.append(
                Refused(
                    seen,
                    refusal.requirement,
                    refusal.detail,
                    route.receipts,
                    route.topic.county,
                    route.topic.device,
                    refusal.epoch,
                    refusal.seq,
                    refusal.metric,
                )
            )

    def _refuse(self, batch: Batch, message: Message, requirement: str, detail: str) -> None:
        self.counts.unreadable += 1
        if self.counts.unreadable == 1:
            log.warning("refused: %s", detail, extra={"topic": message.topic})
        receipts = _receipts_of(message.topic)
        batch.refused.append(Refused(_evidence(message), requirement, detail, receipts))

    def _route(self, text: str) -> Route:
        topic = parse_topic(text)
        if topic.county not in self.counties:
            served = ", ".join(sorted(self.counties))
            raise TopicError("EX-T-007", f"county {topic.county!r} is not of {served}", place=text)
        if topic.channel not in ("readings", "results"):
            raise TopicError("EX-T-005", f"{topic.channel!r} is not taken in", place=text)
        measurement = "command" if topic.channel == "results" else topic.domain
        series = Series(measurement, topic.county, topic.site, topic.device)
        route = Route(topic, series)
        if len(self._routes) >= MAX_ROUTES:
            self._routes.clear()
        self._routes[text] = route
        return route

    def _open_batch(self) -> Batch:
        """Return the newest batch; a new one when it is full or of an earlier connection."""
        if self.batches:
            newest = self.batches[-1]
            filled = max(len(newest.points), len(newest.packet_ids))
            if filled < self._max_points and newest.generation == self._generation:
                return newest
        self.batches.append(Batch(self._generation, self._clock_s()))
        return self.batches[-1]

    def _reconnected(self, generation: int) -> None:
        """What an earlier connection brought cannot be acknowledged any more, and comes again.

        It is written all the same, so that its gateways need not resend, but not without a bound.
        """
        self._generation = generation
        if sum(len(batch.packet_ids) for batch in self.batches) >= self._receive_maximum:
            self.batches.clear()


def _without_future(
    rows: Sequence[Row], refusals: Sequence[Refusal], latest_ns: int
) -> tuple[list[Row], list[Refusal]]:
    """Return the rows that are not ahead of our clock, and the others among the refusals."""
    ahead = [
        Refusal("EX-R-023", _AHEAD, int(row.fields["epoch"]), int(row.fields["seq"]))
        for row in rows
        if row.time_ns > latest_ns
    ]
    return [row for row in rows if row.time_ns <= latest_ns], [*refusals, *ahead]


def _take_result(batch: Batch, route: Route, message: Message, latest_ns: int) -> None:
    result = decode_result(message.payload)
    fields: dict[str, FieldValue] = {"id": str(result.id), "status": result.status}
    if result.reason:
        fields["reason"] = result.reason
    if result.readback:
        fields["readback"] = _encode(result.readback).decode()
    # Like a reading's: a resend meets its own row, two commands of one millisecond do not.
    time_ns = int(result.at.timestamp() * 1000) * 1_000_000 + result.id.int % 1_000_000
    if time_ns > latest_ns:
        raise CommandError("EX-C-003", f"at: {_AHEAD}")
    batch.points.append(Point(route.series, time_ns, fields))
    batch.routes.append(route)
    batch.messages.append(message)


def _evidence(message: Message) -> Evidence:
    return evidence(message.topic, message.payload, time.time_ns() // 1_000_000)


def _receipts_of(topic: str) -> str:
    """Return where the gateway of a topic gets its receipts, empty when none is named."""
    levels = topic.split("/")
    try:
        return parse_topic("/".join([PREFIX, *levels[2:5], "receipts"])).receipts
    except TopicError:
        return ""
