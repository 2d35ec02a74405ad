"""The kit's register table against published Modbus frames of many makers."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_drivers.errors import FrameError
from device_drivers.kit.profile import Point
from device_drivers.kit.register_table import (
    Layout,
    crc16,
    parse_response,
    read_request,
    sealed,
    write_request,
)
from device_drivers.kit.scaling import linear
from device_drivers.kit.vectors import Vector

DATA = Path(__file__).parent / "data" / "modbus_vectors.json"
VECTORS = msgspec.convert(json.loads(DATA.read_text()), list[Vector])
RECEIVED = [pytest.param(one, id=one.id) for one in VECTORS if one.direction == "rx"]
SENT = {one.id: one.frame_hex for one in VECTORS if one.direction == "tx"}


def fields(vector: Vector) -> list[Point]:
    """Return a vector's own table: its field names stand in for metrics."""
    return [
        Point(
            field=one["name"],
            metric=one["name"],
            at=one["offset"],
            type=one["type"],
            order=one.get("order", ""),
            scale=one.get("scale", 1),
            add=one.get("add", 0),
            bit=one.get("bit", 0),
            sentinel=one.get("sentinel"),
        )
        for one in vector.context.get("fields", [])
    ]


def decoded(vector: Vector) -> dict[str, Any]:
    context = vector.context
    response = parse_response(
        vector.frame,
        slave=context.get("slave"),
        function=context.get("function"),
        quantity=context.get("quantity"),
    )
    said: dict[str, Any] = {"slave": response.slave, "function": response.function}
    if response.exception:
        return said | {"exception": response.exception}
    if response.function in (1, 2):
        return said | {"bits": response.bits(context["quantity"])}
    if response.function == 6:
        address, value = response.registers
        return said | {"address": address, "value": value}
    points = fields(vector)
    values = {point.field: None for point in points}
    layout = Layout(points, 0, len(response.data))
    found = zip(layout.points, layout.raw_values(response.data), strict=True)
    return (
        said
        | {"registers": response.registers}
        | values
        | {
            point.field: None if raw is None else point.metric_value(raw)
            for point, raw in found
            if not isinstance(raw, str)
        }
    )


@pytest.mark.parametrize("vector", RECEIVED)
def test_received_frame(vector: Vector) -> None:
    if "error" in vector.expect:
        with pytest.raises(FrameError) as caught:
            decoded(vector)
        assert caught.value.kind == vector.expect["error"]
        return
    got = decoded(vector)
    for name, value in vector.expect.items():
        if isinstance(value, float):
            assert math.isclose(got[name], value, rel_tol=vector.rel_tol, abs_tol=vector.abs_tol)
        else:
            assert got[name] == value, name
            assert (got[name] is None) == (value is None)


REQUESTS = {
    "modbus_generic-d-06": sealed(bytes((2, 7))),
    "eastron_sdm-d-03": write_request(1, 0x16, [0x3F80, 0], multiple=True),
    "eastron_sdm-d-04": read_request(1, 4, 0, 2),
    "eastron_sdm-d-05": read_request(1, 3, 0x0C, 2),
    "senseair_s8-d-02": read_request(0xFE, 4, 3, 1),
    "senseair_s8-d-03": read_request(0xFE, 4, 0, 4),
    "senseair_s8-d-04": write_request(0xFE, 0, [0]),
    "senseair_s8-d-05": write_request(0xFE, 1, [0x7C06]),
    "senseair_s8-d-06": write_request(0xFE, 0x1F, [180]),
    "senseair_s8-d-07": write_request(0xFE, 0x1F, [0]),
    "senseair_s8-d-08": read_request(0xFE, 3, 0x1F, 1),
    "sensirion_scd30-d-02": read_request(0x61, 3, 0x28, 6),
    "sensirion_scd30-d-03": read_request(0x61, 3, 0x27, 1),
    "sensirion_scd30-d-04": read_request(0x61, 3, 0x20, 1),
    "sensirion_scd30-d-05": write_request(0x61, 0x36, [0]),
    "dfrobot_urm14-d-02": read_request(0x0C, 3, 5, 2),
    "dfrobot_urm14-d-03": write_request(0x0C, 8, [4]),
    "epever_ls_b-d-03": read_request(1, 4, 0x3100, 1),
    "banner_mgage-d-01": write_request(1, 0x1C, [0x0B4D]),
}


def test_every_request_of_the_vectors_is_built() -> None:
    assert {vector: frame.hex() for vector, frame in REQUESTS.items()} == SENT


@pytest.mark.parametrize("bit", range(8 * 9))
def test_no_single_bit_error_passes(bit: int) -> None:
    frame = bytearray(bytes.fromhex("010404436633341b38"))
    frame[bit // 8] ^= 1 << bit % 8
    with pytest.raises(FrameError):
        parse_response(bytes(frame), slave=1, function=4, quantity=2)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ("0104044366333400", "bad_byte_count"),  # a byte more than it counts
        ("01040343663334", "bad_byte_count"),  # half a register
        ("018402ff", "bad_length"),
        ("010600010003ff", "bad_length"),
        ("010700", "wrong_function"),
        ("01", "short"),
    ],
)
def test_a_sealed_frame_may_still_be_wrong(body: str, kind: str) -> None:
    with pytest.raises(FrameError) as caught:
        parse_response(sealed(bytes.fromhex(body)))
    assert caught.value.kind == kind


@given(st.binary(max_size=300))
def test_crc_of_a_sealed_frame_is_zero(body: bytes) -> None:
    assert crc16(sealed(body)) == 0


@given(raw=st.integers(-(2**31), 2**31), digits=st.integers(0, 6))
def test_scaled_values_are_the_printed_decimals(raw: int, digits: int) -> None:
    printed = f"{'-' if raw < 0 else ''}{abs(raw) // 10**digits}.{abs(raw) % 10**digits:0{digits}d}"
    assert linear(float(f"1e-{digits}"))(raw) == float(printed if digits else raw)


def test_whole_numbers_stay_whole() -> None:
    assert isinstance(linear(1)(7), int)
    assert linear(0.1, -40)(653) == 25.3
    assert linear(0.01)(2506) == 25.06
    assert 2506 * 0.01 != 25.06  # what a float product would give


@pytest.mark.parametrize(("order", "wire"), [("ABCD", "43663334"), ("CDAB", "33344366")])
@pytest.mark.parametrize("swapped", [False, True])
def test_every_order_gives_the_same_value(order: str, wire: str, swapped: bool) -> None:
    data = bytes.fromhex(wire)
    if swapped:
        order = "".join(order[at ^ 1] for at in range(4))
        data = bytes(data[at ^ 1] for at in range(4))
    point = Point(field="v", metric="v", at=0, type="float32", order=order)
    layout = Layout([point], 0, 4)
    assert layout.raw_values(data) == [pytest.approx(230.2)]
    assert layout.metrics(data) == {"v": pytest.approx(230.2)}


def test_text_is_two_characters_a_register() -> None:
    point = Point(field="model", at=1, type="text", length=5)
    layout = Layout([point], 0, 8)
    assert layout.raw_values(b"\x00\x00SDM12\x00") == ["SDM12"]
    assert layout.metrics(b"\x00\x00SDM12\x00") == {}, "it is no metric"


NUMBERS = ["bit", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float32", "float64"]


@st.composite
def tables(draw: st.DrawFn) -> list[Point]:
    """Return points of every kind, in any place and order, overlapping or not."""
    table = []
    for index in range(draw(st.integers(1, 12))):
        kind: Any = draw(st.sampled_from(NUMBERS))
        size = 8 if kind.endswith("64") else 4 if kind.endswith("32") else 2
        order = "".join(draw(st.permutations("ABCDEFGH"[:size]))) if draw(st.booleans()) else ""
        plain = draw(st.booleans())
        table.append(
            Point(
                field=f"f{index}",
                metric=f"x-a-{index}",
                at=draw(st.integers(0, 12)),
                type=kind,
                order=order,
                bit=draw(st.integers(0, 15)),
                scale=1 if plain else 0.1,
                add=0 if plain else -40,
                sentinel=None if plain else draw(st.sampled_from([None, 0, 0xFFFF])),
            )
        )
    return table


def by_hand(point: Point, registers: bytes) -> float | None:
    """Decode one point as the standard words it, slowly: the second witness."""
    size = point.register_bytes
    wire = registers[2 * point.at : 2 * point.at + size]
    letters = point.order or "ABCDEFGH"[:size]
    value = bytes(wire[letters.index(letter)] for letter in "ABCDEFGH"[:size])
    if point.type.startswith("float"):
        (number,) = struct.unpack(">f" if size == 4 else ">d", value)
        return point.metric_value(number) if math.isfinite(number) else None
    whole = int.from_bytes(value, signed=point.type.startswith("int"))
    if point.type == "bit":
        return point.metric_value(bool(whole >> point.bit & 1))
    return None if whole == point.sentinel else point.metric_value(whole)


@given(tables(), st.binary(min_size=32, max_size=32))
def test_a_compiled_layout_says_what_its_points_say(table: list[Point], registers: bytes) -> None:
    expected = {point.metric: by_hand(point, registers) for point in table}
    got = Layout(table, 0, len(registers)).metrics(registers)
    assert got == {name: value for name, value in expected.items() if value is not None}
    for name, value in got.items():
        assert type(value) is type(expected[name])


def test_numbers_too_large_to_add_up_are_numbers_all_the_same() -> None:
    table = [
        Point(field=f"f{at}", metric=f"x-a-{at}", at=at, type="float64") for at in range(0, 16, 4)
    ]
    values = (1.7e308, 1.7e308, -1.0, 0.0)
    assert list(Layout(table, 0, 32).metrics(struct.pack(">4d", *values)).values()) == list(values)
