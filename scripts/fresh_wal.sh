#!/bin/sh
# fresh_wal.sh ENGINE [COMMAND...]: before influxd starts, gives every shard an empty last segment of its write-ahead
# log; then becomes the command.
#
# influxd 2.7 opens the last segment at its end for writing, and only then cuts off a record that a full disk or a power
# cut has torn: what it writes next stands behind a hole, and is gone at the start after that, though it was answered
# with 204. A last segment that is empty it removes, and begins a new one.
set -eu
for shard in "$1"/wal/*/*/*/; do
    last=
    for segment in "$shard"_*.wal; do
        if [ -s "$segment" ]; then last=$segment; fi
    done
    [ -n "$last" ] || continue
    number=${last##*/_}
    number=$(printf '%s' "${number%.wal}" | sed 's/^0*//')
    : >"$shard$(printf '_%05d.wal' $((${number:-0} + 1)))"
done
shift
[ "$#" -eq 0 ] || exec "$@"
