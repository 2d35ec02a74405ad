"""What each value is worth, said before it is sent: fitted to its domain, and marked where there is doubt.

Nothing that a device said is withheld for being doubtful: it is marked, and whoever reads it decides. Left out is only
what the exchange has no form for: what is no number, or not of its metric's type.

| Mark | When |
|---|---|
| `bad:range(metric)` | outside the dictionary's plausible range |
| `uncertain:range(metric)` | outside the limits that the configuration gives this device |
| `uncertain:rate(metric)` | changed faster than the dictionary's `max_rate_per_s` since the reading before |
| `uncertain:stuck(metric)` | has not changed by its resolution for `stuck_after_s` |
| `uncertain:warmup` | the profile's `warm_up_s` has not passed since the device's first answer, or its return |
| `bad:fault(metric)` | left out: no number, or not of its type |

Times are those of the boot clock, so that a wall clock that is set changes no judgement.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence, Set
from functools import cache
from math import nextafter
from operator import le
from typing import TYPE_CHECKING, Annotated, Final

import msgspec

from device_drivers.kit.driver import Reading
from device_drivers.kit.profile import Profile
from exchange.dictionary import VENDOR_METRIC, Metric, dictionary
from exchange.errors import ConfigError
from exchange.readings import MAX_NUMBER, QUALITY_MARK, Value, is_metric_name

if TYPE_CHECKING:
    from edge_agent.config import Device

DAY_S: Final = 86_400.0
STUCK_AFTER_S: Final[Mapping[str, Mapping[str, float]]] = {
    "air": {
        "noise": 3600.0,
        **dict.fromkeys(("pm1", "pm2_5", "pm4", "pm10", "co2", "temperature", "pressure"), DAY_S),
    },
    "weather": dict.fromkeys(("temperature", "pressure", "illuminance"), DAY_S),
}
"""After how long without any change a sensor is doubted, where nothing else is configured.

Outdoors the day alone moves temperature, pressure, light, carbon dioxide and dust by more than a step of any sensor,
and sound never stands still. What may rest is not here: humidity in fog, wind in a calm, rain, gases below what their
sensor can see, a lamp's level, a meter without a load, whatever is switched.
"""
SILENT_INTERVALS: Final = 2.5
"""A device that was away for longer may have lost its power meanwhile."""

MAX_NAMES: Final = 4096
"""Metrics of one driver whose names are remembered."""
MAX_SHAPES: Final = 16
"""Sets of metrics of one device that are remembered: an advertiser has a few."""

_MARK: Final = re.compile(QUALITY_MARK)
_LARGEST: Final = nextafter(MAX_NUMBER, 0.0)
_UNREADABLE: Final = "uncertain:fault"
"""Stands for a driver's mark that the exchange does not know: something is wrong, it cannot be said what."""


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one metric of a device may do. Units: `min` and `max` in the metric's, both plausible still."""

    min: float | None = None
    max: float | None = None
    stuck_after_s: Annotated[float, msgspec.Meta(ge=0)] | None = None
    """0 is never; left out, it is the domain's (`STUCK_AFTER_S`)."""


def check_limits(device: Device) -> None:
    """Check that the limits are of its domain's numbers, and narrower. Raises: ConfigError, its file empty."""
    metrics = dictionary()[device.domain].metrics
    for name, limits in device.limits.items():
        rule = metrics.get(name)
        if rule is None and not VENDOR_METRIC.fullmatch(name):
            allowed = f"one of {', '.join(metrics)}, or x-vendor-name 只能是其中之一"
            raise ConfigError("", f"limits.{name}", name, allowed)
        if rule and rule.type == "boolean":
            raise ConfigError(
                "", f"limits.{name}", name, "a number: a boolean has no limits 布林值沒有上下限"
            )
        low, high = _range(rule)
        if limits.min is not None:
            _check_within(f"limits.{name}.min", limits.min, low, high)
            low = limits.min
        if limits.max is not None:
            _check_within(f"limits.{name}.max", limits.max, low, high)


def _check_within(key: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ConfigError("", key, value, f"from {low:g} to {high:g} 須在此範圍內")


# ------------------------------------------------------------------------------------------------------- fitting


def named(metric: str, device: Device) -> str:
    """Return a driver's metric as the exchange calls it: what the domain lacks is the vendor's own."""
    return _places(device.domain, device.vendor)[metric][0]


def fitted(reading: Reading, device: Device) -> Reading:
    """Return the reading as its domain may carry it, its marks in order.

    A metric that the domain lacks is the vendor's own; a value that the exchange has no form for is left out and
    marked. Raises: msgspec.ValidationError when a driver's reading is none.
    """
    reading = _checked(reading)
    places = _places(device.domain, device.vendor)
    metrics: dict[str, Value] = {}
    marks: list[str] = []
    for given, value in reading.metrics.items():
        name, kind = places[given]
        if not kind:
            marks.append(_UNREADABLE)
        elif not _is_of_kind(value, kind):
            marks.append(f"bad:fault({name})")
        else:
            metrics[name] = float(value) if kind == "vendor" else value
    if reading.quality:
        marks = [*_renamed(reading.quality, places), *marks]
    return Reading(metrics, merged(marks) if marks else "")


def _checked(reading: Reading) -> Reading:
    """Return what a driver said, if it is what its type promises: a driver may be anybody's."""
    if (
        type(reading) is Reading
        and type(reading.metrics) is dict
        and type(reading.quality) is str
        and set(map(type, reading.metrics)) <= {str}
        and set(map(type, reading.metrics.values())) <= {float, int, bool}
    ):
        return reading
    return msgspec.convert(msgspec.to_builtins(reading), Reading)


def merged(marks: Iterable[str]) -> str:
    """Return the marks as one quality: each reason once, in its worse grade, and not of a metric what is of all."""
    grades: dict[tuple[str, str], str] = {}
    for text in marks:
        found = _MARK.fullmatch(text) or _MARK.fullmatch(_UNREADABLE)
        assert found is not None
        grade, reason, metric = found[1], found[2], found[3] or ""
        if grades.get((reason, metric)) != "bad":
            grades[reason, metric] = grade
    return ";".join(
        f"{grade}:{reason}({metric})" if metric else f"{grade}:{reason}"
        for (reason, metric), grade in grades.items()
        if not metric or grades.get((reason, "")) not in ("bad", grade)
    )


class _Places(dict[str, tuple[str, str]]):
    """A driver's metrics in a domain: the name there, and its type: `vendor` for a vendor's own, empty for no name."""

    def __init__(self, domain: str, vendor: str) -> None:
        super().__init__()
        self._domain, self._vendor = domain, vendor

    def __missing__(self, metric: str) -> tuple[str, str]:
        name = metric if is_metric_name(self._domain, metric) else f"x-{self._vendor}-{metric}"
        rule = dictionary()[self._domain].metrics.get(name)
        kind = rule.type if rule else "vendor" if VENDOR_METRIC.fullmatch(name) else ""
        if len(self) < MAX_NAMES:
            self[metric] = name, kind
        return name, kind


@cache
def _places(domain: str, vendor: str) -> _Places:
    return _Places(domain, vendor)


def _is_of_kind(value: Value, kind: str) -> bool:
    if kind == "vendor":
        return (
            abs(value) < MAX_NUMBER
        )  # false of what is not finite, too; a boolean becomes a number
    if type(value) is bool or kind == "boolean":
        return type(value) is bool and kind == "boolean"
    return abs(value) < MAX_NUMBER and (kind == "float" or value % 1 == 0)


def _renamed(quality: str, places: _Places) -> list[str]:
    """Return a driver's marks, by the names that its metrics have from now on."""
    marks = quality.split(";")
    for index, text in enumerate(marks):
        if (found := _MARK.fullmatch(text)) and found[3]:
            marks[index] = f"{found[1]}:{found[2]}({places[found[3]][0]})"
    return marks


# ------------------------------------------------------------------------------------------------------- judging


class _Track:
    """What one metric may do, and what it did last."""

    __slots__ = (
        "_high", "_last", "_last_ms", "_low", "_name", "_own_high", "_own_low", "_rate_per_ms",
        "_resolution", "_rested_ms", "_resting", "_stuck_after_ms",
    )  # fmt: skip

    def __init__(self, name: str, rule: Metric | None, limits: Limits, resolution: float) -> None:
        """`rule` is the dictionary's; a vendor's metric has none."""
        self._name, self._resolution = name, resolution
        self._low, self._high = _range(rule)
        self._own_low = self._low if limits.min is None else limits.min
        self._own_high = self._high if limits.max is None else limits.max
        rate_per_s = rule.max_rate_per_s if rule else None
        self._rate_per_ms = None if rate_per_s is None else rate_per_s / 1000
        self._stuck_after_ms = 1000 * (limits.stuck_after_s or 0)
        self._last: float | None = None
        self._last_ms = 0
        self._resting: float | None = None
        self._rested_ms = 0

    @property
    def limits(self) -> tuple[float, float]:
        """Between them no value is out of range."""
        return self._own_low, self._own_high

    @property
    def remembers(self) -> bool:
        """Whether a value is judged by those before it."""
        return self._rate_per_ms is not None or self._stuck_after_ms > 0

    def begin_anew(self) -> None:
        """The device was away: that a value is the same as before says nothing."""
        self._resting = None

    def judge(self, value: float, boot_ms: int, marks: list[str]) -> None:
        """Add what is doubtful about the value to the marks."""
        if not self._own_low <= value <= self._own_high:
            bad = not self._low <= value <= self._high
            marks.append(f"{'bad' if bad else 'uncertain'}:range({self._name})")
            if bad:
                return  # nothing to measure the next value against
        if self._rate_per_ms is not None:
            if self._last is not None and (passed_ms := boot_ms - self._last_ms) > 0:
                # Two rounded values differ by up to a step more than what they stand for.
                most = self._rate_per_ms * passed_ms + self._resolution * 1.000001
                if abs(value - self._last) > most:
                    marks.append(f"uncertain:rate({self._name})")
            self._last, self._last_ms = value, boot_ms
        if self._stuck_after_ms:
            if self._resting is None or self._has_changed(value - self._resting):
                self._resting, self._rested_ms = value, boot_ms
            elif boot_ms - self._rested_ms >= self._stuck_after_ms:
                marks.append(f"uncertain:stuck({self._name})")

    def _has_changed(self, by: float) -> bool:
        return by != 0 and abs(by) > 0.5 * self._resolution  # one step, however it is rounded


class _Shape:
    """Readings that name the same metrics, of numbers alone: what most devices say most of the time.

    Such a reading without any doubt is recognised as a whole, at a tenth of what it costs to look at each value.
    """

    __slots__ = ("_highs", "_lows", "_names", "_types", "remembering")

    def __init__(
        self, names: Sequence[str], tracks: Sequence[_Track], types: Set[type[Value]]
    ) -> None:
        """`names` are the exchange's, in the order of what the driver gives; `types` what it may give."""
        self._names, self._types = names, types
        self._lows = [max(track.limits[0], -_LARGEST) for track in tracks]
        self._highs = [min(track.limits[1], _LARGEST) for track in tracks]
        self.remembering = [
            (name, track) for name, track in zip(names, tracks, strict=True) if track.remembers
        ]

    def fitted(self, reading: Reading) -> Reading | None:
        """Return the reading as its domain carries it; None when each value has to be looked at."""
        if reading.quality != "":
            return None
        values = list(reading.metrics.values())
        if (
            set(map(type, values)) <= self._types
            and all(map(le, self._lows, values))  # of what is no number neither is true
            and all(map(le, values, self._highs))
        ):
            return Reading(dict(zip(self._names, values, strict=True)))
        return None


class Judge:
    """Judges what one device says."""

    def __init__(self, device: Device) -> None:
        """The limits are the dictionary's, the profile's and the configuration's."""
        self._device = device
        profile = device.package.profile
        self._warm_up_ms = round(1000 * profile.timing.warm_up_s)
        away_s = max(SILENT_INTERVALS * device.interval_s, profile.transport.timeout_s)
        self._away_ms = 1000 * away_s
        self._resolutions = _resolutions(profile, device)
        self._tracks: dict[str, _Track] = {}
        self._shapes: dict[tuple[str, ...], _Shape] = {}
        self._last_ms: int | None = None
        self._cold_until_ms = 0

    def judge(self, reading: Reading, boot_ms: int, *, returned: bool = False) -> Reading:
        """Return the reading fitted to its domain, and with its marks.

        Shape: `returned` says that the device did not answer as it should since its last reading.
        Raises: msgspec.ValidationError when a driver's reading is none.
        """
        is_reading = type(reading) is Reading and type(reading.metrics) is dict
        given = tuple(reading.metrics) if is_reading else ()
        shape = self._shapes.get(given)
        sound = shape and shape.fitted(reading)
        reading = sound or fitted(reading, self._device)
        self._note_presence(boot_ms, returned)
        marks: list[str] = []
        if boot_ms < self._cold_until_ms:
            marks.append("uncertain:warmup")
        if shape is not None and sound is not None:
            for name, track in shape.remembering:
                track.judge(reading.metrics[name], boot_ms, marks)
        else:
            for name, value in reading.metrics.items():
                if value is not True and value is not False:
                    self._track(name).judge(value, boot_ms, marks)
            if shape is None and len(self._shapes) < MAX_SHAPES:
                self._note_shape(given)
        if not marks:
            return reading
        if reading.quality:
            marks = [*reading.quality.split(";"), *marks]
        return Reading(reading.metrics, merged(marks))

    def _note_presence(self, boot_ms: int, returned: bool) -> None:
        """After the first answer, and after one that was long in coming, the device has to warm up."""
        last_ms, self._last_ms = self._last_ms, boot_ms
        if last_ms is None or (returned and boot_ms - last_ms > self._away_ms):
            self._cold_until_ms = boot_ms + self._warm_up_ms
            for track in self._tracks.values():
                track.begin_anew()

    def _note_shape(self, given: tuple[str, ...]) -> None:
        """Compile what is known of readings with these metrics, unless some of them are no plain numbers."""
        device = self._device
        places = [_places(device.domain, device.vendor)[name] for name in given]
        kinds = {kind for _, kind in places}
        if given and kinds <= {"float", "vendor"}:
            names = [name for name, _ in places]
            # a vendor's numbers become floats
            types: set[type[Value]] = {float, int} if kinds == {"float"} else {float}
            self._shapes[given] = _Shape(names, [self._track(name) for name in names], types)

    def _track(self, name: str) -> _Track:
        if (track := self._tracks.get(name)) is not None:
            return track
        device = self._device
        limits = device.limits.get(name, Limits())
        if limits.stuck_after_s is None:
            stuck_after_s = STUCK_AFTER_S.get(device.domain, {}).get(name)
            limits = msgspec.structs.replace(limits, stuck_after_s=stuck_after_s)
        rule = dictionary()[device.domain].metrics.get(name)
        track = _Track(name, rule, limits, self._resolutions.get(name, 0.0))
        self._tracks[name] = track
        return track


def _range(rule: Metric | None) -> tuple[float, float]:
    return rule.range if rule and rule.range else (float("-inf"), float("inf"))


def _resolutions(profile: Profile, device: Device) -> dict[str, float]:
    """Return the smallest step of each metric that is a scaled whole number; a float has none."""
    steps: dict[str, float] = {}
    for point in profile.points:
        if point.metric and not point.type.startswith("float"):
            name, step = named(point.metric, device), abs(point.scale * point.factor)
            steps[name] = min(step, steps.get(name, step))
    return steps
