"""Chain tests run every process of the product, and a real InfluxDB."""

from tests.influx import influx

__all__ = ["influx"]
