"""Alarms: when an incident begins, what belongs to it, and when it is over."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping

from exchange.topics import Topic
from ingest.registry import DeviceId, Registered, Registry
from ingest.watch.incidents import Book, Cause, Incident, Kind
from ingest.watch.judgement import Gateway, Watched
from ingest.watch.liveness import ALIVE, Status
from ingest.watch.moments import Now
from ingest.watch.remarks import Remarks

QUIET_S = 3600.0
"""A clash or a quarrel of gateways is over when it has not been seen for so long."""
FLAP_WINDOW_S, FLAP_REST_S = 3600.0, 1800.0


class Alarms:
    """The incidents of a lookout. `show` has a device's row written; `flaps_per_h` as in `Lookout`."""

    def __init__(
        self,
        registry: Registry,
        devices: Mapping[DeviceId, Watched],
        remarks: Remarks,
        *,
        flaps_per_h: int,
        show: Callable[[DeviceId], None],
    ) -> None:
        self.book = Book()
        self._registry = registry
        self._devices = devices
        self._remarks = remarks
        self._flaps = flaps_per_h
        self._show = show
        self._seen_s: dict[tuple[DeviceId, Kind], float] = {}

    def restore(self, incidents: Iterable[Incident], now: Now) -> None:
        """Go on with what an earlier run left open."""
        self.book.restore(incidents)
        for incident in self.book:
            self._seen_s[incident.key] = now.s
            name, kind = incident.key
            watched = self._devices.get(name)
            if watched is not None:
                self._show(name)
                if watched.status is Status.DOWN and kind in ("device_down", "gateway_down"):
                    watched.since_ms = incident.began_ms
                if kind == "flapping" and watched.status is not Status.MAINTENANCE:
                    # Whether it has calmed down is not known: its rest begins anew.
                    watched.flapping, watched.changed_s = True, now.s

    # One device

    def changed(self, watched: Watched, before: Status, cause: Cause | None, now: Now) -> None:
        """A device has another status; it is down of a `cause`."""
        known, status = watched.known, watched.status
        own: Kind = "gateway_down" if known.is_gateway else "device_down"
        if status is Status.DOWN and before in ALIVE:
            self._note_drop(watched, now)
        if cause is not None and not watched.flapping:
            self.down(known, cause, now)
            if (incident := self.book.get(known.name, own)) is not None:
                watched.since_ms = incident.began_ms
        elif status in (*ALIVE, Status.MAINTENANCE):
            ended = self.end(own, known.name, now)
            if status is Status.MAINTENANCE:
                watched.flapping = False
                self.end("flapping", known.name, now)
            elif ended is not None:
                self._say(logging.INFO, "%s is %s again", known.name.device, status.word, now=now)

    def down(self, known: Registered, cause: Cause, now: Now) -> None:
        """A device is down; nothing new when it was."""
        device = known.name.device
        if known.is_gateway:
            along = len(self._registry.behind(*known.behind)) - 1
            if self.open("gateway_down", cause, known, now, devices=along):
                words = "%s is down: nothing is known of %d devices"
                self._say(logging.WARNING, words, device, along, now=now)
        elif self.open("device_down", cause, known, now):
            self._say(logging.WARNING, "%s is down", device, now=now)

    def calm(self, watched: Watched, cause: Cause | None, now: Now) -> None:
        """A device has stopped to come and go."""
        watched.flapping, watched.drops = False, None
        self.end("flapping", watched.name, now)
        self._show(watched.name)
        if cause is not None:
            self.down(watched.known, cause, now)

    def is_damped(self, watched: Watched) -> bool:
        """Whether a change is none that anybody should be woken for: it, or its gateway, comes and goes."""
        gateway = self._devices.get(DeviceId(*watched.known.behind))
        return watched.flapping or (gateway is not None and gateway.flapping)

    def retired(self, name: DeviceId, now: Now) -> None:
        """A device is no more, and neither is what was wrong with it."""
        for kind in ("device_down", "gateway_down", "flapping", "row_clash", "two_gateways"):
            self.end(kind, name, now)

    # What is wrong between devices

    def occurred(self, kind: Kind, cause: Cause, known: Registered, now: Now) -> None:
        """Something is wrong that nobody says the end of."""
        self._seen_s[known.name, kind] = now.s
        self.open(kind, cause, known, now)

    def dispute(self, topic: Topic, known: Registered, now: Now) -> None:
        """A gateway speaks for a device of another one."""
        self._remarks.once("two gateways speak for one device", topic.device, str(topic))
        self.occurred("two_gateways", "two_speak", known, now)

    def take_along(self, known: Registered, since_ms: int, now: Now) -> None:
        """A device's gateway is silent since a moment: the silence of all behind it that was told since is its own."""
        for name in self._registry.behind(*known.behind):
            incident = self.book.get(name, "device_down")
            if incident is None or incident.cause != "silent":
                continue
            if incident.began_ms >= since_ms:
                self.end("device_down", name, now)

    def count_along(self, known: Registered) -> None:
        """Have the incident of a device's gateway say how many devices it takes along."""
        incident = self.book.get(DeviceId(*known.behind), "gateway_down")
        if incident is not None:
            behind = self._registry.behind(*known.behind)
            self.book.change(incident, devices=max(len(behind) - 1, 0))

    # All

    def look(self, gateways: Mapping[tuple[str, str], Gateway], now: Now, *, settled: bool) -> None:
        """End what is over without anybody saying so."""
        for incident in self.book:
            name, kind = incident.key
            watched = self._devices.get(name)
            if kind in ("row_clash", "two_gateways"):
                over = now.s - self._seen_s.get(incident.key, now.s) >= QUIET_S
            elif kind == "gateway_gone":
                gateway = gateways.get(name)
                over = settled and (gateway is None or gateway.gone_s is None)
            elif kind == "flapping":
                over = settled and (watched is None or not watched.flapping)
            else:
                over = settled and (watched is None or watched.status in ALIVE)
            if over:
                self.end(kind, name, now)

    def id_of(self, watched: Watched) -> str:
        """Return the id of the open incident that says most of a device, empty when there is none."""
        if not len(self.book):
            return ""
        known = watched.known
        gateway = DeviceId(*known.behind)
        asked: list[tuple[DeviceId, Kind]] = []
        if known.is_gateway or watched.status is Status.UNKNOWN:
            asked = [(gateway, "gateway_down"), (gateway, "gateway_gone"), (gateway, "flapping")]
        own: tuple[Kind, ...] = ("device_down", "flapping", "two_gateways", "row_clash")
        asked += [(known.name, kind) for kind in own]
        found = (self.book.get(name, kind) for name, kind in asked)
        return next((incident.id for incident in found if incident is not None), "")

    def open(
        self, kind: Kind, cause: Cause, known: Registered, now: Now, *, devices: int = 1
    ) -> bool:
        """Begin an incident; when it is open, tell it its cause and return False."""
        if (incident := self.book.get(known.name, kind)) is not None:
            self.book.change(incident, devices=devices, cause=cause)
            return False
        self._show(known.name)
        return self.book.begin(
            Incident(
                kind=kind,
                cause=cause,
                county=known.name.county,
                site=known.site,
                device=known.name.device,
                label=known.label,
                domain=known.domain,
                began_ms=now.ms,
                devices=devices,
            )
        )

    def end(self, kind: Kind, name: DeviceId, now: Now) -> Incident | None:
        """End an incident, if it is open, and return it."""
        ended = self.book.end(name, kind, now.ms)
        if ended is not None:
            self._seen_s.pop((name, kind), None)
            self._show(name)
        return ended

    def _note_drop(self, watched: Watched, now: Now) -> None:
        drops = [at_s for at_s in watched.drops or () if now.s - at_s < FLAP_WINDOW_S]
        watched.drops = [*drops, now.s][-self._flaps - 1 :]
        if len(watched.drops) > self._flaps and not watched.flapping:
            watched.flapping = True
            self.open("flapping", "changes_often", watched.known, now)
            self._say(logging.WARNING, "%s comes and goes", watched.name.device, now=now)

    def _say(self, level: int, words: str, *about: object, now: Now) -> None:
        self._remarks.change(level, words, *about, now_s=now.s)
