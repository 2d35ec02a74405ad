"""A serial port made of a pseudo terminal, under a stable name."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import pty
import select
import struct
import termios
import tty
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from simulators.errors import SimulatorError

LOOK_S: Final = 0.02
"""How often an unattended port is looked at: a PTY tells of an opening only when asked."""
PACE_S: Final = 0.004
"""Bytes paced to a baud rate leave in slices of this length."""
ON_THE_WAY_S: Final = 0.02
"""The kernel takes some milliseconds to bring bytes from one end to the other, and counts them at neither meanwhile."""
BITS_PER_BYTE: Final = 10
"""Start, eight data and stop bit."""


class PseudoTerminal:
    """A PTY under a stable path; reports what a client writes and when a client comes and goes.

    We keep no slave of our own open: the hang-up of the last client is then visible (EIO, POLLHUP),
    and a device does not speak into a port that nobody has open.
    """

    def __init__(
        self,
        path: Path,
        *,
        hear: Callable[[bytes], None],
        changed: Callable[[], None] = lambda: None,
        baud: int | None = None,
    ) -> None:
        """Prepare; `changed` is called when a client opened or closed the port.

        With `baud`, bytes leave at that rate; without, at once.
        """
        self.path = path
        self.attended_since_s: float | None = None
        """When a client opened the port (the loop's time); None while nobody has it open."""
        self._hear, self._changed, self._baud = hear, changed, baud
        self._outgoing = bytearray()
        self._pace: asyncio.TimerHandle | None = None
        self._look: asyncio.TimerHandle | None = None
        self._master = -1
        self._slave_name = ""

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._master, slave = pty.openpty()
        tty.setraw(slave)
        self._slave_name = os.ttyname(slave)
        os.close(slave)  # from here on the master sees a hang-up until a client opens the port
        os.set_blocking(self._master, False)
        self._publish()
        self._look_for_client()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for timer in (self._pace, self._look):
            if timer is not None:
                timer.cancel()
        self._loop.remove_reader(self._master)
        self._loop.remove_writer(self._master)
        os.close(self._master)  # a client that still has the port open sees an unplugged device
        self.path.unlink(missing_ok=True)

    @property
    def is_clear(self) -> bool:
        """A client has the port open and everything written so far has left."""
        return self.attended_since_s is not None and not self._outgoing

    def write(self, data: bytes) -> None:
        """Send to the client; dropped, as on a loose cable, when nobody has the port open."""
        if self.attended_since_s is None or not data:
            return
        self._outgoing += data
        if self._pace is None:
            self._send()

    async def drained(self) -> None:
        """Wait until the client has read what was written, or has gone."""
        was_at_rest = False
        while True:
            is_at_rest = not self._outgoing and not self._unread()
            if is_at_rest and was_at_rest:
                return
            was_at_rest = is_at_rest
            await asyncio.sleep(ON_THE_WAY_S if is_at_rest else PACE_S)

    def _publish(self) -> None:
        """Point the stable path at the slave, in one step."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists() and not self.path.is_symlink():
            raise SimulatorError(f"{self.path} exists and is not a simulated port")
        new = self.path.with_name(f"{self.path.name}.{os.getpid()}")
        new.unlink(missing_ok=True)
        new.symlink_to(self._slave_name)
        new.replace(self.path)

    def _look_for_client(self) -> None:
        poll = select.poll()
        poll.register(self._master, select.POLLIN)
        if any(event & select.POLLHUP for _, event in poll.poll(0)):
            self._look = self._loop.call_later(LOOK_S, self._look_for_client)
            return
        self._look = None
        self.attended_since_s = self._loop.time()
        self._loop.add_reader(self._master, self._receive)
        self._changed()

    def _hung_up(self) -> None:
        self._loop.remove_reader(self._master)
        self._loop.remove_writer(self._master)
        self._outgoing.clear()
        self.attended_since_s = None
        self._changed()
        self._look = self._loop.call_later(LOOK_S, self._look_for_client)

    def _receive(self) -> None:
        try:
            data = os.read(self._master, 4096)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            self._hung_up()
            return
        self._hear(data)

    def _send(self) -> None:
        self._pace = None
        portion = len(self._outgoing)
        if self._baud is not None:
            portion = max(1, round(self._baud / BITS_PER_BYTE * PACE_S))
        try:
            sent = os.write(self._master, self._outgoing[:portion])
        except BlockingIOError:  # the client does not read: go on when it does
            self._loop.add_writer(self._master, self._send)
            return
        del self._outgoing[:sent]
        self._loop.remove_writer(self._master)
        if self._outgoing:
            wait_s = PACE_S if self._baud is None else sent * BITS_PER_BYTE / self._baud
            self._pace = self._loop.call_later(wait_s, self._send)

    def _unread(self) -> int:
        """Return how many bytes wait in the slave for the client."""
        if self.attended_since_s is None:
            return 0
        slave = os.open(self._slave_name, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        try:
            count: int = struct.unpack(
                "i", fcntl.ioctl(slave, termios.FIONREAD, struct.pack("i", 0))
            )[0]
            return count
        finally:
            os.close(slave)
