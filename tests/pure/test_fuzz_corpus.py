"""A seeded corpus of broken messages: each gets the requirement that it breaks, and none breaks its reader.

From valid messages of every kind the corpus is made by named mutations, of which each breaks one known requirement, and
by blind ones, of which nobody knows what they break. ONESTREET_FUZZ_SEED tries another corpus.
"""

from __future__ import annotations

import json
import logging
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from itertools import chain
from random import Random
from typing import Any, NamedTuple, TypeVar

import cbor2
import mqtt5
import pytest

from exchange.commands import decode_command, decode_result
from exchange.dictionary import Metric, dictionary
from exchange.errors import ContractError
from exchange.readings import (
    MAX_ABSOLUTE_S,
    MAX_NUMBER,
    MAX_PACK_BYTES,
    REASONS,
    PackReader,
    Sample,
    decode_pack,
    encode_pack,
)
from exchange.receipts import decode_receipt
from exchange.requirements import REQUIREMENTS
from exchange.states import decode_state
from exchange.topics import Topic, parse_topic
from exchange.units import SECONDARY, SECONDARY_BVER
from ingest.intake import Intake
from tests.packs import CBOR_LABELS, Record, packed

SEED = int(os.environ.get("ONESTREET_FUZZ_SEED", "20261122"))
ROUNDS = 16  # of each mutation, on each kind of message it knows; more than any has ways
BLIND = 10_000

DECODERS: dict[str, Callable[[bytes], object]] = {
    "state": decode_state,
    "commands": decode_command,
    "results": decode_result,
    "receipts": decode_receipt,
}


class Case(NamedTuple):
    """One message, and the requirement it is known to break; empty where nobody knows."""

    name: str
    topic: str
    payload: bytes
    breaks: str


T = TypeVar("T")


class Dice(Random):
    """Chance that can be asked for each of some ways in turn."""

    turn = 0

    def each(self, ways: Sequence[T]) -> T:
        assert len(ways) <= ROUNDS
        return ways[self.turn % len(ways)]


def judged(topic: str, payload: bytes) -> set[str]:
    """What the reader of the topic's channel finds broken. Anything else that it raises is a crash."""
    try:
        parsed = parse_topic(topic)
        if parsed.channel == "readings":
            return {refusal.requirement for refusal in decode_pack(payload, parsed).refusals}
        DECODERS[parsed.channel](payload)
    except ContractError as error:
        return {error.requirement}
    return set()


# ------------------------------------------------------------------------------------- valid messages


def device_topic(random: Random, channel: str) -> Topic:
    domain = random.choice(list(dictionary()))
    gateway = f"gw-{random.randrange(100)}"
    device = gateway if domain == "gateway" else f"dev-{random.randrange(1000)}"
    county = random.choice(["tw-tpe", "tw-nwt", "tw-khh"])
    return parse_topic(
        f"city/v1/{county}/site-{random.randrange(9)}/{gateway}/{domain}/{device}/{channel}"
    )


def value_of(random: Random, metric: Metric) -> float | int | bool:
    low, high = metric.range or (0, 1)
    if metric.type == "boolean":
        return random.random() < 0.5
    if metric.type == "integer":
        return random.randint(int(low), int(high))
    return round(random.uniform(low, high), 3)


def pack_of(random: Random, topic: Topic) -> list[Record]:
    """A valid pack's records: two to four samples, numbers and booleans, a vendor's metric, some marks."""
    metrics = dictionary()[topic.domain].metrics
    time_ms, seq = 1_790_000_000_000 + random.randrange(10**9), random.randrange(1000)
    samples = []
    for _ in range(random.randint(2, 4)):
        names = random.sample(sorted(metrics), random.randint(2, 4))
        values = {name: value_of(random, metrics[name]) for name in names}
        values["x-acme-raw"] = round(random.uniform(-1e6, 1e6), 2)
        mark = random.choice(["", f"uncertain:{random.choice(REASONS)}(x-acme-raw)"])
        samples.append(Sample(time_ms, 1_789_990_000_456, seq, values, mark))
        time_ms += random.randint(1, 60_000)
        seq += random.randint(1, 3)
    records: list[Record] = json.loads(encode_pack(topic, samples))
    return records


EPOCH, UUID = 1_789_990_000_456, "0b6c5d7e-3c53-4b61-9d0f-6f0f6a8f3f10"


def message_of(random: Random, channel: str) -> dict[str, Any]:
    """A valid message of a JSON channel, with every required member."""
    at, later = "2026-09-21T12:00:00.000Z", "2026-09-21T12:01:00.000Z"
    first = random.randrange(1000)
    match channel:
        case "state":
            return {
                "v": 1, "online": random.random() < 0.5, "since": at, "interval_s": random.randint(1, 600),
                "epoch": EPOCH, "descriptor": {
                    "maker": "Acme", "label": {"en": "Lamp", "zh-TW": "路燈"}, "metrics": {"lit": 60},
                    "location": {"lat": 25.0, "lon": 121.5}, "commands": ["set_level"]},
            }  # fmt: skip  # a table
        case "commands":
            return {"id": UUID, "name": "set_level", "args": {"level": random.randint(0, 100)},
                    "issued_at": at, "expires_at": later, "issued_by": "夜班"}  # fmt: skip  # a table
        case "results":
            return {"v": 1, "id": UUID, "status": "done", "at": later,
                    "readback": {"level": random.randint(0, 100)}}  # fmt: skip  # a table
        case _:
            return {"v": 1, "stored": {"aq-7": [[EPOCH, first, first + random.randrange(9)]]},
                    "refused": {"aq-7": [[EPOCH, 3000, 3000, "EX-R-008"]]},
                    "unreadable": [["0" * 64, "EX-R-001"]], "results": [[UUID, "done"]]}  # fmt: skip  # a table


# ------------------------------------------------------------------- mutations that break a known rule


class Draft:
    """A pack about to be broken: its records in JSON's labels, and ways into it."""

    def __init__(self, random: Dice, topic: Topic, form: str) -> None:
        self.random, self.topic, self.form = random, topic, form
        self.records = pack_of(random, topic)
        self.domain = dictionary()[topic.domain]

    def any(self) -> Record:
        return self.random.choice(self.records)

    def named(self, name: str) -> Record:
        return self.random.choice([one for one in self.records if one["n"] == name])

    def numbers(self) -> list[Record]:
        """The records of the dictionary's numbers; one is added where there is none."""
        found = [one for one in self.records if one["n"] in self.domain.metrics and "v" in one]
        if not found:
            name = next(n for n, one in self.domain.metrics.items() if one.type != "boolean")
            found = [{"n": name, "v": (self.domain.metrics[name].range or (0,))[0]}]
            self.records += found
        return found

    def number(self) -> tuple[Record, Metric]:
        record = self.random.choice(self.numbers())
        return record, self.domain.metrics[record["n"]]

    def vendor(self) -> Record:
        return self.named("x-acme-raw")

    def add(self, **labels: Any) -> Record:
        """A record at the end, in the last sample."""
        self.records.append(labels)
        return labels

    def seqs(self) -> list[int]:
        """Where samples begin."""
        return [at for at, one in enumerate(self.records) if one["n"] == "seq"]

    @property
    def payload(self) -> bytes:
        return packed(self.records, "json" if self.form == "json" else "cbor")


Mutation = Callable[[Draft], bytes | None]
MUTATIONS: list[tuple[str, str, tuple[str, ...], Mutation]] = []


def breaks(requirement: str, *forms: str) -> Callable[[Mutation], Mutation]:
    """A mutation of a pack: it changes the draft, or returns a payload of its own."""

    def register(mutation: Mutation) -> Mutation:
        MUTATIONS.append((mutation.__name__, requirement, forms or ("json", "cbor"), mutation))
        return mutation

    return register


@breaks("EX-R-001")
def cut_off(draft: Draft) -> bytes:
    return draft.payload[: draft.random.randrange(len(draft.payload))]


@breaks("EX-R-001")
def something_after_the_pack(draft: Draft) -> bytes:
    return draft.payload + draft.random.each([b"]", b"[]", b"\x00", b"x"])


@breaks("EX-R-001")
def no_value(draft: Draft) -> None:
    record = draft.any()
    for label in ("v", "vs", "vb"):
        record.pop(label, None)


@breaks("EX-R-001")
def two_values(draft: Draft) -> None:
    draft.any().update(draft.random.each([{"v": 1, "vb": True}, {"v": 1, "vs": ""}]))


@breaks("EX-R-001")
def a_value_of_another_kind(draft: Draft) -> None:
    draft.any().update(
        draft.random.each([{"v": "12"}, {"vb": 1}, {"vs": 5}, {"v": None}, {"v": []}])
    )


@breaks("EX-R-001")
def no_name(draft: Draft) -> None:
    draft.random.choice(draft.records[1:])["n"] = draft.random.each(["", 7, None])


@breaks("EX-R-001")
def not_an_array(draft: Draft) -> bytes:
    one: Any = draft.random.each([{}, None, 5, "pack", True, {"e": []}, []])
    return json.dumps(one).encode() if draft.form == "json" else cbor2.dumps(one)


@breaks("EX-R-001")
def an_array_of_others(draft: Draft) -> bytes:
    one: Any = draft.random.each([5, None, "x", []])
    if draft.form == "json":
        return json.dumps([*draft.records, one]).encode()
    return cbor2.dumps([{0: "a"}, one])


@breaks("EX-R-001", "json")
def not_utf8(draft: Draft) -> bytes:
    return draft.payload.replace(b"x-acme-raw", b"x-acme-\xff\xfe")


@breaks("EX-R-001", "json")
def a_lone_surrogate(draft: Draft) -> bytes:
    return draft.payload.replace(b"x-acme-raw", rb"x-acme-\ud800")


@breaks("EX-R-001", "json")
def not_a_number_of_json(draft: Draft) -> bytes:
    draft.vendor()["v"] = 12345
    bad = draft.random.choice(
        [b"NaN", b"Infinity", b"-Infinity", b"0x10", b"01", b"1.", b"+1", b".5"]
    )
    return draft.payload.replace(b"12345", bad)


@breaks("EX-R-001", "cbor")
def a_tag_that_has_no_place(draft: Draft) -> bytes:
    tag = draft.random.each([0, 1, 5, 24, 28, 29, 30, 35, 36, 258, 55799, 2**32])
    draft.vendor()["v"] = cbor2.CBORTag(tag, draft.random.each(["1", 1, [1, 2], b"1"]))
    return draft.payload


@breaks("EX-R-001")
def nested_without_end(draft: Draft) -> bytes:
    depth = draft.random.each([100, 5_000, 100_000])
    opened = b"[" if draft.form == "json" else draft.random.each([b"\x81", b"\x9f", b"\xa1\x00"])
    return opened * depth


@breaks("EX-R-002")
def larger_than_a_pack(draft: Draft) -> bytes:
    return draft.payload + b" " * (MAX_PACK_BYTES + 1 - len(draft.payload))


@breaks("EX-R-003")
def anothers_bn(draft: Draft) -> None:
    bn = draft.records[0]["bn"]
    draft.records[0]["bn"] = draft.random.choice(
        [bn[:-1], bn.upper(), f"{bn}x:", "", "tw-xxx:a:", bn + "\n"]
    )


@breaks("EX-R-003")
def no_bn(draft: Draft) -> None:
    del draft.records[0]["bn"]


@breaks("EX-R-003")
def a_second_bn(draft: Draft) -> None:
    draft.random.choice(draft.records[1:])["bn"] = draft.records[0]["bn"]


@breaks("EX-R-004", "json")
def a_label_too_many(draft: Draft) -> None:
    label = draft.random.each(["bu", "bv", "bs", "s", "ut", "vd", "N", "", "bt_", "路", "v "])
    draft.any()[label] = draft.random.each([1, "W", None, [[[]]]])


@breaks("EX-R-004", "cbor")
def a_label_of_cbor_too_many(draft: Draft) -> bytes:
    label = draft.random.each([-6, -5, -4, 5, 7, 8, 2**40, True, 1.0, "v", b"v"])
    items: list[dict[Any, Any]] = [
        {CBOR_LABELS[name]: value for name, value in one.items()} for one in draft.records
    ]
    at = draft.random.randrange(len(items))
    items[at] = {key: value for key, value in items[at].items() if key != label} | {label: 1}
    return cbor2.dumps(items)


@breaks("EX-R-005")
def a_time_that_is_none(draft: Draft) -> None:
    draft.records[0]["bt"] = draft.random.each([0, 5.5, -1, 2**28 - 1, 1.79e12, MAX_ABSOLUTE_S])


@breaks("EX-R-005")
def no_time(draft: Draft) -> None:
    del draft.records[0]["bt"]


@breaks("EX-R-005")
def a_time_too_far(draft: Draft) -> None:
    draft.records[draft.seqs()[-1]]["t"] = draft.random.each([1e10, -1.7e9, -(2**52)])


@breaks("EX-R-005", "cbor")
def a_time_that_is_not_finite(draft: Draft) -> None:
    draft.records[0]["bt"] = float(draft.random.each(["nan", "inf", "-inf"]))


@breaks("EX-R-006")
def no_epoch(draft: Draft) -> None:
    draft.records[0]["n"] = "x-acme-epoch"


@breaks("EX-R-006")
def a_second_epoch(draft: Draft) -> None:
    draft.add(n="epoch", v=draft.records[0]["v"])


@breaks("EX-R-006")
def an_epoch_that_is_no_count(draft: Draft) -> None:
    wrong: list[Record] = [{"v": -1}, {"v": 0.5}, {"v": MAX_NUMBER}, {"u": "ms"}, {"v": -(2.0**60)}]
    draft.records[0].update(draft.random.each(wrong))


@breaks("EX-R-007")
def no_seq(draft: Draft) -> None:
    draft.named("seq")["n"] = "x-acme-seq"


@breaks("EX-R-007")
def a_second_seq(draft: Draft) -> None:
    draft.add(n="seq", v=draft.named("seq")["v"])


@breaks("EX-R-007")
def a_seq_that_is_no_count(draft: Draft) -> None:
    draft.named("seq").update(
        draft.random.each([{"v": -1}, {"v": 0.5}, {"v": MAX_NUMBER}, {"u": "count"}])
    )


@breaks("EX-R-008")
def a_seq_that_does_not_rise(draft: Draft) -> None:
    first, second = draft.seqs()[:2]
    seq = draft.records[first]["v"]
    draft.records[second]["v"] = draft.random.each([seq, 0, draft.random.randint(0, seq)])
    for at in draft.seqs()[2:]:
        draft.records[at]["v"] += 1000


@breaks("EX-R-008")
def a_time_that_does_not_rise(draft: Draft) -> None:
    last = draft.records[draft.seqs()[-1]]
    last["bt"] = draft.records[0]["bt"] - draft.random.each([0.001, 1, 86_400])


@breaks("EX-R-009")
def a_metric_that_nobody_knows(draft: Draft) -> None:
    others = chain.from_iterable(one.metrics for one in dictionary().values())
    foreign = sorted(set(others) - set(draft.domain.metrics))
    made_up = [
        "PM2_5",
        "pm2_5 ",
        "x-",
        "x-acme",
        "x-Acme-raw",
        "x--raw",
        "__proto__",
        "路燈",
        "x-acme-raw\n",
    ]
    made_up += ["x-acme-" + "y" * 64, "x-" + "v" * 33 + "-raw", "a\x00b", "n" * 10_000]
    draft.add(n=draft.random.each([*made_up, draft.random.choice(foreign)]), v=1)


@breaks("EX-R-010")
def a_number_as_another_type(draft: Draft) -> None:
    record = draft.random.choice([*draft.numbers(), draft.vendor()])
    del record["v"]
    record.update(draft.random.each([{"vb": True}, {"vs": "12"}]))


@breaks("EX-R-010")
def a_type_that_is_not_the_dictionarys(draft: Draft) -> None:
    del draft.records[draft.seqs()[-1] + 1 :]  # so that the metric stands once
    kinds = {one.type: name for name, one in draft.domain.metrics.items()}
    if "boolean" in kinds:
        draft.add(n=kinds["boolean"], v=1)
    elif "integer" in kinds:
        draft.add(n=kinds["integer"], v=1.5)
    else:
        draft.add(n=kinds["float"], vb=False)


@breaks("EX-R-011")
def a_value_out_of_its_range(draft: Draft) -> None:
    record, metric = draft.number()
    low, high = metric.range or (0, 0)
    record["v"] = draft.random.each([low - 1, high + 1, low - 1000, high + 1000])


@breaks("EX-R-012")
def a_unit_that_does_not_convert(draft: Draft) -> None:
    record, metric = draft.number()
    others = [unit for unit in ("kg", "lm", "Bq", "rad") if unit != metric.unit]
    record["u"] = draft.random.each([*others, "furlong", "µg/m3", "UG/M3", " ", "u" * 5000])


@breaks("EX-R-012")
def a_quality_with_a_unit(draft: Draft) -> None:
    del draft.records[draft.seqs()[-1] + 1 :]
    draft.add(n="quality", vs="bad:fault", u="/")


@breaks("EX-R-013")
def a_secondary_unit_unannounced(draft: Draft) -> None:
    draft.records[0].pop("bver")
    if draft.random.random() < 0.5:
        draft.records[0]["bver"] = 10
    draft.vendor()["u"] = draft.random.choice(sorted(SECONDARY))


@breaks("EX-R-015")
def a_quality_that_is_none(draft: Draft) -> None:
    del draft.records[draft.seqs()[-1] + 1 :]
    wrong = ["", "bad", "bad:luck", "good:range", "bad:range;", ";", "BAD:range", "bad:range()"]
    wrong += [
        "bad:range(pm2_5",
        "bad:range,uncertain:rate",
        "bad:range\n",
        "bad:range(路)",
        "bad:range" * 5000,
    ]
    draft.add(n="quality", vs=draft.random.each(wrong))


@breaks("EX-R-015")
def a_quality_that_is_a_number(draft: Draft) -> None:
    del draft.records[draft.seqs()[-1] + 1 :]
    value: Record = draft.random.each([{"v": 192}, {"vb": False}])
    draft.add(n="quality", **value)


@breaks("EX-R-016")
def a_number_that_blurs(draft: Draft) -> None:
    wrong = [MAX_NUMBER, -MAX_NUMBER, 2**63, 1e300, -(2**64)]
    draft.vendor()["v"] = draft.random.each(wrong)


@breaks("EX-R-016", "json")
def a_number_without_end(draft: Draft) -> bytes:
    draft.vendor()["v"] = 12345
    huge = draft.random.each([b"1e999", b"-1e400", b"9" * 400, b"9" * 100_000, b"1" + b"0" * 310])
    return draft.payload.replace(b"12345", huge)


@breaks("EX-R-016", "cbor")
def a_number_that_only_cbor_has(draft: Draft) -> None:
    wrong = [float("nan"), float("inf"), 2**64, -(2**70), cbor2.CBORTag(2, b"\xff" * 1000)]
    wrong += [
        cbor2.CBORTag(4, [10**6, 1]),
        cbor2.CBORTag(4, [-401, 1]),
        cbor2.CBORTag(4, [1, 2, 3]),
    ]
    draft.vendor()["v"] = draft.random.choice(
        [*wrong, cbor2.CBORTag(4, "x"), cbor2.CBORTag(4, [2, 2.5])]
    )


@breaks("EX-R-017")
def a_metric_given_twice(draft: Draft) -> None:
    draft.add(**draft.records[-1 if draft.records[-1]["n"] != "quality" else -2])


@breaks("EX-R-017")
def two_qualities(draft: Draft) -> None:
    del draft.records[draft.seqs()[-1] + 1 :]
    draft.add(n="quality", vs="bad:fault")
    draft.add(n="quality", vs="bad:fault")


@breaks("EX-R-018")
def a_bver_that_is_none(draft: Draft) -> None:
    draft.records[0]["bver"] = draft.random.each([11, 5, 0, -26, 27, "26", None, 26.5, 2**63])


@breaks("EX-R-018")
def a_second_bver(draft: Draft) -> None:
    draft.random.choice(draft.records[1:])["bver"] = SECONDARY_BVER


# -------------------------------------------------------------------------- topics and JSON messages

BAD_LEVELS = [
    "",
    "Xinyi",
    "-a",
    "a_b",
    "a.b",
    "+",
    "#",
    "a\n",
    "信義",
    "a\x00",
    " ",
    "\ud800",
    "a" * 49,
]
TOPICS: dict[str, list[Callable[[Dice, list[str]], list[str]]]] = {
    "EX-T-001": [
        lambda _, it: it[:-1],
        lambda _, it: [*it, "more"],
        lambda _, it: ["city", "v2", *it[2:]],
        lambda _, it: ["", *it],
        lambda _, it: it[: it.index(it[-1]) - 3],
        lambda _, __: [""],
        lambda _, it: ["$SYS", *it[1:]],
        lambda random, it: [*it, *["x"] * random.randrange(1, 10_000)],
    ],
    "EX-T-002": [
        lambda random, it: replaced(random, it, random.each(BAD_LEVELS)),
        lambda random, it: replaced(random, it, "x" * random.each([49, 1000, 60_000])),
    ],
    "EX-T-003": [
        lambda random, it: [
            *it[:2],
            random.each(["taipei", "tw", "tw-", "t-tpe", "tw-tpeh", "0"]),
            *it[3:],
        ]
    ],
    "EX-T-004": [
        lambda random, it: [
            *it[:5],
            random.each(["plumbing", "", "AIR", "air ", "__class__"]),
            *it[6:],
        ]
    ],
    "EX-T-005": [
        lambda random, it: [
            *it[:-1],
            random.each(["telemetry", "", "Readings", "receipts", "readings\n"]),
        ]
    ],
    "EX-T-006": [lambda _, it: [*it[:5], "gateway", f"{it[4]}x", it[7]]],
}


def replaced(random: Dice, levels: list[str], level: str) -> list[str]:
    """Another county, site, gateway or device."""
    at = random.choice([2, 3, 4, 6])
    return [*levels[:at], level, *levels[at + 1 :]]


SHAPE = {
    "state": "EX-S-001", "commands": "EX-C-001", "results": "EX-C-003", "receipts": "EX-D-001",
}  # fmt: skip  # a table
REQUIRED = {
    "state": ["v", "online", "interval_s", "epoch"],
    "commands": ["id", "name", "issued_at", "expires_at"],
    "results": ["v", "id", "status", "at"],
    "receipts": ["v"],
}
WRONG: dict[str, list[dict[str, Any]]] = {
    "state": [
        {"v": 2}, {"v": "1"}, {"online": "yes"}, {"online": 1}, {"interval_s": 0}, {"interval_s": 1e9},
        {"epoch": -1}, {"epoch": MAX_NUMBER}, {"epoch": 1.5}, {"since": "yesterday"}, {"since": "2026-09-21T12:00:00"},
        {"since": 5}, {"descriptor": []}, {"descriptor": {"maker": 5}}, {"descriptor": {"maker": "x" * 201}},
        {"descriptor": {"location": {"lat": 91, "lon": 0}}}, {"descriptor": {"location": {"lat": 25}}},
        {"descriptor": {"location": {"lat": 25, "lon": 181}}}, {"descriptor": {"metrics": {"lit": "60"}}},
        {"descriptor": {"commands": "set_level"}}, {"descriptor": None}, {"descriptor": {"label": "Lamp"}},
    ],
    "commands": [
        {"id": "7"}, {"id": 7}, {"name": "Set"}, {"name": ""}, {"name": "off\n"}, {"name": "x" * 49},
        {"args": {"level": None}}, {"args": {"level": [1]}}, {"args": {"note": "x" * 201}}, {"args": []},
        {"issued_at": 0}, {"expires_at": "2026-09-21"}, {"expires_at": "9" * 5000}, {"issued_by": 5},
    ],
    "results": [
        {"v": 2}, {"id": "x"}, {"status": "maybe"}, {"status": None}, {"at": None}, {"reason": "x" * 501},
        {"readback": {"level": "40"}}, {"readback": {"level": []}}, {"at": "2026-13-01T00:00:00Z"},
    ],
    "receipts": [
        {"v": 2}, {"stored": []}, {"stored": {"aq-7": [[1, 2]]}}, {"stored": {"aq-7": [[1, 2, -3]]}},
        {"stored": {"aq-7": [[1, 2, 3, 4]]}}, {"stored": {"aq-7": [[1, 2, MAX_NUMBER]]}},
        {"refused": {"aq-7": [[1, 2, 3, "no"]]}}, {"refused": {"aq-7": [[1, 2, 3]]}},
        {"unreadable": [["00", "EX-R-001"]]},
        {"unreadable": [["0" * 64, "EX-R-001\n"]]}, {"results": [["x"]]}, {"results": {"x": "done"}},
    ],
}  # fmt: skip  # a table


def json_mutations(random: Dice, channel: str) -> Iterator[tuple[str, bytes]]:
    """Every way of breaking the shape of a message of this channel."""
    good = message_of(random, channel)
    text = json.dumps(good)
    yield "cut_off", text[: random.randrange(1, len(text))].encode()
    yield "something_after", text.encode() + random.choice([b"{}", b"\x00", b"x"])
    yield "nested_without_end", b'{"a":' * random.choice([100, 5_000, 100_000])
    yield "an_array_without_end", b"[" * 100_000
    yield (
        "not_utf8",
        text.replace('"v": 1', '"v": 1, "\xff": 1').encode("latin-1", "replace") + b"\xff",
    )
    yield "a_lone_surrogate", (text[:-1] + r', "note": "\ud800"}').encode()
    yield "cbor", cbor2.dumps(good)
    for other in (b"null", b"[]", b"5", b'"x"', b"NaN", b"\xef\xbb\xbf" + text.encode()):
        yield "not_an_object", other
    for member in REQUIRED[channel]:
        yield (
            f"no_{member}",
            json.dumps({key: one for key, one in good.items() if key != member}).encode(),
        )
    for change in WRONG[channel]:
        yield f"wrong_{next(iter(change))}", json.dumps(good | change).encode()
    for huge in (b"9" * 5000, b"1e999", b"NaN", b"-Infinity"):
        member = REQUIRED[channel][0]
        broken = json.dumps(good | {member: 12345}).encode().replace(b"12345", huge)
        yield "a_number_without_end", broken


def known_cases(seed: int) -> Iterator[Case]:
    """Every named mutation, some rounds of each."""
    random = Dice(seed)
    for name, requirement, forms, mutate in MUTATIONS:
        for form in forms:
            for random.turn in range(ROUNDS):
                draft = Draft(random, device_topic(random, "readings"), form)
                payload = mutate(draft)
                yield Case(
                    f"{name}-{form}",
                    str(draft.topic),
                    draft.payload if payload is None else payload,
                    requirement,
                )
    for requirement, ways in TOPICS.items():
        for way in ways:
            for random.turn in range(ROUNDS):
                channel = random.choice(["readings", "state", "commands", "results"])
                levels = way(random, str(device_topic(random, channel)).split("/"))
                yield Case("topic", "/".join(levels), b"", requirement)
    for channel, requirement in SHAPE.items():
        for random.turn in range(ROUNDS):
            topic = str(json_topic(random, channel))
            for name, payload in json_mutations(random, channel):
                yield Case(f"{name}-{channel}", topic, payload, requirement)
    for random.turn in range(ROUNDS):
        command, receipt = message_of(random, "commands"), message_of(random, "receipts")
        command["expires_at"] = random.each([command["issued_at"], "2026-09-21T11:59:59Z"])
        topic = str(device_topic(random, "commands"))
        yield Case("expires_too_soon", topic, json.dumps(command).encode(), "EX-C-002")
        kind = random.choice(["stored", "refused"])
        receipt[kind]["aq-7"][0][1:3] = [random.randrange(5, 9), random.randrange(5)]
        topic = str(json_topic(random, "receipts"))
        yield Case("backwards", topic, json.dumps(receipt).encode(), "EX-D-002")


def json_topic(random: Random, channel: str) -> Topic:
    if channel == "receipts":
        return parse_topic(device_topic(random, "readings").receipts)
    return device_topic(random, channel)


# ------------------------------------------------------------------------------------ blind mutations


def valid_messages(random: Random) -> Iterator[tuple[str, bytes]]:
    while True:
        topic = device_topic(random, "readings")
        records = pack_of(random, topic)
        yield str(topic), packed(records)
        yield str(topic), packed(records, "cbor")
        for channel in DECODERS:
            message = json.dumps(message_of(random, channel), ensure_ascii=False)
            yield str(json_topic(random, channel)), message.encode()


INTERESTING = [
    b"\x00", b"\xff", b'"', b"[", b"{", b"}", b",", b"-", b"1e999", b"null", b"\\u0000", b"\\ud800", b"\xc0\x80",
    b"\xed\xa0\x80", b"\xbf", b"\x9f", b"\xc2", b"\xc4\x82", b"\xd8\x1c", b"\xf7", b"\xf9\x7e\x00", b"\xfb",
    b"\x1b" + b"\xff" * 8, b"\x3b" + b"\xff" * 8, b"\x5b" + b"\xff" * 8, b"\x9b" + b"\xff" * 8, b"\xbb" + b"\xff" * 8,
    struct.pack(">d", float("nan")), "路".encode(), b'"v":1,"v":2', b'"n":"epoch"',
]  # fmt: skip  # a table


def blindly(random: Random, payload: bytes) -> bytes:
    """Change bytes anywhere, without knowing what they mean."""
    changed = bytearray(payload)
    for _ in range(random.randint(1, 4)):
        at = random.randrange(len(changed) + 1)
        to = min(len(changed), at + random.randint(0, 16))
        match random.randrange(5):
            case 0 if changed:
                changed[min(at, len(changed) - 1)] ^= 1 << random.randrange(8)
            case 1:
                changed[at:at] = random.choice(INTERESTING)
            case 2:
                changed[at:to] = random.choice(INTERESTING)
            case 3:
                del changed[at:to]
            case _:
                changed[at:at] = changed[at:to] * random.randint(1, 50)
    return bytes(changed)


def blind_cases(seed: int) -> Iterator[Case]:
    random = Random(seed)
    messages = valid_messages(random)
    for _ in range(BLIND):
        topic, payload = next(messages)
        if random.random() < 0.1:
            changed = blindly(random, topic.encode())
            topic = changed.decode("utf-8", random.choice(["replace", "surrogateescape"]))
        yield Case("blind", topic, blindly(random, payload), "")


# ---------------------------------------------------------------------------------------------- tests

KNOWN = list(known_cases(SEED))


@pytest.fixture(autouse=True)
def seed() -> None:
    print(f"ONESTREET_FUZZ_SEED={SEED}")  # noqa: T201  # shown beside a failure


def test_what_is_changed_was_valid() -> None:
    messages = valid_messages(Random(SEED))
    for _ in range(600):
        topic, payload = next(messages)
        assert judged(topic, payload) == set(), (topic, payload)


def test_every_requirement_that_a_message_shows_is_broken() -> None:
    shown = {name for name, one in REQUIREMENTS.items() if one.shown == "message"}
    assert {case.breaks for case in KNOWN} == shown


def test_a_seed_makes_the_same_corpus() -> None:
    def digest(cases: Iterator[Case]) -> str:
        return sha256(repr(list(cases)).encode()).hexdigest()

    assert digest(known_cases(SEED)) == digest(iter(KNOWN))
    assert digest(blind_cases(SEED)) == digest(blind_cases(SEED)) != digest(blind_cases(SEED + 1))


@pytest.mark.parametrize("requirement", sorted({case.breaks for case in KNOWN}))
def test_a_known_breach_gets_its_id(requirement: str) -> None:
    for case in KNOWN:
        if case.breaks == requirement:
            found = judged(case.topic, case.payload)
            assert found == {requirement}, (case.name, case.topic[:200], case.payload[:2000])


def test_blind_changes_crash_no_reader() -> None:
    taken = 0
    found = set[str]()
    for case in blind_cases(SEED):
        try:
            broken = judged(case.topic, case.payload)
        except Exception as crash:
            raise AssertionError(f"{case.topic!r} {case.payload!r}") from crash
        assert broken <= set(REQUIREMENTS), case
        found |= broken
        taken += not broken
    assert len(found) > 20  # blind, and yet it goes everywhere
    assert 0 < taken < BLIND / 2


def carried(topic: str) -> bool:
    """Whether MQTT can carry a message on this topic."""
    try:
        return 0 < len(topic.encode()) < 2**16 and not set(topic) & {"+", "#", "\0"}
    except UnicodeEncodeError:
        return False


def test_ingest_gives_every_message_of_the_corpus_an_answer(
    caplog: pytest.LogCaptureFixture,
) -> None:
    intake = Intake(["tw-tpe", "tw-nwt", "tw-khh"], max_points=10**6, receive_maximum=10**6)
    asked = [case for case in (*KNOWN, *blind_cases(SEED)) if carried(case.topic)]
    with caplog.at_level(logging.ERROR):
        for number, case in enumerate(asked):
            packet_id = number % 65535 + 1
            message = mqtt5.PublishPacket(
                case.topic, case.payload, qos=mqtt5.QoS.AT_LEAST_ONCE, packet_id=packet_id
            )
            intake.take([message], 0)
    assert [record.getMessage() for record in caplog.records] == []
    counts = intake.counts
    assert counts.messages == len(asked)
    assert min(counts.unreadable, counts.refused_samples, counts.refused_metrics, counts.points) > 0
    for batch in intake.batches:
        for topic, receipt in batch.receipts():
            assert parse_topic(topic).channel == "receipts"
            decode_receipt(receipt)


def test_both_ways_of_reading_a_pack_agree() -> None:
    for case in (*KNOWN, *blind_cases(SEED)):
        try:
            topic = parse_topic(case.topic)
        except ContractError:
            continue
        if topic.channel == "readings":
            assert rows(topic, case.payload) == judged(case.topic, case.payload)


def rows(topic: Topic, payload: bytes) -> set[str]:
    try:
        return {refusal.requirement for refusal in PackReader(topic).rows(payload)[1]}
    except ContractError as error:
        return {error.requirement}
