"""Commands: judged, recorded, carried out in their turn on the bus, answered.

A command is recorded before it is carried out and never carried out twice, whatever dies when. It does not outlive its
expiry while it waits, and one that a gateway cannot judge, since its clock is not known, is rejected.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, NamedTuple, Protocol
from uuid import UUID

import msgspec

from device_drivers.errors import CommandRejected
from device_drivers.kit.driver import Value
from edge_agent.ledger import RESULTS_KEPT, Entry, Ledger, LedgerBlocked
from edge_agent.results import Results
from edge_agent.trail import LAST_MAX, Trail, encode_trail, trail_of
from exchange.commands import Argument, Command, Result, Status, decode_command
from exchange.errors import CommandError, DeviceError, TopicError
from exchange.topics import PREFIX, parse_topic
from exchange.trouble import Trouble

if TYPE_CHECKING:
    from edge_agent.config import Device, Gateway

log = logging.getLogger(__name__)

QUEUED = 100  # that came and were not looked at yet; what finds no place is lost, and its issuer gives up
COMMAND_BYTES = 16_384  # what the ledger keeps is bounded by number, so each is, too
REASON_CHARACTERS = 500
RETRY_FIRST_S = 0.5  # a result that the disk does not take is tried again
RETRY_LAST_S = 30.0


class CommandSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The table `[commands]`."""

    enabled: bool = True
    """Whether devices that take commands announce them, and take them."""
    queued: Annotated[int, msgspec.Meta(ge=1, le=64)] = 16
    """Commands of one bus that may wait for their turn; further ones are rejected."""
    accept_after_s: Annotated[float, msgspec.Meta(ge=0.1, le=60)] = 1.0
    """What has no result by then is answered with `accepted` first."""


class WallClock(Protocol):
    """What is needed of the gateway's clock."""

    @property
    def known(self) -> bool: ...

    def now_ms(self) -> int: ...


class Execute(Protocol):
    """Has a device carry out a command in its turn on the bus, in order of asking, and returns what it reads back.

    Raises: TimeoutError when the turn did not come in time, CommandRejected, DeviceError.
    """

    async def __call__(
        self, device_id: str, name: str, args: Mapping[str, Value], *, deadline_s: float
    ) -> dict[str, Value]: ...


class Outcome(NamedTuple):
    """What became of an order."""

    status: Status
    reason: str = ""
    readback: dict[str, Value] = {}  # noqa: RUF012 - never written to


class Commands:
    """The commands of one gateway, between `open` and `close`."""

    def __init__(
        self,
        gateway: Gateway,
        devices: Sequence[Device],
        ledger: Ledger,
        clock: WallClock,
        execute: Execute,
        settings: CommandSettings | None = None,
    ) -> None:
        """`on_done` hears of every command that was carried out: the device, the name and when."""
        self.counts: Counter[str] = Counter()
        """Results by status; `programme …` for orders of our own, `unreadable`, `lost`, `dropped`."""
        self.results = Results(ledger)
        self.on_done: Callable[[str, str, int], None] = lambda _device, _name, _at_ms: None
        self.topic_filter = f"{PREFIX}/{gateway.county}/{gateway.site}/{gateway.id}/+/+/commands"
        self._ledger = ledger
        self._clock = clock
        self._execute = execute
        self._settings = settings or CommandSettings()
        self._devices: dict[str, Device] = {}
        self._waiting: Counter[str] = Counter()
        """Commands by bus, until their result."""
        self._queue: asyncio.Queue[tuple[str, bytes, asyncio.Event]] = asyncio.Queue(QUEUED)
        self._under_way: dict[asyncio.Task[None], UUID] = {}
        self._is_open = self._is_stopping = False
        self._unrecorded = Trouble(
            log,
            "commands cannot be recorded, and are not carried out",
            "commands are recorded again",
        )
        self._unrecorded_results = Trouble(
            log, "results cannot be recorded", "results are recorded again"
        )
        self._unrecorded_orders = Trouble(
            log,
            "what a programme did cannot be recorded",
            "what a programme does is recorded again",
        )
        self._unreadable = Trouble(log, "a command cannot be read", "commands can be read again")
        self._flooded = Trouble(
            log, "more commands come than can be looked at", "all commands are looked at again"
        )
        self._full = Trouble(
            log, "results without a receipt are let go of", "results have room again"
        )
        self.serve(devices)

    def serve(self, devices: Sequence[Device]) -> None:
        """These are the devices from now on."""
        self._devices = {device.id: device for device in devices}

    async def open(self) -> None:
        """Open the ledger and answer what a process died over; a disk that takes nothing is tried again later."""
        try:
            await self._ledger.open()
            await self._answer_interrupted(
                "the gateway restarted before there was a result 閘道器重新啟動，命令中斷"
            )
            self._is_open = True  # only now: what is taken from here on is not interrupted
        except LedgerBlocked as error:
            self._unrecorded.report(str(error))

    async def close(self) -> None:
        """Close the ledger."""
        await self._ledger.close()

    def put(self, topic: str, payload: bytes) -> asyncio.Event:
        """Hand in a command as it came; what is returned is set when it is recorded, or never will be."""
        judged = asyncio.Event()
        try:
            self._queue.put_nowait((topic, payload, judged))
        except asyncio.QueueFull:
            self.counts["lost"] += 1
            self._flooded.report("some are lost")
            judged.set()
        else:
            self._flooded.over()
        return judged

    async def run(self) -> None:
        """Take what is handed in, for ever."""
        while True:
            try:
                async with asyncio.timeout(None if self._is_open else RETRY_LAST_S):
                    topic, payload, judged = await self._queue.get()
            except TimeoutError:  # who waits for what was interrupted need not wait for a command
                await self.open()
                continue
            try:
                if not self._is_open:
                    await self.open()
                if self._is_open:
                    await self._take(topic, payload)
            except LedgerBlocked as error:
                self._unrecorded.report(str(error))
            except Exception:  # what somebody sends must not end the agent
                self.counts["unreadable"] += 1
                log.exception("a command met an error", extra={"topic": topic})
            finally:
                self._queue.task_done()
            judged.set()

    async def drain(self, deadline_s: float) -> None:
        """Take no further one; those under way get so long, and then what is left is answered with failed."""
        try:
            async with asyncio.timeout(deadline_s):
                await self._queue.join()
                self._is_stopping = True
                while self._under_way:
                    await asyncio.wait(self._under_way)
        except TimeoutError:
            log.warning("commands are interrupted", extra={"commands": len(self._under_way)})
        self._is_stopping = True
        left = set(self._under_way.values())  # one that is being rejected just now is none of them
        while self._under_way:
            for task in self._under_way:
                task.cancel()
            await asyncio.wait(self._under_way)
        if self._is_open:
            try:
                await self._answer_interrupted(
                    "the gateway stopped before there was a result 閘道器停止，命令中斷", left
                )
            except LedgerBlocked as error:
                self._unrecorded_results.report(str(error))
        self.results.changed()

    async def order(
        self,
        device_id: str,
        name: str,
        args: Mapping[str, Value],
        *,
        by: str,
        deadline_s: float,
        again: bool = False,
    ) -> Outcome:
        """Carry out an order of the gateway's own, and note it in the trail; what fails `again` is there already."""
        device = self._devices.get(device_id)
        if device is None:  # a reload took it away
            return Outcome("rejected", "this gateway has no such device 閘道器無此設備")
        outcome = await self._carried_out(device, name, args, deadline_s)
        self.counts[f"programme {outcome.status}"] += 1
        if again and outcome.status != "done":
            return outcome
        detail = msgspec.json.encode({"by": by, "args": dict(args)})
        result = msgspec.json.encode({"reason": outcome.reason, "readback": outcome.readback})
        if self._is_open:
            try:
                await self._ledger.note(
                    device_id, name, detail, self._clock.now_ms(), outcome.status, result
                )
            except LedgerBlocked as error:
                self._unrecorded_orders.report(str(error))
            else:
                self._unrecorded_orders.over()
        return outcome

    async def trail_document(self) -> bytes:
        """Return the newest orders, for whoever asks the agent."""
        try:
            trail = trail_of(await self._ledger.trail(LAST_MAX))
        except LedgerBlocked as error:
            trail = Trail(problem=str(error))
        return encode_trail(trail)

    # ------------------------------------------------------------------------------------------------- judging

    async def _take(self, topic: str, payload: bytes) -> None:
        try:
            place = parse_topic(topic)
        except TopicError as error:
            self._not_read(error)
            return
        results = str(msgspec.structs.replace(place, channel="results"))
        try:
            command = decode_command(payload)
        except CommandError as error:
            self._not_read(error)
            if (identity := _identity(payload)) is not None:
                await self._reply(identity, Outcome("rejected", str(error)), results)
            return
        self._unreadable.over()
        if len(payload) > COMMAND_BYTES:
            words = f"longer than {COMMAND_BYTES} bytes 命令過長"
            await self._reply(command.id, Outcome("rejected", words), results)
            return
        now_ms = self._clock.now_ms()
        device = self._devices.get(place.device)
        if device is not None and device.domain != place.domain:
            device = None
        is_known = self._clock.known
        found = await self._ledger.enter(command, place.device, results, now_ms, is_known=is_known)
        self._unrecorded.over()
        if isinstance(found, Entry):
            if found.device == place.device:
                await self._ledger.answer_again(command.id)
                self.results.changed()
            else:
                words = f"this id was used for {found.device} 命令代碼重複"
                await self._reply(command.id, Outcome("rejected", words), results)
            return
        expired = _expires_ms(command) <= now_ms
        if found == "full":
            words = "too many commands that have not expired were taken 未逾時的命令過多"
            await self._reply(command.id, Outcome("rejected", words), results)
        elif found == "past":
            words = "it may have been carried out before 可能已執行過"
            outcome = Outcome("expired") if expired else Outcome("rejected", words)
            await self._reply(command.id, outcome, results)
        elif not is_known:
            words = "the clock of the gateway is not set 閘道器時鐘尚未校時"
            await self._answer(command.id, Outcome("rejected", words), results)
        elif expired:
            await self._answer(command.id, Outcome("expired"), results)
        elif words := self._refusal(device, command):
            await self._answer(command.id, Outcome("rejected", words), results)
        else:
            assert device is not None
            self._start(device, command, results)

    def _refusal(self, device: Device | None, command: Command) -> str:
        """Return why a command is not carried out, "" when it is."""
        if device is None:
            return "this gateway has no such device 閘道器無此設備"
        if command.name not in announced(device, self._settings):
            return f"{command.name} is not a command of this device 設備無此命令"
        if words := unfit(device, command.name, command.args):
            return words
        if self._is_stopping:
            return "the gateway is stopping 閘道器停止中"
        if self._waiting[device.bus] >= self._settings.queued:
            return f"{self._settings.queued} commands wait for this bus already 等候的命令過多"
        return ""

    # ----------------------------------------------------------------------------------------------- executing

    def _start(self, device: Device, command: Command, results: str) -> None:
        self._waiting[device.bus] += 1
        task = asyncio.create_task(self._see_through(device, command, results))
        self._under_way[task] = command.id

        def over(task: asyncio.Task[None]) -> None:
            self._waiting[device.bus] -= 1
            del self._under_way[task]
            if not task.cancelled() and (error := task.exception()) is not None:
                log.error("a command met an error", exc_info=error)

        task.add_done_callback(over)

    async def _see_through(self, device: Device, command: Command, results: str) -> None:
        left_s = (_expires_ms(command) - self._clock.now_ms()) / 1000
        numbers = {
            name: value for name, value in command.args.items() if not isinstance(value, str)
        }
        work = asyncio.create_task(self._carried_out(device, command.name, numbers, left_s))
        try:
            await asyncio.wait({work}, timeout=self._settings.accept_after_s)
            if not work.done():
                await self._settle(command.id, Outcome("accepted"), results)
            outcome = await work
        finally:
            work.cancel()
        await self._settle(command.id, outcome, results)
        if outcome.status == "done":
            self.on_done(device.id, command.name, self._clock.now_ms())

    async def _carried_out(
        self, device: Device, name: str, args: Mapping[str, Value], left_s: float
    ) -> Outcome:
        """Wait for the turn and carry it out, or say why not."""
        loop = asyncio.get_running_loop()
        until_s = loop.time() + left_s
        try:
            readback = await self._execute(device.id, name, args, deadline_s=max(0.0, left_s))
        except TimeoutError as error:
            if loop.time() >= until_s:
                return Outcome("expired")
            return Outcome("failed", str(error) or "the bus is too busy 匯流排忙碌")
        except CommandRejected as error:
            return Outcome("rejected", str(error))
        except DeviceError as error:
            return Outcome("failed", f"{type(error).__name__}: {error}")
        except Exception as error:
            log.exception("a driver failed at a command", extra={"device": device.id})
            return Outcome("failed", f"{type(error).__name__}: {error}")
        numbers = {key: value for key, value in readback.items() if math.isfinite(value)}
        return Outcome("done", readback=numbers)

    # ----------------------------------------------------------------------------------------------- answering

    async def _answer(self, command: UUID, outcome: Outcome, results: str) -> None:
        """Give a command that is in the ledger its result."""
        await self._ledger.answer(self._result(command, outcome), results)
        self._answered(outcome)

    async def _settle(self, command: UUID, outcome: Outcome, results: str) -> None:
        """Give a command its result, however long the disk takes nothing."""
        wait_s = RETRY_FIRST_S
        while True:
            try:
                await self._answer(command, outcome, results)
            except LedgerBlocked as error:
                self._unrecorded_results.report(str(error))
            else:
                return
            await asyncio.sleep(wait_s * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
            wait_s = min(2 * wait_s, RETRY_LAST_S)

    async def _reply(self, command: UUID, outcome: Outcome, results: str) -> None:
        """Answer what is not in the ledger."""
        await self._ledger.reply(self._result(command, outcome), results)
        self._answered(outcome)

    def _answered(self, outcome: Outcome) -> None:
        self.counts[outcome.status] += 1
        self._unrecorded_results.over()
        if self._ledger.dropped > self.counts["dropped"]:
            self.counts["dropped"] = self._ledger.dropped
            self._full.report(f"{RESULTS_KEPT} wait already")
        elif self._ledger.unreceipted < RESULTS_KEPT:
            self._full.over()
        self.results.changed()

    def _result(self, command: UUID, outcome: Outcome) -> Result:
        return Result(
            v=1,
            id=command,
            status=outcome.status,
            at=datetime.fromtimestamp(self._clock.now_ms() / 1000, UTC),
            reason=outcome.reason[:REASON_CHARACTERS],
            readback=outcome.readback,
        )

    async def _answer_interrupted(self, reason: str, among: Collection[UUID] = ()) -> None:
        """Answer these commands, or all, that have no last result."""
        for command, results in await self._ledger.interrupted():
            if among and command not in among:
                continue
            await self._answer(command, Outcome("failed", f"interrupted: {reason}"), results)

    def _not_read(self, error: Exception) -> None:
        self.counts["unreadable"] += 1
        self._unreadable.report(str(error))


def announced(device: Device, settings: CommandSettings) -> list[str]:
    """Return the names of the commands that a device's state announces."""
    return sorted(device.package.profile.commands) if settings.enabled else []


def unfit(device: Device, name: str, args: Mapping[str, Argument]) -> str:
    """Return what is wrong with the arguments of a command that the device takes, "" when nothing is."""
    limits = device.package.profile.commands[name].args
    if args.keys() != limits.keys():
        takes, given = ", ".join(limits) or "no argument", ", ".join(args) or "none"
        return f"{name} takes {takes}, not {given} 參數不符"
    for key, value in args.items():
        low, high = limits[key].min, limits[key].max
        if isinstance(value, bool | str) or not low <= value <= high:
            return f"{key} {value} is not in {low:g} … {high:g} 超出範圍"
    return ""


class _Identified(msgspec.Struct):
    id: UUID


_identified = msgspec.json.Decoder(_Identified)


def _identity(payload: bytes) -> UUID | None:
    """Return the id of what is no command otherwise, so that its issuer hears why."""
    try:
        return _identified.decode(payload).id
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _expires_ms(command: Command) -> int:
    return round(command.expires_at.timestamp() * 1000)
