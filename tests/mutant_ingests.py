"""A small ingest that keeps to the contract, and mutants of it that each break one requirement.

It is written with another client and another loop than our own ingest; its store is a set.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from itertools import chain
from typing import Any

import aiomqtt

from exchange.commands import decode_result
from exchange.errors import ContractError
from exchange.readings import decode_pack
from exchange.receipts import ranges
from exchange.topics import Topic, parse_topic

Receipt = dict[str, Any]


class PlainIngest:
    """Answers every message by one receipt, at once."""

    def __init__(self, county: str) -> None:
        self.county = county
        self.stored: set[tuple[str, int, int]] = set()
        self.client: aiomqtt.Client

    async def serve(self, client: aiomqtt.Client) -> None:
        self.client = client
        async for message in client.messages:
            assert isinstance(message.payload, bytes)
            await self.take(message.topic.value, message.payload)

    async def take(self, topic: str, payload: bytes) -> None:
        answer = self.answer(topic, payload)
        if answer:
            await self.tell("/".join([*topic.split("/")[:5], "receipts"]), {"v": 1, **answer})

    async def tell(self, topic: str, receipt: Receipt) -> None:
        await self.client.publish(topic, json.dumps(receipt).encode(), qos=1)

    def answer(self, topic: str, payload: bytes) -> Receipt:
        try:
            parsed = parse_topic(topic)
            if parsed.channel == "results":
                return self.of_result(payload)
            return self.of_pack(parsed, payload)
        except ContractError as error:
            return self.of_unreadable(payload, error.requirement)

    def of_result(self, payload: bytes) -> Receipt:
        result = decode_result(payload)
        return {"results": [[str(result.id), result.status]]}

    def of_unreadable(self, payload: bytes, requirement: str) -> Receipt:
        return {"unreadable": [[hashlib.sha256(payload).hexdigest(), requirement]]}

    def of_pack(self, topic: Topic, payload: bytes) -> Receipt:
        pack = decode_pack(payload, topic)
        [epoch] = {one.epoch for one in pack.samples} | {one.epoch for one in pack.refusals}
        refused: defaultdict[str, list[int]] = defaultdict(list)
        for refusal in pack.refusals:
            if not refusal.metric:
                refused[refusal.requirement].append(refusal.seq)
        latest_ms = 1000 * (time.time() + 86_400)
        stored = [sample.seq for sample in pack.samples if sample.time_ms <= latest_ms]
        if ahead := [sample.seq for sample in pack.samples if sample.time_ms > latest_ms]:
            refused["EX-R-023"] += ahead
        self.stored.update((topic.device, epoch, seq) for seq in stored)
        return self.of_samples(topic.device, epoch, stored, refused)

    def of_samples(
        self, device: str, epoch: int, stored: list[int], refused: dict[str, list[int]]
    ) -> Receipt:
        named = [[epoch, *one] for one in self.ranges(stored)]
        bad = [
            [epoch, *one, self.requirement(requirement)]
            for requirement, seqs in refused.items()
            for one in self.ranges(seqs)
        ]
        return {
            **({"stored": {device: named}} if named else {}),
            **({"refused": {device: bad}} if bad else {}),
        }

    def requirement(self, requirement: str) -> str:
        return requirement

    def ranges(self, seqs: Iterable[int]) -> list[tuple[int, int]]:
        return ranges(seqs)


MUTANTS: dict[str, tuple[str, type[PlainIngest]]] = {}
"""What a mutant does wrong, which requirement that breaks, and the mutant."""


def mutant(requirement: str) -> Callable[[type[PlainIngest]], type[PlainIngest]]:
    def enter(kind: type[PlainIngest]) -> type[PlainIngest]:
        MUTANTS[kind.__name__] = requirement, kind
        return kind

    return enter


@mutant("EX-T-001")
class TellsBelowTheDevice(PlainIngest):
    async def tell(self, topic: str, receipt: Receipt) -> None:
        gateway = topic.split("/")[4]
        await super().tell(topic.replace("/receipts", f"/gateway/{gateway}/receipts"), receipt)
        await super().tell(topic, receipt)


@mutant("EX-T-009")
class TellsWithQos0(PlainIngest):
    async def tell(self, topic: str, receipt: Receipt) -> None:
        await self.client.publish(topic, json.dumps(receipt).encode(), qos=0)


@mutant("EX-T-009")
class TellsWithQos2(PlainIngest):
    async def tell(self, topic: str, receipt: Receipt) -> None:
        await self.client.publish(topic, json.dumps(receipt).encode(), qos=2)


@mutant("EX-T-009")
class RetainsReceipts(PlainIngest):
    async def tell(self, topic: str, receipt: Receipt) -> None:
        await self.client.publish(topic, json.dumps(receipt).encode(), qos=1, retain=True)


@mutant("EX-D-001")
class ForgetsTheVersion(PlainIngest):
    async def tell(self, topic: str, receipt: Receipt) -> None:
        await super().tell(topic, {key: value for key, value in receipt.items() if key != "v"})


@mutant("EX-D-001")
class TellsOnceInWords(PlainIngest):
    async def tell(self, topic: str, receipt: Receipt) -> None:
        await self.client.publish(topic, b"received with thanks", qos=1)
        await super().tell(topic, receipt)


@mutant("EX-D-002")
class RangesRunBackwards(PlainIngest):
    def ranges(self, seqs: Iterable[int]) -> list[tuple[int, int]]:
        return [(last, first) for first, last in ranges(seqs)]


@mutant("EX-D-020")
class LosesTheLastOfMany(PlainIngest):
    def ranges(self, seqs: Iterable[int]) -> list[tuple[int, int]]:
        *most, last = sorted(seqs)
        return ranges(most or [last])


@mutant("EX-D-020")
class LosesEverySeventh(PlainIngest):
    taken = 0

    async def take(self, topic: str, payload: bytes) -> None:
        self.taken += 1
        if self.taken % 7:
            await super().take(topic, payload)


@mutant("EX-D-022")
class TellsEverybody(PlainIngest):
    def __init__(self, county: str) -> None:
        super().__init__(county)
        self.told: set[str] = set()

    async def tell(self, topic: str, receipt: Receipt) -> None:
        self.told.add(topic)
        for each in sorted(self.told):
            await super().tell(each, receipt)


@mutant("EX-D-022")
class TellsWhoeverHadTheDeviceFirst(PlainIngest):
    def __init__(self, county: str) -> None:
        super().__init__(county)
        self.first: dict[str, str] = {}

    async def tell(self, topic: str, receipt: Receipt) -> None:
        for device in receipt.get("stored", {}):
            topic = self.first.setdefault(device, topic)
        await super().tell(topic, receipt)


@mutant("EX-D-023")
class RangesRunOverGaps(PlainIngest):
    def ranges(self, seqs: Iterable[int]) -> list[tuple[int, int]]:
        seqs = list(seqs)
        return [(min(seqs), max(seqs))] if seqs else []


@mutant("EX-D-023")
class RangesEndBehindTheLast(PlainIngest):
    def ranges(self, seqs: Iterable[int]) -> list[tuple[int, int]]:
        return [(first, last + 1) for first, last in ranges(seqs)]


@mutant("EX-D-023")
class NamesEverything(PlainIngest):
    def ranges(self, seqs: Iterable[int]) -> list[tuple[int, int]]:
        return [(0, 2**53 - 1)] if list(seqs) else []


@mutant("EX-D-024")
class IgnoresWhatItHas(PlainIngest):
    def of_pack(self, topic: Topic, payload: bytes) -> Receipt:
        known = set(self.stored)
        answer = super().of_pack(topic, payload)
        return answer if self.stored - known or "refused" in answer else {}


@mutant("EX-D-024")
class RefusesWhatItHas(PlainIngest):
    def of_samples(
        self, device: str, epoch: int, stored: list[int], refused: dict[str, list[int]]
    ) -> Receipt:
        again = [seq for seq in stored if (device, epoch, seq) in self.seen]
        fresh = [seq for seq in stored if seq not in again]
        self.seen.update((device, epoch, seq) for seq in stored)
        more = {"EX-R-019": again} if again else {}
        return super().of_samples(device, epoch, fresh, {**refused, **more})

    def __init__(self, county: str) -> None:
        super().__init__(county)
        self.seen: set[tuple[str, int, int]] = set()


@mutant("EX-D-025")
class RefusesTheWholeSample(PlainIngest):
    def of_pack(self, topic: Topic, payload: bytes) -> Receipt:
        pack = decode_pack(payload, topic)
        bad = {refusal.seq: refusal.requirement for refusal in pack.refusals if refusal.metric}
        if not bad:
            return super().of_pack(topic, payload)
        epoch = pack.samples[0].epoch
        return self.of_samples(topic.device, epoch, [], {bad[seq]: [seq] for seq in bad})


@mutant("EX-D-025")
class RefusesTheWholePack(PlainIngest):
    def of_pack(self, topic: Topic, payload: bytes) -> Receipt:
        for refusal in decode_pack(payload, topic).refusals:
            if refusal.metric:
                return self.of_unreadable(payload, refusal.requirement)
        return super().of_pack(topic, payload)


@mutant("EX-D-026")
class RefusesByAnotherId(PlainIngest):
    def requirement(self, _requirement: str) -> str:
        return "EX-R-001"


@mutant("EX-D-026")
class CallsTheRefusedStored(PlainIngest):
    def of_samples(
        self, device: str, epoch: int, stored: list[int], refused: dict[str, list[int]]
    ) -> Receipt:
        return super().of_samples(device, epoch, [*stored, *chain(*refused.values())], {})


@mutant("EX-D-027")
class KeepsSilentOnGarbage(PlainIngest):
    def of_unreadable(self, _payload: bytes, _requirement: str) -> Receipt:
        return {}


@mutant("EX-D-027")
class KnowsOneIdForAllGarbage(PlainIngest):
    def of_unreadable(self, payload: bytes, _requirement: str) -> Receipt:
        return super().of_unreadable(payload, "EX-R-001")


@mutant("EX-D-027")
class DigestsOtherwise(PlainIngest):
    def of_unreadable(self, payload: bytes, requirement: str) -> Receipt:
        return super().of_unreadable(payload.strip(), requirement)


@mutant("EX-D-028")
class KnowsNoCbor(PlainIngest):
    def of_pack(self, topic: Topic, payload: bytes) -> Receipt:
        if payload[:1] != b"[":
            return self.of_unreadable(payload, "EX-R-001")
        return super().of_pack(topic, payload)


@mutant("EX-D-029")
class RefusesWhatIsLate(PlainIngest):
    def of_pack(self, topic: Topic, payload: bytes) -> Receipt:
        samples = decode_pack(payload, topic).samples
        newest_ms = max((one.time_ms for one in samples), default=0)
        self.now_ms = max(self.now_ms, newest_ms)
        if samples and newest_ms < self.now_ms - 86_400_000:
            epoch, seqs = samples[0].epoch, [one.seq for one in samples]
            return self.of_samples(topic.device, epoch, [], {"EX-R-023": seqs})
        return super().of_pack(topic, payload)

    now_ms = 0


@mutant("EX-D-030")
class TakesNoMoreThanAPack(PlainIngest):
    async def take(self, topic: str, payload: bytes) -> None:
        if len(payload) <= 256 * 1024:
            await super().take(topic, payload)


@mutant("EX-D-030")
class TakesNoMoreThanAMebibyte(PlainIngest):
    async def take(self, topic: str, payload: bytes) -> None:
        if len(payload) <= 1 << 20:
            await super().take(topic, payload)


@mutant("EX-D-031")
class DiesOfBytesThatAreNoText(PlainIngest):
    async def serve(self, client: aiomqtt.Client) -> None:
        with suppress(UnicodeDecodeError):
            await super().serve(client)

    async def take(self, topic: str, payload: bytes) -> None:
        if payload[:1] == b"[":
            payload.decode()
        await super().take(topic, payload)


@mutant("EX-D-031")
class DiesOfALongFlood(PlainIngest):
    bad = 0

    def of_unreadable(self, payload: bytes, requirement: str) -> Receipt:
        self.bad += 1
        return super().of_unreadable(payload, requirement)

    async def take(self, topic: str, payload: bytes) -> None:
        if self.bad < 40:
            await super().take(topic, payload)


@mutant("EX-D-032")
class IgnoresResults(PlainIngest):
    def of_result(self, payload: bytes) -> Receipt:
        decode_result(payload)
        return {}


@mutant("EX-D-032")
class TakesEveryResultForDone(PlainIngest):
    def of_result(self, payload: bytes) -> Receipt:
        return {"results": [[str(decode_result(payload).id), "done"]]}


@mutant("EX-D-033")
class SpeaksTwice(PlainIngest):
    """What two groups do that both receipt."""

    async def tell(self, topic: str, receipt: Receipt) -> None:
        await super().tell(topic, receipt)
        await super().tell(topic, receipt)


@asynccontextmanager
async def running(host: str, port: int, *ingests: PlainIngest) -> AsyncIterator[None]:
    """Run ingests, each with its own connection; yields when all are subscribed."""
    async with AsyncExitStack() as stack:
        tasks = await stack.enter_async_context(asyncio.TaskGroup())
        serving = []
        for one in ingests:
            client = aiomqtt.Client(host, port, max_inflight_messages=1000)
            client.pending_calls_threshold = 10_000
            await stack.enter_async_context(client)
            for channel in ("readings", "results"):
                await client.subscribe(f"city/v1/{one.county}/+/+/+/+/{channel}", qos=1)
            serving.append(tasks.create_task(one.serve(client)))
        try:
            yield
        finally:
            for task in serving:
                task.cancel()


def counties() -> Iterator[str]:
    """Yield codes that no county has."""
    for first in "abcdefghijklmnopqrstuvwxyz":
        for second in "abcdefghijklmnopqrstuvwxyz":
            yield f"zz-{first}{second}"
