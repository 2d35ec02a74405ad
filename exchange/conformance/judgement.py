"""Judgement: what was seen of each requirement, until it is a report.

Nothing passes unseen: a requirement that was never put to the test ends as not applicable, with the reason.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal, TypeAlias

import msgspec

from exchange.errors import ContractError
from exchange.requirements import REQUIREMENTS, Party, binding

Outcome: TypeAlias = Literal["passed", "failed", "not applicable", "declared"]

EVIDENCE_KEPT = 5  # of each requirement; the first breaches say it all
SHOWN_BYTES = 2000
_SPACES = {ord(space): " " for space in "\t\r\n"}


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """One thing seen. `payload` is readable text: JSON as it was, anything else in hex, cut at 2,000 bytes."""

    at: datetime
    note: str
    topic: str = ""
    payload: str = ""


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one requirement. `seen` counts the observations behind it."""

    requirement: str
    text: str
    outcome: Outcome
    reason: str
    seen: int = 0
    evidence: list[Evidence] = []


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What a run found. `subject` says who was judged: `tw-tpe/gw-1/aq-7`, a broker's address."""

    role: Party
    subject: str
    begun: datetime
    seconds: float
    verdicts: list[Verdict]
    notes: list[str] = []

    @property
    def failed(self) -> list[Verdict]:
        """The verdicts that make the run fail."""
        return [one for one in self.verdicts if one.outcome == "failed"]


class Judge:
    """Collects what is seen of the requirements that bind a party.

    Raises: KeyError for a requirement that does not bind it, so that no check reports into the void.
    """

    def __init__(self, role: Party, subject: str) -> None:
        self.role, self.subject = role, subject
        self._begun = datetime.now(UTC)
        self._required = binding(role)
        self._kept: dict[str, int] = dict.fromkeys(self._required, 0)
        self._broken: dict[str, list[Evidence]] = {}
        self._breaches: dict[str, int] = {}
        self._shown: dict[str, Evidence] = {}
        self._apart: dict[str, str] = {}
        self.notes: list[str] = []

    def binds(self, requirement: str) -> bool:
        """Whether a requirement binds the party that is judged."""
        return requirement in self._required

    def is_broken(self, requirement: str) -> bool:
        """Whether a requirement was seen broken."""
        return requirement in self._broken

    def kept(
        self, requirement: str, note: str, *, topic: str = "", payload: bytes | None = None
    ) -> None:
        """A requirement was put to the test and held; the first observation is kept as evidence."""
        self._kept[requirement] += 1
        if requirement not in self._shown:
            self._shown[requirement] = evidence(note, topic, payload)

    def broken(
        self, requirement: str, note: str, *, topic: str = "", payload: bytes | None = None
    ) -> None:
        """A requirement was broken."""
        self._kept[requirement] += 0  # a KeyError for one that does not bind
        self._breaches[requirement] = self._breaches.get(requirement, 0) + 1
        found = self._broken.setdefault(requirement, [])
        if len(found) < EVIDENCE_KEPT:
            found.append(evidence(note, topic, payload))

    def breach(
        self, error: ContractError, *, topic: str = "", payload: bytes | None = None
    ) -> None:
        """A decoder found a breach; one that binds somebody else is only noted."""
        if error.requirement in self._required:
            self.broken(error.requirement, str(error), topic=topic, payload=payload)
        elif len(self.notes) < EVIDENCE_KEPT:
            self.notes.append(f"{topic}: {error}")

    def apart(self, requirement: str, reason: str) -> None:
        """Say why a requirement does not apply, or could not be put to the test, in this run."""
        self._kept[requirement] += 0
        self._apart[requirement] = reason

    def withdraw(self, requirement: str, reason: str) -> None:
        """Take back what was judged of a requirement: something else spoiled the run."""
        self.apart(requirement, reason)
        self._kept[requirement] = 0
        self._broken.pop(requirement, None)

    def report(self) -> Report:
        """Return a verdict on every requirement that binds the party."""
        seconds = (datetime.now(UTC) - self._begun).total_seconds()
        return Report(
            role=self.role,
            subject=self.subject,
            begun=self._begun,
            seconds=round(seconds, 1),
            verdicts=[self._verdict(name) for name in self._required],
            notes=self.notes,
        )

    def _verdict(self, name: str) -> Verdict:
        outcome: Outcome
        proof: list[Evidence] = []
        seen = self._kept[name]
        if name in self._broken:
            outcome, proof = "failed", self._broken[name]
            seen += self._breaches[name]
            reason = f"broken {self._breaches[name]} of {seen} times"
        elif REQUIREMENTS[name].shown == "declared":
            outcome, reason = "declared", "no black box shows this: the party declares it"
        elif seen:
            outcome, proof = "passed", [self._shown[name]]
            reason = f"seen {seen} times" if seen > 1 else "seen once"
        else:
            outcome = "not applicable"
            reason = self._apart.get(name, "nothing that it speaks of was seen")
        text = REQUIREMENTS[name].text
        return Verdict(
            requirement=name, text=text, outcome=outcome, reason=reason, seen=seen, evidence=proof
        )


def evidence(note: str, topic: str = "", payload: bytes | None = None) -> Evidence:
    """Return what was seen just now."""
    return Evidence(at=datetime.now(UTC), note=note, topic=topic, payload=_readable(payload or b""))


def _readable(payload: bytes) -> str:
    cut = payload[:SHOWN_BYTES]
    more = f" … ({len(payload)} bytes)" if len(payload) > SHOWN_BYTES else ""
    try:
        text = cut.decode("utf-8", "strict" if not more else "ignore")
    except UnicodeDecodeError:
        return cut.hex() + more
    shown = text.translate(_SPACES).isprintable()
    return (text if shown else cut.hex()) + more
