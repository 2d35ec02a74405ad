"""Authorization: who wrote what, where it arrived, and which requirement says that it should not have.

A broker may acknowledge what it denies, so that only arrivals count. Every message is a marker of its own,
which no gateway, ingest or device takes for anything.
"""

from __future__ import annotations

import asyncio
import json
import re
import secrets
from collections import defaultdict
from collections.abc import Iterable

import msgspec

from exchange.conformance.credentials import Party
from exchange.conformance.judgement import Judge
from exchange.conformance.witness import Seen
from exchange.topics import Topic

_MARKER = re.compile(rb'"conformance": "([0-9a-f]{8}-[0-9]+)"')


class Sent(msgspec.Struct, frozen=True):
    """A marker that was handed to the broker. `how` is of people: published, as a will."""

    writer: Party
    topic: Topic
    how: str
    payload: bytes


class Markers:
    """Every message that was tried, and everybody to whom it came."""

    def __init__(self, judge: Judge, parties: Iterable[Party]) -> None:
        self._judge = judge
        self._parties = list(parties)
        self._run = secrets.token_hex(4)
        self.sent: dict[str, Sent] = {}
        self.arrived: defaultdict[str, dict[str, Seen]] = defaultdict(dict)
        """Marker to the names of those who got it."""
        self.news = asyncio.Event()

    def marker(self, writer: Party, topic: Topic, how: str = "published") -> Sent:
        """Return a new message, entered as sent."""
        marker = f"{self._run}-{len(self.sent)}"
        payload = json.dumps({"conformance": marker, "by": writer.name, "how": how}).encode()
        self.sent[marker] = Sent(writer, topic, how, payload)
        return self.sent[marker]

    def take(self, reader: Party, seen: Seen) -> None:
        """Note what came to a party; what is none of our markers is nobody's business."""
        found = _MARKER.search(seen.payload)
        if found and (marker := found[1].decode()) in self.sent:
            self.arrived[marker].setdefault(reader.name, seen)
            self.news.set()

    def readers(self, sent: Sent) -> list[Party]:
        """Return who must get a message that may be written."""
        return [party for party in self._parties if party.must_read(sent.topic)]

    def missing(self) -> list[tuple[Sent, Party]]:
        """Return what was rightly written and did not come to somebody who may read it."""
        return [
            (sent, reader)
            for marker, sent in self.sent.items()
            if sent.writer.may_write(sent.topic)
            for reader in self.readers(sent)
            if reader.name not in self.arrived[marker]
        ]

    def judge(self) -> None:
        """Judge all that was sent so far, and forget it: what was right is known to have come."""
        unseen: set[str] = set()
        for marker, sent in self.sent.items():
            arrived = self.arrived[marker]
            if not sent.writer.may_write(sent.topic):
                self._judge_write(sent, arrived, unseen)
            for reader in self._parties:
                if not reader.may_read(sent.topic):
                    self._judge_read(sent, reader, arrived.get(reader.name))
        if unseen:
            words = f"nobody among the parties could look whether a message arrives on {', '.join(sorted(unseen))}"
            self._judge.notes.append(words)
        self.sent.clear()
        self.arrived.clear()

    def _judge_write(self, sent: Sent, arrived: dict[str, Seen], unseen: set[str]) -> None:
        requirements = _forbids_writing(sent.writer, sent.topic)
        topic = str(sent.topic)
        if arrived:
            who = ", ".join(arrived)
            note = f"{sent.how} by the {sent.writer.name}, it arrived at the {who}"
            for requirement in requirements:
                self._judge.broken(requirement, note, topic=topic, payload=sent.payload)
            if not requirements:
                self._judge.notes.append(f"no requirement, but against the grants: {topic}: {note}")
        elif self.readers(sent):
            note = f"{sent.how} by the {sent.writer.name}, it arrived nowhere"
            for requirement in requirements:
                self._judge.kept(requirement, note, topic=topic, payload=sent.payload)
        else:
            unseen.add(topic)

    def _judge_read(self, sent: Sent, reader: Party, seen: Seen | None) -> None:
        topic = str(sent.topic)
        requirements = _forbids_reading(reader, sent.topic)
        if seen is not None:
            kept = ", retained" * seen.retain
            note = f"the {reader.name} got a message of the {sent.writer.name}{kept}"
            for requirement in requirements:
                self._judge.broken(requirement, note, topic=topic, payload=sent.payload)
            if not requirements:
                self._judge.notes.append(f"no requirement, but against the grants: {topic}: {note}")
        elif sent.writer.may_write(sent.topic):
            note = f"the {reader.name} asked for everything and did not get it"
            for requirement in requirements:
                self._judge.kept(requirement, note, topic=topic, payload=sent.payload)


def _forbids_writing(writer: Party, topic: Topic) -> list[str]:
    found = []
    if topic.county not in writer.writes_in:
        found.append("EX-A-007")
    if topic.channel == "receipts" and writer.kind != "ingest":
        found.append("EX-A-005")
    if topic.channel == "commands" and writer.kind != "application":
        found.append("EX-A-006")
    if writer.kind == "gateway":
        found.append("EX-A-003")
    return found


def _forbids_reading(reader: Party, topic: Topic) -> list[str]:
    found = []
    if topic.county not in reader.counties:
        found.append("EX-A-007")
    if reader.kind == "gateway":
        found.append("EX-A-004")
    return found
