"""What the agent writes to the disk for each sample, and for each byte that it publishes.

The agent as it is shipped, on twins, once for each first stage of its outbox; its samples get their
receipts at once, or the broker is not there. Counted are `write_bytes` of the process (what it made the
page cache owe the disk, in whole pages), and what the disk's own counters rose by: with the file system's
journal, and with whatever else writes there.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from itertools import product
from pathlib import Path
from typing import Literal

import msgspec

from benchmarks.cabinet import Cabinet, Street
from benchmarks.processes import BenchmarkFailed, Process
from benchmarks.receiver import Receiver
from benchmarks.stage import shipped_bounds
from exchange.configuration import toml_table
from exchange.readings import Sample
from exchange.topics import Topic
from tests.brokers import Mosquitto

Stage = Literal["memory", "disk"]
STAGES: tuple[Stage, ...] = ("memory", "disk")
STREET = Street(lamps=90, bays=0, air=10, interval_s=10.0)
_SECTOR_BYTES = 512
_FIRST_S = 90.0
_STEADY_S = 5.0  # nothing of the outage came for so long: it has all come


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One stage, with or without a broker, for a while."""

    stage: str
    connected: bool
    samples: int
    """Taken in that while. The gateway's own are among them."""
    payload_bytes: float
    """What these samples came in; those of an outage came after it."""
    written_bytes: int
    disk_bytes: int | None
    """None where the disk has no counters of its own."""


def written_bytes(pid: int) -> int:
    """What a process has made the disk take, so far."""
    for line in Path(f"/proc/{pid}/io").read_text().splitlines():
        if line.startswith("write_bytes:"):
            return int(line.split()[1])
    raise BenchmarkFailed(f"process {pid} has no I/O accounting")


def disk_bytes(folder: Path) -> int | None:
    """What the folder's disk has been given to write, so far; None where it does not count."""
    device = folder.stat().st_dev
    counters = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/stat")
    return int(counters.read_text().split()[6]) * _SECTOR_BYTES if counters.exists() else None


async def measure(
    seconds: float,
    *,
    stages: Sequence[Stage] = STAGES,
    street: Street = STREET,
) -> list[Run]:
    """Let an agent run so long in each case. Raises: BenchmarkFailed."""
    found: list[Run] = []
    for connected, stage in product((True, False), stages):
        found.append(await _run(seconds, stage, street, connected=connected))
        print(_line(found[-1]), file=sys.stderr, flush=True)
    return found


async def _run(seconds: float, stage: Stage, street: Street, *, connected: bool) -> Run:
    with tempfile.TemporaryDirectory(prefix="onestreet-bench-") as place:
        folder = Path(place)
        box = folder / "cabinet"
        box.mkdir()
        tables = [toml_table("[outbox]", stage=stage)]
        with Mosquitto(folder, shipped_bounds()) as broker:
            async with AsyncExitStack() as stack:
                cabinet = Cabinet(street, box, broker.port, tables)
                launch = await stack.enter_async_context(cabinet.speaking())
                agent = await stack.enter_async_context(
                    Process(
                        launch.argv,
                        box / "log",
                        environment=launch.environment,
                        folder=launch.folder,
                    )
                )
                measure = _while_connected if connected else _in_an_outage
                return await measure(seconds, stage, street, agent, broker)


async def _while_connected(
    seconds: float, stage: Stage, street: Street, agent: Process, broker: Mosquitto
) -> Run:
    async with Receiver(broker.port) as receiver:
        await _everybody_heard(receiver, street, agent)
        samples, payload_bytes = receiver.samples, receiver.payload_bytes
        written = await _written(agent, seconds)
        receiver.check()
        return Run(
            stage=stage,
            connected=True,
            samples=receiver.samples - samples,
            payload_bytes=receiver.payload_bytes - payload_bytes,
            written_bytes=written[0],
            disk_bytes=written[1],
        )


async def _in_an_outage(
    seconds: float, stage: Stage, street: Street, agent: Process, broker: Mosquitto
) -> Run:
    async with Receiver(broker.port) as receiver:
        await _everybody_heard(receiver, street, agent)
    broker.stop()
    from_ms = time.time_ns() // 1_000_000
    written = await _written(agent, seconds)
    to_ms = time.time_ns() // 1_000_000
    taken = 0

    def hear(_topic: Topic, samples: Sequence[Sample]) -> None:
        nonlocal taken
        taken += sum(from_ms <= sample.time_ms < to_ms for sample in samples)

    broker.start()
    async with Receiver(broker.port, hear) as receiver:
        before = -1
        while not taken or taken != before:
            before = taken
            await agent.lives_for(_STEADY_S)
            receiver.check()
        return Run(
            stage=stage,
            connected=False,
            samples=taken,
            payload_bytes=taken * receiver.payload_bytes / receiver.samples,
            written_bytes=written[0],
            disk_bytes=written[1],
        )


async def _everybody_heard(receiver: Receiver, street: Street, agent: Process) -> None:
    await agent.until(
        lambda: receiver.samples - receiver.of_gateways >= 2 * street.devices,
        "the devices are heard",
        deadline_s=_FIRST_S,
    )


async def _written(agent: Process, seconds: float) -> tuple[int, int | None]:
    """Return what the agent, and its disk, wrote in so many seconds."""
    written, disk = written_bytes(agent.pid), disk_bytes(agent.log.parent)
    await agent.lives_for(seconds)
    after = disk_bytes(agent.log.parent)
    return (
        written_bytes(agent.pid) - written,
        None if disk is None or after is None else after - disk,
    )


def table(found: Sequence[Run]) -> str:
    """Return the figures for people."""
    lines = [
        (
            f"{'':28}{'samples':>9}{'payload B/sample':>18}{'written B/sample':>18}"
            f"{'written : payload':>19}{'disk : payload':>16}"
        )
    ]
    for run in found:
        where = "connected" if run.connected else "in an outage"
        disk = "" if run.disk_bytes is None else f"{run.disk_bytes / run.payload_bytes:.2f}"
        lines.append(
            f"{f'{run.stage}, {where}':28}{run.samples:>9}"
            f"{run.payload_bytes / run.samples:>18.0f}{run.written_bytes / run.samples:>18.0f}"
            f"{run.written_bytes / run.payload_bytes:>19.2f}{disk:>16}"
        )
    return "\n".join(lines)


def _line(run: Run) -> str:
    ratio = run.written_bytes / run.payload_bytes
    where = "connected" if run.connected else "in an outage"
    return f"{run.stage}, {where}: {ratio:.2f} bytes written for each published"
