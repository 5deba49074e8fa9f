//! What a vandal costs the others of a node: the slowest hundredth of an honest peer's questions while somebody misbehaves as fast as he
//! can, by the same while nobody does. Limits are the default ones.
//!
//! A vandal is elsewhere, but here he has to be on the same processors, so he runs in a process that gets what the others leave
//! (`SCHED_IDLE`), unless he is to be their equal. What his being there costs all the same is a row of its own: he does the same to a bare
//! server beside the node, which only accepts, reads and closes. How often he did it is counted, and has to be more than never.

use super::Row;
use crate::peer::{frame, Peer};
use crate::{Spec, TestNode};
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};
use thenodes_node::admin::{Asking, Question};

/// Questions of the honest peer in one measurement.
const QUESTIONS: usize = 4000;
/// Connections of those who come in a crowd.
const CROWD: usize = 5000;
/// Connections of honest newcomers in one measurement.
const NEWCOMERS: usize = 100;
/// Bytes of a broadcast, and how many of them fill all room for somebody who does not read.
const BROADCAST: usize = 32 * 1024;
const FILLS: u64 = 300;
/// Slow senders.
const SLOW: usize = 100;
/// What a long line has in one piece, and all of them. Small: the kernel does a system call to its end, however long, before another may go on.
const PIECE: usize = 4 * 1024;
const PIECES: usize = 16 * 1024;

/// Who misbehaves: returns when the node has closed the door, and is called again then.
type Deed = fn(u16);

/// The rows, what the vandals do, and the rows of the same done to a bare server, where it could be done to one.
const DEEDS: [(&str, Deed, Option<&str>); 7] = [
    ("p99_beside_lines_of_64_mib", long_lines, Some("bare_lines_of_64_mib")),
    ("p99_beside_100_slow_senders", slow_senders, Some("bare_100_slow_senders")),
    ("p99_beside_5000_silent_connections", silent, Some("bare_5000_silent_connections")),
    ("p99_beside_garbage_before_hello", garbage, Some("bare_garbage_before_hello")),
    ("p99_beside_bytes_that_are_no_text", no_text, Some("bare_bytes_that_are_no_text")),
    ("p99_beside_a_flood_of_messages", flood, Some("bare_flood_of_messages")),
    ("p99_beside_a_peer_that_stops_reading", stops_reading, None),
];

/// The bare server: says its port, accepts, reads, and closes a connection whose line is none or has no end within a MiB. On a runtime like
/// the node's.
pub fn bare() {
    thenodes_node::plugins::process::make_room().expect("room for a crowd");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        println!("{}", listener.local_addr().expect("an address").port());
        loop {
            let (stream, _) = listener.accept().await.expect("accepted");
            tokio::spawn(async move {
                let (mut unfinished, mut first) = (0, true);
                let mut piece = vec![0; 64 * 1024];
                loop {
                    let _ = stream.readable().await;
                    let count = match stream.try_read(&mut piece) {
                        Ok(count @ 1..) => count,
                        Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
                        Ok(_) | Err(_) => return,
                    };
                    for part in piece[..count].split_inclusive(|byte| *byte == b'\n') {
                        let begins = unfinished == 0;
                        unfinished = if part.ends_with(b"\n") { 0 } else { unfinished + part.len() };
                        if unfinished > 1 << 20 || begins && first && part[0] != b'{' || part[0] > 0xf7 {
                            return;
                        }
                        first = false;
                    }
                }
            });
        }
    });
}

/// The vandal: does this to that port until he is killed.
pub fn vandal(name: &str, port: u16) {
    let (_, deed, _) = DEEDS.into_iter().find(|(of, ..)| *of == name).expect("a deed");
    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL).expect("he ends with whoever sent him");
    thenodes_node::plugins::process::make_room().expect("room for a crowd");
    loop {
        deed(port);
    }
}

/// Says that it has begun, or did it once more.
fn did() {
    println!("did");
}

/// This program in a process of its own, with other arguments: its first line, and how many came after it. Killed when dropped.
struct Other(Child, String, Arc<AtomicU64>);

impl Other {
    fn start(mut command: Command, args: &[&str]) -> Self {
        let mut child = command.args(args).stdout(Stdio::piped()).spawn().expect("it starts");
        let mut said = String::new();
        let mut lines = BufReader::new(child.stdout.take().expect("piped"));
        lines.read_line(&mut said).expect("it says a line");
        let counted = Arc::<AtomicU64>::default();
        let count = counted.clone();
        std::thread::spawn(move || {
            lines.lines().for_each(|_| {
                count.fetch_add(1, Ordering::Relaxed);
            })
        });
        Self(child, said.trim().to_owned(), counted)
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A peer with a name of its own, if the node lets it in now.
fn greeted(port: u16) -> Option<TcpStream> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    greeted_as(port, &format!("v{}", NEXT.fetch_add(1, Ordering::Relaxed)))
}

fn greeted_as(port: u16, id: &str) -> Option<TcpStream> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.write_all(greeting(id).as_bytes()).ok()?;
    Some(stream)
}

fn greeting(id: &str) -> String {
    format!(
        "{{\"from\":\"{id}\",\"to\":\"x\",\"msg_type\":{{\"HELLO\":{{\"node_id\":\"{id}\"}}}},\"realm\":{{\"name\":\"Test\",\"version\":\"1.0\"}}}}\n"
    )
}

/// Reads until the node closes.
fn wait_closed(mut stream: TcpStream) {
    let _ = stream.set_read_timeout(Some(Duration::from_secs(1)));
    while matches!(stream.read(&mut [0; 4096]), Ok(1..)) {}
}

fn long_lines(port: u16) {
    did();
    let Some(mut stream) = greeted(port) else { return };
    let piece = vec![b'x'; PIECE];
    for _ in 0..PIECES {
        if stream.write_all(&piece).is_err() {
            return;
        }
    }
}

fn slow_senders(port: u16) {
    let mut crowd: Vec<_> = (0..SLOW).filter_map(|_| TcpStream::connect(("127.0.0.1", port)).ok()).collect();
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(2) {
        crowd.retain_mut(|stream| stream.write_all(b"{").is_ok());
        did();
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn silent(port: u16) {
    let mut crowd = Vec::with_capacity(CROWD);
    while crowd.len() < CROWD {
        crowd.extend(TcpStream::connect(("127.0.0.1", port)));
        if crowd.len() % 100 == 1 {
            did();
        }
    }
}

fn garbage(port: u16) {
    did();
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else { return };
    let _ = stream.write_all(b"this is no hello\n");
    wait_closed(stream);
}

fn no_text(port: u16) {
    did();
    let Some(mut stream) = greeted(port) else { return };
    let _ = stream.write_all(b"\xff\xfe\xfd\n");
    wait_closed(stream);
}

fn flood(port: u16) {
    let Some(mut stream) = greeted(port) else { return };
    let line = r#"{"from":"v","to":"*","msg_type":{"TEXT":"again and again and again"},"realm":null}"#;
    let lines = format!("{line}\n").repeat(100);
    while stream.write_all(lines.as_bytes()).is_ok() {
        did();
    }
}

/// A target that never reads, and somebody who goes on sending frames to it, a hundred a second, as far as they are taken. It has begun
/// once all room between them is full.
fn stops_reading(port: u16) {
    let (Some(_mute), Some(mut sender)) = (greeted_as(port, "mute"), greeted_as(port, "sender")) else {
        return;
    };
    sender.set_nonblocking(true).expect("set");
    let (mut sequence, mut heard) = (0, vec![0; 64 * 1024]);
    let mut waits = 0;
    loop {
        sequence += 1;
        assert!(waits > 0 || sequence < 100_000, "nothing holds it up");
        let line = frame("sender", "mute", sequence, &"QUFB".repeat(200)) + "\n";
        let mut left = line.as_bytes();
        while !left.is_empty() {
            match sender.write(left) {
                Ok(count) => left = &left[count..],
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    waits += 1;
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(_) => return,
            }
        }
        // Held up for a tenth of a second in all, or told that its frames go nowhere.
        let told = matches!(sender.read(&mut heard), Ok(1..)) && waits > 0;
        if waits > 100 || told {
            did();
        }
        if waits > 0 {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// The slowest hundredth of the honest peer's questions, seconds.
fn p99(honest: &mut Peer) -> f64 {
    let mut times: Vec<f64> = (0..QUESTIONS)
        .map(|_| {
            let begun = Instant::now();
            honest.settle();
            begun.elapsed().as_secs_f64()
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[QUESTIONS / 100 * 99]
}

/// The honest peer's figure while this is done to that port.
fn beside(name: &str, port: u16, equal: bool, figure: impl FnOnce() -> f64) -> f64 {
    let program = std::env::current_exe().expect("a path");
    let mut aside = Command::new(program);
    if !equal {
        aside = Command::new("chrt");
        aside.args(["-i", "0"]).arg(std::env::current_exe().expect("a path"));
    }
    let mut vandal = Other::start(aside, &["--vandal", name, &port.to_string()]);
    assert_eq!(vandal.1, "did", "`chrt`, of util-linux, starts the vandal");
    let before = vandal.2.load(Ordering::Relaxed);
    let figure = figure();
    assert_ne!(vandal.2.load(Ordering::Relaxed), before, "{name}: nothing was done meanwhile");
    assert!(matches!(vandal.0.try_wait(), Ok(None)), "{name}: the vandal has ended");
    figure
}

/// The median time from connecting, from an address without vandals, to the first question of the node to a peer that it let in, seconds.
fn newcomers(port: u16) -> f64 {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let mut times: Vec<f64> = (0..NEWCOMERS)
        .map(|n| {
            let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
            socket.bind(([127, 0, 0, 9], 0).into()).expect("an address of this machine");
            let begun = Instant::now();
            let connected = runtime.block_on(socket.connect(([127, 0, 0, 1], port).into()));
            let mut stream = connected.and_then(tokio::net::TcpStream::into_std).expect("let in");
            stream.set_nonblocking(false).expect("set");
            stream.set_read_timeout(Some(Duration::from_secs(10))).expect("set");
            stream.write_all(greeting(&format!("new{n}")).as_bytes()).expect("sent");
            let greeted = BufReader::new(stream)
                .lines()
                .any(|line| line.is_ok_and(|line| line.contains("liveness_probe_v1")));
            assert!(greeted, "the node asks whether it lives");
            begun.elapsed().as_secs_f64()
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[NEWCOMERS / 2]
}

/// The honest peer's figure while the node broadcasts, as fast as fifty times in a second; and what somebody took who does not read it,
/// if there is such a one, KiB. Nothing is measured before all room for him is full.
fn beside_broadcasts(here: &TestNode, honest: &mut Peer, mute: Option<&Peer>) -> (f64, f64) {
    let socket = here.dir.path().join("data/admin.sock");
    let (ends, said) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut node = Asking::connect(&socket).expect("the node's socket");
            let line = format!("say {}", "x".repeat(BROADCAST));
            while !ends.load(Ordering::Relaxed) {
                let order = Question::Prompt { prefix: "hostile".into(), line: line.clone() };
                node.ask(&order).expect("answered");
                said.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        let until = |honest: &mut Peer, count: u64| {
            while said.load(Ordering::Relaxed) < count {
                honest.settle();
            }
        };
        until(honest, 5);
        let before = here.memory();
        until(honest, FILLS);
        if let Some(mute) = mute {
            let peers = here.json(&["peers"]);
            let waiting =
                peers["peers"].as_array().into_iter().flatten().find(|peer| peer["node_id"] == *mute.id);
            let waiting = waiting.and_then(|peer| peer["waiting_bytes"].as_u64()).unwrap_or(0);
            assert!(waiting > 256 * 1024, "only {waiting} bytes wait for him");
        }
        let figure = p99(honest);
        let grown = here.memory().saturating_sub(before) as f64 / 1024.0;
        ends.store(true, Ordering::Relaxed);
        (figure, grown)
    })
}

/// Beside a peer that reads nothing of what the node broadcasts, by the same with nobody mute: the ratio, and the p99 itself in
/// milliseconds; and what the node has grown by meanwhile, KiB.
fn mute_receiver(rounds: usize) {
    let mut row = Row::new("p99_beside_a_mute_broadcast_receiver", "ratio", "everybody reads");
    let mut memory = Row::new("memory_beside_a_mute_broadcast_receiver", "ratio", "2 MiB");
    for _ in 0..rounds {
        let of = |mute: bool| {
            let more = "[logging]\ndisable_console = true\n";
            let here = Spec::new("here").with("hostile").more(more).start();
            let mute = mute.then(|| Peer::greeted(&here, "mute"));
            let mut honest = Peer::greeted(&here, "honest");
            beside_broadcasts(&here, &mut honest, mute.as_ref())
        };
        let ((alone, _), (beside, grown)) = (of(false), of(true));
        row.add(beside / alone);
        row.value(beside * 1000.0);
        memory.add(grown / 2048.0);
        memory.value(grown);
    }
    println!("{}\n{}", row.json(), memory.json());
}

/// The rows whose names have `only` in them; `value_median` is what the node has grown by in a round, KiB, and for newcomers their median
/// beside the crowd, milliseconds. `equal`: the vandal is.
pub fn run(rounds: usize, only: &str, equal: bool) {
    let start = || {
        // Fresh ones for each round: nobody is held to account for the round before.
        let more = "[logging]\ndisable_console = true\n[network.relay]\nenabled = true\n";
        Spec::new("here").more(more).start()
    };
    for (name, _, bare_name) in DEEDS.into_iter().filter(|(name, ..)| name.contains(only)) {
        let mut row = Row::new(name, "ratio", "nobody misbehaves");
        let mut bare_row = bare_name.map(|name| Row::new(name, "ratio", "nobody misbehaves"));
        for round in 0..rounds {
            let here = start();
            let mut honest = Peer::greeted(&here, "honest");
            p99(&mut honest); // warm
            let alone = p99(&mut honest);
            let mut beside_bare = |honest: &mut Peer| {
                let Some(row) = &mut bare_row else { return };
                let program = std::env::current_exe().expect("a path");
                let bare = Other::start(Command::new(program), &["--bare-server"]);
                let port = bare.1.parse().expect("a port");
                row.add(beside(name, port, equal, || p99(honest)) / alone);
            };
            if round % 2 == 0 {
                beside_bare(&mut honest);
            }
            let before = here.memory();
            row.add(beside(name, here.port, equal, || p99(&mut honest)) / alone);
            row.value(here.memory().saturating_sub(before) as f64 / 1024.0);
            if round % 2 == 1 {
                beside_bare(&mut honest);
            }
        }
        println!("{}", row.json());
        bare_row.into_iter().for_each(|row| println!("{}", row.json()));
    }
    if "p99_beside_a_mute_broadcast_receiver".contains(only) {
        mute_receiver(rounds);
    }
    let name = "newcomer_beside_5000_silent_connections";
    if name.contains(only) {
        let mut row = Row::new(name, "ratio", "nobody misbehaves");
        for _ in 0..rounds {
            let here = start();
            let alone = newcomers(here.port);
            let crowded =
                beside("p99_beside_5000_silent_connections", here.port, equal, || newcomers(here.port));
            row.add(crowded / alone);
            row.value(crowded * 1000.0);
        }
        println!("{}", row.json());
    }
}
