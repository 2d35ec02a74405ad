"""Units of SenML: what IANA registers and what converts exactly.

Source: the SenML Units and Secondary Units registries of IANA: RFC 8428 section 12.1, RFC 8798, and the later
registrations ppb, ppt, VAh, mg/l, ug/l, g/l (CoRE-1) and NTU. RFC 9100 for `bver` 26.
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import Context, Decimal
from fractions import Fraction

BASE_BVER = 10
SECONDARY_BVER = 26  # base version 10 plus the feature bit of secondary units, RFC 9100 section 3

PRIMARY = frozenset(
    """m kg g s A K cd mol Hz rad sr N Pa J W C V F Ohm S Wb T H Cel lm lx Bq Gy Sv kat m2 m3 l m/s m/s2
    m3/s l/s W/m2 cd/m2 bit bit/s lat lon pH dB dBW Bspl count / % %RH %EL EL 1/s 1/min beat/min beats S/m
    B VA VAs var vars J/m kg/m3 deg NTU""".split()  # noqa: SIM905  # a word a unit reads best
)

# secondary unit: (primary unit, scale, offset), primary = secondary * scale + offset
SECONDARY: dict[str, tuple[str, Fraction, int]] = {
    unit: (primary, Fraction(scale), offset)
    for unit, primary, scale, offset in [
        ("ms", "s", "1/1000", 0),
        ("min", "s", "60", 0),
        ("h", "s", "3600", 0),
        ("MHz", "Hz", "1000000", 0),
        ("kW", "W", "1000", 0),
        ("kVA", "VA", "1000", 0),
        ("kvar", "var", "1000", 0),
        ("Ah", "C", "3600", 0),
        ("Wh", "J", "3600", 0),
        ("kWh", "J", "3600000", 0),
        ("varh", "vars", "3600", 0),
        ("kvarh", "vars", "3600000", 0),
        ("VAh", "VAs", "3600", 0),
        ("kVAh", "VAs", "3600000", 0),
        ("Wh/km", "J/m", "3.6", 0),
        ("KiB", "B", "1024", 0),
        ("GB", "B", "1000000000", 0),
        ("Mbit/s", "bit/s", "1000000", 0),
        ("B/s", "bit/s", "8", 0),
        ("MB/s", "bit/s", "8000000", 0),
        ("mV", "V", "1/1000", 0),
        ("mA", "A", "1/1000", 0),
        ("dBm", "dBW", "1", -30),
        ("ug/m3", "kg/m3", "1e-9", 0),
        ("mg/l", "kg/m3", "1e-3", 0),
        ("ug/l", "kg/m3", "1e-6", 0),
        ("g/l", "kg/m3", "1", 0),
        ("mm/h", "m/s", "1/3600000", 0),
        ("m/h", "m/s", "1/3600", 0),
        ("km/h", "m/s", "5/18", 0),
        ("/100", "/", "1/100", 0),
        ("/1000", "/", "1/1000", 0),
        ("ppm", "/", "1e-6", 0),
        ("ppb", "/", "1e-9", 0),
        ("ppt", "/", "1e-12", 0),
        ("hPa", "Pa", "100", 0),
        ("mm", "m", "1/1000", 0),
        ("cm", "m", "1/100", 0),
        ("km", "m", "1000", 0),
    ]
}

_ARITHMETIC = Context(prec=40)
_FIFTEEN_DIGITS = Context(prec=15)


def is_registered(unit: str) -> bool:
    """Say whether SenML's `u` may carry this unit."""
    return unit in PRIMARY or unit in SECONDARY


def converter(source: str, target: str) -> Callable[[float], float] | None:
    """Return the exact conversion between two units, None when there is none.

    Decimal arithmetic, rounded once to 15 significant digits: 25.06 hPa is 2506 Pa, not 2506.0000000000005.
    """
    source_primary, scale, offset = SECONDARY.get(source, (source, Fraction(1), 0))
    target_primary, target_scale, target_offset = SECONDARY.get(target, (target, Fraction(1), 0))
    if source_primary != target_primary:
        return None
    factor = scale / target_scale
    numerator, denominator = Decimal(factor.numerator), Decimal(factor.denominator)
    shift_of = (offset - target_offset) / target_scale
    shift = _ARITHMETIC.divide(Decimal(shift_of.numerator), Decimal(shift_of.denominator))

    def convert(value: float) -> float:
        scaled = _ARITHMETIC.multiply(Decimal(repr(value)), numerator)
        shifted = _ARITHMETIC.add(_ARITHMETIC.divide(scaled, denominator), shift)
        return float(_FIFTEEN_DIGITS.plus(shifted))

    return convert
