"""Orders: commands that put a device to the test - the same one again, one that is late, one that cannot be read."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

from exchange.commands import Argument, Command, Result, encode_command
from exchange.conformance.conduct import Conduct, DeviceConduct
from exchange.conformance.judgement import Judge
from exchange.conformance.listening import until
from exchange.conformance.pace import Pace
from exchange.dictionary import ProfileCommand, dictionary

REQUIREMENTS = ("EX-C-003", "EX-C-004", "EX-C-005", "EX-C-006", "EX-C-009")
EXECUTED = {"accepted", "done", "failed"}
UNKNOWN = "conformance_unknown"
LIFE_S = 60.0
TIMES = 3  # that the same command is sent
GARBAGE = (b"{", b"\xff\x00\xff", b"[]", b'{"id": 7}')


class Orders:
    """Gives one device commands; what comes back is in the conduct that hears it."""

    def __init__(
        self,
        judge: Judge,
        conduct: Conduct,
        device: DeviceConduct,
        topic: str,
        publish: Callable[[str, bytes], Awaitable[None]],
        pace: Pace,
    ) -> None:
        assert device.state is not None
        self._judge, self._conduct, self._topic = judge, conduct, topic
        self._publish, self._pace = publish, pace
        self._name = device.state.descriptor.commands[0]
        self._args = _arguments(device.domain, self._name)
        self.last_id = uuid4()
        """The command that `give_last` gives."""

    async def give(self) -> None:
        """Give every command and judge what comes back."""
        first = self._command()
        await self._send(first)
        await self._answered(first.id)
        for _ in range(TIMES - 1):
            await self._send(first)
        unknown, late = self._command(name=UNKNOWN), self._command(age_s=2 * LIFE_S)
        await self._send(unknown)
        await self._send(late)
        whole = self._command()
        for payload in (*GARBAGE, _without_expiry(whole)):
            await self._send(payload)
        after = self._command()
        await self._send(after)
        for one in (unknown, late, after):
            await self._answered(one.id)
        await asyncio.sleep(min(1.0, self._pace.slack_s))  # what must not come has time to come
        if self._conduct.unread_results:
            for requirement in REQUIREMENTS[1:]:
                self._judge.apart(requirement, "there are results that cannot be read")
            return
        self._judge_first(first.id)
        self._judge_unknown(unknown.id)
        self._judge_late(late.id)
        self._judge_unreadable(first.id, whole.id, after.id)

    async def give_last(self) -> None:
        """Give one more, in order."""
        await self._send(self._command(self.last_id))

    def _judge_first(self, name: UUID) -> None:
        results = list(self._results(name))
        if not results:
            self._broken("EX-C-006", f"{self._name} was not answered")
            return
        self._kept("EX-C-006", f"{self._name} was answered with {results[0].status}")
        for status in EXECUTED:
            told = {(one.at, str(one.readback)) for one in results if one.status == status}
            if len(told) > 1:
                words = f"one command, sent {TIMES} times, was {status} {len(told)} times"
                self._broken("EX-C-004", words, name)
                return
        if any(one.status in EXECUTED for one in results):
            self._kept("EX-C-004", f"sent {TIMES} times, executed once", name)
        else:
            self._judge.apart("EX-C-004", f"{self._name} was {results[0].status}")

    def _judge_unknown(self, name: UUID) -> None:
        statuses = [one.status for one in self._results(name)]
        if statuses and set(statuses) == {"rejected"}:
            self._kept("EX-C-006", "an unknown command was rejected", name)
        else:
            found = statuses[0] if statuses else "no result"
            self._broken("EX-C-006", f"an unknown command: {found} instead of rejected", name)

    def _judge_late(self, name: UUID) -> None:
        statuses = {one.status for one in self._results(name)}
        if statuses == {"expired"}:
            self._kept("EX-C-005", "a command that had expired was answered with expired", name)
        else:
            found = ", ".join(sorted(statuses)) or "no result"
            self._broken("EX-C-005", f"a command that had expired: {found}, not expired", name)

    def _judge_unreadable(self, first: UUID, whole: UUID, after: UUID) -> None:
        executed = [one for one in self._results(whole) if one.status in EXECUTED]
        if executed:
            words = f"a command without expires_at was {executed[0].status}"
            self._broken("EX-C-009", words, whole)
        elif list(self._results(after)):
            self._kept("EX-C-009", "it answers after commands that nobody can read", after)
        elif list(self._results(first)):
            self._broken("EX-C-009", "it answers nothing more after commands that nobody can read")
        else:
            self._judge.apart("EX-C-009", "it answers no command at all")

    # ------------------------------------------------------------------------------------------------- plumbing

    def _command(
        self, identity: UUID | None = None, *, name: str = "", age_s: float = 0.0
    ) -> Command:
        now = datetime.now(UTC).replace(microsecond=0) - timedelta(seconds=age_s)
        return Command(
            id=identity or uuid4(),
            name=name or self._name,
            args=self._args if not name else {},
            issued_at=now,
            expires_at=now + timedelta(seconds=LIFE_S),
            issued_by="onestreet conform",
        )

    async def _send(self, command: Command | bytes) -> None:
        payload = command if isinstance(command, bytes) else encode_command(command)
        self._conduct.given.add(payload)
        await self._publish(self._topic, payload)

    async def _answered(self, name: UUID) -> None:
        """Return once it is answered or the time for it is up."""
        await until(
            lambda: any(one.status != "accepted" for one in self._results(name)),
            self._pace.answer_s,
        )

    def _results(self, name: UUID) -> Iterator[Result]:
        return (answer.result for answer in self._conduct.results.get(name, ()))

    def _kept(self, requirement: str, note: str, name: UUID | None = None) -> None:
        self._judge.kept(requirement, note, topic=self._topic, payload=self._payload(name))

    def _broken(self, requirement: str, note: str, name: UUID | None = None) -> None:
        self._judge.broken(requirement, note, topic=self._topic, payload=self._payload(name))

    def _payload(self, name: UUID | None) -> bytes:
        answers = self._conduct.results.get(name, []) if name else []
        return answers[-1].seen.payload if answers else b""


def refrain(judged: Judge, reason: str) -> None:
    """Say why no command was given."""
    for requirement in REQUIREMENTS:
        judged.apart(requirement, reason)


def _arguments(domain: str, name: str) -> dict[str, Argument]:
    """Return arguments that every device takes: the highest of each range, which leaves a lamp on."""
    taken: dict[str, ProfileCommand] = {}
    for profile in dictionary()[domain].profiles:
        taken |= profile.commands
    return {key: one.max for key, one in taken[name].args.items()} if name in taken else {}


def _without_expiry(command: Command) -> bytes:
    whole = encode_command(command)
    head, _, rest = whole.partition(b'"expires_at":')
    return head + rest.partition(b",")[2]
