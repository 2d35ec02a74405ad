"""A model of the whole path - gateways, a broker that forgets, an ingest that dies - driven by a steppable clock.

The gateway side is the product's own state machine; broker and ingest are as unkind as exchange.md allows. Whatever
happens, every sample taken ends stored, no more than the window is ever unreceipted, and resends stay few.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exchange.delivery import PARK_AFTER_RESENDS, Delivery, Key, Sending
from exchange.receipts import Receipt, ranges

MINUTE = 60
HOUR = 3600


@dataclass
class Broker:
    """One persistent session of the ingest: a queue that lives as long as nobody wipes it."""

    limit: int = 1_000_000
    up: bool = True
    queue: deque[tuple[str, list[Key]]] = field(default_factory=deque)
    deepest: int = 0

    def publish(self, gateway: str, keys: list[Key]) -> bool:
        if not self.up:
            return False
        if len(self.queue) < self.limit:
            self.queue.append((gateway, keys))
        self.deepest = max(self.deepest, sum(len(keys) for _, keys in self.queue))
        return True

    def wipe(self) -> None:
        self.queue.clear()


@dataclass
class Ingest:
    up: bool = True
    per_tick: int = 2000
    stored: set[Key] = field(default_factory=set)
    arrivals: int = 0

    def work(self, broker: Broker) -> dict[str, Receipt]:
        """Store what the broker has, up to its speed, and return a receipt for each gateway."""
        taken: dict[str, list[Key]] = {}
        budget = self.per_tick
        while self.up and broker.up and broker.queue and budget > 0:
            gateway, keys = broker.queue.popleft()
            budget -= len(keys)
            self.arrivals += len(keys)
            self.stored.update(keys)
            taken.setdefault(gateway, []).extend(keys)
        return {gateway: receipt_for(keys) for gateway, keys in taken.items()}


def receipt_for(keys: list[Key]) -> Receipt:
    stored: dict[str, list[tuple[int, int, int]]] = {}
    for device, epoch in {(key.device, key.epoch) for key in keys}:
        seqs = [key.seq for key in keys if (key.device, key.epoch) == (device, epoch)]
        stored.setdefault(device, []).extend((epoch, first, last) for first, last in ranges(seqs))
    return Receipt(v=1, stored=stored)


class Gateway:
    def __init__(self, name: str, *, devices: int, interval_s: int, window: int, seed: int) -> None:
        self.name = name
        self.devices = [f"{name}-dev-{number}" for number in range(devices)]
        self.interval_s = interval_s
        self.delivery = Delivery(window=window, random=Random(seed))
        self.outbox: deque[Key] = deque()
        self.taken: set[Key] = set()
        self.forgotten: set[Key] = set()
        self.seq = 0
        self.was_up = False

    def tick(self, now_s: int, broker: Broker, *, sampling: bool) -> None:
        if sampling and now_s % self.interval_s == 0:
            for device in self.devices:
                key = Key(device, 1000, self.seq)
                self.outbox.append(key)
                self.taken.add(key)
            self.seq += 1
        if broker.up and not self.was_up:
            self.delivery.connected()
        if not broker.up and self.was_up:
            self.delivery.disconnected()
        self.was_up = broker.up
        for sending in self.delivery.due(now_s):
            self.delivery.sent_again(now_s, sending, digest(sending.keys))
            self._publish(broker, sending, sending.keys)
        while broker.up and self.outbox and self.delivery.room(live=False) > 0:
            by_device: dict[str, list[Key]] = {}
            for _ in range(min(self.delivery.room(live=False), 400, len(self.outbox))):
                key = self.outbox.popleft()
                by_device.setdefault(key.device, []).append(key)
            for device, keys in by_device.items():
                sending = self.delivery.sent(
                    now_s, device, 1000, [key.seq for key in keys], digest(keys)
                )
                self._publish(broker, sending, keys)
        assert self.delivery.unreceipted <= self.delivery.window

    def _publish(self, broker: Broker, sending: Sending, keys: list[Key]) -> None:
        if not broker.publish(self.name, keys):
            self.delivery.failed(sending)

    def receive(self, now_s: int, receipt: Receipt) -> None:
        for settled in self.delivery.receipted(now_s, receipt):
            assert settled.key in self.taken, "forgot what it never sent"
            assert settled.key not in self.forgotten, "forgot a sample twice"
            self.forgotten.add(settled.key)


def digest(keys: list[Key]) -> str:
    return sha256(repr(keys).encode()).hexdigest()


@dataclass
class World:
    gateways: list[Gateway]
    broker: Broker = field(default_factory=Broker)
    ingest: Ingest = field(default_factory=Ingest)
    receipt_loss: float = 0.0
    random: Random = field(default_factory=lambda: Random(7))
    now_s: int = 0

    def run(
        self, seconds: int, *, sampling: bool = True, until: Callable[[], bool] | None = None
    ) -> None:
        for _ in range(seconds):
            self.now_s += 1
            for gateway in self.gateways:
                gateway.tick(self.now_s, self.broker, sampling=sampling)
            for name, receipt in self.ingest.work(self.broker).items():
                if self.random.random() >= self.receipt_loss:
                    next(g for g in self.gateways if g.name == name).receive(self.now_s, receipt)
            if until is not None and until():
                return

    def drained(self) -> bool:
        return all(gateway.forgotten == gateway.taken for gateway in self.gateways)

    def check_nothing_lost(self) -> None:
        for gateway in self.gateways:
            assert gateway.forgotten == gateway.taken, (
                f"{len(gateway.taken - gateway.forgotten)} still in the outbox"
            )
            assert gateway.taken <= self.ingest.stored
            assert gateway.delivery.unreceipted == 0


def gateways(count: int = 1, **changes: int) -> list[Gateway]:
    return [
        Gateway(f"gw-{n}", **{"devices": 20, "interval_s": 10, "window": 500, "seed": n, **changes})
        for n in range(count)
    ]


def test_a_calm_day_needs_no_resend() -> None:
    world = World(gateways(2))
    world.run(HOUR)
    world.run(5, sampling=False, until=world.drained)
    world.check_nothing_lost()
    assert sum(g.delivery.resends + g.delivery.probes for g in world.gateways) == 0
    assert world.ingest.arrivals == sum(len(g.taken) for g in world.gateways)


def test_three_hours_of_dead_ingest_and_a_wiped_broker_cost_tens_of_resends() -> None:
    world = World(gateways(1, devices=50, interval_s=10, window=5000))
    world.run(MINUTE)
    world.ingest.up = False
    world.run(3 * HOUR)
    assert world.broker.deepest <= 5000 + 50 * 30, "the outage piled up in the broker"
    world.broker.wipe()
    world.ingest.up = True
    world.run(HOUR)
    gateway = world.gateways[0]
    assert gateway.delivery.resends + gateway.delivery.probes <= 100
    world.run(30 * MINUTE, sampling=False, until=world.drained)
    world.check_nothing_lost()


def test_a_wiped_broker_with_a_living_ingest_recovers_within_two_minutes() -> None:
    world = World(gateways(1))
    world.run(MINUTE)
    world.ingest.per_tick = 0  # the store stalls: samples wait in the broker
    world.run(MINUTE)
    world.broker.wipe()
    world.ingest.per_tick = 2000
    world.run(2 * MINUTE)
    old = {key for key in world.gateways[0].taken if key.seq < 10}
    assert old <= world.gateways[0].forgotten
    world.run(HOUR, sampling=False, until=world.drained)
    world.check_nothing_lost()


def test_lost_receipts_are_asked_for_again() -> None:
    world = World(gateways(2), receipt_loss=0.3)
    world.run(HOUR)
    world.receipt_loss = 0.0
    world.run(2 * HOUR, sampling=True, until=None)
    world.run(HOUR, sampling=False, until=world.drained)
    world.check_nothing_lost()
    assert all(g.delivery.parked == 0 for g in world.gateways)


def test_two_gateways_do_not_prove_each_others_losses() -> None:
    world = World(gateways(2))
    world.run(MINUTE)
    # everything of gw-0 that is on its way is lost; gw-1 lives on
    world.gateways[0].tick(world.now_s + 10, world.broker, sampling=True)
    world.broker.queue = deque(entry for entry in world.broker.queue if entry[0] != "gw-0")
    before = world.gateways[1].delivery.resends
    world.run(5 * MINUTE)
    assert world.gateways[1].delivery.resends == before
    world.run(HOUR, sampling=False, until=world.drained)
    world.check_nothing_lost()


def test_the_last_sample_of_a_sleeping_gateway_is_probed() -> None:
    world = World(gateways(1))
    world.run(MINUTE - 1)
    world.broker.wipe()
    world.ingest.up = False
    world.run(1)
    world.broker.wipe()
    world.ingest.up = True
    world.run(20 * MINUTE, sampling=False, until=world.drained)
    world.check_nothing_lost()
    assert world.gateways[0].delivery.probes > 0


def test_a_broker_outage_piles_up_on_the_gateway_and_comes_back() -> None:
    world = World(gateways(2))
    world.run(MINUTE)
    world.broker.up = False
    world.run(3 * HOUR)
    assert not world.broker.queue
    world.broker.up = True
    world.run(10 * MINUTE)
    world.run(10 * MINUTE, sampling=False, until=world.drained)
    world.check_nothing_lost()


def test_a_sample_nobody_receipts_is_parked_and_the_window_flows_on() -> None:
    delivery = Delivery(window=10, random=Random(1))
    delivery.connected()
    stuck = delivery.sent(0, "aq-1", 1, [0], "stuck")
    sent = 0
    for now in range(1, 20 * HOUR, 5):
        again = delivery.due(now)
        for sending in again:
            assert sending is stuck
            delivery.sent_again(now, sending, "stuck")
            sent += 1
        delivery.sent(now, "aq-2", 1, [now], f"live {now}")
        delivery.receipted(now, Receipt(v=1, stored={"aq-2": [(1, now, now)]}))
    assert stuck.parked
    assert delivery.unreceipted == 0
    assert delivery.parked == 1
    hours_parked = sent - PARK_AFTER_RESENDS
    assert 10 <= hours_parked <= 20, "parked packs go once an hour"
    assert (
        delivery.receipted(20 * HOUR, Receipt(v=1, stored={"aq-1": [(1, 0, 0)]}))[0].outcome
        == "stored"
    )
    assert delivery.parked == 0


def test_only_what_was_sent_is_forgotten_and_stored_beats_refused() -> None:
    delivery = Delivery()
    delivery.connected()
    delivery.sent(0, "aq-1", 5, [0, 1, 2], "a")
    assert (
        delivery.receipted(1, Receipt(v=1, stored={"aq-1": [(4, 0, 9)], "aq-9": [(5, 0, 9)]})) == []
    )
    both = Receipt(v=1, stored={"aq-1": [(5, 1, 1)]}, refused={"aq-1": [(5, 0, 2**52, "EX-R-008")]})
    settled = {key.seq: outcome for key, outcome, _ in delivery.receipted(2, both)}
    assert settled == {1: "stored", 0: "refused", 2: "refused"}
    assert delivery.unreceipted == 0


def test_an_unreadable_pack_is_refused_by_its_digest() -> None:
    delivery = Delivery()
    delivery.connected()
    delivery.sent(0, "aq-1", 5, [0, 1], "aa")
    settled = delivery.receipted(
        1, Receipt(v=1, unreadable=[("aa", "EX-R-001"), ("bb", "EX-R-001")])
    )
    assert [(s.key.seq, s.outcome, s.requirement) for s in settled] == [
        (0, "refused", "EX-R-001"),
        (1, "refused", "EX-R-001"),
    ]


def test_an_unreadable_pack_takes_no_sample_with_it_that_joined_it_later() -> None:
    delivery = Delivery()
    delivery.connected()
    for seq, digest in enumerate(["a", "b"]):
        delivery.sent(0, "aq-1", 5, [seq], digest)
    delivery.sent(1, "aq-1", 5, [2], "c")
    delivery.receipted(25, Receipt(v=1, stored={"aq-1": [(5, 2, 2)]}))
    (joined,) = delivery.due(40)
    delivery.sent_again(40, joined, "ab")
    late = Receipt(v=1, unreadable=[("a", "EX-R-001"), ("b", "EX-R-001")])
    assert delivery.receipted(41, late) == []
    settled = delivery.receipted(42, Receipt(v=1, unreadable=[("ab", "EX-R-001")]))
    assert [one.key.seq for one in settled] == [0, 1]


def test_the_halves_of_a_pack_are_unreadable_one_by_one() -> None:
    delivery = Delivery()
    delivery.connected()
    sending = delivery.sent(0, "aq-1", 5, range(6), "whole")
    delivery.sent_again(40, sending, "first half", range(3))
    delivery.sent_again(40, sending, "second half", range(3, 6))
    settled = delivery.receipted(41, Receipt(v=1, unreadable=[("second half", "EX-R-001")]))
    assert [one.key.seq for one in settled] == [3, 4, 5]
    settled = delivery.receipted(42, Receipt(v=1, unreadable=[("whole", "EX-R-001")]))
    assert [one.key.seq for one in settled] == [0, 1, 2]
    assert delivery.unreceipted == 0


def test_what_nobody_receipts_for_ever_does_not_fill_the_memory() -> None:
    """An ingest that never answers for some samples: what is parked is bounded, and what goes beyond is told."""
    delivery = Delivery(window=20, random=Random(1))
    delivery.connected()
    every_s, lost_every = 20, 90
    for seq in range(100 * HOUR // every_s):
        now_s = every_s * seq
        for sending in delivery.due(now_s):
            delivery.sent_again(now_s, sending, digest(sending.keys))
        delivery.sent(now_s, "aq-1", 1, [seq], f"digest {seq}")
        if seq % lost_every:
            delivery.receipted(now_s, Receipt(v=1, stored={"aq-1": [(1, seq, seq)]}))
        assert delivery.parked <= 20
        assert delivery.unreceipted <= 20
        assert len(delivery._by_digest) <= 40 * (PARK_AFTER_RESENDS + 1)
    lost = [n for n in range(0, seq, lost_every) if not delivery.holds("aq-1", 1, n)]
    assert delivery.released == len(lost) > 20
    assert lost == sorted(lost), "the oldest"
    assert delivery.receipted(now_s, Receipt(v=1, stored={"aq-1": [(1, lost[0], lost[0])]})) == []


def test_what_the_outbox_dropped_holds_the_window_no_longer() -> None:
    delivery = Delivery(window=3)
    delivery.connected()
    sending = delivery.sent(0, "aq-1", 5, [0, 1, 2], "a")
    assert delivery.room(live=True) == 0
    delivery.gone([Key("aq-1", 5, 0), Key("aq-1", 5, 1), Key("aq-1", 5, 9), Key("no", 5, 0)])
    assert delivery.room(live=True) == 2
    assert sending.keys == [Key("aq-1", 5, 2)]
    delivery.gone(sending.keys)
    assert delivery.due(1e6) == []
    assert delivery.is_silent(0), "that is no receipt"


def test_a_backlog_waits_for_room_for_a_pack_or_a_quarter_of_its_share() -> None:
    delivery = Delivery(window=5000)
    delivery.connected()
    assert delivery.room(live=False, pack=100) == 100
    delivery.sent(0, "aq-1", 1, range(80), "a")
    assert delivery.room(live=False, pack=100) == 0, "20 are less than a quarter of 100"
    assert delivery.room(live=False) == 20
    delivery.receipted(1, Receipt(v=1, stored={"aq-1": [(1, 0, 4)]}))
    assert delivery.room(live=False, pack=100) == 25


def test_a_pack_the_broker_never_had_goes_again_at_once_uncounted() -> None:
    delivery = Delivery()
    delivery.connected()
    sending = delivery.sent(0, "aq-1", 5, [0], "a")
    delivery.failed(sending)
    delivery.disconnected()
    assert delivery.due(1) == []
    delivery.connected()
    assert delivery.due(2) == [sending]
    assert delivery.resends == 0


@pytest.mark.parametrize("count", [1, 5, 50])
def test_a_drain_uses_the_whole_ingest_and_live_samples_hardly_notice(count: int) -> None:
    """One queue for all, 20,000 samples a second, 20 ms besides; packs of 20 after a second of live samples alone."""
    step_s, per_step, way_steps = 0.01, 200, 2
    deliveries = [Delivery(random=Random(n)) for n in range(count)]
    waiting = [40_000 // count * 20 // 20 for _ in deliveries]
    whole = sum(waiting)
    queue: deque[tuple[int, list[Key], int, bool]] = (
        deque()
    )  # whose, what, since when, whether live
    under_way: deque[tuple[int, int, list[Key]]] = deque()  # when the receipt is there, whose, what
    seqs = [0] * count
    live_ways_s: list[float] = []
    step = stored = 0
    for delivery in deliveries:
        delivery.connected()

    def send(whose: int, samples: int, *, live: bool) -> None:
        keys = [Key("dev", 1, seqs[whose] + n) for n in range(samples)]
        seqs[whose] += samples
        deliveries[whose].sent(step * step_s, "dev", 1, [k.seq for k in keys], digest(keys))
        queue.append((whose, keys, step, live))

    while (any(waiting) or queue) and step < 3000:
        step += 1
        for whose, delivery in enumerate(deliveries):
            if (step + whose) % 10 == 0:
                assert delivery.room(live=True)
                send(whose, 1, live=True)
            while step > 100 and waiting[whose] and delivery.room(live=False) >= 20:
                send(whose, 20, live=False)
                waiting[whose] -= 20
        budget = per_step
        while queue and budget >= len(queue[0][1]):
            whose, keys, since, live = queue.popleft()
            budget -= len(keys)
            stored += len(keys)
            under_way.append((step + way_steps, whose, keys))
            if live:
                live_ways_s.append((step + way_steps - since) * step_s)
        while under_way and under_way[0][0] <= step:
            _, whose, keys = under_way.popleft()
            deliveries[whose].receipted(step * step_s, receipt_for(keys))
    assert not any(waiting)
    assert stored >= whole
    assert whole / ((step - 100) * step_s) > 14_000
    assert sorted(live_ways_s)[int(0.99 * len(live_ways_s))] < 0.4


def test_a_long_way_alone_does_not_make_the_backlog_small() -> None:
    """A satellite's second and a half is not a queue."""
    delivery = Delivery(window=5000)
    delivery.connected()
    seq = 0
    for turn in range(200):
        while (room := delivery.room(live=False)) > 0:
            keys = [Key("dev", 1, seq + n) for n in range(min(room, 100))]
            seq += len(keys)
            delivery.sent(1.5 * turn, "dev", 1, [key.seq for key in keys], digest(keys))
        outstanding = [Key("dev", 1, n) for n in range(seq - delivery.unreceipted, seq)]
        delivery.receipted(1.5 * turn + 1.5, receipt_for(outstanding))
    assert delivery.room(live=False) == 4500


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    faults=st.lists(
        st.tuples(
            st.sampled_from(
                ["wipe", "ingest down", "ingest up", "broker down", "broker up", "stall", "flow"]
            ),
            st.integers(5, 900),
        ),
        max_size=12,
    ),
    loss=st.sampled_from([0.0, 0.2]),
)
def test_whatever_happens_every_sample_ends_stored(
    seed: int, faults: list[tuple[str, int]], loss: float
) -> None:
    world = World(gateways(2, devices=4, window=60), receipt_loss=loss, random=Random(seed))
    for fault, seconds in faults:
        match fault:
            case "wipe":
                world.broker.wipe()
            case "ingest down":
                world.ingest.up = False
            case "ingest up":
                world.ingest.up = True
            case "broker down":
                world.broker.up = False
            case "broker up":
                world.broker.up = True
            case "stall":
                world.ingest.per_tick = 0
            case "flow":
                world.ingest.per_tick = 2000
        world.run(seconds)
    world.broker.up = world.ingest.up = True
    world.ingest.per_tick, world.receipt_loss = 2000, 0.0
    world.run(HOUR)
    world.run(3 * HOUR, sampling=False, until=world.drained)
    world.check_nothing_lost()


@pytest.mark.parametrize(
    ("seqs", "expected"), [([], []), ([3, 1, 2, 7], [(1, 3), (7, 7)]), ([5], [(5, 5)])]
)
def test_ranges_are_inclusive_and_ascending(
    seqs: list[int], expected: list[tuple[int, int]]
) -> None:
    assert ranges(seqs) == expected
