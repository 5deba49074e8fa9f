# shellcheck shell=bash disable=SC2015,SC2016  # fail ends the run, so A && B || fail is an if; single quotes are for a shell inside
# SCRIPT for boot.sh: what systemctl promises the operator of thenodes.service. The stage holds the binaries, their configuration with
# one plugin, the unit and its sysusers and tmpfiles lines.

UNIT=thenodes.service

# --- questions ----------------------------------------------------------------------------------------------------------------------

plugins() { ns /usr/bin/thenodes plugin list --json 2>&1; }

# "level" and "state" of the same plugin, in the order of the JSON keys: no brace between them.
plugin_ready() { [[ $(plugins) =~ \"level\":\"full\"[^{}]*\"state\":\"Ready\" ]]; }

# Every process of the unit, also in the control groups that the node has made.
processes() {
    ns sh -c 'find "/sys/fs/cgroup$1" -name cgroup.procs -exec cat {} + 2>/dev/null | sort -n' sh "$GROUP"
}
process_count() { processes | wc -l; }
has_processes() { [ "$(process_count)" -eq "$1" ]; }
runner_count() { ns pgrep -c thenodes-runner || true; }

alive() { ns ps -o pid=,comm= -p "$(tr '\n' ',' <<< "$1" | sed 's/,*$//')"; }
all_gone() { [ -z "$(alive "$1")" ]; }

restarted_from() {
    local main
    main=$(prop MainPID "$UNIT")
    [ "$main" != 0 ] && [ "$main" != "$1" ] && [ "$(prop ActiveState "$UNIT")" = active ]
}

# A drop-in for this boot only; without a text, none.
override() {
    local dir=/run/systemd/system/$UNIT.d
    if [ $# -gt 0 ]; then
        ns sh -c 'mkdir -p "$1" && printf "[Service]\n%s\n" "$2" > "$1/test.conf"' sh "$dir" "$1"
    else
        ns rm -rf "$dir"
    fi && ns systemctl daemon-reload && ns systemctl restart "$UNIT"
}

# --- the unit itself ----------------------------------------------------------------------------------------------------------------

# verify succeeds in spite of warnings, and a warning here is a wall that systemd does not know.
warnings=$(ns systemd-analyze verify --man=no "$UNIT" 2>&1) && [ -z "$warnings" ] || fail "verify: $warnings"
ok "verify is clean; $(ns systemd-analyze security --no-pager "$UNIT" | tail -n 1 | sed 's/^[^a-zA-Z]*//')"

ns systemctl enable --quiet "$UNIT" && [ "$(ns systemctl is-enabled "$UNIT")" = enabled ] || fail "it cannot be enabled"

# --- start --------------------------------------------------------------------------------------------------------------------------

begun=${EPOCHREALTIME/[.,]/}
ns systemctl start "$UNIT" || fail "it does not start"
[ "$(prop ActiveState "$UNIT")" = active ] && [ "$(prop Type "$UNIT")" = notify ] || fail "started, but $(prop ActiveState "$UNIT")"
status=$(prop StatusText "$UNIT")
[ -n "$status" ] || fail "it tells systemd no status"
ok "enabled, active after $(since_ms "$begun") ms, status: $status"

wait_until 15 plugin_ready || fail "no plugin is Ready at level full: $(plugins)"
ok "a plugin is Ready at level full after $(since_ms "$begun") ms"

GROUP=$(prop ControlGroup "$UNIT")
user=$(ns ps -o user= -p "$(prop MainPID "$UNIT")")
modes=$(ns stat -c '%U %a' /var/lib/thenodes /run/thenodes /etc/thenodes | paste -sd ' ')
[ "$user" = thenodes ] && [ "$modes" = "thenodes 700 thenodes 750 root 755" ] || fail "runs as $user; state, runtime, configuration: $modes"
ok "runs as $user, its directories are its own, its configuration is not"

# --- reload -------------------------------------------------------------------------------------------------------------------------

main=$(prop MainPID "$UNIT")
ns cp /etc/thenodes/config.toml /run/before.toml
ns sh -c 'sed -i "s/^mode = .*/mode = \"observe\"/" /etc/thenodes/config.toml && grep -q "^mode = .observe" /etc/thenodes/config.toml' || fail "the configuration has no line for the mode"
ns systemctl reload "$UNIT" || fail "reload"
ns journalctl --sync
[[ $(ns journalctl -u "$UNIT" -o cat --no-pager) == *action=trust_rules_changed*trust_policy.mode* ]] || fail "the node did not change its rules"
ns sh -c 'echo "= not a configuration" >> /etc/thenodes/config.toml'
if ns systemctl reload "$UNIT" 2>/dev/null; then fail "reload takes a wrong configuration"; fi
ns cp /run/before.toml /etc/thenodes/config.toml
ns systemctl reload "$UNIT" || fail "reload of what stood there before"
[ "$(prop MainPID "$UNIT")" = "$main" ] && [ "$(prop ActiveState "$UNIT")" = active ] || fail "reload restarts it"
ok "reload: other rules without a restart, and a wrong file is an error that changes nothing"

# --- kill -9 ------------------------------------------------------------------------------------------------------------------------

main=$(prop MainPID "$UNIT")
before=$(processes)
count=$(wc -l <<< "$before")
runners=$(runner_count)
[ "$count" -gt 1 ] || fail "a plugin is Ready, but the unit has $count process"
begun=${EPOCHREALTIME/[.,]/}
ns kill -KILL "$main"
wait_until 10 restarted_from "$main" || fail "no new node after kill -9"
took=$(since_ms "$begun")
[ "$(prop NRestarts "$UNIT")" = 1 ] || fail "NRestarts is $(prop NRestarts "$UNIT")"
wait_until 15 plugin_ready || fail "after kill -9 no plugin is Ready at level full: $(plugins)"
ok "kill -9: a new node after $took ms, its plugin Ready after $(since_ms "$begun") ms, NRestarts=1"

all_gone "$before" || fail "processes of the old node live: $(alive "$before")"
wait_until 5 has_processes "$count" || fail "$count processes before kill -9, now $(process_count)"
[ "$(runner_count)" = "$runners" ] || fail "$runners runners before kill -9, now $(runner_count)"
ok "kill -9: none of the old node's $count processes lives, there are as many new ones"

# --- stop ---------------------------------------------------------------------------------------------------------------------------

# The stop that an operator sees must be the node's own doing, not systemd's kill after its patience: well below TimeoutStopSec.
begun=${EPOCHREALTIME/[.,]/}
before=$(processes)
NS_SECONDS=20 ns systemctl stop "$UNIT" || fail "it does not stop within 20 s"
took=$(since_ms "$begun")
result="$(prop Result "$UNIT"), status $(prop ExecMainStatus "$UNIT")"
[ "$result" = "success, status 0" ] || fail "stop: $result"
all_gone "$before" && has_processes 0 || fail "stop leaves processes: $(alive "$before")"
ok "stop: success, status 0, no process left, after $took ms"

ns journalctl --sync
[ "$(ns journalctl -u "$UNIT" -o cat --no-pager | wc -l)" -gt 0 ] || fail "the journal is empty"
errors=$(ns journalctl -u "$UNIT" -o cat --no-pager | grep -iw error) && fail "the journal: $errors"
ok "no error in the journal"

# --- watchdog -----------------------------------------------------------------------------------------------------------------------

override $'WatchdogSec=2\nTimeoutAbortSec=1' || fail "it does not start with a short watchdog"
main=$(prop MainPID "$UNIT")
ns sleep 4
[ "$(prop MainPID "$UNIT")" = "$main" ] || fail "a node in good health was taken for hung: it does not feed its watchdog"
begun=${EPOCHREALTIME/[.,]/}
ns kill -STOP "$main"
wait_until 15 restarted_from "$main" || fail "a hung node is not replaced"
ok "watchdog: fed by a healthy node, a hung one is replaced after $(since_ms "$begun") ms"

# --- wrong configuration ------------------------------------------------------------------------------------------------------------

ns sh -c 'echo "= not a configuration" > /run/wrong.toml'
if override $'ExecStart=\nExecStart=/usr/bin/thenodes --config /run/wrong.toml' 2>/dev/null; then fail "it starts with a wrong configuration"; fi
# Longer than RestartSec.
ns sleep 1
result="$(prop ActiveState "$UNIT"), status $(prop ExecMainStatus "$UNIT"), $(prop NRestarts "$UNIT") restarts"
[ "$result" = "failed, status 78, 0 restarts" ] || fail "wrong configuration: $result"
ok "wrong configuration: $result"

# --- control ------------------------------------------------------------------------------------------------------------------------

# The option that this unit must not have: then no wall of namespaces can stand. If level full is reported even so, it means nothing.
override RestrictNamespaces=yes || fail "without namespaces the node itself must still start"
if wait_until 3 plugin_ready; then fail "level full without namespaces: $(plugins)"; fi
[[ $(plugins) == *'"state":'* ]] || fail "without namespaces the node does not answer: $(plugins)"
ok "control: with RestrictNamespaces=yes no plugin is Ready at level full"

override || fail "it does not start again"
wait_until 15 plugin_ready || fail "after the control no plugin is Ready: $(plugins)"
ns systemctl stop "$UNIT"
