"""What the Modbus link does with bytes and times on a serial line, apart from the line."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_drivers.kit.register_table import sealed
from device_drivers.links.modbus import _answer_bytes, _Wire, _without_strays

UNIT = 7
others = st.integers(1, 247).filter(lambda unit: unit != UNIT)
registers = st.binary(min_size=2, max_size=40).map(lambda data: data[: len(data) // 2 * 2])


@st.composite
def answers(draw: st.DrawFn, unit: st.SearchStrategy[int]) -> bytes:
    """Return any whole answer of a unit: registers, bits, an echo or a refusal."""
    head = bytes([draw(unit)])
    match draw(st.integers(0, 2)):
        case 0:
            data = draw(registers)
            return sealed(head + bytes([draw(st.sampled_from([1, 2, 3, 4])), len(data)]) + data)
        case 1:
            return sealed(head + bytes([draw(st.sampled_from([5, 6, 15, 16]))]) + bytes(4))
        case _:
            return sealed(head + bytes([0x83, 2]))


@given(st.lists(answers(others), max_size=3), answers(st.just(UNIT)), st.data())
def test_answers_of_others_are_cut_off(
    strays: list[bytes], answer: bytes, data: st.DataObject
) -> None:
    """However the bytes are portioned, and nothing of the right answer is lost."""
    whole = b"".join(strays) + answer
    assert _without_strays(whole, UNIT) == answer
    cut = data.draw(st.integers(0, len(whole)))
    assert whole.startswith(whole[:cut].removesuffix(_without_strays(whole[:cut], UNIT)))
    assert whole[:cut].endswith(_without_strays(whole[:cut], UNIT))


@given(st.binary(max_size=60))
def test_what_is_no_whole_answer_is_left_to_be_refused(noise: bytes) -> None:
    assert noise.endswith(_without_strays(noise, UNIT))
    assert _without_strays(bytes([UNIT]) + noise, UNIT) == bytes([UNIT]) + noise


@given(answers(st.just(3)), st.integers(0, 8 * 5 - 1))
def test_a_damaged_stray_is_not_trusted(answer: bytes, bit: int) -> None:
    damaged = bytearray(answer)
    damaged[bit // 8] ^= 1 << bit % 8
    if damaged[0] != UNIT:
        assert _without_strays(bytes(damaged), UNIT) == bytes(damaged)


@pytest.mark.parametrize(
    ("baudrate", "gap_ms"), [(1200, 32.1), (9600, 4.01), (19200, 2.01), (115200, 1.75)]
)
def test_the_gap_between_frames(baudrate: int, gap_ms: float) -> None:
    assert 1000 * _Wire(baudrate).gap_s == pytest.approx(gap_ms, rel=0.01)


@pytest.mark.parametrize(
    ("function", "quantity", "size"), [(3, 1, 7), (4, 125, 255), (1, 8, 6), (2, 9, 7), (6, None, 8)]
)
def test_how_long_an_answer_is(function: int, quantity: int | None, size: int) -> None:
    assert _answer_bytes(function, quantity) == size
