//! The janitor: one small process per node that removes the node's control groups when the node is gone, however it ended. A
//! killed node cannot, and its wardens cannot either: nobody can remove the group it is in.
//!
//! It is this program with an argument and not the node's, because an embedder's program is not ours to start a second
//! time, and because the one system call it needs lives here. It is no runner: it opens no library, knows no plugin, and
//! trusts its parent. What it removes is only what bears the name of that one process, pid and start time included, and only
//! once that process has ended.

use crate::sys;
use nix::errno::Errno;
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use nix::unistd::{getppid, Pid};
use std::fs;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};
use thenodes_ipc::janitor::{Cleanup, MAX_LIST};
use thenodes_ipc::pack;

/// How long groups may take to become empty; their processes die with the node.
const PATIENCE: Duration = Duration::from_secs(2);
/// Between two looks: the dead are being buried, and there is no descriptor to wait on that both versions have.
const PAUSE: u16 = 5;
/// Groups of one node that are looked at in one directory.
const MAX_GROUPS: usize = 65_536;

/// Waits for the node's end and cleans up after it.
pub(crate) fn main() -> ExitCode {
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("thenodes-janitor: {why}");
            ExitCode::from(crate::EXIT_USAGE)
        }
    }
}

fn serve() -> Result<(), String> {
    // What the node had from its own parent is not ours to keep open, and its terminal not ours to hear.
    sys::close_from(3).map_err(|e| format!("closing inherited descriptors: {e}"))?;
    let _ = nix::unistd::setsid();
    // In process lists, where the name of the program is the runner's.
    let _ = nix::sys::prctl::set_name(c"thenodes-clean");
    let mut list = Vec::new();
    let most = MAX_LIST as u64 + 1;
    std::io::stdin()
        .lock()
        .take(most)
        .read_to_end(&mut list)
        .map_err(|e| format!("reading the list: {e}"))?;
    if list.len() > MAX_LIST {
        return Err(format!("a list of more than {MAX_LIST} bytes"));
    }
    let list: Cleanup =
        pack::decode(&list).map_err(|e| format!("reading the list: {e}; it comes from a node"))?;
    if !list.is_sound() {
        return Err("the list names what is not a node's".into());
    }
    until_gone(Pid::from_raw(list.node_pid))?;
    clean(&list);
    Ok(())
}

/// Waits for the end of the node. An error is a process that is not the node: then nothing is known about the node.
fn until_gone(node: Pid) -> Result<(), String> {
    let watch = match sys::pidfd_open(node) {
        Ok(watch) => watch,
        Err(Errno::ESRCH) => return Ok(()),
        Err(error) => return Err(format!("watching process {node}: pidfd_open: {error}")),
    };
    // The pid may have been given out again; our parent's cannot, as long as it is our parent.
    if getppid() != node {
        return if ended(&watch, PollTimeout::ZERO)? {
            Ok(())
        } else {
            Err(format!("process {node} is not the one that started this one"))
        };
    }
    // From here on the node can rely on it; should it have gone in this moment, nobody reads this.
    let _ = std::io::stdout().write_all(b"!").and_then(|()| std::io::stdout().flush());
    while !ended(&watch, PollTimeout::NONE)? {}
    Ok(())
}

fn ended(watch: &OwnedFd, patience: PollTimeout) -> Result<bool, String> {
    let mut waiting = [PollFd::new(watch.as_fd(), PollFlags::POLLIN)];
    match poll(&mut waiting, patience) {
        Ok(ready) => Ok(ready > 0),
        Err(Errno::EINTR) => Ok(false),
        Err(error) => Err(format!("waiting for the node's end: {error}")),
    }
}

/// Removes the groups as they become empty.
fn clean(list: &Cleanup) {
    let until = Instant::now() + PATIENCE;
    loop {
        let groups: Vec<PathBuf> =
            list.parents.iter().flat_map(|parent| groups(parent.as_ref(), &list.prefix)).collect();
        // First all of them, because they wait for each other's processors: whoever is to die needs time to do it.
        groups.iter().for_each(|group| lift_cpu(group));
        if groups.iter().filter(|group| !remove(group)).count() == 0 || Instant::now() >= until {
            return;
        }
        let _ = poll(&mut [], PAUSE);
    }
}

/// Groups of the node in this directory, as they are now: what was made in its last moment is among them.
fn groups(parent: &Path, prefix: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(parent).into_iter().flatten().flatten();
    let ours =
        entries.filter(|entry| entry.file_name().to_str().is_some_and(|name| name.starts_with(prefix)));
    ours.map(|entry| entry.path()).take(MAX_GROUPS).collect()
}

/// Takes the limit of processor time away, whichever version holds it.
fn lift_cpu(group: &Path) {
    for (file, text) in [("cpu.cfs_quota_us", "-1"), ("cpu.max", "max")] {
        write(&group.join(file), text);
    }
}

/// Writes into a file that is there. Never creating: what the kernel did not put there is no order.
fn write(file: &Path, text: &str) {
    let file = fs::OpenOptions::new().write(true).open(file);
    let _ = file.and_then(|mut file| file.write_all(text.as_bytes()));
}

/// True if it is gone.
fn remove(group: &Path) -> bool {
    if fs::remove_dir(group).is_ok() {
        return true;
    }
    // Where the kernel has no such file, the processes end by themselves when they see the node gone.
    write(&group.join("cgroup.kill"), "1");
    !group.exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_removed_bears_the_nodes_name_and_is_empty() {
        let dir = tempfile::tempdir().expect("a directory");
        let make = |name: &str| {
            let path = dir.path().join(name);
            fs::create_dir(&path).expect("made");
            path
        };
        let own = [make("thenodes-1-20-3.0.echo"), make("thenodes-1-20-3.trial")];
        let others =
            [make("thenodes-1-20-33.0.echo"), make("thenodes-1-2-3.0.echo"), make("node"), make("other")];
        let used = make("thenodes-1-20-3.1.busy");
        fs::write(used.join("process"), "").expect("written");
        let parent = dir.path().to_str().expect("text").to_owned();
        let list = Cleanup {
            node_pid: 20,
            prefix: "thenodes-1-20-3.".into(),
            parents: vec![parent, "/nowhere".into()],
        };
        let begun = Instant::now();
        clean(&list);
        assert!(begun.elapsed() >= PATIENCE, "what is in use is waited for");
        assert!(!own.iter().any(|path| path.exists()), "{own:?}");
        assert!(others.iter().all(|path| path.exists()) && used.exists());
    }

    #[test]
    fn a_process_that_is_not_our_parent_is_not_waited_for() {
        let error = until_gone(nix::unistd::getpid()).expect_err("it lives and is not the parent");
        assert!(error.contains("is not the one that started"), "{error}");
        let mut child = std::process::Command::new("true").spawn().expect("a process");
        let pid = Pid::from_raw(child.id() as i32);
        child.wait().expect("ended");
        assert_eq!(until_gone(pid), Ok(()), "it is gone");
    }
}
