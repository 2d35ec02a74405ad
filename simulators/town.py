"""A seeded town: what its lamps, parking bays and air boxes would measure at any moment.

Everything is a pure function of (seed, device, town time): asking often, rarely or in another order
gives the same town.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from datetime import time as time_of_day
from functools import lru_cache
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from astral import Observer
from astral.sun import elevation

from device_drivers.kit.driver import Value
from device_drivers.kit.twin import Physics
from exchange.errors import ConfigError
from simulators import chance

DAY_S: Final = 86_400
HOUR_S: Final = 3_600

# Lamps
FULL, DIMMED = 100, 50
DIM_FROM_H, DIM_TO_H = 0, 5
FAULT_A_DAY: Final = 0.002
"""A lamp or its gear fails about once in a year and a half each."""
REPAIR_DAYS: Final = 3

# Bays
BAY_DAY_STARTS_H: Final = 4
"""A bay's day runs from the quietest hour to the next, so that few stays cross its end."""
ARRIVALS_PER_H: Final = (
    *(0.1, 0.1, 0.1, 0.1, 0.1, 0.2, 0.5, 1.2, 2.0, 1.8, 1.5, 1.6),
    *(1.9, 1.6, 1.4, 1.4, 1.5, 1.8, 2.2, 2.0, 1.4, 0.9, 0.5, 0.2),
)
"""Cars that come by a free bay in each hour of the day."""
STAY_MEDIAN_S: Final = 35 * 60
STAY_SPREAD: Final = 0.8
"""Standard deviation of the logarithm of a stay."""
OVERNIGHT: Final = 0.35
"""Share of bays in which a car stays the night."""
SHUNTING_S: Final = 60.0
"""Between two cars in one bay."""
BATTERY_LIFE_DAYS: Final = 5 * 365

# Air
NOISE_STEP_S: Final = 300


@dataclass(frozen=True)
class Place:
    """Where the town lies; Taipei unless said otherwise."""

    latitude: float = 25.0375
    longitude: float = 121.5637
    zone: str = "Asia/Taipei"


class TownClock:
    """Town time in Unix seconds: begins at `start` and runs `speed` times as fast as the wall."""

    def __init__(
        self, start: datetime, speed: float = 1.0, *, wall_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._start_s, self._speed, self._wall_s = start.timestamp(), speed, wall_s
        self._began_s = wall_s()

    def __call__(self) -> float:
        return self._start_s + (self._wall_s() - self._began_s) * self._speed


class Town:
    """The state of the world, in the dictionary's metrics and units."""

    def __init__(self, seed: int, clock: Callable[[], float], place: Place | None = None) -> None:
        """Take the town's clock: it returns town time in Unix seconds. Raises: ConfigError."""
        place = place or Place()
        self._seed, self._clock = seed, clock
        try:
            self._zone = ZoneInfo(place.zone)
        except (ZoneInfoNotFoundError, ValueError) as error:
            raise ConfigError("town", "place.zone", place.zone, "an IANA time zone") from error
        self._observer = Observer(place.latitude, place.longitude)

    def physics(self, device: str, domain: str) -> Physics:
        """Return what a device's twin asks for the world around it. Raises: ConfigError."""
        worlds = {"streetlight": self.lamp, "parking": self.bay, "air": self.air}
        if domain not in worlds:
            raise ConfigError("town", "domain", domain, f"one of {', '.join(worlds)}")
        world = worlds[domain]
        return lambda: world(device, self._clock())

    def lamp(self, device: str, at_s: float) -> dict[str, Value]:
        """Return a street lamp: lit by dusk, dimmed after midnight, rarely broken."""
        key = (self._seed, device)
        now = self._local(at_s)
        # Each photocell has its own idea of dusk, a few minutes after sunset.
        dusk_deg = chance.between(-2.5, -0.9, *key, "photocell")
        dark = elevation(self._observer, datetime.fromtimestamp(at_s, UTC)) < dusk_deg
        level = 0
        if dark:
            level = DIMMED if DIM_FROM_H <= now.hour < DIM_TO_H else FULL
        gear_fault = self._is_broken(at_s, *key, "gear")
        lamp_fault = not gear_fault and self._is_broken(at_s, *key, "lamp")
        lit = level > 0 and not gear_fault and not lamp_fault
        rated_w = chance.between(60, 90, *key, "rated")
        return {
            "lit": lit,
            "level": level,
            "power": round(rated_w * level / FULL, 1) if lit else 0.4,
            "lamp_fault": lamp_fault,
            "gear_fault": gear_fault,
        }

    def bay(self, device: str, at_s: float) -> dict[str, Value]:
        """Return a parking bay with an ultrasonic sensor above it."""
        key = (self._seed, device)
        day = (self._local(at_s) - timedelta(hours=BAY_DAY_STARTS_H)).date()
        stays = _stays(self._seed, device, day, self._zone)
        stay = next((stay for stay in stays if stay[0] <= at_s < stay[1]), None)
        height_m = chance.between(2.5, 2.9, *key, "height")
        noise_m = 0.008 * chance.normal(*key, "echo", int(at_s / 10))
        if stay is None:
            distance_m = height_m + noise_m
        else:
            distance_m = height_m - chance.between(1.4, 1.9, *key, "car", int(stay[0])) + noise_m
        age = (at_s / DAY_S / BATTERY_LIFE_DAYS + chance.uniform(*key, "battery")) % 1
        return {
            "occupied": stay is not None,
            "distance": round(distance_m, 3),
            "battery_voltage": round(3.05 - 0.55 * age**2, 3),
        }

    def air(self, device: str, at_s: float) -> dict[str, Value]:
        """Return the air on a street: rush hours, seasons, and weather that drifts."""
        now = self._local(at_s)
        hour = now.hour + now.minute / 60 + now.second / HOUR_S
        winter = math.cos(2 * math.pi * (now.timetuple().tm_yday - 20) / 365)
        step = at_s / NOISE_STEP_S
        # What the whole town breathes, and what this street adds.
        town = chance.autoregression(step, self._seed, "air", carry=0.98)
        street = chance.autoregression(step, self._seed, device, "air")
        rush = _bump(hour, 8, 1.5) + 0.9 * _bump(hour, 18.5, 2.0)
        pm2_5 = math.exp(2.5 + 0.35 * winter + 0.45 * rush + 0.35 * town + 0.15 * street)
        warmth = chance.autoregression(step, self._seed, "warmth", carry=0.98)
        afternoon = math.cos(2 * math.pi * (hour - 14) / 24)
        temperature = 23.5 - 6.5 * winter + 3.5 * afternoon + 1.5 * warmth
        humidity = 77 - 10 * afternoon - 4 * warmth + 3 * street
        return {
            "pm1": round(0.68 * pm2_5, 1),
            "pm2_5": round(pm2_5, 1),
            "pm10": round(1.45 * pm2_5 + 3, 1),
            "temperature": round(temperature, 2),
            "humidity": round(min(max(humidity, 25.0), 100.0), 2),
        }

    def _local(self, at_s: float) -> datetime:
        return datetime.fromtimestamp(at_s, self._zone)

    def _is_broken(self, at_s: float, *key: str | int) -> bool:
        """Say whether a part that fails now and then, and is repaired after days, is broken."""
        today = int(at_s // DAY_S)
        for day in range(today - REPAIR_DAYS, today + 1):
            if chance.uniform(*key, day, "fails") < FAULT_A_DAY:
                failed_s = (day + chance.uniform(*key, day, "at")) * DAY_S
                repaired_s = failed_s + DAY_S * chance.between(0.5, REPAIR_DAYS, *key, day, "out")
                if failed_s <= at_s < repaired_s:
                    return True
        return False


@lru_cache(maxsize=4_096)
def _stays(seed: int, device: str, day: date, zone: ZoneInfo) -> tuple[tuple[float, float], ...]:
    """Return when cars came and left in one of a bay's days, in order, as Unix seconds."""
    begin_s, end_s = _boundary_s(day, zone), _boundary_s(day + timedelta(days=1), zone)
    stays: list[tuple[float, float]] = []
    free_s = begin_s
    if last_night := _night(seed, device, day, begin_s):
        stays.append(last_night)
        free_s = last_night[1] + SHUNTING_S
    tonight = _night(seed, device, day + timedelta(days=1), end_s)
    closes_s = tonight[0] - SHUNTING_S if tonight else end_s
    busiest = max(ARRIVALS_PER_H)
    for arrival in range(10_000):  # far more than a day can hold
        draw = (seed, device, day.isoformat(), arrival)
        free_s += chance.exponential(HOUR_S / busiest, *draw, "arrives")
        if free_s >= closes_s:
            break
        # Thinning: of the busiest hour's arrivals, each hour keeps its share.
        hour = datetime.fromtimestamp(free_s, zone).hour
        if chance.uniform(*draw, "comes") * busiest > ARRIVALS_PER_H[hour]:
            continue
        stay_s = STAY_MEDIAN_S * math.exp(STAY_SPREAD * chance.normal(*draw, "stays"))
        leaves_s = min(free_s + stay_s, closes_s)
        if leaves_s == end_s:
            break  # it would stay into the next day, which knows nothing of it: it drives on
        stays.append((free_s, leaves_s))
        free_s = leaves_s + SHUNTING_S
    if tonight:
        stays.append(tonight)
    return tuple(stays)


def _night(seed: int, device: str, morning: date, at_s: float) -> tuple[float, float] | None:
    """Return the stay of the car that is there at `at_s`, the boundary on that morning."""
    key = (seed, device, morning.isoformat(), "night")
    if chance.uniform(*key) >= OVERNIGHT:
        return None
    came_s = at_s - HOUR_S * chance.between(5, 10, *key, "came")
    return came_s, at_s + HOUR_S * chance.between(2.5, 5, *key, "left")


def _boundary_s(day: date, zone: ZoneInfo) -> float:
    return datetime.combine(day, time_of_day(BAY_DAY_STARTS_H), zone).timestamp()


def _bump(hour: float, peak_h: float, width_h: float) -> float:
    """Return 1 at the peak, falling off on both sides, around the clock."""
    away_h = min(abs(hour - peak_h), 24 - abs(hour - peak_h))
    return math.exp(-((away_h / width_h) ** 2))
