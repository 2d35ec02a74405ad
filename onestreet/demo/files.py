"""The configuration files that the demo's processes run on: the ones that an operator would write."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from exchange.configuration import toml_table
from onestreet.broker import BrokerFiles
from onestreet.edge_tables import bus_id, device_table, location, reached
from simulators.plan import TownPlan

GATEWAY = "gw-demo"
INTERVAL_S = {"streetlight": 2.0, "parking": 1.0, "air": 1.0}
"""How often the demo's devices are heard; never above two seconds."""
DRAIN_S = 120.0  # a broker that was wiped is found out after a back-off of 30 s and a proof of 10 s


def agent_file(
    plan: TownPlan, endpoints: Mapping[str, Mapping[str, Any]], broker: BrokerFiles, folder: Path
) -> str:
    """Return the agent's configuration in TOML."""
    tables = [
        toml_table(
            "[gateway]",
            id=GATEWAY,
            county=plan.county,
            site=plan.site,
            state_dir=str(folder / "gateway"),
            interval_s=1.0,
            label={"en": "Demo gateway", "zh-TW": "示範閘道器"},
            location=location(plan, 0),
        ),
        toml_table(
            "[broker]",
            host=broker.host,
            port=broker.port,
            username=GATEWAY,
            password_file=str(broker.password_file(GATEWAY)),
            keepalive_s=10,
        ),
        # the town is silent until everybody is there: no device is to be given up meanwhile
        toml_table("[polling]", probe_first_s=0.5, probe_last_s=1.0, probe_share=0.5),
        toml_table("[delivery]", drain_s=DRAIN_S),
    ]
    for bus in plan.buses:
        endpoint = endpoints[bus.id]
        tables.append(toml_table("[[bus]]", id=bus_id(bus.id), **reached(endpoint)))
    tables += [
        device_table(device, plan, number, INTERVAL_S[device.domain])
        for number, device in enumerate(plan.devices, 1)
    ]
    return "\n".join(tables)


def ingest_file(plan: TownPlan, broker: BrokerFiles, store: str, folder: Path) -> str:
    """Return the configuration of ingest and watch in TOML."""
    return "\n".join(
        [
            toml_table("# The demo's", counties=[plan.county], store=store),
            toml_table(
                "[broker]",
                host=broker.host,
                port=broker.port,
                username="ingest",
                password_file=str(broker.password_file("ingest")),
                client_id="ingest",
            ),
            toml_table("[quarantine]", path=str(folder / "quarantine.sqlite")),
        ]
    )
