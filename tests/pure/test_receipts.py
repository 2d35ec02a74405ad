"""Receipts: there and back, and what is none."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exchange.errors import DeliveryError
from exchange.readings import MAX_NUMBER
from exchange.receipts import Receipt, decode_receipt, encode_receipt, ranges
from exchange.requirements import REQUIREMENTS

counts = st.integers(0, MAX_NUMBER - 1)
devices = st.from_regex(r"[a-z0-9][a-z0-9-]{0,47}", fullmatch=True)
requirement_ids = st.sampled_from(sorted(REQUIREMENTS))
pairs = st.tuples(counts, counts).map(sorted)
receipts = st.builds(
    Receipt,
    v=st.just(1),
    stored=st.dictionaries(
        devices,
        st.lists(st.builds(lambda epoch, pair: (epoch, pair[0], pair[1]), counts, pairs)),
    ),
    refused=st.dictionaries(
        devices,
        st.lists(
            st.builds(
                lambda epoch, pair, name: (epoch, pair[0], pair[1], name),
                counts,
                pairs,
                requirement_ids,
            )
        ),
    ),
    unreadable=st.lists(
        st.tuples(st.binary(min_size=32, max_size=32).map(bytes.hex), requirement_ids)
    ),
    results=st.lists(
        st.tuples(st.uuids().map(str), st.sampled_from(["accepted", "done", "failed"]))
    ),
)


@given(receipts)
def test_what_is_encoded_is_decoded(receipt: Receipt) -> None:
    assert decode_receipt(encode_receipt(receipt)) == receipt


BREAKING = {
    "EX-D-001": [
        b"", b"{", b"[]", b"{}", b'{"v":2}', b'{"v":"1"}', b'{"v":1,"stored":[]}', b"\xff", b"[" * 100_000,
        b'{"v":1,"stored":{"a":[[1,2]]}}', b'{"v":1,"stored":{"a":[[1,2,3,4]]}}', b'{"v":1,"stored":{"a":[[1,-2,3]]}}',
        b'{"v":1,"stored":{"a":[[1,2.5,3]]}}', b'{"v":1,"stored":{"a":[[1,2,9007199254740992]]}}',
        b'{"v":1,"refused":{"a":[[1,2,3]]}}', b'{"v":1,"refused":{"a":[[1,2,3,"no"]]}}',
        b'{"v":1,"unreadable":[["00","EX-R-001"]]}', b'{"v":1,"unreadable":["EX-R-001"]}', b'{"v":1,"results":[["x"]]}',
    ],
    "EX-D-002": [b'{"v":1,"stored":{"a":[[1,3,2]]}}', b'{"v":1,"refused":{"a":[[1,3,2,"EX-R-001"]]}}'],
}  # fmt: skip  # a table


@pytest.mark.parametrize(
    ("requirement", "payload"),
    [(requirement, payload) for requirement, payloads in BREAKING.items() for payload in payloads],
)
def test_a_message_that_breaks_one_requirement(requirement: str, payload: bytes) -> None:
    with pytest.raises(DeliveryError) as caught:
        decode_receipt(payload)
    assert caught.value.requirement == requirement


def test_what_a_later_version_adds_is_passed_over() -> None:
    assert decode_receipt(b'{"v":1,"hint":"slow down"}') == Receipt(v=1)


@given(st.binary(max_size=100))
def test_random_bytes_raise_nothing_but_delivery_errors(payload: bytes) -> None:
    with pytest.raises(DeliveryError):
        decode_receipt(payload)


@given(st.sets(st.integers(0, 60)))
def test_ranges_name_exactly_these_seqs_and_are_fewest(seqs: set[int]) -> None:
    found = ranges(seqs)
    assert [seq for first, last in found for seq in range(first, last + 1)] == sorted(seqs)
    assert all(last + 1 < first for (_, last), (first, _) in pairwise(found))
