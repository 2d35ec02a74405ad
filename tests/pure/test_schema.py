"""The JSON Schemas: those in the repository are the generated ones, and they judge as the decoders do."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from exchange.dictionary import dictionary
from exchange.errors import ContractError
from exchange.readings import decode_pack, encode_pack
from exchange.schema import FOLDER, schemas, write, written
from tests.packs import BT, Record, domains, head, packed, readings_topic, samples

GOLDEN = Path(__file__).parents[1] / "golden" / "exchange"
VALIDATORS = {name: Draft202012Validator(schema) for name, schema in schemas().items()}


def valid(name: str, message: Any) -> bool:
    return bool(VALIDATORS[name].is_valid(message))


def test_the_files_are_what_the_types_and_dictionaries_say() -> None:
    files = {path.name.removesuffix(".schema.json"): path for path in FOLDER.glob("*.schema.json")}
    assert set(files) == set(schemas()), "run `python -m exchange.schema`"
    for name, schema in schemas().items():
        assert files[name].read_text(encoding="utf-8") == written(schema), (
            f"{name}: run `python -m exchange.schema`"
        )


def test_writing_removes_what_is_no_schema_any_more(tmp_path: Path) -> None:
    (tmp_path / "readings-water.schema.json").write_text("{}")
    write(tmp_path)
    assert len(list(tmp_path.iterdir())) == len(schemas()) == len(dictionary()) + 4


@pytest.mark.parametrize("name", VALIDATORS)
def test_a_schema_is_one(name: str) -> None:
    Draft202012Validator.check_schema(schemas()[name])


@given(st.data(), domains)
def test_what_we_send_is_valid(data: st.DataObject, domain: str) -> None:
    payload = encode_pack(readings_topic(domain), data.draw(samples(domain)))
    VALIDATORS[f"readings-{domain}"].validate(json.loads(payload))


PM: Record = {"n": "pm2_5", "u": "ug/m3", "v": 12.5}
GOOD: list[Record] = [
    head(),
    {"n": "seq", "v": 0},
    PM,
    {"n": "x-acme-raw", "v": 7},
    {"bt": BT + 5, "n": "seq", "v": 1},
    {"n": "co", "u": "ppm", "v": 0.4},
    {"n": "pressure", "u": "Pa", "v": 101325},
]
MARK: Record = {"n": "quality", "vs": "bad:range(humidity)"}


def changed(at: int, **labels: Any) -> list[Record]:
    pack = copy.deepcopy(GOOD)
    pack[at] |= labels
    return pack


BAD: list[Any] = [
    [], {}, None, "pack", [head()], GOOD[1:], [*GOOD, head()], [*GOOD, 5],
    [*GOOD, {"n": "epoch", "v": 1}], [GOOD[0], *GOOD[2:4]],
    changed(0, bn="tw-tpe:dev-7"), changed(0, bn="TW-TPE:dev-7:"), changed(0, bn="tw-tpe:dev-7:\n"),
    changed(1, bn="tw-tpe:dev-7:"),
    changed(0, bt=0), changed(0, bt=1.75e12), changed(0, bt="now"), changed(4, bt=5),
    changed(0, bver=11), changed(0, bver=10), changed(1, bver=26),
    changed(0, v=-1), changed(0, v=1.5), changed(0, v=2**53), changed(0, u="ms"), changed(1, v=-1), changed(1, v="0"),
    changed(1, u="count"), changed(2, n="lit"), changed(2, n="x-"), changed(2, n="x-a-b\n"), changed(2, n=7),
    changed(2, v=1001), changed(2, v=-1), changed(2, v=2**53), changed(2, v=None), changed(2, v="12"),
    changed(2, vs="12"), changed(2, vb=True), changed(2, u="Cel"), changed(2, u="µg/m3"), changed(2, s=1),
    changed(2, bu="W"),
    changed(3, v=2**53), changed(3, u="furlong"), changed(2, t="1"),
    [*GOOD[:3], {"n": "pm1", "vb": True}], [*GOOD[:3], {"n": "x-acme-a", "vb": True}], [*GOOD[:3], {"n": "pm1"}],
    [*GOOD[:3], {"n": "quality", "vs": "bad:luck"}], [*GOOD[:3], {"n": "quality", "v": 1}],
    [*GOOD[:3], {"n": "humidity", "v": 101}],
]  # fmt: skip  # a table


def test_a_good_pack_is_valid() -> None:
    assert valid("readings-air", GOOD)
    assert valid("readings-air", [*GOOD[:3], {"n": "humidity", "v": 101}, MARK])
    assert decode_pack(packed(GOOD), readings_topic()).refusals == []


@pytest.mark.parametrize("pack", BAD)
def test_a_bad_pack_is_not(pack: Any) -> None:
    assert not valid("readings-air", pack)


def test_types_of_other_domains() -> None:
    start: list[Record] = [head("parking"), {"n": "seq", "v": 0}]
    assert valid("readings-parking", [*start, {"n": "occupied", "vb": True}])
    assert valid("readings-parking", [*start, {"n": "free_car", "u": "count", "v": 5.0}])
    for record in (
        {"n": "occupied", "v": 1},
        {"n": "occupied", "vb": True, "u": "count"},
        {"n": "free_car", "v": 5.5},
        {"n": "free_car", "vb": True},
    ):
        assert not valid("readings-parking", [*start, record])


@given(st.data(), domains)
def test_what_is_taken_without_a_word_is_valid(data: st.DataObject, domain: str) -> None:
    payload = encode_pack(readings_topic(domain), data.draw(samples(domain)))
    records: list[Record] = json.loads(payload)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(records) - 1))
        label = data.draw(st.sampled_from(["bt", "bver", "n", "u", "v", "vs", "vb", "t"]))
        value = st.sampled_from(
            [
                0,
                1,
                0.5,
                5.0,
                101,
                "",
                "humidity",
                "ppm",
                "Pa",
                "count",
                "bad:comm",
                True,
                10,
                26,
                "x-a-b",
            ]
        )
        records[at] = records[at] | {label: data.draw(value)}
    try:
        pack = decode_pack(packed(records), readings_topic(domain))
    except ContractError:
        return  # refused: the schema may say what it likes
    if not pack.refusals:
        VALIDATORS[f"readings-{domain}"].validate(records)


BAD_MESSAGES: dict[str, list[dict[str, Any]]] = {
    "receipt": [
        {"v": 2}, {"stored": []}, {"stored": {"aq-7": [[1, 2]]}}, {"stored": {"aq-7": [[1, 2, -3]]}},
        {"refused": {"aq-7": [[1, 2, 3, "no"]]}}, {"unreadable": [["00", "EX-R-001"]]}, {"results": [["x"]]},
    ],
    "state": [
        {"v": 0}, {"online": "yes"}, {"interval_s": 0}, {"epoch": -1}, {"since": 5},
        {"descriptor": {"location": {"lat": 91, "lon": 0}}}, {"descriptor": {"maker": 5}},
    ],
    "command": [{"id": 7}, {"name": "Set"}, {"name": "off\n"}, {"args": {"level": None}}, {"issued_at": 0}],
    "result": [{"v": 2}, {"status": "maybe"}, {"at": None}, {"readback": {"level": "40"}}],
}  # fmt: skip  # a table


@pytest.mark.parametrize("name", BAD_MESSAGES)
def test_a_bad_message_is_not_valid(name: str) -> None:
    goldens = [
        json.loads(path.read_text(encoding="utf-8")) for path in GOLDEN.glob(f"{name}-*.json")
    ]
    good = [
        json.loads(golden["payload"])
        for golden in goldens
        if golden["payload"] and "broken" not in golden["decodes_to"]
    ]
    assert good
    for message in good:
        VALIDATORS[name].validate(message)
        for change in BAD_MESSAGES[name]:
            assert not valid(name, message | change)
    required = schemas()[name]["$defs"][name.capitalize()]["required"]
    for label in required:
        assert not valid(name, {key: value for key, value in good[0].items() if key != label})
