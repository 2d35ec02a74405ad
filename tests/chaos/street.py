"""A real edge agent with twins of devices on its buses, killed, starved of disk and set to wrong times."""

from __future__ import annotations

import asyncio
import sys
import time
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from exchange.configuration import toml_table
from onestreet.demo.audit import DeviceAudit
from onestreet.demo.files import INTERVAL_S
from onestreet.demo.run import IN_HAND_MS, SETTLE_S
from onestreet.edge_tables import bus_id, device_table, location, reached
from onestreet.town_process import TownProcess
from simulators.plan import street_plan
from simulators.truth import read_truth
from tests.chaos.places import PRIVATE, Disk
from tests.chaos.programs import Program
from tests.chaos.truth import StoredRow
from tests.chaos.twins import Reading, Row, matched

GATEWAY = "gw-street"
DRAIN_S = 400.0


class Street:
    """The town, its agent, and what the harness did to them."""

    def __init__(self, folder: Path, broker: tuple[str, int], disk: Disk, *, seed: int) -> None:
        self.plan = street_plan(seed, lamps=4, bays=3, air=2)
        self.disk = disk
        self.killed: list[tuple[int, int]] = []
        """From shortly before an agent was killed until its successor was ready, in Unix milliseconds."""
        self.shifted: list[tuple[int, int, int]] = []
        """From, to, and how far the agent's clock was off, in milliseconds."""
        self.wrong: list[str] = []
        self._folder, self._broker = folder, broker
        self._town = TownProcess(self.plan, folder / "town")
        self._offset = PRIVATE / "offset"
        self.agent: Program

    async def start(self) -> None:
        """Return when the agent is there and the town speaks."""
        await self._town.start()
        ends = self._town.endpoints
        file = self._folder / "agent.toml"
        file.write_text(self._agent_file(), encoding="utf-8")
        self._set_clock(0)
        buses = [end["dbus"] for end in ends.values() if end["kind"] == "ble"]
        runtime = PRIVATE / "runtime"  # as a service manager gives it: in memory, and its own
        runtime.mkdir()
        environment = {"RUNTIME_DIRECTORY": str(runtime)}
        environment |= {"DBUS_SYSTEM_BUS_ADDRESS": buses[0]} if buses else {}
        argv = [sys.executable, "-m", "tests.hasty_agent", str(self._offset), str(file)]
        self.agent = Program("agent", "gateways", argv, self._folder, environment=environment)
        await self.agent.start()
        await self._town.speak()

    async def kill(self, down_s: float) -> None:
        """Kill -9 the agent, and bring it back after a while; the town is silent meanwhile."""
        begun_ms = _now_ms() - IN_HAND_MS
        await self.agent.kill()
        await self._town.mute()
        await asyncio.sleep(down_s)
        await self.agent.start()
        self.killed.append((begun_ms, _now_ms()))
        await self._town.speak()

    async def shift_clock(self, offset_ms: int, for_s: float) -> None:
        """Let the agent's clock be wrong for a while. The town is silent when it jumps: a reading has one time."""
        begun_ms = await self._jump(offset_ms)
        await asyncio.sleep(for_s)
        self.shifted.append((begun_ms, await self._jump(0), offset_ms))

    async def _jump(self, offset_ms: int) -> int:
        """Return when the clock jumped."""
        await self.fall_silent()
        self._set_clock(offset_ms)
        at_ms = _now_ms()
        await self._town.speak()
        return at_ms

    async def fall_silent(self) -> None:
        """Return when no reading is on its way any more."""
        await self._town.mute()
        await asyncio.sleep(SETTLE_S)

    async def stop(self) -> None:
        await self._town.stop()

    def audit(self, rows: Iterable[StoredRow]) -> dict[str, DeviceAudit]:
        """Return each device's account; what is wrong beside it is in `wrong`.

        What was read while the clock was off is expected under the time that the clock showed.
        """
        found: defaultdict[str, list[Row]] = defaultdict(list)
        for row in rows:
            values = {
                name: value
                for name, value in row.fields.items()
                if name not in ("epoch", "seq") and not isinstance(value, str)
            }
            key = row.key
            found[key.device].append(Row(key.epoch, key.seq, row.time_ns // 1_000_000, values))
        self._check_shifts([row.at_ms for known in found.values() for row in known])
        truth: defaultdict[str, list[Reading]] = defaultdict(list)
        for entry in read_truth(self._town.truth_path):
            at_ms = entry.at_ms + self._offset_ms(entry.at_ms)
            excused = any(begun <= entry.at_ms <= ended for begun, ended in self.killed)
            truth[entry.device].append(Reading(at_ms, entry.values, excused))
        names = [device.id for device in self.plan.devices]
        return {name: matched(truth[name], found[name]) for name in names}

    def _check_shifts(self, times_ms: list[int]) -> None:
        for begun_ms, ended_ms, offset_ms in self.shifted:
            if not any(begun_ms <= time_ms - offset_ms <= ended_ms for time_ms in times_ms):
                self.wrong.append(f"no row is {offset_ms} ms off, as the agent's clock was")

    def _offset_ms(self, at_ms: int) -> int:
        """A twin may speak in the very millisecond in which the clock was set right."""
        return next((offset for begun, ended, offset in self.shifted if begun <= at_ms < ended), 0)

    def _set_clock(self, offset_ms: int) -> None:
        new = self._offset.with_suffix(".new")
        new.write_text(str(offset_ms))
        new.replace(self._offset)

    def _agent_file(self) -> str:
        plan, (host, port) = self.plan, self._broker
        tables = [
            toml_table(
                "[gateway]",
                id=GATEWAY,
                county=plan.county,
                site=plan.site,
                state_dir=str(self.disk.path / "state"),
                interval_s=1.0,
                label={"en": "Street gateway", "zh-TW": "街道閘道器"},
                location=location(plan, 0),
            ),
            toml_table("[broker]", host=host, port=port, keepalive_s=5, timeout_s=5.0),
            toml_table("[delivery]", drain_s=DRAIN_S, pack_samples=20),
        ]
        for bus in plan.buses:
            end = self._town.endpoints[bus.id]
            tables.append(toml_table("[[bus]]", id=bus_id(bus.id), **reached(end)))
        tables += [
            device_table(device, plan, number, INTERVAL_S[device.domain])
            for number, device in enumerate(plan.devices, 1)
        ]
        return "\n".join(tables)


def own_account(rows: Iterable[StoredRow]) -> tuple[int, int, int]:
    """Return (rows, missing, duplicate) by the names of the agent's samples alone.

    Within an epoch seq leaves out no number.
    """
    known: defaultdict[tuple[str, int], list[int]] = defaultdict(list)
    for row in rows:
        known[row.device, row.key.epoch].append(row.key.seq)
    count = sum(len(seqs) for seqs in known.values())
    different = sum(len(set(seqs)) for seqs in known.values())
    missing = sum(max(seqs) + 1 - len(set(seqs)) for seqs in known.values())
    return count, missing, count - different


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
