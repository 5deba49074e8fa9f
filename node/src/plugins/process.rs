//! Starts runner processes. Never by `fork` from the node (a large node pays for its page tables): the standard library's
//! spawn without closures uses vfork-like `posix_spawn`. The runner gets a socket as standard input, two pipes, an empty
//! environment, and nothing else; the library travels as sealed descriptors with the first frame.

use super::cgroup::Leaf;
use super::image::{Image, Sealed};
use crate::config::Transport;
use interprocess::os::unix::uds_local_socket::tokio::Stream;
use nix::sys::socket::{sendmsg, ControlMessage, MsgFlags, UnixAddr};
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::LazyLock;
use std::time::Duration;
use thenodes_ipc::launch::{Needed, NodeHello, PathGrant, ProcessLimits, SeccompMode, Versions, Without};
use thenodes_ipc::ring::Region;
use thenodes_ipc::{limits, pack, Frame, Generation, PluginName};
use tokio::net::unix::pipe::Receiver;
use tokio::process::{Child, ChildStderr, ChildStdout, Command};
use tokio::sync::Semaphore;

/// A runner that was just started; it has `hello` and nothing else.
pub struct Started {
    /// The process; killed when dropped.
    pub child: Child,
    /// The node's end of the link.
    pub stream: Stream,
    /// Shared memory for the link, if frames go that way.
    pub ring: Option<Region>,
    /// Log pipes.
    pub stdout: ChildStdout,
    /// Log pipes.
    pub stderr: ChildStderr,
    /// Where the warden tells what was refused; the plugin's process does not have its other end.
    pub report: Receiver,
}

/// Where the runner program is: beside the node's own, or where packages put it.
pub fn find_runner(configured: Option<&Path>) -> Result<PathBuf, String> {
    if let Some(path) = configured {
        // Made absolute: the runner is started in `/`.
        return if let (true, Ok(path)) = (path.is_file(), std::path::absolute(path)) {
            Ok(path)
        } else {
            Err(format!("[plugins] runner = {}: no such file", path.display()))
        };
    }
    let name = "thenodes-runner";
    let beside = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join(name)));
    // Test and benchmark programs live one directory below the binaries.
    let above = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.parent()?.join(name)));
    let candidates = [
        beside,
        above,
        Some(Path::new("/usr/libexec/thenodes").join(name)),
        Some(Path::new("/usr/bin").join(name)),
    ];
    let found = candidates.iter().flatten().find(|path| path.is_file()).cloned();
    found.ok_or_else(|| {
        let places: Vec<_> = candidates.iter().flatten().map(|path| path.display().to_string()).collect();
        format!(
            "the runner program was not found; looked for {}. Build it, or set [plugins] runner",
            places.join(", ")
        )
    })
}

/// Descriptors that the table has room for from the start: for all connections that are let in by default, and what plugins take.
const DESCRIPTORS: u64 = 5120;

/// Raises the number of descriptors that this process may have to what its administrator allows: each plugin takes some, and
/// the usual soft limit is made for programs that use `select`, which this one does not. Runners set their own.
///
/// Before the first thread is started: the kernel's table of descriptors is made large now, which costs 40 KiB. It grows when it is full, and
/// in a program with threads each growth holds up whoever opens something until every processor has been seen to rest: many milliseconds,
/// just when many connections come. (The allocator's thread may be there already; then this waits so long once.)
pub fn make_room() -> io::Result<()> {
    use nix::fcntl::{fcntl, FcntlArg};
    use nix::sys::resource::{getrlimit, setrlimit, Resource};
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    let file = std::fs::File::open("/dev/null")?;
    let last = i32::try_from(most.min(DESCRIPTORS)).unwrap_or(i32::MAX) - 1;
    Ok(nix::unistd::close(fcntl(&file, FcntlArg::F_DUPFD_CLOEXEC(last))?)?)
}

/// What a start needs.
pub struct Order<'a> {
    /// The runner program.
    pub runner: &'a Path,
    /// The plugin; `None` only measures the walls (`doctor`).
    pub image: Option<&'a Image>,
    /// Name in process lists.
    pub plugin: PluginName,
    /// Which start this is.
    pub generation: Generation,
    /// Limits.
    pub limits: ProcessLimits,
    /// Uid to become; set when the node is root.
    pub run_as: Option<u32>,
    /// What is particular about its sandbox.
    pub sandbox: Sandbox,
    /// How frames travel.
    pub transport: Transport,
}

/// Microseconds for which either side of a link looks for more before it sleeps, where there is a processor for each.
const SPIN_US: u32 = 20;

/// The same on this machine as this process may use it; zero on one processor, where both let the other go first instead.
pub fn spin_us() -> u32 {
    static SPIN: LazyLock<u32> = LazyLock::new(|| {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        if processors > 1 {
            SPIN_US
        } else {
            0
        }
    });
    *SPIN
}

/// What one plugin's sandbox has beside the walls that all have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sandbox {
    /// Which list of system calls.
    pub seccomp: SeccompMode,
    /// System calls by name, with [`SeccompMode::Custom`].
    pub calls: Vec<String>,
    /// Paths of the host.
    pub paths: Vec<PathGrant>,
    /// Size of a `/tmp` of its own, bytes.
    pub temporary: u64,
    /// What a test takes away; refused by every runner that is not built for such tests.
    pub without: Option<Without>,
}

/// Runners that have not taken their `hello` yet. The kernel counts descriptors on their way for each user, over all processes, and
/// refuses more than a process may have: a crowd of them would keep other runners from handing over theirs.
static GREETING: Semaphore = Semaphore::const_new(8);
/// Starts that hold a thread at the same time, and groups that are being filled.
static MAKING: Semaphore = Semaphore::const_new(4);
static FILLING: Semaphore = Semaphore::const_new(1);

/// A runner in its control group that waits for its `hello`, and does nothing until then. Killed when dropped.
#[derive(Debug)]
pub struct Waiting {
    child: Child,
    link: UnixStream,
    stdout: ChildStdout,
    stderr: ChildStderr,
    /// Its control group.
    pub leaf: Leaf,
}

impl Waiting {
    /// False if it has ended; it is reaped then.
    pub fn lives(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Kills it and removes its group; two seconds at most.
    pub async fn end(self) {
        end(self.child, self.leaf).await;
    }
}

/// How long one that was killed is waited for; what the kernel does not end then it reaps later.
const END_PATIENCE: Duration = Duration::from_secs(1);

async fn end(mut child: Child, leaf: Leaf) {
    // Who has ended already needs no kill.
    let _ = tokio::time::timeout(END_PATIENCE, child.kill()).await;
    leaf.end().await;
}

/// Starts a runner inside its control group, or moves it there, and only then sends it `hello`: until then it does nothing.
pub async fn start(order: &Order<'_>, leaf: Leaf) -> io::Result<(Started, Leaf)> {
    let _turn = GREETING.acquire().await;
    let waiting = execute(order.runner, leaf).await?;
    tell(waiting, order).await
}

/// Has a runner that waits already do this.
pub async fn greet(waiting: Waiting, order: &Order<'_>) -> io::Result<(Started, Leaf)> {
    let _turn = GREETING.acquire().await;
    tell(waiting, order).await
}

/// The first half of a start, which is the same for all plugins.
pub(super) async fn execute(runner: &Path, leaf: Leaf) -> io::Result<Waiting> {
    let (link, theirs) = UnixStream::pair()?;
    let mut command = Command::new(runner);
    command
        .arg0("thenodes-runner") // not the path, which is the host's business
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let (mut child, leaf) = spawn(command, leaf).await?;
    let pipes = child.stdout.take().zip(child.stderr.take());
    let (stdout, stderr) = pipes.ok_or_else(|| io::Error::other("the runner has no log pipes"))?;
    Ok(Waiting { child, link, stdout, stderr, leaf })
}

/// The second half: `hello`, and an answer. What cannot be told is ended.
async fn tell(waiting: Waiting, order: &Order<'_>) -> io::Result<(Started, Leaf)> {
    let Waiting { child, link, stdout, stderr, leaf } = waiting;
    match hand_over(link, order).await {
        Ok((stream, ring, report)) => Ok((Started { child, stream, ring, stdout, stderr, report }, leaf)),
        Err(error) => {
            end(child, leaf).await;
            Err(error)
        }
    }
}

async fn hand_over(link: UnixStream, order: &Order<'_>) -> io::Result<(Stream, Option<Region>, Receiver)> {
    let (told, tells) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    // Without shared memory the socket does all the work.
    let ring = match order.transport {
        Transport::Ring => Region::create().ok(),
        Transport::Socket => None,
    };
    let (ring, shared) = ring.unzip();
    send_hello(&link, tells, shared, order)?;
    let report = Receiver::from_owned_fd(told)?;
    link.set_nonblocking(true)?;
    let link = tokio::net::UnixStream::from_std(link)?;
    // It answers as soon as it has `hello`, or it ends; which of them is for whoever reads.
    let _ = tokio::time::timeout(limits::CONFINE_DEADLINE, link.readable()).await;
    let stream = Stream::try_from(OwnedFd::from(link.into_std()?))?;
    Ok((stream, ring, report))
}

/// Does what may block on a thread of its own, in turns: five hundred starts at once must not make five hundred threads.
pub(super) async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    let _turn = MAKING.acquire().await;
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)
}

/// Makes the process. Not on a worker of the runtime where there are groups: the thread is one of the plugin's for that moment, and
/// moving a process waits for all processors.
async fn spawn(mut command: Command, mut leaf: Leaf) -> io::Result<(Child, Leaf)> {
    if leaf.is_nothing() {
        return Ok((command.spawn()?, leaf));
    }
    let inside = move || {
        leaf.enter();
        let child = command.spawn();
        leaf.leave();
        let late = child.as_ref().ok().and_then(Child::id).and_then(|pid| leaf.attach(pid));
        child.map(|child| (child, leaf, late))
    };
    let (child, leaf, late) = aside(inside).await??;
    if let Some(late) = late {
        tokio::spawn(async move {
            let _turn = FILLING.acquire().await;
            let _ = tokio::task::spawn_blocking(move || late.fill()).await;
        });
    }
    Ok((child, leaf))
}

/// Largest first frame: it must fit into an empty socket buffer, because nobody waits for room.
const MAX_HELLO: usize = 96 * 1024;

fn send_hello(
    link: &UnixStream,
    report: OwnedFd,
    ring: Option<OwnedFd>,
    order: &Order<'_>,
) -> io::Result<()> {
    let files: Vec<&Sealed> = order
        .image
        .map(|image| {
            std::iter::once(&image.library).chain(image.needed.iter().map(|(_, file)| file)).collect()
        })
        .unwrap_or_default();
    let hello = NodeHello {
        versions: Versions::OURS,
        max_frame: limits::MAX_FRAME as u32,
        node_pid: std::process::id() as i32,
        plugin: order.plugin.clone(),
        generation: order.generation,
        run_as: order.run_as,
        library_size: order.image.map_or(0, |image| image.library.size),
        needed: order
            .image
            .map(|image| image.needed.iter().map(|(soname, _)| Needed { soname: soname.clone() }).collect())
            .unwrap_or_default(),
        limits: order.limits,
        seccomp: order.sandbox.seccomp,
        calls: order.sandbox.calls.clone(),
        paths: order.sandbox.paths.clone(),
        temporary: order.sandbox.temporary,
        ring: ring.is_some(),
        spin_us: spin_us(),
        without: order.sandbox.without.clone(),
    };
    let body = pack::encode(&hello).map_err(io::Error::other)?;
    let mut frame = Vec::new();
    Frame::Launch { step: "hello", body: &body }
        .encode(&mut frame, limits::MAX_FRAME)
        .map_err(io::Error::other)?;
    if frame.len() > MAX_HELLO {
        return Err(io::Error::other(format!(
            "{} bytes of hello, at most {MAX_HELLO}: too many or too long paths",
            frame.len()
        )));
    }
    let fds: Vec<RawFd> = std::iter::once(&report)
        .chain(&ring)
        .map(AsRawFd::as_raw_fd)
        .chain(files.iter().map(|file| file.fd.as_raw_fd()))
        .collect();
    let control = &[ControlMessage::ScmRights(&fds)];
    // Into an empty socket buffer, which is larger: cannot block. A short write would be a kernel defect.
    let sent = sendmsg::<UnixAddr>(
        link.as_raw_fd(),
        &[IoSlice::new(&frame)],
        control,
        MsgFlags::MSG_NOSIGNAL,
        None,
    )?;
    if sent == frame.len() {
        Ok(())
    } else {
        Err(io::Error::other("hello did not fit into the link"))
    }
}
