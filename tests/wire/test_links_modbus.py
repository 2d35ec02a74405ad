"""The Modbus link against real servers on a PTY and on TCP, and the Intesis driver over it."""

from __future__ import annotations

import asyncio
import os
import pty
import time
import tty
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Any, TypeAlias

import pytest

from device_drivers.errors import DeviceRefused, DeviceSilent, FrameError, LinkLost
from device_drivers.kit.driver import ModbusBus, Value
from device_drivers.kit.register_table import sealed
from device_drivers.kit.registry import load
from device_drivers.kit.twin import ModbusException
from device_drivers.links import modbus as modbus_link
from device_drivers.links.modbus import open_modbus_rtu
from device_drivers.links.modbus_tcp import open_modbus_tcp

Open: TypeAlias = Callable[..., AbstractAsyncContextManager[ModbusBus]]


class Table:
    """A device of a hundred registers and coils that answers everything, and refuses address 66."""

    unit = 7
    addresses = range(100)

    def __init__(self) -> None:
        self.registers = list(range(1000, 1100))

    def read(self, function: int, address: int, count: int) -> Sequence[int]:
        if address == 66:
            raise ModbusException(0x60)
        if function in (1, 2):
            return [(address + bit) % 3 == 0 for bit in range(count)]
        return [value + function for value in self.registers[address : address + count]]

    def write(self, function: int, address: int, values: Sequence[int]) -> None:
        assert function in (6, 16)
        if address == 66:
            raise ModbusException(2)
        self.registers[address : address + len(values)] = values


@pytest.fixture(params=["rtu", "tcp"])
def bus(request: pytest.FixtureRequest, modbus_line: Callable[..., Any]) -> Open:
    """Return what opens the bus with the table on it."""
    if request.param == "rtu":
        port = modbus_line(Table())["port"]
        return lambda: open_modbus_rtu(port, timeout_s=0.3)
    endpoint = modbus_line(Table(), tcp=True)
    return lambda: open_modbus_tcp(endpoint["host"], port=endpoint["port"], timeout_s=0.3)


async def test_everything_is_read_and_written(bus: Open) -> None:
    async with bus() as line:
        assert await line.read_holding(7, 0, 3) == [1003, 1004, 1005]
        assert await line.read_input(7, 10, 2) == [1014, 1015]
        assert await line.read_coils(7, 0, 5) == [True, False, False, True, False]
        assert await line.read_discrete(7, 1, 9) == [(bit + 1) % 3 == 0 for bit in range(9)]
        await line.write_register(7, 5, 42)
        await line.write_registers(7, 6, [43, 44])
        assert await line.read_holding(7, 5, 3) == [45, 46, 47]


async def test_a_refusal_keeps_its_raw_code(bus: Open) -> None:
    async with bus() as line:
        with pytest.raises(DeviceRefused, match="not in the standard") as caught:
            await line.read_holding(7, 66, 1)
        assert caught.value.code == 0x60
        with pytest.raises(DeviceRefused, match="illegal address") as caught:
            await line.write_register(7, 66, 1)
        assert caught.value.code == 2
        assert await line.read_holding(7, 0, 1) == [1003]


async def test_requests_take_turns(bus: Open) -> None:
    async with bus() as line:
        answers = await asyncio.gather(*(line.read_holding(7, at, 1) for at in range(20)))
    assert answers == [[1003 + at] for at in range(20)]


async def test_a_cancelled_request_does_not_spoil_the_next(bus: Open) -> None:
    async with bus() as line:
        for _ in range(3):
            asked = asyncio.ensure_future(line.read_holding(7, 50, 3))
            await asyncio.sleep(0)
            asked.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asked
            assert await line.read_holding(7, 0, 3) == [1003, 1004, 1005]


async def test_a_unit_that_is_not_there(bus: Open, request: pytest.FixtureRequest) -> None:
    async with bus() as line:
        # A TCP gateway answers for its absent units; on a serial line there is nobody to.
        silent = "rtu" in request.node.name
        with pytest.raises(DeviceSilent if silent else DeviceRefused):
            await line.read_holding(9, 0, 1)
        assert await line.read_holding(7, 0, 1) == [1003]


class Cable:
    """A serial cable whose far end the test plays, request by request."""

    def __init__(self) -> None:
        self.far, near = pty.openpty()
        tty.setraw(near)
        self.port = os.ttyname(near)
        self._near = near
        self.requests: asyncio.Queue[bytes] = asyncio.Queue()

    def listen(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_reader(self.far, lambda: self.requests.put_nowait(os.read(self.far, 300)))

    async def request(self) -> bytes:
        return await asyncio.wait_for(self.requests.get(), 5)

    def send(self, body: str, *, damaged: bool = False) -> None:
        frame = sealed(bytes.fromhex(body))
        os.write(self.far, frame[:-1] + bytes((frame[-1] ^ damaged,)))

    def close(self) -> None:
        os.close(self.far)
        os.close(self._near)


@pytest.fixture
def cable() -> Iterator[Cable]:
    cable = Cable()
    yield cable
    cable.close()


@asynccontextmanager
async def opened(cable: Cable) -> AsyncIterator[ModbusBus]:
    cable.listen()
    try:
        async with asyncio.timeout(20), open_modbus_rtu(cable.port, timeout_s=0.3) as line:
            yield line
    finally:
        asyncio.get_running_loop().remove_reader(cable.far)


async def test_a_late_answer_is_never_taken_for_the_next_one(cable: Cable) -> None:
    async with opened(cable) as line:
        began_s = time.monotonic()
        asked = asyncio.ensure_future(line.read_holding(1, 0, 1))
        await cable.request()
        with pytest.raises(DeviceSilent):
            await asked
        cable.send("0103020001")  # the answer to the first, late
        following = asyncio.ensure_future(line.read_holding(1, 50, 1))
        assert (await cable.request())[:6] == bytes.fromhex("010300320001")
        assert time.monotonic() - began_s >= 0.3 + modbus_link._LATE_S, "the line has to be quiet"
        cable.send("0103020002")
        assert await following == [2]


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ("02030204d2", "wrong_slave"),
        ("01040204d2", "wrong_function"),
        ("01030404d204d2", "bad_byte_count"),
        ("01030204d2", "bad_crc"),
    ],
)
async def test_a_wrong_answer_is_refused(cable: Cable, answer: str, kind: str) -> None:
    async with opened(cable) as line:
        asked = asyncio.ensure_future(line.read_holding(1, 0, 1))
        await cable.request()
        cable.send(answer, damaged=kind == "bad_crc")
        with pytest.raises(FrameError) as caught:
            await asked
        assert caught.value.kind == kind
        asked = asyncio.ensure_future(line.read_holding(1, 0, 1))
        await cable.request()
        cable.send("01030204d2")
        assert await asked == [1234]


async def test_half_an_answer_is_told_from_silence(cable: Cable) -> None:
    async with opened(cable) as line:
        asked = asyncio.ensure_future(line.read_holding(1, 0, 1))
        await cable.request()
        os.write(cable.far, bytes.fromhex("0103020400"))
        with pytest.raises(FrameError) as caught:
            await asked
        assert caught.value.kind == "short"


async def test_a_write_that_is_echoed_differently_is_refused(cable: Cable) -> None:
    async with opened(cable) as line:
        asked = asyncio.ensure_future(line.write_register(1, 5, 40))
        await cable.request()
        cable.send("010600050029")
        with pytest.raises(FrameError, match="bad_value"):
            await asked
        written = asyncio.ensure_future(line.write_registers(1, 5, [40, 41]))
        await cable.request()
        cable.send("011000050001")
        with pytest.raises(FrameError, match="bad_value"):
            await written


async def test_unplugging_is_a_lost_link() -> None:
    cable = Cable()
    async with opened(cable) as line:
        asyncio.get_running_loop().remove_reader(cable.far)
        cable.close()
        with pytest.raises(LinkLost, match=cable.port):
            await line.read_holding(1, 0, 1)
        with pytest.raises(LinkLost):
            await line.read_holding(1, 0, 1)
        cable.far = 0  # there is nothing left to stop listening to


async def test_a_server_that_goes_is_a_lost_link() -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.close()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, open_modbus_tcp("127.0.0.1", port=port, timeout_s=0.3) as line:
        with pytest.raises(LinkLost):
            await line.read_holding(1, 0, 1)
        with pytest.raises(LinkLost):
            await line.read_holding(1, 0, 1)


async def test_a_late_tcp_answer_is_known_by_its_transaction() -> None:
    async def answer_late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first = await reader.readexactly(12)
        second = await reader.readexactly(12)  # the first has timed out by now
        for request, value in ((first, b"\x00\x01"), (second, b"\x00\x02")):
            writer.write(request[:4] + b"\x00\x05\x01\x03\x02" + value)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer_late, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, open_modbus_tcp("127.0.0.1", port=port, timeout_s=0.2) as line:
        with pytest.raises(DeviceSilent):
            await line.read_holding(1, 0, 1)
        assert await line.read_holding(1, 50, 1) == [2]


@asynccontextmanager
async def replying(*replies: str) -> AsyncIterator[ModbusBus]:
    """Connect to a server that says these bytes, one for each request; `TTTT` is the request's transaction."""
    served = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            for reply in replies:
                asked = await reader.readexactly(12)
                writer.write(bytes.fromhex(reply.replace("TTTT", asked[:2].hex())))
            await reader.read()
        writer.close()
        served.set()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        async with open_modbus_tcp("127.0.0.1", port=port, timeout_s=0.3) as line:
            yield line
        await asyncio.wait_for(served.wait(), 5)


async def test_tcp_answers_of_others_are_passed_over() -> None:
    other_unit, other_request = "TTTT 0000 0005 02 03 02 0007", "7777 0000 0005 01 03 02 0008"
    async with replying(f"{other_unit} {other_request} TTTT 0000 0005 01 03 02 0009") as line:
        assert await line.read_holding(1, 0, 1) == [9]


async def test_each_request_has_its_own_time() -> None:
    """One alarm serves them all: it must not go off for whoever asked later."""
    async with replying("TTTT 0000 0005 01 03 02 0007") as line:
        assert await line.read_holding(1, 0, 1) == [7]
        await asyncio.sleep(0.2)
        began_s = time.monotonic()
        with pytest.raises(DeviceSilent):
            await line.read_holding(1, 0, 1)
        assert time.monotonic() - began_s >= 0.29


async def test_one_who_answers_for_another_is_silent() -> None:
    async with replying("TTTT 0000 0005 02 03 02 0007", "TTTT 0000 0005 01 03 02 0009") as line:
        with pytest.raises(DeviceSilent, match=r"unit 1: no answer in 0\.3 s"):
            await line.read_holding(1, 0, 1)
        assert await line.read_holding(1, 0, 1) == [9]


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        ("TTTT 0000 0005 01 04 02 0007", "wrong_function"),
        ("TTTT 0000 0003 01 84 02", "wrong_function"),
        ("TTTT 0000 0005 01 03 04 0007", "bad_byte_count"),
        ("TTTT 0000 0007 01 03 04 0007 0008", "bad_byte_count"),
        ("TTTT 0000 0006 01 03 02 0007 00", "bad_byte_count"),
    ],
)
async def test_a_wrong_tcp_answer_concerns_its_own_request(reply: str, kind: str) -> None:
    async with replying(reply, "TTTT 0000 0005 01 03 02 0009") as line:
        with pytest.raises(FrameError, match=kind):
            await line.read_holding(1, 0, 1)
        assert await line.read_holding(1, 0, 1) == [9]


async def test_a_tcp_write_must_be_echoed() -> None:
    async with replying("TTTT 0000 0006 01 06 0005 0001", "TTTT 0000 0006 01 06 0005 002a") as line:
        with pytest.raises(FrameError, match="bad_value"):
            await line.write_register(1, 5, 42)
        await line.write_register(1, 5, 42)


async def test_what_speaks_no_modbus_is_a_lost_link() -> None:
    async with replying(b"HTTP/1.1 400 Bad Request".hex()) as line:
        for _ in range(2):
            with pytest.raises(LinkLost, match="bad_header"):
                await line.read_holding(1, 0, 1)


async def test_a_missing_port_is_named() -> None:
    with pytest.raises(LinkLost, match="/dev/ttyNOWHERE: there is no such port"):
        async with open_modbus_rtu("/dev/ttyNOWHERE"):
            pytest.fail("opened")


async def test_a_port_in_use_is_not_shared(cable: Cable) -> None:
    async with opened(cable):
        with pytest.raises(LinkLost, match="in use"):
            async with open_modbus_rtu(cable.port):
                pytest.fail("opened twice")


async def test_an_absent_server_is_named() -> None:
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    with pytest.raises(LinkLost, match=f"127.0.0.1:{port}"):
        async with open_modbus_tcp("127.0.0.1", port=port):
            pytest.fail("opened")


@pytest.mark.parametrize("tcp", [False, True])
async def test_a_street_of_lamps_over_the_wire(tcp: bool, modbus_line: Callable[..., Any]) -> None:
    truths: dict[int, list[Mapping[str, Value]]] = {lamp: [] for lamp in range(4)}
    package = load("intesis_dali")
    settings = [{"unit": 1, "short_address": lamp} for lamp in truths]
    worlds: list[dict[str, Value]] = [{"level": 20 * lamp} for lamp in truths]
    twins = [
        package.twin(one, world.copy, truths[lamp].append)
        for lamp, (one, world) in enumerate(zip(settings, worlds, strict=True))
    ]
    drivers: list[Any] = [package.driver(one) for one in settings]
    endpoint = modbus_line(*twins, tcp=tcp)
    link = (
        open_modbus_tcp(endpoint["host"], port=endpoint["port"])
        if tcp
        else open_modbus_rtu(endpoint["port"])
    )
    async with link as line:
        readings = [await driver.read(line) for driver in drivers]
        assert [reading.metrics["level"] for reading in readings] == [0, 20, 40, 60]
        assert await drivers[2].command(line, "set_level", {"level": 75}) == {"level": 75}
        after = await drivers[2].read(line)
    assert after.metrics["level"] == 75
    for lamp, reading in enumerate(readings):
        assert truths[lamp][0] == reading.metrics
    assert [len(said) for said in truths.values()] == [1, 1, 2, 1]
