"""How the agent and its devices are doing: counted here, logged once when a device goes and once when it returns."""

from __future__ import annotations

import logging

from exchange.errors import DeviceError

log = logging.getLogger(__name__)


class DeviceHealth:
    """One device's record."""

    def __init__(self, device: str) -> None:
        """Nothing is known of it yet."""
        self.device = device
        self.readings = 0
        self.errors = 0
        self.last_error: DeviceError | None = None
        self.failing: str | None = None

    def answered(self) -> None:
        """Note a reading."""
        self.readings += 1
        if self.failing is not None:
            log.info("device is back", extra={"device": self.device, "errors": self.errors})
            self.failing = None

    def failed(self, error: DeviceError, bug: Exception | None = None) -> None:
        """Note that there was none; `bug` is what the driver should not have raised."""
        self.errors += 1
        self.last_error = error
        kind = type(error).__name__
        if self.failing != kind:
            log.warning(
                "device does not answer as it should",
                extra={"device": self.device, "kind": kind, "reason": str(error)},
                exc_info=bug,
            )
            self.failing = kind


class Health:
    """The whole gateway's counts."""

    def __init__(self, devices: list[str]) -> None:
        """Begin at nought."""
        self.devices = {device: DeviceHealth(device) for device in devices}
        self.stored = 0
        self.refused = 0
        self.uplink_rtt_s: float | None = None

    @property
    def bus_errors(self) -> int:
        """Errors of all devices since the start."""
        return sum(device.errors for device in self.devices.values())
