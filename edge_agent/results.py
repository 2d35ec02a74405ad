"""Results on their way: each goes out at once, and again with back-off until its receipt.

As with samples, nothing but the oldest goes again while no receipt comes at all: then the ingest is taken to be down.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from hashlib import sha256
from random import Random

import msgspec

from edge_agent.ledger import Ledger, LedgerBlocked, Waiting
from exchange.delivery import BACKOFF_FIRST_S, BACKOFF_JITTER, BACKOFF_LAST_S
from exchange.receipts import Receipt
from exchange.trouble import Trouble

log = logging.getLogger(__name__)

AT_ONCE = 100


class Going(msgspec.Struct, eq=False):
    """One result between its first sending and its receipt."""

    waiting: Waiting
    due_s: float = float("-inf")
    tries: int = 0


class Results:
    """What the ledger holds without a receipt, as the uplink sends it. Units: `now_s` is the uplink's clock."""

    def __init__(self, ledger: Ledger, *, random: Random | None = None) -> None:
        """`on_new` is called when there is something to send."""
        self.on_new: Callable[[], None] = lambda: None
        self._ledger = ledger
        self._random = random or Random()  # noqa: S311 - jitter, not a secret
        self._going: dict[int, Going] = {}
        self._changed = True
        self._unread = Trouble(
            log, "results that wait cannot be read", "results that wait can be read again"
        )
        self._stays = Trouble(
            log, "a receipted result stays for now", "receipted results are let go of again"
        )

    def changed(self) -> None:
        """The ledger has results that were not there, or not any more."""
        self._changed = True
        self.on_new()

    async def due(self, now_s: float, *, silent: bool) -> list[Going]:
        """Return what goes out now, oldest first, and charge it; `silent` says that no receipts come at all."""
        if self._changed:
            self._changed = False
            try:
                waiting = await self._ledger.results()
            except LedgerBlocked as error:
                self._changed = True
                self._unread.report(str(error))
                return []
            self._unread.over()
            # of a ledger that was begun anew the numbers begin anew
            known = {one.waiting: one for one in self._going.values()}
            self._going = {one.number: known.get(one) or Going(one) for one in waiting}
        due = [
            one
            for place, one in enumerate(self._going.values())
            if one.due_s <= now_s and not (silent and one.tries and place)
        ][:AT_ONCE]
        for one in due:
            wait_s = min(BACKOFF_LAST_S, BACKOFF_FIRST_S * 2**one.tries)
            one.tries += 1
            one.due_s = now_s + wait_s * (1 + BACKOFF_JITTER * self._random.random())
        return due

    def failed(self, one: Going) -> None:
        """The connection broke before the broker had it: it goes again at once, uncounted."""
        one.tries -= 1
        one.due_s = float("-inf")

    async def receipted(self, receipt: Receipt) -> None:
        """Let go of what a receipt names."""
        by_name = {(one.waiting.id, one.waiting.status): one for one in self._going.values()}
        settled = [name for name in receipt.results if name in by_name]
        if receipt.unreadable and self._going:
            digests = {sha256(one.waiting.payload).hexdigest(): one for one in self._going.values()}
            for digest, requirement in receipt.unreadable:
                if (one := digests.get(digest)) is not None:
                    name = one.waiting.id, one.waiting.status
                    log.error(
                        "a result was refused",
                        extra={"command": name[0], "requirement": requirement},
                    )
                    settled.append(name)
        if not settled:
            return
        try:
            await self._ledger.receipted(settled)
        except LedgerBlocked as error:
            self._stays.report(str(error))
            return
        self._stays.over()
        for name in settled:
            self._going.pop(by_name[name].waiting.number, None)
