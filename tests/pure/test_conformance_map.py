"""The map of the conformance kit's modules, at the head of its room, names every one of them and no other."""

from __future__ import annotations

import re
from pathlib import Path

from exchange import conformance
from exchange.conformance import command


def test_the_map_names_every_module() -> None:
    assert conformance.__doc__ is not None
    words = set(re.findall(r"\w+", conformance.__doc__))
    folder = Path(conformance.__path__[0])
    modules = {file.stem for file in folder.glob("*.py")} - {"__init__"}
    assert modules - words == set()
    heads = set(re.findall(r"^    (\w+)  ", conformance.__doc__, re.MULTILINE))
    assert heads <= modules
    assert set(command.ROLES) <= heads
