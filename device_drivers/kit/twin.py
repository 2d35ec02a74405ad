"""The protocols of a twin: a device's behaviour on the wire, hosted by `simulators` on real links.

Every driver folder's `twin.py` offers `Twin(settings, physics, truth)`: `settings` are the device's own
`[device.settings]`, `physics()` returns the state of the world now in metric names and units, and `truth(values)`
is called exactly once for each reading that the twin completed on the wire, with the values the wire can carry
(already rounded as the frame rounds them), in metric names and units. A twin does no I/O, keeps no wall clock and
shares no decoding code with the driver: it is the second witness of the data sheet.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, TypeAlias

from device_drivers.kit.driver import Value

Physics: TypeAlias = Callable[[], Mapping[str, Value]]
Truth: TypeAlias = Callable[[Mapping[str, Value]], None]


class SerialTwin(Protocol):
    """A device on a serial line of its own."""

    @property
    def period_s(self) -> float | None:
        """Seconds between frames that it sends by itself now; None while it only answers."""
        ...

    def speak(self) -> bytes:
        """Return the next frame that it sends by itself."""
        ...

    def hear(self, data: bytes) -> bytes:
        """Take bytes from the host, in any portions, and return the answer (may be empty)."""
        ...


class ModbusException(Exception):
    """A twin's refusal; `code` is the Modbus exception code."""

    def __init__(self, code: int) -> None:
        """Keep the code."""
        super().__init__(f"Modbus exception {code}")
        self.code = code


class ModbusTwin(Protocol):
    """A device, or one part of a gateway, on a Modbus bus: several may share a unit id."""

    unit: int
    addresses: range
    """The registers it answers for, of all four tables."""

    def read(self, function: int, address: int, count: int) -> Sequence[int]:
        """Answer function 1-4. Raises: ModbusException."""
        ...

    def write(self, function: int, address: int, values: Sequence[int]) -> None:
        """Take function 5, 6, 15 or 16. Raises: ModbusException."""
        ...


class AdvertTwin(Protocol):
    """A BLE device that advertises; repetitions on the air are its host's business."""

    address: str
    name: str
    period_s: float
    """Seconds between distinct adverts."""

    def advert(self) -> tuple[dict[int, bytes], dict[str, bytes]]:
        """Return the next distinct advert: manufacturer data by company id, service data by 128-bit UUID."""
        ...
