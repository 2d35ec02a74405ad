"""What the roll-ups have done, for Prometheus; and whether they live and are well, for whoever asks by HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from exchange.endpoint import Answer, verdict
from exchange.endpoint import serving as serving_pages
from ingest.rollups.engine import Engine

_COUNTERS = {
    "passes": "Passes over the latest hours that came to their end.",
    "site_days": "Days of a domain at a site that were looked through.",
    "raw_rows": "Raw rows read to make hours and days of.",
    "points": "Rows of hours and days that the store took.",
    "deleted": "Rows deleted because they were too old.",
    "rejected": "Pieces of work that the store will never take.",
    "mistakes": "Pieces of work that met a mistake of ours.",
    "skipped": "Pieces of work left to the next pass after several tries.",
}


class Metrics(Collector):
    """The metrics of an engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.registry = CollectorRegistry()
        self.registry.register(self)
        ProcessCollector(registry=self.registry)

    def collect(self) -> Iterator[Metric]:
        """Yield what is counted now."""
        counts = self._engine.counts
        for name, words in _COUNTERS.items():
            yield CounterMetricFamily(_named(name), words, value=getattr(counts, name))
        yield GaugeMetricFamily(
            _named("last_pass_timestamp_seconds"),
            "When the last pass over the latest hours ended; 0 before the first.",
            value=counts.last_pass_s,
        )


def _named(name: str) -> str:
    return f"onestreet_rollups_{name}"


@asynccontextmanager
async def serving(host: str, port: int | None, engine: Engine) -> AsyncIterator[None]:
    """Answer at /metrics, /healthz and /readyz, where there is a port. Raises: OSError when it is taken."""
    if port is None:
        yield
        return
    metrics = Metrics(engine)

    async def scraped() -> Answer:
        return Answer(generate_latest(metrics.registry).decode(), kind=CONTENT_TYPE_LATEST)

    async def alive() -> Answer:
        return Answer("alive\n")

    pages = {"/metrics": scraped, "/healthz": alive, "/readyz": verdict(engine.judge)}
    async with serving_pages(host, port, pages):
        yield
