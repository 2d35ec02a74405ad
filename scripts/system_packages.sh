#!/bin/sh
# system_packages.sh PACKAGE...: installs the Debian packages whose command is missing, as root or through sudo;
# without either it names them and fails.
set -eu

say() { printf 'setup: %s\n' "$*" >&2; }

is_missing() {
    case $1 in
        python3-venv) ! python3 -c 'import ensurepip, venv' 2>/dev/null ;;
        mosquitto-clients) ! command -v mosquitto_pub >/dev/null ;;
        maven) ! command -v mvn >/dev/null ;;
        default-jdk-headless) ! command -v javac >/dev/null ;;
        systemd) ! command -v systemd-analyze >/dev/null ;;
        iproute2) ! command -v ip >/dev/null ;;
        libc6-dev) ! [ -e /usr/include/stdlib.h ] ;;
        *) ! command -v "$1" >/dev/null ;;
    esac
}

missing=
for package in "$@"; do
    if is_missing "$package"; then missing="$missing $package"; fi
done
[ -n "$missing" ] || exit 0

ask="install the missing packages and try again: apt-get install$missing"
command -v apt-get >/dev/null || { say "this is not a Debian system; $ask (or what your system calls them)"; exit 1; }
if [ "$(id -u)" = 0 ]; then
    as_root=
elif command -v sudo >/dev/null && { sudo -n true 2>/dev/null || [ -t 0 ]; }; then
    as_root=sudo # asks for the password on a terminal, after the line below said what for
else
    say "$ask"
    exit 1
fi

say "installing system packages:$missing (under a minute)"
apt() {
    $as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get -qq -y -o DPkg::Lock::Timeout=120 -o Dpkg::Use-Pty=0 "$@" >/dev/null
}
# A fresh machine has no package lists, an old one stale ones: fetch them when the first try fails.
# shellcheck disable=SC2086  # a list of words
if ! apt install --no-install-recommends $missing; then
    say 'fetching the package lists, then once more'
    apt update
    apt install --no-install-recommends $missing || { say "$ask"; exit 1; }
fi
case "$missing " in *' mosquitto '*)
    say 'note: Debian starts a mosquitto service on port 1883 with the package; onestreet runs its own broker on a'
    say '      free port and does not need it. To turn it off: systemctl disable --now mosquitto' ;;
esac
