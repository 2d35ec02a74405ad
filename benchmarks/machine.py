"""The machine's facts: no figure is printed without them."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[1]
LIBRARIES = ("mqtt5", "msgspec", "cbor2", "uvloop", "aiohttp", "aiomqtt", "pymodbus")


def facts() -> dict[str, str]:
    """Return what a reader needs to judge a figure."""
    memory_kb = int(_line_of(Path("/proc/meminfo"), "MemTotal").split()[0])
    load = " ".join(f"{each:.2f}" for each in os.getloadavg())
    # A Python that somebody compiled may lack the optimisations of the distribution's.
    own = Path(sys.executable).resolve().is_relative_to("/usr/bin")
    whose = "the system's" if own else "not the system's"
    return {
        "taken": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "cpu": _line_of(Path("/proc/cpuinfo"), "model name") or platform.machine(),
        "cores": f"{len(os.sched_getaffinity(0))} usable of {os.cpu_count()}",
        "memory": f"{memory_kb / 2**20:.1f} GiB",
        "load before (1, 5, 15 min)": load,
        "kernel": platform.release(),
        "system": platform.freedesktop_os_release()["PRETTY_NAME"],
        "python": f"{platform.python_version()}, {whose}",
        "mosquitto": _said("mosquitto", "-h").removeprefix("mosquitto version "),
        "influxd": _said(os.environ.get("ONESTREET_INFLUXD", "influxd"), "version"),
        "telegraf": _said(os.environ.get("ONESTREET_TELEGRAF", "telegraf"), "--version"),
        "thingsboard-gateway": _said(
            f"{os.environ.get('ONESTREET_THINGSBOARD_GATEWAY', '')}/bin/python",
            "-c",
            "from importlib.metadata import version as of; print(of('thingsboard-gateway'))",
        ),
        "libraries": ", ".join(f"{name} {version(name)}" for name in LIBRARIES),
    }


def _commit() -> str:
    git = ("git", "-c", "safe.directory=*", "-C", str(ROOT))
    changed = _said(*git, "status", "--porcelain", "--untracked-files=no")
    return _said(*git, "rev-parse", "--short", "HEAD") + (" with local changes" if changed else "")


def _said(*argv: str) -> str:
    """Return the first line that a program prints."""
    command: Sequence[str] = argv
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except OSError:
        return "not there"
    return (done.stdout or done.stderr).partition("\n")[0].strip()


def _line_of(file: Path, key: str) -> str:
    for line in file.read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return ""
