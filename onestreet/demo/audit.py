"""The audit: what the town knows it sent against what the store holds, sample by sample."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from device_drivers.kit.driver import Value

MAX_SHIFT_MS = 1000


class Entry(NamedTuple):
    """One completed reading, as the town knows it."""

    at_ms: int
    values: Mapping[str, Value]


class StoredRow(NamedTuple):
    """One row of the store, without the columns that name it."""

    time_ms: int
    epoch: int
    seq: int
    values: Mapping[str, Value]


class DeviceAudit(msgspec.Struct, frozen=True):
    """One device's account. `in_hand` are readings that a killed agent may have had in its hands."""

    taken: int
    stored: int
    refused: int
    lost: int
    duplicate: int
    in_hand: int = 0


class Audit(msgspec.Struct, frozen=True):
    """The town's account."""

    taken: int
    stored: int
    refused: int
    lost: int
    duplicate: int
    in_hand: int
    devices: dict[str, DeviceAudit]

    @property
    def passed(self) -> bool:
        """Nothing lost, nothing twice, and every device heard of."""
        return (
            bool(self.devices)
            and not self.lost
            and not self.duplicate
            and all(device.stored for device in self.devices.values())
        )


def audit_device(
    truth: Sequence[Entry],
    rows: Sequence[StoredRow],
    interval_s: float,
    *,
    refused: int = 0,
    killed: Iterable[tuple[int, int]] = (),
) -> DeviceAudit:
    """Match truth and rows in order: equal values, and a shift of at most a second and under half the interval.

    A truth entry without a row is lost, unless it was completed in one of the `killed` spans (from shortly before an
    agent was killed until its successor was ready): then the agent had it in hand. But what has a name was taken: for a
    seq that is left out within an epoch nobody is excused. A row without an entry, or a second row for one
    (epoch, seq), is a duplicate.
    """
    truth = sorted(truth, key=lambda entry: entry.at_ms)
    rows = sorted(rows, key=lambda row: row.time_ms)
    shift_ms = min(MAX_SHIFT_MS, interval_s * 500 - 1)
    spans = list(killed)
    duplicate = in_hand = lost = matched = 0
    seen: set[tuple[int, int]] = set()
    position = 0
    for row in rows:
        if (row.epoch, row.seq) in seen:
            duplicate += 1
            continue
        seen.add((row.epoch, row.seq))
        found = next(
            (
                index
                for index in range(position, len(truth))
                if truth[index].at_ms <= row.time_ms + shift_ms
                and abs(truth[index].at_ms - row.time_ms) <= shift_ms
                and _equal(truth[index].values, row.values)
            ),
            None,
        )
        if found is None:
            duplicate += 1
            continue
        for entry in truth[position:found]:
            if _within(entry.at_ms, spans):
                in_hand += 1
            else:
                lost += 1
        matched += 1
        position = found + 1
    for entry in truth[position:]:
        if _within(entry.at_ms, spans):
            in_hand += 1
        else:
            lost += 1
    named = min(in_hand, max(0, _left_out(seen) - refused - lost))
    return DeviceAudit(len(truth), matched, refused, lost + named, duplicate, in_hand - named)


def _left_out(names: Iterable[tuple[int, int]]) -> int:
    """Return how many numbers are missing between others of their epoch."""
    seqs: defaultdict[int, list[int]] = defaultdict(list)
    for epoch, seq in names:
        seqs[epoch].append(seq)
    return sum(max(of_one) - min(of_one) + 1 - len(of_one) for of_one in seqs.values())


def total(devices: Mapping[str, DeviceAudit]) -> Audit:
    """Return the sum over all devices."""
    accounts = list(devices.values())
    return Audit(
        taken=sum(one.taken for one in accounts),
        stored=sum(one.stored for one in accounts),
        refused=sum(one.refused for one in accounts),
        lost=sum(one.lost for one in accounts),
        duplicate=sum(one.duplicate for one in accounts),
        in_hand=sum(one.in_hand for one in accounts),
        devices=dict(devices),
    )


def _equal(values: Mapping[str, Value], stored: Mapping[str, Value]) -> bool:
    """Equal as numbers: booleans are stored as 0 and 1."""
    return values.keys() == stored.keys() and all(
        float(stored[name]) == float(value) for name, value in values.items()
    )


def _within(at_ms: int, spans: Iterable[tuple[int, int]]) -> bool:
    return any(begin <= at_ms <= end for begin, end in spans)
