//! The allow-list as data: every system call a plugin may make, under which arguments, and why. What is not here ends the
//! process. Found by tracing real plugins (tokio, malloc, threads, panics); see `docs/threat-model.md`.

use libc::{c_long, c_ulong};

/// What the arguments must be.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Args {
    /// Anything.
    Any,
    /// Argument `arg` equals one of these (compared as 32 bits: the kernel reads an int).
    OneOf { arg: u8, values: &'static [u32] },
    /// Argument `arg` equals this in all 64 bits.
    Equals { arg: u8, value: u64 },
    /// No bit of `mask` is set in argument `arg`.
    Without { arg: u8, mask: u64 },
    /// `mmap`: executable only if it is neither writable nor anonymous.
    MapWriteXorExecute,
    /// Argument 0 is this process.
    OwnPid,
}

/// One entry.
pub(crate) struct Allowed {
    pub(crate) number: c_long,
    pub(crate) args: Args,
    #[allow(dead_code)] // for readers; printed by tools later
    pub(crate) why: &'static str,
}

/// Flags of `pthread_create` in glibc: a thread of this process and nothing else.
pub(crate) const THREAD_FLAGS: u64 = 0x3d_0f00;

const WRITING: u64 = (libc::O_WRONLY
    | libc::O_RDWR
    | libc::O_CREAT
    | libc::O_TRUNC
    | libc::O_APPEND
    | libc::O_PATH
    | libc::O_TMPFILE) as u64;

const PR_SET_VMA: u32 = 0x5356_4d41;

macro_rules! allowed {
    ($($number:ident, $args:expr, $why:literal;)*) => {
        &[$(Allowed { number: libc::$number, args: $args, why: $why },)*]
    };
}

use Args::{Any, Equals, MapWriteXorExecute, OneOf, OwnPid, Without};

/// Allowed from the opening of the library on.
pub(crate) const ALLOWED: &[Allowed] = allowed! {
    SYS_read, Any, "the link";
    SYS_write, Any, "the link and the log pipes";
    SYS_readv, Any, "std::io";
    SYS_writev, Any, "the link: header and body in one call";
    SYS_pread64, Any, "the loader reads ELF headers";
    SYS_lseek, Any, "std::io on files";
    SYS_close, Any, "descriptors of one's own";
    SYS_fcntl, OneOf { arg: 1, values: &[
        libc::F_DUPFD as u32, libc::F_GETFD as u32, libc::F_SETFD as u32, libc::F_GETFL as u32, libc::F_SETFL as u32,
        libc::F_DUPFD_CLOEXEC as u32,
    ] }, "runtimes duplicate and mark their descriptors";
    SYS_ioctl, OneOf { arg: 1, values: &[libc::FIONBIO as u32] }, "non-blocking mode; every other request is ENOTTY";
    SYS_openat, Without { arg: 2, mask: WRITING }, "the loader opens the library; reading only, and the root is empty";
    SYS_newfstatat, Any, "the loader; the root is empty";
    SYS_fstat, Any, "the loader and std::io";
    SYS_statx, Any, "std::fs; the root is empty";
    SYS_getcwd, Any, "the loader and backtraces";
    SYS_brk, Any, "malloc";
    SYS_mmap, MapWriteXorExecute, "malloc, stacks, the loader";
    SYS_munmap, Any, "malloc, stacks, the loader";
    SYS_mremap, Any, "realloc";
    SYS_mprotect, Without { arg: 2, mask: libc::PROT_EXEC as u64 }, "guard pages, RELRO; never executable";
    SYS_madvise, Any, "malloc gives memory back";
    SYS_futex, Any, "locks";
    SYS_clone, Equals { arg: 0, value: THREAD_FLAGS }, "threads, and nothing but threads";
    SYS_set_robust_list, Any, "a thread begins";
    SYS_rseq, Any, "a thread begins";
    SYS_set_tid_address, Any, "a thread begins";
    SYS_sched_getaffinity, Any, "available_parallelism";
    SYS_sched_yield, Any, "spin locks";
    SYS_gettid, Any, "names in panic messages";
    SYS_getpid, Any, "abort and seeds of hash maps";
    SYS_tgkill, OwnPid, "abort raises a signal in its own process";
    SYS_rt_sigaction, Any, "abort resets SIGABRT";
    SYS_rt_sigprocmask, Any, "thread start and abort";
    SYS_rt_sigreturn, Any, "the end of a signal handler";
    SYS_sigaltstack, Any, "a thread's stack for signals";
    SYS_restart_syscall, Any, "the kernel resumes a wait";
    SYS_exit, Any, "a thread ends";
    SYS_exit_group, Any, "the process ends";
    SYS_getrandom, Any, "hash seeds";
    SYS_clock_gettime, Any, "clocks, where the vDSO has none";
    SYS_clock_nanosleep, Any, "sleep";
    SYS_nanosleep, Any, "sleep";
    SYS_epoll_create1, Any, "tokio";
    SYS_epoll_ctl, Any, "tokio";
    SYS_epoll_pwait, Any, "tokio";
    SYS_eventfd2, Any, "tokio wakes itself";
    SYS_ppoll, Any, "waiting on own descriptors";
    SYS_socketpair, Equals { arg: 0, value: libc::AF_UNIX as u64 }, "a runtime of the plugin's own wakes itself with one";
    SYS_sendto, Equals { arg: 4, value: 0 }, "wake-ups on own sockets; no address, so no fast open";
    SYS_recvfrom, Any, "wake-ups on own sockets";
    SYS_shutdown, Any, "the end of own sockets";
    SYS_prlimit64, Equals { arg: 2, value: 0 }, "reading limits (stack size of threads), never setting them";
    SYS_prctl, OneOf { arg: 0, values: &[libc::PR_SET_NAME as u32, PR_SET_VMA, libc::PR_SET_NO_NEW_PRIVS as u32] },
        "names of threads and mappings; no_new_privs again before the second filter";
    SYS_seccomp, Any, "the second filter; a plugin can only tighten, and after it not even that";
};

/// Calls of x86-64 that newer architectures do not have.
#[cfg(target_arch = "x86_64")]
pub(crate) const ALLOWED_HERE: &[Allowed] = allowed! {
    SYS_epoll_wait, Any, "tokio";
    SYS_poll, Any, "waiting on own descriptors";
};
#[cfg(not(target_arch = "x86_64"))]
pub(crate) const ALLOWED_HERE: &[Allowed] = &[];

/// Calls that fail with an error instead of ending the process, because honest libraries try them and go on without.
pub(crate) const FAILING: &[(c_long, i32, &str)] = &[
    (
        libc::SYS_clone3,
        libc::ENOSYS,
        "its flags lie in memory, out of a filter's sight; libc falls back to clone",
    ),
    (libc::SYS_sendmsg, libc::EPERM, "could carry descriptors"),
    (libc::SYS_recvmsg, libc::EPERM, "could carry descriptors"),
    (libc::SYS_readlinkat, libc::ENOENT, "std asks for /proc/self/exe; there is no /proc"),
    (libc::SYS_faccessat, libc::ENOENT, "the root is empty"),
    (libc::SYS_faccessat2, libc::ENOENT, "the root is empty"),
    (
        libc::SYS_uname,
        libc::EPERM,
        "nothing about the host; also the self-test's proof that the filter is in force",
    ),
    (libc::SYS_sysinfo, libc::EPERM, "nothing about the host"),
    (libc::SYS_getrusage, libc::EPERM, "counters of little use and some leak"),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_readlink, libc::ENOENT, "std asks for /proc/self/exe; there is no /proc"),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_access, libc::ENOENT, "the loader asks for /etc/ld.so.preload"),
];

/// Argument of `ioctl` that may pass; every other one is `ENOTTY`, all 64 bits compared, so that garbage above an int's 32
/// bits passes neither way.
pub(crate) const IOCTL_ALLOWED: c_ulong = libc::FIONBIO;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_entry_has_a_reason_and_stands_once() {
        let mut numbers: Vec<_> = ALLOWED.iter().chain(ALLOWED_HERE).map(|entry| entry.number).collect();
        numbers.extend(FAILING.iter().map(|(number, _, _)| *number));
        let count = numbers.len();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), count, "a system call stands twice");
        assert!(ALLOWED.iter().chain(ALLOWED_HERE).all(|entry| !entry.why.is_empty()));
        assert!(FAILING.iter().all(|(_, _, why)| !why.is_empty()));
    }

    #[test]
    fn nothing_that_makes_processes_sockets_or_privileges_is_on_the_list() {
        let allowed: Vec<_> = ALLOWED.iter().chain(ALLOWED_HERE).map(|entry| entry.number).collect();
        for never in [
            libc::SYS_execve,
            libc::SYS_execveat,
            libc::SYS_socket,
            libc::SYS_connect,
            libc::SYS_bind,
            libc::SYS_ptrace,
            libc::SYS_process_vm_readv,
            libc::SYS_io_uring_setup,
            libc::SYS_bpf,
            libc::SYS_unshare,
            libc::SYS_setns,
            libc::SYS_mount,
            libc::SYS_memfd_create,
            libc::SYS_kill,
            libc::SYS_userfaultfd,
            libc::SYS_keyctl,
        ] {
            assert!(!allowed.contains(&never), "{never}");
        }
    }
}
