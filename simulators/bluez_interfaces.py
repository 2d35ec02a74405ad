"""The D-Bus interfaces of a simulated BlueZ, as tables: what each can be asked and what may be set."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final
from xml.sax.saxutils import quoteattr

OBJECT_MANAGER: Final = "org.freedesktop.DBus.ObjectManager"
PROPERTIES: Final = "org.freedesktop.DBus.Properties"
INTROSPECTABLE: Final = "org.freedesktop.DBus.Introspectable"
ADAPTER: Final = "org.bluez.Adapter1"
DEVICE: Final = "org.bluez.Device1"
SERVICE: Final = "org.bluez.GattService1"
CHARACTERISTIC: Final = "org.bluez.GattCharacteristic1"
DESCRIPTOR: Final = "org.bluez.GattDescriptor1"

METHODS: Final[dict[str, dict[str, tuple[str, str]]]] = {
    INTROSPECTABLE: {"Introspect": ("", "s")},
    OBJECT_MANAGER: {"GetManagedObjects": ("", "a{oa{sa{sv}}}")},
    PROPERTIES: {"Get": ("ss", "v"), "GetAll": ("s", "a{sv}"), "Set": ("ssv", "")},
    ADAPTER: {
        "SetDiscoveryFilter": ("a{sv}", ""),
        "GetDiscoveryFilters": ("", "as"),
        "StartDiscovery": ("", ""),
        "StopDiscovery": ("", ""),
        "RemoveDevice": ("o", ""),
    },
    DEVICE: {"Connect": ("", ""), "Disconnect": ("", ""), "Pair": ("", "")},
    SERVICE: {},
    CHARACTERISTIC: {
        "ReadValue": ("a{sv}", "ay"),
        "WriteValue": ("aya{sv}", ""),
        "StartNotify": ("", ""),
        "StopNotify": ("", ""),
        "AcquireNotify": ("a{sv}", "hq"),
        "AcquireWrite": ("a{sv}", "hq"),
    },
    DESCRIPTOR: {"ReadValue": ("a{sv}", "ay"), "WriteValue": ("aya{sv}", "")},
}
"""What each interface can be asked: arguments and results as D-Bus signatures."""

WRITABLE: Final = {
    (ADAPTER, "Powered"),
    (ADAPTER, "Alias"),
    (ADAPTER, "Discoverable"),
    (ADAPTER, "Pairable"),
    (DEVICE, "Alias"),
    (DEVICE, "Trusted"),
    (DEVICE, "Blocked"),
}
FILTERS: Final = {
    "UUIDs": "as",
    "RSSI": "n",
    "Pathloss": "q",
    "Transport": "s",
    "DuplicateData": "b",
    "Discoverable": "b",
    "Pattern": "s",
}


def introspection(interfaces: Mapping[str, Mapping[str, str]], children: Iterable[str]) -> str:
    """Return an object's introspection document.

    Shape: `interfaces` the signature of each property, by interface.
    """
    lines = ["<node>"]
    for interface, properties in interfaces.items():
        lines.append(f"<interface name={quoteattr(interface)}>")
        for member, (arguments, results) in METHODS[interface].items():
            lines.append(f"<method name={quoteattr(member)}>")
            for direction, signature in (("in", arguments), ("out", results)):
                lines += [
                    f'<arg type={quoteattr(part)} direction="{direction}"/>'
                    for part in _parts(signature)
                ]
            lines.append("</method>")
        for name, signature in properties.items():
            access = "readwrite" if (interface, name) in WRITABLE else "read"
            lines.append(
                f'<property name={quoteattr(name)} type={quoteattr(signature)} access="{access}"/>'
            )
        lines.append("</interface>")
    lines += [f"<node name={quoteattr(child)}/>" for child in children]
    return "".join([*lines, "</node>"])


def _parts(signature: str) -> list[str]:
    """Split a signature into its complete types."""
    parts, depth, start = [], 0, 0
    for index, letter in enumerate(signature):
        depth += (letter in "({") - (letter in ")}")
        if depth == 0 and letter != "a":
            parts.append(signature[start : index + 1])
            start = index + 1
    return parts
