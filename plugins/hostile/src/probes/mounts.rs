//! Changing what is mounted where, with the old calls and the new ones. In the control these run in namespaces of their own,
//! with a tmpfs on the target directory, so that nothing of the machine changes.

use super::call::{c, dir, or_stdout, owned, At};
use super::Probe;
use std::os::fd::AsRawFd;

const GROUP: &str = "mounts";

const FSCONFIG_CMD_CREATE: i32 = 6;
const MOUNT_ATTR_RDONLY: u64 = 1;
const MOVE_MOUNT_F_EMPTY_PATH: i32 = 4;
#[allow(non_upper_case_globals)]
const SYS_listmount: libc::c_long = 458;
const LSMT_ROOT: u64 = u64::MAX;

pub(super) const PROBES: &[Probe] = &[
    probe!("mount", "mounting in a user namespace of its own", None, |_| {
        // As an attacker without privileges would; the bare call is `mount-tmpfs`.
        let flags = libc::CLONE_NEWUSER | libc::CLONE_NEWNS;
        sys!(SYS_unshare, flags).at("namespaces")?;
        mount(c"/tmp", c"tmpfs", 0)
    }),
    probe!("mount-tmpfs", "mounting a tmpfs", CanaryDir, |arg| mount(&c(dir(arg)), c"tmpfs", 0)).namespaced(),
    probe!("mount-proc", "mounting a new /proc", CanaryDir, |arg| mount(&c(dir(arg)), c"proc", 0))
        .namespaced()
        .no_control("needs a pid namespace, which a process cannot enter alone, and an unmasked /proc"),
    probe!("mount-bind", "mounting one directory over another", CanaryDir, |arg| {
        let path = c(dir(arg));
        sys!(SYS_mount, c"/".as_ptr(), path.as_ptr(), 0, libc::MS_BIND | libc::MS_REC, 0)
    })
    .namespaced(),
    probe!("mount-remount", "changing the flags of a mount", CanaryDir, |arg| {
        let path = c(dir(arg));
        sys!(SYS_mount, 0, path.as_ptr(), 0, libc::MS_REMOUNT | libc::MS_BIND | libc::MS_NOEXEC, 0)
    })
    .namespaced(),
    probe!("mount-shared", "making the root travel between namespaces", None, |_| {
        sys!(SYS_mount, 0, c"/".as_ptr(), 0, libc::MS_SHARED, 0)
    })
    .namespaced(),
    probe!("umount", "unmounting", CanaryDir, |arg| {
        let path = c(dir(arg));
        sys!(SYS_umount2, path.as_ptr(), libc::MNT_DETACH)
    })
    .namespaced(),
    probe!("pivot-root", "another root (pivot_root)", CanaryDir, |arg| {
        let path = c(dir(arg));
        sys!(SYS_pivot_root, path.as_ptr(), path.as_ptr())
    })
    .namespaced(),
    probe!("chroot", "another root (chroot)", CanaryDir, |arg| {
        let path = c(dir(arg));
        sys!(SYS_chroot, path.as_ptr())
    })
    .namespaced(),
    probe!("fsopen", "a new filesystem (fsopen)", None, |_| owned(sys!(SYS_fsopen, c"tmpfs".as_ptr(), 0)))
        .namespaced(),
    probe!("fsmount", "a new filesystem as a mount (fsconfig, fsmount)", None, |_| {
        touch!(SYS_fsmount, -1, 0, 0);
        touch!(SYS_fsconfig, -1, FSCONFIG_CMD_CREATE, 0, 0, 0);
        let filesystem = owned(sys!(SYS_fsopen, c"tmpfs".as_ptr(), 0)).at("fsopen")?;
        sys!(SYS_fsconfig, filesystem.as_raw_fd(), FSCONFIG_CMD_CREATE, 0, 0, 0).at("fsconfig")?;
        sys!(SYS_fsmount, filesystem.as_raw_fd(), 0, 0)
    })
    .namespaced(),
    probe!("fspick", "taking hold of a mounted filesystem (fspick)", CanaryDir, |arg| {
        let path = c(dir(arg));
        sys!(SYS_fspick, libc::AT_FDCWD, path.as_ptr(), 0)
    })
    .namespaced(),
    probe!("open-tree", "a handle of a host directory (open_tree)", CanaryDir, |arg| {
        let path = c(dir(arg));
        sys!(SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), 0)
    }),
    probe!("open-tree-clone", "a copy of a mount (open_tree)", CanaryDir, |arg| {
        let path = c(dir(arg));
        sys!(SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), libc::OPEN_TREE_CLONE)
    })
    .namespaced(),
    probe!("move-mount", "attaching a mount (move_mount)", CanaryDir, |arg| {
        let path = c(dir(arg));
        let empty = c"".as_ptr();
        touch!(SYS_move_mount, -1, empty, libc::AT_FDCWD, path.as_ptr(), MOVE_MOUNT_F_EMPTY_PATH);
        let tree = owned(sys!(SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), libc::OPEN_TREE_CLONE));
        let tree = or_stdout(&tree);
        sys!(SYS_move_mount, tree, empty, libc::AT_FDCWD, path.as_ptr(), MOVE_MOUNT_F_EMPTY_PATH)
    })
    .namespaced(),
    probe!("mount-setattr", "changing the flags of a mount (mount_setattr)", CanaryDir, |arg| {
        let (path, attributes) = (c(dir(arg)), [MOUNT_ATTR_RDONLY, 0, 0, 0]);
        sys!(SYS_mount_setattr, libc::AT_FDCWD, path.as_ptr(), 0, attributes.as_ptr(), 32)
    })
    .namespaced(),
    probe!("listmount", "the list of mounts (listmount)", None, |_| {
        // struct mnt_id_req: size, spare, mount, parameter.
        let (request, mut ids) = ([24u64, LSMT_ROOT, 0], [0u64; 16]);
        super::call::raw(
            SYS_listmount,
            &[request.as_ptr() as libc::c_long, ids.as_mut_ptr() as libc::c_long, 16, 0],
        )
    }),
    probe!("quotactl", "disk quotas (quotactl)", None, |_| {
        // Only asks that quotas be written out.
        sys!(SYS_quotactl, libc::Q_SYNC << 8, 0, 0, 0)
    }),
    probe!("swapon", "a swap file", CanaryFile, |arg| {
        let path = c(super::call::file(arg));
        sys!(SYS_swapon, path.as_ptr(), 0)
    })
    .no_control("a swap file that works would change the machine"),
    probe!("dir-handle-escape", "leaving by an inherited directory descriptor", None, |_| {
        // Whoever forgot one to close left the door open: ".." of it is the host.
        let climb = |fd: i32| {
            let path = c"../../../../../../../..".as_ptr();
            sys!(SYS_openat, fd, path, libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC)
        };
        let found = (3..1024).find(|fd| climb(*fd).is_ok());
        found
            .map(|fd| format!("by descriptor {fd}"))
            .ok_or_else(|| std::io::Error::other("no such descriptor"))
    }),
];

fn mount(on: &std::ffi::CStr, kind: &std::ffi::CStr, flags: u64) -> std::io::Result<libc::c_long> {
    sys!(SYS_mount, c"none".as_ptr(), on.as_ptr(), kind.as_ptr(), flags, 0)
}
