//! Raising one's own limits, changing those of others, and taking kernel memory that limits do not see. What ends at a limit
//! of its own (memory, threads) is a sin with a number for an answer, not a probe.

use super::call::{no, or_stdout, pair, pid, At};
use super::Probe;
use std::os::fd::AsRawFd;

const GROUP: &str = "resources";

/// More than a plugin may have, less than what everybody has.
const MANY: usize = 512;

pub(super) const PROBES: &[Probe] = &[
    probe!("prlimit-raise", "raising its own limits (prlimit)", None, |_| {
        let limits = limits()?;
        sys!(SYS_prlimit64, 0, libc::RLIMIT_NOFILE, limits.as_ptr(), 0)
    }),
    probe!("setrlimit", "raising its own limits (setrlimit)", None, |_| {
        let limits = limits()?;
        sys!(SYS_setrlimit, libc::RLIMIT_NOFILE, limits.as_ptr())
    }),
    probe!("prlimit-read-other", "another process's limits", Pid, |arg| {
        let mut limits = [0u64; 2];
        sys!(SYS_prlimit64, pid(arg), libc::RLIMIT_NOFILE, 0, limits.as_mut_ptr())
    }),
    probe!("prlimit-set-other", "changing another process's limits", Pid, |arg| {
        // The soft limit of core files to none: a victim made for it does not mind.
        let mut limits = [0u64; 2];
        let _ = sys!(SYS_prlimit64, pid(arg), libc::RLIMIT_CORE, 0, limits.as_mut_ptr());
        limits[0] = 0;
        sys!(SYS_prlimit64, pid(arg), libc::RLIMIT_CORE, limits.as_ptr(), 0)
    }),
    probe!("many-descriptors", "hundreds of descriptors", None, |_| {
        let made = (0..MANY).map_while(|_| sys!(SYS_eventfd2, 0, 0).ok()).count();
        if made < MANY {
            return no(format!("{made} at most"));
        }
        Ok(format!("{made}"))
    }),
    probe!("pipe-size", "a larger pipe (F_SETPIPE_SZ)", None, |_| {
        touch!(SYS_fcntl, 1, libc::F_SETPIPE_SZ, 1 << 17);
        let mut ends = [0i32; 2];
        sys!(SYS_pipe2, ends.as_mut_ptr(), 0).at("pipe2")?;
        sys!(SYS_fcntl, ends[1], libc::F_SETPIPE_SZ, 1 << 17)
    }),
    probe!("socket-buffer", "larger buffers of a socket (SO_SNDBUF)", None, |_| {
        let (socket, _peer) = pair(libc::SOCK_STREAM)?;
        let size = 1i32 << 17;
        let value = std::ptr::from_ref(&size);
        sys!(SYS_setsockopt, socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_SNDBUF, value, 4)
    }),
    probe!("wake-from-sleep", "waking the machine from its sleep", None, |_| {
        sys!(SYS_timerfd_create, libc::CLOCK_BOOTTIME_ALARM, 0)
    })
    .root_only("needs CAP_WAKE_ALARM"),
    probe!("lease", "a lease on a file, which makes others wait (F_SETLEASE)", CanaryFile, |arg| {
        let fd = super::call::open(super::call::file(arg), libc::O_RDONLY);
        sys!(SYS_fcntl, or_stdout(&fd), libc::F_SETLEASE, libc::F_RDLCK)
    }),
    probe!("directory-notify", "signals when a directory changes (F_NOTIFY)", CanaryDir, |arg| {
        let fd = super::call::open(super::call::dir(arg), libc::O_RDONLY);
        const DN_ACCESS: i32 = 1;
        sys!(SYS_fcntl, or_stdout(&fd), libc::F_NOTIFY, DN_ACCESS)
    }),
];

/// Its limit of descriptors, with all the room there is.
fn limits() -> std::io::Result<[u64; 2]> {
    let mut limits = [0u64; 2];
    sys!(SYS_prlimit64, 0, libc::RLIMIT_NOFILE, 0, limits.as_mut_ptr()).at("reading them")?;
    limits[0] = limits[1];
    Ok(limits)
}
