"""What the outbox writes: records in checksummed frames, one after the other, in files that only grow.

A frame is two marker bytes, the length and the CRC-32 of its body, and the body: one record in MessagePack. The
checksum is seeded by the file's number, so that no frame is at home in another file. Whatever follows the last good
frame was never promised to anybody.

Version 2 is frozen: records and fields are appended, never changed. The golden files in the tests hold it to that.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from typing import NamedTuple
from zlib import crc32

import msgspec

from exchange.readings import Sample, Value

VERSION = 2
MARK = b"\xf5\x5a"
_HEAD = struct.Struct("<2sII")
_MOST = 1 << 24  # no record is as long
_SEED = 0xFFFFFFFF


class Waiting(NamedTuple):
    """A sample in the outbox; `id` rises in the order of taking."""

    id: int
    domain: str
    device: str
    sample: Sample


class Kept(msgspec.Struct, frozen=True, array_like=True, tag=1, gc=False):
    """A sample with its name and its time, both for ever."""

    id: int
    domain: str
    device: str
    epoch: int
    seq: int
    time_ms: int
    quality: str
    metrics: dict[str, bool | int | float]

    @property
    def waiting(self) -> Waiting:
        """The sample as the uplink gets it."""
        sample = Sample(self.time_ms, self.epoch, self.seq, self.metrics, self.quality)
        return Waiting(self.id, self.domain, self.device, sample)


class Undated(msgspec.Struct, frozen=True, array_like=True, tag=2, gc=False):
    """A sample that was taken before the clock was known: without a name yet.

    Units: `boot_ms` since the boot `boot_id`; `wall_ms` is what the system's clock said; `time_ms` when it was known.
    """

    id: int
    boot_id: str
    boot_ms: int
    wall_ms: int
    time_ms: int | None
    domain: str
    device: str
    quality: str
    metrics: dict[str, bool | int | float]


class Counter(NamedTuple):
    """How a device's next sample is named. `next_seq` is ENDED when it begins a new epoch."""

    epoch: int
    next_seq: int
    last_ms: int


ENDED = -1


def advance(counters: dict[str, Counter], device: str, counter: Counter) -> None:
    """Move a device's counter on, never back: an epoch that has ended goes on nowhere."""
    before = counters.get(device)
    if before is None or _reach(counter) > _reach(before):
        counters[device] = counter


def _reach(counter: Counter) -> tuple[int, float]:
    return counter.epoch, math.inf if counter.next_seq == ENDED else counter.next_seq


class Counters(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """The counters when a file was begun; the samples behind it move them on."""

    counters: dict[str, Counter]
    next_id: int


class Gone(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """Samples that have left, as inclusive ranges of ids."""

    ranges: list[tuple[int, int]]


class StageHead(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """Whose stage this is: the outbox's folder and what its book calls it, and the boot in which it is complete."""

    folder: str
    token: str
    boot_id: str


class Seal(msgspec.Struct, frozen=True, array_like=True, tag=6):
    """The end of a segment that is full, and what it holds."""

    count: int
    last_id: int
    newest_ms: int
    series: list[tuple[str, str, int, int, int, int]]
    """Domain, device, epoch, lowest and highest seq, samples."""


class Book(msgspec.Struct, frozen=True, array_like=True, tag=7):
    """What the outbox must know at its next start. `topics` are where the broker retains states of ours.

    Of books and marks the one with the highest `number` holds. Every epoch that is begun is later than `above`.
    """

    version: int
    clean: bool
    stage: str
    token: str
    counters: dict[str, Counter]
    next_id: int
    topics: list[str]
    number: int = 0
    above: int = 0


class Mark(msgspec.Struct, frozen=True, array_like=True, tag=8):
    """What holds instead of a book with a lower number: a run has begun since, with epochs up to `epoch`.

    `token` is what its stage is called, empty when there is none.
    """

    number: int
    token: str
    epoch: int
    next_id: int


Record = Kept | Undated | Counters | Gone | StageHead | Seal | Book | Mark
encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder(Record).decode


class Frame(NamedTuple):
    """A record and where its frame begins and ends."""

    start: int
    end: int
    record: Record


def framed(record: Record, number: int) -> bytes:
    """Return the record as a frame of the file with this number."""
    return framed_body(encode(record), number)


def framed_body(body: bytes, number: int) -> bytes:
    """Return an encoded record as a frame."""
    return _HEAD.pack(MARK, len(body), crc32(body, number & _SEED)) + body


def frames(data: bytes, number: int) -> Iterator[Frame]:
    """Yield every good frame, also behind bad ones."""
    start, found = 0, None
    while start >= 0:
        found = frame_at(data, start, number)
        if found is None:
            start = data.find(MARK, start + 1)
        else:
            yield found
            start = found.end


def frame_at(data: bytes, start: int, number: int) -> Frame | None:
    """Return the frame that begins there, None when none does."""
    if len(data) - start < _HEAD.size:
        return None
    mark, length, checksum = _HEAD.unpack_from(data, start)
    end = start + _HEAD.size + length
    if mark != MARK or length > _MOST or end > len(data):
        return None
    body = memoryview(data)[start + _HEAD.size : end]
    if crc32(body, number & _SEED) != checksum:
        return None
    try:
        return Frame(start, end, decode(body))
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None  # a record of a later version, or a chance of one in four thousand million


def ranges(ids: list[int]) -> list[tuple[int, int]]:
    """Return ascending ids as inclusive ranges."""
    found: list[tuple[int, int]] = []
    for one in ids:
        if found and found[-1][1] + 1 == one:
            found[-1] = (found[-1][0], one)
        else:
            found.append((one, one))
    return found


def kept(waiting: Waiting) -> Kept:
    """Return a named sample as it is written."""
    sample = waiting.sample
    metrics: dict[str, Value] = sample.metrics
    return Kept(
        waiting.id,
        waiting.domain,
        waiting.device,
        sample.epoch,
        sample.seq,
        sample.time_ms,
        sample.quality,
        metrics,
    )
