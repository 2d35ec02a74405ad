"""The normative text: the same sentences as the code, links that lead somewhere, examples that are what they say."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from jsonschema import Draft202012Validator

from exchange.commands import decode_command, decode_result
from exchange.documents import BRANCHES, TEXT, generated
from exchange.errors import ContractError
from exchange.readings import decode_pack
from exchange.receipts import decode_receipt
from exchange.requirements import REQUIREMENTS
from exchange.schema import schemas
from exchange.states import Descriptor, State, decode_state
from exchange.topics import parse_topic

# What shows how to work with the text is not the text.
APART = ("conformance", "walkthrough")
PAGES = {
    path.name: path.read_text(encoding="utf-8")
    for path in sorted(TEXT.glob("*.md"))
    if not path.name.startswith(APART)
}
WRITTEN = {name: text for name, text in PAGES.items() if TEXT / name not in generated()}
VALIDATORS = {name: Draft202012Validator(schema) for name, schema in schemas().items()}

ID = r"EX-[A-Z]-\d{3}"
SENTENCE = re.compile(rf"^- <a id=\"([\w-]+)\"></a>\*\*({ID})\*\* (.*(?:\n  .*)*)", re.MULTILINE)
EXAMPLE = re.compile(
    r"(?:<!-- example: (.*?) -->\n)?^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL
)
LINK = re.compile(r"\]\(([^)\s]+)\)")


class Stated(NamedTuple):
    """A requirement as a page states it."""

    page: str
    anchor: str
    name: str
    text: str


class Example(NamedTuple):
    """A marked block: what it is said to be, and what it holds."""

    page: str
    said: str
    language: str
    body: str


STATED = [
    Stated(page, anchor, name, " ".join(text.split()))
    for page, text in WRITTEN.items()
    for anchor, name, text in SENTENCE.findall(text)
]
EXAMPLES = [
    Example(page, said, language, body)
    for page, text in WRITTEN.items()
    for said, language, body in EXAMPLE.findall(text)
]


# -------------------------------------------------------------------------------------------- sentences


def test_text_and_code_state_the_same_requirements() -> None:
    names = [stated.name for stated in STATED]
    assert len(set(names)) == len(names)
    assert set(names) == set(REQUIREMENTS)


@pytest.mark.parametrize("stated", STATED, ids=lambda stated: stated.name)
def test_a_requirement_stands_word_for_word_on_its_page(stated: Stated) -> None:
    assert stated.text == REQUIREMENTS[stated.name].text
    assert stated.anchor == stated.name.lower()
    assert stated.page == BRANCHES[stated.name[3]][1]


@pytest.mark.parametrize("page", WRITTEN)
def test_nothing_is_required_without_an_id(page: str) -> None:
    without = SENTENCE.sub("", WRITTEN[page])
    assert re.findall(r'.*(?<!")\bMUST\b.*', without) == []
    assert re.findall(r".*\b(?:SHALL|REQUIRED)\b.*", without) == []


@pytest.mark.parametrize("page", PAGES)
def test_ids_that_are_named_are_known(page: str) -> None:
    assert set(re.findall(ID, PAGES[page])) <= set(REQUIREMENTS)


# ------------------------------------------------------------------------------------------------ links


def anchors(path: Path) -> set[str]:
    """The places in a page that a link may name: headings, as GitHub names them, and anchors."""
    text = path.read_text(encoding="utf-8")
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    return slugs | set(re.findall(r'<a id="([\w-]+)"', text))


def links(page: str) -> Iterator[str]:
    yield from (link for link in LINK.findall(PAGES[page]) if "://" not in link)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for link in links(page):
        file, _, anchor = link.partition("#")
        path = TEXT / file if file else TEXT / page
        assert path.exists(), link
        assert not anchor or anchor in anchors(path), link


def test_every_page_can_be_found_from_the_first() -> None:
    assert set(PAGES) - {"README.md"} <= {link.partition("#")[0] for link in links("README.md")}


# -------------------------------------------------------------------------------------------- generated


@pytest.mark.parametrize("path", generated(), ids=lambda path: path.name)
def test_what_is_generated_is_what_the_code_says(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text == generated()[path], "run `python -m exchange.documents`"


@pytest.mark.parametrize("kind", [State, Descriptor], ids=lambda kind: kind.__name__)
def test_every_field_of_a_state_is_explained(kind: type[State | Descriptor]) -> None:
    explained = set(re.findall(r"`([a-z_]+)`", re.sub(r"```.*?```", "", PAGES["state.md"])))
    assert set(kind.__struct_encode_fields__) <= explained


# --------------------------------------------------------------------------------------------- examples


def decoded(said: str, payload: bytes) -> str | None:
    """Decode a message as its channel's reader does; return the first requirement that it breaks."""
    kind, _, where = said.partition(" ")
    topic = parse_topic(where)
    channel = {"command": "commands", "result": "results", "receipt": "receipts"}.get(kind, kind)
    assert topic.channel == channel
    try:
        match kind:
            case "readings":
                refusals = decode_pack(payload, topic).refusals
                return refusals[0].requirement if refusals else None
            case "state":
                decode_state(payload)
            case "command":
                decode_command(payload)
            case "result":
                decode_result(payload)
            case "receipt":
                decode_receipt(payload)
            case _:
                raise AssertionError(f"an example of {kind}")
    except ContractError as error:
        return error.requirement
    return None


def schema_of(said: str) -> Draft202012Validator:
    kind, _, where = said.partition(" ")
    return VALIDATORS[f"readings-{parse_topic(where).domain}" if kind == "readings" else kind]


def test_every_kind_of_message_is_shown() -> None:
    assert {example.said.split(" ")[0] for example in EXAMPLES if example.language == "json"} == {
        "readings", "state", "command", "result", "receipt", "broken",
    }  # fmt: skip  # a list


@pytest.mark.parametrize(
    "example", EXAMPLES, ids=lambda example: f"{example.page}-{example.said or example.language}"
)
def test_an_example_is_what_it_says(example: Example) -> None:
    match example.said.split(" ", 2):
        case ["cbor", where]:
            payload = bytes.fromhex(example.body)
            assert decoded(f"readings {where}", payload) is None
            assert payload[:1] != b"["
        case ["broken", requirement, said]:
            assert decoded(said, payload_of(example)) == requirement
        case [_, _]:
            payload = payload_of(example)
            assert decoded(example.said, payload) is None
            schema_of(example.said).validate(json.loads(payload))
        case _:  # a picture
            assert example.language == "text"


def payload_of(example: Example) -> bytes:
    assert example.language == "json"
    message: Any = json.loads(example.body)
    return json.dumps(message, ensure_ascii=False).encode()


def test_the_topics_of_the_table_are_judged_so() -> None:
    table = PAGES["topics.md"].partition("<!-- topics -->")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(.*?)` \| (.*?) \|$", table, re.MULTILINE)
    assert len(rows) > 5
    for topic, said in rows:
        if said == "good":
            assert str(parse_topic(topic)) == topic
        else:
            with pytest.raises(ContractError) as raised:
                parse_topic(topic)
            assert raised.value.requirement == said
