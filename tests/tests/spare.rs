//! The spare: a runner that was executed before anybody needs it. Whoever starts from it stands behind the same walls and limits as
//! whoever does not, and one that is not as good as new is used by nobody.

use nix::sys::signal::{kill, killpg, Signal};
use nix::unistd::Pid;
use serde_json::Value;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use thenodes_tests::{all_gone, bin_dir, descendants, is_root, leaves, skip, Spec, TestNode, PATIENCE};

/// Waits until there is something, and returns it.
#[track_caller]
fn wait_for<T>(what: &str, look: impl Fn() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begun.elapsed() < PATIENCE, "{what} never came");
        std::thread::park_timeout(Duration::from_millis(5)); // processes of others cannot be waited for
    }
}

/// True if a node has no spare for a second, which is many times as long as one takes to be made.
fn has_none(node: &TestNode) -> bool {
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(1) {
        if !node.spares().is_empty() {
            return false;
        }
        std::thread::park_timeout(Duration::from_millis(20));
    }
    true
}

/// The spare of a node at rest.
#[track_caller]
fn spare(node: &TestNode) -> u32 {
    wait_for("a spare", || match node.spares()[..] {
        [one] => Some(one),
        _ => None,
    })
}

fn warden(node: &TestNode, name: &str) -> u32 {
    node.status(name)["pid"].as_u64().and_then(|pid| pid.try_into().ok()).expect("it runs")
}

/// Kills a plugin's innermost process and waits for the next one. Its warden.
#[track_caller]
fn crash(node: &TestNode, name: &str) -> u32 {
    let before = warden(node, name);
    let runner = descendants(before).pop().expect("a runner");
    kill(Pid::from_raw(runner as i32), Signal::SIGKILL).expect("it lives");
    wait_for("the next process", || {
        let status = node.status(name);
        let pid = status["pid"].as_u64().filter(|pid| *pid != u64::from(before))?;
        (status["state"] == "Ready").then_some(pid as u32)
    })
}

#[test]
fn a_restart_takes_the_spare_and_there_is_another_then() {
    let node = Spec::new("node").with("echo").start();
    let first = warden(&node, "echo");
    for _ in 0..3 {
        let waiting = spare(&node);
        assert_ne!(waiting, first);
        assert_eq!(crash(&node, "echo"), waiting);
        assert_eq!(node.prompt("echo", "as before").as_deref(), Ok("as before"));
    }
    // The control: without spares the same comes back from a process of its own, and none is waiting.
    let node = Spec::new("node").top("plugins.spare_runner = false").with("echo").start();
    assert!(has_none(&node));
    crash(&node, "echo");
    assert_eq!(node.prompt("echo", "as before").as_deref(), Ok("as before"));
    assert!(has_none(&node));
}

#[test]
fn a_node_without_plugins_has_no_spare_and_several_plugins_have_one() {
    let node = Spec::new("node").with("echo").with("courier").with_hostile("hostile", "none:none").start();
    spare(&node);
    let bare = Spec::new("bare").start();
    assert!(has_none(&bare));
    assert_eq!(bare.descendants(), Vec::<u32>::new());
}

#[test]
fn a_spare_has_a_network_of_its_own_before_it_is_told_anything_and_what_starts_from_it_has_everything() {
    let namespace = |pid: u32, kind: &str| fs::read_link(format!("/proc/{pid}/ns/{kind}")).ok();
    let node = Spec::new("node").with("echo").start();
    let of_node = |kind| namespace(node.pid(), kind).expect("one's own node");
    let waiting = spare(&node);
    for kind in ["net", "ipc", "uts"] {
        // It is told from others by its name, which it has a moment before it makes them.
        wait_for(kind, || namespace(waiting, kind).filter(|found| *found != of_node(kind)));
    }
    // The control: what depends on the plugin is still the node's. So root has made them as root, and nobody inside has a right over them.
    let still: &[&str] = if is_root() { &["mnt", "cgroup", "user"] } else { &["mnt", "cgroup"] };
    for kind in still {
        assert_eq!(namespace(waiting, kind), Some(of_node(kind)), "{kind}");
    }
    let before = namespace(waiting, "net");
    assert_eq!(crash(&node, "echo"), waiting);
    assert_eq!(node.status("echo")["level"], "full");
    if !is_root() {
        return skip(
            "a_spare_has_a_network_of_its_own_before_it_is_told_anything_and_what_starts_from_it_has_everything",
            "its part about the warden, which only root can look into then",
        );
    }
    for kind in ["user", "mnt", "net", "ipc", "uts", "cgroup", "pid_for_children"] {
        let found = namespace(waiting, kind).unwrap_or_else(|| panic!("the warden's {kind}"));
        assert_ne!(found, of_node(kind), "{kind}");
    }
    assert_eq!(namespace(waiting, "net"), before, "the one that it had made before");
}

#[test]
fn what_starts_from_a_spare_stands_behind_the_same_walls_and_limits() {
    // What is the same in each life of a process. `tasks`, `memory`: numbers of the groups, where there are any.
    fn held(node: &TestNode, files: &[&str]) -> (Value, Vec<String>) {
        let status = node.status("echo");
        let pid = warden(node, "echo");
        let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("a process has groups");
        let of_line = |line: &str| {
            let mut parts = line.splitn(3, ':').skip(1);
            let (controllers, path) = (parts.next()?, parts.next()?);
            let controller = controllers.split(',').find(|one| ["memory", "pids", "cpu"].contains(one));
            path.contains("/thenodes-")
                .then(|| PathBuf::from(format!("/sys/fs/cgroup/{}{path}", controller.unwrap_or_default())))
        };
        let dirs: Vec<PathBuf> = groups.lines().filter_map(of_line).collect();
        let numbers = files.iter().flat_map(|file| {
            dirs.iter()
                .filter_map(move |dir| Some(format!("{file}={}", fs::read_to_string(dir.join(file)).ok()?)))
        });
        let runner = descendants(pid).pop().expect("a runner");
        let limits = fs::read_to_string(format!("/proc/{runner}/limits")).expect("a process has limits");
        let status_of = fs::read_to_string(format!("/proc/{runner}/status")).expect("a process has a status");
        let kept = |line: &&str| {
            ["Uid", "Gid", "Groups", "Cap", "NoNewPrivs", "Seccomp"].iter().any(|key| line.starts_with(key))
        };
        let kernel: Vec<&str> = status_of.lines().filter(kept).collect();
        let score = fs::read_to_string(format!("/proc/{runner}/oom_score_adj")).expect("a process has one");
        // Leader of a session of its own, in a group of its own.
        let stat = fs::read_to_string(format!("/proc/{runner}/stat")).expect("a process has one");
        let ids =
            stat.rsplit_once(')').expect("a name").1.split_whitespace().filter_map(|word| word.parse().ok());
        let leads = ids.skip(1).take(2).all(|id: u32| id == runner);
        let walls = serde_json::json!({ "level": status["level"], "layers": status["layers"], "enforcement": status["enforcement"], "limits": limits, "kernel": kernel, "score": score, "leads": leads });
        (walls, numbers.collect())
    }
    const FILES: [&str; 6] = [
        "memory.limit_in_bytes",
        "memory.memsw.limit_in_bytes",
        "memory.max",
        "pids.max",
        "cpu.cfs_quota_us",
        "cpu.max",
    ];
    let node = Spec::new("node").with("echo").start();
    let (walls, numbers) = held(&node, &FILES);
    assert!(walls["layers"].as_array().is_some_and(|layers| layers.len() > 5), "{walls}");
    let by_groups = walls["enforcement"].to_string().contains("cgroup");
    assert_eq!(numbers.is_empty(), !by_groups, "a number for what is held: {walls}");
    let waiting = spare(&node);
    assert_eq!(crash(&node, "echo"), waiting, "it starts from the spare");
    assert_eq!(held(&node, &FILES), (walls, numbers.clone()));
    if numbers.is_empty() {
        skip(
            "what_starts_from_a_spare_stands_behind_the_same_walls_and_limits (its part about groups)",
            "no control groups can be made here",
        );
        return;
    }
    // The spare that waits now has a group that says what it is, and nothing is limited there yet.
    spare(&node);
    let spares = leaves(node.pid()).into_iter().filter(|dir| dir.to_string_lossy().ends_with(".spare"));
    let limited = spares.filter_map(|dir| fs::read_to_string(dir.join("pids.max")).ok()).collect::<Vec<_>>();
    assert!(limited.iter().any(|text| text.trim() == "max"), "{limited:?}");
}

#[test]
fn a_spare_that_has_ended_is_used_by_nobody() {
    let node = Spec::new("node").with("echo").start();
    let waiting = spare(&node);
    kill(Pid::from_raw(waiting as i32), Signal::SIGKILL).expect("it lives");
    assert!(all_gone(&[waiting], PATIENCE));
    let next = crash(&node, "echo");
    assert_ne!(next, waiting);
    assert_eq!(node.status("echo")["starts"], 2, "no start was lost with it");
    assert_eq!(node.prompt("echo", "as before").as_deref(), Ok("as before"));
    assert_ne!(spare(&node), waiting);
    wait_for("the end of its groups", || {
        let groups = leaves(node.pid());
        let empty =
            |dir: &PathBuf| fs::read_to_string(dir.join("cgroup.procs")).is_ok_and(|text| text.is_empty());
        (!groups.iter().any(empty)).then_some(())
    });
}

#[test]
fn after_an_upgrade_of_its_program_a_spare_is_used_by_nobody() {
    let spec = Spec::new("node").with("echo").top("plugins.runner = \"runner/thenodes-runner\"");
    let dir = spec.lay_out();
    let program = dir.path().join("runner/thenodes-runner");
    fs::create_dir(dir.path().join("runner")).expect("a directory");
    fs::copy(bin_dir().join("thenodes-runner"), &program).expect("copied");
    let node = spec.start_in(dir);
    let old = spare(&node);
    let new = program.with_file_name("new");
    fs::copy(bin_dir().join("thenodes-runner"), &new).expect("copied");
    fs::rename(&new, &program).expect("in its place");
    let inode = fs::metadata(&program).expect("there").ino();
    let next = crash(&node, "echo");
    assert_ne!(next, old);
    assert!(all_gone(&[old], PATIENCE), "it is ended");
    // Who may look sees that the new one runs the new program.
    if let Ok(about) = fs::metadata(format!("/proc/{next}/exe")) {
        assert_eq!(about.ino(), inode);
    }
    let waiting = spare(&node);
    assert_eq!(crash(&node, "echo"), waiting, "and the spare after it is as good as any");
}

#[test]
fn a_spare_ends_with_its_node_however_that_ends() {
    for how in [Signal::SIGTERM, Signal::SIGKILL] {
        let mut node = Spec::new("node").with("echo").start();
        let (pid, waiting) = (node.pid(), spare(&node));
        node.signal(how);
        let _ = node.wait();
        assert!(all_gone(&[waiting], Duration::from_secs(1)), "{how}");
        wait_for("the end of its groups", || leaves(pid).is_empty().then_some(()));
    }
}

#[test]
fn a_signal_to_the_nodes_process_group_does_not_reach_the_spare() {
    let spec = Spec::new("node").with("echo");
    let dir = spec.lay_out();
    // Whatever starts the tests may ignore the signal, and who is started inherits that.
    let hears = |program: &Path| {
        let mut command = Command::new("env");
        command.arg("--default-signal=HUP").arg(program);
        command
    };
    let mut command = hears(&bin_dir().join("thenodes"));
    command.args(["--config", "config.toml"]).current_dir(dir.path()).process_group(0);
    let mut node = spec.spawn_as(command, dir);
    node.expect("is running.");
    let waiting = spare(&node);
    let session = |pid: u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("it lives");
        let after = stat.rsplit_once(')').expect("a name").1.to_owned();
        let numbers: Vec<u32> = after.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        (numbers[1], numbers[2])
    };
    // Its first step, before which it is no spare yet.
    wait_for("a session of its own", || (session(waiting) == (waiting, waiting)).then_some(()));
    // A control in the same group hears what the spare does not.
    let mut other =
        hears(Path::new("sleep")).arg("60").process_group(node.pid() as i32).spawn().expect("a process");
    let comm = format!("/proc/{}/comm", other.id());
    wait_for("who sleeps", || fs::read_to_string(&comm).is_ok_and(|comm| comm == "sleep\n").then_some(()));
    killpg(Pid::from_raw(node.pid() as i32), Signal::SIGHUP).expect("sent");
    let ended = other.wait().expect("ours");
    assert_eq!(ended.signal(), Some(Signal::SIGHUP as i32));
    assert_eq!(
        node.prompt("echo", "as before").as_deref(),
        Ok("as before"),
        "for a node it is the word to read its rules again"
    );
    assert_eq!(crash(&node, "echo"), waiting);
}
