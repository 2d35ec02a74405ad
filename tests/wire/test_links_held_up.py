"""A gateway that is held up finds the answer in the socket, or in the port, and does not blame the device."""

from __future__ import annotations

import asyncio
import os
import pty
import socket
import threading
import tty
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager

import pytest
import uvloop

from device_drivers.errors import DeviceSilent
from device_drivers.kit.driver import ModbusBus
from device_drivers.kit.register_table import sealed
from device_drivers.links import modbus_tcp
from device_drivers.links.modbus import open_modbus_rtu
from device_drivers.links.modbus_tcp import open_modbus_tcp

UNIT, VALUE = 7, 4711
TIMEOUT_S, HELD_UP_S, DEADLINE_S = 0.3, 0.7, 20.0
LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
Open = Callable[[], AbstractAsyncContextManager[ModbusBus]]


class Device:
    """A device in a thread of its own: while the gateway stands still it does not."""

    def __init__(self) -> None:
        self.asked, self.may_answer, self.answered = (threading.Event() for _ in range(3))

    def _ponder(self) -> None:
        self.asked.set()
        self.may_answer.wait(DEADLINE_S)

    @contextmanager
    def on_tcp(self) -> Iterator[Open]:
        with socket.create_server(("127.0.0.1", 0)) as server:
            server.settimeout(DEADLINE_S)
            thread = threading.Thread(target=self._serve, args=[server])
            thread.start()
            yield lambda: open_modbus_tcp(
                "127.0.0.1", port=server.getsockname()[1], timeout_s=TIMEOUT_S
            )
            thread.join(DEADLINE_S)

    def _serve(self, server: socket.socket) -> None:
        client, _ = server.accept()
        with client:
            client.settimeout(DEADLINE_S)
            while request := client.recv(260):
                self._ponder()
                body = bytes([UNIT, 3, 2]) + VALUE.to_bytes(2)
                client.sendall(request[:4] + len(body).to_bytes(2) + body)
                self.answered.set()

    @contextmanager
    def on_rtu(self) -> Iterator[Open]:
        master, slave = pty.openpty()
        tty.setraw(slave)
        thread = threading.Thread(target=self._speak, args=[master])
        thread.start()
        try:
            yield lambda: open_modbus_rtu(os.ttyname(slave), timeout_s=TIMEOUT_S)
        finally:
            os.close(slave)  # the device sees everybody hang up
            thread.join(DEADLINE_S)
            os.close(master)

    def _speak(self, master: int) -> None:
        try:
            while os.read(master, 260):
                self._ponder()
                os.write(master, sealed(bytes([UNIT, 3, 2]) + VALUE.to_bytes(2)))
                self.answered.set()
        except OSError:
            return  # nobody has the port open any more


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("kind", ["tcp", "rtu"])
def test_an_answer_that_lies_there_is_taken_however_late_we_look(kind: str, loop: str) -> None:
    device = Device()

    async def ask(opened: Open) -> list[int]:
        async with opened() as link:
            device.may_answer.set()
            await link.read_holding(UNIT, 0, 1)  # the first one waits until the line is quiet
            for event in (device.asked, device.may_answer, device.answered):
                event.clear()
            asking = asyncio.create_task(link.read_holding(UNIT, 0, 1))
            async with asyncio.timeout(DEADLINE_S):
                while not device.asked.is_set():  # noqa: ASYNC110 - another thread's event
                    await asyncio.sleep(0.001)
            # a process that takes everything, a card that stalls, a page that has to come from flash
            device.may_answer.set()
            assert device.answered.wait(DEADLINE_S)
            threading.Event().wait(HELD_UP_S)
            return await asking

    with (
        device.on_tcp() if kind == "tcp" else device.on_rtu() as opened,
        asyncio.Runner(loop_factory=LOOPS[loop]) as runner,
    ):
        assert runner.run(ask(opened)) == [VALUE]


@pytest.mark.parametrize("loop", LOOPS)
def test_an_alarm_goes_off_once_or_twice_for_a_silent_unit(
    loop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = 0
    look = modbus_tcp._TcpBus._look

    def counted(bus: modbus_tcp._TcpBus) -> None:
        nonlocal looks
        looks += 1
        look(bus)

    async def ask(port: int) -> None:
        async with open_modbus_tcp("127.0.0.1", port=port, timeout_s=0.1234) as link:
            for _ in range(3):
                with pytest.raises(DeviceSilent):
                    await link.read_holding(UNIT, 0, 1)

    monkeypatch.setattr(modbus_tcp._TcpBus, "_look", counted)
    with (
        socket.create_server(("127.0.0.1", 0)) as server,  # which takes no call
        asyncio.Runner(loop_factory=LOOPS[loop]) as runner,
    ):
        runner.run(ask(server.getsockname()[1]))
    assert 3 <= looks <= 6


@pytest.mark.parametrize("loop", LOOPS)
def test_whoever_says_nothing_is_silent_although_we_were_held_up(loop: str) -> None:
    async def ask(port: int) -> None:
        async with open_modbus_tcp("127.0.0.1", port=port, timeout_s=TIMEOUT_S) as link:
            asking = asyncio.create_task(link.read_holding(UNIT, 0, 1))
            async with asyncio.timeout(DEADLINE_S):
                while not link.transactions:  # noqa: ASYNC110 - the link tells when asked
                    await asyncio.sleep(0)
            threading.Event().wait(HELD_UP_S)
            async with asyncio.timeout(DEADLINE_S):
                with pytest.raises(DeviceSilent):
                    await asking

    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        asyncio.Runner(loop_factory=LOOPS[loop]) as runner,
    ):
        runner.run(ask(server.getsockname()[1]))
