"""The engine: pass after pass over counties, domains, sites and days, at a pace that leaves the store to others.

Nothing is remembered from pass to pass: it may be killed at any point and run again, twice at once even.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import date
from typing import NamedTuple, TypeVar
from zoneinfo import ZoneInfo

import msgspec

from exchange import health
from exchange.dictionary import dictionary
from exchange.errors import StoreError
from exchange.trouble import Trouble
from ingest.days import DAY_NS, HOUR_NS, Day, day_of, days
from ingest.rollups.counted import Closed
from ingest.rollups.settings import DEFAULTS, SiteSettings
from ingest.rollups.site_days import MEASUREMENTS, SiteDays
from ingest.stores import Place, Store, StoreRejected, StoreUnavailable

log = logging.getLogger(__name__)

BACK_OFF_S = (1.0, 60.0)
TRIES = 5
"""Of one piece of work while the store takes others; then it is left to the next pass."""
MAX_REST_S = 60.0
MAX_TOLD = 100
DELETED_AT_ONCE = 500
LATEST_NS = 3 * HOUR_NS
"""What each pass looks at, for hours that are over now."""
LATE_EVERY_S = 3600.0
"""How often it looks at all of the latest hours, for samples that came late."""
WHOLE_EVERY_S = 86_400.0
RAW_BESIDE = (
    "command",
    "county_now",
    "device",
    "device_day",
    "incident",
    "site_day_state",
    "site_hour_state",
    "site_now",
)
"""What is kept as long as raw rows, beside each domain's."""
_REJECTED = "the store rejects a roll-up"

T = TypeVar("T")


class Counts(msgspec.Struct):
    """What has been done."""

    passes: int = 0
    site_days: int = 0
    raw_rows: int = 0
    points: int = 0
    deleted: int = 0
    rejected: int = 0
    skipped: int = 0
    """Pieces of work that failed TRIES times and were left to the next pass."""
    mistakes: int = 0
    """Pieces of work that met a mistake of ours and were left."""
    last_pass_s: float = 0.0
    """When the last pass over the latest hours ended, by the wall clock; 0 before the first."""


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """How hard it works. Shape: of its time it is busy for `share` at most."""

    every_s: float
    recent_ns: int
    whole_ns: int
    settle_ns: int
    share: float


class Retention(NamedTuple):
    """How long rows are kept; 0 is for ever."""

    raw_ns: int
    kept_ns: int


FOR_EVER = Retention(0, 0)


class Engine:
    """Rolls up the counties of a configuration."""

    def __init__(
        self,
        raw: Store,
        kept: Store,
        zones: dict[str, ZoneInfo],
        *,
        sites: dict[str, SiteSettings],
        pace: Pace,
        retention: Retention = FOR_EVER,
        vendor_metrics: Sequence[str] = (),
        patience_s: float = math.inf,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """`zones` are those of the counties; `sites` has settings by `county/site` or `county`.

        After `patience_s` without a store everything raises StoreUnavailable.
        """
        self.counts = Counts()
        self._raw, self._kept, self._zones, self._sites = raw, kept, zones, sites
        self._pace, self._retention, self._vendor = pace, retention, vendor_metrics
        self._now_ns = now_ns
        self._patience_s = patience_s
        self._answered_s = self._rested_s = time.monotonic()
        self._recent_due_s = 0.0
        self._late_s = -math.inf
        self._told: set[str] = set()
        self._trouble = Trouble(log, "roll-ups wait for the store", "roll-ups go on")

    async def run(self) -> None:
        """Keep the latest hours rolled up, and look through everything once a day, until cancelled."""
        whole_due_s = time.monotonic()
        while True:
            await self._recent()
            if time.monotonic() >= whole_due_s:
                whole_due_s = time.monotonic() + WHOLE_EVERY_S
                await self._whole()
            await asyncio.sleep(max(0.0, self._recent_due_s - time.monotonic()))

    async def once(
        self, first: date | None = None, last: date | None = None, *, anew: bool = False
    ) -> None:
        """Make what is stale of these days, of all that is looked through daily where none are named."""
        closed = self._closed()
        for county, zone in self._zones.items():
            start_ns = closed.until_ns - self._pace.whole_ns
            start_ns = start_ns if first is None else day_of(zone, first).start_ns
            end_ns = closed.until_ns if last is None else day_of(zone, last).end_ns
            async for making, day in self._work(county, zone, start_ns, end_ns, closed):
                await self._make(making, day, anew=anew)

    async def judge(self) -> str:
        """Return how things stand now, in the words of `exchange.health`."""
        try:
            await self._kept.ping()  # raw rows are only read
        except StoreError as error:
            return f"waiting for the store: {error}"
        return health.WELL

    async def close(self) -> None:
        """Let go of the stores."""
        for store in {id(store): store for store in (self._raw, self._kept)}.values():
            await store.close()

    # Passes

    async def _recent(self) -> None:
        jitter = random.uniform(0.9, 1.0)  # noqa: S311 - two processes do not stay in step
        self._recent_due_s = time.monotonic() + self._pace.every_s * jitter
        closed, back_ns = self._closed(), self._pace.recent_ns
        if time.monotonic() < self._late_s + LATE_EVERY_S:
            back_ns = min(back_ns, LATEST_NS)
        else:
            self._late_s = time.monotonic()
        for county, zone in self._zones.items():
            start_ns = closed.until_ns - back_ns
            async for making, day in self._work(county, zone, start_ns, closed.until_ns, closed):
                await self._make(making, day)
        self.counts.passes += 1
        self.counts.last_pass_s = time.time()

    async def _whole(self) -> None:
        """Look through everything, and let go of what is too old; the latest hours come between as they are due."""
        closed = self._closed()
        for county, zone in self._zones.items():
            start_ns = max(closed.until_ns - self._pace.whole_ns, closed.since_ns)
            async for making, day in self._work(county, zone, start_ns, closed.until_ns, closed):
                await self._make(making, day)
                if time.monotonic() >= self._recent_due_s:
                    await self._recent()
        await self._expire()

    async def _work(
        self, county: str, zone: ZoneInfo, start_ns: int, end_ns: int, closed: Closed
    ) -> AsyncIterator[tuple[SiteDays, Day]]:
        within = [*days(zone, start_ns, end_ns)][::-1]
        for domain in dictionary() if within else ():
            for site in await self._patiently(lambda: self._raw.sites(domain, county)) or ():  # noqa: B023 - awaited at once
                place = Place(county, site, domain)
                settings = self._sites.get(f"{county}/{site}") or self._sites.get(county, DEFAULTS)
                making = SiteDays(
                    self._raw,
                    self._kept,
                    place,
                    zone,
                    settings,
                    vendor_metrics=self._vendor,
                    rest=self._rest,
                )
                if await self._patiently(lambda: making.look(within, closed, start_ns)):  # noqa: B023 - awaited at once
                    for day in within:
                        yield making, day

    async def _make(self, making: SiteDays, day: Day, *, anew: bool = False) -> None:
        await self._patiently(lambda: making.make(day, anew=anew))
        self.counts.site_days += 1
        self.counts.raw_rows += making.raw_rows
        self.counts.points += making.points
        making.raw_rows = making.points = 0

    def _closed(self) -> Closed:
        now_ns = self._now_ns()
        # A day before they are deleted raw rows are not looked at any more: a pass may take long.
        since_ns = now_ns - self._retention.raw_ns + DAY_NS if self._retention.raw_ns else 0
        return Closed(since_ns, now_ns - self._pace.settle_ns)

    # A store that is away or busy

    async def _patiently(self, work: Callable[[], Awaitable[T]]) -> T | None:
        """Do a piece of work, again and again while the store is away; None when it was given up."""
        wait_s, tries = BACK_OFF_S[0], 0
        while True:
            try:
                done = await work()
            except StoreUnavailable as error:
                self._trouble.report(str(error), kind=error.kind)
                if time.monotonic() - self._answered_s > self._patience_s:
                    raise
                tries += await self.judge() == health.WELL
                if tries >= TRIES:
                    self.counts.skipped += 1
                    return None
                wait_s = max(wait_s, error.retry_after_s or 0.0)
                await asyncio.sleep(wait_s * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
                wait_s = min(2 * wait_s, BACK_OFF_S[1])
            except StoreRejected as error:
                self.counts.rejected += 1
                log.error("%s: %s", _REJECTED, error)
                return None
            except Exception as error:
                self.counts.mistakes += 1
                if (words := f"{type(error).__name__}: {error}") not in self._told:
                    self._told = {*self._told, words} if len(self._told) < MAX_TOLD else {words}
                    log.error("hours and days could not be made: %s", words, exc_info=error)
                return None
            else:
                self._answered_s = time.monotonic()
                self._trouble.over()
                return done

    async def _rest(self) -> None:
        """Leave the store to others for as long as was worked, or what the pace says."""
        busy_s = time.monotonic() - self._rested_s
        await asyncio.sleep(min(busy_s * (1 / self._pace.share - 1), MAX_REST_S))
        self._rested_s = time.monotonic()

    # Retention

    async def _expire(self) -> None:
        """Delete what is too old in small steps, where the store does not do so by itself."""
        now_ns = self._now_ns()
        if self._retention.raw_ns:
            for measurement in (*dictionary(), *RAW_BESIDE):
                await self._delete(self._raw, measurement, now_ns - self._retention.raw_ns)
        if self._retention.kept_ns:
            for measurement in MEASUREMENTS:
                await self._delete(self._kept, measurement, now_ns - self._retention.kept_ns)

    async def _delete(self, store: Store, measurement: str, time_ns: int) -> None:
        def step() -> Awaitable[int]:
            return store.delete_before(measurement, time_ns, most=DELETED_AT_ONCE)

        while deleted := await self._patiently(step):
            self.counts.deleted += deleted
            await self._rest()
