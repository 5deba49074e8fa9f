//! Measures against baselines in the same run: rounds in which baseline and subject alternate, everything pinned to one core,
//! medians of per-round ratios with their spread. One JSON object per row. Run by `cargo xtask bench`; the method is that of
//! `docs/benchmarks.md`. Absolute numbers of a shared machine mean nothing and are not printed, but for memory.

use std::hint::black_box;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use thenodes::host::{Host, HostError, NodeInfo, Notice, Request, Response};
use thenodes::realms::RealmInfo;
use thenodes_ipc::launch::ProcessLimits;
use thenodes_ipc::{limits, pack, CallId, Code, Frame, Generation, PluginName};
use thenodes_node::config::{Budget, Raw, Required};
use thenodes_node::plugins::handle::Handle;
use thenodes_node::plugins::image::{libraries_of_program, Image};
use thenodes_node::plugins::lifecycle::State;
use thenodes_node::plugins::supervisor::{supervise, Change, Keeping, Observer, Policy, Surroundings};
use thenodes_node::plugins::terms::Terms;
use thenodes_node::plugins::watchdog::Watchdog;
use thenodes_tests::bench::{grpc, pin, start, Row};
use thenodes_tests::bin_dir;
use tokio::sync::watch;

/// Bytes of the payload that is echoed.
const PAYLOAD: usize = 256;
/// Calls per round and subject.
const CALLS: usize = 2000;

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
        if change.bad {
            eprintln!("{}: {}", change.plugin, change.detail);
        }
    }
}

/// Arguments of `prompt`, as the node sends them.
#[derive(serde::Serialize)]
struct PromptArgs<'a> {
    prefix: &'a str,
    input: &'a str,
}

fn surroundings(policy: &Arc<Policy>) -> Surroundings {
    let info = NodeInfo {
        plugin: String::new(),
        node_id: "bench".into(),
        realm: RealmInfo::default(),
        node_type: "daemon".into(),
        session_id: String::new(),
    };
    let (sender, info) = watch::channel(Some(Arc::new(info)));
    std::mem::forget(sender); // lives as long as the benchmark
    let config = Raw::default().validate().expect("an empty configuration is valid");
    let name = PluginName::new("echo").expect("a name");
    // Answers count as messages of the plugin; measured is the link and not its limit.
    let free = Budget { link_messages_per_s: 10_000_000, link_bytes_per_s: 1 << 40, ..Budget::default() };
    Surroundings {
        policy: policy.clone(),
        terms: Arc::new(Terms::agree(name, None, &config.plugins.giving, policy.limits, free)),
        host: Arc::new(|| Arc::new(NoHost)),
        observer: Arc::new(Quiet),
        info,
        slot: 0,
        keeping: Keeping::default(),
    }
}

async fn start_echo(image: &Arc<Image>, policy: &Arc<Policy>) -> Handle {
    let plugin = supervise(image.clone(), surroundings(policy));
    let status = plugin.wait(|status| matches!(status.state, State::Ready | State::Failed { .. })).await;
    assert!(status.is_some_and(|status| status.state == State::Ready), "the plugin is Ready");
    plugin
}

async fn stop(plugin: Handle) {
    plugin.stop().await;
    plugin.wait(|status| status.state == State::Stopped).await;
}

/// Median of the durations of `count` runs, nanoseconds.
fn median(mut times: Vec<u64>) -> f64 {
    times.sort_unstable();
    times[times.len() / 2] as f64
}

fn nanos(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

/// The baseline: a blocking ping-pong of so many bytes each way with a process that does nothing else.
struct RawPeer {
    socket: UnixStream,
    child: std::process::Child,
    out: Vec<u8>,
    back: Vec<u8>,
}

impl RawPeer {
    fn start(there: usize, back: usize) -> Self {
        let (ours, theirs) = UnixStream::pair().expect("a socket pair");
        let child = Command::new(std::env::current_exe().expect("a path"))
            .args(["--raw-echo", &there.to_string(), &back.to_string()])
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .spawn()
            .expect("the peer starts");
        Self { socket: ours, child, out: vec![7; there], back: vec![0; back] }
    }

    fn ping(&mut self) {
        self.socket.write_all(&self.out).expect("sent");
        self.socket.read_exact(&mut self.back).expect("received");
    }
}

impl Drop for RawPeer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The other side of [`RawPeer`].
fn raw_echo(there: usize, back: usize) {
    use std::os::fd::AsFd;
    let fd = std::io::stdin().as_fd().try_clone_to_owned().expect("a socket");
    let mut socket = UnixStream::from(fd);
    let (mut received, answer) = (vec![0; there], vec![9; back]);
    while socket.read_exact(&mut received).is_ok() && socket.write_all(&answer).is_ok() {}
}

/// What a call in process costs: one function through a C table, bytes in and out.
struct Table {
    echo: extern "C" fn(&[u8; PAYLOAD], &mut [u8; PAYLOAD]) -> i32,
}

extern "C" fn echo(input: &[u8; PAYLOAD], output: &mut [u8; PAYLOAD]) -> i32 {
    output.copy_from_slice(input);
    0
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [_, "--raw-echo", there, back] => {
            raw_echo(there.parse().expect("bytes"), back.parse().expect("bytes"))
        }
        [_, "--grpc-echo", path] => grpc::serve(Path::new(path)),
        [_, "--start", rounds] => start_only(rounds.parse().expect("a number of rounds")),
        [_, rounds] => run(rounds.parse().expect("a number of rounds")),
        _ => eprintln!("run by `cargo xtask bench`"),
    }
}

/// Only the rows about starts and memory.
fn start_only(rounds: usize) {
    pin(0).expect("one core of this machine is ours");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    start::run(&runtime.expect("a runtime"), rounds);
}

fn run(rounds: usize) {
    pin(0).expect("one core of this machine is ours");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    let _inside = runtime.enter(); // the watchdog is a task
    let runner = bin_dir().join("thenodes-runner");
    let provided = libraries_of_program(&runner).expect("the runner");
    let image = Arc::new(Image::read(&bin_dir().join("libecho.so"), &provided).expect("echo"));
    let policy = Arc::new(Policy {
        runner,
        limits: ProcessLimits {
            memory: 128 << 20,
            threads: 16,
            descriptors: 64,
            cpu_seconds: None,
            file_size: 0,
        },
        watchdog: Watchdog::start(Budget::default().sample),
        required: Required::Full,
        uid_base: 2_000_000,
        transport: Default::default(),
    });

    // The frames of one call, so that the baseline moves the same bytes.
    let input = "x".repeat(PAYLOAD);
    let body =
        bytes::Bytes::from(pack::encode(&PromptArgs { prefix: "echo", input: &input }).expect("packs"));
    let id = CallId::new(Generation(1), 1000);
    let mut call = Vec::new();
    let frame = Frame::Call { id, cause: None, method: "prompt", deadline_ms: 30_000, body: &body };
    frame.encode(&mut call, limits::MAX_FRAME).expect("fits");
    let answer = pack::encode(&Some(&input)).expect("packs");
    let mut reply = Vec::new();
    Frame::Reply { id, failed: None, body: &answer }.encode(&mut reply, limits::MAX_FRAME).expect("fits");

    let dir = tempfile::tempdir().expect("a directory");
    let mut raw = RawPeer::start(call.len(), reply.len());
    let plugin = runtime.block_on(start_echo(&image, &policy));
    let mut client = runtime.block_on(grpc::Client::start(&dir.path().join("grpc.sock")));
    let table = black_box(Table { echo });

    let mut proxied =
        Row::new("proxied_call_256B_p50", "ratio", "raw blocking Unix-socket ping-pong, same bytes");
    let mut proxied99 = Row::new("proxied_call_256B_p99", "ratio", "p99 of the raw ping-pong");
    let mut in_process = Row::new(
        "in_process_c_table_call_256B_p50",
        "ratio",
        "raw blocking Unix-socket ping-pong, same bytes",
    );
    let mut tonic =
        Row::new("tonic_unary_256B_p50", "ratio", "raw blocking Unix-socket ping-pong, same bytes");
    let mut against_tonic =
        Row::new("proxied_call_256B_p50_against_tonic", "ratio", "tonic unary call over a Unix socket");
    for round in 0..=rounds {
        let measured = |mut one: Box<dyn FnMut() + '_>, count: usize| -> Vec<u64> {
            let mut times = Vec::with_capacity(count);
            for _ in 0..count {
                let begun = Instant::now();
                one();
                times.push(nanos(begun));
            }
            times.sort_unstable();
            times
        };
        let base = measured(Box::new(|| raw.ping()), CALLS);
        let ours = runtime.block_on(async {
            let mut times = Vec::with_capacity(CALLS);
            for _ in 0..CALLS {
                let begun = Instant::now();
                let answer =
                    plugin.call("prompt", body.clone(), Duration::from_secs(30)).await.expect("answers");
                black_box(pack::decode::<Option<String>>(&answer).expect("text"));
                times.push(nanos(begun));
            }
            times.sort_unstable();
            times
        });
        let (bytes_in, mut bytes_out) = ([1; PAYLOAD], [0; PAYLOAD]);
        let begun = Instant::now();
        for _ in 0..CALLS * 100 {
            black_box((table.echo)(black_box(&bytes_in), &mut bytes_out));
        }
        let table_call = nanos(begun) as f64 / (CALLS * 100) as f64;
        let rpc = runtime.block_on(client.calls(input.as_bytes(), CALLS / 4));
        if round == 0 {
            continue; // warm-up
        }
        let p50 = median(base.clone());
        let p99 = |times: &[u64]| times[times.len() * 99 / 100] as f64;
        proxied.add(median(ours.clone()) / p50);
        proxied99.add(p99(&ours) / p99(&base));
        in_process.add(table_call / p50);
        tonic.add(median(rpc.clone()) / p50);
        against_tonic.add(median(ours) / median(rpc));
    }
    runtime.block_on(stop(plugin));

    for row in [proxied, proxied99, in_process, tonic, against_tonic] {
        println!("{}", row.json());
    }
    drop((raw, client));
    start::run(&runtime, rounds);
}
