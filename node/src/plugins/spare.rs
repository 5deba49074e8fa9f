//! A spare: one runner that was executed before anybody needs it, in a control group of its own, and waits for its `hello`. A start
//! that takes it saves the exec, and where version 2 holds limits the 10 to 30 ms that the kernel takes to move a process. Such a
//! runner is what each one is before its `hello`: it has a socket and two pipes, knows nothing of any plugin, and ends when the
//! node does. It is not forked from another (all plugins would share one layout of addresses): each has been executed by itself.
//!
//! There is at most one, made when nothing has been starting for a moment (or for two seconds something always was); a node that
//! has started no plugin has none. One that has ended, or whose program is no longer the one in its place (an upgrade of the
//! package), is never used; the next start finds that out.

use super::cgroup::Cgroups;
use super::process::{self, Waiting};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{watch, Mutex};

/// How long a spare waits to be made while starts are under way: one of them may take long.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long the end of a node waits for the end of its spare, which dies with the node at the latest.
const END_PATIENCE: Duration = Duration::from_secs(3);

/// How long nothing starts before one is made: whoever was just started, and waits for that, goes first.
const PAUSE: Duration = Duration::from_millis(50);

/// Which file a program is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

impl Identity {
    fn of(program: &Path) -> Option<Identity> {
        let file = std::fs::metadata(program).ok()?;
        let changed = (file.ctime(), file.ctime_nsec());
        Some(Identity { device: file.dev(), inode: file.ino(), size: file.size(), changed })
    }
}

#[derive(Debug)]
struct Held {
    waiting: Waiting,
    program: Identity,
}

#[derive(Debug, Default)]
struct Starts {
    under_way: usize,
    /// So many are over: each of them may have taken the spare.
    over: u64,
    /// The node is ending, and makes no more.
    ending: bool,
}

/// Keeps the spare of one node. Dropping it ends it; [`Spare::end`] waits for that.
#[derive(Debug)]
pub struct Spare {
    runner: PathBuf,
    held: Arc<Mutex<Option<Held>>>,
    starts: watch::Sender<Starts>,
}

/// A start under way: a spare waits with being made.
#[derive(Debug)]
pub struct Turn(Arc<Spare>);

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.starts.send_modify(|starts| {
            starts.under_way -= 1;
            starts.over += 1;
        });
    }
}

impl Spare {
    /// Starts the task that makes them. None is made before the first start is over.
    pub fn keep(runner: PathBuf, cgroups: Arc<Cgroups>) -> Arc<Spare> {
        let (starts, seen) = watch::channel(Starts::default());
        let held = Arc::default();
        tokio::spawn(keep(runner.clone(), cgroups, seen, Arc::clone(&held)));
        Arc::new(Spare { runner, held, starts })
    }

    /// Says that a start is under way, until the turn is dropped.
    pub fn turn(self: &Arc<Self>) -> Turn {
        self.starts.send_modify(|starts| starts.under_way += 1);
        Turn(self.clone())
    }

    /// The spare, if there is one that is as good as new. Waits for nothing: whoever comes while one is being made has none.
    pub fn take(&self) -> Option<Waiting> {
        let Held { mut waiting, program } = self.held.try_lock().ok()?.take()?;
        if Identity::of(&self.runner) == Some(program) && waiting.lives() {
            return Some(waiting);
        }
        tracing::debug!("the spare runner has ended, or its program is not the one that is there now");
        tokio::spawn(waiting.end());
        None
    }

    /// True if there is one now.
    pub fn is_there(&self) -> bool {
        self.held.try_lock().is_ok_and(|held| held.is_some())
    }

    /// Ends it, and makes no other. At most three seconds.
    pub async fn end(&self) {
        self.starts.send_modify(|starts| starts.ending = true);
        let ended = async {
            let held = self.held.lock().await.take();
            if let Some(held) = held {
                held.waiting.end().await;
            }
        };
        if tokio::time::timeout(END_PATIENCE, ended).await.is_err() {
            tracing::warn!("the spare runner does not end; it does when this process has ended");
        }
    }
}

/// Makes one whenever a start was over, until the node ends.
async fn keep(
    runner: PathBuf,
    cgroups: Arc<Cgroups>,
    mut starts: watch::Receiver<Starts>,
    held: Arc<Mutex<Option<Held>>>,
) {
    let mut seen = 0;
    while starts.wait_for(|starts| starts.over != seen || starts.ending).await.is_ok() {
        let _ = tokio::time::timeout(PATIENCE, quiet(&mut starts)).await;
        let mut held = held.lock().await;
        // Asked behind the lock: whoever ends it says so first, and then takes what is there.
        // One look: two in a statement would wait for each other if somebody wrote between them.
        let (over, ending) = {
            let now = starts.borrow();
            (now.over, now.ending)
        };
        if ending || starts.has_changed().is_err() {
            return;
        }
        seen = over;
        if held.is_none() {
            *held = make(&runner, &cgroups).await;
        }
    }
}

/// Until nothing has been starting for a while.
async fn quiet(starts: &mut watch::Receiver<Starts>) {
    loop {
        let _ = starts.wait_for(|starts| starts.under_way == 0 || starts.ending).await;
        let busy = starts.wait_for(|starts| starts.under_way > 0 || starts.ending);
        match tokio::time::timeout(PAUSE, busy).await {
            Ok(Ok(starts)) if !starts.ending => {}
            _ => return,
        }
    }
}

/// Without one everything works, only slower: an error is for whoever looks for it. The start before has seen to the janitor of its
/// control group.
async fn make(runner: &Path, cgroups: &Cgroups) -> Option<Held> {
    let program = Identity::of(runner)?;
    match process::execute(runner, cgroups.leaf("spare")).await {
        Ok(waiting) => Some(Held { waiting, program }),
        Err(error) => {
            tracing::debug!("making a spare runner, {}: {error}", runner.display());
            None
        }
    }
}
