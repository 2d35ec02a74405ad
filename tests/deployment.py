"""docker-compose.yml and the Dockerfile as the container engine's own parsers read them."""

from __future__ import annotations

import functools
import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
COMPOSE = ROOT / "docker-compose.yml"
DOCKERFILE = ROOT / "deploy" / "Dockerfile"
BUILD_DEADLINE_S = 600.0

Model = dict[str, Any]


@functools.cache
def tools() -> Path:
    """Return the folder of the parsers and of the influx client; built when they are missing."""
    script = ROOT / "scripts" / "build_deployment_tools.sh"
    done = subprocess.run(
        ["sh", script], stdout=subprocess.PIPE, text=True, check=True, timeout=BUILD_DEADLINE_S
    )
    return Path(done.stdout.strip())


def parsed(kind: str, file: Path, *more: str, environment: Mapping[str, str]) -> Model:
    """Return what the parser makes of a file. Raises: ValueError with its words."""
    done = subprocess.run(
        [tools() / "deployment-parser", kind, file, *more],
        env={"PATH": os.environ["PATH"], **environment},
        capture_output=True,
        text=True,
        timeout=30,
    )
    if done.returncode:
        raise ValueError(done.stderr.strip())
    model: Model = json.loads(done.stdout)
    return model


def compose(environment: Mapping[str, str], file: Path = COMPOSE) -> Model:
    """Return the model of every service, of all profiles."""
    return parsed("compose", file, "*", environment=environment)


def read_environment(file: Path) -> dict[str, str]:
    """Return the variables of a compose.env."""
    pairs = (line.split("=", 1) for line in file.read_text(encoding="utf-8").splitlines())
    return {name: value.strip("'") for name, value in pairs}
