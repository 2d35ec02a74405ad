"""Clearances: states that were emptied a moment ago. With their gateway's, they mean that another one will come."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from ingest.registry import Registered

ORPHANED_AFTER_S = 60.0
"""So long they may be meant; then they wait for another gateway."""
ORPHANS_FOR_S = 72 * 3600.0


class Orphans(NamedTuple):
    """A gateway that is gone, and the devices that were cleared with it."""

    gateway: Registered
    devices: list[Registered]


class _Cleared(msgspec.Struct, eq=False):
    at_s: float
    devices: list[Registered]
    gateway: Registered | None = None


class Clearances:
    """What was cleared, by gateway, until it is clear what it means."""

    def __init__(self) -> None:
        self._cleared: dict[tuple[str, str], _Cleared] = {}

    def note(self, known: Registered, now_s: float) -> None:
        """Take a state that was emptied."""
        cleared = self._cleared.setdefault(known.behind, _Cleared(now_s, []))
        cleared.at_s = now_s
        if known.is_gateway:
            cleared.gateway = known
        else:
            cleared.devices.append(known)

    def due(self, now_s: float) -> Iterator[Orphans]:
        """Yield who was cleared together with its gateway, when nothing was for a while."""
        for key, cleared in list(self._cleared.items()):
            if now_s - cleared.at_s >= ORPHANED_AFTER_S:
                del self._cleared[key]
                if cleared.gateway is not None:
                    yield Orphans(cleared.gateway, cleared.devices)
