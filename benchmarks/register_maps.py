"""Devices with public register maps, as profiles: what is read of each, and by how large requests.

Only addresses, types and limits: the metrics have numbers for names, since nothing reads them here.
"""

from __future__ import annotations

from collections.abc import Iterable

from device_drivers.kit.profile import Identity, Point, PointType, Profile, Read, Timing, Transport
from device_drivers.kit.registry import driver_ids, load

_EASTRON_630 = (
    *range(0x00, 0x2C, 2),  # volts, amperes, watts, VA, var, power factors, angles; mean volts
    *(0x2E, 0x30, 0x34, 0x38, 0x3C, 0x3E, 0x42),
    *range(0x46, 0x50, 2),  # hertz and the four counters
    *(0x54, 0xC8),
    *range(0x156, 0x166, 2),
)
_EASTRON_120 = (0x00, 0x06, 0x0C, 0x12, 0x18, 0x1E, *range(0x46, 0x50, 2), 0x156, 0x158)
_EPEVER_16 = (0x3100, 0x3101, 0x3104, 0x3105, 0x310C, 0x310D, 0x3110, 0x311A, 0x3200, 0x3201)
_EPEVER_32 = (0x3102, 0x310E, 0x330A)


def register_maps() -> dict[str, Profile]:
    """Return the maps by the device's name, those of the installed drivers among them."""
    installed = {name: load(name).profile for name in driver_ids()}
    return {
        **{
            name: profile
            for name, profile in installed.items()
            if profile.transport.kind == "modbus"
        },
        "Eastron SDM120": _profile(
            "Eastron SDM120 Modbus protocol",
            [(at, "float32") for at in _EASTRON_120],
            Read(function=4, max_gap=8, max_registers=40),
        ),
        "Eastron SDM630": _profile(
            "Eastron SDM630 Modbus protocol",
            [(at, "float32") for at in _EASTRON_630],
            Read(function=4, max_gap=8, max_registers=40),
        ),
        "EPEVER LS-B": _profile(
            "EPEVER LS-B/VS-B protocol V1.1",
            [*((at, "uint16") for at in _EPEVER_16), *((at, "uint32") for at in _EPEVER_32)],
            Read(function=4, max_gap=12),
        ),
        "Seeed SenseCAP ONE S700": _profile(
            "SenseCAP ONE manual, page 28",
            [(at, "int32") for at in range(0x00, 0x16, 2)],
            Read(function=4),
        ),
        "SOKOL-M": _profile(
            "template of wirenboard/wb-mqtt-serial",
            [(at, "int16") for at in (*range(3, 8), *range(70, 75))],
            Read(max_gap=4),
        ),
        "DFRobot URM14": _profile(
            "wiki.dfrobot.com SEN0358",
            [(at, "uint16") for at in (5, 6, 7, 9)],
            Read(max_gap=4),
        ),
        "Sensirion SCD30": _profile(
            "Sensirion SCD30 interface description",
            [(at, "float32") for at in (0x28, 0x2A, 0x2C)],
            Read(),
        ),
    }


def _profile(source: str, points: Iterable[tuple[int, PointType]], read: Read) -> Profile:
    ordered = sorted(points)
    return Profile(
        identity=Identity(maker="", models=[""], brand_origin="TW", description=source),
        transport=Transport(kind="modbus"),
        timing=Timing(cadence_s=10.0),
        completes="poll",
        points=[
            Point(field=f"at_{at:04x}", at=at, type=kind, metric=f"x-map-r{at:04x}")
            for at, kind in ordered
        ],
        sources=[source],
        read=read,
    )
