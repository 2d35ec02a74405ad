"""docker-compose.yml and the Dockerfile as the engine's own parsers read them; the same parts as processes."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
COMPOSE = ROOT / "docker-compose.yml"
DOCKERFILE = ROOT / "deploy" / "Dockerfile"
BUILD_DEADLINE_S = 600.0
START_DEADLINE_S = 60.0

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


class Part:
    """One service of the model as a process: the same words, environment and folders, and nothing more.

    Shape: it sees what is mounted, at the same places, below a root of its own (by symbolic links; a process
        may look past them, a container may not). What cannot be had without an engine is left out:
        users, read-only file systems, capabilities, networks, limits.
    """

    def __init__(self, model: Model, name: str, folder: Path) -> None:
        self.name = name
        self.service: dict[str, Any] = model["services"][name]
        self.root = folder / name
        self.log = folder / f"{name}.log"
        self._process: subprocess.Popen[bytes] | None = None
        mounts: dict[str, str | None] = dict.fromkeys(self.service.get("tmpfs", []))
        for mount in self.service["volumes"]:
            source = mount["source"]
            if mount["type"] == "volume":
                source = model["volumes"][source]["driver_opts"]["device"]
            mounts[mount["target"]] = source
        self.root.mkdir()
        for target in sorted(mounts):
            self._mount(Path(f"{self.root}{target}"), mounts[target])

    def start(self, *more: str) -> None:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._words([*self._command(), *more]),
                cwd=self._cwd,
                env=self._environment(),
                stdout=log,
                stderr=log,
            )

    def run(self, *more: str) -> None:
        """Start it and wait for its end, which must be a good one."""
        self.start(*more)
        assert self._process is not None
        status = self._process.wait(START_DEADLINE_S)
        self._process = None
        assert status == 0, f"{self.name} ended with {status}:\n{self.words}"

    def is_healthy(self) -> bool:
        """Carry the health check out."""
        kind, *words = self.service["healthcheck"]["test"]
        command = ["sh", "-c", *words] if kind == "CMD-SHELL" else self._words(words)
        done = subprocess.run(
            command,
            cwd=self._cwd,
            env=self._environment(),
            capture_output=True,
            timeout=START_DEADLINE_S,
        )
        return done.returncode == 0

    def wait_healthy(self) -> None:
        """Return when it is; it fails when the process has ended."""
        deadline_s = time.monotonic() + START_DEADLINE_S
        while not self.is_healthy():
            assert self._process is not None
            ended = self._process.poll() is not None
            late = time.monotonic() > deadline_s
            assert not ended and not late, f"{self.name} is not healthy:\n{self.words}"
            try:
                self._process.wait(0.1)
            except subprocess.TimeoutExpired:
                continue

    def stop(self) -> int:
        """End it as the engine would; return the exit status."""
        if self._process is None:
            return 0
        process, self._process = self._process, None
        process.send_signal(signal.Signals[self.service.get("stop_signal", "SIGTERM")])
        try:
            return process.wait(START_DEADLINE_S)
        finally:
            process.kill()

    @property
    def words(self) -> str:
        """The end of what it wrote."""
        return self.log.read_text(errors="replace")[-3000:]

    @property
    def _cwd(self) -> str:
        return f"{self.root}{self.service.get('working_dir', '')}"

    def _command(self) -> list[str]:
        return [*(self.service.get("entrypoint") or []), *(self.service.get("command") or [])]

    def _words(self, words: list[str]) -> list[str]:
        first, *rest = words
        return [PROGRAMS.get(first, lambda: first)(), *(self._inside(word) for word in rest)]

    def _environment(self) -> dict[str, str]:
        given = self.service.get("environment") or {}
        influxd = Path(os.environ["ONESTREET_INFLUXD"]).parent  # where a script calls it
        path = f"{influxd}:{os.environ['PATH']}:/usr/sbin"
        return {"PATH": path} | {name: self._inside(value) for name, value in given.items()}

    def _inside(self, word: str) -> str:
        return f"{self.root}{word}" if word.startswith("/") else word

    def _mount(self, place: Path, source: str | None) -> None:
        if source is None:
            place.mkdir(parents=True)
            return
        assert Path(source).exists(), f"{self.name} mounts {source}, which is not there"
        if place.exists():  # inside of another mount, as it is in the office
            assert place.samefile(source), f"{self.name}: {place} is not {source}"
            return
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(source)


class Parts:
    """Services of the model as processes, started in the order that `depends_on` asks for."""

    def __init__(self, model: Model, folder: Path) -> None:
        self._model, self._folder = model, folder
        self._parts: dict[str, Part] = {}
        folder.mkdir()

    def __getitem__(self, name: str) -> Part:
        return self._parts[name]

    def up(self, *names: str) -> None:
        """Have services run and be healthy, and before each what it depends on."""
        for name in names:
            if name in self._parts:
                continue
            service = self._model["services"][name]
            self.up(*service.get("depends_on", {}))
            part = self._parts[name] = Part(self._model, name, self._folder)
            if "healthcheck" in service:
                assert not part.is_healthy(), f"{name} is healthy before it runs"
                part.start()
                part.wait_healthy()
            else:
                part.run()

    def run(self, name: str, *more: str) -> None:
        """Do as `docker compose run --rm NAME MORE...`."""
        self.up(*self._model["services"][name].get("depends_on", {}))
        part = self._parts[name] = Part(self._model, name, self._folder)
        part.run(*more)

    def down(self) -> dict[str, int]:
        """End everything, last started first; return the exit statuses."""
        return {name: self._parts.pop(name).stop() for name in reversed(list(self._parts))}


def _beside_python(name: str) -> Callable[[], str]:
    return lambda: str(Path(sys.executable).with_name(name))


PROGRAMS: dict[str, Callable[[], str]] = {
    "python": lambda: sys.executable,
    "onestreet": _beside_python("onestreet"),
    "influxd": lambda: os.environ["ONESTREET_INFLUXD"],
    "influx": lambda: str(tools() / "influx"),
}
"""What an image has on its PATH; the rest is on ours."""
