"""Probes: marked samples among the others, and when a query of the database first returned each.

A probe is due every 50 ms by an absolute schedule. While any is out, one reader asks over one open
connection for the probes from the oldest that is out on; the answer that holds a row ends that probe.
So a figure runs from the moment at which the probe was *due* to the arrival of the answer: it holds
the generator's delay, the broker, the consumer, the write, and one query. The same for everybody.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

import msgspec

from benchmarks.backlog import COUNTY, METRICS
from benchmarks.pace import Pace
from benchmarks.processes import BenchmarkFailed
from benchmarks.queries import Reader
from exchange.readings import Sample
from exchange.topics import Topic

EVERY_S = 0.05
DEVICES = 20
"""In turn, so that each takes one sample a second, as a device does."""
SITE = "probe"
EPOCH = 1_750_000_000_000  # a whole number of 1,000,000 ms: every store's row time is the sample's
_PAUSE_S = 0.001
_PAUSE_SHARE = 0.02  # of the oldest wait: who waits for long is asked for less often, as exactly
_PATIENCE_S = 120.0
_WITHOUT_END = 1 << 40


class Waits(msgspec.Struct, frozen=True, kw_only=True):
    """What the probes saw. Units: milliseconds from due to returned by a query."""

    probes: int
    lost: int
    p50_ms: float
    p99_ms: float
    max_ms: float
    poll_ms: float
    """Median time from one answer to the next: what the figures may be too high by; it grows by a
    fiftieth of the wait."""

    def __str__(self) -> str:
        """Return it for people."""
        return (
            f"p50 {self.p50_ms:.1f}, p99 {self.p99_ms:.1f}, max {self.max_ms:.1f} ms"
            f" ({self.probes} probes, {self.lost} lost, asked every {self.poll_ms:.1f} ms)"
        )


class Probes:
    """Sends probes through `send` and watches for their rows.

    Shape: `send(topic, samples)` says False when there is no room. Gateways take turns.
    """

    def __init__(
        self,
        reader: Reader,
        send: Callable[[Topic, Sequence[Sample]], bool],
        gateways: Sequence[str],
    ) -> None:
        self._reader = reader
        self._send = send
        self._topics = [
            Topic(COUNTY, SITE, gateways[n % len(gateways)], "air", f"probe-{n:02d}", "readings")
            for n in range(DEVICES)
        ]
        self._out: dict[int, float] = {}  # row time in ms -> when it was due
        self._waits_ms: list[float] = []
        self._polls_ms: list[float] = []
        self._first_ms = time.time_ns() // 1_000_000
        self._first_seq = 0
        self._arrived = asyncio.Event()
        self._closing = False
        self._pace = Pace(1 / EVERY_S, self._probe)

    @property
    def sent(self) -> int:
        """How many rows of ours a store must hold."""
        return self._first_seq + self._pace.sent

    async def measure(self, ended: Awaitable[object]) -> Waits:
        """Probe until something has ended; may be called again. Raises: BenchmarkFailed."""
        self._first_seq += self._pace.sent
        self._pace = Pace(1 / EVERY_S, self._probe)
        self._waits_ms, self._polls_ms = [], []
        self._closing = False
        ending = asyncio.ensure_future(ended)
        polling = asyncio.create_task(self._poll())
        sending = asyncio.create_task(self._pace.run(_WITHOUT_END))
        try:
            await asyncio.wait([ending, polling, sending], return_when=asyncio.FIRST_COMPLETED)
            sending.cancel()
            self._closing = True
            self._arrived.set()
            await asyncio.wait([polling], timeout=_PATIENCE_S)
            for task in (ending, polling):
                if task.done():
                    await task  # what it raised is raised here
        finally:
            for task in (sending, polling):
                task.cancel()
        return self._result()

    def _result(self) -> Waits:
        lost = len(self._out)
        self._out.clear()
        waits = sorted(self._waits_ms)
        if not waits:
            raise BenchmarkFailed(f"none of {lost} probes was ever returned by a query")
        polls = sorted(self._polls_ms)
        return Waits(
            probes=len(waits) + lost,
            lost=lost,
            p50_ms=percentile(waits, 0.5),
            p99_ms=percentile(waits, 0.99),
            max_ms=waits[-1],
            poll_ms=percentile(polls, 0.5),
        )

    def _probe(self, number: int) -> bool:
        seq = self._first_seq + number
        time_ms = self._first_ms + round(1000 * EVERY_S * seq)
        values = dict.fromkeys(METRICS, 20.0 + number % 10)
        sample = Sample(time_ms, EPOCH, seq // DEVICES, values)
        if not self._send(self._topics[seq % DEVICES], [sample]):
            return False
        self._out[time_ms] = self._pace.due_s(number)
        self._arrived.set()
        return True

    async def _poll(self) -> None:
        """Ask as long as a probe is out; end with the last one once closing."""
        while not self._closing:
            await self._arrived.wait()
            self._arrived.clear()
            answered_s = None
            while self._out:
                oldest_ms, oldest_s = next(iter(self._out.items()))
                oldest = f"time >= {oldest_ms}ms"
                rows = await self._reader.rows(
                    f"SELECT pm2_5 FROM air WHERE site = '{SITE}' AND {oldest}"  # noqa: S608 - our own words
                )
                now_s = time.monotonic()
                if answered_s is not None:
                    self._polls_ms.append(1000 * (now_s - answered_s))
                answered_s = now_s
                for row in rows:
                    due_s = self._out.pop(row[0] // 1_000_000, None)
                    if due_s is not None:
                        self._waits_ms.append(1000 * (now_s - due_s))
                await asyncio.sleep(max(_PAUSE_S, _PAUSE_SHARE * (now_s - oldest_s)))


def percentile(ascending: Sequence[float], share: float) -> float:
    """Return the value below which this share lies; 0 of nothing."""
    if not ascending:
        return 0.0
    return ascending[min(len(ascending) - 1, int(share * len(ascending)))]
