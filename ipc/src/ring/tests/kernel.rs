//! Promises that need a kernel: what is opened, what is left behind, and a real second process.

use super::*;
use rustix::fs::{fcntl_add_seals, fstat, ftruncate, memfd_create, MemfdFlags, SealFlags};
use rustix::io::{fcntl_getfd, FdFlags};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, Stdio};

#[test]
fn only_a_sealed_descriptor_of_the_right_size_is_opened() {
    let (_region, fd) = Region::create().expect("a region");
    assert!(Region::open(&fd).is_ok(), "the control");
    assert!(fcntl_getfd(&fd).expect("flags").contains(FdFlags::CLOEXEC));
    assert!(ftruncate(&fd, 0).is_err() && ftruncate(&fd, 1 << 30).is_err(), "its size is for ever");
    assert!(fcntl_add_seals(&fd, SealFlags::WRITE).is_err(), "and so are its seals");

    let memfd = |size, seals| {
        let fd = memfd_create(c"other", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).expect("memfd");
        ftruncate(&fd, size).expect("its size");
        fcntl_add_seals(&fd, seals).expect("its seals");
        Region::open(&fd).map(drop).expect_err("refused")
    };
    let (size, seals) = (size_of::<Shared>() as u64, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL);
    assert_eq!(memfd(size - 1, seals), RingError::Size { found: size - 1, expected: size });
    let missing = SealFlags::SHRINK.bits();
    let found = (SealFlags::GROW | SealFlags::SEAL).bits();
    assert_eq!(memfd(size, SealFlags::GROW | SealFlags::SEAL), RingError::Seals { found, missing });
    let socket = OwnedFd::from(std::os::unix::net::UnixStream::pair().expect("a pair").0);
    let error = Region::open(&socket).map(drop).expect_err("refused");
    assert!(error.to_string().starts_with("opening the ring: asking for the seals"), "{error}");
}

#[test]
fn the_memory_goes_with_the_last_half() {
    let (region, fd) = Region::create().expect("a region");
    let inode = format!(" {} ", fstat(&fd).expect("the file").st_ino);
    let mapped = || std::fs::read_to_string("/proc/self/maps").expect("own mappings").contains(&inode);
    let (producer, consumer) = region.node_side();
    drop(producer);
    assert!(mapped());
    drop(consumer);
    assert!(!mapped());
}

/// Random sizes, mostly small, now and then more than the ring holds.
fn frame(numbers: &mut Numbers) -> Vec<u8> {
    let size = match numbers.next() % 10_000 {
        0 => CAPACITY as u64 + numbers.next() % 1000,
        1..100 => numbers.next() % 8192,
        _ => numbers.next() % 64,
    };
    let fill = numbers.next();
    let mut frame = Vec::from((size as u32).to_le_bytes());
    frame.extend((0..size).map(|at| (fill >> (at % 57)) as u8));
    frame
}

/// Hangs up if the test fails before the end.
struct Peer(Child);

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

const SECOND: &str = "THENODES_RING_SECOND_PROCESS";

#[test]
fn two_processes_exchange_a_million_frames() {
    if std::env::var_os(SECOND).is_some() {
        return send_everything_back();
    }
    let frames = 1_000_000;
    let (region, fd) = Region::create().expect("a region");
    let (mut down, mut up) = region.node_side();
    let this = std::env::current_exe().expect("this program");
    let name = std::thread::current().name().expect("the test's name").to_owned();
    let mut second = Command::new(this);
    second.args(["--exact", &name]).env(SECOND, "1").stdin(Stdio::from(fd)).stdout(Stdio::null());
    let mut peer = Peer(second.spawn().expect("a second process"));
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut numbers = Numbers(7);
            (0..frames).for_each(|_| write_all(&mut down, &frame(&mut numbers)));
        });
        let (mut numbers, mut found) = (Numbers(7), Vec::new());
        for at in 0..frames {
            let expected = frame(&mut numbers);
            while found.len() < expected.len() {
                read_some(&mut up, &mut found, 1 << 16);
            }
            assert!(found.starts_with(&expected), "frame {at} of {} bytes", expected.len());
            found.drain(..expected.len());
        }
        assert!(found.is_empty());
    });
    up.close();
    assert!(peer.0.wait().expect("its end").success());
}

/// The second process: the region is its stdin.
fn send_everything_back() {
    let fd = std::io::stdin().as_fd().try_clone_to_owned().expect("the region");
    let (mut up, mut down) = Region::open(&fd).expect("the region").runner_side();
    let mut bytes = Vec::new();
    while down.wait(Some(PATIENCE)) {
        bytes.clear();
        down.read(&mut bytes, 10_000).expect("an honest node");
        if down.producer_waits() {
            down.wake_producer();
        }
        write_all(&mut up, &bytes);
    }
    assert!(down.closed(), "the other process is silent");
}
