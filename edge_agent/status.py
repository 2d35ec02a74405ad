"""How the agent is: one snapshot, made when somebody asks, of which Prometheus and `onestreet edge status` are views.

Whoever may connect to the socket reads JSON documents and can change nothing.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Literal

import msgspec

from exchange.health import WELL, Document, answering_at
from exchange.moments import Moment
from exchange.readings import Value

log = logging.getLogger(__name__)

NAME = "status.sock"
MODE = 0o660  # the agent's user, and the group that its installers may be in


class Socket(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The table `[status]`. `socket` is a path; without one it is `status.sock` in `state_dir`."""

    socket: str = ""


class _Part(msgspec.Struct, frozen=True, kw_only=True):
    """A part of the document: read by another version, too, so unknown keys are left alone."""


class DeviceStatus(_Part, frozen=True, kw_only=True):
    """One device. Units: `age_s` since its last reading, `next_probe_s` from now; None where there is none."""

    id: str
    bus: str
    interval_s: float
    readings: int = 0
    errors: int = 0
    missed: int = 0
    lateness_s: float | None = None
    breaker: Literal["closed", "open", "probing"] = "closed"
    next_probe_s: float | None = None
    age_s: float | None = None
    metrics: dict[str, Value] = {}
    quality: str = ""
    failing: str = ""
    """The kind of error that it has now, and in `reason` its words; empty while it answers."""
    reason: str = ""


class BusStatus(_Part, frozen=True, kw_only=True):
    """One bus. `tried` is whether its link was opened, or could not be; `reason` why it is not open now."""

    id: str
    kind: str
    tried: bool
    is_open: bool
    reason: str = ""
    opened: int = 0
    lost: int = 0
    busy_s: float = 0.0


class UplinkStatus(_Part, frozen=True, kw_only=True):
    """The way to the broker. `for_s` is how long it has been connected, or not."""

    broker: str
    connected: bool
    for_s: float | None = None
    reason: str = ""
    round_trip_s: float | None = None
    unreceipted: int = 0
    parked: int = 0
    resends: int = 0
    probes: int = 0
    stored: int = 0
    refused: int = 0


class OutboxStatus(_Part, frozen=True, kw_only=True):
    """What waits for a receipt. `waiting` is what is not in the outbox yet, `dropped` counts by reason."""

    depth: int
    waiting: int = 0
    size_bytes: int = 0
    written_bytes: int = 0
    hours_left: float | None = None
    dropped: dict[str, int] = {}


class ClockStatus(_Part, frozen=True, kw_only=True):
    """What is known of the time; `jumps` is how often the clock was set."""

    known: bool
    offset_s: float | None = None
    jumps: int = 0


class AgentStatus(_Part, frozen=True, kw_only=True):
    """The whole snapshot.

    Shape: `commands` counts results by who gave the command, `office` or `programme`, and their status.
    """

    v: Literal[1] = 1
    version: str
    gateway: str
    county: str
    site: str
    process: int
    at: Moment
    uptime_s: float
    memory_bytes: int
    uplink: UplinkStatus
    outbox: OutboxStatus
    clock: ClockStatus
    commands: dict[str, dict[str, int]] = {}
    bus: list[BusStatus] = []
    device: list[DeviceStatus] = []

    @property
    def readiness(self) -> str:
        """`ready` with a session at the broker and every bus tried, else what is waited for."""
        waits = [] if self.uplink.connected else ["the broker"]
        waits += [f"bus {bus.id}" for bus in self.bus if not bus.tried]
        return f"waiting for {', '.join(waits)}" if waits else WELL


encode_status = msgspec.json.Encoder().encode
decode_status = msgspec.json.Decoder(AgentStatus).decode


@asynccontextmanager
async def answering_status(
    path: Path, snapshot: Callable[[], AgentStatus], more: Mapping[str, Document] | None = None
) -> AsyncIterator[None]:
    """Give whoever connects to `path` a snapshot, or what of `more` it names.

    Without a socket the agent does its work all the same.
    """

    async def status() -> bytes:
        return encode_status(snapshot())

    async with AsyncExitStack() as served:
        try:
            documents = {"": status, **(more or {})}
            await served.enter_async_context(answering_at(path, documents, mode=MODE))
        except OSError as error:
            reason = f"{path}: {error.strerror or error}"
            log.warning("the status cannot be asked for", extra={"reason": reason})
        yield
