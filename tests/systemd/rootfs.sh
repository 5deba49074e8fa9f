#!/bin/bash
# rootfs.sh DIR: make the small Debian root that boot.sh boots, once; does nothing when DIR is complete.
#
#   ROOTFS_SUITE    Debian release, default bookworm (systemd 252); trixie has 257
#   ROOTFS_MIRROR   archive to take it from; default: what the apt sources of this machine name
#
# Exit: 0 DIR is complete; 1 building failed; 77 this machine cannot build it.
set -euo pipefail

PACKAGES=systemd,systemd-sysv,dbus,procps,iproute2,util-linux
SUITE=${ROOTFS_SUITE:-bookworm}
KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg
BUILD_SECONDS=900
# A complete root carries its recipe; a changed recipe makes a new root.
MARK=.thenodes-rootfs
RECIPE="1 $SUITE $PACKAGES"

skip() { echo "SKIP rootfs: $*" >&2; exit 77; }
die() { echo "FAIL rootfs: $*" >&2; exit 1; }
complete() { [ "$(cat "$DIR/$MARK" 2>/dev/null)" = "$RECIPE" ]; }

[ $# -eq 1 ] || { echo "usage: $0 DIR" >&2; exit 64; }
DIR=$(realpath -m -- "$1")
if complete; then echo "ok   rootfs: $SUITE is cached"; exit 0; fi

[ "$(id -u)" = 0 ] || skip "$DIR is not there, and only root can build it"
command -v apt-get >/dev/null || skip "no apt on this machine"

# Two builders at once: the second one waits and finds the work done.
mkdir -p -- "$(dirname -- "$DIR")"
exec 9>"$DIR.lock"
flock -w "$BUILD_SECONDS" 9 || die "another build of $DIR does not end"
if complete; then echo "ok   rootfs: $SUITE is cached"; exit 0; fi
# Only what this script made is replaced: anything else may be somebody's data.
[ ! -e "$DIR" ] || [ -f "$DIR/$MARK" ] || rmdir -- "$DIR" 2>/dev/null || die "$DIR holds something that is not ours"

if ! command -v mmdebstrap >/dev/null || [ ! -f "$KEYRING" ]; then
    echo "     rootfs: installing mmdebstrap"
    export DEBIAN_FRONTEND=noninteractive
    { timeout 300 apt-get update && timeout 300 apt-get install -y --no-install-recommends mmdebstrap debian-archive-keyring; } \
        >/dev/null 9>&- || skip "mmdebstrap cannot be installed"
fi

# One "deb" line per Debian archive (main, updates, security) that apt itself knows, with our release in place of the machine's.
sources() {
    if [ -n "${ROOTFS_MIRROR:-}" ]; then
        echo "deb $ROOTFS_MIRROR $SUITE main"
        return
    fi
    # shellcheck disable=SC2016  # the $(…) are apt's
    apt-get indextargets --format '$(ORIGIN) $(SITE) $(CODENAME) $(COMPONENT)' 'Created-By: Packages' |
        sed -nE "s,^Debian (\S+) [a-z]+(-security|-updates)? main\$,deb \1 $SUITE\2 main,p" | sort -u
}
SOURCES=$(sources)
[ -n "$SOURCES" ] || skip "the apt sources name no Debian archive; set ROOTFS_MIRROR (and run apt-get update first)"

PART=$DIR.part
BUILD=
# Not past a mount: what a killed build left mounted must not be emptied.
tidy() { [ -z "$BUILD" ] || { kill "$BUILD" && wait "$BUILD"; } 2>/dev/null || true; rm -rf --one-file-system -- "$PART"; }
trap tidy EXIT
trap 'exit 143' TERM
trap 'exit 130' INT
rm -rf --one-file-system -- "$PART"

# In namespaces of its own, so that a build that is killed leaves no process and no mount. It holds the lock as well: if only this
# script is killed, the next one waits for the end of what it started.
# The hook takes out what mmdebstrap copies from this machine.
# shellcheck disable=SC2016  # $1 is for the hook
timeout -k 10 "$BUILD_SECONDS" unshare --mount --pid --fork --kill-child=KILL --mount-proc --propagation private \
    mmdebstrap --quiet --mode=root --variant=minbase --include="$PACKAGES" --keyring="$KEYRING" \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
    --customize-hook='rm -f "$1/etc/resolv.conf"; echo thenodes-boot > "$1/etc/hostname"' \
    "$SUITE" "$PART" - <<<"$SOURCES" &
BUILD=$!
wait "$BUILD" || die "mmdebstrap ended with $?"
BUILD=

echo "$RECIPE" > "$PART/$MARK"
rm -rf --one-file-system -- "$DIR"
mv -- "$PART" "$DIR"
echo "ok   rootfs: $SUITE built in $SECONDS s, $(du -sm "$DIR" | cut -f1) MB"
