//! Rows about life instead of calls: how long a start takes, what an idle plugin costs, how many fit on one node. The subject is
//! the node's own supervisor with all walls up; nothing is left out that a daemon does for a plugin. Baselines are measured in the
//! same round, in turn with the subject, so that a busy machine slows both.

use super::{of_process, private_kib, Row};
use crate::{bin_dir, descendants};
use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use thenodes::host::{Host, HostError, NodeInfo, Notice, Request, Response};
use thenodes::realms::RealmInfo;
use thenodes_ipc::launch::ProcessLimits;
use thenodes_ipc::{Code, PluginName};
use thenodes_node::config::{Budget, Raw, Required, Transport};
use thenodes_node::plugins::handle::Handle;
use thenodes_node::plugins::image::{libraries_of_program, Image};
use thenodes_node::plugins::lifecycle::State;
use thenodes_node::plugins::spare::Spare;
use thenodes_node::plugins::supervisor::{supervise, Change, Keeping, Observer, Policy, Surroundings};
use thenodes_node::plugins::terms::Terms;
use thenodes_node::plugins::watchdog::Watchdog;
use tokio::sync::watch;

/// Starts per round and subject.
const STARTS: usize = 7;
/// Idle plugins whose memory is looked at: pages that all of them share belong to none.
const IDLE: usize = 50;
/// Plugins of a large node, and those of which processor time is counted while they idle.
const MANY: usize = 500;
const QUIET: usize = 100;
/// How long they idle.
const QUIET_FOR: Duration = Duration::from_secs(5);
/// How long allocators, runtimes and the kernel may take to come to rest before memory is read.
const SETTLE: Duration = Duration::from_millis(1500);
/// How long the kernel may take to bury the last one, and how long a processor is kept awake before something is measured on it.
const BURIED: Duration = Duration::from_millis(5);
const BUSY: Duration = Duration::from_millis(2);
/// Memory of a large node, bytes.
const LARGE: usize = 1 << 30;
/// How long anything may take before something is broken.
const PATIENCE: Duration = Duration::from_secs(300);

struct NoHost;

#[async_trait::async_trait]
impl Host for NoHost {
    async fn call(&self, _: Request) -> Result<Response, HostError> {
        Err(HostError::new(Code::Unavailable, "a benchmark"))
    }
    fn notify(&self, _: Notice) {}
}

struct Quiet;

impl Observer for Quiet {
    fn changed(&self, change: Change) {
        // Deaths are wanted here; a wall that is not up is not.
        if change.bad && change.action != "died" {
            eprintln!("{}: {}", change.plugin, change.detail);
        }
    }
}

/// A node, as far as plugins see one.
struct Node {
    image: Arc<Image>,
    policy: Arc<Policy>,
    info: watch::Receiver<Option<Arc<NodeInfo>>>,
    _identity: watch::Sender<Option<Arc<NodeInfo>>>,
}

impl Node {
    /// `spare`: as nodes are by default, with a runner that waits for the next start.
    fn new(runner: PathBuf, library: &Path, spare: bool) -> Node {
        let provided = libraries_of_program(&runner).expect("the runner");
        let image = Arc::new(Image::read(library, &provided).expect("the plugin"));
        let limits = ProcessLimits {
            memory: 128 << 20,
            threads: 16,
            descriptors: 64,
            cpu_seconds: None,
            file_size: 0,
        };
        let watchdog = Watchdog::start(Budget::default().sample);
        let spare = spare.then(|| Spare::keep(runner.clone(), watchdog.cgroups().clone()));
        let policy = Policy {
            runner,
            limits,
            watchdog,
            required: Required::Full,
            uid_base: 2_000_000,
            transport: Transport::Ring,
            spare,
        };
        let (identity, info) = watch::channel(Some(Arc::new(NodeInfo {
            plugin: String::new(),
            node_id: "bench".into(),
            realm: RealmInfo::default(),
            node_type: "daemon".into(),
            session_id: String::new(),
        })));
        Node { image, policy: Arc::new(policy), info, _identity: identity }
    }

    fn supervise(&self, slot: u32) -> Handle {
        let config = Raw::default().validate().expect("an empty configuration is valid");
        let name = PluginName::new("echo").expect("a name");
        let terms = Terms::agree(name, None, &config.plugins.giving, self.policy.limits, Budget::default());
        supervise(
            self.image.clone(),
            Surroundings {
                policy: self.policy.clone(),
                terms: Arc::new(terms),
                host: Arc::new(|| Arc::new(NoHost)),
                observer: Arc::new(Quiet),
                info: self.info.clone(),
                slot,
                keeping: Keeping::default(),
            },
        )
    }

    async fn start(&self, slot: u32) -> Handle {
        let plugin = self.supervise(slot);
        ready(&plugin, 1).await;
        plugin
    }

    /// Nanoseconds from order to Ready, of so many starts one after the other.
    async fn starts(&self, count: usize) -> Vec<u64> {
        let mut times = Vec::with_capacity(count);
        for _ in 0..count {
            self.rest().await;
            let begun = Instant::now();
            let plugin = self.start(0).await;
            times.push(nanos(begun));
            stop(plugin).await;
        }
        times
    }

    /// Nanoseconds of a start from the word that all walls stand to Ready: what no preparation can take away, since only then the plugin's
    /// own code is opened.
    async fn behind_the_walls(&self, count: usize) -> Vec<u64> {
        let mut times = Vec::with_capacity(count);
        for _ in 0..count {
            self.rest().await;
            let plugin = self.supervise(0);
            let stand = plugin.wait(|status| status.level.is_some());
            tokio::time::timeout(PATIENCE, stand).await.expect("the walls stand");
            let begun = Instant::now();
            ready(&plugin, 1).await;
            times.push(nanos(begun));
            stop(plugin).await;
        }
        times
    }

    /// The same of two nodes in turn, so that neither has the better half of a round.
    async fn starts_in_turn(nodes: [&Node; 2], count: usize) -> [Vec<u64>; 2] {
        let mut times = [Vec::with_capacity(count), Vec::with_capacity(count)];
        for _ in 0..count {
            for (node, times) in nodes.iter().zip(&mut times) {
                times.extend(node.starts(1).await);
            }
        }
        times
    }

    /// The same from the death of a process to the next one's Ready, each time the first death of its plugin.
    async fn restarts(&self, count: usize) -> Vec<u64> {
        let mut times = Vec::with_capacity(count);
        for _ in 0..count {
            let plugin = self.start(0).await;
            let warden = plugin.status().pid.expect("it runs");
            // The innermost process: the one in which the plugin's code is.
            let runner = descendants(warden).pop().expect("a runner");
            // For some milliseconds the kernel is still moving it into the group by which it could be killed.
            tokio::time::sleep(Duration::from_millis(60)).await;
            self.rest().await;
            let begun = Instant::now();
            kill(Pid::from_raw(runner as i32), Signal::SIGKILL).expect("it lives");
            ready(&plugin, 2).await;
            times.push(nanos(begun));
            stop(plugin).await;
        }
        times
    }

    /// Until the dead are buried, and the spare is there if this node keeps one: whoever starts a plugin does not do it at once again. Busy at
    /// the end, so that every subject begins on a processor that is awake.
    async fn rest(&self) {
        let until = Instant::now() + SETTLE;
        let missing = || self.policy.spare.as_ref().is_some_and(|spare| !spare.is_there());
        tokio::time::sleep(BURIED).await;
        while missing() && Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let busy = Instant::now();
        while busy.elapsed() < BUSY {
            std::hint::spin_loop();
        }
    }

    /// So many at once, all Ready.
    async fn many(&self, first: u32, count: usize) -> Vec<Handle> {
        let slots = first..first + u32::try_from(count).expect("few");
        let plugins: Vec<Handle> = slots.map(|slot| self.supervise(slot)).collect();
        for plugin in &plugins {
            ready(plugin, 1).await;
        }
        plugins
    }
}

async fn ready(plugin: &Handle, start: u32) {
    let wait = plugin.wait(|status| match status.state {
        State::Ready => status.generation.0 >= start,
        State::Failed { .. } => true,
        _ => false,
    });
    let status = tokio::time::timeout(PATIENCE, wait).await.ok().flatten();
    assert!(status.is_some_and(|status| status.state == State::Ready), "the plugin is Ready");
}

async fn stop(plugin: Handle) {
    plugin.stop().await;
    plugin.wait(|status| status.state == State::Stopped).await;
}

async fn stop_all(plugins: Vec<Handle>) {
    for plugin in &plugins {
        plugin.stop().await;
    }
    for plugin in plugins {
        plugin.wait(|status| status.state == State::Stopped).await;
    }
}

/// Every process of these plugins: warden, stub and runner.
fn trees(plugins: &[Handle]) -> Vec<Vec<u32>> {
    let wardens = plugins.iter().filter_map(|plugin| plugin.status().pid);
    wardens.map(|warden| std::iter::once(warden).chain(descendants(warden)).collect()).collect()
}

/// Nanoseconds of so many runs of a program to its end.
fn runs(mut command: Command, count: usize) -> Vec<u64> {
    let one = |_| {
        let begun = Instant::now();
        assert!(command.status().is_ok_and(|status| status.success()), "{command:?}");
        nanos(begun)
    };
    (0..count).map(one).collect()
}

/// `/bin/true` behind the walls that bubblewrap's usual callers ask for, if it is installed.
fn bubblewrap() -> Option<Command> {
    let mut command = Command::new("bwrap");
    command.args(["--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL"]);
    command.args(["--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--tmpfs", "/tmp", "/bin/true"]);
    command.stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success()).then_some(command)
}

fn median(mut times: Vec<u64>) -> f64 {
    times.sort_unstable();
    times[times.len() / 2] as f64
}

fn nanos(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

/// Measures and prints every row of this room. To be called inside a runtime's context, pinned.
pub fn run(runtime: &tokio::runtime::Runtime, rounds: usize) {
    let _inside = runtime.enter(); // the watchdog is a task
    thenodes_node::plugins::process::make_room().expect("room for descriptors");
    let node = |spare| Node::new(bin_dir().join("thenodes-runner"), &bin_dir().join("libecho.so"), spare);
    let (node, cold) = (node(true), node(false));
    // Memory first: what later rows leave behind in this process is not a plugin's.
    let idle = idle(runtime, &node);
    let times = times(runtime, &node, &cold, rounds);
    let many = many(runtime, &node);
    for row in idle.into_iter().chain(times).chain(many) {
        println!("{}", row.json());
    }
}

/// Memory on both sides, and processor time of doing nothing.
fn idle(runtime: &tokio::runtime::Runtime, node: &Node) -> Vec<Row> {
    let mut private =
        Row::new("idle_plugin_private_memory_of_50", "KiB", "private memory of an idle /bin/cat");
    let mut own = Row::new(
        "idle_plugin_memory_freed_by_its_end_of_50",
        "KiB",
        "private memory of an idle /bin/cat; counts pages that only warden, stub and runner of one plugin share",
    );
    let mut here = Row::new("node_memory_per_plugin", "KiB", "64 KiB");
    let mut cpu =
        Row::new("idle_cpu_of_100_plugins", "per mille of one core, node and plugins together", "one core");
    // Stacks of workers, the janitor, the allocator's arenas: a node has them before its first plugin.
    runtime.block_on(async {
        let warm = node.many(0, 4).await;
        stop_all(warm).await;
    });
    std::thread::sleep(SETTLE);
    let before = of_process(std::process::id(), "Pss_Anon:");
    let plugins = runtime.block_on(node.many(0, IDLE));
    let mut cat = Command::new("/bin/cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("cat");
    std::thread::sleep(SETTLE);
    let of_cat = private_kib(cat.id()).max(1) as f64;
    let grown = of_process(std::process::id(), "Pss_Anon:").saturating_sub(before);
    here.add(grown as f64 / IDLE as f64 / 64.0);
    here.value(grown as f64 / IDLE as f64);
    // An ordinary user may not look into processes that gave their own uid away; half a sum would be a lie.
    let trees_of = trees(&plugins);
    let readable = |pid: &u32| private_kib(*pid) > 0;
    if !trees_of.iter().flatten().all(readable) {
        eprintln!("the memory of plugins cannot be read by this user: no rows about it");
    }
    for tree in trees_of.iter().filter(|tree| tree.iter().all(readable)) {
        let all: u64 = tree.iter().copied().map(private_kib).sum();
        private.add(all as f64 / of_cat);
        private.value(all as f64);
        // Anonymous pages are shared by fork only, and so within one tree.
        let anonymous: u64 = tree.iter().map(|pid| of_process(*pid, "Pss_Anon:")).sum();
        own.add(anonymous as f64 / of_cat);
        own.value(anonymous as f64);
    }
    let _ = cat.kill();
    let _ = cat.wait();
    let more = runtime.block_on(node.many(IDLE as u32, QUIET - IDLE));
    std::thread::sleep(SETTLE);
    let plugins: Vec<Handle> = plugins.into_iter().chain(more).collect();
    let mut all: Vec<u32> = trees(&plugins).concat();
    all.push(std::process::id());
    let ticks = |pids: &[u32]| pids.iter().map(|pid| super::ticks(*pid)).sum::<u64>();
    for _ in 0..3 {
        let (before, begun) = (ticks(&all), Instant::now());
        std::thread::sleep(QUIET_FOR);
        let used = (ticks(&all) - before) as f64 / super::ticks_per_second();
        let share = used / begun.elapsed().as_secs_f64();
        cpu.add(share);
        cpu.value(share * 1000.0);
    }
    runtime.block_on(stop_all(plugins));
    [private, own, here, cpu].into_iter().filter(|row| !row.is_empty()).collect()
}

/// How long starts take.
fn times(runtime: &tokio::runtime::Runtime, node: &Node, cold: &Node, rounds: usize) -> Vec<Row> {
    let mut spawn = Row::new("spawn_to_ready", "ratio", "spawn and wait of /bin/true");
    let mut walls = Row::new("spawn_to_ready_against_bwrap", "ratio", "bwrap /bin/true, usual flags");
    let mut alone = Row::new("spawn_to_ready_without_a_spare", "ratio", "spawn and wait of /bin/true");
    let mut alone_walls =
        Row::new("spawn_to_ready_without_a_spare_against_bwrap", "ratio", "bwrap /bin/true, usual flags");
    let mut behind = Row::new("of_a_start_what_is_behind_the_walls", "ratio", "spawn and wait of /bin/true");
    let mut large = Row::new("spawn_from_a_node_of_1_GiB", "ratio", "the same from a small node");
    let mut crash = Row::new("crash_to_ready", "ratio", "spawn to Ready");
    let mut crash_alone =
        Row::new("crash_to_ready_against_no_spare", "ratio", "spawn to Ready without a spare");
    let mut cold_crash =
        Row::new("crash_to_ready_without_a_spare", "ratio", "spawn to Ready without a spare");
    let other = bubblewrap().is_some();
    for round in 0..=rounds {
        let [starts, cold_starts] = runtime.block_on(Node::starts_in_turn([node, cold], STARTS)).map(median);
        let trues = median(runs(Command::new("/bin/true"), STARTS * 3));
        let wrapped = bubblewrap().map(|command| median(runs(command, STARTS)));
        let restarts = median(runtime.block_on(node.restarts(STARTS)));
        let again = median(runtime.block_on(node.starts(STARTS)));
        let opening = median(runtime.block_on(node.behind_the_walls(STARTS)));
        let cold_restarts = median(runtime.block_on(cold.restarts(STARTS)));
        let memory = black_box(vec![1_u8; LARGE]);
        let of_large = median(runtime.block_on(node.starts(STARTS)));
        drop(memory);
        if round == 0 {
            continue; // warm-up
        }
        spawn.add(starts / trues);
        spawn.value(starts / 1e6);
        if let Some(wrapped) = wrapped {
            walls.add(starts / wrapped);
            alone_walls.add(cold_starts / wrapped);
        }
        alone.add(cold_starts / trues);
        alone.value(cold_starts / 1e6);
        behind.add(opening / trues);
        behind.value(opening / 1e6);
        crash.add(restarts / starts.midpoint(again));
        crash_alone.add(restarts / cold_starts);
        cold_crash.add(cold_restarts / cold_starts);
        large.add(of_large / again);
    }
    let mut rows = vec![spawn, alone, behind, large, crash, crash_alone, cold_crash];
    if other {
        rows.extend([walls, alone_walls]);
    } else {
        eprintln!("bwrap is not installed, or cannot run here: no row against it");
    }
    rows
}

/// As many as a large node has.
fn many(runtime: &tokio::runtime::Runtime, node: &Node) -> Vec<Row> {
    let mut ready = Row::new("plugins_ready_on_one_node", "plugins", "500");
    let mut each = Row::new("start_of_one_among_500_at_once", "ratio", "a start of one alone");
    let mut descriptors = Row::new("node_descriptors_per_plugin", "descriptors", "16");
    let mut threads = Row::new("node_threads_per_plugin_of_500", "threads", "1");
    let count = |what: &str| std::fs::read_dir(format!("/proc/self/{what}")).map_or(0, Iterator::count);
    let alone = median(runtime.block_on(node.starts(STARTS)));
    let (fds, begun) = (count("fd"), Instant::now());
    let plugins = runtime.block_on(node.many(0, MANY));
    each.add(nanos(begun) as f64 / MANY as f64 / alone);
    ready.add(1.0);
    ready.value(plugins.iter().filter(|plugin| plugin.status().state == State::Ready).count() as f64);
    let per_plugin = |all: usize, before: usize| all.saturating_sub(before) as f64 / MANY as f64;
    descriptors.add(per_plugin(count("fd"), fds) / 16.0);
    descriptors.value(per_plugin(count("fd"), fds));
    threads.add(per_plugin(count("task"), 0));
    threads.value(count("task") as f64);
    runtime.block_on(stop_all(plugins));
    vec![ready, each, descriptors, threads]
}
