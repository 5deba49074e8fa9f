//! The allow-list as data: every system call a plugin may make, under which arguments, in which mode, and why. What is not
//! here never runs: the broker answers it, with the error that [`FAILING`] names or with the end of the process. Found by
//! tracing real plugins (tokio, malloc, threads, panics); a test fails when an entry of the strict list is idle.

use libc::c_long;
use syscalls::Sysno;
use thenodes_ipc::launch::{PathGrant, SeccompMode};

/// What the arguments must be.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Args {
    /// Anything.
    Any,
    /// Argument `arg` equals one of these (compared as 32 bits: the kernel reads an int).
    OneOf { arg: u8, values: &'static [u32] },
    /// Argument `arg` equals this in all 64 bits.
    Equals { arg: u8, value: u64 },
    /// Argument `arg` is anything but this (compared as 32 bits).
    Not { arg: u8, value: u32 },
    /// No bit of `mask` is set in argument `arg`.
    Without { arg: u8, mask: u64 },
    /// `mmap`: private, of a kind that limits count, executable only if neither writable nor anonymous, no longer than the limits
    /// let any mapping be, and at no fixed place that is not the plugin's to map.
    CountedWriteXorExecute,
    /// `mprotect`: never executable; no more is made writable than may be written to; not where the filters' programs lie.
    Protect,
    /// `munmap`: not where the filters' programs lie.
    Unmap,
    /// `brk`: an end of the heap within the limit.
    Heap,
    /// `fcntl`: one of these commands, and copies of descriptors only to numbers within the limit.
    Descriptors { commands: &'static [u32], copies: &'static [u32] },
    /// Argument `arg` is a descriptor's number within the limit.
    WithinTable { arg: u8 },
    /// Argument 0 is this process.
    OwnPid,
    /// All of these, which are simple ones.
    All(&'static [Args]),
    /// `seccomp`: only the installation of the second filter, from the address where it lies.
    SecondFilter,
    /// `sendmsg`: only the one that hands the listener to the broker, from the address where its message lies.
    Handover,
}

/// One entry.
pub(crate) struct Allowed {
    pub(crate) number: c_long,
    pub(crate) args: Args,
    /// The first mode that has it.
    pub(crate) from: SeccompMode,
    pub(crate) why: &'static str,
}

impl Allowed {
    pub(crate) fn name(&self) -> &'static str {
        name_of(self.number).unwrap_or("unknown")
    }
}

/// Name of a system call of this architecture.
pub(crate) fn name_of(number: i64) -> Option<&'static str> {
    usize::try_from(number).ok().and_then(Sysno::new).map(|call| call.name())
}

/// Number of a system call of this architecture.
pub(crate) fn number_of(name: &str) -> Option<c_long> {
    name.parse::<Sysno>().ok().map(|call| c_long::from(call.id()))
}

/// Flags of `pthread_create` in glibc: a thread of this process and nothing else.
pub(crate) const THREAD_FLAGS: u64 = 0x3d_0f00;

const PR_SET_VMA: u32 = 0x5356_4d41;
/// `prctl` with this option is no call of the kernel's: the runner tells the broker its phase by it.
pub(crate) const PR_MARK_PHASE: u32 = 0x544e_0001;
/// Requests of `ioctl` that may pass, all 64 bits compared, so that garbage above an int's 32 bits does not pass either.
pub(crate) const IOCTL_ALLOWED: u64 = libc::FIONBIO;

/// Commands of `fcntl` that copy a descriptor to the first free number from their argument on.
pub(crate) const COPIES: &[u32] = &[libc::F_DUPFD as u32, libc::F_DUPFD_CLOEXEC as u32];
/// Nothing is mapped below this at a fixed place: what dereferences a null pointer, in the kernel too, must find nothing there. It is
/// the usual value of `vm.mmap_min_addr`.
pub(crate) const LOWEST_ADDRESS: u64 = 64 * 1024;

/// Urgent data on Unix sockets has been a way into the kernel, and nothing honest sends any.
const OUT_OF_BAND: u64 = libc::MSG_OOB as u64;

/// Files without a name, set-id and sticky modes, and the device that a rename can leave behind.
const UNNAMED: u64 = 0o20_000_000;
const SPECIAL_MODES: u64 = 0o7000;
const WHITEOUT: u64 = 4;

const PRIVATE: u32 = libc::FUTEX_PRIVATE_FLAG as u32;
const BY_CLOCK: u32 = libc::FUTEX_CLOCK_REALTIME as u32;
/// What locks, condition variables and thread parking use. Priority inheritance and requeueing are code that is easy to get wrong, in
/// the kernel too.
const LOCKING: &[u32] = &[
    libc::FUTEX_WAIT as u32,
    libc::FUTEX_WAIT as u32 | PRIVATE,
    libc::FUTEX_WAKE as u32,
    libc::FUTEX_WAKE as u32 | PRIVATE,
    libc::FUTEX_WAKE_OP as u32,
    libc::FUTEX_WAKE_OP as u32 | PRIVATE,
    libc::FUTEX_WAIT_BITSET as u32,
    libc::FUTEX_WAIT_BITSET as u32 | PRIVATE,
    libc::FUTEX_WAIT_BITSET as u32 | BY_CLOCK,
    libc::FUTEX_WAIT_BITSET as u32 | PRIVATE | BY_CLOCK,
    libc::FUTEX_WAKE_BITSET as u32,
    libc::FUTEX_WAKE_BITSET as u32 | PRIVATE,
];

/// Advice about memory that concerns nobody else. Merging equal pages would tell one plugin what another holds.
const ADVICE: &[u32] = &[
    libc::MADV_NORMAL as u32,
    libc::MADV_RANDOM as u32,
    libc::MADV_SEQUENTIAL as u32,
    libc::MADV_WILLNEED as u32,
    libc::MADV_DONTNEED as u32,
    libc::MADV_FREE as u32,
    libc::MADV_HUGEPAGE as u32,
    libc::MADV_NOHUGEPAGE as u32,
    libc::MADV_DONTDUMP as u32,
];

macro_rules! allowed {
    ($($from:ident { $($number:ident, $args:expr, $why:literal;)* })*) => {
        &[$($(Allowed { number: libc::$number, args: $args, from: SeccompMode::$from, why: $why },)*)*]
    };
}

use Args::{
    All, Any, CountedWriteXorExecute, Descriptors, Equals, Handover, Heap, Not, OneOf, OwnPid, Protect,
    SecondFilter, Unmap, WithinTable, Without,
};

/// Allowed from the opening of the library on.
const CALLS: &[Allowed] = allowed! {
    Strict {
        SYS_read, Any, "the link";
        SYS_write, Any, "the link and the log pipes";
        SYS_readv, Any, "std::io";
        SYS_writev, Any, "the link: header and body in one call";
        SYS_lseek, Any, "std::io on files";
        SYS_close, Any, "descriptors of one's own";
        SYS_fcntl, Descriptors {
            commands: &[libc::F_GETFD as u32, libc::F_SETFD as u32, libc::F_GETFL as u32, libc::F_SETFL as u32],
            copies: COPIES,
        }, "runtimes duplicate and mark their descriptors";
        SYS_ioctl, Equals { arg: 1, value: IOCTL_ALLOWED }, "non-blocking mode; every other request is ENOTTY";
        SYS_newfstatat, Equals { arg: 3, value: libc::AT_EMPTY_PATH as u64 }, "the loader and std::io ask about a descriptor they hold";
        SYS_statx, Equals { arg: 2, value: libc::AT_EMPTY_PATH as u64 }, "std::fs asks about a descriptor it holds";
        SYS_fstat, Any, "the loader and std::io";
        SYS_getcwd, Any, "the loader and backtraces; the answer is /";
        SYS_brk, Heap, "malloc";
        SYS_mmap, CountedWriteXorExecute, "malloc, stacks, the loader";
        SYS_munmap, Unmap, "malloc, stacks, the loader";
        SYS_mprotect, Protect, "guard pages, RELRO; never executable";
        SYS_madvise, OneOf { arg: 2, values: ADVICE }, "malloc gives memory back; never shared with other processes";
        SYS_futex, OneOf { arg: 1, values: LOCKING }, "locks; waiting and waking only";
        SYS_clone, Equals { arg: 0, value: THREAD_FLAGS }, "threads, and nothing but threads";
        SYS_set_robust_list, Any, "a thread begins";
        SYS_rseq, Any, "a thread begins";
        SYS_sched_getaffinity, Any, "available_parallelism; there is nobody else to ask about in the pid namespace";
        SYS_sched_yield, Any, "spin locks";
        SYS_gettid, Any, "names in panic messages";
        SYS_getpid, Any, "abort and seeds of hash maps";
        SYS_tgkill, OwnPid, "abort raises a signal in its own process";
        SYS_rt_sigaction, Any, "abort resets SIGABRT";
        SYS_rt_sigprocmask, Any, "thread start and abort";
        SYS_rt_sigreturn, Any, "the end of a signal handler";
        SYS_restart_syscall, Any, "the kernel resumes a wait";
        SYS_exit, Any, "a thread ends";
        SYS_exit_group, Any, "the process ends";
        SYS_getrandom, Any, "hash seeds";
        SYS_clock_gettime, OneOf { arg: 0, values: &[0, 1, 2, 3, 4, 5, 6, 7, 11] }, "clocks of the machine and of oneself, where the vDSO has none";
        SYS_clock_nanosleep, Any, "sleep";
        SYS_epoll_ctl, Any, "tokio";
        SYS_ppoll, Any, "waiting on own descriptors";
        SYS_socketpair, Equals { arg: 0, value: libc::AF_UNIX as u64 }, "a runtime of the plugin's own wakes itself with one";
        SYS_sendto, All(&[Equals { arg: 4, value: 0 }, Without { arg: 3, mask: OUT_OF_BAND }]), "wake-ups on own sockets; no address, so no fast open";
        SYS_recvfrom, Without { arg: 3, mask: OUT_OF_BAND }, "wake-ups on own sockets";
        SYS_shutdown, Any, "the end of own sockets";
        SYS_prctl, OneOf { arg: 0, values: &[libc::PR_SET_NAME as u32, PR_SET_VMA] }, "names of threads and mappings";
        SYS_sendmsg, Handover, "the runner's own, once; the second filter of the start forbids it before the library is opened";
        SYS_seccomp, SecondFilter, "the runner's own tightening; forbidden by the filter it installs";
    }
    Basic {
        SYS_pread64, Any, "reading at a place; strict has it with a path that may be read";
        SYS_nanosleep, Any, "sleep, as other C libraries do it";
        SYS_epoll_pwait, Any, "event loops that do not use epoll_wait";
        SYS_sigaltstack, Any, "a stack for signal handlers";
        SYS_prlimit64, All(&[OneOf { arg: 0, values: &[0] }, Equals { arg: 2, value: 0 }]), "reading one's own limits, never setting them";
        SYS_uname, Any, "name and version of the kernel";
        SYS_sysinfo, Any, "memory and load of the machine";
        SYS_getrusage, Any, "counters of one's own";
        SYS_times, Any, "counters of one's own";
        SYS_clock_getres, Any, "resolution of clocks";
        SYS_gettimeofday, Any, "clocks, where the vDSO has none";
        SYS_getuid, Any, "one's own number";
        SYS_geteuid, Any, "one's own number";
        SYS_getgid, Any, "one's own number";
        SYS_getegid, Any, "one's own number";
        SYS_getppid, Any, "the stub's number, 1";
        SYS_getcpu, Any, "allocators with per-processor caches";
        SYS_membarrier, Any, "runtimes with asymmetric fences";
        SYS_mincore, Any, "allocators and garbage collectors ask which pages are there";
        SYS_pipe2, Any, "runtimes wake themselves with pipes";
        SYS_dup, Any, "descriptors of one's own";
        SYS_dup3, WithinTable { arg: 1 }, "descriptors of one's own";
        SYS_timerfd_create, Any, "timers as descriptors";
        SYS_timerfd_settime, Any, "timers as descriptors";
        SYS_timerfd_gettime, Any, "timers as descriptors";
        SYS_pselect6, Any, "waiting on own descriptors";
        SYS_pwritev, Any, "std::io";
        SYS_preadv, Any, "std::io";
        SYS_set_tid_address, Any, "a thread begins";
        SYS_rt_sigpending, Any, "signals of one's own";
        SYS_rt_sigtimedwait, Any, "signals of one's own";
        SYS_sched_getparam, Any, "questions about one's own scheduling";
        SYS_sched_getscheduler, Any, "questions about one's own scheduling";
        SYS_sched_get_priority_max, Any, "questions about scheduling";
        SYS_sched_get_priority_min, Any, "questions about scheduling";
    }
    Moderate {
        SYS_pwrite64, Any, "own files";
        SYS_signalfd4, Any, "signals as descriptors";
        SYS_sched_setaffinity, Any, "threads of one's own on processors of one's own";
        SYS_flock, Any, "locks on own files";
        SYS_fadvise64, Any, "advice about own files";
        SYS_close_range, Any, "descriptors of one's own";
    }
    Permissive {
        SYS_capget, Any, "asking for capabilities, of which there are none";
        SYS_getpgid, Any, "questions about oneself";
        SYS_getsid, Any, "questions about oneself";
        SYS_getgroups, Any, "questions about oneself";
        SYS_getresuid, Any, "questions about oneself";
        SYS_getresgid, Any, "questions about oneself";
        SYS_getpriority, Any, "questions about oneself";
        SYS_setitimer, Any, "timers of one's own";
        SYS_getitimer, Any, "timers of one's own";
        SYS_timer_create, Any, "timers of one's own";
        SYS_timer_settime, Any, "timers of one's own";
        SYS_timer_gettime, Any, "timers of one's own";
        SYS_timer_getoverrun, Any, "timers of one's own";
        SYS_timer_delete, Any, "timers of one's own";
        SYS_rt_sigsuspend, Any, "waiting for a signal of one's own";
        SYS_mlock, Any, "refused by its limit, which is zero; not by this list";
        SYS_munlock, Any, "memory of one's own";
        SYS_msync, Any, "memory of one's own";
        SYS_copy_file_range, Any, "between own files";
        SYS_splice, Any, "between own pipes and files";
        SYS_tee, Any, "between own pipes";
        SYS_sendfile, Any, "between own files";
        SYS_fsync, Any, "own files";
        SYS_fdatasync, Any, "own files";
        SYS_umask, Any, "own files";
    }
};

/// Calls of x86-64 that newer architectures do not have.
#[cfg(target_arch = "x86_64")]
const CALLS_HERE: &[Allowed] = allowed! {
    Strict {
        SYS_epoll_wait, Any, "tokio";
        SYS_poll, Any, "waiting on own descriptors";
    }
    Basic {
        SYS_time, Any, "clocks, where the vDSO has none";
        SYS_pipe, Any, "runtimes wake themselves with pipes";
        SYS_dup2, WithinTable { arg: 1 }, "descriptors of one's own";
        SYS_select, Any, "waiting on own descriptors";
        SYS_epoll_create, Any, "older runtimes";
        SYS_eventfd, Any, "older runtimes";
    }
    Permissive {
        SYS_alarm, Any, "timers of one's own";
        SYS_pause, Any, "waiting for a signal of one's own";
        SYS_getpgrp, Any, "questions about oneself";
    }
};
/// And those that the same libraries use instead where the others are not.
#[cfg(not(target_arch = "x86_64"))]
const CALLS_HERE: &[Allowed] = allowed! {
    Strict {
        SYS_epoll_pwait, Any, "tokio";
    }
};

/// With a path that may be read. Opening by path goes through the broker; below an open directory the kernel alone decides,
/// by the mount and by Landlock.
const CALLS_FOR_READING: &[Allowed] = allowed! {
    Strict {
        SYS_openat, All(&[
            Not { arg: 0, value: libc::AT_FDCWD as u32 }, Without { arg: 2, mask: UNNAMED }, Without { arg: 3, mask: SPECIAL_MODES },
        ]), "below an open directory, where only granted paths exist";
        SYS_newfstatat, Any, "asking about files; only granted paths exist";
        SYS_statx, Any, "asking about files; only granted paths exist";
        SYS_getdents64, Any, "listing directories; only granted paths exist";
        SYS_pread64, Any, "reading at a place";
    }
};

/// With a path that may be written to. The rights are those of mounts and Landlock; the filter only lets the words through.
const CALLS_FOR_WRITING: &[Allowed] = allowed! {
    Strict {
        SYS_pwrite64, Any, "files that may be written to";
        SYS_ftruncate, Any, "files that may be written to";
        SYS_fsync, Any, "files that may be written to";
        SYS_fdatasync, Any, "files that may be written to";
        SYS_mkdirat, Without { arg: 2, mask: SPECIAL_MODES }, "below a path where files may be made";
        SYS_unlinkat, Any, "below a path where files may be made";
        SYS_renameat2, Without { arg: 4, mask: WHITEOUT }, "below a path where files may be made; leaving no device behind";
        SYS_renameat, Any, "below a path where files may be made";
    }
};
#[cfg(target_arch = "x86_64")]
const CALLS_FOR_WRITING_HERE: &[Allowed] = allowed! {
    Strict {
        SYS_mkdir, Without { arg: 1, mask: SPECIAL_MODES }, "below a path where files may be made";
        SYS_rmdir, Any, "below a path where files may be made";
        SYS_unlink, Any, "below a path where files may be made";
        SYS_rename, Any, "below a path where files may be made";
    }
};
#[cfg(not(target_arch = "x86_64"))]
const CALLS_FOR_WRITING_HERE: &[Allowed] = &[];

/// Calls that the broker makes in the plugin's place, handing over what came of them: so it is the one who hears that there is no
/// room for another descriptor, which the kernel would tell only the plugin. Few and never on a hot path.
pub(crate) const MADE: &[(c_long, &str)] =
    &[(libc::SYS_epoll_create1, "tokio waits with one"), (libc::SYS_eventfd2, "tokio wakes itself with one")];

/// Calls that fail with an error instead of ending the process, because honest libraries try them and go on without.
pub(crate) const FAILING: &[(c_long, i32, &str)] = &[
    (
        libc::SYS_openat,
        libc::ENOENT,
        "answered by the broker: only the library's own parts and granted paths",
    ),
    (libc::SYS_mkdirat, libc::EROFS, "a cache or a log that a library would like to keep"),
    (libc::SYS_unlinkat, libc::EROFS, "likewise"),
    (libc::SYS_renameat, libc::EROFS, "likewise"),
    (libc::SYS_renameat2, libc::EROFS, "likewise"),
    (
        libc::SYS_clone3,
        libc::ENOSYS,
        "its flags lie in memory, out of a filter's sight; libc falls back to clone",
    ),
    (
        libc::SYS_mremap,
        libc::ENOMEM,
        "a mapping that was a stack would stay one that limits do not count; realloc goes on without",
    ),
    (libc::SYS_madvise, libc::EINVAL, "advice that other processes would notice; allocators go on without"),
    (libc::SYS_clock_gettime, libc::EINVAL, "of another process"),
    (libc::SYS_prlimit64, libc::EPERM, "of another process, or a new value"),
    (libc::SYS_ioctl, libc::ENOTTY, "whether something is a terminal; nothing is"),
    (libc::SYS_sendmsg, libc::EPERM, "could carry descriptors"),
    (libc::SYS_recvmsg, libc::EPERM, "could carry descriptors"),
    (libc::SYS_newfstatat, libc::ENOENT, "by path; the root is empty"),
    (libc::SYS_statx, libc::ENOENT, "by path; the root is empty"),
    (libc::SYS_readlinkat, libc::ENOENT, "std asks for /proc/self/exe; there is no /proc"),
    (libc::SYS_faccessat, libc::ENOENT, "the root is empty"),
    (libc::SYS_faccessat2, libc::ENOENT, "the root is empty"),
    (libc::SYS_uname, libc::EPERM, "nothing about the host"),
    (libc::SYS_sysinfo, libc::EPERM, "nothing about the host"),
    (libc::SYS_getrusage, libc::EPERM, "counters of little use and some leak"),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_mkdir, libc::EROFS, "likewise"),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_rmdir, libc::EROFS, "likewise"),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_unlink, libc::EROFS, "likewise"),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_rename, libc::EROFS, "likewise"),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_open, libc::ENOENT, "the old way to open by path"),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_readlink, libc::ENOENT, "std asks for /proc/self/exe; there is no /proc"),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_access, libc::ENOENT, "the loader asks for /etc/ld.so.preload"),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_stat, libc::ENOENT, "by path; the root is empty"),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_lstat, libc::ENOENT, "by path; the root is empty"),
];

/// Calls that no mode contains and no operator can add: they make processes, change what this process is, reach other
/// processes or the network, or are whole machines of their own inside the kernel.
pub(crate) const NEVER: &[c_long] = &[
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_clone,
    libc::SYS_clone3,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_kcmp,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_getfd,
    libc::SYS_pidfd_send_signal,
    libc::SYS_kill,
    libc::SYS_tkill,
    libc::SYS_tgkill,
    libc::SYS_rt_sigqueueinfo,
    libc::SYS_rt_tgsigqueueinfo,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_fsopen,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_fsconfig,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_mount_setattr,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_syslog,
    libc::SYS_personality,
    libc::SYS_open_by_handle_at,
    libc::SYS_name_to_handle_at,
    libc::SYS_openat2,
    libc::SYS_openat,
    libc::SYS_mknodat,
    libc::SYS_symlinkat,
    libc::SYS_linkat,
    libc::SYS_fchmodat,
    libc::SYS_fchownat,
    libc::SYS_socket,
    libc::SYS_connect,
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_sendmsg,
    libc::SYS_sendmmsg,
    libc::SYS_recvmsg,
    libc::SYS_recvmmsg,
    libc::SYS_sendto,
    libc::SYS_shmget,
    libc::SYS_shmat,
    libc::SYS_shmctl,
    libc::SYS_msgget,
    libc::SYS_semget,
    libc::SYS_mq_open,
    libc::SYS_setuid,
    libc::SYS_setgid,
    libc::SYS_setreuid,
    libc::SYS_setregid,
    libc::SYS_setresuid,
    libc::SYS_setresgid,
    libc::SYS_setgroups,
    libc::SYS_setfsuid,
    libc::SYS_setfsgid,
    libc::SYS_capset,
    libc::SYS_seccomp,
    libc::SYS_prctl,
    libc::SYS_prlimit64,
    libc::SYS_setrlimit,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_pkey_mprotect,
    libc::SYS_memfd_create,
    libc::SYS_memfd_secret,
    libc::SYS_getsockopt,
    libc::SYS_mremap,
    libc::SYS_remap_file_pages,
    libc::SYS_ioctl,
    libc::SYS_fcntl,
    libc::SYS_landlock_create_ruleset,
    libc::SYS_landlock_restrict_self,
    libc::SYS_fanotify_init,
    libc::SYS_vhangup,
    libc::SYS_lookup_dcookie,
    libc::SYS_nfsservctl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_fork,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_vfork,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_modify_ldt,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_iopl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ioperm,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_arch_prctl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_mknod,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_symlink,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_link,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_chmod,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_open,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_kexec_file_load,
];

/// True if a mode contains what `from` introduced.
fn contains(mode: SeccompMode, from: SeccompMode) -> bool {
    from.width() <= mode.width()
}

/// Every entry of a mode, with the grants' own.
pub(crate) fn entries(mode: SeccompMode, paths: &[PathGrant]) -> Vec<&'static Allowed> {
    let reading = if paths.is_empty() { &[] } else { CALLS_FOR_READING };
    let writes = paths.iter().any(|grant| grant.write || grant.create);
    let (writing, writing_here) =
        if writes { (CALLS_FOR_WRITING, CALLS_FOR_WRITING_HERE) } else { (&[] as &[_], &[] as &[_]) };
    CALLS
        .iter()
        .chain(CALLS_HERE)
        .chain(reading)
        .chain(writing)
        .chain(writing_here)
        .filter(|entry| contains(mode, entry.from))
        .collect()
}

/// The entries of calls that an operator added, with the rules of the list they come from.
pub(crate) fn entries_of(added: &[c_long]) -> Vec<&'static Allowed> {
    let all = entries(SeccompMode::Permissive, &[]);
    all.into_iter().filter(|entry| added.contains(&entry.number)).collect()
}

/// Numbers of the calls that an operator added by name: those of the longest list and no others, because a call that nobody
/// has looked at may be a way out.
pub(crate) fn added(names: &[String]) -> Result<Vec<c_long>, String> {
    let candidates = entries(SeccompMode::Permissive, &[]);
    let number = |name: &String| match number_of(name) {
        None => Err(format!("{name:?} is no system call of this machine")),
        Some(number) if NEVER.contains(&number) => Err(format!(
            "{name} is never allowed: it makes processes, reaches out of the sandbox, or takes walls down"
        )),
        Some(number)
            if candidates
                .iter()
                .any(|entry| entry.number == number && matches!(entry.args, Any | WithinTable { .. })) =>
        {
            Ok(number)
        }
        Some(_) => Err(format!(
            "{name} is on no list; `thenodes-runner --explain permissive` prints what can be added"
        )),
    };
    names.iter().map(number).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_entry_has_a_reason_and_stands_once() {
        for mode in SeccompMode::ALL {
            let mut numbers: Vec<_> = entries(mode, &[]).iter().map(|entry| entry.number).collect();
            let count = numbers.len();
            numbers.sort_unstable();
            numbers.dedup();
            assert_eq!(numbers.len(), count, "a system call stands twice in {mode:?}");
            assert!(entries(mode, &[])
                .iter()
                .all(|entry| !entry.why.is_empty() && entry.name() != "unknown"));
        }
        let listed = entries(SeccompMode::Permissive, &[]);
        assert!(MADE.iter().all(|(number, _)| listed.iter().all(|entry| entry.number != *number)));
        assert!(FAILING.iter().all(|(number, _, why)| !why.is_empty() && name_of(*number).is_some()));
    }

    #[test]
    fn modes_grow_and_none_contains_what_is_never_allowed() {
        let sizes = [SeccompMode::Strict, SeccompMode::Basic, SeccompMode::Moderate, SeccompMode::Permissive]
            .map(|mode| entries(mode, &[]).len());
        assert!(sizes.is_sorted() && sizes[0] < sizes[3], "{sizes:?}");
        let everything = [PathGrant { path: "/x".into(), read: true, write: true, create: true }];
        for entry in entries(SeccompMode::Permissive, &everything) {
            // What is never allowed as such may be allowed for one harmless argument.
            assert!(!NEVER.contains(&entry.number) || !matches!(entry.args, Any), "{}", entry.name());
        }
    }

    #[test]
    fn an_operator_can_add_a_call_but_not_one_of_those() {
        assert_eq!(added(&["uname".into()]), Ok(vec![libc::SYS_uname]));
        let copy = added(&["dup3".into()]).expect("on a list");
        let rules: Vec<_> = entries_of(&copy).iter().map(|entry| entry.args).collect();
        assert!(matches!(rules[..], [WithinTable { arg: 1 }]), "with its rule: {rules:?}");
        for never in [
            "execve",
            "socket",
            "ptrace",
            "mmap",
            "openat",
            "clone3",
            "fchmod",
            "memfd_create",
            "no_such_call",
        ] {
            assert!(added(&[never.into()]).is_err(), "{never}");
        }
    }
}
