//! Every step of confinement is made to fail, each in three ways: a plugin is then refused, or held at a level that names
//! what is missing, never silently less. And worlds are made that lack something as a whole.

use serde_json::Value;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use thenodes_tests::{bin_dir, is_root, skip, Spec};

/// What a failing step may lead to.
#[derive(Clone, Copy)]
enum Then {
    /// The level is less than full, and names this wall; or the start is refused with words.
    Missing(&'static str),
    /// The start ends with words: it cannot go on at all.
    Refused,
    /// Nothing: the step only adds to what another one measures.
    Full,
}
use Then::{Full, Missing, Refused};

/// Name, number, the argument that makes it this step, and what must follow.
type Step = (&'static str, i64, Option<(u8, i64)>, Then);

const STEPS: &[Step] = &[
    ("recvmsg", libc::SYS_recvmsg, None, Refused),
    ("pidfd_open", libc::SYS_pidfd_open, None, Refused),
    ("socketpair", libc::SYS_socketpair, None, Refused),
    ("pipe2", libc::SYS_pipe2, None, Refused),
    ("unshare", libc::SYS_unshare, None, Missing("namespaces")),
    ("sethostname", libc::SYS_sethostname, None, Missing("namespaces")),
    ("mount", libc::SYS_mount, None, Missing("root")),
    ("pivot_root", libc::SYS_pivot_root, None, Missing("root")),
    ("umount2", libc::SYS_umount2, None, Missing("root")),
    ("chdir", libc::SYS_chdir, None, Missing("root")),
    ("prctl PDEATHSIG", libc::SYS_prctl, Some((0, libc::PR_SET_PDEATHSIG as i64)), Refused),
    ("setsid", libc::SYS_setsid, None, Missing("clean-state")),
    ("dup3", libc::SYS_dup3, None, Refused),
    ("close_range", libc::SYS_close_range, None, Missing("clean-state")),
    ("rt_sigaction SIGSEGV", libc::SYS_rt_sigaction, Some((0, libc::SIGSEGV as i64)), Missing("clean-state")),
    ("prlimit64 data", libc::SYS_prlimit64, Some((1, libc::RLIMIT_DATA as i64)), Missing("rlimits")),
    ("prlimit64 nofile", libc::SYS_prlimit64, Some((1, libc::RLIMIT_NOFILE as i64)), Missing("rlimits")),
    ("prlimit64 nproc", libc::SYS_prlimit64, Some((1, libc::RLIMIT_NPROC as i64)), Missing("rlimits")),
    ("prlimit64 core", libc::SYS_prlimit64, Some((1, libc::RLIMIT_CORE as i64)), Missing("rlimits")),
    ("prlimit64 fsize", libc::SYS_prlimit64, Some((1, libc::RLIMIT_FSIZE as i64)), Missing("rlimits")),
    ("setpriority", libc::SYS_setpriority, None, Full),
    ("prctl CAPBSET_DROP", libc::SYS_prctl, Some((0, libc::PR_CAPBSET_DROP as i64)), Full),
    ("prctl SECUREBITS", libc::SYS_prctl, Some((0, libc::PR_SET_SECUREBITS as i64)), Full),
    ("prctl CAP_AMBIENT", libc::SYS_prctl, Some((0, libc::PR_CAP_AMBIENT as i64)), Missing("privileges")),
    ("capset", libc::SYS_capset, None, Missing("privileges")),
    (
        "prctl NO_NEW_PRIVS",
        libc::SYS_prctl,
        Some((0, libc::PR_SET_NO_NEW_PRIVS as i64)),
        Missing("privileges"),
    ),
    ("prctl DUMPABLE", libc::SYS_prctl, Some((0, libc::PR_SET_DUMPABLE as i64)), Missing("not-dumpable")),
    ("prctl MDWE", libc::SYS_prctl, Some((0, 65)), Missing("write-xor-execute")),
    ("prctl NAME", libc::SYS_prctl, Some((0, libc::PR_SET_NAME as i64)), Full),
    ("landlock_create_ruleset", libc::SYS_landlock_create_ruleset, None, Missing("landlock")),
    ("landlock_restrict_self", libc::SYS_landlock_restrict_self, None, Missing("landlock")),
    ("seccomp", libc::SYS_seccomp, None, Missing("seccomp")),
    ("sendmsg", libc::SYS_sendmsg, None, Refused),
];

/// Steps that only a root node's runner has.
const STEPS_OF_ROOT: &[Step] = &[
    ("setgroups", libc::SYS_setgroups, None, Refused),
    ("setresgid", libc::SYS_setresgid, None, Refused),
    ("setresuid", libc::SYS_setresuid, None, Refused),
];

/// Calls that say they did what they did not: no error, and still whoever they should have left behind.
const LIES_OF_ROOT: &[(&str, i64)] = &[
    ("setgroups", libc::SYS_setgroups),
    ("setresgid", libc::SYS_setresgid),
    ("setresuid", libc::SYS_setresuid),
];

#[test]
fn a_runner_that_did_not_become_who_it_was_told_to_opens_nothing() {
    let name = "a_runner_that_did_not_become_who_it_was_told_to_opens_nothing";
    if !is_root() {
        return skip(name, "the node of an ordinary user tells nobody to become another");
    }
    for (step, number) in LIES_OF_ROOT {
        let dir = tempfile::tempdir().expect("a directory");
        let program = faulty(dir.path(), &format!("{step} {number} - 0 0\n"));
        // The harness is root in group 0, so that a lie of setgroups is seen only if there is a group to lose.
        let mut command = Command::new("setpriv");
        let own = Spec::new("lies").more(&format!("[plugins]\nrunner = {program:?}")).lay_out();
        command.args(["--groups", "4711"]).arg(bin_dir().join("thenodes"));
        command.args(["--config", "config.toml", "doctor", "--json"]).current_dir(own.path());
        let output = command.output().expect("the doctor runs");
        let found: Value =
            serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{step}: {e}: {output:?}"));
        assert_eq!(found["level"], "refused", "{step}: {found}");
        let said = found["error"].as_str().unwrap_or_default();
        assert!(said.contains("not uid") && said.contains("alone"), "{step}: {found}");
    }
}

#[test]
fn a_kernel_that_only_says_that_it_made_namespaces_has_its_host_name_still() {
    let name = "a_kernel_that_only_says_that_it_made_namespaces_has_its_host_name_still";
    if !is_root() {
        return skip(name, "an ordinary user's runner could not rename the host");
    }
    let dir = tempfile::tempdir().expect("a directory");
    let own = |faults: &str, word: &str| {
        let program = faulty(&dir.path().join(word), faults);
        Spec::new(word).more(&format!("[plugins]\nrunner = {program:?}")).lay_out()
    };
    let said = |config: &Path| {
        // In a host name of the test's own: a runner that is wrong renames nothing else.
        let script = "hostname before && \"$0\" --config config.toml doctor --json; hostname >&2";
        let mut command = Command::new("unshare");
        command.args(["--uts", "sh", "-c", script]).arg(bin_dir().join("thenodes")).current_dir(config);
        let output = command.output().expect("the doctor runs");
        let found: Value =
            serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"));
        let host = String::from_utf8_lossy(&output.stderr).lines().last().unwrap_or_default().to_owned();
        (found["level"].as_str().unwrap_or_default().to_owned(), host)
    };
    for word in ["true", "lie"] {
        fs::create_dir(dir.path().join(word)).expect("made");
    }
    assert_eq!(said(own("", "true").path()), ("full".into(), "before".into()), "the control");
    let (level, host) = said(own(&format!("unshare {} - 0 0\n", libc::SYS_unshare), "lie").path());
    assert_ne!(level, "full");
    assert_eq!(host, "before");
}

/// A directory with a runner that fails at these calls.
fn faulty(dir: &Path, faults: &str) -> std::path::PathBuf {
    let program = dir.join("faulty-runner");
    fs::copy(bin_dir().join("faulty-runner"), &program).expect("the faulty runner is built");
    fs::write(dir.join("fault"), faults).expect("written");
    symlink(bin_dir().join("thenodes-runner"), dir.join("runner")).expect("linked");
    program
}

fn doctor(runner: &Path) -> Value {
    let dir = Spec::new("faults").more(&format!("[plugins]\nrunner = {runner:?}")).lay_out();
    let mut command = Command::new(bin_dir().join("thenodes"));
    let output =
        command.args(["--config", "config.toml", "doctor", "--json"]).current_dir(dir.path()).output();
    let output = output.expect("the doctor runs");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"))
}

#[test]
fn a_step_that_fails_is_never_a_silent_pass() {
    let whole = tempfile::tempdir().expect("a directory");
    let control = doctor(&faulty(whole.path(), ""));
    assert_eq!(control["level"], "full", "without a fault all walls stand: {control}");
    let of_root = if is_root() { STEPS_OF_ROOT } else { &[] };
    // What is made before `hello` is made after it where that fails; what is made then has no second time.
    let (net, rest) = (
        libc::CLONE_NEWNET | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS,
        libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWCGROUP,
    );
    let user = libc::CLONE_NEWUSER;
    let (first, second) = if is_root() { (net, rest | user) } else { (net | user, rest) };
    let turns: [Step; 2] = [
        ("unshare before hello", libc::SYS_unshare, Some((0, first.into())), Full),
        ("unshare after hello", libc::SYS_unshare, Some((0, second.into())), Missing("namespaces")),
    ];
    for (name, number, argument, then) in STEPS.iter().chain(of_root).chain(&turns) {
        for errno in [libc::EPERM, libc::ENOSYS, libc::EINVAL] {
            let dir = tempfile::tempdir().expect("a directory");
            let (arg, value) = argument.map_or(("-".to_owned(), 0), |(arg, value)| (arg.to_string(), value));
            let plain = name.replace(' ', "_");
            let found = doctor(&faulty(dir.path(), &format!("{plain} {number} {arg} {value} {errno}\n")));
            let level = found["level"].as_str().unwrap_or_default();
            let missing: Vec<&str> = found["layers"]
                .as_array()
                .into_iter()
                .flatten()
                .filter(|layer| layer["in_force"] == false)
                .filter_map(|layer| layer["layer"].as_str())
                .collect();
            let said = found["error"].as_str().unwrap_or_default();
            let context = format!("{name} fails with {errno}: {found}");
            match then {
                Full => assert_eq!(level, "full", "{context}"),
                Refused => assert!(level == "refused" && said.len() > 10, "{context}"),
                Missing(wall) => {
                    assert!(matches!(level, "reduced" | "refused"), "{context}");
                    assert!(missing.contains(wall) || said.len() > 10, "{context}");
                }
            }
        }
    }
}

/// System calls that a container runtime's usual profile refuses to those without privileges.
fn container() -> String {
    [
        libc::SYS_unshare,
        libc::SYS_setns,
        libc::SYS_mount,
        libc::SYS_umount2,
        libc::SYS_pivot_root,
        libc::SYS_sethostname,
        libc::SYS_fsopen,
        libc::SYS_open_tree,
        libc::SYS_move_mount,
        libc::SYS_keyctl,
        libc::SYS_bpf,
        libc::SYS_userfaultfd,
        libc::SYS_perf_event_open,
    ]
    .iter()
    .map(|number| format!("container {number} - 0 {}\n", libc::EPERM))
    .collect()
}

/// Starts a plugin at level `reduced` and checks that it works and that what stands still holds.
fn works_reduced(faults: &str, missing: &[&str]) {
    let dir = tempfile::tempdir().expect("a directory");
    let runner = faulty(dir.path(), faults);
    let spec = Spec::new("degraded")
        .more(&format!("[plugins]\nrunner = {runner:?}\n[plugins.sandbox]\nrequired = \"reduced\""))
        .with("echo")
        .with("hostile");
    let node = spec.start();
    let status = node.status("echo");
    assert_eq!(status["level"], "reduced", "{status}");
    for wall in missing {
        let down = |layer: &Value| layer["layer"] == *wall && layer["in_force"] == false;
        assert!(
            status["layers"].as_array().is_some_and(|layers| layers.iter().any(down)),
            "{wall}: {status}"
        );
    }
    assert_eq!(node.prompt("echo", "x").as_deref(), Ok("x"));
    for sin in ["open", "create", "list-root"] {
        let answer = node.prompt("hostile", sin).unwrap_or_default();
        assert!(!answer.contains("GOT THROUGH"), "{sin}: {answer}");
    }
    let denied = node.status("hostile");
    assert!(denied["denials"]["total"].as_u64() >= Some(1), "{denied}");
}

#[test]
fn inside_a_container_plugins_run_reduced_and_the_report_says_what_is_missing() {
    works_reduced(&container(), &["namespaces", "root"]);
}

#[test]
fn without_landlock_plugins_run_reduced_and_the_report_says_so() {
    let number = libc::SYS_landlock_create_ruleset;
    works_reduced(&format!("landlock {number} - 0 {}\n", libc::ENOSYS), &["landlock"]);
}

#[test]
fn without_control_groups_limits_are_held_by_rlimits_and_the_watchdog_and_the_level_is_full() {
    let name = "without_control_groups_limits_are_held_by_rlimits_and_the_watchdog_and_the_level_is_full";
    let dir = Spec::new("no-groups").lay_out();
    let node = bin_dir().join("thenodes");
    // An ordinary user has none anyway.
    let script = "umount -l /sys/fs/cgroup 2>/dev/null || mount -t tmpfs none /sys/fs/cgroup; exec \"$0\" --config config.toml doctor --json";
    let mut command = if is_root() {
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", script]).arg(node);
        command
    } else {
        let mut command = Command::new(node);
        command.args(["--config", "config.toml", "doctor", "--json"]);
        command
    };
    command.current_dir(dir.path());
    let Ok(output) = command.output() else { return skip(name, "no unshare program") };
    let Ok(found) = serde_json::from_slice::<Value>(&output.stdout) else {
        return skip(name, &format!("no such world can be made here: {output:?}"));
    };
    let enforcement = found["enforcement"].to_string();
    assert_eq!(found["level"], "full", "limits are no walls: {found}");
    assert!(!enforcement.contains("cgroup") && enforcement.contains("rlimit"), "{found}");
}
