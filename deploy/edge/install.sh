#!/bin/sh
# Installs or updates the edge agent on a gateway, from this folder alone: no network is needed.
#   sudo sh install.sh             programs in /opt/onestreet, the unit and its user; nothing is started that did not run
#   sh install.sh --into FOLDER    the programs alone, into FOLDER
# An update that does not take the gateway's configuration, or does not get ready, leaves the old version running; to go
# back by hand: sudo ln -sfn "$(readlink /opt/onestreet/previous)" /opt/onestreet/current, then restart the agent.
set -eu
cd "$(dirname "$0")"

BASE=/opt/onestreet
CONFIG=/etc/onestreet/edge.toml
UNIT=onestreet-edge.service

say() { printf '%s\n' "$*" >&2; }
die() { say "install.sh: $*"; exit 1; }

sha256sum --check --strict --quiet sha256sums ||
    die 'the bundle is damaged; copy it again 安裝包已損毀，請重新複製'
case $(uname -m) in
    aarch64 | x86_64) ;;
    *) die "no wheels for $(uname -m): 64-bit ARM or x86 is needed 不支援此處理器，需要 64 位元 ARM 或 x86" ;;
esac
python=$(command -v python3.11 || command -v python3) || python=
[ -n "$python" ] && "$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' ||
    die "Python 3.11 is needed, as in Debian 12 需要 Python 3.11（Debian 12）: $("${python:-python3}" --version 2>&1)"

# programs FOLDER: makes the virtual environment; a folder that is only half made has no mark
programs() {
    if [ -e "$1/.complete" ]; then return; fi
    rm -rf "$1"
    "$python" -m venv --without-pip "$1"
    "$1/bin/python" "$(echo wheels/pip-*.whl)/pip" install --quiet --no-index -f wheels --no-cache-dir \
        --disable-pip-version-check --root-user-action ignore --require-hashes --requirement requirements.txt
    "$1/bin/onestreet" edge --help >/dev/null
    : >"$1/.complete"
}

if [ "${1:-}" = --into ]; then
    programs "$2"
    say "installed 安裝完成: $2/bin/onestreet"
    exit 0
fi
[ $# = 0 ] || die "usage 用法: install.sh [--into FOLDER]"
[ "$(id -u)" = 0 ] || die 'must be root: sudo sh install.sh 需要 root 權限'

# point LINK TARGET: all at once, whatever happens meanwhile
point() {
    ln -sfn "$2" "$1.new"
    mv -T "$1.new" "$1"
}

umask 022
old=$(readlink "$BASE/current" || true)
new=$BASE/$(sha256sum sha256sums | cut -c1-12)
mkdir -p "$BASE"
programs "$new"
if [ -e "$CONFIG" ] && ! "$new/bin/onestreet" edge check "$CONFIG" &&
    [ -n "$old" ] && "$old/bin/onestreet" edge check "$CONFIG" >/dev/null 2>&1; then
    die "the new version does not take the configuration; nothing was changed 新版本不接受目前的設定檔，未做任何變更"
fi

systemd-sysusers "$PWD/systemd/onestreet.sysusers.conf"
install -D -m 644 systemd/onestreet.sysusers.conf /etc/sysusers.d/onestreet.conf
install -D -m 644 systemd/onestreet.modules-load.conf /etc/modules-load.d/onestreet.conf
install -D -m 644 "systemd/$UNIT" "/etc/systemd/system/$UNIT"
systemd=$(systemctl --version | sed -n '1s/^systemd \([0-9]*\).*/\1/p')
if [ "${systemd:-0}" -ge 254 ]; then
    install -D -m 644 systemd/back-off.conf "/etc/systemd/system/$UNIT.d/back-off.conf"
fi
[ -d /etc/onestreet ] || install -d -m 750 -o onestreet -g onestreet /etc/onestreet
mkdir -p /usr/local/bin
point /usr/local/bin/onestreet "$BASE/current/bin/onestreet"
point "$BASE/current" "$new"

if [ -d /run/systemd/system ]; then # else it is an image that is being prepared
    modprobe -a usbserial cdc_acm || true # not every kernel has them
    systemctl daemon-reload
    if systemctl is-active --quiet "$UNIT" && ! systemctl restart "$UNIT"; then
        [ -n "$old" ] || die "the agent does not start 代理程式無法啟動: journalctl -u $UNIT"
        point "$BASE/current" "$old"
        systemctl restart "$UNIT" || true
        die "the new version does not start; the old one is back 新版本無法啟動，已回復舊版本: journalctl -u $UNIT"
    fi
fi
systemctl enable --quiet "$UNIT"
if [ -n "$old" ] && [ "$old" != "$new" ]; then point "$BASE/previous" "$old"; fi

kept=$(readlink "$BASE/previous" || true)
for folder in "$BASE"/*; do # what neither runs nor is kept to go back to
    case $folder in "$new" | "$kept" | */current | */previous) ;; *) rm -rf "$folder" ;; esac
done
say "installed 安裝完成: $("$BASE/current/bin/python" -c 'from importlib.metadata import version; print(version("onestreet"))')"
if [ ! -e "$CONFIG" ]; then
    say "next 下一步: sudo onestreet edge enrol; sudo onestreet edge check; sudo systemctl start onestreet-edge"
fi
