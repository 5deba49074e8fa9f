//! The unsafe room: the system calls that no vetted safe wrapper offers. Each function is safe to call from anywhere in
//! this program while it is single-threaded, which it is until the library is opened.
#![allow(unsafe_code)]

use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::unistd::{ForkResult, Pid};
use seccompiler::{sock_filter, BpfProgram};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Where the program begins.
#[cfg(not(test))]
#[no_mangle]
extern "C" fn main() -> libc::c_int {
    // As the runtime would: a peer that has gone is an error of a write, not an end.
    // SAFETY: ignoring a signal runs no function of ours.
    let _ = unsafe { nix::sys::signal::signal(Signal::SIGPIPE, nix::sys::signal::SigHandler::SigIgn) };
    let code = crate::begin();
    std::process::exit(i32::from(if code == std::process::ExitCode::SUCCESS { 0 } else { crate::EXIT_USAGE }))
}

/// Takes over a descriptor that this process was started with.
///
/// Returns `None` for a descriptor that is not open.
pub(crate) fn adopt(fd: RawFd) -> Option<OwnedFd> {
    // SAFETY: F_GETFD only asks.
    let open = unsafe { libc::fcntl(fd, libc::F_GETFD) } >= 0;
    // SAFETY: the descriptor is open, and main takes each of its inherited descriptors over exactly once.
    open.then(|| unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Forks. The program has one thread, so the child may do anything the parent may.
pub(crate) fn fork() -> nix::Result<ForkResult> {
    // SAFETY: single-threaded (see `main`): no lock can be held by a thread that the child lacks.
    unsafe { nix::unistd::fork() }
}

/// True if no process can be made in a new user namespace. Tried by making one, which must fail: a child that is made all the
/// same has all capabilities over there, and does nothing but end.
pub(crate) fn refuses_a_user_namespace() -> bool {
    extern "C" fn end(_: *mut libc::c_void) -> libc::c_int {
        0
    }
    let mut stack = vec![0_u128; 1024];
    // It shares our memory and we wait for its end: nothing is copied for a child that there should not be.
    let flags = libc::CLONE_NEWUSER | libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
    // SAFETY: the stack is aligned, ours, and lives until the child has ended (CLONE_VFORK); the child returns at once, which for
    // a child of `clone` is its end.
    let child = unsafe { libc::clone(end, stack.as_mut_ptr_range().end.cast(), flags, std::ptr::null_mut()) };
    if child > 0 {
        let _ = nix::sys::wait::waitpid(Pid::from_raw(child), None);
    }
    child == -1 && matches!(Errno::last(), Errno::ENOSPC | Errno::EPERM | Errno::EUSERS)
}

/// A descriptor that becomes readable when the process ends.
pub(crate) fn pidfd_open(pid: Pid) -> nix::Result<OwnedFd> {
    // SAFETY: plain numbers in, a new descriptor out.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) };
    let fd = Errno::result(fd)?;
    // SAFETY: the kernel just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Closes every descriptor from `first` on, whoever holds it in this program; used when nothing else will be.
pub(crate) fn close_from(first: RawFd) -> nix::Result<()> {
    // SAFETY: values that own such descriptors are leaked by the caller's contract: it goes on with fds below `first` only.
    let done = unsafe { libc::syscall(libc::SYS_close_range, first as libc::c_uint, libc::c_uint::MAX, 0) };
    Errno::result(done).map(drop)
}

/// True if the descriptor is open.
pub(crate) fn is_open(fd: RawFd) -> bool {
    // SAFETY: F_GETFD only asks.
    (unsafe { libc::fcntl(fd, libc::F_GETFD) }) >= 0
}

/// Makes `target` a copy of `fd`, not inherited by `exec`.
pub(crate) fn place(fd: RawFd, target: RawFd) -> nix::Result<()> {
    if fd == target {
        return Ok(());
    }
    // SAFETY: plain numbers; the target is one of the fixed descriptors that `state` lays out.
    Errno::result(unsafe { libc::dup3(fd, target, libc::O_CLOEXEC) }).map(drop)
}

/// `prctl` with numbers only.
pub(crate) fn prctl(option: libc::c_int, args: [libc::c_ulong; 4]) -> nix::Result<libc::c_int> {
    // SAFETY: all options used here take numbers, no pointers (checked at each call: they are named constants).
    Errno::result(unsafe { libc::prctl(option, args[0], args[1], args[2], args[3]) })
}

#[repr(C)]
struct CapHeader {
    version: u32,
    pid: libc::c_int,
}

#[repr(C)]
#[derive(Default, Clone, Copy, PartialEq)]
struct CapData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

const CAPABILITY_VERSION_3: u32 = 0x2008_0522;

/// Sets effective, permitted and inheritable capabilities to none.
pub(crate) fn drop_capabilities() -> nix::Result<()> {
    let header = CapHeader { version: CAPABILITY_VERSION_3, pid: 0 };
    let none = [CapData::default(); 2];
    // SAFETY: header and data have the layout of version 3 (two data blocks) and live for the call.
    Errno::result(unsafe { libc::syscall(libc::SYS_capset, &header, none.as_ptr()) }).map(drop)
}

/// True if this thread has no capability in any of the three sets.
pub(crate) fn has_no_capabilities() -> nix::Result<bool> {
    let header = CapHeader { version: CAPABILITY_VERSION_3, pid: 0 };
    let mut data = [CapData { effective: 1, permitted: 1, inheritable: 1 }; 2];
    // SAFETY: as above; the kernel writes two data blocks.
    Errno::result(unsafe { libc::syscall(libc::SYS_capget, &header, data.as_mut_ptr()) })?;
    Ok(data == [CapData::default(); 2])
}

/// True if memory cannot be moved and grown by `mremap`: what grew from a stack would be counted by no limit.
pub(crate) fn refuses_to_move_memory() -> bool {
    let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: a new page at an address of the kernel's choice; if it is moved, nobody knew it.
    unsafe {
        let page = libc::mmap(std::ptr::null_mut(), 4096, protection, flags, -1, 0);
        page != libc::MAP_FAILED && libc::mremap(page, 4096, 8192, libc::MREMAP_MAYMOVE) == libc::MAP_FAILED
    }
}

/// True if the kernel refuses memory that is writable and executable, at once and in turn.
pub(crate) fn refuses_writable_code() -> bool {
    const SIZE: usize = 4096;
    let map = |protection| {
        // SAFETY: a new anonymous page at an address of the kernel's choice touches no memory of ours.
        unsafe {
            libc::mmap(std::ptr::null_mut(), SIZE, protection, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0)
        }
    };
    let (read, write, run) = (libc::PROT_READ, libc::PROT_WRITE, libc::PROT_EXEC);
    let both = map(read | write | run);
    if both != libc::MAP_FAILED {
        // SAFETY: the page was mapped two lines above and nobody knows it.
        unsafe { libc::munmap(both, SIZE) };
        return false;
    }
    let page = map(read | write);
    if page == libc::MAP_FAILED {
        return false; // nothing was measured, so nothing is claimed
    }
    // SAFETY: the page is ours alone.
    let turned = unsafe { libc::mprotect(page, SIZE, read | run) } == 0;
    // SAFETY: as above.
    unsafe { libc::munmap(page, SIZE) };
    !turned
}

/// True if memory that the kernel would not count as this process's data is refused: shared, and growing down.
pub(crate) fn refuses_uncounted_memory() -> bool {
    [libc::MAP_SHARED, libc::MAP_PRIVATE | libc::MAP_GROWSDOWN].into_iter().all(|kind| {
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, kind | libc::MAP_ANONYMOUS);
        // SAFETY: a new page at an address of the kernel's choice touches no memory of ours.
        let page = unsafe { libc::mmap(std::ptr::null_mut(), 4096, protection, flags, -1, 0) };
        page == libc::MAP_FAILED
    })
}

/// True if a call is refused that no list allows and that every process may make otherwise: asking for its own personality.
pub(crate) fn refuses_what_no_list_has() -> bool {
    // SAFETY: this number only asks.
    let asked = unsafe { libc::personality(0xffff_ffff) };
    asked == -1 && Errno::last() == Errno::EPERM
}

/// Lets everything else run first: a plugin that spins shares the processor as the least of its neighbours.
pub(crate) fn be_nice() -> nix::Result<()> {
    // SAFETY: numbers only; 0 is this process.
    Errno::result(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 10) }).map(drop)
}

/// Limits malloc to two arenas: each reserves 64 MiB of address space, and the plugin has few threads.
pub(crate) fn limit_malloc_arenas() {
    #[cfg(target_env = "gnu")]
    // SAFETY: a number for the allocator; no allocation is in progress, since there is one thread.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 2);
        // A body of the largest frame is not worth a mapping of its own: each would be paid for with a fault for every page.
        // What is not used is kept up to four megabytes, and counts toward the plugin's memory.
        libc::mallopt(libc::M_MMAP_THRESHOLD, 2 << 20);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 4 << 20);
    }
}

/// Wipes the path of this program from where the kernel noted it, at the top of the stack: it is the host's business.
pub(crate) fn forget_own_path() {
    // SAFETY: the kernel put a text there before this program began, in memory of our stack that nobody else uses.
    unsafe {
        let text = libc::getauxval(libc::AT_EXECFN) as *mut libc::c_char;
        if !text.is_null() {
            std::ptr::write_bytes(text, 0, libc::strlen(text));
        }
    }
}

/// Gives memory faults their default action. Rust's runtime catches them to tell a stack overflow in its own threads; in a
/// runner its handler would only hide the first SIGSEGV that comes from outside.
pub(crate) fn default_faults() -> nix::Result<()> {
    use nix::sys::signal::{signal, SigHandler};
    for fault in [Signal::SIGSEGV, Signal::SIGBUS] {
        // SAFETY: the default action is no function of ours.
        unsafe { signal(fault, SigHandler::SigDfl) }?;
    }
    Ok(())
}

/// A child that has ended, and its wait status as the kernel tells it: the typed wrapper knows no real-time signals. With
/// `block` it waits for one, else it only looks.
pub(crate) fn wait_any(block: bool) -> nix::Result<Option<(Pid, i32)>> {
    let mut status = 0;
    let options = if block { 0 } else { libc::WNOHANG };
    // SAFETY: the kernel writes one number.
    match Errno::result(unsafe { libc::waitpid(-1, &mut status, options) })? {
        0 => Ok(None),
        pid => Ok(Some((Pid::from_raw(pid), status))),
    }
}

/// Ends this process the way the plugin ended, given its wait status: the same signal, or the same exit code.
pub(crate) fn die_as(status: i32) -> ! {
    if libc::WIFSIGNALED(status) {
        // The death is the plugin's; a core of this process, or a helper that makes one, is nobody's business.
        let _ = nix::sys::prctl::set_dumpable(false);
        let _ = nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_CORE, 0, 0);
        let signal = libc::WTERMSIG(status);
        // SAFETY: the default action is no function of ours; this process has one thread and is about to end.
        unsafe {
            libc::signal(signal, libc::SIG_DFL);
            let mut set = std::mem::zeroed();
            libc::sigemptyset(&mut set);
            libc::sigaddset(&mut set, signal);
            libc::sigprocmask(libc::SIG_UNBLOCK, &set, std::ptr::null_mut());
            libc::raise(signal);
        }
        // A signal that does not kill by default cannot have been the cause of a death.
        let _ = nix::sys::signal::raise(Signal::SIGKILL);
    }
    exit_now(if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { 1 })
}

/// True for the wait status of a process that this signal ended.
pub(crate) fn is_death_by(status: i32, signal: Signal) -> bool {
    libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == signal as i32
}

/// Tells the broker what runs next. To everybody else this is a call that fails.
pub(crate) fn mark(phase: thenodes_ipc::report::Phase) -> Result<(), String> {
    let option = crate::confine::syscalls::PR_MARK_PHASE as libc::c_int;
    let marked = prctl(option, [phase as libc::c_ulong, 0, 0, 0]);
    marked.map(drop).map_err(|e| format!("telling the broker what runs next: {e}"))
}

/// Ends this process without running anything of the runtime; for the forked warden and stub.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: ends the process.
    unsafe { libc::_exit(code) }
}

/// A BPF program as the kernel takes it, at an address that is known before it is filled. It is never freed: the address is
/// part of a rule, and must not come to mean something else. For the same reason [`Program::fill`] seals the memory: a library that
/// wrote another program to this address could install a filter that hides what it attempts.
pub(crate) struct Program {
    memory: *mut libc::c_void,
    size: usize,
}

/// Room for the longest program that a filter may have, and its header: whole pages, however large they are.
const PROGRAM_ROOM: usize = 64 * 1024;
const _: () = assert!(PROGRAM_ROOM >= 4096 * size_of::<libc::sock_filter>() + size_of::<libc::sock_fprog>());
/// The allow-list and the two stacked on it.
const PROGRAMS: usize = 3;

impl Program {
    /// Empty programs with addresses, one behind the other: a rule can then name all their memory as one range.
    pub(crate) fn reserve() -> nix::Result<[Program; PROGRAMS]> {
        let (protection, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: new memory at an address of the kernel's choice touches no memory of ours.
        let memory =
            unsafe { libc::mmap(std::ptr::null_mut(), PROGRAMS * PROGRAM_ROOM, protection, flags, -1, 0) };
        if memory == libc::MAP_FAILED {
            return Err(Errno::last());
        }
        let at = |n| Program { memory: memory.wrapping_byte_add(n * PROGRAM_ROOM), size: PROGRAM_ROOM };
        Ok(std::array::from_fn(at))
    }

    /// Where all of them lie.
    pub(crate) fn extent(all: &[Program; PROGRAMS]) -> std::ops::Range<u64> {
        all[0].address()..all[PROGRAMS - 1].address() + PROGRAM_ROOM as u64
    }

    /// Where the kernel is told to look.
    pub(crate) fn address(&self) -> u64 {
        self.memory as u64
    }

    /// Puts the instructions in, and makes the memory read-only for good where the kernel can (Linux 6.10; before, a library can
    /// make it writable again).
    pub(crate) fn fill(&mut self, program: &BpfProgram) -> nix::Result<()> {
        const { assert!(size_of::<sock_filter>() == size_of::<libc::sock_filter>()) };
        let bytes = size_of_val(program.as_slice());
        if bytes + size_of::<libc::sock_fprog>() > self.size || program.len() > usize::from(u16::MAX) {
            return Err(Errno::E2BIG);
        }
        // SAFETY: the mapping is ours alone, page-aligned, writable, and large enough for the header and, behind it, the
        // instructions (checked above); both have an alignment of 8 at most.
        unsafe {
            let header = self.memory.cast::<libc::sock_fprog>();
            let instructions = header.add(1).cast::<libc::sock_filter>();
            std::ptr::copy_nonoverlapping(program.as_ptr().cast(), instructions, program.len());
            header.write(libc::sock_fprog { len: program.len() as u16, filter: instructions });
            Errno::result(libc::mprotect(self.memory, self.size, libc::PROT_READ))?;
            // Best effort, see above.
            libc::syscall(SYS_MSEAL, self.memory, self.size, 0);
        }
        Ok(())
    }
}

/// Where the heap ends now.
pub(crate) fn heap_end() -> u64 {
    // SAFETY: an end of 0 cannot be had; the kernel answers with the one there is.
    (unsafe { libc::syscall(libc::SYS_brk, 0) }) as u64
}

/// `mseal`, the same number on every architecture.
const SYS_MSEAL: libc::c_long = 462;

fn seccomp(flags: libc::c_ulong, program: &Program) -> nix::Result<libc::c_long> {
    // SAFETY: the header and its instructions lie in memory that is never unmapped; the kernel copies them.
    let done = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::c_long::from(libc::SECCOMP_SET_MODE_FILTER),
            flags,
            program.address(),
        )
    };
    Errno::result(done)
}

/// Installs a filter on this, the only thread, and returns the descriptor by which its questions are answered.
pub(crate) fn install_with_listener(program: &Program) -> nix::Result<OwnedFd> {
    let listening = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER;
    // With the second flag (Linux 5.19) a question that was taken is not taken back by a signal, unless it kills.
    let fd = match seccomp(listening | libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV, program) {
        Err(Errno::EINVAL) => seccomp(listening, program)?,
        other => other?,
    };
    // SAFETY: the kernel just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Installs a filter on every thread of this process, or on none.
pub(crate) fn install_on_all_threads(program: &Program) -> nix::Result<()> {
    match seccomp(libc::SECCOMP_FILTER_FLAG_TSYNC, program)? {
        0 => Ok(()),
        _thread_that_differs => Err(Errno::EACCES),
    }
}

/// How often the message is tried, and the pause between: a second and a half, well within the node's patience.
const HANDOVER_TRIES: u32 = 500;
const HANDOVER_PAUSE: std::time::Duration = std::time::Duration::from_millis(3);

/// One message with one descriptor, whose address is known before it is sent: the allow-list lets exactly this one pass.
pub(crate) struct Handover {
    socket: RawFd,
    message: &'static mut libc::msghdr,
    control: &'static mut [u64; 4],
}

impl Handover {
    /// Prepares a message over this socket.
    pub(crate) fn prepare(socket: RawFd) -> Handover {
        let byte: &'static mut [u8; 1] = Box::leak(Box::new([0]));
        let part: &'static mut libc::iovec =
            Box::leak(Box::new(libc::iovec { iov_base: byte.as_mut_ptr().cast(), iov_len: 1 }));
        let control: &'static mut [u64; 4] = Box::leak(Box::new([0; 4]));
        // SAFETY: an all-zero msghdr is an empty message.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = part;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        Handover { socket, message: Box::leak(Box::new(message)), control }
    }

    /// The socket's number.
    pub(crate) fn socket(&self) -> u64 {
        self.socket as u64
    }

    /// The message's address.
    pub(crate) fn address(&self) -> u64 {
        std::ptr::from_ref::<libc::msghdr>(self.message) as u64
    }

    /// Sends the descriptor. The kernel counts those on their way for each user, over all processes, and refuses more than this
    /// process may have: while many plugins start at once it may be others' turn first.
    pub(crate) fn send(mut self, fd: BorrowedFd<'_>) -> nix::Result<()> {
        for _ in 0..HANDOVER_TRIES {
            match self.try_send(fd) {
                Err(Errno::ETOOMANYREFS) => std::thread::sleep(HANDOVER_PAUSE),
                done => return done,
            }
        }
        Err(Errno::ETOOMANYREFS)
    }

    fn try_send(&mut self, fd: BorrowedFd<'_>) -> nix::Result<()> {
        let size = size_of::<RawFd>() as libc::c_uint;
        // SAFETY: CMSG_LEN and CMSG_SPACE only compute; the buffer of 32 bytes, aligned for a header, holds one header of 16
        // bytes and one descriptor; the message and all it points to are leaked.
        let sent = unsafe {
            self.message.msg_controllen = libc::CMSG_SPACE(size) as _;
            let head = self.control.as_mut_ptr().cast::<libc::cmsghdr>();
            (*head).cmsg_level = libc::SOL_SOCKET;
            (*head).cmsg_type = libc::SCM_RIGHTS;
            (*head).cmsg_len = libc::CMSG_LEN(size) as _;
            libc::CMSG_DATA(head).cast::<RawFd>().write_unaligned(fd.as_raw_fd());
            libc::syscall(libc::SYS_sendmsg, self.socket(), self.address(), libc::MSG_NOSIGNAL)
        };
        Errno::result(sent).map(drop)
    }
}

/// A system call that a filter asks about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Question {
    pub(crate) id: u64,
    pub(crate) thread: u32,
    pub(crate) arch: u32,
    pub(crate) number: i64,
    pub(crate) address: u64,
    pub(crate) args: [u64; 6],
}

/// `SECCOMP_IOCTL_NOTIF_SET_FLAGS` and its flag (Linux 6.6).
const SET_FLAGS: libc::c_ulong = 0x4008_2104;
const SYNC_WAKE_UP: u64 = 1;

/// Asks the kernel to run asker and answerer on one processor, as one waits while the other works: waking an idle processor
/// for each question takes longer than the answer. Older kernels go on without.
pub(crate) fn answer_where_asked(listener: BorrowedFd<'_>) {
    // SAFETY: the kernel takes one number.
    unsafe { libc::ioctl(listener.as_raw_fd(), SET_FLAGS as _, SYNC_WAKE_UP) };
}

/// Takes the next question; `None` if its asker has died meanwhile, or there is none.
pub(crate) fn next_question(listener: BorrowedFd<'_>) -> nix::Result<Option<Question>> {
    // SAFETY: all-zero is what the kernel wants to find in a `seccomp_notif`, and it fills it.
    let (done, got) = unsafe {
        let mut got: libc::seccomp_notif = std::mem::zeroed();
        let done = libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, &mut got);
        (done, got)
    };
    match Errno::result(done) {
        Ok(_) => Ok(Some(Question {
            id: got.id,
            thread: got.pid,
            arch: got.data.arch,
            number: i64::from(got.data.nr),
            address: got.data.instruction_pointer,
            args: got.data.args,
        })),
        Err(Errno::ENOENT | Errno::EINTR | Errno::EAGAIN) => Ok(None),
        Err(error) => Err(error),
    }
}

/// True while the asker waits: what was read from its memory meanwhile was its memory, not a successor's.
pub(crate) fn still_asks(listener: BorrowedFd<'_>, id: u64) -> bool {
    // SAFETY: the kernel reads one number.
    unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_ID_VALID, &id) == 0 }
}

/// Answers with a result or an error number. There is no way here to let the call run.
pub(crate) fn answer(listener: BorrowedFd<'_>, id: u64, result: Result<i64, i32>) {
    let response = libc::seccomp_notif_resp {
        id,
        val: result.unwrap_or(0),
        error: result.err().map_or(0, |number| -number),
        flags: 0,
    };
    // SAFETY: the kernel reads the response. It fails if the asker has died, which is no news.
    unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, &response) };
}

/// Lets a call run after all. Only in a runner that is built to test the other walls.
#[cfg(feature = "without")]
pub(crate) fn let_it_run(listener: BorrowedFd<'_>, id: u64) {
    let flags = libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32;
    let response = libc::seccomp_notif_resp { id, val: 0, error: 0, flags };
    // SAFETY: as above.
    unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, &response) };
}

/// Answers with a new descriptor in the asker that is a copy of `file`.
pub(crate) fn answer_with_file(
    listener: BorrowedFd<'_>,
    id: u64,
    file: BorrowedFd<'_>,
    flags: u32,
) -> nix::Result<()> {
    let addition = libc::seccomp_notif_addfd {
        id,
        flags: libc::SECCOMP_ADDFD_FLAG_SEND as u32,
        srcfd: file.as_raw_fd() as u32,
        newfd: 0,
        newfd_flags: flags,
    };
    // SAFETY: the kernel reads the structure; the descriptor is borrowed and open.
    Errno::result(unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_ADDFD, &addition) })
        .map(drop)
}
