"""The registry: which devices there are and which gateway stands behind each, from states alone.

Raises nothing and knows no clock: a state in, what it changed out. Of a state it keeps what rows show, in little
memory: a city has 200,000.
"""

from __future__ import annotations

from collections.abc import Collection
from enum import Enum, auto
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
    topic: Topic
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
        return self.topic.domain == "gateway"


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
        mine = known is not None and known.topic.gateway == topic.gateway
        if state is None:
            # A replaced gateway clears its old state after the new one has spoken.
            if known is None or not mine:
                return Change.NONE
            del self.devices[name]
            self._leave(known.topic, name)
            return Change.RETIRED
        if known is not None and not mine and state.epoch <= known.epoch:
            return Change.DISPUTED
        said = _registered(name if known is None else known.name, topic, state)
        if known == said:
            return Change.NONE
        if known is not None and not mine:
            self._leave(known.topic, name)
        self.devices[said.name] = said
        self._behind.setdefault((topic.county, topic.gateway), set()).add(said.name)
        return Change.SET

    def adopt(self, name: DeviceId, known: Registered) -> None:
        """Keep a device whose state was emptied; any gateway that speaks for it owns it."""
        self.devices[name] = msgspec.structs.replace(known, online=False, epoch=-1)
        self._behind.setdefault((known.topic.county, known.topic.gateway), set()).add(name)

    def behind(self, county: str, gateway: str) -> Collection[DeviceId]:
        """Return the devices that a gateway stands behind, itself among them."""
        return self._behind.get((county, gateway), ())

    def gateways(self) -> Collection[tuple[str, str]]:
        """Return county and name of every gateway that a device is behind, or that has a state."""
        return self._behind.keys()

    def gateway_online(self, topic: Topic) -> bool | None:
        """Say whether the gateway of a device is online; None when it has not said."""
        gateway = self.devices.get(DeviceId(topic.county, topic.gateway))
        return None if gateway is None else gateway.online

    def _leave(self, topic: Topic, name: DeviceId) -> None:
        key = topic.county, topic.gateway
        self._behind[key].discard(name)
        if not self._behind[key]:
            del self._behind[key]


def _registered(name: DeviceId, topic: Topic, state: State) -> Registered:
    descriptor, location = state.descriptor, state.descriptor.location
    county, site, gateway, domain = map(
        intern, (topic.county, topic.site, topic.gateway, topic.domain)
    )
    return Registered(
        name,
        Topic(county, site, gateway, domain, topic.device, "state"),
        state.online,
        state.interval_s,
        state.epoch,
        descriptor.label.zh_tw or descriptor.label.en or topic.device,
        descriptor.asset_id,
        None if location is None else location.lat,
        None if location is None else location.lon,
        intern(descriptor.transport),
    )
