"""The gate between the town's twins and the world: while it is closed, no reading is completed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from device_drivers.kit.driver import Value
from device_drivers.kit.twin import Truth

T = TypeVar("T")


class Gate:
    """Says whether twins may complete readings, and withholds answers that would complete one.

    A closed gate is not a dead line: a device still takes commands and acknowledges them, so that
    an agent can set its devices up before the town speaks. What must not pass is a reading.
    """

    def __init__(self, *, is_open: bool = True) -> None:
        self._open = is_open
        self._withheld = 0
        self._watchers: list[Callable[[], None]] = []

    @property
    def is_open(self) -> bool:
        return self._open

    def open(self) -> None:
        self._move(is_open=True)

    def close(self) -> None:
        self._move(is_open=False)

    def watch(self, watcher: Callable[[], None]) -> None:
        """Call `watcher` whenever the gate has moved."""
        self._watchers.append(watcher)

    def truth(self, record: Truth) -> Truth:
        """Return the truth to give to a twin: it reaches `record` only through the open gate."""

        def complete(values: Mapping[str, Value]) -> None:
            if self._open:
                record(values)
            else:
                self._withheld += 1

        return complete

    def pass_through(self, answer: Callable[[], T]) -> T | None:
        """Return the answer, or None when giving it would have completed a reading."""
        withheld = self._withheld
        given = answer()
        return given if self._withheld == withheld else None

    def _move(self, *, is_open: bool) -> None:
        self._open = is_open
        for watcher in self._watchers:
            watcher()
