//! The plugin's root: a small read-only tmpfs that holds the verified library bytes and what it needs, nothing else. No
//! path of the host exists in it, no `/proc`, no `/dev`.

use super::Walls;
use nix::mount::{mount, umount2, MntFlags, MsFlags};
use nix::unistd::{chdir, pivot_root};
use std::cell::RefCell;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek};
use std::os::fd::{IntoRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use thenodes_ipc::launch::{Layer, NodeHello};

/// Where the new root is mounted for a moment: any directory that every Linux system has.
const STAGES: [&str; 3] = ["/tmp", "/proc", "/usr"];

/// What the runner finds after this step.
pub(crate) struct Root {
    /// True if the empty root is in force.
    pub(crate) empty: bool,
    /// The library, and then what it needs, as paths that can be opened from inside.
    pub(crate) library: PathBuf,
    pub(crate) needed: Vec<PathBuf>,
    /// Library descriptors that must stay open because there is no empty root to hold copies.
    pub(crate) kept: Vec<RawFd>,
    /// `/dev/null`, on its way to becoming standard input.
    null: RefCell<Option<OwnedFd>>,
}

impl Root {
    pub(crate) fn keep_null(&self, null: OwnedFd) {
        *self.null.borrow_mut() = Some(null);
    }

    pub(crate) fn take_null(&self) -> Option<OwnedFd> {
        self.null.borrow_mut().take()
    }
}

/// Builds the root and moves into it. If that fails, the library is opened from its sealed descriptors, and the report
/// says that this wall is missing.
pub(crate) fn build(hello: &NodeHello, files: Vec<OwnedFd>, walls: &mut Walls) -> Root {
    let built = try_build(hello, &files);
    let empty = walls.step(Layer::Root, "building the empty root", built).is_some();
    let names: Vec<PathBuf> = std::iter::once(PathBuf::from("/plugin.so"))
        .chain(hello.needed.iter().map(|needed| Path::new("/lib").join(&needed.soname)))
        .collect();
    let (paths, kept): (Vec<PathBuf>, Vec<RawFd>) = if empty {
        (names, Vec::new()) // the copies are enough: the descriptors are closed here
    } else {
        // The numbers that `state` gives them.
        let paths = (0..files.len()).map(|n| PathBuf::from(format!("/proc/self/fd/{}", 4 + n))).collect();
        (paths, files.into_iter().map(IntoRawFd::into_raw_fd).collect())
    };
    let mut paths = paths.into_iter();
    let library = paths.next().unwrap_or_default();
    Root { empty, library, needed: paths.collect(), kept, null: RefCell::new(None) }
}

fn try_build(hello: &NodeHello, files: &[OwnedFd]) -> io::Result<()> {
    let none: Option<&str> = None;
    // Our mounts must not travel to the host, nor the host's to us.
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    let stage = STAGES.iter().find(|stage| Path::new(stage).is_dir()).ok_or(io::ErrorKind::NotFound)?;
    let stage = Path::new(stage);
    let mut bytes = 64 * 1024;
    for file in files {
        bytes += nix::sys::stat::fstat(file).map(|s| s.st_size as u64)?.next_multiple_of(4096);
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    let inodes = 8 + files.len();
    let options = format!("size={bytes},nr_inodes={inodes},mode=0755");
    mount(Some("plugin"), stage, Some("tmpfs"), flags, Some(options.as_str()))?;
    if let Some((library, needed)) = files.split_first() {
        copy(library, &stage.join("plugin.so"))?;
        if !needed.is_empty() {
            fs::create_dir(stage.join("lib"))?;
        }
        for (file, named) in needed.iter().zip(&hello.needed) {
            copy(file, &stage.join("lib").join(&named.soname))?;
        }
    }
    chdir(stage)?;
    pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    chdir("/")?;
    let read_only = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
    mount(none, "/", none, read_only | flags, none)?;
    Ok(())
}

/// Copies the bytes that the node verified and sealed; the path they once came from is never opened again.
fn copy(from: &OwnedFd, to: &Path) -> io::Result<()> {
    let mut from = File::from(from.try_clone()?);
    from.rewind()?;
    let mut to = OpenOptions::new().write(true).create_new(true).mode(0o444).open(to)?;
    io::copy(&mut from, &mut to).map(drop)
}
