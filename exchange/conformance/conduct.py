"""Conduct: what one gateway and its devices send, judged message by message and, at the end, as a whole.

Knows no connection: it is handed what a witness saw.
"""

from __future__ import annotations

import math
import time
from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from typing import Any, NamedTuple
from uuid import UUID

import cbor2
import msgspec

from exchange.commands import Result, decode_command, decode_result
from exchange.conformance.judgement import Judge
from exchange.conformance.pace import CLOCK_S, Pace
from exchange.conformance.witness import Seen
from exchange.dictionary import Profile, dictionary
from exchange.errors import CommandError, ContractError, ReadingError, StateError, TopicError
from exchange.readings import Pack, Sample, decode_pack
from exchange.states import Descriptor, State, decode_state
from exchange.topics import DeviceChannel, Topic, parse_topic
from exchange.units import SECONDARY

ENOUGH_SAMPLES = 5
_EVERY_TOPIC = ("EX-T-001", "EX-T-002", "EX-T-003", "EX-T-004", "EX-T-005")
_EVERY_PACK = (
    *("EX-R-001", "EX-R-002", "EX-R-003", "EX-R-004", "EX-R-005", "EX-R-006", "EX-R-007"),
    *("EX-R-009", "EX-R-010", "EX-R-016", "EX-R-017"),
)
_UNREADABLE = (
    *(ContractError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError),
    *(RecursionError, cbor2.CBORError),
)


class Sent(NamedTuple):
    """A sample as it first came."""

    sample: Sample
    at_s: float
    time_s: float


class Heard(NamedTuple):
    """A readings message: the (epoch, seq) it names, and those of them that came for the first time."""

    topic: Topic
    keys: list[tuple[int, int]]
    fresh: list[tuple[int, int]]


class Answer(NamedTuple):
    """A result as it came."""

    topic: Topic
    result: Result
    seen: Seen


class DeviceConduct:
    """One device. Units: `at_s` of the monotonic clock, `time_s` of the wall clock."""

    def __init__(self, judge: Judge, topic: Topic, pace: Pace, profile: str = "") -> None:
        self.name, self.domain = topic.device, topic.domain
        self._place = topic
        self.sent: dict[tuple[int, int], Sent] = {}
        self.state: State | None = None
        self.stated_at_s = 0.0
        self.retired = self.was_online = False
        self.live_states = 0
        self.unread = 0
        """Packs in which nothing could be named: what they held is unknown."""
        self.foretold: set[tuple[int, int]] = set()
        """Samples that a receipt named before they were sent."""
        self._judge, self._pace, self._profile = judge, pace, profile
        self._begun_s, self._begun_time_s = time.monotonic(), time.time()
        self._seqs: dict[int, list[int]] = {}
        self._refused: set[tuple[int, int]] = set()
        self._metrics: dict[str, bytes] = {}
        self._newest_lag: list[tuple[float, float]] = []
        self._offline = [(self._begun_time_s, math.inf)]
        self._topic = ""

    # ------------------------------------------------------------------------------------------- message by message

    def readings(self, topic: Topic, seen: Seen) -> Heard | None:
        """Judge a readings message; None when nothing in it can be named."""
        self._topic = seen.topic
        try:
            pack = decode_pack(seen.payload, topic)
        except ReadingError as error:
            self.unread += 1
            self._judge.breach(error, topic=seen.topic, payload=seen.payload)
            return None
        self._judge_pack(pack, seen)
        whole = [(one.epoch, one.seq) for one in pack.refusals if not one.metric]
        self._refused.update(whole)
        fresh = [(one.epoch, one.seq) for one in pack.samples if self._take(one, seen)]
        if fresh:
            newest_s = max(self.sent[key].sample.time_ms for key in fresh) / 1000
            self._newest_lag.append((seen.time_s, newest_s))
        return Heard(topic, [(one.epoch, one.seq) for one in pack.samples] + whole, fresh)

    def _judge_pack(self, pack: Pack, seen: Seen) -> None:
        broken = {one.requirement for one in pack.refusals}
        for one in pack.refusals:
            words = f"{one.metric or 'sample'} of seq {one.seq}: {one.detail}"
            self._judge.broken(one.requirement, words, topic=seen.topic, payload=seen.payload)
        for requirement in (*_EVERY_PACK, *_touched(pack, seen.payload, self.domain)):
            if requirement not in broken:
                self._kept(requirement, "a pack that keeps to it", seen)

    def _take(self, sample: Sample, seen: Seen) -> bool:
        key = (sample.epoch, sample.seq)
        known = self.sent.get(key)
        if known is not None:
            if known.sample == sample:
                self._kept("EX-R-019", f"seq {sample.seq} came again, the same", seen)
            else:
                was = msgspec.json.encode(known.sample).decode()
                self._broken("EX-R-019", f"seq {sample.seq} came again and was {was}", seen)
            return False
        self.sent[key] = Sent(sample, seen.at_s, seen.time_s)
        for metric in sample.metrics:
            self._metrics.setdefault(metric, seen.payload)
        for metric in _marked(sample.quality):
            self._metrics.setdefault(metric, seen.payload)
        self._judge_time(sample, seen)
        self._judge_order(sample, seen)
        return True

    def _judge_time(self, sample: Sample, seen: Seen) -> None:
        ahead_s = sample.time_ms / 1000 - seen.time_s
        if ahead_s > CLOCK_S and "clock" not in sample.quality:
            self._broken(
                "EX-R-023", f"seq {sample.seq} is {ahead_s:.1f} s ahead of this clock", seen
            )

    def _judge_order(self, sample: Sample, seen: Seen) -> None:
        seqs = self._seqs.setdefault(sample.epoch, [])
        place = bisect_left(seqs, sample.seq)
        for other in seqs[max(0, place - 1) : place + 1]:
            before = self.sent[sample.epoch, other].sample
            if (other < sample.seq) != (before.time_ms < sample.time_ms):
                words = f"seq {sample.seq} at {sample.time_ms} ms, seq {other} at {before.time_ms}"
                self._broken("EX-R-020", words, seen)
            else:
                self._kept("EX-R-020", "a later seq has a later time", seen)
        insort(seqs, sample.seq)

    def stated(self, seen: Seen, *, judged: bool = True) -> None:
        """Take a state; what the broker retained from before the run is not judged until the end."""
        try:
            state = decode_state(seen.payload)
        except StateError as error:
            if judged:
                self._judge.breach(error, topic=seen.topic, payload=seen.payload)
            return
        if judged:
            self._kept("EX-S-001", "a state in its shape", seen)
            self.live_states += not seen.retain
        is_online = state is not None and state.online
        self.was_online |= is_online
        since_s, until_s = self._offline[-1]
        if is_online and until_s == math.inf:
            self._offline[-1] = (since_s, seen.time_s)
        elif not is_online and until_s < math.inf:
            self._offline.append((seen.time_s, math.inf))
        self.retired = state is None
        self.state, self.stated_at_s = state, seen.at_s

    # -------------------------------------------------------------------------------------------------- at the end

    @property
    def interval_s(self) -> float | None:
        """How often its state says it measures."""
        return None if self.state is None else self.state.interval_s

    @property
    def commands(self) -> list[str]:
        """What its state announces."""
        return [] if self.state is None else self.state.descriptor.commands

    def topic(self, channel: DeviceChannel) -> str:
        """Return one of its topics."""
        return str(msgspec.structs.replace(self._place, channel=channel))

    @property
    def is_seen_enough(self) -> bool:
        """Whether a longer look would show nothing new of a device that goes on like this."""
        if self.interval_s is None or len(self.sent) < ENOUGH_SAMPLES:
            return False
        if time.monotonic() - self._begun_s <= 2 * self.interval_s + self._pace.slack_s:
            return False
        return not self.has_new_gap

    @property
    def is_behind(self) -> bool:
        """Whether it still sends what it measured some time ago."""
        if not self._newest_lag or self.interval_s is None:
            return False
        came_s, newest_s = self._newest_lag[-1]
        return came_s - newest_s > 2 * self.interval_s + self._pace.slack_s

    def missing(self) -> list[tuple[int, int]]:
        """Return the samples that were measured while we watched and did not come, until long enough ago."""
        return [(epoch, seq) for epoch, seq, is_settled in self._gaps() if is_settled]

    @property
    def has_new_gap(self) -> bool:
        """Whether a gap is so new that what fills it may be on its way."""
        return not all(is_settled for _, _, is_settled in self._gaps())

    def _gaps(self) -> Iterator[tuple[int, int, bool]]:
        """Yield epoch and seq of what was left out, and whether that is long enough ago."""
        now_s = time.monotonic()
        for epoch, seqs in self._seqs.items():
            known = sorted({*seqs, *(seq for each, seq in self._refused if each == epoch)})
            starts = [(-1, known[0])] if epoch >= 1000 * self._begun_time_s else []
            for last, following in [*starts, *pairwise(known)]:
                if following - last < 2:
                    continue
                before, after = self.sent.get((epoch, last)), self.sent.get((epoch, following))
                is_backlog = before is not None and (
                    before.sample.time_ms < 1000 * self._begun_time_s
                )
                is_settled = after is None or now_s - after.at_s > self._pace.slack_s
                if not is_backlog:
                    for seq in range(last + 1, min(following, last + 1000)):
                        yield epoch, seq, is_settled

    def conclude(self, retained: Seen | None, quiet: Iterable[tuple[float, float]] = ()) -> None:
        """Judge the whole.

        Shape: `retained` is the state that the broker holds at the end, `quiet` the spans of the wall clock in
            which nothing could be expected.
        """
        if retained is not None:
            self.stated(retained)
        if self.sent:
            self._conclude_clock()
        self._conclude_pace([*quiet, *self._offline])
        if not self.sent:
            return
        self._conclude_gaps()
        self._conclude_state(retained)
        self._conclude_profile()

    def _conclude_gaps(self) -> None:
        if self.unread:
            self._judge.apart("EX-R-021", "what the packs held that cannot be read is unknown")
            return
        gone = self.missing()
        for epoch, seq in gone:
            words = f"{self.name}: seq {seq} of epoch {epoch} did not come"
            if (epoch, seq) in self.foretold and self._judge.binds("EX-D-009"):
                words += ", after a receipt named it before it was sent"
                self._judge.broken("EX-D-009", words, topic=self._topic)
            else:
                self._judge.broken("EX-R-021", words, topic=self._topic)
        if not gone and len(self.sent) > 1:
            self._judge.kept("EX-R-021", f"{len(self.sent)} samples, none left out")

    def _conclude_clock(self) -> None:
        """A clock that is behind keeps its distance; a backlog that drains comes closer."""
        lags = self._newest_lag
        limit_s = 2 * (self.interval_s or 60) + CLOCK_S
        if any("clock" in one.sample.quality for one in self.sent.values()):
            self._judge.apart("EX-R-023", "samples are marked uncertain:clock")
        elif min(came_s - newest_s for came_s, newest_s in lags) <= limit_s:
            words = f"{self.name}: its newest samples agree with this clock"
            self._judge.kept("EX-R-023", words, topic=self._topic)
        elif lags[-1][0] - lags[0][0] < (self.interval_s or 60):
            self._judge.apart("EX-R-023", "too few samples to tell a late one from a slow clock")
        elif lags[-1][1] - lags[0][1] < 1.5 * (lags[-1][0] - lags[0][0]):
            behind_s = lags[-1][0] - lags[-1][1]
            words = f"{self.name}: its newest sample was {behind_s:.1f} s old when it came"
            self._judge.broken("EX-R-023", words, topic=self._topic)
        else:
            self._judge.apart("EX-R-023", "only a backlog was seen")

    def _conclude_pace(self, quiet: list[tuple[float, float]]) -> None:
        if self.state is None or not self.state.online:
            return
        if self._judge.is_broken("EX-R-023"):
            self._judge.apart("EX-S-008", "its clock is wrong")
            return
        limit_s = 2 * self.state.interval_s + self._pace.slack_s
        now_s = time.time()
        if now_s - self._begun_time_s < limit_s:
            watched_s = now_s - self._begun_time_s
            words = (
                f"its interval is {self.state.interval_s:g} s, it was watched for {watched_s:.0f} s"
            )
            self._judge.apart("EX-S-008", words)
            return
        times = [one.sample.time_ms / 1000 for one in self.sent.values()]
        # what comes now may be a backlog: then the end is not silent
        times += [came_s for came_s, _ in self._newest_lag[-1:]]
        moments = [self._begun_time_s, *sorted(t for t in times if t > self._begun_time_s), now_s]
        for last_s, following_s in pairwise(moments):
            silent_s = following_s - last_s - _overlap_s(quiet, last_s, following_s)
            if silent_s > limit_s:
                words = f"{self.name}: no sample for {silent_s:.1f} s, its interval is"
                words += f" {self.state.interval_s:g} s"
                self._judge.broken("EX-S-008", words, topic=self._topic)
                return
        words = f"{self.name}: a sample at least every {limit_s:g} s"
        self._judge.kept("EX-S-008", words, topic=self._topic)

    def _conclude_state(self, retained: Seen | None) -> None:
        if self.domain == "gateway" and self._judge.binds("EX-S-003") and not self.was_online:
            pass  # that is EX-S-003
        elif retained is None or not retained.payload:
            words = f"{self.name} sends readings, and the broker shows no retained state of it"
            self._judge.broken("EX-S-002", words, topic=self._topic)
            if self.live_states and not self.retired:
                words = f"{self.name}: the state that was published is not retained"
                self._judge.broken("EX-T-009", words, topic=self._topic)
        else:
            self._kept("EX-S-002", "the broker retains its state", retained)
        if self.state is None:
            return
        shown = retained.payload if retained else b""
        newest = max(self.sent.values(), key=lambda one: one.sample.time_ms)
        if self.state.epoch == newest.sample.epoch:
            self._judge.kept("EX-S-006", f"epoch {self.state.epoch}", topic=self._topic)
        elif self.state.epoch < newest.sample.epoch or self.stated_at_s < newest.at_s:
            words = f"{self.name}: the state says epoch {self.state.epoch}, its newest readings"
            words += f" {newest.sample.epoch}"
            self._judge.broken("EX-S-006", words, topic=self._topic, payload=shown)
        unnamed = sorted(self._metrics.keys() - self.state.descriptor.metrics.keys())
        if unnamed:
            words = f"{self.name}: the descriptor does not name {', '.join(unnamed)}"
            self._judge.broken("EX-S-007", words, topic=self._topic, payload=shown)
        elif self._metrics:
            self._judge.kept("EX-S-007", "every metric that came is named", payload=shown)

    def _conclude_profile(self) -> None:
        profiles = [
            one
            for one in dictionary()[self.domain].profiles
            if self._profile in ("", one.name) or self.domain == "gateway"
        ]
        if not profiles:
            names = ", ".join(one.name for one in dictionary()[self.domain].profiles) or "none"
            for requirement in ("EX-R-025", "EX-S-009"):
                self._judge.apart(requirement, f"the profiles of {self.domain} are {names}")
            return
        lacks = {one.name: self._lacking(one) for one in profiles}
        chosen = min(profiles, key=lambda one: (len(lacks[one.name]), len(self._empty(one))))
        words = f"{self.name}: profile {chosen.name}"
        if not lacks[chosen.name]:
            self._judge.kept("EX-R-025", words, topic=self._topic)
        else:
            sets = "; ".join(" or ".join(names) for names in lacks[chosen.name])
            self._judge_lacking(lacks[chosen.name], f"{words}: {sets} did not come")
        if self.state is None:
            return
        shown = msgspec.json.encode(self.state.descriptor)
        if empty := self._empty(chosen):
            words += f": the descriptor lacks {', '.join(empty)}"
            self._judge.broken("EX-S-009", words, topic=self._topic, payload=shown)
        else:
            self._judge.kept("EX-S-009", words, topic=self._topic, payload=shown)

    def _judge_lacking(self, lacking: list[list[str]], words: str) -> None:
        """What its descriptor announces for later than we watched is not missing yet."""
        announced = {} if self.state is None else self.state.descriptor.metrics
        watched_s = time.monotonic() - self._begun_s - self._pace.slack_s
        if all(any(2 * announced.get(name, 0) > watched_s for name in names) for names in lacking):
            self._judge.apart("EX-R-025", f"{words} yet")
        elif self.unread:
            self._judge.apart("EX-R-025", "what the packs held that cannot be read is unknown")
        else:
            self._judge.broken("EX-R-025", words, topic=self._topic)

    def _lacking(self, profile: Profile) -> list[list[str]]:
        return [names for names in profile.metrics if not self._metrics.keys() & set(names)]

    def _empty(self, profile: Profile) -> list[str]:
        said = self.state.descriptor if self.state else Descriptor()
        none = Descriptor()
        return [name for name in profile.descriptor if getattr(said, name) == getattr(none, name)]

    def _kept(self, requirement: str, note: str, seen: Seen) -> None:
        self._judge.kept(requirement, note, topic=seen.topic, payload=seen.payload)

    def _broken(self, requirement: str, note: str, seen: Seen) -> None:
        self._judge.broken(requirement, note, topic=seen.topic, payload=seen.payload)


class Conduct:
    """One gateway, or one device of it."""

    def __init__(
        self,
        judge: Judge,
        county: str,
        gateway: str,
        device: str = "",
        *,
        pace: Pace,
        profile: str = "",
    ) -> None:
        self.devices: dict[str, DeviceConduct] = {}
        self.quiet: list[tuple[float, float]] = []
        """Spans of the wall clock in which nothing could come."""
        self.results: dict[UUID, list[Answer]] = {}
        self.unread_results = 0
        self.given: set[bytes] = set()
        """The commands that the kit itself gave."""
        self._judge, self._pace, self._profile = judge, pace, profile
        self._county, self._gateway, self._device = county, gateway, device
        self._elsewhere: list[Seen] = []
        self._others: dict[str, Seen] = {}

    @property
    def filter(self) -> str:
        """The subscription that shows what there is to judge, malformed topics among it."""
        return f"+/+/+/+/{self._gateway}/#"

    @property
    def neighbours(self) -> list[str]:
        """The subscriptions that show who else publishes for our devices."""
        heard = [name for name, device in self.devices.items() if device.sent]
        return [f"city/v1/{self._county}/+/+/+/{name}/+" for name in heard]

    @property
    def interval_s(self) -> float:
        """The longest interval of a device that was heard often enough; somebody else would send as often."""
        found = [one.interval_s or 0.0 for one in self.devices.values() if len(one.sent) > 1]
        return max(found, default=0.0)

    def take_neighbour(self, seen: Seen) -> None:
        """Note what another gateway publishes."""
        levels = seen.topic.split("/")
        if len(levels) != 8 or levels[4] == self._gateway or seen.retain or not seen.payload:
            return
        if levels[7] in ("readings", "state"):
            self._others.setdefault(levels[6], seen)

    def take(self, seen: Seen) -> Heard | None:
        """Judge what came; readings of which samples can be named are returned."""
        topic = self._ours(seen)
        if topic is None or topic.channel == "receipts":
            return None
        if topic.channel == "commands":
            self._note_command(topic, seen)
            return None
        if seen.retain and topic.channel != "state":
            words = f"{topic.channel} that the broker retains"
            self._judge.broken("EX-T-009", words, topic=seen.topic, payload=seen.payload)
            return None
        if not seen.retain:  # what was retained before the run is judged at the end
            self._judge_carriage(topic, seen)
        device = self.device(topic)
        if topic.channel == "readings":
            return device.readings(topic, seen)
        if topic.channel == "state":
            device.stated(seen, judged=not seen.retain)
        else:
            self._take_result(topic, seen)
        return None

    def _take_result(self, topic: Topic, seen: Seen) -> None:
        try:
            result = decode_result(seen.payload)
        except CommandError as error:
            self.unread_results += 1
            self._judge.breach(error, topic=seen.topic, payload=seen.payload)
            return
        self._judge.kept(
            "EX-C-003", "a result in its shape", topic=seen.topic, payload=seen.payload
        )
        self.results.setdefault(result.id, []).append(Answer(topic, result, seen))

    def _note_command(self, topic: Topic, seen: Seen) -> None:
        """Note what an application does wrong; it binds nobody whom we judge."""
        if seen.payload in self.given:
            return
        try:
            name = decode_command(seen.payload).name
            state = self.device(topic).state
            if state is not None and name not in state.descriptor.commands:
                raise CommandError("EX-C-008", f"{name} is not what {topic.device} announces")
        except CommandError as error:
            self._judge.breach(error, topic=seen.topic, payload=seen.payload)

    def device(self, topic: Topic) -> DeviceConduct:
        """Return the conduct of a topic's device."""
        one = self.devices.get(topic.device)
        if one is None:
            one = DeviceConduct(self._judge, topic, self._pace, self._profile)
            self.devices[topic.device] = one
        return one

    def conclude(self, retained: Mapping[str, Seen]) -> None:
        """Judge the whole. `retained` is what the broker holds at the end, by topic."""
        states: dict[str, Seen] = {}
        for seen in retained.values():
            topic = self._ours(seen)
            if topic is None:
                continue
            if topic.channel == "state":
                states[topic.device] = seen
                self.device(topic)
                self._judge_carriage(topic, seen)
            elif topic.channel in ("readings", "results"):
                words = f"{topic.channel} that the broker retains"
                self._judge.broken("EX-T-009", words, topic=seen.topic, payload=seen.payload)
        for name, device in self.devices.items():
            device.conclude(states.get(name), self.quiet)
        self._conclude_county()

    def _ours(self, seen: Seen) -> Topic | None:
        """Return the topic if it is of whom we judge; what is wrong with it is judged."""
        levels = seen.topic.split("/")
        if self._device and self._device not in levels:
            return None
        try:
            topic = parse_topic(seen.topic)
        except TopicError as error:
            if self._gateway in levels:
                self._judge.breach(error, topic=seen.topic, payload=seen.payload)
            return None
        if topic.county != self._county:
            if topic.gateway == self._gateway and not seen.retain:
                self._elsewhere.append(seen)
            return None
        if topic.gateway != self._gateway:
            return None
        if self._device and topic.device != self._device:
            return None
        if topic.channel in ("readings", "state", "results"):
            for requirement in _EVERY_TOPIC:
                self._judge.kept(requirement, "a topic in its shape", topic=seen.topic)
            if topic.domain == "gateway" and self._judge.binds("EX-T-006"):
                self._judge.kept("EX-T-006", "the gateway as a device", topic=seen.topic)
        return topic

    def _judge_carriage(self, topic: Topic, seen: Seen) -> None:
        if seen.qos == 1:
            self._judge.kept("EX-T-009", f"{topic.channel} with QoS 1", topic=seen.topic)
        else:
            words = f"{topic.channel} with QoS {seen.qos}"
            self._judge.broken("EX-T-009", words, topic=seen.topic, payload=seen.payload)

    def _conclude_county(self) -> None:
        """A county is not ours alone: only what nobody else can have sent counts as a breach."""
        epochs = {epoch for device in self.devices.values() for epoch, _ in device.sent}
        for seen in self._elsewhere[:1] if not epochs else self._elsewhere:
            if not epochs or epochs & _epochs(seen):
                words = f"not in {self._county}, the county that was asked for"
                self._judge.broken("EX-T-007", words, topic=seen.topic, payload=seen.payload)
        if epochs and not self._judge.is_broken("EX-T-007"):
            self._judge.kept("EX-T-007", f"in {self._county}")

    def conclude_publishers(self) -> None:
        """Judge who else publishes for our devices, once the neighbours were listened to."""
        for name, device in self.devices.items():
            if not device.sent:
                continue
            if other := self._others.get(name):
                words = f"another gateway publishes for {name}, too"
                self._judge.broken("EX-S-011", words, topic=other.topic, payload=other.payload)
            else:
                self._judge.kept("EX-S-011", f"nobody else published for {name} meanwhile")


def _overlap_s(spans: Iterable[tuple[float, float]], from_s: float, to_s: float) -> float:
    """Return how much of a time lies in these spans, which may overlap."""
    covered_s, reached_s = 0.0, from_s
    for begin_s, end_s in sorted(spans):
        begin_s, end_s = max(begin_s, reached_s), min(end_s, to_s)
        if end_s > begin_s:
            covered_s += end_s - begin_s
            reached_s = end_s
    return covered_s


def _touched(pack: Pack, payload: bytes, domain: str) -> Iterator[str]:
    """Yield the requirements that not every pack puts to the test, but this one did."""
    if len(pack.samples) > 1:
        yield "EX-R-008"
    records = _records(payload)
    units = {record["u"] for record in records if record.get("u")}
    if units:
        yield "EX-R-012"
    if any(unit in SECONDARY for unit in units):
        yield "EX-R-013"
    if any("bver" in record for record in records):
        yield "EX-R-018"
    names = {record["n"] for record in records}
    if "quality" in names:
        yield "EX-R-015"
    metrics = dictionary()[domain].metrics
    if any(metrics[name].range for name in names & metrics.keys()):
        yield "EX-R-011"


def _records(payload: bytes) -> list[dict[str, Any]]:
    """Return the records of a pack that could be read, by JSON's labels."""
    if payload[:1] == b"[":
        found: list[dict[str, Any]] = msgspec.json.decode(payload)
        return found
    labels = {-1: "bver", 0: "n", 1: "u", 2: "v"}
    return [{labels.get(label, ""): v for label, v in one.items()} for one in cbor2.loads(payload)]


def _marked(quality: str) -> Iterator[str]:
    for mark in quality.split(";"):
        _, bracket, metric = mark.partition("(")
        if bracket:
            yield metric.removesuffix(")")


def _epochs(seen: Seen) -> set[int]:
    """Return what epochs a message names, right or wrong."""
    try:
        if not seen.topic.endswith("/readings"):
            state = decode_state(seen.payload)
            return set() if state is None else {state.epoch}
        return {int(one["v"]) for one in _records(seen.payload) if one.get("n") == "epoch"}
    except _UNREADABLE:
        return set()
