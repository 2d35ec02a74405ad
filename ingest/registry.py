"""The registry: which devices there are and which gateway stands behind each, from states alone.

Raises nothing and knows no clock: a state in, what it changed out.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import NamedTuple

import msgspec

from exchange.states import State
from exchange.topics import Topic


class DeviceId(NamedTuple):
    """A device's name: unique and stable in its county."""

    county: str
    device: str


class Registered(msgspec.Struct):
    """A device, as the state of its owner says."""

    topic: Topic
    state: State


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

    def apply(self, topic: Topic, state: State | None) -> Change:
        """Take a state, None for the empty payload that retires."""
        name = DeviceId(topic.county, topic.device)
        known = self.devices.get(name)
        mine = known is not None and known.topic.gateway == topic.gateway
        if state is None:
            # A replaced gateway clears its old state after the new one has spoken.
            if not mine:
                return Change.NONE
            del self.devices[name]
            return Change.RETIRED
        if known is not None and not mine and state.epoch <= known.state.epoch:
            return Change.DISPUTED
        if known is not None and known.topic == topic and known.state == state:
            return Change.NONE
        self.devices[name] = Registered(topic, state)
        return Change.SET

    def gateway_online(self, topic: Topic) -> bool | None:
        """Say whether the gateway of a device is online; None when it has not said."""
        gateway = self.devices.get(DeviceId(topic.county, topic.gateway))
        return None if gateway is None else gateway.state.online
