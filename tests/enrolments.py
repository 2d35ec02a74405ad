"""What the tests of enrolment put around it: an office, its broker and its service as processes, and gateways."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from exchange.enrolment import Code
from exchange.processes import Child
from provisioning.enrolment import add_code
from provisioning.office import init, opened
from tests.offices import OfficeBroker, broker_table, town_text
from tests.ports import free_port

COUNTY = "tw-tpe"
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
        self.ports = [free_port() for _ in range(3)]
        self.port = free_port()
        """Of the enrolment service."""
        self.store = self.folder / "services" / "ingest" / "data" / "town.sqlite"
        town = folder / f"{COUNTY}.toml"
        names = [BY_KEY, *(f"gw-{number}" for number in range(3, 2 + gateways))]
        text = town_text(
            COUNTY,
            broker_table(self.ports),
            gateways=names,
            by_password=[BY_PASSWORD],
            more="[intervals]\ngateway = 1.0\nair = 60.0\n",
        )
        town.write_text(text, encoding="utf-8")
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
        config = self.folder / "services" / "ingest" / "ingest.toml"
        ingest = Child("ingest", [sys.executable, "-m", "ingest", str(config)], self.logs)
        with OfficeBroker(self.folder, self.ports):
            await ingest.start()
            try:
                yield
            finally:
                await ingest.stop(DEADLINE_S)

    def log(self, name: str = "enrolment") -> str:
        return (self.logs / f"{name}.log").read_text(errors="replace")


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
