"""docs/security: the tests that it names exist, its commands parse, and both languages give the same ones."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from provisioning.cli import parser

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs" / "security"
TESTS = "\n".join(file.read_text(encoding="utf-8") for file in (ROOT / "tests").rglob("test_*.py"))


def commands(file: Path) -> list[str]:
    """Return the commands in a text that could be typed as they stand, and what stands in the tables."""
    text = file.read_text(encoding="utf-8")
    lines = re.findall(r"^ +onestreet town (.+)$", text, re.MULTILINE)
    lines += re.findall(r"`(?:onestreet )?town ([^`]+)`", text)
    return [line.partition("#")[0].strip() for line in lines]


def test_every_test_that_the_threat_model_names_exists() -> None:
    text = (DOCS / "README.md").read_text(encoding="utf-8")
    names = re.findall(r"`(test_\w+)(…?)(?:\[[^\]]*\])?`", text)
    assert len(names) > 15
    for name, cut in names:
        assert f"def {name}" + ("" if cut else "(") in TESTS, name
    files = re.findall(r"`(tests/[\w/]+\.py)`", text)
    assert [file for file in files if not (ROOT / file).is_file()] == []


@pytest.mark.parametrize("file", sorted(DOCS.glob("*.md")), ids=lambda file: file.name)
def test_the_commands_in_the_text_are_the_commands(file: Path) -> None:
    found = commands(file)
    assert found or file.name == "README.md"
    for command in found:
        typed = re.sub(r"COUNTY/GATEWAY|縣市/閘道器", "tw-tpe/gw-1", command)
        parser().parse_args(shlex.split(typed))


@pytest.mark.parametrize("name", ["office", "stolen-gateway"])
def test_both_languages_say_the_same_commands(name: str) -> None:
    def kept(file: Path) -> list[str]:
        english = {"縣市/閘道器": "COUNTY/GATEWAY", "檔案": "FILE", "名稱": "NAME"}
        found = commands(file)
        for chinese, word in english.items():
            found = [command.replace(chinese, word) for command in found]
        return found

    assert kept(DOCS / f"{name}.md") == kept(DOCS / f"{name}.zh-TW.md")
