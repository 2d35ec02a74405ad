"""The account of a stream: where every message and every sample of it ended, by another reading than ingest's own.

The bytes go through the real connection, intake, batch and line writer; only the socket is not there. What is wrong is
an `Unaccounted`; any other exception that comes out is a crash.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import Collection
from hashlib import sha256
from random import Random
from typing import Any

import cbor2
import mqtt5

from exchange.dictionary import RESERVED
from exchange.errors import UplinkError, UplinkRefused
from exchange.mqtt import Client, Message, Settings, Subscription, _Connection
from exchange.receipts import decode_receipt
from exchange.requirements import REQUIREMENTS
from exchange.topics import parse_topic
from ingest.batch import Batch
from ingest.intake import MAX_REFUSED_METRICS, Intake
from ingest.quarantine import Refused
from ingest.stores import Point, StoreRejected
from ingest.stores.influxdb import LineWriter
from ingest.stores.sqlite import _row as sqlite_row

COUNTIES = ["tw-tpe", "tw-nwt", "tw-khh"]
NOW_S = 1_790_900_000.0  # among the times of the valid packs: some are late, some far ahead
MAX_PACKET_BYTES = 1 << 20


class Unaccounted(AssertionError):
    """Something is neither stored nor refused, or both, or told otherwise than it was."""


def check(that: object, words: str, *seen: object) -> None:
    """Raise Unaccounted unless it holds."""
    if not that:
        raise Unaccounted(": ".join([words, *(repr(each)[:300] for each in seen)]))


class Wire(asyncio.Transport):
    """A connection without a network: what was written stays here."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []
        self.is_paused = self.is_ended = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        check(not self.is_ended, "written after the end", data)
        self.written.append(bytes(data))

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Nothing is buffered."""

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.is_ended = True

    def is_closing(self) -> bool:
        return False

    def pause_reading(self) -> None:
        self.is_paused = True

    def resume_reading(self) -> None:
        self.is_paused = False


class Town:
    """One connection and what stands behind it, from its first byte to its last."""

    def __init__(self, dice: Random) -> None:
        self.received: list[Message] = []
        self.answered: list[int] = []
        self.judged = Counter[str]()
        self._lines = LineWriter()
        self._intake = Intake(
            COUNTIES,
            max_points=dice.choice([1, 50, 5000]),
            receive_maximum=100,
            budget_per_min=dice.choice([0, 1, 6]),
            time_s=lambda: NOW_S,
        )
        settings = Settings(
            host="broker", client_id="ingest", receive_maximum=3, max_packet_bytes=MAX_PACKET_BYTES
        )
        filters = [Subscription(f"city/v1/+/+/+/+/+/{each}") for each in ("readings", "results")]
        self._client = Client(settings, filters, self._take)
        self.connection = _Connection(
            settings,
            self._client._subscriptions,
            self._client._greeting,
            self._client.counts,
            self._client._up,
            on_ready=self._client._ready,
            on_messages=self._client._deliver,
        )
        self.wire = Wire()
        self.connection.connection_made(self.wire)

    def hear(self, data: bytes) -> None:
        """Take bytes from the broker and settle what came with them."""
        self.connection.data_received(data)
        batches = self._intake.batches
        while batches:
            batch = batches.popleft()
            rejected = self._rejected(batch)
            receipts = list(batch.receipts(rejected))
            check_receipts(receipts, batch, rejected)
            for topic, payload in receipts:
                self._tell(topic, payload)
            self._client.acknowledge(batch.packet_ids, self._client.generation)
            self.answered += [each for each in batch.packet_ids if each is not None]
        alive = self.connection.error is None
        check(not (alive and self.wire.is_paused), "nothing is in hand, and nothing is read")

    def end(self) -> None:
        """Let go, and check that the goodbye could be written."""
        self.connection.end(UplinkRefused("the test is over"))

    def _tell(self, topic: str, payload: bytes) -> None:
        try:
            self._client.publish_soon(topic, payload)
        except UplinkRefused as error:  # larger than this broker takes
            check(str(error), "no reason")

    def _rejected(self, batch: Batch) -> set[int]:
        """Write a batch as a store would; return the places of points that cannot be written."""
        if not batch.points:
            return set()
        for point in batch.points:
            check_row(point)
        try:
            lines = self._lines.lines(batch.points)
        except StoreRejected:
            return {at for at, point in enumerate(batch.points) if not self._writable(point)}
        check_lines(lines, batch.points)
        return set()

    def _writable(self, point: Point) -> bool:
        try:
            check_lines(self._lines.lines([point]), [point])
        except StoreRejected:
            return False
        return True

    def _take(self, messages: list[Message], generation: int) -> None:
        # One at a time, so that each message's account is its own; batches grow as they do in earnest.
        for message in messages:
            self.received.append(message)
            seen = {id(batch): (len(batch.points), len(batch.refused)) for batch in self._batches}
            before = counted(self._intake)
            self._intake.take([message], generation)
            points: list[Point] = []
            refused: list[Refused] = []
            for batch in self._batches:
                at_point, at_refused = seen.get(id(batch), (0, 0))
                check(
                    all(each is message for each in batch.messages[at_point:]), "another's points"
                )
                points += batch.points[at_point:]
                refused += batch.refused[at_refused:]
            self._settle(message, points, refused, before)

    @property
    def _batches(self) -> list[Batch]:
        return list(self._intake.batches)

    def _settle(
        self,
        message: Message,
        points: list[Point],
        refused: list[Refused],
        before: tuple[int, int, int, int],
    ) -> None:
        new = [now - then for now, then in zip(counted(self._intake), before, strict=True)]
        check(self._intake.counts.misjudged == 0, "a mistake of ours")
        digest = sha256(message.payload).hexdigest()
        for each in refused:
            self.judged[each.requirement] += 1
            check(each.requirement in REQUIREMENTS, "no such requirement", each.requirement)
            # Of a county that another ingest serves, that one tells (EX-D-033).
            told = "" if each.requirement == "EX-T-007" else receipts_of(message.topic)
            check(each.receipts == told, "another gateway's", each.receipts)
            named = each.evidence.topic, each.evidence.sha256, each.evidence.size_bytes
            check(named == (message.topic, digest, len(message.payload)), "wrong evidence", named)
        unreadable = [each for each in refused if each.seq < 0]
        samples = [each for each in refused if each.seq >= 0 and not each.metric]
        metrics = [each for each in refused if each.metric]
        if unreadable:
            check(len(refused) == 1 and not points, "refused as a whole, and more", refused, points)
            check(new == [0, 1, 0, 0], "counted otherwise", new)
            return
        check(new[:3] == [len(points), 0, len(samples)], "counted otherwise", new)
        topic = parse_topic(message.topic)
        self.judged["stored"] += len(points)
        check({each.series.device for each in points} <= {topic.device}, "another's row", points)
        check({each.device for each in refused} <= {topic.device}, "another's refusal", refused)
        if topic.channel == "results":
            check(len(points) == 1 and not refused, "a result is one row", points, refused)
            return
        names = names_in(message.payload)
        stored = [(each.fields["epoch"], each.fields["seq"]) for each in points]
        turned_away = [(each.epoch, each.seq) for each in samples]
        # A seq that a pack gives twice names two samples: the first may be stored, the second is EX-R-008.
        once = {(each.epoch, each.seq) for each in samples if each.requirement != "EX-R-008"}
        check(not set(stored) & once, "stored and refused", stored, turned_away)
        ended = len(stored) + len(turned_away)
        check(names.count("seq") == ended, "samples sent and ended", names.count("seq"), ended)
        if not samples:
            given = sum(name not in RESERVED for name in names)
            taken = sum(len(each.fields.keys() - RESERVED) for each in points)
            lost = new[3] - sum(each.metric == "quality" for each in metrics)
            if new[3] <= MAX_REFUSED_METRICS:
                check(len(metrics) == new[3], "refused and named", len(metrics), new)
                check(given == taken + lost, "metrics sent and ended", given, taken, lost)


def counted(intake: Intake) -> tuple[int, int, int, int]:
    counts = intake.counts
    return counts.points, counts.unreadable, counts.refused_samples, counts.refused_metrics


def receipts_of(topic: str) -> str:
    """Return where the gateway of a topic is told, empty when none can be."""
    found = re.fullmatch(
        r"[^/]*/[^/]*/([a-z]{2}-[a-z0-9]{1,3})/([a-z0-9][a-z0-9-]{0,47})/([a-z0-9][a-z0-9-]{0,47})(/.*)?",
        topic,
        re.DOTALL,
    )
    return "/".join(["city/v1", *found.groups()[:3], "receipts"]) if found else ""


def names_in(payload: bytes) -> list[str]:
    """Return the names of a pack's records, as the standard library or cbor2 alone reads them."""
    if payload[:1] == b"[":
        return [str(record["n"]) for record in json.loads(payload)]
    records: list[dict[int, Any]] = cbor2.loads(payload)
    return [str(record[0]) for record in records]


def check_receipts(
    receipts: list[tuple[str, bytes]], batch: Batch, rejected: Collection[int]
) -> None:
    """Check that the receipts of a batch name what became of it, to whom it came from, and nothing else."""
    told = Counter[tuple[object, ...]]()
    for to, payload in receipts:
        receipt = decode_receipt(payload)
        for device, ranges in receipt.stored.items():
            for epoch, low, high in ranges:
                check(high - low < len(batch.points), "more told than there is", low, high)
                told.update((to, device, epoch, seq) for seq in range(low, high + 1))
        for device, refused in receipt.refused.items():
            for epoch, low, high, requirement in refused:
                check(high - low < len(batch.refused), "more told than there is", low, high)
                told.update((to, device, epoch, seq, requirement) for seq in range(low, high + 1))
        told.update((to, *each) for each in (*receipt.unreadable, *receipt.results))
    wanted = set[tuple[object, ...]]()
    for place, (point, message) in enumerate(zip(batch.points, batch.messages, strict=True)):
        topic, fields = parse_topic(message.topic), point.fields
        if place not in rejected:
            is_result = topic.channel == "results"
            keys = ("id", "status") if is_result else ("epoch", "seq")
            whose = () if is_result else (topic.device,)
            wanted.add((topic.receipts, *whose, *(fields[key] for key in keys)))
    for one in batch.refused:
        if one.receipts and not one.metric:
            what = one.device, one.epoch, one.seq, one.requirement
            whole = one.evidence.sha256, one.requirement
            wanted.add((one.receipts, *(whole if one.seq < 0 else what)))
    check(set(told) == wanted, "told and to be told", set(told) ^ wanted)


def check_row(point: Point) -> None:
    """Check that SQLite would get this point, or that its store says that it cannot."""
    try:
        *series, time_ns, domain, fields = sqlite_row(point)
    except StoreRejected:
        return
    check((*series, domain, time_ns) == (*point.series, point.time_ns), "another row", point)
    check(json.loads(fields) == point.fields, "other fields", fields, point.fields)


_LINE = re.compile(
    rb"(?P<series>(?:\\.|[^ \n\\])+) (?P<fields>(?:\"(?:\\.|[^\"\\])*\"|[^ \"\n])+) (?P<time>-?\d+)(?:\n|$)",
    re.DOTALL,
)
_FIELD = re.compile(
    rb"(?P<name>[A-Za-z0-9_.-]+)=(?P<value>\"(?:\\.|[^\"\\])*\"|[^,\"]+)(?:,|$)", re.DOTALL
)


def check_lines(lines: bytes, points: list[Point]) -> None:
    """Read line protocol as its specification says and check that it is these points."""
    at = 0
    for point in points:
        line = _LINE.match(lines, at)
        if line is None:
            raise Unaccounted(f"no line at {at}: {lines[at : at + 200]!r}")
        at = line.end()
        measurement, *tags = line["series"].decode().split(",")
        series = point.series
        wanted = [f"county={series.county}", f"site={series.site}", f"device={series.device}"]
        check([measurement, *tags] == [series.measurement, *wanted], "another series", line[0])
        check(int(line["time"]) == point.time_ns, "another time", line[0], point)
        found: dict[str, float | int | str] = {}
        place = 0
        while place < len(line["fields"]):
            field = _FIELD.match(line["fields"], place)
            if field is None:
                raise Unaccounted(f"no field at {place}: {line['fields']!r}")
            found[field["name"].decode()] = _value(field["value"])
            place = field.end()
        check(found == point.fields, "other fields", found, point.fields)
        for name, value in found.items():
            kind = type(point.fields[name])
            check(type(value) is (int if kind is bool else kind), "another type", name, line[0])
    check(at == len(lines), "more than these points", lines[at:])


def _value(text: bytes) -> float | int | str:
    if text[:1] == b'"':
        return re.sub(r'\\(["\\])', r"\1", text[1:-1].decode())
    return int(text[:-1]) if text.endswith(b"i") else float(text)


def publishes(stream: bytes) -> list[tuple[int, int | None]]:
    """Return (QoS, packet id) of the whole PUBLISHes in a stream of sound MQTT."""
    found: list[tuple[int, int | None]] = []
    at = 0
    while at < len(stream):
        first, length, shift, place = stream[at], 0, 0, at + 1
        while place < len(stream):
            length |= (stream[place] & 0x7F) << shift
            place, shift = place + 1, shift + 7
            if stream[place - 1] < 0x80:
                break
        else:
            break  # cut off inside its header
        if place + length > len(stream):
            break
        if first >> 4 == 3:
            qos = first >> 1 & 3
            topic_bytes = int.from_bytes(stream[place : place + 2], "big")
            behind = place + 2 + topic_bytes
            packet_id = int.from_bytes(stream[behind : behind + 2], "big") if qos else None
            found.append((qos, packet_id))
        at = place + length
    return found


def settle(stream: bytes, cuts: int = 0) -> Counter[str]:
    """Play a stream to ingest and return how its parts ended; other `cuts` cut it elsewhere into what a socket reads.

    Call it in a running loop. Raises: Unaccounted.
    """
    digest = sha256(stream).digest()  # what is not the broker's follows from what is
    town = Town(Random(digest))
    dice = Random(f"{cuts}:{digest.hex()}")
    at = 0
    while at < len(stream) and town.connection.error is None:
        size = dice.choice([1, 5, 50, 1 << 10, 1 << 16, 1 << 20])
        town.hear(stream[at : at + size] if len(stream) < 200 else stream[at : at + max(100, size)])
        at += size if len(stream) < 200 else max(100, size)
    error = town.connection.error
    sent = [message.packet_id for message in town.received if message.packet_id is not None]
    check(town.answered == sent, "received and settled", sent, town.answered)
    if error is None:
        if town.connection.ready.done():
            asked = [packet_id for qos, packet_id in publishes(stream) if qos]
            told = acknowledged(town.wire.written)
            check(told == asked, "sent and acknowledged", asked, told)
        ending = "alive"
    else:
        check(isinstance(error, UplinkError) and str(error), "an end without a reason", error)
        acknowledged(town.wire.written)
        ending = "ended"
    town.end()
    return town.judged + Counter({ending: 1, "messages": len(town.received)})


def acknowledged(written: list[bytes]) -> list[int]:
    """Return the ids of our PUBACKs in order; everything that we wrote is sound MQTT, and a receipt is one."""
    data = b"".join(written)
    ids: list[int] = []
    at = 0
    while at < len(data):
        if data[at : at + 2] == b"\x40\x02":  # by far the most
            ids.append(int.from_bytes(data[at + 2 : at + 4], "big"))
            at += 4
            continue
        packet, size = mqtt5.read(memoryview(data)[at:])
        at += size
        if isinstance(packet, mqtt5.PublishPacket):
            check(parse_topic(packet.topic).channel == "receipts", "no receipt", packet.topic)
            decode_receipt(packet.payload)
    return ids
