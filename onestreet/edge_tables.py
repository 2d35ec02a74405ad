"""The tables of an agent's edge.toml for simulated devices: the ones that an installer would write."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from exchange.configuration import toml_table
from simulators.plan import DevicePlan, TownPlan

LABELS = {
    "streetlight": ("Lamp", "路燈"),
    "parking": ("Bay", "車位"),
    "air": ("Air box", "空氣盒子"),
}


def device_table(device: DevicePlan, plan: TownPlan, number: int, interval_s: float) -> str:
    """Return the table of a device, the `number`th along its street."""
    en, zh_tw = LABELS[device.domain]
    place = device.id.rpartition("-")[2]
    return toml_table(
        "[[device]]",
        id=device.id,
        domain=device.domain,
        driver=device.driver,
        bus=bus_id(device.bus),
        interval_s=interval_s,
        settings=device.settings,
        label={"en": f"{en} {place}", "zh-TW": f"{zh_tw} {place}"},
        asset_id=device.id.upper(),
        location=location(plan, number),
    )


def reached(endpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Return how the agent reaches a simulated line."""
    match endpoint:
        case {"kind": "modbus-rtu", "port": port}:
            return {"kind": "modbus-rtu", "port": port, "timeout_s": 2.0}
        case {"kind": "ble"}:
            return {"kind": "ble", "adapter": "hci0"}
        case _:
            return dict(endpoint)


def location(plan: TownPlan, number: int) -> dict[str, float]:
    """Return where the `number`th device stands along a street."""
    return {
        "lat": round(plan.place.latitude + 0.00005 * (number % 2), 6),
        "lon": round(plan.place.longitude + 0.0002 * number, 6),
    }


def bus_id(name: str) -> str:
    """Return a line's name as the agent's configuration takes it."""
    return name.lower()
