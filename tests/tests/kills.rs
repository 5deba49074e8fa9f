//! Twenty plugins under load are killed in every way, many times: each death has its true name, nobody else loses a call, the peer
//! stays connected, and the node is as large afterwards as before; over the ring and over the socket. `THENODES_KILLS` asks for more than
//! every day's. How fast the node names a death, and what its neighbours notice, is printed and belongs to docs/benchmarks.md.

use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;
use rustix::event::{poll, PollFd, PollFlags, Timespec};
use rustix::process::{pidfd_open, PidfdFlags};
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use thenodes_node::config::Raw;
use thenodes_node::plugins::handle::Handle;
use thenodes_node::plugins::lifecycle::{Cause, State};
use thenodes_node::Node;
use thenodes_tests::inside::{ask, how_many, tell, wait_for, Dice};
use thenodes_tests::{descendants, Spec, PATIENCE};

const PLUGINS: usize = 20;
/// Kills in every run of the suite, over each transport.
const KILLS: usize = 80;
/// Plugins that are killed at the same time.
const KILLERS: usize = 4;

/// One plugin and what happens to it.
struct Victim {
    plugin: Handle,
    /// Kills that began, and kills after which it was back.
    begun: AtomicU64,
    over: AtomicU64,
    answered: AtomicU64,
    failed: AtomicU64,
    /// How long calls took that began and ended while nobody killed this plugin, since this was emptied last.
    times: Mutex<Vec<Duration>>,
}

impl Victim {
    /// Notes what became of a call; one that failed must have been open while its own plugin was being killed.
    fn note<T>(&self, over_before: u64, since: Instant, outcome: Result<T, thenodes::host::HostError>) {
        match outcome {
            Ok(_) => {
                if self.begun.load(Ordering::SeqCst) == over_before {
                    self.times.lock().expect("no panic").push(since.elapsed());
                }
                self.answered.fetch_add(1, Ordering::Relaxed)
            }
            Err(error) => {
                let begun = self.begun.load(Ordering::SeqCst);
                assert!(
                    begun > over_before,
                    "{}: nobody killed it, and a call failed: {error}",
                    self.plugin.name
                );
                self.failed.fetch_add(1, Ordering::Relaxed)
            }
        };
    }
}

async fn load(victim: Arc<Victim>, stop: Arc<AtomicBool>, messages: bool) {
    while !stop.load(Ordering::Relaxed) {
        let over = victim.over.load(Ordering::SeqCst);
        let since = Instant::now();
        match messages {
            true => victim.note(over, since, tell(&victim.plugin, "block-on 0").await),
            false => victim.note(over, since, ask(&victim.plugin, "after-host 0", PATIENCE).await),
        }
        tokio::time::sleep(Duration::from_millis(20)).await; // a load, and not a benchmark
    }
}

const WAYS: [&str; 6] = ["SIGKILL", "SIGSEGV", "SIGSTOP", "abort", "exit0", "hold 4000"];

fn is_true(way: &str, cause: &Cause) -> bool {
    match way {
        "SIGKILL" => *cause == Cause::Signal(Signal::SIGKILL as i32),
        "SIGSEGV" => *cause == Cause::Signal(Signal::SIGSEGV as i32),
        "SIGSTOP" => cause.word() == "wedged",
        "abort" => *cause == Cause::Signal(Signal::SIGABRT as i32),
        "exit0" => *cause == Cause::Exit(0),
        // Where there is a control group the kernel may be first; otherwise an allocation fails, and that aborts.
        _ => cause.word() == "oom" || *cause == Cause::Signal(Signal::SIGABRT as i32),
    }
}

/// How long after a death the node had named it, and a thread that only waited for it had seen it.
struct Delays {
    named: Duration,
    seen: Duration,
}

/// Kills one plugin, and says how long after its death that was known.
fn kill_once(runtime: &tokio::runtime::Handle, victim: &Victim, way: &'static str) -> Option<Delays> {
    let plugin = &victim.plugin;
    runtime.block_on(plugin.reset()); // deaths on purpose are not held against it
    let status = plugin.status();
    let generation = status.generation;
    let runner = *descendants(status.pid.expect("it runs")).last().expect("a runner");
    let pid = Pid::from_raw(runner as i32);
    let death =
        pidfd_open(rustix::process::Pid::from_raw(runner as i32).expect("a pid"), PidfdFlags::empty())
            .expect("it lives");
    // The control: a thread beside the node's, of which nothing is asked but to notice.
    let bare = death.try_clone().expect("a descriptor");
    let bare = std::thread::spawn(move || {
        let patience = Timespec { tv_sec: PATIENCE.as_secs() as i64, tv_nsec: 0 };
        poll(&mut [PollFd::new(&bare, PollFlags::IN)], Some(&patience)).expect("it can be watched");
        Instant::now()
    });
    let watched = plugin.clone();
    let named = runtime.spawn(async move {
        let dead = move |status: &thenodes_node::plugins::handle::Status| {
            status.deaths.iter().any(|death| death.generation == generation)
        };
        let status = wait_for(&watched, "death", dead).await;
        let at = Instant::now();
        let cause =
            status.deaths.iter().find(|death| death.generation == generation).map(|d| d.cause.clone());
        (at, cause.expect("it was there"))
    });
    victim.begun.fetch_add(1, Ordering::SeqCst);
    match way {
        "SIGKILL" => kill(pid, Signal::SIGKILL).expect("it lives"),
        "SIGSEGV" => kill(pid, Signal::SIGSEGV).expect("it lives"),
        "SIGSTOP" => kill(pid, Signal::SIGSTOP).expect("it lives"),
        deed => {
            let plugin = plugin.clone();
            drop(runtime.spawn(async move { ask(&plugin, deed, PATIENCE).await }));
        }
    }
    let patience = Timespec { tv_sec: PATIENCE.as_secs() as i64, tv_nsec: 0 };
    let gone = poll(&mut [PollFd::new(&death, PollFlags::IN)], Some(&patience)).expect("it can be watched");
    let visible = Instant::now();
    assert_eq!(gone, 1, "{}: {way} and it lives", plugin.name);
    let (at, cause) = runtime.block_on(named).expect("no panic");
    let seen = bare.join().expect("no panic");
    assert!(is_true(way, &cause), "{}: {way} was named {}: {cause}", plugin.name, cause.word());
    runtime.block_on(wait_for(plugin, "next process", |status| {
        status.generation > generation && status.state == State::Ready
    }));
    victim.over.fetch_add(1, Ordering::SeqCst);
    // A stopped process dies because the node has named it.
    let since = |at: Instant| at.saturating_duration_since(visible);
    (way != "SIGSTOP").then(|| Delays { named: since(at), seen: since(seen) })
}

/// Resident KiB, descriptors and threads of this process.
fn size() -> [usize; 3] {
    let status = fs::read_to_string("/proc/self/status").expect("this process");
    let kib =
        status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next()?.parse().ok());
    let count = |dir: &str| fs::read_dir(dir).expect("this process").count();
    [kib.expect("a number"), count("/proc/self/fd"), count("/proc/self/task")]
}

/// Percentiles of so many times.
fn spread(mut times: Vec<Duration>) -> String {
    times.sort_unstable();
    let at = |percent: usize| {
        times.get((times.len().saturating_sub(1)) * percent / 100).copied().unwrap_or_default()
    };
    format!("p50 {:?} p90 {:?} p99 {:?} max {:?} of {}", at(50), at(90), at(99), at(100), times.len())
}

#[test]
fn every_death_is_named_and_touches_nobody_else() {
    for transport in ["ring", "socket"] {
        kill_all(transport);
    }
}

fn kill_all(transport: &str) {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("one");
    let mut spec = Spec::new("kills").transport(transport);
    for n in 0..PLUGINS {
        spec = spec.with_hostile(&format!("victim{n}"), "none:none");
    }
    let dir = spec.lay_out();
    std::env::set_current_dir(dir.path()).expect("it is there"); // the only test of this program
    let text = fs::read_to_string("config.toml").expect("laid out");
    let raw = Raw::parse(Path::new("config.toml"), &text).expect("valid");
    let node = runtime.block_on(Node::start(raw)).expect("it starts");
    let port = node.listening.port();
    let mut peer = Spec::new("peer").top(&format!("bootstrap_nodes = [\"127.0.0.1:{port}\"]")).start();
    peer.seen("app_handshake_success");
    let victims: Vec<Arc<Victim>> = (0..PLUGINS)
        .map(|n| {
            let plugin = node.plugins.get(&format!("victim{n}")).expect("it was found").clone();
            let zero = AtomicU64::default;
            let times = Mutex::default();
            Arc::new(Victim { plugin, begun: zero(), over: zero(), answered: zero(), failed: zero(), times })
        })
        .collect();
    for victim in &victims {
        runtime.block_on(wait_for(&victim.plugin, "Ready", |status| status.state == State::Ready));
    }
    let stop = Arc::new(AtomicBool::new(false));
    let mut tasks = Vec::new();
    for victim in &victims {
        for messages in [false, true] {
            tasks.push(runtime.spawn(load(victim.clone(), stop.clone(), messages)));
        }
    }
    // Each once, so that everything that is made the first time is there.
    let kills = |count: usize, salt: u64| -> Vec<Delays> {
        std::thread::scope(|scope| {
            let killers: Vec<_> = (0..KILLERS)
                .map(|killer| {
                    let (victims, handle) = (&victims, runtime.handle());
                    scope.spawn(move || {
                        let mut dice = Dice::new(salt + killer as u64);
                        let mut times = Vec::new();
                        for n in 0..count.div_ceil(KILLERS) {
                            let mine = PLUGINS / KILLERS;
                            let victim = &victims[killer * mine + n % mine];
                            let way = WAYS[dice.below(WAYS.len() as u64) as usize];
                            times.extend(kill_once(handle, victim, way));
                        }
                        times
                    })
                })
                .collect();
            killers.into_iter().flat_map(|killer| killer.join().expect("each death as promised")).collect()
        })
    };
    kills(PLUGINS, 0);
    let before = size();
    let take = || -> Vec<Duration> {
        victims
            .iter()
            .flat_map(|victim| std::mem::take(&mut *victim.times.lock().expect("no panic")))
            .collect()
    };
    // As many calls in peace as a percentile needs.
    take();
    let calls = |least: usize| {
        while victims.iter().map(|victim| victim.times.lock().expect("no panic").len()).sum::<usize>() < least
        {
            std::thread::park_timeout(Duration::from_millis(5)); // and not at their expense
        }
    };
    calls(2000);
    let in_peace = take();
    let count = how_many("THENODES_KILLS", KILLS);
    let times = kills(count, 100);
    let beside_kills = take();
    stop.store(true, Ordering::Relaxed);
    for task in tasks {
        runtime.block_on(task).expect("no call failed but those of the dead");
    }
    let after = size();
    let sum = |of: fn(&Victim) -> u64| victims.iter().map(|victim| of(victim)).sum::<u64>();
    eprintln!(
        "{transport}: {count} kills; named after {}, seen by a bare thread after {}; calls of others in peace {}, beside kills {}; {} answered, {} failed with \
         their plugin; KiB, descriptors, threads {before:?} then {after:?}",
        spread(times.iter().map(|delays| delays.named).collect()),
        spread(times.iter().map(|delays| delays.seen).collect()),
        spread(in_peace),
        spread(beside_kills),
        sum(|victim| victim.answered.load(Ordering::Relaxed)),
        sum(|victim| victim.failed.load(Ordering::Relaxed)),
    );
    assert_eq!(node.network.peers.list().len(), 1, "the peer is there");
    assert_eq!(peer.heard().matches("app_handshake_success").count(), 1, "and never had to come again");
    let allowed = [before[0] + 32 * 1024, before[1] + 16, before[2] + 16];
    assert!(after.iter().zip(allowed).all(|(after, allowed)| *after <= allowed), "{before:?} then {after:?}");
    runtime.block_on(node.shut_down());
}
