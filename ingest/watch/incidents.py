"""Incidents: what is wrong, since when, whose fault it is and how many devices it takes along."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Literal, get_args

import msgspec

from ingest.registry import DeviceId
from ingest.stores import FieldValue, Place, Point, Series

MEASUREMENT = "incident"
KEPT_MS = 366 * 86_400_000
"""So far back one may have begun that is still open."""

Kind = Literal["gateway_down", "gateway_gone", "device_down", "flapping", "row_clash", "two_gateways"]  # fmt: skip
Cause = Literal[
    "gateway_offline",
    "gateway_silent",
    "gateway_says",
    "silent",
    "states_emptied",
    "changes_often",
    "row_claimed_twice",
    "two_speak",
]
KINDS: tuple[Kind, ...] = get_args(Kind)


class Incident(msgspec.Struct, kw_only=True):
    """One incident. Units: milliseconds since 1970; `ended_ms` is 0 while it is open."""

    kind: Kind
    cause: str
    county: str
    site: str
    device: str
    """The culprit."""
    label: str
    domain: str = ""
    began_ms: int
    ended_ms: int = 0
    devices: int = 1

    @property
    def id(self) -> str:
        """Its name, for ever."""
        return f"{self.county}/{self.device}/{self.kind}/{self.began_ms}"

    @property
    def key(self) -> tuple[DeviceId, Kind]:
        """What there is one open incident of at most."""
        return DeviceId(self.county, self.device), self.kind

    def point(self, now_ms: int) -> Point:
        """Return its row: the same one from beginning to end."""
        fields: dict[str, FieldValue] = {
            "id": self.id,
            "kind": self.kind,
            "open": int(not self.ended_ms),
            "ended": self.ended_ms,
            "duration_s": max((self.ended_ms or now_ms) - self.began_ms, 0) / 1000,
            "devices": self.devices,
            "cause": self.cause,
            "label": self.label,
        }
        series = Series(MEASUREMENT, self.county, self.site, self.device, self.domain)
        # Incidents of one device that begin together have rows of their own.
        return Point(series, self.began_ms * 1_000_000 + KINDS.index(self.kind), fields)


def incident_of(point: Point) -> Incident | None:
    """Return the incident that a row tells of; None for a row that this version does not know."""
    fields, series = point.fields, point.series
    kind = fields.get("kind")
    if kind not in KINDS:
        return None
    return Incident(
        kind=kind,
        cause=str(fields.get("cause", "")),
        county=series.county,
        site=series.site,
        device=series.device,
        label=str(fields.get("label", "")),
        domain=series.domain,
        began_ms=point.time_ms,
        ended_ms=int(fields.get("ended", 0)),
        devices=int(fields.get("devices", 1)),
    )


class Book:
    """The open incidents, and those that changed since their rows were written."""

    def __init__(self) -> None:
        self._open: dict[tuple[DeviceId, Kind], Incident] = {}
        self._changed: dict[str, Incident] = {}
        self.open_at: Counter[Place] = Counter()
        """How many are open, by the culprit's place; in its county, where the place has no site."""

    def __iter__(self) -> Iterator[Incident]:
        """Yield the open ones."""
        return iter(list(self._open.values()))

    def __len__(self) -> int:
        return len(self._open)

    def get(self, name: DeviceId, kind: Kind) -> Incident | None:
        """Return the open one of a device."""
        return self._open.get((name, kind))

    def begin(self, incident: Incident) -> bool:
        """Open an incident; False, and nothing done, when it is open already."""
        if incident.key in self._open:
            return False
        self._open[incident.key] = incident
        self._count(incident, 1)
        self._changed[incident.id] = incident
        return True

    def change(
        self, incident: Incident, *, devices: int | None = None, cause: Cause | None = None
    ) -> None:
        """Note what became of an open one."""
        devices = incident.devices if devices is None else devices
        cause_now = cause or incident.cause
        if (devices, cause_now) != (incident.devices, incident.cause):
            incident.devices, incident.cause = devices, cause_now
            self._changed[incident.id] = incident

    def end(self, name: DeviceId, kind: Kind, now_ms: int) -> Incident | None:
        """Close the open one of a device, if there is one, and return it."""
        incident = self._open.pop((name, kind), None)
        if incident is not None:
            self._count(incident, -1)
            incident.ended_ms = max(now_ms, incident.began_ms + 1)
            self._changed[incident.id] = incident
        return incident

    def restore(self, incidents: Iterable[Incident]) -> None:
        """Go on with what an earlier run left open: what was begun anew meanwhile, is it; one of each stays."""
        restored: dict[tuple[DeviceId, Kind], Incident] = {}
        for incident in sorted(incidents, key=lambda one: one.began_ms):
            first = restored.setdefault(incident.key, incident)
            if first is not incident:
                incident.ended_ms = incident.began_ms + 1
            self._changed[incident.id] = incident
        for key, incident in restored.items():
            anew = self._open.get(key)
            if anew is not None:
                self._count(anew, -1)
                self._changed.pop(anew.id, None)
                incident.cause, incident.devices = anew.cause, anew.devices
            self._open[key] = incident
            self._count(incident, 1)

    def touch(self) -> None:
        """Have the rows of all open ones written again."""
        self._changed |= {incident.id: incident for incident in self._open.values()}

    def take_changed(self, now_ms: int) -> list[Point]:
        """Return the rows of what changed, each once."""
        changed, self._changed = self._changed, {}
        return [incident.point(now_ms) for incident in changed.values()]

    def _count(self, incident: Incident, by: int) -> None:
        for site in (incident.site, ""):
            self.open_at[Place(incident.county, site, incident.domain)] += by
