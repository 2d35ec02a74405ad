#!/bin/sh
# Builds InfluxDB from the Go module proxy and Rust crates into the user's cache, once, and prints the path of influxd.
set -eu

version=2.7.12
go_minimum=1.23    # go.mod of that version
rust_minimum=1.72  # rust-toolchain.toml of its query engine, flux; newer ones work
cache=${XDG_CACHE_HOME:-$HOME/.cache}/onestreet/influxd-$version
scripts=$(cd "$(dirname "$0")" && pwd)

say() { printf 'influxd: %s\n' "$*" >&2; }
die() { say "$@"; exit 1; }

# at_least MINIMUM FOUND
at_least() { [ "$(printf '%s\n' "$@" | sort -V | head -n 1)" = "$1" ]; }

# require TOOL MINIMUM FOUND WHERE
require() {
    at_least "$2" "${3:-0}" ||
        die "$1 $2 or newer is needed to build InfluxDB $version, found: ${3:-none}. Get it from $4," \
            "or set INFLUXD=/path/to/influxd (any InfluxDB 2)."
}

mkdir -p "$cache"
if [ ! -x "$cache/influxd" ]; then
    exec 9>"$cache/lock"
    flock -n 9 || { say 'another build is running: waiting for it'; flock -w 2400 9 || die 'it took over 40 minutes'; }
fi
# A build we waited for may have made it.
if [ -x "$cache/influxd" ]; then
    echo "$cache/influxd"
    exit 0
fi

require go "$go_minimum" "$(go env GOVERSION 2>/dev/null | sed 's/^go//')" \
    'https://go.dev/dl/ (or Debian 13 and newer: apt-get install golang)'
for tool in cargo rustc; do
    require "$tool" "$rust_minimum" "$($tool --version 2>/dev/null | cut -d ' ' -f 2)" \
        'https://rustup.rs (or Debian 13 and newer: apt-get install cargo)'
done
sh "$scripts/system_packages.sh" gcc libc6-dev pkg-config

work=$(mktemp -d "$cache/build.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM
cd "$work"

# flux asks for an old toolchain by name, which rustup would have to fetch: name the one that is here.
if command -v rustup >/dev/null; then
    RUSTUP_TOOLCHAIN=$(rustup show active-toolchain | cut -d ' ' -f 1)
    export RUSTUP_TOOLCHAIN
fi
# What newer compilers deny in flux's old dependencies stays a warning. RUSTFLAGS would not reach build scripts.
cat >rustc-wrap <<'W'
#!/bin/sh
case " $* " in *" --cap-lints "*) exec "$@" ;; *) exec "$@" --cap-lints warn ;; esac
W
chmod +x rustc-wrap
export GOFLAGS=-mod=mod GOWORK=off CGO_ENABLED=1 PKG_CONFIG="$work/pkg-config" RUSTC_WRAPPER="$work/rustc-wrap"

say "building InfluxDB $version once, into $cache (5 to 10 minutes on two cores; leaves 3 GB in the caches of Go and cargo)"
say '1 of 3: modules'
{
    GOBIN=$work go install github.com/influxdata/pkg-config@v0.2.7 &&
        go mod init scratch &&
        go get "github.com/influxdata/influxdb/v2/cmd/influxd@v$version"
} >log 2>&1 || { tail -n 20 log >&2; die 'the modules could not be fetched: is the Go module proxy reachable?'; }
say '2 of 3: compiling (Rust first, then Go; nothing is printed meanwhile)'
go build -tags sqlite_foreign_keys,sqlite_json,noasm -ldflags "-s -w -X main.version=v$version" -o influxd \
    github.com/influxdata/influxdb/v2/cmd/influxd >log 2>&1 ||
    { tail -n 40 log >&2; die 'the build failed, see above'; }
say "3 of 3: $(./influxd version)"
mv influxd "$cache/influxd"
echo "$cache/influxd"
