"""`onestreet conform application`: listens to who gives commands, gives none itself, and judges."""

from __future__ import annotations

import argparse
import asyncio

import msgspec

from exchange.commands import decode_command
from exchange.conformance import arguments
from exchange.conformance.judgement import Judge, Report
from exchange.conformance.listening import listening
from exchange.conformance.witness import Address, Seen
from exchange.errors import CommandError, StateError, TopicError
from exchange.states import decode_state
from exchange.topics import parse_topic

LONGEST_S = 50.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what this role asks for."""
    parser.add_argument("--gateway", type=arguments.level, help="default: every one of the county")
    parser.add_argument(
        "--seconds", type=arguments.seconds, default=LONGEST_S, help="default: %(default)g"
    )


async def judge(asked: argparse.Namespace, address: Address) -> Report:
    """Judge whoever gives commands. Raises: UplinkError."""
    where = f"{asked.county}/{asked.gateway or ''}".rstrip("/")
    judged = Judge("application", f"commands in {where}")
    commands = _CommandJudge(judged)
    topics = f"+/+/{asked.county}/+/{asked.gateway or '+'}/#"
    async with listening(address, topics, commands.take):
        arguments.progress(asked, f"watching {judged.subject} for {asked.seconds:g} s")
        await asyncio.sleep(asked.seconds)
    return judged.report()


class _CommandJudge:
    """Knows what each device announces, and judges each command."""

    def __init__(self, judged: Judge) -> None:
        self._judge = judged
        self._announced: dict[str, list[str]] = {}

    def take(self, seen: Seen) -> None:
        device = seen.topic.rpartition("/")[0]
        try:
            topic = parse_topic(seen.topic)
        except TopicError as error:
            if _looks_like_a_command(seen.payload):
                self._judge.breach(error, topic=seen.topic, payload=seen.payload)
            return
        if topic.channel == "state":
            try:
                state = decode_state(seen.payload)
            except StateError:
                return  # its gateway's affair
            self._announced[device] = [] if state is None else state.descriptor.commands
        elif topic.channel == "commands":
            self._kept("EX-T-001", "a topic in its shape", seen)
            try:
                name = decode_command(seen.payload).name
            except CommandError as error:
                self._judge.breach(error, topic=seen.topic, payload=seen.payload)
                return
            self._kept("EX-C-001", "a command in its shape", seen)
            self._kept("EX-C-002", "it expires after it is issued", seen)
            if name in self._announced.get(device, []):
                self._kept("EX-C-008", f"{name} is announced", seen)
            else:
                words = f"{name} is not what the state of {topic.device} announces"
                self._judge.broken("EX-C-008", words, topic=seen.topic, payload=seen.payload)

    def _kept(self, requirement: str, note: str, seen: Seen) -> None:
        self._judge.kept(requirement, note, topic=seen.topic, payload=seen.payload)


def _looks_like_a_command(payload: bytes) -> bool:
    try:
        found = msgspec.json.decode(payload)
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and {"id", "name"} <= found.keys()
