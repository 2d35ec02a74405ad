"""The days of one domain at one site: what is stale of them is found by counting, and made anew from raw rows.

Every row says in `rows` how many raw rows it was made from, and in `basis` how many rows stood in what else it looked
at. Where the raw rows' counts say otherwise it is made again. So there is no journal: a pass may end anywhere, and the
next one finds what is left. Counts are older than the rows that are then read: what comes between makes a row stale,
never wrong unseen.

A device's hour is made from raw rows (the last one of the hour before it, too), its day from its hours, a site's rows
from its devices'. Hours and days are made once they are over.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias
from zoneinfo import ZoneInfo

from exchange.dictionary import dictionary
from ingest.rollups import statistics
from ingest.rollups.counted import Closed, Counted, Counts, Made, total
from ingest.rollups.days import HOUR_NS, Day, beside, date_of, noon_ns
from ingest.rollups.derivations import CHAINED_HOURS, DERIVATIONS, NONE
from ingest.rollups.settings import SiteSettings
from ingest.rollups.spans import BEFORE_NS, Bounds, Sample, latest, span
from ingest.stores import DeviceRows, FieldValue, Part, Point, Series, Store

HOUR, DAY, SITE_HOUR, SITE_DAY = "rollup_hour", "rollup_day", "site_hour", "site_day"
MEASUREMENTS = (HOUR, DAY, SITE_HOUR, SITE_DAY)

MAX_NAMED = 50
"""Devices that a question names; of more, all of the site's are read."""
POINTS_A_WRITE = 500
_COUNTED = "epoch"
"""A field that every raw row has."""
_BESIDE = ("quality", _COUNTED)
_MADE = ("rows", "basis")
_STUCK = "stuck"
"""Of a device's hour 1 where its gateway doubted that a value moves; of a site's, how many devices."""
_STUCK_MARK = re.compile(r"(^|;)[a-z]+:stuck(\(|;|$)")
_MS_NS = 1_000_000
_KEPT_NS = 36 * HOUR_NS
"""Counts of days that ended so long before those that are looked at are used no more."""

Row: TypeAlias = dict[str, FieldValue]
Rest: TypeAlias = Callable[[], Awaitable[None]]


class Place(NamedTuple):
    """A domain's devices at a site."""

    county: str
    site: str
    domain: str


class _Stored(NamedTuple):
    """What rows of a device say that they were made from, by hour; -1 where there is no row."""

    rows: array[int]
    basis: array[int]

    def at(self, place: int) -> Made:
        return Made(self.rows[place], self.basis[place])


class SiteDays:
    """Makes rows. Shape: in ascending order of days what was counted is used again."""

    def __init__(
        self,
        raw: Store,
        kept: Store,
        place: Place,
        zone: ZoneInfo,
        settings: SiteSettings,
        *,
        vendor_metrics: Sequence[str] = (),
        rest: Rest,
    ) -> None:
        """`rest` is awaited after each piece of work."""
        self._raw, self._kept, self._place, self._zone = raw, kept, place, zone
        self._settings, self._rest = settings, rest
        self._derived = DERIVATIONS.get(place.domain, NONE)
        self._metrics = [*dictionary()[place.domain].metrics, *vendor_metrics]
        self._asked = [*self._metrics, *_BESIDE]
        names = {*_MADE, _STUCK, *statistics.names(self._metrics), *self._derived.written}
        self._names = sorted(names)
        self._counted: dict[Day, Counts] = {}
        self.raw_rows = 0
        self.points = 0

    async def make(self, day: Day, closed: Closed, *, anew: bool = False) -> None:
        """Make what is stale of a day, or with `anew` all of it. Raises: StoreError."""
        counted = await self._count_around(day, closed)
        if not counted.is_empty:
            await self._make_hours(counted, anew=anew)
        if self._derived.night:  # the night before ends in these hours
            before = await self._count_around(beside(self._zone, day)[0], closed)
            await self._make_day(before, anew=anew, known=True)
        await self._make_day(counted, anew=anew)

    # Hours

    async def _make_hours(self, counted: Counted, *, anew: bool) -> None:
        day = counted.day
        devices = await self._stored(HOUR, day, day.hours)
        sites = (await self._stored(SITE_HOUR, day, day.hours)).get("")
        for place, start_ns in enumerate(day.hours):
            expected = counted.expected(start_ns) if counted.can_make(start_ns) else {}
            if not expected:
                continue
            stale = {
                device
                for device, made in expected.items()
                if anew or device not in devices or devices[device].at(place).is_short_of(made)
            }
            if stale:
                await self._make_device_hours(counted, start_ns, stale)
            site = None if sites is None else sites.at(place)
            if anew or site is None or site.is_short_of(total(expected.values())):
                end_ns = day.hour_end_ns(start_ns)
                await self._make_site(HOUR, SITE_HOUR, start_ns, end_ns, expected)

    async def _make_device_hours(self, counted: Counted, start_ns: int, stale: set[str]) -> None:
        derived, settings, domain = self._derived, self._settings, self._place.domain
        end_ns = counted.day.hour_end_ns(start_ns)
        part = self._part(domain, start_ns, end_ns, stale)
        before = await self._before(part)
        earlier: dict[str, list[Row]] = {}
        if derived.chain:
            hours = self._part(HOUR, counted.reached_ns(start_ns), start_ns, stale)
            found_hours = self._kept.device_rows(hours, self._names)
            earlier = {found.device: _by_row(found) async for found in found_hours}
        points: list[Point] = []
        async for found in self._raw.device_rows(part, self._asked, exact=False):
            if found.device not in stale:
                continue
            self.raw_rows += len(found.times_ns)
            values = span(start_ns, end_ns, found, before.get(found.device, {}), self._metrics)
            fields = statistics.hour(domain, values, settings.hold_s)
            if derived.hour:
                fields |= derived.hour(values, settings)
            basis = counted.before(found.device, start_ns)
            if derived.chain:
                rows = earlier.get(found.device, [])
                basis = sum(int(row["rows"]) for row in rows)
                own: Row = {"device": found.device, "start_ms": start_ns // _MS_NS, **fields}
                fields |= derived.chain([*rows, own], date_of(self._zone, counted.day), settings)
            fields |= {"rows": len(found.times_ns), "basis": basis, _STUCK: _is_stuck(found)}
            points.append(self._point(HOUR, found.device, start_ns, fields))
            if len(points) >= POINTS_A_WRITE:
                await self._write(points)
        await self._write(points)
        await self._rest()

    async def _before(self, part: Part) -> dict[str, dict[str, Sample]]:
        """Return the good values of each device's last row before a part."""
        earlier = part._replace(start_ns=part.start_ns - BEFORE_NS, end_ns=part.start_ns)
        found_rows = self._raw.device_rows(earlier, self._asked, last_with=_COUNTED, exact=False)
        return {found.device: latest(found, self._metrics) async for found in found_rows}

    # Days

    async def _make_day(self, counted: Counted, *, anew: bool, known: bool = False) -> None:
        """Make what is stale of the day's rows; if it is to be `known`, not of a day that has none yet."""
        day, expected = counted.day, counted.expected_day if counted.can_make_day else {}
        if not expected:
            return
        devices = await self._stored(DAY, day, [day.start_ns])
        if known and not devices:
            return
        stale = {
            device
            for device, made in expected.items()
            if anew or device not in devices or counted.is_day_stale(devices[device].at(0), made)
        }
        if stale:
            await self._make_device_days(counted, stale)
        sites = (await self._stored(SITE_DAY, day, [day.start_ns])).get("")
        site = None if sites is None else sites.at(0)
        if anew or counted.is_day_stale(site, total(expected.values())):
            await self._make_site(DAY, SITE_DAY, day.start_ns, day.end_ns, expected)

    async def _make_device_days(self, counted: Counted, stale: set[str]) -> None:
        day, derived = counted.day, self._derived
        within = Bounds(day.start_ns // _MS_NS, day.end_ns // _MS_NS)
        next_noon_ns = noon_ns(self._zone, beside(self._zone, day)[1])
        night = Bounds(noon_ns(self._zone, day) // _MS_NS, next_noon_ns // _MS_NS)
        part = self._part(HOUR, *counted.day_looks_ns, stale)
        points: list[Point] = []
        async for found in self._kept.device_rows(part, self._names):
            if found.device not in stale:
                continue
            hours = _by_row(found)
            own = [row for row in hours if within.start_ms <= int(row["start_ms"]) < within.end_ms]
            if not own:
                continue
            fields = statistics.day(self._place.domain, own)
            if derived.day:
                on = date_of(self._zone, day)
                fields |= derived.day(hours, on, within, night, self._settings)
            fields["rows"] = sum(int(row["rows"]) for row in own)
            reached = hours if derived.night else []
            basis = [*(row["basis"] for row in own), *(row["rows"] for row in reached)]
            fields["basis"] = sum(map(int, basis))
            points.append(self._point(DAY, found.device, day.start_ns, fields))
            if len(points) >= POINTS_A_WRITE:
                await self._write(points)
        await self._write(points)
        await self._rest()

    # Sites

    async def _make_site(
        self, of: str, measurement: str, start_ns: int, end_ns: int, devices: Collection[str]
    ) -> None:
        """Make a site's row from its devices' rows, and from their values where no row may tell these."""
        derived, settings = self._derived, self._settings
        rows: list[Row] = []
        part = self._part(of, start_ns, start_ns + 1)
        async for found in self._kept.device_rows(part, [*_MADE, _STUCK, *derived.reads]):
            if found.device in devices:
                rows += _by_row(found)
        if not rows:
            return
        fields: Row = {
            "devices": len(rows),
            "rows": sum(int(row["rows"]) for row in rows),
            "basis": sum(int(row["basis"]) for row in rows),
        }
        if of == HOUR:
            fields[_STUCK] = sum(int(row.get(_STUCK, 0)) for row in rows)
        combined = derived.site_hour if of == HOUR else derived.site_day
        if combined:
            fields |= combined(rows, settings)
        if derived.digest and derived.combine:
            bounds = Bounds(start_ns // _MS_NS, end_ns // _MS_NS)
            digests = [each async for each in self._digests(start_ns, end_ns)]
            fields |= derived.combine(digests, bounds, settings)
        await self._write([self._point(measurement, "", start_ns, fields)])
        await self._rest()

    async def _digests(self, start_ns: int, end_ns: int) -> AsyncIterator[Any]:
        assert self._derived.digest is not None
        part = self._part(self._place.domain, start_ns, end_ns)
        before = await self._before(part)
        async for found in self._raw.device_rows(part, self._asked, exact=False):
            values = span(start_ns, end_ns, found, before.get(found.device, {}), self._metrics)
            self.raw_rows += len(found.times_ns)
            yield self._derived.digest(values, found.device, self._settings)

    # Rows and counts

    async def _count_around(self, day: Day, closed: Closed) -> Counted:
        before, after = beside(self._zone, day)
        wanted = [before, day, after] if self._derived.night else [before, day]
        kept_ns = before.start_ns - _KEPT_NS
        self._counted = {each: of for each, of in self._counted.items() if each.end_ns > kept_ns}
        for each in wanted:
            if each not in self._counted:
                self._counted[each] = await self._count(each)
        return Counted(
            day,
            [(each, self._counted[each]) for each in wanted],
            closed,
            reach_ns=CHAINED_HOURS * HOUR_NS if self._derived.chain else BEFORE_NS,
            night_end_ns=noon_ns(self._zone, after) if self._derived.night else None,
        )

    async def _count(self, day: Day) -> Counts:
        counts: Counts = {}
        hours = len(day.hours)
        part = self._part(self._place.domain, day.start_ns, day.end_ns)
        found = self._raw.counts(part, counted=_COUNTED, step_ns=HOUR_NS)
        async for device, start_ns, rows in found:
            if device not in counts:
                counts[device] = array("q", bytes(8 * hours))
            counts[device][(start_ns - day.start_ns) // HOUR_NS] = rows
        await self._rest()
        return counts

    async def _stored(
        self, measurement: str, day: Day, starts_ns: Sequence[int]
    ) -> dict[str, _Stored]:
        """Return what rows of a day say that they were made from, by device; a site's device is empty."""
        stored: dict[str, _Stored] = {}
        places = {start_ns: place for place, start_ns in enumerate(starts_ns)}
        part = self._part(measurement, day.start_ns, day.end_ns)
        async for found in self._kept.device_rows(part, _MADE):
            none = array("q", [-1]) * len(starts_ns)
            mine = stored[found.device] = _Stored(none[:], none[:])
            columns = (found.columns.get(name, ()) for name in _MADE)
            for start_ns, *made in zip(found.times_ns, *columns, strict=True):
                if start_ns in places:
                    mine.rows[places[start_ns]], mine.basis[places[start_ns]] = map(int, made)
        await self._rest()
        return stored

    def _part(
        self, measurement: str, start_ns: int, end_ns: int, devices: Collection[str] = ()
    ) -> Part:
        county, site, domain = self._place
        named = tuple(sorted(devices)) if len(devices) <= MAX_NAMED else ()
        tag = domain if measurement in MEASUREMENTS else ""
        return Part(measurement, county, site, start_ns, end_ns, named, tag)

    def _point(
        self, measurement: str, device: str, start_ns: int, fields: Mapping[str, FieldValue]
    ) -> Point:
        county, site, domain = self._place
        series = Series(measurement, county, site, device, domain)
        return Point(series, start_ns, dict(sorted(fields.items())))

    async def _write(self, points: list[Point]) -> None:
        """Write points and forget them."""
        if points:
            await self._kept.write(points)
            self.points += len(points)
            points.clear()


def _by_row(found: DeviceRows) -> list[Row]:
    """Return rows as functions of a domain take them: with `device` and `start_ms`, without what is absent."""
    rows: list[Row] = [
        {"device": found.device, "start_ms": time_ns // _MS_NS} for time_ns in found.times_ns
    ]
    for name, column in found.columns.items():
        for row, value in zip(rows, column, strict=True):
            if value is not None:
                row[name] = value
    return rows


def _is_stuck(found: DeviceRows) -> int:
    """Return 1 where a value of any of these rows is marked as not moving."""
    marks = found.columns.get("quality", ())
    return int(any(mark is not None and _STUCK_MARK.search(str(mark)) for mark in marks))
