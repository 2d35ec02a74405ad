"""Readings: samples of one device as a SenML pack (RFC 8428), JSON or CBOR.

Records of one time form one sample. A pack names the device's `epoch` once; each sample carries its `seq`, so that
(device, epoch, seq) names it for ever.

Two readers, one meaning: nearly every pack is ordinary - our own gateways write no other - and msgspec judges it whole,
against types made from the dictionary. Whatever those types do not take goes to the reader that knows all the rules
and says which one is broken. A property test holds the two to the same answers.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache, lru_cache
from itertools import chain
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias, Union

import cbor2
import msgspec
from msgspec import UNSET, Meta, UnsetType

from exchange.dictionary import RESERVED, VENDOR_METRIC, Metric, dictionary
from exchange.errors import ReadingError
from exchange.topics import END, Topic
from exchange.units import BASE_BVER, SECONDARY, SECONDARY_BVER, converter, is_registered

Value: TypeAlias = float | int | bool
PackFormat = Literal["json", "cbor"]

MAX_PACK_BYTES = 256 * 1024
MAX_NUMBER = 2**53  # JSON numbers are doubles; above this integers blur
MIN_ABSOLUTE_S = 2**28  # RFC 8428 section 4.5.3: smaller times are relative to now
MAX_ABSOLUTE_S = 9_223_372_036  # a 64-bit nanosecond clock ends here

REASONS = ("range", "rate", "stuck", "warmup", "saturated", "fault", "clock", "comm")
QUALITY_MARK = rf"(uncertain|bad):({'|'.join(REASONS)})(?:\(([a-z0-9_.-]+)\))?"
QUALITY = f"^{QUALITY_MARK}(;{QUALITY_MARK})*{END}"
_MARK = re.compile(QUALITY_MARK)


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


# ---------------------------------------------------------------------------------------------------- decoding


def decode_pack(payload: bytes, topic: Topic) -> Pack:
    """Return what a readings payload holds, judged by the dictionary.

    Raises: ReadingError when the payload as a whole cannot be taken; what is wrong with one sample or one metric
    is in the pack's refusals instead.
    """
    return PackReader(topic).read(payload)


class PackReader:
    """Reads the packs of one topic; what its topic says is worked out once."""

    __slots__ = ("_bn", "_columns", "_convert", "_decode", "_domain")

    def __init__(self, topic: Topic) -> None:
        self._bn = f"{topic.county}:{topic.device}:"
        self._domain = topic.domain
        self._decode, self._convert, self._columns = _ordinary(topic.domain)

    def read(self, payload: bytes) -> Pack:
        """Return what a payload holds. Raises: ReadingError, as `decode_pack`."""
        rows, items = self._ordinary_rows(payload)
        if rows:
            return Pack([_sample_of(row) for row in rows], [])
        return self._by_the_rules(payload, items)

    def rows(self, payload: bytes) -> tuple[list[Row], Sequence[Refusal]]:
        """Return what a payload holds as a store keeps it, and what was refused. Raises: as `read`.

        Shape: the refusals are ORDINARY when no rule but the dictionary's was needed: then no vendor's metric is there.
        """
        rows, items = self._ordinary_rows(payload)
        if rows:
            return rows, ORDINARY
        pack = self._by_the_rules(payload, items)
        return [row_of(sample) for sample in pack.samples], pack.refusals

    def _ordinary_rows(
        self, payload: bytes
    ) -> tuple[list[Row] | None, Sequence[dict[str, object]]]:
        """Return the rows if the pack is ordinary, and the maps it came as if it came as CBOR."""
        if len(payload) > MAX_PACK_BYTES:
            raise ReadingError(
                "EX-R-002", f"{len(payload)} bytes, at most {MAX_PACK_BYTES} are allowed"
            )
        items: Sequence[dict[str, object]] = _NOTHING
        try:
            if payload[:1] == b"[":
                return _rows(self._decode(payload), self._columns, self._bn), items
            items = _cbor_items(payload)
            return _rows(self._convert(items), self._columns, self._bn), items
        except _NOT_TAKEN:
            return None, items  # the other reader says why

    def _by_the_rules(self, payload: bytes, items: Sequence[dict[str, object]]) -> Pack:
        records = _cbor_records(items) if items else _json_records(payload)
        return _read(records, self._domain, self._bn)


class Row(msgspec.Struct, frozen=True, gc=False):
    """A sample as every store keeps it: its key's time, and `epoch`, `seq`, `quality` beside the metrics."""

    time_ns: int
    fields: dict[str, Value | str]


def row_of(sample: Sample) -> Row:
    """Return the row of a sample."""
    fields: dict[str, Value | str] = {"epoch": sample.epoch, "seq": sample.seq, **sample.metrics}
    if sample.quality:
        fields["quality"] = sample.quality
    return Row(sample.row_time_ns, fields)


# -------------------------------------------------------------------------------------- the ordinary pack, fast

Whole = Annotated[int, Meta(ge=0, lt=MAX_NUMBER)]
_Absolute = Annotated[float, Meta(ge=MIN_ABSOLUTE_S, lt=MAX_ABSOLUTE_S)]
_NOTHING: Sequence[Any] = ()
ORDINARY: Sequence[Refusal] = ()
_NOT_TAKEN = (ValueError, LookupError, RecursionError)  # msgspec's errors are ValueErrors


class _Epoch(msgspec.Struct, tag_field="n", tag="epoch", forbid_unknown_fields=True, gc=False):
    bn: str
    bt: _Absolute
    bver: Literal[26]
    v: Whole


class _Seq(msgspec.Struct, tag_field="n", tag="seq", forbid_unknown_fields=True, gc=False):
    v: Whole
    bt: _Absolute | UnsetType = UNSET


class _Quality(msgspec.Struct, tag_field="n", tag="quality", forbid_unknown_fields=True, gc=False):
    v: Annotated[str, Meta(pattern=QUALITY)] = msgspec.field(name="vs")


class _Ordinary(NamedTuple):
    """How a domain's ordinary records are read, from JSON and from CBOR's maps, and which field each type is."""

    decode: Callable[[bytes], list[Any]]
    convert: Callable[[Sequence[dict[str, object]]], list[Any]]
    columns: dict[type, str]


@cache
def _ordinary(domain: str) -> _Ordinary:
    names: dict[type, str] = {
        _metric_record(name, metric): name for name, metric in dictionary()[domain].metrics.items()
    }
    names[_Quality] = "quality"
    records = list[Union[_Epoch, _Seq, *names]]  # type: ignore[valid-type]  # made from the dictionary
    # msgspec remembers what it worked out of a struct, not of a list: hence the box.
    box: Any = msgspec.defstruct("_Box", [("records", records)], array_like=True, gc=False)
    return _Ordinary(
        decode=msgspec.json.Decoder(records).decode,
        convert=lambda items: msgspec.convert((items,), box).records,
        columns={**names, _Epoch: "epoch"},
    )


def _metric_record(name: str, metric: Metric) -> type[msgspec.Struct]:
    """Return the type of a record that gives this metric in its own unit, type and range."""
    if metric.type == "boolean":
        value: Any = msgspec.field(name="vb")
        fields: list[Any] = [("v", bool, value)]
    else:
        limits = metric.range or (1 - MAX_NUMBER, MAX_NUMBER - 1)
        number = int if metric.type == "integer" else float
        low, high = (number(limit) for limit in limits)
        fields = [("v", Annotated[number, Meta(ge=low, le=high)])]
        if unit := metric.senml_unit:
            fields.append(("u", Literal[unit], unit))
    return msgspec.defstruct(
        "_Metric", fields, tag_field="n", tag=name, forbid_unknown_fields=True, gc=False
    )


def _rows(records: list[Any], columns: dict[type, str], bn: str) -> list[Row] | None:
    """Return the rows of ordinary records in ordinary order; None, or an error, when they are not."""
    first = records[0]
    if type(first) is not _Epoch or first.bn != bn or type(records[1]) is not _Seq:
        return None
    epoch = first.v
    key_ns = epoch % 1_000_000
    time_ms = round(1000 * first.bt)
    last_ms = last_seq = -1
    values = 0
    fields: dict[str, Any] = {}
    rows: list[Row] = []
    for record in records:
        kind = type(record)
        if kind is _Seq:
            values += len(fields)
            seq = record.v
            if record.bt is not UNSET:
                time_ms = round(1000 * record.bt)
            if time_ms <= last_ms or seq <= last_seq:
                return None
            last_ms, last_seq = time_ms, seq
            fields = {"epoch": epoch, "seq": seq}
            rows.append(Row(time_ms * 1_000_000 + key_ns, fields))
        else:
            fields[columns[kind]] = record.v
    values += len(fields) - len(rows)
    return rows if values == len(records) else None  # else a metric is given twice


def _sample_of(row: Row) -> Sample:
    """Return the sample of a row, as `row_of` the other way."""
    fields: dict[str, Any] = dict(row.fields)
    epoch, seq, quality = fields.pop("epoch"), fields.pop("seq"), fields.pop("quality", "")
    return Sample(row.time_ns // 1_000_000, epoch, seq, fields, quality)


# ---------------------------------------------------------------------------------------- any pack, by the rules


class _Record(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    n: str = ""
    v: float | UnsetType = UNSET  # whole numbers are exact as doubles below 2^53
    u: str = ""
    t: float = 0.0
    vs: str | UnsetType = UNSET
    vb: bool | UnsetType = UNSET
    bn: str | UnsetType = UNSET
    bt: float | UnsetType = UNSET
    bver: Literal[10, 26] | UnsetType = UNSET


_decode_records = msgspec.json.Decoder(list[_Record]).decode
_LABELS = {-3: "bt", -2: "bn", -1: "bver", 0: "n", 1: "u", 2: "v", 3: "vs", 4: "vb", 6: "t"}


def _json_records(payload: bytes) -> list[_Record]:
    try:
        return _decode_records(payload)
    except (ValueError, RecursionError) as error:
        raise _unreadable(error) from error


def _decimal_fraction(content: object, _immutable: bool) -> float:
    match content:
        case [int() as exponent, int() as mantissa] if abs(exponent) <= 400:
            return float(f"{mantissa}e{exponent}")
    raise ReadingError("EX-R-016", "a decimal fraction is [exponent, mantissa], of a double's size")


def _bignum(_content: object, _immutable: bool) -> int:
    raise ReadingError("EX-R-016", "a bignum is not below 2^53")


def _other_tag(_content: object, _immutable: bool) -> object:
    raise ReadingError("EX-R-001", "no CBOR tag but 4, a decimal fraction, is used")


class _Tags(dict[int, Callable[[Any, bool], Any]]):
    """What SenML has tags for (RFC 8428 section 6); the content of others may take seconds to decode."""

    def __missing__(self, tag: int) -> Callable[[Any, bool], Any]:
        return _other_tag


_TAGS = _Tags({2: _bignum, 3: _bignum, 4: _decimal_fraction})
_JSON_BEGINS = frozenset({b"{", b" ", b"\t", b"\n", b"\r"})  # none of them begins an array in CBOR
_CBOR_DEPTH = 8  # a pack needs 4: array, map, tag, array


def _cbor_items(payload: bytes) -> list[dict[str, object]]:
    """Return the pack's maps, by JSON's labels."""
    if payload[:1] in _JSON_BEGINS:
        begins = payload[:1].decode()
        raise ReadingError("EX-R-001", f"a pack in JSON begins with '[', this one with {begins!r}")
    stream = io.BytesIO(payload)
    try:
        items = cbor2.load(stream, semantic_decoders=_TAGS, max_depth=_CBOR_DEPTH)
    except (cbor2.CBORError, ValueError, TypeError) as error:
        raise _unreadable(error) from error
    if stream.tell() != len(payload):
        raise ReadingError("EX-R-001", f"{len(payload) - stream.tell()} bytes follow the pack")
    if type(items) is not list or not items or set(map(type, items)) != {dict}:
        raise ReadingError("EX-R-001", "a pack is an array of maps, at least one")
    # By type too: True and 1.0 would pass for the label 1.
    if not set(map(type, chain.from_iterable(items))) <= {int}:
        raise ReadingError("EX-R-004", "labels are the whole numbers of RFC 8428, table 4")
    try:
        return [{_LABELS[label]: value for label, value in item.items()} for item in items]
    except KeyError as error:
        raise ReadingError(
            "EX-R-004", f"{_shown(error.args[0])} is not the label of bn bt bver n u v vs vb t"
        ) from error


def _cbor_records(items: Sequence[dict[str, object]]) -> list[_Record]:
    try:
        return msgspec.convert(items, list[_Record])
    except msgspec.ValidationError as error:
        raise _unreadable(error) from error


def _unreadable(error: Exception) -> ReadingError:
    if isinstance(error.__cause__, ReadingError):  # raised at a tag
        return error.__cause__
    text = str(error)[:200]
    if "unknown field" in text:
        return ReadingError("EX-R-004", f"only bn bt bver n u v vs vb t are allowed: {text}")
    if text.endswith(".bver`"):
        return ReadingError("EX-R-018", f"bver is {BASE_BVER} or {SECONDARY_BVER}: {text}")
    if "out of range" in text:
        return ReadingError("EX-R-016", text)
    return ReadingError("EX-R-001", f"not a SenML pack in JSON or CBOR: {text}")


def _shown(value: object) -> str:
    """Return a value for people, short whatever it is."""
    text = "missing" if value is UNSET else repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"


def _read(records: list[_Record], domain: str, bn: str) -> Pack:
    """Return what these records hold. Raises: ReadingError when they cannot be taken as a whole."""
    if not records:
        raise ReadingError("EX-R-001", "an empty pack")
    _check_heads(records, bn)
    epoch = _epoch(records)
    secondary = records[0].bver == SECONDARY_BVER
    samples: list[Sample] = []
    refusals: list[Refusal] = []
    last_ms = last_seq = -1
    for time_ms, group in _by_time(records):
        seq = _seq(time_ms, group)
        metrics, quality, refused = _judge(group, domain, secondary)
        if time_ms <= last_ms or seq <= last_seq:
            detail = f"seq {seq} at {time_ms} ms after seq {last_seq} at {last_ms} ms"
            refusals.append(Refusal("EX-R-008", detail, epoch, seq))
            continue
        last_ms, last_seq = time_ms, seq
        samples.append(Sample(time_ms, epoch, seq, metrics, quality))
        refusals += [
            Refusal(broken.requirement, broken.detail, epoch, seq, name) for name, broken in refused
        ]
    return Pack(samples, refusals)


def _check_heads(records: list[_Record], bn: str) -> None:
    """Check that bn and bver stand in the first record alone, and that every record gives one value."""
    if records[0].bn != bn:
        raise ReadingError(
            "EX-R-003", f"bn is {_shown(records[0].bn)}, the topic says {bn!r}", place="record 0"
        )
    for index, record in enumerate(records):
        if record.bn is not UNSET and index:
            raise ReadingError("EX-R-003", "a second bn", place=f"record {index}")
        if record.bver is not UNSET and index:
            raise ReadingError("EX-R-018", "a second bver", place=f"record {index}")
        missing = (record.v is UNSET) + (record.vs is UNSET) + (record.vb is UNSET)
        if missing != 2 or not record.n:
            raise ReadingError(
                "EX-R-001",
                "a record has a name and exactly one of v, vs, vb",
                place=f"record {index}",
            )


def _epoch(records: list[_Record]) -> int:
    found = [record for record in records if record.n == "epoch"]
    if len(found) != 1:
        raise ReadingError("EX-R-006", f"{len(found)} epoch records, exactly one is required")
    return _count(found[0], "EX-R-006")


def _seq(time_ms: int, group: list[_Record]) -> int:
    found = [record for record in group if record.n == "seq"]
    if len(found) != 1:
        raise ReadingError(
            "EX-R-007", f"{len(found)} seq records, exactly one is required", place=f"{time_ms} ms"
        )
    return _count(found[0], "EX-R-007")


def _count(record: _Record, requirement: str) -> int:
    """Return the whole number that an epoch or a seq is."""
    value = record.v
    if value is UNSET or record.u or not 0 <= value < MAX_NUMBER or not value.is_integer():
        raise ReadingError(
            requirement, f"{record.n} is a whole number from 0 below 2^53 in v, without a unit"
        )
    return int(value)


def _by_time(records: list[_Record]) -> Iterator[tuple[int, list[_Record]]]:
    """Yield each time and its records, of which epoch is none."""
    bt, t, time_ms = 0.0, 0.0, -1
    group: list[_Record] = []
    for index, record in enumerate(records):
        if record.bt is not UNSET or record.t != t or not index:
            bt = bt if record.bt is UNSET else record.bt
            t = record.t
            if not (bt >= MIN_ABSOLUTE_S and MIN_ABSOLUTE_S <= bt + t < MAX_ABSOLUTE_S):
                raise ReadingError(
                    "EX-R-005",
                    f"bt {bt!r} and bt + t {bt + t!r} must be seconds since 1970",
                    place=f"record {index}",
                )
            record_ms = round(1000 * (bt + t))
            if group and record_ms != time_ms:
                yield time_ms, group
                group = []
            time_ms = record_ms
        if record.n != "epoch":
            group.append(record)
    if group:
        yield time_ms, group


class _Broken(Exception):
    """One metric is refused; never leaves this file."""

    def __init__(self, requirement: str, detail: str) -> None:
        super().__init__(requirement)
        self.requirement, self.detail = requirement, detail


def _judge(
    group: list[_Record], domain: str, secondary: bool
) -> tuple[dict[str, Value], str, list[tuple[str, _Broken]]]:
    """Return a sample's metrics, its quality, and what of it is refused, by metric."""
    rules = dictionary()[domain].metrics
    metrics: dict[str, Value] = {}
    refused: list[tuple[str, _Broken]] = []
    quality = ""
    for record in group:
        if record.n == "quality":
            try:
                quality = _quality(record, quality)
            except _Broken as broken:
                refused.append(("quality", broken))
    marked = _marked(quality) if quality else set()
    for record in group:
        name = record.n
        if name in RESERVED:
            continue
        try:
            if name in metrics:
                raise _Broken("EX-R-017", "given twice in one sample")
            rule = rules.get(name)
            if rule is None:
                metrics[name] = _vendor_value(record, domain, secondary)
            else:
                metrics[name] = _value(record, rule, secondary, "" in marked or name in marked)
        except _Broken as broken:
            refused.append((name, broken))
    return metrics, quality, refused


def _quality(record: _Record, earlier: str) -> str:
    if earlier:
        raise _Broken("EX-R-017", "given twice in one sample")
    if record.u:
        raise _Broken("EX-R-012", "a quality has no unit")
    text = record.vs
    if text is UNSET or not all(_MARK.fullmatch(mark) for mark in text.split(";")):
        raise _Broken(
            "EX-R-015",
            f"{_shown(text)} is not uncertain|bad:reason or …:reason(metric), reasons {' '.join(REASONS)}",
        )
    return text


def _marked(quality: str) -> set[str]:
    """Return the metrics that a quality marks; `""` among them means all."""
    return {match[3] or "" for mark in quality.split(";") if (match := _MARK.fullmatch(mark))}


def _value(record: _Record, rule: Metric, secondary: bool, is_marked: bool) -> Value:
    """Return a dictionary metric's value in the dictionary's unit and type. Raises: _Broken."""
    if rule.type == "boolean":
        if record.vb is UNSET:
            raise _Broken("EX-R-010", "a boolean travels as vb")
        if record.u:
            raise _Broken("EX-R-012", "a boolean has no unit")
        return record.vb
    number = _number(record, secondary)
    if record.u and record.u != rule.unit:
        convert = _converter(record.u, rule.unit)
        if convert is None:
            raise _Broken(
                "EX-R-012", f"{_shown(record.u)} does not convert to {rule.unit or 'no unit'!r}"
            )
        number = convert(number)
        if not -MAX_NUMBER < number < MAX_NUMBER:
            raise _Broken("EX-R-016", f"{number!r} {rule.unit} is not below 2^53")
    if rule.type == "integer" and not number.is_integer():
        raise _Broken("EX-R-010", f"{number!r} is not a whole number")
    if rule.range and not is_marked and not rule.range[0] <= number <= rule.range[1]:
        raise _Broken(
            "EX-R-011", f"{number!r} is outside {rule.range[0]:g} … {rule.range[1]:g} {rule.unit}"
        )
    return int(number) if rule.type == "integer" else number


def _vendor_value(record: _Record, domain: str, secondary: bool) -> float:
    if not _is_vendor_metric(record.n):
        raise _Broken(
            "EX-R-009",
            f"{_shown(record.n)} is not in the dictionary of {domain} and not x-{{vendor}}-{{name}}",
        )
    return _number(record, secondary)


def _number(record: _Record, secondary: bool) -> float:
    """Return the number in `v`, having judged the unit beside it as SenML does."""
    value = record.v
    if value is UNSET:
        raise _Broken("EX-R-010", "a number in v is expected")
    if not -MAX_NUMBER < value < MAX_NUMBER:  # NaN too
        raise _Broken("EX-R-016", f"{value!r} is not below 2^53")
    if unit := record.u:
        if not is_registered(unit):
            raise _Broken("EX-R-012", f"{_shown(unit)} is not a unit of SenML")
        if unit in SECONDARY and not secondary:
            raise _Broken("EX-R-013", f"unit {unit!r} needs bver {SECONDARY_BVER}")
    return value


@cache
def _converter(source: str, target: str) -> Callable[[float], float] | None:
    return converter(source, target)


@lru_cache(maxsize=4096)
def _is_vendor_metric(name: str) -> bool:
    return VENDOR_METRIC.fullmatch(name) is not None


# ---------------------------------------------------------------------------------------------------- encoding

_CBOR_LABELS = {name: label for label, name in _LABELS.items()}
_encode_json = msgspec.json.Encoder().encode


def encode_pack(topic: Topic, samples: Sequence[Sample], form: PackFormat = "json") -> bytes:
    """Return the pack of one device's samples, all of one epoch, in ascending order of time and seq.

    A value that is not finite is left out: SenML has none, and no number stands for it. The caller sees to the size.

    Raises: ReadingError when the samples are not of one epoch.
    """
    if not samples or any(sample.epoch != samples[0].epoch for sample in samples):
        raise ReadingError("EX-R-006", "a pack holds samples of exactly one epoch")
    first = samples[0]
    epoch: _Written = {
        "bn": f"{topic.county}:{topic.device}:",
        "bt": first.time_ms / 1000,
        "bver": SECONDARY_BVER,
        "n": "epoch",
        "v": first.epoch,
    }
    if form == "json":
        parts = [_encode_json(epoch)]
        for sample in samples:
            parts.append(_encode_json(_seq_record(sample, first)))
            parts += _json_records_of(topic.domain, sample)
        return b"[" + b",".join(parts) + b"]"
    records = [epoch]
    for sample in samples:
        records.append(_seq_record(sample, first))
        records += _records_of(topic.domain, sample)
    return cbor2.dumps(
        [{_CBOR_LABELS[key]: value for key, value in record.items()} for record in records]
    )


_Written: TypeAlias = dict[str, object]


def _seq_record(sample: Sample, first: Sample) -> _Written:
    head: _Written = {"n": "seq", "v": sample.seq}
    if sample is not first:
        head["bt"] = sample.time_ms / 1000
    return head


def _records_of(domain: str, sample: Sample) -> list[_Written]:
    """Return a sample's metrics, and its quality."""
    units = _units(domain)
    records: list[_Written] = []
    for name, value in sample.metrics.items():
        if isinstance(value, bool):
            records.append({"n": name, "vb": value})
        elif not math.isfinite(value):
            continue
        elif unit := units.get(name):
            records.append({"n": name, "u": unit, "v": value})
        else:
            records.append({"n": name, "v": value})
    if sample.quality:
        records.append({"n": "quality", "vs": sample.quality})
    return records


def _json_records_of(domain: str, sample: Sample) -> list[bytes]:
    """Return `_records_of` in JSON. Floats, which most are, are written into a form: half the cost of a record each."""
    values = sample.metrics.values()
    if not sample.quality and set(map(type, values)) == {float} and math.isfinite(sum(values)):
        numbers = _encode_json(list(values))[1:-1].split(b",")
        return [_form(domain, tuple(sample.metrics)) % tuple(numbers)]
    return [_encode_json(record) for record in _records_of(domain, sample)]


@lru_cache(maxsize=1024)
def _form(domain: str, names: tuple[str, ...]) -> bytes:
    """Return the JSON of these metrics, with a place for each number."""
    filled = Sample(0, 0, 0, dict.fromkeys(names, 0.5))
    texts = [_encode_json(record).replace(b"%", b"%%") for record in _records_of(domain, filled)]
    return b",".join(text.removesuffix(b"0.5}") + b"%b}" for text in texts)


@cache
def _units(domain: str) -> dict[str, str]:
    return {name: metric.senml_unit for name, metric in dictionary()[domain].metrics.items()}


def is_metric_name(domain: str, name: str) -> bool:
    """Say whether a sample of this domain may carry this metric."""
    return name not in RESERVED and (
        name in dictionary()[domain].metrics or VENDOR_METRIC.fullmatch(name) is not None
    )
