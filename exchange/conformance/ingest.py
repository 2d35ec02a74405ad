"""The role ingest: plays two gateways, sends what is right, late, double and poisonous, and reads the receipts.

Harmless on a live store: every device is new and named conform-…, and its state is retired at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import secrets
from contextlib import AsyncExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path

from exchange.configuration import secret
from exchange.conformance.arguments import seconds
from exchange.conformance.cases import Case
from exchange.conformance.judgement import Judge, Report
from exchange.conformance.receipts import Receipts
from exchange.conformance.traffic import Traffic
from exchange.conformance.witness import Address, Witness, witness
from exchange.conformance.witness import address as address_of
from exchange.errors import ConfigError, UplinkRefused
from exchange.moments import rfc3339
from exchange.tls import Tls

ANSWER_S = 10.0
QUIET_S = 2.0
"""How long nothing more may come after the last receipt: a second ingest group would speak."""
FLOOD = 300
_AT_ONCE = 50


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what this role asks beside the common options."""
    name = f"conform-{secrets.token_hex(3)}"
    say = parser.add_argument
    say("--site", default="conform", help="the site of the played gateways; default: %(default)s")
    say("--gateway", default=f"{name}-a", help="the gateway to play; default: a new one")
    say("--deadline", type=seconds, default=ANSWER_S, metavar="SECONDS", help="for any receipt")
    say("--flood", type=int, default=FLOOD, metavar="N", help="unreadable payloads in a row")
    beside = parser.add_argument_group("a second gateway, that must hear nothing of the first")
    beside.add_argument("--neighbour", default=f"{name}-b", help="default: a new one")
    for option, words in (
        ("broker", "as --broker, with its user; default: the same login"),
        ("password-file", "its password"),
        ("cert", "its certificate, of --ca"),
        ("key", "and its key"),
    ):
        metavar, kind = ("URL", str) if option == "broker" else ("FILE", Path)
        beside.add_argument(f"--neighbour-{option}", type=kind, metavar=metavar, help=words)


async def judge(asked: argparse.Namespace, address: Address) -> Report:
    """Judge the ingest of a county. Raises: UplinkError, ConfigError."""
    judge = Judge("ingest", f"{address} {asked.county}")
    neighbour = _neighbour(asked, address)
    async with AsyncExitStack() as stack:
        connections = {}
        for gateway, where in ((asked.gateway, address), (asked.neighbour, neighbour)):
            client_id = where.username or f"{asked.county}.{gateway}"
            connection = witness(where, client_id=client_id)
            connections[gateway] = await stack.enter_async_context(connection)
        await _Run(asked, judge, connections).run()
    return judge.report()


def _neighbour(asked: argparse.Namespace, address: Address) -> Address:
    """Return as whom the second gateway goes to the broker. Raises: ConfigError."""
    if not (asked.neighbour_broker or asked.neighbour_cert or asked.neighbour_password_file):
        return address
    where, tls = "command line", address.tls
    password = secret(where, "--neighbour-broker", asked.neighbour_password_file, None)
    if asked.neighbour_cert:
        if asked.ca is None:
            raise ConfigError(where, "--ca", None, "--neighbour-cert needs --ca beside it")
        files = Tls(
            ca_file=asked.ca, certificate_file=asked.neighbour_cert, key_file=asked.neighbour_key
        )
        tls = files.context(where, "--neighbour-cert")
    return address_of(asked.neighbour_broker or asked.broker, password=password, tls=tls)


class _Run:
    """One run: what is sent, through which connection, and what comes back."""

    def __init__(
        self, asked: argparse.Namespace, judge: Judge, connections: dict[str, Witness]
    ) -> None:
        self._judge = judge
        self._connections = connections
        self._deadline_s: float = asked.deadline
        self._flood: int = asked.flood
        self._gateway: str = asked.gateway
        self._neighbour: str = asked.neighbour
        self._county: str = asked.county
        self._traffic = Traffic(asked.county, asked.site, asked.gateway, asked.neighbour)
        branches = [f"city/v1/{asked.county}/{asked.site}/{one}" for one in connections]
        self._receipts = Receipts(judge, [f"{branch}/receipts" for branch in branches])

    async def run(self) -> None:
        """Send everything in its order; what one stage needs of the one before is receipted by then."""
        await self._subscribe()
        try:
            async with asyncio.TaskGroup() as tasks:
                readers = [
                    tasks.create_task(self._listen(gateway)) for gateway in self._connections
                ]
                await self._send_all()
                for reader in readers:
                    reader.cancel()
        except ExceptionGroup as group:
            raise group.exceptions[0] from None
        self._receipts.close()
        devices = ", ".join(sorted({device.device for device in self._traffic.devices}))
        self._judge.notes.append(f"written, and retired at the end: {devices}")

    async def _send_all(self) -> None:
        traffic = self._traffic
        await self._states(alive=True)
        plain = [traffic.plain(traffic.air), traffic.plain(traffic.beside)]
        if await self._stage(plain):
            first = list(traffic.first())
            await self._stage(first)
            await self._stage(list(traffic.again(first)))
            await self._stage(list(traffic.hard(self._flood)))
            await self._stage([traffic.after_poison("a sample in order after a flood")])
        await self._states(alive=False)
        await self._quiet()

    async def _subscribe(self) -> None:
        """Listen where receipts belong, and wherever else this broker lets us.

        No two filters of a connection overlap: a broker may send a message once for each.
        """
        own, beside = self._receipts.books.values()
        for gateway, book in ((self._gateway, own), (self._neighbour, beside)):
            connection = self._connections[gateway]
            everywhere = f"city/v1/{self._county}/+/+/receipts"
            wide = gateway == self._neighbour and await _may(connection, everywhere)
            if not wide:
                await connection.subscribe(book.receipts, qos=2)
            for astray in ("+/receipts", "+/+/receipts", "receipts/+"):
                await _may(connection, book.branch + astray)

    async def _listen(self, gateway: str) -> None:
        """Take what comes; the neighbour hears all receipts of the county, the gateway's own twice."""
        own = f"/{self._gateway}/"
        async for seen in self._connections[gateway].messages():
            if gateway == self._gateway or own not in seen.topic:
                self._receipts.take(seen)

    async def _stage(self, cases: list[Case]) -> bool:
        """Send, wait for the receipts, judge; whether any came."""
        for case in cases:
            self._receipts.book(case).enter(case)
        for start in range(0, len(cases), _AT_ONCE):
            await asyncio.gather(*map(self._send, cases[start : start + _AT_ONCE]))
        with suppress(TimeoutError):
            async with asyncio.timeout(self._deadline_s):
                while self._receipts.unanswered(cases):
                    self._receipts.news.clear()
                    await self._receipts.news.wait()
        self._receipts.settle(cases, self._deadline_s)
        return self._receipts.heard

    async def _send(self, case: Case) -> None:
        connection = self._connections[case.topic.split("/")[4]]
        await connection.publish(case.topic, case.payload)

    async def _quiet(self) -> None:
        """Wait until nothing comes any more; then ask the broker for what it retains."""
        for book in self._receipts.books.values():
            await self._connections[book.branch.split("/")[4]].subscribe(book.receipts, qos=2)
        await asyncio.sleep(QUIET_S)

    async def _states(self, *, alive: bool) -> None:
        """Announce the played devices, or retire them."""
        for device in self._traffic.devices:
            state = {
                "v": 1,
                "online": True,
                "since": rfc3339(datetime.now(UTC)),
                "interval_s": 60,
                "epoch": device.epoch,
                "descriptor": {"label": {"en": "conformance test", "zh-TW": "符合性測試"}},
            }
            payload = json.dumps(state).encode() if alive else b""
            connection = self._connections[device.gateway]
            await connection.publish(device.topic("state"), payload, retain=True)


async def _may(connection: Witness, topic_filter: str) -> bool:
    """Subscribe where a broker need not let us; whether it does."""
    try:
        await connection.subscribe(topic_filter, qos=2)
    except UplinkRefused:
        return False
    return True
