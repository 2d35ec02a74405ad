"""How the agent and its devices are doing: counted here, logged once when a device goes and once when it returns."""

from __future__ import annotations

import logging

from device_drivers.errors import DeviceRefused, DeviceSilent, LinkLost
from edge_agent.schedule import Breaker
from exchange.errors import DeviceError

log = logging.getLogger(__name__)

_AWAY = {DeviceSilent.__name__, DeviceRefused.__name__, LinkLost.__name__}


class DeviceHealth:
    """One device's record.

    Units: `lateness_s` is how late its last poll began; `next_probe_s` is when it is asked next, on the monotonic
    clock, None while its breaker is closed.
    """

    def __init__(self, device: str) -> None:
        """Nothing is known of it yet."""
        self.device = device
        self.readings = 0
        self.errors = 0
        self.outages = 0
        """How often it went from answering, or from the start, to failing."""
        self.missed = 0
        """Polls that were due while the bus had no time for them, or was away."""
        self.last_error: DeviceError | None = None
        self.failing: str | None = None
        self.lateness_s = 0.0
        self.breaker: Breaker = "closed"
        self.next_probe_s: float | None = None
        self._told: set[str] = set()

    @property
    def was_away(self) -> bool:
        """Whether it was silent, its bus lost, or what stands before it without it, since its last reading."""
        return not self._told.isdisjoint(_AWAY)

    def answered(self) -> None:
        """Note a reading."""
        self.readings += 1
        if self.failing is not None:
            log.info("device is back", extra={"device": self.device, "errors": self.errors})
            self.failing = None
            self._told.clear()

    def failed(self, error: DeviceError, bug: Exception | None = None) -> None:
        """Note that there was none; `bug` is what the driver should not have raised."""
        self.errors += 1
        self.last_error = error
        self.outages += self.failing is None
        self.failing = kind = type(error).__name__
        if kind not in self._told:  # a device that fails now so, now otherwise, says each once
            self._told.add(kind)
            log.warning(
                "device does not answer as it should",
                extra={"device": self.device, "kind": kind, "reason": str(error)},
                exc_info=bug,
            )


class Health:
    """The whole gateway's counts."""

    def __init__(self, devices: list[str]) -> None:
        """Begin at nought."""
        self.devices = {device: DeviceHealth(device) for device in devices}
        self.stored = 0
        self.refused = 0

    @property
    def bus_errors(self) -> int:
        """Errors of all devices since the start."""
        return sum(device.errors for device in self.devices.values())
