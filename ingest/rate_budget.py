"""The rate budget: how many samples a device may take, by its own time (EX-R-027, EX-D-034).

A sample costs a minute by the number allowed in one; the time since the newest sample pays, up to a minute's worth.
What is not newer than the newest costs nothing: a resend, or a backlog behind live samples, is never refused, and a
backlog in its order pays for itself, however fast it comes. No clock of ours is asked.
"""

from __future__ import annotations

from collections.abc import Sequence

from exchange.readings import Row

MINUTE_NS = 60_000_000_000
_NONE: Sequence[Row] = ()
_NEVER = 1 << 63


class RateBudget:
    """What one device has left.

    Shape: while all of it is left, one sample of `free_ns` or later is paid by the time since the newest: the caller
        sets `free_ns` to its time plus the cost, and need not ask.
    """

    __slots__ = ("_credit_ns", "_newest_ns", "free_ns")

    def __init__(self) -> None:
        self._credit_ns = self._newest_ns = 0
        self.free_ns = _NEVER

    def excess(self, rows: Sequence[Row], cost_ns: int) -> Sequence[Row]:
        """Spend for the rows of a pack, at least one, times rising; return those that it cannot pay."""
        if self.free_ns < _NEVER:
            self._newest_ns = self.free_ns - cost_ns
            self.free_ns = _NEVER
        over = self._spent(rows, cost_ns)
        if self._credit_ns == MINUTE_NS:
            self.free_ns = self._newest_ns + cost_ns
        return over

    def _spent(self, rows: Sequence[Row], cost_ns: int) -> Sequence[Row]:
        newest_ns, first_ns, last_ns = self._newest_ns, rows[0].time_ns, rows[-1].time_ns
        if last_ns <= newest_ns:
            return _NONE
        paid_ns = first_ns - newest_ns
        if not newest_ns:
            paid_ns, self._credit_ns = 0, MINUTE_NS
        if paid_ns >= 0:  # all of it is new: nearly always it can be paid at once
            left_ns = min(self._credit_ns + paid_ns, MINUTE_NS + cost_ns) - cost_ns * len(rows)
            if left_ns >= 0:
                self._newest_ns = last_ns
                self._credit_ns = min(left_ns + last_ns - first_ns, MINUTE_NS)
                return _NONE
        return self._one_by_one(rows, cost_ns)

    def _one_by_one(self, rows: Sequence[Row], cost_ns: int) -> list[Row]:
        over: list[Row] = []
        for row in rows:
            if row.time_ns > self._newest_ns:
                paid_ns = row.time_ns - self._newest_ns if self._newest_ns else 0
                left_ns = min(self._credit_ns + paid_ns, MINUTE_NS) - cost_ns
                if left_ns < 0:
                    over.append(row)
                    continue
                self._newest_ns, self._credit_ns = row.time_ns, left_ns
        return over
