"""Units of SenML: what IANA registers and what converts exactly.

Source: RFC 8428 section 12.1 (primary units), RFC 8798 section 3 (secondary units), RFC 9100 (`bver` 26).
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import Context, Decimal

SECONDARY_BVER = 26  # base version 10 plus the feature bit of secondary units, RFC 9100 section 3

PRIMARY = frozenset(
    """m kg g s A K cd mol Hz rad sr N Pa J W C V F Ohm S Wb T H Cel lm lx Bq Gy Sv kat m2 m3 l m/s m/s2
    m3/s l/s W/m2 cd/m2 bit bit/s lat lon pH dB dBW Bspl count / % %RH %EL EL 1/s 1/min beat/min beats S/m
    B VA VAs var vars J/m kg/m3 deg NTU""".split()
)

# secondary unit: (primary unit, factor, offset), primary = secondary * factor + offset
SECONDARY: dict[str, tuple[str, Decimal, Decimal]] = {
    unit: (primary, Decimal(factor), Decimal(offset))
    for unit, primary, factor, offset in [
        ("ms", "s", "0.001", "0"),
        ("min", "s", "60", "0"),
        ("h", "s", "3600", "0"),
        ("MHz", "Hz", "1000000", "0"),
        ("kW", "W", "1000", "0"),
        ("kVA", "VA", "1000", "0"),
        ("kvar", "var", "1000", "0"),
        ("Ah", "C", "3600", "0"),
        ("Wh", "J", "3600", "0"),
        ("kWh", "J", "3600000", "0"),
        ("varh", "vars", "3600", "0"),
        ("kvarh", "vars", "3600000", "0"),
        ("kVAh", "VAs", "3600000", "0"),
        ("Wh/km", "J/m", "3.6", "0"),
        ("KiB", "B", "1024", "0"),
        ("GB", "B", "1000000000", "0"),
        ("Mbit/s", "bit/s", "1000000", "0"),
        ("mV", "V", "0.001", "0"),
        ("mA", "A", "0.001", "0"),
        ("dBm", "dBW", "1", "-30"),
        ("ug/m3", "kg/m3", "0.000000001", "0"),
        ("ppm", "/", "0.000001", "0"),
        ("/100", "/", "0.01", "0"),
        ("/1000", "/", "0.001", "0"),
        ("hPa", "Pa", "100", "0"),
        ("mm", "m", "0.001", "0"),
        ("cm", "m", "0.01", "0"),
        ("km", "m", "1000", "0"),
    ]
}

# Units that the dictionary uses and IANA does not register: never written in `u`, but of a known size.
_UNREGISTERED: dict[str, tuple[str, Decimal, Decimal]] = {
    "ppb": ("/", Decimal("0.000000001"), Decimal(0)),
}

_ARITHMETIC = Context(prec=40)
_FIFTEEN_DIGITS = Context(prec=15)


def is_registered(unit: str) -> bool:
    """Say whether SenML's `u` may carry this unit."""
    return unit in PRIMARY or unit in SECONDARY


def _to_primary(unit: str) -> tuple[str, Decimal, Decimal]:
    return SECONDARY.get(unit) or _UNREGISTERED.get(unit) or (unit, Decimal(1), Decimal(0))


def converter(source: str, target: str) -> Callable[[float], float] | None:
    """Return the exact conversion between two units, None when there is none.

    Decimal arithmetic, rounded once to 15 significant digits: 25.06 hPa is 2506 Pa, not 2506.0000000000005.
    """
    source_primary, factor, offset = _to_primary(source)
    target_primary, target_factor, target_offset = _to_primary(target)
    if source_primary != target_primary:
        return None

    def convert(value: float) -> float:
        primary = _ARITHMETIC.add(_ARITHMETIC.multiply(Decimal(repr(value)), factor), offset)
        scaled = _ARITHMETIC.divide(_ARITHMETIC.subtract(primary, target_offset), target_factor)
        return float(_FIFTEEN_DIGITS.plus(scaled))

    return convert
