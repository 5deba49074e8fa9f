//! Tries what must fail, from inside, after the walls stand and before anything of the plugin is opened. Return codes of
//! the steps are not believed: others have reported a sandbox that was not there.

use crate::confine::{rlimits, state, Walls};
use crate::sys;
use nix::errno::Errno;
use nix::sys::resource::getrlimit;
use nix::sys::signal::kill;
use nix::unistd::{getgroups, getresgid, getresuid, Gid, Uid};
use std::fs::File;
use std::net::UdpSocket;
use thenodes_ipc::launch::{Layer, NodeHello};

/// Most descriptors that are tried one by one. All were listed by [`state::clean`]; since then `RLIMIT_NOFILE` has been set, and what
/// was opened after it has a number below it.
const DESCRIPTORS: i32 = 4096;

/// Who the process is outside, to be asked before it has a user namespace: inside it is the same number for everybody. An error
/// is a process that did not become who it was told to become; nothing of a plugin may be opened by it.
pub(crate) fn outside(run_as: Option<u32>, walls: &mut Walls) -> Result<(), String> {
    let ask = |e: Errno| format!("asking for the own uid: {e}");
    let (uids, gids) = (getresuid().map_err(ask)?, getresgid().map_err(ask)?);
    let uids = [uids.real, uids.effective, uids.saved].map(Uid::as_raw);
    let gids = [gids.real, gids.effective, gids.saved].map(Gid::as_raw);
    let others = getgroups().map_err(ask)?;
    let (held, what) = match run_as {
        Some(uid) => {
            let alone = others.iter().all(|group| group.as_raw() == uid);
            (
                is_only(uid, uids) && is_only(uid, gids) && alone,
                "the uid and all groups outside are the plugin's own",
            )
        }
        None => (!uids.contains(&0), "the uid outside is not root"),
    };
    walls.test(Layer::Privileges, what, held);
    match run_as {
        Some(uid) if !held => {
            Err(format!("not uid {uid} alone, but uids {uids:?}, groups {gids:?} and {others:?}"))
        }
        _ => Ok(()),
    }
}

/// True if real, effective and saved are this one, and it is not root.
fn is_only(uid: u32, ids: [u32; 3]) -> bool {
    uid != 0 && ids.iter().all(|id| *id == uid)
}

/// Everything that can be tried while system calls are still free.
pub(crate) fn before_the_filter(hello: &NodeHello, own_count: bool, walls: &mut Walls) {
    namespaces(walls);
    root(hello, walls);
    clean_state(walls);
    let mut held = true;
    for rlimits::Limit { resource, name, soft, hard } in rlimits::table(&hello.limits, own_count) {
        if getrlimit(resource) != Ok((soft, hard)) {
            walls.hole(Layer::Rlimits, format!("{name} is not limited to {soft}"));
            held = false;
        }
    }
    walls.test(Layer::Rlimits, "memory, threads, descriptors and files are limited", held);
    privileges(walls);
    let quiet = nix::sys::prctl::get_dumpable() == Ok(false);
    walls.test(Layer::NotDumpable, "the process is not dumpable", quiet);
    walls.test(
        Layer::WriteXorExecute,
        "writable executable memory is refused, at once and in turn",
        sys::refuses_writable_code(),
    );
    landlock(walls);
}

/// What proves the filter itself: a call that any process may make now fails.
pub(crate) fn behind_the_filter(hello: &NodeHello, walls: &mut Walls) {
    let most = i32::try_from(hello.limits.descriptors).unwrap_or(DESCRIPTORS).min(DESCRIPTORS);
    let open = (0..most).filter(|fd| sys::is_open(*fd)).collect::<Vec<_>>();
    let as_expected = open == (0..=state::LINK_FD).collect::<Vec<_>>();
    walls.test(Layer::CleanState, "descriptors 0 to 3 are open and no others", as_expected);
    if hello.without.is_none() {
        // Both exist on every host; here the broker knows only the library.
        let closed = ["/", "/etc/passwd"].iter().all(|path| File::open(path).is_err());
        walls.test(Layer::Seccomp, "nothing can be opened by path but what the broker hands out", closed);
    }
    let counted = sys::refuses_uncounted_memory() && sys::refuses_to_move_memory();
    walls.test(
        Layer::Rlimits,
        "memory that limits do not count (shared, growing down, moved) is refused",
        counted,
    );
    let refused = sys::refuses_what_no_list_has();
    walls.test(Layer::Seccomp, "personality, which any process may call, is refused by the filter", refused);
}

fn namespaces(walls: &mut Walls) {
    // Stub and runner are the only processes of a new pid namespace.
    walls.test(Layer::Namespaces, "own pid namespace (this is process 2)", std::process::id() == 2);
    let name = nix::unistd::gethostname().ok();
    walls.test(Layer::Namespaces, "own host name", name.is_some_and(|name| name == "plugin"));
    // 192.0.2.0/24 is reserved for documentation: on no network is it a neighbour, and nothing is sent by connect.
    let reaches = UdpSocket::bind("0.0.0.0:0").and_then(|socket| socket.connect("192.0.2.1:9"));
    let unreachable = matches!(reaches, Err(e) if e.raw_os_error() == Some(libc::ENETUNREACH));
    walls.test(Layer::Namespaces, "no network is reachable", unreachable);
    let refused = sys::refuses_a_user_namespace();
    walls.test(Layer::Namespaces, "no further user namespace can be made", refused);
}

fn root(hello: &NodeHello, walls: &mut Walls) {
    // Directories of every host, and something in them: where a directory is missing, so is all that was in it.
    let of_hosts = [
        ("/etc", "/etc/passwd"),
        ("/proc", "/proc/self/status"),
        ("/dev", "/dev/null"),
        ("/sys", "/sys/kernel"),
        ("/usr", "/usr/bin"),
        ("/home", "/home"),
        ("/tmp", "/tmp"),
    ];
    let granted = |path: &str| {
        // A directory on the way to a granted path is there, and empty but for that path.
        let below =
            |grant: &str| grant == path || grant.strip_prefix(path).is_some_and(|rest| rest.starts_with('/'));
        let above = |grant: &str| path.strip_prefix(grant).is_some_and(|rest| rest.starts_with('/'));
        hello.all_paths().iter().any(|grant| below(&grant.path) || above(&grant.path))
    };
    for (directory, inside) in of_hosts {
        let path = if granted(directory) { inside } else { directory };
        if !granted(path) && std::fs::symlink_metadata(path).is_ok() {
            walls.hole(Layer::Root, format!("{path} exists inside"));
        }
    }
    // Landlock would refuse this too; statfs tells a read-only mount without trying to write.
    let read_only = nix::sys::statvfs::statvfs("/")
        .is_ok_and(|fs| fs.flags().contains(nix::sys::statvfs::FsFlags::ST_RDONLY));
    walls.test(
        Layer::Root,
        "the root is read-only and holds no path of the host but the granted ones",
        read_only,
    );
}

fn clean_state(walls: &mut Walls) {
    walls.test(Layer::CleanState, "the environment is empty", std::env::vars_os().next().is_none());
    walls.test(Layer::CleanState, "there are no arguments", std::env::args_os().len() <= 1);
}

fn privileges(walls: &mut Walls) {
    let locked = nix::sys::prctl::get_no_new_privs() == Ok(true);
    walls.test(Layer::Privileges, "no_new_privs is set", locked);
    walls.test(Layer::Privileges, "no capability is held", sys::has_no_capabilities() == Ok(true));
}

fn landlock(walls: &mut Walls) {
    // The root directory exists and is readable by mode: only Landlock can refuse it.
    let refused = matches!(File::open("/"), Err(e) if e.raw_os_error() == Some(libc::EACCES));
    walls.test(Layer::Landlock, "reading the root directory is refused", refused);
    // The stub has our uid and is visible: only the signal scope can refuse it.
    let signal = kill(nix::unistd::getppid(), None);
    walls.test(Layer::Landlock, "signalling the parent is refused", signal == Err(Errno::EPERM));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_that_is_partly_another_or_root_is_not_the_own_one() {
        assert!(is_only(7, [7; 3]));
        for ids in [[0, 7, 7], [7, 0, 7], [7, 7, 0], [7, 7, 8]] {
            assert!(!is_only(7, ids), "{ids:?}");
        }
        assert!(!is_only(0, [0; 3]), "root is nobody's own");
    }

    #[test]
    fn who_is_somebody_else_than_told_is_refused_with_words() {
        let own = nix::unistd::getuid().as_raw();
        let error = outside(Some(own + 1), &mut Walls::default()).expect_err("not that uid");
        assert!(error.contains(&format!("not uid {} alone, but uids [{own}, ", own + 1)), "{error}");
        let mut walls = Walls::default();
        outside(None, &mut walls).expect("nothing was told");
        assert_eq!(walls.whole_so_far(Layer::Privileges), own != 0, "root is a hole");
    }
}
