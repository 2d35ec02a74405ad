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

from exchange.conformance.arguments import seconds
from exchange.conformance.authentication import judge_plain, judge_strangers
from exchange.conformance.authorization import Markers, Sent
from exchange.conformance.credentials import Party, Ways, read_ways
from exchange.conformance.judgement import Judge, Report
from exchange.conformance.sessions import Session
from exchange.conformance.witness import Address, Will
from exchange.errors import UplinkError, UplinkRefused
from exchange.topics import PREFIX, Topic

ARRIVE_S = 5.0
QUIET_S = 1.0
_PLAIN_PORT = 1883
_CHANNELS = ("readings", "state", "results", "commands", "receipts")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what this role asks beside the common options."""
    say = parser.add_argument
    say("--credentials", type=Path, required=True, metavar="FILE", help="the ways in, TOML")
    say("--deadline", type=seconds, default=ARRIVE_S, metavar="SECONDS", help="for what is granted")
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
    await judge_plain(judge, ways.nobody, [_PLAIN_PORT, *asked.plain_port])
    async with AsyncExitStack() as stack:
        sessions = {}
        markers = Markers(judge, ways.parties)
        for party in ways.parties:
            sessions[party.name] = session = Session(party, markers)
            stack.push_async_callback(session.disconnect)
            await session.connect()
        run = _Run(asked, judge, ways, markers, sessions)
        try:
            await run.cross()
            await run.disguise()
            await run.wills()
            await run.takeovers()
        finally:
            await run.clear()
    await judge_strangers(judge, ways)
    return judge.report()


class _Run:
    """One run, with everybody in."""

    def __init__(
        self,
        asked: argparse.Namespace,
        judge: Judge,
        ways: Ways,
        markers: Markers,
        sessions: dict[str, Session],
    ) -> None:
        self._judge, self._ways, self._markers, self._sessions = judge, ways, markers, sessions
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
        sessions = list(self._sessions.values())
        for session in sessions:
            for one in self._rightful(session.party):
                await session.subscribe(one)
        for gateway in (*self._ways.gateways, *self._ways.foreign):
            await self._say(gateway, self._topic(gateway, "state"))
        for session in sessions:  # after the states: what is retained comes to who asks later, too
            for one in self._greedy(session.party):
                await session.subscribe(one)
        topics = list(self._topics())
        for granted in (False, True):
            for session, topic in product(sessions, topics):
                if session.party.may_write(topic) == granted:
                    await self._say(session.party, topic)
        await self._judge_arrivals()

    async def disguise(self) -> None:
        """Let a gateway give its neighbour's name beside its own certificate or password."""
        intruder, neighbour, *_ = self._ways.gateways
        with suppress(UplinkRefused):
            await self._sessions[intruder.name].connect(username=neighbour.client_id)
            topic = self._topic(neighbour, "readings")
            sent = self._markers.marker(intruder, topic, "published in its neighbour's name")
            await self._sessions[intruder.name].say(sent)
        await self._sessions[intruder.name].connect()
        await self._sessions[neighbour.name].connect()
        await self._say(neighbour, self._topic(neighbour, "readings"))
        await self._judge_arrivals()

    async def wills(self) -> None:
        """Let a gateway die with a will for what it may not write; its own goes last."""
        intruder, neighbour, *_ = self._ways.gateways
        foreign = self._ways.foreign[0]
        session = self._sessions[intruder.name]
        for topic in (
            self._topic(neighbour, "state"),
            self._topic(neighbour, "commands"),
            self._topic(neighbour, "receipts"),
            self._topic(intruder, "receipts"),
            self._topic(foreign, "commands"),
            self._topic(intruder, "state"),
        ):
            sent = self._markers.marker(intruder, topic, "left as a will")
            will = Will(topic=str(topic), payload=sent.payload, retain=topic.channel == "state")
            try:
                await session.connect(will=will)
            except UplinkRefused:  # a broker may refuse the connection for its will
                if intruder.may_write(topic):
                    raise
                continue
            session.vanish()
        await self._judge_arrivals()
        await session.connect()

    async def takeovers(self) -> None:
        """Let gateways come in by a neighbour's client id, while it is there and while it is away."""
        neighbour = self._ways.gateways[1]
        victim = self._sessions[neighbour.name]
        await victim.connect(clean_session=False)
        await victim.subscribe(f"{_branch(neighbour)}/receipts")
        await victim.disconnect()
        await self._say(self._ingest, self._topic(neighbour, "receipts"))
        await victim.connect(clean_session=False)
        await self._judge_arrivals()  # a broker that keeps no session shows nothing here
        thieves = {  # one by each door that gateways have
            (one.address.host, one.address.port): one
            for one in self._ways.gateways
            if one is not neighbour
        }
        for one, is_there in product(thieves.values(), (True, False)):
            thief = self._sessions[one.name]
            for clean in (False, True):
                if not await self._keeps(victim, thief, is_there=is_there, clean=clean):
                    break
            await thief.connect()
        await victim.connect()  # a clean session: the kept one is gone

    async def _keeps(self, victim: Session, thief: Session, *, is_there: bool, clean: bool) -> bool:
        """Whether a gateway keeps its session while another comes in by its client id."""
        if not is_there:
            await victim.disconnect()
        with suppress(UplinkError):
            await thief.connect(client_id=victim.party.client_id, clean_session=clean)
        sent = await self._say(self._ingest, self._topic(victim.party, "receipts"))
        if not is_there:
            await asyncio.sleep(self._quiet_s)
            await thief.disconnect()
            await victim.connect(clean_session=False)
        await self._until(lambda: victim.thrown_out or not self._markers.missing())
        words = (
            f"the {thief.party.name} came by the client id of the {victim.party.name}, which was"
            f" {'there' if is_there else 'away'}, with{'' if clean else 'out'} a clean session"
        )
        kept = not (victim.thrown_out or self._markers.missing())
        topic = str(sent.topic)
        if kept:
            self._judge.kept("EX-A-008", f"{words}: all was well", topic=topic)
        else:
            lost = "it was thrown out" if victim.thrown_out else "its message was lost"
            self._judge.broken("EX-A-008", f"{words}: {lost}", topic=topic, payload=sent.payload)
            await victim.connect(clean_session=False)
            await victim.subscribe(f"{_branch(victim.party)}/receipts")
        self._markers.judge()
        return kept

    async def clear(self) -> None:
        """Let every owner clear what may have been retained in its name."""
        for gateway in (*self._ways.gateways, *self._ways.foreign):
            topic = str(self._topic(gateway, "state"))
            with suppress(UplinkError):
                await self._sessions[gateway.name].publish(topic, b"", retain=True)

    async def _say(self, party: Party, topic: Topic) -> Sent:
        sent = self._markers.marker(party, topic)
        await self._sessions[party.name].say(sent, retain=topic.channel == "state")
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
        await self._until(lambda: not self._markers.missing())
        for sent, reader in self._markers.missing():
            words = (
                f"what is granted does not work: on {sent.topic}, {sent.how} by the"
                f" {sent.writer.name}, nothing came to the {reader.name} within {self._deadline_s:g} s"
            )
            raise UplinkRefused(words)
        await asyncio.sleep(self._quiet_s)
        self._markers.judge()

    async def _until(self, condition: Callable[[], bool]) -> None:
        news = self._markers.news
        with suppress(TimeoutError):
            async with asyncio.timeout(self._deadline_s):
                while not condition():
                    news.clear()
                    await news.wait()


def _branch(gateway: Party) -> str:
    return f"{PREFIX}/{gateway.county}/{gateway.site}/{gateway.gateway}"
