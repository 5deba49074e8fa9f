//! Signals to others and tricks with one's own. Signal 0 only asks whether it would be allowed, which is as good as a proof.

use super::call::{open, or_stdout, pid};
use super::Probe;
use std::sync::atomic::{AtomicBool, Ordering};

const GROUP: &str = "signals";

const F_SETSIG: i32 = 10;

pub(super) const PROBES: &[Probe] = &[
    probe!("kill-all", "signalling everybody", None, |_| sys!(SYS_kill, -1, 0)),
    probe!("kill-group", "signalling the process group", None, |_| sys!(SYS_kill, 0, 0)),
    probe!("kill-parent", "signalling the parent", None, |_| {
        touch!(SYS_kill, 1, 0);
        let parent = sys!(SYS_getppid)?;
        sys!(SYS_kill, parent, 0)
    }),
    probe!("kill-init", "signalling process 1", None, |_| sys!(SYS_kill, 1, 0))
        .root_only("process 1 is root's"),
    probe!("kill-other", "signalling another process", Pid, |arg| sys!(SYS_kill, pid(arg), 0)),
    probe!("tkill-other", "signalling another process's thread (tkill)", Pid, |arg| sys!(
        SYS_tkill,
        pid(arg),
        0
    )),
    probe!("tgkill-other", "signalling another process's thread (tgkill)", Pid, |arg| {
        sys!(SYS_tgkill, pid(arg), pid(arg), 0)
    }),
    probe!("sigqueue-other", "a signal with data to another process", Pid, |arg| {
        let info = queued();
        sys!(SYS_rt_sigqueueinfo, pid(arg), 0, info.as_ptr())
    }),
    probe!("tgsigqueue-other", "a signal with data to another process's thread", Pid, |arg| {
        let info = queued();
        sys!(SYS_rt_tgsigqueueinfo, pid(arg), pid(arg), 0, info.as_ptr())
    }),
    probe!("pidfd-signal", "signalling another process by a handle", Pid, |arg| {
        // A directory of /proc is as good a handle as pidfd_open's, and needs only open.
        let process = open(&format!("/proc/{}", pid(arg)), libc::O_RDONLY);
        sys!(SYS_pidfd_send_signal, or_stdout(&process), 0, 0, 0)
    }),
    probe!("fcntl-setown", "having another process signalled for a descriptor (F_SETOWN)", Pid, |arg| {
        sys!(SYS_fcntl, 1, libc::F_SETOWN, pid(arg))
    }),
    probe!("fcntl-setsig", "choosing the signal of a descriptor (F_SETSIG)", None, |_| {
        sys!(SYS_fcntl, 1, F_SETSIG, 0)
    }),
    probe!("catch-denial", "outliving a refused call by catching its signal", None, |_| {
        // A filter that traps instead of killing leaves the attacker alive to try the next thing.
        static CAUGHT: AtomicBool = AtomicBool::new(false);
        extern "C" fn catch(_: i32) {
            CAUGHT.store(true, Ordering::SeqCst);
        }
        // SAFETY: the handler only stores.
        unsafe { libc::signal(libc::SIGSYS, catch as extern "C" fn(i32) as libc::sighandler_t) };
        let socket = sys!(SYS_socket, libc::AF_INET, libc::SOCK_STREAM, 0);
        if CAUGHT.load(Ordering::SeqCst) {
            return Ok("the signal was caught".to_owned());
        }
        socket.map(|_| "nothing was refused".to_owned())
    }),
    probe!("ignore-denial", "outliving a refused call by ignoring and blocking its signal", None, |_| {
        // SAFETY: sets of signals are plain memory.
        unsafe {
            libc::signal(libc::SIGSYS, libc::SIG_IGN);
            let mut every: libc::sigset_t = std::mem::zeroed();
            libc::sigfillset(&mut every);
            libc::sigprocmask(libc::SIG_SETMASK, &every, std::ptr::null_mut());
        }
        sys!(SYS_ptrace, libc::PTRACE_TRACEME, 0, 0, 0)
    }),
    probe!("timer", "a kernel timer that sends signals", None, |_| {
        let mut timer = 0i32;
        sys!(SYS_timer_create, libc::CLOCK_MONOTONIC, 0, std::ptr::from_mut(&mut timer))?;
        sys!(SYS_timer_delete, timer)
    }),
];

/// A `siginfo_t` that says `SI_QUEUE`, as the C library's sigqueue would.
fn queued() -> [i32; 32] {
    let mut info = [0i32; 32];
    info[2] = libc::SI_QUEUE;
    info
}
