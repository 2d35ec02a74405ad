"""A town in which every reading is accounted for: what its devices said whole, against what the office has.

The devices are twins on lines that can be given trouble, the agent is a process of its own, and the office stands in
for ingest: it keeps samples by their names, refuses some, and sends receipts.
"""

from __future__ import annotations

import asyncio
import sys
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, MutableMapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiomqtt

from device_drivers.kit.driver import Value
from device_drivers.kit.registry import load
from device_drivers.kit.twin import ModbusTwin, SerialTwin
from edge_agent.outbox import Outbox
from exchange.configuration import toml_table
from exchange.delivery import Key
from exchange.processes import Child
from exchange.readings import Sample, decode_pack
from exchange.receipts import Receipt, encode_receipt
from exchange.topics import parse_topic
from simulators.bluez import Bluez
from simulators.gate import Gate
from simulators.private_bus import PrivateBus
from simulators.serial_line import SerialLine
from tests.agents import DEADLINE_S, ROOT, air, bay, json_lines, lamp, until, write_config
from tests.brokers import Mosquitto
from tests.troubled_lines import Sent, Trouble, TroubledLine

LONG_S = 3 * DEADLINE_S
TIMEOUT_S = 1.2
"""Of the RTU bus: no stall of a loaded machine is taken for a lamp that is silent."""
BAY = "C0:FF:EE:00:00:01"
LAMPS = (1, 2)
DEVICES = ("lamp-1", "lamp-2", "air-1", "bay-1")
ACKNOWLEDGED_S = 5.0
REFUSED_WITH = "EX-R-007"
HASTE = {
    "edge_agent.buses.REOPEN_LAST_S": 0.3,
    "edge_agent.uplink.BACKOFF_LAST_S": 0.3,
    "edge_agent.schedule.PATIENCE_S": 0.2,
    "edge_agent.intake.RETRY_LAST_S": 0.5,
    # a receipt may be lost when its broker goes: then the sample goes again while the agent drains
    "exchange.delivery.BACKOFF_FIRST_S": 1.0,
    "exchange.delivery.BACKOFF_LAST_S": 2.0,
    "exchange.delivery.PROOF_AGE_S": 0.5,
    "exchange.delivery.SILENCE_S": 1.0,
}

Values = Mapping[str, Value]


class Truth:
    """What one device said whole, in order. Shape: `excused` are places of what its agent may have had in its hands."""

    def __init__(self) -> None:
        self.said: list[dict[str, Value]] = []
        self.excused: set[int] = set()
        self.spoiled = 0
        self._measured: list[Values] = []

    @property
    def answers(self) -> int:
        """How often it has spoken."""
        return len(self.said) + self.spoiled

    def measure(self, values: Values) -> None:
        """The twin has put it into an answer."""
        self._measured.append(values)

    def send(self, *, whole: bool) -> None:
        """The answer went over the cable."""
        if whole:
            self.said += map(dict, self._measured)
        else:
            self.spoiled += 1
        self._measured = []


class LampLine(TroubledLine):
    """Lamps; a reading counts as said when its answer reached the cable whole and in time."""

    def __init__(
        self, twins: Iterable[ModbusTwin], path: Path, truths: Mapping[int, Truth], gate: Gate
    ) -> None:
        super().__init__(twins, path)
        self._units._gate = gate
        self._truths = truths
        self.due: dict[int, Trouble | None] = {}
        """Trouble that begins, or ends, with the next reading: not in the middle of one."""

    def _hear(self, data: bytes) -> None:
        if len(data) >= 2 and data[1] == 6 and data[0] in self.due:
            trouble = self.due.pop(data[0])
            if trouble is None:
                self.trouble.pop(data[0], None)
            else:
                self.trouble[data[0]] = trouble
        super()._hear(data)

    def _send(self, data: bytes) -> None:
        trouble, truth = self.trouble.get(data[0]), self._truths[data[0]]
        if trouble is None:
            truth.send(whole=True)
            self._write(data)
            return
        sent = trouble(data)
        in_time = any(data in piece and after_s < TIMEOUT_S / 2 for after_s, piece in sent)
        truth.send(whole=in_time)
        for after_s, piece in sent:
            asyncio.get_running_loop().call_later(after_s, self._write, piece)


class AirLine(SerialLine):
    """A sensor that speaks by itself; `trouble` says what becomes of its frames."""

    def __init__(self, twin: SerialTwin, path: Path, truth: Truth, gate: Gate) -> None:
        super().__init__(twin, path, gate=gate)
        self.trouble: Trouble | None = None
        self._truth = truth
        self._write = self._terminal.write
        self._terminal.write = self._send  # type: ignore[method-assign]  # the cable of this one line

    def _send(self, data: bytes) -> None:
        sent: Sent = [(0.0, data)] if self.trouble is None else self.trouble(data)
        self._truth.send(whole=b"".join(piece for _, piece in sent).endswith(data))
        for after_s, piece in sent:
            if after_s:
                asyncio.get_running_loop().call_later(after_s, self._write, piece)
            else:
                self._write(piece)


class Office:
    """Keeps every sample by its name, refuses every tenth of a device, and says so. It returns when the broker does.

    Shape: `wrong` is what no gateway may do.
    """

    def __init__(self, broker: Mosquitto, account: tuple[str, str]) -> None:
        self.kept: dict[Key, Sample] = {}
        self.wrong: list[str] = []
        self.times = 0
        """How often a sample came, counting those that came again."""
        self._broker, self._account = broker, account

    def of(self, device: str) -> list[dict[str, Value]]:
        """Return a device's samples, stored and refused ones, in the order of their names."""
        named = sorted((key, one) for key, one in self.kept.items() if key.device == device)
        return [dict(one.metrics) for _, one in named]

    def epochs(self, device: str) -> dict[int, list[int]]:
        found: defaultdict[int, list[int]] = defaultdict(list)
        for key in sorted(self.kept):
            if key.device == device:
                found[key.epoch].append(key.seq)
        return dict(found)

    async def run(self) -> None:
        while True:
            with suppress(aiomqtt.MqttError):
                await self._listen()
            await asyncio.sleep(0.1)

    async def _listen(self) -> None:
        name, password = self._account
        async with aiomqtt.Client(
            self._broker.host,
            self._broker.port,
            identifier="office",
            username=name,
            password=password,
            clean_session=False,
            timeout=DEADLINE_S,
        ) as client:
            await client.subscribe("city/v1/+/+/+/+/+/readings", qos=1)
            async for message in client.messages:
                assert isinstance(message.payload, bytes)
                topic = parse_topic(str(message.topic))
                pack = decode_pack(message.payload, topic)
                self.wrong += [f"{topic.device}: {refusal}" for refusal in pack.refusals]
                receipt = self._take(topic.device, pack.samples)
                # whoever waits for a broker that went at this moment waits for as long as that
                await client.publish(f"{ROOT}/receipts", receipt, 1, timeout=ACKNOWLEDGED_S)

    def _take(self, device: str, samples: Iterable[Sample]) -> bytes:
        receipt = Receipt(v=1, stored={device: []}, refused={device: []})
        for one in samples:
            key = Key(device, one.epoch, one.seq)
            self.times += 1
            if self.kept.setdefault(key, one) != one:
                self.wrong.append(f"{key} has changed: {self.kept[key]} and {one}")
            if one.seq % 10 == 9:
                receipt.refused[device].append((one.epoch, one.seq, one.seq, REFUSED_WITH))
            else:
                receipt.stored[device].append((one.epoch, one.seq, one.seq))
        return encode_receipt(receipt)


class Town:
    """Two lamps, an air box and a parking bay; each reading of a device differs from the one before."""

    def __init__(self, folder: Path, haste: Mapping[str, float]) -> None:
        self.truths = {device: Truth() for device in DEVICES}
        self.passwords: MutableMapping[str, str] = {"gw-1": "right", "office": "office"}
        self.broker = Mosquitto(folder, accounts=self.passwords, persistent=True)
        self.office = Office(self.broker, ("office", "office"))
        self.gate = Gate(is_open=False)
        self.folder = folder
        self.state = folder / "state"
        self.offset = folder / "offset"
        self.lamps: LampLine
        self.air: AirLine
        self.agent: Child
        self._haste = {**HASTE, **haste}
        self._numbers: defaultdict[str, int] = defaultdict(int)
        self._lamp_cable, self._air_cable = AsyncExitStack(), AsyncExitStack()
        self._twins: dict[str, Any] = {
            "lamp-1": self._twin("intesis_dali", "lamp-1", {"unit": 1, "short_address": 0}),
            "lamp-2": self._twin("intesis_dali", "lamp-2", {"unit": 2, "short_address": 0}),
            "air-1": self._twin("plantower_pms", "air-1", {}),
            "bay-1": load("bthome").twin({"address": BAY}, self._world("bay-1"), self._bay_said),
        }

    # ------------------------------------------------------------------------------------------------- devices

    def _twin(self, driver: str, device: str, settings: Mapping[str, object]) -> Any:
        return load(driver).twin(settings, self._world(device), self.truths[device].measure)

    def _world(self, device: str) -> Callable[[], dict[str, Value]]:
        def world() -> dict[str, Value]:
            self._numbers[device] += 1
            number = self._numbers[device]
            if device == "bay-1":
                return {"occupied": number % 2 == 0, "distance": 0.1 + number / 1000}
            return {"level": number % 100, "pm2_5": float(number)}

        return world

    def _bay_said(self, values: Values) -> None:
        self.truths["bay-1"].measure(values)
        self.truths["bay-1"].send(whole=True)

    def said(self, device: str) -> int:
        return len(self.truths[device].said)

    # --------------------------------------------------------------------------------------------- up and down

    async def up(self, stack: AsyncExitStack) -> None:
        """Have everything there and speaking."""
        stack.enter_context(self.broker)
        listening = asyncio.create_task(self.office.run())
        stack.push_async_callback(_ended, listening)
        daemon = await stack.enter_async_context(PrivateBus(self.folder / "dbus.log"))
        self.dbus = daemon.address
        self.bluez = Bluez(daemon.address, [self._twins["bay-1"]], gate=self.gate)
        await stack.enter_async_context(self.bluez)
        stack.push_async_callback(self._lamp_cable.aclose)
        stack.push_async_callback(self._air_cable.aclose)
        await self.plug("ttyUSB0", "ttyUSB1")
        self.offset.write_text("0")
        self.config = self._configured()
        await self.start()
        stack.push_async_callback(self._end)
        self.gate.open()
        await self.flows()

    async def plug(self, lamps: str, air_box: str) -> None:
        """Plug in both adapters, under these names; their links lead there."""
        names = {unit: self.truths[f"lamp-{unit}"] for unit in LAMPS}
        twins = [self._twins[f"lamp-{unit}"] for unit in LAMPS]
        self.lamps = LampLine(twins, self.folder / lamps, names, self.gate)
        self.air = AirLine(
            self._twins["air-1"], self.folder / air_box, self.truths["air-1"], self.gate
        )
        await self._lamp_cable.enter_async_context(self.lamps)
        await self._air_cable.enter_async_context(self.air)
        for link, name in (("by-id-rs485", lamps), ("by-id-air", air_box)):
            (self.folder / link).unlink(missing_ok=True)
            (self.folder / link).symlink_to(self.folder / name)

    async def unplug(self) -> None:
        """What was said is read before: bytes in a cable that is pulled are gone."""
        await self.silence()
        await self._lamp_cable.aclose()
        await self._air_cable.aclose()

    def _configured(self) -> Path:
        by_link = {name: str(self.folder / f"by-id-{name}") for name in ("rs485", "air")}
        buses: list[dict[str, Any]] = [
            {"id": "rs485", "kind": "modbus-rtu", "port": by_link["rs485"], "timeout_s": TIMEOUT_S},
            {"id": "air", "kind": "serial", "port": by_link["air"]},
            {"id": "radio", "kind": "ble"},
        ]
        settings = [{"unit": unit, "short_address": 0} for unit in LAMPS]
        devices = [
            lamp("rs485", 1, interval_s=0.3, settings=settings[0]),
            lamp("rs485", 2, interval_s=0.3, settings=settings[1]),
            air("air"),
            bay("radio", BAY),
        ]
        file = write_config(
            self.folder,
            self.broker,
            buses,
            devices,
            delivery={"drain_s": DEADLINE_S},
            uplink={"username": "gw-1", "password_env": "UPLINK_SECRET"},
        )
        polling = toml_table(
            "[polling]", failures=2, probe_first_s=0.3, probe_last_s=1.0, probe_share=0.5
        )
        # the gateway's own samples prove, while it drains, what was lost on the way
        text = file.read_text().replace("interval_s = 600\n", "interval_s = 1.0\n")
        assert text != file.read_text()
        file.write_text(f"{text}\n{polling}", encoding="utf-8")
        return file

    def rewrite(self, text: str) -> None:
        """Have another configuration there, whole at once."""
        new = self.config.with_suffix(".new")
        new.write_text(text, encoding="utf-8")
        new.replace(self.config)

    async def start(self, *, is_waited_for: bool = True) -> None:
        """Start the agent."""
        constants = [f"{name}={number}" for name, number in self._haste.items()]
        argv = [sys.executable, "-m", "tests.hasty_agent", str(self.offset), str(self.config)]
        environment = {"UPLINK_SECRET": "right", "DBUS_SYSTEM_BUS_ADDRESS": self.dbus}
        self.agent = Child(
            "agent", argv + constants, self.folder, environment=environment, ready_s=LONG_S
        )
        await (self.agent.start() if is_waited_for else self.agent.begin())

    async def kill(self) -> None:
        """Kill -9 the agent. Of each device it may have had the last reading in its hands, not more."""
        before = {device: self.said(device) for device in DEVICES}
        self.agent.kill()
        await until(lambda: self.agent.exit_code is not None)
        await self.agent.stop(DEADLINE_S)
        for device, truth in self.truths.items():
            truth.excused.update(range(max(0, before[device] - 1), self.said(device)))

    async def _end(self) -> None:
        await self.agent.stop(LONG_S)

    # ------------------------------------------------------------------------------------------------- account

    def logged(self, message: str) -> list[dict[str, Any]]:
        """Return the agent's log lines that begin so."""
        lines = json_lines(self.folder / "agent.log")
        return [line for line in lines if line["message"].startswith(message)]

    async def flows(self, devices: Iterable[str] = DEVICES) -> None:
        """Return once of each device something has come to the office that it said after this moment."""
        since = {device: self.said(device) for device in devices}

        def missing() -> list[str]:
            return [
                device
                for device, place in since.items()
                if not any(
                    row in self.truths[device].said[place:] for row in self.office.of(device)[-1:]
                )
            ]

        try:
            await until(lambda: not missing(), LONG_S)
        except TimeoutError:
            raise AssertionError(f"nothing comes of {missing()}") from None

    async def say_more(self, count: int = 2) -> None:
        """Return once every device has said so much more, wherever that is kept."""
        wanted = {device: self.said(device) + count for device in DEVICES}
        await until(lambda: all(self.said(d) >= n for d, n in wanted.items()), LONG_S)

    async def silence(self) -> None:
        """Let no device say anything more; return when what was said has been read."""
        self.gate.close()
        for line in (self.lamps, self.air, self.bluez):
            await line.quiet()

    async def account(self, *, damaged: int = 0) -> None:
        """Taken = stored + refused: every reading that was said is at the office, once, in order, as it was.

        Of all devices together as many may be lost as were `damaged` where they were kept.
        """
        async with asyncio.timeout(LONG_S):
            await self.agent.ready.wait()
        await self.silence()
        with suppress(TimeoutError):
            await until(lambda: self._lacking() <= damaged)
        assert await self.agent.stop(LONG_S), "it drains in time"
        assert self.agent.exit_code == 0
        wrong = [
            f"{device} {words}"
            for device, truth in self.truths.items()
            for words in missing(truth, self.office.of(device))
        ]
        lost = [words for words in wrong if " lost: " in words]
        assert len(lost) <= damaged, lost[:9]
        assert [words for words in wrong if words not in lost][:9] == []
        assert self.office.wrong == []
        outbox = Outbox(self.state / "outbox")
        await outbox.open()
        try:
            assert await outbox.count(excluding_domain="gateway") == 0, "nothing is left"
        finally:
            await outbox.close()

    def _lacking(self) -> int:
        return sum(
            words.startswith("lost: ")
            for device, truth in self.truths.items()
            for words in missing(truth, self.office.of(device))
        )

    def check_names(self) -> None:
        """What has a name was taken, and what was taken is there: within an epoch no number is left out."""
        for device in DEVICES:
            for epoch, seqs in self.office.epochs(device).items():
                assert seqs == list(range(len(seqs))), f"{device} {epoch}"


def missing(truth: Truth, rows: list[dict[str, Value]]) -> list[str]:
    """Return what is wrong with a device's rows: they are its readings in their order, but for excused ones."""
    wrong: list[str] = []
    place = 0
    for row in rows:
        passed = place
        while passed < len(truth.said) and truth.said[passed] != row:
            passed += 1
        if passed == len(truth.said):
            wrong.append(f"never said, or twice: {row}")
            continue
        wrong += [
            f"lost: the {at}th, {truth.said[at]}"
            for at in range(place, passed)
            if at not in truth.excused
        ]
        place = passed + 1
    rest = range(place, len(truth.said))
    return wrong + [f"lost: the {at}th, {truth.said[at]}" for at in rest if at not in truth.excused]


async def _ended(task: asyncio.Task[None]) -> None:
    while not task.done():  # before Python 3.12 aiomqtt may swallow a cancellation
        task.cancel()
        await asyncio.wait([task], timeout=0.2)
    if not task.cancelled():
        task.result()


@asynccontextmanager
async def town(folder: Path, **haste: float) -> AsyncIterator[Town]:
    """Run a town; `haste` are constants of the agent, with dots written as two underscores."""
    one = Town(folder, {name.replace("__", "."): number for name, number in haste.items()})
    async with AsyncExitStack() as stack:
        await one.up(stack)
        yield one
