"""Truth: what was really measured and completed on the wire, one JSON line per reading."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from device_drivers.kit.driver import Value
from device_drivers.kit.twin import Truth
from simulators.errors import SimulatorError


class TruthEntry(msgspec.Struct, frozen=True):
    """One completed reading.

    Units: `at_ms` wall time in Unix milliseconds; `values` the dictionary's.
    """

    device: str
    domain: str
    at_ms: int
    values: dict[str, Value]


def wall_ms() -> int:
    return time.time_ns() // 1_000_000


class TruthLog:
    """Appends entries to a file; each is with the kernel when `record` returns."""

    def __init__(self, path: Path, *, now_ms: Callable[[], int] = wall_ms) -> None:
        self._path, self._now_ms = path, now_ms
        self._encoder = msgspec.json.Encoder()

    def __enter__(self) -> Self:
        self._file = self._path.open("ab", buffering=0)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def of(self, device: str, domain: str) -> Truth:
        """Return what that device's twin calls for every completed reading."""

        def record(values: Mapping[str, Value]) -> None:
            entry = TruthEntry(device, domain, self._now_ms(), dict(values))
            self._file.write(self._encoder.encode(entry) + b"\n")

        return record


def read_truth(path: Path) -> Iterator[TruthEntry]:
    """Yield a truth file's entries in order. Raises: SimulatorError naming the line."""
    decoder = msgspec.json.Decoder(TruthEntry)
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                yield decoder.decode(line)
            except msgspec.DecodeError as error:
                raise SimulatorError(f"{path}:{number}: not a truth entry: {error}") from error
