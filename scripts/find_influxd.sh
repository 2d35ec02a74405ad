#!/bin/sh
# Prints the path of a real InfluxDB 2 server: $INFLUXD, else influxd on PATH, else one built once for this user.
set -eu

is_v2() { "$1" version 2>/dev/null | grep -q '^InfluxDB v\{0,1\}\(2\.\|dev\)'; }

if [ -n "${INFLUXD:-}" ]; then
    is_v2 "$INFLUXD" || { echo "setup: INFLUXD=$INFLUXD is not an InfluxDB 2 server (influxd)" >&2; exit 1; }
    command -v "$INFLUXD"
elif command -v influxd >/dev/null && is_v2 influxd; then
    command -v influxd
else
    sh "$(dirname "$0")/build_influxd.sh"
fi
