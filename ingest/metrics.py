"""Metrics: what ingest has counted, for Prometheus; and whether it lives and is ready, for whoever asks by HTTP.

Nothing is paid per message. The parts count in plain numbers as they always do, and these are read when somebody
scrapes; only a write that the store took is observed by itself.
"""

from __future__ import annotations

import platform
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import version
from operator import attrgetter
from typing import Annotated, NamedTuple

import msgspec
from prometheus_client import (
    CollectorRegistry,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from exchange.endpoint import Answer, verdict
from exchange.endpoint import serving as serving_pages
from exchange.health import Judge
from exchange.mqtt import Client
from ingest.intake import Intake
from ingest.quarantine import Quarantine
from ingest.stores import Point
from ingest.writer import Writer

LATE_S = 3600.0

_WRITE_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_WRITE_POINTS = (1, 10, 50, 100, 500, 1000, 2500, 5000, 10_000, 50_000)
_LAG_S = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600, 21_600, 86_400, 604_800)
_time_ns = attrgetter("time_ns")
disable_created_metrics()  # type: ignore[no-untyped-call]  # it has no types; a series more for each, unread


class Endpoint(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where metrics and readiness are asked for, and what counts as late."""

    host: Annotated[str, msgspec.Meta(min_length=1)] = "127.0.0.1"
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)] | None = None
    """Of the first worker, each further one has the next; nobody answers when it is absent."""
    late_s: Annotated[float, msgspec.Meta(gt=0)] = LATE_S
    """A sample that is older than this when it arrives is counted as late."""


class _Parts(NamedTuple):
    intake: Intake
    writer: Writer
    quarantine: Quarantine
    client: Client


class _Number(NamedTuple):
    """A metric without labels: its kind, its name without the suffix of a counter, and where it is read."""

    family: type[CounterMetricFamily | GaugeMetricFamily]
    name: str
    words: str
    read: Callable[[_Parts], float]


_COUNTER, _GAUGE = CounterMetricFamily, GaugeMetricFamily
_NUMBERS = (
    _Number(
        _COUNTER,
        "messages_received",
        "Messages that the broker delivered, resends among them.",
        lambda of: of.intake.counts.messages,
    ),
    _Number(
        _COUNTER,
        "samples_received",
        "Samples, and results of commands, in messages that could be read.",
        lambda of: of.intake.counts.points + of.intake.counts.refused_samples,
    ),
    _Number(
        _COUNTER,
        "samples_stored",
        "Samples and results that the store has durably.",
        lambda of: of.writer.counts.stored,
    ),
    _Number(
        _COUNTER,
        "samples_rejected",
        "Samples and results that the store will never take; they are in the quarantine.",
        lambda of: of.writer.counts.rejected,
    ),
    _Number(
        _COUNTER,
        "samples_discarded",
        "Samples and results let go unwritten after a reconnect: the broker sends them again.",
        lambda of: of.intake.counts.discarded,
    ),
    _Number(
        _COUNTER,
        "samples_late",
        "Samples that were older than late_s when they arrived: backlogs that drain.",
        lambda of: of.intake.counts.late,
    ),
    _Number(
        _COUNTER,
        "samples_over_budget",
        "Samples refused because their device sends more than its rate budget.",
        lambda of: of.intake.counts.over_budget,
    ),
    _Number(
        _COUNTER,
        "messages_misjudged",
        "Messages that met a mistake of ours; refused as unreadable.",
        lambda of: of.intake.counts.misjudged,
    ),
    _Number(
        _GAUGE,
        "messages_in_hand",
        "Messages received and not yet settled with the broker.",
        lambda of: of.writer.in_hand_messages,
    ),
    _Number(
        _GAUGE,
        "in_hand_bytes",
        "Memory that they take, about: it is bounded.",
        lambda of: of.writer.in_hand_bytes,
    ),
    _Number(
        _GAUGE,
        "store_ready",
        "1 while the store takes what is written to it.",
        lambda of: of.writer.ready,
    ),
    _Number(
        _GAUGE,
        "store_writes_in_flight",
        "Batches that are being written, receipted or waiting for their turn to be.",
        lambda of: of.writer.in_flight,
    ),
    _Number(
        _COUNTER,
        "store_writes",
        "Writes sent to the store, tries again among them.",
        lambda of: of.writer.counts.writes,
    ),
    _Number(
        _COUNTER,
        "store_retries",
        "Writes of the same points tried again after the store could not take them.",
        lambda of: of.writer.counts.retries,
    ),
    _Number(
        _COUNTER,
        "receipts_sent",
        "Receipts written to the broker.",
        lambda of: of.writer.counts.receipts,
    ),
    _Number(
        _COUNTER,
        "receipts_unsent",
        "Tries to send a receipt that failed.",
        lambda of: of.writer.counts.receipts_unsent,
    ),
    _Number(
        _COUNTER,
        "quarantine_kept",
        "Refusals that the quarantine took.",
        lambda of: of.quarantine.counts.kept,
    ),
    _Number(
        _COUNTER,
        "quarantine_dropped",
        "Refusals that the quarantine could not write: only their receipts exist.",
        lambda of: of.quarantine.counts.dropped,
    ),
    _Number(
        _COUNTER,
        "quarantine_only_counted",
        "Refusals of a flood that the quarantine did not write down, for its budget a second.",
        lambda of: of.quarantine.counts.only_counted,
    ),
    _Number(
        _COUNTER,
        "quarantine_bodies_dropped",
        "Payloads of a flood that the quarantine kept without their body.",
        lambda of: of.quarantine.counts.bodies_dropped,
    ),
    _Number(
        _COUNTER,
        "quarantine_evicted",
        "Refusals that left the quarantine, the oldest first, for its bounds of size and age.",
        lambda of: of.quarantine.counts.evicted,
    ),
    _Number(
        _GAUGE,
        "quarantine_size_bytes",
        "Size of the quarantine's file.",
        lambda of: of.quarantine.size_bytes,
    ),
    _Number(
        _GAUGE,
        "mqtt_connected",
        "1 while the broker has accepted the connection and every filter.",
        lambda of: of.client.connected,
    ),
    _Number(
        _COUNTER,
        "mqtt_connects",
        "Connections that the broker accepted; all but the first are reconnects.",
        lambda of: of.client.counts.connects,
    ),
    _Number(
        _COUNTER,
        "mqtt_connections_lost",
        "Accepted connections that broke.",
        lambda of: of.client.counts.connections_lost,
    ),
    _Number(
        _GAUGE,
        "mqtt_publishes_unacknowledged",
        "Receipts that the broker has not acknowledged yet.",
        lambda of: of.client.unacked,
    ),
    _Number(
        _COUNTER,
        "mqtt_publishes_refused",
        "Receipts that the broker refused.",
        lambda of: of.client.counts.refused,
    ),
    _Number(
        _COUNTER,
        "mqtt_publishes_lost",
        "Receipts that were not acknowledged when a connection ended: their gateways ask again.",
        lambda of: of.client.counts.lost,
    ),
)


class Metrics(Collector):
    """The metrics of one worker, readable once its parts are attached."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._parts: _Parts | None = None
        self._write_s = self._histogram(
            "write_seconds", "How long a write took that the store took.", _WRITE_S
        )
        self._write_points = self._histogram(
            "write_points", "Samples and results in a write that the store took.", _WRITE_POINTS
        )
        self._lag_s = self._histogram(
            "lag_seconds", "Age of a write's newest sample when the store had it.", _LAG_S
        )
        self.registry.register(self)
        ProcessCollector(registry=self.registry)

    def attach(
        self, *, intake: Intake, writer: Writer, quarantine: Quarantine, client: Client
    ) -> None:
        """Read these from now on."""
        self._parts = _Parts(intake, writer, quarantine, client)

    def on_write(self, seconds: float, points: Sequence[Point]) -> None:
        """Observe a write that the store took."""
        self._write_s.observe(seconds)
        self._write_points.observe(len(points))
        newest_ns = max(map(_time_ns, points))
        self._lag_s.observe(max(0.0, time.time() - newest_ns / 1e9))  # its clock may be ahead

    def collect(self) -> Iterator[Metric]:
        """Yield what is counted now."""
        build = GaugeMetricFamily(
            _named("build_info"), "1; what runs.", labels=["version", "python"]
        )
        build.add_metric([version("onestreet"), platform.python_version()], 1)
        yield build
        if self._parts is None:
            return
        for each in _NUMBERS:
            yield each.family(_named(each.name), each.words, value=each.read(self._parts))
        refused = CounterMetricFamily(
            _named("refused"),
            "What was refused, by the requirement of the exchange that it breaks.",
            labels=["kind", "requirement"],
        )
        for (kind, requirement), number in list(self._parts.intake.counts.refused.items()):
            refused.add_metric([kind, requirement], number)
        yield refused
        errors = CounterMetricFamily(
            _named("store_errors"),
            "Writes that the store could not take, by what happened.",
            labels=["kind"],
        )
        for kind, number in list(self._parts.writer.counts.errors.items()):
            errors.add_metric([kind], number)
        yield errors

    def describe(self) -> list[Metric]:
        """Return nothing: names are not claimed before the parts are there."""
        return []

    def _histogram(self, name: str, words: str, buckets: Sequence[float]) -> Histogram:
        return Histogram(_named(name), words, buckets=buckets, registry=self.registry)


def _named(name: str) -> str:
    return f"onestreet_ingest_{name}"


@asynccontextmanager
async def serving(
    endpoint: Endpoint, metrics: Metrics, judge: Judge, *, worker: int = 1
) -> AsyncIterator[None]:
    """Answer at /metrics, /healthz and /readyz; `judge` says `ready`, or what is waited for.

    Shape: worker 1 answers at the port of the endpoint, each further one at the next.

    Raises: OSError when the port is taken.
    """
    if endpoint.port is None:
        yield
        return

    async def scraped() -> Answer:
        return Answer(generate_latest(metrics.registry).decode(), kind=CONTENT_TYPE_LATEST)

    async def alive() -> Answer:
        return Answer("alive\n")

    pages = {"/metrics": scraped, "/healthz": alive, "/readyz": verdict(judge)}
    async with serving_pages(endpoint.host, endpoint.port + worker - 1, pages):
        yield
