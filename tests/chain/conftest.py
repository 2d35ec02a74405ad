"""Chain tests run the whole path: town, agent, broker, ingest, store, audit."""

from tests.influx import influx

__all__ = ["influx"]
