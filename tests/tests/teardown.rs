//! What a plugin leaves behind: nothing. Not after a thousand lives, not when it does not want to die, not when the node is
//! killed. What a killed node cannot remove itself, its janitor does, and where that was killed too, the next node.

use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;
use serde_json::{json, Value};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use thenodes_tests::{all_gone, descendants, leaves, skip, Spec, TestNode, PATIENCE};

/// Plugins that live and die side by side, and how often each does.
const PLUGINS: usize = 10;
const LIVES: usize = 100;
/// Growth of the node that a thousand lives may cost: the log book and the allocator's slack, not a life's worth each.
const GROWTH: u64 = 8 * 1024 * 1024;

/// A connection to the admin socket: a thousand questions without a thousand command lines.
struct Admin {
    stream: UnixStream,
    answers: BufReader<UnixStream>,
}

impl Admin {
    fn of(node: &TestNode) -> Admin {
        let stream = UnixStream::connect(node.dir.path().join("data/admin.sock")).expect("an admin socket");
        stream.set_read_timeout(Some(PATIENCE)).expect("set");
        Admin { answers: BufReader::new(stream.try_clone().expect("a copy")), stream }
    }

    fn ask(&mut self, question: &Value) -> Value {
        self.stream.write_all(format!("{question}\n").as_bytes()).expect("asked");
        let mut line = String::new();
        self.answers.read_line(&mut line).expect("an answer");
        serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line}"))
    }

    fn status(&mut self, name: &str) -> Value {
        self.ask(&json!({ "cmd": "plugin-status", "name": name }))["plugin"].clone()
    }
}

fn descriptors(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).expect("a living node").count()
}

/// Waits until a number is what it should be: the kernel buries the dead a moment after their death is known.
#[track_caller]
fn settles<T: PartialEq + std::fmt::Debug>(what: &str, wanted: T, number: impl Fn() -> T) {
    let begun = Instant::now();
    loop {
        let now = number();
        if now == wanted {
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "{what}: {now:?} instead of {wanted:?}");
        std::thread::park_timeout(Duration::from_millis(5)); // processes of others cannot be waited for
    }
}

/// Processes of plugins.
fn tree(node: &TestNode) -> usize {
    let others = [janitors(node), node.spares()].concat();
    node.descendants().iter().filter(|pid| !others.contains(pid)).count()
}

/// Children of the node that wait to clean up after it; none where there are no control groups.
fn janitors(node: &TestNode) -> Vec<u32> {
    let is = |pid: &u32| {
        let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split('\0').nth(1) == Some("--janitor")
    };
    node.descendants().into_iter().filter(is).collect()
}

#[test]
fn a_thousand_lives_leave_the_node_as_it_was() {
    let bytes = fs::read(thenodes_tests::plugin("echo")).expect("the plugin is built");
    let names: Vec<String> = (0..PLUGINS).map(|n| format!("e{n}")).collect();
    let spec = names
        .iter()
        .fold(Spec::new("lives"), |spec, name| spec.with_file(&format!("lib{name}.so"), bytes.clone()));
    let node = spec.start();
    let live = |lives: usize| {
        std::thread::scope(|scope| {
            let mut threads = Vec::new();
            for name in &names {
                let node = &node;
                threads.push(scope.spawn(move || one_after_the_other(&mut Admin::of(node), name, lives)));
            }
            threads.into_iter().map(|thread| thread.join().expect("no panic")).sum::<u64>()
        })
    };
    // The first lives fill log books, buffers and the allocator.
    live(LIVES / 10);
    // Three processes per plugin: warden, stub, runner.
    settles("processes", 3 * PLUGINS, || tree(&node));
    settles("a spare", 1, || node.spares().len());
    let (fds, memory, groups) = (descriptors(node.pid()), node.memory(), leaves(node.pid()).len());
    let begun = Instant::now();
    let lives = live(LIVES);
    eprintln!("{lives} lives in {:?}", begun.elapsed());
    assert!(lives >= (PLUGINS * LIVES) as u64, "{lives}");
    settles("processes", 3 * PLUGINS, || tree(&node));
    settles("a spare", 1, || node.spares().len());
    settles("control groups", groups, || leaves(node.pid()).len());
    // Connections of this test may have been counted before; a thousand lives may not.
    settles("no more descriptors", true, || descriptors(node.pid()) <= fds);
    let grown = node.memory().saturating_sub(memory);
    eprintln!("descriptors {fds} -> {}, resident memory {memory} + {grown}", descriptors(node.pid()));
    assert!(grown < GROWTH, "{grown} bytes more after {lives} lives");
}

/// Kills a plugin's process tree from outside and has it started again, so many times; every second time by an order alone.
/// Returns how many processes it took.
fn one_after_the_other(admin: &mut Admin, name: &str, lives: usize) -> u64 {
    let first = admin.status(name)["starts"].as_u64().expect("a number");
    for life in 0..lives {
        if life % 2 == 0 {
            if let Some(warden) = admin.status(name)["pid"].as_i64() {
                // The runner, or whatever is the last of the tree by now. Root and owner may; nobody else has to.
                let victim = descendants(warden as u32).last().map_or(warden, |pid| i64::from(*pid));
                let _ = kill(Pid::from_raw(victim as i32), Signal::SIGKILL);
            }
        }
        let answer = admin.ask(&json!({ "cmd": "plugin-restart", "name": name }));
        assert!(answer["error"].is_null(), "{answer}");
    }
    let status = admin.status(name);
    assert_eq!(status["state"], "Ready", "{status}");
    status["starts"].as_u64().expect("a number") - first
}

/// Three plugins: a good one, one that never leaves its constructor, one that hears no signal.
fn stubborn() -> Spec {
    Spec::new("stubborn")
        .with("echo")
        .with_hostile("spinner", "constructor:spin")
        .with_hostile("deaf", "thread:deaf-spin")
}

/// Starts a node and waits until all three have their processes; the spinner is still in its constructor then.
fn started(spec: &Spec) -> (TestNode, Vec<u32>) {
    let node = spec.spawn(spec.lay_out());
    settles("runners", true, || ["echo", "spinner", "deaf"].iter().all(|name| runner(&node, name).is_some()));
    let pids = node.descendants();
    assert!(pids.len() >= 9, "a warden, a stub and a runner each: {pids:?}");
    (node, pids)
}

/// The process that runs a plugin: it carries its name.
fn runner(node: &TestNode, name: &str) -> Option<u32> {
    node.descendants().into_iter().find(|pid| is(*pid, name))
}

/// True for a process of this name.
fn is(pid: u32, name: &str) -> bool {
    fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == name)
}

/// What is left of a node in its directory, beside what belongs there.
fn left_in(node: &TestNode) -> Vec<String> {
    let data = fs::read_dir(node.dir.path().join("data")).into_iter().flatten().flatten();
    data.map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| !matches!(name.as_str(), "node_id" | "plugin-uids"))
        .collect()
}

#[test]
fn after_an_orderly_end_there_is_no_process_group_file_or_socket_left() {
    let mounts = || fs::read_to_string("/proc/self/mounts").expect("mounts").matches("thenodes").count();
    let before = mounts();
    let mut node = Spec::new("orderly").with("echo").with_hostile("deaf", "thread:deaf-spin").start();
    let (pid, pids) = (node.pid(), node.descendants());
    assert!(pids.len() >= 6 && left_in(&node) == ["admin.sock"], "{pids:?} {:?}", left_in(&node));
    node.signal(Signal::SIGTERM);
    assert!(node.wait().success());
    assert!(all_gone(&pids, Duration::from_secs(1)), "survivors of {pids:?}");
    assert_eq!(leaves(pid), Vec::<PathBuf>::new());
    assert_eq!(left_in(&node), Vec::<String>::new());
    assert_eq!(mounts(), before);
}

#[test]
fn a_plugin_that_overlooks_the_end_of_its_link_hears_term_before_it_is_killed() {
    let node = Spec::new("term")
        .with_hostile("deaf", "thread:await-term")
        .with_hostile("polite", "thread:hear-term")
        .start();
    let said = |name: &str, text: &str| node.logs(name).iter().any(|line| line.contains(text));
    for (name, hears) in [("deaf", true), ("polite", false)] {
        settles(name, true, || said(name, "waiting for TERM"));
        let pids = descendants(node.status(name)["pid"].as_u64().expect("it runs") as u32);
        assert_eq!(node.json(&["plugin", "disable", name])["error"], Value::Null);
        settles(name, true, || node.status(name)["state"] == "Stopped");
        assert!(pids.len() >= 2 && all_gone(&pids, PATIENCE), "{name}: survivors of {pids:?}");
        // One that sees the end of its link ends with it, and no signal comes.
        assert_eq!(said(name, "TERM came"), hears, "{name}: {:?}", node.logs(name));
    }
}

#[test]
fn a_node_that_is_told_to_end_while_a_plugin_spins_in_its_constructor_leaves_nothing() {
    let (mut node, pids) = started(&stubborn());
    let pid = node.pid();
    node.signal(Signal::SIGTERM);
    assert!(node.wait().success());
    assert!(all_gone(&pids, Duration::from_secs(1)), "survivors of {pids:?}");
    assert_eq!(leaves(pid), Vec::<PathBuf>::new());
}

#[test]
fn a_plugin_that_does_not_want_to_die_is_gone_within_a_second_and_only_it() {
    let (node, pids) = started(&stubborn());
    let echo = runner(&node, "echo").expect("a runner");
    // The spinner first: it has only until its deadline to be killed in.
    for name in ["spinner", "deaf"] {
        let (victim, before) = (runner(&node, name).expect("a runner"), leaves(node.pid()));
        let before: Vec<_> = before.into_iter().filter(|dir| dir.to_string_lossy().ends_with(name)).collect();
        kill(Pid::from_raw(victim as i32), Signal::SIGKILL).expect("killed");
        assert!(all_gone(&[victim], Duration::from_secs(1)), "{name} lives");
        settles("its old control groups", false, || before.iter().any(|dir| dir.exists()));
    }
    // The node knows of both. When their next processes come is not this promise: on a machine that leaves them no processor they
    // miss the deadlines of their start, and the breaker opens.
    settles("an admin socket", true, || node.dir.path().join("data/admin.sock").exists());
    let mut admin = Admin::of(&node);
    for name in ["spinner", "deaf"] {
        let begun = Instant::now();
        while admin.status(name)["last_death"].is_null() {
            assert!(begun.elapsed() < PATIENCE, "nobody saw {name} die: {}", admin.status(name));
        }
    }
    assert!(!all_gone(&[echo], Duration::ZERO) && pids.contains(&echo), "the good one lives on");
}

/// Sixteen threads that spin in a constructor, on a tenth of one processor.
fn throttled() -> Spec {
    Spec::new("throttled")
        .with_hostile("crowd", "constructor:spin-threads 16")
        .more("[plugins.limits]\nthreads = 24\ncpu_percent = 10")
}

/// Leaves it a thousandth of one processor. No configuration can, but so a test sees in seconds what a loaded machine does to
/// the least that one can. False where no control group holds its time.
fn starve(groups: &[PathBuf]) -> bool {
    let write = |path: PathBuf, text: &str| {
        fs::OpenOptions::new()
            .write(true)
            .open(path)
            .and_then(|mut file| file.write_all(text.as_bytes()))
            .is_ok()
    };
    let one = |dir: &PathBuf| {
        let first = write(dir.join("cpu.cfs_period_us"), "1000000");
        (first && write(dir.join("cpu.cfs_quota_us"), "1000")) || write(dir.join("cpu.max"), "1000 1000000")
    };
    groups.iter().filter(|dir| one(dir)).count() > 0
}

/// Waits until all its threads spin and the kernel holds them back. Returns its groups; none where none can be made.
fn held_back(node: &TestNode) -> Vec<PathBuf> {
    // Its warden has the plugin's name too, and one thread.
    let threads = |pid: &u32| fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
    settles("a crowd", true, || node.descendants().iter().any(|pid| threads(pid) >= 16 && is(*pid, "crowd")));
    let groups = leaves(node.pid());
    let throttled = || {
        let text = |dir: &PathBuf| fs::read_to_string(dir.join("cpu.stat")).unwrap_or_default();
        let of_line = |line: &str| line.strip_prefix("nr_throttled ")?.parse::<u64>().ok();
        groups.iter().find_map(|dir| text(dir).lines().find_map(of_line))
    };
    if starve(&groups) {
        let before = throttled();
        settles("held back", true, || throttled() > before);
    }
    groups
}

#[test]
fn a_plugin_without_processor_time_is_gone_within_a_second_too() {
    let begin = || {
        let spec = throttled();
        let node = spec.spawn(spec.lay_out());
        let groups = held_back(&node);
        let pids = node.descendants();
        (node, groups, pids)
    };
    let ends = |how: &str, node: &TestNode, pids: &[u32], begun: Instant| {
        let gone = all_gone(pids, Duration::from_secs(1));
        let all = gone && no_leaves(node.pid(), Duration::from_secs(1).saturating_sub(begun.elapsed()));
        eprintln!("{how}: {} processes, gone {gone} {all} after {:?}", pids.len(), begun.elapsed());
        assert!(gone, "{how}: survivors of {pids:?}");
        assert!(all, "{how}: groups {:?}", leaves(node.pid()));
    };
    // The node is told to end; it waits for its plugin.
    let (mut node, _, pids) = begin();
    let begun = Instant::now();
    node.signal(Signal::SIGTERM);
    ends("stop", &node, &pids, begun);
    assert!(node.wait().success());
    // The node kills it: an operator does not want to wait for a constructor. Orders are taken once the node runs.
    let (node, _, _) = begin();
    settles("an admin socket", true, || node.dir.path().join("data/admin.sock").exists());
    let groups = held_back(&node);
    let janitors = janitors(&node);
    let tree: Vec<u32> = node.descendants().into_iter().filter(|pid| !janitors.contains(pid)).collect();
    let mut admin = Admin::of(&node);
    let begun = Instant::now();
    // Its answer comes with the next process, which never leaves its constructor either.
    writeln!(admin.stream, "{}", json!({ "cmd": "plugin-restart", "name": "crowd" })).expect("asked");
    let gone = all_gone(&tree, Duration::from_secs(1));
    while gone && groups.iter().any(|dir| dir.exists()) && begun.elapsed() < Duration::from_secs(1) {
        std::thread::park_timeout(Duration::from_millis(5)); // groups cannot be waited for
    }
    eprintln!("kill: {} processes gone after {:?}", tree.len(), begun.elapsed());
    assert!(gone, "kill: survivors of {tree:?}");
    assert!(!groups.iter().any(|dir| dir.exists()), "kill: groups of {groups:?}");
    drop(node);
    // Nobody is left to wait.
    let (mut node, _, pids) = begin();
    let begun = Instant::now();
    node.signal(Signal::SIGKILL);
    ends("SIGKILL", &node, &pids, begun);
    let _ = node.wait();
}

/// Waits until a node has no control group any more.
fn no_leaves(pid: u32, patience: Duration) -> bool {
    let begun = Instant::now();
    while !leaves(pid).is_empty() {
        if begun.elapsed() >= patience {
            return false;
        }
        std::thread::park_timeout(Duration::from_millis(5)); // groups cannot be waited for
    }
    true
}

#[test]
fn a_killed_node_leaves_no_process_and_no_control_group_for_longer_than_a_second() {
    let bystander = Spec::new("bystander").with("echo").start();
    settles("a spare", 1, || bystander.spares().len());
    let others = leaves(bystander.pid());
    let (mut node, pids) = started(&stubborn());
    let (pid, before, janitors) = (node.pid(), leaves(node.pid()), janitors(&node));
    // The spinner is in its constructor, the deaf one hears no signal; both have groups wherever there are any.
    assert_eq!(janitors.len(), usize::from(!before.is_empty()), "{janitors:?} for {before:?}");
    node.signal(Signal::SIGKILL);
    let begun = Instant::now();
    assert!(no_leaves(pid, Duration::from_secs(1)), "left of {before:?}: {:?}", leaves(pid));
    assert!(all_gone(&pids, Duration::from_secs(1).saturating_sub(begun.elapsed())), "survivors of {pids:?}");
    eprintln!(
        "{} groups and {} processes gone {:?} after the node",
        before.len(),
        pids.len(),
        begun.elapsed()
    );
    let _ = node.wait();
    assert_eq!(leaves(bystander.pid()), others, "groups of other nodes are not touched");
    assert_eq!(bystander.prompt("echo", "x").as_deref(), Ok("x"));
}

/// Wardens with their stub and their runner.
fn wardens(node: &TestNode) -> Vec<(u32, Vec<u32>)> {
    let trees = node.descendants().into_iter().map(|pid| (pid, descendants(pid)));
    trees.filter(|(_, below)| below.len() == 2).collect()
}

/// The trees of three plugins. A runner that still tries its walls has a child of its own for a moment: then it is none yet.
fn three(node: &TestNode) -> Vec<(u32, Vec<u32>)> {
    let mut trees = Vec::new();
    let begun = Instant::now();
    while trees.len() != 3 {
        assert!(begun.elapsed() < PATIENCE, "three plugins: {trees:?}");
        trees = wardens(node);
    }
    trees
}

fn send(pid: u32, signal: Signal) {
    kill(Pid::from_raw(pid as i32), signal).expect("it lives and is ours");
}

#[test]
fn a_killed_warden_takes_stub_and_plugin_with_it() {
    let (node, _) = started(&stubborn());
    let trees = three(&node);
    for (warden, below) in trees {
        send(warden, Signal::SIGKILL);
        assert!(all_gone(&below, Duration::from_secs(1)), "survivors of {below:?} under {warden}");
    }
}

#[test]
fn node_and_wardens_killed_in_either_order_leave_nothing() {
    for node_first in [true, false] {
        let (mut node, pids) = started(&stubborn());
        let trees = three(&node);
        if node_first {
            node.signal(Signal::SIGKILL);
        }
        for (warden, _) in &trees {
            // After the node it may have ended by itself already.
            let _ = kill(Pid::from_raw(*warden as i32), Signal::SIGKILL);
        }
        if !node_first {
            node.signal(Signal::SIGKILL);
        }
        assert!(all_gone(&pids, Duration::from_secs(1)), "node first {node_first}: survivors of {pids:?}");
        let _ = node.wait();
    }
}

#[test]
fn plugins_of_a_killed_node_end_even_if_their_wardens_do_not_look_up() {
    let (mut node, _) = started(&stubborn());
    let trees = three(&node);
    // Nobody else ends them either: not the janitor, where the kernel kills by groups.
    janitors(&node).into_iter().for_each(|janitor| send(janitor, Signal::SIGKILL));
    // As one that waits for a file system which does not answer.
    trees.iter().for_each(|(warden, _)| send(*warden, Signal::SIGSTOP));
    node.signal(Signal::SIGKILL);
    let below: Vec<u32> = trees.iter().flat_map(|(_, below)| below.clone()).collect();
    let gone = all_gone(&below, Duration::from_secs(1));
    for (warden, _) in &trees {
        let _ = kill(Pid::from_raw(*warden as i32), Signal::SIGKILL);
    }
    assert!(gone, "survivors of {below:?}");
    let _ = node.wait();
}

/// A process that no signal ends until this is dropped, as one that waits for a device: a freezer of version 1 keeps even SIGKILL
/// from it. `None` where there is no such freezer.
struct Frozen(PathBuf);

impl Frozen {
    fn of(pid: u32) -> Option<Frozen> {
        let group = PathBuf::from(format!("/sys/fs/cgroup/freezer/thenodes-test-{}", std::process::id()));
        fs::create_dir(&group).ok()?;
        let frozen = Frozen(group);
        fs::write(frozen.0.join("cgroup.procs"), pid.to_string()).ok()?;
        fs::write(frozen.0.join("freezer.state"), "FROZEN").ok()?;
        settles("the freezer", Some("FROZEN".to_owned()), || {
            fs::read_to_string(frozen.0.join("freezer.state")).ok().map(|state| state.trim().to_owned())
        });
        Some(frozen)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        let _ = fs::write(self.0.join("freezer.state"), "THAWED");
        // Empty as soon as the process is gone.
        let begun = Instant::now();
        while fs::remove_dir(&self.0).is_err() && begun.elapsed() < PATIENCE {
            std::thread::park_timeout(Duration::from_millis(5));
        }
    }
}

#[test]
fn a_process_that_the_kernel_cannot_end_now_holds_nobody_up() {
    let name = "a_process_that_the_kernel_cannot_end_now_holds_nobody_up";
    let mut node = Spec::new("frozen").with("echo").with("hostile").start();
    let trees = wardens(&node);
    let (warden, below) = trees.iter().find(|(warden, _)| is(*warden, "hostile")).expect("its warden");
    let Some(frozen) = Frozen::of(*warden) else {
        return skip(name, "only root, with a freezer of version 1, can make such a process");
    };
    let begun = Instant::now();
    let done = node.command(&["plugin", "restart", "hostile"]);
    assert!(done.status.success(), "{done:?}");
    node.expect_where("its next life", |line| line.contains("name=hostile action=ready"));
    // Grace, patience with the kill, a start; each has a bound of its own, far below this.
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    let state = fs::read_to_string(format!("/proc/{warden}/stat")).expect("the control: it is still there");
    assert!(!state.contains(") Z "), "{state}");
    assert_eq!(node.prompt("hostile", "good").as_deref(), Ok("42 0"), "the next life works");
    assert_eq!(node.prompt("echo", "x").as_deref(), Ok("x"));
    drop(frozen);
    let old: Vec<u32> = below.iter().copied().chain([*warden]).collect();
    assert!(all_gone(&old, Duration::from_secs(5)), "it ends as soon as it can: {old:?}");
}

#[test]
fn the_janitor_is_one_process_without_terminal_or_files_that_sleeps_until_the_end() {
    let name = "the_janitor_is_one_process_without_terminal_or_files_that_sleeps_until_the_end";
    let mut node = Spec::new("janitor").with("echo").with("kvstore").start();
    if leaves(node.pid()).is_empty() {
        assert_eq!(janitors(&node), Vec::<u32>::new(), "without groups there is nothing to clean");
        return skip(name, "no control groups can be made here, so there is no janitor");
    }
    let janitor = janitors(&node);
    let [janitor] = janitor[..] else { panic!("one for all plugins: {janitor:?}") };
    let stat = || {
        let text = fs::read_to_string(format!("/proc/{janitor}/stat")).expect("it lives");
        let words = text.rsplit_once(')').expect("a name").1.split_whitespace().map(str::to_owned);
        words.collect::<Vec<_>>()
    };
    // Fields 3 and on: state, parent, group, session, terminal; times are 14 and 15.
    let asleep = stat();
    assert_eq!(
        (asleep[0].as_str(), asleep[3].as_str(), asleep[4].as_str()),
        ("S", &*janitor.to_string(), "0")
    );
    let switches = || {
        let text = fs::read_to_string(format!("/proc/{janitor}/status")).expect("it lives");
        text.lines().filter(|line| line.contains("ctxt_switches")).map(str::to_owned).collect::<Vec<_>>()
    };
    let before = switches();
    let mut admin = Admin::of(&node);
    assert!(admin.ask(&json!({ "cmd": "plugin-restart", "name": "echo" }))["error"].is_null());
    assert_eq!(
        (switches(), janitors(&node)),
        (before, vec![janitor]),
        "it does not wake for a plugin's life"
    );
    for fd in fs::read_dir(format!("/proc/{janitor}/fd")).expect("it lives").flatten() {
        let to = fs::read_link(fd.path()).expect("open").to_string_lossy().into_owned();
        let plain = ["pipe:", "/dev/null", "anon_inode:"].iter().any(|kind| to.starts_with(kind));
        assert!(plain, "{}: {to}", fd.path().display());
    }
    // Killed once, it is missed with the next leaf, and there is a new one.
    kill(Pid::from_raw(janitor as i32), Signal::SIGKILL).expect("killed");
    assert!(all_gone(&[janitor], PATIENCE));
    assert!(admin.ask(&json!({ "cmd": "plugin-restart", "name": "echo" }))["error"].is_null());
    node.seen("action=no_janitor");
    let next = janitors(&node);
    assert!(next.len() == 1 && next != [janitor], "{next:?}");
    node.signal(Signal::SIGTERM);
    assert!(node.wait().success());
    assert!(all_gone(&next, Duration::from_secs(1)), "it ends with its node");
}

#[test]
fn what_a_killed_node_and_a_killed_janitor_leave_the_next_node_removes() {
    let (mut node, mut pids) = started(&stubborn());
    let pid = node.pid();
    for janitor in janitors(&node) {
        kill(Pid::from_raw(janitor as i32), Signal::SIGKILL).expect("killed");
        pids.retain(|pid| *pid != janitor);
    }
    node.signal(Signal::SIGKILL);
    assert!(all_gone(&pids, Duration::from_secs(1)), "survivors of {pids:?}");
    let _ = node.wait();
    // Empty groups and the file of a socket stay, because nobody is there to remove them. They hold nothing.
    for dir in leaves(pid) {
        let inside = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
        assert_eq!(inside, "", "{}", dir.display());
    }
    let next = Spec::new("next").with("echo").start();
    assert_eq!(leaves(pid), Vec::<PathBuf>::new(), "the next node removes what a killed one left");
    assert_eq!(next.prompt("echo", "x").as_deref(), Ok("x"));
}
