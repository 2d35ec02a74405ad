"""The lookout: watches over every device by what it hears. Knows no broker and no store, and time as it is told.

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
from ingest.continuity import Findings
from ingest.days import Day, Days
from ingest.registry import Change, DeviceId, Registered, Registry
from ingest.stores import Place, Point
from ingest.watch.alarms import FLAP_REST_S, Alarms
from ingest.watch.clearances import ORPHANS_FOR_S, Clearances, Orphans
from ingest.watch.figures import Calendar, Figures
from ingest.watch.incidents import Book, Cause, Incident
from ingest.watch.judgement import Gateway, Judge, Watched
from ingest.watch.liveness import Losses, Status, losses_by
from ingest.watch.maintenance import Schedule, Window
from ingest.watch.moments import DAY_EVERY_S, NEVER_S, SETTLED_AFTER_S, Now
from ingest.watch.remarks import Remarks
from ingest.watch.rows import Shown, device_day_row, device_row, retired_row
from ingest.watch.sites import SITE_EVERY_S, Site, Sites
from ingest.watch.wheel import Wheel

__all__ = ["Counts", "Lookout", "Now", "Restored"]

TICK_S = 0.05
HELD_S = 5.0
"""Who was not there for so long (paused, swapped out) has not heard yet what was sent meanwhile."""
_MOST_DAYS_AT_ONCE = 1000.0


class Counts(msgspec.Struct):
    """What the watch has seen."""

    states: int = 0
    bad_states: int = 0
    disputes: int = 0
    missing: int = 0
    rejected: int = 0
    """Rows that the store would not have."""
    findings: Findings = msgspec.field(default_factory=Findings)


class _Left(NamedTuple):
    """What a retired device had: should it come back today, its day goes on."""

    calendar: Calendar
    losses: Losses | None
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
        self.remarks = Remarks()
        self.sites = Sites(days)
        self._every_s = every_s
        self._random = random or Random()  # noqa: S311 - spreads rows, hides nothing
        self._watched: dict[DeviceId, Watched] = {}
        self._gateways: dict[tuple[str, str], Gateway] = {}
        self._clearances = Clearances()
        self._left: dict[DeviceId, _Left] = {}
        self._wheel: Wheel[Watched] = Wheel(TICK_S)
        self._due_rows: dict[DeviceId, None] = {}
        self._writing: Iterator[DeviceId] = iter(())
        self._last_rows: dict[tuple[str, DeviceId], Point] = {}
        self._round: Iterator[DeviceId] = iter(())
        self._round_credit = 0.0
        self._swept: Now | None = None
        self._awake: Now | None = None
        self._minute_s = NEVER_S
        self._alarms = Alarms(
            self.registry, self._watched, self.remarks, flaps_per_h=flaps_per_h, show=self._show
        )
        self._judge = Judge(self.registry, self._watched, self.book)

    @property
    def book(self) -> Book:
        """The incidents."""
        return self._alarms.book

    # What is heard

    def take_state(self, topic: Topic, state: State | None, now: Now) -> None:
        """Take a device's state, None for one that is emptied."""
        self.counts.states += 1
        name = DeviceId(topic.county, topic.device)
        before = self.registry.devices.get(name)
        change = self.registry.apply(topic, state)
        if change is Change.SET:
            self._take_over(name, before, now)
        elif change is Change.DISPUTED:
            self._dispute(topic, self.registry.devices[name], now)
        elif change is Change.RETIRED:
            assert before is not None
            self._retire(name, before, now)
            # Should its gateway go with it, it may be waiting for another.
            self._clearances.note(before, now.s)

    def take_readings(self, topic: Topic, samples: Sequence[Sample], now: Now) -> None:
        """Take a device's samples."""
        watched = self._watched.get(DeviceId(topic.county, topic.device))
        if watched is None:
            what = "readings of a device without a state"
            self.remarks.once(what, topic.device, str(topic))
            return
        known, gateway = watched.known, watched.gateway
        if known.gateway != topic.gateway:
            self._dispute(topic, known, now)
        self._count(watched, samples, now)
        # A backlog says nothing of now.
        limit_ms = 1000 * watched.patience_s
        for sample in samples:
            if abs(now.ms - sample.time_ms) <= limit_ms:
                break
        else:
            return
        if watched.losses is not None and self._judge.is_steady(watched):
            watched.losses.note(now.s - watched.heard_s, known.interval_s)
        watched.heard_s = max(watched.heard_s, now.s)
        gateway.heard_s = max(gateway.heard_s, now.s)
        if gateway.is_silent:
            gateway.is_silent, gateway.back_s = False, now.s
            self._look_behind(known, now)
        if watched.status is not Status.UP:
            self._look(watched, now)

    def blind(self, now: Now) -> None:
        """Nothing is heard from now on: nobody is judged, and time counts for nothing."""
        if self._judge.seeing_s is not None:
            for watched in self._watched.values():
                self._spend(watched, now)
            self.sites.blind(now)
            self._judge.seeing_s = None

    def seeing(self, now: Now, *, continued: bool) -> None:
        """Everything is heard from now on; unless it is `continued`, something may have passed unseen."""
        self.blind(now)
        self._judge.seeing_s = self._minute_s = now.s
        self.sites.seeing(now, now.s + SETTLED_AFTER_S)
        for watched in self._watched.values():
            watched.calendar.skip(now.ms)
            if not continued:
                watched.continuity.interrupt()
            self._plan(watched, now.s + self._random.uniform(0.0, 1.0))

    def wake(self, now: Now) -> None:
        """Note that the watch is there, before it takes or judges anything: while it was held it was blind."""
        before, self._awake = self._awake, now
        if before is None or now.s - before.s <= HELD_S or self._judge.seeing_s is None:
            return
        self.blind(before)
        self.seeing(now, continued=True)
        words = "the watch was held for %.0f s: nobody is judged by it"
        self.remarks.change(logging.WARNING, words, now.s - before.s, now_s=now.s)

    def set_windows(self, windows: Sequence[Window], now: Now) -> None:
        """Take other maintenance windows."""
        self._judge.schedule = Schedule(windows)
        self._look_at_all(now)

    # What an earlier run left

    def restore_incidents(self, incidents: Iterable[Incident], now: Now) -> None:
        """Go on with what an earlier run left open."""
        self._alarms.restore(incidents, now)
        for incident in self.book:
            watched = self._watched.get(incident.key[0])
            if watched is None or not watched.known.is_gateway:
                continue
            if incident.cause == "gateway_silent" and watched.gateway.heard_s == NEVER_S:
                # It is connected, as it was: it is silent until something is heard.
                watched.gateway.is_silent = True
                self._look_behind(watched.known, now)

    def restore_day(self, name: DeviceId, one: Restored) -> None:
        """Add what an earlier run counted of a device's day, once however often it is told."""
        watched = self._watched.get(name)
        if watched is None:
            return
        is_today = one.day == watched.calendar.day
        if watched.has_today if is_today else watched.has_before:
            return
        watched.calendar.restore(one.day, one.figures)
        if watched.losses is not None and (is_today or not watched.has_today):
            watched.losses = one.losses
        if is_today:
            watched.has_today = True
        else:
            watched.has_before = True

    # What time does

    def sweep(self, now: Now) -> None:
        """Look at whoever is due."""
        before, self._swept = self._swept, now
        if self._judge.seeing_s is None:
            return
        if before is not None and self._judge.schedule.changed_between(before.ms, now.ms):
            self._look_at_all(now)
        for watched in self._wheel.due(now.s):
            # A tick of tolerance: slots are rounded, and who is skipped is not looked at again.
            if watched.due_s <= now.s + TICK_S and self._watched.get(watched.name) is watched:
                self._look(watched, now)
        for orphans in self._clearances.due(now.s):
            self._keep(orphans, now)
        if now.s - self._minute_s >= SITE_EVERY_S:
            self._minute_s = now.s
            self._look_at_what_passes(now, self._judge.seeing_s)
        self.remarks.say_how_many(now.s)

    # What is written

    def rows(self, now: Now, limit: int, *, incidents: bool = True) -> list[Point]:
        """Return rows that are due, each once; those of `incidents` not before earlier ones are known."""
        found = self.book.take_changed(now.ms) if incidents else []
        found += self._last_rows.values()
        self._last_rows.clear()
        found += self.sites.rows(now, self.book.open_at if incidents else None)
        while len(found) < limit:
            name = next(self._writing, None)
            if name is None:
                if not self._due_rows:
                    break
                # In the order in which they came: who waits longest is not passed over for ever.
                self._writing, self._due_rows = iter(self._due_rows), {}
            elif (watched := self._watched.get(name)) is not None:
                found.append(self._row(watched, now))
        return found

    def day_rows(self, now: Now, for_s: float) -> list[Point]:
        """Return what is due of the days' figures after `for_s` of a round that takes DAY_EVERY_S."""
        found = list(self.sites.day_rows(now))
        credit = self._round_credit + len(self._watched) * for_s / DAY_EVERY_S
        self._round_credit = min(credit, _MOST_DAYS_AT_ONCE)
        while self._round_credit >= 1.0:
            self._round_credit -= 1.0
            name = next(self._round, None)
            if name is None:
                self._round = iter(list(self._watched))
                break
            if (watched := self._watched.get(name)) is not None:
                found += self._day_rows(watched, now)
        return found

    def last_rows(self, now: Now) -> Iterator[Point]:
        """Yield the figures of every device and site, for an orderly end."""
        yield from self.sites.day_rows(now, last=True)
        for watched in self._watched.values():
            yield from self._day_rows(watched, now)

    # States

    def _take_over(self, name: DeviceId, before: Registered | None, now: Now) -> None:
        known = self.registry.devices[name]
        site, gateway = self._site(known, now), self._gateway(known)
        watched = self._watched.get(name)
        if watched is None:
            watched = self._begin(known, now)
        else:
            assert before is not None
            watched.site.locate(before, -1)
            site.locate(known, 1)
            if watched.site is not site:
                self._spend(watched, now)
                self.sites.step(watched.site, watched.status, -1, now)
                self.sites.step(site, watched.status, 1, now)
            watched.known, watched.site, watched.gateway = known, site, gateway
            if (before.site, before.domain) != (known.site, known.domain):
                old = f"device of {before.site}, {before.domain}"
                self._last_rows[old, name] = retired_row(before.topic, now.ms)
                self._show(name)
            if before.transport != known.transport:
                watched.losses = losses_by(known.transport)
        if before is not None and before.gateway != known.gateway:
            self._left_its_gateway(before, now)
        if not self._alarms.is_damped(watched):
            self._show(known.name)
        if known.is_gateway:
            if known.online and (before is None or not before.online):
                gateway.back_s = now.s
            gateway.is_silent, gateway.gone_s = False, None
            self._alarms.end("gateway_gone", name, now)
            self._look_behind(known, now)
        else:
            self._look(watched, now)

    def _begin(self, known: Registered, now: Now) -> Watched:
        site = self._site(known, now)
        calendar = Calendar(site.days.of(now.ms), now.ms)
        losses = losses_by(known.transport)
        left = self._left.pop(known.name, None) or _Left(calendar, losses, False, False)
        left.calendar.skip(now.ms)
        # Rows of devices that came together go their own ways from the second on.
        written_s = now.s - self._every_s * self._random.uniform(0.0, 0.5)
        watched = Watched(
            known, site, self._gateway(known), left.calendar, now.s, now.ms, written_s
        )
        watched.losses, watched.has_today, watched.has_before = left[1:]
        self._watched[known.name] = watched
        self.sites.step(site, watched.status, 1, now)
        site.locate(known, 1)
        self._plan(watched, now.s)
        return watched

    def _retire(self, name: DeviceId, known: Registered, now: Now) -> None:
        watched = self._watched.pop(name)
        self.counts.missing -= watched.continuity.missing
        for row in self._day_rows(watched, now):
            self._last_rows[f"day {row.time_ns}", name] = row
        self._left[name] = _Left(
            watched.calendar, watched.losses, watched.has_today, watched.has_before
        )
        self.sites.step(watched.site, watched.status, -1, now)
        watched.site.locate(known, -1)
        self._due_rows.pop(name, None)
        self._last_rows["device", name] = retired_row(known.topic, now.ms)
        self._alarms.retired(name, now)
        self.remarks.change(logging.INFO, "%s is retired", name.device, now_s=now.s)
        if known.is_gateway:
            self._look_behind(known, now)
        else:
            self._alarms.count_along(known)

    def _keep(self, orphans: Orphans, now: Now) -> None:
        """Keep devices whose states were emptied with their gateway's: they wait for another one."""
        devices = [one for one in orphans.devices if one.name not in self.registry.devices]
        gone = orphans.gateway
        if not devices or gone.name in self.registry.devices:
            return
        self._gateway(gone).gone_s = now.s
        count = len(devices)
        self._alarms.open("gateway_gone", "states_emptied", gone, now, devices=count)
        for known in devices:
            self.registry.adopt(known.name, known)
            self._begin(self.registry.devices[known.name], now)
            self._show(known.name)
        words = "%s is gone: %d devices wait for another gateway"
        self.remarks.change(logging.WARNING, words, gone.name.device, count, now_s=now.s)

    def _left_its_gateway(self, before: Registered, now: Now) -> None:
        """Another gateway has taken a device; of one that is gone, it may have been the last."""
        gateway = self._gateways.get(before.behind)
        if gateway is None or gateway.gone_s is None:
            return
        name = DeviceId(*before.behind)
        if left := len(self.registry.behind(*before.behind)):
            if (incident := self.book.get(name, "gateway_gone")) is not None:
                self.book.change(incident, devices=left)
            return
        self._alarms.end("gateway_gone", name, now)
        del self._gateways[before.behind]

    def _give_up(self, key: tuple[str, str], now: Now) -> None:
        """Nobody has taken over the devices of a gateway that is gone: they are retired."""
        for name in list(self.registry.behind(*key)):
            known = self.registry.devices[name]
            self.registry.apply(known.topic, None)
            self._retire(name, known, now)
        del self._gateways[key]
        self._alarms.end("gateway_gone", DeviceId(*key), now)

    def _dispute(self, topic: Topic, known: Registered, now: Now) -> None:
        self.counts.disputes += 1
        self._alarms.dispute(topic, known, now)

    # Looking

    def _look_behind(self, known: Registered, now: Now) -> None:
        """Look at a device's gateway, then at all behind it."""
        gateway = DeviceId(*known.behind)
        if (watched := self._watched.get(gateway)) is not None:
            self._look(watched, now)
        for name in list(self.registry.behind(*known.behind)):
            if name != gateway:
                self._look(self._watched[name], now)

    def _look_at_all(self, now: Now) -> None:
        """Look at everybody, gateways before those behind them."""
        everybody = list(self._watched.values())
        for is_gateway in (True, False):
            for watched in everybody:
                if watched.known.is_gateway is is_gateway:
                    self._look(watched, now)

    def _look_at_what_passes(self, now: Now, seeing_s: float) -> None:
        """End what is over without anybody saying so."""
        for name, left in list(self._left.items()):
            if left.calendar.day.end_ms <= now.ms:
                del self._left[name]
        for key, gateway in list(self._gateways.items()):
            if gateway.gone_s is not None and now.s - gateway.gone_s >= ORPHANS_FOR_S:
                self._give_up(key, now)
        self._alarms.look(self._gateways, now, settled=now.s - seeing_s >= SETTLED_AFTER_S)

    def _look(self, watched: Watched, now: Now) -> None:
        """Judge a device, and see when to look again."""
        if self._judge.seeing_s is not None:
            status, cause = self._judge.status(watched, now)
            if self._is_its_gateways(watched, status, cause, now):
                watched.gateway.is_silent = True
                silent_s = now.s - self._judge.nothing_since_s(watched)
                self._alarms.take_along(watched.known, now.ms - round(1000 * silent_s), now)
                self._look_behind(watched.known, now)
                return
            if status is not watched.status:
                self._change(watched, status, cause, now)
            elif cause is not None and watched.known.is_gateway and not watched.flapping:
                self._alarms.down(watched.known, cause, now)
            if watched.flapping and now.s - watched.changed_s >= FLAP_REST_S:
                self._alarms.calm(watched, cause, now)
            if now.s - watched.written_s >= self._every_s:
                watched.written_s = now.s
                self._show(watched.name)
        due_s = self._judge.next_s(watched, now.s)
        if watched.flapping and watched.changed_s + FLAP_REST_S > now.s:
            due_s = min(due_s, watched.changed_s + FLAP_REST_S)
        self._plan(watched, min(due_s, max(watched.written_s + self._every_s, now.s)))

    def _is_its_gateways(
        self, watched: Watched, status: Status, cause: Cause | None, now: Now
    ) -> bool:
        """Whether it shows only now, by this device, that its gateway is silent."""
        if watched.gateway.is_silent or status is Status.MAINTENANCE:
            return False
        if watched.known.is_gateway:
            return status is Status.UP and self._judge.says_nothing(watched, now.s)
        return cause == "silent" and self._judge.gateway_is_silent(watched, now.s)

    def _change(self, watched: Watched, status: Status, cause: Cause | None, now: Now) -> None:
        before = watched.status
        self._spend(watched, now)
        self.sites.step(watched.site, before, -1, now)
        self.sites.step(watched.site, status, 1, now)
        watched.status, watched.since_ms, watched.changed_s = status, now.ms, now.s
        self._alarms.changed(watched, before, cause, now)
        if not self._alarms.is_damped(watched):
            self._show(watched.name)
            watched.written_s = now.s

    def _plan(self, watched: Watched, due_s: float) -> None:
        watched.due_s = due_s
        self._wheel.put(due_s, watched)

    # Figures

    def _count(self, watched: Watched, samples: Sequence[Sample], now: Now) -> None:
        if now.ms >= watched.calendar.day.end_ms:
            self._spend(watched, now)
        if now.ms >= watched.site.calendar.day.end_ms:
            self.sites.spend(watched.site, now)

        def count(time_ms: int, received: int, missing: int) -> None:
            self.counts.missing += missing
            if watched.calendar.count(time_ms, received, missing):
                watched.site.calendar.count(time_ms, received, missing)

        continuity = watched.continuity
        if len(samples) == 1 and continuity.goes_on(samples[0]):
            count(samples[0].time_ms, 1, 0)
            return
        before = continuity.missing
        found = continuity.take(samples, count)
        self.counts.findings += found
        known = watched.known
        if found.clashes:
            self.remarks.once("two samples claim one row", known.name.device, str(known.topic))
            self._alarms.occurred("row_clash", "row_claimed_twice", known, now)
        if found.epochs:
            words = "a new epoch: an unknown number of samples may be lost"
            self.remarks.once(words, known.name.device)
        if continuity.missing > before:
            self.remarks.once("samples are missing", known.name.device, str(continuity.missing))

    def _spend(self, watched: Watched, now: Now) -> None:
        """Count a device's time until now."""
        if self._judge.seeing_s is None:
            watched.calendar.skip(now.ms)
        for figures, for_ms in watched.calendar.spend(now.ms, watched.site.days):
            figures.add_time(watched.status, for_ms)

    # Rows

    def _show(self, name: DeviceId) -> None:
        """Have a device's row written."""
        self._due_rows[name] = None

    def _row(self, watched: Watched, now: Now) -> Point:
        heard_s = watched.gateway.heard_s if watched.known.is_gateway else watched.heard_s
        shown = Shown(
            watched.status,
            watched.since_ms,
            now.s - heard_s if heard_s > NEVER_S else None,
            self._alarms.id_of(watched),
            watched.flapping,
            not self._judge.is_away(watched),
        )
        return device_row(watched.known, shown, now.ms)

    def _day_rows(self, watched: Watched, now: Now) -> list[Point]:
        self._spend(watched, now)
        known, calendar = watched.known, watched.calendar
        days = [(calendar.day, calendar.today)]
        if (due := calendar.take_due()) is not None:
            days.insert(0, due)
        return [device_day_row(known, *day, watched.losses) for day in days]

    # Parts

    def _gateway(self, known: Registered) -> Gateway:
        """Return what is known of a device's gateway."""
        return self._gateways.setdefault(known.behind, Gateway())

    def _site(self, known: Registered, now: Now) -> Site:
        return self.sites.at(Place(known.name.county, known.site, known.domain), now)
