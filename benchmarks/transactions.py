"""Transactions of one reading, with and without joined requests, counted and timed on a paced line.

Each public register map is read once by the kit's driver through the real Modbus link, at 9600 baud,
three ways: a request for each value (which is what asking tag by tag comes to), one for each run of
neighbours, and as the profile allows, over gaps too. Time is the whole reading's, silences included.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
from msgspec.structs import replace

from benchmarks.paced_line import PacedLine, Slave
from benchmarks.processes import BenchmarkFailed
from benchmarks.register_maps import register_maps
from device_drivers.kit.profile import Block, Profile
from device_drivers.kit.register_table import TableDriver
from device_drivers.kit.requests import coalesced, wanted
from device_drivers.links.modbus import open_modbus_rtu

BAUD = 9600
WAYS = ("value by value", "neighbours", "over gaps")
_UNIT = 1
_TIMEOUT_S = 1.0


class Count(msgspec.Struct, frozen=True, kw_only=True):
    """One reading of one device."""

    device: str
    way: str
    values: int
    transactions: int
    ms: float


def ways(profile: Profile) -> Mapping[str, Profile]:
    """Return the profile in each of the ways that its device can be asked."""
    single: list[Block] = []
    for point in wanted(profile):
        (block,) = coalesced([point], profile.read)
        if block not in single:  # bits of one register come together
            single.append(block)
    neighbours = replace(profile.read, max_gap=0)
    profiles = (
        replace(profile, blocks=single),
        replace(profile, blocks=coalesced(wanted(profile), neighbours)),
        profile,
    )
    return dict(zip(WAYS, profiles, strict=True))


async def measure(maps: Mapping[str, Profile] | None = None) -> list[Count]:
    """Read every device in every way. Raises: BenchmarkFailed when values differ between the ways."""
    found: list[Count] = []
    with tempfile.TemporaryDirectory(prefix="onestreet-bench-") as name:
        port = Path(name) / "tty"
        for device, profile in (register_maps() if maps is None else maps).items():
            counts = [await _count(device, way, each, port) for way, each in ways(profile).items()]
            if len({count.values for count in counts}) != 1:
                raise BenchmarkFailed(f"{device}: the ways give different values: {counts}")
            found += counts
    return found


async def _count(device: str, way: str, profile: Profile, port: Path) -> Count:
    end = max(point.registers.stop for point in profile.points)
    slave = Slave(_UNIT, bytes(2 * end))
    async with (
        PacedLine(port, [slave], baud=BAUD) as line,
        open_modbus_rtu(str(port), baudrate=BAUD, timeout_s=_TIMEOUT_S) as bus,
    ):
        driver = TableDriver(profile, _UNIT)
        await driver.read(bus)  # the first one opens the line
        before, began_s = line.requests, time.monotonic()
        reading = await driver.read(bus)
        ms = 1000 * (time.monotonic() - began_s)
        if line.lost or line.broken:
            raise BenchmarkFailed(f"{device}: {line.lost} requests lost, {line.broken} broken")
        return Count(
            device=device,
            way=way,
            values=len(reading.metrics),
            transactions=line.requests - before,
            ms=ms,
        )


def table(found: Sequence[Count]) -> str:
    """Return the counts for people."""
    lines = [f"{'':26}{'values':>8}" + "".join(f"{way:>26}" for way in WAYS)]
    for device in dict.fromkeys(count.device for count in found):
        counts = {count.way: count for count in found if count.device == device}
        cells = (f"{counts[way].transactions} in {counts[way].ms:.0f} ms" for way in WAYS)
        values = next(iter(counts.values())).values
        lines.append(f"{device:26}{values:>8}" + "".join(f"{cell:>26}" for cell in cells))
    for way in WAYS:
        whole = [count for count in found if count.way == way]
        lines.append(
            f"{way}: {sum(count.transactions for count in whole)} transactions,"
            f" {sum(count.ms for count in whole):.0f} ms for all"
        )
    return "\n".join(lines)
