"""Readings: samples of one device as a SenML pack (RFC 8428), JSON or CBOR.

Records of one time form one sample. A pack begins with the device's `epoch`; each sample carries its `seq`, so that
(device, epoch, seq) names it for ever.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import Literal, TypeAlias

import cbor2
import msgspec

from exchange.dictionary import RESERVED, VENDOR_METRIC, Metric, dictionary
from exchange.errors import ReadingError
from exchange.topics import Topic
from exchange.units import SECONDARY, SECONDARY_BVER, converter

Value: TypeAlias = float | int | bool
PackFormat = Literal["json", "cbor"]

MAX_PACK_BYTES = 256 * 1024
MAX_NUMBER = 2**53  # JSON numbers are doubles; above this integers blur
MIN_ABSOLUTE_S = 2**28  # RFC 8428 section 4.5.3: smaller times are relative to now
MAX_ABSOLUTE_S = 9_223_372_036  # a 64-bit nanosecond clock ends here

REASONS = ("range", "rate", "stuck", "warmup", "saturated", "fault", "clock", "comm")
_MARK = re.compile(rf"(uncertain|bad):({'|'.join(REASONS)})(?:\(([a-z0-9_.-]+)\))?")


class Sample(msgspec.Struct, frozen=True, gc=False):
    """What a device measured at one time.

    Units: `time_ms` since 1970 UTC, `epoch` the millisecond in which the device's counter was begun, metrics in the
    dictionary's units; `quality` is `""` when nothing is wrong.
    """

    time_ms: int
    epoch: int
    seq: int
    metrics: dict[str, Value]
    quality: str = ""

    @property
    def row_time_ns(self) -> int:
        """The time of its row in every store: a resend meets its row, two epochs never merge."""
        return self.time_ms * 1_000_000 + self.epoch % 1_000_000


class Refusal(msgspec.Struct, frozen=True, gc=False):
    """One thing in a pack that was not taken: a whole sample (`metric` empty) or one metric of a stored sample."""

    requirement: str
    detail: str
    epoch: int
    seq: int
    metric: str = ""


class Pack(msgspec.Struct, frozen=True, gc=False):
    """What a payload held: samples to store, and what was refused of it."""

    samples: list[Sample]
    refusals: list[Refusal]


class _Record(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True, gc=False):
    bn: str = ""
    bt: float = 0.0
    bver: int = 0
    n: str = ""
    u: str = ""
    v: float | int | None = None
    vs: str | None = None
    vb: bool | None = None
    t: float = 0.0


_CBOR_LABELS = {-2: "bn", -3: "bt", -1: "bver", 0: "n", 1: "u", 2: "v", 3: "vs", 4: "vb", 6: "t"}
_CBOR_KEYS = {label: key for key, label in _CBOR_LABELS.items()}
_json_records = msgspec.json.Decoder(list[_Record]).decode
_encode_json = msgspec.json.Encoder().encode


class _Rule(msgspec.Struct, frozen=True, gc=False):
    """A metric, ready for the hot loop."""

    metric: Metric
    is_float: bool
    low: float
    high: float
    unit: str


@cache
def _rules(domain: str) -> dict[str, _Rule]:
    rules = {}
    for name, metric in dictionary()[domain].metrics.items():
        low, high = metric.range or (1.0 - MAX_NUMBER, MAX_NUMBER - 1.0)
        rules[name] = _Rule(metric, metric.type == "float", low, high, metric.senml_unit)
    return rules


@cache
def _conversion(source: str, target: str) -> Callable[[float], float] | None:
    return converter(source, target)


# ---------------------------------------------------------------------------------------------------- decoding


def decode_pack(payload: bytes, topic: Topic) -> Pack:
    """Return what a readings payload holds, judged by the dictionary.

    Raises: ReadingError when the payload as a whole cannot be taken; what is wrong with one sample or one metric
    is in the pack's refusals instead.
    """
    if len(payload) > MAX_PACK_BYTES:
        raise ReadingError(
            "EX-R-002", f"{len(payload)} bytes, at most {MAX_PACK_BYTES} are allowed"
        )
    records = _read_json(payload) if payload[:1] == b"[" else _read_cbor(payload)
    if not records:
        raise ReadingError("EX-R-001", "an empty pack")
    first = records[0]
    if first.bn != f"{topic.county}:{topic.device}:":
        raise ReadingError(
            "EX-R-003",
            f"bn is {first.bn!r}, the topic says '{topic.county}:{topic.device}:'",
            place="record 0",
        )
    return _PackReader(topic.domain, first.bver, _epoch_of(records)).read(records)


def _read_json(payload: bytes) -> list[_Record]:
    try:
        return _json_records(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _unreadable(error) from error


def _read_cbor(payload: bytes) -> list[_Record]:
    try:
        stream = io.BytesIO(payload)
        items = cbor2.load(stream)
        if stream.tell() != len(payload):
            raise ValueError(f"{len(payload) - stream.tell()} bytes after the pack")
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            raise ValueError("expected an array of maps")
        named = [
            {_CBOR_LABELS.get(key, key): value for key, value in item.items()} for item in items
        ]
        return msgspec.convert(named, list[_Record], str_keys=False)
    except (
        cbor2.CBORError,
        ValueError,
        TypeError,
        OverflowError,
        RecursionError,
        msgspec.ValidationError,
    ) as error:
        raise _unreadable(error) from error


def _unreadable(error: Exception) -> ReadingError:
    text = str(error)
    if "unknown field" in text:
        return ReadingError("EX-R-004", f"only bn bt bver n u v vs vb t are allowed: {text}")
    return ReadingError("EX-R-001", f"not a SenML pack in JSON or CBOR: {text}")


def _epoch_of(records: Sequence[_Record]) -> int:
    found = [record for record in records if record.n == "epoch"]
    if len(found) != 1:
        raise ReadingError("EX-R-006", f"{len(found)} epoch records, exactly one is required")
    epoch = _whole(found[0].v)
    if epoch is None or not 0 <= epoch < MAX_NUMBER:
        raise ReadingError(
            "EX-R-006", f"epoch is {found[0].v!r}, expected a whole number of milliseconds"
        )
    return epoch


def _whole(value: object) -> int | None:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return None


class _PackReader:
    """Turns the records of one pack into samples; one instance a pack."""

    def __init__(self, domain: str, bver: int, epoch: int) -> None:
        self.rules = _rules(domain)
        self.domain = domain
        self.bver = bver
        self.epoch = epoch
        self.samples: list[Sample] = []
        self.refusals: list[Refusal] = []
        self.last_ms = -1
        self.last_seq = -1
        # the sample that is being read
        self.metrics: dict[str, Value] = {}
        self.seq: int | None = None
        self.quality = ""
        self.out_of_range: list[tuple[str, Value]] = []
        self.refused: list[tuple[str, str, str]] = []

    def read(self, records: Sequence[_Record]) -> Pack:
        rules = self.rules
        bt = t = 0.0
        time_ms = -1
        for index, record in enumerate(records):
            if record.bt or record.t != t or not index:
                bt = record.bt or bt
                t = record.t
                now_ms = self._time_ms(bt, t, index)
                if now_ms != time_ms:
                    if index:
                        self._close(time_ms)
                    time_ms = now_ms
            if index and (record.bn or record.bver):
                raise ReadingError(
                    "EX-R-003",
                    "bn and bver stand in the first record only",
                    place=f"record {index}",
                )
            name = record.n
            value = record.v
            rule = rules.get(name)
            if (
                rule is not None
                and rule.is_float
                and value is not None
                and rule.low <= value <= rule.high
                and (not record.u or (record.u == rule.unit and self.bver == SECONDARY_BVER))
                and record.vb is None
                and record.vs is None
                and name not in self.metrics
            ):
                self.metrics[name] = float(value)
            elif name == "seq":
                self._take_seq(record, index)
            elif name != "epoch":
                self._take_slowly(record, rule, index)
        self._close(time_ms)
        return Pack(self.samples, self.refusals)

    @staticmethod
    def _time_ms(bt: float, t: float, index: int) -> int:
        seconds = bt + t
        if not bt or not MIN_ABSOLUTE_S <= seconds < MAX_ABSOLUTE_S:
            raise ReadingError(
                "EX-R-005",
                f"bt + t = {seconds!r} is not an absolute time in seconds",
                place=f"record {index}",
            )
        return round(1000 * seconds)

    def _take_seq(self, record: _Record, index: int) -> None:
        seq = _whole(record.v)
        if (
            seq is None
            or not 0 <= seq < MAX_NUMBER
            or record.vs is not None
            or record.vb is not None
        ):
            raise ReadingError(
                "EX-R-007", f"seq is {record.v!r}, expected 0, 1, 2 …", place=f"record {index}"
            )
        if self.seq is not None:
            raise ReadingError("EX-R-007", "two seq records at one time", place=f"record {index}")
        self.seq = seq

    def _take_slowly(self, record: _Record, rule: _Rule | None, index: int) -> None:
        """Take or refuse a record that the hot loop did not simply accept."""
        name = record.n
        given = (record.v is not None) + (record.vs is not None) + (record.vb is not None)
        if given != 1 or not name:
            raise ReadingError(
                "EX-R-001",
                "a record has a name and exactly one of v, vs, vb",
                place=f"record {index}",
            )
        if name == "quality":
            self._take_quality(record)
        elif name in self.metrics or any(name == other for other, _ in self.out_of_range):
            self._refuse_metric(name, "EX-R-017", "given twice in one sample")
        elif rule is not None:
            self._take_metric(name, record, rule)
        elif VENDOR_METRIC.fullmatch(name):
            self._take_vendor(name, record)
        else:
            self._refuse_metric(
                name,
                "EX-R-009",
                f"not in the dictionary of {self.domain} and not x-{{vendor}}-{{name}}",
            )

    def _take_quality(self, record: _Record) -> None:
        if self.quality or record.vs is None or not _is_quality(record.vs):
            self._refuse_metric(
                "quality",
                "EX-R-015",
                f"{record.vs!r} is not uncertain|bad:reason or …:reason(metric), reasons {' '.join(REASONS)}",
            )
        else:
            self.quality = record.vs

    def _take_metric(self, name: str, record: _Record, rule: _Rule) -> None:
        value: Value
        if rule.metric.type == "boolean":
            if record.vb is None:
                self._refuse_metric(name, "EX-R-010", "a boolean travels as vb")
                return
            if record.u:
                self._refuse_metric(name, "EX-R-012", "a boolean has no unit")
                return
            self.metrics[name] = record.vb
            return
        if record.v is None:
            self._refuse_metric(name, "EX-R-010", f"a number ({rule.metric.type}) is expected in v")
            return
        number = record.v
        if not -MAX_NUMBER < number < MAX_NUMBER:
            self._refuse_metric(name, "EX-R-016", f"{number!r} is not below 2^53")
            return
        if record.u:
            if record.u in SECONDARY and self.bver != SECONDARY_BVER:
                self._refuse_metric(
                    name,
                    "EX-R-013",
                    f"unit {record.u!r} is secondary and needs bver {SECONDARY_BVER}",
                )
                return
            if record.u != rule.unit:
                convert = (
                    _conversion(record.u, rule.metric.unit)
                    if rule.metric.senml_unit or record.u in SECONDARY
                    else None
                )
                if convert is None:
                    self._refuse_metric(
                        name,
                        "EX-R-012",
                        f"unit {record.u!r} does not convert exactly to {rule.metric.unit or 'no unit'!r}",
                    )
                    return
                number = convert(number)
        value = float(number)
        if rule.metric.type == "integer":
            whole = _whole(number)
            if whole is None:
                self._refuse_metric(name, "EX-R-010", f"{number!r} is not a whole number")
                return
            value = whole
        if rule.low <= value <= rule.high:
            self.metrics[name] = value
        else:
            self.out_of_range.append((name, value))

    def _take_vendor(self, name: str, record: _Record) -> None:
        if record.v is None:
            self._refuse_metric(name, "EX-R-010", "a vendor's metric is a number in v")
        elif not -MAX_NUMBER < record.v < MAX_NUMBER:
            self._refuse_metric(name, "EX-R-016", f"{record.v!r} is not below 2^53")
        else:
            self.metrics[name] = float(record.v)

    def _refuse_metric(self, name: str, requirement: str, detail: str) -> None:
        self.refused.append((name, requirement, detail))

    def _close(self, time_ms: int) -> None:
        """End the sample that is being read, if there is one, and begin the next."""
        seq = self.seq
        if seq is None:
            if self.metrics or self.out_of_range or self.refused or self.quality:
                raise ReadingError("EX-R-007", f"the sample at {time_ms} ms has no seq")
            return
        if self.out_of_range:
            marked = _marked(self.quality)
            for name, value in self.out_of_range:
                if "" in marked or name in marked:
                    self.metrics[name] = value
                else:
                    rule = self.rules[name]
                    self._refuse_metric(
                        name, "EX-R-011", f"{value!r} is outside {rule.low:g} … {rule.high:g}"
                    )
        if time_ms <= self.last_ms or seq <= self.last_seq:
            self.refusals.append(
                Refusal(
                    "EX-R-008",
                    f"seq {seq} at {time_ms} ms after seq {self.last_seq} at {self.last_ms} ms",
                    self.epoch,
                    seq,
                )
            )
        else:
            self.last_ms, self.last_seq = time_ms, seq
            self.samples.append(Sample(time_ms, self.epoch, seq, self.metrics, self.quality))
            if self.refused:
                self.refusals += [
                    Refusal(requirement, detail, self.epoch, seq, name)
                    for name, requirement, detail in self.refused
                ]
        self.metrics = {}
        self.seq = None
        self.quality = ""
        if self.out_of_range or self.refused:
            self.out_of_range = []
            self.refused = []


def _is_quality(text: str) -> bool:
    return bool(text) and all(_MARK.fullmatch(mark) for mark in text.split(";"))


def _marked(quality: str) -> frozenset[str]:
    """Return the metrics that a quality string marks; `""` in it means all of them."""
    return frozenset(
        match[3] or "" for mark in quality.split(";") if (match := _MARK.fullmatch(mark))
    )


# ---------------------------------------------------------------------------------------------------- encoding


def encode_pack(topic: Topic, samples: Sequence[Sample], form: PackFormat = "json") -> bytes:
    """Return the pack of one device's samples, all of one epoch, in ascending order of time and seq.

    Raises: ReadingError when the samples cannot form one pack.
    """
    if not samples or any(sample.epoch != samples[0].epoch for sample in samples):
        raise ReadingError("EX-R-006", "a pack holds samples of exactly one epoch")
    rules = _rules(topic.domain)
    records: list[dict[str, object]] = [
        {
            "bn": f"{topic.county}:{topic.device}:",
            "bt": samples[0].time_ms / 1000,
            "bver": SECONDARY_BVER,
            "n": "epoch",
            "v": samples[0].epoch,
        }
    ]
    for position, sample in enumerate(samples):
        head: dict[str, object] = {"n": "seq", "v": sample.seq}
        if position:
            head["bt"] = sample.time_ms / 1000
        records.append(head)
        records += [_record(name, value, rules.get(name)) for name, value in sample.metrics.items()]
        if sample.quality:
            records.append({"n": "quality", "vs": sample.quality})
    if form == "json":
        return _encode_json(records)
    return cbor2.dumps(
        [{_CBOR_KEYS[label]: value for label, value in record.items()} for record in records]
    )


def _record(name: str, value: Value, rule: _Rule | None) -> dict[str, object]:
    if isinstance(value, bool):
        return {"n": name, "vb": value}
    if rule is not None and rule.unit:
        return {"n": name, "u": rule.unit, "v": value}
    return {"n": name, "v": value}


def is_metric_name(domain: str, name: str) -> bool:
    """Say whether a sample of this domain may carry this metric."""
    return name not in RESERVED and (
        name in dictionary()[domain].metrics or VENDOR_METRIC.fullmatch(name) is not None
    )
