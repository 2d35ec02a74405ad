"""A newcomer's first minutes: `git clone`, then `make demo`, and what the machine had already."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import msgspec

from benchmarks.first_sample import DOMAINS, SECONDS, domains, ended_well
from benchmarks.machine import ROOT
from benchmarks.processes import BenchmarkFailed, Process

_CLONE_DEADLINE_S = 60.0
_SET_UP_DEADLINE_S = 1200.0
# Of a make that we run under, which would reach into the clone's.
_OF_MAKE = ("MAKEFLAGS", "MFLAGS", "MAKEOVERRIDES", "MAKELEVEL", "VIRTUAL_ENV")


class FreshClone(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds from `git clone`, except `clone_s`, which is the clone alone."""

    clone_s: float
    first_s: float
    all_buses_s: float
    end_s: float
    """The end of the demo, its drain and audit included."""
    demo_seconds: int
    there_before: dict[str, bool]


async def measure(*, cold: bool) -> FreshClone:
    """Clone what is committed and run its demo; `cold` is with empty package caches.

    Raises: BenchmarkFailed.
    """
    with tempfile.TemporaryDirectory(prefix="onestreet-bench-") as name:
        folder = Path(name)
        environment = {each: value for each, value in os.environ.items() if each not in _OF_MAKE}
        if cold:
            environment["XDG_CACHE_HOME"] = environment["UV_CACHE_DIR"] = str(folder / "cache")
            environment["PIP_NO_CACHE_DIR"] = "1"
        before = there_before(environment)
        clone, store = folder / "clone", folder / "run" / "town.sqlite"
        options = f"--seconds {SECONDS} --report {folder}/report.json --folder {store.parent}"
        began_s = time.monotonic()
        await _clone(clone, folder / "clone.log")
        cloned_s = time.monotonic()
        async with Process(
            ["make", "demo", f"ARGS={options}"],
            folder / "make.log",
            environment=environment,
            folder=clone,
        ) as make:
            await make.until(lambda: domains(store), "a sample", deadline_s=_SET_UP_DEADLINE_S)
            first_s = time.monotonic()
            await make.until(lambda: domains(store) == DOMAINS, "a sample of every bus")
            all_s = time.monotonic()
            await ended_well(make)
            ended_s = time.monotonic()
        return FreshClone(
            clone_s=cloned_s - began_s,
            first_s=first_s - began_s,
            all_buses_s=all_s - began_s,
            end_s=ended_s - began_s,
            demo_seconds=SECONDS,
            there_before=before,
        )


async def _clone(folder: Path, log: Path) -> None:
    # --no-local copies the objects, as from another machine; a link would be no clone.
    argv = ["git", "-c", "safe.directory=*", "clone", "--no-local", str(ROOT), str(folder)]
    async with Process(argv, log) as git:
        done = "git clone"
        await git.until(lambda: git.ended is not None, done, deadline_s=_CLONE_DEADLINE_S)
        if git.ended:
            raise BenchmarkFailed(f"{done} ended with {git.ended}\n{git.tail}")


def there_before(environment: Mapping[str, str]) -> dict[str, bool]:
    """Return what of the set-up the machine had: what is there costs nothing."""
    home = Path(environment.get("HOME", "/"))
    caches = Path(environment.get("XDG_CACHE_HOME", home / ".cache"))
    packages = Path(environment.get("UV_CACHE_DIR", caches / "uv"))
    path = f"{environment.get('PATH', '')}:/usr/sbin"
    return {
        **{name: bool(shutil.which(name, path=path)) for name in ("mosquitto", "dbus-daemon")},
        "uv": bool(shutil.which("uv", path=path)) or (caches / "onestreet" / "uv").exists(),
        "uv's cache of packages": packages.is_dir() and any(packages.iterdir()),
    }


def table(found: FreshClone) -> str:
    """Return the figures for people."""
    had = [name for name, there in found.there_before.items() if there]
    lacked = [name for name, there in found.there_before.items() if not there]
    return "\n".join(
        [
            "seconds from `git clone` of the committed state, then `make demo` in the clone",
            f"there before: {', '.join(had) or 'nothing'}",
            f"set up in the run: {', '.join([*lacked, 'the virtual environment'])}",
            f"{'cloned':26}{found.clone_s:.1f}",
            f"{'first stored sample':26}{found.first_s:.1f}",
            f"{'a sample of every bus':26}{found.all_buses_s:.1f}",
            f"{'end of the demo':26}{found.end_s:.1f} ({found.demo_seconds} s of town, drain and audit)",
        ]
    )
