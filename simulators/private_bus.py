"""A D-Bus daemon of our own, so that a simulated BlueZ needs neither root nor the system's bus."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from exchange.runtime import end_with_parent
from simulators.errors import SimulatorError

READY_S: Final = 10.0
END_S: Final = 5.0
CONFIGURATION: Final = """\
<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>session</type>
  <listen>unix:path={socket}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow send_destination="*" eavesdrop="true"/>
    <allow eavesdrop="true"/>
    <allow own="*"/>
  </policy>
</busconfig>
"""


class PrivateBus:
    """A dbus-daemon; `address` is what a client finds in DBUS_SYSTEM_BUS_ADDRESS.

    Raises: SimulatorError when there is no dbus-daemon or it does not start.
    """

    def __init__(self, log: Path) -> None:
        """Prepare; the daemon's standard error goes to the file `log`."""
        self._log = log
        self.address = ""

    async def __aenter__(self) -> Self:
        daemon = shutil.which("dbus-daemon")
        if daemon is None:
            raise SimulatorError("dbus-daemon is missing: install the package dbus-daemon")
        # Not beside the log: the path of a socket may have 107 bytes at most.
        self._folder = tempfile.TemporaryDirectory(prefix="onestreet-bus-")
        folder = Path(self._folder.name)
        configuration = folder / "bus.conf"
        configuration.write_text(CONFIGURATION.format(socket=folder / "socket"))
        # A file, not our own stderr: a daemon that outlived us would hold the terminal's pipe open.
        with self._log.open("ab") as log:
            self._daemon = await asyncio.create_subprocess_exec(
                daemon,
                f"--config-file={configuration}",
                "--print-address=1",
                "--nofork",
                "--nopidfile",
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                preexec_fn=end_with_parent,
            )
        try:
            async with asyncio.timeout(READY_S):
                assert self._daemon.stdout is not None
                self.address = (await self._daemon.stdout.readline()).decode().strip()
            if not self.address:
                raise SimulatorError(f"dbus-daemon did not start: see {self._log}")
        except BaseException:
            await self._end()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._end()

    async def _end(self) -> None:
        try:
            if self._daemon.returncode is None:
                self._daemon.terminate()
                try:
                    async with asyncio.timeout(END_S):
                        await self._daemon.wait()
                except TimeoutError:
                    self._daemon.kill()
                    await self._daemon.wait()
        finally:
            self._folder.cleanup()
