"""Every package of a gateway has a wheel for its processor, in the locked version: a gateway compiles nothing."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import canonicalize_name, parse_wheel_filename

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
LIST = (ROOT / "deploy" / "edge-wheels.txt").read_text("utf-8")
LOCK = (ROOT / "requirements.lock").read_text("utf-8")
LINES = [line for line in LIST.splitlines() if not line.startswith("#")]
WHEELS = {name: digest for digest, name in (line.split("  ") for line in LINES)}
"""File names with their hashes."""
INSTALLER = "pip"  # comes along and is pinned here alone
MACHINES = ["aarch64", "x86_64"]
GLIBC = 36  # of Debian 12


def locked() -> dict[str, tuple[str, str]]:
    """Version and hashes of every package in the lock."""
    pins = re.finditer(r"^([\w.-]+)(?:\[[\w,]+\])?==(\S+)((?:.*\\\n)*.*)$", LOCK, re.MULTILINE)
    return {canonicalize_name(pin[1]): (pin[2], pin[3]) for pin in pins}


def supported(machine: str) -> frozenset[Tag]:
    """What CPython 3.11 on Debian 12 takes there."""
    platforms = [f"manylinux_2_{minor}_{machine}" for minor in range(GLIBC, 16, -1)]
    platforms += [f"manylinux2014_{machine}", f"linux_{machine}"]
    tags = [*cpython_tags((3, 11), platforms=platforms)]
    return frozenset([*tags, *compatible_tags((3, 11), "cp311", platforms)])


def needed(machine: str) -> set[str]:
    """Names of everything that `onestreet[edge]` brings to a gateway."""
    environment = {
        "implementation_name": "cpython",
        "implementation_version": "3.11.2",
        "os_name": "posix",
        "platform_machine": machine,
        "platform_python_implementation": "CPython",
        "platform_system": "Linux",
        "python_full_version": "3.11.2",
        "python_version": "3.11",
        "sys_platform": "linux",
    }

    def wanted(requirement: Requirement, extras: set[str]) -> bool:
        marker = requirement.marker
        return marker is None or any(
            marker.evaluate({**environment, "extra": extra}) for extra in {"", *extras}
        )

    found: set[str] = set()
    waiting = [Requirement(each) for each in PROJECT["dependencies"]]
    waiting += [Requirement(each) for each in PROJECT["optional-dependencies"]["edge"]]
    while waiting:
        one = waiting.pop()
        name = canonicalize_name(one.name)
        if name not in found:
            found.add(name)
            further = map(Requirement, requires(name) or [])
            waiting += [each for each in further if wanted(each, one.extras)]
    return found


def test_the_list_is_what_sha256sum_reads() -> None:
    assert len(WHEELS) == len(LINES) > 0
    for name, digest in WHEELS.items():
        assert re.fullmatch(r"[0-9a-f]{64}", digest)
        assert re.fullmatch(r"[\w.+-]+\.whl", name)


@pytest.mark.parametrize("machine", MACHINES)
def test_every_package_has_a_wheel_for_a_gateways_processor(machine: str) -> None:
    there: dict[str, str] = {}
    tags = supported(machine)
    for file in WHEELS:
        name, version, _, of = parse_wheel_filename(file)
        if of & tags:
            there[name] = str(version)
    versions = {name: locked()[name][0] for name in needed(machine)}
    assert len(versions) > 10
    del there[INSTALLER]
    assert there == versions, "write it anew: sh scripts/edge_wheels.sh"


def test_every_wheel_is_the_locks() -> None:
    for file, digest in WHEELS.items():
        name = parse_wheel_filename(file)[0]
        if name != INSTALLER:
            assert f"--hash=sha256:{digest}" in locked()[name][1], file


def test_a_wheel_for_another_processor_would_not_count() -> None:
    assert parse_wheel_filename("a-1-cp311-cp311-manylinux_2_17_aarch64.whl")[3] & supported(
        "aarch64"
    )
    for file in (
        "a-1-cp311-cp311-manylinux_2_17_x86_64.whl",
        "a-1-cp311-cp311-manylinux_2_38_aarch64.whl",  # newer than Debian 12
        "a-1-cp312-cp312-manylinux_2_17_aarch64.whl",
        "a-1-cp311-cp311-musllinux_1_2_aarch64.whl",
    ):
        assert not parse_wheel_filename(file)[3] & supported("aarch64")
