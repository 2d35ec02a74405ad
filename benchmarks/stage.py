"""A real broker and a real database on loopback; consumers come and go."""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from itertools import count
from pathlib import Path
from typing import NamedTuple

from benchmarks.consumers import Consumer
from benchmarks.processes import BenchmarkFailed, Process
from exchange.towns import Broker
from provisioning import broker as shipped
from tests.brokers import Mosquitto
from tests.influx import Bucket, Influx

UNBOUNDED = (
    "max_queued_messages 0",
    "max_queued_bytes 0",
    "max_inflight_messages 0",
    "memory_limit 0",
)
"""The broker keeps whatever comes, and sends as much as a consumer lets it."""
_SHIPPED = {
    "set_tcp_nodelay",
    "persistence",
    "autosave_interval",
    "message_size_limit",
    "max_packet_size",
    "max_inflight_messages",
    "max_queued_messages",
    "max_queued_bytes",
    "max_keepalive",
}
_CONNECT_DEADLINE_S = 30.0


class Seat(NamedTuple):
    """What one run of a consumer has for itself."""

    client_id: str
    bucket: Bucket
    folder: Path


class Stage:
    """A broker and a database; consumers come and go."""

    def __init__(self, folder: Path, broker: Mosquitto, influx: Influx) -> None:
        self.folder, self.broker, self.influx = folder, broker, influx
        self._numbers = count(1)

    def seat(self, name: str) -> Seat:
        """Return a client id, a bucket and a folder that nobody had before."""
        client_id = f"{name}-{next(self._numbers)}"
        folder = self.folder / client_id
        folder.mkdir()
        return Seat(client_id, self.influx.bucket(), folder)

    @asynccontextmanager
    async def running(
        self, consumer: Consumer, seat: Seat, *, profile: Path | None = None
    ) -> AsyncIterator[Process]:
        """Run a consumer, connected. Raises: BenchmarkFailed when it does not start or end well."""
        command = consumer.command(seat.folder, self.broker.port, seat.client_id, seat.bucket)
        if profile is not None:
            command[1:2] = ["-m", "benchmarks.sampler", profile]
        connections = self._connections(seat.client_id)
        async with Process(command, seat.folder / "log") as process:
            await process.until(
                lambda: self._connections(seat.client_id) > connections,
                f"{seat.client_id} connects",
                deadline_s=_CONNECT_DEADLINE_S,
            )
            yield process
            status = await process.stop()
            if status:
                raise BenchmarkFailed(f"{consumer.name} ended with {status}\n{process.tail}")

    def _connections(self, client_id: str) -> int:
        return self.broker.log.count(f" as {client_id} (")


def shipped_bounds() -> list[str]:
    """Return the lines of the broker's shipped configuration that say what it keeps and sends."""
    text = shipped.configuration(Broker(host="localhost"), os.geteuid())
    return [line for line in text.splitlines() if line.partition(" ")[0] in _SHIPPED]


@contextmanager
def stage(
    lines: Sequence[str], influx_settings: Mapping[str, str] | None = None
) -> Iterator[Stage]:
    """Start a broker with these lines in its configuration, and a database. Raises: BenchmarkFailed."""
    influxd = os.environ.get("ONESTREET_INFLUXD", "")
    if not os.access(influxd, os.X_OK):
        raise BenchmarkFailed("ONESTREET_INFLUXD must name influxd: `make bench` sees to it")
    with tempfile.TemporaryDirectory(prefix="onestreet-bench-") as name:
        folder = Path(name)
        (folder / "influxd").mkdir()
        influx = Influx(influxd, folder / "influxd", settings=influx_settings)
        try:
            influx.start()
            with Mosquitto(folder, lines) as broker:
                yield Stage(folder, broker, influx)
        finally:
            influx.kill()
