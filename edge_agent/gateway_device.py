"""The gateway as a device: its own health as samples of the domain `gateway`, sent like any other."""

from __future__ import annotations

import asyncio
import shutil
from contextlib import suppress

import psutil

from edge_agent.config import Gateway
from edge_agent.health import Health
from edge_agent.intake import Intake
from edge_agent.outbox import Outbox
from exchange.delivery import Delivery
from exchange.readings import Value

METRICS = ("cpu", "memory", "disk_free", "outbox_depth", "unreceipted", "uplink_rtt", "bus_errors")
"""What a gateway says of itself."""


class GatewayDevice:
    """Measures the gateway every `interval_s`."""

    def __init__(
        self, gateway: Gateway, outbox: Outbox, delivery: Delivery, health: Health
    ) -> None:
        """Everything measured is read from these."""
        self._gateway = gateway
        self._outbox = outbox
        self._delivery = delivery
        self._health = health
        psutil.cpu_percent()  # the first call only begins the first interval

    async def run(self, intake: Intake) -> None:
        """Hand in a sample every interval, for ever."""
        loop = asyncio.get_running_loop()
        due_s = loop.time()
        while True:
            await intake.put("gateway", self._gateway.id, self.measure())
            due_s = max(due_s + self._gateway.interval_s, loop.time())
            await asyncio.sleep(due_s - loop.time())

    def measure(self) -> dict[str, Value]:
        """Return the gateway's metrics now."""
        metrics: dict[str, Value] = {
            "cpu": psutil.cpu_percent(),
            "memory": psutil.virtual_memory().percent,
            "outbox_depth": self._outbox.depth,
            "unreceipted": self._delivery.unreceipted + self._delivery.parked,
            "bus_errors": self._health.bus_errors,
        }
        with suppress(OSError):  # a folder that is gone is no reason to stop measuring
            metrics["disk_free"] = float(shutil.disk_usage(self._gateway.state_dir).free)
        if self._health.uplink_rtt_s is not None:
            metrics["uplink_rtt"] = round(self._health.uplink_rtt_s * 1000, 3)
        return metrics
