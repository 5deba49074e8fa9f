//! The attacks. Each says in one line what came of it: `denied: ...` or `GOT THROUGH: ...`; those that end the process say
//! nothing. Paths, ports and pids that a control needs come after a space: `open /some/canary`.

use std::io::{self, Write};
use std::ptr::null_mut;
use std::time::Duration;

/// Names of the attacks on walls: each must succeed in `hostile-control` and fail in a runner.
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

fn told<T>(outcome: io::Result<T>, what: &str) -> String {
    match outcome {
        Ok(_) => format!("GOT THROUGH: {what}"),
        Err(error) => format!("denied: {what}: {error}"),
    }
}

fn call(number: libc::c_long, args: [libc::c_long; 6], what: &str) -> String {
    // SAFETY: none is claimed; these are attacks, and the pointers among them are null or our own.
    let result = unsafe { libc::syscall(number, args[0], args[1], args[2], args[3], args[4], args[5]) };
    told(if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }, what)
}

/// Does it.
#[allow(clippy::too_many_lines)] // a list
pub fn commit(sin: &str) -> String {
    let (sin, arg) = sin.split_once(' ').unwrap_or((sin, ""));
    let arg_or = |default: &'static str| if arg.is_empty() { default } else { arg };
    match sin {
        "open" => told(std::fs::read(arg_or("/etc/passwd")), "reading a host file"),
        "create" => told(std::fs::write(arg_or("/tmp/hostile-canary"), "x"), "writing a file"),
        "list-root" => told(std::fs::read_dir("/").map(|dir| dir.count()), "listing the root"),
        "proc" => told(std::fs::read("/proc/self/maps"), "reading /proc/self/maps"),
        "environment" => match std::env::vars_os().count() {
            0 => "denied: the environment is empty".into(),
            count => format!("GOT THROUGH: {count} environment variables"),
        },
        "socket" => call(libc::SYS_socket, [2, 1, 0, 0, 0, 0], "a TCP socket"),
        "connect" => told(std::net::TcpStream::connect(arg_or("127.0.0.1:9")), "connecting"),
        "fast-open" => fast_open(arg),
        // SAFETY: the child does nothing but end.
        "fork" => match unsafe { libc::fork() } {
            0 => std::process::exit(0),
            -1 => told::<()>(Err(io::Error::last_os_error()), "forking"),
            child => {
                // SAFETY: our own child.
                unsafe { libc::waitpid(child, null_mut(), 0) };
                "GOT THROUGH: forking".into()
            }
        },
        "exec" => told(std::process::Command::new("/bin/true").status(), "running a program"),
        // Signal 0 only asks, which is as good as a proof and spares the control's machine.
        "kill-all" => call(libc::SYS_kill, [-1, 0, 0, 0, 0, 0], "signalling everybody"),
        // SAFETY: a number.
        "kill-parent" => {
            call(libc::SYS_kill, [unsafe { libc::getppid() }.into(), 0, 0, 0, 0, 0], "signalling the parent")
        }
        "ptrace" => call(libc::SYS_ptrace, [libc::PTRACE_TRACEME.into(), 0, 0, 0, 0, 0], "ptrace"),
        "mount" => mount(),
        "unshare" => call(libc::SYS_unshare, [libc::CLONE_NEWUSER.into(), 0, 0, 0, 0, 0], "a user namespace"),
        "rwx" => map(libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC, -1, "writable executable memory"),
        "mprotect-exec" => mprotect_exec(),
        "shared-memory" => map_kind(libc::MAP_SHARED, "memory that no limit counts (shared)"),
        "grows-down" => {
            map_kind(libc::MAP_PRIVATE | libc::MAP_GROWSDOWN, "memory that no limit counts (growing down)")
        }
        // SAFETY: numbers; a real-time signal ends the process.
        "rt-signal" => call(
            libc::SYS_tgkill,
            unsafe { [libc::getpid().into(), libc::gettid().into(), 40, 0, 0, 0] },
            "a signal",
        ),
        "memfd-exec" => memfd_exec(),
        "io-uring" => {
            let parameters = [0u8; 256];
            call(libc::SYS_io_uring_setup, [4, parameters.as_ptr() as libc::c_long, 0, 0, 0, 0], "io_uring")
        }
        "chmod" => chmod(arg_or("/tmp")),
        "descriptors" => {
            // SAFETY: F_GETFD only asks.
            let open =
                (4..1024).filter(|fd| unsafe { libc::fcntl(*fd, libc::F_GETFD) } >= 0).collect::<Vec<_>>();
            // Beyond 4 a runner holds only what its own runtime opened; a directory or file would be inherited.
            let inherited = open.iter().filter(|fd| is_file(**fd)).count();
            match inherited {
                0 => "denied: no inherited descriptor".into(),
                count => format!("GOT THROUGH: {count} inherited files"),
            }
        }
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
        "call-flood" => {
            let frame = framed(b"\x83\xa4kind\xa4call\xa2id\x07\xa6method\xaapeers.list");
            for _ in 0..20_000 {
                raw_frame(&frame);
            }
            "flooded".into()
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
                libc::pthread_sigmask(libc::SIG_BLOCK, &all, null_mut());
                libc::signal(libc::SIGXCPU, libc::SIG_IGN);
                libc::signal(libc::SIGTERM, libc::SIG_IGN);
            }
            loop {
                std::hint::spin_loop();
            }
        }
        other => format!("no such sin: {other}"),
    }
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

fn is_file(fd: i32) -> bool {
    // SAFETY: an all-zero stat is a valid value, and fstat fills it.
    unsafe {
        let mut stat: libc::stat = std::mem::zeroed();
        libc::fstat(fd, &mut stat) == 0
            && matches!(stat.st_mode & libc::S_IFMT, libc::S_IFREG | libc::S_IFDIR)
    }
}

fn fast_open(arg: &str) -> String {
    let port: u16 = arg.parse().unwrap_or(9);
    // SAFETY: an attack; the address is a local that lives for the call.
    unsafe {
        let fd = libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0);
        if fd < 0 {
            return told::<()>(Err(io::Error::last_os_error()), "a TCP socket");
        }
        let mut address: libc::sockaddr_in = std::mem::zeroed();
        address.sin_family = libc::AF_INET as u16;
        address.sin_port = port.to_be();
        address.sin_addr.s_addr = u32::from_ne_bytes([127, 0, 0, 1]);
        let sent = libc::sendto(
            fd,
            b"leak".as_ptr().cast(),
            4,
            libc::MSG_FASTOPEN,
            std::ptr::from_ref(&address).cast(),
            std::mem::size_of_val(&address) as u32,
        );
        told(if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }, "TCP fast open")
    }
}

fn mount() -> String {
    // In its own namespaces, as an attacker without privileges would; the control is the same call.
    let entered = call(
        libc::SYS_unshare,
        [(libc::CLONE_NEWUSER | libc::CLONE_NEWNS).into(), 0, 0, 0, 0, 0],
        "namespaces",
    );
    if entered.starts_with("denied") {
        return entered;
    }
    // SAFETY: an attack; strings are static.
    let done =
        unsafe { libc::mount(c"none".as_ptr(), c"/tmp".as_ptr(), c"tmpfs".as_ptr(), 0, std::ptr::null()) };
    told(if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }, "mounting")
}

fn map(protection: i32, fd: i32, what: &str) -> String {
    let flags = libc::MAP_PRIVATE | if fd < 0 { libc::MAP_ANONYMOUS } else { 0 };
    // SAFETY: a new page at an address of the kernel's choice.
    let page = unsafe { libc::mmap(null_mut(), 4096, protection, flags, fd, 0) };
    told(if page == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }, what)
}

fn map_kind(kind: i32, what: &str) -> String {
    // SAFETY: a new page at an address of the kernel's choice.
    let page = unsafe {
        libc::mmap(null_mut(), 4096, libc::PROT_READ | libc::PROT_WRITE, kind | libc::MAP_ANONYMOUS, -1, 0)
    };
    told(if page == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }, what)
}

fn mprotect_exec() -> String {
    // SAFETY: a new page that nobody else knows.
    let done = unsafe {
        let page = libc::mmap(
            null_mut(),
            4096,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        );
        libc::mprotect(page, 4096, libc::PROT_READ | libc::PROT_EXEC)
    };
    told(if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }, "making written memory executable")
}

fn memfd_exec() -> String {
    // SAFETY: the name is static.
    let fd = unsafe { libc::memfd_create(c"x".as_ptr(), 0) };
    if fd < 0 {
        return told::<()>(Err(io::Error::last_os_error()), "memfd");
    }
    // SAFETY: our own descriptor.
    unsafe { libc::ftruncate(fd, 4096) };
    map(libc::PROT_READ | libc::PROT_EXEC, fd, "executable memory from a memfd")
}

fn chmod(path: &str) -> String {
    let Ok(path) = std::ffi::CString::new(path) else { return "a path with a zero byte".into() };
    // SAFETY: the string lives for the call. 0o1777 is what /tmp has anyway.
    let done = unsafe { libc::chmod(path.as_ptr(), 0o1777) };
    told(if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }, "chmod")
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
