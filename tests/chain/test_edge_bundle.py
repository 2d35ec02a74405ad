"""The offline bundle of the edge agent: built here, installed where there is no network, updated, and taken back."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BUILD_S = 900.0
INSTALL_S = 600.0
ALONE = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--net", "--map-root-user"]
"""Without a network: not even loopback is up."""
AS_ROOT = [] if os.geteuid() == 0 else ["sudo", "-n", "env", f"PATH={os.environ['PATH']}"]

# A gateway: its own /etc, /opt, /usr/local and /run over those of this machine, which are not touched.
GATEWAY = """
set -eu
own=$(mktemp -d)
mount -t tmpfs tmpfs "$own"
for folder in etc opt usr/local run; do
    mkdir -p "$own/$folder.up" "$own/$folder.work"
    mount -t overlay overlay -o "lowerdir=/$folder,upperdir=$own/$folder.up,workdir=$own/$folder.work" "/$folder"
done
rm -rf /run/systemd /etc/onestreet
cp -r "$1" /run/bundle
cd /run/bundle

echo '== an image: nothing runs'
sh install.sh
first=$(readlink /opt/onestreet/current)
[ "$(onestreet edge --help | head -c 6)" = usage: ]
[ "$(stat -c %U:%a /etc/onestreet)" = onestreet:750 ]
id -nG onestreet | grep -qw dialout
[ -L /etc/systemd/system/multi-user.target.wants/onestreet-edge.service ]
[ -e /etc/modules-load.d/onestreet.conf ]
cp "$2" /etc/onestreet/edge.toml
onestreet edge check

# From here on systemd is at work; it is played, since none runs here: `restart` fails once when it is told to.
mkdir -p /run/systemd/system
printf '#!/bin/sh\\nexit 0\\n' >/usr/local/bin/modprobe
cat >/usr/local/bin/systemctl <<'END'
#!/bin/sh
echo "$*" >>/run/told
case $1 in
    --version) echo 'systemd 254 (254.1)' ;;
    restart) [ ! -e /run/fail ] || { rm /run/fail; exit 1; } ;;
esac
END
chmod +x /usr/local/bin/modprobe /usr/local/bin/systemctl

# version NAME STATUS: makes the bundle another version, whose program ends so when it checks a configuration
version() {
    echo "$1" >docs/version
    find . -type f ! -name sha256sums | xargs sha256sum >sha256sums
    made=/opt/onestreet/$(sha256sum sha256sums | cut -c1-12)
    cp -r "$first" "$made"
    printf '#!/bin/sh\\nexit %s\\n' "$2" >"$made/bin/onestreet"
}

echo '== an update'
version second 0
second=$made
sh install.sh
[ "$(readlink /opt/onestreet/current)" = "$second" ]
[ "$(readlink /opt/onestreet/previous)" = "$first" ]
grep -q '^restart onestreet-edge.service$' /run/told
[ -e /etc/systemd/system/onestreet-edge.service.d/back-off.conf ]

echo '== an update that does not take the configuration'
: >/run/told
version third 2
if sh install.sh; then exit 1; fi
[ "$(readlink /opt/onestreet/current)" = "$second" ]
! grep restart /run/told

echo '== an update that does not start'
version fourth 0
: >/run/fail
if sh install.sh; then exit 1; fi
[ "$(readlink /opt/onestreet/current)" = "$second" ]
[ "$(readlink /opt/onestreet/previous)" = "$first" ]
[ "$(grep -c '^restart' /run/told)" = 2 ]

echo '== another one; what is not needed any more is gone'
sh install.sh
[ "$(readlink /opt/onestreet/previous)" = "$second" ]
[ ! -e "$first" ]
echo '== done'
"""


def run(command: Sequence[str | Path], deadline_s: float) -> str:
    """Return what a command says; it must succeed."""
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=deadline_s
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def built(into: Path) -> Path:
    said = run(["sh", ROOT / "scripts" / "edge_bundle.sh", into], BUILD_S)
    return Path(said.splitlines()[-1])


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tmp_path_factory.mktemp("built"))


@pytest.fixture
def bundle(archive: Path, tmp_path: Path) -> Path:
    """What the installer has on the gateway."""
    run(["sh", "-c", f"cd {archive.parent} && sha256sum --check {archive.name}.sha256"], 60.0)
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path, filter="data")
    [folder] = tmp_path.iterdir()
    return folder


@pytest.fixture
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example, with a broker that needs no files."""
    text = (ROOT / "docs" / "examples" / "edge.toml").read_text("utf-8")
    text, found = re.subn(
        r"(?ms)^\[broker\]$.*?(?=^\[(?!broker))", '[broker]\nhost = "127.0.0.1"\n\n', text
    )
    assert found == 1
    path = tmp_path_factory.mktemp("config") / "edge.toml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.timeout(2 * BUILD_S)
def test_the_same_sources_give_the_same_bytes(archive: Path, tmp_path: Path) -> None:
    again = built(tmp_path)
    digests = {hashlib.sha256(one.read_bytes()).hexdigest() for one in (archive, again)}
    assert len(digests) == 1


@pytest.mark.timeout(2 * BUILD_S)
def test_everything_that_is_listed_is_there(bundle: Path) -> None:
    wheels = {path.name for path in (bundle / "wheels").iterdir()}
    listed = re.findall(
        r"^[0-9a-f]{64}  (\S+)$", (ROOT / "deploy/edge-wheels.txt").read_text(), re.MULTILINE
    )
    own = {name for name in wheels if name.startswith("onestreet-")}
    assert wheels - own == set(listed)
    assert len(own) == 1
    requirements = (bundle / "requirements.txt").read_text()
    assert requirements.count("--hash=sha256:") == len(wheels) - 1, "all but pip's own"
    assert {path.name for path in (bundle / "systemd").iterdir()} == {
        path.name for path in (ROOT / "deploy" / "systemd").iterdir()
    }


@pytest.mark.timeout(BUILD_S + INSTALL_S)
def test_it_installs_where_there_is_no_network(bundle: Path, config: Path, tmp_path: Path) -> None:
    into = tmp_path / "programs"
    said = run([*ALONE, "sh", bundle / "install.sh", "--into", into], INSTALL_S)
    assert "安裝完成" in said
    checked = run([*ALONE, into / "bin" / "onestreet", "edge", "check", config], INSTALL_S)
    assert "good 設定無誤" in checked
    listing = "from importlib.metadata import distributions as d; print(*(x.name for x in d()))"
    there = set(run([into / "bin" / "python", "-c", listing], INSTALL_S).lower().split())
    assert {"onestreet", "msgspec", "uvloop", "pymodbus"} <= there
    assert there.isdisjoint({"aiohttp", "pip", "pytest", "rich"}), "a gateway has no more"


@pytest.mark.timeout(BUILD_S)
def test_a_damaged_bundle_installs_nothing(bundle: Path, tmp_path: Path) -> None:
    [wheel] = (bundle / "wheels").glob("pyserial-*.whl")
    damaged = bytearray(wheel.read_bytes())
    damaged[1000] ^= 1
    wheel.write_bytes(damaged)
    command: list[str | Path] = ["sh", bundle / "install.sh", "--into", tmp_path / "programs"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_S)
    assert done.returncode == 1
    assert "安裝包已損毀" in done.stderr
    assert not (tmp_path / "programs").exists()


@pytest.mark.timeout(BUILD_S + INSTALL_S)
def test_a_gateway_is_installed_updated_and_never_left_without_an_agent(
    bundle: Path, config: Path
) -> None:
    inside = ["unshare", "--net", "--mount", "sh", "-c", GATEWAY, "gateway"]
    said = run([*AS_ROOT, *inside, bundle, config], INSTALL_S)
    assert said.rstrip().endswith("== done"), said
