//! The unsafe room: the system calls that no vetted safe wrapper offers. Each function is safe to call from anywhere in
//! this program while it is single-threaded, which it is until the library is opened.
#![allow(unsafe_code)]

use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::unistd::{ForkResult, Pid};
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

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

/// Runs a test in a child process and returns its answer; false if it could not be run.
pub(crate) fn in_a_child(test: impl FnOnce() -> bool) -> bool {
    match fork() {
        Ok(ForkResult::Child) => exit_now(i32::from(!test())),
        Ok(ForkResult::Parent { child }) => {
            matches!(nix::sys::wait::waitpid(child, None), Ok(nix::sys::wait::WaitStatus::Exited(_, 0)))
        }
        Err(_) => false,
    }
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
    // SAFETY: plain numbers; the target is one of the fixed descriptors 0, 3 and 4 that `state` lays out.
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

/// Limits malloc to two arenas: each reserves 64 MiB of address space, and the plugin has few threads.
pub(crate) fn limit_malloc_arenas() {
    #[cfg(target_env = "gnu")]
    // SAFETY: a number for the allocator; no allocation is in progress, since there is one thread.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 2);
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

/// Ends this process the way the plugin ended: the same signal, or the same exit code.
pub(crate) fn die_as(status: nix::sys::wait::WaitStatus) -> ! {
    use nix::sys::wait::WaitStatus;
    if let WaitStatus::Signaled(_, signal, _) = status {
        let _ = nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_CORE, 0, 0);
        // SAFETY: the default action is no function of ours.
        let _ = unsafe { nix::sys::signal::signal(signal, nix::sys::signal::SigHandler::SigDfl) };
        let mut set = nix::sys::signal::SigSet::empty();
        set.add(signal);
        let _ = set.thread_unblock();
        let _ = nix::sys::signal::raise(signal);
        // A signal that does not kill by default cannot have been the cause of a death; fall through to SIGKILL.
        let _ = nix::sys::signal::raise(Signal::SIGKILL);
    }
    let code = match status {
        WaitStatus::Exited(_, code) => code,
        _ => 1,
    };
    exit_now(code)
}

/// Ends this process without running anything of the runtime; for the forked warden and stub.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: ends the process.
    unsafe { libc::_exit(code) }
}
