"""The faults: each is brought about, seen to have taken hold, kept up for its time, and healed."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

import msgspec

from exchange.errors import UplinkError
from tests.chaos.load import COUNTY, SITE, Load
from tests.chaos.places import Disk, FaultFailed, address, connects, cut, mend
from tests.chaos.plan import Fault
from tests.chaos.poison import elsewhere, poisons
from tests.chaos.programs import Program
from tests.chaos.services import BROKER_PORT, THROTTLE_PORT, Broker, Database, IngestFiles, Throttle
from tests.chaos.street import Street

FELT_S = 45.0
"""A hindered database is met by ingest's next try at the latest, 15 s apart, and an agent's disk sooner."""
HEALED_S = 30.0
HOUR_MS = 3_600_000


class Scene(msgspec.Struct):
    """Everything that faults are done to."""

    broker: Broker
    database: Database
    throttle: Throttle
    ingest: IngestFiles
    street: Street
    load: Load
    disks: dict[str, Disk]


class Done(msgspec.Struct):
    """A fault that was done, by the monotonic clock of the harness since the beginning of the run."""

    fault: Fault
    begun_s: float
    healed_s: float
    first_stored_s: float | None = None
    """From healing to the first receipt for a sample that was taken after it."""
    drained_s: float | None = None
    """From healing until nothing that was taken before it waits any more."""


async def until(holds: Callable[[], Awaitable[bool]], deadline_s: float, words: str) -> None:
    """Return once something holds. Raises: FaultFailed with these words."""
    end_s = time.monotonic() + deadline_s
    while not await holds():
        if time.monotonic() > end_s:
            raise FaultFailed(words)
        await asyncio.sleep(0.05)


@contextmanager
def _cut(place: str, *, lost_from: bool, lost_to: bool) -> Iterator[None]:
    cut(place, lost_from=lost_from, lost_to=lost_to)
    try:
        yield
    finally:
        mend(place)


class Faults:
    """Does one fault after another, several at a time."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene

    async def do(self, fault: Fault) -> None:
        """Bring a fault about and heal it. Raises: FaultFailed when it did not take hold, or does not end."""
        scene, kind, for_s = self._scene, fault.kind, fault.for_s
        target, _, way = kind.partition("-")
        match target, way:
            case "store", "outage" | "kill":
                await self._killed(scene.database.program, for_s)
            case "store", "429" | "503" | "500" | "500-late" | "closes" | "slow":
                await self._throttled(way, for_s)
            case "store", "disk":
                await self._store_disk(for_s)
            case "store", "cut" | "answers-cut":
                with _cut("store", lost_from=True, lost_to=way == "cut"):
                    await self._cut_off("office", "store", THROTTLE_PORT, for_s)
                await self._rejoined("office", "store", THROTTLE_PORT)
            case "gateways", "cut" | "answers-cut":
                with _cut("gateways", lost_from=way == "cut", lost_to=True):
                    await self._cut_off("gateways", "office", BROKER_PORT, for_s)
                await self._rejoined("gateways", "office", BROKER_PORT)
            case "broker", "kill":
                await self._killed(scene.broker.program, for_s)
            case "broker", "wipe":
                await scene.broker.program.kill()
                scene.broker.wipe()
                await asyncio.sleep(for_s)
                await scene.broker.program.start()
            case (("broker" | "quarantine"), "disk"):
                async with self._full(scene.disks[target]):
                    if target == "quarantine":
                        await self._poison(fault.choice)
                    await asyncio.sleep(for_s)
            case "agent", "disk":
                async with self._full(scene.disks["agent"]):
                    await asyncio.sleep(for_s)
            case "agent", "kill":
                await scene.street.kill(for_s)
            case (("agent" | "load"), "clock-back" | "clock-ahead"):
                # a day ahead is refused; within half a day no time of the run comes twice
                offset_ms = 6 * HOUR_MS + fault.choice % (6 * HOUR_MS)
                await self._clock(target, offset_ms if way.endswith("ahead") else -offset_ms, fault)
            case "load", "restart":
                scene.load.gateways[fault.choice % len(scene.load.gateways)].restart()
            case "ingest", "worker-kill":
                await self._kill_worker(fault.choice)
            case "ingest", "restart":
                await scene.ingest.ingest.stop(20.0)
                await asyncio.sleep(for_s)
                await scene.ingest.ingest.launch()
            case (("store" | "broker" | "ingest"), "hang"):
                programs = {
                    "store": scene.database.program,
                    "broker": scene.broker.program,
                    "ingest": scene.ingest.ingest,
                }
                await programs[target].hang()
                await asyncio.sleep(for_s)
                await programs[target].go_on()
            case "ingest", "kill":
                await self._killed(scene.ingest.ingest, for_s, ready=False)
            case "watch", "kill":
                await self._killed(scene.ingest.watch, for_s, ready=False)
            case "poison", _:
                await self._poison(fault.choice)
            case _:
                raise FaultFailed(f"{kind} is not known")

    async def _killed(self, program: Program, for_s: float, *, ready: bool = True) -> None:
        """Kill -9 with its children and start again. What waits for others to be ready is not waited for."""
        await program.running()
        children = program.children()
        await program.kill()

        async def gone() -> bool:
            return not any(child.is_running() and child.status() != "zombie" for child in children)

        await until(
            gone, HEALED_S, f"{program.name} was killed and its children live on: {children}"
        )
        await asyncio.sleep(for_s)
        await (program.start() if ready else program.launch())

    async def _kill_worker(self, choice: int) -> None:
        program = self._scene.ingest.ingest
        await program.running()
        workers = program.children()
        if not workers:
            await self._killed(program, 0.5, ready=False)
            return
        victim = workers[choice % len(workers)]
        victim.kill()

        async def gone() -> bool:
            return not victim.is_running() or victim.status() == "zombie"

        await until(gone, HEALED_S, f"the worker {victim} lives on")

        async def replaced() -> bool:
            return len(program.children()) >= len(workers)

        await until(replaced, HEALED_S, f"the worker {victim} was not replaced")

    async def _throttled(self, mode: str, for_s: float) -> None:
        throttle = self._scene.throttle
        await throttle.tell(mode)
        await asyncio.sleep(for_s)

        async def met() -> bool:
            return (await throttle.tell("count"))[0] > 0

        await until(met, FELT_S, f"no write met {mode}")
        await throttle.tell("pass")

    async def _store_disk(self, for_s: float) -> None:
        throttle = self._scene.throttle
        async with self._full(self._scene.disks["store"]):
            await throttle.tell("pass")  # counts anew
            await asyncio.sleep(for_s)

            async def refused() -> bool:
                return (await throttle.tell("count"))[1] > 0

            await until(refused, FELT_S, "the database's disk is full and it took every write")

    async def _cut_off(self, here: str, there: str, port: int, for_s: float) -> None:
        if await connects(here, address(there), port):
            raise FaultFailed(f"{there} was cut off and {here} reaches it")
        await asyncio.sleep(for_s)

    async def _rejoined(self, here: str, there: str, port: int) -> None:
        words = f"{there} is not cut off any more and {here} does not reach it"
        await until(lambda: connects(here, address(there), port), HEALED_S, words)

    @asynccontextmanager
    async def _full(self, disk: Disk) -> AsyncIterator[None]:
        """Keep a disk full, whatever is deleted on it."""

        async def fill() -> None:
            while True:
                disk.fill()
                await asyncio.sleep(0.1)

        disk.fill()
        filling = asyncio.create_task(fill())
        try:
            yield
            if filling.done():
                filling.result()
        finally:
            filling.cancel()
            await asyncio.wait([filling])
            disk.relieve()

    async def _clock(self, target: str, offset_ms: int, fault: Fault) -> None:
        if target == "agent":
            await self._scene.street.shift_clock(offset_ms, fault.for_s)
            return
        gateways = self._scene.load.gateways
        gateway = gateways[fault.choice % len(gateways)]
        gateway.offset_ms = offset_ms
        before = len(gateway.truth)
        await asyncio.sleep(fault.for_s)
        if len(gateway.truth) == before:
            raise FaultFailed(f"{gateway.name} took nothing while its clock was off")
        gateway.offset_ms = 0

    async def _poison(self, choice: int) -> None:
        chance = random.Random(choice)
        gateways = self._scene.load.gateways
        for poison in poisons(COUNTY, SITE, chance):
            chance.choice(gateways).poison(poison)
        gateway = chance.choice(gateways)

        async def taken() -> bool:
            try:
                await gateway.publish(*elsewhere("tw-tao", SITE, chance))
            except UplinkError:
                return False
            return True

        await until(taken, 120.0, "what is for another county was never taken by the broker")
