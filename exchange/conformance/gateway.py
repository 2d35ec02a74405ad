"""`onestreet conform gateway`: plays ingest for one gateway - with and without receipts - and judges.

No other ingest may run meanwhile. With `--cable` the gateway connects to the kit, which passes everything on and
breaks the connection once.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import time
from collections.abc import Iterable
from contextlib import AsyncExitStack
from itertools import pairwise
from uuid import UUID

import msgspec

from exchange.conformance import arguments
from exchange.conformance.cable import Cable
from exchange.conformance.conduct import Answer, Conduct, DeviceConduct
from exchange.conformance.device import look_around
from exchange.conformance.judgement import Judge, Report
from exchange.conformance.ledger import EARLY, Ledger
from exchange.conformance.listening import Listener, listening, until
from exchange.conformance.orders import Orders, refrain
from exchange.conformance.pace import Pace
from exchange.conformance.witness import Address, Seen
from exchange.delivery import Key
from exchange.errors import ContractError, UplinkLost
from exchange.receipts import Receipt, encode_receipt, ranges
from exchange.states import State, decode_state

LONGEST_S = 180.0
FIRST_S = 70.0  # until the first readings: a gateway's own come every minute
WINDOW = 5000
RECEIPTS_S = 60.0  # until the broker has taken every receipt
DRAIN_SLACKS = 8  # a gateway that was given no receipts has a backlog
GARBAGE = (b"{", b"\x00\xff", b"[]", b'{"v":99}', b'{"v":1,"stored":{"x":[[0,9,1]]}}', b"")
_DELIVERY = (
    *("EX-D-004", "EX-D-005", "EX-D-006", "EX-D-007", "EX-D-008", "EX-D-009", "EX-D-010"),
    "EX-C-007",
)
_CABLE = ("EX-S-004", "EX-S-005")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what this role asks for."""
    parser.description = (
        "Judges a gateway, all of its devices, and delivery: the kit plays ingest, so no other may"
        " run. Takes about two minutes. 檢測閘道器與其全部設備；檢測期間請勿執行其他資料接收端。"
    )
    parser.add_argument("--gateway", required=True, type=arguments.level)
    parser.add_argument(
        "--window",
        type=arguments.samples,
        default=WINDOW,
        help="the W that it states, default: %(default)d",
    )
    parser.add_argument(
        "--cable",
        type=arguments.endpoint,
        metavar="PORT|HOST:PORT",
        help="listen here for the gateway, pass everything on to the broker, and break it once",
    )
    parser.add_argument(
        "--cable-to",
        type=arguments.endpoint,
        metavar="PORT|HOST:PORT",
        help="where the cable ends, when gateways go to another port than the kit does",
    )
    parser.add_argument(
        "--seconds",
        type=arguments.seconds,
        default=LONGEST_S,
        help="how long to wait at most for what its back-offs bring, default: %(default)g",
    )
    parser.add_argument(
        "--commands", action="store_true", help="give a device commands: a real lamp will act"
    )


async def judge(asked: argparse.Namespace, address: Address, *, pace: Pace | None = None) -> Report:
    """Judge one gateway. Raises: UplinkError, ConfigError."""
    run = _Run(asked, address, pace or Pace())
    await run.go()
    return run.judge.report()


class _Run:
    """One run: what the phases share."""

    def __init__(self, asked: argparse.Namespace, address: Address, pace: Pace) -> None:
        self.judge = Judge("gateway", f"{asked.county}/{asked.gateway}")
        self._asked, self._address, self._pace = asked, address, pace
        self._conduct = Conduct(self.judge, asked.county, asked.gateway, pace=pace)
        self._ledger = Ledger(self.judge, pace, asked.window)
        self._until_s = time.monotonic() + asked.seconds
        self._receipts: asyncio.Queue[tuple[str, bytes, set[Key]]] = asyncio.Queue()
        self._mine: set[bytes] = set()
        self._begun_ms = time.time() * 1000
        self._places: dict[str, str] = {}  # device: where its receipts go
        self._is_holding = self._is_silent = False
        self._hold_results_of: UUID | None = None
        self._orders: Orders | None = None
        self._held_result: list[float] = []
        self._held_answer: Answer | None = None
        self._last_heard_s = time.monotonic()
        self._wills: list[Seen] = []
        self._came_states: dict[str, float] = {}
        self._is_pulled = False

    async def go(self) -> None:
        """Go through every phase."""
        async with AsyncExitStack() as stack:
            cable: Cable | None = None
            if self._asked.cable:
                broker = self._asked.cable_to or (self._address.host, self._address.port)
                cable = await stack.enter_async_context(Cable(self._asked.cable, broker))
            listener = await stack.enter_async_context(
                listening(self._address, self._conduct.filter, self._take)
            )
            listener.start(self._send_receipts(listener))
            await self._phases(listener, cable)
            # before the cable goes: its end lets the broker publish the last will
            self._conduct.conclude(await listener.retained(self._conduct.filter))
            self._ledger.conclude(time.monotonic())
            await look_around(self._conduct, listener)
        self._conclude_own_state()
        self._conclude_receipts()

    async def _phases(self, listener: Listener, cable: Cable | None) -> None:
        self._say(f"waiting for the first readings of {self.judge.subject}")
        if not await until(lambda: self._places, min(FIRST_S, self._asked.seconds)):
            self._no_orders("nothing came")
            return
        self._say("playing ingest")
        await asyncio.gather(asyncio.sleep(self._pace.listen_s), self._give_orders(listener))
        await self._confuse(listener)
        await self._hold()
        if self._has_stopped:
            self._conclude_stopped()
            return
        if cable is not None:
            await self._pull(cable, listener)
        else:
            self._without_cable("only with --cable: the kit has to break the connection")
        await self._await_again()
        await self._be_silent()
        await self._settle()

    # ---------------------------------------------------------------------------------------------------- what comes

    def _take(self, seen: Seen) -> None:
        if seen.topic.endswith("/receipts"):
            if seen.payload not in self._mine and not seen.retain:
                self._note_other_ingest(seen)
            return
        is_own_state = seen.topic.endswith(f"/gateway/{self._asked.gateway}/state")
        if is_own_state and not seen.retain:
            if self._is_pulled:
                self._wills.append(seen)
                return
            self._note_reconnect(seen)
        heard = self._conduct.take(seen)
        if seen.retain:
            return
        if not seen.topic.endswith("/commands"):
            self._last_heard_s = seen.at_s
        if seen.topic.endswith("/state"):
            self._came_states[seen.topic] = seen.at_s
        if seen.topic.endswith("/results"):
            self._take_result(seen)
        elif heard is not None:
            device = heard.topic.device
            self._places[device] = heard.topic.receipts
            keys = {Key(device, epoch, seq) for epoch, seq in heard.keys}
            self._ledger.arrived(keys, seen.at_s, seen.topic, seen.payload)
            self._answer(device, keys)

    def _answer(self, device: str, keys: set[Key]) -> None:
        ledger = self._ledger
        age_s = self._age_s(device, keys)
        ledger.has_backlog |= age_s > self._pace.slack_s
        # what may have been sent before we listened is not held: how often, and when, is unknown
        if (self._is_holding and age_s <= 0) and (
            keys & ledger.foretold or not any(key.device == device for key in ledger.held)
        ):
            ledger.held |= keys
        if not self._is_silent:
            self._receipt(keys - ledger.held)

    def _age_s(self, device: str, keys: set[Key]) -> float:
        """Return how long before we listened the oldest of these was measured; below 0 for after."""
        sent = self._conduct.devices[device].sent
        times = [sent[key.epoch, key.seq].sample.time_ms for key in keys if key[1:] in sent]
        return (self._begun_ms - min(times, default=self._begun_ms)) / 1000

    def _receipt(self, keys: set[Key]) -> None:
        """Receipt these, by the device and the epoch."""
        series: dict[tuple[str, int], list[int]] = {}
        for key in keys:
            series.setdefault((key.device, key.epoch), []).append(key.seq)
        for (device, epoch), seqs in series.items():
            stored = {device: [(epoch, first, last) for first, last in ranges(seqs)]}
            named = {Key(device, epoch, seq) for seq in seqs}
            self._ledger.receipting(named)
            self._put(self._places[device], encode_receipt(Receipt(v=1, stored=stored)), named)

    def _put(self, topic: str, payload: bytes, keys: Iterable[Key] = ()) -> None:
        self._mine.add(payload)
        self._receipts.put_nowait((topic, payload, set(keys)))

    async def _send_receipts(self, listener: Listener) -> None:
        async def send(topic: str, payload: bytes, keys: set[Key]) -> None:
            await listener.publish(topic, payload)
            self._ledger.receipted(keys, time.monotonic())

        while True:
            batch = [await self._receipts.get()]
            while not self._receipts.empty():
                batch.append(self._receipts.get_nowait())
            await asyncio.gather(*(send(*one) for one in batch))
            for _ in batch:
                self._receipts.task_done()

    def _take_result(self, seen: Seen) -> None:
        for name, answers in self._conduct.results.items():
            if answers[-1].seen is not seen:
                continue
            result = answers[-1].result
            if name == self._hold_results_of and result.status != "accepted":
                self._held_result.append(seen.at_s)
                self._held_answer = answers[-1]
                if not self._is_result_sent_again:
                    return
            self._receipt_result(answers[-1])

    def _receipt_result(self, answer: Answer) -> None:
        receipt = Receipt(v=1, results=[(str(answer.result.id), answer.result.status)])
        self._put(answer.topic.receipts, encode_receipt(receipt))

    @property
    def _is_result_sent_again(self) -> bool:
        """Answers to one command that comes again are no resend: a resend has waited for its back-off."""
        came = self._held_result
        return any(
            later - before > EARLY * self._pace.backoff_first_s for before, later in pairwise(came)
        )

    def _note_other_ingest(self, seen: Seen) -> None:
        words = f"another ingest sends receipts to it: {seen.topic}; stop it and run again"
        if words not in self.judge.notes:
            self.judge.notes.append(words)

    def _note_reconnect(self, seen: Seen) -> None:
        """A gateway states itself on every connect: what was under way before may be lost."""
        self._ledger.broke(self._last_heard_s, seen.at_s)
        self._repeat_receipts()

    def _repeat_receipts(self) -> None:
        if not self._is_silent:
            self._receipt(self._ledger.unsure() - self._ledger.held)

    # --------------------------------------------------------------------------------------------------- the phases

    async def _confuse(self, listener: Listener) -> None:
        """Send receipts that nobody can read, go on as before, and receipt samples that are still to come."""
        self._say("receipts that cannot be read, and some that come too early")
        ledger = self._ledger
        garbage_s = ledger.garbage_s = time.monotonic()
        for topic in sorted(set(self._places.values())):
            for payload in GARBAGE:
                self._mine.add(payload)
                await listener.publish(topic, payload)
        # one that is receipted afterwards shows whether receipts are still taken
        await until(lambda: ledger.newest_receipted_s > garbage_s, self._pace.listen_s)
        for name in self._places:
            device = self._conduct.devices[name]
            if device.sent:
                self._foretell(device)

    def _foretell(self, device: DeviceConduct) -> None:
        epoch, last = max(device.sent, key=lambda key: device.sent[key].sample.time_ms)
        soon = math.ceil(self._pace.listen_s / 2 / (device.interval_s or 1.0))
        first, to = last + 2 + soon, last + 2 + 2 * soon
        named = {(epoch, seq) for seq in range(first, to + 1)}
        device.foretold |= named
        self._ledger.foretold |= {Key(device.name, *one) for one in named}
        receipt = Receipt(v=1, stored={device.name: [(epoch, first, to)]})
        self._put(self._places[device.name], encode_receipt(receipt))

    async def _hold(self) -> None:
        """Withhold the receipt of one pack of each device, and of what was receipted too early."""
        self._say("withholding some receipts")
        self._is_holding = True
        if self._orders is not None:
            self._hold_results_of = self._orders.last_id
            await self._orders.give_last()
        await asyncio.sleep(2 * self._pace.listen_s)
        await until(lambda: self._ledger.held or self._has_stopped, self._left_s)
        self._is_holding = False

    @property
    def _has_stopped(self) -> bool:
        """Whether it sent nothing at all since the receipts that nobody can read, however long its intervals."""
        garbage_s, slack_s = self._ledger.garbage_s or math.inf, self._pace.slack_s
        devices = [one for one in self._conduct.devices.values() if one.sent]
        shortest_s = min(one.interval_s or FIRST_S for one in devices)
        silent_s = time.monotonic() - max(garbage_s, self._last_heard_s)
        return self._last_heard_s < garbage_s + slack_s and silent_s > 2 * (shortest_s + slack_s)

    def _conclude_stopped(self) -> None:
        words = "it sent nothing more after a receipt that cannot be read"
        self.judge.broken("EX-D-010", words, payload=GARBAGE[0])
        self._conduct.quiet.append((time.time() - self._pace.slack_s - FIRST_S, math.inf))
        self._without_cable(words)

    async def _pull(self, cable: Cable, listener: Listener) -> None:
        """Let the connection hang, break it, see the will, and let the gateway come back."""
        if not cable.connections:
            host, port = self._asked.cable
            self._without_cable(f"it did not connect by the cable, {host}:{port}")
            return
        self._say("breaking the connection")
        await asyncio.sleep(self._pace.slack_s)  # the broker has what is withheld, and it knows
        begun_s, begun_time_s = time.monotonic(), time.time()
        before = cable.connections
        own = self._conduct.devices.get(self._asked.gateway)
        state = own.state if own else None
        cable.hang()
        await asyncio.sleep(self._pace.slack_s / 2)
        self._is_pulled = True
        cable.pull()
        await until(lambda: self._wills, self._pace.slack_s)
        held = await listener.retained(self._conduct.filter)
        self._judge_will(state, held)
        self._is_pulled = False
        cable.restore()
        back = await until(lambda: cable.connections > before, self._pace.patience_s)
        if back:
            await self._judge_states(begun_s)
        self._ledger.broke(begun_s, time.monotonic())
        self._conduct.quiet.append((begun_time_s, time.time()))
        if not back:
            words = f"it did not come back within {self._pace.patience_s:g} s"
            self.judge.apart("EX-S-005", words)
        self._repeat_receipts()

    def _judge_will(self, state: State | None, held: dict[str, Seen]) -> None:
        if state is None or not state.online:
            self.judge.apart("EX-S-004", "it has no state of its own that is online")
            return
        if not self._wills:
            self.judge.broken("EX-S-004", "the connection broke, and no last will came")
            return
        will = self._wills[0]
        wrong = []
        if will.qos != 1:
            wrong.append(f"its QoS is {will.qos}")
        if will.topic not in held or held[will.topic].payload != will.payload:
            wrong.append("it is not retained")
        try:
            said = decode_state(will.payload)
        except ContractError:
            said = None
        if said != msgspec.structs.replace(state, online=False, since=None):
            wrong.append("it is not the whole state with online false and without since")
        if wrong:
            words = "the last will: " + ", ".join(wrong)
            self.judge.broken("EX-S-004", words, topic=will.topic, payload=will.payload)
        else:
            words = "the last will is the whole state"
            self.judge.kept("EX-S-004", words, topic=will.topic, payload=will.payload)

    async def _judge_states(self, since_s: float) -> None:
        expected = {
            device.topic("state")
            for device in self._conduct.devices.values()
            if device.state is not None and (device.sent or device.name == self._asked.gateway)
        }

        def came() -> set[str]:
            return {topic for topic, at_s in self._came_states.items() if at_s > since_s}

        await until(lambda: expected <= came(), 2 * self._pace.slack_s)
        for topic in sorted(expected - came()):
            words = "the gateway came back, and this state was not published"
            self.judge.broken("EX-S-005", words, topic=topic)
        if expected and expected <= came():
            self.judge.kept("EX-S-005", f"{len(expected)} states came after the reconnect")

    async def _await_again(self) -> None:
        """Wait until what is withheld came again, or should have."""
        self._say(f"waiting for what its back-off of {self._pace.backoff_first_s:g} s brings")
        ledger, held = self._ledger, set(self._ledger.held)

        def over() -> bool:
            now_s = time.monotonic()
            return self._is_result_over(now_s) and all(
                ledger.came_again(key) or ledger.due_s(key) < now_s for key in held
            )

        await until(over, self._left_s)
        ledger.conclude_held(held, time.monotonic())
        if self._held_result:
            if self._is_result_sent_again:
                self.judge.kept("EX-C-007", "a result without a receipt came again")
            elif self._is_result_over(time.monotonic()):
                words = "a result got no receipt and did not come again"
                self.judge.broken("EX-C-007", words)
        if self._held_answer is not None:
            self._receipt_result(self._held_answer)
        # one pack stays without a receipt: it is the oldest in the silence; that it came last shows
        # whether those before it are let go by receipts
        ledger.held = ledger.last_held()
        self._receipt(held - ledger.held)

    def _is_result_over(self, now_s: float) -> bool:
        if not self._held_result or self._is_result_sent_again:
            return True
        latest_s = self._pace.backoff_slowest_s + self._pace.proof_s + 2 * self._pace.slack_s
        return now_s > self._held_result[-1] + latest_s

    async def _be_silent(self) -> None:
        """Send no receipt at all until the oldest pack came again, or should have."""
        ledger = self._ledger
        try:
            async with asyncio.timeout(RECEIPTS_S):
                await self._receipts.join()
        except TimeoutError as error:
            raise UplinkLost("the broker does not take the kit's receipts") from error
        self._is_silent, begun_s = True, time.monotonic()
        self._say("no receipts at all")
        await until(lambda: ledger.has_outstanding, self._left_s)
        oldest = ledger.held or ledger.oldest()
        others_by_s = begun_s + self._pace.backoff_slowest_s + 2 * self._pace.slack_s

        def over() -> bool:
            now_s = time.monotonic()
            came = any(one.at_s > begun_s and one.keys & oldest for one in ledger.again)
            return now_s > others_by_s and (came or now_s > ledger.probed_s(oldest, begun_s))

        await until(over, self._left_s)
        ledger.conclude_silence(oldest, begun_s, time.monotonic())

    async def _settle(self) -> None:
        """Receipt everything, and wait until nothing is missing any more."""
        self._say("receipts for everything")
        self._is_silent = False
        self._ledger.held.clear()
        self._receipt(self._ledger.outstanding())
        await asyncio.sleep(self._pace.slack_s)
        devices = self._conduct.devices.values()
        await until(
            lambda: not any(one.missing() or one.is_behind for one in devices),
            DRAIN_SLACKS * self._pace.slack_s,
        )

    async def _give_orders(self, listener: Listener) -> None:
        if not self._asked.commands:
            self._no_orders("a command acts on a real device: only with --commands")
            return

        def announcing() -> list[DeviceConduct]:
            return [one for one in self._conduct.devices.values() if one.commands and one.sent]

        # the first device that is heard need not be one that takes commands
        if not await until(announcing, self._pace.listen_s):
            self._no_orders("no state of its devices announces a command")
            return
        device = announcing()[0]
        topic = device.topic("commands")
        orders = Orders(self.judge, self._conduct, device, topic, listener.publish, self._pace)
        await orders.give()
        self._orders = orders

    # -------------------------------------------------------------------------------------------------- at the end

    def _conclude_own_state(self) -> None:
        own = self._conduct.devices.get(self._asked.gateway)
        if not self._places:
            return
        if own is not None and own.was_online:
            self.judge.kept("EX-S-003", "the gateway's own state", topic=own.topic("state"))
        else:
            self.judge.broken("EX-S-003", "the gateway has no state of its own")

    def _conclude_receipts(self) -> None:
        if self.judge.notes and any("another ingest" in note for note in self.judge.notes):
            for requirement in _DELIVERY:
                self.judge.withdraw(requirement, "another ingest sends receipts to it")

    def _without_cable(self, reason: str) -> None:
        for requirement in _CABLE:
            self.judge.apart(requirement, reason)

    def _no_orders(self, reason: str) -> None:
        refrain(self.judge, reason)
        self.judge.apart("EX-C-007", reason)

    @property
    def _left_s(self) -> float:
        left_s: float = max(0.0, self._until_s - time.monotonic())
        return left_s

    def _say(self, words: str) -> None:
        arguments.progress(self._asked, words)
