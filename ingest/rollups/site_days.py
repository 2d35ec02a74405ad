"""The days of one domain at one site: what is stale of them is found by counting, and made anew from raw rows.

Every row says in `rows` how many raw rows it was made from, and in `basis` how many rows stood in what else it looked
at. Where counts say otherwise it is made again. So there is no journal: a pass may end anywhere, and the next one finds
what is left. Counts are older than the rows that are then read: what comes between makes a row stale, never wrong
unseen. A site's row is written after its devices' and says no more than they do, so where it is not stale none of them
is: a look counts the raw rows of a site all together, and devices are told apart where it finds something.

A device's hour is made from raw rows (the last one of the hour before it, too), its day from its hours, a site's rows
from its devices'. Hours and days are made once they are over. Where a domain has digests no row of a device is written,
for a count of its rows alone may tell what it did: a site's hours and days are made from raw rows of all its devices.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Iterable,
    Mapping,
    Sequence,
)
from typing import Any, TypeAlias
from zoneinfo import ZoneInfo

from exchange.dictionary import dictionary
from ingest.days import DAY_NS, HOUR_NS, MS_NS, Day, beside, date_of, noon_ns
from ingest.rollups import statistics
from ingest.rollups.counted import ALL, Closed, Counted, Made, aligned, total
from ingest.rollups.derivations import CHAINED_HOURS, DERIVATIONS, NONE
from ingest.rollups.settings import SiteSettings
from ingest.rollups.spans import BEFORE_NS, Bounds, GoodRows
from ingest.stores import DeviceRows, FieldValue, Part, Place, Point, Series, Store

HOUR, DAY, SITE_HOUR, SITE_DAY = "rollup_hour", "rollup_day", "site_hour", "site_day"
FAULT_DAY = "fault_day"
"""Days of devices that had a fault, for lists that must not read every device's."""
MEASUREMENTS = (HOUR, DAY, SITE_HOUR, SITE_DAY, FAULT_DAY)

MAX_NAMED = 50
"""Devices that a question names; of more, all of the site's are read."""
MAX_HELD = 50_000
"""Hours of devices of which a site's rows are made at once: so many are held in memory."""
MAX_COUNTED_HOURS = 48
"""Of one question, so that no store is asked for longer than it may take to answer."""
POINTS_A_WRITE = 1000
_COUNTED = "epoch"
"""A field that every raw row has."""
_BESIDE = ("quality", _COUNTED)
_MADE = ("rows", "basis")
_STUCK = "stuck"
"""Of a device's hour 1 where its gateway doubted that a value moves; of a site's, how many devices."""
_NIGHT = "night_"
"""How fields begin that a day's row has of the whole night."""
_STUCK_MARK = re.compile(r"(^|;)[a-z]+:stuck(\(|;|$)")

Row: TypeAlias = dict[str, FieldValue]
Rest: TypeAlias = Callable[[], Awaitable[None]]
ByHour: TypeAlias = dict[int, dict[str, Row]]
"""What a site's rows need of its devices', by hour and device."""


class SiteDays:
    """Makes rows of days that were looked at, in ascending order."""

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
        self._reach_ns = CHAINED_HOURS * HOUR_NS if self._derived.chain else BEFORE_NS
        self._of_site = [*_MADE, _STUCK, *self._derived.reads]
        self._closed = Closed(0, 0)
        self._counted = Counted([], reach_ns=self._reach_ns)
        self._site_hours: dict[int, Made] = {}
        self._site_days: dict[int, Made] = {}
        self._days: Sequence[Day] = ()
        self._start_ns = 0
        self.raw_rows = 0
        self.points = 0

    async def look(self, days: Sequence[Day], closed: Closed, start_ns: int) -> bool:
        """Count the raw rows of ascending days, of the first from `start_ns` on, and read what the site's rows say.

        Return whether there are raw rows. Raises: StoreError.
        """
        before, after = beside(self._zone, days[0])[0], beside(self._zone, days[-1])[1]
        self._days, self._closed, self._start_ns = days, closed, start_ns
        hours = [hour_ns for day in (before, *days) for hour_ns in day.hours]
        hours = hours[max(0, bisect_right(hours, start_ns - self._reach_ns) - 1) :]
        self._counted = await self._count(hours, after.start_ns, by_device=False)
        # A night reaches a day back and to the next noon.
        site_hours = await self._stored(SITE_HOUR, before.start_ns - DAY_NS, after.end_ns)
        site_days = await self._stored(SITE_DAY, before.start_ns, after.start_ns)
        self._site_hours, self._site_days = site_hours.get(ALL, {}), site_days.get(ALL, {})
        await self._rest()
        return bool(self._counted.devices)

    async def make(self, day: Day, *, anew: bool = False) -> None:
        """Make what is stale of a day, or with `anew` all of it. Raises: StoreError."""
        stale = []
        for start_ns in day.hours:
            if start_ns < self._start_ns or not self._can_make(day, start_ns):
                continue
            expected = self._counted.expected(start_ns).get(ALL)
            if expected is None:
                continue
            made = self._site_hours.get(start_ns)
            if anew or made is None or made.is_short_of(expected):
                stale.append(start_ns)
        for run in aligned(stale):
            await self._make_run(day, run, anew=anew)
        if self._derived.night:  # the night before ends in these hours
            before = beside(self._zone, day)[0]
            await self._make_day(before, anew=anew, known=before not in self._days)
        if not self._derived.night or day == self._days[-1]:
            await self._make_day(day, anew=anew)

    def _can_make(self, day: Day, start_ns: int) -> bool:
        """Whether an hour is over and all that its row looks at is there."""
        whole = start_ns - self._reach_ns >= self._closed.since_ns
        return whole and day.hour_end_ns(start_ns) <= self._closed.until_ns

    # Hours

    async def _make_run(self, day: Day, run: Sequence[int], *, anew: bool) -> None:
        """Make hours that follow each other, so many at once as may be held."""
        reached = [*self._counted.reached(run[0]), *run]
        counted = await self._count(reached, day.hour_end_ns(run[-1]))
        asked = await self._raw.narrowed(self._place.domain, [*self._metrics, *_BESIDE])
        step = max(1, MAX_HELD // max(1, counted.devices))
        for first in range(0, len(run), step):
            await self._make_hours(day, run[first : first + step], counted, asked, anew=anew)
            await self._rest()

    async def _make_hours(
        self, day: Day, hours: Sequence[int], counted: Counted, asked: list[str], *, anew: bool
    ) -> None:
        bounds = hours[0], day.hour_end_ns(hours[-1])
        expected = {start_ns: counted.expected(start_ns) for start_ns in hours}
        # A site's row is written last: where there is none, devices' rows that there may be are made again.
        known = not self._derived.digest and any(start_ns in self._site_hours for start_ns in hours)
        stored = await self._stored(HOUR, *bounds) if known and not anew else {}
        stale: dict[str, list[int]] = defaultdict(list)
        for start_ns, devices in expected.items():
            for device, wanted in devices.items():
                made = stored.get(device, {}).get(start_ns)
                if made is None or made.is_short_of(wanted):
                    stale[device].append(start_ns)
        fresh, digests = await self._make_device_hours(day, bounds, counted, stale, asked)
        short = {
            start_ns: sum(
                max(0, devices[device].basis - int(row["basis"]))
                for device, row in fresh[start_ns].items()
            )
            for start_ns, devices in expected.items()
        }
        if stored:
            part = self._part(HOUR, *bounds)
            async for found in self._kept.device_rows(part, self._of_site):
                for row in _by_row(found):
                    start_ns = int(row["start_ms"]) * MS_NS
                    if found.device in expected.get(start_ns, ()):
                        fresh[start_ns].setdefault(found.device, row)
        for start_ns in hours:
            if rows := fresh[start_ns]:
                whole = self._counted.expected(start_ns)[ALL]
                basis = max(0, whole.basis - short[start_ns])
                fields = self._site(rows, basis, digests[start_ns], hour=True)
                await self._write([self._point(SITE_HOUR, ALL, start_ns, fields)])
                self._site_hours[start_ns] = Made(int(fields["rows"]), basis)

    async def _make_device_hours(
        self,
        day: Day,
        bounds: tuple[int, int],
        counted: Counted,
        stale: Mapping[str, Sequence[int]],
        asked: Sequence[str],
    ) -> tuple[ByHour, dict[int, list[Any]]]:
        """Make hours of devices; return what the site's rows need of them."""
        derived, settings, domain = self._derived, self._settings, self._place.domain
        fresh: ByHour = defaultdict(dict)
        digests: dict[int, list[Any]] = defaultdict(list)
        points: list[Point] = []
        part = self._part(domain, bounds[0] - BEFORE_NS, bounds[1], stale)
        raw = self._raw.device_rows(part, asked)
        earlier = self._earlier(bounds, stale)
        async for found, known in _beside(raw, earlier):
            hours = stale.get(found.device, ())
            chained = {int(row["start_ms"]) * MS_NS: row for row in _by_row(known)}
            good = GoodRows(found, self._metrics)
            for start_ns in hours:
                end_ns = day.hour_end_ns(start_ns)
                rows = good.rows(start_ns, end_ns)
                if not rows:
                    continue
                self.raw_rows += rows
                values = good.span(start_ns, end_ns)
                fields = {} if derived.digest else statistics.hour(domain, values, settings.hold_s)
                if derived.hour:
                    fields |= derived.hour(values, settings)
                basis = counted.before(found.device, start_ns)
                if derived.chain:
                    own: Row = {"device": found.device, "start_ms": start_ns // MS_NS, **fields}
                    back = [chained[each] for each in counted.reached(start_ns) if each in chained]
                    basis = sum(int(row["rows"]) for row in back)
                    fields |= derived.chain([*back, own], date_of(self._zone, day), settings)
                    chained[start_ns] = own | {"rows": rows}
                fields |= {
                    "rows": rows,
                    "basis": basis,
                    _STUCK: _stuck(good.marks(start_ns, end_ns)),
                }
                fresh[start_ns][found.device] = self._reduced(found.device, start_ns, fields)
                if derived.digest:
                    digests[start_ns].append(derived.digest(values, settings))
                else:
                    points.append(self._point(HOUR, found.device, start_ns, fields))
            if len(points) >= POINTS_A_WRITE:
                await self._write(points)
        await self._write(points)
        return fresh, digests

    async def _earlier(
        self, bounds: tuple[int, int], stale: Collection[str]
    ) -> AsyncIterator[DeviceRows]:
        """Yield the hours that chained hours look at, as far as they are stored."""
        if self._derived.chain and stale:
            part = self._part(HOUR, self._counted.reached(bounds[0])[0], bounds[1], stale)
            names = ["rows", *self._derived.written]
            async for found in self._kept.device_rows(part, names):
                yield found

    # Days

    async def _make_day(self, day: Day, *, anew: bool, known: bool = False) -> None:
        """Make what is stale of the day's rows; if it is to be `known`, not of a day that has none yet."""
        looks = self._looks(day)
        made = self._site_days.get(day.start_ns)
        over = (
            looks[0] - self._reach_ns >= self._closed.since_ns
            and day.end_ns <= self._closed.until_ns
        )
        if not over or (known and made is None):
            return
        own, looked = self._site_hours_in(day.start_ns, day.end_ns), self._site_hours_in(*looks)
        expected = self._expected(own, looked)
        if not own or not (anew or self._is_stale(day, made, expected)):
            return
        if self._derived.combine:
            digests = [each async for each in self._digests(day)]
            fields: Row = {"devices": len(digests), **expected._asdict()}
            fields |= self._derived.combine(digests)
        else:
            fresh = await self._fresh_days(day, looks, remake=made is None or anew)
            fields = self._told(self._site(fresh, expected.basis, [], hour=False), day)
        if fields["devices"]:
            await self._write([self._point(SITE_DAY, ALL, day.start_ns, fields)])
            self._site_days[day.start_ns] = Made(int(fields["rows"]), int(fields["basis"]))
        await self._rest()

    async def _fresh_days(
        self, day: Day, looks: tuple[int, int], *, remake: bool
    ) -> dict[str, Row]:
        """Make days of devices that are stale, or all; return what the site's row needs of every device's."""
        stale = None if remake else await self._stale_devices(day, looks)
        fresh = await self._make_device_days(day, looks, stale)
        if stale is not None:
            part = self._part(DAY, day.start_ns, day.start_ns + 1)
            async for found in self._kept.device_rows(part, self._of_site):
                for row in _by_row(found):
                    fresh.setdefault(found.device, row)
        return fresh

    def _looks(self, day: Day) -> tuple[int, int]:
        """Return from when to when the day's row looks at hours."""
        if not self._derived.night:
            return day.start_ns, day.end_ns
        return day.start_ns - DAY_NS, min(self._night_end_ns(day), self._closed.until_ns)

    def _night_lasts(self, day: Day) -> bool:
        return self._derived.night and self._closed.until_ns < self._night_end_ns(day)

    def _told(self, fields: Row, day: Day) -> Row:
        """Return what a day's row says of these fields: of a night that lasts, nothing that is of all of it.

        Shape: then its `basis` is 0, so that the row is short of what it looks at, whatever comes, once the night is
            over.
        """
        if not self._night_lasts(day):
            return fields
        kept = {name: value for name, value in fields.items() if not name.startswith(_NIGHT)}
        return kept | {"basis": 0}

    def _night_end_ns(self, day: Day) -> int:
        return noon_ns(self._zone, beside(self._zone, day)[1])

    def _site_hours_in(self, start_ns: int, end_ns: int) -> list[Made]:
        return [made for at_ns, made in self._site_hours.items() if start_ns <= at_ns < end_ns]

    def _expected(self, own: Iterable[Made], looked: Iterable[Made]) -> Made:
        """Return what a day's row should say by its hours and those that it looks at."""
        rows, basis = total(own)
        return Made(rows, basis + total(looked).rows if self._derived.night else basis)

    def _is_stale(self, day: Day, made: Made | None, expected: Made) -> bool:
        """Whether the day's row of a device or site is to be made, or made anew.

        Shape: while the night lasts what the row looks at beyond the day may grow: it is made anew after that.
        """
        if made is None:
            return True
        if self._night_lasts(day):
            return made.rows < expected.rows
        return made.is_short_of(expected)

    async def _stale_devices(self, day: Day, looks: tuple[int, int]) -> dict[str, bool]:
        """Return the devices of which the day's row is stale, and whether hours of the day itself are why."""
        stored = await self._stored(DAY, day.start_ns, day.start_ns + 1)
        stale = {}
        async for found in self._kept.device_rows(self._part(HOUR, *looks), _MADE):
            columns = (found.columns.get(name, ()) for name in _MADE)
            hours = [*zip(found.times_ns, *columns, strict=True)]
            looked = [Made(int(rows or 0), int(basis or 0)) for _, rows, basis in hours]
            own = [
                made
                for (at_ns, *_), made in zip(hours, looked, strict=True)
                if day.start_ns <= at_ns < day.end_ns
            ]
            expected, made = (
                self._expected(own, looked),
                stored.get(found.device, {}).get(day.start_ns),
            )
            if own and self._is_stale(day, made, expected):
                stale[found.device] = made is None or made.rows < expected.rows
        return stale

    async def _make_device_days(
        self, day: Day, looks: tuple[int, int], stale: Mapping[str, bool] | None
    ) -> dict[str, Row]:
        """Make days of devices, of all where none are named; return what the site's row needs of them."""
        derived, domain = self._derived, self._place.domain
        within = Bounds(day.start_ns // MS_NS, day.end_ns // MS_NS)
        night = Bounds(noon_ns(self._zone, day) // MS_NS, self._night_end_ns(day) // MS_NS)
        on = date_of(self._zone, day)
        grown = () if stale is None else [device for device, grew in stale.items() if grew]
        fresh: dict[str, Row] = {}
        if stale is not None and not stale:
            return fresh
        points: list[Point] = []
        names = [*_MADE, *derived.written]
        hours_of = self._kept.device_rows(self._part(HOUR, *looks, stale or ()), names)
        values = self._values(day, grown, asked=stale is None or bool(grown))
        faulty = await self._faulty(day)
        async for found, known in _beside(hours_of, values):
            if stale is not None and found.device not in stale:
                continue
            hours = _by_row(found)
            own = [row for row in hours if within.start_ms <= int(row["start_ms"]) < within.end_ms]
            if not own:
                continue
            fields: Row = {}
            if known.times_ns and (stale is None or stale[found.device]):
                fields |= statistics.day(domain, known.columns, self._metrics)
            if derived.day:
                fields |= derived.day(hours, on, within, night, self._settings)
            looked = hours if derived.night else []
            basis = [*(row["basis"] for row in own), *(row["rows"] for row in looked)]
            fields |= {"rows": sum(int(row["rows"]) for row in own), "basis": sum(map(int, basis))}
            fields = self._told(fields, day)
            points.append(self._point(DAY, found.device, day.start_ns, fields))
            faults = self._faults(found.device, fields)
            if found.device in faulty or any(faults.get(name) for name in derived.faulty):
                points.append(self._point(FAULT_DAY, found.device, day.start_ns, faults))
            fresh[found.device] = self._reduced(found.device, day.start_ns, fields)
            if len(points) >= POINTS_A_WRITE:
                await self._write(points)
        await self._write(points)
        return fresh

    async def _values(
        self, day: Day, devices: Collection[str], *, asked: bool
    ) -> AsyncIterator[DeviceRows]:
        """Yield the statistics of a day's hours, where they are asked for."""
        if not asked:
            return
        part = self._part(HOUR, day.start_ns, day.end_ns, devices)
        names = await self._kept.narrowed(HOUR, statistics.names(self._place.domain, self._metrics))
        async for found in self._kept.device_rows(part, names):
            yield found

    def _faults(self, device: str, fields: Row) -> Row:
        faults = self._derived.faults
        return {} if faults is None else {**faults(fields, device, self._settings)}

    async def _faulty(self, day: Day) -> set[str]:
        """Return the devices of which the day is already said to be one of faults."""
        if not self._derived.faults:
            return set()
        part = self._part(FAULT_DAY, day.start_ns, day.start_ns + 1)
        found = self._kept.device_rows(part, self._derived.faulty)
        return {each.device async for each in found}

    # Sites

    def _site(
        self,
        devices: Mapping[str, Row],
        basis: int,
        digests: Sequence[Any],
        *,
        hour: bool,
    ) -> Row:
        """Return a site's row from its devices' rows, and from digests where no row may tell these."""
        derived, settings = self._derived, self._settings
        rows = [devices[device] for device in sorted(devices)]
        fields: Row = {"devices": len(rows), "basis": basis}
        fields["rows"] = sum(int(row["rows"]) for row in rows)
        if hour:
            fields[_STUCK] = sum(int(row.get(_STUCK, 0)) for row in rows)
        combined = derived.site_hour if hour else derived.site_day
        if combined:
            fields |= combined(rows, settings)
        if derived.combine:
            fields |= derived.combine(digests)
        return fields

    async def _digests(self, day: Day) -> AsyncIterator[Any]:
        """Yield what each device adds to its site's day."""
        assert self._derived.digest is not None
        asked = await self._raw.narrowed(self._place.domain, [*self._metrics, *_BESIDE])
        part = self._part(self._place.domain, day.start_ns - BEFORE_NS, day.end_ns)
        async for found in self._raw.device_rows(part, asked):
            good = GoodRows(found, self._metrics)
            if rows := good.rows(day.start_ns, day.end_ns):
                self.raw_rows += rows
                values = good.span(day.start_ns, day.end_ns)
                yield self._derived.digest(values, self._settings)

    # Rows and counts

    async def _count(self, hours: Sequence[int], end_ns: int, *, by_device: bool = True) -> Counted:
        """Return how many raw rows are in each of these hours, the last of which ends then."""
        counted = Counted(hours, reach_ns=self._reach_ns)
        pieces = aligned(hours, MAX_COUNTED_HOURS)
        ends = [*(piece[0] for piece in pieces[1:]), end_ns]
        for piece, until_ns in zip(pieces, ends, strict=True):
            part = self._part(self._place.domain, piece[0], until_ns)
            found = self._raw.counts(part, counted=_COUNTED, step_ns=HOUR_NS, by_device=by_device)
            async for each in found:
                counted.add(*each)
        return counted

    async def _stored(
        self, measurement: str, start_ns: int, end_ns: int
    ) -> dict[str, dict[int, Made]]:
        """Return what rows say that they were made from, by device and time; a site's device is ALL."""
        stored: dict[str, dict[int, Made]] = {}
        part = self._part(measurement, start_ns, end_ns)
        async for found in self._kept.device_rows(part, _MADE):
            columns = (found.columns.get(name, ()) for name in _MADE)
            made = zip(found.times_ns, *columns, strict=True)
            stored[found.device] = {
                at_ns: Made(int(rows or 0), int(basis or 0)) for at_ns, rows, basis in made
            }
        return stored

    def _part(
        self, measurement: str, start_ns: int, end_ns: int, devices: Collection[str] = ()
    ) -> Part:
        county, site, domain = self._place
        named = tuple(sorted(devices)) if len(devices) <= MAX_NAMED else ()
        tag = domain if measurement in MEASUREMENTS else ""
        return Part(measurement, county, site, start_ns, end_ns, named, tag)

    def _point(
        self, measurement: str, device: str, start_ns: int, fields: dict[str, FieldValue]
    ) -> Point:
        county, site, domain = self._place
        return Point(Series(measurement, county, site, device, domain), start_ns, fields)

    def _reduced(self, device: str, start_ns: int, fields: Mapping[str, FieldValue]) -> Row:
        """Return what a site's row needs of a device's."""
        row: Row = {"device": device, "start_ms": start_ns // MS_NS}
        for name in self._of_site:
            if name in fields:
                row[name] = fields[name]
        return row

    async def _write(self, points: list[Point]) -> None:
        """Write points and forget them."""
        if points:
            await self._kept.write(points)
            self.points += len(points)
            points.clear()


async def _beside(
    rows: AsyncIterator[DeviceRows], others: AsyncIterator[DeviceRows]
) -> AsyncIterator[tuple[DeviceRows, DeviceRows]]:
    """Yield each device's rows with the other rows of the same device, which may be none."""
    other = await anext(others, None)
    async for one in rows:
        while other is not None and other.device < one.device:
            other = await anext(others, None)
        is_same = other is not None and other.device == one.device
        yield one, other if other is not None and is_same else DeviceRows(one.device, (), {})


def _by_row(found: DeviceRows) -> list[Row]:
    """Return rows as functions of a domain take them: with `device` and `start_ms`, without what is absent."""
    rows: list[Row] = [
        {"device": found.device, "start_ms": time_ns // MS_NS} for time_ns in found.times_ns
    ]
    for name, column in found.columns.items():
        for row, value in zip(rows, column, strict=True):
            if value is not None:
                row[name] = value
    return rows


def _stuck(marks: Sequence[FieldValue | None]) -> int:
    """Return 1 where any of these qualities says that a value does not move."""
    return int(any(mark is not None and _STUCK_MARK.search(str(mark)) for mark in marks))
