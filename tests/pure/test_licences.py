"""What may be shipped: licences on the list, of every package in the bill of materials."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest

from tests.deployment import ROOT

_spec = importlib.util.spec_from_file_location("licences", ROOT / "scripts" / "licences.py")
assert _spec is not None
assert _spec.loader is not None
licences = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(licences)


def component(name: str, version: str, *said: dict[str, str]) -> dict[str, Any]:
    return {
        "name": name,
        "version": version,
        "licenses": [one if "expression" in one else {"license": one} for one in said],
    }


def test_a_table_of_what_the_lock_names() -> None:
    bill = {
        "components": [
            component("Typing_Extensions", "4", {"id": "PSF-2.0"}),
            component("certifi", "1", {"name": "License :: OSI Approved :: BSD License"}),
            component("paho-mqtt", "2.1", {"expression": "EPL-2.0 OR (MIT AND Apache-2.0)"}),
        ]
    }
    lock = "certifi==1 \\\n    --hash=sha256:0\npaho-mqtt==2.1\ntyping-extensions==4\n"
    assert licences.table(bill, lock).splitlines()[2:] == [
        "| certifi | 1 | BSD |",
        "| paho-mqtt | 2.1 | EPL-2.0 OR (MIT AND Apache-2.0) |",
        "| typing-extensions | 4 | PSF-2.0 |",
    ]


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ([{"id": "GPL-3.0-only"}], "GPL-3.0-only"),
        ([{"expression": "MIT OR Proprietary"}], "Proprietary"),
        ([{"name": "Our own terms"}], "Our own terms"),
        ([{"id": "MIT"}, {"id": "AGPL-3.0-only"}], "AGPL-3.0-only"),
        ([], "declares no licence"),
    ],
)
def test_a_licence_that_is_not_on_the_list_fails(said: list[dict[str, str]], words: str) -> None:
    with pytest.raises(licences.LicenceError, match=words):
        licences.table({"components": [component("one", "1", *said)]}, "one==1\n")


@pytest.mark.parametrize(
    ("lock", "words"),
    [
        ("one==2\n", "one 2 is not in the bill"),
        ("one==1\ntwo==1\n", "two 1 is not in the bill"),
        ("# nothing\n", "names no package"),
        ("two==1\n", "two 1 is not in the bill"),
    ],
)
def test_bill_and_lock_hold_the_same(lock: str, words: str) -> None:
    bill = {"components": [component("one", "1", {"id": "MIT"})]}
    with pytest.raises(licences.LicenceError, match=words):
        licences.table(bill, lock)
    extra = {"components": [*bill["components"], component("three", "1", {"id": "MIT"})]}
    with pytest.raises(licences.LicenceError, match="not in the lock: three"):
        licences.table(extra, "one==1\n")


def test_what_declares_nothing_is_named_unless_its_licence_was_read() -> None:
    lock = "verlib2==26.2\n"
    bill = {"components": [component("verlib2", "26.2")]}
    assert licences.table(bill, lock).splitlines()[2:] == ["| verlib2 | 26.2 | BSD-2-Clause |"]
    with pytest.raises(licences.LicenceError, match=r"verlib2 26\.3 declares no licence"):
        licences.table({"components": [component("verlib2", "26.3")]}, "verlib2==26.3\n")
