"""Made-up meters: so many float32 values in a row, and what stands in for them.

To the agent they are a driver package as any integrator's: a profile, found by its entry point.
"""

from __future__ import annotations

import asyncio
import os
import struct
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Final, Self, cast

HOST: Final = "127.0.0.1"
VENDOR: Final = "benchmeter"
FUNCTION: Final = 3
_HEADER = struct.Struct(
    ">HHHBBHH"
)  # MBAP header, function, address, count: a whole request to read
_SECONDS = 10  # after so many the values come again


def driver_id(tags: int) -> str:
    """Return the id of the driver of a meter of so many values."""
    return f"{VENDOR}_{tags}"


def tag(number: int) -> str:
    """Return the name of a meter's value."""
    return f"x-{VENDOR}-t{number:03d}"


def install(folder: Path, sizes: Iterable[int]) -> dict[str, str]:
    """Write a driver for each size of meter; return the environment in which they are installed."""
    entries = ["[onestreet.drivers]"]
    for tags in sorted(set(sizes)):
        package = folder / driver_id(tags)
        package.mkdir(parents=True)
        (package / "__init__.py").touch()
        (package / "profile.toml").write_text(profile(tags), encoding="utf-8")
        entries.append(f"{driver_id(tags)} = {driver_id(tags)}")
    about = folder / "benchmark_meters-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: benchmark-meters\nVersion: 1\n")
    (about / "entry_points.txt").write_text("\n".join(entries) + "\n")
    path = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH", ""))))
    return {**os.environ, "PYTHONPATH": path}


def profile(tags: int) -> str:
    """Return the profile of a meter of so many values, all read by one request."""
    points = [
        f'    {{ at = {2 * n}, type = "float32", field = "t{n:03d}", metric = "{tag(n)}" }},'
        for n in range(tags)
    ]
    return "\n".join(
        [
            'completes = "poll"',
            'sources = ["made up"]',
            "points = [",
            *points,
            "]",
            f"blocks = [{{ function = {FUNCTION}, at = 0, count = {2 * tags} }}]",
            "[identity]",
            'maker = "Nobody"',
            f'models = ["{driver_id(tags)}"]',
            'brand_origin = "TW"',
            'description = "A made-up meter"',
            "[transport]",
            'kind = "modbus"',
            "[timing]",
            "cadence_s = 1.0",
            "",
        ]
    )


def registers(unit: int, tags: int, second: int = 0) -> bytes:
    """Return a meter's registers as they travel: other values every second, for ten of them."""
    turn = second % _SECONDS
    return struct.pack(f">{tags}f", *(unit + n / 7 + turn / 3 for n in range(tags)))


class MeterServer:
    """Meters behind one Modbus TCP port of this machine, each with a unit id of its own.

    Shape: `tags` by unit id; `answered` counts by unit id. It answers reads of holding registers and
    closes on anything else: what is measured is who asks.
    """

    def __init__(self, tags: Mapping[int, int]) -> None:
        self.port = 0
        self.answered: Counter[int] = Counter()
        self._images = {
            unit: [registers(unit, count, second) for second in range(_SECONDS)]
            for unit, count in tags.items()
        }

    def read(self, unit: int, address: int, count: int) -> bytes | None:
        """Return the bytes of registers, None when there are none such."""
        images = self._images.get(unit)
        if images is None:
            return None
        found = images[int(time.monotonic()) % _SECONDS][2 * address : 2 * (address + count)]
        return found if len(found) == 2 * count else None

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Connection(self), HOST, 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.close()


class _Connection(asyncio.Protocol):
    """One client's connection."""

    def __init__(self, server: MeterServer) -> None:
        self._server = server
        self._received = b""
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(
            "asyncio.Transport", transport
        )  # uvloop's is one by its methods alone

    def data_received(self, data: bytes) -> None:
        self._received += data
        while len(self._received) >= _HEADER.size:
            request, self._received = (
                self._received[: _HEADER.size],
                self._received[_HEADER.size :],
            )
            number, protocol, length, unit, function, address, count = _HEADER.unpack(request)
            found = self._server.read(unit, address, count)
            if (protocol, length, function) != (0, 6, FUNCTION) or found is None:
                self._transport.abort()
                return
            self._server.answered[unit] += 1
            head = struct.pack(">HHHBBB", number, 0, 3 + len(found), unit, function, len(found))
            self._transport.write(head + found)
