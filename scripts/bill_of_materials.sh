#!/bin/sh
# Writes what a release brings with it to dist/ (or to the folder that is named): a bill of materials (CycloneDX) of
# each image's Python packages, and the list of their licences. Fails on a licence that is not on the list of
# scripts/licences.py. The same lock gives the same bytes.
set -eu
cd "$(dirname "$0")/.."

into=${1:-dist}
mkdir -p "$into"
uv=$(sh scripts/find_uv.sh)
export UV_NO_PROGRESS=1 UV_PYTHON_DOWNLOADS=never
if [ -e /etc/ssl/certs/ca-certificates.crt ]; then export UV_SYSTEM_CERTS=1; fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM

for image in services street; do
    # an environment with exactly the locked packages: what is in it is what is shipped
    "$uv" venv --quiet --no-project --python "$(command -v python3)" "$work/$image"
    "$uv" pip sync --quiet --python "$work/$image/bin/python" --require-hashes "deploy/$image.lock"
    .venv/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible --short-PURLs \
        --output-file "$into/onestreet-$image.cdx.json" "$work/$image/bin/python"
    .venv/bin/python scripts/licences.py "$into/onestreet-$image.cdx.json" "deploy/$image.lock" \
        >"$into/onestreet-$image-licences.md"
done
