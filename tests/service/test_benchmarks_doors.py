"""The benchmarks of TLS and of enrolment measure what they say, in small."""

from __future__ import annotations

from benchmarks import enrolment, handshakes
from benchmarks.backlog import Load


async def test_both_ways_are_measured_with_every_connection_and_message() -> None:
    load = Load(messages=300, devices=10, gateways=2, samples=1)
    found = await handshakes.measure(handshakes.AT_ONCE, load, rounds=1)
    assert [run.way for run in found.connecting] == ["plain", "TLS"]
    assert [run.times for run in found.taking] == [300, 300]
    assert found.tls.startswith("TLSv1.3")
    assert "client CPU µs/message" in handshakes.table(found)


async def test_a_gateway_is_measured_from_added_to_stored() -> None:
    found = await enrolment.measure(1)
    steps = [found.added_s[0], found.coded_s[0], found.enrolled_s[0], found.stored_s[0]]
    assert steps == sorted(steps)
    assert "first stored sample" in enrolment.table(found)
