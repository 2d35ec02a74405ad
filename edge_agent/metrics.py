"""The agent for Prometheus: the snapshot as text, and whether it lives and is ready.

The text format is written here: the client library would be a thirtieth of what a gateway's agent may weigh, for
counters and gauges alone.

Source: Prometheus, exposition formats: the text format.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Annotated, Generic, Literal, NamedTuple, TypeVar

import msgspec

from edge_agent.status import AgentStatus, BusStatus, DeviceStatus
from exchange.endpoint import EXPOSITION, Answer, serving, verdict
from exchange.health import Judge
from exchange.topics import END

T = TypeVar("T")
log = logging.getLogger(__name__)

ALIVE = "alive"


class Endpoint(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The table `[metrics]`: an address and a port, such as 127.0.0.1:9101 or [::1]:9101; nobody answers without."""

    listen: Annotated[
        str, msgspec.Meta(pattern=rf"^$|^(\[[0-9A-Fa-f:.]+\]|[\w.-]+):\d{{1,5}}{END}")
    ] = ""

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        host, _, port = self.listen.rpartition(":")
        return host.strip("[]"), int(port)


class _Family(NamedTuple, Generic[T]):
    """A metric: its kind, its name, what it is, and where in the snapshot it is read; None has no sample."""

    kind: Literal["counter", "gauge"]
    name: str
    words: str
    read: Callable[[T], float | None]


_AGENT: Sequence[_Family[AgentStatus]] = (
    _Family("gauge", "uptime_seconds", "How long the agent runs.", lambda of: of.uptime_s),
    _Family(
        "gauge",
        "resident_memory_bytes",
        "Memory that the agent's process takes.",
        lambda of: of.memory_bytes,
    ),
    _Family(
        "gauge",
        "uplink_connected",
        "1 while there is a session at the broker.",
        lambda of: of.uplink.connected,
    ),
    _Family(
        "gauge",
        "uplink_round_trip_seconds",
        "From the first sending of what was receipted last to its receipt.",
        lambda of: of.uplink.round_trip_s,
    ),
    _Family(
        "gauge",
        "delivery_unreceipted",
        "Samples sent that wait for their receipt, within the window.",
        lambda of: of.uplink.unreceipted,
    ),
    _Family(
        "gauge",
        "delivery_parked",
        "Samples that were sent again too often and are tried once in a while.",
        lambda of: of.uplink.parked,
    ),
    _Family(
        "counter",
        "delivery_resends",
        "Packs sent again because their receipt did not come.",
        lambda of: of.uplink.resends,
    ),
    _Family(
        "counter",
        "delivery_probes",
        "Packs sent again because no receipt came at all.",
        lambda of: of.uplink.probes,
    ),
    _Family(
        "counter",
        "samples_stored",
        "Samples whose receipt says that the store has them.",
        lambda of: of.uplink.stored,
    ),
    _Family(
        "counter",
        "samples_refused",
        "Samples whose receipt says that they are refused.",
        lambda of: of.uplink.refused,
    ),
    _Family(
        "gauge",
        "intake_waiting",
        "Samples that were measured and are not in the outbox yet.",
        lambda of: of.outbox.waiting,
    ),
    _Family("gauge", "outbox_samples", "Samples in the outbox.", lambda of: of.outbox.depth),
    _Family("gauge", "outbox_size_bytes", "Size of the outbox.", lambda of: of.outbox.size_bytes),
    _Family(
        "counter",
        "outbox_written_bytes",
        "Bytes that the outbox gave the disk to write.",
        lambda of: of.outbox.written_bytes,
    ),
    _Family(
        "gauge",
        "outbox_left_seconds",
        "How long the outbox takes what comes in now, until it drops.",
        lambda of: None if of.outbox.hours_left is None else 3600 * of.outbox.hours_left,
    ),
    _Family(
        "gauge",
        "clock_known",
        "1 when the time is known; before, samples wait.",
        lambda of: of.clock.known,
    ),
    _Family(
        "gauge",
        "clock_offset_seconds",
        "How far the clock is off, as far as the kernel can tell.",
        lambda of: of.clock.offset_s,
    ),
    _Family("counter", "clock_jumps", "How often the clock was set.", lambda of: of.clock.jumps),
)
_BUS: Sequence[_Family[BusStatus]] = (
    _Family("gauge", "bus_open", "1 while the bus is open.", lambda of: of.is_open),
    _Family("counter", "bus_opens", "How often the bus was opened.", lambda of: of.opened),
    _Family("counter", "bus_losses", "How often the bus was lost.", lambda of: of.lost),
    _Family(
        "counter",
        "bus_busy_seconds",
        "How long exchanges have held the bus.",
        lambda of: of.busy_s,
    ),
)
_DEVICE: Sequence[_Family[DeviceStatus]] = (
    _Family("counter", "device_readings", "Readings that the device gave.", lambda of: of.readings),
    _Family("counter", "device_errors", "Readings that failed.", lambda of: of.errors),
    _Family(
        "counter",
        "device_missed",
        "Polls that were never made because their time had passed.",
        lambda of: of.missed,
    ),
    _Family(
        "gauge",
        "device_lateness_seconds",
        "How much later than planned the last poll was.",
        lambda of: of.lateness_s,
    ),
    _Family(
        "gauge",
        "device_breaker_open",
        "1 while the device is only probed, because it did not answer.",
        lambda of: of.breaker != "closed",
    ),
)


def exposition(status: AgentStatus) -> str:
    """Return a snapshot as Prometheus reads it."""
    return "".join(f"{line}\n" for line in _lines(status))


def _lines(status: AgentStatus) -> Iterator[str]:
    yield from _family("gauge", "build_info", "1; what runs.", [({"version": status.version}, 1)])
    for agent in _AGENT:
        yield from _family(agent.kind, agent.name, agent.words, [({}, agent.read(status))])
    yield from _family(
        "counter",
        "outbox_dropped",
        "Samples that the outbox let go without a receipt, by reason.",
        [({"reason": reason}, number) for reason, number in status.outbox.dropped.items()],
    )
    yield from _family(
        "counter",
        "commands",
        "Commands by who gave them and what became of them.",
        [
            ({"by": giver, "status": name}, number)
            for giver, results in status.commands.items()
            for name, number in results.items()
        ],
    )
    for bus in _BUS:
        samples = [({"bus": one.id}, bus.read(one)) for one in status.bus]
        yield from _family(bus.kind, bus.name, bus.words, samples)
    for device in _DEVICE:
        of = [(_labels(one), device.read(one)) for one in status.device]
        yield from _family(device.kind, device.name, device.words, of)
    yield from _family(
        "gauge",
        "device_last_reading_timestamp_seconds",
        "When the device's last reading was, in Unix time; nothing while the time is not known.",
        [(_labels(one), _last_reading_s(status, one)) for one in status.device],
    )


def _labels(device: DeviceStatus) -> dict[str, str]:
    return {"bus": device.bus, "device": device.id}


def _last_reading_s(status: AgentStatus, device: DeviceStatus) -> float | None:
    """A moment, not an age: who scrapes seldom, or in vain, sees it grow older."""
    if device.age_s is None or not status.clock.known:
        return None
    return round(status.at.timestamp() - device.age_s, 3)


def _family(
    kind: str, name: str, words: str, samples: Sequence[tuple[Mapping[str, str], float | None]]
) -> Iterator[str]:
    name = f"onestreet_edge_{name}" + ("_total" if kind == "counter" else "")
    yield f"# HELP {name} {words}"
    yield f"# TYPE {name} {kind}"
    for labels, value in samples:
        if value is not None:
            inner = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels.items())
            yield f"{name}{'{' + inner + '}' if inner else ''} {float(value)!r}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


@asynccontextmanager
async def answering_scrapes(
    endpoint: Endpoint, snapshot: Callable[[], AgentStatus], alive: Judge
) -> AsyncIterator[None]:
    """Answer at /metrics, /healthz and /readyz; `alive` says `alive`, or what hangs.

    A port that cannot be had is said; the agent does its work all the same.
    """

    async def metrics() -> Answer:
        return Answer(exposition(snapshot()), kind=EXPOSITION)

    async def ready() -> str:
        return snapshot().readiness

    pages = {"/metrics": metrics, "/healthz": verdict(alive, ALIVE), "/readyz": verdict(ready)}
    async with AsyncExitStack() as served:
        if endpoint.listen:
            try:
                await served.enter_async_context(serving(*endpoint.address, pages))
            except (OSError, OverflowError) as error:  # a port above 65535, too
                reason = f"{endpoint.listen}: {error}"
                log.warning("metrics cannot be asked for", extra={"reason": reason})
        yield
