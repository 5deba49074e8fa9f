//! Reading and changing files of the host, by every door the kernel has for it. The targets are files and directories made
//! for the purpose; what an attempt changes it changes back.

use super::call::{c, dir, file, fresh, no, open, or_stdout, proven};
use super::{Probe, SECRET};
use std::fs;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

const GROUP: &str = "filesystem";

pub(super) const PROBES: &[Probe] = &[
    probe!("open", "reading a host file", CanaryFile, |arg| secret(fs::read(file(arg)), arg)),
    probe!("open-climbing", "reading a host file by climbing with ../", CanaryFile, |arg| {
        secret(fs::read(format!("{}{}", "../".repeat(40), file(arg).trim_start_matches('/'))), arg)
    }),
    probe!("openat2", "openat2 of a host file", CanaryFile, |arg| {
        let (path, how) = (c(file(arg)), [libc::O_RDONLY as u64, 0, 0]);
        sys!(SYS_openat2, libc::AT_FDCWD, path.as_ptr(), how.as_ptr(), 24)
    }),
    #[cfg(target_arch = "x86_64")]
    probe!("open-legacy", "the old open call on a host file", CanaryFile, |arg| {
        let path = c(file(arg));
        sys!(SYS_open, path.as_ptr(), libc::O_RDONLY, 0)
    }),
    probe!("open-write", "opening a host file for writing", CanaryFile, |arg| open(
        file(arg),
        libc::O_WRONLY
    )),
    probe!(
        "open-path",
        "a file handle without reading (O_PATH), and then reading through it",
        CanaryFile,
        |arg| {
            let fd = open(file(arg), libc::O_PATH)?;
            secret(fs::read(format!("/proc/self/fd/{}", fd.as_raw_fd())), arg)
        }
    ),
    probe!("open-tmpfile", "a nameless file on the host (O_TMPFILE)", CanaryDir, |arg| {
        open(dir(arg), libc::O_TMPFILE | libc::O_WRONLY)
    }),
    probe!("link-nameless", "giving a nameless file a name (linkat, AT_EMPTY_PATH)", CanaryDir, |arg| {
        touch!(SYS_linkat, 1, c"".as_ptr(), libc::AT_FDCWD, c"".as_ptr(), libc::AT_EMPTY_PATH);
        let nameless = open(dir(arg), libc::O_TMPFILE | libc::O_WRONLY)?;
        let (from, name) = (c(&format!("/proc/self/fd/{}", nameless.as_raw_fd())), fresh(arg, "nameless"));
        let to = c(&name);
        // Before Linux 6.10 AT_EMPTY_PATH needs a capability; the way through /proc is for everybody.
        sys!(
            SYS_linkat,
            nameless.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            to.as_ptr(),
            libc::AT_EMPTY_PATH
        )
        .or_else(|_| {
            let follow = libc::AT_SYMLINK_FOLLOW;
            sys!(SYS_linkat, libc::AT_FDCWD, from.as_ptr(), libc::AT_FDCWD, to.as_ptr(), follow)
        })?;
        fs::remove_file(name)
    }),
    probe!("name-to-handle", "a handle of a host file (name_to_handle_at)", CanaryFile, |arg| handle(arg)
        .map(drop)),
    probe!("open-by-handle", "opening a host file by its handle", CanaryFile, |arg| {
        touch!(SYS_open_by_handle_at, libc::AT_FDCWD, 0, libc::O_RDONLY);
        let mut handle = handle(arg)?;
        let mount =
            open(Path::new(file(arg)).parent().and_then(Path::to_str).unwrap_or("/"), libc::O_DIRECTORY)?;
        sys!(SYS_open_by_handle_at, mount.as_raw_fd(), handle.as_mut_ptr(), libc::O_RDONLY)
    })
    .root_only("open_by_handle_at needs CAP_DAC_READ_SEARCH in the first user namespace"),
    probe!("create", "writing a file", CanaryDir, |arg| {
        // A directory, or the path of a file that is to be.
        let inside = fresh(arg, "create");
        let (made, path) = match fs::write(&inside, "x") {
            Ok(()) => (Ok(()), inside.as_str()),
            Err(error) if arg.is_empty() => (Err(error), ""),
            Err(_) => (fs::write(arg, "x"), arg),
        };
        made?;
        fs::remove_file(path)
    }),
    probe!("list-root", "listing the root", None, |_| {
        fs::read_dir("/").map(|dir| format!("{} entries", dir.count()))
    }),
    probe!("list-dir", "listing a host directory", CanaryDir, |arg| fs::read_dir(dir(arg)).map(drop)),
    probe!("stat", "asking about a host file (statx)", CanaryFile, |arg| fs::metadata(file(arg)).map(drop)),
    probe!("access", "asking whether a host file exists (faccessat)", CanaryFile, |arg| {
        let path = c(file(arg));
        sys!(SYS_faccessat, libc::AT_FDCWD, path.as_ptr(), libc::R_OK)
    }),
    probe!("statfs", "asking about a host filesystem", CanaryDir, |arg| {
        let (path, mut answer) = (c(dir(arg)), [0u64; 64]);
        sys!(SYS_statfs, path.as_ptr(), answer.as_mut_ptr())
    }),
    probe!("readlink", "reading a symbolic link", None, |_| fs::read_link("/proc/self/exe").map(drop)),
    probe!("chdir", "moving into a host directory", CanaryDir, |arg| {
        let path = c(dir(arg));
        sys!(SYS_chdir, path.as_ptr())
    }),
    probe!("chmod", "chmod", CanaryDir, |arg| {
        let path = c(dir(arg));
        sys!(SYS_fchmodat, libc::AT_FDCWD, path.as_ptr(), mode_of(dir(arg)))
    }),
    probe!("chown", "chown", CanaryFile, |arg| {
        let path = c(file(arg));
        // To the owner it has; where that cannot be learned, to nobody else.
        let (uid, gid) = fs::metadata(file(arg)).map_or((u32::MAX, u32::MAX), |m| (m.uid(), m.gid()));
        sys!(SYS_fchownat, libc::AT_FDCWD, path.as_ptr(), uid, gid, 0)
    }),
    probe!("utimes", "changing a file's times", CanaryFile, |arg| {
        let path = c(file(arg));
        sys!(SYS_utimensat, libc::AT_FDCWD, path.as_ptr(), 0, 0)
    }),
    probe!("truncate", "changing a file's length", CanaryFile, |arg| {
        let path = c(file(arg));
        let length = fs::metadata(file(arg)).map_or(SECRET.len() as u64, |m| m.len());
        sys!(SYS_truncate, path.as_ptr(), length)
    }),
    probe!("setxattr", "an extended attribute on a host file", CanaryFile, |arg| {
        let (path, key) = (c(file(arg)), c"user.hostile".as_ptr());
        sys!(SYS_setxattr, path.as_ptr(), key, b"x".as_ptr(), 1, 0)?;
        sys!(SYS_removexattr, path.as_ptr(), key)
    }),
    probe!("listxattr", "listing a host file's extended attributes", CanaryFile, |arg| {
        let path = c(file(arg));
        sys!(SYS_listxattr, path.as_ptr(), 0, 0)
    }),
    probe!("symlink", "a symbolic link on the host", CanaryDir, |arg| {
        let name = fresh(arg, "symlink");
        let path = c(&name);
        sys!(SYS_symlinkat, c"/etc".as_ptr(), libc::AT_FDCWD, path.as_ptr())?;
        fs::remove_file(name)
    }),
    probe!("hardlink", "a hard link to a host file", CanaryFile, |arg| {
        let name = format!("{}.link-{}", file(arg), std::process::id());
        let (from, to) = (c(file(arg)), c(&name));
        sys!(SYS_linkat, libc::AT_FDCWD, from.as_ptr(), libc::AT_FDCWD, to.as_ptr(), 0)?;
        fs::remove_file(name)
    }),
    probe!("rename", "renaming a host directory's entry", CanaryDir, |arg| {
        touch!(SYS_renameat2, libc::AT_FDCWD, c"".as_ptr(), libc::AT_FDCWD, c"".as_ptr(), 0);
        let (old, new) = (fresh(arg, "old"), fresh(arg, "new"));
        fs::write(&old, "x")?;
        fs::rename(old, &new)?;
        fs::remove_file(new)
    }),
    probe!("unlink", "removing a host directory's entry", CanaryDir, |arg| {
        touch!(SYS_unlinkat, libc::AT_FDCWD, c"".as_ptr(), 0);
        let name = fresh(arg, "unlink");
        fs::write(&name, "x")?;
        fs::remove_file(name)
    }),
    probe!("mkdir", "a directory on the host", CanaryDir, |arg| {
        let name = fresh(arg, "mkdir");
        let path = c(&name);
        sys!(SYS_mkdirat, libc::AT_FDCWD, path.as_ptr(), 0o700)?;
        fs::remove_dir(name)
    }),
    probe!("mknod-fifo", "a named pipe on the host", CanaryDir, |arg| mknod(arg, "fifo", libc::S_IFIFO, 0)),
    probe!("mknod-device", "a device node on the host", CanaryDir, |arg| {
        mknod(arg, "device", libc::S_IFCHR, libc::makedev(1, 3))
    })
    .root_only("making a device needs CAP_MKNOD in the first user namespace"),
    probe!("lock-file", "locking a host file against others", CanaryFile, |arg| {
        let fd = open(file(arg), libc::O_RDONLY);
        sys!(SYS_flock, or_stdout(&fd), libc::LOCK_EX | libc::LOCK_NB)
    }),
    probe!("proc", "reading /proc/self/maps", None, |_| fs::read("/proc/self/maps").map(drop)),
    probe!("proc-self-mem", "writing own memory through /proc/self/mem", None, |_| {
        let value = [1u8; 8];
        let mem = open("/proc/self/mem", libc::O_RDWR)?;
        let to = value.as_ptr();
        sys!(SYS_pwrite64, mem.as_raw_fd(), b"22222222".as_ptr(), 8, to)?;
        // SAFETY: our own bytes; volatile, because the kernel changed them behind the compiler's back.
        proven(unsafe { to.read_volatile() } == b'2', "nothing was written")
    }),
    probe!("proc-root", "a host file through /proc/self/root", CanaryFile, |arg| {
        secret(fs::read(format!("/proc/self/root{}", file(arg))), arg)
    }),
    probe!("proc-other-root", "the root of another process", Pid, |arg| {
        fs::read_dir(format!("/proc/{}/root/", super::call::pid(arg))).map(drop)
    }),
    probe!("proc-other-mem", "the memory of another process through /proc", Pid, |arg| {
        open(&format!("/proc/{}/mem", super::call::pid(arg)), libc::O_RDONLY)
    }),
    probe!("proc-other-fds", "the descriptors of another process", Pid, |arg| {
        fs::read_dir(format!("/proc/{}/fd", super::call::pid(arg))).map(drop)
    }),
    probe!("proc-other-environ", "the environment of another process", Pid, |arg| {
        fs::read(format!("/proc/{}/environ", super::call::pid(arg))).map(drop)
    }),
    probe!("proc-list", "the list of processes", None, |_| {
        let is_pid = |name: &std::ffi::OsStr| name.to_str().is_some_and(|name| name.parse::<u32>().is_ok());
        let count = fs::read_dir("/proc")?.flatten().filter(|entry| is_pid(&entry.file_name())).count();
        proven(count > 0, "no process is listed")
    }),
    probe!("proc-oom-score", "changing who dies first when memory ends", None, |_| {
        fs::OpenOptions::new().write(true).open("/proc/self/oom_score_adj")?.write_all(b"1000")
    }),
    probe!("core-pattern", "opening the core pattern for writing", None, |_| {
        open("/proc/sys/kernel/core_pattern", libc::O_WRONLY)
    })
    .root_only("a sysctl of the whole machine"),
    probe!("sysrq", "opening the sysrq trigger", None, |_| open("/proc/sysrq-trigger", libc::O_WRONLY))
        .no_control("only kernels with sysrq have it, and only root may"),
    probe!("cgroup-mkdir", "a control group of its own", None, |_| {
        // Named after this process and removed at once; version 1 and 2 lie at different places.
        let places = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/pids"];
        let mut outcome = no("no control groups");
        for place in places {
            let name = format!("{place}/hostile-{}", std::process::id());
            outcome = fs::create_dir(&name).and_then(|()| fs::remove_dir(&name));
            if outcome.is_ok() {
                break;
            }
        }
        outcome
    })
    .root_only("the host's control groups are root's"),
    probe!("sys-read", "reading /sys", None, |_| fs::read("/sys/devices/system/cpu/online").map(drop)),
    probe!("dev-null", "opening a device", None, |_| open("/dev/null", libc::O_RDWR)),
    probe!("dev-terminal", "a new terminal (/dev/ptmx)", None, |_| {
        open("/dev/ptmx", libc::O_RDWR | libc::O_NOCTTY)
    }),
    probe!("dev-kvm", "opening /dev/kvm", None, |_| open("/dev/kvm", libc::O_RDWR))
        .no_control("most machines have no /dev/kvm that this user may open"),
    probe!("dev-memory", "opening /dev/mem", None, |_| open("/dev/mem", libc::O_RDONLY))
        .no_control("most kernels have no /dev/mem any more"),
    probe!("dev-kernel-log", "reading the kernel's log (/dev/kmsg)", None, |_| open(
        "/dev/kmsg",
        libc::O_RDONLY
    ))
    .root_only("with dmesg_restrict only root may"),
    probe!("dev-shm", "a file in shared memory", None, |_| {
        let name = format!("/dev/shm/hostile-{}", std::process::id());
        fs::write(&name, "x")?;
        fs::remove_file(name)
    }),
];

/// True content: of the canary the secret, of any other file something.
fn secret(read: io::Result<Vec<u8>>, arg: &str) -> io::Result<()> {
    let bytes = read?;
    let secret = bytes.windows(SECRET.len()).any(|window| window == SECRET.as_bytes());
    proven(!bytes.is_empty() && (secret || arg.is_empty()), "the file read does not hold the secret")
}

/// The mode that it has already, or the one of /tmp.
fn mode_of(path: &str) -> u32 {
    fs::metadata(path).map_or(0o1777, |m| m.permissions().mode() & 0o7777)
}

/// A `struct file_handle` with room.
fn handle(arg: &str) -> io::Result<[u32; 34]> {
    let (path, mut handle, mut mount) = (c(file(arg)), [0u32; 34], 0i32);
    handle[0] = 128; // bytes of room behind the two leading words
    sys!(
        SYS_name_to_handle_at,
        libc::AT_FDCWD,
        path.as_ptr(),
        handle.as_mut_ptr(),
        std::ptr::from_mut(&mut mount),
        0
    )?;
    Ok(handle)
}

fn mknod(arg: &str, name: &str, kind: u32, device: libc::dev_t) -> io::Result<()> {
    let name = fresh(arg, name);
    let path = c(&name);
    sys!(SYS_mknodat, libc::AT_FDCWD, path.as_ptr(), kind | 0o600, device)?;
    fs::remove_file(name)
}
