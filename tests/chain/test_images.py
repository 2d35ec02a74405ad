"""The commands of the Dockerfile, carried out in a folder instead of an image: every package by its hash."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deployment import DOCKERFILE, ROOT, Model, parsed

DEADLINE_S = 200.0
PLACES = ("/src", "/build", "/wheel", "/opt/onestreet")
"""What the commands name; each is below the folder."""


class Builder:
    """Carries out the stages that fetch and install, as BuildKit would; their base images are this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        stages: list[Model] = parsed("dockerfile", DOCKERFILE, environment={})["stages"]
        self._stages = {stage["name"]: stage for stage in stages}
        (folder / "src").mkdir()

    def build(self, name: str) -> None:
        for one in self._stages[name]["instructions"]:
            if one["name"] == "COPY":
                self._copy(one["sources"], one["to"])
            elif one["name"] == "RUN":
                self._run(one["run"])
            else:
                assert one["name"] in ("ENV", "WORKDIR"), one

    def _copy(self, sources: list[str], to: str) -> None:
        for source in sources:
            target = self.folder / "src" / to
            if (ROOT / source).is_dir():
                unwanted = shutil.ignore_patterns("__pycache__")
                shutil.copytree(ROOT / source, target, ignore=unwanted)
            else:
                target.mkdir(exist_ok=True)
                shutil.copy(ROOT / source, target)

    def _run(self, command: str) -> None:
        for place in PLACES:
            command = re.sub(rf"(?<![\w./]){place}(?![\w])", f"{self.folder}{place}", command)
        command = command.replace("python -m venv", f"{sys.executable} -m venv")
        done = subprocess.run(
            ["sh", "-euc", command],
            cwd=self.folder / "src",
            env=os.environ | {"PIP_DISABLE_PIP_VERSION_CHECK": "1"},
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-1500:]}{done.stderr[-1500:]}"


def said(folder: Path, *words: str | Path) -> str:
    """Run a program of the image from a folder where the sources are not; return what it says."""
    done = subprocess.run(
        [folder / "opt/onestreet/bin" / words[0], *words[1:]],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    return f"{done.returncode} {done.stdout}{done.stderr}"


@pytest.mark.timeout(2 * DEADLINE_S)
def test_what_is_installed_is_what_is_locked_and_runs(tmp_path: Path) -> None:
    builder = Builder(tmp_path)
    builder.build("build")
    for target in ("services", "street"):
        shutil.rmtree(tmp_path / "opt", ignore_errors=True)
        builder.build(f"{target}-packages")
        listed = (
            "from importlib.metadata import distributions as all; print(*(d.name for d in all()))"
        )
        found = {
            name.lower().replace("_", "-")
            for name in said(tmp_path, "python", "-c", listed).split()[1:]
        }
        pinned = set(
            re.findall(
                r"^([\w.-]+)==", (ROOT / "deploy" / f"{target}.lock").read_text(), re.MULTILINE
            )
        )
        assert found == pinned | {"onestreet"}, "those, and no tools"
        for words in (["ingest"], ["watch"], ["town", "store"], ["town", "backup"]):
            assert said(tmp_path, "onestreet", *words, "--help").startswith("0 usage:"), words
        towns = sorted((ROOT / "towns").glob("*.toml"))
        assert said(tmp_path, "onestreet", "town", "check", *towns).startswith("0 ")
        assert said(tmp_path, "python", "-m", "exchange.health").startswith("1 ONESTREET_HEALTH")
    assert said(tmp_path, "onestreet", "street", "--help").startswith("0 usage:")
