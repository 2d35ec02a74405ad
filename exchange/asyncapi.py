"""The exchange as an AsyncAPI 3.0 document, as a gateway sees it, generated from its types and dictionaries.

Payloads refer to the JSON Schemas in the same folder. CBOR packs have no JSON Schema of their own: they are
the JSON ones with the integer labels of RFC 8428, table 4.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from exchange.commands import Command, Result, encode_command, encode_result
from exchange.dictionary import dictionary
from exchange.readings import Sample, encode_pack
from exchange.receipts import Receipt, encode_receipt
from exchange.states import Descriptor, Label, Location, State, encode_state
from exchange.topics import COUNTY, LEVEL, PREFIX, Topic

Node = dict[str, Any]

VERSION = "1.0.0"
SCHEMA_FORMAT = "application/schema+json;version=draft-2020-12"

_SINCE = datetime(2026, 9, 21, 12, tzinfo=UTC)
_EPOCH = 1_789_990_000_456
_ID = UUID("0b6c5d7e-3c53-4b61-9d0f-6f0f6a8f3f10")
_LEVELS = {
    "county": (f"ISO 3166-2 in lower case: {COUNTY.pattern}", "tw-tpe"),
    "site": (f"A field site of the county: {LEVEL.pattern}", "xinyi"),
    "gateway": (f"What publishes, unique in the county: {LEVEL.pattern}", "gw-3"),
    "device": (f"Unique in the county, for the life of the installation: {LEVEL.pattern}", "aq-7"),
}


def asyncapi() -> Node:
    """Return the document."""
    domains = list(dictionary())
    channels = {_camel("readings", domain): _readings(domain) for domain in domains} | {
        name: _channel(name, about, [message], domains=domains)
        for name, (message, about) in _CHANNELS.items()
    }
    channels["receipts"] = {
        "address": f"{PREFIX}/{{county}}/{{site}}/{{gateway}}/receipts",
        "summary": "What ingest has made durable, or has refused for good.",
        "parameters": _parameters("county", "site", "gateway"),
        "messages": {"receipt": _to("components", "messages", "receipt")},
    }
    return {
        "asyncapi": "3.0.0",
        "id": "urn:onestreet:exchange:v1",
        "info": {
            "title": "The exchange",
            "version": VERSION,
            "description": "One interface between a town's devices, its services and its applications, over MQTT. The "
            "normative text is docs/exchange; this document is generated, as a gateway sees it.",
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "servers": {"town": _server()},
        "channels": channels,
        "operations": _operations(domains),
        "components": {
            "messages": _messages(domains),
            "securitySchemes": {
                "certificate": {
                    "type": "X509",
                    "description": "A client certificate of the gateway's own, from the town's authority.",
                },
                "password": {
                    "type": "userPassword",
                    "description": "A user name and password of the gateway's own, inside TLS.",
                },
            },
        },
    }


def written() -> str:
    """Return the document as its file holds it."""
    return json.dumps(asyncapi(), ensure_ascii=False, indent=2) + "\n"


_CHANNELS = {
    "state": (
        "state",
        "Who the device is and whether its gateway stands behind it; empty: retired.",
    ),
    "commands": ("command", "Orders of named applications to the device."),
    "results": ("result", "What became of a command."),
}


def _server() -> Node:
    return {
        "host": "{broker}:8883",
        "protocol": "mqtts",
        "protocolVersion": "3.1.1",
        "description": "A town's broker; TLS everywhere but on loopback. MQTT 5 serves as well.",
        "variables": {"broker": {"default": "broker.example.org", "description": "The broker."}},
        "security": [
            _to("components", "securitySchemes", "certificate"),
            _to("components", "securitySchemes", "password"),
        ],
    }


# ---------------------------------------------------------------------------------------------- channels


def _readings(domain: str) -> Node:
    messages = [_camel("readings", domain), "readingsCbor"]
    about = f"Samples of one device: {dictionary()[domain].en.lower()}."
    return _channel("readings", about, messages, domain=domain)


def _channel(
    channel: str,
    about: str,
    messages: list[str],
    *,
    domain: str = "{domain}",
    domains: Sequence[str] = (),
) -> Node:
    parameters = _parameters("county", "site", "gateway", "device")
    if domains:
        parameters["domain"] = {"enum": list(domains), "description": "A service domain."}
    return {
        "address": f"{PREFIX}/{{county}}/{{site}}/{{gateway}}/{domain}/{{device}}/{channel}",
        "summary": about,
        "parameters": parameters,
        "messages": {name: _to("components", "messages", name) for name in messages},
    }


def _parameters(*names: str) -> Node:
    return {
        name: {"description": about, "examples": [example]}
        for name, (about, example) in _LEVELS.items()
        if name in names
    }


# -------------------------------------------------------------------------------------------- operations


def _operations(domains: list[str]) -> Node:
    """Return what a gateway does; what it sends, ingest and applications receive."""
    send = {
        _camel("send", "readings", domain): _operation(
            "send", _camel("readings", domain), "Send samples until their receipt."
        )
        for domain in domains
    }
    command = _operation("receive", "commands", "Execute a command at most once; answer it.")
    command["reply"] = {"channel": _to("channels", "results")}
    return send | {
        "sendState": _operation("send", "state", "Say who a device is.", retain=True),
        "receiveCommand": command,
        "sendResult": _operation("send", "results", "Send a result until its receipt."),
        "receiveReceipt": _operation("receive", "receipts", "Forget what the store has."),
    }


def _operation(action: str, channel: str, about: str, *, retain: bool = False) -> Node:
    return {
        "action": action,
        "channel": _to("channels", channel),
        "summary": about,
        "bindings": {"mqtt": {"qos": 1, "retain": retain, "bindingVersion": "0.2.0"}},
    }


# ---------------------------------------------------------------------------------------------- messages


def _messages(domains: list[str]) -> Node:
    messages = {
        _camel("readings", domain): _message(
            f"readings-{domain}",
            "application/senml+json",
            f"A SenML pack in JSON: {dictionary()[domain].en.lower()}.",
            [
                (profile.name, _pack(domain, profile.example))
                for profile in dictionary()[domain].profiles
            ],
        )
        for domain in domains
    }
    messages["readingsCbor"] = {
        "name": "readings-cbor",
        "title": "readings in CBOR",
        "summary": "The same pack in CBOR, with the integer labels of RFC 8428, table 4.",
        "contentType": "application/senml+cbor",
    }
    return messages | {
        name: _message(name, "application/json", about, [(name, example)])
        for name, (about, example) in _examples().items()
    }


def _message(name: str, content: str, about: str, examples: list[tuple[str, object]]) -> Node:
    return {
        "name": name,
        "title": name,
        "summary": about,
        "contentType": content,
        "payload": {
            "schemaFormat": SCHEMA_FORMAT,
            "schema": {"$ref": f"./{name}.schema.json"},
        },
        "examples": [{"name": each, "payload": payload} for each, payload in examples],
    }


def _pack(domain: str, metrics: dict[str, float | int | bool]) -> object:
    device = "gw-3" if domain == "gateway" else f"{domain}-7"
    topic = Topic("tw-tpe", "xinyi", "gw-3", domain, device, "readings")
    return json.loads(encode_pack(topic, [Sample(1_790_000_000_250, _EPOCH, 17, metrics)]))


def _examples() -> dict[str, tuple[str, object]]:
    state = State(
        v=1,
        online=True,
        since=_SINCE,
        interval_s=60,
        epoch=_EPOCH,
        descriptor=Descriptor(
            maker="Example",
            model="L2",
            label=Label(en="Lamp 231", zh_tw="路燈 231"),
            asset_id="大安-0231",
            location=Location(lat=25.0262, lon=121.5436),
            metrics={"lit": 60, "level": 60, "power": 60},
            commands=["set_level"],
        ),
    )
    command = Command(
        id=_ID,
        name="set_level",
        args={"level": 40},
        issued_at=_SINCE,
        expires_at=_SINCE + timedelta(minutes=1),
        issued_by="night shift",
    )
    result = Result(
        v=1, id=_ID, status="done", at=_SINCE + timedelta(seconds=1), readback={"level": 40}
    )
    receipt = Receipt(
        v=1,
        stored={"aq-7": [(_EPOCH, 0, 41)]},
        refused={"aq-7": [(_EPOCH, 42, 42, "EX-R-008")]},
        results=[(str(_ID), "done")],
    )
    return {
        "state": ("The state of one device.", json.loads(encode_state(state))),
        "command": ("An order to one device.", json.loads(encode_command(command))),
        "result": ("What became of a command.", json.loads(encode_result(result))),
        "receipt": ("What is stored and what is refused.", json.loads(encode_receipt(receipt))),
    }


# ----------------------------------------------------------------------------------------------- names


def _to(*path: str) -> Node:
    return {"$ref": "#/" + "/".join(path)}


def _camel(first: str, *words: str) -> str:
    return first + "".join(word.capitalize() for word in words)
