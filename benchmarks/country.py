"""A third of a nation: which devices there are, when each takes its sample, and what it says.

Nothing is kept of a single device: names, times, values and payloads follow from its number, so a
sample can be sent again without having been kept, and a receipt tells which one it was.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import gcd
from random import Random
from typing import NamedTuple

from benchmarks.backlog import EPOCH
from exchange.readings import Sample, encode_pack
from exchange.topics import PREFIX, Topic

# Thousands of inhabitants, rounded: how large a county's share of the devices is.
# Source: Ministry of the Interior, household registration statistics, end of 2023; ISO 3166-2:TW
COUNTIES = {
    "tw-nwt": 4041,
    "tw-txg": 2845,
    "tw-khh": 2737,
    "tw-tpe": 2511,
    "tw-tao": 2318,
    "tw-tnn": 1859,
    "tw-cha": 1237,
    "tw-pif": 793,
    "tw-yun": 660,
    "tw-hsq": 590,
    "tw-mia": 534,
    "tw-cyq": 483,
    "tw-nan": 477,
    "tw-hsz": 456,
    "tw-ila": 450,
    "tw-kee": 362,
    "tw-hua": 317,
    "tw-cyi": 263,
    "tw-ttt": 211,
    "tw-kin": 143,
    "tw-pen": 107,
    "tw-lie": 14,
}
DEVICES_OF_A_GATEWAY = 100
GATEWAYS_OF_A_SITE = 20
# Of ten devices in a row: five luminaires, three parking bays, two air boxes.
DOMAINS = 5 * ("streetlight",) + 3 * ("parking",) + 2 * ("air",)
_VARIANTS = 64


class Gateway(NamedTuple):
    """What the devices of a gateway have in common."""

    county: str
    site: str
    topic: str
    """What their topics begin with."""


class Country:
    """So many devices, each with one sample a period.

    Shape: device n has its own moment in a period, `slot_of(n)`; neighbours in number are far apart in
        time, so a gateway's samples do not come together. In the first `ramp` periods the devices
        join, evenly: device n from period `slot_of(n) % ramp` on, with seq 0.
    """

    def __init__(self, devices: int, *, period_ms: int, ramp: int, first_ms: int) -> None:
        self.devices = devices
        self.period_ms = period_ms
        self.ramp = ramp
        self.first_ms = first_ms
        self._step = _step(devices)
        self._back = pow(self._step, -1, devices)
        self.gateways = list(_gateways(-(-devices // DEVICES_OF_A_GATEWAY)))
        self._payloads = {domain: _templates(domain) for domain in set(DOMAINS)}

    def slot_of(self, device: int) -> int:
        """Return the place of a device's moment in a period, from 0 to the number of devices less 1."""
        return device * self._back % self.devices

    def device_at(self, slot: int) -> int:
        """Return whose moment it is."""
        return slot * self._step % self.devices

    def joins(self, slot: int) -> int:
        """Return the period of a device's first sample."""
        return slot % self.ramp

    def samples_in(self, period: int) -> int:
        """Return how many devices take a sample in a period."""
        whole, rest = divmod(self.devices, self.ramp)
        joined = min(period + 1, self.ramp)
        return whole * joined + min(rest, joined)

    def message(self, device: int, slot: int, period: int) -> tuple[str, str, bytes]:
        """Return county, topic and payload of a sample."""
        gateway = self.gateways[device // DEVICES_OF_A_GATEWAY]
        domain = DOMAINS[device % 10]
        name = f"{domain}-{device:07d}"
        time_ms = self.first_ms + period * self.period_ms + slot * self.period_ms // self.devices
        template = self._payloads[domain][(device + 7 * period) % _VARIANTS]
        payload = template % (
            f"{gateway.county}:{name}:".encode(),
            time_ms // 1000,
            time_ms % 1000,
            period - slot % self.ramp,
        )
        return gateway.county, f"{gateway.topic}/{domain}/{name}/readings", payload

    def device_of(self, name: str) -> int:
        """Return the number of a device."""
        return int(name[-7:])

    def expected(self, periods: int) -> dict[str, int]:
        """Return how many samples the devices of each county take in so many periods."""
        found = dict.fromkeys(COUNTIES, 0)
        for device in range(self.devices):
            county = self.gateways[device // DEVICES_OF_A_GATEWAY].county
            found[county] += max(0, periods - self.joins(self.slot_of(device)))
        return found


def shards(stores: int) -> list[list[str]]:
    """Return the counties of each store: the largest first, each to the emptiest store."""
    held: list[list[str]] = [[] for _ in range(stores)]
    for county in sorted(COUNTIES, key=lambda name: -COUNTIES[name]):
        min(held, key=lambda each: sum(COUNTIES[one] for one in each)).append(county)
    return [each for each in held if each]


def _step(devices: int) -> int:
    """Return a step that visits every device, neighbours in time far apart in number."""
    step = max(1, int(0.618 * devices))
    while gcd(step, devices) > 1:
        step += 1
    return step


def _gateways(count: int) -> Iterator[Gateway]:
    """Yield them, county by county, as many as its inhabitants are worth."""
    total, given, inhabitants = sum(COUNTIES.values()), 0, 0
    for county, thousands in COUNTIES.items():
        inhabitants += thousands
        upto = round(count * inhabitants / total)
        for number in range(upto - given):
            site = f"site-{number // GATEWAYS_OF_A_SITE:03d}"
            yield Gateway(county, site, f"{PREFIX}/{county}/{site}/gw-{given + number:05d}")
        given = upto


def _templates(domain: str) -> list[bytes]:
    """Return payloads with places for the device's name, seconds, milliseconds and seq."""
    chance = Random(domain)
    found = []
    for _ in range(_VARIANTS):
        sample = Sample(1_111_111_111_111, EPOCH, 333_333_333, _VALUES[domain](chance))
        topic = Topic("tw-xxx", "site", "gateway", domain, "device", "readings")
        payload = encode_pack(topic, [sample]).replace(b"%", b"%%")
        for placed, place in (
            (b"tw-xxx:device:", b"%b"),
            (b"1111111111.111", b"%d.%03d"),
            (b"333333333", b"%d"),
        ):
            assert payload.count(placed) == 1, placed
            payload = payload.replace(placed, place)
        found.append(payload)
    return found


def _lamp(chance: Random) -> dict[str, float | bool]:
    level = chance.choice((40, 70, 100))
    return {
        "lit": True,
        "level": level,
        "power": round(0.9 * level * chance.uniform(0.97, 1.03), 1),
        "energy": round(chance.uniform(100, 900), 2),
        "lamp_fault": False,
    }


def _bay(chance: Random) -> dict[str, float | bool]:
    occupied = chance.random() < 0.6
    return {
        "occupied": occupied,
        "distance": round(chance.uniform(0.2, 0.6) if occupied else chance.uniform(1.5, 2.5), 2),
        "battery_voltage": round(chance.uniform(2.9, 3.3), 2),
    }


def _air_box(chance: Random) -> dict[str, float | bool]:
    pm2_5 = chance.randint(3, 60)
    return {
        "pm1": round(0.7 * pm2_5),
        "pm2_5": pm2_5,
        "pm10": round(1.4 * pm2_5),
        "temperature": round(chance.uniform(18, 33), 1),
        "humidity": round(chance.uniform(50, 90), 1),
    }


_VALUES = {"streetlight": _lamp, "parking": _bay, "air": _air_box}
