"""A device in service: what it says is judged, reported or withheld, and remembered for whoever asks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge_agent.quality import Judge, named
from edge_agent.report_by_exception import Reporter

if TYPE_CHECKING:
    from device_drivers.kit.driver import Reading
    from edge_agent.config import Device
    from edge_agent.health import DeviceHealth
    from edge_agent.report_by_exception import WithheldLog


class Attended:
    """One device, from the reading that its driver gives to the one that is sent.

    Shape: `metrics` are those that it reports, as far as they are known; `last` is its newest reading, `last_ms` when.
    Units: `last_ms` on the boot clock.
    """

    def __init__(
        self, device: Device, health: DeviceHealth, audit: WithheldLog | None = None
    ) -> None:
        """Nothing was read yet."""
        self.device = device
        self.health = health
        self.metrics = expected_metrics(device)
        self.last: Reading | None = None
        self.last_ms: int | None = None
        self._judge = Judge(device)
        self.reporter = Reporter(device, audit)

    def take(self, reading: Reading, boot_ms: int) -> Reading | None:
        """Return what is to be sent of a reading, None when that is nothing.

        Raises: msgspec.ValidationError when a driver's reading is none.
        """
        returned = self.health.failing is not None
        self.last = self._judge.judge(reading, boot_ms, returned=returned)
        self.last_ms = boot_ms
        return self.reporter.report(self.last, boot_ms, returned=returned)


def model_of(device: Device) -> str:
    """Return the model that the settings name, else the first that the profile knows."""
    settings = device.package.settings(device.settings)
    return str(getattr(settings, "model", device.package.profile.identity.models[0]))


def expected_metrics(device: Device) -> set[str]:
    """Return what a device of this model reports; an advertiser says so only on the air."""
    profile = device.package.profile
    if profile.completes == "advert":
        return set()
    model = model_of(device)
    variants = [name for name, variant in profile.variants.items() if model in variant.models]
    points = profile.points_of(variants[0]) if variants else profile.points
    return {named(point.metric, device) for point in points if point.metric}
