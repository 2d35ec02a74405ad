"""The licences of what is shipped, from its bill of materials, as a table: `licences.py BILL.cdx.json LOCK`.

Every package of the lock must be in the bill, in the same version, under licences that are approved by the Open
Source Initiative and do not reach into what is linked with them.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ALLOWED = {
    "Apache-2.0",
    "BSD",  # of two or three clauses; what declares it does not say which
    "BSD-2-Clause",
    "BSD-3-Clause",
    "EPL-2.0",
    "MIT",
    "MIT-0",
    "MPL-2.0",
    "PSF-2.0",
    "Python-2.0",
}
CLASSIFIERS = {
    "License :: OSI Approved :: Apache Software License": "Apache-2.0",
    "License :: OSI Approved :: BSD License": "BSD",
    "License :: OSI Approved :: MIT License": "MIT",
    "License :: OSI Approved :: Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
}
"""What CycloneDX leaves as it was declared."""

READ = {("verlib2", "26.2"): "BSD-2-Clause"}
"""What declares nothing but brings its licence along, which somebody has read."""


class LicenceError(Exception):
    """Something may not be shipped as it is."""


def table(bill: dict[str, Any], lock: str) -> str:
    """Return package, version and licence of everything in a lock. Raises: LicenceError."""
    found = {_normal(one["name"]): one for one in bill["components"]}
    pins = re.findall(r"^([\w.-]+)(?:\[[\w,]+\])?==(\S+)", lock, re.MULTILINE)
    if not pins:
        raise LicenceError("the lock names no package")
    lines = ["| package | version | licence |", "|---|---|---|"]
    for name, version in pins:
        component = found.pop(_normal(name), None)
        if component is None or component["version"] != version:
            raise LicenceError(f"{name} {version} is not in the bill of materials")
        licences = sorted(set(_licences(component)))
        if not licences and (read := READ.get((name, version))):
            licences = [read]
        if not licences:
            raise LicenceError(f"{name} {version} declares no licence")
        lines.append(f"| {name} | {version} | {', '.join(licences)} |")
    if found:
        raise LicenceError(f"not in the lock: {', '.join(sorted(found))}")
    return "\n".join(lines) + "\n"


def _licences(component: dict[str, Any]) -> Iterator[str]:
    """Yield what a component is under, each an SPDX expression of allowed parts. Raises: LicenceError."""
    for one in component.get("licenses", []):
        licence = one.get("license", {})
        words = one.get("expression") or licence.get("id") or licence.get("name", "")
        words = CLASSIFIERS.get(words, words)
        for part in re.split(r"\s+(?:AND|OR)\s+", words.replace("(", "").replace(")", "")):
            if part not in ALLOWED:
                name = f"{component['name']} {component['version']}"
                raise LicenceError(f"{name}: {part!r} is not on the list of scripts/licences.py")
        yield words


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    try:
        text = table(json.loads(Path(sys.argv[1]).read_bytes()), Path(sys.argv[2]).read_text())
    except LicenceError as error:
        sys.exit(f"licences: {error}")
    sys.stdout.write(text)
