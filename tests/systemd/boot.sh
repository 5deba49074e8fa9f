#!/bin/bash
# boot.sh ROOTFS STAGE_DIR SCRIPT: boot a real systemd as PID 1 of fresh namespaces, install STAGE_DIR's tree over it as a package
# would, run SCRIPT against it, and leave nothing behind.
#
# ROOTFS (see rootfs.sh) is not changed: the boot writes to an overlay in memory. Needs root and util-linux; no systemd on this
# machine, no container tool, no virtual machine.
#
# SCRIPT is bash, sourced, and uses:
#   ns CMD…                  run CMD inside, as root, at most NS_SECONDS (default 30)
#   prop NAME UNIT           a property of a unit
#   ok TEXT…                 a promise that held
#   fail TEXT…               one that did not: prints the journal and ends the run
#   wait_until SECONDS CMD…  retry CMD until it succeeds; 1 if it never does
#   $UNIT                    set it, and fail prints the journal of that unit only
#
#   BOOT_DEADLINE   seconds for the whole run, default 180
#
# Exit: 0 all held; 1 something did not; 77 this machine lacks something, said loudly.
# shellcheck disable=SC2015  # skip and fail end the run, so A && B || skip is an if
set -uo pipefail
umask 022

BOOT_DEADLINE=${BOOT_DEADLINE:-180}
START_SECONDS=30       # until systemd says that it is up
TEARDOWN_SECONDS=10    # until the last process and control group are gone
SAFE_PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

# --- what the machine must have ---------------------------------------------------------------------------------------------------

skip() { echo "SKIP systemd boot: $*" >&2; exit 77; }

# What a plugin's walls are made of, tried as nobody: some distributions refuse it to ordinary users, and then no unit can help.
unprivileged_namespaces_work() {
    setpriv --reuid=65534 --regid=65534 --clear-groups unshare --user --map-root-user --mount mount -t tmpfs tmpfs /tmp 2>/dev/null
}

need() {
    local tool
    [ "$(id -u)" = 0 ] || skip "must be root"
    for tool in unshare nsenter setpriv findmnt pivot_root tar pgrep timeout; do
        command -v "$tool" >/dev/null || skip "no $tool"
    done
    CGROUPS=$(findmnt -rn -t cgroup2 -o TARGET | head -n 1)
    [ -n "$CGROUPS" ] || skip "no cgroup2 mount"
    grep -qw overlay /proc/filesystems || modprobe overlay 2>/dev/null || skip "no overlayfs"
    unprivileged_namespaces_work || skip "unprivileged users may not make user namespaces here (sysctl or AppArmor)"
}

# --- outer half: what exists on this machine, and its end ---------------------------------------------------------------------------

# Everything that runs is in one control group of ours: the driver (SCRIPT and its helpers) and the booted system, side by side.
# So one write to cgroup.kill ends it all, whatever has forked, detached or left its process group.
make_places() {
    mkdir -m 0700 "$WORK" && mkdir "$WORK/root" || skip "cannot make $WORK"
    mkdir "$CGROUP" 2>/dev/null || skip "cannot make a control group in $CGROUPS"
    [ -w "$CGROUP/cgroup.kill" ] || skip "no cgroup.kill (Linux 5.14)"
    # Hand down the controllers there are; on a hybrid machine there are none.
    local controller
    for controller in $(< "$CGROUP/cgroup.controllers"); do
        echo "+$controller" 2>/dev/null > "$CGROUP/cgroup.subtree_control"
    done
    mkdir "$CGROUP/driver" "$CGROUP/system" || skip "cannot make control groups below $CGROUP"
}

# Bounded, and heard about if it does not succeed: a leak is a failure of the test. Nothing to do is success.
teardown() {
    trap '' TERM INT HUP
    local deadline=$((SECONDS + TEARDOWN_SECONDS))
    [ -z "${DRIVER:-}" ] || disown "$DRIVER" 2>/dev/null
    if [ -n "${CGROUP:-}" ] && [ -d "$CGROUP" ]; then
        while [ "$SECONDS" -lt "$deadline" ]; do
            # Again on each turn: a process may have been on its way in.
            echo 1 2>/dev/null > "$CGROUP/cgroup.kill"
            find "$CGROUP" -depth -type d -exec rmdir {} + 2>/dev/null
            [ -d "$CGROUP" ] || break
            sleep 0.02
        done
        if [ -d "$CGROUP" ]; then
            echo "FAIL teardown: processes survive in $CGROUP: $(find "$CGROUP" -name cgroup.procs -exec cat {} + | paste -sd ' ')"
            return 1
        fi
    fi
    if [ -n "${WORK:-}" ] && [ -d "$WORK" ]; then
        rm -f "$WORK/log"
        # The mounts were in a mount namespace that has died. If not, rmdir refuses: never delete through a mount.
        rmdir "$WORK/root" 2>/dev/null
        rmdir "$WORK" || { echo "FAIL teardown: $WORK remains"; return 1; }
    fi
}

# Names what will be made, and tears it down when this script has ended without doing so, by kill -9: then the pipe that it alone holds
# open closes.
stand_guard() {
    WORK=$(mktemp -u "${TMPDIR:-/tmp}/thenodes-boot.XXXXXX")
    CGROUP=$CGROUPS/thenodes-boot.$$
    exec {LIFE}> >(trap '' TERM INT HUP; cat > /dev/null; teardown)
}

# --- inner half: from fresh namespaces to systemd -----------------------------------------------------------------------------------

# Runs as PID 1 of the new namespaces. Its mounts are private and vanish with it.
become_systemd() {
    set -eu
    local device root=$WORK/root
    mount -t tmpfs -o mode=0755,size=1g tmpfs "$root"
    mkdir "$root/lower" "$root/upper" "$root/work" "$root/merged"
    # By bind mount: an overlay option cannot hold every path.
    mount --bind "$ROOTFS" "$root/lower"
    cd "$root"
    mount -t overlay -o lowerdir=lower,upperdir=upper,workdir=work overlay merged
    cd merged

    mount -t proc proc proc
    # Read-only: systemd then knows that the devices are not its own, and starts no udev.
    mount -t sysfs -o ro sysfs sys
    # Own control group namespace, so its root is the group this process is in: a pure v2 tree even on a hybrid machine.
    mount -t cgroup2 cgroup2 sys/fs/cgroup
    mount -t tmpfs -o mode=0755 tmpfs dev
    for device in null zero full random urandom tty; do
        : > "dev/$device"
        mount --bind "/dev/$device" "dev/$device"
    done
    mkdir dev/pts dev/shm
    mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
    ln -s pts/ptmx dev/ptmx
    mount -t tmpfs -o mode=1777 tmpfs dev/shm
    mount -t tmpfs -o mode=0755 tmpfs run
    mount -t tmpfs -o mode=1777 tmpfs tmp
    # /proc/sys is that of the machine: its settings are not ours to change.
    mkdir -p etc/systemd/system
    ln -sf /dev/null etc/systemd/system/systemd-sysctl.service

    pivot_root . .
    umount -l .
    cd /
    # Shared, as systemd makes it outside of containers: without it LoadCredential= gives an empty directory.
    mount --make-rshared /
    # What would reach past the namespaces: kernel modules, the clock, raw hardware.
    exec setpriv --bounding-set -sys_module,-sys_time,-sys_rawio,-syslog \
        env -i container=other PATH="$SAFE_PATH" /lib/systemd/systemd --log-target=journal
}

# Starts the inner half; LAUNCHER is its parent on this side.
launch() {
    # shellcheck disable=SC2016  # $$, $1 and $2 are for the inner shell
    WORK=$WORK ROOTFS=$ROOTFS SAFE_PATH=$SAFE_PATH bash -c '
        echo $$ > "$1/cgroup.procs" &&
        exec unshare --pid --mount --uts --ipc --cgroup --net --fork --propagation private bash -c "$2"
    ' bash "$CGROUP/system" "$(declare -f become_systemd); become_systemd" > "$WORK/log" 2>&1 < /dev/null {LIFE}>&- &
    LAUNCHER=$!
    # Not a job of this shell: it ends by being killed, which is no news.
    disown "$LAUNCHER"
}

# --- the driver: SCRIPT and its helpers ---------------------------------------------------------------------------------------------

ok() { echo "ok   $*"; HELD=$((HELD + 1)); }

fail() {
    echo "FAIL $*"
    { ns journalctl --no-pager -o short-monotonic -n 60 ${UNIT:+-u "$UNIT"} || cat "$WORK/log"; } 2>&1 | sed 's/^/     | /'
    exit 1
}

ns() { timeout -k 2 "${NS_SECONDS:-30}" nsenter -t "$INIT" -a env -i PATH="$SAFE_PATH" TERM=dumb LC_ALL=C.UTF-8 "$@"; }

prop() { ns systemctl show -p "$1" --value -- "$2"; }

wait_until() {
    local deadline=$((${EPOCHREALTIME/[.,]/} + $1 * 1000000))
    shift
    until "$@"; do
        [ "${EPOCHREALTIME/[.,]/}" -lt "$deadline" ] || return 1
        sleep 0.02
    done
}

since_ms() { echo $(((${EPOCHREALTIME/[.,]/} - $1) / 1000)); }

has_init() {
    INIT=$(pgrep -P "$LAUNCHER") && [ "$(cat "/proc/$INIT/comm" 2>/dev/null)" = systemd ]
}

is_up() {
    case $(ns systemctl is-system-running 2>/dev/null) in running | degraded) ;; *) false ;; esac
}

# As a package does it. An archive keeps modes and links; our owner is root, whoever built it; directories that exist (/, /usr, /etc)
# keep their own modes, and /lib stays a link.
install_stage() {
    tar -C "$STAGE" --owner=root:0 --group=root:0 -cf - . |
        ns tar -C / --no-overwrite-dir --keep-directory-symlink -xpf - || fail "the stage cannot be copied"
    ns systemd-sysusers || fail "systemd-sysusers"
    ns systemd-tmpfiles --create || fail "systemd-tmpfiles"
    ns systemctl daemon-reload || fail "daemon-reload"
}

drive() {
    HELD=0
    local begun=${EPOCHREALTIME/[.,]/}
    trap - TERM INT HUP EXIT
    echo "$BASHPID" > "$CGROUP/driver/cgroup.procs" || exit 1
    wait_until 10 has_init || { echo "FAIL boot: no PID 1"; sed 's/^/     | /' "$WORK/log"; exit 1; }
    wait_until "$START_SECONDS" is_up || fail "boot: systemd is not up after $START_SECONDS s"
    ok "boot: $(ns systemctl is-system-running) after $(since_ms "$begun") ms, $(ns systemctl --version | head -n 1)"
    ns systemctl --failed --plain --no-legend | sed 's/^/     failed at boot: /'
    install_stage
    HELD=0
    # shellcheck source=/dev/null
    . "$SCRIPT" || fail "the script ended with $?"
    [ "$HELD" -gt 0 ] || fail "the script proved nothing"
    exit 0
}

# --- the run ------------------------------------------------------------------------------------------------------------------------

[ $# -eq 3 ] || { echo "usage: $0 ROOTFS STAGE_DIR SCRIPT" >&2; exit 64; }
ROOTFS=$(realpath -e -- "$1") && STAGE=$(realpath -e -- "$2") && SCRIPT=$(realpath -e -- "$3") || exit 64
[ -x "$ROOTFS/lib/systemd/systemd" ] || skip "$ROOTFS holds no systemd (see rootfs.sh)"
need

STATUS=77
trap 'teardown || STATUS=1; exit "$STATUS"' EXIT
trap 'STATUS=143; exit' TERM HUP
trap 'STATUS=130; exit' INT
stand_guard
make_places
STATUS=1
launch
drive < /dev/null {LIFE}>&- &
DRIVER=$!

# By polling, so that a signal is answered at once, whatever the driver is waiting for.
while kill -0 "$DRIVER" 2>/dev/null; do
    [ "$SECONDS" -lt "$BOOT_DEADLINE" ] || { echo "FAIL the run did not end in $BOOT_DEADLINE s"; exit; }
    sleep 0.1
done
wait "$DRIVER" && STATUS=0
