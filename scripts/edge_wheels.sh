#!/bin/sh
# Writes deploy/edge-wheels.txt anew: every wheel that a gateway installs, by SHA-256 and file name, for CPython 3.11 on
# 64-bit ARM and x86. The versions are those of requirements.lock. Fails when a package has no wheel for one of them: a
# gateway compiles nothing. `edge_wheels.sh into FOLDER` fetches those that are listed, every one checked by its hash.
set -eu
cd "$(dirname "$0")/.."

MACHINES='aarch64 x86_64'
PYTHON=3.11
GLIBC=36 # of Debian 12; wheels for older ones are taken, too

list=deploy/edge-wheels.txt
uv=$(sh scripts/find_uv.sh)
export UV_NO_PROGRESS=1 UV_PYTHON_DOWNLOADS=never PIP_DISABLE_PIP_VERSION_CHECK=1
if [ -e /etc/ssl/certs/ca-certificates.crt ]; then export UV_SYSTEM_CERTS=1; fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM
"$uv" venv --quiet --no-project --seed --python "$(command -v python3)" "$work/venv"

# fetch FOLDER MACHINE REQUIREMENTS
fetch() {
    platforms="--platform manylinux2014_$2"
    glibc=$GLIBC
    while [ "$glibc" -ge 17 ]; do
        platforms="$platforms --platform manylinux_2_${glibc}_$2"
        glibc=$((glibc - 1))
    done
    # shellcheck disable=SC2086  # a list of words
    "$work/venv/bin/pip" --quiet download --dest "$1" --no-deps --require-hashes --requirement "$3" \
        --only-binary :all: --implementation cp --python-version "$PYTHON" $platforms
}

if [ "${1:-}" = into ]; then
    mkdir -p "$2"
    # one requirement a package, with the hash of each of its wheels
    awk '/^[0-9a-f]/ { split($2, part, "-"); pin = part[1] "==" part[2]; hashes[pin] = hashes[pin] " --hash=sha256:" $1 }
         END { for (pin in hashes) print pin hashes[pin] }' "$list" | sort >"$work/requirements.txt"
    for machine in $MACHINES; do fetch "$2" "$machine" "$work/requirements.txt"; done
    (cd "$2" && grep '^[0-9a-f]' "$OLDPWD/$list" | sha256sum --check --strict --quiet)
    exit 0
fi

# pip comes along: a gateway's own Python may have none
echo pip >"$work/pip.in"
for machine in $MACHINES; do
    "$uv" pip compile --quiet --python-platform "$machine-manylinux_2_$GLIBC" --python-version "$PYTHON" \
        --only-binary :all: --generate-hashes --no-emit-index-url --no-annotate --no-header \
        --constraints requirements.lock pyproject.toml --extra edge "$work/pip.in" >"$work/$machine.txt"
    fetch "$work/wheels" "$machine" "$work/$machine.txt"
done
{
    echo '# What a gateway installs, as sha256sum writes it; `make lock` writes it anew.'
    (cd "$work/wheels" && sha256sum -- *.whl)
} >"$list"
