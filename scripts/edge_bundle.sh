#!/bin/sh
# Makes the offline bundle of the edge agent, DIR/onestreet-edge-VERSION.tar.gz (DIR: dist): wheels for 64-bit ARM and
# x86, the agent's own wheel, the unit, and an install.sh that needs no network. The same sources give the same bytes.
set -eu
cd "$(dirname "$0")/.."

into=${1:-dist}
mkdir -p "$into"
into=$(cd "$into" && pwd)
uv=$(sh scripts/find_uv.sh)
export UV_NO_PROGRESS=1 UV_PYTHON_DOWNLOADS=never SOURCE_DATE_EPOCH=1580601600
umask 022
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM

"$uv" build --quiet --wheel --no-build-isolation --python .venv/bin/python --out-dir "$work/own" .
own=$(cd "$work/own" && echo onestreet-*.whl)
version=${own#onestreet-}
name=onestreet-edge-${version%%-*}
bundle=$work/$name

mkdir -p "$bundle/systemd" "$bundle/docs"
sh scripts/edge_wheels.sh into "$bundle/wheels"
cp "$work/own/$own" "$bundle/wheels/"
cp deploy/edge/install.sh LICENSE "$bundle/"
cp deploy/systemd/* "$bundle/systemd/"
cp docs/examples/edge.toml docs/installers/*.md "$bundle/docs/"
# What pip installs: exactly these, by their hashes. pip itself only carries it out.
(cd "$bundle/wheels" && sha256sum -- *.whl) | awk '
    { split($2, part, "-"); pin = part[1] "==" part[2]; hashes[pin] = hashes[pin] " --hash=sha256:" $1 }
    END { for (pin in hashes) if (pin !~ /^pip==/) print pin hashes[pin] }' | LC_ALL=C sort >"$bundle/requirements.txt"
(cd "$bundle" && find . -type f ! -name sha256sums | LC_ALL=C sort | xargs sha256sum >sha256sums)
tar --create --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$SOURCE_DATE_EPOCH" \
    --directory "$work" "$name" | gzip --no-name --best >"$into/$name.tar.gz"
(cd "$into" && sha256sum "$name.tar.gz" >"$name.tar.gz.sha256")
echo "$into/$name.tar.gz"
