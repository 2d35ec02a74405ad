"""Bytes from a broker become the same packets wherever they are cut, and never an accident."""

from __future__ import annotations

import itertools

import mqtt5
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from exchange.mqtt import PacketStream

# On text that is not UTF-8 the codec drops the decoder's error before it panics.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

_LIMIT_BYTES = 4096

_TEXT = st.text(st.characters(codec="utf-8", exclude_characters="#+\0"), min_size=1, max_size=20)
_PUBLISHES = st.builds(
    lambda topic, payload, packet_id, retain: mqtt5.PublishPacket(
        topic,
        payload,
        qos=mqtt5.QoS.AT_LEAST_ONCE if packet_id else mqtt5.QoS.AT_MOST_ONCE,
        packet_id=packet_id,
        retain=retain,
        content_type="application/senml+json",
        user_properties=[("a", "b")],
    ),
    _TEXT,
    st.binary(max_size=400),
    st.none() | st.integers(1, 65535),
    st.booleans(),
)
_PACKETS: st.SearchStrategy[bytes] = st.one_of(
    _PUBLISHES,
    st.builds(mqtt5.PubAckPacket, st.integers(1, 65535)),
    st.builds(
        lambda text: mqtt5.DisconnectPacket(
            reason_code=mqtt5.DisconnectReasonCode.SERVER_BUSY, reason_str=text
        ),
        _TEXT,
    ),
    st.just(mqtt5.ConnAckPacket(session_present=True, server_keep_alive=5, receive_max=20)),
    st.just(mqtt5.SubAckPacket(1, [mqtt5.SubAckReasonCode.GRANTED_QOS_AT_LEAST_ONCE])),
    st.just(mqtt5.PingRespPacket()),
).map(lambda packet: packet.write())


def _feed(data: bytes, cuts: list[int]) -> tuple[list[bytes], PacketStream]:
    """All packets, encoded again, with the data cut at these places."""
    stream = PacketStream(_LIMIT_BYTES)
    places = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    packets: list[bytes] = []
    for start, end in itertools.pairwise(places):
        if start < end:
            packets += [packet.write() for packet in stream.feed(data[start:end])]
    return packets, stream


_CUTS = st.lists(st.integers(0, 1 << 16), max_size=40)


@given(st.lists(_PACKETS, max_size=12), _CUTS)
def test_packets_survive_any_cut(packets: list[bytes], cuts: list[int]) -> None:
    found, stream = _feed(b"".join(packets), cuts)
    assert found == packets
    assert stream.fault is None


@given(_PACKETS)
def test_packets_survive_byte_by_byte(packet: bytes) -> None:
    found, stream = _feed(packet * 2, list(range(len(packet) * 2)))
    assert found == [packet, packet]
    assert stream.fault is None


@given(st.binary(max_size=200), _CUTS)
@example(bytes.fromhex("30050001ff0061"), [3])  # a topic that is not UTF-8: the codec panics
@example(bytes.fromhex("30ffffffffff01"), [1, 2, 3, 4, 5])  # a length of more than four bytes
@example(bytes.fromhex("400100"), [])  # an acknowledgement without an id
@example(bytes.fromhex("3003000a61"), [4])  # a topic longer than its packet
def test_garbage_is_judged_alike_however_it_is_cut(data: bytes, cuts: list[int]) -> None:
    found, stream = _feed(data, cuts)
    whole_found, whole_stream = _feed(data, [])
    assert found == whole_found
    assert bool(stream.fault) == bool(whole_stream.fault)


@given(st.lists(_PACKETS, min_size=1, max_size=6), st.data())
def test_a_flipped_byte_is_judged_alike_however_it_is_cut(
    packets: list[bytes], data: st.DataObject
) -> None:
    damaged = bytearray(b"".join(packets))
    damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    found, stream = _feed(bytes(damaged), data.draw(_CUTS))
    whole_found, whole_stream = _feed(bytes(damaged), [])
    assert found == whole_found
    assert bool(stream.fault) == bool(whole_stream.fault)


def test_a_fault_comes_after_the_packets_before_it_and_is_final() -> None:
    ping = mqtt5.PingRespPacket().write()
    found, stream = _feed(ping + bytes.fromhex("30050001ff0061") + ping, [])
    assert found == [ping]
    assert stream.fault is not None
    assert stream.fault[0] == mqtt5.DisconnectReasonCode.MALFORMED_PACKET
    assert "30 05 00 01 ff 00 61" in stream.fault[1]
    assert stream.feed(ping) == []


def test_an_oversized_packet_is_refused_by_its_header_alone() -> None:
    stream = PacketStream(_LIMIT_BYTES)
    assert stream.feed(bytes.fromhex("30 80 80 80 01")) == []
    assert stream.fault is not None
    assert stream.fault[0] == mqtt5.DisconnectReasonCode.PACKET_TOO_LARGE
    assert "2097157 bytes" in stream.fault[1]


def test_the_largest_allowed_packet_passes_and_one_byte_more_does_not() -> None:
    largest = mqtt5.PublishPacket("t", bytes(_LIMIT_BYTES - 7)).write()
    assert len(largest) == _LIMIT_BYTES
    assert _feed(largest, [])[0] == [largest]
    for cuts in ([], [9]):
        found, stream = _feed(mqtt5.PublishPacket("t", bytes(_LIMIT_BYTES - 6)).write(), cuts)
        assert found == []
        assert stream.fault is not None
