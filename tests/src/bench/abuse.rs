//! What a vandal costs the others of a node: the slowest hundredth of an honest peer's questions while somebody misbehaves as fast as he
//! can, by the same while nobody does. Limits are the default ones.
//!
//! A vandal is elsewhere, but here he has to be on the same processors, so he runs in a process that gets what the others leave
//! (`SCHED_IDLE`). What his being there costs all the same is a row of its own: he does the same to a bare server beside the node, which only
//! accepts, reads and closes.

use super::Row;
use crate::peer::Peer;
use crate::Spec;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Questions of the honest peer in one measurement.
const QUESTIONS: usize = 4000;
/// Connections of those who come in a crowd.
const CROWD: usize = 5000;
/// Slow senders.
const SLOW: usize = 100;
/// What a long line has in one piece, and all of them. Small: the kernel does a system call to its end, however long, before another may go on.
const PIECE: usize = 4 * 1024;
const PIECES: usize = 16 * 1024;

/// Who misbehaves: returns when the node has closed the door, and is called again then.
type Deed = fn(u16);

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

/// The vandal: does this to that port until he is killed.
pub fn vandal(name: &str, port: u16) {
    let (_, deed, _) = DEEDS.into_iter().find(|(of, ..)| *of == name).expect("a deed");
    println!("begun");
    loop {
        deed(port);
    }
}

/// This program in a process of its own, with other arguments, after the first line that it says. Killed when dropped.
struct Other(Child, String);

impl Other {
    fn start(mut command: Command, args: &[&str]) -> Self {
        let mut child = command.args(args).stdout(Stdio::piped()).spawn().expect("it starts");
        let mut said = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut said).expect("it says a line");
        Self(child, said.trim().to_owned())
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

fn long_lines(port: u16) {
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
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn silent(port: u16) {
    let mut crowd = Vec::with_capacity(CROWD);
    while crowd.len() < CROWD {
        crowd.extend(TcpStream::connect(("127.0.0.1", port)));
    }
}

fn garbage(port: u16) {
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else { return };
    let _ = stream.write_all(b"this is no hello\n");
    wait_closed(stream);
}

fn no_text(port: u16) {
    let Some(mut stream) = greeted(port) else { return };
    let _ = stream.write_all(b"\xff\xfe\xfd\n");
    wait_closed(stream);
}

fn flood(port: u16) {
    let Some(mut stream) = greeted(port) else { return };
    let line = r#"{"from":"v","to":"*","msg_type":{"TEXT":"again and again and again"},"realm":null}"#;
    let lines = format!("{line}\n").repeat(100);
    while stream.write_all(lines.as_bytes()).is_ok() {}
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

/// The honest peer's p99 while this is done to that port.
fn beside(honest: &mut Peer, name: &str, port: u16) -> f64 {
    let program = std::env::current_exe().expect("a path");
    let mut aside = Command::new("chrt");
    aside.args(["-i", "0"]).arg(program);
    let vandal = Other::start(aside, &["--vandal", name, &port.to_string()]);
    assert_eq!(vandal.1, "begun", "`chrt`, of util-linux, starts the vandal");
    p99(honest)
}

/// The rows whose names have `only` in them; `value_median` is what the node has grown by in a round, KiB.
pub fn run(rounds: usize, only: &str) {
    for (name, _, bare_name) in DEEDS.into_iter().filter(|(name, ..)| name.contains(only)) {
        let mut row = Row::new(name, "ratio", "nobody misbehaves");
        let mut bare_row = Row::new(bare_name, "ratio", "nobody misbehaves");
        for _ in 0..rounds {
            // Fresh ones for each round: nobody is held to account for the round before.
            let here = Spec::new("here").more("[logging]\ndisable_console = true\n").start();
            let mut honest = Peer::greeted(&here, "honest");
            p99(&mut honest); // warm
            let alone = p99(&mut honest);
            let bare =
                Other::start(Command::new(std::env::current_exe().expect("a path")), &["--bare-server"]);
            bare_row.add(beside(&mut honest, name, bare.1.parse().expect("a port")) / alone);
            drop(bare);
            let before = here.memory();
            row.add(beside(&mut honest, name, here.port) / alone);
            row.value(here.memory().saturating_sub(before) as f64 / 1024.0);
        }
        println!("{}\n{}", row.json(), bare_row.json());
    }
}
