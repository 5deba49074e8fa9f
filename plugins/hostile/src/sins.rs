//! Crashes, hangs, floods and broken frames, and the door to all [`probes`]: one name, one deed. Each says in one line what came
//! of it; those that end the process say nothing. An argument comes after a space: `open /some/canary`.

use crate::{honest, probes};
use std::io::{self, Write};
use std::time::Duration;

/// The probes that are tried from every phase of a plugin's life; all of them are in [`probes::PROBES`].
pub const ATTACKS: &[&str] = &[
    "open",
    "create",
    "list-root",
    "proc",
    "environment",
    "socket",
    "connect",
    "fast-open",
    "fork",
    "exec",
    "kill-all",
    "kill-parent",
    "ptrace",
    "mount",
    "unshare",
    "rwx",
    "mprotect-exec",
    "shared-memory",
    "grows-down",
    "memfd-exec",
    "io-uring",
    "chmod",
    "descriptors",
];

/// Does it.
#[allow(clippy::too_many_lines)] // a list
pub fn commit(sin: &str) -> String {
    let (sin, arg) = sin.split_once(' ').unwrap_or((sin, ""));
    if let Some(probe) = probes::find(sin) {
        return (probe.run)(arg).to_string();
    }
    match sin {
        "syscall" => system_call(arg),
        "honest" => honest::a_day(),
        "files" => honest::files(arg),
        "every-number" => honest::every_number(),
        // SAFETY: numbers; a real-time signal ends the process.
        "rt-signal" => unsafe {
            format!("sent: {}", libc::syscall(libc::SYS_tgkill, libc::getpid(), libc::gettid(), 40))
        },
        "segv" => {
            // SAFETY: none: this is the crash.
            unsafe { std::ptr::null_mut::<u8>().wrapping_add(1).write_volatile(1) };
            "survived a write to address 1".into()
        }
        "abort" => std::process::abort(),
        "exit0" => std::process::exit(0),
        // SAFETY: ends the process.
        "_exit0" => unsafe { libc::_exit(0) },
        "panic" => panic!("a panic on purpose"),
        "stack" => format!("{}", dig(1)),
        "spin" => loop {
            std::hint::spin_loop();
        },
        // As many threads as the number says, this one among them.
        "spin-threads" => {
            for _ in 1..arg.parse().unwrap_or(16) {
                std::thread::spawn(|| loop {
                    std::hint::spin_loop();
                });
            }
            loop {
                std::hint::spin_loop();
            }
        }
        "hang" => loop {
            std::thread::sleep(Duration::from_secs(3600));
        },
        "slow" => {
            std::thread::sleep(Duration::from_millis(1200));
            "slept".into()
        }
        "memory" => memory(),
        "threads" => threads(),
        "log-flood" => {
            for n in 0..200_000 {
                println!("flood {n}");
            }
            "flooded".into()
        }
        "log-nasty" => {
            println!("red \u{1b}[31m and a bell \u{7} and a very long line: {}", "x".repeat(100_000));
            "said".into()
        }
        // SAFETY: a number; the node can no longer write to us, and we go on.
        "link-deaf" => format!("shut: {}", unsafe { libc::shutdown(3, libc::SHUT_RD) }),
        "forge" => {
            log::error!(target: "node", "died: SIGKILL: by root");
            "forged".into()
        }
        "say-record" => {
            println!("denied: open /etc/passwd no\u{200b}de");
            "said".into()
        }
        "newlines" => {
            let block = vec![b'\n'; 64 * 1024];
            for _ in 0..200 {
                // SAFETY: the pointer and length are a vector's.
                unsafe { libc::write(1, block.as_ptr().cast(), block.len()) };
            }
            "written".into()
        }
        "frame-garbage" => raw_frame(b"\xff\xff\xff\xffgarbage"),
        "frame-oversized" => raw_frame(&(2u32 << 20).to_be_bytes()),
        "frame-empty" => raw_frame(&[0, 0, 0, 0]),
        "frame-truncated" => {
            raw_frame(&[0, 0, 1, 0, 0, 9, 1, 2, 3]);
            std::process::exit(0)
        }
        "frame-unknown-reply" => {
            raw_frame(&framed(b"\x82\xa4kind\xa5reply\xa2id\xcf\xff\xff\xff\xff\xff\xff\xff\xff"))
        }
        "frame-again-registered" => raw_frame(&framed(b"\x81\xa4kind\xaaregistered")),
        // Valid calls of nearly a frame each, whose answers nobody reads. Of generation 1, as the first process of a test is.
        "large-calls" => {
            let text = vec![b'x'; 900_000];
            for n in 1..=200u64 {
                let mut header = b"\x83\xa4kind\xa4call\xa2id\xcf".to_vec();
                header.extend(((1u64 << 40) + 0x10_0000 + n).to_be_bytes());
                header.extend(b"\xa6method\xafpeers.broadcast");
                let mut body = b"\x81\xa4text\xdb".to_vec();
                body.extend((text.len() as u32).to_be_bytes());
                body.extend(&text);
                let mut frame = ((2 + header.len() + body.len()) as u32).to_be_bytes().to_vec();
                frame.extend((header.len() as u16).to_be_bytes());
                frame.extend(&header);
                frame.extend(&body);
                let mut rest = &frame[..];
                while !rest.is_empty() {
                    // SAFETY: the pointer and length are a slice's.
                    let written = unsafe { libc::write(3, rest.as_ptr().cast(), rest.len()) };
                    let Ok(written) = usize::try_from(written) else { return "the link is gone".into() };
                    rest = &rest[written..];
                }
            }
            "flooded".into()
        }
        "call-flood" => {
            let frame = framed(b"\x83\xa4kind\xa4call\xa2id\x07\xa6method\xaapeers.list");
            for _ in 0..20_000 {
                raw_frame(&frame);
            }
            "flooded".into()
        }
        "notice-flood" => {
            let begun = std::time::Instant::now();
            for n in 0..arg.parse().unwrap_or(20_000) {
                log::info!("flood {n}");
            }
            format!("flooded in {} ms", begun.elapsed().as_millis())
        }
        "fds" => take_descriptors(),
        "hold" => {
            let mebibytes: usize = arg.parse().unwrap_or(64);
            std::mem::forget(vec![1u8; mebibytes << 20]);
            format!("holding {mebibytes} MiB")
        }
        "log-forever" => loop {
            println!("more and more");
        },
        "deaf-spin" => {
            // SAFETY: a full set of our own; blocking every signal is what this is about.
            unsafe {
                let mut all = std::mem::zeroed();
                libc::sigfillset(&mut all);
                libc::pthread_sigmask(libc::SIG_BLOCK, &all, std::ptr::null_mut());
                libc::signal(libc::SIGXCPU, libc::SIG_IGN);
                libc::signal(libc::SIGTERM, libc::SIG_IGN);
            }
            loop {
                std::hint::spin_loop();
            }
        }
        "spin-everywhere" => {
            stop_all_others(whirl);
            whirl(0);
            String::new()
        }
        "await-term" => await_term(true),
        "hear-term" => await_term(false),
        other => format!("no such sin: {other}"),
    }
}

extern "C" fn whirl(_: libc::c_int) {
    loop {
        std::hint::spin_loop();
    }
}

/// Has every other thread do this, and never anything else.
fn stop_all_others(instead: extern "C" fn(libc::c_int)) {
    // SAFETY: a handler of our own, and numbers: in a namespace of its own a plugin's threads have the next ones.
    unsafe {
        libc::signal(libc::SIGUSR1, instead as usize);
        let (process, own) = (libc::getpid(), libc::syscall(libc::SYS_gettid));
        for thread in (2..64).filter(|thread| *thread != own) {
            libc::syscall(libc::SYS_tgkill, process, thread, libc::SIGUSR1);
        }
    }
}

/// Says goodbye when told to end. `deaf`: stops every other thread, so that nobody sees the end of the link.
fn await_term(deaf: bool) -> String {
    extern "C" fn goodbye(_: libc::c_int) {
        let words = b"TERM came\n";
        // SAFETY: bytes of our own; both calls may be made in a handler.
        unsafe {
            libc::write(1, words.as_ptr().cast(), words.len());
            libc::_exit(0);
        }
    }
    extern "C" fn stay(_: libc::c_int) {
        loop {
            std::thread::sleep(std::time::Duration::from_secs(1));
        }
    }
    // SAFETY: a handler of our own.
    unsafe { libc::signal(libc::SIGTERM, goodbye as extern "C" fn(libc::c_int) as usize) };
    if deaf {
        stop_all_others(stay);
    }
    // SAFETY: bytes of our own.
    unsafe {
        let words = b"waiting for TERM\n"; // not by `println`: whoever has its lock may be stopped
        libc::write(1, words.as_ptr().cast(), words.len());
    }
    stay(0);
    String::new()
}

/// Copies a descriptor until there are no more, and keeps them.
fn take_descriptors() -> String {
    // SAFETY: numbers; the copies are nobody else's.
    let taken = (0..100_000).take_while(|_| unsafe { libc::fcntl(0, libc::F_DUPFD_CLOEXEC, 0) } >= 0).count();
    if taken < 100_000 {
        format!("denied: more than {taken} descriptors")
    } else {
        "GOT THROUGH: 100000 descriptors".into()
    }
}

/// Header bytes as a frame without a body.
fn framed(header: &[u8]) -> Vec<u8> {
    let mut frame = (2 + header.len() as u32).to_be_bytes().to_vec();
    frame.extend((header.len() as u16).to_be_bytes());
    frame.extend(header);
    frame
}

/// Writes to the link behind the SDK's back.
fn raw_frame(bytes: &[u8]) -> String {
    // SAFETY: the pointer and length are a slice's.
    let written = unsafe { libc::write(3, bytes.as_ptr().cast(), bytes.len()) };
    format!("wrote {written} bytes")
}

/// One system call by number, every argument -1: for walking through all of them, each from a process that may be lost.
fn system_call(number: &str) -> String {
    let Ok(number) = number.parse::<libc::c_long>() else { return "no such number".into() };
    // SAFETY: none is claimed; -1 is no address, and the process is made to be lost.
    let result = unsafe { libc::syscall(number, -1i64, -1i64, -1i64, -1i64, -1i64, -1i64) };
    match result {
        -1 => format!("denied: call {number}: {}", io::Error::last_os_error()),
        result => format!("GOT THROUGH: call {number} answered {result}"),
    }
}

#[allow(unconditional_recursion)]
fn dig(depth: u64) -> u64 {
    let here = std::hint::black_box([depth; 512]);
    dig(depth + 1) + here[3]
}

fn memory() -> String {
    let mut kept: Vec<Vec<u8>> = Vec::new();
    for n in 0..4096 {
        let mut block = Vec::new();
        if block.try_reserve_exact(1 << 20).is_err() {
            return format!("denied: memory beyond {n} MiB");
        }
        block.resize(1 << 20, 1);
        kept.push(block);
    }
    format!("GOT THROUGH: {} MiB of memory", kept.len())
}

fn threads() -> String {
    for n in 0..1000 {
        let thread = std::thread::Builder::new().stack_size(64 * 1024).spawn(|| loop {
            std::thread::sleep(Duration::from_secs(3600));
        });
        if thread.is_err() {
            return format!("denied: more than {n} threads");
        }
    }
    let _ = io::stdout().flush();
    "GOT THROUGH: 1000 threads".into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_attack_is_a_probe() {
        for name in ATTACKS {
            assert!(probes::find(name).is_some_and(|probe| probe.control && !probe.root_only), "{name}");
        }
    }
}
