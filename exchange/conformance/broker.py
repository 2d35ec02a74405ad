"""The role broker: comes in by every way, right and wrong, and looks at what arrives.

The credentials that it is given are in its use while it runs: a gateway or an ingest that holds the same ones is
thrown out for that time, so they should be of their own. Every marker that a broker retains is cleared at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, suppress
from itertools import product
from pathlib import Path

import msgspec

from exchange.conformance.credentials import Party, Ways, read_ways
from exchange.conformance.doors import Doors, Sent
from exchange.conformance.judgement import Judge, Report
from exchange.conformance.knocking import knock, speaks_mqtt
from exchange.conformance.witness import Address, Will, Witness, witness
from exchange.errors import UplinkError, UplinkLost, UplinkRefused
from exchange.tls import is_loopback
from exchange.topics import PREFIX, Topic

ARRIVE_S = 5.0
QUIET_S = 1.0
_PLAIN_PORT = 1883
_CHANNELS = ("readings", "state", "results", "commands", "receipts")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what this role asks beside the common options."""
    say = parser.add_argument
    say("--credentials", type=Path, required=True, metavar="FILE", help="the ways in, TOML")
    say("--deadline", type=float, default=ARRIVE_S, metavar="SECONDS", help="for what is granted")
    say(
        "--quiet-for",
        type=float,
        default=QUIET_S,
        metavar="SECONDS",
        help="how long what is denied may still arrive, after what is granted has",
    )
    say(
        "--plain-port",
        type=int,
        action="append",
        default=[],
        metavar="PORT",
        help=f"where plain MQTT is looked for, beside {_PLAIN_PORT} and the port of --broker",
    )


async def judge(asked: argparse.Namespace, address: Address) -> Report:
    """Judge a broker. Raises: ConfigError; UplinkError when what is granted does not work."""
    ways = read_ways(asked.credentials, asked.broker, asked.county)
    judge = Judge("broker", f"{address} {asked.county}")
    await _judge_plain(judge, address, [address.port, _PLAIN_PORT, *asked.plain_port])
    async with AsyncExitStack() as stack:
        guests = {}
        doors = Doors(judge, ways.parties)
        for party in ways.parties:
            guests[party.name] = guest = Guest(party, doors)
            stack.push_async_callback(guest.leave)
            await guest.enter()
        run = _Run(asked, judge, ways, doors, guests)
        await run.cross()
        await run.disguise()
        await run.wills()
        await run.sessions()
        await run.clear()
    await _judge_strangers(judge, ways)
    return judge.report()


class Guest:
    """A party that is in: what comes to it is noted. It comes in again when the broker throws it out."""

    def __init__(self, party: Party, doors: Doors) -> None:
        self.party = party
        self.thrown_out = False
        self._doors = doors
        self._stack = AsyncExitStack()
        self._connection: Witness | None = None
        self._listening: asyncio.Task[None] | None = None
        self._filters: list[str] = []

    async def enter(
        self,
        *,
        client_id: str = "",
        username: str = "",
        clean_session: bool = True,
        will: Will | None = None,
    ) -> None:
        """Come in, and subscribe as before. Raises: UplinkError."""
        await self.leave()
        address = self.party.address
        self._connection = await self._stack.enter_async_context(
            witness(
                msgspec.structs.replace(address, username=username or address.username),
                client_id=client_id or self.party.client_id,
                clean_session=clean_session,
                will=will,
            )
        )
        self.thrown_out = False
        self._listening = asyncio.create_task(self._listen(self._connection))
        if clean_session:
            filters, self._filters = self._filters, []
            for one in filters:
                await self.ask(one)

    async def leave(self) -> None:
        """Go."""
        if self._listening is not None:
            self._listening.cancel()
            await asyncio.wait([self._listening])
        self._connection = self._listening = None
        with suppress(UplinkLost):
            await self._stack.aclose()

    def vanish(self) -> None:
        """Go without a word."""
        assert self._connection is not None
        self._connection.vanish()

    async def ask(self, topic_filter: str) -> None:
        """Subscribe; a no is as good as a silence."""
        assert self._connection is not None
        self._filters.append(topic_filter)
        try:
            await self._connection.subscribe(topic_filter)
        except UplinkRefused:
            return
        except UplinkLost:
            self._filters.remove(topic_filter)  # a broker may end the connection instead
            await self.enter()

    async def say(self, sent: Sent, *, retain: bool = False) -> None:
        """Publish; whether it arrives is for the doors to see."""
        await self.publish(str(sent.topic), sent.payload, retain=retain)

    async def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """Publish; a broker may end the connection of who publishes what is denied."""
        assert self._connection is not None
        with suppress(UplinkLost):
            await self._connection.publish(topic, payload, retain=retain)
        if self.thrown_out:
            await self.enter()

    async def _listen(self, connection: Witness) -> None:
        try:
            async for seen in connection.messages():
                self._doors.take(self.party, seen)
        except UplinkLost:
            self.thrown_out = True


class _Run:
    """One run, with everybody in."""

    def __init__(
        self,
        asked: argparse.Namespace,
        judge: Judge,
        ways: Ways,
        doors: Doors,
        guests: dict[str, Guest],
    ) -> None:
        self._judge, self._ways, self._doors, self._guests = judge, ways, doors, guests
        self._deadline_s: float = asked.deadline
        self._quiet_s: float = asked.quiet_for
        self._device = f"conform-{secrets.token_hex(4)}"
        commanding = [one for one in ways.applications if one.commands]
        self._domain = min(commanding[0].commands)
        self._ingest = next(one for one in ways.ingests if ways.gateways[0].county in one.counties)

    def _topic(self, gateway: Party, channel: str, *, site: str = "") -> Topic:
        is_receipts = channel == "receipts"
        return Topic(
            gateway.county,
            site or gateway.site,
            gateway.gateway,
            "" if is_receipts else self._domain,
            "" if is_receipts else self._device,
            channel,  # type: ignore[arg-type]  # one of _CHANNELS
        )

    def _topics(self) -> Iterator[Topic]:
        """Yield every kind of topic of every gateway, and one of its own at another site."""
        everybody = [*self._ways.gateways, *self._ways.foreign]
        for gateway, channel in product(everybody, _CHANNELS):
            yield self._topic(gateway, channel)
        for gateway, channel in product(everybody, ("readings", "results")):
            yield self._topic(gateway, channel, site=f"{gateway.site[:40]}-other")

    async def cross(self) -> None:
        """Let everybody write everywhere and ask for everything; what is granted goes last."""
        guests = list(self._guests.values())
        for guest in guests:
            for one in self._rightful(guest.party):
                await guest.ask(one)
        for gateway in (*self._ways.gateways, *self._ways.foreign):
            await self._say(gateway, self._topic(gateway, "state"))
        for guest in guests:  # after the states: what is retained comes to who asks later, too
            for one in self._greedy(guest.party):
                await guest.ask(one)
        topics = list(self._topics())
        for granted in (False, True):
            for guest, topic in product(guests, topics):
                if guest.party.may_write(topic) == granted:
                    await self._say(guest.party, topic)
        await self._judge_arrivals()

    async def disguise(self) -> None:
        """Let a gateway give its neighbour's name beside its own certificate or password."""
        intruder, neighbour, *_ = self._ways.gateways
        with suppress(UplinkRefused):
            await self._guests[intruder.name].enter(username=neighbour.client_id)
            topic = self._topic(neighbour, "readings")
            sent = self._doors.marker(intruder, topic, "published in its neighbour's name")
            await self._guests[intruder.name].say(sent)
        await self._guests[intruder.name].enter()
        await self._guests[neighbour.name].enter()
        await self._say(neighbour, self._topic(neighbour, "readings"))
        await self._judge_arrivals()

    async def wills(self) -> None:
        """Let a gateway die with a will for what it may not write; its own goes last."""
        intruder, neighbour, *_ = self._ways.gateways
        foreign = self._ways.foreign[0]
        guest = self._guests[intruder.name]
        for topic in (
            self._topic(neighbour, "state"),
            self._topic(neighbour, "commands"),
            self._topic(neighbour, "receipts"),
            self._topic(intruder, "receipts"),
            self._topic(foreign, "commands"),
            self._topic(intruder, "state"),
        ):
            sent = self._doors.marker(intruder, topic, "left as a will")
            will = Will(topic=str(topic), payload=sent.payload, retain=topic.channel == "state")
            try:
                await guest.enter(will=will)
            except UplinkRefused:  # a broker may refuse the connection for its will
                if intruder.may_write(topic):
                    raise
                continue
            guest.vanish()
        await self._judge_arrivals()
        await guest.enter()

    async def sessions(self) -> None:
        """Let a gateway come in by its neighbour's client id, while it is there and while it is away."""
        intruder, neighbour, *_ = self._ways.gateways
        thief, victim = self._guests[intruder.name], self._guests[neighbour.name]
        await victim.enter(clean_session=False)
        await victim.ask(f"{_branch(neighbour)}/receipts")
        await victim.leave()
        await self._say(self._ingest, self._topic(neighbour, "receipts"))
        await victim.enter(clean_session=False)
        await self._judge_arrivals()  # a broker that keeps no session shows nothing here
        for is_there, clean in product((True, False), (True, False)):
            if not is_there:
                await victim.leave()
            with suppress(UplinkError):
                await thief.enter(client_id=victim.party.client_id, clean_session=clean)
            sent = await self._say(self._ingest, self._topic(neighbour, "receipts"))
            if not is_there:
                await asyncio.sleep(self._quiet_s)
                await thief.leave()
                await victim.enter(clean_session=False)
            await self._until(lambda: not self._doors.missing())
            words = f"a gateway came by its neighbour's client id, with{'' if clean else 'out'} a clean session, "
            words += "while it was there" if is_there else "while it was away"
            if victim.thrown_out or self._doors.missing():
                lost = "it was thrown out" if victim.thrown_out else "its message was lost"
                self._judge.broken(
                    "EX-A-008", f"{words}: {lost}", topic=str(sent.topic), payload=sent.payload
                )
                await victim.enter(clean_session=False)
                await victim.ask(f"{_branch(neighbour)}/receipts")
            else:
                self._judge.kept("EX-A-008", f"{words}: all was well", topic=str(sent.topic))
            self._doors.judge()
        await thief.enter()
        await victim.enter()  # a clean session: the kept one is gone

    async def clear(self) -> None:
        """Let every owner clear what may have been retained in its name."""
        for gateway in (*self._ways.gateways, *self._ways.foreign):
            topic = str(self._topic(gateway, "state"))
            await self._guests[gateway.name].publish(topic, b"", retain=True)

    async def _say(self, party: Party, topic: Topic) -> Sent:
        sent = self._doors.marker(party, topic)
        await self._guests[party.name].say(sent, retain=topic.channel == "state")
        return sent

    def _rightful(self, party: Party) -> list[str]:
        if party.kind == "gateway":
            return [f"{_branch(party)}/+/+/commands", f"{_branch(party)}/receipts"]
        return [
            f"{PREFIX}/{county}/+/+/+/+/{channel}"
            for county in sorted(party.counties)
            for channel in sorted(party.reads)
        ]

    def _greedy(self, party: Party) -> list[str]:
        everything = ["#", "city/#", "+/+/+/+/+/#", f"$share/{party.client_id}/city/#"]
        everything += [f"{PREFIX}/{one}/#" for one in self._counties()]
        return everything + [str(topic) for topic in self._topics() if not party.may_read(topic)]

    def _counties(self) -> list[str]:
        return sorted({one.county for one in (*self._ways.gateways, *self._ways.foreign)})

    async def _judge_arrivals(self) -> None:
        """Judge, once all that is granted has arrived. Raises: UplinkRefused when it does not."""
        await self._until(lambda: not self._doors.missing())
        for sent, reader in self._doors.missing():
            words = (
                f"what is granted does not work: on {sent.topic}, {sent.how} by the"
                f" {sent.writer.name}, nothing came to the {reader.name} within {self._deadline_s:g} s"
            )
            raise UplinkRefused(words)
        await asyncio.sleep(self._quiet_s)
        self._doors.judge()

    async def _until(self, condition: Callable[[], bool]) -> None:
        news = self._doors.news
        with suppress(TimeoutError):
            async with asyncio.timeout(self._deadline_s):
                while not condition():
                    news.clear()
                    await news.wait()


# -------------------------------------------------------------------------------------------------- strangers


async def _judge_plain(judge: Judge, address: Address, ports: list[int]) -> None:
    if is_loopback(address.host):
        judge.apart("EX-A-001", f"{address.host} is loopback, where plain text is allowed")
        return
    if address.tls is None:
        judge.broken("EX-A-001", f"{address} takes plain text")
        return
    for port in dict.fromkeys(ports):
        if await speaks_mqtt(address.host, port):
            judge.broken("EX-A-001", f"{address.host}:{port} answers a CONNECT in plain text")
        else:
            judge.kept("EX-A-001", f"{address.host}:{port} answers no CONNECT in plain text")


async def _judge_strangers(judge: Judge, ways: Ways) -> None:
    """Knock as nobody, with wrong passwords, and with certificates that must not be believed."""
    for address in ways.nobody:
        await _knock(judge, "EX-A-002", f"at {address} without credentials", address)
        for party in ways.parties:
            if (party.address.host, party.address.port) != (address.host, address.port):
                continue
            name = party.address.username or party.client_id
            wrong = [secrets.token_urlsafe(12), ""]
            wrong += [
                one.address.password
                for one in ways.parties
                if one.address.password and one is not party
            ]
            for password in wrong:
                as_it = msgspec.structs.replace(address, username=name, password=password)
                await _knock(judge, "EX-A-002", f"as the {party.name}, a wrong password", as_it)
            break
    if not ways.refused:
        judge.apart("EX-A-009", "the credentials hold no certificate that must be refused")
    for reason, address in ways.refused:
        await _knock(judge, "EX-A-009", f"at {address} by a certificate that is {reason}", address)
    missing = {"expired", "revoked", "from another CA"} - {reason for reason, _ in ways.refused}
    if ways.refused and missing:
        judge.notes.append(f"EX-A-009: not tried: a certificate that is {', '.join(missing)}")


async def _knock(judge: Judge, requirement: str, words: str, address: Address) -> None:
    is_in, answer = await knock(address)
    if is_in:
        judge.broken(requirement, f"{words}: let in")
    else:
        judge.kept(requirement, f"{words}: {answer}")


def _branch(gateway: Party) -> str:
    return f"{PREFIX}/{gateway.county}/{gateway.site}/{gateway.gateway}"
