"""A whole town as a process of its own: what its clients see is what its truth says."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import serial_asyncio_fast
from bleak import BleakScanner
from bleak.backends.device import BLEDevice
from bleak.backends.scanner import AdvertisementData
from pymodbus.client import AsyncModbusSerialClient

from simulators.plan import TownPlan, street_plan
from simulators.truth import TruthEntry, read_truth

DEADLINE_S = 60.0
SEED = 42
BTHOME = "0000fcd2-0000-1000-8000-00805f9b34fb"
FRAME_BYTES = 32
HELD_UP = re.compile(r"Executing <.* took [\d.]+ seconds$")


class TownProcess:
    """Speaks the process's protocol."""

    def __init__(self, process: asyncio.subprocess.Process, run_dir: Path) -> None:
        self.process, self.run_dir = process, run_dir
        self.endpoints: dict[str, dict[str, Any]] = {}

    async def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        answer: dict[str, Any] = msgspec.json.decode(await self.process.stdout.readline())
        return answer

    async def tell(self, command: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{command}\n".encode())
        return await self.answer()

    def daemons(self) -> list[int]:
        """Return the processes that it started."""
        pid = self.process.pid
        return [
            int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        ]


async def started(tmp_path: Path, plan: bytes) -> TownProcess:
    run_dir, file = tmp_path / "run", tmp_path / "plan.json"
    file.write_bytes(plan)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-X", "dev", "-W", "error", "-m", "simulators", run_dir, file),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    return TownProcess(process, run_dir)


@asynccontextmanager
async def town(tmp_path: Path, plan: TownPlan) -> AsyncIterator[TownProcess]:
    async with asyncio.timeout(DEADLINE_S):
        town = await started(tmp_path, msgspec.json.encode(plan))
        try:
            ready = await town.answer()
            assert ready["ready"] is True
            town.endpoints = ready["endpoints"]
            yield town
        finally:
            if town.process.returncode is None:
                town.process.kill()
            _, said = await town.process.communicate()
        # that it was held up says more about the machine than about the code
        complaints = [line for line in said.decode().splitlines() if not HELD_UP.match(line)]
        assert complaints == []


class Witness:
    """Reads every device with plain clients and decodes by hand what truth can be compared with."""

    def __init__(self, endpoints: dict[str, dict[str, Any]], plan: TownPlan) -> None:
        self.endpoints, self.plan = endpoints, plan
        self.saw: dict[str, list[Any]] = defaultdict(list)
        self.bays = {
            device.settings["address"]: device.id
            for device in plan.devices
            if device.driver == "bthome" and "bindkey" not in device.settings
        }
        self._packets: dict[str, int] = {}

    async def hear_frames(self, device: str, bus: str, mode: str) -> None:
        reader, writer = await serial_asyncio_fast.open_serial_connection(
            url=self.endpoints[bus]["port"], baudrate=9600
        )
        try:
            if mode == "passive":
                writer.write(bytes.fromhex("42 4D E1 00 00 01 70"))
                assert (await reader.readexactly(8))[4] == 0xE1
            while True:
                if mode == "passive":
                    await asyncio.sleep(0.3)
                    writer.write(bytes.fromhex("42 4D E2 00 00 01 71"))
                frame = await reader.readexactly(FRAME_BYTES)
                assert frame[:4] == b"\x42\x4d\x00\x1c"
                self.saw[device].append(int.from_bytes(frame[12:14]))
        finally:
            writer.close()

    async def poll_lamps(self) -> None:
        port = self.endpoints["ttyRS485"]["port"]
        client = AsyncModbusSerialClient(port, baudrate=9600, timeout=DEADLINE_S, retries=0)
        assert await client.connect()
        lamps = [device for device in self.plan.devices if device.driver == "intesis_dali"]
        try:
            while True:
                for lamp in lamps:
                    first = 100 * lamp.settings["short_address"]
                    await client.write_register(first + 4, 1, device_id=1)
                    answer = await client.read_holding_registers(first + 5, count=2, device_id=1)
                    status, level = answer.registers
                    self.saw[lamp.id].append((bool(status & 4), level))
                await asyncio.sleep(0.2)
        finally:
            client.close()

    def hear_advert(self, device: BLEDevice, advert: AdvertisementData) -> None:
        bay = self.bays.get(device.address)
        if bay is None:
            return
        # 40, then 00 packet id, 0C voltage, 23 occupancy, 40 distance
        data = advert.service_data[BTHOME]
        if self._packets.get(bay) != data[2]:
            self._packets[bay] = data[2]
            assert (data[0], data[3], data[6], data[8]) == (0x40, 0x0C, 0x23, 0x40)
            self.saw[bay].append((bool(data[7]), int.from_bytes(data[9:11], "little")))


def comparable(entry: TruthEntry) -> Any:
    """Return of an entry what the witness decodes."""
    values = entry.values
    if entry.domain == "air":
        return values["pm2_5"]
    if entry.domain == "streetlight":
        return values["lit"], values["level"]
    return values["occupied"], round(1000 * values["distance"])


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"  # an orphan's remains may wait for their new parent


async def test_clients_see_what_truth_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = street_plan(SEED, lamps=3, bays=4, air=3, speed=600)
    async with town(tmp_path, plan) as process:
        assert process.endpoints["ttyAIR0"]["kind"] == "serial"
        assert process.endpoints["ttyRS485"]["kind"] == "modbus-rtu"
        monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", process.endpoints["hci0"]["dbus"])
        witness = Witness(process.endpoints, plan)
        async with BleakScanner(witness.hear_advert):
            ears = [
                asyncio.create_task(
                    witness.hear_frames(device.id, device.bus, device.settings["mode"])
                )
                for device in plan.devices
                if device.driver == "plantower_pms"
            ]
            assert (process.run_dir / "truth.jsonl").read_bytes() == b"", "it begins muted"
            assert await process.tell("speak") == {"muted": False}
            # Polling begins now: a muted lamp gives no answer.
            ears.append(asyncio.create_task(witness.poll_lamps()))
            wanted = {d.id for d in plan.devices} - {"bay-002", "bay-004"}
            while {device for device, seen in witness.saw.items() if len(seen) >= 3} != wanted:
                done, _ = await asyncio.wait(ears, timeout=0.1, return_when=asyncio.FIRST_COMPLETED)
                assert not done, [ear.exception() for ear in done]
            assert await process.tell("mute") == {"muted": True}
            truth = list(read_truth(process.run_dir / "truth.jsonl"))
            assert await process.tell("mute") == {"muted": True}
            await asyncio.sleep(1.2)  # longer than any period: it would have spoken
            assert list(read_truth(process.run_dir / "truth.jsonl")) == truth
            for ear in ears:
                ear.cancel()
            await asyncio.gather(*ears, return_exceptions=True)
        told: dict[str, list[Any]] = defaultdict(list)
        for entry in truth:
            told[entry.device].append(comparable(entry))
        assert set(told) == {device.id for device in plan.devices}
        for device, seen in witness.saw.items():
            assert told[device] == seen, device
        (daemon,) = process.daemons()
        assert await process.tell("dance") == {"error": "'dance': speak, mute or quit"}
        assert process.process.stdin is not None
        process.process.stdin.write(b"quit\n")
        assert await process.process.wait() == 0
        assert not is_running(daemon)
        assert not list(process.run_dir.glob("tty*"))


@pytest.mark.parametrize("end", ["terminate", "end of input"])
async def test_it_ends_cleanly(tmp_path: Path, end: str) -> None:
    async with town(tmp_path, street_plan(SEED, lamps=1, bays=1, air=1)) as process:
        (daemon,) = process.daemons()
        if end == "terminate":
            process.process.send_signal(signal.SIGTERM)
        else:
            assert process.process.stdin is not None
            process.process.stdin.close()
        assert await process.process.wait() == 0
        assert not is_running(daemon)


async def test_a_killed_town_leaves_no_daemon_behind(tmp_path: Path) -> None:
    async with town(tmp_path, street_plan(SEED, lamps=0, bays=1, air=0)) as process:
        (daemon,) = process.daemons()
        process.process.kill()
        await process.process.wait()
        while is_running(daemon):  # noqa: ASYNC110 - not our child: it can only be looked for
            await asyncio.sleep(0.02)


async def test_a_client_that_does_not_read_does_not_hold_the_town_up_for_ever(
    tmp_path: Path,
) -> None:
    plan = street_plan(SEED, lamps=0, bays=0, air=1)
    async with town(tmp_path, plan) as process:
        port = os.open(process.endpoints["ttyAIR0"]["port"], os.O_RDWR | os.O_NOCTTY)
        try:
            await process.tell("speak")
            truth = process.run_dir / "truth.jsonl"
            while not truth.read_bytes():  # noqa: ASYNC110 - written by another process
                await asyncio.sleep(0.02)
            answer = await process.tell("mute")
            assert answer["muted"] is True
            assert "did not read" in answer["error"]
        finally:
            os.close(port)


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        (b"{", "plan.json: file"),
        (b'{"seed":1}', "plan.json"),
        (
            msgspec.json.encode(street_plan(SEED)).replace(b"bthome", b"bthomer"),
            "driver = 'bthomer'",
        ),
        (
            msgspec.json.encode(street_plan(SEED)).replace(b'"passive"', b'"lazy"'),
            "'lazy'",
        ),
    ],
)
async def test_a_wrong_plan_is_refused_in_words(tmp_path: Path, plan: bytes, said: str) -> None:
    async with asyncio.timeout(DEADLINE_S):
        process = await started(tmp_path, plan)
        output, errors = await process.process.communicate()
    assert process.process.returncode == 2
    assert output == b""
    assert said in errors.decode()
    assert "Traceback" not in errors.decode()
