"""The set-up scripts name what is missing, where to get it, and stop; they take what is there."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from pathlib import Path

SCRIPTS = Path(__file__).parents[2] / "scripts"
TOOLS = ("sh", "dirname", "sort", "head", "cut", "sed", "grep", "mkdir", "flock", "mktemp", "rm")


class Machine:
    """A machine with an empty home and only the ordinary tools, and programs that say one thing."""

    def __init__(self, folder: Path) -> None:
        self._bin, self.home = folder / "bin", folder / "home"
        self._bin.mkdir()
        self.home.mkdir()
        for tool in TOOLS:
            found = shutil.which(tool)
            assert found, tool
            (self._bin / tool).symlink_to(found)

    def install(self, name: str, says: str) -> Path:
        program = self._bin / name
        program.write_text(f"#!/bin/sh\necho '{says}'\n", encoding="utf-8")
        program.chmod(0o755)
        return program

    @property
    def environment(self) -> dict[str, str]:
        return {"PATH": str(self._bin), "HOME": str(self.home)}

    def run(self, script: str, *args: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["sh", str(SCRIPTS / script), *args],
            env={**self.environment, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )


def test_every_script_is_executable() -> None:
    scripts = list(SCRIPTS.glob("*.sh"))
    assert scripts
    assert [path.name for path in scripts if not os.access(path, os.X_OK)] == []


def test_missing_packages_are_named_without_root_or_sudo(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.install("id", "1000")
    machine.install("apt-get", "must not run")
    machine.install("dbus-daemon", "")
    done = machine.run("system_packages.sh", "mosquitto", "dbus-daemon")
    assert done.returncode == 1
    assert "apt-get install mosquitto\n" in done.stderr
    assert "must not run" not in done.stderr


def test_no_package_is_asked_for_when_all_are_there(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.install("mosquitto", "")
    done = machine.run("system_packages.sh", "mosquitto")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_root_gets_missing_packages_after_fetching_the_lists(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.install("id", "0")
    machine.install("env", "").write_text('#!/bin/sh\nshift\nexec "$@"\n', encoding="utf-8")
    machine.install("apt-get", "").write_text(
        # Knows no package before its lists are there.
        '#!/bin/sh\necho "apt-get $*" >&2\ncase $* in *update) : >"$HOME/lists" ;; '
        '*) [ -e "$HOME/lists" ] ;; esac\n',
        encoding="utf-8",
    )
    done = machine.run("system_packages.sh", "mosquitto")
    calls = [line for line in done.stderr.splitlines() if line.startswith("apt-get ")]
    assert done.returncode == 0
    assert [next(w for w in call.split() if w in {"install", "update"}) for call in calls] == [
        "install",
        "update",
        "install",
    ]
    assert calls[0] == calls[2]
    assert calls[0].endswith("install --no-install-recommends mosquitto")


def test_influxd_is_the_one_named(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.install("influxd", "InfluxDB v2.7.1 (git: none)")
    named = machine.install("influxd-mine", "InfluxDB v2.7.12 (git: none)")
    done = machine.run("find_influxd.sh", INFLUXD=str(named))
    assert (done.returncode, done.stdout) == (0, f"{named}\n")


def test_influxd_is_the_one_on_path(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    found = machine.install("influxd", "InfluxDB v2.7.1 (git: none)")
    done = machine.run("find_influxd.sh")
    assert (done.returncode, done.stdout) == (0, f"{found}\n")


def test_an_influxd_of_version_1_is_refused(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    named = machine.install("influxd-1", "InfluxDB v1.8.10 (git: none)")
    done = machine.run("find_influxd.sh", INFLUXD=str(named))
    assert done.returncode == 1
    assert f"INFLUXD={named} is not an InfluxDB 2" in done.stderr


def test_a_go_that_is_too_old_is_named_with_where_to_get_one(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.install("go", "go1.19.8")
    done = machine.run("find_influxd.sh")
    assert (done.returncode, done.stdout) == (1, "")
    assert "go 1.23 or newer is needed" in done.stderr
    assert "found: 1.19.8. Get it from https://go.dev/dl/" in done.stderr


def test_a_missing_rust_is_named_with_where_to_get_it(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.install("go", "go1.23.0")
    done = machine.run("find_influxd.sh")
    assert (done.returncode, done.stdout) == (1, "")
    assert "cargo 1.72 or newer is needed" in done.stderr
    assert "found: none. Get it from https://rustup.rs" in done.stderr


def test_an_influxd_built_before_is_taken(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    cache = machine.home / ".cache" / "onestreet" / "influxd-2.7.12"
    cache.mkdir(parents=True)
    machine.install("influxd-built", "InfluxDB v2.7.12").rename(cache / "influxd")
    done = machine.run("find_influxd.sh")
    assert (done.returncode, done.stdout) == (0, f"{cache / 'influxd'}\n")


def test_a_second_build_waits_for_the_first_and_takes_its_result(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    cache = machine.home / ".cache" / "onestreet" / "influxd-2.7.12"
    cache.mkdir(parents=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        second = subprocess.Popen(
            ["sh", str(SCRIPTS / "build_influxd.sh")],
            env=machine.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert second.stderr is not None
        assert "waiting for it" in second.stderr.readline()
        machine.install("influxd-built", "InfluxDB v2.7.12").rename(cache / "influxd")
    out, _ = second.communicate(timeout=30)
    assert (second.returncode, out) == (0, f"{cache / 'influxd'}\n")
