"""Units, colours, limits and the names of values: how numbers of the store look on a page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from exchange.air_quality_index import BEYOND, bands

GREEN, YELLOW, ORANGE, RED = "#2f9e44", "#f2c037", "#f08c00", "#e03131"
VIOLET, BLUE, GREY, DARK = "#9c6ade", "#3b82d6", "#8a94a0", "#5c6670"

UNITS = {
    "": "none",
    "/": "none",
    "count": "none",
    "id": "string",
    "share": "percentunit",
    "AQI": "none",
    "/100": "percent",
    "A": "amp",
    "B": "decbytes",
    "Cel": "celsius",
    "Hz": "hertz",
    "V": "volt",
    "W": "watt",
    "Wh": "watth",
    "%RH": "percent",
    "dB": "dB",
    "deg": "degree",
    "h": "h",
    "hPa": "pressurehpa",
    "lx": "lux",
    "m": "lengthm",
    "m/s": "velocityms",
    "mm": "lengthmm",
    "ms": "ms",
    "ppb": "conppb",
    "ppm": "ppm",
    "s": "dthms",
    "moment": "time:YYYY-MM-DD HH:mm",
    "since": "time:YYYY-MM-DD HH:mm",
    "day": "time:YYYY-MM-DD",
    "short day": "time:MM-DD",
    "ug/m3": "conμgm3",
    "var": "voltampreact",
    "1/day": "none",
}
"""The dictionary's units, and a few of our own, by Grafana's names; those that have words in them need none of
a language: 26:03:09 rather than "26 hours"."""

DECIMALS = {"share": 1, "/100": 1, "count": 0, "AQI": 0, "W": 1, "Wh": 1}


class Step(NamedTuple):
    """From `above` on the colour is this; None is from the bottom."""

    above: float | None
    colour: str


_NOTHING = Step(None, GREY)
"""Of no value: Grafana gives it the colour from the bottom. No figure that has limits goes below 0."""
LIMITS: Mapping[str, tuple[Step, ...]] = {
    "none is well": (_NOTHING, Step(0, GREEN), Step(1, RED)),
    "none is well, some are late": (_NOTHING, Step(0, GREEN), Step(1, YELLOW)),
    "none is unknown": (_NOTHING, Step(0, GREEN), Step(1, VIOLET)),
    "worst state": (_NOTHING, Step(0, GREEN), Step(0.5, VIOLET), Step(1, RED)),
    "part received": (_NOTHING, Step(0, RED), Step(0.9, YELLOW), Step(0.98, GREEN)),
    "part available": (_NOTHING, Step(0, RED), Step(0.95, YELLOW), Step(0.99, GREEN)),
    "part occupied": (_NOTHING, Step(0, GREEN), Step(0.8, YELLOW), Step(0.95, RED)),
    "hours left": (_NOTHING, Step(0, RED), Step(6, YELLOW), Step(24, GREEN)),
    "load": (_NOTHING, Step(0, GREEN), Step(80, YELLOW), Step(95, RED)),
    "waiting": (_NOTHING, Step(0, GREEN), Step(1000, YELLOW), Step(100_000, RED)),
    "aqi": (_NOTHING, *(Step(band.low, band.color) for band in bands())),
}
"""By kind. The bands of air are the exchange's."""
PLAIN = (Step(None, BLUE),)
"""Of a figure without limits: Grafana would have it turn red at 80."""


class Name(NamedTuple):
    """What a value is called (a key of the texts) and its colour."""

    text: str
    colour: str


KINDS = {
    "gateway_down": RED,
    "gateway_gone": RED,
    "device_down": RED,
    "flapping": ORANGE,
    "row_clash": ORANGE,
    "two_gateways": ORANGE,
}
"""What the watch calls incidents, by colour."""

VALUES: Mapping[str, Mapping[str, Name]] = {
    "state": {
        "0": Name("state.up", GREEN),
        "1": Name("state.late", YELLOW),
        "2": Name("state.down", RED),
        "3": Name("state.unknown", VIOLET),
        "4": Name("state.maintenance", BLUE),
        "5": Name("state.retired", DARK),
    },
    "yes": {"0": Name("no", GREY), "1": Name("yes", ORANGE)},
    "lit": {"0": Name("lit.off", DARK), "1": Name("lit.on", YELLOW)},
    "occupied": {"0": Name("bay.free", GREEN), "1": Name("bay.occupied", ORANGE)},
    "gateway": {"0": Name("state.down", RED), "1": Name("state.up", GREEN)},
    "fault": {"0": Name("fault.none", GREEN), "1": Name("fault.some", RED)},
    "known": {"0": Name("no", RED), "1": Name("yes", GREEN)},
    "lasted": {"0": Name("incident.open", RED)},
    "open": {"0": Name("incident.over", GREY), "1": Name("incident.open", RED)},
    "kind": {kind: Name(f"kind.{kind}", colour) for kind, colour in KINDS.items()},
    "meaning": {kind: Name(f"kind.{kind}.means", GREY) for kind in KINDS},
    "domain": {
        domain: Name(f"domain.{domain}", GREY)
        for domain in ("air", "gateway", "parking", "power", "streetlight", "weather")
    },
    "aqi": {str(BEYOND): Name("aqi.beyond", bands()[-1].color)},
    "command": {
        status: Name(f"command.{status}", colour)
        for status, colour in (
            ("accepted", BLUE),
            ("done", GREEN),
            ("failed", RED),
            ("rejected", RED),
            ("expired", ORANGE),
        )
    },
}
"""By kind: the value as the store has it, and its name."""
