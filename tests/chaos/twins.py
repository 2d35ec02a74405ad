"""The truth of twins against the rows of their agent: in order, value by value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from device_drivers.kit.driver import Value
from onestreet.demo.audit import DeviceAudit

MAX_LATE_MS = 20_000
"""On a busy machine an agent may date a reading so much after its last byte."""
MAX_EARLY_MS = 50


class Reading(NamedTuple):
    """A completed reading as the twins know it, dated by the clock that the agent had then."""

    at_ms: int
    values: Mapping[str, Value]
    excused: bool
    """Completed in a span in which the agent was dead, or about to be."""


class Row(NamedTuple):
    """A row of the store."""

    epoch: int
    seq: int
    at_ms: int
    values: Mapping[str, Value]


def matched(truth: Sequence[Reading], rows: Sequence[Row]) -> DeviceAudit:
    """Return a device's account. `truth` is in order of completion; rows are put in order of their names.

    Every reading has its row, in the same order and with the same values; only excused ones may have none.
    A row without a reading, or a second one of a name, is a duplicate.
    """
    position = found = in_hand = lost = duplicate = 0
    last: tuple[int, int] | None = None
    for row in sorted(rows):
        if (row.epoch, row.seq) == last:
            duplicate += 1
            continue
        last = (row.epoch, row.seq)
        place = _place(truth, position, row)
        if place is None:
            duplicate += 1
            continue
        in_hand += sum(reading.excused for reading in truth[position:place])
        lost += sum(not reading.excused for reading in truth[position:place])
        found += 1
        position = place + 1
    in_hand += sum(reading.excused for reading in truth[position:])
    lost += sum(not reading.excused for reading in truth[position:])
    return DeviceAudit(len(truth), found, 0, lost, duplicate, in_hand)


def _place(truth: Sequence[Reading], position: int, row: Row) -> int | None:
    """Return where the row's reading is: the next of its values, or behind excused ones the nearest in time."""
    fitting: list[int] = []
    for place in range(position, len(truth)):
        reading = truth[place]
        late_ms = row.at_ms - reading.at_ms
        if -MAX_EARLY_MS <= late_ms <= MAX_LATE_MS and _equal(reading.values, row.values):
            fitting.append(place)
        if fitting and not reading.excused:
            break
    return min(fitting, key=lambda place: abs(row.at_ms - truth[place].at_ms), default=None)


def _equal(values: Mapping[str, Value], stored: Mapping[str, Value]) -> bool:
    """Equal as numbers: booleans are stored as 0 and 1."""
    return values.keys() == stored.keys() and all(
        float(stored[name]) == float(value) for name, value in values.items()
    )
