"""What the pages read, of a nation and a week, as line protocol.

There are as many series as there would be, and as many points in what a page reads of all of them. Where nothing
reads all points of all series, a series has its newest ones: a whole block of the database, so that reading the newest
is as dear as it would be. `LEFT_OUT` says of which that is true.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import cycle, islice
from random import Random
from typing import NamedTuple
from zoneinfo import ZoneInfo

from benchmarks.country import COUNTIES
from dashboards.panels import Source

ZONE = ZoneInfo("Asia/Taipei")
MINUTE_MS, HOUR_MS, DAY_MS = 60_000, 3_600_000, 86_400_000
LAMPS_OF_A_SITE = 300
OF_A_LAMP = {"parking": 40 / 300, "air": 19 / 300, "power": 3 / 300, "gateway": 4 / 300}
"""Devices of the other domains: 21,000 bays, 10,000 air boxes, a meter for each cabinet, a gateway for 90 devices."""
BLOCK = 1000
"""Points of a block of the database: what reading one of them costs at least."""
ROWS_A_CHUNK = 20_000
LEFT_OUT = """\
streetlight, power, air (raw): all series, one row each; every minute of the week of the devices of one site alone
parking (raw): the last hour every minute; of the largest county and of the one site the last 1,000 minutes
gateway (raw): the last 1,000 minutes
device: the last quarter of an hour; of gateways also the last 1,000 rows, of one site the whole week
site_now, county_now: the last 1,000 minutes; site_now of one site the whole week
rollup_hour: air boxes and gateways whole; of all others but parking, which has none, the last three hours
rollup_day: of all but parking the fields that pages read and a few more, not those of each metric
vendors' metrics, commands but of one device"""
_VARIANTS = 64


class Site(NamedTuple):
    """A site and its devices by domain."""

    county: str
    name: str
    devices: Mapping[str, Sequence[str]]

    @property
    def tags(self) -> str:
        return f"county={self.county},site={self.name}"


class Chunk(NamedTuple):
    """Some lines for one of the buckets. Units: times in milliseconds."""

    source: Source
    lines: str


def sites(lamps: int) -> list[Site]:
    """Return the sites of the counties, as many as their inhabitants are worth, of so many lamps."""
    total, found = sum(COUNTIES.values()), []
    for county, thousands in COUNTIES.items():
        mine = max(round(lamps * thousands / total), 1)
        count = -(-mine // LAMPS_OF_A_SITE)
        for number in range(count):
            name = f"{county[3:]}-{number:03d}"
            numbers = {"streetlight": mine * (number + 1) // count - mine * number // count}
            for domain, part in OF_A_LAMP.items():
                numbers[domain] = max(round(numbers["streetlight"] * part), 1)
            devices = {
                domain: [f"{name}-{domain}-{one:04d}" for one in range(number_of)]
                for domain, number_of in numbers.items()
            }
            found.append(Site(county, name, devices))
    return found


class Week:
    """Rows of so many days before a moment."""

    def __init__(self, lamps: int, *, days: int, now_ms: int) -> None:
        self.sites = sites(lamps)
        self.days = days
        self.now_ms = now_ms - now_ms % MINUTE_MS
        self.begin_ms = self.midnight_ms(days - 1)
        self.shown = self.sites[0]
        """The one site that the pages of a site and of a device show: in the largest county."""
        self._dice = Random(7)

    @property
    def devices(self) -> int:
        return sum(len(names) for site in self.sites for names in site.devices.values())

    def midnight_ms(self, days_ago: int) -> int:
        today = datetime.fromtimestamp(self.now_ms / 1000, UTC).astimezone(ZONE)
        day = (today - timedelta(days=days_ago)).replace(hour=0, minute=0, second=0, microsecond=0)
        return round(day.timestamp() * 1000)

    def chunks(self) -> Iterator[Chunk]:
        """Yield everything, in chunks that a request may have."""
        for source, rows in (
            (Source.RAW, self._raw),
            (Source.RAW, self._devices),
            (Source.RAW, self._sites_now),
            (Source.RAW, self._counties_now),
            (Source.RAW, self._days_of_devices),
            (Source.RAW, self._incidents),
            (Source.ROLLUPS, self._days_rolled_up),
            (Source.ROLLUPS, self._hours_rolled_up),
            (Source.ROLLUPS, self._sites_rolled_up),
        ):
            lines = rows()
            while some := list(islice(lines, ROWS_A_CHUNK)):
                yield Chunk(source, "\n".join(some))

    # The raw bucket

    def _raw(self) -> Iterator[str]:
        largest = self.shown.county
        for site in self.sites:
            for domain, names in site.devices.items():
                variants = self._variants(_RAW[domain])
                lots = self._variants(_LOT) if domain == "parking" else []
                minutes = 1
                if domain == "gateway":
                    minutes = BLOCK
                elif domain == "parking":
                    minutes = BLOCK if site.county == largest else 60
                times = self._times(MINUTE_MS, minutes)
                if site is self.shown:
                    times = self._times(MINUTE_MS, (self.now_ms - self.begin_ms) // MINUTE_MS)
                for number, name in enumerate(names):
                    said = lots if domain == "parking" and number == 0 else variants
                    yield from _rows(f"{domain},{site.tags},device={name}", said, times)
        first = self.shown.devices["streetlight"][0]
        commands = ['id="c-1",status="done",reason="",readback="level=70"']
        yield from _rows(
            f"command,{self.shown.tags},device={first}", commands, self._times(DAY_MS, self.days)
        )

    def _devices(self) -> Iterator[str]:
        whole = (self.now_ms - self.begin_ms) // (5 * MINUTE_MS)
        for site in self.sites:
            for domain, names in site.devices.items():
                rows = whole if site is self.shown else BLOCK if domain == "gateway" else 3
                for name in names:
                    own = ",".join(
                        (
                            f'label="{site.name} {name}",asset_id="A-{name}"',
                            f'gateway="gw-{site.name}-1",interval_s=60,gateway_up=1i,flapping=0i',
                            f"lat={self._near(25)},lon={self._near(121.5)}",
                            'since="2026-11-01T00:00:00.000Z",incident=""',
                        )
                    )
                    variants = [
                        f'{own},up={int(state < 2)}i,status="{word}",state={state}i,age_s={age}'
                        for state, word, age in self._states()
                    ]
                    key = f"device,{site.tags},device={name},domain={domain}"
                    yield from _rows(key, variants, self._times(5 * MINUTE_MS, rows))

    def _sites_now(self) -> Iterator[str]:
        whole = (self.now_ms - self.begin_ms) // MINUTE_MS
        for site in self.sites:
            where = f"lat={self._near(25)},lon={self._near(121.5)}"
            for domain, names in site.devices.items():
                variants = [
                    f"devices={len(names)}i,up={len(names) - down - late}i,late={late}i,"
                    f"down={down}i,unknown=0i,maintenance=0i,incidents={down}i,"
                    f"completeness={self._share()},availability={self._share()},{where}"
                    for down, late in self._troubles(len(names))
                ]
                times = self._times(MINUTE_MS, whole if site is self.shown else BLOCK)
                yield from _rows(f"site_now,{site.tags},domain={domain}", variants, times)

    def _counties_now(self) -> Iterator[str]:
        for county in COUNTIES:
            for domain in self.shown.devices:
                variants = [
                    f"devices=9999i,up=9900i,late={late}i,down={down}i,unknown=0i,maintenance=0i,"
                    f"incidents={down}i"
                    for down, late in self._troubles(9999)
                ]
                times = self._times(MINUTE_MS, BLOCK)
                yield from _rows(f"county_now,county={county},domain={domain}", variants, times)

    def _days_of_devices(self) -> Iterator[str]:
        for site in self.sites:
            for domain, names in site.devices.items():
                times = [self.midnight_ms(ago) for ago in reversed(range(self.days))]
                variants = [f"{self._day(1440)},heard=1440i,missed=3i" for _ in range(_VARIANTS)]
                for name in names:
                    key = f"device_day,{site.tags},device={name},domain={domain}"
                    yield from _rows(key, variants, times, self._dice.randrange(_VARIANTS))
                times = [self.midnight_ms(ago) for ago in reversed(range(30))]
                variants = [self._day(1440 * len(names)) for _ in range(_VARIANTS)]
                yield from _rows(f"site_day_state,{site.tags},domain={domain}", variants, times)
                variants = [
                    f"devices={len(names)}i,down={down}i,late={late}i,unknown=0i"
                    for down, late in self._troubles(len(names))
                ]
                hours = self._whole_hours(24 * self.days)
                yield from _rows(f"site_hour_state,{site.tags},domain={domain}", variants, hours)

    def _incidents(self) -> Iterator[str]:
        """Yield a year of them: three of a thousand devices a day have one, the newest are open."""
        places = [
            (s, domain, name)
            for s in self.sites
            for domain, names in s.devices.items()
            for name in names
        ]
        for days_ago in range(365):
            for _ in range(max(round(0.003 * len(places)), 1)):
                site, domain, name = self._dice.choice(places)
                began_ms = self.now_ms - days_ago * DAY_MS - self._dice.randrange(DAY_MS)
                is_open = int(days_ago == 0 or self._dice.random() < 0.001)
                kind = "gateway_down" if domain == "gateway" else "device_down"
                lasted_s = self._dice.randrange(86_400)
                ended = 0 if is_open else began_ms + 1000 * lasted_s
                behind = 90 if domain == "gateway" else 1
                yield (
                    f"incident,{site.tags},device={name},domain={domain} "
                    f'id="{site.county}/{name}/{kind}/{began_ms}",kind="{kind}",open={is_open}i,'
                    f'ended={ended}i,duration_s={lasted_s},devices={behind}i,cause="silent",'
                    f'label="{name}" {began_ms}'
                )

    # The bucket of rollups

    def _days_rolled_up(self) -> Iterator[str]:
        times = [self.midnight_ms(ago) for ago in reversed(range(1, self.days + 1))]
        for site in self.sites:
            for domain, names in site.devices.items():
                if domain not in _DAY:
                    continue
                variants = self._variants(_DAY[domain])
                for name in names:
                    key = f"rollup_day,{site.tags},device={name},domain={domain}"
                    yield from _rows(key, variants, times, self._dice.randrange(_VARIANTS))
            for name in site.devices["streetlight"]:  # two of a hundred had something in the week
                if self._dice.random() < 0.02:
                    key = f"fault_day,{site.tags},device={name},domain=streetlight"
                    variants = self._variants(_FAULT)
                    yield from _rows(key, variants, times[-self._dice.randrange(1, 7) :])

    def _hours_rolled_up(self) -> Iterator[str]:
        for site in self.sites:
            for domain, names in site.devices.items():
                if domain not in _HOUR:
                    continue
                variants = self._variants(_HOUR[domain])
                hours = 24 * self.days if domain in ("air", "gateway") else 4
                times = self._whole_hours(hours)[:-1]
                for name in names:
                    key = f"rollup_hour,{site.tags},device={name},domain={domain}"
                    yield from _rows(key, variants, times, self._dice.randrange(_VARIANTS))

    def _sites_rolled_up(self) -> Iterator[str]:
        for site in self.sites:
            for domain in site.devices:
                variants = self._variants(_SITE_HOUR[domain])
                hours = self._whole_hours(24 * self.days)[:-1]
                yield from _rows(f"site_hour,{site.tags},domain={domain}", variants, hours)
                days = [self.midnight_ms(ago) for ago in reversed(range(1, 31))]
                variants = self._variants(_SITE_DAY[domain])
                yield from _rows(f"site_day,{site.tags},domain={domain}", variants, days)

    # Parts

    def _times(self, step_ms: int, count: int) -> list[int]:
        """Return the newest moments, each device's own."""
        newest = self.now_ms - self._dice.randrange(min(step_ms, 5 * MINUTE_MS))
        return list(range(newest - step_ms * (count - 1), newest + 1, step_ms))

    def _whole_hours(self, count: int) -> list[int]:
        newest = self.now_ms - self.now_ms % HOUR_MS
        return list(range(newest - HOUR_MS * (count - 1), newest + 1, HOUR_MS))

    def _variants(self, make: Callable[[Random], str]) -> list[str]:
        return [make(self._dice) for _ in range(_VARIANTS)]

    def _near(self, degrees: float) -> float:
        return round(degrees + self._dice.random(), 5)

    def _share(self) -> float:
        return round(1 - 0.03 * self._dice.random(), 6)

    def _states(self) -> Iterator[tuple[int, str, float]]:
        for _ in range(16):
            state = self._dice.choices((0, 1, 2, 3), (96, 2, 1, 1))[0]
            yield (
                state,
                ("up", "late", "down", "unknown")[state],
                round(60 * self._dice.random(), 3),
            )

    def _troubles(self, devices: int) -> list[tuple[int, int]]:
        most = max(devices // 50, 1)
        return [
            (self._dice.randint(0, most), self._dice.randint(0, most)) for _ in range(_VARIANTS)
        ]

    def _day(self, expected: int) -> str:
        missing, up_s = self._dice.randrange(max(expected // 50, 1)), 60 * expected * self._share()
        return (
            f"expected={expected}i,received={expected - missing}i,missing={missing}i,up_s={up_s:.1f},"
            f"down_s={60 * expected - up_s:.1f},unknown_s=0,maintenance_s=0,"
            f"completeness={1 - missing / expected:.6f},availability={up_s / 60 / expected:.6f}"
        )


def _rows(key: str, variants: Sequence[str], times: Sequence[int], first: int = 0) -> Iterator[str]:
    """Return one line a moment."""
    said = islice(cycle(variants), first % len(variants), None)
    for time_ms, fields in zip(times, said):  # noqa: B905 - the fields have no end
        yield f"{key} {fields} {time_ms}"


def _numbers(**ranges: float) -> Callable[[Random], str]:
    """Return a maker of fields, each a number up to its limit: an integer where that is one."""

    def make(dice: Random) -> str:
        return ",".join(
            f"{name}={dice.randint(0, most)}i"
            if isinstance(most, int)
            else f"{name}={round(most * dice.random(), 2)}"
            for name, most in ranges.items()
        )

    return make


_KEPT = {"rows": 60, "basis": 120, "stuck": 0}
_RAW = {
    "streetlight": _numbers(
        lit=1, level=100.0, power=90.0, energy=9e6, lamp_fault=0, epoch=9, seq=9999
    ),
    "parking": _numbers(occupied=1, distance=3.0, epoch=9, seq=9999),
    "air": _numbers(pm2_5=60.0, pm10=80.0, temperature=30.0, humidity=99.0, epoch=9, seq=9999),
    "power": _numbers(voltage=230.0, current=9.0, power=2e3, energy_import=9e6, epoch=9, seq=9999),
    "gateway": _numbers(
        cpu=20.0,
        memory=60.0,
        disk_free=9e9,
        outbox_depth=20,
        outbox_hours_left=72.0,
        unreceipted=9,
        dropped=1,
        uplink_rtt=90.0,
        bus_errors=9,
        clock_known=1,
        clock_offset=9.0,
        epoch=9,
        seq=9999,
    ),
}
_LOT = _numbers(
    free_car=120, capacity_car=120, free_motorcycle=40, free_accessible=4, free_ev=6, epoch=9, seq=9
)
_STATISTICS = {f"_{kind}": 90.0 for kind in ("min", "max", "mean")}
_HOUR = {
    "streetlight": _numbers(energy_wh=90.0, burning_s=3600.0, faulty=1, **_KEPT),
    "air": _numbers(
        aqi=180,
        aqi_pm2_5=180,
        aqi_pm10=90,
        indicative=1,
        **{f"{name}_mean": 60.0 for name in ("pm2_5", "pm10", "temperature", "humidity")},
        **_KEPT,
    ),
    "power": _numbers(energy_wh=900.0, **_KEPT),
    "gateway": _numbers(
        **{f"outbox_depth{end}": most for end, most in _STATISTICS.items()},
        **{f"uplink_rtt{end}": most for end, most in _STATISTICS.items()},
        **_KEPT,
    ),
}
_FAULT = _numbers(faulty=1, day_burner=1, cycling=1, burning_s=4e4, day_burning_s=9e3, switchings=9)
_DAY = {
    **_HOUR,
    "streetlight": _numbers(
        faulty=0,
        day_burner=0,
        cycling=0,
        burning_s=4e4,
        day_burning_s=3.0,
        switchings=4,
        energy_wh=900.0,
        night_energy_wh=900.0,
        **_KEPT,
    ),
}
_ENERGY = dict.fromkeys(
    ("energy_wh", "baseline_wh", "saved_wh", "saved_low_wh", "saved_high_wh"), 9e5
)
_SITE_HOUR = {
    "streetlight": _numbers(devices=300, lamps_out=3, day_burners=2, **_ENERGY, **_KEPT),
    "parking": _numbers(devices=40, occupancy=1.0, bays=40, arrivals=9, stays=9, **_KEPT),
    "air": _numbers(devices=19, aqi=180, aqi_mean=90.0, aqi_stations=19, indicative=1, **_KEPT),
    "power": _numbers(devices=3, energy_wh=9e3, **_KEPT),
    "gateway": _numbers(devices=4, **_KEPT),
}
_SITE_DAY = {
    **_SITE_HOUR,
    "streetlight": _numbers(
        devices=300,
        lamps_out=3,
        day_burners=2,
        cycling=2,
        **_ENERGY,
        **{f"night_{name}": most for name, most in _ENERGY.items()},
        **_KEPT,
    ),
    "parking": _numbers(
        devices=40,
        occupancy=1.0,
        turnover=9.0,
        stays=200,
        dwell_median_s=3e3,
        dwell_p90_s=9e3,
        **_KEPT,
    ),
}
