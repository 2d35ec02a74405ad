"""What another configuration changes: for a reload that disturbs nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from edge_agent.config import PARTS, Bus, Config, Device

DESCRIPTION = frozenset(
    {"label", "location", "asset_id", "cabinet", "circuit", "township", "serial", "installed"}
)
"""Keys of a device that only its state says."""
HANDLING = frozenset({"report", "limits"})
"""Keys of a device that concern its readings after they were taken."""
LIVE = frozenset({"gateway.label", "gateway.location", "gateway.township", "gateway.interval_s"})
"""Keys of the gateway that its state says, or that are looked at each time."""


class Changes(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be done to get from one configuration to another. All names are in order.

    A bus that is neither ended nor begun anew goes on as it is. One that changed is in both lists.
    """

    end_buses: list[str] = []
    """Of the old configuration: to be stopped."""
    begin_buses: list[str] = []
    """Of the new one, with all their devices."""
    appeared: list[str] = []
    """Devices that are new."""
    disappeared: list[str] = []
    """Devices that are no more: their states are to be retired."""
    republish: bool = False
    """Whether retained states are other ones now."""
    reconnect: list[str] = []
    """Keys of the broker: a new connection takes them up."""
    restart: list[str] = []
    """Keys that only a new start takes up; all the rest may be taken up without one."""
    lost_half: bool = False
    """Whether an inventory has less than half of its rows: as one has that is still being copied."""


def changes(old: Config, new: Config) -> Changes:
    """Return what is to be done."""
    before, after = _buses(old), _buses(new)
    was = {device.id: device for device in old.device}
    now = {device.id: device for device in new.device}
    whole = _keys(old, new)
    begin_buses = sorted(name for name in after if after[name] != before.get(name))
    return Changes(
        end_buses=sorted(name for name in before if before[name] != after.get(name)),
        begin_buses=begin_buses,
        appeared=sorted(now.keys() - was.keys()),
        disappeared=sorted(was.keys() - now.keys()),
        republish=was != now or bool(begin_buses) or not LIVE.isdisjoint(whole),
        reconnect=[key for key in whole if key.startswith("broker.")],
        restart=[key for key in whole if not key.startswith("broker.") and key not in LIVE],
        lost_half=any(2 * new.rows.get(file, rows) < rows for file, rows in old.rows.items()),
    )


def _buses(config: Config) -> dict[str, object]:
    """Return of each bus that has devices all that its task is made from, by name."""
    found: dict[str, tuple[Bus, dict[str, object]]] = {}
    for bus in config.bus:
        devices = {
            device.id: [
                getattr(device, field)
                for field in Device.__struct_fields__
                if field not in DESCRIPTION | HANDLING
            ]
            for device in config.device
            if device.bus == bus.id
        }
        if devices:
            found[bus.id] = bus, dict(sorted(devices.items()))
    return dict(found)


def is_described_otherwise_only(old: Device, new: Device) -> bool:
    """Whether two entries of a device differ in nothing but what people read."""
    return DESCRIPTION.issuperset(_differing(old, new))


def _differing(old: Any, new: Any) -> Iterator[str]:
    """Yield the keys of two tables that differ."""
    for field in msgspec.structs.fields(old):
        if getattr(old, field.name) != getattr(new, field.name):
            yield field.encode_name


def _keys(old: Config, new: Config) -> list[str]:
    """Return the keys that differ in what concerns the gateway itself, such as `broker.host`."""
    return [
        f"{table}.{key}"
        for table in _differing(old, new)
        if table not in PARTS
        for key in _differing(getattr(old, table), getattr(new, table))
    ]
