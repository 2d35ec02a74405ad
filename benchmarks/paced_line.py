"""One pair of RS-485 wires at a stated speed, with slaves that note when a request has reached them.

Behind a pseudo terminal, which hands bytes over at once, stands a wire that takes its time: a request is
at the slaves when its last bit would be, an answer's bytes come as fast as the wire carries them, and
nobody may speak while somebody does, nor sooner than 3.5 characters later: slaves tell frames apart by
that silence, so a request that comes sooner is lost on all of them. All times are absolute: a timer that
fires late makes no frame longer.

Source: MODBUS over Serial Line V1.02, 2.5.1.1 (8N1 here: 10 bits a character, not 11).
"""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from device_drivers.kit.register_table import crc16, sealed
from simulators.pseudo_terminal import PseudoTerminal

BITS_PER_CHARACTER: Final = 10
GAP_CHARACTERS: Final = 3.5
TURNAROUND_S: Final = 0.005
"""What a slave takes to answer, after the silence that ends the request."""
REQUEST_BYTES: Final = 8
"""Of a read, or of a write of one register."""
_READS = (3, 4)
_WRITE = 6
_SLICE_CHARACTERS = 4  # an answer comes in portions of so many
_BROKEN_S = 0.05  # what came of a request is given up when the rest has not come by then


class Slave:
    """One meter on the line; one that is not `alive` hears and says nothing."""

    def __init__(self, unit: int, registers: bytes) -> None:
        self.unit, self.registers, self.alive = unit, registers, True
        self.asked_s: list[float] = []
        """When a request for it was at its end, answered or not, by `time.monotonic`."""


class PacedLine(AbstractAsyncContextManager["PacedLine"]):
    """The line and its slaves; `port` is what a master opens."""

    def __init__(self, path: Path, slaves: Iterable[Slave], *, baud: int) -> None:
        self.port = path
        self.slaves = {slave.unit: slave for slave in slaves}
        self.requests = 0
        self.lost = 0
        """Requests that came while somebody spoke, or without the silence before them."""
        self.broken = 0
        """Requests that are none, or whose CRC differs."""
        self.busy_s = 0.0
        """For how long somebody spoke."""
        self._character_s = BITS_PER_CHARACTER / baud
        self._terminal = PseudoTerminal(path, hear=self._hear)
        self._request = b""
        self._begun_s = 0.0
        self._clear_s = 0.0  # until then somebody speaks
        self._timers: set[asyncio.TimerHandle] = set()

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        await self._terminal.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for timer in self._timers:
            timer.cancel()
        await self._terminal.__aexit__(kind, error, trace)

    def _hear(self, data: bytes) -> None:
        now_s = time.monotonic()
        if self._request and now_s - self._begun_s > _BROKEN_S:
            self.broken += 1
            self._request = b""
        if not self._request:
            self._begun_s = now_s
            if now_s < self._clear_s + GAP_CHARACTERS * self._character_s:
                self.lost += 1
                self._occupy(now_s, len(data))
                return
        self._request += data
        if len(self._request) >= REQUEST_BYTES:
            request, self._request = self._request, b""
            self._occupy(self._begun_s, len(request))
            self._at(self._clear_s, lambda: self._arrived(request))

    def _occupy(self, from_s: float, characters: int) -> None:
        length_s = characters * self._character_s
        self.busy_s += length_s
        self._clear_s = max(self._clear_s, from_s + length_s)

    def _arrived(self, request: bytes) -> None:
        self.requests += 1
        unit, function, address, count = struct.unpack(">BBHH", request[:6])
        if len(request) != REQUEST_BYTES or crc16(request) or function not in (*_READS, _WRITE):
            self.broken += 1
            return
        slave = self.slaves.get(unit)
        if slave is None:
            return
        slave.asked_s.append(time.monotonic())
        if not slave.alive:
            return
        answer = request  # a write's echo
        if function in _READS:
            found = slave.registers[2 * address : 2 * (address + count)]
            if len(found) != 2 * count:
                self.broken += 1
                return
            answer = sealed(struct.pack(">BBB", unit, function, len(found)) + found)
        begins_s = self._clear_s + GAP_CHARACTERS * self._character_s + TURNAROUND_S
        self._occupy(begins_s, len(answer))
        self._say(answer, 0, begins_s)

    def _say(self, answer: bytes, said: int, begins_s: float) -> None:
        """Let the next portion come when its last bit has."""
        if said >= len(answer):
            # a timer that fired late: the master has heard the end only now
            self._clear_s = max(self._clear_s, time.monotonic())
            return
        upto = min(said + _SLICE_CHARACTERS, len(answer))

        def come() -> None:
            self._terminal.write(answer[said:upto])
            self._say(answer, upto, begins_s)

        self._at(begins_s + upto * self._character_s, come)

    def _at(self, when_s: float, what: Callable[[], None]) -> None:
        """Call something at a time of `time.monotonic`, which is the loop's."""

        def call() -> None:
            self._timers.discard(timer)
            what()

        timer = self._loop.call_at(when_s, call)
        self._timers.add(timer)
