#!/bin/bash
# bwrap.sh DIR: put the bubblewrap of this machine's Debian release into DIR/usr/bin/bwrap, once, without installing it. For
# comparison only; nothing of the product uses it. An ordinary user can run it too.
#
# Exit: 0 DIR/usr/bin/bwrap works; 77 it cannot be had here, said loudly.
set -euo pipefail

FETCH_SECONDS=120

skip() { echo "SKIPPED bubblewrap: $*" >&2; exit 77; }

[ $# -eq 1 ] || { echo "usage: $0 DIR" >&2; exit 64; }
DIR=$(realpath -m -- "$1")
works() { timeout 10 "$DIR/usr/bin/bwrap" --version >/dev/null 2>&1; }
if works; then echo "ok   bubblewrap: $("$DIR/usr/bin/bwrap" --version) is there"; exit 0; fi

for tool in apt-get dpkg-deb timeout; do command -v "$tool" >/dev/null || skip "no $tool on this machine"; done
PART=$DIR.part.$$
trap 'rm -rf --one-file-system -- "$PART"' EXIT
mkdir -p -- "$PART/root"
fetch() { (cd -- "$PART" && timeout "$FETCH_SECONDS" apt-get -q download bubblewrap >/dev/null 2>&1); }
# The lists may be missing or old; only root can renew them.
fetch || { [ "$(id -u)" = 0 ] && timeout "$FETCH_SECONDS" apt-get -q update >/dev/null 2>&1 && fetch; } ||
    skip "the package cannot be downloaded"
dpkg-deb -x "$PART"/bubblewrap_*.deb "$PART/root" || skip "the package cannot be unpacked"
mkdir -p -- "$DIR"
cp -a -- "$PART/root/." "$DIR/"
# It needs libcap and libselinux, which nearly every Debian system has.
works || skip "the program does not start: $(timeout 10 "$DIR/usr/bin/bwrap" --version 2>&1 | head -n 1)"
echo "ok   bubblewrap: $("$DIR/usr/bin/bwrap" --version) unpacked"
