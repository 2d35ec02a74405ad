#!/bin/sh
# Shows that a bundle works on 64-bit ARM, from a machine that is none: Debian's own Python for arm64, emulated, imports
# everything that the agent consists of, natively built wheels among it, and runs the agent until it has a sample.
#   sh scripts/edge_on_arm64.sh BUNDLE.tar.gz     on Debian 12 with its package sources; needs no root
set -eu
bundle=$(realpath "$1")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM
cd "$work"

# download ARCHITECTURE FOLDER PACKAGE...: as apt trusts them, unpacked into a folder; nothing is installed
download() {
    machine=$1 into=$2
    shift 2
    mkdir -p "apt-$machine/lists/partial" "apt-$machine/archives/partial" "debs-$machine" "$into"
    : >"apt-$machine/status"
    apt="-qq -o APT::Architecture=$machine -o APT::Architectures=$machine -o Dir::State=$work/apt-$machine
        -o Dir::State::status=$work/apt-$machine/status -o Dir::Cache=$work/apt-$machine -o APT::Sandbox::User="
    # shellcheck disable=SC2086  # a list of words
    { apt-get $apt update && (cd "debs-$machine" && apt-get $apt download "$@"); }
    for deb in "debs-$machine"/*.deb; do dpkg-deb --extract "$deb" "$into"; done
}

download "$(dpkg --print-architecture)" emulator qemu-user-static
download arm64 root libc6 libgcc-s1 libstdc++6 python3.11 python3.11-minimal libpython3.11-minimal \
    libpython3.11-stdlib libssl3 libsqlite3-0 zlib1g libexpat1 libffi8 libbz2-1.0 liblzma5 libuuid1 libcrypt1

mkdir bundle site state
tar --extract --gzip --file "$bundle" --directory bundle --strip-components 1
for wheel in bundle/wheels/*.whl; do
    case $wheel in *x86_64*) ;; *) python3 -m zipfile --extract "$wheel" site ;; esac
done

export PYTHONPATH="$work/site"
arm64='emulator/usr/bin/qemu-aarch64-static -L root root/usr/bin/python3.11' # a list of words

cat >imports.py <<'END'
import importlib, pkgutil, platform, sys
import device_drivers, edge_agent

for package in (edge_agent, device_drivers):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not module.name.endswith(("__main__", ".twin")):  # twins are of the simulators, which a gateway has not
            importlib.import_module(module.name)
for name in ("uvloop", "tzdata"):
    importlib.import_module(name)
native = {name for name, module in sys.modules.items() if str(getattr(module, "__file__", "")).endswith(".so")}
ours = sorted({name.partition(".")[0] for name in native if "/site/" in sys.modules[name].__file__})
print(platform.machine(), platform.python_version(), "imports all of it; native:", *ours)
END
$arm64 imports.py

cat >edge.toml <<'END'
[gateway]
id = "gw-1"
county = "tw-tpe"
site = "bench"
state_dir = "state"
interval_s = 1.0
[broker]
host = "127.0.0.1"
port = 9
END
$arm64 -m onestreet.cli edge run edge.toml 2>agent.log &
agent=$!
trap 'kill "$agent" 2>/dev/null || true; rm -rf "$work"' EXIT
cat >until_sample.py <<'END'
import json, socket, sys, time

deadline = time.monotonic() + 60
while time.monotonic() < deadline:
    try:
        with socket.socket(socket.AF_UNIX) as agent:
            agent.settimeout(10)
            agent.connect("state/status.sock")
            agent.sendall(b"\n")
            status = json.loads(b"".join(iter(lambda: agent.recv(65536), b"")))
        if status["outbox"]["depth"]:
            sys.exit(0)
    except OSError:
        pass
    time.sleep(0.5)
sys.exit(1)
END
python3 -I until_sample.py || { cat agent.log >&2; exit 1; }
kill "$agent"
wait "$agent"
grep -q '"stopped"' agent.log
echo 'the agent runs, keeps samples, and stops when it is told'
