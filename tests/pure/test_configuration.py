"""TOML into types: every error names the file, the key, the value and what would be right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exchange.configuration import (
    TomlFile,
    converted,
    mistakes,
    read_toml,
    toml_table,
    toml_value,
)
from exchange.errors import ConfigError


class Wire(msgspec.Struct, forbid_unknown_fields=True, tag_field="kind", tag="wire"):
    port: str
    parity: Literal["N", "E", "O"] = "N"


class Radio(msgspec.Struct, forbid_unknown_fields=True, tag_field="kind", tag="radio"):
    channel: Annotated[int, msgspec.Meta(ge=1, le=14)] = 1


class Place(msgspec.Struct, forbid_unknown_fields=True):
    lat: Annotated[float, msgspec.Meta(ge=-90, le=90)]


class House(msgspec.Struct, forbid_unknown_fields=True):
    name: Annotated[str, msgspec.Meta(pattern="^[a-z]+$")]
    interval_s: Annotated[float, msgspec.Meta(gt=0)] = 1.0
    mode: Literal["fast", "slow"] | None = None
    place: Place | None = None
    bus: list[Wire | Radio] = []
    words: dict[str, int] = {}


def read(folder: Path, text: str) -> House:
    path = folder / "house.toml"
    path.write_text(text, encoding="utf-8")
    return read_toml(path, House)


def test_a_good_file_is_the_type(tmp_path: Path) -> None:
    text = 'name = "a"\nplace = { lat = 25 }\n[[bus]]\nkind = "radio"\n[[bus]]\nkind = "wire"\nport = "x"'
    house = read(tmp_path, text)
    assert house == House("a", place=Place(25.0), bus=[Radio(1), Wire("x")])


WIRE = 'name = "a"\n[[bus]]\nkind = "radio"\n[[bus]]\nkind = "wire"\nport = "x"\n'


@pytest.mark.parametrize(
    ("text", "key", "value", "allowed"),
    [
        ("", "name", None, "this key is required"),
        ('nme = "a"', "nme", "a", "unknown key (did you mean name?)"),
        ('name = "a"\nzzz = 1', "zzz", 1, "allowed are name, interval_s, mode, place, bus, words"),
        ("name = 3", "name", 3, "Expected `str`"),
        ('name = "A1"', "name", "A1", "matching regex '^[a-z]+$'"),
        ('name = "a"\ninterval_s = 0', "interval_s", 0, "> 0"),
        ('name = "a"\ninterval_s = nan', "interval_s", None, "> 0"),
        ('name = "a"\nmode = "fats"', "mode", "fats", "one of fast, slow (did you mean fast?)"),
        ('name = "a"\nplace = {}', "place.lat", None, "this key is required"),
        ('name = "a"\nplace = { lat = 91 }', "place.lat", 91, "<= 90"),
        ('name = "a"\nplace = { lat = 1, lon = 2 }', "place.lon", 2, "allowed are lat"),
        ('name = "a"\nplace = 5', "place", 5, "Expected `object`, got `int`"),
        (WIRE + 'speed = "N"', "bus[1].speed", "N", "allowed are kind, port, parity"),
        (WIRE + 'parrity = "N"', "bus[1].parrity", "N", "did you mean parity?"),
        (WIRE + 'parity = "X"', "bus[1].parity", "X", "one of E, N, O"),
        ('name = "a"\n[[bus]]\nchannel = 3', "bus[0].kind", None, "required: one of wire, radio"),
        ('name = "a"\n[[bus]]\nkind = "wires"', "bus[0].kind", "wires", "(did you mean wire?)"),
        ('name = "a"\n[[bus]]\nkind = "radio"\nchannel = 15', "bus[0].channel", 15, "<= 14"),
        ('name = "a"\nbus = 1', "bus", 1, "Expected `array`"),
    ],
)
def test_what_is_wrong_is_named(
    tmp_path: Path, text: str, key: str, value: object, allowed: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text)
    error = caught.value
    assert error.file == str(tmp_path / "house.toml")
    assert error.key == key
    assert error.value == value or value is None
    assert allowed in error.allowed
    for part in (error.file, key, error.allowed):
        assert part in str(error)
    assert (f" = {error.value!r}: " in str(error)) == (error.value is not None)


@pytest.mark.parametrize(
    ("content", "allowed"),
    [
        (b'name = "a', "must be valid TOML"),
        (b'name = "a"\nname = "b"', "must be valid TOML"),
        (b"floors = " + b"9" * 5000, "must be valid TOML"),
        (b"floors = " + b"[" * 100_000, "must be valid TOML"),
        (b'name = "\xff"', "must be a readable TOML file"),
    ],
)
def test_what_is_no_toml(tmp_path: Path, content: bytes, allowed: str) -> None:
    path = tmp_path / "house.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=allowed) as caught:
        read_toml(path, House)
    assert caught.value.key == "file"


def test_what_windows_makes_of_a_file_is_taken(tmp_path: Path) -> None:
    house = read(tmp_path, WIRE)
    (tmp_path / "house.toml").write_bytes(b"\xef\xbb\xbf" + WIRE.replace("\n", "\r\n").encode())
    assert read_toml(tmp_path / "house.toml", House) == house


def test_no_file_and_a_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere.toml", tmp_path):
        with pytest.raises(ConfigError, match="must be a readable TOML file") as caught:
            read_toml(path, House)
        assert caught.value.file == str(path)


def test_a_part_of_a_file_is_named_with_its_place() -> None:
    with pytest.raises(ConfigError) as caught:
        converted({"lat": 1, "latt": 2}, Place, "x.toml", "device[3].place")
    assert caught.value.key == "device[3].place.latt"
    with pytest.raises(ConfigError) as caught:
        converted([1], Place, "x.toml", "device[3].place")
    assert caught.value.key == "device[3].place"
    with pytest.raises(ConfigError) as caught:
        converted([1], Place, "x.toml")
    assert caught.value.key == "file"


def test_by_its_kind_a_mistake_is_told_and_not_by_its_words() -> None:
    def kinds(data: object) -> list[tuple[str, str]]:
        return [(one.key, one.kind) for one in mistakes(data, House, "f")]

    assert kinds({"name": "a"}) == []
    assert kinds(7) == [("file", "file")]
    assert kinds({}) == [("name", "missing")]
    assert kinds({"name": 7, "zzz": 1, "place": {"lat": 91, "lon": 0}, "mode": "x"}) == [
        ("name", "value"),
        ("zzz", "unknown"),
        ("place.lat", "value"),
        ("place.lon", "unknown"),
        ("mode", "value"),
    ]
    # a list says its first alone; what a key in it lacks is its own affair
    bus = [{"kind": "wire"}, {"kind": "wire", "prt": 1}]
    assert kinds({"name": "a", "bus": bus}) == [("bus[0].port", "missing")]
    assert kinds({"bus": bus, "nam": "a"}) == [("bus[0].port", "missing"), ("nam", "unknown")]


def test_of_a_table_with_a_tag_the_tag_comes_first() -> None:
    union: Any = Wire | Radio
    assert [(one.key, one.kind) for one in mistakes({"port": 7}, union, "f")] == [
        ("kind", "missing")
    ]
    wrong = {"kind": "wire", "parity": "X", "kin": 1}
    assert [(one.key, one.kind) for one in mistakes(wrong, union, "f", "bus[1]")] == [
        ("bus[1].parity", "value"),
        ("bus[1].kin", "unknown"),
        ("bus[1].port", "missing"),
    ]


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    values = {
        "name": 'a "quoted" 名稱 \\ \n',
        "numbers": [1, 2.5, 1e300, -0.0],
        "is_on": True,
        "words": {"zh-TW": "臺北市", "a key.with, signs": {"deep": ["x"]}},
        "nothing": [],
    }
    file = tmp_path / "written.toml"
    file.write_text(toml_table("[a.table]", **values), encoding="utf-8")
    assert read_toml(file, dict[str, Any]) == {"a": {"table": values}}


# --------------------------------------------------------------------------------------------------------- lines

TOWN = '''\
# a comment with [brackets] = "and more"
name = "a"   # 2
place = { lat = 1, "l.on" = 2 }
words.one = 1
text = """
[not.a.table]
key = 1
"""
list = [
  1, # "one"
  [2, 3],
  { a = 1,  b = [4] },
]
[bus]
"quoted key" = 'it''s [x] = 1' # no

[[street]]
id = 1
[street.lamp]
level = 1979-05-27 07:32:00
[[street]]
id = 2
[[street.house]]
number = +1_000
[[street.house]]
number = 0.5e-3
[street.lamp]
level = true
'''.replace("it''s", "its")


@pytest.mark.parametrize(
    ("key", "line"),
    [
        ("name", 2),
        ("place.lat", 3),
        ("place.l.on", 3),
        ("words.one", 4),
        ("text", 5),
        ("list", 9),
        ("list[0]", 10),
        ("list[1][1]", 11),
        ("list[2].b[0]", 12),
        ("bus", 14),
        ("bus.quoted key", 15),
        ("street[0]", 17),
        ("street[0].id", 18),
        ("street[0].lamp.level", 20),
        ("street[1].id", 22),
        ("street[1].house[0].number", 24),
        ("street[1].house[1].number", 26),
        ("street[1].lamp.level", 28),
        ("street[1].lamp.missing", 27),
        ("street[1].missing", 21),
        ("street[7].missing", 17),
        ("nothing", None),
    ],
)
def test_each_key_has_its_line(tmp_path: Path, key: str, line: int | None) -> None:
    path = tmp_path / "town.toml"
    for text in (TOWN, TOWN.replace("\n", "\r\n"), "\ufeff" + TOWN):
        path.write_text(text, encoding="utf-8", newline="")
        assert TomlFile(path).line_of(key) == line


def test_an_error_says_the_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, WIRE + 'parity = "X"')
    assert caught.value.line == 7
    assert str(caught.value).startswith(f"{tmp_path / 'house.toml'}:7: bus[1].parity = 'X': one of")
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, 'name = "a"\nx = = 1')
    assert caught.value.line == 2


toml_keys = st.sampled_from(["a", "b-c", "1", "d.e", "長", 'q"', "", "k = [", "'", "#"])
toml_data = st.recursive(
    st.integers(-9, 9) | st.booleans() | st.sampled_from(['"', "]", "}", "a # b", "\n", "'''", '"""', "\\"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(toml_keys, inner, max_size=3),
    max_leaves=10,
)  # fmt: skip


@given(data=st.lists(st.tuples(toml_keys, toml_data), max_size=6, unique_by=lambda pair: pair[0]))
def test_the_lines_of_any_file_are_those_where_its_keys_were_written(
    tmp_path_factory: pytest.TempPathFactory, data: list[tuple[str, object]]
) -> None:
    lines = [f"{json.dumps(key, ensure_ascii=False)} = {toml_value(value)}" for key, value in data]
    path = tmp_path_factory.mktemp("toml") / "file.toml"
    path.write_text("\n\n".join(lines), encoding="utf-8")
    file = TomlFile(path)
    assert file.data == dict(data)
    for number, (key, value) in enumerate(data):
        line = 2 * number + 1
        if key:
            assert file.line_of(key) == line
        if key and isinstance(value, list):
            assert all(file.line_of(f"{key}[{index}]") == line for index in range(len(value)))
