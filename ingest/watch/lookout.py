"""The lookout: judges every device by what it hears. Knows no broker and no store, and time as it is told.

Who is due is asked of a wheel, so that 200,000 devices cost what happens and not what there is. Rows are made when
they are fetched: while the store is away nothing piles up but names.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from random import Random
from typing import NamedTuple

import msgspec

from exchange.readings import Sample
from exchange.states import State
from exchange.topics import Topic
from ingest.continuity import Continuity, Findings
from ingest.registry import Change, DeviceId, Registered, Registry
from ingest.stores import Point
from ingest.watch.days import Day, Days
from ingest.watch.figures import Calendar, Figures
from ingest.watch.incidents import Book, Cause, Incident, Kind
from ingest.watch.liveness import LATE_GRACE_S, Losses, Status, down_s, late_s
from ingest.watch.maintenance import Schedule, Window
from ingest.watch.rows import (
    Place,
    Shown,
    device_day_row,
    device_row,
    retired_row,
    site_day_row,
    site_row,
)
from ingest.watch.wheel import Wheel

log = logging.getLogger(__name__)

TICK_S = 0.05
SITE_EVERY_S, SITE_REST_S = 60.0, 5.0
DAY_EVERY_S = 600.0
QUIET_S = 3600.0
"""A clash or a quarrel of gateways is over when it has not been seen for so long."""
FLAP_WINDOW_S, FLAP_REST_S = 3600.0, 1800.0
ORPHANED_AFTER_S = 60.0
"""States that are emptied with their gateway's: so long they may be meant; then they wait for another gateway."""
ORPHANS_FOR_S = 72 * 3600.0
SETTLED_AFTER_S = 120.0
"""After the connection: who has no retained state by then, has none."""
MAX_LINES, LINES_WINDOW_S = 30, 60.0
MAX_TOLD = 100_000
_NEVER_S = float("-inf")
_ALIVE = (Status.UP, Status.LATE)


class Now(NamedTuple):
    """A moment by two clocks: the monotonic one in seconds, UTC in milliseconds."""

    s: float
    ms: int


class Counts(msgspec.Struct):
    """What the watch has seen."""

    states: int = 0
    bad_states: int = 0
    disputes: int = 0
    missing: int = 0
    findings: Findings = msgspec.field(default_factory=Findings)


class _Watched(msgspec.Struct, gc=False, eq=False):
    """A device between its first state and its retirement. Times in seconds are of the monotonic clock."""

    name: DeviceId
    place: Place
    calendar: Calendar
    begun_s: float
    since_ms: int
    accrued_ms: int
    written_s: float
    due_s: float = 0.0
    heard_s: float = _NEVER_S
    changed_s: float = _NEVER_S
    status: Status = Status.UNKNOWN
    flapping: bool = False
    before_is_due: bool = False
    has_today: bool = False
    has_before: bool = False
    losses: Losses = msgspec.field(default_factory=Losses)
    continuity: Continuity = msgspec.field(default_factory=Continuity)
    drops: list[float] | None = None


class _Gateway(msgspec.Struct, eq=False):
    """What is known of a gateway beside its state."""

    heard_s: float = _NEVER_S
    back_s: float = _NEVER_S
    is_silent: bool = False
    gone_s: float | None = None


class _Site(msgspec.Struct, eq=False):
    """The devices of one domain in one site."""

    calendar: Calendar
    accrued_ms: int
    counts: list[int] = msgspec.field(default_factory=lambda: [0] * len(Status))
    located: int = 0
    lat_sum: float = 0.0
    lon_sum: float = 0.0
    written_s: float = _NEVER_S
    day_written_s: float = _NEVER_S
    changed: bool = True
    before_is_due: bool = False


class _Cleared(msgspec.Struct, eq=False):
    """Devices of one gateway whose states were emptied a moment ago."""

    at_s: float
    devices: dict[DeviceId, Registered]
    gateway: Registered | None = None


class _Left(NamedTuple):
    """What a retired device had: should it come back today, its day goes on."""

    calendar: Calendar
    losses: Losses
    has_today: bool
    has_before: bool


class Restored(NamedTuple):
    """What the store tells of a device's day."""

    day: Day
    figures: Figures
    losses: Losses


class Lookout:
    """Every device, judged. `flaps_per_h` is how often one may go down in an hour and still be news each time."""

    def __init__(
        self,
        days: Callable[[str], Days],
        *,
        every_s: float,
        flaps_per_h: int,
        random: Random | None = None,
    ) -> None:
        self.counts = Counts()
        self.registry = Registry()
        self.book = Book()
        self._days = days
        self._every_s = every_s
        self._flaps = flaps_per_h
        self._random = random or Random()  # noqa: S311 - spreads rows, hides nothing
        self._watched: dict[DeviceId, _Watched] = {}
        self._gateways: dict[tuple[str, str], _Gateway] = {}
        self._sites: dict[Place, _Site] = {}
        self._places: dict[Place, Place] = {}
        self._cleared: dict[tuple[str, str], _Cleared] = {}
        self._left: dict[DeviceId, _Left] = {}
        self._quiet: dict[tuple[DeviceId, Kind], float] = {}
        self._schedule = Schedule()
        self._wheel: Wheel[_Watched] = Wheel(TICK_S)
        self._due_rows: dict[DeviceId, None] = {}
        self._last_rows: dict[tuple[str, DeviceId], Point] = {}
        self._round: Iterator[DeviceId] = iter(())
        self._round_credit = 0.0
        self._seeing_s: float | None = None
        self._swept: Now | None = None
        self._minute_s = _NEVER_S
        self._lines, self._unsaid = 0, 0
        self._lines_since_s = _NEVER_S
        self._told: set[tuple[str, str]] = set()

    # What is heard

    def take_state(self, topic: Topic, state: State | None, now: Now) -> None:
        """Take a device's state, None for one that is emptied."""
        self.counts.states += 1
        name = DeviceId(topic.county, topic.device)
        before = self.registry.devices.get(name)
        change = self.registry.apply(topic, state)
        if change is Change.DISPUTED:
            self._dispute(topic, now)
        elif change is Change.RETIRED:
            assert before is not None
            self._clear(name, before, now)
        elif change is Change.SET:
            self._take_over(name, before, now)

    def take_readings(self, topic: Topic, samples: Sequence[Sample], now: Now) -> None:
        """Take a device's samples."""
        name = DeviceId(topic.county, topic.device)
        known = self.registry.devices.get(name)
        if known is None:
            self._tell("readings of a device without a state", topic.device, str(topic))
            return
        watched = self._watched[name]
        gateway = self._gateway(known.topic)
        if known.topic.gateway != topic.gateway:
            self._dispute(topic, now)
        self._count(watched, known, samples, now)
        # A backlog says nothing of now.
        patience = watched.losses.patience(known.interval_s, known.transport)
        limit_ms = 1000 * down_s(known.interval_s, patience)
        if not any(abs(now.ms - sample.time_ms) <= limit_ms for sample in samples):
            return
        if self._is_steady(watched, known, gateway):
            watched.losses.note(now.s - watched.heard_s, known.interval_s)
        watched.heard_s = gateway.heard_s = now.s
        if gateway.is_silent:
            gateway.is_silent, gateway.back_s = False, now.s
            self._look_at_gateway(known.topic, now)
        if watched.status is not Status.UP:
            self._look(watched, now)

    def blind(self, now: Now) -> None:
        """Nothing is heard from now on: nobody is judged, and time counts for nothing."""
        if self._seeing_s is not None:
            self._accrue_all(now)
            self._seeing_s = None

    def seeing(self, now: Now, *, continued: bool) -> None:
        """Everything is heard from now on; unless it is `continued`, something may have passed unseen."""
        self.blind(now)
        self._seeing_s = now.s
        self._minute_s = now.s
        for watched in self._watched.values():
            watched.accrued_ms = max(watched.accrued_ms, now.ms)
            if not continued:
                watched.continuity.interrupt()
            self._plan(watched, now.s + self._random.uniform(0.0, 1.0))
        for site in self._sites.values():
            site.accrued_ms = max(site.accrued_ms, now.ms)

    def set_windows(self, windows: Sequence[Window], now: Now) -> None:
        """Take other maintenance windows."""
        self._schedule = Schedule(windows)
        self._look_at_all(now)

    def restore_incidents(self, incidents: Iterable[Incident], now: Now) -> None:
        """Go on with what an earlier run left open."""
        self.book.restore(incidents)
        for incident in self.book:
            self._quiet[incident.key] = now.s
            name, kind = incident.key
            watched = self._watched.get(name)
            if watched is not None:
                self._due_rows[name] = None
                if watched.status is Status.DOWN and kind in ("device_down", "gateway_down"):
                    watched.since_ms = incident.began_ms

    def restore_day(self, name: DeviceId, one: Restored) -> None:
        """Add what an earlier run counted of a device's day, once however often it is told."""
        watched = self._watched.get(name)
        if watched is None:
            return
        calendar = watched.calendar
        if one.day == calendar.day and not watched.has_today:
            watched.has_today, watched.losses = True, one.losses
            calendar.today += one.figures
        elif one.day.end_ms == calendar.day.start_ms and not watched.has_before:
            watched.has_before = True
            before = calendar.before or Figures()
            before += one.figures
            calendar.day_before, calendar.before = one.day, before
            if not watched.has_today:
                watched.losses = one.losses

    def restore_site(self, place: Place, day: Day, figures: Figures, now: Now) -> None:
        """Add what an earlier run counted of a site's day."""
        calendar = self._site(place, now).calendar
        if day == calendar.day:
            calendar.today += figures
        elif day.end_ms == calendar.day.start_ms:
            before = calendar.before or Figures()
            before += figures
            calendar.day_before, calendar.before = day, before

    # What time does

    def sweep(self, now: Now) -> None:
        """Look at whoever is due."""
        before, self._swept = self._swept, now
        if self._seeing_s is None:
            return
        if before is not None and self._schedule.changed_between(before.ms, now.ms):
            self._look_at_all(now)
        for watched in self._wheel.due(now.s):
            # A tick of tolerance: slots are rounded, and who is skipped is not looked at again.
            if watched.due_s <= now.s + TICK_S and self._watched.get(watched.name) is watched:
                self._look(watched, now)
        if self._cleared:
            self._look_for_orphans(now)
        if now.s - self._minute_s >= SITE_EVERY_S:
            self._minute_s = now.s
            self._look_at_incidents(now)
        if self._unsaid and now.s - self._lines_since_s >= LINES_WINDOW_S:
            log.warning("and %d further changes of devices", self._unsaid)
            self._unsaid = 0

    def status(self, name: DeviceId) -> Status | None:
        """Return how a device is, None when it is not known."""
        watched = self._watched.get(name)
        return None if watched is None else watched.status

    def figures(self, name: DeviceId, now: Now) -> Figures:
        """Return a device's figures of today so far."""
        watched = self._watched[name]
        self._accrue(watched, now)
        return watched.calendar.today

    # What is written

    def rows(self, now: Now, limit: int, *, incidents: bool = True) -> list[Point]:
        """Return rows that are due, each once; those of `incidents` not before earlier ones are known."""
        found = self.book.take_changed(now.ms) if incidents else []
        found += self._last_rows.values()
        self._last_rows.clear()
        found += self._site_rows(now)
        while self._due_rows and len(found) < limit:
            name, _ = self._due_rows.popitem()
            watched = self._watched.get(name)
            if watched is not None:
                found.append(self._row(watched, now))
        if not self._due_rows:
            self._due_rows = {}  # one that was large stays so
        return found

    def day_rows(self, now: Now, for_s: float) -> list[Point]:
        """Return what is due of the days' figures after `for_s` of a round that takes DAY_EVERY_S."""
        found = self._site_days(now)
        self._round_credit = min(
            self._round_credit + len(self._watched) * for_s / DAY_EVERY_S, 1000.0
        )
        while self._round_credit >= 1.0:
            self._round_credit -= 1.0
            name = next(self._round, None)
            if name is None:
                self._round = iter(list(self._watched))
                break
            if (watched := self._watched.get(name)) is not None:
                found += self._device_days(watched, now)
        return found

    def last_rows(self, now: Now) -> Iterator[Point]:
        """Yield the figures of every device and site, for an orderly end."""
        for site in self._sites.values():
            site.day_written_s = _NEVER_S
        yield from self._site_days(now)
        for watched in self._watched.values():
            yield from self._device_days(watched, now)

    # States

    def _take_over(self, name: DeviceId, before: Registered | None, now: Now) -> None:
        known = self.registry.devices[name]
        gateway = self._gateway(known.topic)
        watched = self._watched.get(name)
        place = self._place(known)
        if watched is None:
            watched = self._begin(known.name, place, now)
        else:
            assert before is not None
            self._locate(watched.place, before, -1, now)
            if watched.place != place:
                self._move(watched, place, now)
        self._locate(place, known, 1, now)
        if before is not None and before.topic.gateway != known.topic.gateway:
            self._end_of_gone(before.topic, now)
        if not self._is_damped(watched, known):
            self._due_rows[name] = None
        if known.is_gateway:
            if known.online and (before is None or not before.online):
                gateway.back_s = now.s
            gateway.is_silent, gateway.gone_s = False, None
            self._end("gateway_gone", name, now)
            self._look_at_gateway(known.topic, now)
        else:
            self._look(watched, now)

    def _begin(self, name: DeviceId, place: Place, now: Now) -> _Watched:
        day = self._days(place.county).of(now.ms)
        # Rows of devices that came together go their own ways from the second on.
        written_s = now.s - self._every_s * self._random.uniform(0.0, 0.5)
        left = self._left.pop(name, None) or _Left(Calendar(day), Losses(), False, False)
        watched = _Watched(name, place, left.calendar, now.s, now.ms, now.ms, written_s)
        watched.losses, watched.has_today, watched.has_before = left[1:]
        self._watched[name] = watched
        site = self._site(place, now)
        self._accrue_site(place, site, now)
        site.counts[watched.status] += 1
        site.changed = True
        self._plan(watched, now.s)
        return watched

    def _move(self, watched: _Watched, place: Place, now: Now) -> None:
        self._accrue(watched, now)
        for at, step in ((watched.place, -1), (place, 1)):
            site = self._site(at, now)
            self._accrue_site(at, site, now)
            site.counts[watched.status] += step
            site.changed = True
        watched.place = place

    def _clear(self, name: DeviceId, known: Registered, now: Now) -> None:
        """Retire a device; should its gateway go with it, it may be waiting for another."""
        self._retire(name, known, now)
        key = known.topic.county, known.topic.gateway
        cleared = self._cleared.setdefault(key, _Cleared(now.s, {}))
        cleared.at_s = now.s
        if known.is_gateway:
            cleared.gateway = known
        else:
            cleared.devices[name] = known

    def _retire(self, name: DeviceId, known: Registered, now: Now) -> None:
        watched = self._watched.pop(name)
        self.counts.missing -= watched.continuity.missing
        for row in self._device_days(watched, now, known=known):
            self._last_rows[f"day {row.time_ns}", name] = row
        self._left[name] = _Left(
            watched.calendar, watched.losses, watched.has_today, watched.has_before
        )
        site = self._site(watched.place, now)
        self._accrue_site(watched.place, site, now)
        self._locate(watched.place, known, -1, now)
        site.counts[watched.status] -= 1
        site.changed = True
        self._due_rows.pop(name, None)
        self._last_rows["device", name] = retired_row(known.topic, now.ms)
        for kind in ("device_down", "gateway_down", "flapping", "sequence_clash", "two_gateways"):
            self._end(kind, name, now)
        self._say(logging.INFO, "%s is retired", name.device, now=now)
        if known.is_gateway:
            self._look_at_gateway(known.topic, now)
        else:
            self._count_along(known.topic)

    def _look_for_orphans(self, now: Now) -> None:
        for key, cleared in list(self._cleared.items()):
            if now.s - cleared.at_s < ORPHANED_AFTER_S:
                continue
            del self._cleared[key]
            orphans = {
                name: known
                for name, known in cleared.devices.items()
                if name not in self.registry.devices
            }
            if cleared.gateway is None or not orphans:
                continue
            self._gateways[key].gone_s = now.s
            culprit = cleared.gateway
            devices = len(orphans)
            self._open("gateway_gone", "states_emptied", culprit, now, devices=devices)
            for name, known in orphans.items():
                self.registry.adopt(name, known)
                place = self._place(known)
                self._begin(known.name, place, now)
                self._locate(place, known, 1, now)
                self._due_rows[name] = None
            words = "%s is gone: %d devices wait for another gateway"
            self._say(logging.WARNING, words, culprit.topic.device, devices, now=now)

    def _end_of_gone(self, topic: Topic, now: Now) -> None:
        """Of a gateway that is gone another one has taken a device."""
        key = topic.county, topic.gateway
        gateway = self._gateways.get(key)
        if gateway is None or gateway.gone_s is None:
            return
        name, left = DeviceId(*key), len(self.registry.behind(*key))
        incident = self.book.get(name, "gateway_gone")
        if left:
            if incident is not None:
                self.book.change(incident, devices=left)
            return
        self._end("gateway_gone", name, now)
        del self._gateways[key]

    # Judging

    def _look_at_gateway(self, topic: Topic, now: Now) -> None:
        """Look at a gateway, then at all behind it."""
        name = DeviceId(topic.county, topic.gateway)
        if (watched := self._watched.get(name)) is not None:
            self._look(watched, now)
        for other in list(self.registry.behind(topic.county, topic.gateway)):
            if other != name:
                self._look(self._watched[other], now)

    def _look_at_all(self, now: Now) -> None:
        gateways = [one for one in self.registry.devices.values() if one.is_gateway]
        for known in gateways:
            self._look_at_gateway(known.topic, now)
        for name, watched in list(self._watched.items()):
            if (
                DeviceId(name.county, self.registry.devices[name].topic.gateway)
                not in self._watched
            ):
                self._look(watched, now)

    def _look(self, watched: _Watched, now: Now) -> None:
        """Judge a device, and see when to look again."""
        known = self.registry.devices[watched.name]
        if self._seeing_s is not None:
            status, cause = self._judge(watched, known, now)
            if cause == "silent" and not self._gateway(known.topic).is_silent:
                silent = (
                    self._says_nothing(watched, known, now)
                    if known.is_gateway
                    else (status is Status.DOWN and self._gateway_is_silent(known, now))
                )
                if silent:
                    self._gateway(known.topic).is_silent = True
                    self._look_at_gateway(known.topic, now)
                    return
            if status is not watched.status:
                self._change(watched, known, status, cause, now)
            elif status is Status.DOWN and known.is_gateway and not watched.flapping:
                self._begin_down(known, cause, now)
            if watched.flapping and now.s - watched.changed_s >= FLAP_REST_S:
                self._calm(watched, known, cause, now)
            if now.s - watched.written_s >= self._every_s:
                watched.written_s = now.s
                self._due_rows[watched.name] = None
        self._plan(watched, self._next_s(watched, known, now))

    def _judge(self, watched: _Watched, known: Registered, now: Now) -> tuple[Status, Cause]:
        topic = known.topic
        if self._schedule.covers(topic.county, topic.site, topic.gateway, topic.device, now.ms):
            return Status.MAINTENANCE, "silent"
        gateway = self._gateway(topic)
        if known.is_gateway:
            if not known.online:
                return Status.DOWN, "gateway_offline"
            if gateway.is_silent:
                return Status.DOWN, "gateway_silent"
            return Status.UP, "silent"
        if self._is_away(topic):
            return Status.UNKNOWN, "silent"
        if not known.online:
            return Status.DOWN, "gateway_says"
        # Compared as `_next_s` adds, to the last bit: who is looked at when it is due, is due.
        if now.s < watched.heard_s + late_s(known.interval_s):
            return Status.UP, "silent"
        patience_s = self._patience_s(watched, known)
        if now.s < watched.heard_s + patience_s:
            return Status.LATE, "silent"
        if now.s < self._listened_since_s(watched, gateway) + patience_s:
            return Status.UNKNOWN, "silent"
        return Status.DOWN, "silent"

    def _is_away(self, topic: Topic) -> bool:
        """Whether nothing can be known of a device because of its gateway."""
        gateway = self._gateway(topic)
        return (
            gateway.gone_s is not None
            or gateway.is_silent
            or self.registry.gateway_online(topic) is False
        )

    def _gateway_is_silent(self, known: Registered, now: Now) -> bool:
        """Whether a device's silence is its gateway's: of all that should have been heard too, nothing was."""
        topic, others = known.topic, 0
        if self.registry.gateway_online(topic) is None:
            return False
        for name in self.registry.behind(topic.county, topic.gateway):
            other = self.registry.devices[name]
            if other is known or not other.online or other.interval_s > known.interval_s:
                continue
            heard_s = self._watched[name].heard_s
            if now.s - heard_s <= other.interval_s + LATE_GRACE_S:
                return False
            others += heard_s > _NEVER_S and self._watched[name].status in _ALIVE
        return others > 0

    def _says_nothing(self, watched: _Watched, known: Registered, now: Now) -> bool:
        """Whether a gateway that told of itself has long told of nothing, neither itself nor a device."""
        gateway = self._gateway(known.topic)
        since_s = max(gateway.heard_s, self._listened_since_s(watched, gateway))
        return watched.heard_s > _NEVER_S and now.s >= since_s + self._patience_s(watched, known)

    def _is_steady(self, watched: _Watched, known: Registered, gateway: _Gateway) -> bool:
        """Whether nothing but losses explains the silence since a device's last sample."""
        return (
            watched.status in (*_ALIVE, Status.DOWN)
            and known.online
            and watched.heard_s > self._listened_since_s(watched, gateway)
        )

    def _listened_since_s(self, watched: _Watched, gateway: _Gateway) -> float:
        """Return since when a device would have been heard."""
        seeing_s = _NEVER_S if self._seeing_s is None else self._seeing_s
        return max(watched.begun_s, gateway.back_s, seeing_s)

    def _patience_s(self, watched: _Watched, known: Registered) -> float:
        patience = watched.losses.patience(known.interval_s, known.transport)
        return down_s(known.interval_s, patience)

    def _next_s(self, watched: _Watched, known: Registered, now: Now) -> float:
        """Return when to look at a device again if nothing is heard of it."""
        patience_s = self._patience_s(watched, known)
        since_s = self._listened_since_s(watched, self._gateway(known.topic))
        moments = (
            watched.heard_s + late_s(known.interval_s),
            watched.heard_s + patience_s,
            since_s + patience_s,
            watched.changed_s + FLAP_REST_S if watched.flapping else _NEVER_S,
        )
        next_s = max(watched.written_s + self._every_s, now.s)
        return min([next_s, *(moment for moment in moments if moment > now.s)])

    def _plan(self, watched: _Watched, due_s: float) -> None:
        watched.due_s = due_s
        self._wheel.put(due_s, watched)

    # What a change means

    def _change(
        self, watched: _Watched, known: Registered, status: Status, cause: Cause, now: Now
    ) -> None:
        before = watched.status
        self._accrue(watched, now)
        site = self._site(watched.place, now)
        self._accrue_site(watched.place, site, now)
        site.counts[before] -= 1
        site.counts[status] += 1
        site.changed = True
        watched.status, watched.since_ms, watched.changed_s = status, now.ms, now.s
        if status is Status.DOWN and before in _ALIVE:
            self._note_drop(watched, known, now)
        own: Kind = "gateway_down" if known.is_gateway else "device_down"
        if status is Status.DOWN and not watched.flapping:
            self._begin_down(known, cause, now)
        elif status in (*_ALIVE, Status.MAINTENANCE):
            ended = self._end(own, watched.name, now)
            if status is Status.MAINTENANCE:
                watched.flapping = False
                self._end("flapping", watched.name, now)
            elif ended is not None:
                self._say(logging.INFO, "%s is %s again", known.topic.device, status.word, now=now)
        if not self._is_damped(watched, known):
            self._due_rows[watched.name] = None
            watched.written_s = now.s

    def _begin_down(self, known: Registered, cause: Cause, now: Now) -> None:
        device = known.topic.device
        if known.is_gateway:
            along = len(self.registry.behind(known.topic.county, known.topic.gateway)) - 1
            if self._open("gateway_down", cause, known, now, devices=along):
                words = "%s is down: nothing is known of %d devices"
                self._say(logging.WARNING, words, device, along, now=now)
        elif self._open("device_down", cause, known, now):
            self._say(logging.WARNING, "%s is down", device, now=now)

    def _note_drop(self, watched: _Watched, known: Registered, now: Now) -> None:
        drops = [at_s for at_s in watched.drops or () if now.s - at_s < FLAP_WINDOW_S]
        watched.drops = [*drops, now.s][-self._flaps - 1 :]
        if len(watched.drops) > self._flaps and not watched.flapping:
            watched.flapping = True
            self._open("flapping", "changes_often", known, now)
            self._say(logging.WARNING, "%s comes and goes", known.topic.device, now=now)

    def _calm(self, watched: _Watched, known: Registered, cause: Cause, now: Now) -> None:
        watched.flapping, watched.drops = False, None
        self._end("flapping", watched.name, now)
        self._due_rows[watched.name] = None
        if watched.status is Status.DOWN:
            self._begin_down(known, cause, now)

    def _is_damped(self, watched: _Watched, known: Registered) -> bool:
        """Whether a change is none that anybody should be woken for: it, or its gateway, comes and goes."""
        gateway = self._watched.get(DeviceId(known.topic.county, known.topic.gateway))
        return watched.flapping or (gateway is not None and gateway.flapping)

    # Incidents

    def _open(
        self, kind: Kind, cause: Cause, known: Registered, now: Now, *, devices: int = 1
    ) -> bool:
        name = DeviceId(known.topic.county, known.topic.device)
        if (incident := self.book.get(name, kind)) is not None:
            self.book.change(incident, devices=devices, cause=cause)
            return False
        self._due_rows[name] = None
        return self.book.begin(
            Incident(
                kind=kind,
                cause=cause,
                county=known.topic.county,
                site=known.topic.site,
                device=known.topic.device,
                label=known.label,
                domain=known.topic.domain,
                began_ms=now.ms,
                devices=devices,
            )
        )

    def _end(self, kind: Kind, name: DeviceId, now: Now) -> Incident | None:
        ended = self.book.end(name, kind, now.ms)
        if ended is not None:
            self._quiet.pop((name, kind), None)
            if name in self._watched:
                self._due_rows[name] = None
        return ended

    def _look_at_incidents(self, now: Now) -> None:
        """End what is over without anybody saying so."""
        assert self._seeing_s is not None
        settled = now.s - self._seeing_s >= SETTLED_AFTER_S
        for name, left in list(self._left.items()):
            if left.calendar.day.end_ms <= now.ms:
                del self._left[name]
        for incident in self.book:
            name, kind = incident.key
            watched = self._watched.get(name)
            if kind in ("sequence_clash", "two_gateways"):
                over = now.s - self._quiet.get(incident.key, now.s) >= QUIET_S
            elif kind == "gateway_gone":
                gateway = self._gateways.get(name)
                over = settled and (gateway is None or gateway.gone_s is None)
                if gateway is not None and gateway.gone_s is not None:
                    over = now.s - gateway.gone_s >= ORPHANS_FOR_S
                    if over:
                        self._give_up(name, now)
            elif kind == "flapping":
                over = settled and (watched is None or not watched.flapping)
            else:
                over = settled and (watched is None or watched.status in _ALIVE)
            if over:
                self._end(kind, name, now)

    def _give_up(self, gateway: DeviceId, now: Now) -> None:
        """Nobody has taken over the devices of a gateway that is gone: they are retired."""
        for name in list(self.registry.behind(*gateway)):
            known = self.registry.devices[name]
            self.registry.apply(known.topic, None)
            self._retire(name, known, now)
        self._gateways.pop(gateway, None)

    def _count_along(self, topic: Topic) -> None:
        """Have the incident of a gateway say how many devices it takes along."""
        incident = self.book.get(DeviceId(topic.county, topic.gateway), "gateway_down")
        if incident is not None:
            behind = self.registry.behind(topic.county, topic.gateway)
            self.book.change(incident, devices=max(len(behind) - 1, 0))

    def _dispute(self, topic: Topic, now: Now) -> None:
        self.counts.disputes += 1
        self._tell("two gateways speak for one device", topic.device, str(topic))
        known = self.registry.devices[DeviceId(topic.county, topic.device)]
        self._occurred("two_gateways", "two_speak", known, now)

    def _occurred(self, kind: Kind, cause: Cause, known: Registered, now: Now) -> None:
        self._quiet[DeviceId(known.topic.county, known.topic.device), kind] = now.s
        self._open(kind, cause, known, now)

    # Figures

    def _count(
        self, watched: _Watched, known: Registered, samples: Sequence[Sample], now: Now
    ) -> None:
        self._accrue(watched, now)
        site = self._site(watched.place, now)
        self._accrue_site(watched.place, site, now)

        def count(time_ms: int, received: int, missing: int) -> None:
            self.counts.missing += missing
            mine = watched.calendar.at(time_ms)
            if mine is None:
                return
            watched.before_is_due |= mine is watched.calendar.before
            sites = site.calendar.at(time_ms)
            for figures in (mine, sites) if sites is not None else (mine,):
                figures.received += received
                figures.missing += missing
            site.before_is_due |= sites is not None and sites is site.calendar.before

        before = watched.continuity.missing
        found = watched.continuity.take(samples, count)
        self.counts.findings += found
        if found.clashes:
            self._tell("two samples claim one row", known.topic.device, str(known.topic))
            self._occurred("sequence_clash", "row_claimed_twice", known, now)
        if found.epochs:
            words = "a new epoch: an unknown number of samples may be lost"
            self._tell(words, known.topic.device)
        if watched.continuity.missing > before:
            self._tell("samples are missing", known.topic.device, str(watched.continuity.missing))

    def _accrue_all(self, now: Now) -> None:
        for watched in self._watched.values():
            self._accrue(watched, now)
        for place, site in self._sites.items():
            self._accrue_site(place, site, now)

    def _accrue(self, watched: _Watched, now: Now) -> None:
        """Count the time until now, day by day."""
        for figures, for_ms in self._spans(watched, watched.place, now):
            figures.add_time(watched.status, for_ms)

    def _accrue_site(self, place: Place, site: _Site, now: Now) -> None:
        for figures, for_ms in self._spans(site, place, now):
            for status in Status:
                if site.counts[status]:
                    figures.add_time(status, site.counts[status] * for_ms)

    def _spans(
        self, one: _Watched | _Site, place: Place, now: Now
    ) -> Iterator[tuple[Figures, int]]:
        if self._seeing_s is None:
            one.accrued_ms = max(one.accrued_ms, now.ms)
        while True:
            day = one.calendar.day
            end_ms = min(now.ms, day.end_ms)
            if end_ms > one.accrued_ms:
                yield one.calendar.today, end_ms - one.accrued_ms
                one.accrued_ms = end_ms
            if now.ms < day.end_ms:
                return
            one.calendar.turn(self._days(place.county).of(max(one.accrued_ms, day.end_ms)))
            one.before_is_due = True

    # Rows

    def _row(self, watched: _Watched, now: Now) -> Point:
        known = self.registry.devices[watched.name]
        gateway = self._gateway(known.topic)
        heard_s = gateway.heard_s if known.is_gateway else watched.heard_s
        shown = Shown(
            watched.status,
            watched.since_ms,
            now.s - heard_s if heard_s > _NEVER_S else None,
            self._incident_of(watched, known),
            watched.flapping,
            not self._is_away(known.topic),
        )
        return device_row(known, shown, now.ms)

    def _incident_of(self, watched: _Watched, known: Registered) -> str:
        """Return the id of the open incident that says most of a device, empty when there is none."""
        if not len(self.book):
            return ""
        gateway = DeviceId(known.topic.county, known.topic.gateway)
        asked: list[tuple[DeviceId, Kind]] = []
        if known.is_gateway or watched.status is Status.UNKNOWN:
            asked = [(gateway, "gateway_down"), (gateway, "gateway_gone"), (gateway, "flapping")]
        own: tuple[Kind, ...] = ("device_down", "flapping", "two_gateways", "sequence_clash")
        asked += [(watched.name, kind) for kind in own]
        found = (self.book.get(name, kind) for name, kind in asked)
        return next((incident.id for incident in found if incident is not None), "")

    def _site_rows(self, now: Now) -> Iterator[Point]:
        for place, site in self._sites.items():
            rest_s = SITE_REST_S if site.changed else SITE_EVERY_S
            if self._seeing_s is not None and now.s - site.written_s >= rest_s:
                site.written_s, site.changed = now.s, False
                self._accrue_site(place, site, now)
                middle = None
                if site.located:
                    middle = site.lat_sum / site.located, site.lon_sum / site.located
                yield site_row(place, site.counts, site.calendar.today, middle, now.ms)

    def _site_days(self, now: Now) -> list[Point]:
        found = []
        for place, site in self._sites.items():
            self._accrue_site(place, site, now)
            calendar = site.calendar
            if site.before_is_due and calendar.day_before and calendar.before:
                site.before_is_due = False
                found.append(site_day_row(place, calendar.day_before, calendar.before))
            if now.s - site.day_written_s >= DAY_EVERY_S:
                site.day_written_s = now.s
                found.append(site_day_row(place, calendar.day, calendar.today))
        return found

    def _device_days(
        self, watched: _Watched, now: Now, known: Registered | None = None
    ) -> list[Point]:
        self._accrue(watched, now)
        topic = (known or self.registry.devices[watched.name]).topic
        calendar, found = watched.calendar, []
        if watched.before_is_due and calendar.day_before and calendar.before:
            watched.before_is_due = False
            day, before = calendar.day_before, calendar.before
            found.append(device_day_row(topic, day, before, watched.losses))
        found.append(device_day_row(topic, calendar.day, calendar.today, watched.losses))
        return found

    # Parts

    def _gateway(self, topic: Topic) -> _Gateway:
        key = topic.county, topic.gateway
        found = self._gateways.get(key)
        if found is None:
            found = self._gateways[key] = _Gateway()
        return found

    def _site(self, place: Place, now: Now) -> _Site:
        found = self._sites.get(place)
        if found is None:
            day = self._days(place.county).of(now.ms)
            found = self._sites[place] = _Site(Calendar(day), now.ms)
        return found

    def _place(self, known: Registered) -> Place:
        """Return a device's place, one object for all that are there."""
        place = Place(known.topic.county, known.topic.site, known.topic.domain)
        return self._places.setdefault(place, place)

    def _locate(self, place: Place, known: Registered, step: int, now: Now) -> None:
        """Count a device's location in or out of its site's."""
        if known.lat is not None and known.lon is not None:
            site = self._site(place, now)
            site.located += step
            site.lat_sum += step * known.lat
            site.lon_sum += step * known.lon

    def _say(self, level: int, words: str, *about: object, now: Now) -> None:
        """Log a change; of many in a minute, the first ones and how many there were."""
        if now.s - self._lines_since_s >= LINES_WINDOW_S:
            self._lines_since_s, self._lines = now.s, 0
        self._lines += 1
        if self._lines <= MAX_LINES:
            log.log(level, words, *about)
        else:
            self._unsaid += 1

    def _tell(self, what: str, whom: str, detail: str = "") -> None:
        """Log once what may come in thousands."""
        if (what, whom) not in self._told:
            if len(self._told) >= MAX_TOLD:
                self._told.clear()
            self._told.add((what, whom))
            log.warning("%s: %s", what, whom, extra={"detail": detail})
