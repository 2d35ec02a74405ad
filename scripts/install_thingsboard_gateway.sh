#!/bin/sh
# Prints the folder of a virtual environment that holds the ThingsBoard IoT Gateway, which a benchmark compares with:
# $THINGSBOARD_GATEWAY, else one made once for this user from the package index. Its Modbus connector installs what it
# lacks while it runs; here it finds everything.
set -eu

version=3.8.5
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/onestreet/thingsboard-gateway-$version

say() { printf 'thingsboard-gateway: %s\n' "$*" >&2; }
die() { say "$@"; exit 1; }

if [ -n "${THINGSBOARD_GATEWAY:-}" ]; then
    [ -x "$THINGSBOARD_GATEWAY/bin/thingsboard-gateway" ] ||
        die "THINGSBOARD_GATEWAY=$THINGSBOARD_GATEWAY is no virtual environment with thingsboard-gateway"
    echo "$THINGSBOARD_GATEWAY"
    exit 0
fi

mkdir -p "$cache"
if [ ! -f "$cache/complete" ]; then
    exec 9>"$cache/lock"
    flock -n 9 || { say 'another installation is running: waiting for it'; flock -w 600 9 || die 'it took over 10 minutes'; }
fi
# An installation we waited for may have made it.
if [ ! -f "$cache/complete" ]; then
    uv=$(sh "$here/find_uv.sh")
    say "installing version $version once, into $cache"
    {
        "$uv" venv --quiet --allow-existing --python 3.11 "$cache/venv" &&
            "$uv" pip install --quiet --python "$cache/venv/bin/python" "thingsboard-gateway==$version" \
                pymodbus==3.9.2 pyserial pyserial-asyncio
    } >"$cache/log" 2>&1 || { tail -n 20 "$cache/log" >&2; die 'it could not be installed, see above'; }
    touch "$cache/complete"
fi
echo "$cache/venv"
