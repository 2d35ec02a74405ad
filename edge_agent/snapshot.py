"""How the agent is at this moment, for `onestreet edge status` and Prometheus."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from typing import TYPE_CHECKING

import psutil

from edge_agent.status import (
    AgentStatus,
    BusStatus,
    ClockStatus,
    DeviceStatus,
    OutboxStatus,
    UplinkStatus,
)

if TYPE_CHECKING:
    from edge_agent.agent import Agent
    from edge_agent.attended import Attended

_VERSION = version("onestreet")
_PROCESS = psutil.Process()


def snapshot(agent: Agent) -> AgentStatus:
    """Return the whole of it; nothing is asked of a disk or a device for it."""
    gateway, now_s, boot_ms = agent.config.gateway, time.monotonic(), agent.clock.boot_ms()
    return AgentStatus(
        version=_VERSION,
        gateway=gateway.id,
        county=gateway.county,
        site=gateway.site,
        process=os.getpid(),
        at=datetime.fromtimestamp(agent.clock.now_ms() / 1000, UTC),
        uptime_s=now_s - agent.began_s,
        memory_bytes=_PROCESS.memory_info().rss,
        uplink=_uplink(agent, now_s),
        outbox=OutboxStatus(
            depth=agent.outbox.depth,
            waiting=agent.intake.waiting,
            size_bytes=agent.outbox.size_bytes,
            written_bytes=agent.outbox.bytes_written,
            hours_left=agent.outbox.hours_left(),
            dropped=dict(agent.outbox.dropped),
        ),
        clock=ClockStatus(
            known=agent.clock.known, offset_s=agent.clock.offset_s, jumps=agent.clock.jumped
        ),
        commands=_commands(agent.commands.counts),
        bus=[
            BusStatus(
                id=task.bus.id,
                kind=str(task.bus.__struct_config__.tag),
                tried=task.tried.is_set(),
                is_open=task.is_open,
                reason=task.reason,
                opened=task.opened,
                lost=task.lost,
                busy_s=task.busy_s,
            )
            for task in agent.buses
        ],
        device=[_device(one, now_s, boot_ms) for one in agent.devices.values()],
    )


def _commands(counts: Mapping[str, int]) -> dict[str, dict[str, int]]:
    """Return the counts of `Commands` by who gave the command; what has no giver in its name came by the broker."""
    found: dict[str, dict[str, int]] = {}
    for name, number in counts.items():
        giver, _, status = name.rpartition(" ")
        found.setdefault(giver or "office", {})[status] = number
    return found


def _uplink(agent: Agent, now_s: float) -> UplinkStatus:
    uplink, delivery = agent.uplink, agent.uplink.delivery
    since_s = uplink.connected_at_s
    return UplinkStatus(
        broker="{}:{}".format(*agent.config.broker.address),
        connected=uplink.connected,
        for_s=None if since_s is None else now_s - since_s,
        reason=uplink.last_error,
        round_trip_s=delivery.round_trip_s,
        unreceipted=delivery.unreceipted,
        parked=delivery.parked,
        resends=delivery.resends,
        probes=delivery.probes,
        stored=agent.health.stored,
        refused=agent.health.refused,
    )


def _device(one: Attended, now_s: float, boot_ms: int) -> DeviceStatus:
    health, last = one.health, one.last
    probe_s = health.next_probe_s
    return DeviceStatus(
        id=one.device.id,
        bus=one.device.bus,
        interval_s=one.device.interval_s,
        readings=health.readings,
        errors=health.errors,
        missed=health.missed,
        lateness_s=health.lateness_s,
        breaker=health.breaker,
        next_probe_s=None if probe_s is None else max(0.0, probe_s - now_s),
        age_s=None if one.last_ms is None else (boot_ms - one.last_ms) / 1000,
        metrics={} if last is None else last.metrics,
        quality="" if last is None else last.quality,
        failing=health.failing or "",
        reason=str(health.last_error or "") if health.failing else "",
    )
