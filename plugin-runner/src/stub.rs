//! Process 1 of the plugin's pid namespace. It exists so that the plugin is not process 1: for that one the kernel turns
//! `abort` into something else and ignores signals. It reaps, tells the warden the true status, and its end ends all.

use crate::link::Link;
use crate::sys;
use crate::warden::Leash;
use nix::errno::Errno;
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use nix::sys::signal::{kill, SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::{write, ForkResult, Pid};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// Who this process is after [`split`].
pub(crate) enum Role {
    Stub(Reaper),
    Runner(Leash),
}

/// What the stub holds.
pub(crate) struct Reaper {
    leash: Leash,
    runner: Pid,
    runner_fd: OwnedFd,
}

/// Binds the stub's life to the warden's and forks the runner.
pub(crate) fn split(leash: Leash) -> Result<Role, String> {
    die_with_parent()?;
    if hung_up(&leash)? {
        return Err("the warden or the node has gone".into());
    }
    let me = nix::unistd::getpid();
    match sys::fork().map_err(|e| format!("forking the runner: {e}"))? {
        ForkResult::Child => {
            die_with_parent()?;
            if nix::unistd::getppid() != me {
                return Err("the stub has gone".into());
            }
            Ok(Role::Runner(leash))
        }
        ForkResult::Parent { child } => {
            let runner_fd = sys::pidfd_open(child).map_err(|e| format!("watching the runner: {e}"))?;
            Ok(Role::Stub(Reaper { leash, runner: child, runner_fd }))
        }
    }
}

fn die_with_parent() -> Result<(), String> {
    // Sound here: the parent has one thread, whose end is the parent's end.
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).map_err(|e| format!("PR_SET_PDEATHSIG: {e}"))
}

fn hung_up(leash: &Leash) -> Result<bool, String> {
    let mut fds = [&leash.hangup, &leash.node].map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN));
    poll(&mut fds, PollTimeout::ZERO).map_err(|e| format!("poll: {e}"))?;
    Ok(fds.iter().any(|fd| fd.revents().is_some_and(|e| !e.is_empty())))
}

/// SIGTERM as something to be read. The node sends it to the warden, which passes it to the stub, and that to the runner: a plugin
/// that overlooks the end of its link may have a handler for it, and else it ends there and then.
pub(crate) struct Term(SignalFd);

impl Term {
    /// Takes it away from this process; `None` if the kernel has nothing to read it from.
    pub(crate) fn take() -> Option<Term> {
        let mut set = SigSet::empty();
        set.add(Signal::SIGTERM);
        let fd = SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC).ok()?;
        set.thread_block().ok()?; // the only thread
        Some(Term(fd))
    }

    /// Reads it, and sends it on.
    pub(crate) fn pass_on(&self, to: Pid) {
        if let Ok(Some(_)) = self.0.read_signal() {
            let _ = kill(to, Signal::SIGTERM); // whoever has ended meanwhile needs it no more
        }
    }

    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Reaper {
    /// Waits for the runner's end, the warden's or the node's, and ends.
    pub(crate) fn until_the_end(self, link: &Link) -> ! {
        let Leash { null, proc, confidence, .. } = &self.leash;
        for fd in [link.raw_fd(), 1, 2, null.as_raw_fd(), proc.as_raw_fd(), confidence.as_raw_fd()] {
            let _ = nix::unistd::close(fd);
        }
        // Process 1 hears no signal that it did not ask for.
        let term = Term::take();
        loop {
            let mut waiting = vec![
                PollFd::new(self.leash.hangup.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.leash.node.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.runner_fd.as_fd(), PollFlags::POLLIN),
            ];
            if let Some(term) = &term {
                waiting.push(PollFd::new(term.as_fd(), PollFlags::POLLIN));
            }
            match poll(&mut waiting, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(_) => sys::exit_now(1),
            }
            if waiting[..2].iter().any(|fd| fd.revents().is_some_and(|e| !e.is_empty())) {
                sys::exit_now(1); // the kernel kills the namespace with its process 1
            }
            let told = waiting.get(3).is_some_and(|fd| fd.revents().is_some_and(|e| !e.is_empty()));
            if let (Some(term), true) = (&term, told) {
                term.pass_on(self.runner);
            }
            loop {
                match sys::wait_any(false) {
                    Ok(None) => break,
                    Ok(Some((pid, status))) if pid == self.runner => self.tell(status),
                    Ok(Some(_)) => {} // an orphan of the plugin; the filter allows none, but a stub reaps
                    Err(_) => sys::exit_now(1),
                }
            }
        }
    }

    /// Tells the warden the wait status and ends.
    fn tell(&self, raw: i32) -> ! {
        let _ = write(self.leash.verdict.as_fd(), &raw.to_ne_bytes());
        sys::exit_now(0)
    }
}
