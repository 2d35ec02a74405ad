#!/bin/sh
# Writes the locks of the container images anew, deploy/*.lock: parts of requirements.lock, in the same versions; and
# the list of the wheels that a gateway installs.
set -eu
cd "$(dirname "$0")/.."

uv=$(sh scripts/find_uv.sh)

# lock NAME SOURCE...
lock() {
    name=$1
    shift
    "$uv" pip compile "$@" --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
        --no-annotate --constraints requirements.lock --custom-compile-command 'make lock' \
        --output-file "deploy/$name.lock"
}

rm -f deploy/*.lock # what stands in them would be kept
echo hatchling | lock build -
lock services pyproject.toml --extra ingest --extra town
lock street pyproject.toml --all-extras
sh scripts/edge_wheels.sh
