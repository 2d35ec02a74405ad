"""The serial link on real pseudo terminals, and the Plantower driver over it."""

from __future__ import annotations

import asyncio
import os
import pty
import stat
import threading
import tty
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from device_drivers.errors import DeviceSilent, LinkLost, PortInUse
from device_drivers.kit.driver import Value
from device_drivers.kit.registry import load
from device_drivers.links import serial as serial_link
from device_drivers.links.modbus import open_modbus_rtu
from device_drivers.links.serial import UNREAD_MAX, open_serial
from tests.hanging_folder import hanging_folder

DEADLINE_S = 20.0


@pytest.fixture
def cable() -> Iterator[tuple[int, str]]:
    """Give the far end of a serial cable and the port at the near end."""
    far, near = pty.openpty()
    tty.setraw(near)
    ends = [far, near]
    try:
        yield far, os.ttyname(near)
    finally:
        for end in ends:
            os.close(end)


async def read_bytes(port: Any, count: int) -> bytes:
    data = b""
    while len(data) < count:
        data += await port.read_some(2.0)
    return data


async def test_bytes_go_both_ways(cable: tuple[int, str]) -> None:
    far, name = cable
    async with open_serial(name) as port:
        await port.write(b"hello")
        assert os.read(far, 100) == b"hello"
        os.write(far, bytes(range(256)))
        assert await read_bytes(port, 256) == bytes(range(256))


async def test_silence_has_a_deadline(cable: tuple[int, str]) -> None:
    async with open_serial(cable[1]) as port:
        with pytest.raises(DeviceSilent):
            await port.read_some(0.05)
        with pytest.raises(DeviceSilent):
            await port.read_some(-1.0)


async def test_what_came_before_the_opening_is_discarded(cable: tuple[int, str]) -> None:
    far, name = cable
    os.write(far, b"old")
    async with open_serial(name) as port:
        os.write(far, b"new")
        assert await read_bytes(port, 3) == b"new"


async def test_input_is_discarded_on_request(cable: tuple[int, str]) -> None:
    far, name = cable
    async with open_serial(name) as port:
        os.write(far, b"received")
        await read_bytes(port, 8)
        os.write(far, b"received but not read")
        await until(lambda: port._unread)  # type: ignore[attr-defined]  # watched from within
        os.write(far, b"still in the kernel")
        port.discard_input()
        os.write(far, b"new")
        assert await read_bytes(port, 3) == b"new"


async def until(there: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not there():  # noqa: ASYNC110 - what a link has received, it tells nobody but its reader
            await asyncio.sleep(0.001)


async def test_a_reader_that_sleeps_costs_the_oldest_bytes_only(cable: tuple[int, str]) -> None:
    far, name = cable
    async with open_serial(name) as port:
        for part in range(8):
            os.write(far, b"%d" % part * 1024)
            await until(lambda last=b"%d" % part: port._unread.endswith(last * 1024))  # type: ignore[attr-defined,misc]  # watched from within
        os.write(far, b"newest")
        await until(lambda: port._unread.endswith(b"newest"))  # type: ignore[attr-defined]  # watched from within
        data = await port.read_some(1.0)
        assert len(data) == UNREAD_MAX
        assert data.endswith(b"7newest")


async def test_unplugging_is_a_lost_link() -> None:
    far, near = pty.openpty()
    tty.setraw(near)
    name = os.ttyname(near)
    async with open_serial(name) as port:
        os.close(near)
        os.write(far, b"last words")
        assert await read_bytes(port, 10) == b"last words"
        waiting = asyncio.ensure_future(port.read_some(5.0))
        await asyncio.sleep(0)
        os.close(far)
        with pytest.raises(LinkLost, match=name):
            await waiting
        with pytest.raises(LinkLost):
            await port.read_some(5.0)
        with pytest.raises(LinkLost):
            await port.write(b"anybody?")
        port.discard_input()  # there is none


async def test_a_port_in_use_is_not_shared(cable: tuple[int, str]) -> None:
    async with open_serial(cable[1]):
        with pytest.raises(PortInUse, match="in use"):
            async with open_serial(cable[1]):
                pytest.fail("opened twice")
        with pytest.raises(PortInUse, match="in use"):
            async with open_modbus_rtu(cable[1]):
                pytest.fail("opened twice")
    async with open_serial(cable[1]):  # closed is closed
        pass


async def test_a_missing_port_is_named() -> None:
    with pytest.raises(LinkLost, match="/dev/ttyNOWHERE: there is no such port"):
        async with open_serial("/dev/ttyNOWHERE"):
            pytest.fail("opened")


# ----------------------------------------------------------------------------------- ports that hang, or are none

OPENERS: list[Any] = [open_serial, open_modbus_rtu]


@pytest.mark.parametrize("opener", OPENERS)
@pytest.mark.parametrize("kind", ["fifo", "folder", "file", "socket"])
async def test_what_is_no_port_is_said_to_be_none(kind: str, opener: Any, tmp_path: Path) -> None:
    path = tmp_path / "ttyS"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "file":
        path.write_text("kept")
    else:
        os.mknod(path, stat.S_IFSOCK | 0o600)
    async with asyncio.timeout(DEADLINE_S):
        with pytest.raises(LinkLost, match="no serial port") as caught:
            async with opener(str(path)):
                pytest.fail("opened")
    assert not isinstance(caught.value, PortInUse)
    if kind == "file":
        assert path.read_text() == "kept"


@pytest.mark.parametrize("opener", OPENERS)
async def test_a_device_that_is_no_terminal_is_no_port(opener: Any) -> None:
    with pytest.raises(LinkLost, match="/dev/null"):
        async with opener("/dev/null"):
            pytest.fail("opened")


@pytest.mark.parametrize("opener", OPENERS)
async def test_a_port_whose_driver_hangs_holds_nobody(
    opener: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel answers never: each attempt ends in time, one thread waits however often it is tried."""
    monkeypatch.setattr(serial_link, "OPEN_S", 0.3)
    with hanging_folder(tmp_path / "dev") as folder:
        path = str(folder / "ttyUSB0")
        rounds = 0

        async def live() -> None:
            nonlocal rounds
            while True:
                rounds += 1
                await asyncio.sleep(0.01)

        living = asyncio.create_task(live())
        for _ in range(3):
            async with asyncio.timeout(DEADLINE_S):
                with pytest.raises(LinkLost, match=f"{path}: the port hangs"):
                    async with opener(path):
                        pytest.fail("opened")
        assert rounds > 9, "the others went on meanwhile"
        living.cancel()
        waiting = [thread for thread in threading.enumerate() if thread.name == f"port {path}"]
        assert len(waiting) == 1
        assert waiting[0].daemon, "the process can end without it"
    async with asyncio.timeout(DEADLINE_S):
        with pytest.raises(LinkLost, match="no such port"):  # it no longer hangs
            async with opener(path):
                pytest.fail("opened")


async def test_a_port_that_opens_too_late_is_closed_again(
    cable: tuple[int, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serial_link, "OPEN_S", 0.2)
    go, opened = threading.Event(), serial_link._opened

    def late(path: str, settings: dict[str, Any]) -> Any:
        assert go.wait(DEADLINE_S)
        return opened(path, settings)

    monkeypatch.setattr(serial_link, "_opened", late)
    with pytest.raises(LinkLost, match="hangs"):
        async with open_serial(cable[1]):
            pytest.fail("opened")
    monkeypatch.setattr(serial_link, "_opened", opened)
    monkeypatch.setattr(serial_link, "OPEN_S", DEADLINE_S)
    go.set()
    async with asyncio.timeout(DEADLINE_S), open_serial(cable[1]) as port:
        os.write(cable[0], b"heard")
        assert await read_bytes(port, 5) == b"heard"


async def test_a_port_that_takes_no_bytes_is_lost(cable: tuple[int, str]) -> None:
    """Nobody reads at the far end: what the kernel keeps is full after a while, and the agent must not wait for it."""
    async with asyncio.timeout(DEADLINE_S), open_serial(cable[1]) as port:
        with pytest.raises(LinkLost, match="takes no more bytes"):
            for _ in range(10_000):
                await port.write(b"x" * 256)
                await asyncio.sleep(0)
    async with asyncio.timeout(DEADLINE_S), open_serial(cable[1]):
        pass  # it is closed, and can be opened anew


async def test_bytes_that_the_port_takes_later_are_sent(cable: tuple[int, str]) -> None:
    far, name = cable
    sent = 0
    async with asyncio.timeout(DEADLINE_S), open_serial(name) as port:
        while not port.transport._unsent:  # type: ignore[attr-defined]  # watched from within
            await port.write(b"%07d\n" % sent)
            sent += 1
        await port.write(b"the end\n")
        os.set_blocking(far, False)
        got = b""
        while not got.endswith(b"the end\n"):
            with suppress(BlockingIOError):
                got += os.read(far, 65536)
            await asyncio.sleep(0.001)
    assert got == b"".join(b"%07d\n" % number for number in range(sent)) + b"the end\n"


@pytest.mark.parametrize("mode", ["active", "passive"])
async def test_plantower_over_the_wire(mode: str, serial_line: Callable[..., str]) -> None:
    truths: list[Mapping[str, Value]] = []
    package = load("plantower_pms")
    world = {"pm2_5": 17.2, "pm10": 31.0}
    settings = {"mode": mode}
    driver: Any = package.driver(settings)
    port_name = serial_line(package.twin(settings, lambda: world, truths.append))
    async with open_serial(port_name) as port:
        await driver.start(port)
        readings = [await driver.read(port) for _ in range(3)]
    assert [reading.metrics for reading in readings] == truths[:3]
    assert {reading.quality for reading in readings} == {""}
