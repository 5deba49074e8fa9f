//! Leaving the node's uid and namespaces, in two steps. What is the same for every plugin is made before `hello` ([`ahead`]), so that
//! a spare has it already; the rest when it is known whose it is ([`leave`]): root becomes an unprivileged uid first, and both root and
//! an ordinary user then stand in a user namespace in which they may do the rest. Trusts no return code: what is new is compared.

use super::Walls;
use crate::{selftest, sys};
use nix::sched::{unshare, CloneFlags};
use nix::unistd::{getgid, getuid, setgroups, setresgid, setresuid, Gid, Uid};
use std::fs;
use std::path::PathBuf;
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

/// What does not depend on the plugin: a network, a host name and message queues of nobody.
const AHEAD: CloneFlags =
    CloneFlags::CLONE_NEWNET.union(CloneFlags::CLONE_NEWIPC).union(CloneFlags::CLONE_NEWUTS);

/// The namespaces that were made before anybody said for which plugin, and those that the node has.
pub(crate) struct Ahead {
    before: [Option<PathBuf>; NAMESPACES.len()],
    made: CloneFlags,
}

impl Ahead {
    /// True if who this process is outside was asked, because it cannot be seen any more.
    pub(crate) fn knows_itself(&self) -> bool {
        self.made.contains(CloneFlags::CLONE_NEWUSER)
    }
}

/// Makes what every plugin needs while nobody waits: the network namespace alone takes longer than all others together. Root makes
/// them as root, so that nobody inside has any right over them, and becomes the plugin's uid later; an ordinary user's plugins all have
/// that user's uid, and their user namespace comes first. If the kernel makes none of them [`leave`] tries again, and reports.
pub(crate) fn ahead() -> (Ahead, Walls) {
    let before = NAMESPACES.map(|(name, _)| identity(name));
    let (ids, mut walls) = ((getuid(), getgid()), Walls::default());
    let wanted = if ids.0.is_root() { AHEAD } else { AHEAD | CloneFlags::CLONE_NEWUSER };
    let known = ids.0.is_root() || selftest::outside(None, &mut walls).is_ok();
    // Compared at once: root would rename the host in a namespace that is not new, whatever the call said.
    let made = |before: &[Option<PathBuf>]| {
        let mut all = NAMESPACES.into_iter().zip(before).filter(|((_, flag), _)| wanted.contains(*flag));
        all.all(|((name, _), before)| is_new(before.as_ref(), identity(name).as_ref()))
    };
    // A runner that can leave walls out does not know yet whether it should.
    if cfg!(feature = "without") || !known || unshare(wanted).is_err() || !made(&before) {
        return (Ahead { before, made: CloneFlags::empty() }, Walls::default());
    }
    complete(wanted, ids, &mut walls);
    (Ahead { before, made: wanted }, walls)
}

/// Makes one new namespace of each kind that is not there yet, for this process and, as far as pids go, for its children.
pub(crate) fn leave(hello: &NodeHello, Ahead { before, made }: Ahead, walls: &mut Walls) {
    if super::omitted(hello, Layer::Namespaces) {
        return walls.hole(Layer::Namespaces, "left out for a test");
    }
    let ids = (getuid(), getgid());
    let missing = NAMESPACES.iter().fold(CloneFlags::empty(), |all, (_, flag)| all | *flag).difference(made);
    let names: Vec<&str> =
        NAMESPACES.iter().filter(|(_, flag)| missing.contains(*flag)).map(|(name, _)| *name).collect();
    if walls.step(Layer::Namespaces, &format!("unshare({})", names.join(",")), unshare(missing)).is_none() {
        return;
    }
    complete(missing, ids, walls);
    // The plugin makes no further user namespaces: the filter says so, and so does this.
    let nested = fs::write("/proc/sys/user/max_user_namespaces", "0");
    walls.step(Layer::Namespaces, "forbidding further user namespaces", nested);
    for ((name, _), before) in NAMESPACES.into_iter().zip(before) {
        // pid_for_children has no target until the first child exists; the runner checks its pid instead.
        if name == "pid_for_children" {
            continue;
        }
        if !is_new(before.as_ref(), identity(name).as_ref()) {
            walls.hole(Layer::Namespaces, format!("the {name} namespace is the node's"));
        }
    }
}

/// Fills in what namespaces that were just made need: who one is in them, and the host's name. `ids`: who one was before.
fn complete(made: CloneFlags, (uid, gid): (Uid, Gid), walls: &mut Walls) {
    if made.contains(CloneFlags::CLONE_NEWUSER) {
        let map = |file: &str, text: String| fs::write(format!("/proc/self/{file}"), text);
        walls.step(Layer::Namespaces, "writing setgroups", map("setgroups", "deny".into()));
        walls.step(Layer::Namespaces, "writing uid_map", map("uid_map", format!("{INNER_ID} {uid} 1")));
        walls.step(Layer::Namespaces, "writing gid_map", map("gid_map", format!("{INNER_ID} {gid} 1")));
    }
    if made.contains(CloneFlags::CLONE_NEWUTS) {
        walls.step(Layer::Namespaces, "sethostname", nix::unistd::sethostname("plugin"));
    }
}

/// True if both are known and differ.
fn is_new(before: Option<&PathBuf>, after: Option<&PathBuf>) -> bool {
    before.is_some() && after.is_some() && before != after
}

fn identity(name: &str) -> Option<PathBuf> {
    fs::read_link(format!("/proc/self/ns/{name}")).ok()
}
