"""The gateway as a device: its own health as samples of the domain `gateway`, sent like any other."""

from __future__ import annotations

import asyncio
import shutil
from contextlib import suppress

import psutil

from edge_agent.clock import Clock
from edge_agent.config import Gateway
from edge_agent.health import Health
from edge_agent.intake import Intake
from edge_agent.outbox import Outbox
from exchange.delivery import Delivery
from exchange.readings import Value

METRICS = (
    "cpu",
    "memory",
    "disk_free",
    "outbox_depth",
    "outbox_hours_left",
    "dropped",
    "unreceipted",
    "uplink_rtt",
    "bus_errors",
    "clock_known",
    "clock_offset",
)
"""What a gateway says of itself."""


class GatewayDevice:
    """Measures the gateway every `interval_s`."""

    def __init__(
        self, gateway: Gateway, outbox: Outbox, delivery: Delivery, health: Health, clock: Clock
    ) -> None:
        """Everything measured is read from these; `gateway` may be another one after a reload."""
        self.gateway = gateway
        self._outbox = outbox
        self._delivery = delivery
        self._health = health
        self._clock = clock
        psutil.cpu_percent()  # the first call only begins the first interval

    async def run(self, intake: Intake) -> None:
        """Hand in a sample every interval, for ever."""
        loop = asyncio.get_running_loop()
        due_s = loop.time()
        while True:
            await intake.put("gateway", self.gateway.id, self.measure())
            due_s = max(due_s + self.gateway.interval_s, loop.time())
            await asyncio.sleep(due_s - loop.time())

    def measure(self) -> dict[str, Value]:
        """Return the gateway's metrics now."""
        metrics: dict[str, Value] = {
            "cpu": psutil.cpu_percent(),
            "memory": psutil.virtual_memory().percent,
            "outbox_depth": self._outbox.depth,
            "unreceipted": self._delivery.unreceipted + self._delivery.parked,
            "bus_errors": self._health.bus_errors,
            "dropped": self._outbox.dropped.total(),
            "clock_known": self._clock.known,
        }
        if (hours_left := self._outbox.hours_left()) is not None:
            metrics["outbox_hours_left"] = round(hours_left, 1)
        if (offset_s := self._clock.offset_s) is not None:
            metrics["clock_offset"] = round(1000 * offset_s, 3)
        with suppress(OSError):  # a folder that is gone is no reason to stop measuring
            metrics["disk_free"] = float(shutil.disk_usage(self.gateway.state_dir).free)
        if (round_trip_s := self._delivery.round_trip_s) is not None:
            metrics["uplink_rtt"] = round(1000 * round_trip_s, 3)
        return metrics
