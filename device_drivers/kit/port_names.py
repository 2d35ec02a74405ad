"""How a serial port is named: by its path, or by the USB adapter that it belongs to, whatever the kernel calls it."""

from __future__ import annotations

import re
from typing import Final

import msgspec

ALLOWED: Final = (
    "a path, usb:VID:PID, usb:VID:PID:SERIAL or usb-path:1-1.2 應為路徑或 USB 轉接器的名稱"
)
_ADAPTER: Final = re.compile(
    r"usb:(?P<vid>[0-9A-Fa-f]{4}):(?P<pid>[0-9A-Fa-f]{4})(:(?P<serial>[^\x00-\x1f\x7f]+))?"
)
_SOCKET: Final = re.compile(r"usb-path:(?P<path>\d+-\d+(\.\d+)*(:\d+\.\d+)?)")


class UsbPort(msgspec.Struct, frozen=True):
    """An adapter by what it says of itself, or by the socket it is plugged into; None is any."""

    vid: int | None = None
    pid: int | None = None
    serial: str | None = None
    path: str | None = None


def usb_port(name: str) -> UsbPort | None:
    """Return the adapter that a port's name means, None when it is a path."""
    if adapter := _ADAPTER.fullmatch(name):
        return UsbPort(int(adapter["vid"], 16), int(adapter["pid"], 16), adapter["serial"])
    if socket := _SOCKET.fullmatch(name):
        return UsbPort(path=socket["path"])
    return None


def port_problem(name: str) -> str:
    """Return what is allowed when `name` looks like an adapter's and is none, "" when it is good."""
    is_adapter = name.startswith(("usb:", "usb-path:"))
    return ALLOWED if is_adapter and usb_port(name) is None else ""
