//! The outermost process: leaves the node's uid and namespaces, then watches. It never maps the library, so what it says
//! about the end of the plugin is true, and it ends the plugin when the node is gone, however the node ended.

use crate::confine::{namespaces, Walls};
use crate::link::Link;
use crate::sys;
use nix::errno::Errno;
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use nix::sys::signal::{kill, Signal};
use nix::unistd::{getppid, pipe2, read, ForkResult, Pid};
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;
use thenodes_ipc::launch::NodeHello;

/// Who this process is after [`detach`].
pub(crate) enum Role {
    Warden(Watch),
    Stub(Leash),
}

/// What the warden holds.
pub(crate) struct Watch {
    node: OwnedFd,
    stub: Pid,
    /// Four bytes come out of it: the wait status of the runner, as the stub saw it.
    verdict: OwnedFd,
    /// Closing it, which the kernel does when the warden ends, tells the stub to end.
    _leash: OwnedFd,
}

/// What the stub holds of its warden.
pub(crate) struct Leash {
    /// Hangs up when the warden is gone.
    pub(crate) hangup: OwnedFd,
    /// Where the runner's wait status goes.
    pub(crate) verdict: OwnedFd,
    /// `/dev/null`, opened while there is a `/dev`.
    pub(crate) null: OwnedFd,
}

/// Leaves uid and namespaces, and forks the stub into the new pid namespace.
pub(crate) fn detach(hello: &NodeHello, walls: &mut Walls) -> Result<Role, String> {
    let parent = getppid();
    if parent.as_raw() != hello.node_pid {
        return Err("the node that asked for this runner has gone".into());
    }
    let node = sys::pidfd_open(parent).map_err(|e| format!("watching the node: pidfd_open: {e}"))?;
    if getppid() != parent {
        return Err("the node has gone meanwhile".into());
    }
    let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null");
    let null = OwnedFd::from(null.map_err(|e| format!("opening /dev/null: {e}"))?);
    // Where memory ends for all, plugins go first. Raising the score needs no right; without it only the order differs.
    let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
    if let Some(uid) = hello.run_as {
        namespaces::become_uid(uid).map_err(|e| format!("becoming uid {uid}: {e}"))?;
    }
    namespaces::leave(walls);
    let (hangup, leash) = pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(|e| format!("pipe: {e}"))?;
    let (verdict_out, verdict_in) = pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(|e| format!("pipe: {e}"))?;
    match sys::fork().map_err(|e| format!("forking the stub: {e}"))? {
        ForkResult::Child => Ok(Role::Stub(Leash { hangup, verdict: verdict_in, null })),
        ForkResult::Parent { child } => {
            drop(verdict_in);
            Ok(Role::Warden(Watch { node, stub: child, verdict: verdict_out, _leash: leash }))
        }
    }
}

impl Watch {
    /// Waits until the plugin or the node has ended, and ends the same way as the plugin.
    pub(crate) fn until_the_end(self, link: &Link) -> ExitCode {
        // Only the runner keeps link and log pipes: their end of file must mean the runner's end.
        for fd in [link.raw_fd(), 1, 2] {
            let _ = nix::unistd::close(fd);
        }
        loop {
            let mut waiting = [
                PollFd::new(self.node.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.verdict.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut waiting, PollTimeout::NONE) {
                Ok(_) => {}
                Err(Errno::EINTR) => continue,
                // Without eyes the warden must not keep anything alive.
                Err(_) => {
                    let _ = kill(self.stub, Signal::SIGKILL);
                    sys::exit_now(1);
                }
            }
            let [node, verdict] = waiting.map(|fd| fd.revents().is_some_and(|e| !e.is_empty()));
            if node {
                // The stub is pid 1 of the namespace: everything in it dies with it.
                let _ = kill(self.stub, Signal::SIGKILL);
                let _ = sys::wait_any(true);
                sys::exit_now(0);
            }
            if verdict {
                break;
            }
        }
        let mut raw = [0; 4];
        let told = matches!(read(self.verdict.as_fd(), &mut raw), Ok(4));
        // The stub's own end says why, if it could not say what became of the runner.
        let of_stub = sys::wait_any(true).ok().flatten().map_or(1 << 8, |(_, status)| status);
        sys::die_as(if told { i32::from_ne_bytes(raw) } else { of_stub })
    }
}
