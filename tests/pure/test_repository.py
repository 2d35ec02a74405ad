"""The repository keeps its own rules: imports, pins, and what no file may name."""

from __future__ import annotations

import ast
import re
import subprocess
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")

ROOMS = {
    "exchange": set[str](),
    "device_drivers": {"exchange"},
    "edge_agent": {"exchange", "device_drivers"},
    "ingest": {"exchange"},
    "provisioning": {"exchange"},
    "simulators": {"exchange", "device_drivers"},
    "dashboards": {"exchange"},
    "onestreet": {
        "exchange",
        "device_drivers",
        "edge_agent",
        "ingest",
        "provisioning",
        "simulators",
        "dashboards",
    },
}
# What may be installed where a room runs: the base, and these extras.
EXTRAS = {
    "exchange": ["ingest", "conform"],  # the MQTT 5 client of the services; the conformance kit
    "device_drivers": ["edge"],
    "edge_agent": ["edge"],
    "ingest": ["ingest"],
    "provisioning": ["town"],
    "simulators": ["sim"],
    "dashboards": ["dashboards"],
    "onestreet": ["edge", "ingest", "sim", "demo", "conform", "town", "dashboards"],
}
# Libraries whose interfaces move; pyserial and its asyncio part count as one.
MOVING = {
    "pymodbus": "pymodbus",
    "bleak": "bleak",
    "serial": "pyserial",
    "serial_asyncio_fast": "pyserial",
    "aiomqtt": "aiomqtt",
    "paho": "paho-mqtt",
    "mqtt5": "mqtt5",
    "dbus_fast": "dbus-fast",
    "grafana_foundation_sdk": "grafana-foundation-sdk",
    "grafana_client": "grafana-client",
}


def tracked(*patterns: str) -> list[Path]:
    # A checkout that another user owns, as in a container, is read all the same.
    listing = subprocess.run(
        ["git", "-c", "safe.directory=*", "ls-files", "-z", "--", *patterns],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return [path for name in listing.split("\0") if name and (path := ROOT / name).is_file()]


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Top-level names of a file's absolute imports, wherever they stand in it, with lines."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            yield from ((alias.name.partition(".")[0], node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.partition(".")[0], node.lineno


def room_imports(room: str) -> Iterator[tuple[Path, str, str]]:
    """File, `file:line` and imported name, of everything a room imports."""
    for path in tracked(f"{room}/*.py"):
        where = path.relative_to(ROOT)
        for name, line in imports(path):
            yield where, f"{where}:{line}", name


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_the_rooms_below_it(room: str) -> None:
    found = list(room_imports(room))
    assert found, f"{room} is empty"
    forbidden = (set(ROOMS) | {"tests", "benchmarks"}) - ROOMS[room] - {room}
    assert [f"{place} imports {name}" for _, place, name in found if name in forbidden] == []


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_libraries_its_extras_install(room: str) -> None:
    extras = PYPROJECT["project"]["optional-dependencies"]
    wanted = PYPROJECT["project"]["dependencies"] + [d for e in EXTRAS[room] for d in extras[e]]
    installed = {canonicalize_name(Requirement(each).name) for each in wanted}
    if room == "simulators":
        installed.add(canonicalize_name("pytest"))  # the plugin is loaded by pytest
    distributions = packages_distributions()
    undeclared = [
        f"{place} imports {name}"
        for _, place, name in room_imports(room)
        if name in distributions
        and name not in ROOMS
        and not installed & {canonicalize_name(d) for d in distributions[name]}
    ]
    assert undeclared == []


@pytest.mark.parametrize("room", ROOMS)
def test_a_moving_library_is_imported_in_one_file_of_a_room(room: str) -> None:
    importers: dict[str, set[str]] = defaultdict(set)
    for path, _, name in room_imports(room):
        if name in MOVING:
            importers[MOVING[name]].add(str(path))
    assert {name: files for name, files in importers.items() if len(files) > 1} == {}


def test_the_map_of_the_agent_names_every_module() -> None:
    described = ast.get_docstring(ast.parse((ROOT / "edge_agent/__init__.py").read_text("utf-8")))
    rows = re.findall(r"^\| (.+?) \|", described or "", re.MULTILINE)
    told = sorted(name for row in rows[1:] for name in row.split(", "))
    modules = {
        path.relative_to(ROOT / "edge_agent").parts[0] for path in tracked("edge_agent/*.py")
    }
    modules = {name.removesuffix(".py") if name.endswith(".py") else f"{name}/" for name in modules}
    assert told == sorted(name for name in modules if not name.startswith("__"))


def test_every_branch_of_the_error_tree_is_drawn() -> None:
    tree = ast.get_docstring(ast.parse((ROOT / "exchange/errors.py").read_text("utf-8"))) or ""
    branches = {
        node.name
        for room in ROOMS
        for path in tracked(f"{room}/*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path)))
        if isinstance(node, ast.ClassDef) and "OnestreetError" in map(ast.unparse, node.bases)
    }
    assert {name for name in branches if not re.search(rf"\b{name}\b", tree)} == set()


def test_nothing_waits_by_time_sleep() -> None:
    sleeps = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in tracked("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path)))
        if (isinstance(node, ast.Attribute) and ast.unparse(node) == "time.sleep")
        or (
            isinstance(node, ast.ImportFrom)
            and node.module == "time"
            and any(alias.name == "sleep" for alias in node.names)
        )
    ]
    assert sleeps == []


def test_drivers_are_complete_and_declared() -> None:
    declared = {
        Path(*module.split("."))
        for module in PYPROJECT["project"]["entry-points"]["onestreet.drivers"].values()
    }
    folders = {path.parent.relative_to(ROOT) for path in tracked("device_drivers/*/profile.toml")}
    assert folders == declared
    for folder in declared:
        files = {"profile.toml", "twin.py", "vectors.json", "README.md"}
        if folder.parts[1] != "modbus":  # a Modbus device may be all table
            files.add("driver.py")
        assert files <= {path.name for path in (ROOT / folder).iterdir()}, folder


FORBIDDEN = {
    "a registry's host": r"pypi\.org|pythonhosted|golang\.org|crates\.io|npmjs|artifactory|nexus",
    "an index address": r"--(extra-)?index-url|^\s*(extra-)?index-url\s*=|--find-links",
    "a machine's path": r"(?<![\w.~$}])/(root|work|home|Users|mnt)/\w",
    "credentials in an address": r"://[^\s/:@{}<>$]+:[^\s/@{}<>$]+@(?!(localhost|127\.0\.0\.1|\w+:))\w",
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_no_tracked_file_names(what: str) -> None:
    pattern = re.compile(FORBIDDEN[what], re.MULTILINE)
    found = []
    for path in tracked():
        content = path.read_bytes()
        if path == Path(__file__) or b"\0" in content:
            continue
        found += [
            f"{path.relative_to(ROOT)}: {match.group()}"
            for match in pattern.finditer(content.decode("utf-8"))
        ]
    assert found == []


PINS = {
    canonicalize_name(match["name"]): match
    for match in re.finditer(
        r"^(?P<name>[\w.-]+)(\[[\w,]+\])?==(?P<version>\S+)(?P<rest>(.*\\\n)*.*)$",
        LOCK,
        re.MULTILINE,
    )
}


def test_the_lock_pins_every_dependency_with_hashes() -> None:
    project = PYPROJECT["project"]
    wanted = [
        *PYPROJECT["build-system"]["requires"],
        *project["dependencies"],
        *(each for extra in project["optional-dependencies"].values() for each in extra),
        *PYPROJECT["dependency-groups"]["dev"],
    ]
    for requirement in map(Requirement, wanted):
        name = canonicalize_name(requirement.name)
        if name == project["name"]:
            continue
        assert name in PINS, f"{name} is not in requirements.lock: run `make lock`"
        version = PINS[name]["version"]
        assert requirement.specifier.contains(version), f"{version} of {requirement}: `make lock`"


def test_every_line_of_the_lock_is_a_hash_a_pin_or_a_comment() -> None:
    lines = [line for line in LOCK.splitlines() if not re.match(r"\s*#", line)]
    hashes = [line for line in lines if re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}( \\)?", line)]
    assert len(hashes) + len(PINS) == len(lines)
    assert [name for name, pin in PINS.items() if "--hash=sha256:" not in pin["rest"]] == []
