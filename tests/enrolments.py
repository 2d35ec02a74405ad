"""What the tests of enrolment put around it: an office, its broker and its service as processes, and gateways."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from exchange.enrolment import Code
from onestreet.processes import Child
from provisioning.enrolment import add_code
from provisioning.office import init, opened
from tests.ports import free_port

COUNTY, SITE = "tw-tpe", "daan"
BY_KEY, BY_PASSWORD = "gw-1", "gw-2"
DEADLINE_S = 30.0
ONESTREET = [sys.executable, "-m", "onestreet.cli"]


class Said(NamedTuple):
    """What a command did."""

    status: int
    out: str
    err: str


class Bureau:
    """A town's office in a folder, with free ports; `gateways` is how many there are by certificate."""

    def __init__(self, folder: Path, *, gateways: int = 1) -> None:
        self.folder = folder / "office"
        self.logs = folder / "logs"
        self.logs.mkdir(exist_ok=True)
        self.ports = dict(
            zip(
                ("port", "password_port", "service_port"),
                (free_port() for _ in range(3)),
                strict=True,
            )
        )
        self.port = free_port()
        """Of the enrolment service."""
        self.store = self.folder / "services" / "ingest" / "data" / "town.sqlite"
        town = folder / f"{COUNTY}.toml"
        town.write_text(self._town(gateways), encoding="utf-8")
        with init([town], self.folder, hand_out=False):
            pass

    @property
    def address(self) -> str:
        return f"localhost:{self.port}"

    def code(self, gateway: str = BY_KEY, *, address: str = "", days: float = 7.0) -> Code:
        with opened(self.folder) as office:
            return add_code(office, COUNTY, gateway, address=address or self.address, days=days)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[Child]:
        """Run the service; it is brought back when it is killed."""
        listen = f"127.0.0.1:{self.port}"
        into = str(self.folder)
        argv = [*ONESTREET, "town", "enrolment", "--into", into, "--listen", listen]
        service = Child("enrolment", argv, self.logs)
        await service.start()
        try:
            yield service
        finally:
            assert await service.stop(DEADLINE_S)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run the broker and ingest."""
        folder = self.folder / "broker"
        argv = ["sh", "-c", f"cd '{folder}' && exec mosquitto -c mosquitto.conf"]
        broker = Child("broker", argv, self.logs, is_up=lambda: _accepts(self.ports["port"]))
        config = self.folder / "services" / "ingest" / "ingest.toml"
        ingest = Child("ingest", [sys.executable, "-m", "ingest", str(config)], self.logs)
        await broker.start()
        try:
            await ingest.start()
            yield
        finally:
            await ingest.stop(DEADLINE_S)
            await broker.stop(DEADLINE_S)

    def log(self, name: str = "enrolment") -> str:
        return (self.logs / f"{name}.log").read_text(errors="replace")

    def _town(self, gateways: int) -> str:
        ports = "\n".join(f"{key} = {port}" for key, port in self.ports.items())
        first = [f'[[gateway]]\nid = "{BY_KEY}"\nsite = "{SITE}"\n']
        more = [f'[[gateway]]\nid = "gw-{n}"\nsite = "{SITE}"\n' for n in range(3, 2 + gateways)]
        return f"""
county = "{COUNTY}"
name = {{ en = "Taipei City", zh-TW = "臺北市" }}
timezone = "Asia/Taipei"
circle = {{ id = "north", en = "North", zh-TW = "北部" }}
extent = {{ south = 24.9, west = 121.4, north = 25.3, east = 121.7 }}
townships = [{{ id = "daan", en = "Da'an District", zh-TW = "大安區" }}]
[broker]
host = "localhost"
{ports}
[store]
url = "sqlite:///data/town.sqlite"
[intervals]
gateway = 1.0
air = 60.0
[[site]]
id = "{SITE}"
label = {{ en = "Da'an", zh-TW = "大安" }}
township = "daan"
location = {{ lat = 25.03, lon = 121.54 }}
{"".join([*first, *more])}
[[gateway]]
id = "{BY_PASSWORD}"
site = "{SITE}"
label = {{ en = "Old box", zh-TW = "舊箱" }}
credential = "password"
"""


async def command(*words: str, typed: str = "") -> Said:
    """Run `onestreet` as a process of its own."""
    process = await asyncio.create_subprocess_exec(
        *ONESTREET,
        *words,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(DEADLINE_S):
            out, err = await process.communicate(typed.encode())
    finally:
        with suppress(ProcessLookupError):
            process.kill()
    assert process.returncode is not None
    return Said(process.returncode, out.decode(), err.decode())


def _accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
