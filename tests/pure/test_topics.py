"""Topics: what is one, what is none, and which requirement says so."""

from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exchange.dictionary import dictionary
from exchange.errors import TopicError
from exchange.requirements import REQUIREMENTS
from exchange.topics import DeviceChannel, Topic, parse_topic

levels = st.from_regex(r"[a-z0-9][a-z0-9-]{0,47}", fullmatch=True)
counties = st.from_regex(r"[a-z]{2}-[a-z0-9]{1,3}", fullmatch=True)


@st.composite
def topics(draw: st.DrawFn) -> Topic:
    county, site, gateway, device = draw(counties), draw(levels), draw(levels), draw(levels)
    if draw(st.booleans()):
        return Topic(county, site, gateway, "", "", "receipts")
    domain = draw(st.sampled_from(sorted(dictionary())))
    channel = draw(st.sampled_from(get_args(DeviceChannel)))
    if domain == "gateway":
        device = gateway
    return Topic(county, site, gateway, domain, device, channel)


@given(topics())
def test_a_topic_is_parsed_as_it_is_written(topic: Topic) -> None:
    assert parse_topic(str(topic)) == topic
    assert parse_topic(topic.receipts) == Topic(
        topic.county, topic.site, topic.gateway, "", "", "receipts"
    )


BREAKING = {
    "EX-T-001": [
        "", "/", "city", "city/v1", "city/v2/tw-tpe/x/gw/air/d/readings", "town/v1/tw-tpe/x/gw/air/d/readings",
        "city/v1/tw-tpe/x/gw", "city/v1/tw-tpe/x/gw/air", "city/v1/tw-tpe/x/gw/air/d", "city/v1/tw-tpe/x/gw/results",
        "city/v1/tw-tpe/x/gw/air/d/readings/", "/city/v1/tw-tpe/x/gw/air/d/readings", "city/v1/tw-tpe/x/gw/receipts/",
        "City/v1/tw-tpe/x/gw/air/d/readings", "$SYS/broker/uptime",
    ],
    "EX-T-002": [
        "city/v1/tw-tpe//gw/air/d/readings", "city/v1/tw-tpe/X/gw/air/d/readings",
        "city/v1/tw-tpe/x/-gw/air/d/readings", "city/v1/tw-tpe/x/gw/air/d_1/readings",
        "city/v1/tw-tpe/x/gw/air/é/readings", "city/v1/tw-tpe/x/gw/air/d\n/readings",
        f"city/v1/tw-tpe/x/gw/air/{'d' * 49}/readings", "city/v1/tw-tpe/x/+/air/d/readings",
        "city/v1/tw-tpe/x/#/receipts", "city/v1/tw-tpe/x /gw/receipts", "city/v1/TW-TPE/x/gw/receipts",
    ],
    "EX-T-003": [f"city/v1/{county}/x/gw/air/d/readings" for county in ("tw", "taipei", "tw-", "tw-taipei", "t-tpe")],
    "EX-T-004": [f"city/v1/tw-tpe/x/gw/{domain}/d/readings" for domain in ("water", "", "Air", "receipts")],
    "EX-T-005": [f"city/v1/tw-tpe/x/gw/air/d/{channel}" for channel in ("reading", "", "receipts", "state\n")],
    "EX-T-006": ["city/v1/tw-tpe/x/gw/gateway/other/state"],
}  # fmt: skip  # a table


@pytest.mark.parametrize(
    ("requirement", "text"),
    [(requirement, text) for requirement, texts in BREAKING.items() for text in texts],
)
def test_a_topic_that_breaks_one_requirement(requirement: str, text: str) -> None:
    with pytest.raises(TopicError) as caught:
        parse_topic(text)
    assert (caught.value.requirement, caught.value.place) == (requirement, text)


def test_every_requirement_on_topics_is_broken_here() -> None:
    assert set(BREAKING) == {
        name
        for name, one in REQUIREMENTS.items()
        if name.startswith("EX-T-") and one.shown == "message"
    }


@given(st.text(max_size=60))
def test_any_text_raises_nothing_but_topic_errors(text: str) -> None:
    for topic in (text, f"city/v1/{text}", f"city/v1/tw-tpe/x/gw/air/{text}/readings"):
        try:
            assert str(parse_topic(topic)) == topic
        except TopicError as error:
            assert error.requirement in REQUIREMENTS


def test_the_longest_topic_passes_every_broker() -> None:
    longest = Topic("tw-tpe", "s" * 48, "g" * 48, "streetlight", "d" * 48, "commands")
    assert parse_topic(str(longest)) == longest
    assert len(str(longest)) < 256
