"""The dictionary: which metrics a domain has, with unit, type and plausible range, and what its devices must deliver.

One TOML file per domain in `dictionaries/`; a further domain is a further file, not code.
"""

from __future__ import annotations

import re
import tomllib
from functools import cache
from importlib.resources import files
from typing import Annotated, Literal

import msgspec

from exchange.units import is_registered

MetricType = Literal["float", "integer", "boolean"]

VENDOR_METRIC = re.compile(r"x-[a-z0-9]{1,32}-[a-z0-9][a-z0-9_.-]{0,62}")
RESERVED = frozenset(
    {"epoch", "seq", "quality"}
)  # records of the pack itself, columns of the store


class Metric(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One metric of a domain. `range` is inclusive; `unit` is empty for booleans."""

    en: str
    zh_tw: str = msgspec.field(name="zh-TW")
    type: MetricType = "float"
    unit: str = ""
    range: tuple[float, float] | None = None
    max_rate_per_s: Annotated[float, msgspec.Meta(gt=0)] | None = None

    @property
    def senml_unit(self) -> str:
        """The unit as SenML's `u` carries it: empty when IANA does not register it."""
        return self.unit if is_registered(self.unit) else ""


class ArgumentRange(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a number that a command takes may be, both ends included."""

    min: float
    max: float
    unit: str = ""


class ProfileCommand(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A command as every device that announces its name takes it: these arguments, in these ranges."""

    en: str
    zh_tw: str = msgspec.field(name="zh-TW")
    args: dict[str, ArgumentRange] = {}


class Profile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one kind of device of a domain must deliver.

    Shape: of each list in `metrics` at least one; `descriptor` names fields of the state's descriptor that must not
    be empty; `commands` binds a device that announces them; `example` is a sample that satisfies it.
    """

    name: str
    en: str
    zh_tw: str = msgspec.field(name="zh-TW")
    metrics: list[list[str]]
    descriptor: list[str]
    example: dict[str, float | int | bool]
    commands: dict[str, ProfileCommand] = {}


class Domain(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One service domain. A device conforms to it by any one of its profiles."""

    en: str
    zh_tw: str = msgspec.field(name="zh-TW")
    metrics: dict[str, Metric]
    profiles: list[Profile] = msgspec.field(name="profile")


@cache
def dictionary() -> dict[str, Domain]:
    """Return every domain by its name. The files ship with the package; a broken one is a bug."""
    folder = files("exchange") / "dictionaries"
    return {
        entry.name.removesuffix(".toml"): msgspec.convert(
            tomllib.loads(entry.read_text(encoding="utf-8")), Domain
        )
        for entry in sorted(folder.iterdir(), key=lambda entry: entry.name)
        if entry.name.endswith(".toml")
    }
