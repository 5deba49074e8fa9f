//! The group by which a tree is killed at once, where it is not the one that holds the limits: filled while the tree starts,
//! because to move a process the kernel waits for all processors. The kernel says who is to be moved; the plugin is not asked.

use super::files::{read, write};
use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

/// How often the list of a tree's processes is read again while they are moved: it has three, and makes no more.
const MAX_PASSES: usize = 8;

/// Fills the group by which a whole tree can be killed, while the tree lives already: it holds no limit, and until it is filled the
/// tree ends with its pid namespace as it always does.
#[derive(Debug)]
pub struct Late {
    pub(super) group: PathBuf,
    /// Where the kernel says which processes the tree has.
    pub(super) born_in: PathBuf,
    pub(super) lost: Arc<AtomicBool>,
}

impl Late {
    /// Moves every process of the tree. It blocks like [`Leaf::attach`](super::Leaf::attach).
    pub fn fill(self) {
        let list = |dir: &Path| -> BTreeSet<u32> {
            let text = read(&dir.join("cgroup.procs")).unwrap_or_default();
            text.lines().filter_map(|line| line.parse().ok()).collect()
        };
        let own = std::process::id();
        let mut moved = BTreeSet::from([own]);
        let mut failed = None;
        for _ in 0..MAX_PASSES {
            // Children of a process that was moved are born in the group: a pass that finds nobody new has found them all.
            let new: Vec<u32> = list(&self.born_in).difference(&moved).copied().collect();
            if new.is_empty() {
                break;
            }
            for pid in new {
                failed = failed.or(write(&self.group, "cgroup.procs", &pid.to_string()).err());
                moved.insert(pid);
            }
        }
        // A pid that was given out again between reading and moving is somebody else's.
        let ours = list(&self.born_in);
        for pid in list(&self.group).difference(&ours) {
            let _ = self.group.parent().map(|own| write(own, "cgroup.procs", &pid.to_string()));
        }
        // Whoever ended meanwhile need not be killed, and then neither process nor group may be there.
        let gone = |error: &io::Error| error.raw_os_error() == Some(nix::errno::Errno::ESRCH as i32);
        if let Some(error) = failed.filter(|error| !gone(error) && self.group.exists()) {
            tracing::warn!(
                "control group {}: {error}; a plugin's processes are killed one by one",
                self.group.display()
            );
            self.lost.store(true, Ordering::Relaxed);
        }
    }
}
