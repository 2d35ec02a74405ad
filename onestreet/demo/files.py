"""The configuration files that the demo's processes run on: the ones that an operator would write."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onestreet.broker import BrokerFiles
from simulators.plan import DevicePlan, TownPlan

GATEWAY = "gw-demo"
INTERVAL_S = {"streetlight": 2.0, "parking": 1.0, "air": 1.0}
"""How often the demo's devices are heard; never above two seconds."""
DRAIN_S = 120.0  # a broker that was wiped is found out after a back-off of 30 s and a proof of 10 s

LABELS = {
    "streetlight": ("Lamp", "路燈"),
    "parking": ("Bay", "車位"),
    "air": ("Air box", "空氣盒子"),
}


def agent_file(
    plan: TownPlan, endpoints: Mapping[str, Mapping[str, Any]], broker: BrokerFiles, folder: Path
) -> str:
    """Return the agent's configuration in TOML."""
    tables = [
        table(
            "[gateway]",
            id=GATEWAY,
            county=plan.county,
            site=plan.site,
            state_dir=str(folder / "gateway"),
            interval_s=1.0,
            label={"en": "Demo gateway", "zh-TW": "示範閘道器"},
            location=_location(plan, 0),
        ),
        table(
            "[broker]",
            host=broker.host,
            port=broker.port,
            username=GATEWAY,
            password_file=str(broker.password_file(GATEWAY)),
            keepalive_s=10,
        ),
        table("[delivery]", drain_s=DRAIN_S),
    ]
    for bus in plan.buses:
        endpoint = endpoints[bus.id]
        tables.append(table("[[bus]]", id=bus_id(bus.id), **reached(endpoint)))
    tables += [
        device_table(device, plan, number, INTERVAL_S[device.domain])
        for number, device in enumerate(plan.devices, 1)
    ]
    return "\n".join(tables)


def ingest_file(plan: TownPlan, broker: BrokerFiles, store: str, folder: Path) -> str:
    """Return the configuration of ingest and watch in TOML."""
    return "\n".join(
        [
            f"counties = {_toml([plan.county])}",
            f"store = {_toml(store)}\n",
            table(
                "[broker]",
                host=broker.host,
                port=broker.port,
                username="ingest",
                password_file=str(broker.password_file("ingest")),
                client_id="ingest",
            ),
            table("[quarantine]", path=str(folder / "quarantine.sqlite")),
        ]
    )


def device_table(device: DevicePlan, plan: TownPlan, number: int, interval_s: float) -> str:
    """Return the table of a device, the `number`th along its street."""
    en, zh_tw = LABELS[device.domain]
    place = device.id.rpartition("-")[2]
    return table(
        "[[device]]",
        id=device.id,
        domain=device.domain,
        driver=device.driver,
        bus=bus_id(device.bus),
        interval_s=interval_s,
        settings=device.settings,
        label={"en": f"{en} {place}", "zh-TW": f"{zh_tw} {place}"},
        asset_id=device.id.upper(),
        location=_location(plan, number),
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


def _location(plan: TownPlan, number: int) -> dict[str, float]:
    """Spread the devices along a street."""
    return {
        "lat": round(plan.place.latitude + 0.00005 * (number % 2), 6),
        "lon": round(plan.place.longitude + 0.0002 * number, 6),
    }


def bus_id(name: str) -> str:
    """Return a line's name as the agent's configuration takes it."""
    return name.lower()


def table(head: str, **values: object) -> str:
    """Return a table of TOML."""
    return "\n".join([head, *(f"{key} = {_toml(value)}" for key, value in values.items()), ""])


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)  # a string of JSON is one of TOML
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f'"{key}" = {_toml(one)}' for key, one in value.items()) + " }"
    return repr(value)
