"""A street of twins on real lines, and the one agent that reads all of them, as a cabinet has it."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from benchmarks.machine import ROOT
from benchmarks.pollers import Launch, gateway_tables
from exchange.configuration import toml_table
from onestreet.edge_tables import bus_id, device_table, reached
from onestreet.town_process import TownProcess
from simulators.plan import TownPlan, street_plan

_AS_SERVED = {"MALLOC_ARENA_MAX": "2"}  # what the unit of the service sets, too


class Street(msgspec.Struct, frozen=True, kw_only=True):
    """How many devices of each kind: lamps on Modbus, bays on BLE, air boxes each on a serial line."""

    lamps: int
    bays: int
    air: int
    interval_s: float

    @property
    def devices(self) -> int:
        """All of them."""
        return self.lamps + self.bays + self.air

    def plan(self) -> TownPlan:
        """Return the twins; their time runs as ours does."""
        return street_plan(1, lamps=self.lamps, bays=self.bays, air=self.air, speed=1.0)


class Cabinet:
    """The twins, which speak, and the agent's settings."""

    def __init__(
        self, street: Street, folder: Path, broker: int, tables: Iterable[str] = ()
    ) -> None:
        """`tables` are further ones of the agent's file; the gateway has the folder's name."""
        self.street, self.folder = street, folder
        self._broker, self._tables = broker, list(tables)
        self._plan = street.plan()
        self._town = TownProcess(self._plan, folder / "town")

    @asynccontextmanager
    async def speaking(self) -> AsyncIterator[Launch]:
        """Let the twins speak; return how to start the agent."""
        await self._town.start()
        try:
            await self._town.speak()
            config = self.folder / "edge.toml"
            config.write_text(self._settings(), encoding="utf-8")
            argv: list[str | Path] = [sys.executable, "-m", "edge_agent", config]
            yield Launch(argv, ROOT, {**os.environ, **_AS_SERVED, **self._radio()})
        finally:
            await self._town.stop()

    def _settings(self) -> str:
        plan, interval_s = self._plan, self.street.interval_s
        return "\n".join(
            [
                gateway_tables(self.folder, self._broker),
                *self._tables,
                *(
                    toml_table(
                        "[[bus]]", id=bus_id(bus.id), **reached(self._town.endpoints[bus.id])
                    )
                    for bus in plan.buses
                ),
                *(
                    device_table(device, plan, number, interval_s)
                    for number, device in enumerate(plan.devices, 1)
                ),
            ]
        )

    def _radio(self) -> Mapping[str, str]:
        ends = [end for end in self._town.endpoints.values() if end["kind"] == "ble"]
        return {"DBUS_SYSTEM_BUS_ADDRESS": ends[0]["dbus"]} if ends else {}
