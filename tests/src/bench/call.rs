//! Rows about calls and messages: the node's own supervisor, link and queue on tokio, a real runner with all walls up, the echo
//! plugin behind the real trait. Baselines are plain blocking sockets between two processes, with the same bytes, measured in
//! the same round in turn with the subject. Two placements: everything on one core, or one process on each of two.

use super::floor::{ping_without_sleep, RawRing};
use super::{pin, Row};
use crate::bin_dir;
use bytes::Bytes;
use std::hint::black_box;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use thenodes::host::{Host, HostError, NodeInfo, Notice, Request, Response};
use thenodes::network::message::{Message, MessageType, Payload};
use thenodes::realms::RealmInfo;
use thenodes_ipc::launch::ProcessLimits;
use thenodes_ipc::{limits, pack, CallId, Code, Frame, Generation, PluginName};
use thenodes_node::config::{Budget, Raw, Required, Transport};
use thenodes_node::plugins::handle::{to_each, Handle};
use thenodes_node::plugins::image::{libraries_of_program, Image};
use thenodes_node::plugins::lifecycle::State;
use thenodes_node::plugins::supervisor::{supervise, Change, Keeping, Observer, Policy, Surroundings};
use thenodes_node::plugins::terms::Terms;
use thenodes_node::plugins::watchdog::Watchdog;
use tokio::runtime::Runtime;
use tokio::sync::watch;

const RAW: &str = "raw blocking Unix-socket ping-pong, same bytes";
/// Bytes of an ordinary body.
pub(super) const PAYLOAD: usize = 256;
/// Messages of one burst: below the queue's bound, so that none may be lost.
const BURST: usize = 200;
const FAN: usize = 100;

/// Where everything runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cores {
    /// Both processes on one core.
    One,
    /// The baseline's processes on a core each; ours where the kernel puts them.
    Two,
}

struct Answers;

#[async_trait::async_trait]
impl Host for Answers {
    async fn call(&self, request: Request) -> Result<Response, HostError> {
        match request {
            Request::ListPeers {} => Ok(Response::Peers(Vec::new())),
            _ => Err(HostError::new(Code::Unavailable, "a benchmark")),
        }
    }
    fn notify(&self, _: Notice) {}
}

struct Quiet;

impl Observer for Quiet {
    fn changed(&self, change: Change) {
        if change.bad {
            eprintln!("{}: {}", change.plugin, change.detail);
        }
    }
}

/// A node, as far as plugins see one.
pub(super) struct Node {
    image: Arc<Image>,
    runner: std::path::PathBuf,
    watchdog: Watchdog,
    info: watch::Receiver<Option<Arc<NodeInfo>>>,
    _identity: watch::Sender<Option<Arc<NodeInfo>>>,
}

impl Node {
    pub(super) fn new() -> Self {
        let runner = bin_dir().join("thenodes-runner");
        let provided = libraries_of_program(&runner).expect("the runner");
        let image = Arc::new(Image::read(&bin_dir().join("libecho.so"), &provided).expect("echo"));
        let (identity, info) = watch::channel(Some(Arc::new(NodeInfo {
            plugin: String::new(),
            node_id: "bench".into(),
            realm: RealmInfo::default(),
            node_type: "daemon".into(),
            session_id: String::new(),
        })));
        let watchdog = Watchdog::start(Budget::default().sample);
        Self { image, runner, watchdog, info, _identity: identity }
    }

    pub(super) async fn start(&self, transport: Transport, slot: u32) -> Handle {
        let limits = ProcessLimits {
            memory: 128 << 20,
            threads: 16,
            descriptors: 64,
            cpu_seconds: None,
            file_size: 0,
        };
        let policy = Policy {
            runner: self.runner.clone(),
            limits,
            watchdog: self.watchdog.clone(),
            required: Required::Full,
            uid_base: 2_000_000,
            transport,
            spare: None,
        };
        let config = Raw::default().validate().expect("an empty configuration is valid");
        let name = PluginName::new("echo").expect("a name");
        // Answers count as messages of the plugin; measured is the link and not its limit.
        let free =
            Budget { link_messages_per_s: 100_000_000, link_bytes_per_s: 1 << 40, ..Budget::default() };
        let terms = Terms::agree(name, None, &config.plugins.giving, limits, free);
        let around = Surroundings {
            policy: Arc::new(policy),
            terms: Arc::new(terms),
            host: Arc::new(|| Arc::new(Answers)),
            observer: Arc::new(Quiet),
            info: self.info.clone(),
            slot,
            keeping: Keeping::default(),
        };
        let plugin = supervise(self.image.clone(), around);
        let status = plugin.wait(|status| matches!(status.state, State::Ready | State::Failed { .. })).await;
        assert!(status.is_some_and(|status| status.state == State::Ready), "the plugin is Ready");
        plugin
    }
}

pub(super) async fn stop(plugin: Handle) {
    plugin.stop().await;
    plugin.wait(|status| status.state == State::Stopped).await;
}

/// A process that answers so many bytes with so many bytes, and does nothing else.
struct RawPeer {
    socket: UnixStream,
    child: Child,
    out: Vec<u8>,
    back: Vec<u8>,
}

impl RawPeer {
    /// `back` zero: it only reads.
    fn start(there: usize, back: usize, cores: Cores) -> Self {
        let (ours, theirs) = UnixStream::pair().expect("a socket pair");
        let core = if cores == Cores::Two { "1" } else { "0" };
        let child = Command::new(std::env::current_exe().expect("a path"))
            .args(["--raw-echo", &there.to_string(), &back.to_string(), core])
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .spawn()
            .expect("the peer starts");
        Self { socket: ours, child, out: vec![7; there], back: vec![0; back] }
    }

    fn ping(&mut self) {
        self.send();
        self.socket.read_exact(&mut self.back).expect("received");
    }

    fn send(&mut self) {
        self.socket.write_all(&self.out).expect("sent");
    }
}

impl Drop for RawPeer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The other side of the baselines.
pub fn raw_echo(there: usize, back: usize, core: usize) {
    pin(core).expect("the core is ours");
    let fd = std::io::stdin().as_fd().try_clone_to_owned().expect("a socket");
    let mut socket = UnixStream::from(fd);
    let (mut received, answer) = (vec![0; there], vec![9; back]);
    while socket.read_exact(&mut received).is_ok() && socket.write_all(&answer).is_ok() {}
}

/// Sorted nanoseconds of so many runs.
fn times(count: usize, mut one: impl FnMut()) -> Vec<u64> {
    let mut times: Vec<u64> = (0..count)
        .map(|_| {
            let begun = Instant::now();
            one();
            nanos(begun)
        })
        .collect();
    times.sort_unstable();
    times
}

pub(super) fn nanos(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

pub(super) fn p50(times: &[u64]) -> f64 {
    times[times.len() / 2] as f64
}

fn p99(times: &[u64]) -> f64 {
    times[times.len() * 99 / 100] as f64
}

const PATIENCE: Duration = Duration::from_secs(30);

async fn call(plugin: &Handle, method: &str, body: &Bytes) -> Bytes {
    plugin.call(method, body.clone(), PATIENCE).await.expect("it answers")
}

/// The same calls one after the other, in a task as the node's own callers are.
pub(super) fn calls(
    runtime: &Runtime,
    plugin: &Handle,
    method: &'static str,
    body: &Bytes,
    count: usize,
) -> Vec<u64> {
    let (plugin, body) = (plugin.clone(), body.clone());
    let task = runtime.spawn(async move {
        let mut times = Vec::with_capacity(count);
        for _ in 0..count {
            let begun = Instant::now();
            black_box(call(&plugin, method, &body).await);
            times.push(nanos(begun));
        }
        times.sort_unstable();
        times
    });
    runtime.block_on(task).expect("it ran")
}

/// Nanoseconds for each of so many calls of which so many are open at once.
fn in_flight(runtime: &Runtime, plugin: &Handle, body: &Bytes, open: usize, each: usize) -> f64 {
    let plugin = plugin.clone();
    let body = body.clone();
    let task = runtime.spawn(async move {
        let begun = Instant::now();
        let tasks: Vec<_> = (0..open)
            .map(|_| {
                let (plugin, body) = (plugin.clone(), body.clone());
                tokio::spawn(async move {
                    for _ in 0..each {
                        black_box(call(&plugin, "request.echo", &body).await);
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.expect("it ran");
        }
        nanos(begun) as f64 / (open * each) as f64
    });
    runtime.block_on(task).expect("it ran")
}

async fn counted(plugin: &Handle) -> u64 {
    let answer = call(plugin, "request.counted", &Bytes::new()).await;
    answer.first_chunk().map_or(0, |count| u64::from_le_bytes(*count))
}

/// Nanoseconds for each of so many messages until all are handled, in bursts below the queue's bound.
pub(super) fn stream(runtime: &Runtime, plugin: &Handle, body: &Bytes, bursts: usize) -> f64 {
    let (plugin, body) = (plugin.clone(), body.clone());
    let task = runtime.spawn(async move {
        let mut want = counted(&plugin).await;
        let begun = Instant::now();
        for _ in 0..bursts {
            for _ in 0..BURST {
                plugin.deliver(body.clone());
            }
            want += BURST as u64;
            // A call waits as a caller does; spinning would take the processor that the plugin needs.
            while plugin.queue.waiting().0 > 0 {
                counted(&plugin).await;
            }
        }
        let last = loop {
            let seen = counted(&plugin).await;
            if seen == want {
                break nanos(begun);
            }
            assert!(begun.elapsed() < PATIENCE, "{} of {want} messages were handled", seen);
        };
        last as f64 / (bursts * BURST) as f64
    });
    runtime.block_on(task).expect("it ran")
}

/// A message of about [`PAYLOAD`] bytes that the plugin counts.
pub(super) fn message() -> Bytes {
    let kind = MessageType::Extension { kind: "count".into() };
    let text = "x".repeat(PAYLOAD - 100);
    let message = Message::new("a-peer", "*", kind, Some(Payload::Text(text)), None);
    pack::encode(&message).expect("packs").into()
}

/// Length of the frames of a request and its answer.
fn lengths(method: &str, there: &[u8], back: &[u8]) -> (usize, usize) {
    let id = CallId::new(Generation(1), 1000);
    let mut call = Vec::new();
    let frame = Frame::Call { id, cause: None, method, deadline_ms: 30_000, body: there };
    frame.encode(&mut call, limits::MAX_FRAME).expect("fits");
    let mut reply = Vec::new();
    Frame::Reply { id, failed: None, body: back }.encode(&mut reply, limits::MAX_FRAME).expect("fits");
    (call.len(), reply.len())
}

/// The rows of one placement.
pub fn run(rounds: usize, cores: Cores) {
    if cores == Cores::One {
        pin(0).expect("one core of this machine is ours");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let _inside = runtime.enter();
    let node = Node::new();
    let ring = runtime.block_on(node.start(Transport::Ring, 0));
    let socket = runtime.block_on(node.start(Transport::Socket, 1));
    let small = Bytes::from(vec![b'x'; PAYLOAD]);
    let (there, back) = lengths("request.echo", &small, &small);
    // The baseline's own thread stays on its core while it measures.
    let on_core = |run: &mut dyn FnMut() -> Vec<u64>| {
        if cores == Cores::Two {
            pin_thread(0);
        }
        let times = run();
        if cores == Cores::Two {
            unpin_thread();
        }
        times
    };
    let mut raw = RawPeer::start(there, back, cores);
    let name = |one: &'static str, two: &'static str| if cores == Cores::One { one } else { two };
    let mut rows = vec![
        Row::new(name("call_256B_ring_p50", "call_256B_ring_p50_two_cores"), "ratio", RAW),
        Row::new(name("call_256B_ring_p99", "call_256B_ring_p99_two_cores"), "ratio", "p99 of the same"),
        Row::new(name("call_256B_socket_p50", "call_256B_socket_p50_two_cores"), "ratio", RAW),
        Row::new(name("call_256B_socket_p99", "call_256B_socket_p99_two_cores"), "ratio", "p99 of the same"),
        Row::new(name("in_flight_64_time_per_call", "in_flight_64_time_per_call_two_cores"), "ratio", RAW),
        Row::new(
            name("call_inside_a_call", "call_inside_a_call_two_cores"),
            "ratio",
            "a plain call, same transport",
        ),
        Row::new(
            name("floor_of_a_call_over_a_ring", "floor_of_a_call_over_a_ring_two_cores"),
            "ratio",
            "the same: what two processes need that only carry the bytes through the same ring",
        ),
        Row::new(
            name("floor_of_a_call_over_a_socket", "floor_of_a_call_over_a_socket_two_cores"),
            "ratio",
            "the same, by a caller that may not sleep in its read",
        ),
        Row::new(
            name("floor_of_the_stream", "floor_of_the_stream_two_cores"),
            "times as many a second",
            "the same writes: what decoding the messages in the SDK alone would allow",
        ),
        Row::new(
            name("message_stream", "message_stream_two_cores"),
            "times as many a second",
            "one write of the same bytes each, to a process that reads them",
        ),
    ];
    let mut bodies: Vec<(Row, Row, Row, RawPeer, Bytes)> = [
        ("call_64KiB_ring", "call_64KiB_socket", "floor_of_64KiB", 64 * 1024),
        // As much as fits into one frame.
        ("call_1MiB_ring", "call_1MiB_socket", "floor_of_1MiB", 1024 * 1024 - 1024),
    ]
    .into_iter()
    .map(|(on_ring, on_socket, floor, size)| {
        let body = Bytes::from(vec![b'y'; size]);
        let (there, back) = lengths("request.echo", &body, &body);
        let raw = RawPeer::start(there, back, cores);
        let copied =
            "the same, and two copies of the body: one that a handler may keep, and one that it returns";
        let floor = Row::new(floor, "ratio", copied);
        (Row::new(on_ring, "ratio", RAW), Row::new(on_socket, "ratio", RAW), floor, raw, body)
    })
    .collect();
    let (there, _) = lengths("message", &message(), &[]);
    let mut sink = RawPeer::start(there, 0, cores);
    let (there, back) = lengths("request.echo", &small, &small);
    let mut bare_ring = RawRing::start(there, back, cores);
    let mut bare_socket = RawPeer::start(there, back, cores);
    bare_socket.socket.set_nonblocking(true).expect("set");
    let packed = message();
    for round in 0..=rounds {
        let base = on_core(&mut || times(2000, || raw.ping()));
        let on_ring = calls(&runtime, &ring, "request.echo", &small, 2000);
        let on_socket = calls(&runtime, &socket, "request.echo", &small, 2000);
        let many = in_flight(&runtime, &ring, &small, 64, 100);
        let nested = calls(&runtime, &ring, "request.ask", &small, 1000);
        let by_ring = on_core(&mut || times(2000, || bare_ring.ping()));
        let RawPeer { socket: bare, out, back, .. } = &mut bare_socket;
        let by_socket = on_core(&mut || times(2000, || ping_without_sleep(bare, out, back)));
        let written = on_core(&mut || times(20_000, || sink.send()));
        let decoded = times(20_000, || {
            black_box(pack::decode::<Message>(black_box(&packed)).expect("a message"));
        });
        let handled = stream(&runtime, &ring, &message(), 40);
        let large: Vec<[f64; 4]> = bodies
            .iter_mut()
            .map(|(_, _, _, raw, body)| {
                let base = p50(&on_core(&mut || times(100, || raw.ping())));
                let copies = p50(&on_core(&mut || {
                    times(100, || {
                        raw.ping();
                        black_box(black_box(raw.back.to_vec()).to_vec());
                    })
                }));
                let ring = p50(&calls(&runtime, &ring, "request.echo", body, 100));
                [base, copies, ring, p50(&calls(&runtime, &socket, "request.echo", body, 100))]
            })
            .collect();
        if round == 0 {
            continue; // warm-up
        }
        if std::env::var_os("BENCH_VERBOSE").is_some() {
            eprintln!(
                "raw {} ring {} socket {} many {many:.0} nested {}",
                p50(&base),
                p50(&on_ring),
                p50(&on_socket),
                p50(&nested)
            );
        }
        let sum = |times: &[u64]| times.iter().sum::<u64>() as f64 / times.len() as f64;
        let ratios = [
            p50(&on_ring) / p50(&base),
            p99(&on_ring) / p99(&base),
            p50(&on_socket) / p50(&base),
            p99(&on_socket) / p99(&base),
            many / p50(&base),
            p50(&nested) / p50(&on_ring),
            p50(&by_ring) / p50(&base),
            p50(&by_socket) / p50(&base),
            sum(&written) / sum(&decoded),
            sum(&written) / handled,
        ];
        rows.iter_mut().zip(ratios).for_each(|(row, ratio)| row.add(ratio));
        for ((on_ring, on_socket, floor, _, _), [base, copies, ring, socket]) in bodies.iter_mut().zip(large)
        {
            floor.add(copies / base);
            on_ring.add(ring / base);
            on_socket.add(socket / base);
        }
    }
    runtime.block_on(async {
        stop(ring).await;
        stop(socket).await;
    });
    for row in rows {
        println!("{}", row.json());
    }
    for (on_ring, on_socket, floor, _, _) in bodies {
        println!("{}\n{}\n{}", on_ring.json(), on_socket.json(), floor.json());
    }
    if cores == Cores::One {
        for row in fan_out(&runtime, &node, rounds) {
            println!("{}", row.json());
        }
    }
}

/// One subject again and again for so many seconds, for a profiler.
pub fn only(what: &str, one_core: bool, seconds: usize) {
    if one_core {
        pin(0).expect("one core of this machine is ours");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let _inside = runtime.enter();
    let node = Node::new();
    if what == "fan" {
        for row in fan_out(&runtime, &node, seconds) {
            println!("{}", row.json());
        }
        return;
    }
    let transport = if what.starts_with("socket") { Transport::Socket } else { Transport::Ring };
    let plugin = runtime.block_on(node.start(transport, 0));
    let small = Bytes::from(vec![b'x'; PAYLOAD]);
    let (begun, mut last) = (Instant::now(), 0.0);
    while begun.elapsed() < Duration::from_secs(seconds as u64) {
        last = match what {
            "ring" | "socket" => p50(&calls(&runtime, &plugin, "request.echo", &small, 5000)),
            "nested" => p50(&calls(&runtime, &plugin, "request.ask", &small, 5000)),
            "flight" => in_flight(&runtime, &plugin, &small, 64, 100),
            "stream" => stream(&runtime, &plugin, &message(), 40),
            size => {
                let size = size.trim_start_matches("socket").parse().expect("bytes of a body");
                p50(&calls(&runtime, &plugin, "request.echo", &Bytes::from(vec![b'y'; size]), 200))
            }
        };
    }
    eprintln!("{what}: {last:.0} ns");
    runtime.block_on(stop(plugin));
}

/// One plugin over the ring, for comparisons elsewhere.
pub struct Subject(Handle);

impl Subject {
    /// Starts it.
    pub fn start(runtime: &Runtime) -> Self {
        let node = Node::new();
        let plugin = runtime.block_on(node.start(Transport::Ring, 0));
        std::mem::forget(node); // the plugin's identity lives as long as the benchmark
        Self(plugin)
    }

    /// Median nanoseconds of so many calls.
    pub fn p50(&self, runtime: &Runtime, count: usize) -> f64 {
        p50(&calls(runtime, &self.0, "request.echo", &Bytes::from(vec![b'x'; PAYLOAD]), count))
    }

    /// Ends it.
    pub fn stop(self, runtime: &Runtime) {
        runtime.block_on(stop(self.0));
    }
}

/// The node's time for one message to each of [`FAN`] plugins, against a write to as many sleeping processes.
fn fan_out(runtime: &Runtime, node: &Node, rounds: usize) -> [Row; 2] {
    const EACH: &str = "a raw write of the same bytes to each of 100 processes that wait for it";
    let mut row = Row::new("same_message_to_100_plugins_time_per_plugin", "ratio", EACH);
    let mut floor = Row::new("floor_of_the_fan_out", "ratio", EACH);
    let plugins: Vec<Handle> = runtime.block_on(async {
        let mut list = Vec::new();
        for slot in 0..FAN as u32 {
            list.push(node.start(Transport::Ring, 10 + slot).await);
        }
        list
    });
    let body = message();
    let (there, _) = lengths("message", &body, &[]);
    let mut sinks: Vec<RawPeer> = (0..FAN).map(|_| RawPeer::start(there, 0, Cores::One)).collect();
    let mut rings: Vec<RawRing> = (0..FAN).map(|_| RawRing::start(there, 0, Cores::One)).collect();
    for round in 0..=rounds {
        let (mut base, mut ours, mut bare) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..20 {
            let begun = Instant::now();
            sinks.iter_mut().for_each(RawPeer::send);
            base.push(nanos(begun));
            let (plugins, body) = (plugins.clone(), body.clone());
            let spread = runtime.spawn(async move {
                let begun = Instant::now();
                let all: Vec<&Handle> = plugins.iter().collect();
                to_each(&all, |plugin| plugin.deliver(body.clone()));
                nanos(begun)
            });
            ours.push(runtime.block_on(spread).expect("it ran"));
            let begun = Instant::now();
            rings.iter_mut().for_each(RawRing::send);
            bare.push(nanos(begun));
            // All asleep again before the next one.
            std::thread::park_timeout(Duration::from_millis(20));
        }
        for times in [&mut base, &mut ours, &mut bare] {
            times.sort_unstable();
        }
        if round > 0 {
            row.add(p50(&ours) / p50(&base));
            floor.add(p50(&bare) / p50(&base));
        }
    }
    runtime.block_on(async {
        for plugin in plugins {
            stop(plugin).await;
        }
    });
    [row, floor]
}

fn pin_thread(core: usize) {
    let _ = pin(core);
}

fn unpin_thread() {
    let mut all = nix::sched::CpuSet::new();
    for core in 0..std::thread::available_parallelism().map_or(2, usize::from).max(2) {
        let _ = all.set(core);
    }
    let _ = nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &all);
}
