"""Pace: how long the contract lets things take, and what a judge grants on top."""

from __future__ import annotations

import msgspec

from exchange import delivery

CLOCK_S = 5.0  # how far apart two clocks that agree may be


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """The contract's times. A party under test may run them faster; then its judge does the same.

    Shape: `slack_s` is what a network and a busy machine may add to anything, `patience_s` how long a reconnecting
        gateway may back off, `answer_s` how long a command may take.
    """

    backoff_first_s: float = delivery.BACKOFF_FIRST_S
    backoff_last_s: float = delivery.BACKOFF_LAST_S
    proof_s: float = delivery.PROOF_AGE_S
    silence_s: float = delivery.SILENCE_S
    slack_s: float = 5.0
    listen_s: float = 5.0
    patience_s: float = 40.0
    answer_s: float = 10.0

    @property
    def backoff_slowest_s(self) -> float:
        """The first back-off at its longest."""
        return self.backoff_first_s * (1 + delivery.BACKOFF_JITTER)

    def backoff_s(self, resends: int) -> float:
        """Return the back-off after so many resends."""
        return min(self.backoff_last_s, self.backoff_first_s * 2.0**resends)

    def faster(self, scale: float) -> Pace:
        """Return the same at `scale` of the time; slack and patience are the machine's, not the contract's."""
        return msgspec.structs.replace(
            self,
            backoff_first_s=self.backoff_first_s * scale,
            backoff_last_s=self.backoff_last_s * scale,
            proof_s=self.proof_s * scale,
            silence_s=self.silence_s * scale,
            slack_s=max(1.0, self.slack_s * scale),
            listen_s=max(1.0, self.listen_s * scale),
            answer_s=max(2.0, self.answer_s * scale),
        )
