//! What the machine itself needs for the rows of `call`: the same bytes between two processes by the same means, and nothing else. No
//! header, no call that is looked up, no plugin. Whoever is slower than this spends it on what makes a plugin host; nobody can be faster.

use super::call::Cores;
use super::pin;
use std::hint::black_box;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use thenodes_ipc::ring::{Consumer, Producer, Region};

/// The node's side of a ring whose other side only carries bytes.
pub struct RawRing {
    down: Producer,
    up: Consumer,
    child: Child,
    out: Vec<u8>,
    back: Vec<u8>,
    answers: usize,
    cores: Cores,
}

impl RawRing {
    /// The other side answers so many bytes with so many; with none it sleeps until there are some.
    pub fn start(there: usize, back: usize, cores: Cores) -> Self {
        let (region, fd) = Region::create().expect("shared memory");
        let word = if cores == Cores::Two { "two" } else { "one" };
        let child = Command::new(std::env::current_exe().expect("a path"))
            .args(["--raw-ring", &there.to_string(), &back.to_string(), word])
            .stdin(Stdio::from(fd))
            .spawn()
            .expect("the peer starts");
        let (down, up) = region.node_side();
        Self { down, up, child, out: vec![7; there], back: Vec::new(), answers: back, cores }
    }

    /// Bytes there and back.
    pub fn ping(&mut self) {
        self.send();
        self.back.clear();
        while self.back.len() < self.answers {
            if self.up.read(&mut self.back, self.answers).expect("an honest peer") == 0 {
                let_go(self.cores);
            }
        }
        black_box(&self.back);
    }

    /// Bytes there; wakes whoever sleeps.
    pub fn send(&mut self) {
        let mut written = 0;
        while written < self.out.len() {
            written += self.down.write(&[&self.out[written..]]).expect("an honest peer");
        }
        if self.down.consumer_sleeps() {
            self.down.wake_consumer();
        }
    }
}

impl Drop for RawRing {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Lets the other side work.
fn let_go(cores: Cores) {
    match cores {
        Cores::One => std::thread::yield_now(),
        Cores::Two => std::hint::spin_loop(),
    }
}

/// The other side of a [`RawRing`]; killed by it.
pub fn raw_ring(there: usize, back: usize, two: bool) {
    let cores = if two { Cores::Two } else { Cores::One };
    pin(usize::from(two)).expect("the core is ours");
    let fd = std::io::stdin().as_fd().try_clone_to_owned().expect("a descriptor");
    let (mut up, mut down) = Region::open(&fd).expect("the ring").runner_side();
    let (mut received, answer) = (Vec::new(), vec![9; back]);
    let patience = if two { 100_000 } else { 10 };
    loop {
        received.clear();
        let mut vain = 0;
        while received.len() < there {
            let missing = there - received.len();
            if down.read(&mut received, missing).expect("an honest node") > 0 {
                vain = 0;
                continue;
            }
            vain += 1;
            // Nobody measures it now: whoever is measured has the processor for himself.
            if back == 0 || vain > patience {
                down.wait(None);
            } else {
                let_go(cores);
            }
        }
        let mut written = 0;
        while written < answer.len() {
            written += up.write(&[&answer[written..]]).expect("an honest node");
        }
    }
}

/// A round trip over a socket for somebody who may not sleep in a read, because others are waiting on the same thread: the
/// processor is let go once, and then the answer is there.
pub fn ping_without_sleep(socket: &mut UnixStream, out: &[u8], back: &mut [u8]) {
    socket.write_all(out).expect("sent");
    let mut got = 0;
    while got < back.len() {
        std::thread::yield_now();
        match socket.read(&mut back[got..]) {
            Ok(count) => got += count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => panic!("the peer: {error}"),
        }
    }
}
