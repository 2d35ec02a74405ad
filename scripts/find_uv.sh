#!/bin/sh
# Prints the path of uv: the one on PATH, else one of our own in the user's cache, installed when missing.
set -eu

die() { printf 'setup: %s\n' "$*" >&2; exit 1; }

command -v uv && exit 0

tools=${XDG_CACHE_HOME:-$HOME/.cache}/onestreet/uv
if ! "$tools/bin/uv" --version >/dev/null 2>&1; then
    echo 'setup: uv is not on PATH: installing it for this user (a few seconds)' >&2
    command -v python3 >/dev/null || die 'python3 is missing: install the package python3 (3.11 or newer)'
    # Debian ships the module venv without what it needs to work.
    python3 -c 'import ensurepip, venv' 2>/dev/null ||
        sh "$(dirname "$0")/system_packages.sh" python3-venv
    python3 -m venv --clear "$tools" >&2
    "$tools/bin/python" -m pip install --quiet --disable-pip-version-check 'uv>=0.5,<1' >&2
fi
echo "$tools/bin/uv"
