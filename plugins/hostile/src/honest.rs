//! An honest day: what ordinary Rust and C libraries do without a thought. The allow-list is held against it: a call that none of
//! this needs has no business on the list. And a walk through every system call number, to see that nothing else answers.

use std::collections::HashMap;
use std::io::{self, IoSlice, IoSliceMut, Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::time::{Duration, Instant, SystemTime};

/// Does all of it, and ends as programs end that found something impossible: by `abort`.
pub fn a_day() -> String {
    match all_of_it() {
        Ok(()) => {
            // What a buffered writer holds would be lost.
            let _ = io::stdout().flush();
            std::process::abort()
        }
        Err(error) => format!("an honest day went wrong: {error}"),
    }
}

fn all_of_it() -> io::Result<()> {
    sockets()?;
    threads()?;
    memory();
    files_that_are_there()?;
    signals();
    let mut seen = HashMap::new(); // random seeds
    seen.insert(SystemTime::now(), Instant::now());
    // A panic with its message and a backtrace that has nothing to read.
    let _ = std::panic::catch_unwind(|| std::backtrace::Backtrace::force_capture().to_string());
    runtime()?;
    std::thread::sleep(Duration::from_millis(150)); // long enough to be stopped meanwhile
                                                    // SAFETY: a local that lives for the call; C libraries sleep this way.
    unsafe { libc::nanosleep(&libc::timespec { tv_sec: 0, tv_nsec: 150_000_000 }, std::ptr::null_mut()) };
    println!("a line on stdout");
    Ok(())
}

fn sockets() -> io::Result<()> {
    let (mut a, mut b) = UnixStream::pair()?;
    a.set_nonblocking(true)?;
    a.set_nonblocking(false)?;
    let sent = a.write_vectored(&[IoSlice::new(b"he"), IoSlice::new(b"llo")])?;
    let (mut one, mut two) = ([0; 2], [0; 3]);
    let got = b.read_vectored(&mut [IoSliceMut::new(&mut one), IoSliceMut::new(&mut two)])?;
    if (sent, got) != (5, 5) {
        return Err(io::Error::other("five bytes went into a pair of sockets and did not come out"));
    }
    b.write_all(b"x")?;
    a.read_exact(&mut [0])?;
    let again = a.try_clone()?;
    let mut waiting = libc::pollfd { fd: b.as_raw_fd(), events: libc::POLLOUT, revents: 0 };
    // SAFETY: one local structure and its count.
    unsafe { libc::poll(&mut waiting, 1, 10) };
    // SAFETY: as above; no signal mask.
    unsafe { libc::ppoll(&mut waiting, 1, &libc::timespec { tv_sec: 0, tv_nsec: 1 }, std::ptr::null()) };
    // SAFETY: flags of a descriptor of our own, asked and set as they were.
    unsafe { libc::fcntl(again.as_raw_fd(), libc::F_SETFD, libc::fcntl(again.as_raw_fd(), libc::F_GETFD)) };
    again.shutdown(std::net::Shutdown::Both)
}

fn threads() -> io::Result<()> {
    std::thread::available_parallelism()?;
    let (sender, receiver) = mpsc::channel();
    let thread = std::thread::Builder::new().name("honest".into()).spawn(move || {
        std::thread::yield_now();
        let _ = sender.send(std::thread::current().name().map(str::len));
        std::thread::park_timeout(Duration::from_millis(5));
    })?;
    let _ = receiver.recv_timeout(Duration::from_secs(5));
    thread.thread().unpark();
    thread.join().map_err(|_| io::Error::other("a thread panicked"))?;
    // SAFETY: asks for the stack of this thread, as garbage collectors do.
    unsafe {
        let mut about = std::mem::zeroed();
        if libc::pthread_getattr_np(libc::pthread_self(), &mut about) == 0 {
            libc::pthread_attr_destroy(&mut about);
        }
    }
    Ok(())
}

fn memory() {
    let mut large: Vec<u8> = Vec::with_capacity(4 << 20);
    large.resize(4 << 20, 1);
    large.reserve(64 << 20); // moved by the kernel, not copied
    large.truncate(1);
    large.shrink_to_fit();
    for size in [1usize, 100, 10_000, 200_000] {
        let blocks: Vec<Box<[u8]>> = (0..64).map(|_| vec![0u8; size].into_boxed_slice()).collect();
        drop(std::hint::black_box(blocks));
    }
    // SAFETY: asks malloc to give back what it does not need.
    unsafe { libc::malloc_trim(0) };
}

/// Descriptors that a plugin has; by path there is nothing.
fn files_that_are_there() -> io::Result<()> {
    let here = std::fs::File::open("/etc/localtime"); // every program that asks for the time of day tries it
    assert!(here.is_err());
    let _ = std::env::current_dir(); // "/" in a runner
    let _ = io::stdin().lock().read(&mut [0; 16]); // nothing, at once
                                                   // SAFETY: a second owner of standard input would close it; this one is forgotten.
    let mut input =
        std::mem::ManuallyDrop::new(unsafe { <std::fs::File as std::os::fd::FromRawFd>::from_raw_fd(0) });
    let _ = input.seek(SeekFrom::Start(0)); // /dev/null can be sought
    let _ = input.metadata();
    // SAFETY: the terminal's size; every library that draws asks, and is told that there is none.
    unsafe { libc::isatty(1) };
    // SAFETY: a local that lives for the call.
    unsafe {
        let mut about: libc::stat = std::mem::zeroed();
        libc::fstat(1, &mut about);
        libc::syscall(libc::SYS_fstat, 1, &mut about);
    }
    Ok(())
}

extern "C" fn on_signal(_: libc::c_int) {}

/// A C library that wakes its own threads by a signal.
fn signals() {
    // SAFETY: a handler that does nothing, a signal to this very thread, and the old action again. Coarse clocks go by the vDSO; the
    // processor time of a thread does not.
    unsafe {
        let handler: extern "C" fn(libc::c_int) = on_signal;
        libc::signal(libc::SIGUSR1, handler as libc::sighandler_t);
        libc::raise(libc::SIGUSR1);
        libc::signal(libc::SIGUSR1, libc::SIG_DFL);
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time);
    }
}

/// A runtime of the library's own, as every asynchronous library has one.
fn runtime() -> io::Result<()> {
    // In a thread of its own: a handler runs inside the SDK's runtime, and one may not wait inside another.
    let own = std::thread::spawn(own_runtime);
    own.join().map_err(|_| io::Error::other("the runtime's thread panicked"))?
}

fn own_runtime() -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let waiting = tokio::spawn(async { tokio::time::sleep(Duration::from_millis(2)).await });
        let _ = waiting.await;
        // Sockets of a runtime: an epoll, and an eventfd to wake it.
        let (one, other) = tokio::net::UnixStream::pair()?;
        one.writable().await?;
        one.try_write(b"x")?;
        other.readable().await
    })
}

/// Every number from 0 to 1023, and as many of x32, with arguments that are no addresses. Says which gave another answer than
/// "not permitted".
pub fn every_number() -> String {
    // `uretprobe` and `uprobe` (335, 336 on x86-64): the kernel lets them pass every filter, and ends with SIGILL whoever calls them
    // without a probe of the kernel's own having sent him there.
    let ending = [libc::SYS_exit, libc::SYS_exit_group, libc::SYS_rt_sigreturn, 335, 336];
    let mut answered = Vec::new();
    for number in (0..1024).chain(0x4000_0000..0x4000_0240).filter(|number| !ending.contains(number)) {
        // SAFETY: none is claimed; -1 is no address. Run only where refused calls fail instead of ending the process.
        let result = unsafe { libc::syscall(number, -1i64, -1i64, -1i64, -1i64, -1i64, -1i64) };
        let error = if result == -1 { io::Error::last_os_error().raw_os_error().unwrap_or(0) } else { 0 };
        if error != libc::EPERM {
            answered.push(format!("{number}:{error}"));
        }
    }
    format!("denied: every number but these: {}", answered.join(" "))
}

/// What a plugin does with files that it was given: `read PATH`, `list PATH`, `write PATH`, `make DIR`, `fill PATH`. Says what came of
/// it, in the words of the error if there was one.
pub fn files(arg: &str) -> String {
    let (what, path) = arg.split_once(' ').unwrap_or((arg, ""));
    let done = match what {
        "read" => std::fs::read_to_string(path),
        "list" => std::fs::read_dir(path).map(|dir| {
            let mut names: Vec<String> =
                dir.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
            names.sort();
            names.join(" ")
        }),
        "write" => std::fs::write(path, "written by a plugin").map(|()| "written".into()),
        "make" => make(std::path::Path::new(path)).map(|()| "made, renamed, removed".into()),
        "fill" => return fill(path),
        other => return format!("no such use of files: {other}"),
    };
    done.unwrap_or_else(|error| format!("denied: {what}: {error}"))
}

/// Everything that changes a directory.
fn make(dir: &std::path::Path) -> io::Result<()> {
    let (one, two) = (dir.join("one"), dir.join("two"));
    std::fs::create_dir(&one)?;
    std::fs::write(one.join("file"), "x")?;
    std::fs::rename(one.join("file"), one.join("renamed"))?;
    std::fs::rename(&one, &two)?;
    std::fs::remove_file(two.join("renamed"))?;
    std::fs::remove_dir(two)
}

/// Writes until it may not any more, and says how much that was.
fn fill(path: &str) -> String {
    let mut file = match std::fs::File::create(path) {
        Ok(file) => file,
        Err(error) => return format!("denied: fill: {error}"),
    };
    let block = vec![1; 64 * 1024];
    let mut written = 0;
    for _ in 0..16_384 {
        match file.write(&block) {
            Ok(count) => written += count,
            Err(error) => return format!("filled {} KiB: {error}", written / 1024),
        }
    }
    format!("GOT THROUGH: {} KiB", written / 1024)
}
