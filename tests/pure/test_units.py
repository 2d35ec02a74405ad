"""Units: conversions are exact, go both ways, and are never guessed."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exchange.units import PRIMARY, SECONDARY, converter, is_registered

numbers = st.one_of(
    st.integers(-(10**9), 10**9).map(float),
    st.decimals(-(10**6), 10**6, places=4).map(float),
    st.floats(-(2.0**53), 2.0**53),
)
related = [
    (source, target)
    for source in (*PRIMARY, *SECONDARY)
    for target in (*PRIMARY, *SECONDARY)
    if converter(source, target)
]


def scale_and_offset(unit: str) -> tuple[Fraction, int]:
    _, scale, offset = SECONDARY.get(unit, (unit, Fraction(1), 0))
    return scale, offset


@given(st.sampled_from(sorted(related)), numbers)
def test_a_conversion_is_exact_to_fifteen_digits(units: tuple[str, str], value: float) -> None:
    source, target = units
    convert = converter(source, target)
    assert convert
    (scale, offset), (target_scale, target_offset) = (
        scale_and_offset(source),
        scale_and_offset(target),
    )
    exact = (Fraction(repr(value)) * scale + offset - target_offset) / target_scale
    assert abs(Fraction(repr(convert(value))) - exact) <= abs(exact) / 10**14 / 2 + Fraction(
        1, 10**300
    )


@given(st.sampled_from(sorted(related)), st.decimals(-(10**5), 10**5, places=3).map(float))
def test_a_conversion_goes_back(units: tuple[str, str], value: float) -> None:
    there, back = converter(*units), converter(units[1], units[0])
    assert there
    assert back
    if "dBm" in units:  # an offset moves digits, a factor does not
        assert back(there(value)) == pytest.approx(value, abs=1e-9)
    else:
        assert back(there(value)) == pytest.approx(value, rel=1.1e-14, abs=1e-300)


@pytest.mark.parametrize(
    ("source", "target", "value", "expected"),
    [
        ("hPa", "Pa", 25.06, 2506.0),
        ("Pa", "hPa", 101325.0, 1013.25),
        ("kWh", "Wh", 0.1, 100.0),
        ("Wh", "kWh", 1.0, 0.001),
        ("ppm", "ppb", 0.3, 300.0),
        ("ppb", "ppm", 1.0, 0.001),
        ("km/h", "m/s", 36.0, 10.0),
        ("m/s", "km/h", 1.0, 3.6),
        ("mm/h", "m/s", 3.6, 1e-6),
        ("dBm", "dBW", -30.0, -60.0),
        ("dBW", "dBm", 0.5, 30.5),
        ("ug/m3", "kg/m3", 35.4, 3.54e-8),
        ("mg/l", "ug/m3", 0.07, 70000.0),
        ("/100", "/", 7.0, 0.07),
        ("/1000", "/100", 5.0, 0.5),
        ("h", "min", 1.1, 66.0),
        ("MB/s", "Mbit/s", 1.0, 8.0),
        ("KiB", "B", 1.5, 1536.0),
        ("m", "m", 0.1, 0.1),
    ],
)
def test_known_conversions(source: str, target: str, value: float, expected: float) -> None:
    convert = converter(source, target)
    assert convert
    assert convert(value) == expected


@pytest.mark.parametrize(
    ("source", "target"),
    [("Cel", "K"), ("%RH", "/100"), ("%", "/"), ("g", "kg"), ("m", "s"), ("", "m"), ("W", "VA"), ("W", "Wh")],
)  # fmt: skip  # a table
def test_what_is_no_scale_of_the_same_unit_does_not_convert(source: str, target: str) -> None:
    assert converter(source, target) is None


def test_the_registries_are_two() -> None:
    assert not PRIMARY & set(SECONDARY)
    assert {primary for primary, _, _ in SECONDARY.values()} <= PRIMARY
    assert is_registered("ppb")
    assert is_registered("Cel")
    assert not is_registered("")
    assert not is_registered("µg/m3")
