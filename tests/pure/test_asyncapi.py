"""The AsyncAPI document: AsyncAPI's own rules, the channels of the code, and examples that are what they say."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from jsonschema import Draft7Validator, Draft202012Validator

from exchange.asyncapi import SCHEMA_FORMAT, asyncapi
from exchange.dictionary import dictionary
from exchange.documents import ASYNCAPI
from exchange.topics import Channel, parse_topic

RULES = Path(__file__).parent / "data" / "asyncapi-3.0.0.json"
DOCUMENT = asyncapi()
DIALECT = Draft202012Validator.META_SCHEMA["$id"]


@pytest.fixture(scope="module")
def rules() -> Draft7Validator:
    return Draft7Validator(json.loads(RULES.read_text(encoding="utf-8")))


def pointed(reference: str) -> Any:
    """What a reference inside the document stands for."""
    node: Any = DOCUMENT
    for step in reference.removeprefix("#/").split("/"):
        node = node[step]
    return node


def references(node: Any) -> Iterator[str]:
    match node:
        case {"$ref": str(reference)}:
            yield reference
        case dict():
            for each in node.values():
                yield from references(each)
        case list():
            for each in node:
                yield from references(each)


def test_it_keeps_the_rules_of_asyncapi(rules: Draft7Validator) -> None:
    rules.validate(DOCUMENT)


BROKEN: dict[str, Callable[[Any], Any]] = {
    "an unknown member": lambda it: it["channels"]["state"].update(topic="x"),
    "no title": lambda it: it["info"].pop("title"),
    "an action that there is not": lambda it: it["operations"]["sendState"].update(action="push"),
    "an operation without a channel": lambda it: it["operations"]["sendState"].pop("channel"),
    "a QoS that there is not": lambda it: it["operations"]["sendState"]["bindings"]["mqtt"].update(
        qos=3
    ),
    "a server without a protocol": lambda it: it["servers"]["town"].pop("protocol"),
}


@pytest.mark.parametrize("change", BROKEN)
def test_the_rules_are_rules(rules: Draft7Validator, change: str) -> None:
    document = copy.deepcopy(DOCUMENT)
    BROKEN[change](document)
    assert not rules.is_valid(document)


def test_every_reference_leads_somewhere() -> None:
    found = set(references(DOCUMENT))
    assert len(found) > 20
    for reference in found:
        if reference.startswith("#/"):
            assert pointed(reference)
        else:
            schema = json.loads((ASYNCAPI.parent / reference).read_text(encoding="utf-8"))
            assert schema["$schema"] == DIALECT
            assert SCHEMA_FORMAT.endswith("draft-2020-12")


def test_an_address_declares_its_parameters_and_is_a_topic() -> None:
    for channel in DOCUMENT["channels"].values():
        address, parameters = channel["address"], channel["parameters"]
        assert set(re.findall(r"{(\w+)}", address)) == set(parameters)
        for domain in parameters.get("domain", {"enum": [""]})["enum"]:
            levels = {name: each.get("examples", [domain])[0] for name, each in parameters.items()}
            topic = address.format(**levels)
            if "/gateway/" in topic:  # a gateway's device id is its gateway id
                topic = address.format(**levels | {"device": levels["gateway"]})
            assert str(parse_topic(topic)) == topic


def test_every_channel_is_there_and_its_quality_of_service() -> None:
    addresses = {channel["address"].split("/")[-1] for channel in DOCUMENT["channels"].values()}
    assert addresses == set(get_args(Channel))
    domains = {f"readings{domain.capitalize()}" for domain in dictionary()}
    assert domains < set(DOCUMENT["channels"])
    used = set()
    for operation in DOCUMENT["operations"].values():
        channel = pointed(operation["channel"]["$ref"])
        used.add(channel["address"])
        kind = channel["address"].split("/")[-1]
        mqtt = operation["bindings"]["mqtt"]
        assert (mqtt["qos"], mqtt["retain"]) == (1, kind == "state")
        assert operation["action"] == ("receive" if kind in ("commands", "receipts") else "send")
    assert used == {channel["address"] for channel in DOCUMENT["channels"].values()}


def test_the_examples_are_valid() -> None:
    seen = 0
    for message in DOCUMENT["components"]["messages"].values():
        if "payload" not in message:
            assert message["contentType"] == "application/senml+cbor"
            continue
        assert message["payload"]["schemaFormat"] == SCHEMA_FORMAT
        file = ASYNCAPI.parent / message["payload"]["schema"]["$ref"]
        validator = Draft202012Validator(json.loads(file.read_text(encoding="utf-8")))
        for example in message["examples"]:
            validator.validate(example["payload"])
            seen += 1
    profiles = sum(len(domain.profiles) for domain in dictionary().values())
    assert seen == profiles + 4
