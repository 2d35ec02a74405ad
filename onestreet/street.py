"""`onestreet street OFFICE`: every gateway of an office's towns, simulated, for as long as it runs.

Twins stand on real lines, and the agent of each gateway reads them and publishes with the gateway's own
credentials. Nobody audits it: what the town knows it sent is kept only as long as a log would be.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tomllib
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from msgspec.structs import replace

from exchange import health, runtime
from exchange.configuration import toml_table
from exchange.errors import ConfigError
from exchange.processes import Child
from exchange.towns import Gateway, Site, Town, read_towns
from onestreet.edge_tables import bus_id, device_table, reached
from onestreet.town_process import TownProcess
from simulators.plan import TownPlan, street_plan
from simulators.town import Place

STOP_S = 20.0
DRAIN_S = 10.0
LOG_BYTES = 10_000_000
TRIM_EVERY_S = 60.0
DEFAULT_INTERVAL_S = 60.0


class Post(NamedTuple):
    """One gateway on the street."""

    town: Town
    site: Site
    gateway: Gateway
    folder: Path
    """Its credentials, as the office lays them out."""

    @property
    def name(self) -> str:
        return f"{self.town.county}.{self.gateway.id}"


def posts(office: Path) -> list[Post]:
    """Return the gateways that have credentials in the office. Raises: ConfigError when none has."""
    found = []
    for town in read_towns((office / "towns").glob("*.toml")):
        sites = {site.id: site for site in town.sites}
        for gateway in town.gateways:
            folder = office / "gateways" / town.county / gateway.id
            if (folder / "broker.toml").exists() and not (folder / "revoked").exists():
                found.append(Post(town, sites[gateway.site], gateway, folder))
    if not found:
        allowed = "must hold a gateway's credentials: onestreet town init TOWN.toml lays them out"
        raise ConfigError("command line", "office", str(office / "gateways"), allowed)
    return found


def town_plan(
    posts: Sequence[Post], *, lamps: int, bays: int, air: int, speed: float = 1.0
) -> tuple[TownPlan, dict[str, TownPlan]]:
    """Return the plan of all twins, and by the gateway's name its own part of it."""
    parts = {}
    for number, post in enumerate(posts):
        place = Place(latitude=post.site.location.lat, longitude=post.site.location.lon)
        plan = street_plan(
            number, lamps=lamps, bays=bays, air=air, start=datetime.now(UTC), speed=speed
        )
        devices = [
            replace(one, id=f"{post.gateway.id}-{one.id}", bus=f"{number}-{one.bus}")
            for one in plan.devices
        ]
        buses = [replace(one, id=f"{number}-{one.id}") for one in plan.buses]
        parts[post.name] = replace(
            plan,
            county=post.town.county,
            site=post.site.id,
            place=place,
            devices=devices,
            buses=buses,
        )
    first = parts[posts[0].name]
    every = replace(
        first,
        buses=[bus for part in parts.values() for bus in part.buses],
        devices=[device for part in parts.values() for device in part.devices],
    )
    return every, parts


def agent_file(
    post: Post,
    plan: TownPlan,
    endpoints: Mapping[str, Mapping[str, Any]],
    folder: Path,
    *,
    broker: str = "",
) -> str:
    """Return a gateway's edge.toml; `broker` is the broker's name, where it has another one here."""
    label = post.gateway.label or post.site.label
    tables = [
        toml_table(
            "[gateway]",
            id=post.gateway.id,
            county=post.town.county,
            site=post.site.id,
            township=post.site.township,
            state_dir=str(folder),
            interval_s=_interval_s(post, "gateway"),
            label={"en": label.en, "zh-TW": label.zh_tw},
            location=msgspec.to_builtins(post.site.location),
        ),
        toml_table("[broker]", **_broker(post.folder, broker)),
        toml_table("[delivery]", drain_s=DRAIN_S),
    ]
    tables += [
        toml_table("[[bus]]", id=bus_id(bus.id), **reached(endpoints[bus.id])) for bus in plan.buses
    ]
    tables += [
        device_table(device, plan, number, _interval_s(post, device.domain))
        for number, device in enumerate(plan.devices, 1)
    ]
    return "\n".join(tables)


def _interval_s(post: Post, domain: str) -> float:
    return float(post.town.intervals.get(domain, DEFAULT_INTERVAL_S))


def _broker(folder: Path, host: str) -> dict[str, Any]:
    """Return the table that the office wrote, with paths that hold from anywhere."""
    broker: dict[str, Any] = tomllib.loads((folder / "broker.toml").read_text("utf-8"))["broker"]
    broker["host"] = host or broker["host"]
    broker["tls"] = {name: str(folder / file) for name, file in broker["tls"].items()}
    if "password_file" in broker:
        broker["password_file"] = str(folder / broker["password_file"])
    return broker


# ------------------------------------------------------------------------------------------------------- running


async def _run(
    known: Mapping[str, Post],
    into: Path,
    plan: TownPlan,
    parts: Mapping[str, TownPlan],
    broker: str,
) -> int:
    stop = runtime.stop_on_signals()
    town = TownProcess(plan, into / "town")
    agents: dict[str, Child] = {}

    async def judge() -> str:
        down = [name for name, agent in agents.items() if not agent.ready.is_set()]
        if len(agents) < len(parts):
            return "starting"
        return f"waiting for {', '.join(down)}" if down else health.WELL

    async with health.answering(judge), AsyncExitStack() as closing:
        await town.start()
        closing.push_async_callback(town.stop)
        for name, part in parts.items():
            config = into / name / "edge.toml"
            words = agent_file(known[name], part, town.endpoints, config.parent, broker=broker)
            config.write_text(words, encoding="utf-8")
            agent = Child(
                name,
                [sys.executable, "-m", "edge_agent", str(config)],
                into,
                environment=_radio(part, town.endpoints),
            )
            await agent.start()
            agents[name] = agent
        closing.push_async_callback(_stop, agents.values())
        await town.speak()
        runtime.notify("READY=1")
        sys.stdout.write(f"{len(agents)} gateways, {len(plan.devices)} devices\n")
        sys.stdout.flush()
        ended = asyncio.create_task(town.ended())
        stopped = asyncio.create_task(stop.wait())
        async with _trimming([into, into / "town"]):
            await asyncio.wait({ended, stopped}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if ended.done():
            sys.stderr.write(f"the town of twins ended with {ended.result()}\n")
            return 1
        await town.mute()
        ended.cancel()
    return 0


async def _stop(agents: Iterable[Child]) -> None:
    """Let every agent deliver what it has."""
    await asyncio.gather(*(agent.stop(DRAIN_S + STOP_S) for agent in agents))


def _radio(plan: TownPlan, endpoints: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    ours = [endpoints[bus.id] for bus in plan.buses]
    radios = [end["dbus"] for end in ours if end["kind"] == "ble"]
    return {"DBUS_SYSTEM_BUS_ADDRESS": radios[0]} if radios else {}


@asynccontextmanager
async def _trimming(folders: Sequence[Path]) -> AsyncIterator[None]:
    """Keep what is only appended to from filling the disk."""

    async def trim() -> None:
        while True:
            await asyncio.sleep(TRIM_EVERY_S)
            await asyncio.to_thread(_trim, folders)

    trimming = asyncio.create_task(trim())
    try:
        yield
    finally:
        trimming.cancel()


def _trim(folders: Sequence[Path], *, to_bytes: int = LOG_BYTES) -> None:
    for folder in folders:
        for file in (*folder.glob("*.log"), *folder.glob("*.jsonl")):
            if file.stat().st_size > to_bytes:
                os.truncate(file, 0)  # it is open for appending, and goes on from here


# -------------------------------------------------------------------------------------------------- command line


def parser() -> argparse.ArgumentParser:
    """Return the command's arguments."""
    parser = argparse.ArgumentParser(
        prog="onestreet street",
        description="Every gateway of an office's towns, simulated, until SIGTERM. 模擬各場域的閘道器",
    )
    parser.add_argument(
        "office", type=Path, nargs="?", default=Path("office"), help="default: %(default)s"
    )
    parser.add_argument(
        "--lamps", type=_count, default=4, help="a gateway 每閘道路燈數 (default: 4)"
    )
    parser.add_argument(
        "--bays", type=_count, default=4, help="a gateway 每閘道車位數 (default: 4)"
    )
    parser.add_argument("--air", type=_count, default=1, help="a gateway 空氣盒子 (default: 1)")
    parser.add_argument(
        "--broker",
        default="",
        metavar="NAME",
        help="its name from here, if another than in the towns' files 由此處連線訊息代理的名稱",
    )
    return parser


def run(argv: Sequence[str]) -> int:
    """Run the street until SIGTERM; return the exit status. Raises: ConfigError, ProcessFailed."""
    asked = parser().parse_args(argv)
    if not asked.lamps + asked.bays + asked.air:
        parser().error("a street needs a device: --lamps, --bays or --air above 0")
    office = asked.office.resolve()
    known = {post.name: post for post in posts(office)}
    plan, parts = town_plan([*known.values()], lamps=asked.lamps, bays=asked.bays, air=asked.air)
    into = office / "street"
    for name in parts:
        (into / name).mkdir(parents=True, exist_ok=True)
    _trim([into, into / "town"], to_bytes=0)
    return asyncio.run(_run(known, into, plan, parts, asked.broker))


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) > 64:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to 64")
    return int(text)
