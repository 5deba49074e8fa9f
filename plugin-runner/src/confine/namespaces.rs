//! Leaving the node's uid and namespaces. Root and an ordinary user go the same way: root first becomes an unprivileged
//! uid, then both make a user namespace in which they may do the rest.

use super::Walls;
use crate::sys;
use nix::sched::{unshare, CloneFlags};
use nix::unistd::{getgid, getuid, setgroups, setresgid, setresuid, Gid, Uid};
use std::fs;
use thenodes_ipc::launch::{Layer, NodeHello};

/// Uid and gid that the plugin sees as its own; no privilege is attached to any number without capabilities.
const INNER_ID: u32 = 1000;

/// Names under `/proc/self/ns` and the flag that makes a new one of each.
const NAMESPACES: [(&str, CloneFlags); 7] = [
    ("user", CloneFlags::CLONE_NEWUSER),
    ("mnt", CloneFlags::CLONE_NEWNS),
    ("pid_for_children", CloneFlags::CLONE_NEWPID),
    ("net", CloneFlags::CLONE_NEWNET),
    ("ipc", CloneFlags::CLONE_NEWIPC),
    ("uts", CloneFlags::CLONE_NEWUTS),
    ("cgroup", CloneFlags::CLONE_NEWCGROUP),
];

/// Becomes an unprivileged uid for good. Only root can; a failure here must end the start.
pub(crate) fn become_uid(uid: u32) -> nix::Result<()> {
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(uid));
    setgroups(&[])?;
    setresgid(gid, gid, gid)?;
    setresuid(uid, uid, uid)?;
    // A change of uid makes the process undumpable, and then its own /proc/self/uid_map belongs to root. It is made
    // undumpable again before anything is opened.
    sys::prctl(libc::PR_SET_DUMPABLE, [1, 0, 0, 0]).map(drop)
}

/// Makes one new namespace of each kind, for this process and, as far as pids go, for its children.
pub(crate) fn leave(hello: &NodeHello, walls: &mut Walls) {
    if super::omitted(hello, Layer::Namespaces) {
        return walls.hole(Layer::Namespaces, "left out for a test");
    }
    let (uid, gid) = (getuid(), getgid());
    let before = NAMESPACES.map(|(name, _)| identity(name));
    let all = NAMESPACES.iter().fold(CloneFlags::empty(), |all, (_, flag)| all | *flag);
    if walls.step(Layer::Namespaces, "unshare(user,mnt,pid,net,ipc,uts,cgroup)", unshare(all)).is_none() {
        return;
    }
    let map = |file: &str, text: String| fs::write(format!("/proc/self/{file}"), text);
    walls.step(Layer::Namespaces, "writing setgroups", map("setgroups", "deny".into()));
    walls.step(Layer::Namespaces, "writing uid_map", map("uid_map", format!("{INNER_ID} {uid} 1")));
    walls.step(Layer::Namespaces, "writing gid_map", map("gid_map", format!("{INNER_ID} {gid} 1")));
    walls.step(Layer::Namespaces, "sethostname", nix::unistd::sethostname("plugin"));
    // The plugin makes no further user namespaces: the filter says so, and so does this.
    let nested = fs::write("/proc/sys/user/max_user_namespaces", "0");
    walls.step(Layer::Namespaces, "forbidding further user namespaces", nested);
    for ((name, _), before) in NAMESPACES.into_iter().zip(before) {
        // pid_for_children has no target until the first child exists; the runner checks its pid instead.
        if name == "pid_for_children" {
            continue;
        }
        match (before, identity(name)) {
            (Some(before), Some(after)) if before != after => {}
            _ => walls.hole(Layer::Namespaces, format!("the {name} namespace is the node's")),
        }
    }
}

fn identity(name: &str) -> Option<std::path::PathBuf> {
    fs::read_link(format!("/proc/self/ns/{name}")).ok()
}
