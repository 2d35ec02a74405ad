"""The intake: messages in, batches of points out; judged by the contract, nothing waited for.

Whatever a message holds, it ends as points or as refusals. Everything that can be worked out once
for a topic is kept with its route: this runs for every message of a town.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Collection, Sequence
from typing import get_args

import msgspec

from exchange.commands import Status, decode_result
from exchange.errors import CommandError, ContractError, TopicError
from exchange.mqtt import Message
from exchange.readings import ORDINARY, Refusal, Row
from exchange.topics import PREFIX, parse_topic
from ingest.batch import Batch, Route
from ingest.hand import Hand
from ingest.quarantine import Evidence, Refused, evidence
from ingest.rate_budget import MINUTE_NS
from ingest.stores import FieldValue, Point, Series

log = logging.getLogger(__name__)

MAX_ROUTES = 200_000
MAX_REFUSED_METRICS = 100
"""Named one by one, per payload; the quarantine keeps the payload, so the others can be seen there."""
MAX_VENDOR_METRICS = 1000
"""Names that a domain takes from one start to the next: each is a column of everybody's rows, while there are rows."""
SHARES = 10
"""One gateway brings in at most this part of them: gone mad, it leaves room for its neighbours' new ones."""
AHEAD_NS = 86_400_000_000_000
"""How far ahead of our clock a time may be: a store opens files for each week or year that a row is in."""
_AHEAD = "its time is more than a day ahead of the clock of ingest"
_VENDORS = f"a domain takes {MAX_VENDOR_METRICS} vendors' metrics, {MAX_VENDOR_METRICS // SHARES} new ones of a gateway"
_OVER = "more samples than the rate budget of a device allows in a minute of its own time"
_STATUSES = get_args(Status)
_UNREAD = "it was in hand at two crashes of ingest, and was not read again"
_encode = msgspec.json.Encoder().encode


class Counts(msgspec.Struct):
    """What came in. `refused` is by kind (sample, metric or payload) and requirement."""

    messages: int = 0
    points: int = 0
    late: int = 0
    unreadable: int = 0
    refused_samples: int = 0
    refused_metrics: int = 0
    over_budget: int = 0
    discarded: int = 0
    misjudged: int = 0
    refused: dict[tuple[str, str], int] = msgspec.field(default_factory=dict)


class Intake:
    """What has arrived and is not yet being written: batches of about `max_points`, oldest first.

    Shape: at most `receive_maximum` messages of a connection are in hand, because the broker sends
        no more before they are acknowledged. `budget_per_min` is how many samples a minute of its
        own time a device may take, 0 for any number; `late_s` how old one is at arrival to count as
        late. With a `hand` messages that were in hand at a crash are noted while they are read.
    """

    def __init__(
        self,
        counties: Collection[str],
        *,
        max_points: int,
        receive_maximum: int,
        budget_per_min: int = 0,
        late_s: float = 3600.0,
        hand: Hand | None = None,
        clock_s: Callable[[], float] = time.monotonic,
        time_s: Callable[[], float] = time.time,
    ) -> None:
        self.counties = frozenset(counties)
        self.counts = Counts()
        self.batches: deque[Batch] = deque()
        self._max_points = max_points
        self._receive_maximum = receive_maximum
        self._cost_ns = MINUTE_NS // budget_per_min if budget_per_min else 0
        self._late_s = late_s
        self._hand = hand
        self._clock_s = clock_s
        self._time_s = time_s
        self._generation = 0
        self._routes: dict[str, Route] = {}
        self._vendors: defaultdict[str, set[str]] = defaultdict(set)
        self._vendor_shares: Counter[tuple[str, str]] = Counter()
        self._mistakes: set[str] = set()

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
        if self._hand is not None and any(message.duplicate for message in messages):
            self._take_with_care(messages, self._hand)
        else:
            self._take(messages)

    def _take_with_care(self, messages: Sequence[Message], hand: Hand) -> None:
        """Read those that come again one at a time, each in the hand; all in their order, as PUBACKs go."""
        others: list[Message] = []
        for message in messages:
            if not message.duplicate:
                others.append(message)
                continue
            if others:
                self._take(others)
                others = []
            if hand.takes(message):
                self._take([message])
                hand.release()
            else:
                self._refuse_unread(message)
        if others:
            self._take(others)

    def _take(self, messages: Sequence[Message]) -> None:
        batch = self._open_batch()
        max_points, routes, cost_ns = self._max_points, self._routes, self._cost_ns
        points = late = payload_bytes = 0
        now_ns = int(self._time_s() * 1e9)
        latest_ns, late_ns = now_ns + AHEAD_NS, now_ns - int(self._late_s * 1e9)
        for message in messages:
            if len(batch.packet_ids) >= max_points or len(batch.points) >= max_points:
                batch.payload_bytes += payload_bytes
                payload_bytes = 0
                batch = self._open_batch()
            batch.packet_ids.append(message.packet_id)
            topic, payload = message.topic, message.payload
            payload_bytes += len(payload)
            try:
                route = routes.get(topic) or self._route(topic)
                if not route.is_readings:
                    _take_result(batch, route, message, latest_ns)
                    points += 1
                    continue
                rows, refusals = route.rows(payload)
                if refusals is not ORDINARY:  # only then there may be vendors' metrics
                    refusals = self._check_vendors(route, rows, refusals)
                if rows:
                    last_ns = rows[-1].time_ns
                    if last_ns > latest_ns:  # time rises within a pack
                        ahead = [row for row in rows if row.time_ns > latest_ns]
                        rows, refusals = _without(rows, refusals, ahead, "EX-R-023", _AHEAD)
                    budget = route.budget
                    if last_ns >= budget.free_ns and len(rows) == 1:
                        budget.free_ns = last_ns + cost_ns
                    elif cost_ns and rows and (over := budget.excess(rows, cost_ns)):
                        self.counts.over_budget += len(over)
                        rows, refusals = _without(rows, refusals, over, "EX-R-027", _OVER)
                    points += len(rows)
                    for row in rows:
                        late += row.time_ns < late_ns
                        batch.points.append(Point(route.series, row.time_ns, row.fields))
                        batch.routes.append(route)
                        batch.messages.append(message)
                if refusals:
                    self._refuse_parts(batch, route, message, refusals)
            except ContractError as error:
                self._refuse(batch, message, error.requirement, str(error))
            except Exception as error:  # noqa: BLE001 - one message must not end the intake of a town, whatever our mistake
                self._say_mistake(error, topic)
                self._refuse(batch, message, "EX-R-001", f"{type(error).__name__}: {error}")
        batch.payload_bytes += payload_bytes
        self.counts.messages += len(messages)
        self.counts.points += points
        self.counts.late += late

    def _check_vendors(
        self, route: Route, rows: Sequence[Row], refusals: Sequence[Refusal]
    ) -> Sequence[Refusal]:
        """Take vendors' metrics beyond what a store can keep apart out of the rows; return them among the refusals."""
        domain, gateway = route.topic.domain, route.receipts
        known = self._vendors[domain]
        more: list[Refusal] = []
        for row in rows:
            fields = row.fields
            for name in [each for each in fields if each.startswith("x-") and each not in known]:
                share = self._vendor_shares[domain, gateway]
                if len(known) < MAX_VENDOR_METRICS and share < MAX_VENDOR_METRICS // SHARES:
                    known.add(name)
                    self._vendor_shares[domain, gateway] += 1
                    continue
                del fields[name]
                epoch, seq = int(fields["epoch"]), int(fields["seq"])
                more.append(Refusal("EX-R-009", _VENDORS, epoch, seq, name))
        return [*refusals, *more] if more else refusals

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
        for refusal in refusals:
            kind = "metric" if refusal.metric else "sample"
            self._count(kind, refusal.requirement, refusal.detail, message.topic)
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
        self._count("payload", requirement, detail, message.topic)
        # Who serves another county now is the one to receipt its samples (EX-D-033).
        receipts = _receipts_of(message.topic) if requirement != "EX-T-007" else ""
        batch.refused.append(Refused(_evidence(message), requirement, detail, receipts))

    def _refuse_unread(self, message: Message) -> None:
        batch = self._open_batch()
        batch.packet_ids.append(message.packet_id)
        batch.payload_bytes += len(message.payload)
        self.counts.messages += 1
        self._refuse(batch, message, "EX-R-001", _UNREAD)

    def _count(self, kind: str, requirement: str, detail: str, topic: str) -> None:
        """Count a refusal, and say the first of each kind: the quarantine holds the others."""
        counts, key = self.counts.refused, (kind, requirement)
        if key not in counts:
            log.warning(
                "the first %s refused by %s",
                kind,
                requirement,
                extra={"topic": topic[:200], "why": detail[:200]},
            )
        counts[key] = counts.get(key, 0) + 1

    def _say_mistake(self, error: Exception, topic: str) -> None:
        self.counts.misjudged += 1
        name = type(error).__name__
        if name not in self._mistakes:
            self._mistakes.add(name)
            log.error("a message could not be judged", extra={"topic": topic[:200]}, exc_info=error)

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
            self._routes.popitem()  # the latest: of more devices than that, most are still known
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
            self.counts.discarded += sum(len(batch.points) for batch in self.batches)
            self.batches.clear()


def _without(
    rows: Sequence[Row],
    refusals: Sequence[Refusal],
    refused: Sequence[Row],
    requirement: str,
    why: str,
) -> tuple[list[Row], list[Refusal]]:
    """Return the rows but for some, and these among the refusals."""
    times = {row.time_ns for row in refused}
    more = [
        Refusal(requirement, why, int(row.fields["epoch"]), int(row.fields["seq"]))
        for row in refused
    ]
    return [row for row in rows if row.time_ns not in times], [*refusals, *more]


def _take_result(batch: Batch, route: Route, message: Message, latest_ns: int) -> None:
    result = decode_result(message.payload)
    fields: dict[str, FieldValue] = {"id": str(result.id), "status": result.status}
    if result.reason:
        fields["reason"] = result.reason
    if result.readback:
        fields["readback"] = _encode(result.readback).decode()
    # Like a reading's: a resend meets its own row; of one millisecond, another command or status does not.
    offset_ns = (result.id.int + _STATUSES.index(result.status)) % 1_000_000
    time_ns = int(result.at.timestamp() * 1000) * 1_000_000 + offset_ns
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
