"""Real brokers for a test: own process, free ports, killed and brought back at will."""

from __future__ import annotations

import os
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Self

from tests.ports import free_port, is_open

_START_DEADLINE_S = 30.0
_STOP_DEADLINE_S = 10.0
_PORT_ATTEMPTS = 5


class BrokerProcess:
    """A broker on a configuration that is there, running between `start` and `stop` or inside `with`."""

    def __init__(
        self, command: Sequence[str], *, folder: Path, log: Path, ports: Iterable[int]
    ) -> None:
        """`folder` is where it runs; it is up when it accepts on all `ports`."""
        self._command, self._folder, self._log = command, folder, log
        self._ports = list(ports)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """The process that runs now."""
        assert self._process is not None, "not started"
        return self._process.pid

    @property
    def log(self) -> str:
        """What it has written, over all starts."""
        return self._log.read_text(errors="replace")

    def start(self) -> None:
        """Return when it accepts connections on every port."""
        assert self._process is None, "already running"
        with self._log.open("ab") as log:
            process = subprocess.Popen(self._command, cwd=self._folder, stdout=log, stderr=log)
        self._process = process
        deadline_s = time.monotonic() + _START_DEADLINE_S
        for port in self._ports:
            while not is_open(port):
                try:
                    code = process.wait(0.01)
                except subprocess.TimeoutExpired:
                    if time.monotonic() < deadline_s:
                        continue
                    self.kill()
                    raise RuntimeError(f"the broker does not accept:\n{self.log}") from None
                self._process = None
                raise RuntimeError(f"the broker ended with {code}:\n{self.log}")

    def stop(self) -> None:
        """End it in an orderly way: persistence is written."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(_STOP_DEADLINE_S)
            finally:
                self.kill()

    def kill(self) -> None:
        """Kill -9: what was not persisted is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(_STOP_DEADLINE_S)
            self._process = None


class Broker(BrokerProcess, ABC):
    """One broker at 127.0.0.1:`port`; a later start keeps the port."""

    def __init__(self, command: Sequence[str], *, folder: Path) -> None:
        """`folder` is its own, and need not be there."""
        super().__init__(command, folder=folder, log=folder / "log", ports=())
        self.host = "127.0.0.1"
        self.port = 0

    def start(self) -> None:
        """Return when it accepts connections."""
        self._folder.mkdir(exist_ok=True)
        if self.port:
            self._start_on(self.port)
            return
        for _ in range(_PORT_ATTEMPTS):
            try:
                self._start_on(free_port())
            except RuntimeError:
                if "already in use" not in self.log:
                    raise
            else:
                return
        raise RuntimeError(f"no free port in {_PORT_ATTEMPTS} attempts")

    def _start_on(self, port: int) -> None:
        self.port, self._ports = port, [port]
        self._configure()
        super().start()

    @abstractmethod
    def _configure(self) -> None:
        """Write its configuration, for `port`."""


class MosquittoProcess(BrokerProcess):
    """Mosquitto on a configuration that is there."""

    def __init__(self, config: Path, log: Path, ports: Iterable[int]) -> None:
        command = ["mosquitto", "-c", config.name]
        super().__init__(command, folder=config.parent, log=log, ports=ports)


class Mosquitto(Broker):
    """One Mosquitto at 127.0.0.1:`port`.

    Shape: `lines` are further lines of mosquitto.conf; one that sets what a default sets replaces
        it. `accounts` maps user names to passwords, none means that anybody may connect; `acl` is
        the text of the ACL file, read at each start. With `persistent` its sessions survive an orderly stop.
    """

    def __init__(
        self,
        folder: Path,
        lines: Iterable[str] = (),
        *,
        accounts: Mapping[str, str] | None = None,
        acl: str = "",
        persistent: bool = False,
    ) -> None:
        super().__init__(["mosquitto", "-c", "mosquitto.conf"], folder=folder / "mosquitto")
        self._lines = list(lines)
        self._accounts = accounts
        self.acl = acl
        self._persistent = persistent

    def wipe(self) -> None:
        """Forget every session and message; only while it does not run."""
        assert self._process is None, "still running"
        (self._folder / "mosquitto.db").unlink(missing_ok=True)

    def _configure(self) -> None:
        defaults = [
            f"listener {self.port} {self.host}",
            f"allow_anonymous {'true' if self._accounts is None else 'false'}",
            "set_tcp_nodelay true",
            "max_queued_messages 0",
            f"persistence {'true' if self._persistent else 'false'}",
            f"persistence_location {self._folder}/",
        ]
        if os.geteuid() == 0:
            defaults.append("user root")  # else it steps down to a user who cannot read the folder
        if self._accounts is not None:
            passwords = self._folder / "passwords"
            passwords.write_text("".join(f"{u}:{p}\n" for u, p in self._accounts.items()))
            subprocess.run(["mosquitto_passwd", "-U", passwords], check=True, capture_output=True)
            defaults.append(f"password_file {passwords}")
        if self.acl:
            (self._folder / "acl").write_text(self.acl)
            defaults.append(f"acl_file {self._folder / 'acl'}")
        replaced = {line.split()[0] for line in self._lines if line.strip()}
        kept = [line for line in defaults if line.split()[0] not in replaced]
        (self._folder / "mosquitto.conf").write_text("\n".join([*kept, *self._lines, ""]))
