"""Sites: how many devices of a domain are how, there and in their county, and the sums of their days."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import msgspec

from ingest.days import HOUR_MS, Day, Days
from ingest.registry import Registered
from ingest.stores import Place, Point
from ingest.watch.figures import Calendar, Figures
from ingest.watch.liveness import Status
from ingest.watch.moments import DAY_EVERY_S, NEVER_S, Now
from ingest.watch.rows import county_row, site_day_row, site_hour_row, site_row

SITE_EVERY_S, SITE_REST_S = 60.0, 5.0


class Sum(msgspec.Struct, eq=False):
    """How many devices of one domain in one county are how."""

    counts: list[int] = msgspec.field(default_factory=lambda: [0] * len(Status))
    incidents: int | None = None
    written_s: float = NEVER_S
    changed: bool = True


class Hour(msgspec.Struct, eq=False):
    """The most devices that were in each status at once, in an hour of UTC."""

    start_ms: int
    most: list[int] = msgspec.field(default_factory=lambda: [0] * len(Status))
    most_devices: int = 0

    def see(self, counts: Sequence[int], devices: int) -> None:
        """Take how many there are now."""
        self.most = list(map(max, self.most, counts))
        self.most_devices = max(self.most_devices, devices)


class Site(msgspec.Struct, eq=False):
    """The devices of one domain in one site."""

    place: Place
    days: Days
    calendar: Calendar
    sum: Sum
    counts: list[int] = msgspec.field(default_factory=lambda: [0] * len(Status))
    incidents: int | None = None
    hour: Hour | None = None
    located: int = 0
    lat_sum: float = 0.0
    lon_sum: float = 0.0
    written_s: float = NEVER_S
    days_written_s: float = NEVER_S
    changed: bool = True

    def spend(self, now_ms: int) -> None:
        """Count the time until now for each of its devices."""
        for figures, for_ms in self.calendar.spend(now_ms, self.days):
            for status in Status:
                if self.counts[status]:
                    figures.add_time(status, self.counts[status] * for_ms)

    def locate(self, known: Registered, step: int) -> None:
        """Count a device's location in or out."""
        if known.lat is not None and known.lon is not None:
            self.located += step
            self.lat_sum += step * known.lat
            self.lon_sum += step * known.lon


class Sites:
    """All of them. Time counts, and an hour has a most, only while the watch `sees`."""

    def __init__(self, days: Callable[[str], Days]) -> None:
        self._days = days
        self._sites: dict[Place, Site] = {}
        self._sums: dict[tuple[str, str], Sum] = {}
        self._is_seeing = False
        self._settled_s = NEVER_S

    def at(self, place: Place, now: Now) -> Site:
        """Return a site, a new one if need be."""
        found = self._sites.get(place)
        if found is None:
            days = self._days(place.county)
            in_all = self._sums.setdefault((place.county, place.domain), Sum())
            found = Site(place, days, Calendar(days.of(now.ms), now.ms), in_all)
            self._sites[place] = found
        return found

    def blind(self, now: Now) -> None:
        """Nothing is seen from now on."""
        for site in self._sites.values():
            self.spend(site, now)
        self._is_seeing = False

    def seeing(self, now: Now, settled_s: float) -> None:
        """Something is seen from now on; how many are how is true from `settled_s` on."""
        self._is_seeing, self._settled_s = True, settled_s
        for site in self._sites.values():
            site.calendar.skip(now.ms)

    def spend(self, site: Site, now: Now) -> None:
        """Count the time until now."""
        if not self._is_seeing:
            site.calendar.skip(now.ms)
        site.spend(now.ms)

    def step(self, site: Site, status: Status, by: int, now: Now) -> None:
        """Count a device into a status, or out of it."""
        self.spend(site, now)
        for counted in (site, site.sum):
            counted.counts[status] += by
            counted.changed = True
        if site.hour is not None and by > 0 and now.s >= self._settled_s:
            site.hour.see(site.counts, sum(site.counts))

    def restore_hour(self, place: Place, hour: Hour, now: Now) -> None:
        """Go on with the most of this hour that an earlier run saw."""
        mine = self._hour(self.at(place, now), now)
        if mine.start_ms == hour.start_ms:
            mine.see(hour.most, hour.most_devices)

    def restore_day(self, place: Place, day: Day, figures: Figures, now: Now) -> None:
        """Add what an earlier run counted of a site's day."""
        self.at(place, now).calendar.restore(day, figures)

    def rows(self, now: Now, open_at: Mapping[Place, int] | None) -> Iterator[Point]:
        """Yield how sites and counties are whose rows are due. `open_at` as in `Book`, None: not known yet."""
        if not self._is_seeing:
            return
        for (county, domain), in_all in self._sums.items():
            _tell(in_all, Place(county, "", domain), open_at)
            if _is_due(in_all, now):
                counts, incidents = in_all.counts, in_all.incidents
                yield county_row(county, domain, counts, now.ms, incidents)
        for place, site in self._sites.items():
            _tell(site, place, open_at)
            if _is_due(site, now):
                self.spend(site, now)
                middle = None
                if site.located:
                    middle = site.lat_sum / site.located, site.lon_sum / site.located
                figures = site.calendar.today
                yield site_row(place, site.counts, figures, middle, now.ms, site.incidents)

    def day_rows(self, now: Now, *, last: bool = False) -> Iterator[Point]:
        """Yield what is due of days and hours; all of it, when it is the `last` time."""
        for site in self._sites.values():
            self.spend(site, now)
            if (due := site.calendar.take_due()) is not None:
                yield site_day_row(site.place, *due)
            is_due = last or now.s - site.days_written_s >= DAY_EVERY_S
            if is_due:
                site.days_written_s = now.s
                yield site_day_row(site.place, site.calendar.day, site.calendar.today)
            yield from self._hour_rows(site, now, is_due=is_due)

    def _hour_rows(self, site: Site, now: Now, *, is_due: bool) -> Iterator[Point]:
        if not self._is_seeing or now.s < self._settled_s:
            return
        hour = site.hour
        if hour is not None and now.ms >= hour.start_ms + HOUR_MS:
            yield _hour_row(site.place, hour)
            hour = site.hour = None
        if hour is None:
            hour = self._hour(site, now)
        if is_due:
            yield _hour_row(site.place, hour)

    def _hour(self, site: Site, now: Now) -> Hour:
        """Return this hour, which begins with how things are."""
        start_ms = now.ms - now.ms % HOUR_MS
        if site.hour is None or site.hour.start_ms < start_ms:
            site.hour = Hour(start_ms)
        if now.s >= self._settled_s:
            site.hour.see(site.counts, sum(site.counts))
        return site.hour


def _tell(one: Site | Sum, place: Place, open_at: Mapping[Place, int] | None) -> None:
    """Tell it how many incidents are open there, once that is known."""
    if open_at is not None and one.incidents != (incidents := open_at.get(place, 0)):
        one.incidents, one.changed = incidents, True


def _is_due(one: Site | Sum, now: Now) -> bool:
    """Whether its row is written now."""
    if now.s - one.written_s < (SITE_REST_S if one.changed else SITE_EVERY_S):
        return False
    one.written_s, one.changed = now.s, False
    return True


def _hour_row(place: Place, hour: Hour) -> Point:
    return site_hour_row(place, hour.start_ms, hour.most, hour.most_devices)
