//! How a process ends: what is open may finish, `on_stop` says goodbye, the link closes, then TERM, then KILL; each with a time of
//! its own (`limits`). A process that does not want to end ends all the same.

use super::left::{Phase, StateDesk};
use super::process::News;
use crate::plugins::lifecycle::Cause;
use crate::plugins::link::{Ended, Link};
use crate::plugins::way::Way;
use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Duration;
use thenodes_ipc::{limits, Generation};
use tokio::process::Child;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

/// How long a killed process may take to be gone before it is left to the kernel.
const KILL_PATIENCE: Duration = Duration::from_secs(2);

/// How long the kernel may take to end the tree of a process that has ended, before it is killed.
const BURIAL_PATIENCE: Duration = Duration::from_secs(1);

/// How a process is to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Farewell {
    /// How long open calls may end before `on_stop`.
    pub(super) drain: Duration,
    /// How long those that are open still may go on after it.
    pub(super) linger: Duration,
}

impl Farewell {
    /// Nobody takes its place, or somebody does later.
    pub(super) const STOP: Farewell = Farewell { drain: limits::STOP_DRAIN, linger: Duration::ZERO };
    /// Another process has its place already.
    pub(super) const REPLACED: Farewell = Farewell { drain: limits::UPGRADE_DRAIN, linger: Duration::ZERO };
    /// Another one waits for its state.
    pub(super) const HAND_OVER: Farewell = Farewell {
        drain: limits::HAND_OVER_DRAIN,
        linger: limits::UPGRADE_DRAIN.saturating_sub(limits::HAND_OVER_DRAIN),
    };
}

/// After the calls were drained: `on_stop`, what it leaves, and those who are still inside.
pub(super) async fn say_goodbye(
    link: &mut Link,
    way: &Way,
    desk: &StateDesk,
    linger: Duration,
    (generation, news): (Generation, &mpsc::Sender<(Generation, News)>),
) -> Ended {
    desk.enter(Phase::Stopping);
    let stop = way.caller().call("stop", Vec::new(), limits::STOP_DEADLINE);
    let ended = tokio::select! {
        _ = stop => None,
        ended = link.ended() => Some(ended),
    };
    desk.enter(Phase::Serving);
    let _ = news.send((generation, News::Left(desk.take()))).await;
    if ended.is_none() && !linger.is_zero() {
        tokio::select! {
            _ = timeout(linger, way.drained()) => {}
            _ = link.ended() => {}
        }
    }
    Ended::Because(Cause::Asked)
}

/// Waits for the end of the process, or makes it, and finds the true cause. `verdict` comes with the process's own end, before its tree
/// is gone.
pub(super) async fn end_process(
    child: &mut Child,
    ended: Ended,
    verdict: oneshot::Receiver<ExitStatus>,
) -> Cause {
    let (grace, term) = match ended {
        Ended::Closed | Ended::Cut => (Duration::from_secs(1), false), // the wait status follows the closed link at once
        Ended::Because(Cause::Asked) => (limits::TERM_GRACE, true),
        Ended::Because(_) => (Duration::ZERO, false),
    };
    let mut status = timeout(grace, async {
        tokio::select! {
            biased;
            Ok(status) = verdict => Ok(status),
            status = child.wait() => status,
        }
    })
    .await;
    if let (Err(_), true, Some(pid)) = (&status, term, child.id()) {
        // To the warden, which was not reaped, so that its number is nobody else's; it passes it on.
        let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGTERM);
        status = timeout(limits::TERM_GRACE, child.wait()).await;
    }
    let status = match status {
        Ok(status) => status.ok(),
        Err(_) => {
            kill_tree(child).await;
            None
        }
    };
    match (ended, status) {
        (Ended::Because(cause), _) => cause,
        (Ended::Closed, Some(status)) => cause_of(status),
        // Who is killed cannot finish what it says; who ends by itself could have.
        (Ended::Cut, Some(status)) if status.signal().is_some() => cause_of(status),
        (Ended::Cut, _) => Cause::Violation("the link ended inside a frame".into()),
        (Ended::Closed, None) => Cause::Violation("closed the link and went on".into()),
    }
}

/// The warden dies, the kernel kills the stub with it, and the namespace with the stub. One that the kernel cannot end now (it waits
/// for a device) is left to it: nobody waits with it.
async fn kill_tree(child: &mut Child) {
    let _ = child.start_kill();
    let _ = timeout(KILL_PATIENCE, child.wait()).await;
}

/// Waits until the tree of a process that has ended is gone, or makes it.
pub(super) async fn bury(child: &mut Child) {
    if timeout(BURIAL_PATIENCE, child.wait()).await.is_err() {
        kill_tree(child).await;
    }
}

fn cause_of(status: ExitStatus) -> Cause {
    match (status.signal(), status.code()) {
        (Some(signal), _) => Cause::Signal(signal),
        (None, Some(code)) => Cause::Exit(code),
        (None, None) => Cause::Exit(-1),
    }
}
