"""The edge agent: reads the devices of one gateway and delivers what they say. One process, one TaskGroup."""

from __future__ import annotations

import asyncio
import gc
import logging
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import NamedTuple
from zoneinfo import ZoneInfo

from device_drivers.errors import LinkLost
from device_drivers.kit.driver import Reading, Value
from edge_agent.attended import Attended
from edge_agent.buses import BusTask, Line
from edge_agent.changes import Changes, changes, is_described_otherwise_only
from edge_agent.clock import Clock
from edge_agent.commands import Commands, announced
from edge_agent.config import BleBus, Config, Device
from edge_agent.config_reading import Loaded, load_config
from edge_agent.gateway_device import GatewayDevice
from edge_agent.health import DeviceHealth, Health
from edge_agent.intake import ASK_S, Intake
from edge_agent.ledger import FILE as LEDGER
from edge_agent.ledger import Ledger
from edge_agent.lighting import Lighting
from edge_agent.metrics import ALIVE, answering_scrapes
from edge_agent.outbox import Outbox, OutboxBlocked, Waiting
from edge_agent.report_by_exception import WithheldLog
from edge_agent.snapshot import snapshot
from edge_agent.states import device_state, gateway_state, state_topic
from edge_agent.status import NAME, AgentStatus, answering_status
from edge_agent.uplink import Message, Uplink
from exchange.errors import ConfigError
from exchange.runtime import keep_watchdog, log_to_stderr, notify, run, stop_on_signals

log = logging.getLogger(__name__)

OPEN_S = 10.0  # a bus that is neither open nor lost by then is not waited for
EXCHANGE_S = 5.0  # told to stop, exchanges that are under way get this long
CANCEL_AGAIN_S = 2.0
KEEP_S = 5.0  # and what they gave gets this long to reach the disk
ANSWER_S = 2.0  # within which the outbox's thread says that it is there


class _Served(NamedTuple):
    """A bus that is served, and how to end that."""

    bus: BusTask
    stop: asyncio.Event
    task: asyncio.Task[None]


class Agent:
    """One gateway's agent."""

    def __init__(
        self,
        config: Config,
        file: str,
        *,
        clock: Clock | None = None,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """`file` names the configuration in errors, and is read again on a reload; delivery waits by `monotonic_s`.

        Raises: ConfigError.
        """
        self.config = config
        self.began_s = time.monotonic()
        self._file = file
        config.broker.context(file)  # a file that is missing now is said now
        config.broker.password(file)
        folder = Path(config.gateway.state_dir)
        self.clock = clock or Clock(config.clock, memory=folder / "clock")
        self.health = Health([])
        self.outbox = Outbox(folder / "outbox", config.outbox, self.clock)
        self.intake = Intake(self.outbox, self._taken, self.clock)
        self.devices: dict[str, Attended] = {}
        self._audit = (
            WithheldLog(folder, config.report, self.clock.now_ms) if config.report.audit else None
        )
        self._since = datetime.now(UTC)
        self._epochs: dict[str, int] = {}
        self._served: dict[str, _Served] = {}
        self._ledger = ledger = Ledger(folder / LEDGER)
        self.commands = Commands(
            config.gateway, [], ledger, self.clock, self._execute, config.commands
        )
        self._lighting = Lighting(self.clock, self.commands.order, ledger.last_issued)
        self.commands.on_done = self._lighting.overridden
        self.uplink = Uplink(
            config,
            self.outbox,
            self.health,
            states=self._states,
            commands=self.commands if config.commands.enabled else None,
            password=self._password,
            tls=self._tls,
            clock=monotonic_s,
        )
        self._gateway = GatewayDevice(
            config.gateway, self.outbox, self.uplink.delivery, self.health, self.clock
        )
        self._attend(config.device)

    @property
    def buses(self) -> list[BusTask]:
        """Those that are served now."""
        return [served.bus for served in self._served.values()]

    def status(self) -> AgentStatus:
        """Return how everything is at this moment."""
        return snapshot(self)

    async def run(self, stop: asyncio.Event, reload: asyncio.Event | None = None) -> None:
        """Serve until `stop` is set, then drain; read the configuration anew whenever `reload` is.

        Raises: ConfigError when the outbox cannot be opened.
        """
        try:
            await self.outbox.open()
        except OutboxBlocked as error:
            allowed = (
                "must be a folder that this agent alone can write to"
                f" 必須是只有此代理程式可寫入的資料夾: {error}"
            )
            folder = self.config.gateway.state_dir
            raise ConfigError(self._file, "gateway.state_dir", folder, allowed) from error
        try:
            await self.commands.open()
            await self._serve(stop, reload or asyncio.Event())
            await self.uplink.farewell()
        finally:
            try:
                await self.commands.close()
            finally:
                await self.outbox.close()
        log.info("stopped", extra={"outbox": self.outbox.depth})

    async def _serve(self, stop: asyncio.Event, reload: asyncio.Event) -> None:
        try:
            epochs = await self._epochs_now([self.config.gateway.id])
        except OutboxBlocked as error:
            # lamps and buses go on; the uplink asks again, and sends then
            log.error(
                "no epoch can be begun: nothing is sent for now", extra={"reason": str(error)}
            )
        else:
            self.uplink.will = self._gateway_message(epochs[self.config.gateway.id], None)
        async with AsyncExitStack() as asked, asyncio.TaskGroup() as group:
            socket = self.config.status.socket or str(Path(self.config.gateway.state_dir) / NAME)
            more = {"commands": self.commands.trail_document}
            await asked.enter_async_context(answering_status(Path(socket), self.status, more))
            await asked.enter_async_context(
                answering_scrapes(self.config.metrics, self.status, self._alive)
            )
            intake = group.create_task(self.intake.run())
            uplink = group.create_task(self.uplink.run())
            gateway = group.create_task(self._gateway.run(self.intake))
            dated = group.create_task(self._tell_when_dated())
            commands = group.create_task(self.commands.run())
            lighting = group.create_task(self._lighting.run())
            watchdog = group.create_task(keep_watchdog(self._progress))
            for bus in self.config.bus:
                self._begin(group, bus.id)
            await self._ready(stop)
            reloading = group.create_task(self._reload_when(reload, group))
            await stop.wait()
            notify("STOPPING=1")
            log.info("draining", extra={"outbox": self.outbox.depth})
            await _end(reloading, lighting)
            await self.commands.drain(EXCHANGE_S)
            await self._end_buses(list(self._served))
            await self._keep()
            await self._drain()
            await _end(watchdog, commands, gateway, dated, intake, uplink)

    async def _ready(self, stop: asyncio.Event) -> None:
        """Say ready when every bus was tried: a dead bus never stops the others."""

        async def all_tried() -> None:
            for bus in self.buses:
                await bus.tried.wait()

        ends = [asyncio.create_task(all_tried()), asyncio.create_task(_until(stop))]
        try:
            await asyncio.wait(ends, timeout=OPEN_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for end in ends:
                end.cancel()
        notify("READY=1")
        log.info("ready", extra={"buses": len(self._served), "devices": len(self.devices)})

    async def _keep(self) -> None:
        """Wait until everything that was read is in the outbox, or the time is up."""
        try:
            async with asyncio.timeout(KEEP_S):
                await self.intake.drained()
        except TimeoutError:
            log.error("samples could not be kept", extra={"samples": self.intake.waiting})

    async def _drain(self) -> None:
        """Wait until nothing of a device and no result is without its receipt, or the time is up.

        The gateway's own samples go on meanwhile: their receipts prove what was lost on the way.
        """
        try:
            async with asyncio.timeout(self.config.delivery.drain_s):
                while True:
                    self.uplink.receipted.clear()
                    waiting = await self.outbox.count(excluding_domain="gateway")
                    if not waiting and not self._ledger.unreceipted:
                        return
                    await self.uplink.receipted.wait()
        except TimeoutError:
            log.warning(
                "not everything was receipted; it stays in the outbox",
                extra={"outbox": self.outbox.depth},
            )

    # -------------------------------------------------------------------------------------------------- devices

    def _attend(self, devices: Sequence[Device]) -> None:
        """Have these devices in service, and no others.

        What is known of one goes on where nothing but its description changed.
        """
        before, self.devices = self.devices, {}
        for device in devices:
            health = self.health.devices.setdefault(device.id, DeviceHealth(device.id))
            known = before.get(device.id)
            if known is None or not is_described_otherwise_only(known.device, device):
                known = Attended(device, health, self._audit)
            known.device = device
            self.devices[device.id] = known
        for gone in before.keys() - self.devices.keys():
            self.health.devices.pop(gone, None)
        self.commands.serve(devices)
        gateway = self.config.gateway
        civil = ZoneInfo(gateway.time_zone)  # which was there when it was read
        self._lighting.serve(self.config.programme, devices, civil, gateway.location)

    async def _reading(self, line: Line, reading: Reading) -> None:
        attended = self.devices.get(line.device.id)
        if attended is None:
            return  # it went with a reload, while its bus was ending
        sent = attended.take(reading, self.clock.boot_ms())
        was_away = attended.health.was_away
        self._lighting.heard(line.device.id, reading.metrics, was_away=was_away)
        if sent is not None:
            device = attended.device
            await self.intake.put(device.domain, device.id, sent.metrics, sent.quality)

    def _taken(self, waiting: list[Waiting]) -> None:
        for one in waiting:
            if self._epochs.get(one.device) != one.sample.epoch:
                if one.device in self._epochs:
                    log.warning("a new epoch begins", extra={"device": one.device})
                    self.uplink.republish_states()
                self._epochs[one.device] = one.sample.epoch
            attended = self.devices.get(one.device)
            if attended is not None and not one.sample.metrics.keys() <= attended.metrics:
                # an advertiser says only on the air what it has
                attended.metrics.update(one.sample.metrics)
                self.uplink.republish_states()
        self.uplink.hand_over(waiting)

    async def _execute(
        self, device_id: str, name: str, args: Mapping[str, Value], *, deadline_s: float
    ) -> dict[str, Value]:
        """Have a device carry out a command. Raises: as BusTask.command."""
        attended = self.devices.get(device_id)
        served = None if attended is None else self._served.get(attended.device.bus)
        if served is None:
            raise LinkLost(f"the bus of {device_id} is not served")
        began_s = time.monotonic()
        # what waited at the broker comes before a bus is open
        async with asyncio.timeout(deadline_s):
            await served.bus.tried.wait()
        left_s = max(0.0, deadline_s - (time.monotonic() - began_s))
        return await served.bus.command(device_id, name, args, deadline_s=left_s)

    # ---------------------------------------------------------------------------------------------------- buses

    def _begin(self, group: asyncio.TaskGroup, name: str) -> None:
        """Serve a bus, if there are devices on it."""
        lines = [
            Line(one.device, one.device.package.driver(one.device.settings), one.health)
            for one in self.devices.values()
            if one.device.bus == name
        ]
        if not lines:
            return
        config = next(bus for bus in self.config.bus if bus.id == name)
        stop = asyncio.Event()
        bus = BusTask(config, lines, self._reading, stop, self.config.polling)
        self._served[name] = _Served(bus, stop, group.create_task(bus.run()))

    async def _end_buses(self, names: Sequence[str]) -> None:
        """Let these buses finish what they are in, and end them."""
        ending = [self._served[name] for name in names if name in self._served]
        for served in ending:
            served.stop.set()
        if ending:
            await asyncio.wait([served.task for served in ending], timeout=EXCHANGE_S)
        await _end(*(served.task for served in ending))
        for name in names:
            self._served.pop(name, None)

    # --------------------------------------------------------------------------------------------------- reload

    async def _reload_when(self, asked: asyncio.Event, group: asyncio.TaskGroup) -> None:
        """Take up the configuration as it is then, whenever asked, for ever."""
        while True:
            await asked.wait()
            asked.clear()
            notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
            try:
                loaded = await asyncio.to_thread(self._read)  # thousands of rows take their time
            except Exception as error:  # whatever is in a file ends no agent that runs
                bug = None if isinstance(error, ConfigError) else error
                log.error(
                    "the configuration stays as it was",
                    extra={"reason": str(error) or type(error).__name__},
                    exc_info=bug,
                )
            else:
                say_problems(loaded.problems)
                found = changes(self.config, loaded.config)
                kept = {programme.id for programme in loaded.config.programme}
                gone = [one.id for one in self.config.programme if one.id not in kept]
                if loaded.problems and (found.disappeared or gone):
                    log.error(
                        "a mistake would put devices or programmes out of service:"
                        " the configuration stays as it was",
                        extra={"devices": found.disappeared, "programmes": gone},
                    )
                elif found.lost_half:
                    log.error(
                        "an inventory lacks more than half of the devices:"
                        " the configuration stays as it was",
                        extra={"devices": len(loaded.config.device), "served": len(self.devices)},
                    )
                else:
                    await self._take_up(loaded.config, found, group)
            notify("READY=1")

    def _read(self) -> Loaded:
        """Return the configuration as it is now, its secrets in place. Raises: ConfigError."""
        loaded = load_config(Path(self._file))
        loaded.config.broker.context(self._file)
        loaded.config.broker.password(self._file)
        return loaded

    async def _take_up(self, new: Config, found: Changes, group: asyncio.TaskGroup) -> None:
        if found.restart:
            log.error(
                "what only a new start takes up has changed: the configuration stays as it was",
                extra={"keys": found.restart},
            )
            return
        await self._end_buses(found.end_buses)
        self.config = new
        self._gateway.gateway = new.gateway
        self._attend(new.device)
        for bus in found.begin_buses:
            self._begin(group, bus)
        if found.reconnect:
            self.uplink.reconfigure(new)
        if found.republish:
            self.uplink.republish_states()
        log.info(
            "the configuration was taken up",
            extra={
                "buses": found.begin_buses,
                "appeared": found.appeared,
                "disappeared": found.disappeared,
                "devices": len(self.devices),
            },
        )

    # --------------------------------------------------------------------------------------------------- states

    async def _states(self) -> list[Message]:
        """Return every retained state as it is now."""
        gateway = self.config.gateway
        served = list(self.devices.values())
        epochs = await self._epochs_now([gateway.id, *(one.device.id for one in served)])
        self.uplink.will = self._gateway_message(epochs[gateway.id], None)
        states = [self._gateway_message(epochs[gateway.id], self._since)]
        for one in served:
            device = one.device
            payload = device_state(
                device,
                epochs[device.id],
                self._since,
                metrics=one.metrics,
                commands=announced(device, self.config.commands),
            )
            states.append((state_topic(gateway, device.domain, device.id), payload))
        return states

    def _gateway_message(self, epoch: int, since: datetime | None) -> Message:
        gateway, known = self.config.gateway, self.clock.known
        payload = gateway_state(gateway, epoch, since, clock_known=known)
        return state_topic(gateway, "gateway", gateway.id), payload

    async def _tell_when_dated(self) -> None:
        """The state says that the time is not known; that is over once it is."""
        if self.clock.known:
            return
        while not self.clock.known:  # noqa: ASYNC110 - nobody tells when a time server has answered
            await asyncio.sleep(ASK_S)
        self.uplink.republish_states()

    async def _epochs_now(self, devices: Sequence[str]) -> dict[str, int]:
        epochs = await self.outbox.epochs_of(devices, self.clock.now_ms())
        self._epochs.update(epochs)
        return epochs

    # ---------------------------------------------------------------------------------------------------- being

    def _password(self) -> str | None:
        return self.config.broker.password(self._file)

    def _tls(self) -> ssl.SSLContext | None:
        return self.config.broker.context(self._file)

    async def _progress(self) -> None:
        """Return once the outbox's thread has answered. Raises: OutboxBlocked, TimeoutError."""
        await self.outbox.find([])

    async def _alive(self) -> str:
        try:
            async with asyncio.timeout(ANSWER_S):
                await self._progress()
        except TimeoutError:
            return f"the outbox has not answered for {ANSWER_S:g} s"
        except OutboxBlocked as error:
            return str(error)
        return ALIVE


def say_problems(problems: Sequence[ConfigError]) -> None:
    """Log what of a configuration was left out."""
    for problem in problems:
        log.error("left out of service", extra={"reason": str(problem)})


async def _end(*tasks: asyncio.Task[None]) -> None:
    """Cancel until all have ended: asyncio.wait_for, in libraries, may swallow a cancellation before Python 3.12."""
    while pending := [task for task in tasks if not task.done()]:
        for task in pending:
            task.cancel()
        await asyncio.wait(pending, timeout=CANCEL_AGAIN_S)


async def _until(event: asyncio.Event) -> None:
    await event.wait()


async def _serve(config: Config, file: str) -> int:
    reload = asyncio.Event()
    stop = stop_on_signals(on_hangup=reload.set)
    await Agent(config, file).run(stop, reload)
    return 0


def main(config_path: Path) -> int:
    """Run the agent until SIGTERM. Raises: ConfigError."""
    log_to_stderr()
    config, problems = load_config(config_path)
    say_problems(problems)
    if any(isinstance(bus, BleBus) for bus in config.bus):
        import_module("device_drivers.links.ble")
    gc.freeze()  # what was loaded stays: looking through it again and again is a tenth of all that the agent does
    return run(_serve(config, str(config_path)))
