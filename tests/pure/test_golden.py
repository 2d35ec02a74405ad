"""Golden payloads: what once was sent is read the same for ever. Their folder says how to add one."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import pytest
from jsonschema import Draft202012Validator

from exchange.commands import decode_command, decode_result, encode_command, encode_result
from exchange.dictionary import dictionary
from exchange.errors import ContractError
from exchange.readings import Pack, decode_pack, encode_pack
from exchange.receipts import decode_receipt, encode_receipt
from exchange.requirements import REQUIREMENTS
from exchange.schema import schemas
from exchange.states import decode_state, encode_state
from exchange.topics import parse_topic

FOLDER = Path(__file__).parents[1] / "golden" / "exchange"
GOLDEN = {path.stem: path for path in sorted(FOLDER.glob("*.json"))}
DECODERS: dict[str, Any] = {
    "state": decode_state,
    "command": decode_command,
    "result": decode_result,
    "receipt": decode_receipt,
}
ENCODERS: dict[str, Any] = {
    "state": encode_state,
    "command": encode_command,
    "result": encode_result,
    "receipt": encode_receipt,
}


def golden(name: str) -> tuple[str, dict[str, Any]]:
    """The kind of a golden payload, and what its file says."""
    return name.split("-")[0], json.loads(GOLDEN[name].read_text(encoding="utf-8"))


def payloads(content: dict[str, Any]) -> list[bytes]:
    """The payload's forms: JSON, and CBOR where it has one."""
    forms = [content["payload"].encode()] if "payload" in content else []
    return forms + ([bytes.fromhex(content["payload_cbor"])] if "payload_cbor" in content else [])


def read(kind: str, content: dict[str, Any], payload: bytes) -> Any:
    """What a payload decodes to, in plain JSON."""
    try:
        if kind == "readings":
            pack = decode_pack(payload, parse_topic(content["topic"]))
            refusals = msgspec.to_builtins(pack.refusals)
            for refusal in refusals:
                del refusal["detail"]  # for people, and free to change
            return {"samples": msgspec.to_builtins(pack.samples), "refusals": refusals}
        message = DECODERS[kind](payload)
        return message and json.loads(ENCODERS[kind](message))
    except ContractError as error:
        return {"broken": error.requirement}


@pytest.mark.parametrize("name", GOLDEN)
def test_a_golden_payload_is_read_as_ever(name: str) -> None:
    kind, content = golden(name)
    forms = payloads(content)
    assert forms
    for payload in forms:
        found = read(kind, content, payload)
        assert found == content["decodes_to"]
        # `==` takes 1 for 1.0 and for true; the text of the metrics does not
        assert json.dumps(found) == json.dumps(content["decodes_to"])


@pytest.mark.parametrize("name", GOLDEN)
def test_what_is_read_without_a_word_fits_the_schema_and_is_written_again(name: str) -> None:
    kind, content = golden(name)
    expected = content["decodes_to"]
    if not content.get("payload") or "broken" in expected or expected.get("refusals"):
        return
    topic = parse_topic(content["topic"]) if kind == "readings" else None
    schema = schemas()[f"readings-{topic.domain}" if topic else kind]
    Draft202012Validator(schema).validate(json.loads(content["payload"]))
    if topic:
        pack = decode_pack(content["payload"].encode(), topic)
        for form in ("json", "cbor"):
            assert decode_pack(encode_pack(topic, pack.samples, form), topic) == Pack(
                pack.samples, []
            )


def test_golden_payloads_are_frozen() -> None:
    lines = (FOLDER / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
    sums = {name: digest for digest, name in map(str.split, lines)}
    assert sums == {path.name: sha256(path.read_bytes()).hexdigest() for path in GOLDEN.values()}


def test_there_is_one_of_everything() -> None:
    topics = [
        parse_topic(content["topic"]) for kind, content in map(golden, GOLDEN) if kind == "readings"
    ]
    assert {topic.domain for topic in topics} == set(dictionary())
    assert {name.split("-")[0] for name in GOLDEN} == {"readings", *DECODERS}
    broken = {
        found
        for _, content in map(golden, GOLDEN)
        for found in (
            content["decodes_to"] and content["decodes_to"].get("broken"),
            *(r["requirement"] for r in (content["decodes_to"] or {}).get("refusals", [])),
        )
        if found
    }
    # a pack of 256 KiB would be no reading matter
    wanted = {
        name for name, one in REQUIREMENTS.items() if name[3] in "RDSC" and one.shown == "message"
    }
    assert broken >= wanted - {"EX-R-002"}
