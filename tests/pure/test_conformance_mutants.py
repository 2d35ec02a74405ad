"""Every requirement that a black box can show has a mutant that breaks it."""

from __future__ import annotations

from exchange.requirements import REQUIREMENTS, binding
from tests.mutants import DEVICE, GATEWAY, commands


def broken_by(table: list[str]) -> set[str]:
    return {requirement for one in table for requirement in one.split()}


def shown(*parties: str) -> set[str]:
    """What binds these parties and is not declared."""
    return {
        name
        for name, one in REQUIREMENTS.items()
        if one.shown != "declared" and set(one.parties) & set(parties)
    }


def test_every_requirement_of_devices_and_gateways_has_a_mutant() -> None:
    broken = broken_by([one[0] for one in DEVICE]) | broken_by([one[0] for one in GATEWAY])
    assert broken == shown("device", "gateway")


def test_what_binds_a_device_is_found_by_the_judge_of_a_device() -> None:
    assert broken_by([one[0] for one in DEVICE]) == shown("device")


def test_every_requirement_of_applications_has_a_mutant() -> None:
    assert broken_by([one[0] for one in commands("x")]) == shown("application")


def test_a_judge_of_a_gateway_judges_its_devices_too() -> None:
    assert binding("device").keys() <= binding("gateway").keys()
