"""The AsyncAPI document: AsyncAPI's own rules, the channels of the code, and examples that are what they say."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator
from typing import Any, get_args

import pytest
from jsonschema import Draft202012Validator

from exchange.asyncapi import SCHEMA_FORMAT, asyncapi
from exchange.dictionary import dictionary
from exchange.documents import ASYNCAPI
from exchange.topics import Channel, parse_topic

DOCUMENT = asyncapi()
DIALECT = Draft202012Validator.META_SCHEMA["$id"]


def members(*names: str, required: str = "", **schemas: Any) -> dict[str, Any]:
    """An object of these members, of which some are required and some are checked further."""
    return {
        "type": "object",
        "properties": {name: {} for name in names} | schemas,
        "required": required.split(),
        "additionalProperties": False,
    }


def several(schema: dict[str, Any]) -> dict[str, Any]:
    """A map of objects, any of which may be a reference instead."""
    reference = members("$ref", required="$ref")
    return {"type": "object", "additionalProperties": {"anyOf": [reference, schema]}}


# What AsyncAPI 3.0.0 allows and requires of the objects that the document is made of.
# Source: AsyncAPI Specification 3.0.0, "AsyncAPI Object" to "Message Object"; MQTT binding 0.2.0
ABOUT = ("title", "summary", "description", "tags", "externalDocs")
REFERENCE = members("$ref", required="$ref")
MQTT = members(
    "bindingVersion",
    "messageExpiryInterval",
    qos={"enum": [0, 1, 2]},
    retain={"type": "boolean"},
)
SERVER = members(
    *("host", "protocol", "pathname", "protocolVersion", "variables", "security", "bindings"),
    *ABOUT,
    required="host protocol",
)
PARAMETER = members("enum", "default", "description", "examples", "location")
MESSAGE = members(
    *("headers", "payload", "correlationId", "contentType", "name", "bindings", "examples"),
    *("traits", *ABOUT),
)
CHANNEL = members(
    *("address", "servers", "bindings", *ABOUT),
    messages=several(MESSAGE),
    parameters=several(PARAMETER),
)
OPERATION = members(
    *("security", "traits", "reply", *ABOUT),
    required="action channel",
    action={"enum": ["send", "receive"]},
    channel=REFERENCE,
    messages={"type": "array", "items": REFERENCE},
    bindings={"type": "object", "properties": {"mqtt": MQTT}},
)
RULES = members(
    *("id", "defaultContentType"),
    required="asyncapi info",
    asyncapi={"const": "3.0.0"},
    info=members(
        *("title", "version", "description", "termsOfService", "contact", "license"),
        *("tags", "externalDocs"),
        required="title version",
    ),
    servers=several(SERVER),
    channels=several(CHANNEL),
    operations=several(OPERATION),
    components=members(
        *("schemas", "servers", "serverVariables", "replies", "replyAddresses", "securitySchemes"),
        *("correlationIds", "tags", "externalDocs", "operationTraits", "messageTraits"),
        *("serverBindings", "channelBindings", "operationBindings", "messageBindings"),
        channels=several(CHANNEL),
        operations=several(OPERATION),
        messages=several(MESSAGE),
        parameters=several(PARAMETER),
    ),
)


@pytest.fixture(scope="module")
def rules() -> Draft202012Validator:
    return Draft202012Validator(RULES)


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


def test_it_keeps_the_rules_of_asyncapi(rules: Draft202012Validator) -> None:
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
def test_the_rules_are_rules(rules: Draft202012Validator, change: str) -> None:
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
