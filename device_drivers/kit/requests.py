"""Modbus reads: which requests bring all of a profile's points, with few transactions and within a device's limits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from device_drivers.kit.profile import Block, Point, Profile, Read


def wanted(profile: Profile) -> list[Point]:
    """Return the points worth asking for: those that are a metric."""
    return [point for point in profile.points if point.metric]


def requests(profile: Profile) -> list[Block]:
    """Return the profile's blocks, computed where it gives none."""
    return profile.blocks or coalesced(wanted(profile), profile.read)


def coalesced(points: Iterable[Point], read: Read) -> list[Block]:
    """Return blocks that hold all points whole, as few as the limits allow."""
    blocks: list[Block] = []
    ordered = sorted(
        points, key=lambda point: (point.function or read.function, point.at, -len(point.registers))
    )
    for point in ordered:
        function = point.function or read.function
        last = blocks[-1] if blocks else None
        if last is not None and function == last.function and _joins(last, point, read):
            count = max(last.count, point.registers.stop - last.at)
            blocks[-1] = Block(function=function, at=last.at, count=count)
        else:
            blocks.append(Block(function=function, at=point.at, count=len(point.registers)))
    return blocks


def _joins(block: Block, point: Point, read: Read) -> bool:
    end = block.at + block.count
    return (
        point.at - end <= read.max_gap
        and point.registers.stop - block.at <= read.max_registers
        and not any(block.at < first < point.registers.stop for first in read.breaks)
    )


def halves(block: Block, points: Sequence[Point]) -> list[Block]:
    """Return smaller blocks for a block's points, cut at the widest gap; none when it cannot be cut.

    A device that refuses a block refuses one register in it: halving finds the ones that it does answer.
    """
    inside = sorted(filter(block.holds, points), key=lambda point: point.at)
    cuts: list[tuple[int, int, int]] = []
    reach = 0
    for index, point in enumerate(inside):
        if index and point.at >= reach:
            lopsided = abs(2 * index - len(inside))
            cuts.append((point.at - reach, -lopsided, index))
        reach = max(reach, point.registers.stop)
    if not cuts:
        return []
    *_, index = max(cuts)
    return [_around(block, part) for part in (inside[:index], inside[index:])]


def _around(block: Block, points: Sequence[Point]) -> Block:
    start = min(point.at for point in points)
    stop = max(point.registers.stop for point in points)
    return Block(function=block.function, at=start, count=stop - start)
