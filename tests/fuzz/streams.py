"""What a broker might send, right and wrong: streams of MQTT packets, each made from a seed and a number alone.

Most are sound MQTT around messages that are broken with knowledge of their structure; the others are broken as packets.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from random import Random
from typing import Any, NamedTuple

import cbor2
import mqtt5

from exchange.readings import MAX_PACK_BYTES
from tests.packs import CBOR_LABELS, Record
from tests.pure.test_fuzz_corpus import KNOWN, blindly, carried, device_topic, message_of, pack_of

PACKS, RESULTS = 300, 40
SOUND = 0.75  # this part of the streams is sound MQTT
FILTERS = 2

_TAKE = mqtt5.SubAckReasonCode.GRANTED_QOS_AT_LEAST_ONCE
HANDSHAKE = mqtt5.ConnAckPacket().write() + mqtt5.SubAckPacket(1, [_TAKE] * FILTERS).write()

_DEEP = "@deep@"  # becomes arrays in arrays
WEIRD: list[Any] = [
    0, -1, -0.0, 1e308, -1e308, 5e-324, 1.5, 2**53, 2**53 - 1, -(2**53), 2**63, -(2**63) - 1, 2**64, 10**400,
    float("nan"), float("inf"), float("-inf"), None, True, False, "", "x", "\x00", "\ud800", "路" * 20, "1e999",
    "\\", '"', "a\nb", "%d%s", [], {}, [1, 2], {"v": 1}, [[[[[[[[[[1]]]]]]]]]], _DEEP, b"\xff", 2**28 - 1, 2**28,
    9223372036, 9223372035.999, 1_790_000_000.5, 1_790_000_000_000, 1e-9, "seq", "epoch", "quality", "bad:fault",
    "uncertain:range;bad:rate", "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", "2026-09-21T12:00:00Z",
    "done", {'a"b\\,c d=%s\n': 1.5, "\ud800": 1, "big": 2**70}, {"level": True}, "路\r\n\t\x7f" * 30, "x" * 501,
]  # fmt: skip  # a table
NAMES = [
    "seq", "epoch", "quality", "", "x-acme-raw", "x-acme-other", "temperature", "pm2_5", "lit", "level", "happiness",
    "\ud800", "time", "measurement", "x" * 200, "a=b,c d", "x-a-%s",
]  # fmt: skip  # a table
LABELS = [*CBOR_LABELS, "bu", "bv", "bs", "s", "ut", "vd", "e_", "", "V"]
TAGS = [0, 1, 2, 3, 4, 5, 24, 25, 28, 29, 30, 35, 36, 258, 261, 55799, 2**32]
LEVELS = [
    "", "+", "AQ_1", "-", "a" * 49, "tw-tpe", "tw-xxx", "readings", "results", "state", "receipts", "路", "gateway",
    "air", "\u200b", "a b",
]  # fmt: skip  # a table


class Streams:
    """The streams of a seed: `stream(number)` is the same wherever and whenever it is asked."""

    def __init__(self, seed: int) -> None:
        random = Random(seed)
        self._seed = seed
        self._packs: list[tuple[str, list[Record]]] = []
        for _ in range(PACKS):
            topic = device_topic(random, "readings")
            self._packs.append((str(topic), pack_of(random, topic)))
        self._results = [
            (str(device_topic(random, "results")), message_of(random, "results"))
            for _ in range(RESULTS)
        ]
        # Broken by name, one rule each; the few that are large would be nearly all the time.
        known = [(case.topic, case.payload) for case in KNOWN if carried(case.topic)]
        self._known = [each for each in known if len(each[1]) < 20_000]

    def stream(self, number: int) -> bytes:
        """Return what the broker says, from the first byte of a connection on."""
        random = Random(f"{self._seed}:{number}")
        if random.random() < SOUND:
            publishes = [self._publish(random) for _ in range(random.choice([1, 1, 1, 3]))]
            return HANDSHAKE + b"".join(publishes)
        packets = [self._packet(random) for _ in range(random.randint(1, 6))]
        if random.random() < 0.7:
            packets.insert(0, HANDSHAKE)
        stream = b"".join(packets)
        if random.random() < 0.8:
            place = random.randrange(len(stream) + 1)
            stream = stream[:place] + blindly(random, stream[place:])
        return stream

    # Packets

    def _packet(self, random: Random) -> bytes:
        makers: list[Callable[[], mqtt5.Packet]] = [
            lambda: mqtt5.ConnAckPacket(
                session_present=random.random() < 0.5,
                reason_code=_code(random, mqtt5.ConnAckReasonCode),
                server_keep_alive=random.choice([None, 0, 1, 65535]),
                receive_max=random.choice([1, 20, 65535]),
                max_packet_size=random.choice([None, 1, 100, 2**32 - 1]),
                reason_str=_words(random),
                user_properties=_properties(random),
            ),
            lambda: mqtt5.SubAckPacket(
                random.choice([1, 1, 2, 65535]),
                [_code(random, mqtt5.SubAckReasonCode) for _ in range(random.choice([1, 2, 3]))],
                reason_str=_words(random),
            ),
            lambda: mqtt5.PubAckPacket(
                random.randint(1, 65535),
                reason_code=_code(random, mqtt5.PubAckReasonCode),
                reason_str=_words(random),
            ),
            lambda: mqtt5.DisconnectPacket(
                reason_code=_code(random, mqtt5.DisconnectReasonCode),
                reason_str=_words(random),
                user_properties=_properties(random),
            ),
            mqtt5.PingRespPacket,
            mqtt5.PingReqPacket,
            lambda: mqtt5.PubRecPacket(random.randint(1, 65535)),
            lambda: mqtt5.PubRelPacket(random.randint(1, 65535)),
            lambda: mqtt5.PubCompPacket(random.randint(1, 65535)),
            lambda: mqtt5.UnsubAckPacket(1, [_code(random, mqtt5.UnsubAckReasonCode)]),
            lambda: mqtt5.AuthPacket(reason_code=_code(random, mqtt5.AuthReasonCode)),
            lambda: mqtt5.ConnectPacket("broker"),
            lambda: mqtt5.SubscribePacket(1, [mqtt5.TopicFilter("#")]),
        ]
        if random.random() < 0.6:
            return self._publish(random)
        return random.choice(makers)().write()

    def _publish(self, random: Random) -> bytes:
        topic, payload = self._message(random)
        qos = mqtt5.QoS.AT_LEAST_ONCE if random.random() < 0.9 else _code(random, mqtt5.QoS)
        extra: dict[str, Any] = {}
        if random.random() < 0.2:
            extra = {
                "retain": random.random() < 0.5,
                "duplicate": random.random() < 0.5 and qos != mqtt5.QoS.AT_MOST_ONCE,
                "content_type": _words(random),
                "message_expiry_interval": random.choice([None, 0, 2**32 - 1]),
                "correlation_data": random.choice([None, b"", b"\xff" * 100]),
                "subscription_ids": random.choice([[], [1], [1, 268435455]]),
                "topic_alias": random.choice([None, 1, 65535]),
                "user_properties": _properties(random),
            }
        packet_id = random.randint(1, 65535) if qos != mqtt5.QoS.AT_MOST_ONCE else None
        return mqtt5.PublishPacket(topic, payload, qos=qos, packet_id=packet_id, **extra).write()

    # Messages

    def _message(self, random: Random) -> tuple[str, bytes]:
        chance = random.random()
        if chance < 0.1:
            topic, payload = random.choice(self._known)
        elif chance < 0.2:
            topic, result = random.choice(self._results)
            payload = _json(random, _broken_map(random, dict(result), list(result)))
        else:
            topic, records = random.choice(self._packs)
            payload = _written(random, _broken(random, [dict(record) for record in records]))
        chance = random.random()
        if chance < 0.3:
            payload = blindly(random, payload)
        elif chance < 0.35:
            payload = payload[: random.randrange(len(payload) + 1)]
        elif chance < 0.4:
            other = random.choice(self._known)[1]
            payload = payload[: random.randrange(len(payload) + 1)]
            payload += other[random.randrange(len(other) + 1) :]
        elif chance < 0.402:
            payload += b" " * (MAX_PACK_BYTES - random.choice([-1, 0, len(payload)]))
        return (topic if random.random() < 0.9 else _broken_topic(random, topic)), payload


def _code(random: Random, codes: Any) -> Any:
    """Return one of the reason codes, the good one as often as all the others."""
    if random.random() < 0.5:
        return _TAKE if codes is mqtt5.SubAckReasonCode else codes(0)
    return random.choice([getattr(codes, name) for name in dir(codes) if name.isupper()])


def _words(random: Random) -> str | None:
    return random.choice([None, None, "", "why", "路" * 30, "x" * 2000])


def _properties(random: Random) -> list[tuple[str, str]]:
    return [("name", "x" * random.randint(0, 50))] * random.choice([0, 0, 1, 40])


def _broken_topic(random: Random, topic: str) -> str:
    levels = topic.split("/")
    place = random.randrange(len(levels))
    match random.randrange(4):
        case 0:
            levels[place] = random.choice(LEVELS)
        case 1:
            levels.insert(place, random.choice(LEVELS))
        case 2:
            del levels[place]
        case _:
            levels[place] = blindly(random, levels[place].encode()).decode("utf-8", "replace")
    changed = "/".join(levels)
    return changed if carried(changed) else topic


class _Way(NamedTuple):
    weight: int
    change: Callable[[Random, list[Record]], None]


def _broken(random: Random, records: list[Record]) -> list[Record]:
    for _ in range(random.choice([0, 1, 1, 2, 4])):
        if records:
            [way] = random.choices(_WAYS, [each.weight for each in _WAYS])
            way.change(random, records)
    return records


def _relabel(random: Random, records: list[Record]) -> None:
    _broken_map(random, random.choice(records), LABELS, times=1)


def _rename(random: Random, records: list[Record]) -> None:
    random.choice(records)["n"] = random.choice(NAMES)


def _repeat(random: Random, records: list[Record]) -> None:
    records.insert(random.randrange(len(records) + 1), dict(random.choice(records)))


def _drop(random: Random, records: list[Record]) -> None:
    del records[random.randrange(len(records))]


def _swap(random: Random, records: list[Record]) -> None:
    one, two = random.randrange(len(records)), random.randrange(len(records))
    records[one], records[two] = records[two], records[one]


def _shift(random: Random, records: list[Record]) -> None:
    random.choice(records)[random.choice(["t", "bt"])] = random.choice(
        [0, -1, 1, 0.0004, 0.0006, 86_400, -86_400, 2**28, 1_790_000_000, 9_223_372_035, 1e308]
    )


def _swell(random: Random, records: list[Record]) -> None:
    name = random.choice(["unknown-{}", "x-acme-{}", "seq", "x-acme-raw"])
    number = random.choice([10, 150, 300])
    records += [{"n": name.format(each), "v": each} for each in range(number)]


def _grow(random: Random, records: list[Record]) -> None:
    bt = max((one["bt"] for one in records if type(one.get("bt")) in (int, float)), default=1.79e9)
    for each in range(random.choice([1, 3, 50])):
        records += [{"n": "seq", "v": 2000 + each, "bt": bt + each + 1}, {"n": "x-a-b", "v": each}]


_WAYS = [
    _Way(8, _relabel), _Way(3, _rename), _Way(2, _repeat), _Way(2, _drop), _Way(2, _swap), _Way(3, _shift),
    _Way(1, _swell), _Way(3, _grow),
]  # fmt: skip  # a table


def _broken_map(
    random: Random, of: dict[str, Any], labels: list[str], times: int = 0
) -> dict[str, Any]:
    for _ in range(times or random.choice([0, 1, 2])):
        label = random.choice(labels) if random.random() < 0.5 or not of else random.choice([*of])
        if random.random() < 0.15:
            of.pop(label, None)
        else:
            of[label] = random.choice(WEIRD)
    return of


# Writing them down


def _written(random: Random, records: list[Record]) -> bytes:
    chance = random.random() if len(records) < 40 else 0.8 * random.random()
    if chance < 0.55:
        return _json(random, records)
    items = [{CBOR_LABELS.get(label, label): value for label, value in r.items()} for r in records]
    try:
        return cbor2.dumps(items) if chance < 0.87 else _cbor(random, items)
    except (UnicodeEncodeError, cbor2.CBOREncodeError):  # a lone surrogate
        return _json(random, records)


def _json(random: Random, value: object) -> bytes:
    text = json.dumps(value, ensure_ascii=random.random() < 0.7, default=repr)
    if random.random() < 0.05:
        text = text.replace('"v":', '"v": 3, "v":', random.choice([1, -1]))
    if _DEEP in text:
        depth = random.choice([3, 200, 20_000])
        text = text.replace(f'"{_DEEP}"', "[" * depth + "]" * depth, 1)
    return text.encode("utf-8", "surrogatepass")


def _cbor(random: Random, value: Any) -> bytes:
    """Return CBOR as no library writes it: lengths left open, numbers wider than they need, tags anywhere."""
    if random.random() < 0.01:
        return _head(random, 6, random.choice(TAGS)) + _cbor(random, value)
    open_ended = random.random() < 0.3
    match value:
        case bool() | None:
            return cbor2.dumps(value)
        case int() if 0 <= value < 2**64:
            return _head(random, 0, value)
        case int() if -(2**64) <= value < 0:
            return _head(random, 1, -1 - value)
        case float():
            code, form = random.choice([(0xF9, ">e"), (0xFA, ">f"), (0xFB, ">d"), (0xFB, ">d")])
            try:
                return bytes([code]) + struct.pack(form, value)
            except OverflowError:
                return cbor2.dumps(value)
        case str() | bytes():
            data, major = (value.encode(), 3) if isinstance(value, str) else (value, 2)
            whole = _head(random, major, len(data)) + data
            return bytes([major << 5 | 31]) + whole + b"\xff" if open_ended else whole
        case list():
            inside = b"".join(_cbor(random, each) for each in value)
            return (
                b"\x9f" + inside + b"\xff" if open_ended else _head(random, 4, len(value)) + inside
            )
        case dict():
            pairs = value.items()
            inside = b"".join(_cbor(random, key) + _cbor(random, each) for key, each in pairs)
            return (
                b"\xbf" + inside + b"\xff" if open_ended else _head(random, 5, len(value)) + inside
            )
        case _:
            return cbor2.dumps(value)


_WIDTHS = [(23, ""), (0xFF, ">B"), (0xFFFF, ">H"), (2**32 - 1, ">L"), (2**64 - 1, ">Q")]


def _head(random: Random, major: int, number: int) -> bytes:
    place = next(place for place, (most, _) in enumerate(_WIDTHS) if number <= most)
    if random.random() < 0.1:
        place = random.randint(place, 4)
    form = _WIDTHS[place][1]
    if not form:
        return bytes([major << 5 | number])
    return bytes([major << 5 | 23 + place]) + struct.pack(form, number)
