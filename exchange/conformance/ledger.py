"""The ledger of a gateway's deliveries as its ingest sees them: what came when, what was receipted, what came again.

Knows no connection. Units: every `…_s` is of the same monotonic clock.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from typing import NamedTuple

from exchange.conformance.judgement import Judge
from exchange.conformance.pace import Pace
from exchange.delivery import Key

EARLY = 0.8  # of a back-off: a jitter of a fifth may be meant either way
NEARLY = 0.9  # of the window: a tenth may be kept for live samples


class Again(NamedTuple):
    """A pack that came again, with the samples of it that had no receipt."""

    at_s: float
    keys: frozenset[Key]


class Break(NamedTuple):
    """The gateway had no connection."""

    from_s: float
    to_s: float


class Proof(NamedTuple):
    """What was first sent then has a receipt: what was sent before and has none was lost. Both rise."""

    first_s: float
    receipt_s: float


class Ledger:
    """One gateway's deliveries."""

    def __init__(self, judge: Judge, pace: Pace, window: int) -> None:
        """`window` is W, what the gateway says it keeps to."""
        self.held: set[Key] = set()
        """Samples that get no receipt for now."""
        self.foretold: set[Key] = set()
        """Samples that a receipt named before they were sent."""
        self.garbage_s: float | None = None
        """When the receipts went out that nobody can read."""
        self.has_backlog = False
        """Whether samples came that may have been sent before we listened."""
        self.again: list[Again] = []
        self.most = 0
        self._judge, self._pace, self._window = judge, pace, window
        self._arrivals: dict[Key, list[float]] = {}
        self._resends: dict[Key, int] = {}
        self._receipts: dict[Key, float] = {}
        self._outstanding: set[Key] = set()
        self._breaks: list[Break] = []
        self._proofs: list[Proof] = []

    # ------------------------------------------------------------------------------------------------ what happens

    def arrived(
        self, keys: Iterable[Key], at_s: float, topic: str = "", payload: bytes | None = None
    ) -> None:
        """A pack came."""
        unreceipted = set()
        for key in keys:
            arrivals = self._arrivals.setdefault(key, [])
            if arrivals:
                if key in self._receipts:
                    self._judge_receipted(key, at_s, topic, payload)
                else:
                    self._judge_backoff(key, at_s, topic, payload)
                    unreceipted.add(key)
            elif key not in self._receipts:
                self._outstanding.add(key)
            arrivals.append(at_s)
        if unreceipted:
            self.again.append(Again(at_s, frozenset(unreceipted)))
        self.most = max(self.most, len(self._outstanding))
        if len(self._outstanding) > self._window:
            words = f"{len(self._outstanding)} samples are without a receipt, W is {self._window}"
            self._judge.broken("EX-D-007", words, topic=topic)

    def receipting(self, keys: Iterable[Key]) -> None:
        """A receipt is on its way: from now on the gateway may count these as receipted."""
        self._outstanding.difference_update(keys)

    def receipted(self, keys: Iterable[Key], at_s: float) -> None:
        """The broker has the receipt."""
        for key in keys:
            self._receipts[key] = at_s
            if self._first_s(key) > self.newest_receipted_s:
                self._proofs.append(Proof(self._first_s(key), at_s))

    def broke(self, from_s: float, to_s: float) -> None:
        """The gateway's connection was broken so long."""
        self._breaks.append(Break(from_s, to_s))
        self._proofs = [one for one in self._proofs if not self._may_be_lost(one.receipt_s)]

    # ----------------------------------------------------------------------------------------------- what is known

    def unsure(self) -> set[Key]:
        """Return the samples whose receipt may have been lost when a connection broke."""
        return {key for key, at_s in self._receipts.items() if self._may_be_lost(at_s)}

    @property
    def newest_receipted_s(self) -> float:
        """When the newest sample that has a receipt was first sent."""
        return self._proofs[-1].first_s if self._proofs else 0.0

    @property
    def has_outstanding(self) -> bool:
        """Whether anything came that has no receipt."""
        return bool(self._outstanding)

    def outstanding(self) -> set[Key]:
        """Return what came and has no receipt."""
        return set(self._outstanding)

    def oldest(self) -> set[Key]:
        """Return of what came and has no receipt the pack that came first."""
        return self._pack(min(self._outstanding, key=self._first_s, default=None))

    def last_held(self) -> set[Key]:
        """Return of what is held and came again the pack that came last."""
        came = filter(self.came_again, self.held)
        return self._pack(max(came, key=self._first_s, default=None))

    def _pack(self, one: Key | None) -> set[Key]:
        """Return the samples that came with this one at first, and have no receipt."""
        return {
            key
            for key in self._outstanding
            if one is not None
            and key.device == one.device
            and self._first_s(key) == self._first_s(one)
        }

    def _first_s(self, key: Key) -> float:
        return self._arrivals[key][0]

    def came_again(self, key: Key) -> bool:
        """Whether a sample came more than once."""
        return len(self._arrivals[key]) > 1

    def due_s(self, key: Key) -> float:
        """Return when a sample must have come again at the latest; infinity while nothing proves its loss."""
        last_s = self._arrivals[key][-1]
        place = bisect_right(self._proofs, last_s, key=lambda proof: proof.first_s)
        if place == len(self._proofs):
            return float("inf")
        proven_s = self._proofs[place].receipt_s + self._pace.proof_s
        return max(self._probed_s(key), proven_s + 2 * self._pace.slack_s)

    def probed_s(self, keys: Iterable[Key], silent_s: float) -> float:
        """Return when these, the oldest, must have come again in a silence since then."""
        latest_s = silent_s + self._pace.backoff_slowest_s + 2 * self._pace.slack_s
        return max([latest_s, *map(self._probed_s, keys)])

    def _probed_s(self, key: Key) -> float:
        backoff_s = self._pace.backoff_s(len(self._arrivals[key]) - 1)
        slowest = self._pace.backoff_slowest_s / self._pace.backoff_first_s
        return self._arrivals[key][-1] + backoff_s * slowest + 2 * self._pace.slack_s

    # ------------------------------------------------------------------------------------------------- what follows

    def conclude_held(self, keys: Iterable[Key], now_s: float) -> None:
        """Judge what got no receipt: all of it must have come again by now, or not be due yet."""
        held = set(keys)
        late = {key for key in held if not self.came_again(key) and self.due_s(key) <= now_s}
        back = {key for key in held if self.came_again(key)}
        plain = late - self.foretold
        for key in sorted(plain):
            words = f"{key.device}: seq {key.seq} got no receipt for "
            words += f"{now_s - self._arrivals[key][0]:.0f} s and did not come again"
            self._judge.broken("EX-D-004", words)
        if back - self.foretold and not plain:
            self._judge.kept("EX-D-004", f"{len(back)} samples without a receipt came again")
        forgotten = late & self.foretold
        if forgotten and not plain:
            for key in sorted(forgotten):
                words = f"{key.device}: seq {key.seq}, which a receipt named before it was sent,"
                self._judge.broken("EX-D-009", f"{words} did not come again without one")
        elif back & self.foretold:
            words = f"{len(back & self.foretold)} samples came again although a receipt named"
            self._judge.kept("EX-D-009", f"{words} them before they were sent")

    def conclude_silence(self, oldest: set[Key], from_s: float, to_s: float) -> None:
        """Judge a time without any receipt: only the oldest pack may have come again, and must have."""
        came = [one for one in self.again if from_s < one.at_s <= to_s]
        silent_s = from_s + self._pace.silence_s + self._pace.slack_s  # by its own clock, too
        others = [one for one in came if not one.keys & oldest and one.at_s > silent_s]
        for one in others:
            key = min(one.keys)
            words = f"{key.device}: seq {key.seq} came again after {one.at_s - from_s:.0f} s"
            self._judge.broken("EX-D-008", f"{words} without any receipt; it is not the oldest")
        if any(one.keys & oldest for one in came):
            if not others:
                self._judge.kept("EX-D-008", "only the oldest pack came again")
        elif self._judge.is_broken("EX-D-004"):
            self._judge.apart("EX-D-008", "it sends nothing again: EX-D-004")
        elif self.has_backlog:
            self._judge.apart("EX-D-008", "its oldest pack may be from before the run")
        elif oldest and to_s >= self.probed_s(oldest, from_s):
            words = f"no receipt for {to_s - from_s:.0f} s, and the oldest pack did not come again"
            self._judge.broken("EX-D-008", words)

    def conclude(self, now_s: float) -> None:
        """Judge the whole."""
        quiet_s = self._pace.backoff_slowest_s + self._pace.slack_s
        if self._judge.is_broken("EX-D-010"):  # then it also thinks that nothing is receipted
            for requirement in ("EX-D-004", "EX-D-008", "EX-C-007"):
                self._judge.withdraw(requirement, "it takes no receipt any more: EX-D-010")
        aged = [key for key, at_s in self._receipts.items() if now_s - at_s > quiet_s]
        if aged:
            words = f"{len(aged)} samples did not come again after their receipt"
            self._judge.kept("EX-D-006", words)
            if self.garbage_s is not None and any(
                self._receipts[key] > self.garbage_s for key in aged
            ):
                words = "receipts work after some that cannot be read"
                self._judge.kept("EX-D-010", words)
        if came := self.foretold & self._arrivals.keys():
            words = f"{len(came)} samples were sent although a receipt named them before"
            self._judge.kept("EX-D-009", words)
        if any(len(arrivals) > 1 for arrivals in self._arrivals.values()):
            self._judge.kept("EX-D-005", "what came again came after its back-off")
        if self.most >= NEARLY * self._window:
            self._judge.kept("EX-D-007", f"at most {self.most} were without a receipt")
        else:
            words = f"at most {self.most} samples were without a receipt at once; to put"
            self._judge.apart("EX-D-007", f"{words} W to the test, give the gateway a small one")

    def _judge_receipted(self, key: Key, at_s: float, topic: str, payload: bytes | None) -> None:
        receipt_s = self._receipts[key]
        if at_s - receipt_s < self._pace.slack_s or self._may_be_lost(receipt_s):
            return
        words = f"{key.device}: seq {key.seq} came again {at_s - receipt_s:.1f} s after its receipt"
        requirement = "EX-D-006"
        if (
            self.garbage_s is not None
            and receipt_s > self.garbage_s
            and min(self._receipts.values()) < self.garbage_s
            and not self._judge.is_broken("EX-D-006")
        ):
            requirement = "EX-D-010"
            words += "; receipts worked until one came that cannot be read"
        self._judge.broken(requirement, words, topic=topic, payload=payload)

    def _judge_backoff(self, key: Key, at_s: float, topic: str, payload: bytes | None) -> None:
        last_s = self._arrivals[key][-1]
        if any(
            last_s - self._pace.slack_s <= one.to_s and one.from_s <= last_s + self._pace.slack_s
            for one in self._breaks
            if one.from_s <= at_s
        ):
            return  # the broker had it, but the gateway may not know
        resends = self._resends.get(key, 0)
        self._resends[key] = resends + 1
        least_s = EARLY * self._pace.backoff_s(resends)
        if at_s - last_s < least_s:
            words = f"{key.device}: seq {key.seq} came again after {at_s - last_s:.1f} s,"
            words += f" its back-off is {self._pace.backoff_s(resends):g} s"
            self._judge.broken("EX-D-005", words, topic=topic, payload=payload)

    def _may_be_lost(self, receipt_s: float) -> bool:
        return any(one.from_s - self._pace.slack_s <= receipt_s <= one.to_s for one in self._breaks)
