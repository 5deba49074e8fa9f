//! New namespaces and other people's: each is a world in which a process is root, which is where most kernel exploits begin.
//! A child that an attempt makes does nothing but end.

use super::call::{no, open, or_stdout, At};
use super::process::{reap, spawn};
use super::Probe;
use std::io;

const GROUP: &str = "namespaces";

const NEWTIME: i32 = 0x80;

pub(super) const PROBES: &[Probe] = &[
    probe!("unshare", "a user namespace", None, |_| unshare(libc::CLONE_NEWUSER)),
    probe!("unshare-mount", "a mount namespace", None, |_| unshare(libc::CLONE_NEWNS)).namespaced(),
    probe!("unshare-pid", "a pid namespace", None, |_| unshare(libc::CLONE_NEWPID)).namespaced(),
    probe!("unshare-net", "a network namespace", None, |_| unshare(libc::CLONE_NEWNET)).namespaced(),
    probe!("unshare-ipc", "an IPC namespace", None, |_| unshare(libc::CLONE_NEWIPC)).namespaced(),
    probe!("unshare-uts", "a hostname namespace", None, |_| unshare(libc::CLONE_NEWUTS)).namespaced(),
    probe!("unshare-cgroup", "a cgroup namespace", None, |_| unshare(libc::CLONE_NEWCGROUP)).namespaced(),
    probe!("unshare-time", "a time namespace", None, |_| unshare(NEWTIME)).namespaced(),
    probe!("unshare-files", "a descriptor table of its own", None, |_| unshare(libc::CLONE_FILES)),
    probe!("clone-user", "a child in a user namespace", None, |_| clone(libc::CLONE_NEWUSER)),
    probe!("clone-mount", "a child in a mount namespace", None, |_| clone(libc::CLONE_NEWNS)).namespaced(),
    probe!("clone-pid", "a child in a pid namespace", None, |_| clone(libc::CLONE_NEWPID)).namespaced(),
    probe!("clone-net", "a child in a network namespace", None, |_| clone(libc::CLONE_NEWNET)).namespaced(),
    probe!("clone-ipc", "a child in an IPC namespace", None, |_| clone(libc::CLONE_NEWIPC)).namespaced(),
    probe!("clone-uts", "a child in a hostname namespace", None, |_| clone(libc::CLONE_NEWUTS)).namespaced(),
    probe!("clone-cgroup", "a child in a cgroup namespace", None, |_| clone(libc::CLONE_NEWCGROUP))
        .namespaced(),
    probe!("clone3-user", "a child in a user namespace (clone3)", None, |_| {
        super::process::clone3(libc::CLONE_NEWUSER as u64)
    }),
    probe!("setns", "entering a namespace by its file", None, |_| {
        let file = open("/proc/self/ns/uts", libc::O_RDONLY);
        sys!(SYS_setns, or_stdout(&file), libc::CLONE_NEWUTS)
    })
    .namespaced(),
    probe!("setns-pidfd", "entering the namespaces of another process", Pid, |arg| {
        touch!(SYS_setns, 1, libc::CLONE_NEWUTS);
        let process = sys!(SYS_pidfd_open, super::call::pid(arg), 0).at("pidfd_open")?;
        sys!(SYS_setns, process, libc::CLONE_NEWUTS)
    })
    .root_only("entering another process's namespaces needs CAP_SYS_ADMIN over them"),
    probe!("uid-map", "opening the map of user ids for writing", None, |_| {
        open("/proc/self/uid_map", libc::O_WRONLY)
    }),
    probe!("namespace-files", "a handle of the network namespace", None, |_| {
        open("/proc/self/ns/net", libc::O_RDONLY)
    }),
];

fn unshare(what: i32) -> io::Result<libc::c_long> {
    sys!(SYS_unshare, what)
}

fn clone(flags: i32) -> io::Result<()> {
    match spawn(flags | libc::SIGCHLD) {
        Ok(child) => reap(child),
        Err(error) => no(error.to_string()),
    }
}
