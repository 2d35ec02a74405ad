"""Delivery: which samples a gateway may send, sends again, and may forget.

A pure state machine driven by the caller's clock: it holds no sample, opens no socket and never waits. The edge agent
runs it; the model test plays brokers that lose everything, ingests that die and receipts that vanish against it.

Rules (exchange.md, Delivery): at most W samples are unreceipted. A pack goes again when its back-off has passed and a
receipt for something first sent later is 10 s old: only then is it known to be lost rather than waiting. With no
receipt at all only the oldest pack is probed. After 20 counted resends a pack is parked outside the window.

What waits in a queue before a live sample is everybody's backlog: so the backlog's part of the window is no larger than
keeps the way to the receipt about as short as it is without one (as LEDBAT does it, RFC 6817).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from random import Random
from typing import Literal, NamedTuple

import msgspec

from exchange.receipts import Receipt

BACKOFF_FIRST_S = 30.0
BACKOFF_LAST_S = 600.0
BACKOFF_JITTER = 0.2
PROOF_AGE_S = 10.0
SILENCE_S = 30.0
NUDGE_EVERY_S = 600.0
PARK_AFTER_RESENDS = 20
PARKED_EVERY_S = 3600.0
_BACKLOG_DELAY_S = 0.1
"""How much longer than the shortest way of late a way may be before the backlog gives in."""
_BACKLOG_FIRST = 100
_BACKLOG_LEAST = 40
_BACKLOG_GROWS = 0.1
_BACKLOG_SHRINKS = 0.7
_SHORTEST_WAY_OF_S = 600.0
MERGED_SAMPLES = 200  # of one series in one resend: well below a pack's 256 KiB


class Key(NamedTuple):
    """The name of a sample, for ever."""

    device: str
    epoch: int
    seq: int


class Settled(NamedTuple):
    """A sample that the gateway may forget, and why. `requirement` is the id it was refused with."""

    key: Key
    outcome: Literal["stored", "refused"]
    requirement: str = ""


class Sending(msgspec.Struct, eq=False):
    """One pack between its first sending and the last of its receipts."""

    number: int
    device: str
    epoch: int
    seqs: set[int]
    first_sent_s: float
    last_sent_s: float
    wait_s: float
    digests: list[str]
    resends: int = 0
    tries: int = 0
    parked: bool = False
    undelivered: bool = False
    """The connection broke before the broker had it: goes again at once, uncounted."""

    @property
    def keys(self) -> list[Key]:
        """The samples still without a receipt, ascending."""
        return [Key(self.device, self.epoch, seq) for seq in sorted(self.seqs)]


class Delivery:
    """The delivery rules for one gateway. Units: every `now_s` is the same monotonic clock."""

    def __init__(
        self, *, window: int = 5000, live_reserve: int | None = None, random: Random | None = None
    ) -> None:
        """`live_reserve` samples of the window are kept for live ones (default a tenth)."""
        self.resize(window, live_reserve)
        self.unreceipted = 0
        self.parked = 0
        """Samples that wait outside the window; at most as many as the window holds."""
        self.released = 0
        """Samples that were parked longest and are let go of: to whoever asks, they were never sent."""
        self.resends = 0
        self.probes = 0
        self.round_trip_s: float | None = None
        """From the first sending of the pack that was receipted last to its receipt."""
        self._random = random or Random()  # noqa: S311 - jitter, not a secret
        self._sendings: dict[int, Sending] = {}
        self._by_series: dict[tuple[str, int], dict[int, Sending]] = {}
        self._by_digest: dict[str, tuple[Sending, frozenset[int] | None]] = {}
        """With the seqs in the payload where it held a part only."""
        self._numbers = 0
        self._connected = False
        self._last_receipt_s = float("-inf")
        self._proofs: deque[tuple[float, float]] = (
            deque()
        )  # (receipt came, its sample was first sent), both rising
        self._proven_s = float("-inf")  # something first sent then has a receipt that is old enough
        self._nudged_s = float("-inf")
        self._parked_s = float("-inf")
        self._backlog_window = float(_BACKLOG_FIRST)
        self._backlog_waits = False  # for room, so that more of it would have been used
        self._shrunk_s = float("-inf")
        self._way_s: float | None = (
            None  # of what the last receipt was for, unless it was sent again
        )
        self._ways: deque[tuple[float, float]] = deque()  # (when, how long), both rising

    def resize(self, window: int, live_reserve: int | None = None) -> None:
        """Go on with another window; what is out beyond it stays out."""
        self.window = window
        self.live_reserve = window // 10 if live_reserve is None else live_reserve

    # ------------------------------------------------------------------------------------------------ connection

    def connected(self) -> None:
        """The broker is there: parked packs get another chance."""
        self._connected = True
        for sending in self._sendings.values():
            if sending.parked:
                sending.undelivered = True

    def disconnected(self) -> None:
        """The broker is gone: nothing is due until it is back."""
        self._connected = False

    # --------------------------------------------------------------------------------------------------- sending

    def room(self, *, live: bool, pack: int = 1) -> int:
        """Return how many further samples may be sent now.

        For less than a `pack` of the backlog, or a quarter of its share, there is no room yet: small packs cost as
        much as large ones.
        """
        if live:
            return max(0, self.window - self.unreceipted)
        limit = min(self.window - self.live_reserve, int(self._backlog_window))
        room = limit - self.unreceipted
        self._backlog_waits = room < max(1, min(pack, limit // 4))
        return 0 if self._backlog_waits else room

    def holds(self, device: str, epoch: int, seq: int) -> bool:
        """Whether a sample was sent and waits for its receipt."""
        return seq in self._by_series.get((device, epoch), ())

    def is_silent(self, now_s: float) -> bool:
        """Whether no receipt at all has come for so long that the ingest is taken to be down."""
        return now_s - self._last_receipt_s >= SILENCE_S

    def sent(
        self, now_s: float, device: str, epoch: int, seqs: Iterable[int], digest: str
    ) -> Sending:
        """Note a pack's first sending, before the broker is given it; `digest` is its payload's SHA-256."""
        self._numbers += 1
        sending = Sending(
            self._numbers,
            device,
            epoch,
            set(seqs),
            now_s,
            now_s,
            self._jittered(BACKOFF_FIRST_S),
            [digest],
        )
        self._sendings[sending.number] = sending
        series = self._by_series.setdefault((device, epoch), {})
        series.update(dict.fromkeys(sending.seqs, sending))
        self._by_digest[digest] = sending, None
        self.unreceipted += len(sending.seqs)
        return sending

    def sent_again(
        self, now_s: float, sending: Sending, digest: str, part: Iterable[int] | None = None
    ) -> None:
        """Note that a due pack was sent again; its payload may hold fewer samples now, or a `part` of them."""
        sending.last_sent_s = now_s
        sending.undelivered = False
        if digest not in sending.digests:
            sending.digests.append(digest)
            self._by_digest[digest] = sending, None if part is None else frozenset(part)
            if len(sending.digests) > PARK_AFTER_RESENDS:
                self._by_digest.pop(sending.digests.pop(0), None)

    def failed(self, sending: Sending) -> None:
        """Note that the connection broke before the broker acknowledged this sending."""
        sending.undelivered = True

    def gone(self, keys: Iterable[Key]) -> None:
        """Note that the outbox has let go of these, by its own policy: they wait for no receipt any more."""
        for key in keys:
            self._let_go(key)

    def due(self, now_s: float) -> list[Sending]:
        """Return the packs to send again now, the longest-waiting first, and charge them for it."""
        if not self._connected:
            return []
        while self._proofs and self._proofs[0][0] <= now_s - PROOF_AGE_S:
            self._proven_s = self._proofs.popleft()[1]
        due = [s for s in self._sendings.values() if s.undelivered]
        oldest = next(
            (s for s in self._sendings.values() if not s.parked and not s.undelivered), None
        )
        if oldest is None:
            pass
        elif now_s - max(self._last_receipt_s, oldest.first_sent_s) >= SILENCE_S:
            if now_s - oldest.last_sent_s >= oldest.wait_s:
                self.probes += 1
                self._back_off(oldest)
                due.append(oldest)
        else:
            due += self._lost(now_s)
        due += self._parked_due(now_s)
        return sorted(due, key=lambda s: s.last_sent_s)

    def _lost(self, now_s: float) -> list[Sending]:
        """Return the packs that are known to be lost, joined by series and charged."""
        late = [
            s
            for s in self._sendings.values()
            if now_s - s.last_sent_s >= s.wait_s and not s.parked and not s.undelivered
        ]
        proven = [s for s in late if s.last_sent_s < self._proven_s] or self._nudged(now_s, late)
        again = self._merged(proven)
        for sending in again:
            self._count_resend(sending)
        return [s for s in again if not s.parked]

    def _nudged(self, now_s: float, late: Sequence[Sending]) -> list[Sending]:
        """Receipts flow, but none that could prove a loss: the longest-waiting pack goes every ten minutes."""
        if not late or now_s - self._nudged_s < NUDGE_EVERY_S:
            return []
        longest = min(late, key=lambda s: s.last_sent_s)
        if now_s - longest.last_sent_s < NUDGE_EVERY_S:
            return []
        self._nudged_s = now_s
        return [longest]

    def _merged(self, lost: Sequence[Sending]) -> list[Sending]:
        """Join the lost packs of one series, so that a broker that lost thousands costs tens of resends."""
        merged: dict[tuple[str, int], Sending] = {}
        whole: list[Sending] = []
        for sending in lost:
            into = merged.get((sending.device, sending.epoch))
            if into is None or len(into.seqs) + len(sending.seqs) > MERGED_SAMPLES:
                merged[sending.device, sending.epoch] = sending
                whole.append(sending)
                continue
            series = self._by_series[sending.device, sending.epoch]
            series.update(dict.fromkeys(sending.seqs, into))
            into.seqs |= sending.seqs
            into.resends = max(into.resends, sending.resends)
            into.tries = max(into.tries, sending.tries)
            into.first_sent_s = min(into.first_sent_s, sending.first_sent_s)
            # what its earlier payloads are called names fewer samples than it holds now
            self._forget_digests(into)
            self._forget(sending)
        return whole

    def _parked_due(self, now_s: float) -> list[Sending]:
        parked = [s for s in self._sendings.values() if s.parked and not s.undelivered]
        if not parked or now_s - self._parked_s < PARKED_EVERY_S:
            return []
        self._parked_s = now_s
        return [min(parked, key=lambda s: s.last_sent_s)]

    def _count_resend(self, sending: Sending) -> None:
        if sending.resends >= PARK_AFTER_RESENDS:
            sending.parked = True
            self.unreceipted -= len(sending.seqs)
            self.parked += len(sending.seqs)
            self._release()
            return
        sending.resends += 1
        self.resends += 1
        self._back_off(sending)

    def _release(self) -> None:
        """Let go of what was parked longest, so that what nobody receipts does not fill the memory."""
        while self.parked > self.window:
            oldest = min(
                (s for s in self._sendings.values() if s.parked), key=lambda s: s.last_sent_s
            )
            self.released += len(oldest.seqs)
            self.gone(oldest.keys)

    def _back_off(self, sending: Sending) -> None:
        sending.tries += 1
        sending.wait_s = self._jittered(min(BACKOFF_LAST_S, BACKOFF_FIRST_S * 2**sending.tries))

    def _jittered(self, wait_s: float) -> float:
        return wait_s * (1 + BACKOFF_JITTER * self._random.random())

    # -------------------------------------------------------------------------------------------------- receipts

    def receipted(self, now_s: float, receipt: Receipt) -> list[Settled]:
        """Take a receipt and return the samples that may be forgotten. Only what was sent is ever forgotten."""
        settled: list[Settled] = []
        self._way_s = None
        for device, stored in receipt.stored.items():
            for epoch, first, last in stored:
                settled += [
                    Settled(key, "stored")
                    for key in self._settle(now_s, device, epoch, first, last)
                ]
        for device, refused in receipt.refused.items():
            for epoch, first, last, requirement in refused:
                settled += [
                    Settled(key, "refused", requirement)
                    for key in self._settle(now_s, device, epoch, first, last)
                ]
        for digest, requirement in receipt.unreadable:
            sending, part = self._by_digest.get(digest, (None, None))
            if sending is not None:
                keys = [key for key in sending.keys if part is None or key.seq in part]
                for key in keys:
                    self._settle(now_s, key.device, key.epoch, key.seq, key.seq)
                settled += [Settled(key, "refused", requirement) for key in keys]
        if self._way_s is not None:
            self._fit_backlog(now_s, self._way_s, len(settled))
        return settled

    def _fit_backlog(self, now_s: float, way_s: float, receipted: int) -> None:
        """Let the backlog have less when the way has become long, else a little more."""
        while self._ways and self._ways[-1][1] >= way_s:
            self._ways.pop()
        self._ways.append((now_s, way_s))
        while self._ways[0][0] < now_s - _SHORTEST_WAY_OF_S:
            self._ways.popleft()
        if way_s - self._ways[0][1] > _BACKLOG_DELAY_S:
            if now_s - self._shrunk_s >= way_s:  # once for what was on its way
                self._backlog_window = max(_BACKLOG_LEAST, self._backlog_window * _BACKLOG_SHRINKS)
                self._shrunk_s = now_s
        elif self._backlog_waits:
            share = _BACKLOG_GROWS if self._shrunk_s > float("-inf") else 1.0
            grown = self._backlog_window + share * receipted
            self._backlog_window = min(float(self.window), grown)

    def _settle(self, now_s: float, device: str, epoch: int, first: int, last: int) -> list[Key]:
        series = self._by_series.get((device, epoch))
        if not series:
            return []
        if last - first < len(series):
            seqs = [seq for seq in range(first, last + 1) if seq in series]
        else:
            seqs = [seq for seq in series if first <= seq <= last]
        for seq in seqs:
            sending = self._let_go(Key(device, epoch, seq))
            if sending is None:
                continue
            self._last_receipt_s = now_s
            self.round_trip_s = now_s - sending.first_sent_s
            if not sending.tries:
                self._way_s = now_s - sending.last_sent_s
            newest = self._proofs[-1][1] if self._proofs else self._proven_s
            if sending.first_sent_s > newest:
                self._proofs.append((now_s, sending.first_sent_s))
        return [Key(device, epoch, seq) for seq in sorted(seqs)]

    def _let_go(self, key: Key) -> Sending | None:
        """Take a sample out of the pack that it is in; one without samples is over."""
        series = self._by_series.get((key.device, key.epoch), {})
        sending = series.pop(key.seq, None)
        if sending is None:
            return None
        sending.seqs.discard(key.seq)
        if sending.parked:
            self.parked -= 1
        else:
            self.unreceipted -= 1
        if not sending.seqs:
            self._forget(sending)
        if not series:
            del self._by_series[key.device, key.epoch]
        return sending

    def _forget(self, sending: Sending) -> None:
        del self._sendings[sending.number]
        self._forget_digests(sending)

    def _forget_digests(self, sending: Sending) -> None:
        for digest in sending.digests:
            self._by_digest.pop(digest, None)
        sending.digests.clear()
