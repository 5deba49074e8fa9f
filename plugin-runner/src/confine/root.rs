//! The plugin's root: a small read-only tmpfs that holds nothing but the paths that were granted. The library is not in it:
//! its verified bytes come from the broker as a descriptor. No other path of the host exists, no `/proc`, no `/dev`.

use super::Walls;
use nix::errno::Errno;
use nix::fcntl::{open, OFlag};
use nix::mount::{mount, umount2, MntFlags, MsFlags};
use nix::sys::stat::{fstat, Mode, SFlag};
use nix::sys::statfs::fstatfs;
use nix::unistd::{chdir, pivot_root};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use thenodes_ipc::launch::{Layer, NodeHello, PathGrant, TEMPORARY};

/// Where the new root is mounted for a moment: any directory that every Linux system has.
const STAGES: [&str; 3] = ["/tmp", "/proc", "/usr"];
/// Most files and directories in it.
const TEMPORARY_FILES: u64 = 4096;

/// File systems whose answers another program or machine gives, or does not give: a process that waits for one cannot be killed.
const SERVED: [(i64, &str); 8] = [
    (0x6573_5546, "FUSE"),
    (0x6969, "NFS"),
    (0xff53_4d42, "SMB"),
    (0xfe53_4d42, "SMB"),
    (0x517b, "SMB"),
    (0x0102_1997, "9P"),
    (0x0187, "autofs"),
    (0x00c3_6400, "Ceph"),
];

/// The granted paths, opened while the host is still to be seen.
#[derive(Default)]
pub(crate) struct Sources(Vec<(PathGrant, OwnedFd)>);

impl Sources {
    /// Opens every granted path. One that does not exist, or that this uid may not reach, is an error that says so.
    pub(crate) fn open(hello: &NodeHello) -> Result<Sources, String> {
        let one = |grant: &PathGrant| match open(
            grant.path.as_str(),
            OFlag::O_PATH | OFlag::O_CLOEXEC,
            Mode::empty(),
        ) {
            Ok(fd) => Ok((grant.clone(), fd)),
            Err(e) => Err(format!("the granted path {}: {e} (as uid {})", grant.path, nix::unistd::getuid())),
        };
        hello.paths.iter().map(one).collect::<Result<_, _>>().map(Sources)
    }
}

/// What the runner finds after this step.
pub(crate) struct Root {
    /// True if the new root is in force.
    pub(crate) empty: bool,
}

/// Builds the root and moves into it.
pub(crate) fn build(hello: &NodeHello, sources: Sources, walls: &mut Walls) -> Root {
    if super::omitted(hello, Layer::Root) {
        walls.hole(Layer::Root, "left out for a test");
        return Root { empty: false };
    }
    let built = try_build(hello, sources);
    Root { empty: walls.step(Layer::Root, "building the root", built).is_some() }
}

fn failed(what: impl std::fmt::Display) -> impl FnOnce(Errno) -> io::Error {
    move |e| io::Error::other(format!("{what}: {e}"))
}

fn try_build(hello: &NodeHello, Sources(sources): Sources) -> io::Result<()> {
    let none: Option<&str> = None;
    // Our mounts must not travel to the host, nor the host's to us.
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    let stage = STAGES.iter().find(|stage| Path::new(stage).is_dir()).ok_or(io::ErrorKind::NotFound)?;
    let stage = Path::new(stage);
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    // Room for the directories on the way to granted paths, and nothing else.
    let inodes = 8 + hello.paths.iter().map(|grant| grant.path.matches('/').count() + 1).sum::<usize>();
    let options = format!("size=64k,nr_inodes={inodes},mode=0755");
    mount(Some("plugin"), stage, Some("tmpfs"), flags, Some(options.as_str()))?;
    if hello.temporary > 0 {
        let inside = below(stage, TEMPORARY);
        fs::create_dir_all(&inside)?;
        let options = format!("size={},nr_inodes={TEMPORARY_FILES},mode=0700", hello.temporary);
        mount(Some("temporary"), &inside, Some("tmpfs"), flags, Some(options.as_str()))?;
    }
    // After it: a granted path may lie in the host's /tmp, and is then to be seen in the plugin's.
    for (grant, source) in &sources {
        bind(stage, grant, source)?;
    }
    chdir(stage)?;
    pivot_root(".", ".").map_err(failed("pivot_root"))?;
    umount2(".", MntFlags::MNT_DETACH).map_err(failed("leaving the old root"))?;
    chdir("/")?;
    let read_only = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
    mount(none, "/", none, read_only | flags, none).map_err(failed("making the root read-only"))?;
    Ok(())
}

fn below(stage: &Path, path: &str) -> PathBuf {
    stage.join(path.trim_start_matches('/'))
}

/// An error for a path on a file system that somebody serves, and for one of which the kernel does not say what it is on.
#[allow(clippy::useless_conversion)] // the number's type is another one on other architectures
fn served_by_nobody(path: &str, found: nix::Result<nix::libc::c_long>) -> io::Result<()> {
    let magic = i64::from(found.map_err(|e| {
        io::Error::other(format!("the granted path {path}: asking what file system it is on: {e}"))
    })?);
    match SERVED.iter().find(|(served, _)| *served == magic) {
        None => Ok(()),
        Some((_, name)) => Err(io::Error::other(format!(
            "the granted path {path} is on {name}: whoever serves that could hold the plugin so that nothing ends it; grant a local path"
        ))),
    }
}

/// Shows a path of the host inside, under its own name.
fn bind(stage: &Path, grant: &PathGrant, source: &OwnedFd) -> io::Result<()> {
    let none: Option<&str> = None;
    let inside = below(stage, &grant.path);
    let about = |e: Errno| io::Error::other(format!("the granted path {}: {e}", grant.path));
    served_by_nobody(&grant.path, fstatfs(source).map(|fs| fs.filesystem_type().0))?;
    let kind = SFlag::from_bits_truncate(fstat(source)?.st_mode) & SFlag::S_IFMT;
    if kind == SFlag::S_IFDIR {
        fs::create_dir_all(&inside)?;
    } else if kind == SFlag::S_IFREG {
        if let Some(parent) = inside.parent() {
            fs::create_dir_all(parent)?;
        }
        if !inside.exists() {
            File::create(&inside)?;
        }
    } else {
        return Err(io::Error::other(format!(
            "the granted path {} is neither a file nor a directory",
            grant.path
        )));
    }
    let from = PathBuf::from(format!("/proc/self/fd/{}", source.as_raw_fd()));
    // Not recursive: what is mounted below was not granted. The kernel refuses to uncover what such a mount hides.
    mount(Some(&from), &inside, none, MsFlags::MS_BIND, none).map_err(|e| match e {
        Errno::EINVAL => io::Error::other(format!(
            "the granted path {} has other mounts below it; grant those directories one by one",
            grant.path
        )),
        e => about(e),
    })?;
    let mut flags =
        MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    if !(grant.write || grant.create) {
        flags |= MsFlags::MS_RDONLY;
    }
    mount(none, &inside, none, flags, none).map_err(about)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_on_a_served_file_system_or_on_an_unknown_one_is_not_granted() {
        let here = tempfile::tempdir().expect("a directory");
        let local = File::open(here.path()).expect("opened");
        let found = fstatfs(&local).map(|fs| fs.filesystem_type().0);
        served_by_nobody("/x", found).expect("the control: an ordinary directory");
        for (magic, name) in SERVED {
            let error = served_by_nobody("/x", Ok(magic)).expect_err(name).to_string();
            assert!(error.contains("/x is on") && error.contains(name), "{error}");
        }
        for errno in [Errno::EIO, Errno::EACCES, Errno::ENOSYS, Errno::EINTR] {
            let error = served_by_nobody("/x", Err(errno)).expect_err("unknown").to_string();
            assert!(error.contains("/x") && error.contains(errno.desc()), "{error}");
        }
    }
}
