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


_EMPTIED = -1
"""The epoch of a device whose state was emptied: any other is newer."""
MAX_DISPUTED, MAX_OTHERS = 20_000, 4
"""Devices of which states of other gateways than the owner's are kept, and how many of each."""


class Registry:
    """Every device that a state told of and none retired."""

    def __init__(self) -> None:
        self.devices: dict[DeviceId, Registered] = {}
        self._others: dict[DeviceId, dict[str, Registered]] = {}
        """What other gateways than the owner state, too: one of them owns it when the owner no longer does."""
        self._behind: dict[tuple[str, str], set[DeviceId]] = {}

    def apply(self, topic: Topic, state: State | None) -> Change:
        """Take a state, None for the empty payload that retires; a device that another gateway states is its."""
        name = DeviceId(intern(topic.county), topic.device)
        known = self.devices.get(name)
        mine = known is not None and known.gateway == topic.gateway
        if state is None:
            # A replaced gateway clears its old state after the new one has spoken; so does one whose device is
            # of another site or domain now.
            if known is None or not _is_at(known, topic):
                other = self._others.get(name, {}).get(topic.gateway)
                if other is not None and _is_at(other, topic):
                    self._forget(name, topic.gateway)
                return Change.NONE
            heir = self._heir(name)
            if heir is not None:
                self._set(heir)
                return Change.SET
            del self.devices[name]
            self._leave(known)
            return Change.RETIRED
        said = _registered(name if known is None else known.name, topic, state)
        if known is not None and not mine:
            if state.epoch <= known.epoch:
                self._keep(said)
                return Change.DISPUTED
            if known.epoch != _EMPTIED:
                self._keep(known)
        if known == said:
            return Change.NONE
        self._forget(name, topic.gateway)
        self._set(said)
        return Change.SET

    def adopt(self, name: DeviceId, known: Registered) -> None:
        """Keep a device whose state was emptied; any gateway that speaks for it owns it."""
        self.devices[name] = msgspec.structs.replace(known, online=False, epoch=_EMPTIED)
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

    def _set(self, said: Registered) -> None:
        known = self.devices.get(said.name)
        if known is not None and known.behind != said.behind:
            self._leave(known)
        self.devices[said.name] = said
        self._behind.setdefault(said.behind, set()).add(said.name)

    def _keep(self, other: Registered) -> None:
        """Remember what a gateway states that is not the owner; of too many the oldest go."""
        others = self._others.setdefault(other.name, {})
        others[other.gateway] = other
        if len(others) > MAX_OTHERS:
            del others[next(iter(others))]
        if len(self._others) > MAX_DISPUTED:
            del self._others[next(iter(self._others))]

    def _heir(self, name: DeviceId) -> Registered | None:
        """Take out of the others the one with the newest epoch."""
        others = self._others.get(name)
        if others is None:
            return None
        heir = max(others.values(), key=lambda other: other.epoch)
        self._forget(name, heir.gateway)
        return heir

    def _forget(self, name: DeviceId, gateway: str) -> None:
        others = self._others.get(name)
        if others is not None and others.pop(gateway, None) is not None and not others:
            del self._others[name]

    def _leave(self, known: Registered) -> None:
        devices = self._behind[known.behind]
        devices.discard(known.name)
        if not devices:
            del self._behind[known.behind]


def _is_at(known: Registered, topic: Topic) -> bool:
    """Whether it is this topic that a device's state is at."""
    at = (known.site, known.gateway, known.domain)
    return at == (topic.site, topic.gateway, topic.domain)


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
