"""The demo: brings every process up, lets the town speak, drains, and audits."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import msgspec

from exchange.errors import ConfigError
from exchange.processes import Change, Child, ProcessFailed
from ingest.quarantine import refused_samples
from ingest.stores import Point, Store, open_store
from onestreet.broker import BrokerFiles, GatewayAccount
from onestreet.demo.audit import Audit, DeviceAudit, Entry, StoredRow, audit_device, total
from onestreet.demo.files import DRAIN_S, GATEWAY, INTERVAL_S, agent_file, ingest_file
from onestreet.town_process import TownProcess
from simulators.plan import TownPlan
from simulators.truth import read_truth

Victim = Literal["agent", "ingest", "broker"]
VICTIMS: tuple[str, ...] = get_args(Victim)

IN_HAND_MS = 500
"""A reading that was completed so shortly before its agent was killed may not have reached the outbox."""
SETTLE_S = 0.3
STOP_S = 15.0


class Kill(NamedTuple):
    """Kill -9 a process some seconds after the town began to speak; the broker loses its memory, too."""

    victim: Victim
    after_s: float


class Demo:
    """One run, in one folder."""

    def __init__(
        self,
        plan: TownPlan,
        folder: Path,
        *,
        store_url: str = "",
        kills: Iterable[Kill] = (),
        agent_argv: Sequence[str] = (sys.executable, "-m", "edge_agent"),
    ) -> None:
        """`agent_argv` is the command that the agent's configuration is appended to."""
        self.plan = plan
        self.folder = folder
        self.store_url = store_url or f"sqlite:///{folder}/town.sqlite"
        self.store: Store = open_store(self.store_url)
        self.began_ms = 0
        self.notes: list[str] = []
        """What went wrong beside the audit, in words."""
        self.draining = asyncio.Event()
        self.ended = asyncio.Event()
        self.readers: list[asyncio.Task[None]] = []
        """What reads the store until `ended`: the store is closed after them."""
        self._kills = list(kills)
        self._agent_argv = list(agent_argv)
        self._town = TownProcess(plan, folder / "town")
        self._killed: list[tuple[int, int]] = []
        self._kill_told = False
        self._gate: asyncio.Task[None] | None = None
        self._children: dict[str, Child] = {}
        self._begun = False

    @property
    def children(self) -> Mapping[str, Child]:
        """The processes by name, in the order of starting."""
        return self._children

    @property
    def town_time(self) -> datetime:
        """What the clocks of the simulated town show."""
        return self._town.now()

    @property
    def truth_path(self) -> Path:
        """Where the town notes what it sent."""
        return self._town.truth_path

    async def run(self, stop: asyncio.Event, seconds: float | None) -> Audit:
        """Run for some seconds or until `stop` is set, drain, and return the audit. Raises: ProcessFailed."""
        async with self._everything():
            killing = asyncio.create_task(self._kill_as_told())
            try:
                async with asyncio.timeout(seconds):
                    await stop.wait()
            except TimeoutError:
                pass
            self.draining.set()
            killing.cancel()
            await asyncio.gather(killing, return_exceptions=True)
            await self._drain()
            return await self._audit()

    # --------------------------------------------------------------------------------------------- up and down

    @asynccontextmanager
    async def _everything(self) -> AsyncIterator[None]:
        try:
            await self._start()
            yield
        finally:
            for child in reversed(list(self._children.values())):
                await child.stop(STOP_S)
            await self._town.stop()
            self.draining.set()
            self.ended.set()
            await asyncio.gather(*self.readers, return_exceptions=True)
            await self.store.close()

    async def _start(self) -> None:
        self._files = files = self._prepared()
        await self.store.open()
        now_ms = time.time_ns() // 1_000_000
        await self.rows(now_ms)  # a wrong token or address is told now, not after the drain
        self.began_ms = now_ms
        await asyncio.gather(self._start_office(files), self._town.start())
        agent_path = self.folder / "agent.toml"
        agent_path.write_text(
            agent_file(self.plan, self._town.endpoints, files, self.folder), encoding="utf-8"
        )
        agent = self._child(
            "agent",
            [*self._agent_argv, str(agent_path)],
            environment=self._radio(),
            on_change=self._agent_changed,
        )
        # Not before ingest has its session: what is published earlier comes only with the resends. And the town
        # speaks as soon as there is an agent: a lamp that it asked in vain would be asked again only seconds later.
        await agent.start()
        self._begun = True
        self._agent_changed("ready")

    async def _start_office(self, files: BrokerFiles) -> None:
        broker = self._child("broker", files.argv, is_up=files.is_up)
        ingest_path = self.folder / "ingest.toml"
        ingest_path.write_text(
            ingest_file(self.plan, files, self.store_url, self.folder), encoding="utf-8"
        )
        ingest = self._child(
            "ingest", [sys.executable, "-m", "ingest", str(ingest_path), "--with-watch"]
        )
        await broker.start()
        await ingest.start()

    def _prepared(self) -> BrokerFiles:
        """Return the broker's files in a folder of our own. Raises: ConfigError."""
        account = GatewayAccount(self.plan.county, self.plan.site, GATEWAY)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            used = any(self.folder.iterdir())
            if not used:  # an older run's truth and samples would be audited with ours
                return BrokerFiles(self.folder / "broker", self.plan.county, [account])
            allowed = "must be new or empty"
        except OSError as error:
            allowed = f"must be a folder that can be written: {error.strerror}"
        raise ConfigError("demo", "folder", str(self.folder), allowed)

    def _child(self, name: str, argv: Sequence[str], **more: object) -> Child:
        child = Child(name, argv, self.folder, **more)  # type: ignore[arg-type]  # passed on
        self._children[name] = child
        return child

    def _radio(self) -> dict[str, str]:
        buses = [end["dbus"] for end in self._town.endpoints.values() if end["kind"] == "ble"]
        return {"DBUS_SYSTEM_BUS_ADDRESS": buses[0]} if buses else {}

    def _agent_changed(self, change: Change) -> None:
        """The town speaks only while there is an agent to hear it."""
        if not self._begun:
            return
        before = self._gate
        self._gate = asyncio.create_task(self._move_gate(change, before))

    async def _move_gate(self, change: Change, before: asyncio.Task[None] | None) -> None:
        if change == "died" and self._kill_told:  # one that dies by itself has no excuse
            self._kill_told = False
            self._killed.append((time.time_ns() // 1_000_000 - IN_HAND_MS, sys.maxsize))
        if before is not None:
            await asyncio.gather(before, return_exceptions=True)
        if change == "died":
            await self._town.mute()
            return
        if self._killed and self._killed[-1][1] == sys.maxsize:
            self._killed[-1] = (self._killed[-1][0], time.time_ns() // 1_000_000)
        await self._town.speak()

    async def _kill_as_told(self) -> None:
        begun_s = time.monotonic()
        for kill in sorted(self._kills, key=lambda kill: kill.after_s):
            await asyncio.sleep(begun_s + kill.after_s - time.monotonic())
            wipe = self._files.wipe if kill.victim == "broker" else None
            self._kill_told |= kill.victim == "agent"
            self._children[kill.victim].kill(wipe)

    async def _drain(self) -> None:
        """The town falls silent, the agent delivers what it has, ingest stores it."""
        for child in self._children.values():
            try:
                async with asyncio.timeout(STOP_S):
                    await child.ready.wait()
            except TimeoutError:
                words = f"{child.name} did not come back; see {self.folder / child.name}.log"
                raise ProcessFailed(words) from None
        if self._gate is not None:
            await asyncio.gather(self._gate, return_exceptions=True)
        if trouble := await self._town.mute():
            self.notes.append(f"the town could not fall silent: {trouble}")
        await asyncio.sleep(SETTLE_S)  # what is in the kernel's buffers reaches the agent
        for name, deadline_s in (("agent", DRAIN_S + STOP_S), ("ingest", STOP_S)):
            if not await self._children[name].stop(deadline_s):
                self.notes.append(f"{name} did not end within {deadline_s:g} s and was killed")

    # ------------------------------------------------------------------------------------------------- results

    async def rows(self, since_ms: int) -> list[Point]:
        """Return what the store holds of the plan's devices since then."""
        return [
            point
            for domain in sorted({device.domain for device in self.plan.devices})
            async for point in self.store.rows(domain, start_ns=since_ms * 1_000_000)
        ]

    async def _audit(self) -> Audit:
        truth: dict[str, list[Entry]] = {device.id: [] for device in self.plan.devices}
        for entry in read_truth(self._town.truth_path):
            truth[entry.device].append(Entry(entry.at_ms, entry.values))
        rows: dict[str, list[StoredRow]] = {device.id: [] for device in self.plan.devices}
        for point in await self.rows(self.began_ms):
            if point.series.device in rows:
                rows[point.series.device].append(_stored(point))
        refused = refused_samples(self.folder / "quarantine.sqlite")
        devices: dict[str, DeviceAudit] = {}
        for device in self.plan.devices:
            devices[device.id] = audit_device(
                truth[device.id],
                rows[device.id],
                INTERVAL_S[device.domain],
                refused=refused.get(device.id, 0),
                killed=self._killed,
            )
        return total(devices)


def _stored(point: Point) -> StoredRow:
    fields = dict(point.fields)
    epoch, seq = fields.pop("epoch"), fields.pop("seq")
    fields.pop("quality", None)
    values = {name: value for name, value in fields.items() if isinstance(value, int | float)}
    return StoredRow(point.time_ms, int(epoch), int(seq), values)


def report(audit: Audit) -> bytes:
    """Return the audit as the report file holds it."""
    return msgspec.json.format(msgspec.json.encode(audit), indent=2) + b"\n"
