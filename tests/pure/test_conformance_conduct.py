"""What the judges of conduct and of deliveries must not take for a breach, and what they must."""

from __future__ import annotations

import time
from collections.abc import Iterable

import msgspec
import pytest

from exchange.conformance.conduct import Conduct
from exchange.conformance.judgement import Judge, Outcome
from exchange.conformance.ledger import Ledger
from exchange.conformance.pace import Pace
from exchange.conformance.witness import Seen
from exchange.delivery import Key
from exchange.readings import Sample, encode_pack
from exchange.states import Descriptor, Location, State, encode_state
from exchange.topics import Topic
from tests.pure.test_fuzz_corpus import KNOWN, SEED, blind_cases

PLACE = "city/v1/tw-tpe/street/gw-1/air/aq-7"
INTERVAL_S = 1.0
OURS = ("readings", "state", "results")


class Watched:
    """A device that is watched since ten minutes ago; times are seconds since then."""

    def __init__(self, *, since_s: float = 600.0) -> None:
        self.judge = Judge("device", "tw-tpe/gw-1/aq-7")
        self.conduct = Conduct(self.judge, "tw-tpe", "gw-1", "aq-7", pace=Pace())
        self.begun_time_s, self.begun_s = time.time() - since_s, time.monotonic() - since_s
        self.epoch = round(1000 * (self.begun_time_s - 5000))
        self.last_s = since_s
        descriptor = Descriptor(
            maker="M",
            model="X",
            location=Location(lat=25.0, lon=121.5),
            metrics={"pm2_5": INTERVAL_S},
        )
        self.state = State(
            v=1, online=True, interval_s=INTERVAL_S, epoch=self.epoch, descriptor=descriptor
        )
        self.take("state", encode_state(self.state), 0.0, retain=True)
        device = self.conduct.devices["aq-7"]
        device._begun_s, device._begun_time_s = self.begun_s, self.begun_time_s
        device._offline = [(self.begun_time_s, self.begun_time_s)]

    def take(self, channel: str, payload: bytes, at_s: float, *, retain: bool = False) -> None:
        where = f"{PLACE}/{channel}"
        seen = Seen(where, payload, 1, retain, self.begun_s + at_s, self.begun_time_s + at_s)
        self.conduct.take(seen)

    def readings(self, at_s: float, seqs: Iterable[int], *, behind_s: float = 0.0) -> None:
        """A pack that comes then; sample `seq` was measured in second `seq`, counted from the begin."""
        topic = Topic("tw-tpe", "street", "gw-1", "air", "aq-7", "readings")
        samples = [
            Sample(round(1000 * (self.begun_time_s + seq - behind_s)), self.epoch, seq + 10_000, {"pm2_5": 5.0})
            for seq in seqs
        ]  # fmt: skip
        self.take("readings", encode_pack(topic, samples), at_s)

    def outcome(self, requirement: str) -> Outcome:
        where = f"{PLACE}/state"
        payload = encode_state(self.state)
        held = Seen(where, payload, 1, True, self.begun_s, self.begun_time_s)
        self.conduct.conclude({where: held})
        found = {one.requirement: one for one in self.judge.report().verdicts}
        failed = {name for name, one in found.items() if one.outcome == "failed"}
        assert failed <= {requirement}, failed
        return found[requirement].outcome


@pytest.fixture
def watched() -> Watched:
    return Watched()


def test_a_device_in_order_passes(watched: Watched) -> None:
    for second in range(600):
        watched.readings(second + 0.1, [second])
    assert watched.outcome("EX-R-021") == "passed"
    for requirement in ("EX-R-020", "EX-R-023", "EX-S-002", "EX-S-006", "EX-S-008", "EX-S-009"):
        assert watched.outcome(requirement) == "passed"


def test_a_gap_that_closes_is_none(watched: Watched) -> None:
    for second in range(600):
        if second != 300:
            watched.readings(second + 0.1, [second])
    watched.readings(599.5, [300])
    assert watched.outcome("EX-R-021") == "passed"


def test_a_gap_that_stays_is_a_loss(watched: Watched) -> None:
    for second in range(600):
        if second != 300:
            watched.readings(second + 0.1, [second])
    assert watched.outcome("EX-R-021") == "failed"


def test_what_was_overtaken_just_now_may_still_come(watched: Watched) -> None:
    for second in range(600):
        if second != 598:
            watched.readings(second + 0.1, [second])
    assert watched.outcome("EX-R-021") == "passed"


def test_a_backlog_from_before_may_have_holes_that_nobody_saw_close(watched: Watched) -> None:
    for second in range(600):
        watched.readings(second + 0.1, [second])
        watched.readings(second + 0.2, range(-3000 + 4 * second, -2998 + 4 * second))
    assert watched.outcome("EX-R-021") == "passed"
    assert watched.outcome("EX-R-023") == "passed"


def test_a_backlog_alone_is_no_slow_clock(watched: Watched) -> None:
    for second in range(60):
        first = -3000 + 10 * second
        watched.readings(540.0 + second, range(first, first + 10))
    device = watched.conduct.devices["aq-7"]
    device._offline = [(watched.begun_time_s, watched.begun_time_s + 600)]
    assert watched.outcome("EX-R-023") == "not applicable"


def test_a_clock_that_is_slow_is_found(watched: Watched) -> None:
    for second in range(600):
        watched.readings(second + 0.1, [second], behind_s=100.0)
    assert watched.outcome("EX-R-023") == "failed"


def test_an_outage_that_is_made_up_for_is_no_silence(watched: Watched) -> None:
    for second in (*range(200), *range(400, 600)):
        watched.readings(second + 0.1, [second])
    watched.readings(590.0, range(200, 400))
    assert watched.outcome("EX-S-008") == "passed"


def test_a_device_is_not_silent_while_its_state_says_offline(watched: Watched) -> None:
    for second in range(200):
        watched.readings(second + 0.1, [second])
    watched.state = msgspec.structs.replace(watched.state, online=False)
    watched.take("state", encode_state(watched.state), 201.0)
    watched.state = msgspec.structs.replace(watched.state, online=True)
    watched.take("state", encode_state(watched.state), 400.0)
    for second in range(400, 600):
        watched.readings(second + 0.1, [second - 200], behind_s=-200.0)
    assert watched.outcome("EX-S-008") == "passed"


def test_a_device_that_falls_silent_is_found(watched: Watched) -> None:
    for second in range(500):
        watched.readings(second + 0.1, [second])
    assert watched.outcome("EX-S-008") == "failed"


def test_a_resend_may_be_packed_otherwise(watched: Watched) -> None:
    for second in range(600):
        watched.readings(second + 0.1, [second])
    watched.readings(599.9, range(100, 200))
    assert watched.outcome("EX-R-019") == "passed"


def test_another_county_may_have_devices_of_the_same_name(watched: Watched) -> None:
    for second in range(600):
        watched.readings(second + 0.1, [second])
    topic = Topic("tw-khh", "street", "gw-1", "air", "aq-7", "readings")
    sample = Sample(round(time.time() * 1000), watched.epoch + 77, 0, {"pm2_5": 5.0})
    other = encode_pack(topic, [sample])
    watched.conduct.take(Seen(str(topic), other, 1, False, time.monotonic(), time.time()))
    assert watched.outcome("EX-T-007") == "passed"


# ------------------------------------------------------------------------------------------------------ deliveries


KEY, OTHER = Key("aq-7", 1, 0), Key("aq-7", 1, 1)


@pytest.fixture
def ledger() -> Ledger:
    return Ledger(Judge("gateway", "tw-tpe/gw-1"), Pace(), 5000)


def broken(ledger: Ledger) -> set[str]:
    return {one.requirement for one in ledger._judge.report().failed}


def receipted(ledger: Ledger, key: Key, at_s: float) -> None:
    ledger.receipting([key])
    ledger.receipted([key], at_s)


@pytest.mark.parametrize(("again_s", "found"), [(20.0, {"EX-D-005"}), (30.0, set()), (37.0, set())])
def test_a_back_off_is_waited_for(ledger: Ledger, again_s: float, found: set[str]) -> None:
    ledger.arrived([KEY], 0.0)
    ledger.arrived([KEY], again_s)
    assert broken(ledger) == found


def test_the_second_back_off_is_twice_as_long(ledger: Ledger) -> None:
    for at_s in (0.0, 35.0, 70.0):
        ledger.arrived([KEY], at_s)
    assert broken(ledger) == {"EX-D-005"}


def test_what_was_under_way_when_the_connection_broke_may_come_again(ledger: Ledger) -> None:
    ledger.arrived([KEY], 0.0)
    ledger.broke(1.0, 3.0)
    ledger.arrived([KEY], 3.1)
    assert broken(ledger) == set()
    ledger.arrived([KEY], 3.1 + 36.0)  # that one did not count: its first back-off goes on
    assert broken(ledger) == set()


def test_what_the_broker_had_long_before_may_not(ledger: Ledger) -> None:
    ledger.arrived([KEY], 0.0)
    ledger.broke(10.0, 12.0)
    ledger.arrived([KEY], 12.1)
    assert broken(ledger) == {"EX-D-005"}


def test_a_receipt_that_may_be_lost_lets_nothing_go(ledger: Ledger) -> None:
    ledger.arrived([KEY], 0.0)
    receipted(ledger, KEY, 0.1)
    ledger.broke(1.0, 3.0)
    assert ledger.unsure() == {KEY}
    ledger.arrived([KEY], 36.0)
    assert broken(ledger) == set()
    receipted(ledger, KEY, 36.1)
    assert ledger.unsure() == set()
    ledger.arrived([KEY], 100.0)
    assert broken(ledger) == {"EX-D-006"}


def test_a_resend_that_crosses_its_receipt_is_none_after_it(ledger: Ledger) -> None:
    ledger.arrived([KEY], 0.0)
    receipted(ledger, KEY, 33.0)
    ledger.arrived([KEY], 33.5)
    assert broken(ledger) == set()


def test_nothing_is_late_while_nothing_proves_its_loss(ledger: Ledger) -> None:
    ledger.arrived([KEY], 0.0)
    ledger.held.add(KEY)
    assert ledger.due_s(KEY) == float("inf")
    ledger.conclude_held([KEY], 1000.0)
    assert broken(ledger) == set()
    ledger.arrived([OTHER], 100.0)
    receipted(ledger, OTHER, 100.1)
    assert 110.0 < ledger.due_s(KEY) < 130.0
    ledger.conclude_held([KEY], 130.0)
    assert broken(ledger) == {"EX-D-004"}


def test_in_silence_the_oldest_may_come_again_and_no_other(ledger: Ledger) -> None:
    ledger.arrived([KEY], 0.0)
    ledger.arrived([OTHER], 1.0)
    ledger.arrived([KEY], 36.0)
    ledger.conclude_silence({KEY}, -1.0, 45.0)
    assert broken(ledger) == set()
    ledger.arrived([OTHER], 46.0)
    ledger.conclude_silence({KEY}, -1.0, 47.0)
    assert broken(ledger) == {"EX-D-008"}


def test_a_silence_that_was_too_short_says_nothing(ledger: Ledger) -> None:
    ledger.arrived([KEY], 0.0)
    ledger.conclude_silence({KEY}, 0.0, 20.0)
    assert broken(ledger) == set()


def test_the_window_is_what_has_no_receipt(ledger: Ledger) -> None:
    ledger._window = 10
    for seq in range(100):
        key = Key("aq-7", 1, seq)
        ledger.arrived([key], float(seq))
        if seq >= 9:
            ledger.receipting([Key("aq-7", 1, seq - 9)])
    assert broken(ledger) == set()
    for seq in (100, 101):
        ledger.arrived([Key("aq-7", 1, seq)], 100.0)
    assert broken(ledger) == {"EX-D-007"}


# ---------------------------------------------------------------------------------------------------------- corpus


def test_the_kit_goes_on_after_every_message_of_the_corpus() -> None:
    """And names what each is known to break, if it binds whom it judges."""
    judged = 0
    for case in (*KNOWN, *blind_cases(SEED)):
        levels = case.topic.split("/")
        gateway = levels[4] if len(levels) > 4 else "gw-1"
        for county in {"tw-tpe", levels[2] if len(levels) > 2 else "tw-tpe"}:
            judge = Judge("gateway", gateway)
            conduct = Conduct(judge, county, gateway, pace=Pace())
            now_s, time_s = time.monotonic(), time.time()
            seen = Seen(case.topic, case.payload, 1, False, now_s, time_s)
            conduct.take(seen)
            conduct.conclude({case.topic: seen} if levels[-1] == "state" else {})
            found = {one.requirement for one in judge.report().failed}
            is_ours = county == levels[2] if len(levels) > 2 else False
            if is_ours and case.breaks and judge.binds(case.breaks) and levels[-1] in OURS:
                assert case.breaks in found, case
                judged += 1
    assert judged > 100


def test_a_gap_that_is_new_keeps_the_kit_looking(watched: Watched) -> None:
    for second in range(595, 600):
        watched.readings(second + 0.1, [second])
    device = watched.conduct.devices["aq-7"]
    assert not device.has_new_gap
    watched.readings(600.0, [602])
    assert device.has_new_gap
    assert not device.is_seen_enough
