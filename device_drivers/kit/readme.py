"""The generated parts of a driver's README: its settings and its metrics.

`python -m device_drivers.kit.readme` writes them into every installed driver's README; a test compares.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import msgspec
from msgspec import inspect as types

from device_drivers.kit.profile import Profile
from device_drivers.kit.registry import DriverPackage, driver_ids, load


def settings_table(kind: type[msgspec.Struct]) -> str:
    """Return the keys of `[device.settings]` as a Markdown table; the words are the fields' docstrings."""
    rows = ["| key | allowed | default | meaning |", "|---|---|---|---|"]
    words = _docstrings(kind)
    info = types.type_info(kind)
    assert isinstance(info, types.StructType)
    for field in info.fields:
        default = "required" if field.required else _default(field.default)
        cells = (f"`{field.name}`", _allowed(field.type), default, words[field.name])
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def metrics_table(profile: Profile) -> str:
    """Return what the driver can report, and which field of the frame each metric is."""
    rows = ["| metric | unit | field of the frame |", "|---|---|---|"]
    fields: dict[str, list[str]] = {}
    for point in profile.points:
        if point.metric and point.field not in fields.setdefault(point.metric, []):
            fields[point.metric].append(point.field)
    units = profile.units()
    rows += [f"| `{name}` | {units[name]} | {', '.join(of)} |" for name, of in fields.items()]
    return "\n".join(rows)


def current(package: DriverPackage) -> str:
    """Return the driver's README as it stands."""
    return (files(package.package) / "README.md").read_text(encoding="utf-8")


def refreshed(package: DriverPackage, text: str) -> str:
    """Return the README's text with its generated parts as they should be."""
    parts = {
        "settings": settings_table(package.settings_type),
        "metrics": metrics_table(package.profile),
    }
    for name, table in parts.items():
        head, begin, rest = text.partition(f"<!-- {name} -->\n")
        _, end, tail = rest.partition(f"<!-- /{name} -->\n")
        if end:
            text = f"{head}{begin}{table}\n{end}{tail}"
    return text


def _docstrings(kind: type[msgspec.Struct]) -> dict[str, str]:
    """Return the string that follows each field in the source."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(tree, ast.ClassDef)
    return dict(_pairs(tree))


def _pairs(tree: ast.ClassDef) -> Iterator[tuple[str, str]]:
    for field, following in zip(tree.body, tree.body[1:], strict=False):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(following, ast.Expr)
            and isinstance(following.value, ast.Constant)
        ):
            yield field.target.id, " ".join(str(following.value.value).split())


def _default(value: Any) -> str:
    return "none" if value is None else f"`{value}`"


def _allowed(kind: types.Type) -> str:
    match kind:
        case types.LiteralType():
            return ", ".join(f"`{value}`" for value in kind.values)
        case types.IntType():
            return f"{kind.ge} to {kind.le}"
        case types.StrType(pattern=str()):
            return f"`{kind.pattern}`"
        case types.StrType():
            return "text"
        case types.UnionType():
            return " or ".join(
                _allowed(one) for one in kind.types if not isinstance(one, types.NoneType)
            )
        case _:
            raise NotImplementedError(f"{kind}: say what is allowed in words")


def _write() -> None:
    for driver_id in driver_ids():
        package = load(driver_id)
        path = Path(str(files(package.package) / "README.md"))
        path.write_text(refreshed(package, current(package)), encoding="utf-8")


if __name__ == "__main__":
    _write()
