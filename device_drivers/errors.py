"""What can go wrong between a driver and its device.

DeviceError
├── FrameError        the bytes are not what the protocol promises; the reading is refused
├── DeviceSilent      no answer before the deadline; retried by the schedule
├── DeviceRefused     the device answered with an error of its own (a Modbus exception); raw code kept
├── CommandRejected   a command the device or its profile cannot take; final
└── LinkLost          the port, adapter or connection is gone; the link is opened again
    └── PortInUse     somebody else has it open
"""

from __future__ import annotations

from exchange.errors import DeviceError


class FrameError(DeviceError):
    """The bytes are not what the protocol promises.

    `kind` is a short word (`short`, `bad_checksum`, `wrong_slave`, `decrypt_failed` …), `offset` the byte
    at which it shows.
    """

    def __init__(self, kind: str, message: str, *, offset: int = 0) -> None:
        """Keep the kind and the place beside the words."""
        super().__init__(f"{kind} at byte {offset}: {message}")
        self.kind, self.message, self.offset = kind, message, offset


class DeviceSilent(DeviceError):
    """No answer before the deadline."""


class DeviceRefused(DeviceError):
    """The device answered with an error of its own; `code` is the raw code."""

    def __init__(self, message: str, code: int) -> None:
        """Keep the raw code: vendors use codes outside the standard."""
        super().__init__(message)
        self.code = code


class CommandRejected(DeviceError):
    """A command the device or its profile cannot take."""


class LinkLost(DeviceError):
    """The port, adapter or connection is gone."""


class PortInUse(LinkLost):
    """Somebody else has the port open, or is connected to what takes one connection."""
