"""Service tests run a real Mosquitto, a real InfluxDB and SQLite."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.brokers import Broker, Mosquitto
from tests.gateways import Ingest
from tests.influx import influx

__all__ = ["influx"]


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    with Mosquitto(tmp_path) as mosquitto:
        yield mosquitto


@pytest.fixture(params=["sqlite", "influxdb"])
def ingest(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    broker: Broker,
    monkeypatch: pytest.MonkeyPatch,
) -> Ingest:
    """Ingest on each store."""
    if request.param == "sqlite":
        return Ingest(tmp_path, broker)
    bucket = request.getfixturevalue("influx").bucket()
    monkeypatch.setenv("INFLUX_TOKEN", bucket.token)
    return Ingest(tmp_path, broker, store=bucket.url)


@pytest.fixture
def local(tmp_path: Path, broker: Broker) -> Ingest:
    """Ingest on SQLite alone, where the store makes no difference."""
    return Ingest(tmp_path, broker)
