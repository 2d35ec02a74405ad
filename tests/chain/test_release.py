"""What a release brings with it: its bill of materials and its licences, from the locks, the same each time."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deployment import ROOT

DEADLINE_S = 200.0


@pytest.mark.timeout(2 * DEADLINE_S)
def test_a_releases_bill_of_materials_is_complete_and_the_same_each_time(tmp_path: Path) -> None:
    """The release's own command, from the locks: it fails on a licence that is not on the list."""
    for name in ("once", "again"):
        subprocess.run(
            ["sh", ROOT / "scripts" / "bill_of_materials.sh", tmp_path / name],
            check=True,
            timeout=DEADLINE_S,
        )
    made = sorted(path.name for path in (tmp_path / "once").iterdir())
    assert made == [
        f"onestreet-{image}{kind}"
        for image in ("services", "street")
        for kind in ("-licences.md", ".cdx.json")
    ]
    for name in made:
        assert (tmp_path / "once" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    for image in ("services", "street"):
        bill = json.loads((tmp_path / "once" / f"onestreet-{image}.cdx.json").read_text())
        assert (bill["bomFormat"], bill["metadata"]["component"]["name"]) == (
            "CycloneDX",
            "onestreet",
        )
        pins = re.findall(
            r"^[\w.-]+==", (ROOT / "deploy" / f"{image}.lock").read_text(), re.MULTILINE
        )
        assert len(bill["components"]) == len(pins)
        assert str(tmp_path) not in json.dumps(bill)
        assert sys.prefix not in json.dumps(bill)
