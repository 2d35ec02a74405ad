"""The roll call: retained states are asked for gateway by gateway, some thousands at a time.

Who subscribes to a whole city at once gets as many of its states as the broker's queue holds (100,000 in the shipped
configuration); the others it drops without a word, and live readings with them. So only gateways are asked for at
once; any topic that names another one has that one called, too.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Iterable, Sequence
from time import monotonic

from exchange.errors import UplinkError, UplinkRefused
from exchange.mqtt import Client, Subscription
from exchange.topics import PREFIX
from exchange.trouble import Trouble

log = logging.getLogger(__name__)

STATES_A_TURN = 25_000
"""Far below any broker's queue: a gateway may have more devices than those before it had."""
FIRST_FILTERS, MOST_FILTERS = 10, 500
RESTS_S = 0.15
"""A turn is over when nothing new came for so long."""
TURN_S = 15.0
"""... or when this has passed: states that change all the time hold up nobody."""
_LOOK_EVERY_S = 0.05
_AGAIN_AFTER_S = 0.5
_DEADLINE_S = 60.0


def live(counties: Iterable[str]) -> list[Subscription]:
    """Return what is heard from the connection on: whatever is new."""
    return [
        Subscription(f"{PREFIX}/{county}/+/+/+/+/{channel}", retained=False)
        for county in counties
        for channel in ("state", "readings")
    ]


class RollCall:
    """Calls gateways, then the devices of each, once a session.

    Shape: while a gateway's devices are called, what is new of them may come twice.
    """

    def __init__(self, client: Client, counties: Collection[str]) -> None:
        self._client = client
        self._counties = counties
        self._heard = 0
        self._called: set[tuple[str, str]] = set()
        self._waiting: dict[str, None] = {}
        self._there = asyncio.Event()
        self._generation = 0
        self._trouble = Trouble(log, "the states of a gateway cannot be asked for", "")

    @property
    def is_over(self) -> bool:
        """Whether nobody is left to be called."""
        return not self._waiting

    def begin(self, gateways: Iterable[tuple[str, str]]) -> None:
        """Call everybody, these and whoever is heard of: nothing is kept of an earlier session."""
        self._generation += 1
        self._called.clear()
        self._waiting = {
            f"{PREFIX}/{county}/+/+/gateway/+/state": None for county in self._counties
        }
        for county, gateway in gateways:
            self.name(county, gateway)
        self._there.set()

    def name(self, county: str, gateway: str) -> None:
        """Have the devices of a gateway called that was heard of, once."""
        key = county, gateway
        if key not in self._called:
            self._called.add(key)
            self._waiting[f"{PREFIX}/{county}/+/{gateway}/+/+/state"] = None
            self._there.set()

    def hear(self) -> None:
        """Take notice of a state."""
        self._heard += 1

    async def run(self) -> None:
        """Call, for ever."""
        turn = FIRST_FILTERS
        while True:
            await self._there.wait()
            self._there.clear()
            while self._waiting:
                called, generation = list(self._waiting)[:turn], self._generation
                try:
                    each = await self._call(called) / len(called)
                except UplinkRefused as error:
                    if len(called) > 1:  # one of them: ask for each alone
                        turn = 1
                        continue
                    self._trouble.report(f"{called[0]}: {error}")
                    each = 0.0
                except UplinkError:  # the connection is gone: again on the next one
                    await asyncio.sleep(_AGAIN_AFTER_S)
                    continue
                if generation == self._generation:
                    for key in called:
                        del self._waiting[key]
                turn = min(max(round(STATES_A_TURN / max(each, 1.0)), 1), 2 * turn, MOST_FILTERS)

    async def _call(self, filters: Sequence[str]) -> int:
        """Return how many states came when these were asked for. Raises: UplinkError."""
        before = self._heard
        try:
            await self._client.subscribe([Subscription(one) for one in filters], _DEADLINE_S)
        except UplinkRefused:  # of one, while others are granted
            await self._client.unsubscribe(filters, _DEADLINE_S)
            raise
        await self._until_rest()
        await self._client.unsubscribe(filters, _DEADLINE_S)
        return self._heard - before

    async def _until_rest(self) -> None:
        """Return when no state came for a while."""
        heard, began_s = self._heard, monotonic()
        since_s = now_s = began_s
        while now_s - since_s < RESTS_S and now_s - began_s < TURN_S:
            await asyncio.sleep(_LOOK_EVERY_S)
            now_s = monotonic()
            if self._heard != heard:
                heard, since_s = self._heard, now_s
