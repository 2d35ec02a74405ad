"""The faults: each is brought about, seen to have taken hold, kept up for its time, and healed."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

import msgspec
import psutil

from exchange.errors import UplinkError
from tests.chaos.load import COUNTY, SITE, Load, LoadGateway
from tests.chaos.places import Disk, FaultFailed, address, connects, cut, mend
from tests.chaos.plan import Fault
from tests.chaos.poison import elsewhere, poisons
from tests.chaos.programs import Program
from tests.chaos.services import BROKER_PORT, THROTTLE_PORT, Broker, Database, IngestFiles, Throttle
from tests.chaos.street import Street
from tests.chaos.throttle import MODES

FELT_S = 45.0
"""A hindered database is met by ingest's next try at the latest, 15 s apart, and an agent's disk sooner."""
HEALED_S = 30.0
STRAY_S = 120.0
AGAIN_S = 0.5
ORDERLY_S = 25.0
"""Ingest gives itself 10 s to drain and 3 s to say goodbye."""
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


async def _gone(processes: list[psutil.Process]) -> bool:
    return not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in processes)


class Faults:
    """Does one fault after another, several at a time. `wrong` is what was seen of a product meanwhile, in words."""

    def __init__(self, scene: Scene) -> None:
        self.wrong: list[str] = []
        self._scene = scene
        self._doers: dict[str, Callable[[Fault], Awaitable[None]]] = {
            "blackout": self._black_out,
            "store-outage": self._kill_store,
            "store-kill": self._kill_store,
            "store-cut": lambda fault: self._cut_store(fault, lost_to=True),
            "store-answers-cut": lambda fault: self._cut_store(fault, lost_to=False),
            "store-disk": self._fill_store,
            **{f"store-{mode}": self._throttle for mode in MODES[1:]},
            "gateways-cut": lambda fault: self._cut_gateways(fault, lost_from=True),
            "gateways-answers-cut": lambda fault: self._cut_gateways(fault, lost_from=False),
            "broker-kill": lambda fault: self._killed(scene.broker.program, fault.for_s),
            "broker-wipe": self._wipe,
            "broker-disk": self._fill,
            "agent-disk": self._fill,
            "quarantine-disk": self._fill_quarantine,
            "poison": self._poison,
            "agent-kill": lambda fault: scene.street.kill(fault.for_s),
            "agent-clock-back": lambda fault: scene.street.shift_clock(
                -_hours_ms(fault), fault.for_s
            ),
            "agent-clock-ahead": lambda fault: scene.street.shift_clock(
                _hours_ms(fault), fault.for_s
            ),
            "load-clock-back": lambda fault: self._shift_clock(fault, -_hours_ms(fault)),
            "load-clock-ahead": lambda fault: self._shift_clock(fault, _hours_ms(fault)),
            "load-restart": self._restart_gateway,
            "ingest-kill": lambda fault: self._killed(
                scene.ingest.ingest, fault.for_s, ready=False
            ),
            "watch-kill": lambda fault: self._killed(scene.ingest.watch, fault.for_s, ready=False),
            "ingest-worker-kill": self._kill_worker,
            "ingest-restart": self._restart_ingest,
            "store-hang": lambda fault: self._hang(scene.database.program, fault),
            "broker-hang": lambda fault: self._hang(scene.broker.program, fault),
            "ingest-hang": lambda fault: self._hang(scene.ingest.ingest, fault),
        }

    async def do(self, fault: Fault) -> None:
        """Bring a fault about and heal it. Raises: FaultFailed when it did not take hold, or does not end."""
        await self._doers[fault.kind](fault)

    # ----------------------------------------------------------------------------------------------- processes

    async def _kill_store(self, fault: Fault) -> None:
        await self._killed(self._scene.database.program, fault.for_s)

    async def _black_out(self, fault: Fault) -> None:
        """Have ingest full of what is nowhere else but on the gateways, and end it and the broker's memory at once."""
        broker, ingest = self._scene.broker, self._scene.ingest.ingest
        database = self._scene.database.program
        async with broker.program.alone, ingest.alone:
            await ingest.running()
            await database.kill()  # a hanging one would still take what was sent to it
            await asyncio.sleep(fault.for_s)
            await asyncio.gather(ingest.kill(), broker.program.kill())
            broker.wipe()
            await asyncio.gather(database.start(), broker.program.start())
            await ingest.launch()

    async def _wipe(self, fault: Fault) -> None:
        broker = self._scene.broker
        async with broker.program.alone:
            await broker.program.kill()
            broker.wipe()
            await asyncio.sleep(fault.for_s)
            await broker.program.start()

    async def _hang(self, program: Program, fault: Fault) -> None:
        async with program.alone:
            await program.hang()
            await asyncio.sleep(fault.for_s)
            await program.go_on()

    async def _restart_ingest(self, fault: Fault) -> None:
        ingest = self._scene.ingest.ingest
        async with ingest.alone:
            await ingest.running()
            if await ingest.stop(ORDERLY_S) is None:
                self.wrong.append(f"{fault}: ingest did not end within {ORDERLY_S:g} s of SIGTERM")
            await asyncio.sleep(fault.for_s)
            await ingest.launch()

    async def _killed(self, program: Program, for_s: float, *, ready: bool = True) -> None:
        """Kill -9 with its children and start again. What waits for others to be ready is not waited for."""
        async with program.alone:
            await program.running()
            children = program.children()
            await program.kill()
            words = f"{program.name} was killed and its children live on: {children}"
            await until(lambda: _gone(children), HEALED_S, words)
            await asyncio.sleep(for_s)
            await (program.start() if ready else program.launch())

    async def _kill_worker(self, fault: Fault) -> None:
        program = self._scene.ingest.ingest
        async with program.alone:
            await program.running()
            workers = program.children()
            if workers:
                victim = workers[fault.choice % len(workers)]
                victim.kill()
                await until(lambda: _gone([victim]), HEALED_S, f"the worker {victim} lives on")

                async def replaced() -> bool:
                    return len(program.children()) >= len(workers)

                await until(replaced, HEALED_S, f"the worker {victim} was not replaced")
        if not workers:  # it works alone
            await self._killed(program, fault.for_s, ready=False)

    # --------------------------------------------------------------------------------------- database and links

    async def _throttle(self, fault: Fault) -> None:
        throttle, mode = self._scene.throttle, fault.kind.removeprefix("store-")
        await throttle.tell(mode)
        await asyncio.sleep(fault.for_s)

        async def met() -> bool:
            return (await throttle.tell("count"))[0] > 0

        await until(met, FELT_S, f"no write met {mode}")
        await throttle.tell("pass")

    async def _cut_store(self, fault: Fault, *, lost_to: bool) -> None:
        with _cut("store", lost_from=True, lost_to=lost_to):
            await self._cut_off("office", "store", THROTTLE_PORT, fault.for_s)
        await self._rejoined("office", "store", THROTTLE_PORT)

    async def _cut_gateways(self, fault: Fault, *, lost_from: bool) -> None:
        with _cut("gateways", lost_from=lost_from, lost_to=True):
            await self._cut_off("gateways", "office", BROKER_PORT, fault.for_s)
        await self._rejoined("gateways", "office", BROKER_PORT)

    async def _cut_off(self, here: str, there: str, port: int, for_s: float) -> None:
        if await connects(here, address(there), port):
            raise FaultFailed(f"{there} was cut off and {here} reaches it")
        await asyncio.sleep(for_s)

    async def _rejoined(self, here: str, there: str, port: int) -> None:
        words = f"{there} is not cut off any more and {here} does not reach it"
        await until(lambda: connects(here, address(there), port), HEALED_S, words)

    # --------------------------------------------------------------------------------------------------- disks

    async def _fill(self, fault: Fault) -> None:
        async with self._full(fault):
            await asyncio.sleep(fault.for_s)

    async def _fill_quarantine(self, fault: Fault) -> None:
        async with self._full(fault):
            await self._poison(fault)
            await asyncio.sleep(fault.for_s)

    async def _fill_store(self, fault: Fault) -> None:
        throttle = self._scene.throttle
        async with self._full(fault):
            await throttle.tell("pass")  # counts anew
            await asyncio.sleep(fault.for_s)

            async def refused() -> bool:
                return (await throttle.tell("count"))[1] > 0

            await until(refused, FELT_S, "the database's disk is full and it took every write")
        # InfluxDB does not try again to open a shard that it could not open: only a new start helps
        await self._killed(self._scene.database.program, AGAIN_S)

    @asynccontextmanager
    async def _full(self, fault: Fault) -> AsyncIterator[None]:
        """Keep a disk full, whatever is deleted on it."""
        disk = self._scene.disks[fault.kind.removesuffix("-disk")]

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

    # ------------------------------------------------------------------------------------------ in the data itself

    async def _restart_gateway(self, fault: Fault) -> None:
        self._gateway(fault).restart()

    async def _shift_clock(self, fault: Fault, offset_ms: int) -> None:
        gateway = self._gateway(fault)
        gateway.offset_ms = offset_ms
        before = len(gateway.truth)
        await asyncio.sleep(fault.for_s)
        if len(gateway.truth) == before:
            raise FaultFailed(f"{gateway.name} took nothing while its clock was off")
        gateway.offset_ms = 0

    def _gateway(self, fault: Fault) -> LoadGateway:
        gateways = self._scene.load.gateways
        return gateways[fault.choice % len(gateways)]

    async def _poison(self, fault: Fault) -> None:
        chance = random.Random(fault.choice)
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

        await until(taken, STRAY_S, "what is for another county was never taken by the broker")


def _hours_ms(fault: Fault) -> int:
    """Return how far a clock goes wrong.

    A day ahead is refused; and within half a day no time of a run comes twice.
    """
    return 6 * HOUR_MS + fault.choice % (6 * HOUR_MS)
