"""Modbus buses with twins on them, against real pymodbus clients and bare bytes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import serial
from pymodbus.client import (
    AsyncModbusSerialClient,
    AsyncModbusTcpClient,
    ModbusSerialClient,
    ModbusTcpClient,
)
from pymodbus.exceptions import ModbusIOException
from pymodbus.framer import FramerRTU

from device_drivers.kit.driver import Value
from device_drivers.kit.twin import ModbusException, Truth
from simulators.errors import SimulatorError
from simulators.gate import Gate
from simulators.line import Endpoint
from simulators.modbus_line import FRAME_GAP_S, ModbusRtuLine, ModbusTcpLine

DEADLINE_S = 5.0


class Registers:
    """Remembers what is written; register 9 of its range is broken, reading register 0 completes."""

    def __init__(self, unit: int, addresses: range, truth: Truth = lambda _: None) -> None:
        self.unit, self.addresses, self.truth = unit, addresses, truth
        self.values = dict.fromkeys(addresses, 0)
        self.calls: list[tuple[int, int, int]] = []

    def read(self, function: int, address: int, count: int) -> Sequence[int]:
        self.calls.append((function, address, count))
        if self.addresses.start + 9 in range(address, address + count):
            raise ModbusException(4)
        if address == self.addresses.start:
            self.truth({"first": self.values[address]})
        return [self.values[register] for register in range(address, address + count)]

    def write(self, function: int, address: int, values: Sequence[int]) -> None:
        self.calls.append((function, address, len(values)))
        self.values |= dict(enumerate(values, address))


@asynccontextmanager
async def rtu(port: str) -> AsyncIterator[AsyncModbusSerialClient]:
    client = AsyncModbusSerialClient(port, baudrate=19200, timeout=0.2, retries=0)
    assert await client.connect()
    try:
        async with asyncio.timeout(DEADLINE_S):
            yield client
    finally:
        client.close()


@asynccontextmanager
async def tcp(line: ModbusTcpLine) -> AsyncIterator[AsyncModbusTcpClient]:
    client = AsyncModbusTcpClient(line.host, port=line.port, timeout=0.5, retries=0)
    assert await client.connect()
    try:
        async with asyncio.timeout(DEADLINE_S):
            yield client
    finally:
        client.close()


def framed(*body: int) -> bytes:
    return bytes(body) + FramerRTU.compute_CRC(bytes(body)).to_bytes(2, "big")


async def test_every_function_reaches_the_twin_that_has_the_registers(tmp_path: Path) -> None:
    low, high, other = (
        Registers(1, range(10)),
        Registers(1, range(100, 200)),
        Registers(2, range(10)),
    )
    async with (
        ModbusRtuLine([low, high, other], tmp_path / "ttyRS485") as line,
        rtu(line.port) as client,
    ):
        assert line.endpoint == {"kind": "modbus-rtu", "port": str(tmp_path / "ttyRS485")}
        written = await client.write_registers(100, [1, 2, 65535], device_id=1)
        assert (written.address, written.count) == (100, 3)
        written = await client.write_register(3, 7, device_id=1)
        assert written.registers == [7]
        assert (await client.read_holding_registers(100, count=3, device_id=1)).registers == [
            *(1, 2, 65535)
        ]
        assert (await client.read_input_registers(3, count=1, device_id=1)).registers == [7]
        assert (await client.read_holding_registers(3, count=1, device_id=2)).registers == [0]
        assert (await client.write_coil(4, True, device_id=2)).bits == [True]
        written = await client.write_coils(0, [True, False, True], device_id=2)
        assert written.count == 3
        assert (await client.read_coils(0, count=5, device_id=2)).bits[:5] == [
            *(True, False, True, False, True)
        ]
        assert (await client.read_discrete_inputs(4, count=1, device_id=2)).bits[0] is True
    assert low.calls == [(6, 3, 1), (4, 3, 1)]
    assert high.calls == [(16, 100, 3), (3, 100, 3)]
    assert other.calls == [(3, 3, 1), (5, 4, 1), (15, 0, 3), (1, 0, 5), (2, 4, 1)]


@pytest.mark.parametrize(
    ("address", "count", "code"),
    [(20, 1, 2), (8, 3, 2), (9, 1, 4), (65535, 1, 2)],
    ids=["nobody's", "beyond the end", "the twin's own refusal", "the last register"],
)
async def test_refusals_are_exceptions(tmp_path: Path, address: int, count: int, code: int) -> None:
    async with (
        ModbusRtuLine([Registers(1, range(10))], tmp_path / "tty") as line,
        rtu(line.port) as client,
    ):
        answer = await client.read_holding_registers(address, count=count, device_id=1)
        assert answer.isError()
        assert answer.exception_code == code


async def test_an_unknown_unit_is_silent_and_the_next_poll_is_answered(tmp_path: Path) -> None:
    async with (
        ModbusRtuLine([Registers(1, range(10))], tmp_path / "tty") as line,
        rtu(line.port) as client,
    ):
        with pytest.raises(ModbusIOException):
            await client.read_holding_registers(0, count=1, device_id=9)
        answer = await client.read_holding_registers(0, count=1, device_id=1)
        assert answer.registers == [0]


async def read_exactly(port: serial.Serial, count: int) -> bytes:
    received = b""
    async with asyncio.timeout(DEADLINE_S):
        while len(received) < count:
            received += port.read(count - len(received))
            await asyncio.sleep(0.001)
    return received


async def heard_nothing(port: serial.Serial) -> bool:
    await asyncio.sleep(2 * FRAME_GAP_S)  # time in which it would have answered
    return not port.in_waiting


async def test_bare_bytes(tmp_path: Path) -> None:
    twin = Registers(1, range(10))
    async with ModbusRtuLine([twin], tmp_path / "tty") as line:
        with serial.Serial(line.port, 19200, timeout=0) as port:
            good, answer = framed(1, 3, 0, 0, 0, 1), framed(1, 3, 2, 0, 0)
            port.write(good)
            assert await read_exactly(port, len(answer)) == answer

            for part in (good[:3], good[3:]):
                port.write(part)
                await asyncio.sleep(0.01)
            assert await read_exactly(port, len(answer)) == answer

            for silent in (
                framed(0, 6, 0, 0, 0, 1),  # a broadcast
                good[:-1] + b"\x00",  # a wrong checksum
                good[:5],  # an unfinished frame
                b"\xff" * 300,  # noise
            ):
                port.write(silent)
                assert await heard_nothing(port), silent
                port.write(good)
                assert await read_exactly(port, len(answer)) == answer

            for request, refused in (
                ((1, 3, 0, 0, 0, 0), (1, 0x83, 3)),  # no registers
                ((1, 3, 0, 0, 0, 126), (1, 0x83, 3)),  # more than a frame holds
                ((1, 16, 0, 0, 0, 2, 2, 0, 1), (1, 0x90, 3)),  # count and bytes disagree
                ((1, 7), (1, 0x87, 1)),  # a function that twins do not have
            ):
                port.write(framed(*request))
                expected = framed(*refused)
                assert await read_exactly(port, len(expected)) == expected
    assert twin.values == dict.fromkeys(range(10), 0), "the broadcast was not obeyed"


async def test_a_closed_gate_withholds_what_would_complete_a_reading(tmp_path: Path) -> None:
    gate = Gate(is_open=False)
    told: list[Mapping[str, Value]] = []
    twin = Registers(1, range(10), gate.truth(told.append))
    async with (
        ModbusRtuLine([twin], tmp_path / "tty", gate=gate) as line,
        rtu(line.port) as client,
    ):
        await client.write_register(0, 5, device_id=1)
        assert (await client.read_holding_registers(1, count=1, device_id=1)).registers == [0]
        with pytest.raises(ModbusIOException):
            await client.read_holding_registers(0, count=1, device_id=1)
        gate.open()
        assert (await client.read_holding_registers(0, count=1, device_id=1)).registers == [5]
        gate.close()
        await asyncio.wait_for(line.quiet(), DEADLINE_S)
    assert told == [{"first": 5}]


async def test_the_port_can_be_opened_again(tmp_path: Path) -> None:
    async with ModbusRtuLine([Registers(1, range(10))], tmp_path / "tty") as line:
        for _ in range(3):
            async with rtu(line.port) as client:
                answer = await client.read_holding_registers(0, count=2, device_id=1)
                assert answer.registers == [0, 0]


async def test_two_twins_cannot_have_one_register(tmp_path: Path) -> None:
    with pytest.raises(SimulatorError, match=r"unit 1: .* overlap"):
        ModbusRtuLine([Registers(1, range(10)), Registers(1, range(9, 20))], tmp_path / "tty")


async def test_tcp_answers_many_clients_and_many_requests_at_once() -> None:
    twin = Registers(1, range(10))
    async with ModbusTcpLine([twin]) as line, tcp(line) as one, tcp(line) as other:
        assert line.endpoint == {"kind": "modbus-tcp", "host": "127.0.0.1", "port": line.port}
        await one.write_register(2, 77, device_id=1)
        answers = await asyncio.gather(
            *(client.read_holding_registers(2, count=1, device_id=1) for client in (one, other) * 5)
        )
        assert [answer.registers for answer in answers] == [[77]] * 10
        answer = await one.read_holding_registers(2, count=1, device_id=3)
        assert answer.exception_code == 11


async def test_tcp_takes_frames_in_pieces_and_together_and_ends_with_strangers() -> None:
    async with ModbusTcpLine([Registers(1, range(10))]) as line:
        reader, writer = await asyncio.open_connection(line.host, line.port)
        request = bytes.fromhex("0001 0000 0006 01 03 0000 0001")
        writer.write(request[:5])
        await writer.drain()
        writer.write(request[5:] + request.replace(b"\x00\x01\x00", b"\x00\x02\x00", 1))
        async with asyncio.timeout(DEADLINE_S):
            answers = await reader.readexactly(2 * 11)
            assert answers[:11] == bytes.fromhex("0001 0000 0005 01 03 02 0000")
            assert answers[11:13] == b"\x00\x02"
            writer.write(b"GET / HTTP/1.1\r\n\r\n")
            with suppress(ConnectionResetError):
                assert await reader.read() == b""
        writer.close()
        async with tcp(line) as client:
            answer = await client.read_holding_registers(0, count=1, device_id=1)
            assert answer.registers == [0]


def test_the_fixture_serves_blocking_clients(modbus_line: Callable[..., Endpoint]) -> None:
    line = modbus_line(Registers(1, range(10)), Registers(2, range(10)))
    client = ModbusSerialClient(str(line["port"]), baudrate=19200, timeout=1)
    assert client.connect()
    assert client.read_holding_registers(0, count=2, device_id=2).registers == [0, 0]
    client.close()  # type: ignore[no-untyped-call]  # pymodbus leaves it unannotated
    line = modbus_line(Registers(1, range(10)), tcp=True)
    remote = ModbusTcpClient(str(line["host"]), port=int(line["port"]), timeout=1)
    assert remote.connect()  # type: ignore[no-untyped-call]  # pymodbus leaves it unannotated
    assert remote.read_holding_registers(0, count=2, device_id=1).registers == [0, 0]
    remote.close()  # type: ignore[no-untyped-call]  # pymodbus leaves it unannotated
