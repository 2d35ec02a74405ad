"""The serial link on real pseudo terminals, and the Plantower driver over it."""

from __future__ import annotations

import asyncio
import os
import pty
import tty
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from device_drivers.errors import DeviceSilent, LinkLost
from device_drivers.kit.driver import Value
from device_drivers.kit.registry import load
from device_drivers.links.serial import UNREAD_MAX, open_serial


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
        with pytest.raises(LinkLost, match="lock"):
            async with open_serial(cable[1]):
                pytest.fail("opened twice")
    async with open_serial(cable[1]):  # closed is closed
        pass


async def test_a_missing_port_is_named() -> None:
    with pytest.raises(LinkLost, match="/dev/ttyNOWHERE"):
        async with open_serial("/dev/ttyNOWHERE"):
            pytest.fail("opened")


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
