"""The protocols between the edge agent, a driver and its link.

Every driver folder's `driver.py` offers these names:

- `Settings`: a `msgspec.Struct` (frozen, kw_only, forbid_unknown_fields) of the keys that a device's
  `[device.settings]` may hold;
- `Driver`: one of the driver protocols below, built as `Driver(profile, settings)`, one per device;
- `decode(profile, frames, context)`: the same bytes without any I/O, for `onestreet decode` and the vectors;
- `encode(request)`, where the driver has requests of its own that vectors name.

A Modbus device that is all table has no `driver.py`; the kit's table stands in for all three.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, TypeAlias

import msgspec

Value: TypeAlias = float | int | bool


class Reading(msgspec.Struct, frozen=True):
    """What one completed exchange with a device said.

    Units: the dictionary's for dictionary metrics, the profile's for `x-{vendor}-{name}`.
    A value that the device marks as absent is left out, never replaced by a number; `quality` is the
    exchange's quality string (`""` when all is well).
    """

    metrics: dict[str, Value]
    quality: str = ""


class SerialPort(Protocol):
    """An open serial line. Raises: LinkLost when it is gone."""

    async def read_some(self, timeout_s: float) -> bytes:
        """Return at least one byte. Raises: DeviceSilent when none came in time."""
        ...

    async def write(self, data: bytes) -> None: ...

    def discard_input(self) -> None:
        """Forget what was received and not read: a late answer must not be taken for the next one."""
        ...


class ModbusBus(Protocol):
    """A Modbus line with one request in flight at a time.

    Shape: addresses are 0-based wire addresses, registers 16-bit unsigned; `transactions` counts requests.
    Raises: DeviceSilent, DeviceRefused, FrameError, LinkLost.
    """

    transactions: int

    async def read_holding(self, unit: int, address: int, count: int) -> list[int]: ...

    async def read_input(self, unit: int, address: int, count: int) -> list[int]: ...

    async def read_coils(self, unit: int, address: int, count: int) -> list[bool]: ...

    async def read_discrete(self, unit: int, address: int, count: int) -> list[bool]: ...

    async def write_register(self, unit: int, address: int, value: int) -> None: ...

    async def write_registers(self, unit: int, address: int, values: Sequence[int]) -> None: ...


class Advert(msgspec.Struct, frozen=True):
    """One received BLE advertisement.

    Shape: `address` upper case with colons; `manufacturer_data` by company id, without the two id bytes;
    `service_data` by 128-bit UUID in lower case, without the UUID.
    Units: `rssi_dbm`; `at_s` monotonic seconds of its reception.
    """

    address: str
    rssi_dbm: int
    manufacturer_data: dict[int, bytes]
    service_data: dict[str, bytes]
    at_s: float


class GattDevice(Protocol):
    """A connected BLE device. Raises: DeviceSilent, DeviceRefused (ATT code), LinkLost."""

    async def read_characteristic(self, uuid: str) -> bytes: ...


class SerialDriver(Protocol):
    """Reads one device on a serial line of its own."""

    streaming: bool
    """True when the device speaks by itself and `read` waits for it; false when `read` asks."""

    async def start(self, port: SerialPort) -> None:
        """Bring the device into its configured mode; called after every opening of the port."""
        ...

    async def read(self, port: SerialPort) -> Reading:
        """Return the next reading. Raises: FrameError, DeviceSilent, LinkLost."""
        ...


class ModbusDriver(Protocol):
    """Reads one device on a shared Modbus bus."""

    async def read(self, bus: ModbusBus) -> Reading: ...

    async def command(
        self, bus: ModbusBus, name: str, args: Mapping[str, Value]
    ) -> dict[str, Value]:
        """Carry out one command and return what the device reads back. Raises: CommandRejected and the bus's."""
        ...


class AdvertDriver(Protocol):
    """Understands the advertisements of one BLE device."""

    address: str

    def hear(self, advert: Advert) -> Reading | None:
        """Return the reading of a new advert, None for a repetition. Raises: FrameError."""
        ...


class GattDriver(Protocol):
    """Reads one BLE device by connecting to it."""

    address: str

    async def read(self, device: GattDevice) -> Reading: ...


Context: TypeAlias = Mapping[str, object]
