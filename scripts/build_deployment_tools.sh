#!/bin/sh
# Builds, once per user and from the Go module proxy, what the tests of the deployment ask; prints the folder of
#   deployment-parser   the parsers of Docker Compose and of BuildKit (scripts/deployment_parser)
#   influx              InfluxDB's client, which the container's health check calls
set -eu

compose=v2.9.1
buildkit=v0.25.1
influx=v2.2.1-0.20221028161653-3285a03e9e28
go_minimum=1.24 # go.mod of BuildKit
scripts=$(cd "$(dirname "$0")" && pwd)
key=$(cat "$scripts/deployment_parser/main.go" "$scripts/build_deployment_tools.sh" | sha256sum | cut -c 1-12)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/onestreet/deployment-tools-$key

say() { printf 'deployment tools: %s\n' "$*" >&2; }
die() { say "$@"; exit 1; }
built() { [ -x "$cache/influx" ] && [ -x "$cache/deployment-parser" ]; }

mkdir -p "$cache"
if ! built; then
    exec 9>"$cache/lock"
    flock -n 9 || { say 'another build is running: waiting for it'; flock -w 900 9 || die 'it took over 15 minutes'; }
fi
# A build we waited for may have made it.
if built; then
    echo "$cache"
    exit 0
fi

found=$(go env GOVERSION 2>/dev/null | sed 's/^go//')
[ "$(printf '%s\n' "$go_minimum" "${found:-0}" | sort -V | head -n 1)" = "$go_minimum" ] ||
    die "go $go_minimum or newer is needed, found: ${found:-none}. Get it from https://go.dev/dl/"

work=$(mktemp -d "$cache/build.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM
export GOFLAGS=-mod=mod GOWORK=off CGO_ENABLED=0
say 'building the parsers of Compose and BuildKit, and the influx client (under a minute on two cores)'

# build NAME PACKAGE MODULE@VERSION...: in the folder of its sources
build() {
    name=$1 package=$2
    shift 2
    { go mod init scratch && go get "$@"; } >log 2>&1 ||
        { tail -n 20 log >&2; die 'the modules could not be fetched: is the Go module proxy reachable?'; }
    go build -ldflags '-s -w' -o "$work/$name" "$package" >log 2>&1 ||
        { tail -n 40 log >&2; die "$name cannot be built, see above"; }
    mv "$work/$name" "$cache/$name"
}

mkdir "$work/parser" "$work/client"
cp "$scripts/deployment_parser/main.go" "$work/parser/"
cd "$work/parser"
build deployment-parser . "github.com/compose-spec/compose-go/v2@$compose" "github.com/moby/buildkit@$buildkit"
cd "$work/client"
build influx github.com/influxdata/influx-cli/v2/cmd/influx "github.com/influxdata/influx-cli/v2/cmd/influx@$influx"
echo "$cache"
