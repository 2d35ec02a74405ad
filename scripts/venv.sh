#!/bin/sh
# Makes .venv exactly what requirements.lock says, every file checked against its hash, and the project itself in it.
set -eu
cd "$(dirname "$0")/.."

say() { printf 'setup: %s\n' "$*" >&2; }

if ! python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    say "Python 3.11 or newer is needed as python3, found: $(python3 --version 2>&1 || echo none)"
    exit 1
fi
uv=$(sh scripts/find_uv.sh)
export UV_NO_PROGRESS=1 UV_PYTHON_DOWNLOADS=never
# The machine's own certificates, so that a network with its own authority works as it does for pip and git.
if [ -e /etc/ssl/certs/ca-certificates.crt ]; then export UV_SYSTEM_CERTS=1; fi
say 'virtual environment at .venv, packages from requirements.lock (about half a minute the first time)'
if ! .venv/bin/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    "$uv" venv --quiet --clear --no-project --python "$(command -v python3)" .venv
fi
"$uv" pip sync --quiet --python .venv/bin/python --require-hashes requirements.lock
"$uv" pip install --quiet --python .venv/bin/python --no-deps --no-build-isolation --editable .
touch .venv/.stamp
say 'ready'
