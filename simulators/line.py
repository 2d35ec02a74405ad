"""What every line that hosts twins offers."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Protocol, Self, TypeAlias

Endpoint: TypeAlias = dict[str, str | int]
"""How a client reaches a line: its `kind` and `port`, `host` and `port`, or `dbus`."""


class LineTasks(asyncio.TaskGroup):
    """The tasks of a line: one that fails ends the line, and an error of its user stays what it is."""

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not asyncio.CancelledError:
            kind = error = trace = None  # a task group would wrap it
        await super().__aexit__(kind, error, trace)


class Line(Protocol):
    """A hosted line: twins are on it while its context lasts."""

    @property
    def endpoint(self) -> Endpoint: ...

    async def quiet(self) -> None:
        """Wait, the gate being closed, until no reading is on its way to a client any more."""
        ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...
