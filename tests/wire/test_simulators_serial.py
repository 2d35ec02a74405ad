"""Serial lines with twins on them, against real pyserial clients."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import serial
import serial_asyncio_fast

from device_drivers.kit.driver import Value
from device_drivers.kit.twin import Truth
from simulators.errors import SimulatorError
from simulators.gate import Gate
from simulators.serial_line import SerialLine

DEADLINE_S = 5.0


class Counter:
    """A device that counts aloud; `?` asks for the next number, `p` and `a` set its mode."""

    def __init__(self, truth: Truth = lambda _: None, period_s: float = 0.05) -> None:
        self.truth, self.active_period_s = truth, period_s
        self.active = True
        self.count = 0

    @property
    def period_s(self) -> float | None:
        return self.active_period_s if self.active else None

    def speak(self) -> bytes:
        self.count += 1
        self.truth({"count": self.count})
        return b"%08d\n" % self.count

    def hear(self, data: bytes) -> bytes:
        if data == b"?":
            return self.speak()
        self.active = data == b"a"
        return b"mode " + data + b"\n"


@asynccontextmanager
async def opened(port: str) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await serial_asyncio_fast.open_serial_connection(
        url=port, baudrate=9600, exclusive=True
    )
    try:
        async with asyncio.timeout(DEADLINE_S):
            yield reader, writer
    finally:
        writer.close()


async def test_a_twin_speaks_to_whoever_has_the_port_open(tmp_path: Path) -> None:
    async with (
        SerialLine(Counter(), tmp_path / "ttyAIR0") as line,
        opened(line.port) as (reader, _),
    ):
        assert line.endpoint == {"kind": "serial", "port": str(tmp_path / "ttyAIR0")}
        heard = [int(await reader.readline()) for _ in range(5)]
    assert heard == [1, 2, 3, 4, 5]
    assert not (tmp_path / "ttyAIR0").exists()


async def test_a_closed_port_is_not_spoken_to_and_nothing_is_missed_over_reopenings(
    tmp_path: Path,
) -> None:
    twin = Counter(period_s=0.1)
    heard = []
    async with SerialLine(twin, tmp_path / "tty") as line:
        for _ in range(4):
            async with opened(line.port) as (reader, _):
                heard += [int(await reader.readline()) for _ in range(2)]
            said = twin.count
            await asyncio.sleep(3 * twin.active_period_s)  # time in which it would have spoken
            assert twin.count == said
    assert heard == [1, 2, 3, 4, 5, 6, 7, 8]


async def test_it_answers_and_follows_a_change_of_its_mode(tmp_path: Path) -> None:
    twin = Counter()
    async with SerialLine(twin, tmp_path / "tty") as line, opened(line.port) as (reader, writer):
        writer.write(b"p")
        while await reader.readline() != b"mode p\n":
            pass
        said = twin.count
        await asyncio.sleep(3 * twin.active_period_s)
        assert twin.count == said
        writer.write(b"?")
        assert int(await reader.readline()) == said + 1
        writer.write(b"a")
        assert await reader.readline() == b"mode a\n"
        assert int(await reader.readline()) == said + 2


async def test_through_a_closed_gate_commands_pass_and_readings_do_not(tmp_path: Path) -> None:
    gate = Gate(is_open=False)
    told: list[Mapping[str, Value]] = []
    twin = Counter(gate.truth(told.append))
    async with (
        SerialLine(twin, tmp_path / "tty", gate=gate) as line,
        opened(line.port) as (reader, writer),
    ):
        await asyncio.sleep(3 * twin.active_period_s)
        assert twin.count == 0, "muted, it does not even begin"
        writer.write(b"p")
        assert await reader.readline() == b"mode p\n"
        writer.write(b"?")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.readline(), 0.1)
        assert told == []
        gate.open()
        writer.write(b"?")
        assert int(await reader.readline()) == 2
        assert told == [{"count": 2}]


async def test_an_opened_gate_lets_it_speak_at_once(tmp_path: Path) -> None:
    gate = Gate(is_open=False)
    twin = Counter(period_s=0.5)
    async with SerialLine(twin, tmp_path / "tty", gate=gate) as line, opened(line.port) as port:
        await asyncio.sleep(2 * twin.active_period_s)
        gate.open()
        assert int(await asyncio.wait_for(port[0].readline(), twin.active_period_s / 2)) == 1


async def test_quiet_means_that_the_client_has_read_everything(tmp_path: Path) -> None:
    gate = Gate()
    async with SerialLine(Counter(), tmp_path / "tty", gate=gate) as line:
        with serial.Serial(line.port, 9600, timeout=0) as port:
            while not port.in_waiting:  # noqa: ASYNC110 - the kernel tells only when asked
                await asyncio.sleep(0.01)
            gate.close()
            quiet = asyncio.ensure_future(line.quiet())
            done, _ = await asyncio.wait([quiet], timeout=0.1)
            assert not done
            assert port.read(100) == b"00000001\n"
            await asyncio.wait_for(quiet, DEADLINE_S)


async def test_what_is_between_both_ends_is_not_quiet_yet(tmp_path: Path) -> None:
    """The kernel counts nowhere what was written just now; who pulls the cable then loses it."""
    gate = Gate(is_open=False)
    port = tmp_path / "pms"
    async with SerialLine(Counter(), port, gate=gate) as line:
        with serial.Serial(str(port), timeout=0, exclusive=True) as client:
            await asyncio.sleep(0.1)
            for _ in range(20):
                line._terminal.write(b"12345678\n")
                quiet = asyncio.create_task(line.quiet())
                await asyncio.wait({quiet}, timeout=0.05)
                assert not quiet.done()
                assert client.read(100) == b"12345678\n"
                await asyncio.wait_for(quiet, DEADLINE_S)


async def test_bytes_take_the_time_they_take_on_a_real_line(tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()
    twin = Counter(period_s=0.01)
    baud = 600
    async with SerialLine(twin, tmp_path / "tty", baud=baud) as line, opened(line.port) as port:
        await port[0].readline()
        began_s = loop.time()
        heard = [int(await port[0].readline()) for _ in range(3)]
        took_s = loop.time() - began_s
    assert heard == [2, 3, 4], "it does not speak before it has finished"
    assert took_s > 0.9 * 3 * 9 * 10 / baud


async def test_a_client_that_does_not_read_gets_whole_frames_later(tmp_path: Path) -> None:
    twin = Counter(period_s=0.001)
    async with SerialLine(twin, tmp_path / "tty") as line:
        with serial.Serial(line.port, 9600, timeout=0) as port:
            async with asyncio.timeout(DEADLINE_S):
                while twin.count < 600:  # more than a PTY holds unread would be 4095 bytes
                    before = twin.count
                    await asyncio.sleep(0.05)
                    if twin.count == before:
                        break
                received = b""
                while received.count(b"\n") < twin.count:
                    received += port.read(4096)
                    await asyncio.sleep(0)
    assert [int(frame) for frame in received.split()] == list(range(1, twin.count + 1))


async def test_unplugging_is_seen_by_the_client(tmp_path: Path) -> None:
    async with SerialLine(Counter(), tmp_path / "tty") as line:
        reader, writer = await serial_asyncio_fast.open_serial_connection(url=line.port)
        await asyncio.wait_for(reader.readline(), DEADLINE_S)
    with pytest.raises(serial.SerialException):
        await asyncio.wait_for(reader.read(), DEADLINE_S)
    writer.close()


async def test_the_name_left_by_a_killed_town_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / "tty").symlink_to("/dev/pts/long-gone")
    async with SerialLine(Counter(), tmp_path / "tty") as line, opened(line.port) as (reader, _):
        assert int(await reader.readline()) == 1


async def test_a_file_in_the_way_is_not_deleted(tmp_path: Path) -> None:
    (tmp_path / "tty").write_text("precious")
    with pytest.raises(SimulatorError, match="not a simulated port"):
        async with SerialLine(Counter(), tmp_path / "tty"):
            pass
    assert (tmp_path / "tty").read_text() == "precious"


async def test_a_twin_that_fails_is_not_taken_for_a_silent_one(tmp_path: Path) -> None:
    class Broken(Counter):
        def speak(self) -> bytes:
            raise ZeroDivisionError

    with pytest.raises(ExceptionGroup) as failed:
        async with SerialLine(Broken(), tmp_path / "tty") as line, opened(line.port) as (reader, _):
            await reader.readline()
    assert failed.group_contains(ZeroDivisionError)


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


async def test_lines_leave_no_open_files(tmp_path: Path) -> None:
    before = open_files()
    async with SerialLine(Counter(), tmp_path / "tty") as line:
        with serial.Serial(line.port):
            assert open_files() > before
    assert open_files() == before


def test_the_fixture_serves_blocking_clients(serial_line: Callable[..., str]) -> None:
    one, other = serial_line(Counter()), serial_line(Counter(), baud=9600)
    assert one != other
    for port in (one, other):
        with serial.Serial(port, 9600, timeout=DEADLINE_S) as opened_port:
            assert [int(opened_port.readline()) for _ in range(3)] == [1, 2, 3]
