"""The edge agent: reads the devices of one gateway and delivers what they say. One process, one TaskGroup."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from device_drivers.kit.driver import Reading
from edge_agent.buses import BusTask, Line
from edge_agent.config import Config, Device, read_config
from edge_agent.gateway_device import METRICS, GatewayDevice
from edge_agent.health import Health
from edge_agent.intake import Intake, named
from edge_agent.outbox import Outbox, OutboxBlocked, Waiting
from edge_agent.uplink import Message, Uplink
from exchange.errors import ConfigError
from exchange.runtime import log_to_stderr, notify, run, stop_on_signals
from exchange.states import Descriptor, State, encode_state
from exchange.topics import Topic

log = logging.getLogger(__name__)

OPEN_S = 10.0  # a bus that is neither open nor lost by then is not waited for
EXCHANGE_S = 5.0  # told to stop, exchanges that are under way get this long
CANCEL_AGAIN_S = 2.0
KEEP_S = 5.0  # and what they gave gets this long to reach the disk


class Agent:
    """One gateway's agent."""

    def __init__(
        self, config: Config, file: str, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`file` names the configuration in errors; delivery keeps time by `clock`. Raises: ConfigError."""
        self.config = config
        self._file = file
        config.broker.context(file)  # a file that is missing now is said now
        config.broker.password(file)
        self.health = Health([device.id for device in config.device])
        self.outbox = Outbox(Path(config.gateway.state_dir) / "outbox.sqlite")
        self._since = datetime.now(UTC)
        self._epochs: dict[str, int] = {}
        self._metrics = {device.id: _metrics(device) for device in config.device}
        self._stop_buses = asyncio.Event()
        self._intake = Intake(self.outbox, self._taken)
        self.uplink = Uplink(
            config,
            self.outbox,
            self.health,
            states=self._states,
            password=partial(config.broker.password, file),
            tls=partial(config.broker.context, file),
            clock=clock,
        )
        self._gateway = GatewayDevice(
            config.gateway, self.outbox, self.uplink.delivery, self.health
        )
        lines = [
            Line(device, device.package.driver(device.settings), self.health.devices[device.id])
            for device in config.device
        ]
        self._buses = [
            BusTask(bus, mine, self._reading, self._stop_buses)
            for bus in config.bus
            if (mine := [line for line in lines if line.device.bus == bus.id])
        ]

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until `stop` is set, then drain. Raises: ConfigError when the outbox cannot be opened."""
        try:
            await self.outbox.open()
        except OutboxBlocked as error:
            allowed = f"must be a folder that this agent alone can write to: {error}"
            folder = self.config.gateway.state_dir
            raise ConfigError(self._file, "gateway.state_dir", folder, allowed) from error
        try:
            self.uplink.will = self._gateway_state(await self._epoch(self.config.gateway.id), None)
            async with asyncio.TaskGroup() as group:
                intake = group.create_task(self._intake.run())
                uplink = group.create_task(self.uplink.run())
                gateway = group.create_task(self._gateway.run(self._intake))
                buses = [group.create_task(bus.run()) for bus in self._buses]
                await self._ready(stop)
                await stop.wait()
                notify("STOPPING=1")
                log.info("draining", extra={"outbox": self.outbox.depth})
                self._stop_buses.set()
                if buses:
                    await asyncio.wait(buses, timeout=EXCHANGE_S)
                await self._keep()
                await self._drain()
                await _end(*buses, gateway, intake, uplink)
            await self.uplink.farewell()
        finally:
            await self.outbox.close()
        log.info("stopped", extra={"outbox": self.outbox.depth})

    async def _ready(self, stop: asyncio.Event) -> None:
        """Say ready when every bus was tried: a dead bus never stops the others."""

        async def all_tried() -> None:
            for bus in self._buses:
                await bus.tried.wait()

        ends = [asyncio.create_task(all_tried()), asyncio.create_task(_until(stop))]
        try:
            await asyncio.wait(ends, timeout=OPEN_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for end in ends:
                end.cancel()
        notify("READY=1")
        log.info("ready", extra={"buses": len(self._buses), "devices": len(self.config.device)})

    async def _keep(self) -> None:
        """Wait until everything that was read is on disk, or the time is up."""
        try:
            async with asyncio.timeout(KEEP_S):
                await self._intake.drained()
        except TimeoutError:
            log.error("samples could not be kept", extra={"samples": self._intake.waiting})

    async def _drain(self) -> None:
        """Wait until the outbox holds nothing of a device any more, or the time is up.

        The gateway's own samples go on meanwhile: their receipts prove what was lost on the way.
        """
        try:
            async with asyncio.timeout(self.config.delivery.drain_s):
                while True:
                    self.uplink.receipted.clear()
                    if not await self.outbox.count(excluding_domain="gateway"):
                        return
                    await self.uplink.receipted.wait()
        except TimeoutError:
            log.warning(
                "not everything was receipted; it stays in the outbox",
                extra={"outbox": self.outbox.depth},
            )

    async def _reading(self, line: Line, reading: Reading) -> None:
        await self._intake.reading(line.device, reading)

    def _taken(self, waiting: list[Waiting]) -> None:
        for one in waiting:
            if self._epochs.get(one.device) != one.sample.epoch:
                if one.device in self._epochs:
                    log.warning(
                        "the clock was set back; a new epoch begins", extra={"device": one.device}
                    )
                    self.uplink.republish_states()
                self._epochs[one.device] = one.sample.epoch
            known = self._metrics.get(one.device)
            if known is not None and not one.sample.metrics.keys() <= known:
                known.update(one.sample.metrics)  # an advertiser says only on the air what it has
                self.uplink.republish_states()
        self.uplink.wake()

    # ------------------------------------------------------------------------------------------------- states

    async def _states(self) -> list[Message]:
        """Return every retained state as it is now."""
        gateway = self.config.gateway
        epoch = await self._epoch(gateway.id)
        self.uplink.will = self._gateway_state(epoch, None)
        states = [self._gateway_state(epoch, self._since)]
        for device in self.config.device:
            epoch = await self._epoch(device.id)
            states.append(
                (self._topic(device.domain, device.id), self._device_state(device, epoch))
            )
        return states

    async def _epoch(self, device: str) -> int:
        epoch = await self.outbox.epoch_of(device, round(time.time() * 1000))
        self._epochs[device] = epoch
        return epoch

    def _topic(self, domain: str, device: str) -> str:
        gateway = self.config.gateway
        return str(Topic(gateway.county, gateway.site, gateway.id, domain, device, "state"))

    def _gateway_state(self, epoch: int, since: datetime | None) -> Message:
        gateway = self.config.gateway
        state = State(
            v=1,
            online=since is not None,
            since=since,
            interval_s=gateway.interval_s,
            epoch=epoch,
            descriptor=Descriptor(
                label=gateway.label,
                location=gateway.location,
                township=gateway.township,
                metrics=dict.fromkeys(METRICS, gateway.interval_s),
            ),
        )
        return self._topic("gateway", gateway.id), encode_state(state)

    def _device_state(self, device: Device, epoch: int) -> bytes:
        package = device.package
        profile = package.profile
        state = State(
            v=1,
            online=True,
            since=self._since,
            interval_s=device.interval_s,
            epoch=epoch,
            descriptor=Descriptor(
                maker=profile.identity.maker,
                model=_model(device),
                brand_origin=profile.identity.brand_origin,
                serial=device.serial,
                driver=package.id,
                transport=profile.transport.kind,
                label=device.label,
                asset_id=device.asset_id,
                cabinet=device.cabinet,
                circuit=device.circuit,
                location=device.location,
                township=device.township,
                installed=device.installed,
                metrics=dict.fromkeys(sorted(self._metrics[device.id]), device.interval_s),
            ),
        )
        return encode_state(state)


def _model(device: Device) -> str:
    settings = device.package.settings(device.settings)
    return str(getattr(settings, "model", device.package.profile.identity.models[0]))


def _metrics(device: Device) -> set[str]:
    """Return what a device of this model reports; an advertiser says so only on the air."""
    profile = device.package.profile
    if profile.completes == "advert":
        return set()
    model = _model(device)
    variants = [name for name, variant in profile.variants.items() if model in variant.models]
    points = profile.points_of(variants[0]) if variants else profile.points
    return {named(point.metric, device) for point in points if point.metric}


async def _end(*tasks: asyncio.Task[None]) -> None:
    """Cancel until all have ended: asyncio.wait_for, in libraries, may swallow a cancellation before Python 3.12."""
    while pending := [task for task in tasks if not task.done()]:
        for task in pending:
            task.cancel()
        await asyncio.wait(pending, timeout=CANCEL_AGAIN_S)


async def _until(event: asyncio.Event) -> None:
    await event.wait()


async def _serve(config: Config, file: str) -> int:
    stop = stop_on_signals()
    await Agent(config, file).run(stop)
    return 0


def main(config_path: Path) -> int:
    """Run the agent until SIGTERM. Raises: ConfigError."""
    log_to_stderr()
    return run(_serve(read_config(config_path), str(config_path)))
