"""What the agent takes of a gateway: memory with a hundred devices, what its imports cost, and how soon it publishes.

The agent as it is shipped, on twins of lamps (Modbus RTU), air boxes (a serial line each) and, in a case of
its own, parking bays (BLE): resident memory once every device's samples have their receipts, then again
after it has run for a while. A start: from exec to the arrival of the first sample of a device at a
subscriber of the broker; the files are in the page cache.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from statistics import median

import msgspec

from benchmarks.cabinet import Cabinet, Street
from benchmarks.pollers import Launch
from benchmarks.processes import BenchmarkFailed, Process, resident_mb, until
from benchmarks.receiver import Receiver
from benchmarks.stage import shipped_bounds
from exchange.readings import Sample
from exchange.topics import Topic
from tests.brokers import Mosquitto

STREETS = {
    "serial and Modbus": Street(lamps=90, bays=0, air=10, interval_s=10.0),
    "all three buses": Street(lamps=50, bays=40, air=10, interval_s=10.0),
}
MODULES = (
    "asyncio",
    "ssl",
    "uvloop",
    "sqlite3",
    "msgspec",
    "cbor2",
    "psutil",
    "exchange.mqtt",
    "pymodbus.client",
    "bleak",
    "cryptography.hazmat.primitives.ciphers.aead",
    "edge_agent.agent",
)
"""In this order: what one brings along, the next finds there."""
_EVERYBODY_S = 90.0
_IMPORT = """
import sys, time
def resident_kb():
    for line in open("/proc/self/status"):
        if line.startswith("VmRSS"):
            return int(line.split()[1])
for name in [""] + sys.argv[1:]:
    began_s = time.perf_counter()
    if name:
        __import__(name)
    print(name or "python", resident_kb(), time.perf_counter() - began_s)
"""


class Import(msgspec.Struct, frozen=True):
    """What one more import costs. The first, `python`, is what there is without any."""

    module: str
    resident_mb: float
    ms: float


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """One street."""

    street: str
    devices: int
    first_mb: float
    """Once every device was heard."""
    last_mb: float
    """After it has run for a while."""
    peak_mb: float
    samples: int


class Footprint(msgspec.Struct, frozen=True):
    """All of it."""

    seconds: float
    imports: list[Import]
    memory: list[Memory]
    first_sample_s: dict[str, list[float]]
    """By street, start by start."""


async def measure(
    seconds: float, *, starts: int, streets: dict[str, Street] | None = None
) -> Footprint:
    """Run an agent on each street. Raises: BenchmarkFailed."""
    found = Footprint(seconds, await _imports(), [], {})
    for name, street in (STREETS if streets is None else streets).items():
        found.first_sample_s[name] = []
        with tempfile.TemporaryDirectory(prefix="onestreet-bench-") as place:
            folder = Path(place)
            with Mosquitto(folder, shipped_bounds()) as broker:
                memory = await _street(name, street, folder, broker.port, found, starts)
        found.memory.append(memory)
        print(f"{name}: {memory.last_mb:.1f} MB", file=sys.stderr, flush=True)
    return found


async def _imports() -> list[Import]:
    """Import one thing after the other in a process that has nothing. Raises: BenchmarkFailed."""
    with tempfile.TemporaryDirectory(prefix="onestreet-bench-") as place:
        process = Process([sys.executable, "-c", _IMPORT, *MODULES], Path(place) / "log")
        await until(lambda: process.ended is not None, "everything is imported")
        if process.ended:
            raise BenchmarkFailed(f"the imports ended with {process.ended}\n{process.tail}")
        said = [line.split() for line in process.tail.splitlines()]
    found: list[Import] = []
    before_kb = 0
    for module, resident_kb, seconds in said:
        found.append(Import(module, (int(resident_kb) - before_kb) / 1024, 1000 * float(seconds)))
        before_kb = int(resident_kb)
    return found


async def _street(
    name: str, street: Street, folder: Path, port: int, found: Footprint, starts: int
) -> Memory:
    heard: set[str] = set()
    first: list[float] = []
    began_ms = 0

    def hear(topic: Topic, samples: Sequence[Sample]) -> None:
        if topic.domain != "gateway":
            heard.add(topic.device)
            if not first and samples[-1].time_ms >= began_ms:
                first.append(time.monotonic())

    box = folder / "cabinet"
    box.mkdir()
    async with AsyncExitStack() as stack:
        receiver = await stack.enter_async_context(Receiver(port, hear))
        launch = await stack.enter_async_context(Cabinet(street, box, port).speaking())
        for _ in range(starts):
            first.clear()
            began_s, began_ms = time.monotonic(), time.time_ns() // 1_000_000
            async with _agent(launch, box) as agent:
                await agent.until(lambda: first, "a sample", deadline_s=_EVERYBODY_S)
                found.first_sample_s[name].append(first[0] - began_s)
        heard.clear()
        samples = receiver.samples
        async with _agent(launch, box) as agent:
            await agent.until(
                lambda: len(heard) == street.devices,
                "every device is heard",
                deadline_s=_EVERYBODY_S + 2 * street.interval_s,
            )
            first_mb = resident_mb(agent.pid)
            await agent.lives_for(found.seconds)
            memory = Memory(
                street=name,
                devices=street.devices,
                first_mb=first_mb,
                last_mb=resident_mb(agent.pid),
                peak_mb=resident_mb(agent.pid, peak=True),
                samples=receiver.samples - samples,
            )
        receiver.check()
    return memory


def _agent(launch: Launch, box: Path) -> Process:
    return Process(launch.argv, box / "log", environment=launch.environment, folder=launch.folder)


def table(found: Footprint) -> str:
    """Return the figures for people."""
    lines = [f"{'imported, in this order':48}{'MB':>8}{'ms':>8}"]
    lines += [f"{one.module:48}{one.resident_mb:>8.1f}{one.ms:>8.0f}" for one in found.imports]
    whole_mb = sum(one.resident_mb for one in found.imports)
    lines.append(f"{'all':48}{whole_mb:>8.1f}{sum(one.ms for one in found.imports):>8.0f}")
    lines += [
        "",
        (
            f"{'resident MB':24}{'devices':>8}{'all heard':>11}"
            f"{f'{found.seconds:.0f} s later':>14}{'peak':>8}{'samples':>9}"
        ),
    ]
    for each in found.memory:
        lines.append(
            f"{each.street:24}{each.devices:>8}{each.first_mb:>11.1f}{each.last_mb:>14.1f}"
            f"{each.peak_mb:>8.1f}{each.samples:>9}"
        )
    lines += ["", "exec to first published sample of a device, s, median (lowest – highest)"]
    for name, values in found.first_sample_s.items():
        span = f"{median(values):.2f} ({min(values):.2f} – {max(values):.2f})"
        lines.append(f"{name:24}{span}")
    return "\n".join(lines)
