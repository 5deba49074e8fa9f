//! Walls end to end, with whole nodes: what the suite (`cargo xtask attack`) shows of every probe and phase with single runners is
//! shown here once more for some of them in a node that runs, and for levels, uids and the end of the node.

use hostile::sins::ATTACKS;
use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};
use thenodes_tests::{all_gone, bin_dir, is_root, skip, Spec, TestNode};

/// What the same attempt does without walls.
fn control(sin: &str) -> String {
    // A shell leaves descriptor 9 open, which a process that inherits carelessly would have too.
    let mut command = Command::new("sh");
    command.args(["-c", "exec 9< /etc/passwd; exec \"$@\"", "sh"]).arg(bin_dir().join("hostile-control"));
    let output = command.args(sin.split(' ')).output().expect("the control runs");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The sin with the argument it needs to be a fair attempt: something that exists and belongs to this user.
fn fair(sin: &str, dir: &std::path::Path, port: u16) -> String {
    match sin {
        "create" => format!("create {}", dir.join("canary").display()),
        "connect" => format!("connect 127.0.0.1:{port}"),
        "fast-open" => format!("fast-open {port}"),
        "chmod" => format!("chmod {}", dir.display()),
        sin => sin.to_owned(),
    }
}

/// Tries every attack in one phase, each in a plugin of its own.
fn every_attack_in(phase: &str) {
    let dir = tempfile::tempdir().expect("a directory");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let mut tried = Vec::new();
    for sin in ATTACKS {
        let fair = fair(sin, dir.path(), port);
        let answer = control(&fair);
        let _ = fs::remove_file(dir.path().join("canary"));
        if answer.contains("GOT THROUGH") {
            tried.push((*sin, fair));
        } else {
            // Environment and descriptors of the control come from this test; they are always there.
            assert!(
                !matches!(*sin, "environment" | "open" | "socket" | "fork" | "exec" | "descriptors"),
                "{sin}: {answer}"
            );
            skip(
                &format!("isolation {phase} {sin}"),
                &format!("without walls it does not work here either: {}", answer.trim()),
            );
        }
    }
    // The control got through: its connections wait here and are no news.
    listener.set_nonblocking(true).expect("set");
    while listener.accept().is_ok() {}
    assert!(tried.len() >= 15, "only {} attacks work on this machine even without walls", tried.len());
    let mut spec = Spec::new("walls");
    for (sin, fair) in &tried {
        let switch = format!("{phase}:{fair}");
        // A path that is too long for the switch is cut to the attack's own default.
        let switch = if switch.len() > 48 { format!("{phase}:{sin}") } else { switch };
        spec = spec.with_hostile(&format!("h-{sin}"), &switch);
    }
    let mut node = spec.with("echo").start();
    for (sin, _) in &tried {
        let name = format!("h-{sin}");
        node.expect_all(&name);
        let status = node.status(&name);
        let logs = node.logs(&name).join("\n");
        let cause = status["last_death"]["cause"].as_str().unwrap_or_default().to_owned();
        assert!(!logs.contains("GOT THROUGH"), "{phase} {sin}: {logs}");
        let stopped = logs.contains("denied:") || cause == "denied_syscall";
        assert!(stopped, "{phase} {sin}: neither refused nor stopped: {status}\n{logs}");
    }
    assert!(!dir.path().join("canary").exists());
    assert!(listener.accept().is_err(), "somebody connected");
    assert_eq!(node.prompt("echo", "still here").as_deref(), Ok("still here"));
}

trait ExpectAll {
    fn expect_all(&mut self, name: &str);
}

impl ExpectAll for TestNode {
    /// Waits until this plugin is Ready or has died once.
    fn expect_all(&mut self, name: &str) {
        let begun = Instant::now();
        loop {
            let status = self.status(name);
            if status["state"] == "Ready" || !status["last_death"].is_null() {
                return;
            }
            assert!(begun.elapsed() < thenodes_tests::PATIENCE, "{name}: {status}");
        }
    }
}

#[test]
fn no_attack_gets_through_from_a_library_constructor() {
    every_attack_in("constructor");
}

#[test]
fn every_wall_stands_and_each_was_measured() {
    let node = Spec::new("level").with("echo").start();
    let status = node.status("echo");
    assert_eq!(status["level"], "full", "{status}");
    let layers = status["layers"].as_array().expect("layers");
    assert_eq!(layers.len(), 9);
    for layer in layers {
        assert_eq!(layer["in_force"], true, "{layer}");
        assert!(layer["detail"].as_str().is_some_and(|detail| detail.len() > 10), "{layer}");
    }
    let doctor = node.json(&["doctor"]);
    assert_eq!(doctor["level"], "full", "{doctor}");
}

#[test]
fn a_plugin_runs_under_its_own_unprivileged_uid() {
    let node = Spec::new("uids").with("echo").with("kvstore").start();
    let uid_of = |name: &str| {
        let pid = node.status(name)["pid"].as_u64().expect("a pid");
        let text = fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
        let line = text.lines().find(|line| line.starts_with("Uid:")).expect("a uid").to_owned();
        line.split_whitespace().nth(1).and_then(|uid| uid.parse::<u32>().ok()).expect("a number")
    };
    let (a, b) = (uid_of("echo"), uid_of("kvstore"));
    if is_root() {
        assert!(a != 0 && b != 0 && a != b, "{a} {b}");
    } else {
        assert_eq!((a, b), (nix::unistd::getuid().as_raw(), nix::unistd::getuid().as_raw()));
    }
}

#[test]
fn a_second_root_node_with_the_same_uids_starts_no_plugin_under_them() {
    let name = "a_second_root_node_with_the_same_uids_starts_no_plugin_under_them";
    if !is_root() {
        return skip(name, "plugins of an ordinary user's node have its own uid");
    }
    let base = 90_000_000 + std::process::id();
    let spec = |id: &str| Spec::new(id).with("echo").more(&format!("[plugins.sandbox]\nuid_base = {base}"));
    let mut first = spec("first").start();
    let mut second = spec("second").start();
    let refused = second.seen("action=rejected");
    assert!(refused.contains(&format!("uid {base} is that of a plugin of another node")), "{refused}");
    assert!(refused.contains("[plugins.sandbox] uid_base"), "{refused}");
    assert!(second.descendants().is_empty(), "nothing was started");
    assert_eq!(first.prompt("echo", "x").as_deref(), Ok("x"), "the first one has its uid");
    // A killed node holds nothing.
    first.signal(nix::sys::signal::Signal::SIGKILL);
    let _ = first.wait();
    let third = spec("third").start();
    assert_eq!(third.prompt("echo", "x").as_deref(), Ok("x"));
}

#[test]
fn memory_and_threads_end_at_their_limits_and_only_there() {
    let node = Spec::new("limits").with("echo").with("hostile").start();
    let memory = node.prompt("hostile", "memory").expect("the plugin lives");
    let limit: u64 = memory.split_whitespace().find_map(|word| word.parse().ok()).expect("a number");
    assert!(memory.starts_with("denied") && (64..400).contains(&limit), "{memory}");
    let threads = node.prompt("hostile", "threads").expect("the plugin lives");
    let count: u64 = threads.split_whitespace().find_map(|word| word.parse().ok()).expect("a number");
    assert!(threads.starts_with("denied") && (1..=16).contains(&count), "{threads}");
    assert_eq!(node.prompt("echo", "x").as_deref(), Ok("x"));
    assert!(control("threads").contains("GOT THROUGH"), "without walls there is no such limit");
}

/// A command that runs in a container-like world: an ordinary uid, and no further user namespaces.
fn without_namespaces(dir: &std::path::Path, args: &str) -> Command {
    let script = format!(
        "echo 0 > /proc/sys/user/max_user_namespaces && exec setpriv --inh-caps=-all --ambient-caps=-all \"$0\" --config config.toml {args}"
    );
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-user=1000", "--map-group=1000", "--keep-caps", "sh", "-c", &script]);
    command.arg(bin_dir().join("thenodes")).current_dir(dir);
    command
}

#[test]
fn below_the_required_level_a_plugin_is_refused_and_what_is_missing_is_named() {
    let name = "below_the_required_level_a_plugin_is_refused_and_what_is_missing_is_named";
    let dir = Spec::new("refused").with("echo").lay_out();
    let Ok(output) = without_namespaces(dir.path(), "doctor --json").output() else {
        return skip(name, "no unshare program");
    };
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    let Some(doctor) = text.lines().find(|line| line.starts_with('{')) else {
        return skip(name, &format!("no such world can be made here: {text}"));
    };
    assert!(doctor.contains("\"level\":\"reduced\"") && doctor.contains("unshare"), "{doctor}");
    let spec = Spec::new("refused").with("echo");
    let mut node = spec.spawn_as(without_namespaces(dir.path(), "run"), dir);
    let failed = node.expect("name=echo action=failed");
    assert!(
        failed.contains("missing: namespaces, root, rlimits") && failed.contains("required = \\\"full\\\""),
        "{failed}"
    );
}

#[test]
fn at_a_reduced_level_the_walls_that_stand_still_hold() {
    let name = "at_a_reduced_level_the_walls_that_stand_still_hold";
    let spec = Spec::new("reduced").with("echo").more("[plugins.sandbox]\nrequired = \"reduced\"");
    let spec = ["open", "create", "list-root", "proc", "socket", "exec"]
        .iter()
        .fold(spec, |spec, sin| spec.with_hostile(&format!("h-{sin}"), &format!("load:{sin}")));
    let dir = spec.lay_out();
    let probe = without_namespaces(dir.path(), "doctor --json").output();
    if !probe.is_ok_and(|output| output.stdout.starts_with(b"{")) {
        return skip(name, "no such world can be made here");
    }
    let mut node = spec.spawn_as(without_namespaces(dir.path(), "run"), dir);
    node.expect("is running.");
    let ready = node.seen("name=echo action=ready");
    assert!(ready.contains("level=reduced (missing: namespaces, root, rlimits)"), "{ready}");
    for sin in ["open", "create", "list-root", "proc", "socket", "exec"] {
        let plugin = format!("h-{sin}");
        node.expect_all(&plugin);
        let logs = node.logs(&plugin).join("\n");
        let cause = node.status(&plugin)["last_death"]["cause"].as_str().unwrap_or_default().to_owned();
        assert!(!logs.contains("GOT THROUGH"), "{sin}: {logs}");
        assert!(logs.contains("denied:") || cause == "denied_syscall", "{sin}: {logs}");
    }
}

#[test]
fn when_the_node_is_killed_no_runner_survives_one_second() {
    let mut node = Spec::new("leash")
        .with("echo")
        .with_hostile("spinner", "constructor:spin")
        .with_hostile("deaf", "thread:spin")
        .spawn_now();
    node.expect("\"spinner\"");
    let pids = node.descendants();
    assert!(pids.len() >= 6, "wardens, stubs and runners are there: {pids:?}");
    node.signal(nix::sys::signal::Signal::SIGKILL);
    assert!(all_gone(&pids, Duration::from_secs(1)), "survivors of {pids:?}");
}

trait SpawnNow {
    fn spawn_now(self) -> TestNode;
}

impl SpawnNow for Spec {
    /// Starts without waiting for the banner, and with a line once the spinner's process exists.
    fn spawn_now(self) -> TestNode {
        let dir = self.lay_out();
        let mut node = self.spawn(dir);
        let begun = Instant::now();
        while node.descendants().len() < 9 && begun.elapsed() < thenodes_tests::PATIENCE {
            node.heard();
        }
        node.said.push("\"spinner\"".into());
        node
    }
}
