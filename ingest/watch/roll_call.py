"""The roll call: retained states are asked for gateway by gateway, some thousands at a time.

Who subscribes to a whole city at once gets as many of its states as the broker's queue holds (100,000 in the shipped
configuration); the others it drops without a word, and live readings with them. So only gateways are asked for at
once; any topic that names another one has that one called, too.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable, Sequence
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
    """Calls gateways, then the devices of each, once a session. `heard` says how many states came so far.

    Shape: while a gateway's devices are called, what is new of them may come twice.
    """

    def __init__(self, client: Client, counties: Collection[str], heard: Callable[[], int]) -> None:
        self._client = client
        self._counties = counties
        self._heard = heard
        self._called: set[tuple[str, str]] = set()
        self._waiting: dict[str, None] = {}
        self._there = asyncio.Event()
        self._generation = 0
        self._trouble = Trouble(log, "states cannot be asked for", "states are asked for again")

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
                    self._trouble.report(str(error))
                    each = 0.0
                except UplinkError:  # the connection is gone: again on the next one
                    await asyncio.sleep(_AGAIN_AFTER_S)
                    continue
                else:
                    self._trouble.over()
                if generation == self._generation:
                    for key in called:
                        del self._waiting[key]
                turn = min(max(round(STATES_A_TURN / max(each, 1.0)), 1), 2 * turn, MOST_FILTERS)

    async def _call(self, filters: Sequence[str]) -> int:
        """Return how many states came when these were asked for. Raises: UplinkError."""
        before = heard = self._heard()
        await self._client.subscribe([Subscription(one) for one in filters], _DEADLINE_S)
        since_s = monotonic()
        while monotonic() - since_s < RESTS_S:
            await asyncio.sleep(_LOOK_EVERY_S)
            if (now := self._heard()) != heard:
                heard, since_s = now, monotonic()
        await self._client.unsubscribe(filters, _DEADLINE_S)
        return heard - before
