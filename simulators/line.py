"""What every line that hosts twins offers."""

from __future__ import annotations

from types import TracebackType
from typing import Protocol, Self, TypeAlias

Endpoint: TypeAlias = dict[str, str | int]
"""How a client reaches a line: its `kind` and `port`, `host` and `port`, or `dbus`."""


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
