"""The durable part of the outbox: samples in append-only files of about a megabyte, oldest first.

A segment's name is the id of its first sample. It begins with the counters, goes on with samples, and is closed with a
seal that says what it holds, so that a start need not read it. Which of its samples have left is noted in a file beside
it; when all have, both are removed. The newest is never removed: it proves how far the counters had come.

What turns out damaged, at a start or later, costs the samples in it that cannot be read. The good ones move to a new
file of the same name and the damaged one is set aside.
"""

from __future__ import annotations

import logging
import struct
import sys
from array import array
from bisect import bisect_left, bisect_right
from collections import Counter as Tally
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from zlib import crc32

from edge_agent.outbox.disk import BLOCK, Disk
from edge_agent.outbox.records import (
    Counter,
    Counters,
    Kept,
    Seal,
    Waiting,
    advance,
    frame_at,
    framed,
    framed_body,
    frames,
    ranges,
)
from exchange.trouble import Trouble

log = logging.getLogger(__name__)

SEGMENT_HOURS = 1  # then a new one is begun, so that age can be dropped by the hour
LOADED = 6
"""Segments whose index is in memory: the window of the delivery reaches over two or three."""
SET_ASIDE = 5  # damaged files that are kept for whoever wants to look
_NUMBER = "[0-9]" * 20
"""A file of another name in the folder, such as a copy that somebody made, is none of ours."""
SEALED = b"SEAL"
_TRAILER = struct.Struct("<4sI")
_GONE = struct.Struct("<QQI")
Series = tuple[str, int]
"""A device and its epoch."""


class Index:
    """Where each sample of a segment is. Shape: parallel arrays, ascending by id; `gone` has a byte for each."""

    def __init__(self) -> None:
        """Empty."""
        self.ids = array("Q")
        self.starts = array("I")
        self.ends = array("I")
        self.gone = bytearray()
        self.domains: list[str] = []
        """Of each sample: that of a device may be corrected on the way."""
        self.series: dict[Series, tuple[array[int], array[int]]] = {}
        """To parallel seqs and positions."""
        self.newest_ms = 0
        self.counters: dict[str, Counter] = {}
        self.next_id = 0

    def add(self, sample: Kept, start: int, end: int) -> None:
        """Note a sample behind all others."""
        position = len(self.ids)
        self.ids.append(sample.id)
        self.starts.append(start)
        self.ends.append(end)
        self.gone.append(0)
        self.domains.append(sys.intern(sample.domain))
        name = (sample.device, sample.epoch)
        if (series := self.series.get(name)) is None:
            series = self.series[name] = (array("Q"), array("I"))
        series[0].append(sample.seq)
        series[1].append(position)
        self.newest_ms = max(self.newest_ms, sample.time_ms)

    def positions(self, name: Series, seqs: Iterable[int]) -> Iterator[int]:
        """Yield where those seqs of a series are that are here and have not left."""
        if (series := self.series.get(name)) is None:
            return
        known, positions = series
        for seq in seqs:
            at = bisect_left(known, seq)
            if at < len(known) and known[at] == seq and not self.gone[positions[at]]:
                yield positions[at]

    def position(self, number: int) -> int | None:
        """Return where the sample with this id is."""
        at = bisect_left(self.ids, number)
        return at if at < len(self.ids) and self.ids[at] == number else None

    def drop(self, first: int, last: int) -> None:
        """Note that the samples with these ids have left."""
        start, end = bisect_left(self.ids, first), bisect_right(self.ids, last)
        self.gone[start:end] = b"\1" * (end - start)


class Segment:
    """One file, by its index or by its seal."""

    def __init__(self, path: Path) -> None:
        """Nothing is read yet."""
        self.path = path
        self.number = int(path.stem)
        self.aside = path.with_suffix(".gone")
        self.size = 0
        self.sealed = False
        self.last_id = self.number
        self.newest_ms = 0
        self.begun_ms = 0  # by the boot clock
        self.written_ms: int | None = None  # as well, and by this run
        self.count = 0
        self.spans: dict[Series, tuple[int, int]] = {}
        self.live: dict[str, int] = {}
        """Samples that have not left, by domain."""
        self.unnoted: list[tuple[int, int]] = []
        """Ranges of ids that have left, which the disk did not take down yet."""

    @property
    def depth(self) -> int:
        """Samples that have not left."""
        return sum(self.live.values())

    def take_over(self, index: Index) -> None:
        """Say of itself what its index says."""
        self.count = len(index.ids)
        self.last_id = index.ids[-1] if index.ids else self.number
        self.newest_ms = index.newest_ms
        self.spans = {name: (seqs[0], seqs[-1]) for name, (seqs, _) in index.series.items()}
        there = zip(index.domains, index.gone, strict=True)
        self.live = dict(Tally(domain for domain, is_gone in there if not is_gone))

    def believe(self, seal: Seal) -> None:
        """Say of itself what its seal says; nothing has left it."""
        self.count, self.last_id, self.newest_ms = seal.count, seal.last_id, seal.newest_ms
        for domain, device, epoch, first, last, count in seal.series:
            low, high = self.spans.get((device, epoch), (first, last))
            self.spans[device, epoch] = (min(low, first), max(high, last))
            self.live[domain] = self.live.get(domain, 0) + count

    def seal(self, index: Index) -> bytes:
        """Return what closes it."""
        series = []
        for name, (seqs, positions) in index.series.items():
            of: dict[str, list[int]] = {}
            for seq, position in zip(seqs, positions, strict=True):
                of.setdefault(index.domains[position], []).append(seq)
            series += [(domain, *name, own[0], own[-1], len(own)) for domain, own in of.items()]
        frame = framed(Seal(self.count, self.last_id, self.newest_ms, series), self.number)
        return frame + _TRAILER.pack(SEALED, len(frame))


class Segments:
    """All of them. Whatever writes or reads may raise OSError; then nothing has changed."""

    def __init__(self, folder: Path, disk: Disk, *, segment_bytes: int) -> None:
        """Nothing is opened yet."""
        self.folder = folder
        self.unsound = folder / "unsound"
        self.damaged = 0
        """Samples that were lost to damage, as far as that can be counted."""
        self.torn = False
        """Whether the newest file ended, at the start, with what was being written when everything stopped."""
        self._disk = disk
        self._segment_bytes = segment_bytes
        self._all: list[Segment] = []
        self._indexes: OrderedDict[int, Index] = OrderedDict()
        self._counters: dict[str, Counter] = {}
        self._next_id = 0
        self._unmended: list[Segment] = []
        self._unreadable = ""  # why samples could not be forgotten
        self._trouble = Trouble(
            log, "receipted samples stay on disk for now", "receipted samples leave the disk again"
        )

    def open(self, boot_ms: int) -> None:
        """Find out what is there."""
        self._all = [Segment(path) for path in sorted(self.folder.glob(f"{_NUMBER}.seg"))]
        for segment in self._all:
            segment.begun_ms = boot_ms
            is_last = segment is self._all[-1]
            seal = None if is_last else self._seal_of(segment)
            if seal is not None and not segment.aside.exists():
                segment.believe(seal)
                continue
            index = self._loaded(segment, mend=False)
            if is_last:
                self._counters = index.counters
                self._next_id = max(index.next_id, segment.last_id + 1)
        for stray in self.folder.glob(f"{_NUMBER}.gone"):
            if not stray.with_suffix(".seg").exists():
                stray.unlink(missing_ok=True)
        self.note()

    @property
    def is_damaged(self) -> bool:
        """Whether something that was found at the start is to be mended."""
        return bool(self._unmended)

    def mend(self) -> None:
        """Put what is good of damaged files into their place; the doubt that they raise is noted by now."""
        unmended, self._unmended = self._unmended, []
        for segment in unmended:
            self._indexes.pop(segment.number, None)
            self._loaded(segment)

    def settle(self) -> None:
        """Make what was found at the start durable: a killed process may have been about to."""
        if self._all:
            self._disk.settle(self._all[-1].path, self._all[-1].size)

    def counters(self) -> tuple[dict[str, Counter], int]:
        """Return how far the counters and the ids had come, as far as can be seen here at the start."""
        return dict(self._counters), self._next_id

    # --------------------------------------------------------------------------------------------------- state

    @property
    def size(self) -> int:
        """Bytes on disk, but for what the file system adds."""
        return sum(segment.size for segment in self._all)

    @property
    def depth(self) -> int:
        """Samples here."""
        return sum(segment.depth for segment in self._all)

    @property
    def last_id(self) -> int:
        """The id of the newest sample that was ever here; 0 when there was none."""
        newest = [segment.last_id for segment in self._all if segment.count]
        return newest[-1] if newest else 0

    def of_domain(self, domain: str) -> int:
        """Return how many samples of a domain are here."""
        return sum(segment.live.get(domain, 0) for segment in self._all)

    @property
    def oldest(self) -> Segment | None:
        """The segment that a cap drops first; the newest is never dropped."""
        return self._all[0] if len(self._all) > 1 else None

    # ------------------------------------------------------------------------------------------------- writing

    def append(
        self,
        samples: Sequence[tuple[Kept, bytes]],
        counters: dict[str, Counter],
        next_id: int,
        boot_ms: int,
    ) -> None:
        """Make samples durable. Shape: each with its encoding; `counters` are those before the samples or later."""
        segment = self._all[-1] if self._all else None
        if segment is None or segment.sealed or self._is_full(segment, boot_ms):
            if segment is not None:
                self._seal(segment)
            segment = Segment(self.folder / f"{samples[0][0].id:020d}.seg")
            segment.begun_ms = boot_ms
        is_new = not segment.size
        data = bytearray(framed(Counters(counters, next_id), segment.number) if is_new else b"")
        places = []
        for _, body in samples:
            start = segment.size + len(data)
            data += framed_body(body, segment.number)
            places.append((start, segment.size + len(data)))
        index = Index() if is_new else self._index(segment)
        self._disk.append(segment.path, bytes(data), segment.size, is_new=is_new)
        if is_new:
            if segment not in self._all:  # it may be there by its name alone, after a power cut
                self._all.append(segment)
            self._remember(segment, index)
        segment.size += len(data)
        for (sample, _), place in zip(samples, places, strict=True):
            index.add(sample, *place)
            name = (sample.device, sample.epoch)
            first, _ = segment.spans.get(name, (sample.seq, 0))
            segment.spans[name] = (first, sample.seq)
            segment.live[sample.domain] = segment.live.get(sample.domain, 0) + 1
        segment.count, segment.last_id = len(index.ids), index.ids[-1]
        segment.newest_ms, segment.written_ms = index.newest_ms, boot_ms
        if is_new:
            self.note()

    def _is_full(self, segment: Segment, boot_ms: int) -> bool:
        age_ms = boot_ms - segment.begun_ms
        return segment.size >= self._segment_bytes or age_ms >= SEGMENT_HOURS * 3_600_000

    def _seal(self, segment: Segment) -> None:
        if not segment.sealed:
            data = segment.seal(self._index(segment))
            self._disk.append(segment.path, data, segment.size, is_new=False)
            segment.size += len(data)
            segment.sealed = True

    def drop(self, segment: Segment) -> int:
        """Remove the oldest segment with what is in it; return how many samples that were."""
        self._remove(segment)
        return segment.depth

    @property
    def is_stuck(self) -> bool:
        """Whether all has left the newest segment, and the disk takes no note of that."""
        return bool(self._all) and not self._all[-1].depth and bool(self._all[-1].unnoted)

    def release(self) -> None:
        """Remove the newest segment, from which all has left; what it proves is noted elsewhere by now."""
        self._remove(self._all[-1])

    def _remove(self, segment: Segment) -> None:
        self._disk.remove(segment.path, segment.aside)
        self._all.remove(segment)
        self._indexes.pop(segment.number, None)

    # ------------------------------------------------------------------------------------------------- reading

    def between(self, after_id: int, up_to_id: int, limit: int) -> list[Waiting]:
        """Return samples in the order of taking."""
        found: list[Waiting] = []
        for segment in list(self._all):
            if len(found) >= limit or segment.number > up_to_id:
                break
            if segment.last_id <= after_id or not segment.depth:
                continue
            index = self._index(segment)
            at, positions = bisect_right(index.ids, after_id), list[int]()
            end = bisect_right(index.ids, up_to_id)
            while at < end and len(positions) < limit - len(found):
                if not index.gone[at]:
                    positions.append(at)
                at += 1
            found += self._read(segment, index, positions)
        return found

    def find(self, wanted: dict[Series, list[int]]) -> list[Waiting]:
        """Return those of the named samples that are here, by ascending id."""
        found: list[Waiting] = []
        for segment, names in self._holding(wanted):
            index = self._index(segment)
            positions = [at for name in names for at in index.positions(name, wanted[name])]
            found += self._read(segment, index, sorted(positions))
        return found

    def forget(self, wanted: dict[Series, list[int]]) -> set[Series]:
        """Let go of the named samples: at once for everybody who asks; on disk now, or when it takes notes again.

        Return the series of which a segment cannot be read now: those samples stay.
        """
        unread: set[Series] = set()
        self._unreadable = ""
        for segment, names in self._holding(wanted):
            try:
                index = self._index(segment)
            except OSError as error:
                unread.update(names)
                self._unreadable = str(error)
                continue
            gone: list[int] = []
            for name in names:
                if positions := list(index.positions(name, wanted[name])):
                    gone += positions
                    for position in positions:
                        segment.live[index.domains[position]] -= 1
            for position in gone:
                index.gone[position] = 1
            segment.unnoted += ranges(sorted(index.ids[position] for position in gone))
        self.note()
        return unread

    def note(self) -> None:
        """Write down what has left, and remove the files from which everything has."""
        reasons = [self._unreadable] if self._unreadable else []
        for segment in list(self._all):  # removals before notes: they make the room for those
            try:
                if not segment.depth and segment is not self._all[-1]:
                    self._remove(segment)
            except OSError as error:
                reasons.append(str(error))
        for segment in self._all:
            try:
                if segment.unnoted:
                    data = b"".join(_gone(*one) for one in segment.unnoted)
                    self._disk.note(segment.aside, data, unit=_GONE.size)
                    segment.unnoted = []
            except OSError as error:
                reasons.append(str(error))
        if reasons:
            self._trouble.report(reasons[0])
        else:
            self._trouble.over()

    def _holding(self, wanted: dict[Series, list[int]]) -> Iterator[tuple[Segment, list[Series]]]:
        """Yield the segments in which some of the named samples may be, with the series that it is about."""
        reach = {name: (min(seqs), max(seqs)) for name, seqs in wanted.items()}
        for segment in list(self._all):
            if not segment.depth:
                continue
            names = [
                name
                for name, (low, high) in reach.items()
                if (span := segment.spans.get(name)) and low <= span[1] and high >= span[0]
            ]
            if names:
                yield segment, names

    def _read(self, segment: Segment, index: Index, positions: Sequence[int]) -> list[Waiting]:
        if not positions:
            return []
        first, last = index.starts[positions[0]], index.ends[positions[-1]]
        try:
            with segment.path.open("rb") as file:
                file.seek(first)
                data = file.read(last - first)
        except OSError:
            data = b""
        found = list(_decoded(data, first, segment, index, positions))
        if len(found) < len(positions):  # what was good is not any more
            ids = [index.ids[position] for position in positions]
            del self._indexes[segment.number]
            index = self._index(segment)
            there = [at for at in map(index.position, ids) if at is not None]
            found = list(_decoded(_whole(segment.path), 0, segment, index, there))
        return found

    # ------------------------------------------------------------------------------------------------- indexes

    def _index(self, segment: Segment) -> Index:
        """Return a segment's index, reading it when it is not in memory."""
        index = self._indexes.get(segment.number)
        if index is None:
            return self._loaded(segment)
        self._indexes.move_to_end(segment.number)
        return index

    def _remember(self, segment: Segment, index: Index) -> None:
        self._indexes[segment.number] = index
        while len(self._indexes) > LOADED:
            oldest = next(number for number in self._indexes if number != self._all[-1].number)
            del self._indexes[oldest]

    def _loaded(self, segment: Segment, *, mend: bool = True) -> Index:
        """Read a segment; one that is damaged is mended first, or later."""
        believed, data = segment.count, _whole(segment.path)
        index, end, holes = _indexed(data, segment)
        if (holes or len(index.ids) < believed) and not mend:
            self._unmended.append(segment)
        elif holes or len(index.ids) < believed:
            self.damaged += max(1, believed - len(index.ids))
            self._mend(segment, data, len(index.ids))
            index, end, _ = _indexed(_whole(segment.path), segment)
        elif end != len(data) or not index.next_id:
            # what was being written when everything stopped; nobody was told that it is there
            self.torn |= segment is self._all[-1]
        segment.size = end
        for first, last in [*_departed(segment.aside), *segment.unnoted]:
            index.drop(first, last)
        segment.take_over(index)
        self._remember(segment, index)
        return index

    def _mend(self, segment: Segment, data: bytes, count: int) -> None:
        """Set a damaged file aside and put what is good of it into its place."""
        good = [
            data[frame.start : frame.end]
            for frame in frames(data, segment.number)
            if not isinstance(frame.record, Seal)
        ]
        told = {"file": segment.path.name, "samples_left": count}
        try:
            told["aside"] = str(set_aside(segment.path, self.unsound, data))
            self._disk.replace(segment.path, b"".join(good))
        except OSError as error:  # then it stays, and what is good in it is used all the same
            told["reason"] = str(error)
        log.error("a part of the outbox is damaged; what is good of it is kept", extra=told)

    def _seal_of(self, segment: Segment) -> Seal | None:
        with segment.path.open("rb") as file:
            segment.size = file.seek(0, 2)
            if segment.size < _TRAILER.size:
                return None
            file.seek(segment.size - _TRAILER.size)
            mark, length = _TRAILER.unpack(file.read())
            if mark != SEALED or length > segment.size - _TRAILER.size:
                return None
            file.seek(segment.size - _TRAILER.size - length)
            frame = frame_at(file.read(length), 0, segment.number)
        if frame is None or not isinstance(frame.record, Seal):
            return None
        segment.sealed = True
        return frame.record


def _indexed(data: bytes, segment: Segment) -> tuple[Index, int, int]:
    """Return a file's index, where what is good of it ends, and how many holes are before that."""
    index, end, holes = Index(), 0, 0
    segment.sealed = False
    for frame in frames(data, segment.number):
        holes += frame.start != end
        end = frame.end
        match frame.record:
            case Kept() as sample:
                index.add(sample, frame.start, frame.end)
                counter = Counter(sample.epoch, sample.seq + 1, sample.time_ms)
                advance(index.counters, sample.device, counter)
            case Counters() as begun:
                index.counters.update(begun.counters)
                index.next_id = begun.next_id
            case Seal() as seal:
                trailer = _TRAILER.pack(SEALED, frame.end - frame.start)
                segment.sealed = data[end:] == trailer and seal.count == len(index.ids)
                end += len(trailer) if segment.sealed else 0
                break
            case _:
                pass
    return index, end, holes


def _decoded(
    data: bytes, offset: int, segment: Segment, index: Index, positions: Iterable[int]
) -> Iterator[Waiting]:
    """Yield what can be read of some samples; `data` is what stands at an offset of the file."""
    for position in positions:
        frame = frame_at(data, index.starts[position] - offset, segment.number)
        if frame is not None and isinstance(frame.record, Kept):
            yield frame.record.waiting


def _whole(path: Path) -> bytes:
    """Return a file, with zeros where the disk does not give it back any more."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError:
        data = bytearray(path.stat().st_size)
        with path.open("rb", buffering=0) as file:
            for start in range(0, len(data), BLOCK):
                file.seek(start)
                with suppress(OSError):
                    block = file.read(BLOCK)
                    data[start : start + len(block)] = block
        return bytes(data)


def _gone(first: int, last: int) -> bytes:
    head = _GONE.pack(first, last, 0)[:-4]
    return head + crc32(head).to_bytes(4, "little")


def _departed(path: Path) -> Iterator[tuple[int, int]]:
    """Yield the ranges of ids that have left a segment; what is not readable stays and is sent again."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return
    for start in range(0, len(data) - _GONE.size + 1, _GONE.size):
        first, last, checksum = _GONE.unpack_from(data, start)
        if crc32(data[start : start + _GONE.size - 4]) == checksum:
            yield first, last


def set_aside(path: Path, unsound: Path, data: bytes | None = None) -> Path:
    """Keep what is not sound where it harms nobody, and only the newest few of it. Raises: OSError.

    The file moves there; with `data` that is written there and the file stays.
    """
    unsound.mkdir(exist_ok=True)
    there = sorted(
        (int(head), one)
        for one in unsound.iterdir()
        if (head := one.name.partition("-")[0]).isdecimal()
    )
    number = there[-1][0] + 1 if there else 1
    for _, old in there[: max(0, len(there) - SET_ASIDE + 1)]:
        old.unlink()
    aside = unsound / f"{number}-{path.name}"
    if data is None:
        path.rename(aside)
    else:
        aside.write_bytes(data)
    return aside
