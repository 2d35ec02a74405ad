"""Requirements: code names only ids of the list, each in its own branch of the errors, and each is tested."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import exchange
from exchange import errors
from exchange.requirements import REQUIREMENTS

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
ROOMS: list[str] = PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
CONTRACT = [
    "commands",
    "delivery",
    "dictionary",
    "errors",
    "moments",
    "readings",
    "receipts",
    "requirements",
    "states",
    "topics",
    "units",
]
ID = re.compile(r"EX-[A-Z]-\d{3}")
BRANCHES = {
    "TopicError": "EX-T",
    "ReadingError": "EX-R",
    "DeliveryError": "EX-D",
    "StateError": "EX-S",
    "CommandError": "EX-C",
}


def trees(*folders: str) -> Iterator[tuple[Path, ast.Module]]:
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield path, ast.parse(path.read_text(encoding="utf-8"), str(path))


def named(tree: ast.Module) -> set[str]:
    return {
        found
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        for found in ID.findall(node.value)
    }


def test_ids_are_of_one_form_and_their_texts_differ() -> None:
    assert all(ID.fullmatch(name) for name in REQUIREMENTS)
    assert list(REQUIREMENTS) == sorted(
        REQUIREMENTS, key=lambda name: ("TRDSCA".index(name[3]), name)
    )
    texts = [one.text for one in REQUIREMENTS.values()]
    assert len(set(texts)) == len(texts)
    assert all(text.endswith(".") and " MUST " in text for text in texts)


def test_code_names_only_ids_of_the_list() -> None:
    found = {
        f"{path.relative_to(ROOT)}: {name}"
        for path, tree in trees(*ROOMS)
        for name in named(tree) - set(REQUIREMENTS)
    }
    assert found == set()


def test_an_error_carries_ids_of_its_own_branch() -> None:
    raised = [
        (path, node)
        for path, tree in trees(*ROOMS)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in BRANCHES
    ]
    assert len(raised) > 20
    for path, node in raised:
        match node.args[0]:
            case ast.Constant(value=str(name)):
                place = f"{path.relative_to(ROOT)}:{node.lineno}"
                assert name.startswith(BRANCHES[ast.unparse(node.func)]), place
    assert set(BRANCHES) == {
        name
        for name in vars(errors)
        if isinstance(kind := getattr(errors, name), type)
        and issubclass(kind, errors.ContractError)
        and kind is not errors.ContractError
    }


def test_every_requirement_is_raised_somewhere_and_tested_somewhere() -> None:
    code = set[str]().union(
        *(named(tree) for path, tree in trees(*ROOMS) if path.name != "requirements.py")
    )
    shown = {name for name, one in REQUIREMENTS.items() if one.shown != "declared"}
    assert shown - code == set()
    tests = set[str]().union(
        *(named(tree) for path, tree in trees("tests") if path != Path(__file__))
    )
    assert shown - tests == set()


def test_every_public_name_of_the_contract_is_exported() -> None:
    apart = {"dictionary"}  # it would hide the module of its name
    public: set[str] = set()
    for module in CONTRACT:
        for node in ast.parse((ROOT / "exchange" / f"{module}.py").read_text("utf-8")).body:
            match node:
                case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                    public.add(name)
                case ast.Assign(targets=[ast.Name(id=name)]):
                    public.add(name)
                case ast.AnnAssign(target=ast.Name(id=name)):
                    public.add(name)
    public = {name for name in public if not name.startswith("_")} - apart
    assert set(exchange.__all__) == public
    assert all(getattr(exchange, name) is not None for name in exchange.__all__)
