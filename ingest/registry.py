"""The registry: which devices there are and which gateway stands behind each, from states alone.

Raises nothing and knows no clock: a state in, what it changed out. Of a state it keeps what rows show, in little
memory: a city has 200,000.
"""

from __future__ import annotations

from collections.abc import Collection
from enum import Enum, auto
from functools import lru_cache
from sys import intern
from typing import NamedTuple

import msgspec

from exchange.states import State
from exchange.topics import Topic


class DeviceId(NamedTuple):
    """A device's name: unique and stable in its county."""

    county: str
    device: str


class Registered(msgspec.Struct, frozen=True, gc=False):
    """A device, as the state of its owner says."""

    name: DeviceId
    site: str
    gateway: str
    domain: str
    online: bool
    interval_s: float
    epoch: int
    label: str
    asset_id: str
    lat: float | None
    lon: float | None
    transport: str

    @property
    def is_gateway(self) -> bool:
        """Whether it is a gateway's own state."""
        return self.domain == "gateway"

    @property
    def behind(self) -> tuple[str, str]:
        """County and name of its gateway."""
        return self.name.county, self.gateway

    @property
    def topic(self) -> Topic:
        """Where its state is."""
        county, device = self.name
        return Topic(county, self.site, self.gateway, self.domain, device, "state")


class Change(Enum):
    """What a state did to the registry."""

    NONE = auto()
    SET = auto()
    RETIRED = auto()
    DISPUTED = auto()
    """Another gateway than the owner speaks for the device; the newest epoch owns it."""


class Registry:
    """Every device that a state told of and none retired."""

    def __init__(self) -> None:
        self.devices: dict[DeviceId, Registered] = {}
        self._behind: dict[tuple[str, str], set[DeviceId]] = {}

    def apply(self, topic: Topic, state: State | None) -> Change:
        """Take a state, None for the empty payload that retires."""
        name = DeviceId(intern(topic.county), topic.device)
        known = self.devices.get(name)
        mine = known is not None and known.gateway == topic.gateway
        if state is None:
            # A replaced gateway clears its old state after the new one has spoken.
            if known is None or not mine:
                return Change.NONE
            del self.devices[name]
            self._leave(known)
            return Change.RETIRED
        if known is not None and not mine and state.epoch <= known.epoch:
            return Change.DISPUTED
        said = _registered(name if known is None else known.name, topic, state)
        if known == said:
            return Change.NONE
        if known is not None and not mine:
            self._leave(known)
        self.devices[said.name] = said
        self._behind.setdefault(said.behind, set()).add(said.name)
        return Change.SET

    def adopt(self, name: DeviceId, known: Registered) -> None:
        """Keep a device whose state was emptied; any gateway that speaks for it owns it."""
        self.devices[name] = msgspec.structs.replace(known, online=False, epoch=-1)
        self._behind.setdefault(known.behind, set()).add(name)

    def behind(self, county: str, gateway: str) -> Collection[DeviceId]:
        """Return the devices that a gateway stands behind, itself among them."""
        return self._behind.get((county, gateway), ())

    def gateways(self) -> Collection[tuple[str, str]]:
        """Return county and name of every gateway that a device is behind, or that has a state."""
        return self._behind.keys()

    def gateway_online(self, county: str, gateway: str) -> bool | None:
        """Say whether a gateway is online; None when it has not said."""
        known = self.devices.get(DeviceId(county, gateway))
        return None if known is None else known.online

    def _leave(self, known: Registered) -> None:
        devices = self._behind[known.behind]
        devices.discard(known.name)
        if not devices:
            del self._behind[known.behind]


def _registered(name: DeviceId, topic: Topic, state: State) -> Registered:
    descriptor, location = state.descriptor, state.descriptor.location
    return Registered(
        name,
        intern(topic.site),
        intern(topic.gateway),
        intern(topic.domain),
        state.online,
        _same(state.interval_s),
        state.epoch,
        descriptor.label.zh_tw or descriptor.label.en or topic.device,
        descriptor.asset_id,
        None if location is None else location.lat,
        None if location is None else location.lon,
        intern(descriptor.transport),
    )


@lru_cache(maxsize=256)
def _same(number: float) -> float:
    """Return one object for all equal ones."""
    return number
