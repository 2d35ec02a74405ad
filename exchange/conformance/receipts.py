"""Receipts: what played gateways sent, and what they were told; every receipt is judged as it comes."""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeAlias

from exchange.conformance.cases import STORED, Case, Key
from exchange.conformance.judgement import Judge
from exchange.conformance.witness import Seen
from exchange.errors import DeliveryError
from exchange.receipts import Receipt, decode_receipt

RANGE_AT_MOST = 100_000
"""Seqs that a range of a receipt may name; the kit never sends so many of a device."""
_SHOWN = 5

Name: TypeAlias = Key | str | tuple[str, str]
"""What a receipt speaks of: a sample, a payload by its digest, a result by its id and status."""


class Book:
    """What one gateway sent, how often, and what it was told of each.

    Shape: `told` holds `""` for stored, and for a result; the requirement otherwise.
    """

    def __init__(self, receipts: str) -> None:
        self.receipts = receipts
        self.branch = receipts.removesuffix("receipts")
        self.sent: Counter[Name] = Counter()
        self.told: defaultdict[Name, list[str]] = defaultdict(list)

    def enter(self, case: Case) -> None:
        """Note that a case is sent."""
        self.sent.update([*case.keys, digest(case)])
        if case.result:
            self.sent[case.result] += 1

    def unanswered(self, case: Case) -> list[Name]:
        """Return what of a case no receipt has named as often as it was sent."""
        if self._answered(digest(case)):
            return []
        names: list[Name] = [*case.keys]
        if case.result:
            names.append(case.result)
        return [name for name in names or [digest(case)] if not self._answered(name)]

    def _answered(self, name: Name) -> bool:
        return len(self.told[name]) >= self.sent[name]


class Receipts:
    """The books of all gateways that the kit plays. `news` is set by every receipt."""

    def __init__(self, judge: Judge, receipts: Iterable[str]) -> None:
        self.books = {topic: Book(topic) for topic in receipts}
        self.news = asyncio.Event()
        self._judge = judge

    def book(self, case: Case) -> Book:
        """Return the book of the gateway that sends a case."""
        return self.books["/".join([*case.topic.split("/")[:5], "receipts"])]

    def take(self, seen: Seen) -> None:
        """Judge a message that came where receipts come."""
        try:
            receipt = decode_receipt(seen.payload)
        except DeliveryError as error:
            self._judge.breach(error, topic=seen.topic, payload=seen.payload)
            return
        names, boundless = _names(receipt)
        book = self.books.get(seen.topic)
        if book is None:
            self._stray(seen, [name for name, _ in names])
            return
        judge = self._judge
        judge.kept("EX-T-001", "a receipt on its topic", topic=seen.topic, payload=seen.payload)
        for requirement, note in (
            ("EX-D-001", "a receipt of the schema's shape"),
            ("EX-D-002", "no range runs backwards"),
        ):
            judge.kept(requirement, note, topic=seen.topic, payload=seen.payload)
        if seen.qos != 1 or seen.retain:
            words = f"a receipt came with QoS {seen.qos}{', retained' * seen.retain}"
            judge.broken("EX-T-009", words, topic=seen.topic, payload=seen.payload)
        else:
            judge.kept("EX-T-009", "QoS 1, not retained", topic=seen.topic, payload=seen.payload)
        for name, becomes in names:
            book.told[name].append(becomes)
        self._check_names(seen, book, [name for name, _ in names], boundless)
        self.news.set()

    @property
    def heard(self) -> bool:
        """Whether any receipt has come."""
        return any(any(book.told.values()) for book in self.books.values())

    def unanswered(self, cases: Iterable[Case]) -> bool:
        """Whether some case still waits for its receipt."""
        return any(self.book(case).unanswered(case) for case in cases)

    def settle(self, cases: Sequence[Case], waited_s: float) -> None:
        """Judge what was told of cases, after all the time that they get."""
        for case in cases:
            book = self.book(case)
            missing = book.unanswered(case)
            if missing:
                words = ", ".join(map(_shown, missing[:_SHOWN]))
                more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
                note = f"{case.what}: no receipt within {waited_s:g} s for {words}{more}"
                faults = [("EX-D-020", note), *((one, note) for one in _proven(case))]
            else:
                faults = list(_misjudged(book, case))
            for requirement, note in faults:
                self._judge.broken(requirement, note, topic=case.topic, payload=case.payload[:4000])
            if not faults:
                for requirement in ("EX-D-020", *_proven(case)):
                    self._judge.kept(
                        requirement, case.what, topic=case.topic, payload=case.payload[:4000]
                    )

    def close(self) -> None:
        """Judge, when nothing more is to come, whether anything was told more often than it was sent."""
        for book in self.books.values():
            for name, told in book.told.items():
                if len(told) > book.sent[name] > 0:
                    note = f"{_shown(name)} was sent {book.sent[name]} times and receipted {len(told)} times"
                    self._judge.broken("EX-D-033", note, topic=book.receipts)
                elif told:
                    note = "nothing was receipted more often than it was sent"
                    self._judge.kept("EX-D-033", note, topic=book.receipts)

    def _stray(self, seen: Seen, names: list[Name]) -> None:
        """Judge a receipt that came elsewhere than where receipts of our gateways come."""
        if any(seen.topic.startswith(book.branch) for book in self.books.values()):
            words = "a receipt below the gateway's branch, not on …/{gateway}/receipts"
            self._judge.broken("EX-T-001", words, topic=seen.topic, payload=seen.payload)
        elif any(book.sent[name] for book in self.books.values() for name in names):
            words = "a gateway was told of samples that another had sent"
            self._judge.broken("EX-D-022", words, topic=seen.topic, payload=seen.payload)

    def _check_names(self, seen: Seen, book: Book, names: list[Name], boundless: list[str]) -> None:
        others = [one for one in self.books.values() if one is not book]
        unknown = [name for name in names if not book.sent[name]]
        foreign = [name for name in unknown if any(one.sent[name] for one in others)]
        invented = boundless + [_shown(name) for name in unknown if name not in foreign]
        for requirement, found, fault, well in (
            (
                "EX-D-022",
                [_shown(name) for name in foreign],
                "another gateway sent",
                "to the gateway of the topic",
            ),
            ("EX-D-023", invented, "nobody sent", "names only what came"),
        ):
            if found:
                words = f"names what {fault}: {', '.join(found[:_SHOWN])}"
                self._judge.broken(requirement, words, topic=seen.topic, payload=seen.payload)
            elif names:
                self._judge.kept(requirement, well, topic=seen.topic, payload=seen.payload)


def digest(case: Case) -> str:
    """Return how a receipt names an unreadable payload."""
    return hashlib.sha256(case.payload).hexdigest()


def _proven(case: Case) -> Iterator[str]:
    yield from case.proves
    if case.unreadable:
        yield "EX-D-027"


def _misjudged(book: Book, case: Case) -> Iterator[tuple[str, str]]:
    """Yield what is wrong with the answers to a case: requirement, words."""
    by_digest = book.told[digest(case)]
    if by_digest and by_digest[-1] == case.unreadable:
        return
    if by_digest:
        right = f"it breaks {case.unreadable}" if case.unreadable else "nothing is wrong with it"
        note = f"{case.what}: called unreadable by {by_digest[-1]}, {right}"
        yield from ((one, note) for one in {"EX-D-027", *case.proves})
        return
    for key, wanted in case.keys.items():
        became = book.told[key][-1]
        if became == wanted:
            continue
        if wanted == STORED:
            note = f"{case.what}: {_shown(key)} was refused by {became}, nothing is wrong with it"
            yield from ((one, note) for one in {"EX-D-026", *case.proves})
        else:
            became = f"refused by {became}" if became else "stored"
            yield "EX-D-026", f"{case.what}: {_shown(key)} was {became}, it breaks {wanted}"


def _names(receipt: Receipt) -> tuple[list[tuple[Name, str]], list[str]]:
    """Return what a receipt names, with what became of it; and its ranges that are too long to be meant."""
    names: list[tuple[Name, str]] = []
    boundless = []
    ranged = [
        *((device, *one, STORED) for device, ranges in receipt.stored.items() for one in ranges),
        *((device, *one) for device, refused in receipt.refused.items() for one in refused),
    ]
    for device, epoch, first, last, becomes in ranged:
        if last - first > RANGE_AT_MOST:
            boundless.append(f"{device} epoch {epoch} seq {first}…{last}")
            continue
        names += [((device, epoch, seq), becomes) for seq in range(first, last + 1)]
    names += receipt.unreadable
    names += [(result, "") for result in receipt.results]
    return names, boundless


def _shown(name: Name) -> str:
    if isinstance(name, str):
        return f"the payload {name[:12]}…"
    if len(name) == 2:
        return f"the result {name[0]} {name[1]}"
    return f"{name[0]} epoch {name[1]} seq {name[2]}"
