"""One run: everything up, the plan's faults, everything healed, the drain, and the comparison."""

from __future__ import annotations

import asyncio
import time
from itertools import groupby
from pathlib import Path

import msgspec

from onestreet.demo.audit import DeviceAudit, total
from tests.chaos.faults import Done, Faults, Scene, until
from tests.chaos.load import Load
from tests.chaos.places import Disk, FaultFailed, lay_out
from tests.chaos.plan import Fault, planned
from tests.chaos.programs import Program
from tests.chaos.services import Broker, Database, IngestFiles, Throttle
from tests.chaos.street import GATEWAY, Street, own_account
from tests.chaos.truth import Account, StoredRow, compare, longest_gap_s

UP_S = 60.0
DRAIN_S = 420.0
"""A sample that a wiped broker lost goes again after 30 s, then 60, then 120; and is known as lost 10 s later."""
LAST_S = 90.0
STOP_S = 20.0
LOOK_S = 0.2
SETTLED_S = 15.0
"""So long after the beginning of an outage, or its own, ingest has in hand what it takes."""
LOOKED_S = 10.0
"""Memory is looked at for so long at least before it is called flat."""
GROWTH_MIB = 48.0
"""What ingest may take above its idle size, for each worker: what is in hand is bounded."""
OUTAGE_GROWTH_MIB = 6.0
"""What each worker may grow in an outage once it has in hand what it takes: poison of 300 KiB may come then."""
_MIB = 1024 * 1024


class Settings(msgspec.Struct, frozen=True):
    """What a run is made of."""

    seed: int
    minutes: float
    influxd: str
    folder: Path
    workers: int = 1
    gateways: int = 8
    devices: int = 24
    tracks: frozenset[str] = frozenset()
    """Only these, to narrow a failure down; none means all."""


class Memory(msgspec.Struct):
    """Resident memory of ingest. Units: MiB.

    Shape: `outages` are (once everything was in hand, the largest from then on), for each time in an outage in which
        the same processes ran for long enough.
    """

    idle_mib: float
    peak_mib: float
    bound_mib: float
    outage_bound_mib: float
    outages: list[tuple[float, float]]

    @property
    def is_flat(self) -> bool:
        return self.peak_mib <= self.bound_mib and all(
            last - first <= self.outage_bound_mib for first, last in self.outages
        )


class StreetAccount(msgspec.Struct):
    """The agent's account: by its twins' truth, and by the names of its samples alone."""

    devices: dict[str, DeviceAudit]
    rows: int
    missing: int
    duplicate: int

    @property
    def is_clean(self) -> bool:
        return total(self.devices).passed and not self.missing and not self.duplicate


class Report(msgspec.Struct):
    """What a run found. `wrong` is empty when nothing was."""

    seed: int
    minutes: float
    workers: int
    plan: list[Fault]
    faults: list[Done]
    load: Account
    street: StreetAccount
    memory: Memory
    longest_gap_s: float
    longest_gap_device: str
    resends: int
    drain_s: float
    deaths: dict[str, int]
    wrong: list[str]


class Run:
    """One run. Everything it starts is ended by it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._plan = [
            fault
            for fault in planned(settings.seed, settings.minutes)
            if not settings.tracks or fault.track in settings.tracks
        ]
        self._done: list[Done] = []
        self._wrong: list[str] = []
        self._memory: list[tuple[float, frozenset[int], int]] = []
        self._begun_s = 0.0
        self._drain_s = 0.0

    async def run(self) -> Report:
        """Run and return the report. Raises: FaultFailed when a fault did not take hold or something does not start."""
        lay_out()
        self._set_scene()
        self._faults = Faults(self._scene)
        looking: asyncio.Task[None] | None = None
        try:
            await self._start()
            looking = asyncio.create_task(self._look(), name="look")
            self._begun_s = time.monotonic()
            async with asyncio.TaskGroup() as tracks:
                for _, faults in groupby(
                    sorted(self._plan, key=lambda fault: fault.track), lambda fault: fault.track
                ):
                    tracks.create_task(self._track(list(faults)))
                tracks.create_task(asyncio.sleep(self._settings.minutes * 60))
            await self._drain(looking)
            return await self._report()
        finally:
            if looking is not None:
                looking.cancel()
                await asyncio.gather(looking, return_exceptions=True)
            await self._end()

    # --------------------------------------------------------------------------------------------- up and down

    def _set_scene(self) -> None:
        settings, folder = self._settings, self._settings.folder
        store_mib = 256 + int(32 * settings.minutes)
        sizes = {"broker": 48, "quarantine": 128, "agent": 16, "store": store_mib}
        disks = {name: Disk(name, mib) for name, mib in sizes.items()}
        broker = Broker(folder, disks["broker"])
        database = Database(settings.influxd, folder, disks["store"])
        self._scene = Scene(
            broker=broker,
            database=database,
            throttle=Throttle(folder),
            ingest=IngestFiles(
                folder, database.token_file, disks["quarantine"], workers=settings.workers
            ),
            street=Street(folder, broker.address, disks["agent"], seed=settings.seed),
            load=Load(
                broker.address,
                gateways=settings.gateways,
                devices=settings.devices,
                seed=settings.seed,
            ),
            disks=disks,
        )

    async def _start(self) -> None:
        scene = self._scene
        await asyncio.gather(scene.broker.program.start(), scene.database.program.start())
        await asyncio.to_thread(scene.database.set_up)
        await scene.throttle.start()
        await asyncio.gather(scene.ingest.ingest.start(), scene.ingest.watch.start())
        _, self._idle_bytes = scene.ingest.ingest.memory()
        await scene.street.start()
        await scene.load.start()

        async def flows() -> bool:
            scene.load.check()
            return bool(scene.load.stored_s)

        await until(flows, UP_S, "nothing is stored")

    async def _end(self) -> None:
        scene = self._scene
        await scene.load.stop()
        for program in self._programs():
            if program.is_running:
                await program.stop(STOP_S)
        await scene.street.stop()
        await scene.throttle.stop()

    def _programs(self) -> list[Program]:
        scene = self._scene
        agent = [scene.street.agent] if hasattr(scene.street, "agent") else []
        return [
            *agent,
            scene.ingest.ingest,
            scene.ingest.watch,
            scene.broker.program,
            scene.database.program,
        ]

    # ------------------------------------------------------------------------------------------------- the run

    def _now_s(self) -> float:
        return time.monotonic() - self._begun_s

    async def _track(self, faults: list[Fault]) -> None:
        for fault in sorted(faults, key=lambda fault: fault.at_s):
            await asyncio.sleep(max(0.0, fault.at_s - self._now_s()))
            begun_s = self._now_s()
            try:
                await self._faults.do(fault)
            except Exception as error:
                raise FaultFailed(f"{fault}: {type(error).__name__}: {error}") from error
            self._done.append(Done(fault, begun_s, self._now_s()))
            await asyncio.sleep(fault.rest_s)

    async def _look(self) -> None:
        """Watch memory and how faults are recovered from."""
        load, ingest = self._scene.load, self._scene.ingest.ingest
        seen = 0
        while True:
            await asyncio.sleep(LOOK_S)
            load.check()
            now_s = self._now_s()
            self._memory.append((now_s, *ingest.memory()))
            oldest_s = load.oldest_s - self._begun_s
            new, seen = load.stored_s[seen:], len(load.stored_s)
            for done in self._done:
                if done.first_stored_s is None:
                    came = (c for c, taken in new if taken - self._begun_s > done.healed_s)
                    first = next(came, None)
                    if first is not None:
                        done.first_stored_s = first - self._begun_s - done.healed_s
                if done.drained_s is None and oldest_s > done.healed_s:
                    done.drained_s = now_s - done.healed_s

    async def _drain(self, looking: asyncio.Task[None]) -> None:
        """Samples go on until everything from before is stored: only later ones prove what was lost."""
        scene = self._scene
        for program in self._programs():
            await program.ready()
        healed_s = time.monotonic()
        await scene.street.fall_silent()
        emptying = asyncio.create_task(scene.street.agent.stop(DRAIN_S))

        async def settled() -> bool:
            if looking.done():
                looking.result()
            return scene.load.oldest_s > healed_s

        async def empty() -> bool:
            return not scene.load.waiting

        try:
            await until(settled, DRAIN_S, "samples from before the end are still without a receipt")
            scene.load.fall_silent()
            await until(empty, LAST_S, "the last samples are still without a receipt")
        except FaultFailed as error:
            self._wrong.append(f"{error}: {scene.load.waiting}")
        if await emptying != 0:
            self._wrong.append(f"the agent did not drain within {DRAIN_S:g} s")
        self._drain_s = time.monotonic() - healed_s
        for program in (scene.ingest.watch, scene.ingest.ingest):
            if await program.stop(STOP_S) != 0:
                self._wrong.append(f"{program.name} did not end in order within {STOP_S:g} s")

    # -------------------------------------------------------------------------------------------------- results

    async def _report(self) -> Report:
        scene, settings = self._scene, self._settings
        await scene.database.program.kill()  # what it only remembers is not stored
        await scene.database.program.start()
        rows = await asyncio.to_thread(lambda: list(scene.database.rows()))
        street_names = {device.id for device in scene.street.plan.devices} | {GATEWAY}
        street_rows = [row for row in rows if row.device in street_names]
        load_rows = [row for row in rows if row.device not in street_names]
        load = compare(scene.load.truth, load_rows, scene.ingest.quarantined())
        street = StreetAccount(scene.street.audit(street_rows), *own_account(street_rows))
        memory = self._memory_found()
        deaths = {program.name: program.deaths for program in self._programs()}
        wrong = [*self._wrong, *self._faults.wrong, *scene.street.wrong, *load.examples]
        if not load.is_clean:
            wrong.insert(0, "the load's account does not add up")
        if not street.is_clean:
            wrong.append("the agent's account does not add up")
        if not memory.is_flat:
            wrong.append("the memory of ingest is not flat")
        wrong += [
            f"{name} died {count} times by itself"
            for name, count in deaths.items()
            if count and name in ("ingest", "watch", "agent")
        ]
        wrong += [
            f"never recovered from {done.fault}" for done in self._done if done.drained_s is None
        ]
        if wrong:
            self._keep_evidence(rows)
        gaps = {name: longest_gap_s(times) for name, times in scene.load.gaps().items()}
        device = max(gaps, key=lambda name: gaps[name], default="")
        return Report(
            seed=settings.seed,
            minutes=settings.minutes,
            workers=settings.workers,
            plan=self._plan,
            faults=sorted(self._done, key=lambda done: done.begun_s),
            load=load,
            street=street,
            memory=memory,
            longest_gap_s=gaps.get(device, 0.0),
            longest_gap_device=device,
            resends=sum(gateway.resends for gateway in scene.load.gateways),
            drain_s=self._drain_s,
            deaths=deaths,
            wrong=wrong,
        )

    def _keep_evidence(self, rows: list[StoredRow]) -> None:
        for name, found in (("truth", self._scene.load.truth), ("rows", rows)):
            lines = (msgspec.json.encode(one) + b"\n" for one in found)
            (self._settings.folder / f"{name}.jsonl").write_bytes(b"".join(lines))

    def _memory_found(self) -> Memory:
        idle_mib = self._idle_bytes / _MIB
        outages = []
        for done in self._done:
            if done.fault.kind == "store-outage":
                during = [one for one in self._memory if done.begun_s <= one[0] <= done.healed_s]
                for _, alike in groupby(during, lambda one: one[1]):
                    times = [(at_s, resident) for at_s, _, resident in alike]
                    settled_s = times[0][0] + SETTLED_S
                    later = [resident / _MIB for at_s, resident in times if at_s >= settled_s]
                    if times[-1][0] - settled_s >= LOOKED_S:
                        outages.append((later[0], max(later)))
        return Memory(
            idle_mib=idle_mib,
            peak_mib=max(resident for _, _, resident in self._memory) / _MIB,
            bound_mib=idle_mib + GROWTH_MIB * self._settings.workers,
            outage_bound_mib=OUTAGE_GROWTH_MIB * self._settings.workers,
            outages=outages,
        )
