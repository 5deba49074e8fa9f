//! What a vandal costs the others of a node: the slowest hundredth of an honest peer's questions while somebody misbehaves as fast as he
//! can, by the same while nobody does. Limits are the default ones.
//!
//! The vandal's own work is on the same processors, and so is the kernel's for his connections. What that alone costs is a row of its own: the
//! same vandal does the same to a bare server beside the node, which only accepts, reads and closes.

use super::Row;
use crate::peer::Peer;
use crate::Spec;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Questions of the honest peer in one measurement.
const QUESTIONS: usize = 4000;
/// Connections of those who come in a crowd.
const CROWD: usize = 5000;
/// Slow senders.
const SLOW: usize = 100;
/// What a long line has in one piece, and all of them.
const PIECE: usize = 1 << 20;
const PIECES: usize = 64;

/// Who misbehaves: returns when told, or when the node has closed the door, and is called again then.
type Deed = fn(u16, &AtomicBool);

/// The rows, what the vandals do, and the rows of the same done to a bare server.
const DEEDS: [(&str, Deed, &str); 6] = [
    ("p99_beside_lines_of_64_mib", long_lines, "bare_lines_of_64_mib"),
    ("p99_beside_100_slow_senders", slow_senders, "bare_100_slow_senders"),
    ("p99_beside_5000_silent_connections", silent, "bare_5000_silent_connections"),
    ("p99_beside_garbage_before_hello", garbage, "bare_garbage_before_hello"),
    ("p99_beside_bytes_that_are_no_text", no_text, "bare_bytes_that_are_no_text"),
    ("p99_beside_a_flood_of_messages", flood, "bare_flood_of_messages"),
];

/// The bare server: says its port, accepts, reads, and closes a connection whose line is none or has no end within a MiB. On a runtime like
/// the node's.
pub fn bare() {
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
                        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => continue,
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

/// A bare server in a process of its own.
struct Bare(std::process::Child, u16);

impl Bare {
    fn start() -> Self {
        let program = std::env::current_exe().expect("a path");
        let started = Command::new(program).arg("--bare-server").stdout(Stdio::piped()).spawn();
        let mut child = started.expect("it starts");
        let mut port = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut port).expect("it says its port");
        Self(child, port.trim().parse().expect("a port"))
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A peer with a name of its own, if the node lets it in now.
fn greeted(port: u16) -> Option<TcpStream> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let id = format!("v{}", NEXT.fetch_add(1, Ordering::Relaxed));
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    let hello = format!(
        "{{\"from\":\"{id}\",\"to\":\"x\",\"msg_type\":{{\"HELLO\":{{\"node_id\":\"{id}\"}}}},\"realm\":{{\"name\":\"Test\",\"version\":\"1.0\"}}}}\n"
    );
    stream.write_all(hello.as_bytes()).ok()?;
    Some(stream)
}

/// Reads until the node closes.
fn wait_closed(mut stream: TcpStream) {
    let _ = stream.set_read_timeout(Some(Duration::from_secs(1)));
    while matches!(stream.read(&mut [0; 4096]), Ok(1..)) {}
}

fn long_lines(port: u16, over: &AtomicBool) {
    let Some(mut stream) = greeted(port) else { return };
    let piece = vec![b'x'; PIECE];
    for _ in 0..PIECES {
        if over.load(Ordering::Relaxed) || stream.write_all(&piece).is_err() {
            return;
        }
    }
}

fn slow_senders(port: u16, over: &AtomicBool) {
    let mut crowd: Vec<_> = (0..SLOW).filter_map(|_| TcpStream::connect(("127.0.0.1", port)).ok()).collect();
    let begun = Instant::now();
    while !over.load(Ordering::Relaxed) && begun.elapsed() < Duration::from_secs(2) {
        crowd.retain_mut(|stream| stream.write_all(b"{").is_ok());
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn silent(port: u16, over: &AtomicBool) {
    let mut crowd = Vec::with_capacity(CROWD);
    while crowd.len() < CROWD && !over.load(Ordering::Relaxed) {
        crowd.extend(TcpStream::connect(("127.0.0.1", port)));
    }
}

fn garbage(port: u16, _: &AtomicBool) {
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else { return };
    let _ = stream.write_all(b"this is no hello\n");
    wait_closed(stream);
}

fn no_text(port: u16, _: &AtomicBool) {
    let Some(mut stream) = greeted(port) else { return };
    let _ = stream.write_all(b"\xff\xfe\xfd\n");
    wait_closed(stream);
}

fn flood(port: u16, over: &AtomicBool) {
    let Some(mut stream) = greeted(port) else { return };
    let line = r#"{"from":"v","to":"*","msg_type":{"TEXT":"again and again and again"},"realm":null}"#;
    let lines = format!("{line}\n").repeat(100);
    while !over.load(Ordering::Relaxed) && stream.write_all(lines.as_bytes()).is_ok() {}
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

/// The honest peer's p99 while this is done to that node.
fn beside(honest: &mut Peer, deed: Deed, port: u16) -> f64 {
    let (over, begun) = (AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                begun.store(true, Ordering::Relaxed);
                deed(port, &over);
            }
        });
        while !begun.load(Ordering::Relaxed) {
            std::thread::yield_now();
        }
        let p99 = p99(honest);
        over.store(true, Ordering::Relaxed);
        p99
    })
}

/// The rows; `value_median` is what the node has grown by in a round, KiB.
pub fn run(rounds: usize) {
    for (name, deed, bare_name) in DEEDS {
        let mut row = Row::new(name, "ratio", "nobody misbehaves");
        let mut bare_row = Row::new(bare_name, "ratio", "nobody misbehaves");
        for _ in 0..rounds {
            // Fresh ones for each round: nobody is held to account for the round before.
            let here = Spec::new("here").more("[logging]\ndisable_console = true\n").start();
            let mut honest = Peer::greeted(&here, "honest");
            p99(&mut honest); // warm
            let alone = p99(&mut honest);
            let bare = Bare::start();
            bare_row.add(beside(&mut honest, deed, bare.1) / alone);
            drop(bare);
            let before = here.memory();
            row.add(beside(&mut honest, deed, here.port) / alone);
            row.value(here.memory().saturating_sub(before) as f64 / 1024.0);
        }
        println!("{}\n{}", row.json(), bare_row.json());
    }
}
