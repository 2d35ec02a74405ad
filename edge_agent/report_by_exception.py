"""Report by exception: what has not changed is not said again before its heartbeat.

A sample is what was measured at one time: it is reported whole or withheld whole, so that a metric that is missing in a
sample is missing at the device. It is withheld when every metric in it is within the deadband of the value reported
last and has its heartbeat yet to come. Reported at once, always: another quality, another boolean, a metric that came
or went, and a device that is back. Without any rule, everything is reported.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from errno import ENOSPC
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, NamedTuple

import msgspec

from device_drivers.kit.driver import Reading
from exchange.dictionary import dictionary
from exchange.errors import ConfigError
from exchange.readings import Value, is_metric_name

if TYPE_CHECKING:
    from edge_agent.config import Device

log = logging.getLogger(__name__)

ALL_OTHERS: Final = "*"
WITHHELD_FILE: Final = "withheld.jsonl"
NotNegative = Annotated[float, msgspec.Meta(ge=0)]


class ReportRule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When one metric of a device is worth a sample.

    Shape: within either deadband is within; a boolean has none. `inf` is a metric that is never worth one by itself.
    Units: `deadband` in the metric's, `deadband_percent` of the value reported last.
    """

    deadband: NotNegative = 0.0
    deadband_percent: NotNegative = 0.0
    heartbeat_s: Annotated[float, msgspec.Meta(ge=1, le=7 * 86400)] = 300.0


class ReportSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The table `[report]`: an audit writes what is withheld to `state_dir`, in at most `audit_mb` of files."""

    audit: bool = False
    audit_mb: Annotated[float, msgspec.Meta(ge=0.01, le=100_000)] = 16.0


def check_report(device: Device) -> None:
    """Check that the rules are of metrics that its domain can have. Raises: ConfigError, its file empty."""
    for name in device.report:
        if name != ALL_OTHERS and not is_metric_name(device.domain, name):
            known = ", ".join(dictionary()[device.domain].metrics)
            allowed = (
                f"one of {known}, x-vendor-name, or {ALL_OTHERS} for all others 只能是其中之一"
            )
            raise ConfigError("", f"report.{name}", name, allowed)


class Paces(NamedTuple):
    """The longest that nothing comes of a device, and of each of its metrics. Units: s."""

    interval_s: float
    metrics: dict[str, float]


def paces(device: Device, metrics: Iterable[str]) -> Paces:
    """Return what a state has to say of these metrics, so that a quiet device is not taken for a dead one."""
    if not device.report:
        return Paces(device.interval_s, dict.fromkeys(metrics, device.interval_s))
    rest = _rest(device)
    each = {
        name: max(device.interval_s, device.report.get(name, rest).heartbeat_s) for name in metrics
    }
    rules = [*device.report.values(), rest]
    if device.package.profile.completes == "advert" or not each:
        # An advert holds what its sensor likes: no single metric in it can be relied on.
        return Paces(max(device.interval_s, *(rule.heartbeat_s for rule in rules)), each)
    return Paces(min(each.values()), each)


def _rest(device: Device) -> ReportRule:
    """Return the rule of metrics that have none: any change, and as often as the others."""
    shortest_s = min(rule.heartbeat_s for rule in device.report.values())
    return device.report.get(ALL_OTHERS, ReportRule(heartbeat_s=shortest_s))


class Reporter:
    """Decides what is reported of one device; counts `taken` = `reported` + `withheld`."""

    def __init__(self, device: Device, audit: WithheldLog | None = None) -> None:
        """An `audit` gets what is withheld."""
        self.taken = self.reported = self.withheld = 0
        self._device, self._audit = device, audit
        self._rest = _rest(device) if device.report else ReportRule()
        self._is_whole = device.package.profile.completes != "advert"
        self._last: dict[str, tuple[Value, int]] = {}
        self._quality = ""

    def report(self, reading: Reading, boot_ms: int, *, returned: bool = False) -> Reading | None:
        """Return the reading if it is to be reported, None if it is withheld.

        Shape: `returned` says that the device did not answer as it should since its last reading.
        """
        self.taken += 1
        if not self._device.report:
            self.reported += 1
            return reading
        metrics = reading.metrics
        if (
            returned
            or reading.quality != self._quality
            or (self._is_whole and metrics.keys() != self._last.keys())
            or any(self._is_due(name, value, boot_ms) for name, value in metrics.items())
        ):
            self.reported += 1
            self._quality = reading.quality
            if self._is_whole:
                self._last.clear()
            self._last.update((name, (value, boot_ms)) for name, value in metrics.items())
            return reading
        self.withheld += 1
        if self._audit is not None:
            same = all(self._last[name][0] == value for name, value in metrics.items())
            self._audit.note(
                Withheld(
                    device=self._device.id,
                    reading=self.taken,
                    boot_ms=boot_ms,
                    reason="unchanged" if same else "deadband",
                    metrics=metrics,
                    quality=reading.quality,
                )
            )
        return None

    def _is_due(self, name: str, value: Value, boot_ms: int) -> bool:
        if name not in self._last:
            return True
        last, at_ms = self._last[name]
        rule = self._device.report.get(name, self._rest)
        # The reading nearest to the heartbeat is the one that makes it: none comes exactly then.
        if boot_ms - at_ms >= 1000 * (rule.heartbeat_s - self._device.interval_s / 2):
            return True
        if isinstance(value, bool) or isinstance(last, bool):
            return value is not last
        deadband = max(rule.deadband, rule.deadband_percent / 100 * abs(last))
        return abs(value - last) > deadband


# ---------------------------------------------------------------------------------------------------------- audit


class Withheld(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One reading that was not reported.

    Shape: `reading` is its number among its device's since the agent's start, from 1: what is neither here nor
    reported is missing.
    """

    device: str
    reading: int
    boot_ms: int
    reason: str
    metrics: dict[str, Value]
    quality: str = ""
    time_ms: int = 0


class WithheldLog:
    """JSON lines of what is withheld, in two files of at most half the bytes each: the older one is `….1`."""

    def __init__(self, folder: Path, settings: ReportSettings, now_ms: Callable[[], int]) -> None:
        """`now_ms` is the wall clock, as well as it is known. Nothing is opened yet."""
        self.path = folder / WITHHELD_FILE
        self.lost = 0
        self._most_bytes = round(settings.audit_mb * 500_000)
        self._now_ms = now_ms
        self._encode = msgspec.json.Encoder().encode

    def note(self, withheld: Withheld) -> None:
        """Write one line. What the disk does not take is counted: an audit must not stop the agent."""
        line = self._encode(msgspec.structs.replace(withheld, time_ms=self._now_ms())) + b"\n"
        try:
            with suppress(FileNotFoundError):
                if self.path.stat().st_size + len(line) > self._most_bytes:
                    self.path.replace(self.path.with_name(f"{WITHHELD_FILE}.1"))
            with self.path.open("ab", buffering=0) as file:
                before = file.tell()
                if file.write(line) != len(line):
                    file.truncate(before)  # half a line would spoil the next one, too
                    raise OSError(ENOSPC, os.strerror(ENOSPC))
        except OSError as error:
            if not self.lost:
                log.error("what is withheld cannot be written down", extra={"reason": str(error)})
            self.lost += 1
