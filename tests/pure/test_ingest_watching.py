"""What the watch remembers: sequences across packs, and who stands behind a device."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from exchange.readings import Sample
from exchange.states import State
from exchange.topics import Topic
from ingest.continuity import MAX_GAPS, Continuity
from ingest.registry import (
    MAX_DISPUTED,
    MAX_OTHERS,
    Change,
    DeviceId,
    Registered,
    Registry,
)

EPOCH = 1_795_000_000_777


def sample(seq: int, *, epoch: int = EPOCH, time_ms: int | None = None) -> Sample:
    return Sample(EPOCH + 1000 * seq if time_ms is None else time_ms, epoch, seq, {})


@given(st.permutations(range(30)), st.integers(0, 29))
def test_in_whatever_order_they_come_only_what_never_came_is_missing(
    order: list[int], lost: int
) -> None:
    continuity = Continuity()
    continuity.take([sample(0)])
    for seq in order:
        if seq != lost:
            continuity.take([sample(seq)])
    seen = set(order) - {lost} | {0}
    assert continuity.missing == len(set(range(max(seen) + 1)) - seen)


def test_resends_change_nothing() -> None:
    continuity = Continuity()
    for _ in range(3):
        found = continuity.take([sample(0), sample(1), sample(2)])
        assert (found.epochs, found.clashes, continuity.missing) == (0, 0, 0)


def test_a_late_sample_of_an_older_epoch_is_no_change_of_epoch() -> None:
    continuity = Continuity()
    assert continuity.take([sample(7, epoch=EPOCH)]).epochs == 0
    assert continuity.take([sample(0, epoch=EPOCH + 1)]).epochs == 1
    assert continuity.take([sample(8, epoch=EPOCH), sample(1, epoch=EPOCH + 1)]).epochs == 0
    assert continuity.missing == 0


def test_two_samples_that_claim_one_row() -> None:
    continuity = Continuity()
    first, second = sample(0, time_ms=EPOCH), sample(1, time_ms=EPOCH)
    assert continuity.take([first, first]).clashes == 0
    assert continuity.take([second]).clashes == 1
    other_epoch = sample(0, epoch=EPOCH + 1_000_000, time_ms=EPOCH)  # the same nanoseconds
    assert continuity.take([other_epoch]).clashes == 1


def test_what_nobody_watched_is_not_missing() -> None:
    continuity = Continuity()
    continuity.take([sample(0)])
    continuity.interrupt()
    continuity.take([sample(500)])
    assert continuity.missing == 0
    continuity.take([sample(502)])
    assert continuity.missing == 1


def test_memory_is_bounded_and_the_count_is_not() -> None:
    continuity = Continuity()
    continuity.take([sample(0), sample(1_000_000)])
    assert continuity.missing == 999_999
    continuity.take([sample(1_000_000 + 2 * number) for number in range(1, 2 * MAX_GAPS)])
    assert continuity.missing == 999_999 + 2 * MAX_GAPS - 1
    assert len(continuity.gaps or ()) == MAX_GAPS


@given(st.lists(st.integers(0, 60), max_size=120), st.integers(1, 3))
def test_each_is_counted_once_and_what_is_missing_is_what_did_not_come(
    order: list[int], days: int
) -> None:
    continuity = Continuity()
    received: dict[int, int] = {}
    total = {"received": 0, "missing": 0}

    def count(time_ms: int, new: int, missing: int) -> None:
        day = time_ms // (1000 * days)
        received[day] = received.get(day, 0) + new
        total["received"] += new
        total["missing"] += missing

    for seq in order:
        continuity.take([sample(seq)], count)
    came = {seq for seq in order if seq >= order[0]} if order else set()
    assert total["received"] == len(came)
    assert total["missing"] == continuity.missing
    assert continuity.missing == (max(came) - order[0] + 1 - len(came) if came else 0)
    assert sum(received.values()) == len(came)


@given(
    st.lists(
        st.tuples(st.integers(0, 12), st.integers(0, 2), st.integers(0, 3), st.booleans()),
        max_size=60,
    )
)
def test_the_short_way_is_the_long_one(steps: list[tuple[int, int, int, bool]]) -> None:
    """What goes on is taken as `take` takes it: one that goes the long way alone ends in the same place."""
    short, long = Continuity(), Continuity()
    for seq, epoch, time, cut in steps:
        one = sample(seq, epoch=EPOCH + epoch, time_ms=EPOCH + seq + time)
        counted: list[tuple[int, int, int]] = []
        found = long.take([one], lambda *what, to=counted: to.append(what))
        if short.goes_on(one):
            assert counted == [(one.time_ms, 1, 0)]
            assert (found.epochs, found.clashes) == (0, 0)
        else:
            short.take([one])
        if cut:
            short.interrupt()
            long.interrupt()
        assert msgspec.to_builtins(short) == msgspec.to_builtins(long)


def test_the_epoch_before_may_come_late() -> None:
    continuity = Continuity()
    seen: list[tuple[int, int]] = []
    continuity.take([sample(5), sample(0, epoch=EPOCH + 1)])
    late = [sample(6), sample(8), sample(7), sample(8)]
    continuity.take(late, lambda _time_ms, new, missing: seen.append((new, missing)))
    assert seen == [(1, 0), (1, 1), (0, -1), (1, 0)]
    assert continuity.missing == 0


def state(epoch: int = 1, *, online: bool = True) -> State:
    return State(v=1, online=online, interval_s=1.0, epoch=epoch)


def topic(gateway: str, device: str = "aq-1", domain: str = "air") -> Topic:
    return Topic("tw-tpe", "street", gateway, domain, device, "state")


def test_a_device_belongs_to_the_gateway_with_the_newest_epoch() -> None:
    registry = Registry()
    name = DeviceId("tw-tpe", "aq-1")
    assert registry.apply(topic("gw-1"), state(5)) is Change.SET
    assert registry.apply(topic("gw-1"), state(5)) is Change.NONE
    assert registry.apply(topic("gw-2"), state(5)) is Change.DISPUTED
    assert registry.devices[name].gateway == "gw-1"
    assert registry.apply(topic("gw-2"), state(6)) is Change.SET
    assert registry.devices[name].gateway == "gw-2"
    assert registry.apply(topic("gw-1"), None) is Change.NONE
    assert registry.apply(topic("gw-2"), None) is Change.RETIRED
    assert registry.devices == {}


def test_a_device_that_its_owner_gives_up_is_the_other_gateways_that_states_it() -> None:
    registry = Registry()
    name = DeviceId("tw-tpe", "aq-1")
    for gateway, epoch in (("gw-1", 5), ("gw-2", 3), ("gw-3", 4), ("gw-4", 9)):
        registry.apply(topic(gateway), state(epoch))
    owners = []
    for _ in range(4):
        known = registry.devices[name]
        owners.append(known.gateway)
        assert registry.gateways() == {known.behind}
        change = registry.apply(known.topic, None)
        assert change is (Change.SET if len(owners) < 4 else Change.RETIRED)
    assert owners == ["gw-4", "gw-1", "gw-3", "gw-2"]
    assert (registry.devices, list(registry.gateways())) == ({}, [])


def test_what_a_gateway_took_back_is_nobodys() -> None:
    registry = Registry()
    registry.apply(topic("gw-1"), state(5))
    registry.apply(topic("gw-2"), state(3))
    registry.apply(topic("gw-2"), None)
    assert registry.apply(topic("gw-1"), None) is Change.RETIRED
    registry.adopt(DeviceId("tw-tpe", "aq-1"), _known(registry, "gw-1"))
    registry.apply(topic("gw-2"), state(1))
    assert registry.apply(topic("gw-2"), None) is Change.RETIRED


def test_an_emptied_topic_retires_nobody_who_is_at_another() -> None:
    registry = Registry()
    name = DeviceId("tw-tpe", "aq-1")
    assert registry.apply(topic("gw-1"), state(5)) is Change.SET
    assert registry.apply(topic("gw-1", domain="noise"), state(5)) is Change.SET
    assert registry.apply(topic("gw-1"), None) is Change.NONE
    moved = msgspec.structs.replace(topic("gw-1", domain="noise"), site="square")
    assert registry.apply(moved, state(5)) is Change.SET
    assert registry.apply(topic("gw-1", domain="noise"), None) is Change.NONE
    assert registry.devices[name].topic == moved
    assert registry.apply(topic("gw-2"), state(3)) is Change.DISPUTED
    assert registry.apply(topic("gw-2", domain="noise"), None) is Change.NONE
    assert registry.apply(moved, None) is Change.SET
    assert registry.devices[name].topic == topic("gw-2")


def test_of_disputes_no_more_are_kept_than_memory_bears() -> None:
    registry = Registry()
    for number in range(MAX_DISPUTED + 10):
        registry.apply(topic("gw-1", f"aq-{number}"), state(5))
        registry.apply(topic("gw-2", f"aq-{number}"), state(3))
    assert registry.apply(topic("gw-1", "aq-0"), None) is Change.RETIRED
    assert registry.apply(topic("gw-1", f"aq-{MAX_DISPUTED}"), None) is Change.SET
    for number in range(MAX_OTHERS + 10):
        registry.apply(topic(f"gw-{number}", "aq-x"), state(100 - number))
    changes = [
        registry.apply(registry.devices[DeviceId("tw-tpe", "aq-x")].topic, None)
        for _ in range(MAX_OTHERS + 1)
    ]
    assert changes == [Change.SET] * MAX_OTHERS + [Change.RETIRED]


def _known(registry: Registry, gateway: str) -> Registered:
    """Return the device as a gateway stated it, which it then emptied."""
    registry.apply(topic(gateway), state(5))
    known = registry.devices[DeviceId("tw-tpe", "aq-1")]
    registry.apply(topic(gateway), None)
    return known


def test_a_gateway_may_speak_for_itself_with_an_older_epoch() -> None:
    registry = Registry()
    registry.apply(topic("gw-1"), state(9))
    assert registry.apply(topic("gw-1"), state(3)) is Change.SET


def test_a_gateway_is_online_as_its_own_state_says() -> None:
    registry = Registry()
    assert registry.gateway_online("tw-tpe", "gw-1") is None
    registry.apply(topic("gw-1", "gw-1", "gateway"), state())
    assert registry.gateway_online("tw-tpe", "gw-1") is True
    registry.apply(topic("gw-1", "gw-1", "gateway"), state(online=False))
    assert registry.gateway_online("tw-tpe", "gw-1") is False
