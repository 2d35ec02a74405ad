"""The JSON Schemas of the exchange, generated from its types and dictionaries: `python -m exchange.schema` writes them.

What a schema cannot say - that bn agrees with the topic, that time rises with seq, that a mark excuses its metric
alone - the decoders check; whatever they take, the schema takes too.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec

from exchange.commands import Command, Result
from exchange.dictionary import VENDOR_METRIC, Metric, dictionary
from exchange.readings import MAX_ABSOLUTE_S, MAX_NUMBER, MIN_ABSOLUTE_S, QUALITY
from exchange.receipts import Receipt
from exchange.states import State
from exchange.topics import COUNTY, END, LEVEL
from exchange.units import BASE_BVER, PRIMARY, SECONDARY, SECONDARY_BVER, converter

Schema = dict[str, Any]

FOLDER = Path(__file__).parent / "schemas"
DIALECT = "https://json-schema.org/draft/2020-12/schema"

_NUMBER = {"type": "number", "exclusiveMinimum": -MAX_NUMBER, "exclusiveMaximum": MAX_NUMBER}
_COUNT = {"type": "integer", "minimum": 0, "exclusiveMaximum": MAX_NUMBER}


def schemas() -> dict[str, Schema]:
    """Return every schema by its name."""
    messages = {"receipt": Receipt, "state": State, "command": Command, "result": Result}
    return {
        f"readings-{domain}": _readings(domain, entry.metrics)
        for domain, entry in dictionary().items()
    } | {
        name: {"$schema": DIALECT, "title": name, **msgspec.json.schema(message)}
        for name, message in messages.items()
    }


def written(schema: Schema) -> str:
    """Return a schema as its file holds it."""
    return json.dumps(schema, ensure_ascii=False, indent=2) + "\n"


def write(folder: Path) -> None:
    """Write every schema, and remove what is none any more."""
    folder.mkdir(exist_ok=True)
    for stale in folder.glob("*.schema.json"):
        stale.unlink()
    for name, schema in schemas().items():
        (folder / f"{name}.schema.json").write_text(written(schema), encoding="utf-8")


def _readings(domain: str, metrics: dict[str, Metric]) -> Schema:
    names = {"enum": ["epoch", "seq", "quality", *metrics]}
    by_name: dict[str, Schema] = {
        "epoch": {"properties": {"v": _COUNT, "u": {"const": ""}}, "required": ["v"]},
        "seq": {"properties": {"v": _COUNT, "u": {"const": ""}}, "required": ["v"]},
        "quality": {"properties": {"u": {"const": ""}}, "required": ["vs"]},
    } | {name: _metric(metric) for name, metric in metrics.items()}
    record: Schema = {
        "type": "object",
        "properties": {
            "bn": {"type": "string", "pattern": f"^{COUNTY.pattern}:{LEVEL.pattern}:{END}"},
            "bt": {"type": "number", "minimum": MIN_ABSOLUTE_S, "exclusiveMaximum": MAX_ABSOLUTE_S},
            "bver": {"enum": [BASE_BVER, SECONDARY_BVER]},
            "n": {
                "anyOf": [names, {"type": "string", "pattern": f"^{VENDOR_METRIC.pattern}{END}"}]
            },
            "u": {"enum": sorted([*PRIMARY, *SECONDARY, ""])},
            "v": _NUMBER,
            "vs": {"type": "string", "pattern": QUALITY},
            "vb": {"type": "boolean"},
            "t": {"type": "number"},
        },
        "required": ["n"],
        "additionalProperties": False,
        "oneOf": [{"required": [label]} for label in ("v", "vs", "vb")],
        "allOf": [_when(name, then) for name, then in by_name.items()]
        + [{"if": {"not": {"properties": {"n": names}}}, "then": {"required": ["v"]}}],
    }
    return {
        "$schema": DIALECT,
        "title": f"readings of {domain}: a SenML pack",
        "type": "array",
        "minItems": 2,
        "prefixItems": [{"$ref": "#/$defs/record", "required": ["bn", "bt"]}],
        "items": {"$ref": "#/$defs/record", "properties": {"bn": False, "bver": False}},
        "contains": _named("epoch"),
        "maxContains": 1,
        "allOf": [
            {"contains": _named("seq")},
            {
                "if": {"contains": _named("quality")},
                "else": {"items": {"$ref": "#/$defs/plausible"}},
                "$comment": "a value out of its range needs a quality mark",
            },
            {
                "if": {"prefixItems": [{"properties": {"bver": {"const": SECONDARY_BVER}}}]},
                "else": {"items": {"properties": {"u": {"enum": sorted([*PRIMARY, ""])}}}},
                "$comment": f"secondary units need bver {SECONDARY_BVER}",
            },
        ],
        "$defs": {
            "record": record,
            "plausible": {
                "allOf": [
                    _when(name, _plausible(metric))
                    for name, metric in metrics.items()
                    if metric.range
                ]
            },
        },
    }


def _named(name: str) -> Schema:
    return {"properties": {"n": {"const": name}}, "required": ["n"]}


def _when(name: str, then: Schema) -> Schema:
    return {"if": _named(name), "then": then}


def _metric(metric: Metric) -> Schema:
    """Return what a metric's record must be: its type, and the units that convert to its own."""
    about = {"title": metric.en, "description": metric.zh_tw}
    if metric.type == "boolean":
        return about | {"properties": {"u": {"const": ""}}, "required": ["vb"]}
    units = [unit for unit in (*PRIMARY, *SECONDARY) if converter(unit, metric.unit)]
    return about | {"properties": {"u": {"enum": sorted([*units, ""])}}, "required": ["v"]}


def _plausible(metric: Metric) -> Schema:
    """Return the range of a value that is given in the dictionary's own unit, and the type it then has."""
    low, high = metric.range or (-MAX_NUMBER, MAX_NUMBER)
    return {
        "if": {"properties": {"u": {"enum": ["", metric.unit]}}},
        "then": {
            "properties": {
                "v": {
                    "type": "integer" if metric.type == "integer" else "number",
                    "minimum": low,
                    "maximum": high,
                }
            }
        },
    }


if __name__ == "__main__":
    write(FOLDER)
