#!/bin/sh
# Prints the path of the Telegraf that the benchmarks compare with: $TELEGRAF, else one built once for this user from
# the Go module proxy, with only the plugins that are needed.
set -eu

version=1.37.2
go_minimum=1.25.5 # go.mod of that version
plugins=custom,inputs.mqtt_consumer,inputs.modbus,outputs.influxdb_v2,outputs.mqtt,outputs.discard
plugins=$plugins,parsers.json,parsers.influx,serializers.influx,serializers.json
build=2 # rises with the list above
cache=${XDG_CACHE_HOME:-$HOME/.cache}/onestreet/telegraf-$version-$build

say() { printf 'telegraf: %s\n' "$*" >&2; }
die() { say "$@"; exit 1; }

if [ -n "${TELEGRAF:-}" ]; then
    "$TELEGRAF" --version 2>/dev/null | grep -q '^Telegraf ' || die "TELEGRAF=$TELEGRAF is not Telegraf"
    command -v "$TELEGRAF"
    exit 0
fi

mkdir -p "$cache"
if [ ! -x "$cache/telegraf" ]; then
    exec 9>"$cache/lock"
    flock -n 9 || { say 'another build is running: waiting for it'; flock -w 1200 9 || die 'it took over 20 minutes'; }
fi
# A build we waited for may have made it.
if [ -x "$cache/telegraf" ]; then
    echo "$cache/telegraf"
    exit 0
fi

found=$(go env GOVERSION 2>/dev/null | sed 's/^go//')
[ "$(printf '%s\n' "$go_minimum" "${found:-0}" | sort -V | head -n 1)" = "$go_minimum" ] ||
    die "go $go_minimum or newer is needed to build Telegraf $version, found: ${found:-none}. Get it from" \
        "https://go.dev/dl/, or set TELEGRAF=/path/to/telegraf."

work=$(mktemp -d "$cache/build.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM
cd "$work"
export GOFLAGS=-mod=mod GOWORK=off CGO_ENABLED=0

say "building Telegraf $version once, into $cache (1 to 3 minutes on two cores)"
{
    go mod init scratch &&
        go get "github.com/influxdata/telegraf@v$version"
} >log 2>&1 || { tail -n 20 log >&2; die 'the modules could not be fetched: is the Go module proxy reachable?'; }
go build -tags "$plugins" -ldflags "-s -w -X github.com/influxdata/telegraf/internal.Version=$version" \
    -o telegraf github.com/influxdata/telegraf/cmd/telegraf >log 2>&1 ||
    { tail -n 40 log >&2; die 'the build failed, see above'; }
say "$(./telegraf --version)"
mv telegraf "$cache/telegraf"
echo "$cache/telegraf"
