"""A connectable BLE device as a table of its attributes, for tests of clients that connect."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

Advertisement: TypeAlias = tuple[dict[int, bytes], dict[str, bytes]]
"""Manufacturer data by company id, service data by UUID."""


@dataclass
class Characteristic:
    """One row of a peripheral's attribute table; `value` changes when a client writes."""

    uuid: str
    value: bytes = b""
    flags: tuple[str, ...] = ("read",)
    att_error: int | None = None
    """The ATT error code that every read and write gets."""
    notifications: Sequence[bytes] = ()
    """What is notified, in turn and from the start again, to whoever subscribes."""
    notify_every_s: float = 0.01
    descriptors: dict[str, bytes] = field(default_factory=dict)


@dataclass
class Peripheral:
    """A device that can be connected to: its services, each a list of characteristics."""

    address: str
    name: str
    services: Mapping[str, Sequence[Characteristic]]
    manufacturer_data: dict[int, bytes] = field(default_factory=dict)
    service_data: dict[str, bytes] = field(default_factory=dict)
    period_s: float = 1.0

    def advert(self) -> Advertisement:
        return self.manufacturer_data, self.service_data
