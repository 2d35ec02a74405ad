"""A simulated week of the nine-site example: the rows that its devices would have left in a store, and what is true.

Everything is a pure function of (seed, device, time), made row by row: a week of a whole country fits in memory.
What happens stands in EVENTS; all else is a quiet week.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from functools import cache, cached_property
from itertools import islice
from pathlib import Path
from typing import Final, Literal, NamedTuple
from zoneinfo import ZoneInfo

from astral import Observer
from astral.sun import sun

from exchange.states import Descriptor, Label, Location, State
from exchange.topics import Topic
from exchange.towns import Site, Town, read_towns
from ingest.stores import FieldValue, Point, Series, Store

ROOT = Path(__file__).parents[1]
HOUR_MS: Final = 3_600_000
POINTS_A_WRITE = 5000

# What the devices are like
STANDBY_W = 0.4
DIMMED, DIM_FROM_H, DIM_TO_H = 50.0, 0, 5
LOT_PLACES = 120
QUIET_PM2_5, EPISODE_PM2_5 = 10.0, 60.0

What = Literal[
    "lamp_fault",  # dark at night, and it says so
    "lamp_dead",  # dark at night; it says that it is lit, and takes no power
    "day_burner",  # lit day and night
    "cycling",  # on and off every 20 minutes while it is dark
    "new_meter",  # its counter begins at 0 again
    "silent",  # no samples are taken
    "gateway_down",  # nothing of what hangs on it takes samples
    "uplink_out",  # its gateway sends what it took when the event ends
    "lost",  # samples are taken and never arrive
    "new_epoch",  # its counter of samples begins anew
    "full",  # a car park
    "smog",  # PM2.5 at EPISODE_PM2_5 instead of QUIET_PM2_5
    "stuck",  # PM2.5 does not change any more
    "damp",  # humidity beyond its range, marked
]


class Happening(NamedTuple):
    """What happens where and when. Units: `begin` and `end` are (day of the week of the test, hour of the day)."""

    what: What
    site: str
    device: str
    begin: tuple[int, float]
    end: tuple[int, float]


ALL_WEEK_END = (7, 0.0)
EVENTS: Final = (
    Happening("lamp_fault", "xinyi", "xinyi-lamp-2", (2, 12), ALL_WEEK_END),
    Happening("lamp_dead", "pingtung", "pingtung-lamp-2", (3, 12), (5, 12)),
    Happening("day_burner", "neihu", "neihu-lamp-3", (4, 0), (6, 0)),
    Happening("cycling", "shuinan", "shuinan-lamp-4", (3, 12), (4, 12)),
    Happening("new_meter", "station", "station-lamp-1", (3, 12), (3, 13)),
    Happening("silent", "xinyi", "xinyi-lamp-5", (5, 6), ALL_WEEK_END),
    Happening("silent", "pingtung", "pingtung-meter-1", (2, 6), (2, 12)),
    Happening("gateway_down", "sugar-refinery", "sugar-refinery-1", (6, 10), ALL_WEEK_END),
    Happening("uplink_out", "lukang", "lukang-1", (3, 8), (3, 11)),
    Happening("lost", "xinban", "xinban-bay-1", (2, 14), (2, 15)),
    Happening("new_epoch", "new-bay", "new-bay-lamp-1", (4, 3), ALL_WEEK_END),
    Happening("full", "xinban", "xinban-lot-1", (5, 13), (5, 17)),
    Happening("smog", "station", "station-air-1", (4, 6), (5, 4)),
    Happening("stuck", "neihu", "neihu-air-2", (2, 0), (4, 0)),
    Happening("damp", "shuinan", "shuinan-air-1", (1, 2), (1, 5)),
)


class Event(NamedTuple):
    """A happening of this week, from `start_ms` to before `end_ms`."""

    what: What
    county: str
    site: str
    device: str
    start_ms: int
    end_ms: int


class Device(NamedTuple):
    """A device of the week, as a registry knows it."""

    topic: Topic
    """That of its state."""
    state: State
    number: int

    @property
    def id(self) -> str:
        return self.topic.device

    @property
    def kind(self) -> str:
        """`lamp`, `bay`, … as in its id; a gateway's is its number."""
        return self.id.removeprefix(f"{self.topic.site}-").partition("-")[0]

    @property
    def series(self) -> Series:
        topic = self.topic
        return Series(topic.domain, topic.county, topic.site, topic.device)


Measured = dict[str, FieldValue]


@dataclass(frozen=True)
class Week:
    """A week from a Monday on; `lamps` and the like are of each site. No event is of a device beyond them."""

    seed: int = 1
    start: date = date(2026, 11, 16)
    days: int = 7
    interval_s: int = 300
    lamps: int = 6
    bays: int = 6
    lots: int = 1
    air: int = 2
    meters: int = 1

    # When

    @cached_property
    def zone(self) -> ZoneInfo:
        return ZoneInfo(self.towns[0].timezone)

    @property
    def start_ms(self) -> int:
        return self.moment_ms(0)

    @property
    def end_ms(self) -> int:
        return self.moment_ms(self.days)

    def moment_ms(self, day: int, hour: float = 0.0) -> int:
        """Return when an hour of a day of the week is, by the clock on the wall."""
        whole = datetime.combine(self.start + timedelta(days=day), time(), self.zone)
        return round((whole + timedelta(hours=hour)).timestamp() * 1000)

    # What is true

    @cached_property
    def towns(self) -> list[Town]:
        return read_towns((ROOT / "towns").glob("*.toml"))

    @cached_property
    def sites(self) -> dict[str, tuple[Town, Site]]:
        """The nine sites; their ids differ in all counties of the example."""
        return {site.id: (town, site) for town in self.towns for site in town.sites}

    @cached_property
    def events(self) -> list[Event]:
        """What happens in this week, to devices that there are."""
        found = []
        for what, site, device, begin, end in EVENTS:
            kind, _, number = device.removeprefix(f"{site}-").partition("-")
            if number and int(number) > self._numbers.get(kind, 0):
                continue
            start_ms = self.moment_ms(*begin)
            end_ms = min(self.moment_ms(*end), self.end_ms)
            if start_ms < end_ms:
                county = self.sites[site][0].county
                found.append(Event(what, county, site, device, start_ms, end_ms))
        return found

    def event(self, what: What, at: str = "") -> Event:
        """Return the one event of a kind, or the one at a device."""
        (found,) = [one for one in self.events if one.what == what and at in ("", one.device)]
        return found

    def dark(self, site: str) -> list[tuple[int, int]]:
        """Return (from, to) of the nights: what the sun says at the site, by astral, not by the code under test."""
        place = self.sites[site][1].location
        return _nights(self.start, self.days, place.lat, place.lon, self.zone.key)

    def stays(self, bay: Device) -> list[tuple[int, int]]:
        """Return (came, left) of every car in a bay."""
        return _stays(self.seed, bay.id, self.start_ms, self.end_ms)

    def rated_w(self, lamp: Device) -> float:
        return 60.0 + 5.0 * random.Random(f"{self.seed} {lamp.id} rated").randrange(7)

    def pm2_5(self, box: Device, time_ms: int) -> float:
        """Return the fine dust at an air box; the first one of a site breathes steps, so that its index is plain."""
        smog = any(start <= time_ms < end for start, end in self._when(box, "smog"))
        value = EPISODE_PM2_5 if smog else QUIET_PM2_5
        if box.number == 1:
            return value
        stuck = next((span for span in self._when(box, "stuck") if time_ms >= span[0]), None)
        if stuck is not None and time_ms < stuck[1]:
            time_ms = stuck[0]
        phase = random.Random(f"{self.seed} {box.id}").random()
        return round(value + 3 * math.sin(2 * math.pi * (time_ms / (24 * HOUR_MS) + phase)), 1)

    # What there is

    def devices(self, site: str | None = None) -> Iterator[Device]:
        """Yield the devices of one site or of all, gateways first."""
        for name in [site] if site is not None else self.sites:
            town, place = self.sites[name]
            gateways = [gateway.id for gateway in town.gateways if gateway.site == name]
            for number, gateway in enumerate(gateways, 1):
                yield self._device(town, place, gateway, "gateway", gateway, number)
            for kind, count in self._numbers.items():
                through = gateways[-1] if kind == "bay" else gateways[0]
                for number in range(1, count + 1):
                    domain = DOMAINS[kind]
                    yield self._device(
                        town, place, through, domain, f"{name}-{kind}-{number}", number
                    )

    def device(self, name: str) -> Device:
        """Return one device by its id."""
        return next(device for device in self.devices() if device.id == name)

    # What it leaves in a store

    def rows(self, device: Device, known_at_ms: int | None = None) -> Iterator[Point]:
        """Yield the raw rows of a device; with `known_at_ms`, those that the store has by then."""
        measure = self._measure(device)
        series, state = device.series, device.state
        epoch, seq = state.epoch, 0
        away = [*self._when(device, "silent"), *self._when(device, "gateway_down")]
        lost, late = self._when(device, "lost"), self._when(device, "uplink_out")
        began = [start for start, _ in self._when(device, "new_epoch")]
        until_ms = self.end_ms if known_at_ms is None else min(self.end_ms, known_at_ms)
        interval_ms = 1000 * self.interval_s
        phase_ms = random.Random(f"{self.seed} {device.id} phase").randrange(interval_ms)
        for time_ms in range(self.start_ms + phase_ms, until_ms, interval_ms):
            fields = measure(time_ms)
            if began and time_ms >= began[0]:
                epoch, seq = began.pop(), 0
            if away and _is_in(away, time_ms):
                continue
            fields["epoch"], fields["seq"] = epoch, seq
            seq += 1
            if lost and _is_in(lost, time_ms):
                continue
            if late and any(start <= time_ms < end and until_ms < end for start, end in late):
                continue
            yield Point(series, time_ms * 1_000_000 + epoch % 1_000_000, fields)

    def points(self, site: str | None = None, known_at_ms: int | None = None) -> Iterator[Point]:
        """Yield the raw rows of all devices, one device after another."""
        for device in self.devices(site):
            yield from self.rows(device, known_at_ms)

    async def write(self, store: Store, *, known_at_ms: int | None = None) -> int:
        """Write the raw rows; return how many."""
        points, written = self.points(known_at_ms=known_at_ms), 0
        while some := list(islice(points, POINTS_A_WRITE)):
            await store.write(some)
            written += len(some)
        return written

    # How it is made

    @property
    def _numbers(self) -> dict[str, int]:
        return {
            "lamp": self.lamps,
            "bay": self.bays,
            "lot": self.lots,
            "air": self.air,
            "meter": self.meters,
        }

    @cached_property
    def _happens(self) -> dict[tuple[str, What], list[tuple[int, int]]]:
        found: dict[tuple[str, What], list[tuple[int, int]]] = {}
        for event in self.events:
            found.setdefault((event.device, event.what), []).append((event.start_ms, event.end_ms))
        return found

    def _when(self, device: Device, what: What) -> list[tuple[int, int]]:
        through = device.topic.gateway if what in ("gateway_down", "uplink_out") else device.id
        return self._happens.get((through, what), [])

    def _device(
        self, town: Town, site: Site, gateway: str, domain: str, name: str, number: int
    ) -> Device:
        dice = random.Random(f"{self.seed} {name}")
        where = Location(
            lat=round(site.location.lat + dice.uniform(-0.004, 0.004), 5),
            lon=round(site.location.lon + dice.uniform(-0.004, 0.004), 5),
        )
        descriptor = Descriptor(
            maker="acme",
            model=f"{domain}-1",
            asset_id=name.upper(),
            label=Label(en=f"{site.label.en} {name}", zh_tw=f"{site.label.zh_tw} {name}"),
            location=where,
            township=site.township,
        )
        epoch = self.start_ms - dice.randrange(30 * 24 * HOUR_MS)
        state = State(
            v=1,
            online=True,
            interval_s=self.interval_s,
            epoch=epoch,
            descriptor=descriptor,
            since=datetime.fromtimestamp(epoch / 1000, UTC),
        )
        topic = Topic(town.county, site.id, gateway, domain, name, "state")
        return Device(topic, state, number)

    def _measure(self, device: Device) -> Callable[[int], Measured]:
        """Return what a device measures; to be asked by ascending times, once per interval."""
        match device.topic.domain:
            case "streetlight":
                return self._lamp(device)
            case "parking":
                return self._bay(device) if device.kind == "bay" else self._lot(device)
            case "air":
                return self._air(device)
            case "power":
                return self._meter(device)
        return self._gateway(device)

    def _lamp(self, device: Device) -> Callable[[int], Measured]:
        dice = random.Random(f"{self.seed} {device.id} lamp")
        photocell_ms = dice.randrange(3 * 60_000, 12 * 60_000)
        rated_w = self.rated_w(device)
        energy_wh = float(dice.randrange(1_000_000))
        nights = self.dark(device.topic.site)
        fault, dead = self._when(device, "lamp_fault"), self._when(device, "lamp_dead")
        burner, cycling = self._when(device, "day_burner"), self._when(device, "cycling")
        replaced = [start for start, _ in self._when(device, "new_meter")]
        power_w = STANDBY_W
        midnight_ms = self.start_ms

        def measure(time_ms: int) -> Measured:
            nonlocal energy_wh, power_w
            energy_wh += power_w * self.interval_s / 3600
            if replaced and time_ms >= replaced[0]:
                replaced.pop()
                energy_wh = 0.0
            # Each photocell is a little later than the sun at dusk, and as much earlier at dawn.
            is_dark = any(b + photocell_ms <= time_ms < e - photocell_ms for b, e in nights)
            level = 0.0
            if is_dark or (burner and _is_in(burner, time_ms)):
                hour = (time_ms - midnight_ms) // HOUR_MS % 24
                level = DIMMED if DIM_FROM_H <= hour < DIM_TO_H else 100.0
            if cycling and _is_in(cycling, time_ms) and time_ms // 1_200_000 % 2:
                level = 0.0
            failed = bool(fault) and _is_in(fault, time_ms)
            power_w = rated_w * level / 100 + STANDBY_W
            if failed or (dead and _is_in(dead, time_ms)):
                power_w = STANDBY_W
            return {
                "lit": int(level > 0 and not failed),
                "level": level,
                "power": round(power_w, 1),
                "energy": round(energy_wh, 2),
                "lamp_fault": int(failed and level > 0),
            }

        return measure

    def _bay(self, device: Device) -> Callable[[int], Measured]:
        stays = self.stays(device)
        came = [start for start, _ in stays]

        def measure(time_ms: int) -> Measured:
            place = bisect_right(came, time_ms) - 1
            occupied = place >= 0 and time_ms < stays[place][1]
            return {"occupied": int(occupied), "distance": 0.9 if occupied else 2.6}

        return measure

    def _lot(self, device: Device) -> Callable[[int], Measured]:
        full = self._when(device, "full")
        start_ms = self.start_ms

        def measure(time_ms: int) -> Measured:
            hour = (time_ms - start_ms) / HOUR_MS % 24
            taken = round(LOT_PLACES * (0.45 - 0.35 * math.cos(2 * math.pi * (hour - 3) / 24)))
            if full and _is_in(full, time_ms):
                taken = LOT_PLACES - 2
            return {"capacity_car": LOT_PLACES, "free_car": LOT_PLACES - taken}

        return measure

    def _air(self, device: Device) -> Callable[[int], Measured]:
        damp, stuck = self._when(device, "damp"), self._when(device, "stuck")
        start_ms = self.start_ms

        def measure(time_ms: int) -> Measured:
            pm2_5 = self.pm2_5(device, time_ms)
            warmth = math.cos(2 * math.pi * ((time_ms - start_ms) / HOUR_MS - 14) / 24)
            fields: Measured = {
                "pm2_5": pm2_5,
                "pm10": round(1.2 * pm2_5, 1),
                "temperature": round(22 + 4 * warmth, 2),
                "humidity": round(75 - 10 * warmth, 2),
            }
            if damp and _is_in(damp, time_ms):
                fields |= {"humidity": 104.0, "quality": "bad:range(humidity)"}
            if stuck and _is_in(stuck, time_ms) and time_ms >= stuck[0][0] + 24 * HOUR_MS:
                fields["quality"] = "uncertain:stuck(pm2_5)"
            return fields

        return measure

    def _meter(self, device: Device) -> Callable[[int], Measured]:
        """A cabinet's meter takes a plain 500 W by day and 1500 W by night."""
        nights = self.dark(device.topic.site)
        energy_wh, power_w = 1_000_000.0, 500.0

        def measure(time_ms: int) -> Measured:
            nonlocal energy_wh, power_w
            energy_wh += power_w * self.interval_s / 3600
            power_w = 1500.0 if _is_in(nights, time_ms) else 500.0
            return {
                "voltage": 220.0,
                "current": round(power_w / 220, 3),
                "power": power_w,
                "energy_import": round(energy_wh, 2),
            }

        return measure

    def _gateway(self, device: Device) -> Callable[[int], Measured]:
        late = self._when(device, "uplink_out")

        def measure(time_ms: int) -> Measured:
            depth = next(((time_ms - b) // 1000 for b, e in late if b <= time_ms < e), 3)
            return {
                "cpu": 7.5,
                "memory": 41.0,
                "disk_free": 9.5e9,
                "outbox_depth": depth,
                "unreceipted": depth,
                "uplink_rtt": 38.5,
                "clock_known": 1,
            }

        return measure


DOMAINS: Final = {
    "lamp": "streetlight",
    "bay": "parking",
    "lot": "parking",
    "air": "air",
    "meter": "power",
}


def _is_in(spans: list[tuple[int, int]], time_ms: int) -> bool:
    return any(start <= time_ms < end for start, end in spans)


@cache
def _nights(start: date, days: int, lat: float, lon: float, zone: str) -> list[tuple[int, int]]:
    observer, tz = Observer(lat, lon), ZoneInfo(zone)
    shining = [sun(observer, start + timedelta(days=day), tzinfo=tz) for day in range(-1, days + 1)]
    ms = [{key: round(at.timestamp() * 1000) for key, at in one.items()} for one in shining]
    return [(ms[day]["sunset"], ms[day + 1]["sunrise"]) for day in range(days + 1)]


@cache
def _stays(seed: int, bay: str, start_ms: int, end_ms: int) -> list[tuple[int, int]]:
    """Return stays with a gap between two; more by day than by night, 10 minutes at least."""
    dice = random.Random(f"{seed} {bay} stays")
    found: list[tuple[int, int]] = []
    free_ms = start_ms
    while True:
        hour = (free_ms - start_ms) / HOUR_MS % 24
        wait_h = dice.expovariate(2.0 if 7 <= hour < 22 else 0.3)
        came_ms = free_ms + 600_000 + round(wait_h * HOUR_MS)
        left_ms = came_ms + 600_000 + round(dice.lognormvariate(math.log(0.6), 0.8) * HOUR_MS)
        if left_ms >= end_ms:
            return found
        found.append((came_ms, left_ms))
        free_ms = left_ms
