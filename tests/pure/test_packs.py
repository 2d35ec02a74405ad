"""What goes out next: live before backlog, in large packs, within the window, nothing twice and nothing left."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent import packs as packs_module
from edge_agent.config import Broker, Config, Gateway
from edge_agent.config import Delivery as Settings
from edge_agent.health import Health
from edge_agent.outbox import Outbox, Taken
from edge_agent.packs import Outgoing, Packs
from edge_agent.uplink import Uplink
from exchange.delivery import PARKED_EVERY_S, PROOF_AGE_S, Delivery, Key
from exchange.readings import MAX_PACK_BYTES, Value, decode_pack
from exchange.receipts import Receipt, encode_receipt
from exchange.topics import parse_topic
from tests.agents import Monotonic


class Bench:
    """An outbox, the delivery rules, and a list of what went out."""

    def __init__(self, outbox: Outbox, *, window: int, pack: int) -> None:
        self.outbox = outbox
        self.clock = Monotonic()
        self.delivery = Delivery(window=window)
        gateway = Gateway(id="gw-1", county="tw-tpe", site="street", state_dir="state")
        settings = Settings(window=window, pack_samples=pack)
        self.config = config = Config(
            gateway=gateway, broker=Broker(host="localhost"), delivery=settings, bus=[], device=[]
        )
        self.packs = Packs(config, outbox, self.delivery, self.clock)
        self.sent: list[list[Key]] = []
        self.payloads: list[bytes] = []
        self.hands = True
        """What is taken is handed over, as an agent does that is connected."""
        self._time_ms = 1_800_000_000_000

    def connect(self) -> None:
        self.delivery.connected()
        self.packs.connected()

    async def take(self, *devices: str, count: int = 1, note: str = "") -> None:
        metrics: dict[str, Value] = {"pm2_5": 1.0}
        metrics |= {f"x-test-{note}{n}": float(n) for n in range(len(note))}
        for _ in range(count):
            self._time_ms += 1000
            waiting = await self.outbox.take(
                [Taken("air", device, self._time_ms, metrics, "") for device in devices]
            )
            if self.hands:
                self.packs.hand_over(waiting)

    def _note(self, batch: list[Outgoing]) -> list[list[Key]]:
        went = []
        for one in batch:
            topic = parse_topic(one.topic)
            pack = decode_pack(one.payload, topic)
            assert not pack.refusals
            went.append([Key(topic.device, s.epoch, s.seq) for s in pack.samples])
            self.payloads.append(one.payload)
        self.sent += went
        assert self.delivery.unreceipted <= self.delivery.window
        return went

    async def live(self) -> list[list[Key]]:
        return self._note(await self.packs.live())

    async def backlog(self) -> list[list[Key]]:
        return self._note(await self.packs.backlog())

    async def again(self) -> list[list[Key]]:
        return self._note(await self.packs.again())

    async def receipt(self, keys: list[Key]) -> None:
        stored: dict[str, list[tuple[int, int, int]]] = {}
        for key in keys:
            stored.setdefault(key.device, []).append((key.epoch, key.seq, key.seq))
        settled = self.delivery.receipted(self.clock(), Receipt(v=1, stored=stored))
        self.packs.settled([one.key for one in settled])
        self.outbox.forget([one.key for one in settled])

    async def drain(self) -> None:
        """Go on, with a receipt for everything, until nothing more goes."""
        while went := [*await self.live(), *await self.backlog()]:
            self.clock.now_s += 0.01
            await self.receipt([key for pack in went for key in pack])


@pytest.fixture
async def outbox(tmp_path: Path) -> AsyncIterator[Outbox]:
    one = Outbox(tmp_path / "outbox.sqlite")
    await one.open()
    yield one
    await one.close()


def flat(packs: list[list[Key]]) -> list[Key]:
    return [key for pack in packs for key in pack]


async def test_what_was_taken_before_the_connection_is_backlog_and_goes_in_large_packs(
    outbox: Outbox,
) -> None:
    bench = Bench(outbox, window=5000, pack=100)
    await bench.take("a", "b", "c", count=400)
    bench.connect()
    await bench.take("a")
    (live,) = await bench.live()
    assert [key.seq for key in live] == [400], "what was taken since goes first"
    await bench.receipt(live)
    await bench.drain()
    assert Counter(flat(bench.sent)).most_common(1)[0][1] == 1
    assert len(flat(bench.sent)) == 1201
    assert outbox.depth == 0
    packs = bench.sent[1:]
    assert len(packs) <= 1200 / 100 + 6, "the share of the window grows from 100"
    for device in "abc":
        seqs = [key.seq for pack in packs for key in pack if key.device == device]
        assert seqs == list(range(400)), "each device's in order"


async def test_live_samples_find_a_tenth_of_the_window_whatever_the_backlog_does(
    outbox: Outbox,
) -> None:
    bench = Bench(outbox, window=100, pack=10)
    await bench.take("a", count=300)
    bench.connect()
    while await bench.backlog():
        pass
    assert bench.delivery.unreceipted == 90
    await bench.take("b", count=12)
    live = flat(await bench.live())
    assert [key.seq for key in live] == list(range(10))
    assert await bench.live() == []
    # the window was full: the rest is backlog, and what is taken now goes before it
    await bench.take("b")
    await bench.receipt(bench.sent[0][:5])
    assert [key.seq for key in flat(await bench.live())] == [12]
    await bench.take("b")
    assert [key.seq for key in flat(await bench.live())] == [13]
    await bench.receipt(flat(bench.sent))
    await bench.drain()
    sent = flat(bench.sent)
    assert len(sent) == len(set(sent)) == 314
    assert outbox.depth == 0


async def test_after_a_new_connection_nothing_that_waits_for_its_receipt_is_backlog(
    outbox: Outbox,
) -> None:
    bench = Bench(outbox, window=1000, pack=10)
    await bench.take("a", count=50)
    bench.connect()
    while await bench.backlog():
        pass
    await bench.take("a", count=5)
    await bench.live()
    bench.delivery.disconnected()
    await bench.take("a", count=5)
    bench.connect()
    await bench.receipt(bench.sent[0])
    while await bench.backlog():
        pass
    sent = flat(bench.sent)
    assert len(sent) == len(set(sent)) == 60


async def test_what_is_receipted_while_it_is_read_does_not_go_again(outbox: Outbox) -> None:
    bench = Bench(outbox, window=1000, pack=10)
    await bench.take("a", count=20)
    bench.connect()
    await bench.backlog()
    await bench.backlog()
    bench.packs.connected()  # as a new connection would read it all once more
    real = outbox.between

    async def between(after_id: int, up_to_id: int, limit: int) -> object:
        read = await real(after_id, up_to_id, limit)
        await bench.receipt(flat(bench.sent))
        return read

    outbox.between = between  # type: ignore[method-assign,assignment]  # a receipt comes at the worst moment
    assert await bench.backlog() == []
    assert len(flat(bench.sent)) == 20


async def test_a_chunk_at_a_time_is_held(outbox: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packs_module, "CHUNK_SAMPLES", 30)
    bench = Bench(outbox, window=5000, pack=20)
    await bench.take("a", "b", count=100)
    bench.connect()
    await bench.drain()
    sent = flat(bench.sent)
    assert len(sent) == len(set(sent)) == 200
    assert max(map(len, bench.sent)) == 15


async def test_a_resend_that_is_too_large_goes_in_parts_that_are_refused_one_by_one(
    outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(outbox, window=1000, pack=100)
    bench.connect()
    await bench.take("a", count=8, note="metric-" * 5)
    (whole,) = await bench.live()
    assert len(whole) == 8
    monkeypatch.setattr(packs_module, "MAX_PACK_BYTES", len(bench.payloads[0]) // 2)
    assert len(bench.payloads[0]) < MAX_PACK_BYTES
    bench.clock.now_s += 100
    await bench.take("b")
    await bench.receipt(flat(await bench.live()))
    bench.clock.now_s += PROOF_AGE_S + 1
    await bench.take("b")
    await bench.receipt(flat(await bench.live()))
    parts = await bench.again()
    assert len(parts) > 1
    assert flat(parts) == whole
    digest = sha256(bench.payloads[-1]).hexdigest()
    settled = bench.delivery.receipted(
        bench.clock(), Receipt(v=1, unreadable=[(digest, "EX-R-001")])
    )
    assert [one.key for one in settled] == parts[-1]


async def test_samples_go_on_the_topic_of_the_domain_that_their_device_had(outbox: Outbox) -> None:
    bench = Bench(outbox, window=5000, pack=100)
    for number in range(4):  # a reload corrects it in the middle
        domain = "parking" if number < 2 else "air"
        metrics: dict[str, Value] = {"occupied": True} if number < 2 else {"pm2_5": 1.0}
        taken = Taken(domain, "a", 1_800_000_000_000 + 1000 * number, metrics, "")
        await outbox.take([taken])
    bench.connect()
    first = await bench.backlog()
    assert [[key.seq for key in pack] for pack in first] == [[0, 1], [2, 3]]
    for later_s in (100, PROOF_AGE_S + 1):  # receipts of what went later prove them lost
        bench.clock.now_s += later_s
        await bench.take("b")
        await bench.receipt(flat(await bench.live()))
    assert flat(await bench.again()) == flat(first)


async def test_what_the_outbox_let_go_of_holds_no_room(outbox: Outbox) -> None:
    bench = Bench(outbox, window=10, pack=5)
    bench.connect()
    await bench.take("a", count=3)
    (sent,) = await bench.live()
    outbox.forget(sent[:2])  # as a full outbox drops, without a receipt
    bench.clock.now_s += 40
    assert await bench.again() == [sent[2:]]
    assert bench.delivery.unreceipted == 1
    outbox.forget(sent)
    bench.clock.now_s += 100
    assert await bench.again() == []
    assert bench.delivery.unreceipted == 0


async def test_what_has_its_receipt_does_not_go_again_while_a_result_of_it_is_written(
    outbox: Outbox,
) -> None:
    bench = Bench(outbox, window=20, pack=5)
    await bench.take("a", count=5)
    bench.connect()
    await bench.take("b", count=30)  # the window is full: the rest of them is backlog, too
    live = flat(await bench.live())
    written = asyncio.Event()

    class SlowResults:
        on_new = None

        async def receipted(self, _: Receipt) -> None:
            await written.wait()

    commands: Any = SimpleNamespace(results=SlowResults())
    uplink = Uplink(bench.config, outbox, Health([]), states=no_states, commands=commands)
    uplink.delivery, uplink._packs = bench.delivery, bench.packs
    (epoch,) = {key.epoch for key in live}
    stored = {"b": [(epoch, live[0].seq, live[9].seq)]}
    receipt = encode_receipt(Receipt(v=1, stored=stored, results=[("command", "done")]))
    taking = asyncio.create_task(uplink._receipted([receipt]))
    await asyncio.sleep(0)
    await bench.drain()
    assert max(Counter(flat(bench.sent)).values()) == 1
    taking.cancel()  # the connection breaks
    await asyncio.wait([taking])
    assert await outbox.find(live[:10]) == []


async def no_states() -> list[tuple[str, bytes]]:
    return []


async def test_what_is_handed_over_goes_without_the_outbox_being_asked(
    outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(outbox, window=100, pack=10)
    await bench.take("a", count=3)
    bench.connect()
    await bench.take("a", count=2)
    with monkeypatch.context() as patch:
        patch.delattr(Outbox, "after")
        assert [key.seq for key in flat(await bench.live())] == [3, 4]
        assert await bench.live() == []
        await bench.take("a")
        assert [key.seq for key in flat(await bench.live())] == [5]
    bench.hands = False
    await bench.take("a")
    bench.hands = True
    await bench.take("a")
    assert [key.seq for key in flat(await bench.live())] == [6, 7], "none was passed over"


steps = st.lists(
    st.tuples(
        st.sampled_from(["take", "keep", "live", "backlog", "receipt", "reconnect"]),
        st.integers(1, 30),
    ),
    max_size=30,
)


@settings(deadline=None)
@given(steps, st.sampled_from([10, 40, 400]))
def test_whoever_hands_over_what_each_sample_goes_and_once_while_receipts_come(
    steps: list[tuple[str, int]], window: int
) -> None:
    async def go(folder: Path) -> None:
        outbox = Outbox(folder / "outbox")
        await outbox.open()
        bench = Bench(outbox, window=window, pack=5)
        bench.connect()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(packs_module, "LIVE_SAMPLES", 25)
            for step, count in [*steps, ("reconnect", 1)]:
                bench.hands = step != "keep"
                match step:
                    case "take" | "keep":
                        await bench.take("a", "b", count=count)
                    case "live":
                        await bench.live()
                    case "backlog":
                        await bench.backlog()
                    case "receipt":
                        bench.clock.now_s += 0.01
                        await bench.receipt(flat(bench.sent)[-count:])
                    case _:
                        bench.delivery.disconnected()
                        bench.connect()
            bench.hands = True
            await bench.take("a")
            await bench.drain()
            await bench.receipt(flat(bench.sent))
            await bench.drain()
        assert await outbox.after(0, 10) == [], "all of it went, and has its receipt"
        assert max(Counter(flat(bench.sent)).values()) == 1
        await outbox.close()

    with TemporaryDirectory() as folder:
        asyncio.run(go(Path(folder)))


async def test_what_was_let_go_of_after_hours_without_a_receipt_gets_another_chance(
    outbox: Outbox,
) -> None:
    bench = Bench(outbox, window=10, pack=5)
    bench.connect()
    await bench.take("a", count=3)
    (sent,) = await bench.live()
    bench.delivery.gone(sent)
    bench.delivery.released += 3
    assert await bench.backlog() == []
    bench.clock.now_s += PARKED_EVERY_S
    assert await bench.backlog() == [sent]
    assert await bench.backlog() == []
